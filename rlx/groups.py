"""Groups of episodes from one start: cloning states, advantages without a critic, and how much each step counts.

Axes: N groups, G members, T time. `alive` `[N, G, T]` is True for the steps of an episode, the one that ends it
included; what the others hold is never read. Episodes that have ended count with a return of 0 from there on.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp

from rlx.advantages import std
from rlx.devices.sharding import split
from rlx.env import Env, EnvState
from rlx.multiagent import check_one_agent
from rlx.pytree import pytree, static
from rlx.rollout import check_divides, episodes

P = TypeVar("P")


@pytree
class Facts:
    """What an update has played, of every step `[N, G, T]`. What no stage of `rlx.relatives` reads is not computed."""

    reward: jax.Array
    alive: jax.Array  # bool
    log_prob: jax.Array | None = None  # of what was done, by the policy that acted
    entropy: jax.Array | None = None  # of that policy there
    collision: jax.Array | None = None  # sum_a pi(a)^2 of it, where actions are numbers
    token: jax.Array | None = None  # int32, what was done
    place: jax.Array | None = None  # int32, an exact key of the state that it was done in, within a group
    kind: jax.Array | None = None  # int32 [N, G], the class of the outcome
    played: jax.Array | None = None  # bool, what the policy chose itself, not a given prefix
    branches: tuple[int, ...] = static(())  # of a group whose answers are a tree: `rlx.branching`

    @property
    def own(self) -> jax.Array:
        """Steps of the episode that the policy chose itself, bool `[N, G, T]`."""
        return self.alive if self.played is None else self.alive & self.played

    @property
    def length(self) -> jax.Array:
        """Steps of each episode, `[N, G]`."""
        return self.alive.sum(axis=-1)


def clone(states: P, num: int) -> P:
    """`num` copies of each of the states `[N, ...]`, next to each other: `[N * num, ...]`."""
    return split(jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), states))


def visited(env: Env, policy: Callable, env_state: EnvState, key: jax.Array, num_steps: int) -> EnvState:
    """A state of each of `N` episodes, `[N]`, uniform over those that were acted on in its first `num_steps`.

    The state of step t (from 0) takes the place of the one kept so far with probability `1 / (t + 1)`.

    Source: Vitter 1985, Random sampling with a reservoir, ACM TOMS 11(1), algorithm R for one item.
    """
    check_one_agent(env, "an episode whose states are kept")
    choice_key, act_key, env_key = jax.random.split(key, 3)
    num_envs = env_state.time.shape[0]

    def step(carry, x):
        env_state, kept, alive = carry
        time, act_key, env_key, choice_key = x
        take = alive & (jax.random.uniform(choice_key, (num_envs,)) * (time + 1) < 1)
        kept = jax.tree.map(lambda new, old: jax.vmap(jnp.where)(take, new, old), env_state, kept)
        action, _ = policy(env_state.obs, act_key)
        env_state, transition = jax.vmap(env.advance)(jax.random.split(env_key, num_envs), env_state, action)
        return (env_state, kept, alive & ~transition.done), None

    keys = (jax.random.split(k, num_steps) for k in (act_key, env_key, choice_key))
    start = (env_state, env_state, jnp.ones(num_envs, bool))
    return jax.lax.scan(step, start, (jnp.arange(num_steps), *keys))[0][1]


def monte_carlo_values(
    env: Env, policy: Callable, env_state: EnvState, key: jax.Array, num_copies: int, num_steps: int, gamma: jax.Array
) -> jax.Array:
    """Values `[N]` of any states `[N]` under a policy: mean discounted return of `num_copies` episodes from each.

    An episode that is not over after `num_steps`, or that a time limit ends, counts with its return so far.

    Source: Kazemnejad et al. 2024, VinePPO, arXiv:2410.01679, section 4.
    """
    _, traj, alive = episodes(env, policy, clone(env_state, num_copies), key, num_steps)
    reward, alive = (by_group(x, num_copies) for x in (traj.reward, alive))
    return returns_to_go(reward, alive, gamma)[..., 0].mean(axis=1)


def check_together(config: Any) -> None:
    """Raises ValueError where answers do not split into minibatches, with `together` of a group in one."""
    together = config.together
    if together > 1 and not config.same_start:
        raise ValueError(f"together = {together}: without same_start a group has no prompt to share; use together = 1")
    if config.group_size % together:
        raise ValueError(f"together = {together} does not divide group_size = {config.group_size}")
    what = "num_groups * group_size" + (" / together" if together > 1 else "")
    check_divides(config.num_episodes // together, config.num_minibatches, what)


def by_group(x: jax.Array, group_size: int) -> jax.Array:
    """What a rollout has as `[T, N * G, ...]` as `[N, G, T, ...]`."""
    x = x.reshape(x.shape[0], -1, group_size, *x.shape[2:])
    return jnp.moveaxis(x, 0, 2)


def returns_to_go(reward: jax.Array, alive: jax.Array, gamma: jax.Array) -> jax.Array:
    """`sum_{k >= t} gamma^(k - t) r_k` over the steps of the episode, `[..., T]`; 0 after its end."""
    chex.assert_equal_shape([reward, alive])
    rewards = jnp.moveaxis(jnp.where(alive, reward, 0.0), -1, 0)
    step = lambda later, reward: (reward + gamma * later,) * 2
    return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(rewards[0]), rewards, reverse=True)[1], 0, -1)


def outcomes(reward: jax.Array, alive: jax.Array, gamma: jax.Array) -> jax.Array:
    """`sum_k gamma^k r_k` of the whole episode for every step of it, `[..., T]`."""
    return jnp.broadcast_to(returns_to_go(reward, alive, gamma)[..., :1], reward.shape)


def at_the_end(outcome: jax.Array, alive: jax.Array) -> jax.Array:
    """Rewards `[..., T]` that pay an outcome `[...]` with the last step of the episode, and nothing before."""
    last = alive & ~jnp.roll(alive, -1, axis=-1).at[..., -1].set(False)
    return jnp.where(last, outcome[..., None], 0.0)


def standardized_to_go(reward: jax.Array, alive: jax.Array, gamma: jax.Array) -> jax.Array:
    """`returns_to_go` of `standardize_rewards`, `[N, G, T]`: what rewards of the process give to the steps before them.

    Source: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, section 4.1.3, which has gamma = 1.
    """
    return returns_to_go(standardize_rewards(reward, alive), alive, gamma)


def standardize_rewards(reward: jax.Array, alive: jax.Array, epsilon: float = 1e-4) -> jax.Array:
    """`(r - mean) / (std + epsilon)` over all steps of a group's episodes, `[N, G, T]`; 0 after their ends.

    Constant rewards give 0 everywhere.
    """
    num = alive.sum((1, 2), keepdims=True)
    mean = jnp.where(alive, reward, 0.0).sum((1, 2), keepdims=True) / num
    deviation = jnp.where(alive, reward - mean, 0.0)
    variance = (deviation**2).sum((1, 2), keepdims=True) / num
    constant = variance == 0  # where a root has no gradient
    return deviation / (jnp.where(constant, 0.0, jnp.sqrt(jnp.where(constant, 1.0, variance))) + epsilon)


def win_share(preference: jax.Array) -> jax.Array:
    """How often each member of a group is preferred to another one, `[N, G]`, of preferences `P(i, j)` `[N, G, G]`.

        s_i = sum_{j != i} P(i, j) / (G - 1)

    With `P(i, j) + P(j, i) = 1` the shares of a group sum to G / 2. As rewards they make any policy optimiser play
    against itself, which finds the minimax winner of intransitive preferences, too.

    Source: Swamy et al. 2024, A Minimaximalist Approach to RLHF, arXiv:2401.04056.
    """
    chex.assert_rank(preference, 3)
    own = jnp.diagonal(preference, axis1=1, axis2=2)
    return (preference.sum(axis=2) - own) / (preference.shape[1] - 1)


def risk_averse(outcome: jax.Array, low: float, high: float, tail_weight: float | jax.Array) -> jax.Array:
    """Utilities of outcomes that look at their lower part, of the shape of the outcomes `[...]`.

        band = (clip(s, q_low, q_high) - q_high) / (high - low),    tail = -max(q_low - s, 0) / low
        (tail_weight tail + band) / (tail_weight + 1)

    with the quantiles q of all outcomes, taken as given. The band is never positive: take a baseline off it. The paper
    scores bundles of tasks and tracks the quantiles over batches; here they are those of the batch.

    Args:
        outcome: s.
        low, high: levels of the quantiles, `0 < low < high <= 1`.
        tail_weight: of what is below the lower one.

    Source: RiskPO, 2025, and its code.
    """
    q_low, q_high = (jax.lax.stop_gradient(jnp.quantile(outcome, level)) for level in (low, high))
    band = (jnp.clip(outcome, q_low, q_high) - q_high) / (high - low)
    tail = -jnp.maximum(q_low - outcome, 0.0) / low
    return (tail_weight * tail + band) / (tail_weight + 1.0)


def no_baseline(credit: jax.Array, facts: Facts) -> jax.Array:
    """0, `[1, 1, 1]`."""
    return jnp.zeros((1, 1, 1))


def group_mean(credit: jax.Array, facts: Facts) -> jax.Array:
    """`mean_j C_j` over the members of a group, itself included: `[N, 1, T]` of credit `[N, G, T]`.

    The gradient it gives is `(G - 1) / G` of the true one. Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2.
    """
    return credit.mean(axis=1, keepdims=True)


def leave_one_out(credit: jax.Array, facts: Facts) -> jax.Array:
    """`mean_{j != i} C_j` for member i, `[N, G, T]`: unbiased, as it does not depend on what i did.

    Source: Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free; Ahmadian et al. 2024, arXiv:2402.14740,
    section 3.
    """
    return (credit.sum(axis=1, keepdims=True) - credit) / (credit.shape[1] - 1)


def length_weighted(credit: jax.Array, facts: Facts) -> jax.Array:
    """`sum_j L_j C_j / sum_j L_j` with the lengths of the episodes, `[N, 1, T]` of credit `[N, G, T]`.

    Of least variance where the squared norm of an episode's score grows with its length. Source: Hao et al. 2025, OPO,
    arXiv:2505.23585, section 3.
    """
    weight = facts.length / facts.length.sum(axis=1, keepdims=True)
    return (weight[..., None] * credit).sum(axis=1, keepdims=True)


def group_std(outcome: jax.Array, epsilon: float = 1e-4) -> jax.Array:
    """`std_i R_i + epsilon` of each group, `[N, 1]` of outcomes `[N, G]`, with Bessel's correction.

    Dividing by it gives groups whose outcomes hardly differ as much weight as those that differ most.
    """
    return std(outcome, axis=1, ddof=1, keepdims=True) + epsilon


def batch_std(outcome: jax.Array, epsilon: float = 1e-4) -> jax.Array:
    """`std R + epsilon` over all outcomes `[N, G]`, `[1, 1]`, with Bessel's correction."""
    return std(outcome, ddof=1, keepdims=True) + epsilon


