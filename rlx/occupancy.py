"""Utilities of where a policy comes to: occupancies of states, what a utility of them pays, momentum that is corrected.

    now = occupancy(states, alive, gamma, num_states)              [N, S], of episodes of the policy as it is
    weight = importance(log_prob_of_then, log_prob_of_now, alive)  [N], of the policy a step ago
    seen = carried(seen, now, now, weight, eta)                    [S]
    reward = entropy_reward(seen, floor)                           [S], the gradient of the utility F
    paid(log_prob - log_prob_when_acting, states, alive, reward, gamma)    [N], whose gradient is that of F

A utility F of the occupancy d is no sum of rewards. Its gradient in the parameters is that of the return of the reward
`r = grad F(d)`, held fixed: `grad_theta F(d_theta) = sum_s r(s) grad_theta d_theta(s)`. So d has to be estimated too.
N-VR-PG keeps both, d and the direction, by one recursion, `carried`, and steps as far as the rate along the direction.

Axes: T time, N episodes, S states, A actions.

Source: Barakat, Fatkhullin, He 2023, Reinforcement Learning with General Utilities: Simpler Variance Reduction and
Large State-Action Space. It was not at hand: the equations were derived again, and tests enumerate all episodes.

Deviations from the paper:
- Occupancies are of states, not of states and actions.
- The reward of a state is weighted by the actions before it, not by its own, which has no part in it.
- An update has N episodes.
"""

from collections.abc import Sequence
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlx.trajectories import reweighted_returns

Number = float | jax.Array
T = TypeVar("T")
TEMPERATURES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
MOST_STEPS = 100  # of Newton at one temperature


def occupancy(states: jax.Array, alive: jax.Array, gamma: Number, num_states: int) -> jax.Array:
    """The discounted occupancy of states in each episode, `[N, S]`.

        d(s) = (1 - gamma) sum_t gamma^t 1[s_t = s]

    over the states in which the agent acted. A row sums to `1 - gamma^L` for an episode of L steps, whether it ended
    or was cut: what would come after counts nowhere. Of episodes that end that is right; of those that are cut it is
    too little by `gamma^L`, so let them be long.

    Args:
        states: int `[T, N]`, from 0 to `num_states - 1`.
        alive: bool `[T, N]`, the steps of an episode.
        gamma: discount, below 1.
        num_states: S.
    """
    chex.assert_equal_shape([states, alive])
    share = (1.0 - gamma) * jnp.where(alive, gamma ** jnp.arange(len(states))[:, None], 0.0)
    one = lambda states, share: jnp.zeros(num_states, share.dtype).at[states].add(share)
    return jax.vmap(one, in_axes=1)(states, share)


def entropy(occupancy: jax.Array) -> jax.Array:
    """`-sum_s d(s) log d(s)` in nats, over the last axis; where d is 0 or, as an estimate, below, it counts 0."""
    positive = occupancy > 0
    return -jnp.where(positive, occupancy * jnp.log(jnp.where(positive, occupancy, 1.0)), 0.0).sum(-1)


def entropy_reward(occupancy: jax.Array, floor: Number) -> jax.Array:
    """What the entropy pays in each state, its gradient, `-log max(d(s), floor) - 1`.

    Without a floor a state that was not seen would pay infinitely much, and an estimate by `carried` may be below 0.
    With it a state pays at most `-log floor - 1`, and the utility goes on below the floor along its tangent: it is
    concave still. Take about what one visit comes to, or less.
    """
    return -jnp.log(jnp.maximum(occupancy, floor)) - 1.0


def likeness(occupancy: jax.Array, demonstrated: jax.Array, floor: Number) -> jax.Array:
    """Minus the KL to the occupancy of demonstrations, `-sum_s d(s) log(d(s) / max(e(s), floor))`, over the last axis.

    It is largest, 0, where `d = e`, for distributions that are nowhere below the floor.
    """
    return entropy(occupancy) + (occupancy * jnp.log(jnp.maximum(demonstrated, floor))).sum(-1)


def likeness_reward(occupancy: jax.Array, demonstrated: jax.Array, floor: Number) -> jax.Array:
    """What `likeness` pays in each state, `log max(e(s), floor) - log max(d(s), floor) - 1`."""
    return entropy_reward(occupancy, floor) + jnp.log(jnp.maximum(demonstrated, floor))


def importance(log_prob_of_then: jax.Array, log_prob_of_now: jax.Array, alive: jax.Array) -> jax.Array:
    """How much likelier episodes are by the policy of then than by that of now, which played them, `[N]`.

        w = prod_t pi_then(a_t | s_t) / pi_now(a_t | s_t)

    The mean of `w f(tau)` over episodes of now is that of `f(tau)` over those of then. All arguments are `[T, N]`.
    """
    return jnp.exp(jnp.where(alive, log_prob_of_then - log_prob_of_now, 0.0).sum(axis=0))


def paid(log_ratio: jax.Array, states: jax.Array, alive: jax.Array, reward: jax.Array, gamma: Number) -> jax.Array:
    """What a reward of states comes to over an episode, normalised, as a function of the policy, `[N]`.

        (1 - gamma) sum_t gamma^t r(s_t) prod_{h < t} pi(a_h | s_h) / mu(a_h | s_h)

    At `pi = mu` it is `sum_s r(s) d(s)` of `occupancy`, and its gradient estimates that of the utility whose gradient
    `r` is.

    Args:
        log_ratio: `log pi - log mu` of each action, `[T, N]`.
        states, alive: `[T, N]`.
        reward: `[S]`; no gradient goes through it.
        gamma: discount.
    """
    before = jnp.roll(log_ratio, 1, axis=0).at[0].set(0.0)
    return (1.0 - gamma) * reweighted_returns(before, jax.lax.stop_gradient(reward)[states], alive, gamma)


