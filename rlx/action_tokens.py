"""Continuous actions as several choices, one dimension after another, each with a step of its own.

    env = tokenized(env, 11)           or make(NAME, tokens=11)

A policy over many bins of many dimensions becomes a sequence of small choices, each of which sees those before. So that
this changes nothing about what is best, time does not pass within an action: its steps are not discounted, see
`discounts`.

A dimensions, K bins, O observation.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from rlx.around import of_inner_env, told
from rlx.env import Env, EnvState
from rlx.multiagent import check_one_agent
from rlx.pytree import pytree
from rlx.spaces import Box, Discrete, check_spaces, rescale

WITHIN = "within_action"  # of a step's info: whether the action is not complete yet


@pytree
class TokenizedParams:
    """The environment whose actions are chosen by dimension."""

    env: Env


@pytree
class TokenizedState:
    """The state of the environment, and what was chosen of the next action."""

    inner: EnvState
    chosen: jax.Array  # [A], in unit coordinates; 0 where nothing was chosen yet
    next: jax.Array  # int32, the dimension that is chosen next


class Tokenized:
    """Another environment whose actions are chosen by dimension; see `tokenized`."""

    __getattr__ = of_inner_env

    def __init__(self, params: TokenizedParams, num_bins: int):
        self.default_params, self.num_bins = params, num_bins

    def reset(self, key, params):
        inner = params.env.reset(key)
        state = TokenizedState(inner, jnp.zeros(params.env.action_space.shape), jnp.int32(0))
        return self._seen(state), state

    def step(self, key, state, action, params):
        size = len(state.chosen)
        chosen = state.chosen.at[state.next].set(2.0 * action / (self.num_bins - 1) - 1.0)
        within = state.next < size - 1
        moved, made = params.env.advance(key, state.inner, rescale(params.env.action_space, chosen))
        inner = jax.tree.map(lambda old, new: jnp.where(within, old, new), state.inner, moved)
        rest = jax.tree.map(lambda x: jnp.where(within, jnp.zeros_like(x), x), told(made))
        info = (rest if isinstance(rest, dict) else {}) | {WITHIN: within[None]}
        state = TokenizedState(inner, jnp.where(within, chosen, 0.0), jnp.where(within, state.next + 1, 0))
        reward = jnp.where(within, 0.0, made.reward)
        return self._seen(state), state, reward, made.terminated & ~within, made.truncated & ~within, info

    def _seen(self, state):
        which = jax.nn.one_hot(state.next, len(state.chosen), dtype=jnp.float32)
        return jnp.concatenate([state.inner.obs, state.chosen, which]).astype(state.inner.obs.dtype)

    def reported(self, state):
        return state.inner.reported

    def observation_space(self, params):
        space, num = params.env.observation_space, params.env.action_space.shape[0]
        both = lambda bound, low, high: jnp.concatenate(
            [jnp.broadcast_to(jnp.asarray(bound), space.shape), jnp.full(num, low), jnp.full(num, high)]
        )
        return Box(both(space.low, -1.0, 0.0), both(space.high, 1.0, 1.0), (space.shape[0] + 2 * num,), space.dtype)

    def action_space(self, params):
        return Discrete(self.num_bins)

    def horizon(self, params):
        return None if params.env.horizon is None else params.env.horizon * params.env.action_space.shape[0]


def tokenized(env: Env, num_bins: int) -> Env:
    """The environment whose actions are chosen one dimension after another, each from `num_bins` values.

    These go from bound to bound, evenly. The observation gets what was chosen so far and which dimension comes next,
    `[O + 2 A]`. The environment steps with the last dimension, whose step has its reward and its end.

    Source: Wen et al. 2024, Reinforcing Language Agents via Policy Optimization with Action Decomposition.

    Args:
        env: one agent's, with a vector of real numbers to observe and bounded continuous actions.
        num_bins: K, at least 2.

    Raises:
        ValueError: for other spaces, several agents, and less than two bins.
    """
    if num_bins < 2:
        raise ValueError(f"{num_bins} bins: give at least 2")
    check_one_agent(env, "an action of several choices")
    check_spaces(env, actions=Box, bounded=True)
    seen: Any = env.observation_space
    if not (isinstance(seen, Box) and len(seen.shape) == 1 and jnp.issubdtype(seen.dtype, jnp.floating)):
        raise ValueError(f"choices stand beside a vector of real numbers that is observed; the environment has {seen}")
    params = TokenizedParams(env)
    return replace(env, environment=Tokenized(params, num_bins), params=params, max_steps=None)


def discounts(info: Any, gamma: float | jax.Array, gae_lambda: float | jax.Array) -> tuple[Any, Any]:
    """Discount and lambda of the steps `[T, N]` of a rollout: 1 within an action, else those given.

    With them values and advantages of the steps are those of the actions (BAD). A discount within actions makes each
    choice worth less than the next one. What `tokenized` did not make is returned as it is.

    Args:
        info: of the transitions.
        gamma, gae_lambda: of a step of the environment.
    """
    if not (isinstance(info, dict) and WITHIN in info):
        return gamma, gae_lambda
    within = info[WITHIN][..., 0]
    return jnp.where(within, 1.0, gamma), jnp.where(within, 1.0, gae_lambda)


__all__ = ["Tokenized", "discounts", "tokenized"]
