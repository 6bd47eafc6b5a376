"""Several agents in one environment: agents as further environments, so that every algorithm is its independent form.

A policy is given a row for each agent of each environment, `[N A, ...]` with the agents of one environment next to each
other, and so is the loss. N environments, A agents.

Source: independent learners as in de Witt et al. 2020, arXiv:2011.09533.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from rlx.env import Env, Transition


def folded(env: Env, tree: Any) -> Any:
    """Arrays `[N, A, ...]` as `[N A, ...]`; where there are no agents, the tree as it is."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree) if env.has_agents else tree


def unfolded(env: Env, tree: Any) -> Any:
    """Arrays `[N A, ...]` as `[N, A, ...]`; where there are no agents, the tree as it is."""
    return jax.tree.map(lambda x: x.reshape(-1, env.num_agents, *x.shape[1:]), tree) if env.has_agents else tree


def rows(env: Env, transition: Transition) -> Transition:
    """The transitions of N environments as those of their agents, `[N A, ...]`.

    Each agent has its own observation, action, reward and return. Ends, lengths and what the environment reports are
    those of the environment, for each of its agents.
    """
    if not env.has_agents:
        return transition
    each = lambda tree: jax.tree.map(lambda x: jnp.repeat(x, env.num_agents, axis=0), tree)
    own = {name: folded(env, getattr(transition, name)) for name in ("obs", "action", "reward", "next_obs")}
    info = transition.info
    if isinstance(info, dict) and "alive" in info:
        info = each({name: x for name, x in info.items() if name != "alive"}) | {"alive": folded(env, info["alive"])}
    else:
        info = each(info)
    return replace(
        transition,
        **own,
        episode_return=folded(env, transition.episode_return),
        terminated=each(transition.terminated),
        truncated=each(transition.truncated),
        episode_length=each(transition.episode_length),
        diverged=each(transition.diverged),
        reported=each(transition.reported),
        info=info,
        num_agents=env.num_agents,
    )


def check_one_agent(env: Env, what: str) -> None:
    """Raises ValueError, with a way out, for an environment of several agents; `what` has one."""
    if env.has_agents:
        raise ValueError(
            f"{what} has one agent, and this environment has {env.num_agents}: ppo, mappo and all others that learn "
            "from rollouts train several, in the environment as its suite makes it"
        )


__all__ = ["check_one_agent", "folded", "rows", "unfolded"]
