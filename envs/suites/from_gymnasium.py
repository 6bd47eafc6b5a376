"""Environments of Gymnasium, which step on the host: any name that `gymnasium.make` knows.

    rlx train ppo --env gymnasium/CartPole-v1 --env-options workers=async

`workers` says how several of them step: "sync", one after another in this process; "async", each in a process of its
own; "vector", all at once where the environment has a vector class (`vector_entry_point`). Those in processes are cut
into `blocks`: the policy acts in one while the others step. The rest are options of `gymnasium.make`, and `max_steps`
is its `max_episode_steps`.
"""

from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rlx.env import Env
from rlx.envs.host import PREFIX, numbers, spaces_of
from rlx.envs.host import make as single
from rlx.envs.vectors import GymnasiumVector, Maker
from rlx.hosted import Host

WORKERS = ("sync", "async", "vector")


def make(
    name: str, *, workers: str = "sync", blocks: int | None = None, max_steps: int | None = None, **options: Any
) -> Env:
    """The environment of this name of Gymnasium. One is made, reset and stepped to see its spaces and its reports.

    Raises:
        ValueError: for a name or an option that Gymnasium does not know, spaces that rlx does not have, or other
            workers.
    """
    if workers not in WORKERS:
        raise ValueError(f"workers = {workers!r}: choose among {', '.join(WORKERS)}")
    if blocks is not None and (type(blocks) is not int or blocks < 1):
        raise ValueError(f"blocks = {blocks!r}: give an integer of at least 1")
    options |= {} if max_steps is None else {"max_episode_steps": max_steps}
    env = single(f"{PREFIX}{name}", **options)
    try:
        observations, actions = spaces_of(env)
        env.reset(seed=0)
        env.action_space.seed(0)
        found = numbers(env.step(env.action_space.sample())[4])
    finally:
        env.close()
    spec = gymnasium.spec(name)
    if workers == "vector" and spec.vector_entry_point is None:
        raise ValueError(f"{PREFIX}{name} has no vector class: choose workers=sync or workers=async")
    reported = tuple(found)
    opened = partial(_opened, name, spec, options, reported)
    host = Host(
        name=f"{PREFIX}{name}",
        observations=observations,
        actions=actions,
        opened=partial(opened, workers),
        opened_to_play=partial(opened, "sync"),
        reported=reported,
        flags=tuple(name for name, value in found.items() if isinstance(value, bool)),
        limit=env.spec.max_episode_steps if env.spec is not None else None,
        blocks=blocks or (2 if workers == "async" else 1),
    )
    return Env(host, None)


def _opened(
    name: str, spec: Any, options: dict[str, Any], reported: tuple[str, ...], workers: str, num_envs: int, first: int
) -> GymnasiumVector:
    if workers == "vector":
        envs = gymnasium.make_vec(name, num_envs, vectorization_mode="vector_entry_point", **options)
        return GymnasiumVector(envs, reported, first)
    under_way: list[int] = []
    makers = [Maker(spec, options, first + i, under_way) for i in range(num_envs)]
    if workers == "async":  # not forked: JAX has threads
        apart = AsyncVectorEnv(makers, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        return GymnasiumVector(apart, reported, first)
    return GymnasiumVector(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED), reported, first, under_way)


__all__ = ["WORKERS", "make"]
