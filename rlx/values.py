"""What learners of action values have in common: n-step elements, distributions of returns, soft values.

Axes: T time, N environments, A actions, K atoms or quantiles, any leading axes `...`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from rlx.masks import ILLEGAL, allowed
from rlx.pytree import pytree

Number = float | jax.Array


@pytree
class Step:
    """Several steps of experience as one: what they paid, and where and with which discount they go on."""

    reward: jax.Array  # [T, N], discounted sum
    discount: jax.Array  # [T, N], of the value of `next_obs`; 0 where the last of them has terminated
    next_obs: Any  # leaves [T, N, ...], the true successor of the last of them
    num: jax.Array  # int32 [T, N], how many


def n_step(reward: jax.Array, terminated: jax.Array, done: jax.Array, next_obs: Any, n: int, gamma: Number) -> Step:
    """From every step of a rollout `[T, N]` the next n as one, fewer where an episode or the rollout ends before.

        R_t = sum_{k < m} gamma^k r_{t+k},    D_t = gamma^m (1 - terminated_{t+m-1}),    next_obs_{t+m-1}

    A window is cut by either end, never goes on in the next episode, and no step is without one. Where a time limit or
    the rollout has cut it, its value follows with gamma^m. At n = 1, D is gamma (1 - terminated).

    Source: Sutton & Barto 2018, Reinforcement Learning, equation 7.1, with m for n at ends.
    """
    chex.assert_equal_shape([reward, terminated, done])
    num_steps = len(reward)
    time = jnp.arange(num_steps)[:, None]
    last = jnp.broadcast_to(time, reward.shape)
    total, going = reward, jnp.ones(reward.shape, bool)
    for k in range(1, min(n, num_steps)):
        going &= ~jnp.roll(done, 1 - k, axis=0) & (time + k < num_steps)
        total += jnp.where(going, gamma**k * jnp.roll(reward, -k, axis=0), 0.0)
        last = jnp.where(going, time + k, last)
    at_last = lambda x: jnp.take_along_axis(x, last.reshape(*last.shape, *[1] * (x.ndim - 2)), axis=0)
    num = last - time + 1
    discount = jnp.where(at_last(terminated), 0.0, gamma ** num.astype(jnp.float32))
    return Step(total, discount, jax.tree.map(at_last, next_obs), num.astype(jnp.int32))


def lambda_returns(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    gamma: Number,
    td_lambda: Number,
) -> jax.Array:
    """Lambda-returns `[T, N]` from the values of the true successors.

        G_t = r_t + gamma (1 - terminated_t) ((1 - lambda) V(s'_t) + lambda G_{t+1})

    Where an episode or the rollout ends, `V(s'_t)` stands alone. `gae + V(s_t)` is the same where `V(s_{t+1})` is
    `V(s'_t)` at every step that goes on; this form needs no `V(s_t)`, and the two may differ, as values of actions do.

    Source: Sutton & Barto 2018, Reinforcement Learning, equation 12.18; time limits: Pardo et al. 2018,
    arXiv:1712.00378, equation 6.
    """
    chex.assert_equal_shape([reward, next_value, terminated, done])
    discount = gamma * jnp.where(terminated, 0.0, 1.0)
    share = td_lambda * jnp.where(done, 0.0, 1.0)

    def step(later, x):
        reward, next_value, discount, share = x
        later = reward + discount * ((1.0 - share) * next_value + share * later)
        return later, later

    inputs = reward, next_value, discount, share
    return jax.lax.scan(step, next_value[-1], inputs, reverse=True)[1]


def check_n_step(n: int, num_steps: int) -> None:
    """Raises ValueError where a rollout of `num_steps` has no n steps one after another."""
    if n > num_steps:
        raise ValueError(f"n_step = {n} is more than num_steps = {num_steps}: raise num_steps, or lower n_step")


def legal_values(q: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Values `[..., A]`, those of illegal actions far below all others; without a mask as they are."""
    return q if mask is None else jnp.where(allowed(mask), q, ILLEGAL)


def epsilon_value(q: jax.Array, epsilon: Number, mask: jax.Array | None = None) -> jax.Array:
    """The mean of values `[..., A]` under an epsilon-greedy policy, `[...]`; illegal actions do not count.

        (1 - epsilon) max_a Q(s, a) + epsilon mean_a Q(s, a)

    Source: van Seijen et al. 2009, A Theoretical and Empirical Analysis of Expected Sarsa.
    """
    legal = None if mask is None else allowed(mask)
    return (1.0 - epsilon) * legal_values(q, mask).max(-1) + epsilon * q.mean(-1, where=legal)


def at_actions(q: jax.Array, action: jax.Array) -> jax.Array:
    """Of values `[..., A, ...]` over actions those of the actions taken, `[...]`: the A of the axis after action's."""
    index = action.reshape(*action.shape, 1, *[1] * (q.ndim - action.ndim - 1))
    return jnp.take_along_axis(q, index, axis=action.ndim).squeeze(action.ndim)


def soft_value(q: jax.Array, temperature: Number) -> jax.Array:
    """`tau log sum_a exp(Q(s, a) / tau)`, `[...]`: the highest value as tau goes to 0.

    Source: Vieillard et al. 2020, Munchausen Reinforcement Learning, arXiv:2007.14430, section 3.
    """
    return temperature * jax.nn.logsumexp(q / temperature, axis=-1)


def munchausen_bonus(q: jax.Array, action: jax.Array, temperature: Number, coef: Number, lowest: Number) -> jax.Array:
    """`alpha clip(tau log pi(a | s), l0, 0)` with `pi = softmax(Q / tau)`, `[...]`: a bonus for what pi likes to do.

    Source: arXiv:2007.14430, equation 2 and appendix B (the clip).
    """
    log_pi = jax.nn.log_softmax(q / temperature, axis=-1)
    taken = jnp.take_along_axis(log_pi, action[..., None], axis=-1)[..., 0]
    return coef * jnp.clip(temperature * taken, lowest, 0.0)


def projection(probs: jax.Array, atoms: jax.Array, support: jax.Array) -> jax.Array:
    """Probabilities `[..., K]` on equally spaced atoms `support` `[K]`, of a distribution on other `atoms` `[..., K]`.

        m_i = sum_j p_j clip(1 - |clip(z_j) - support_i| / dz, 0, 1)

    Each mass goes to the two atoms around it, nearer ones getting more; what is beyond the support goes to its ends.
    Mass is kept, and so is the mean where nothing is beyond.

    Source: Bellemare et al. 2017, A Distributional Perspective on Reinforcement Learning, arXiv:1707.06887, equation 7.
    """
    width = support[1] - support[0]
    inside = jnp.clip(atoms, support[0], support[-1])
    share = jnp.clip(1.0 - jnp.abs(inside[..., None, :] - support[:, None]) / width, 0.0, 1.0)  # [..., i, j]
    return jnp.sum(share * probs[..., None, :], axis=-1)


def bins(lowest: Number, highest: Number, num: int) -> jax.Array:
    """Equally spaced centres of so many bins, `[K]`, the first and the last at the given values."""
    return lowest + (highest - lowest) * jnp.linspace(0.0, 1.0, num)


def hl_gauss(value: jax.Array, support: jax.Array, width: Number = 0.75) -> jax.Array:
    """Values `[...]` as probabilities `[..., K]` of bins around equally spaced centres: a normal, cut at the ends.

    `width` is its standard deviation in bins. The mean of what comes out is the value, some bins inside of the ends.

    Source: Imani & White 2018, arXiv:1806.04613; Farebrother et al. 2024, arXiv:2403.03950, section 3.1.
    """
    bin_ = support[1] - support[0]
    edges = jnp.concatenate([support - bin_ / 2, support[-1:] + bin_ / 2])
    value = jnp.clip(value, support[0], support[-1])
    below = jax.scipy.stats.norm.cdf((edges - value[..., None]) / (width * bin_))
    mass = jnp.diff(below, axis=-1)
    return mass / mass.sum(axis=-1, keepdims=True)


def quantile_huber(quantiles: jax.Array, targets: jax.Array, levels: jax.Array, kappa: Number = 1.0) -> jax.Array:
    """Loss `[...]` of quantiles `[..., K]` at `levels` `[..., K]` for samples `targets` `[..., M]` of the return.

        sum_i mean_j |tau_i - 1[u < 0]| L_kappa(u) / kappa,    u = target_j - quantile_i

    `L_kappa` is Huber's loss. Its minimum has the quantiles of the targets, up to kappa.

    Source: Dabney et al. 2018, arXiv:1710.10044, equations 9 and 10.
    """
    u = targets[..., None, :] - quantiles[..., :, None]
    huber = jnp.where(jnp.abs(u) <= kappa, 0.5 * u**2, kappa * (jnp.abs(u) - 0.5 * kappa))
    weight = jnp.abs(levels[..., :, None] - (u < 0))
    return (weight * huber / kappa).mean(axis=-1).sum(axis=-1)


def midpoints(num: int) -> jax.Array:
    """The levels `(i - 1/2) / K` of K quantiles, `[K]`."""
    return (jnp.arange(num) + 0.5) / num


def expectile_loss(u: jax.Array, level: Number) -> jax.Array:
    """`|tau - 1[u < 0]| u^2`, any shape: half the squared error at tau = 1/2; near 1 its minimum is the maximum.

    Source: Kostrikov et al. 2022, Implicit Q-Learning, arXiv:2110.06169, equation 4.
    """
    return jnp.abs(level - (u < 0)) * u**2


def gumbel_loss(u: jax.Array, scale: Number, most: float = 7.0) -> jax.Array:
    """`e^z - z - 1` with `z = min(u / b, most)`, any shape: the minimum over v at u = x - v is `b log E e^(x / b)`.

    For a large b that is the mean, and near 0 the maximum; `z^2 / 2` is the loss near z = 0. Where z is cut there is no
    gradient.

    Args:
        u: what the value falls short by, such as `Q(s, a) - V(s)`.
        scale: b, above 0.
        most: of z, before the exponential.

    Source: Garg et al. 2023, Extreme Q-Learning, arXiv:2301.02328.
    """
    z = jnp.minimum(u / scale, most)
    return jnp.exp(z) - z - 1.0


def returns_to_go(reward: jax.Array, done: jax.Array, gamma: Number) -> jax.Array:
    """Discounted sums of the rewards from each step to the end of its episode, `[M]`, of episodes one after another.

        G_t = r_t + gamma (1 - done_t) G_{t+1}

    An end by truncation ends the sum as well, and so does that of the array.
    """

    def joined(later, earlier):
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    keep = jnp.where(done, 0.0, gamma)
    return jax.lax.associative_scan(joined, (reward, keep), reverse=True)[0]


__all__ = [
    "Step",
    "at_actions",
    "bins",
    "check_n_step",
    "epsilon_value",
    "expectile_loss",
    "gumbel_loss",
    "hl_gauss",
    "lambda_returns",
    "legal_values",
    "midpoints",
    "munchausen_bonus",
    "n_step",
    "projection",
    "quantile_huber",
    "returns_to_go",
    "soft_value",
]
