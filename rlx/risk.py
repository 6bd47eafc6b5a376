"""Environments whose return is a risk: `risk_averse` makes every stage count by its tail.

A stage's risk is `(1 - lam) E[c] + lam CVaR_alpha[c]` of its cost `c = -reward`, given what came before; the risk of an
episode is the nested, discounted sum of these. `CVaR_alpha(X) = min_eta eta + E[max(X - eta, 0)] / alpha` makes it an
ordinary return: the agent chooses with each action the level eta of the next step.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from rlx.around import unchanged
from rlx.env import Env
from rlx.multiagent import check_one_agent
from rlx.pytree import pytree
from rlx.spaces import Box, Discrete


@pytree
class RiskParams:
    """The params of an environment, and how its risk is measured."""

    params: Any
    lam: jax.Array
    alpha: jax.Array
    gamma: jax.Array
    levels: jax.Array  # [L], of discrete actions those that eta may be; of others its lowest and its highest


@pytree
class RiskState:
    state: Any
    level: jax.Array  # eta of the next step
    first: jax.Array  # bool


class RiskAverse:
    """Another environment in which actions choose the next level too; see `risk_averse`."""

    __getattr__ = unchanged

    def __init__(self, environment: Any, params: RiskParams):
        self.environment, self.default_params = environment, params

    def reset(self, key, params):
        obs, state = self.environment.reset(key, params.params)
        return self._shown(obs, jnp.float32(0)), RiskState(state, jnp.float32(0), jnp.bool_(True))

    def step(self, key, state, action, params):
        if isinstance(self.action_space(params), Discrete):
            own, level = action // len(params.levels), params.levels[action % len(params.levels)]
        else:
            own, level = action[:-1], action[-1]
        obs, inner, reward, terminated, truncated, info = self.environment.step(key, state.state, own, params.params)
        excess = jnp.maximum(-reward - state.level, 0.0)
        later = (1.0 - params.lam) * reward - params.lam / params.alpha * excess
        # The level of a step that does not come is not paid for.
        chosen = jnp.where(terminated, 0.0, params.gamma * params.lam * level)
        paid = jnp.where(state.first, reward, later) - chosen
        return self._shown(obs, level), RiskState(inner, level, jnp.bool_(False)), paid, terminated, truncated, info

    def _shown(self, obs, level):
        return jnp.append(obs, level.astype(obs.dtype))

    def observation_space(self, params):
        box = self.environment.observation_space(params.params)
        low, high = (jnp.broadcast_to(bound, box.shape) for bound in (box.low, box.high))
        least, most = jnp.minimum(params.levels.min(), 0.0), jnp.maximum(params.levels.max(), 0.0)
        return Box(jnp.append(low, least), jnp.append(high, most), (box.shape[0] + 1,), box.dtype)

    def action_space(self, params):
        own = self.environment.action_space(params.params)
        if isinstance(own, Discrete):
            return Discrete(own.n * len(params.levels), own.dtype)
        low, high = (jnp.broadcast_to(bound, own.shape) for bound in (own.low, own.high))
        levels = params.levels
        return Box(jnp.append(low, levels[0]), jnp.append(high, levels[-1]), (own.shape[0] + 1,), own.dtype)

    def horizon(self, params):
        return Env(self.environment, params.params).horizon


def risk_averse(env: Env, lam: float, alpha: float, gamma: float, levels: Any) -> Env:
    """The environment whose discounted return is minus the risk of its costs, for the best levels.

        reward of the first step    r - gamma lam eta'
        of every later one          (1 - lam) r - lam / alpha max(-r - eta, 0) - gamma lam eta'

    with the level eta that the action before chose, which is observed, and the next one eta', which is not paid where
    the episode terminates. Actions are `(a, eta')`: `Discrete(n L)`, in which `a = i // L`, or a vector with one more
    number. Any algorithm then minimises the risk.

    Args:
        env: observes a vector, and takes single choices or a vector of real numbers.
        lam: how much the tail counts, from 0 to 1; with 0 rewards are the environment's own.
        alpha: the share of the worst outcomes that the tail is.
        gamma: the discount that the algorithm learns with.
        levels: of discrete actions the numbers that eta may be, of others its lowest and its highest.

    Source: Yu and Shen 2023, Risk-Averse Reinforcement Learning via Dynamic Time-Consistent Risk Measures,
    arXiv:2301.10932; the reduction was derived for this code, and is tested against the nested risk.

    Raises:
        ValueError: for other spaces, and numbers out of range.
    """
    check_one_agent(env, "an environment of risks")
    space: Any = env.observation_space
    if not (isinstance(space, Box) and len(space.shape) == 1 and jnp.issubdtype(space.dtype, jnp.floating)):
        raise ValueError(
            f"a level stands beside a vector of real numbers that is observed; the environment has {space}"
        )
    actions: Any = env.action_space
    if len(actions.shape) != (0 if isinstance(actions, Discrete) else 1):
        raise ValueError(f"levels go with one choice or a vector of real numbers; the environment has {actions}")
    if not (0 <= lam <= 1 and 0 < alpha <= 1 and 0 <= gamma <= 1):
        raise ValueError(f"lam = {lam}, alpha = {alpha}, gamma = {gamma}: give numbers from 0 to 1, alpha above 0")
    params = RiskParams(
        env.params, jnp.float32(lam), jnp.float32(alpha), jnp.float32(gamma), jnp.asarray(levels, jnp.float32)
    )
    return replace(env, environment=RiskAverse(env.environment, params), params=params)


__all__ = ["risk_averse"]
