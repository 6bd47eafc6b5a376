"""Environments of which less is seen, or more is kept: `hidden`, `timed`, `remembering`, `stacked`.

    env = stacked(remembering(hidden(env, (1, 3)), 8), 4)

Their params, and all that they do not change, are those of the environment inside. O observation, A action, Z memory,
H height, W width, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.around import of_inner
from rlx.env import Env
from rlx.multiagent import check_one_agent
from rlx.pytree import pytree
from rlx.spaces import Box, Dict, Discrete


class Hidden:
    """Another environment of whose observation only some entries are seen; see `hidden`."""

    __getattr__ = of_inner

    def __init__(self, environment: Any, seen: tuple[int, ...]):
        self.environment, self.seen = environment, seen

    def reset(self, key, params):
        obs, state = self.environment.reset(key, params)
        return obs[np.array(self.seen)], state

    def step(self, key, state, action, params):
        obs, *rest = self.environment.step(key, state, action, params)
        return obs[np.array(self.seen)], *rest

    def observation_space(self, params):
        inner = self.environment.observation_space(params)
        low, high = (bound if np.ndim(bound) == 0 else bound[np.array(self.seen)] for bound in (inner.low, inner.high))
        return Box(low, high, (len(self.seen),), inner.dtype)


class HiddenEntries:
    """Another environment of whose dictionary of observations only some entries are seen; see `hidden`."""

    __getattr__ = of_inner

    def __init__(self, environment: Any, names: tuple[str, ...]):
        self.environment, self.names = environment, names

    def reset(self, key, params):
        obs, state = self.environment.reset(key, params)
        return self._seen(obs), state

    def step(self, key, state, action, params):
        obs, *rest = self.environment.step(key, state, action, params)
        return self._seen(obs), *rest

    def observation_space(self, params):
        inner = self.environment.observation_space(params)
        privileged = [name for name in inner.privileged if name not in self.names]
        return Dict(self._seen(inner.spaces), privileged=privileged)

    def _seen(self, entries):
        return {name: x for name, x in entries.items() if name not in self.names}


def hidden(env: Env, indices: int | str | Sequence[int | str]) -> Env:
    """The environment without some entries of its observation, such as the velocities.

        hidden(rlx.envs.make("CartPole-v1"), (1, 3))

    Args:
        env: observes a vector `[O]`, or a dictionary.
        indices: which entries are not seen: of a vector from 0, or from the end as -1, -2, ...; of a dictionary by
            name. With none it is the environment.

    Raises:
        ValueError: for observations that are neither, an index that is no entry or that is given twice, or where
            nothing would be left to see.
    """
    given: list[Any] = list(indices) if isinstance(indices, list | tuple | np.ndarray | range) else [indices]
    if not given:
        return env
    space: Any = env.observation_space
    if isinstance(space, Dict):
        if unknown := [name for name in given if name not in space.spaces]:
            raise ValueError(f"hidden entry {unknown[0]!r}: the observation has {', '.join(space.spaces)}")
        if set(given) == set(space.spaces):
            raise ValueError(f"all entries {', '.join(given)} of the observation would be hidden: leave one to be seen")
        return replace(env, environment=HiddenEntries(env.environment, tuple(given)))
    check_one_agent(env, "a vector with hidden entries")
    if not _is_vector(space):
        raise ValueError(
            f"entries are hidden of an observation that is one vector or a dictionary; the environment has {space}"
        )
    num = space.shape[0]
    for i in given:
        if not (isinstance(i, int | np.integer) and not isinstance(i, bool) and -num <= i < num):
            raise ValueError(f"hidden entry {i!r}: the observation has {num}, give integers from 0 to {num - 1}")
    dropped = [int(i) % num for i in given]
    if len(set(dropped)) < len(dropped):
        raise ValueError(f"hidden entries {given}: give each of them once")
    if len(dropped) == num:
        raise ValueError(f"all {num} entries of the observation would be hidden: leave one to be seen")
    seen = tuple(i for i in range(num) if i not in dropped)
    return replace(env, environment=Hidden(env.environment, seen))


@pytree
class TimedState:
    state: Any
    time: jax.Array  # int32, steps of the episode so far


class Timed:
    """Another environment that shows which part of an episode is over; see `timed`."""

    __getattr__ = of_inner

    def __init__(self, environment: Any, limit: int):
        self.environment, self.limit = environment, limit

    def reset(self, key, params):
        obs, state = self.environment.reset(key, params)
        return self._shown(obs, jnp.int32(0)), TimedState(state, jnp.int32(0))

    def step(self, key, state, action, params):
        obs, inner, *rest = self.environment.step(key, state.state, action, params)
        return self._shown(obs, state.time + 1), TimedState(inner, state.time + 1), *rest

    def _shown(self, obs, time):
        return jnp.append(obs, jnp.minimum(time / self.limit, 1.0).astype(obs.dtype))

    def observation_space(self, params):
        box = self.environment.observation_space(params)
        low, high = (jnp.broadcast_to(bound, box.shape) for bound in (box.low, box.high))
        return Box(jnp.append(low, 0.0), jnp.append(high, 1.0), (box.shape[0] + 1,), box.dtype)

    @property
    def reported(self):
        """The inner environment's, where that is around another one."""
        totals = self.environment.reported
        return lambda state: totals(state.state)

    @property
    def frames(self):
        """The inner environment's, where it has one."""
        return _drawn_by(self.environment.frames, self._inside)

    @property
    def html(self):
        """The inner environment's, where it has one."""
        return _drawn_by(self.environment.html, self._inside)

    def _inside(self, env_state, params):
        return replace(env_state, obs=env_state.obs[..., :-1], state=env_state.state.state)


