"""Levels: tabular grid worlds with objects to collect, of which there are as many as numbers for them.

Everything that makes a level is in `params`: size and walls, where objects are and what they are worth, whether
collecting one ends the episode, how soon it comes back. A vmap over `params` is a population of levels; `level` draws
one, and with `Env.max_steps`, which is traced too, every level has a time limit of its own.

Source: the tabular grid worlds of Oh et al. 2020, Discovering Reinforcement Learning Algorithms, arXiv:2007.08794,
appendix B, with the distribution of levels of Jackson et al. 2023, arXiv:2310.02782, scaled down.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, INK, WARM, drawn_by
from rlx.pytree import pytree, replace
from rlx.spaces import Discrete


def draw(axes, env_state, params):
    """A grid world of `rlx/Levels`: walls, objects by what they are worth, and where one is."""
    from matplotlib.colors import ListedColormap

    axes.imshow(np.asarray(params.walls).T, cmap=ListedColormap(["white", INK]), vmin=0, vmax=1)
    for (x, y), there, reward in zip(params.place, env_state.state.there, params.reward, strict=True):
        if there:
            axes.plot(x, y, "s", color=WARM if reward > 0 else "#c0392b", ms=4 + 10 * abs(float(reward)))
    axes.plot(*env_state.state.place, "o", color=COOL, ms=9)


SIZE, OBJECTS = 6, 3
MOVES = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]  # the fifth stays
NOWHERE = -1


@pytree
class Params:
    walls: jax.Array  # bool [X, X]
    place: jax.Array  # int32 [K, 2], of each object; one that does not exist is NOWHERE
    reward: jax.Array  # [K], for collecting it
    end: jax.Array  # [K], the probability that collecting it ends the episode
    back: jax.Array  # [K], the probability a step that it is there again


@pytree
class State:
    place: jax.Array  # int32 [2], of the agent
    there: jax.Array  # bool [K], which objects are


class Levels:
    """Observes which of its states the world is in, a number below `X X 2^K`; is given one of 9 moves.

    The agent moves by at most one cell along each axis, unless there is a wall. Whatever is there it collects.
    """

    differentiable = False
    frames = drawn_by(draw)

    @property
    def default_params(self):
        return Params(
            walls=jnp.zeros((SIZE, SIZE), bool),
            place=jnp.array([[0, 0], [5, 5], [5, 0]]),
            reward=jnp.array([1.0, 0.3, -0.5]),
            end=jnp.array([1.0, 0.0, 0.0]),
            back=jnp.array([0.0, 0.05, 0.1]),
        )

    def observation_space(self, params):
        return Discrete(params.walls.size * 2 ** len(params.reward))

    def action_space(self, params):
        return Discrete(len(MOVES))

    def reset(self, key, params):
        taken = params.walls | _objects(params)
        free = jnp.where(taken.reshape(-1), -jnp.inf, 0.0)
        place = jnp.stack(jnp.divmod(jax.random.categorical(key, free), params.walls.shape[1]))
        state = State(place, params.place[:, 0] != NOWHERE)
        return observe(state, params), state

    def level(self, key, params):
        """A level as `level` draws it, without its time limit."""
        return level(key, len(params.walls), len(params.reward))[0]

    def mutate(self, key, params):
        """One change: half of the time a wall comes or goes where there is no object, else a reward changes."""
        kind_key, cell_key, object_key, reward_key = jax.random.split(key, 4)
        free = ~_objects(params)
        cell = jax.random.categorical(cell_key, jnp.where(free.reshape(-1), 0.0, -jnp.inf))
        toggled = params.walls ^ (jnp.arange(free.size) == cell).reshape(free.shape)
        one = jax.random.randint(object_key, (), 0, len(params.reward)) == jnp.arange(len(params.reward))
        drawn = jnp.where(one, jax.random.uniform(reward_key, minval=-1.0, maxval=1.0), params.reward)
        wall = jax.random.bernoulli(kind_key)
        return replace(
            params, walls=jnp.where(wall, toggled, params.walls), reward=jnp.where(wall, params.reward, drawn)
        )

    def step(self, key, state, action, params):
        end_key, back_key = jax.random.split(key)
        place = jnp.clip(state.place + jnp.array(MOVES)[action], 0, jnp.array(params.walls.shape) - 1)
        place = jnp.where(jnp.asarray(params.walls)[place[0], place[1]], state.place, place)
        collected = state.there & (params.place == place).all(-1)
        ends = collected & (jax.random.uniform(end_key, collected.shape) < params.end)
        again = (params.place[:, 0] != NOWHERE) & (jax.random.uniform(back_key, collected.shape) < params.back)
        state = State(place, jnp.where(collected, False, state.there | again))
        reward = jnp.sum(collected * params.reward)
        return observe(state, params), state, reward, ends.any(), jnp.array(False), {}


def _objects(params):
    x, y = (jnp.arange(n) for n in params.walls.shape)
    here = (params.place[:, 0, None, None] == x[:, None]) & (params.place[:, 1, None, None] == y)
    return here.any(0)


def observe(state: State, params: Params) -> jax.Array:
    """The number of a state: of the cell, and of which objects are there, as the digits of a binary number."""
    num = len(params.reward)
    which = jnp.sum(state.there * 2 ** jnp.arange(num))
    return (state.place[0] * params.walls.shape[1] + state.place[1]) * 2**num + which


def level(key: jax.Array, size: int = SIZE, num_objects: int = OBJECTS, num_walls: int = 4) -> tuple[Params, jax.Array]:
    """Draws a level, and its time limit in steps: what `Env` has as `params` and `max_steps`.

    The side is 4 to `size` cells, objects are 1 to `num_objects`, their rewards uniform in [-1, 1], the first one's
    in [0, 1]; they end the episode with a probability of 0.01 to 1 and come back with one of 0.001 to 0.1 a step, both
    uniform in the logarithm, as is the time limit between 20 and 75.
    """
    keys = jax.random.split(key, 7)
    side = jax.random.randint(keys[0], (), min(4, size), size + 1)
    inside = (jnp.arange(size)[:, None] < side) & (jnp.arange(size) < side)
    order = jnp.argsort(jnp.where(inside.reshape(-1), jax.random.uniform(keys[1], (size * size,)), 2.0))
    cells = jnp.stack(jnp.divmod(order[: num_objects + num_walls], size), axis=-1)  # all of them inside
    walls = (~inside).at[cells[num_objects:, 0], cells[num_objects:, 1]].set(True)
    exists = jnp.arange(num_objects) < jax.random.randint(keys[2], (), 1, num_objects + 1)
    least = jnp.where(jnp.arange(num_objects) == 0, 0.0, -1.0)
    log_uniform = lambda key, low, high, shape=(): jnp.exp(
        jax.random.uniform(key, shape, minval=math.log(low), maxval=math.log(high))
    )
    params = Params(
        walls=walls,
        place=jnp.where(exists[:, None], cells[:num_objects], NOWHERE),
        reward=jax.random.uniform(keys[3], (num_objects,), minval=least, maxval=1.0),
        end=log_uniform(keys[4], 0.01, 1.0, (num_objects,)),
        back=log_uniform(keys[5], 0.001, 0.1, (num_objects,)),
    )
    return params, log_uniform(keys[6], 20.0, 75.0).astype(jnp.int32)


def make(seed: int | None = None, size: int = SIZE, num_objects: int = OBJECTS) -> Env:
    """A level by the number of its draw; without one, an open room with a prize, a coin and a trap.

    Raises:
        ValueError: for a size below 4, more objects than 8, or either of them for the open room.
    """
    if seed is None and (size, num_objects) != (SIZE, OBJECTS):
        raise ValueError("size and num_objects are of drawn levels: give a seed, such as seed=0")
    if size < 4 or not 1 <= num_objects <= 8:
        raise ValueError(f"size = {size}, num_objects = {num_objects}: give at least 4, and 1 to 8")
    environment = Levels()
    if seed is None:
        return Env(environment, environment.default_params, max_steps=50)
    params, max_steps = jax.jit(level, static_argnums=(1, 2))(jax.random.key(seed), size, num_objects)
    return Env(environment, params, max_steps=int(max_steps))


def bound(env: Env, drawn: tuple[Params, jax.Array]) -> Env:
    """The environment with another level, as `level` draws it; traced, so that it can be vmapped."""
    return replace(env, params=drawn[0], max_steps=drawn[1])
