"""Acting, whatever the algorithm: with a memory or without one.

An algorithm whose policy remembers has `memory(config, env, num)`, what it remembers at the beginning of `num` episodes
as a pytree of arrays `[num, ...]`, and `act(config, env, state, obs, key, memory, deterministic=False) -> action,
recorded, memory`. All others have `act(config, env, state, obs, key, deterministic=False) -> action, recorded`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from rlx.env import Env


def remembers(algorithm: Any) -> bool:
    """Whether the algorithm's policies have a memory."""
    return hasattr(algorithm, "memory")


def acting(
    algorithm: Any, config: Any, env: Env, state: Any, deterministic: bool = True
) -> tuple[Callable, Callable[[int], Any]]:
    """`policy(obs, key, memory) -> action, recorded, memory` of a State, and `start(num) -> memory` to begin with.

    The memory of a policy that has none is None. It is to begin anew with each episode.
    """
    if remembers(algorithm):

        def remembering(obs: Any, key: jax.Array, memory: Any) -> tuple[Any, Any, Any]:
            return algorithm.act(config, env, state, obs, key, memory, deterministic=deterministic)

        return remembering, partial(algorithm.memory, config, env)

    def policy(obs: Any, key: jax.Array, memory: Any = None) -> tuple[Any, Any, Any]:
        return *algorithm.act(config, env, state, obs, key, deterministic=deterministic), memory

    return policy, lambda num: None


__all__ = ["acting", "remembers"]