def carried(before: T, estimate: T, estimate_of_then: T, weight: jax.Array, eta: Number) -> T:
    """Momentum that is corrected by importance weights, for each leaf, with means over episodes:

        x_t = eta x(tau_t) + (1 - eta) (x_{t-1} + x(tau_t) - w x_then(tau_t))

    The mean of the correction `x - w x_then` is by how much what is estimated has changed since `x_{t-1}`, so `x_t` is
    unbiased where `x_{t-1}` was; and where the policy hardly moves the correction is small, so that noise averages out.
    eta = 1 is the estimate alone, with which one begins.

    Args:
        before: `x_{t-1}`, leaves `[...]`.
        estimate: of the policy as it is, for each of its episodes, leaves `[N, ...]`.
        estimate_of_then: of the policy of `before` on the same episodes, not weighted. For an occupancy it is
            `estimate` itself; for a gradient it is that at the parameters of then, by the reward of then.
        weight: `importance`, `[N]`.
        eta: weight of the newest estimate, from 0 to 1.
    """

    def one(before, now, then):
        return now.mean(0) + (1.0 - eta) * (before - jnp.tensordot(weight, then, 1) / len(weight))

    return jax.tree.map(one, before, estimate, estimate_of_then)


def exact_occupancy(transitions: np.ndarray, policy: np.ndarray, start: np.ndarray, gamma: float) -> np.ndarray:
    """The discounted occupancy of a policy whose episodes never end, float64 `[S]`, which sums to 1.

        d = (1 - gamma) (I - gamma P^T)^{-1} start,    P(s, s') = sum_a policy(s, a) transitions(s, a, s')

    Args:
        transitions: `[S, A, S]`.
        policy: `[S, A]`.
        start: `[S]`.
        gamma: discount, below 1.
    """
    moves = np.einsum("sa,sax->sx", policy, transitions)
    return (1.0 - gamma) * np.linalg.solve(np.eye(len(start)) - gamma * moves.T, start)


def greatest_entropy(
    transitions: np.ndarray, start: np.ndarray, gamma: float, temperatures: Sequence[float] = TEMPERATURES
) -> tuple[np.ndarray, float]:
    """A policy `[S, A]` whose discounted occupancy has the greatest entropy, and a bound on how much it lacks.

    The dual of the program over occupancies, in values V of states, is convex and has no constraints:

        D(V) = (1 - gamma) start . V + sum_s exp(max_a gamma sum_s' P(s, a, s') V(s') - V(s) - 1)

    Newton's steps minimise it with `t log sum_a exp(. / t)` for the maximum, t falling. The policy is the softmax of
    that. `D(V)`, with the maximum, is at least the entropy of any policy: the bound is `D(V)` less the entropy of this.

    Args:
        transitions: `[S, A, S]`; episodes never end.
        start: `[S]`.
        gamma: discount, below 1.
        temperatures: t, from large to small.

    Raises:
        ValueError: where a state cannot be reached.
    """
    num, num_actions, _ = transitions.shape
    rows = np.asarray(transitions, np.float64).reshape(-1, num)
    policy = np.full((num, num_actions), 1.0 / num_actions)
    uniform = exact_occupancy(transitions, policy, start, gamma)
    if uniform.min() <= 0:
        raise ValueError(f"{(uniform <= 0).sum()} of {num} states cannot be reached: leave them out")

    def dual(values, temperature):
        ahead = gamma * (rows @ values).reshape(num, num_actions)
        most = ahead.max(1, keepdims=True)
        weights = np.exp((ahead - most) / temperature)
        soft = most[:, 0] + temperature * np.log(weights.sum(1))
        with np.errstate(over="ignore"):
            mass = np.exp(soft - values - 1.0)
        return (1.0 - gamma) * start @ values + mass.sum(), mass, weights / weights.sum(1, keepdims=True)

    moves = np.einsum("sa,sax->sx", policy, transitions)
    values = np.linalg.solve(np.eye(num) - gamma * moves, -np.log(uniform) - 1.0)
    for temperature in temperatures:
        for _ in range(MOST_STEPS):
            value, mass, policy = dual(values, temperature)
            moves = np.einsum("sa,sax->sx", policy, transitions)
            flow = gamma * moves - np.eye(num)
            gradient = (1.0 - gamma) * start + flow.T @ mass
            spread = rows.T @ ((mass[:, None] * policy).reshape(-1, 1) * rows) - moves.T @ (mass[:, None] * moves)
            step = np.linalg.solve(flow.T @ (mass[:, None] * flow) + gamma**2 / temperature * spread, gradient)
            slope, length = gradient @ step, 1.0
            if slope < 1e-12:
                break
            while length > 1e-9 and dual(values - length * step, temperature)[0] > value - 0.1 * length * slope:
                length /= 2
            values = values - length * step
    ahead = gamma * (rows @ values).reshape(num, num_actions).max(1)
    bound = (1.0 - gamma) * start @ values + np.exp(ahead - values - 1.0).sum()
    reached = exact_occupancy(transitions, policy, start, gamma)
    return policy, float(bound + (reached * np.log(reached)).sum())


__all__ = [
    "carried",
    "entropy",
    "entropy_reward",
    "exact_occupancy",
    "greatest_entropy",
    "importance",
    "likeness",
    "likeness_reward",
    "occupancy",
    "paid",
]