def no_scale(outcome: jax.Array) -> jax.Array:
    """1, `[1, 1]`."""
    return jnp.ones((1, 1))


def agree(credit: jax.Array, tolerance: float = 1e-6) -> jax.Array:
    """Whether all members of a group have the same credit at every time, `[N]`: there is nothing to learn from it."""
    return (credit.max(axis=1) - credit.min(axis=1)).max(axis=-1) <= tolerance


def pass_at_k(correct: jax.Array, k: int) -> jax.Array:
    """How probably at least one of k answers to a problem is correct, `[...]`, of n samples each, bool `[..., n]`.

        1 - C(n - c, k) / C(n, k),    c the number of correct ones

    Unbiased. Source: Chen et al. 2021, Evaluating large language models trained on code, arXiv:2107.03374, equation 1.

    Raises:
        ValueError: for k below 1 or above n.
    """
    n = correct.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}: give a number from 1 to the {n} samples of each problem")
    i = jnp.arange(k)
    return 1.0 - jnp.prod(jnp.maximum(n - correct.sum(axis=-1, keepdims=True) - i, 0) / (n - i), axis=-1)


def per_trajectory(alive: jax.Array) -> jax.Array:
    """Weights `1 / (L_i E)` of the steps `[N, G, T]`: every episode counts the same, and its steps share that.

    E is the number of episodes with steps: N G, less those of groups that are left out.
    """
    length = alive.sum(axis=-1, keepdims=True)
    return alive / jnp.maximum(length, 1) / jnp.maximum((length > 0).sum(), 1)


