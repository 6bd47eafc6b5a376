"""Environments of EnvPool, which step on the host in its threads: an optional extra, `pip install "rlx[envpool]"`.

    rlx train ppo --env envpool/HalfCheetah-v4 --env-options num_threads=8

They are cut into `blocks`, pools of their own: the policy acts in one while the others step. With environments that
step in microseconds `blocks=1` is faster. `max_steps` is EnvPool's `max_episode_steps`; the rest are options of
`envpool.make`.
"""

from functools import partial
from typing import Any

import numpy as np

from rlx.env import Env
from rlx.envs.gymnasium_spaces import from_gymnasium
from rlx.envs.vectors import EnvpoolVector, unwarned
from rlx.hosted import Host

PREFIX = "envpool/"
# What EnvPool has in `info` of its own.
OWN = ("env_id", "players", "elapsed_step", "reward", "terminated", "truncated")


def make(name: str, *, blocks: int = 2, max_steps: int | None = None, **options: Any) -> Env:
    """The environment of this name of EnvPool. One is made, reset and stepped to see its spaces and its reports.

    Raises:
        ValueError: for a name or an option that EnvPool does not know, spaces that rlx does not have, or where EnvPool
            is not installed.
    """
    try:
        import envpool  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise ValueError(f'{PREFIX}{name} needs EnvPool: pip install "rlx[envpool]"') from error
    if type(blocks) is not int or blocks < 1:
        raise ValueError(f"blocks = {blocks!r}: give an integer of at least 1")
    if name not in envpool.list_all_envs():
        raise ValueError(f"EnvPool has no environment {name!r}: envpool.list_all_envs() lists all")
    options |= {} if max_steps is None else {"max_episode_steps": max_steps}
    try:
        pool = _pool(name, options, 1, 0)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{PREFIX}{name} cannot be made: {error}") from error
    with unwarned():
        observations, actions = from_gymnasium(pool.observation_space), from_gymnasium(pool.action_space)
        action = np.asarray(pool.action_space.sample())[None]
    pool.reset()
    info = pool.step(action.astype(np.int32) if action.dtype == np.int64 else action)[4]
    limit = int(pool.spec.config.max_episode_steps)
    pool.close()
    numbers = {n: x for n, x in info.items() if n not in OWN and getattr(x, "shape", ()) == (1,)}
    reported = tuple(n for n, x in numbers.items() if x.dtype.kind in "fb")
    opened = partial(_opened, name, options, reported)
    host = Host(
        name=f"{PREFIX}{name}",
        observations=observations,
        actions=actions,
        opened=opened,
        opened_to_play=opened,
        reported=reported,
        flags=tuple(n for n in reported if numbers[n].dtype.kind == "b"),
        limit=limit if 0 < limit < np.iinfo(np.int32).max else None,
        blocks=blocks,
    )
    return Env(host, None)


def _pool(name: str, options: dict[str, Any], num_envs: int, seed: int) -> Any:
    import envpool  # pyright: ignore[reportMissingImports] (an extra)

    return envpool.make(name, env_type="gymnasium", num_envs=num_envs, seed=seed, **options)


def _opened(name: str, options: dict[str, Any], reported: tuple[str, ...], num_envs: int, first: int) -> EnvpoolVector:
    return EnvpoolVector(lambda seed: _pool(name, options, num_envs, seed), num_envs, reported, first)


__all__ = ["make"]
