"""Levels: what differs from one episode to another, as data that can be kept and played again.

    env = drawn(env)                                        # each episode has a level of its own, drawn anew
    levels = draw_levels(env, key, 32)                      # `Level`s, leaves [32, ...]
    starts = begin(env, levels)                             # episodes on them, `EnvState` [32]
    rollout(env, policy, starts, key, 256, starts=starts)   # which begin again on the same

A level is the environment's parameters and the key of a start. An environment that has `level(key, params)` draws
parameters by it, and `mutate(key, params)` changes them a little; of one that has not a level is a start.

`rlx.level_buffer` keeps those that are worth playing again, and `algos/ppo_levels.py` learns on them.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from rlx.around import unchanged
from rlx.curriculum import has_pace
from rlx.env import Env, EnvState
from rlx.hosted import check_hosted
from rlx.pytree import pytree


@pytree
class Level:
    """Where an episode takes place; leaves may have leading axes, of many."""

    params: Any  # of the environment; None where they are always the same
    start: jax.Array  # the key of its reset


@pytree
class DrawnState:
    state: Any
    params: Any  # of this episode's level


@pytree
class At:
    """The parameters of a `Drawn` environment that stays on one level."""

    params: Any
    level: Level


class Drawn:
    """Another environment whose episodes have levels of their own; see `drawn`. Its parameters are the other's."""

    __getattr__ = unchanged

    def __init__(self, environment: Any):
        self.environment = environment

    @property
    def default_params(self):
        return self.environment.default_params

    def level(self, key, params) -> Level:
        """One of all levels, at random."""
        params_key, start_key = jax.random.split(key)
        draw = getattr(self.environment, "level", None)
        return Level(None if draw is None else draw(params_key, params), start_key)

    def reset(self, key, params):
        level = params.level if isinstance(params, At) else self.level(key, params)
        own = _own(params) if level.params is None else level.params
        obs, state = self.environment.reset(level.start, own)
        return obs, DrawnState(state, level.params)

    def step(self, key, state, action, params):
        own = _own(params) if state.params is None else state.params
        obs, inner, *rest = self.environment.step(key, state.state, action, own)
        return obs, DrawnState(inner, state.params), *rest

    @property
    def reported(self):
        """The inner environment's, where that is around another one."""
        totals = self.environment.reported
        return lambda state: totals(state.state)

    def observation_space(self, params):
        return self.environment.observation_space(_own(params))

    def action_space(self, params):
        return self.environment.action_space(_own(params))

    def horizon(self, params):
        return Env(self.environment, _own(params)).horizon

    @property
    def frames(self):
        """The inner environment's, where it has one."""
        draw = self.environment.frames

        def images(env_states, params, *size):
            found = []
            for env_state in env_states:
                own = _own(params) if env_state.state.params is None else env_state.state.params
                found += draw([replace(env_state, state=env_state.state.state)], own, *size)
            return found

        return images

    @property
    def cameras(self):
        """The inner environment's, where it has some."""
        names = self.environment.cameras
        return lambda params: names(_own(params))


def _own(params: Any) -> Any:
    return params.params if isinstance(params, At) else params


def drawn(env: Env) -> Env:
    """The environment with a level of its own for each episode, drawn at its start; one that has them stays as it is.

    Raises:
        ValueError: for an environment on the host, whose starts are not drawn by keys.
    """
    check_hosted(env, "a level is a key of a start: levels need an environment of JAX")
    return env if has_levels(env) else replace(env, environment=Drawn(env.environment))


def has_levels(env: Env) -> bool:
    """Whether an environment is one of levels."""
    return isinstance(env.environment, Drawn)


def draw_levels(env: Env, key: jax.Array, num: int) -> Level:
    """`num` levels of all that there are, at random, leaves `[num, ...]`."""
    environment: Any = env.environment
    return jax.vmap(lambda key: environment.level(key, env.settled))(jax.random.split(key, num))


def can_mutate(env: Env) -> bool:
    """Whether the environment can change its levels a little."""
    environment: Any = env.environment
    return has_levels(env) and hasattr(environment.environment, "mutate")


def mutate_levels(env: Env, key: jax.Array, levels: Level, num_changes: int) -> Level:
    """The levels `[N, ...]` after so many random changes to each; their starts have the same keys."""
    environment: Any = env.environment
    change = environment.environment.mutate

    def one(key, level):
        keys = jax.random.split(key, num_changes)
        params, _ = jax.lax.scan(lambda params, key: (change(key, params), None), level.params, keys)
        return replace(level, params=params)

    return jax.vmap(one)(jax.random.split(key, levels.start.shape[0]), levels)


def at_level(env: Env, level: Level) -> Env:
    """The environment whose episodes all begin on one level, for evaluations; traced, so that it can be vmapped."""
    return replace(env, params=At(env.params, level))


def begin(env: Env, levels: Level) -> EnvState:
    """Fresh starts of episodes on levels `[N, ...]`.

    Raises:
        ValueError: where a parameter goes by success, whose pace would begin again as well.
    """
    if has_pace(env.params):
        raise ValueError("starts on levels keep no pace of a curriculum: give a schedule such as linear:0:60")
    return jax.vmap(lambda level: at_level(env, level).reset(level.start))(levels)


def pick(where: jax.Array, levels: Level, others: Level) -> Level:
    """Of levels `[N, ...]` those `where` True, bool `[N]`, else the others."""
    return jax.tree.map(lambda a, b: jax.vmap(jnp.where)(where, a, b), levels, others)


__all__ = [
    "At",
    "Drawn",
    "DrawnState",
    "Level",
    "at_level",
    "begin",
    "can_mutate",
    "draw_levels",
    "drawn",
    "has_levels",
    "mutate_levels",
    "pick",
]