def timed(env: Env, limit: int | None = None) -> Env:
    """The environment with one more number to observe, the share of the longest episode that is over, from 0 to 1.

    Source: Pardo et al. 2018, Time Limits in Reinforcement Learning, arXiv:1712.00378 (time-awareness).

    Args:
        env: observes a vector `[O]` of floating-point numbers.
        limit: steps of the longest episode, those of `env.horizon` unless given.

    Raises:
        ValueError: for other observations, a limit below 1, or where none is given and none is known.
    """
    limit = env.horizon if limit is None else limit
    if limit is None:
        raise ValueError("the longest episode of this environment is not known: give max_steps, or a limit")
    if type(limit) is not int or limit < 1:
        raise ValueError(f"an episode of {limit!r} steps: give an integer of at least 1")
    check_one_agent(env, "a clock beside the observation")
    space: Any = env.observation_space
    if not (_is_vector(space) and jnp.issubdtype(space.dtype, jnp.floating)):
        raise ValueError(f"time stands beside a vector of real numbers that is observed; the environment has {space}")
    return replace(env, environment=Timed(env.environment, limit))


class Remembering:
    """Another environment that hands a part of each action back with the next observation; see `remembering`."""

    __getattr__ = of_inner
    carried_out = None  # no number of an action goes unused, also around chunks

    def __init__(self, environment: Any, size: int):
        self.environment, self.size = environment, size

    def reset(self, key, params):
        obs, state = self.environment.reset(key, params)
        return jnp.append(obs, jnp.zeros(self.size, obs.dtype)), state

    def step(self, key, state, action, params):
        obs, *rest = self.environment.step(key, state, action[: -self.size], params)
        memory = jnp.clip(action[-self.size :], -1.0, 1.0)
        return jnp.append(obs, memory.astype(obs.dtype)), *rest

    def observation_space(self, params):
        return self._longer(self.environment.observation_space(params))

    def action_space(self, params):
        return self._longer(self.environment.action_space(params))

    def _longer(self, box: Box) -> Box:
        low, high = (jnp.broadcast_to(bound, box.shape) for bound in (box.low, box.high))
        unit = jnp.ones(self.size)
        return Box(jnp.append(low, -unit), jnp.append(high, unit), (box.shape[0] + self.size,), box.dtype)

    @property
    def frames(self):
        """The inner environment's, where it has one."""
        return _drawn_by(self.environment.frames, self._inside)

    @property
    def html(self):
        """The inner environment's, where it has one."""
        return _drawn_by(self.environment.html, self._inside)

    def _inside(self, env_state, params):
        return replace(env_state, obs=env_state.obs[..., : -self.size])


