"""Runs as lanes of one compiled program: groups of settings that can share one, and the program of a group.

Settings that differ in static fields need a program each. Within a group everything that differs is vmapped, seeds
included, and what does not differ stays unbatched. Lanes are spread over all devices, which work on their own lanes
without waiting for each other; on a CPU these are virtual devices, one a core (`rlx.devices.sharding.use_devices`).
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlx.devices.spread import LANES, WHOLE, mapped_over
from rlx.env import Env
from rlx.schedules import Schedule, alike
from rlx.stopping import Stopping
from rlx.sweeps.strategies import Grid
from rlx.train import advance, advance_until, evaluate, here, now, total_updates

MIB = 2**20


class Group:
    """Settings of one program: what they share, and the columns of what varies between them.

    Args:
        settings: config and environment of each; of one structure.
        numbers: their numbers in the whole sweep.
    """

    def __init__(self, settings: Sequence[tuple[Any, Env]], numbers: Sequence[int]):
        self.numbers = list(numbers)
        self.config, self.env = settings[0]
        self.structure = jax.tree.structure(settings[0])
        self.updates = total_updates(self.config)
        columns = list(zip(*(jax.tree.leaves(s) for s in settings), strict=True))
        self.varying = [i for i, column in enumerate(columns) if not all(_same(x, column[0]) for x in column)]
        self.shared = [None if i in self.varying else jnp.asarray(column[0]) for i, column in enumerate(columns)]
        self.names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(settings[0])]
        self.names = [self.names[i] for i in self.varying]
        self.columns = [np.stack([np.asarray(jnp.asarray(x)) for x in columns[i]]) for i in self.varying]

    def join(self, values: Sequence[Any], shared: Sequence[Any]) -> tuple[Any, Env]:
        """Config and environment from what varies and what is shared."""
        leaves = list(shared)
        for i, value in zip(self.varying, values, strict=True):
            leaves[i] = value
        return jax.tree.unflatten(self.structure, leaves)

    def point(self, values: Sequence[np.ndarray]) -> dict[str, Any]:
        """What varies, of one setting, as a point of a sweep has it: schedules as text."""
        config, found = self.join(values, self.shared)[0], {}
        for name, value in zip(self.names, values, strict=True):
            field = name.partition(".")[0]
            schedule = getattr(config, field, None)
            found |= {field: str(schedule)} if isinstance(schedule, Schedule) else {name: value.item()}
        return found

    def values(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """What varies, in the settings of these numbers, leaves `[L, ...]`."""
        rows = [self.numbers.index(number) for number in numbers]
        return [column[rows] for column in self.columns]


def groups(settings: Sequence[tuple[Any, Env]]) -> list[Group]:
    """The settings by the program that they need, in the order of their first appearance.

    Where some have a schedule and others a number, the number becomes a constant schedule of that kind.
    """
    settings = list(zip(alike([config for config, _ in settings]), [env for _, env in settings], strict=True))
    found: dict[Any, list[int]] = {}
    for i, pair in enumerate(settings):
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(pair))
        found.setdefault((jax.tree.structure(pair), shapes), []).append(i)
    return [Group([settings[i] for i in numbers], numbers) for numbers in found.values()]


class Program:
    """The compiled functions of a group for `num_lanes` lanes, all of arrays `[L, ...]`.

    - `init(values, shared, keys) -> state`
    - `step(carry, shared, done, num) -> carry, metrics [L, length]`: `num` updates after the first `done`; takes the
      carry's memory over, which holds what varies and the training states (see `carry`).
    - `evaluate(values, shared, state, keys) -> Episodes [L, E]`

    Args:
        num_lanes: a multiple of the number of devices.
        num_eval_episodes: E.
        length: most updates of one step.
        fresh: whether lanes begin with `init`; without it there is none.
        strategy: what lanes do to each other; nothing by default.
        num_members: how many lanes, from the first, it is about; by default all.
        rank_by: what lanes that interact are compared by, the mean of `episode_NAME` of their metrics.
        rule: by which each lane stops by itself; None for lanes that train to the end.
        given: what every update is given beside the State, by the names of its arguments; the same for all lanes.
    """

    def __init__(
        self,
        algorithm: ModuleType,
        group: Group,
        num_lanes: int,
        num_eval_episodes: int,
        length: int,
        fresh: bool = True,
        strategy: Grid = Grid(),  # noqa: B008 (it cannot change)
        num_members: int | None = None,
        rank_by: str = "return",
        rule: Stopping | None = None,
        given: dict[str, Any] | None = None,
    ):
        started = time.perf_counter()
        self.group, self.num_lanes, self.length = group, num_lanes, min(length, group.updates)
        self.strategy, self.num_members, self.rank_by = strategy, num_members or num_lanes, rank_by
        self.interval, self.rule = strategy.interval(group.updates), rule
        self.mesh = Mesh(np.array(jax.devices()), ("lane",))
        shared = {"settings": group.shared, "given": given or {}}
        self.shared = jax.device_put(shared, NamedSharding(self.mesh, WHOLE))

        def init(values, shared, key):
            config, env = group.join(values, shared["settings"])
            return algorithm.init(now(config), here(config, env), key)

        def train(values, shared, state, rule, done, num):
            own, given = group.join(values, shared["settings"]), shared["given"]
            if rule is None:
                return (*advance(algorithm, *own, state, done, num, self.length, **given), None)
            return advance_until(algorithm, *own, state, rule, done, num, self.length, **given)

        def test(values, shared, state, key):
            return evaluate(algorithm, *group.join(values, shared["settings"]), state, key, num_eval_episodes)

        # Said once more for arrays without elements, which physics states have: jax takes them for copies otherwise.
        placed = partial(jax.jit, out_shardings=NamedSharding(self.mesh, LANES))
        start = placed(self._spread(init, LANES, WHOLE, LANES))
        step = placed(self._step(self._spread(train, LANES, WHOLE, LANES, LANES, WHOLE, WHOLE)), donate_argnums=0)
        end = placed(self._spread(test, LANES, WHOLE, LANES, LANES))

        self.like = self._like(shapes(algorithm, group, num_lanes, strategy.interacts, rule))
        keys = self._like(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_lanes)))
        count = jnp.int32(0)
        lowered = [
            step.lower(self.like, self.shared, count, count),
            end.lower(self.like["values"], self.shared, self.like["state"], keys),
            *([start.lower(self.like["values"], self.shared, keys)] if fresh else []),
        ]
        with ThreadPoolExecutor() as pool:
            compiled = list(pool.map(lambda x: x.compile(), lowered))
        self.step, self.evaluate, *rest = compiled
        self.init = rest[0] if fresh else None
        self.seconds = time.perf_counter() - started
        self.bytes = self.mesh.size * max(map(_bytes, compiled))

    def place(self, tree: Any) -> Any:
        """Puts arrays of at most `num_lanes` lanes on the devices; missing lanes repeat the last one."""

        def put(x):
            missing = self.num_lanes - len(x)
            x = jnp.concatenate([x, *[x[-1:]] * missing]) if missing else x
            return jax.device_put(x, NamedSharding(self.mesh, LANES))

        return jax.tree.map(put, tree)

    def _spread(self, function, *specs):
        return mapped_over(self.mesh, jax.vmap(function, [0 if spec == LANES else None for spec in specs]), *specs)

    def _like(self, tree):
        sharding = NamedSharding(self.mesh, LANES)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def _step(self, train):
        def step(carry, shared, done, num):
            state, metrics, rule = train(carry["values"], shared, carry["state"], carry.get("rule"), done, num)
            carry = carry | {"state": state} | ({} if rule is None else {"rule": rule})
            if self.interval:
                carry = self._generation(carry, metrics, done + num)
            return carry, metrics

        return step

    def _generation(self, carry, metrics, done):
        """Counts the episodes of a step and, at the end of an interval, lets the lanes act on each other."""
        episodes = metrics["num_episodes"].astype(jnp.float32)
        means = metrics[f"episode_{self.rank_by}"]
        episodes = jnp.where(jnp.isfinite(means), episodes, 0) if self.rank_by != "return" else episodes
        returns = jnp.where(episodes > 0, means * episodes, 0)
        carry = carry | {"tally": carry["tally"] + jnp.stack([returns.sum(1), episodes.sum(1)], 1)}
        due = (done % self.interval == 0) & (done < self.group.updates)
        act = lambda carry, done: self.strategy.generation(carry, done, self.group.columns, self.num_members)
        carry = jax.lax.cond(due, act, lambda carry, done: carry, carry, done)
        sharding = NamedSharding(self.mesh, LANES)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), carry)


def carry(
    values: list[jax.Array], state: Any, keys: jax.Array, interacts: bool, rule: Stopping | None = None
) -> dict[str, Any]:
    """What `Program.step` takes before the first one, leaves `[L, ...]`; `keys` are for lanes that interact."""
    start = {"values": values, "state": state}
    if rule is not None:
        start["rule"] = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(keys), *jnp.shape(x))), rule)
    if interacts:
        num = len(keys)
        start |= {"tally": jnp.zeros((num, 2)), "parent": jnp.arange(num), "key": keys}
    return start


def shapes(
    algorithm: ModuleType, group: Group, num_lanes: int, interacts: bool, rule: Stopping | None = None
) -> dict[str, Any]:
    """Shapes and dtypes of a carry of `num_lanes` lanes, without computing anything."""

    def start():
        keys = jax.random.split(jax.random.key(0), num_lanes)
        values = [jnp.asarray(np.broadcast_to(c[:1], (num_lanes, *c.shape[1:]))) for c in group.columns]
        state = jax.vmap(lambda values, key: init(*group.join(values, group.shared), key))(values, keys)
        return carry(values, state, keys, interacts, rule)

    def init(config, env, key):
        return algorithm.init(now(config), here(config, env), key)

    return jax.eval_shape(start)


def fit(build: Callable[[int], Program], num_lanes: int, num_devices: int, memory: float) -> Program:
    """The program for `num_lanes` lanes, or for the largest equal batches of them that keep below `memory` bytes.

    What a program needs is known when it is compiled: a second one is compiled where the first is too large.

    Args:
        build: the program for a number of lanes, which is a multiple of the number of devices.

    Raises:
        ValueError: when not even one lane a device fits.
    """
    batches = 1
    while True:
        lanes = math.ceil(math.ceil(num_lanes / batches) / num_devices) * num_devices
        program = build(lanes)
        if program.bytes <= memory:
            return program
        if lanes == num_devices:
            raise ValueError(
                f"one lane on each of {num_devices} devices needs {program.bytes / MIB:,.1f} MiB and the bound is "
                f"{memory / MIB:,.1f} MiB: raise it (--memory), or make num_envs, num_steps or the networks smaller"
            )
        batches = max(batches + 1, math.ceil(batches * program.bytes / memory))
        batches = min(batches, math.ceil(num_lanes / num_devices))


def memory_bound() -> int:
    """Bytes that a sweep uses at most unless it is told: half of a CPU's memory, 80 % of the accelerators'."""
    stats = [device.memory_stats() or {} for device in jax.devices()]
    if all("bytes_limit" in s for s in stats):
        return int(0.8 * sum(s["bytes_limit"] for s in stats))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _bytes(compiled: Any) -> int:
    """What a compiled program holds on a device at once: arguments, results and temporaries."""
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes


def _name(path: Any) -> str:
    """`learning_rate` of a config, `env.gravity` of an environment's parameters."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removeprefix("0.").replace("1.params.", "env.", 1)


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(np.array_equal(a, b))
