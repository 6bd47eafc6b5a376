"""MultiGoal: a point mass among six equally good goals; from the middle all are equally far.

A policy with one mode has to choose one of them, or worse, their mean. What a policy does from the middle is told by
`goals_reached`, `coverage` and `goal_entropy`.

Source: Yang et al. 2026, arXiv:2602.01156, and its code; the point mass of Haarnoja et al. 2017, arXiv:1702.08165.
"""

import jax
import jax.numpy as jnp

from rlx.env import Env
from rlx.envs.frames import COOL, INK, WARM, drawn_by
from rlx.pytree import pytree
from rlx.spaces import Box


def draw(axes, env_state, params):
    """MultiGoal: the point, where it is heading, and the draw."""
    from rlx.envs.tasks import multigoal

    (x, y), (u, v), limit = env_state.state.position, env_state.state.velocity, float(params.limit)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.plot(*multigoal.goals(params).T, "o", color=WARM, ms=14, alpha=0.6)
    axes.plot([x, x + 0.3 * u], [y, y + 0.3 * v], color=COOL, lw=2)
    axes.plot(x, y, "o", color=INK, ms=8)


NUM_GOALS = 6


@pytree
class Params:
    distance: float = 5.0  # of the goals from the middle
    limit: float = 8.0  # leaving the square of this half width ends the episode
    start: float = 7.0  # half width of the square of starts; 0 starts every episode in the middle
    max_acceleration: float = 5.0
    effort: float = 0.01  # price of an action
    dt: float = 0.1  # s


@pytree
class State:
    position: jax.Array  # [2]
    velocity: jax.Array  # [2]


def goals(params: Params) -> jax.Array:
    """Positions `[6, 2]`, at multiples of 60 degrees."""
    angle = jnp.arange(NUM_GOALS) * (2 * jnp.pi / NUM_GOALS)
    return params.distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class MultiGoal:
    """Observes position and velocity `[4]`, is given an acceleration `[2]`.

        p' = p + v dt,    v' = v + clip(a, -5, 5) dt
        reward = dt (exp(-0.3 d^2) + exp(-0.1 d^2) - 0.01 |a|^2),    d = distance of p' to the nearest goal

    Actions are unbounded and the price is that of the whole of it, of what is clipped too.
    """

    default_params = Params()
    differentiable = True
    frames = drawn_by(draw)

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (4,))

    def action_space(self, params):
        return Box(-jnp.inf, jnp.inf, (2,))

    def reset(self, key, params):
        position = params.start * jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        state = State(position, jnp.zeros(2))
        return _obs(state), state

    def step(self, key, state, action, params):
        acceleration = jnp.clip(action, -params.max_acceleration, params.max_acceleration)
        state = State(state.position + state.velocity * params.dt, state.velocity + acceleration * params.dt)
        nearest = jnp.sum((state.position - goals(params)) ** 2, axis=-1).min()
        pay = jnp.exp(-0.3 * nearest) + jnp.exp(-0.1 * nearest) - params.effort * jnp.sum(action**2)
        outside = jnp.any(jnp.abs(state.position) > params.limit)
        return _obs(state), state, params.dt * pay, outside, jnp.array(False), {}


def _obs(state: State) -> jax.Array:
    return jnp.concatenate([state.position, state.velocity])


def goals_reached(position: jax.Array, params: Params = MultiGoal.default_params) -> jax.Array:
    """The goal `0, ..., 5` that each final position `[..., 2]` belongs to, -1 for none: int32 `[...]`.

    At least 3 away from the middle, a position belongs to the goal within 30 degrees of whose direction it lies.
    """
    cosine = position @ goals(params).T / params.distance  # times the distance from the middle
    return jnp.where(jnp.linalg.norm(position, axis=-1) >= 3.0, jnp.argmax(cosine, axis=-1), -1).astype(jnp.int32)


def goal_shares(reached: jax.Array) -> jax.Array:
    """The share of all trajectories `reached [E]` that each goal got, `[6]`."""
    return jnp.mean(reached[:, None] == jnp.arange(NUM_GOALS), axis=0)


def coverage(shares: jax.Array, at_least: float = 0.02) -> jax.Array:
    """Number of goals that at least this share of the trajectories got to, int32."""
    return jnp.sum(shares >= at_least)


def goal_entropy(shares: jax.Array) -> jax.Array:
    """Entropy, over `log 6`, of the goals that were reached: 1 for equal shares, 0 for one goal only, NaN for none."""
    return jnp.sum(jax.scipy.special.entr(shares / shares.sum())) / jnp.log(NUM_GOALS)


def make() -> Env:
    """51 steps an episode."""
    environment = MultiGoal()
    return Env(environment, environment.default_params, max_steps=51)
