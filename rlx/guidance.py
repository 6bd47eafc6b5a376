"""A range around a policy that was written by hand, within which an agent acts in some of its episodes.

    env = guided(env, expert, width=0.3, share=0.5)
    env = with_params(env, {"share": "linear:1:0"})        # less and less of them, over a run

A action, O observation.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from rlx.around import as_pytree, of_inner_env, told
from rlx.env import Env, EnvState
from rlx.multiagent import check_one_agent
from rlx.pytree import pytree
from rlx.spaces import Box, check_spaces, rescale, unit

EPISODE = 0x677569  # names the random stream that says which episodes are guided


@pytree
class GuidedParams:
    """An environment and its expert, how far from that one may act, and in which share of the episodes."""

    env: Env
    expert: Any
    width: jax.Array  # in unit coordinates, where a whole range is 2
    share: jax.Array


@pytree
class GuidedState:
    """The state of the environment, and whether this episode is guided."""

    inner: EnvState
    guided: jax.Array  # float32, 0 or 1


class Guided:
    """Another environment with a range around an expert; see `guided`."""

    __getattr__ = of_inner_env

    def __init__(self, params: GuidedParams):
        self.default_params = params

    def reset(self, key, params):
        inner = params.env.reset(key)
        share = jax.random.uniform(jax.random.fold_in(key, EPISODE))
        state = GuidedState(inner, (share < params.share).astype(jnp.float32))
        return self._seen(state), state

    def step(self, key, state, action, params):
        space, expert = params.env.action_space, params.expert(state.inner.obs, jax.random.fold_in(key, EPISODE))
        near = jnp.clip(unit(space, expert) + params.width * unit(space, action), -1.0, 1.0)
        action = jnp.where(state.guided > 0, rescale(space, near), action)
        inner, made = params.env.advance(key, state.inner, action)
        state = GuidedState(inner, state.guided)
        return self._seen(state), state, made.reward, made.terminated, made.truncated, told(made)

    def _seen(self, state):
        return jnp.append(state.inner.obs, state.guided.astype(state.inner.obs.dtype))

    def reported(self, state):
        return state.inner.reported

    def observation_space(self, params):
        space = params.env.observation_space
        both = lambda bound, x: jnp.append(jnp.broadcast_to(jnp.asarray(bound), space.shape), x)
        return Box(both(space.low, 0.0), both(space.high, 1.0), (space.shape[0] + 1,), space.dtype)

    def action_space(self, params):
        return params.env.action_space

    def horizon(self, params):
        return params.env.horizon


def guided(env: Env, expert: Any, width: float | jax.Array = 0.3, share: float | jax.Array = 0.5) -> Env:
    """The environment in which a share of the episodes limits actions to a range around an expert.

        a_env = clip(e(s) + width a, -1, 1)   in unit coordinates, in a guided episode;   a_env = a   in others

    The agent sees which it is, as one more number. Its density is of the action that it chose, so nothing has to be
    corrected. `env.params.share` and `env.params.width` are traced: lower the share over a run, and evaluate at 0.

    The idea is that of CAMEL, of which only an abstract was read: the equation, the choice by episode and the number
    that is seen are ours.

    Args:
        env: one agent's, with a vector of real numbers to observe and bounded continuous actions.
        expert: `action = expert(obs, key)`, a function or a callable pytree.
        width: of the range, in unit coordinates; 0 is the expert, 2 or more anything.
        share: of the episodes, from 0 to 1.

    Raises:
        ValueError: for other spaces, several agents, and numbers out of their ranges.
    """
    check_one_agent(env, "a range around an expert")
    check_spaces(env, actions=Box, bounded=True)
    seen: Any = env.observation_space
    if not (isinstance(seen, Box) and len(seen.shape) == 1 and jnp.issubdtype(seen.dtype, jnp.floating)):
        raise ValueError(f"a guided episode is told beside a vector of real numbers; the environment shows {seen}")
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"share = {share}: give a number from 0 to 1")
    if isinstance(width, int | float) and not width >= 0:
        raise ValueError(f"width = {width}: give 0 or more")
    params = GuidedParams(env, as_pytree(expert), jnp.float32(width), jnp.float32(share))
    return replace(env, environment=Guided(params), params=params, max_steps=None)


__all__ = ["Guided", "guided"]
