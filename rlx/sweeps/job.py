"""What a sweep is: its job, its lanes, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from rlx.algorithm import checksum
from rlx.algorithm_check import check_counters, check_metrics
from rlx.env import Env, with_params
from rlx.hosted import check_hosted
from rlx.presets import configure
from rlx.pytree import is_static
from rlx.run.job import CHECKPOINT_SECONDS
from rlx.run.job import describe as describe_run
from rlx.run.learned_from import check_data, keywords_of
from rlx.schedules import Schedule, alike
from rlx.stopping import Stopping, stopping
from rlx.sweeps.lanes import MIB, Group, groups, shapes
from rlx.sweeps.search import python, split
from rlx.sweeps.strategies import Grid, numbers_of
from rlx.train import now, state_shapes, steps_taken


@dataclass(frozen=True)
class SweepJob:
    """A sweep as it was asked for: everything that `sweep.json` needs to say."""

    algorithm: ModuleType
    algorithm_name: str
    config: Any
    env: Env
    env_name: str | None
    env_options: dict[str, Any]
    env_params: dict[str, Any]
    points: list[dict[str, Any]]  # a configuration each: values of Config fields and, as `env.*`, of environment params
    num_seeds: int
    seed: int  # the first one
    directory: Path
    eval_episodes: int = 32
    strategy: Grid = field(default_factory=Grid)  # which lanes continue, and with what
    memory: int | None = None  # bytes
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    preset: dict[str, Any] = field(default_factory=dict)
    sinks: tuple[str, ...] = ()  # of rlx.run.sinks, that get the rows of the lanes as well
    rank_by: str = "return"  # or what the environment reports: which lanes are best, higher is better
    stop_at_return: float | None = None  # by which each lane stops by itself, see rlx.stopping
    patience: int | None = None
    data: Any = None  # columns that all lanes learn from, see rlx.data.steps
    data_about: dict[str, Any] | None = None  # what `sweep.json` says of them

    @cached_property
    def settings(self) -> list[tuple[Any, Env]]:
        """Config and environment of every configuration."""
        return [apply(self.config, self.env, point) for point in self.points]

    def rule(self, group: Group) -> Stopping | None:
        """By what each lane of a group stops by itself."""
        return stopping(self.stop_at_return, self.patience, group.updates)

    @property
    def lanes(self) -> "list[Lane]":
        """All lanes: the seeds of the first configuration, then those of the next."""
        seeds = range(self.seed, self.seed + self.num_seeds)
        pairs = [(c, seed) for c in range(len(self.points)) for seed in seeds]
        return [Lane(i, configuration, seed) for i, (configuration, seed) in enumerate(pairs)]


@dataclass(frozen=True)
class Lane:
    """One seed of one configuration."""

    number: int
    configuration: int
    seed: int


def apply(config: Any, env: Env, point: Mapping[str, Any]) -> tuple[Any, Env]:
    """The config and the environment with a point's values; names that begin with `env.` are environment parameters.

    Raises:
        ValueError: for a name that neither has.
    """
    own, params = split(point)
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return configure(type(config), values | own), with_params(env, params) if params else env


def listed_points(space: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(space, str) or not all(isinstance(point, Mapping) for point in space):
        raise ValueError(
            f"space = {space!r}: give a dict from names to lists, or a list of dicts with one value a name"
        )
    return [{name: python(value) for name, value in point.items()} for point in space]


def check_sizes(num_points: int, num_seeds: int, seed: int, eval_episodes: int, strategy: Grid) -> None:
    """Raises ValueError for numbers of a sweep that are none, out of range, or do not go with each other."""
    for name, number in {"num_seeds": num_seeds, "eval_episodes": eval_episodes}.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} = {number!r}: give an integer of at least 1")
    if type(seed) is not int or not 0 <= seed <= 2**31 - num_seeds:
        raise ValueError(f"seed = {seed!r} of {num_seeds} seeds: the seeds have to be from 0 to 2^31 - 1")
    strategy.check(num_points)


def check_rule(job: SweepJob) -> None:
    """Raises ValueError where lanes are to stop by themselves and act on each other."""
    if stopping(job.stop_at_return, job.patience, 1) is not None and job.strategy.interacts:
        raise ValueError(f"lanes of {job.strategy.words} act on each other: stop_at_return and patience are for others")


def check_rank_by(rank_by: Any, env: Env, metrics: Mapping[str, Any]) -> None:
    """Raises ValueError where lanes cannot be ranked by this name, naming those that there are.

    It has to be one of what `env` reports, and its mean one of the metrics of an update, as `episode_NAME`.
    """
    reported = jax.eval_shape(env.reset, jax.random.key(0)).reported
    known = ["return", *(name for name in reported if f"episode_{name}" in metrics)]
    if rank_by not in known:
        raise ValueError(f"rank_by = {rank_by!r}: lanes of this sweep can be ranked by {', '.join(known)}")


def check_programs(job: SweepJob, programs: list[Group]) -> None:
    """Traces an update of every program: every error of settings comes here, before anything is written."""
    for group in programs:
        check_hosted(group.env, "a sweep compiles its lanes as one program: rlx train --seed trains one after another")
    check_data(job)
    job.strategy.check_programs(programs)
    check_rule(job)
    for group in programs:
        state = state_shapes(job.algorithm, group.config, group.env)
        check_counters(group.config, state)
        if job.strategy.interacts and not hasattr(state, "key"):
            raise ValueError("lanes that act on each other draw by the key of their State, and this State has none")
        update = lambda *args: job.algorithm.update(*args, **keywords_of(job))
        metrics = jax.eval_shape(update, now(group.config), group.env, state)[1]
        check_metrics(metrics)
        check_rank_by(job.rank_by, group.env, metrics)


def label(job: SweepJob, group: Group) -> str:
    """The static settings and the kinds of schedules that make this group another program than the others."""
    configs = alike([config for config, _ in job.settings])
    parts = {f.name: [_part(f, config) for config in (group.config, *configs)] for f in fields(job.config)}
    return "".join(f"{name}={own}: " for name, (own, *others) in parts.items() if any(x != others[0] for x in others))


def _part(field: Field, config: Any) -> Any:
    """What of a setting is in the program: all of a static one, and of others whether they are a number."""
    value = getattr(config, field.name)
    return value if is_static(field) else value.kind if isinstance(value, Schedule) else "number"


def describe(job: SweepJob) -> dict[str, Any]:
    """What `sweep.json` says."""
    names = ("points", "num_seeds", "eval_episodes", "memory", "rank_by", "stop_at_return", "patience")
    varied = list(dict.fromkeys(name for point in job.points for name in point))
    own = numbers_of(job.strategy) | {"strategy": repr(job.strategy), "interacts": job.strategy.interacts}
    own |= {"log": list(job.sinks)}
    return describe_run(job, *names) | own | {"varied": varied, "env_checksum": checksum(job.env)}


def plan(job: SweepJob) -> str:
    """What would run, in words: lanes, programs, environment steps and the size of the training states."""
    programs = groups(job.settings)
    lanes, total = len(job.points) * job.num_seeds, 0
    lines = []
    for group in programs:
        num = len(group.numbers) * job.num_seeds
        state = shapes(job.algorithm, group, num, job.strategy.interacts)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        steps = steps_taken(group.config, group.updates)
        total += num * steps
        lines.append(
            f"{label(job, group)}{num} lane{'s' * (num > 1)} of {steps:,} steps, states of {size / MIB:,.1f} MiB"
        )
    how = f"; {job.strategy.words}" if job.strategy.words else ""
    head = (
        f"{lanes} lanes: {len(job.points)} configurations of {job.num_seeds} seeds{how}; {len(programs)} "
        f"program{'s' * (len(programs) > 1)}; {jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    return "\n  ".join([head, *lines])


def planned_steps(programs: list[Group], lanes: list[Lane], before: float, plan: list[tuple[float, int]]) -> int:
    """Environment steps that are left from the share `before` on, of runs that are all as long as their mean."""
    steps = [
        g.updates * g.config.steps_per_update for lane in lanes for g in programs if lane.configuration in g.numbers
    ]
    alive, total = len({lane.configuration for lane in lanes}), 0.0
    for share, keep in plan:
        total += (share - before) * sum(steps) * alive / len({lane.configuration for lane in lanes})
        alive, before = keep, share
    return int(total)