def per_step(alive: jax.Array) -> jax.Array:
    """Weights `1 / sum_i L_i` of the steps `[N, G, T]`: every step counts the same.

    The sum is over the groups that are not left out. Source: Yu et al. 2025, DAPO, arXiv:2503.14476, equation 8.
    """
    return alive / jnp.maximum(alive.sum(), 1)


def constant(alive: jax.Array) -> jax.Array:
    """Weights `1 / (E T)` of the steps `[N, G, T]`: every step counts the same, however many there are.

    E is the number of episodes with steps, as in `per_trajectory`. Source: Liu et al. 2025, Dr. GRPO, arXiv:2503.20783,
    section 3.2.
    """
    return alive / jnp.maximum(alive.any(axis=-1).sum() * alive.shape[-1], 1)


def of_step(log_ratio: jax.Array, alive: jax.Array) -> jax.Array:
    """`log rho_t` as it is."""
    return log_ratio


def geometric_mean(log_ratio: jax.Array, alive: jax.Array) -> jax.Array:
    """`1 / L sum_t log rho_t` for every step of an episode, `[..., T]`.

    Source: Zheng et al. 2025, GSPO, arXiv:2507.18071, section 4.1.
    """
    total = jnp.where(alive, log_ratio, 0.0).sum(axis=-1, keepdims=True)
    return jnp.broadcast_to(total / jnp.maximum(alive.sum(axis=-1, keepdims=True), 1), log_ratio.shape)


def product(log_ratio: jax.Array, alive: jax.Array) -> jax.Array:
    """`sum_t log rho_t`, of the whole episode, for every step of it, `[..., T]`."""
    total = jnp.where(alive, log_ratio, 0.0).sum(axis=-1, keepdims=True)
    return jnp.broadcast_to(total, log_ratio.shape)