def remembering(env: Env, size: int) -> Env:
    """The environment with a memory of `size` numbers, which the policy writes with its actions and observes after.

        action       [a, z']    A + Z numbers, of which z' is clipped to [-1, 1]
        observation  [o, z]     O + Z numbers, of which z is what the action before wrote, 0 after a reset

    Any algorithm with continuous actions then has a policy `pi(a, z' | o, z)` with memory, which learns what to write
    without backpropagation through time. The noise of `z'` is exploration too: an entropy bonus applies to it.

    Source: Al-Hafez et al. 2024, Time-Efficient Reinforcement Learning with Stochastic Stateful Policies.

    Args:
        env: of continuous actions, a vector `[A]`, and observations that are a vector `[O]` of floating-point numbers.
        size: how many numbers are remembered, Z; with 0 it is the environment itself.

    Raises:
        ValueError: for other spaces, a size below 0, or chunks of actions whose end is not carried out.
    """
    if type(size) is not int or size < 0:
        raise ValueError(f"a memory of {size!r} numbers: give an integer of at least 0")
    if size == 0:
        return env
    check_one_agent(env, "a memory in the actions")
    for role, space in (("actions", env.action_space), ("observations", env.observation_space)):
        if not (_is_vector(space) and jnp.issubdtype(space.dtype, jnp.floating)):
            raise ValueError(f"a memory is of {role} that are a vector of real numbers; the environment has {space}")
    carried_out = getattr(env.environment, "carried_out", None)
    if carried_out is not None and carried_out < env.action_space.shape[0]:
        raise ValueError(
            "a memory after chunks of which only the first actions are executed: give the environment its memory first"
        )
    return replace(env, environment=Remembering(env.environment, size))


@pytree
class StackedState:
    state: Any
    past: jax.Array  # the observations before the newest one, oldest first


class Stacked:
    """Another environment that shows several observations in one; see `stacked`."""

    __getattr__ = of_inner

    def __init__(self, environment: Any, num: int):
        self.environment, self.num = environment, num

    def reset(self, key, params):
        obs, state = self.environment.reset(key, params)
        past = jnp.concatenate([jnp.atleast_1d(obs)] * (self.num - 1), axis=-1)
        return self._shown(past, obs), StackedState(state, past)

    def step(self, key, state, action, params):
        obs, inner, *rest = self.environment.step(key, state.state, action, params)
        shown = self._shown(state.past, obs)
        return shown, StackedState(inner, shown[..., -state.past.shape[-1] :]), *rest

    def _shown(self, past, obs):
        return jnp.concatenate([past, jnp.atleast_1d(obs)], axis=-1)

    def observation_space(self, params):
        inner = self.environment.observation_space(params)
        *front, last = inner.shape or (1,)
        shape = (*front, self.num * last)
        if isinstance(inner, Discrete):
            return replace(inner, shape=shape)

        def repeated(bound):
            return bound if np.ndim(bound) == 0 else jnp.tile(jnp.broadcast_to(bound, inner.shape), self.num)

        return Box(repeated(inner.low), repeated(inner.high), shape, inner.dtype)

    @property
    def frames(self):
        """The inner environment's, where it has one."""
        return _drawn_by(self.environment.frames, self._inside)

    @property
    def html(self):
        """The inner environment's, where it has one."""
        return _drawn_by(self.environment.html, self._inside)

    def _inside(self, env_state, params):
        obs = env_state.obs[..., env_state.state.past.shape[-1] :]
        shape = self.environment.observation_space(params).shape
        return replace(env_state, state=env_state.state.state, obs=obs.reshape(shape))


def stacked(env: Env, num: int) -> Env:
    """The environment whose observation is its last `num` ones, oldest first; at a start the first one `num` times.

        a vector           [O]          [num * O]
        an image           [H, W, C]    [H, W, num * C]
        a category of n                 Discrete(n, shape=(num,))

    They are joined along the last axis and keep their dtype.

    Source: Mnih et al. 2015, Human-level control through deep reinforcement learning.

    Args:
        env: observes a Box or a Discrete.
        num: how many observations are seen at once; with 1 it is the environment itself.

    Raises:
        ValueError: for another space, or a number below 1.
    """
    if type(num) is not int or num < 1:
        raise ValueError(f"{num!r} observations in one: give an integer of at least 1")
    if num == 1:
        return env
    check_one_agent(env, "a stack of observations")
    if not isinstance(env.observation_space, Box | Discrete):
        raise ValueError(
            f"observations are stacked of a Box or a Discrete; the environment has {env.observation_space}"
        )
    return replace(env, environment=Stacked(env.environment, num))


def _drawn_by(draw: Callable, inside: Callable) -> Callable:
    """Draws what `inside(env_state, params)` is for the inner environment."""
    return lambda env_states, params, *size: draw([inside(s, params) for s in env_states], params, *size)


def _is_vector(space: Any) -> bool:
    return isinstance(space, Box) and len(space.shape) == 1
