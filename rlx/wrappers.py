"""Environments around environments: `randomized`, `chunked`, `bounded`."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_map_with_path

from rlx.around import of_inner, unchanged
from rlx.env import Env, check_names
from rlx.multiagent import check_one_agent
from rlx.pytree import pytree
from rlx.spaces import Box


@pytree
class RandomizedParams:
    """The parameters of a `Randomized` environment: those that are varied, and between which factors."""

    params: Any
    low: jax.Array  # [K], of each factor
    high: jax.Array  # [K]


@pytree
class RandomizedState:
    state: Any
    factors: jax.Array  # [K], of this episode


class Randomized:
    """Another environment whose parameters are multiplied by factors that each episode draws anew; see `randomized`."""

    __getattr__ = unchanged

    def __init__(self, environment: Any, params: RandomizedParams, names: tuple[tuple[str, ...], ...]):
        self.environment, self.default_params, self.names = environment, params, names

    def scaled(self, params: RandomizedParams, factors: jax.Array) -> Any:
        """The inner environment's parameters under these factors `[K]`."""
        factor_of = {name: i for i, group in enumerate(self.names) for name in group}

        def scale(path, leaf):
            i = factor_of.get(keystr(path, simple=True, separator="."))
            return leaf if i is None else leaf * factors[i].astype(jnp.result_type(leaf))

        return tree_map_with_path(scale, params.params)

    def reset(self, key, params):
        factors_key, reset_key = jax.random.split(key)
        factors = jax.random.uniform(factors_key, params.low.shape, minval=params.low, maxval=params.high)
        obs, state = self.environment.reset(reset_key, self.scaled(params, factors))
        return obs, RandomizedState(state, factors)

    def step(self, key, state, action, params):
        scaled = self.scaled(params, state.factors)
        obs, inner, *rest = self.environment.step(key, state.state, action, scaled)
        return obs, RandomizedState(inner, state.factors), *rest

    @property
    def reported(self):
        """The inner environment's, where that is around another one."""
        totals = self.environment.reported
        return lambda state: totals(state.state)

    def observation_space(self, params):
        return self.environment.observation_space(params.params)

    def action_space(self, params):
        return self.environment.action_space(params.params)

    def horizon(self, params):
        return Env(self.environment, params.params).horizon

    @property
    def frames(self):
        """The inner environment's, where it has one."""
        draw = self.environment.frames
        inner = lambda env_states: [replace(s, state=s.state.state) for s in env_states]
        return lambda env_states, params, *size: draw(inner(env_states), params.params, *size)

    @property
    def cameras(self):
        """The inner environment's, where it has some."""
        names = self.environment.cameras
        return lambda params: names(params.params)


def randomized(env: Env, factors: dict[str, tuple[float, float]]) -> Env:
    """Domain randomisation: each episode has its own parameters, and the policy is not told which.

        randomized(env, {"physics.body_mass physics.body_inertia": (0.5, 2.0), "physics.geom_friction": (0.4, 1.2)})

    Args:
        env: the environment.
        factors: by the dotted names of leaves of `env.params`, between which two numbers to draw, uniformly, what they
            are multiplied by. Names with a space between them share one factor.

    Returns the environment; the bounds are traced, as `env.params.low` and `.high`, and `env.params.params` is what is
    multiplied.

    Raises:
        ValueError: for a name that no leaf has or that is given twice, a leaf that does not hold floating-point
            numbers, or bounds that are not two numbers in order.
    """
    groups = tuple(tuple(names.split()) for names in factors)
    names = [name for group in groups for name in group]
    leaves = check_names(env.params, names)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"parameter {name} has two factors: give it one")
        if not jnp.issubdtype(jnp.result_type(leaves[name]), jnp.floating):
            raise ValueError(f"parameter {name} is not of floating-point numbers: it cannot be multiplied by a factor")
    for name, bounds in factors.items():
        numbers = isinstance(bounds, tuple | list) and [x for x in bounds if isinstance(x, int | float)]
        if not (numbers and len(numbers) == len(bounds) == 2 and numbers[0] <= numbers[1]):
            raise ValueError(f"factors of {name} = {bounds!r}: give the lowest and the highest, such as (0.5, 2)")
    low, high = (jnp.array([bounds[i] for bounds in factors.values()], jnp.float32) for i in (0, 1))
    params = RandomizedParams(env.params, low, high)
    return replace(env, environment=Randomized(env.environment, params, groups), params=params)


class Chunked:
    """Another environment that is given several actions at once; see `chunked`. `params` are that `Env`."""

    def __init__(self, env: Env, size: int, executed: int, discount: float):
        self.default_params, self.size, self.executed, self.discount = env, size, executed, discount

    @property
    def carried_out(self):
        """How many of the numbers of an action are carried out, from the first."""
        return self.executed * math.prod(self.default_params.action_space.shape)

    def reset(self, key, params):
        env_state = params.reset(key)
        return env_state.obs, env_state

    def step(self, key, state, action, params):
        actions = action.reshape(self.size, *params.action_space.shape)[: self.executed]

        def one(carry, x):
            (env_state, reward, weight, terminated, truncated), (key, action) = carry, x
            ended = terminated | truncated
            stepped, transition = params.advance(key, env_state, action)
            env_state = jax.tree.map(lambda new, old: jnp.where(ended, old, new), stepped, env_state)
            reward = reward + jnp.where(ended, 0.0, weight * transition.reward)
            terminated |= transition.terminated & ~ended
            truncated |= transition.truncated & ~ended
            info, diverged = transition.info, transition.diverged & ~ended
            info = info | {"diverged": diverged} if isinstance(info, dict) else info
            return (env_state, reward, weight * self.discount, terminated, truncated), info

        start = (state, jnp.float32(0), jnp.float32(1), jnp.array(False), jnp.array(False))
        keys = jax.random.split(key, self.executed)
        (state, reward, _, terminated, truncated), info = jax.lax.scan(one, start, (keys, actions))
        return state.obs, state, reward, terminated, truncated, info

    def reported(self, state):
        """What the inner episode reported so far: of the steps of a chunk up to and with an end."""
        return state.reported

    def observation_space(self, params):
        return params.observation_space

    def action_space(self, params):
        one = params.action_space
        low, high = (jnp.tile(jnp.broadcast_to(x, one.shape).reshape(-1), self.size) for x in (one.low, one.high))
        return Box(low, high, low.shape, one.dtype)

    def horizon(self, params):
        """In chunks; the last one of an episode may be cut."""
        return None if params.horizon is None else -(-params.horizon // self.executed)

    @property
    def differentiable(self):
        inner: Any = self.default_params.environment
        return inner.differentiable

    @property
    def dt(self):
        inner: Any = self.default_params.environment
        return self.executed * inner.dt

    @property
    def frames(self):
        """The inner environment's, where it has one."""
        inner: Any = self.default_params.environment
        draw = inner.frames
        return lambda env_states, params, *size: draw([s.state for s in env_states], params.params, *size)

    @property
    def cameras(self):
        """The inner environment's, where it has some."""
        inner: Any = self.default_params.environment
        names = inner.cameras
        return lambda params: names(params.params)


def chunked(env: Env, size: int, executed: int | None = None, discount: float = 1.0) -> Env:
    """The environment with chunks of actions: each step takes `size` of them, as one vector, and does them in order.

    The reward is `sum_i discount^i r_i` over the steps of the chunk; where the episode ends within it, the rest is not
    done and not paid. Time limits are those of the environment, in its own steps; lengths of episodes are in chunks.
    `info` has an axis of the steps done, of which those after an end mean nothing.

    Args:
        env: of continuous actions.
        size: how many actions a chunk has.
        executed: how many of them are done, the first ones, before the next chunk is asked for; None for all.
        discount: of each step within a chunk.

    Raises:
        ValueError: for discrete actions, a size below 1, or more executed than there are.
    """
    executed = size if executed is None else executed
    if type(size) is not int or size < 1:
        raise ValueError(f"chunks of {size!r} actions: give an integer of at least 1")
    if type(executed) is not int or not 1 <= executed <= size:
        raise ValueError(f"{executed!r} of the {size} actions of a chunk executed: give an integer from 1 to {size}")
    check_one_agent(env, "an environment of chunks")
    if not isinstance(env.action_space, Box):
        raise ValueError(f"chunks are of continuous actions; the environment has {env.action_space}")
    return replace(env, environment=Chunked(env, size, executed, discount), params=env, max_steps=None)


def carried_out(env: Env, x: jax.Array) -> jax.Array:
    """Of arrays over actions `[..., A]` the part that the environment carries out: not the end of a chunk."""
    return x[..., : getattr(env.environment, "carried_out", None)]


class Bounded:
    """Another environment whose actions have bounds; see `bounded`."""

    __getattr__ = of_inner

    def __init__(self, environment: Any, low: Any, high: Any):
        self.environment, self.default_params = environment, environment.default_params
        self.low, self.high = low, high

    def reset(self, key, params):
        return self.environment.reset(key, params)

    def step(self, key, state, action, params):
        return self.environment.step(key, state, action, params)

    def observation_space(self, params):
        return self.environment.observation_space(params)

    def action_space(self, params):
        inner = self.environment.action_space(params)
        low, high = jnp.maximum(self.low, inner.low), jnp.minimum(self.high, inner.high)
        return Box(low, high, inner.shape, inner.dtype)

    def horizon(self, params):
        return Env(self.environment, params).horizon


def bounded(env: Env, low: Any, high: Any) -> Env:
    """The environment with continuous actions between `low` and `high`, and between its own bounds.

    Policies then act in all of that range, and in nothing else: those that need two bounds have them.

    Args:
        env: of continuous actions.
        low: the least of each action, a number or an array of the shape of the actions.
        high: the greatest, likewise.

    Raises:
        ValueError: for discrete actions, or bounds that are not finite, not in order or not of that shape.
    """
    if not isinstance(env.action_space, Box):
        raise ValueError(f"bounds are of continuous actions; the environment has {env.action_space}")
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    shape = np.broadcast_shapes(low.shape, high.shape)
    if not (
        shape in ((), env.action_space.shape) and np.isfinite([*low.flat, *high.flat]).all() and (low < high).all()
    ):
        raise ValueError(
            f"bounds {low} and {high} of actions of shape {env.action_space.shape}: give finite numbers of that shape, "
            "the lower ones first"
        )
    return replace(env, environment=Bounded(env.environment, low, high))
