"""Sweeps: many configurations and seeds in few compiled programs, and the directory that they leave behind.

A sweep directory holds `sweep.json` (what was asked for, on what), `batches/` (log, checkpoints and evaluation of every
batch of lanes), and at the end `lanes.jsonl` (a row a lane with its full config), `results.csv`, `ranking.json`,
pictures, `best/`: the best lane as an ordinary run directory, where one has a return, and `source/` as a run
directory has it.
"""

import csv
import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from rlx import run, source
from rlx.algorithm_check import check_counters, check_metrics
from rlx.env import Env, with_params
from rlx.lanes import MIB, Group, Program, carry, fit, groups, memory_bound, shapes
from rlx.presets import configure
from rlx.progress import Display
from rlx.pytree import is_static, plain
from rlx.search import points, python, split
from rlx.storage import naming, owned
from rlx.streams import importing_matplotlib
from rlx.timings import announcement, program_name, remember
from rlx.train import state_shapes, steps_taken

ROWS = 100  # of each lane's log
EXAMPLE = "1e-4, 1e-3"  # values to vary


@dataclass(frozen=True)
class Job:
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
    halving: int | None = None  # the factor by which configurations are dropped
    pbt: int | None = None  # generations of population-based training
    memory: int | None = None  # bytes
    checkpoint_seconds: float = run.CHECKPOINT_SECONDS
    preset: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> list[tuple[Any, Env]]:
        """Config and environment of every configuration."""
        return [apply(self.config, self.env, point) for point in self.points]


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


def rungs(num_configurations: int, factor: int | None) -> list[tuple[float, int]]:
    """Successive halving: the share of a run after which configurations are compared, and how many go on from there.

    `floor(log_factor(C)) + 1` rungs, at shares `..., 1 / factor^2, 1 / factor, 1`; every rung keeps one in `factor`.
    Reference: Jamieson and Talwalkar 2016, arXiv:1502.07943, algorithm 1. Without a factor, one rung of everything.
    """
    if factor is None:
        return [(1.0, num_configurations)]
    last = int(math.log(num_configurations, factor) + 1e-9)
    counts = [num_configurations]
    for _ in range(last):
        counts.append(max(1, counts[-1] // factor))
    return [(factor ** -(last - i), counts[min(i + 1, last)]) for i in range(last + 1)]


@dataclass(frozen=True)
class Sweep:
    """A sweep that has come to its end: a row for each lane, as in `lanes.jsonl`."""

    job: Job
    lanes: list[dict[str, Any]]

    def ranking(self) -> list[int]:
        """Configurations that trained to the end, by the interquartile mean of their lanes' returns, best first."""
        from rlx.report import iqm

        returns = _returns(row for row in self.lanes if row["dropped_at"] is None)
        return sorted(returns, key=lambda c: -iqm(np.array(returns[c])))

    @property
    def best(self) -> int | None:
        """The best lane of the best configuration; None where every lane died or has no finite return."""
        best = self.ranking()[0]
        own = max((row for row in self.lanes if row["configuration"] == best), key=_score)
        return own["lane"] if _score(own) > -math.inf else None

    def settings(self, lane: int) -> tuple[Any, Env]:
        """Config and environment of a lane; of a population's member, those that it ended with."""
        varied = {name: run.loose(value) for name, value in self.lanes[lane]["varied"].items()}
        return apply(self.job.config, self.job.env, varied)

    def state(self, lane: int) -> Any:
        """The training state that a lane ended with."""
        row = self.lanes[lane]
        group = next(group for group in groups(self.job.settings) if row["configuration"] in group.numbers)
        return jax.tree.map(lambda x: x[0], _states(self.job, group, [row]))

    def log(self, lane: int) -> list[dict[str, Any]]:
        """A lane's log from its first update to its last, rows as in the `metrics.jsonl` of a run."""
        found = []
        for numbers, rows in self._logs:
            if lane in numbers:
                i = numbers.index(lane)
                found += [{k: v[i] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        return sorted(found, key=lambda row: row["update"])

    @cached_property
    def _logs(self) -> list[tuple[list[int], list[dict[str, Any]]]]:
        """The lanes and the log of every batch."""
        batches = [path.parent for path in (self.job.directory / "batches").glob("*/result.json")]
        lanes = [[row["lane"] for row in json.loads((batch / "result.json").read_text())] for batch in batches]
        return [(own, run.read_rows(batch / "metrics.jsonl")) for own, batch in zip(lanes, batches, strict=True)]

    def export(self, lane: int, directory: Path) -> None:
        """Writes a lane as a run directory, which can be evaluated, plotted and gone on with like any other.

        Raises:
            ValueError: when there is something in the directory, or another process writes it.
            Full: where the disk is full.
        """
        with owned(directory), naming(directory, lambda: f"{self.job.directory} is as it was, free some space"):
            self._export(lane, directory)

    def _export(self, lane: int, directory: Path) -> None:
        from rlx.checkpoint import save

        job, row = self.job, self.lanes[lane]
        config, env = self.settings(lane)
        own = run.Job(
            algorithm=job.algorithm,
            algorithm_name=job.algorithm_name,
            config=config,
            env=env,
            env_name=job.env_name,
            env_options=job.env_options,
            env_params=job.env_params | split(row["varied"])[1],
            seed=row["seed"],
            directory=directory,
            preset=job.preset,
            eval_episodes=job.eval_episodes,
        )
        source.keep(directory, source.read(job.algorithm_name, job.algorithm))
        about = {"run": run.identity(own), "log": run.NO_LOG}
        save(directory / "checkpoints", row["updates"], self.state(lane), about)
        log = [entry for entry in self.log(lane) if entry["update"] <= row["updates"]]
        run.write_rows(directory / "metrics.jsonl", log)
        run.write_rows(directory / "evaluations.jsonl", [row["evaluation"]])
        run.write_json(directory / "evaluation.json", row["evaluation"])
        run.write_json(directory / "config.json", run.describe(own, *run.OPTIONS))
        run.draw(directory, Console(stderr=True, highlight=False, markup=False, soft_wrap=True))


def sweep(
    algorithm: ModuleType,
    config: Any,
    env: Env,
    space: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    *,
    num_seeds: int = 1,
    seed: int = 0,
    num_samples: int | None = None,
    directory: str | Path,
    env_name: str | None = None,
    eval_episodes: int = 32,
    halving: int | None = None,
    pbt: int | None = None,
    memory: int | None = None,
    checkpoint_seconds: float = run.CHECKPOINT_SECONDS,
    console: Console | None = None,
) -> Sweep:
    """Trains and evaluates every configuration of `space` with `num_seeds` seeds; goes on with what `directory` holds.

        found = rlx.sweep(ppo, config, env, {"learning_rate": [1e-4, 1e-3]}, num_seeds=8, directory="runs/rates")
        state = found.state(found.best)

    On a CPU the lanes are spread over its cores only where every core is a device of jax, which has to be said before
    jax is used: `rlx.sharding.use_devices()` at the top of the script.

    Args:
        space: names of Config fields, and of environment parameters as `env.NAME`, with lists of values for a grid or
            the distributions of `rlx.search`; or a list of such points, each with one value a name.
        seed: of the first lane of each configuration, the others count on; lane and single run of a seed are the same
            run. Also of the draws.
        num_samples: how many draws, for each point of the grid.
        directory: of the sweep. What an interrupted sweep of the same settings left there is gone on with.
        env_name: by which `rlx.envs.make` makes the environment; without it the command line cannot use what is
            exported.
        halving: factor of successive halving, at least 2.
        pbt: generations of population-based training, at least 2.
        memory: bound in bytes; a larger sweep runs in batches.
        checkpoint_seconds: how often to write a checkpoint.
        console: where progress is shown; by default nowhere.

    Raises:
        ValueError: for settings that do not fit; for a directory that holds something else.
        KeyboardInterrupt: after Ctrl-C, when everything is saved.
    """
    found = points(space, num_samples, seed) if isinstance(space, Mapping) else _points(space) or [{}]
    num_seeds, seed, halving, pbt, eval_episodes = map(plain, (num_seeds, seed, halving, pbt, eval_episodes))
    check_sizes(len(found), num_seeds, seed, halving, pbt, eval_episodes)
    own = algorithm.__name__.startswith("rlx.algos.")
    file = "".join([str(Path(algorithm.__file__).resolve()), *algorithm.__name__.partition("+")[1:]])
    job = Job(
        algorithm=algorithm,
        algorithm_name=algorithm.__name__ if own else file,
        config=config,
        env=env,
        env_name=env_name,
        env_options={},
        env_params={},
        points=found,
        num_seeds=num_seeds,
        seed=seed,
        directory=Path(directory),
        eval_episodes=eval_episodes,
        halving=halving,
        pbt=pbt,
        memory=memory,
        checkpoint_seconds=checkpoint_seconds,
    )
    with owned(job.directory, resume=_resumes(job)):
        status, result = execute(job, console or Console(quiet=True), resume=_resumes(job))
    if result is None:
        raise KeyboardInterrupt(f"status {status}: {directory} holds everything; the same call goes on with it")
    return result


def _points(space: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(space, str) or not all(isinstance(point, Mapping) for point in space):
        raise ValueError(
            f"space = {space!r}: give a dict from names to lists, or a list of dicts with one value a name"
        )
    return [{name: python(value) for name, value in point.items()} for point in space]


def check_sizes(
    num_points: int, num_seeds: int, seed: int, halving: int | None, pbt: int | None, eval_episodes: int
) -> None:
    """Raises ValueError for numbers of a sweep that are none, out of range, or do not go with each other."""
    wanted = {
        "num_seeds": (num_seeds, 1),
        "eval_episodes": (eval_episodes, 1),
        "halving": (halving, 2),
        "pbt": (pbt, 2),
    }
    for name, (number, least) in wanted.items():
        if number is not None and (type(number) is not int or number < least):
            raise ValueError(f"{name} = {number!r}: give an integer of at least {least}")
    if type(seed) is not int or not 0 <= seed <= 2**31 - num_seeds:
        raise ValueError(f"seed = {seed!r} of {num_seeds} seeds: the seeds have to be from 0 to 2^31 - 1")
    if halving and pbt:
        raise ValueError("halving and pbt are two ways to search: give one of them")
    if halving and halving > num_points:
        raise ValueError(f"halving = {halving} keeps one configuration in {halving}, and there are {num_points}")


def _resumes(job: Job) -> bool:
    """Whether the job's directory holds an unfinished sweep, which has to be the same one."""
    path = job.directory / "sweep.json"
    if not job.directory.exists() or not any(job.directory.iterdir()):
        return False
    if not path.exists():
        raise ValueError(f"{job.directory} is not empty and not a sweep: give another directory")
    saved, now = run.read_config(job.directory, "sweep.json"), json.loads(json.dumps(run.strict(describe(job))))
    names = (
        "algorithm",
        "env",
        "env_checksum",
        "config",
        "points",
        "num_seeds",
        "seed",
        "eval_episodes",
        "halving",
        "pbt",
    )
    changed = [f"{name} = {saved[name]} -> {now[name]}" for name in names if saved[name] != now[name]]
    changed += [f"{file} {what}" for file, what in source.changes(job.algorithm_name, saved, job.algorithm).items()]
    if changed:
        raise ValueError(f"{job.directory} holds another sweep: {'; '.join(changed)}")
    return True


def execute(job: Job, console: Console, resume: bool = False) -> tuple[int, Sweep | None]:
    """Runs or resumes the sweep, in a directory that the caller owns. Returns the exit status and what it found.

    The status is 0, or that of an interrupted run; then everything is saved, and nothing was found yet.

    Raises:
        ValueError: for settings that fit neither the environment nor the memory.
        Full: where the disk is full, or cannot be written for another reason.
    """
    with naming(job.directory, lambda: _safe(job.directory)):
        return _execute(job, console, resume)


def _safe(directory: Path) -> str:
    """What of a sweep is on disk, whatever happens next."""
    if not (directory / "sweep.json").exists():
        return f"nothing was saved yet: free some space, and begin again ({directory} may be removed)"
    done = len(list((directory / "batches").glob("*/result.json")))
    return (
        f"the results of {done} batches and the checkpoints of the others are safe: "
        f"free some space, and go on with --resume {directory}"
    )


def _execute(job: Job, console: Console, resume: bool) -> tuple[int, Sweep | None]:
    if resume and (job.directory / "summary.json").exists():
        rows = run.read_rows(job.directory / "lanes.jsonl")
        if len(rows) == len(job.points) * job.num_seeds:
            console.print(f"{job.directory} has come to its end")
            return 0, Sweep(job, rows)
        console.print(f"{job.directory} has lost rows of lanes.jsonl: they are written again")
    started, programs = time.perf_counter(), groups(job.settings)
    if job.pbt and len(programs) > 1:
        raise ValueError("members of a population share a program: vary only fields that are not static")
    if job.pbt and job.pbt > programs[0].updates:
        raise ValueError(f"pbt = {job.pbt} generations of {programs[0].updates} updates: give at most one an update")
    if job.pbt and not any(jnp.issubdtype(column.dtype, jnp.floating) for column in programs[0].columns):
        raise ValueError(f"pbt perturbs what varies, and no number does: list values, such as learning_rate {EXAMPLE}")
    for group in programs:  # every error of tracing comes here, before anything is written
        state = state_shapes(job.algorithm, group.config, group.env)
        check_counters(group.config, state)
        if job.pbt and not hasattr(state, "key"):
            raise ValueError("members of a population draw by the key of their State, and this State has none")
        check_metrics(jax.eval_shape(lambda *args: job.algorithm.update(*args), group.config, group.env, state)[1])
    pairs = [(c, seed) for c in range(len(job.points)) for seed in range(job.seed, job.seed + job.num_seeds)]
    lanes = [Lane(i, configuration, seed) for i, (configuration, seed) in enumerate(pairs)]
    console.print(plan(job))
    found: dict[int, dict[str, Any]] = {}
    before = 0.0
    schedule = rungs(len(job.points), job.halving)
    with run.Stop() as stop, Display(console, 1) as display:
        for rung, (share, keep) in enumerate(schedule):
            display.expect(display.done + _planned_steps(programs, lanes, before, schedule[rung:]))
            for number, group in enumerate(programs):
                start, end = (math.ceil(s * group.updates - 1e-9) for s in (before, share))
                own = [lane for lane in lanes if lane.configuration in group.numbers]
                batches = _train_group(job, group, f"r{rung}g{number}", own, start, end, found, display, stop)
                for row in batches:
                    found[row["lane"]] = row
                if stop.asked:
                    console.print(f"interrupted: everything is in {job.directory}, go on with --resume {job.directory}")
                    return 128 + stop.asked, None
            returns = _returns(found[lane.number] for lane in lanes)
            kept = sorted(returns, key=lambda c: -np.mean(returns[c]))[:keep]
            for lane in lanes:
                if lane.configuration not in kept:
                    found[lane.number]["dropped_at"] = found[lane.number]["updates"]
            lanes = [lane for lane in lanes if lane.configuration in kept]
            before = share
    _write_results(Sweep(job, [found[i] for i in range(len(pairs))]), programs, time.perf_counter() - started)
    return 0, Sweep(job, run.read_rows(job.directory / "lanes.jsonl"))


def _train_group(job, group, name, lanes, start, end, found, display, stop):
    """Trains lanes of a group from their update `start` to `end`, in batches. Yields a row for each that is done."""
    if not lanes:
        return
    batches = job.directory / "batches"
    cut, program = batches / f"{name}.json", None

    def build(num_lanes):
        interval = max(1, group.updates // job.pbt) if job.pbt else None
        population = len(lanes) if job.pbt else None
        episodes = job.eval_episodes
        return Program(job.algorithm, group, num_lanes, episodes, run.CHUNK_UPDATES, start == 0, interval, population)

    if not cut.exists():
        known = program_name(run.short_name(job.algorithm_name), job.env_name, group.config, len(lanes), start == 0)
        display.console.print(announcement(known))
        program = fit(build, len(lanes), jax.device_count(), job.memory or memory_bound())
        remember(known, program.seconds)
        if job.pbt and program.num_lanes < len(lanes):
            raise ValueError(
                "a population is one batch and this one does not fit: raise --memory or take fewer members"
            )
        batches.mkdir(parents=True, exist_ok=True)
        if not (job.directory / "sweep.json").exists():
            source.keep(job.directory, source.read(job.algorithm_name, job.algorithm))
            run.write_json(job.directory / "sweep.json", describe(job))
        used = {"num_lanes": program.num_lanes, "bytes": program.bytes, "compile_seconds": program.seconds}
        run.write_json(cut, used)
        display.console.print(
            f"{_label(job, group)}{len(lanes)} lanes in batches of {program.num_lanes}, {program.bytes / MIB:,.0f} MiB "
            f"({program.bytes / MIB / program.num_lanes:.1f} a lane); compiled in {program.seconds:.1f} s"
        )
    size = json.loads(cut.read_text())["num_lanes"]
    for i in range(0, len(lanes), size):
        batch, own = batches / f"{name}b{i // size}", lanes[i : i + size]
        if (batch / "result.json").exists():
            display.skip((end - start) * group.config.steps_per_update * len(own))
        else:
            # Batches hold the lanes that they held, whatever the number of devices that it goes on with.
            program = program or build(math.ceil(size / jax.device_count()) * jax.device_count())
            _train_batch(job, program, batch, own, start, end, found, display, stop)
            if stop.asked:
                return
        yield from json.loads((batch / "result.json").read_text())


def _train_batch(job, program, batch, lanes, start, end, found, display, stop):
    """Trains and evaluates one batch. Its `result.json` comes last, and only when it was not interrupted."""
    from rlx import checkpoint

    group, num = program.group, len(lanes)
    steps = num * group.config.steps_per_update  # of an update of all lanes
    train_keys, evaluate_keys = (jnp.stack(keys) for keys in zip(*(run.keys(lane.seed) for lane in lanes), strict=True))
    checkpoints, log, done, logged = batch / "checkpoints", batch / "metrics.jsonl", start, run.NO_LOG
    like = shapes(job.algorithm, group, num, job.pbt is not None)
    saved, intact = checkpoint.newest_intact(checkpoints, like, display.console.print)
    if saved is not None:
        state, done, logged = program.place(saved), intact, checkpoint.read(checkpoints, intact)["log"]
    else:
        values, keys = program.place((group.values([lane.configuration for lane in lanes]), train_keys))
        if start:
            state = program.place(_states(job, group, [found[lane.number] for lane in lanes]))
        else:
            state = program.init(values, program.shared, keys)
        state = carry(values, state, keys, job.pbt is not None)
    batch.mkdir(exist_ok=True)
    checkpoint.set_aside(checkpoints, done)
    run.write_rows(log, [row for row in run.read_rows(log) if row["update"] <= done - logged["count"]])
    display.skip((done - start) * steps)
    display.label = f"lanes {lanes[0].number} to {lanes[-1].number}, best "

    with open(log, "a") as file:
        logger = run.Logger(file, program.interval or math.ceil(group.updates / ROWS), group.config, logged)

        def save():
            own = jax.tree.map(lambda x: jax.device_put(x[:num], jax.devices()[0]), state)
            checkpoint.save(checkpoints, done, own, {"log": logger.saved()})

        saved_at, size, members = time.perf_counter(), 1, _members(program, state, num)
        while done < end and not stop.asked:
            before = time.perf_counter()
            taken = min(size, end - done, program.interval - done % program.interval if program.interval else size)
            state, metrics = program.step(state, program.shared, jnp.int32(done), jnp.int32(taken))
            ran = np.asarray(state["state"].num_updates)[:num] - done
            logger.add(done, {name: _until(np.asarray(x)[:num, :taken], ran) for name, x in metrics.items()}, members)
            done, members = done + taken, _members(program, state, num)
            known = [x for x in logger.episode_return or [] if x is not None]
            display.show(display.done + taken * steps, max(known, default=None))
            now = time.perf_counter()
            size = max(1, min(program.length, int(taken * run.CHUNK_SECONDS / max(now - before, 1e-9)), 8 * taken))
            if now - saved_at > job.checkpoint_seconds and done < end:
                save()
                saved_at = time.perf_counter()
        save()
        if done < end:
            return
        logger.flush(done, members)

    episodes = program.evaluate(state["values"], program.shared, state["state"], program.place(evaluate_keys))
    episodes = jax.tree.map(np.asarray, episodes)
    updates = np.asarray(state["state"].num_updates)
    values = [np.asarray(column) for column in state["values"]]
    rows = []
    for i, lane in enumerate(lanes):
        point = job.points[lane.configuration]
        if job.pbt:
            point = point | {name: column[i].item() for name, column in zip(group.names, values, strict=True)}
        evaluation = run.evaluation(jax.tree.map(lambda x, i=i: x[i], episodes), int(updates[i]), group.config)
        rows.append(
            {
                "lane": lane.number,
                "configuration": lane.configuration,
                "seed": lane.seed,
                "varied": point,
                "updates": evaluation["update"],
                "steps": evaluation["step"],
                "planned_steps": steps_taken(group.config, group.updates),
                "return_mean": evaluation["mean"],
                "return_std": evaluation["std"],
                "training_return": (logger.episode_return or [None] * num)[i],
                "died_at": evaluation["update"] + 1 if updates[i] < done else None,
                "dropped_at": None,
                "evaluation": evaluation,
                "batch": batch.name,
            }
        )
    run.write_json(batch / "result.json", rows)


def _until(metric: np.ndarray, ran: np.ndarray) -> np.ndarray:
    """A metric `[L, num]` of lanes of which the first `ran` updates were made: NaN after them, where it can be."""
    if not np.issubdtype(metric.dtype, np.floating):
        return metric
    return np.where(np.arange(metric.shape[1]) < ran[:, None], metric, np.nan)


def _members(program: Program, state: dict[str, Any], num: int) -> dict[str, list]:
    """What the members of a population train with now, and whom each copied last; nothing for independent lanes."""
    if not program.interval:
        return {}
    columns = {f"varied.{name}": x for name, x in zip(program.group.names, state["values"], strict=True)}
    return {name: np.asarray(x)[:num].tolist() for name, x in (columns | {"parent": state["parent"]}).items()}


def _states(job: Job, group: Group, rows: Sequence[dict[str, Any]]) -> Any:
    """The states that these lanes ended with, leaves `[L, ...]`; rows of a batch come one after another."""
    from rlx.checkpoint import Damaged, restore

    parts = []
    for name in dict.fromkeys(row["batch"] for row in rows):
        batch = job.directory / "batches" / name
        numbers = [row["lane"] for row in json.loads((batch / "result.json").read_text())]
        try:
            saved = restore(batch / "checkpoints", shapes(job.algorithm, group, len(numbers), job.pbt is not None))
        except Damaged as error:
            again = (
                f"delete {batch} and {job.directory / 'summary.json'}, and --resume trains it again, to the same bits"
            )
            raise ValueError(f"{str(error).partition(';')[0]}; {again}") from error
        picked = np.array([numbers.index(row["lane"]) for row in rows if row["batch"] == name])
        parts.append(jax.tree.map(lambda x, picked=picked: x[picked], saved["state"]))
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


def _returns(rows: Iterable[dict[str, Any]]) -> dict[int, list[float]]:
    """The scores of the lanes of every configuration, best ranked by their means; -inf for all where none has one.

    A lane without a score counts as the lowest of all lanes, so that it lowers its configuration and no other.
    """
    scores: dict[int, list[float]] = {}
    for row in rows:
        scores.setdefault(row["configuration"], []).append(_score(row))
    lowest = min((x for own in scores.values() for x in own if x > -math.inf), default=-math.inf)
    known = {c: max(own) > -math.inf for c, own in scores.items()}
    return {c: [max(x, lowest) if known[c] else x for x in own] for c, own in scores.items()}


def _score(row: dict[str, Any]) -> float:
    """A lane's mean return; -inf for one that died, or whose return is not finite: it is worse than any other."""
    value = float(row["return_mean"])
    return value if math.isfinite(value) and row["died_at"] is None else -math.inf


def _label(job: Job, group: Group) -> str:
    """The static settings that make this group another program than the others."""
    names = [f.name for f in fields(job.config) if is_static(f)]
    configs = [config for config, _ in job.settings]
    differ = [n for n in names if any(getattr(c, n) != getattr(configs[0], n) for c in configs)]
    return "".join(f"{n}={getattr(group.config, n)}: " for n in differ)


def _planned_steps(programs: list[Group], lanes: list[Lane], before: float, plan: list[tuple[float, int]]) -> int:
    """Environment steps that are left from the share `before` on, of runs that are all as long as their mean."""
    steps = [
        g.updates * g.config.steps_per_update for lane in lanes for g in programs if lane.configuration in g.numbers
    ]
    alive, total = len({lane.configuration for lane in lanes}), 0.0
    for share, keep in plan:
        total += (share - before) * sum(steps) * alive / len({lane.configuration for lane in lanes})
        alive, before = keep, share
    return int(total)


def describe(job: Job) -> dict[str, Any]:
    """What `sweep.json` says."""
    names = ("points", "num_seeds", "eval_episodes", "halving", "pbt", "memory")
    varied = list(dict.fromkeys(name for point in job.points for name in point))
    return run.describe(job, *names) | {"varied": varied, "env_checksum": run.checksum(job.env)}


def plan(job: Job) -> str:
    """What would run, in words: lanes, programs, environment steps and the size of the training states."""
    programs = groups(job.settings)
    lanes, total = len(job.points) * job.num_seeds, 0
    lines = []
    for group in programs:
        num = len(group.numbers) * job.num_seeds
        state = shapes(job.algorithm, group, num, job.pbt is not None)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        steps = steps_taken(group.config, group.updates)
        total += num * steps
        lines.append(
            f"{_label(job, group)}{num} lane{'s' * (num > 1)} of {steps:,} steps, states of {size / MIB:,.1f} MiB"
        )
    how = f"; halving by {job.halving}" if job.halving else f"; {job.pbt} generations" if job.pbt else ""
    head = (
        f"{lanes} lanes: {len(job.points)} configurations of {job.num_seeds} seeds{how}; {len(programs)} "
        f"program{'s' * (len(programs) > 1)}; {jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    return "\n  ".join([head, *lines])


def _write_results(sweep: Sweep, programs: list[Group], seconds: float) -> None:
    """The rows of the lanes, the ranking, what it took, pictures, and the best lane as a run."""
    from rlx.report import interval, iqm

    directory, job = sweep.job.directory, sweep.job
    rows = []
    for row in sweep.lanes:
        config, _ = sweep.settings(row["lane"])
        log = [entry for entry in sweep.log(row["lane"]) if entry["update"] <= row["updates"]]
        curve = {name: [entry[name] for entry in log] for name in ("step", "episode_return", "num_episodes")}
        rows.append(row | {"config": asdict(config), "curve": curve})
    run.write_rows(directory / "lanes.jsonl", rows)

    columns = ["seed", "updates", "steps", "return_mean", "return_std", "training_return", "died_at", "dropped_at"]
    names = describe(job)["varied"]
    with open(directory / "results.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["lane", "configuration", *names, *columns])
        for row in sweep.lanes:
            varied = [row["varied"].get(name) for name in names]
            table.writerow([row["lane"], row["configuration"], *varied, *(row[name] for name in columns)])

    ranking = []
    for configuration in sweep.ranking():
        own = [row for row in sweep.lanes if row["configuration"] == configuration]
        returns = np.array([score for row in own if (score := _score(row)) > -math.inf])
        died = sum(row["died_at"] is not None for row in own)
        head = {"configuration": configuration, "varied": job.points[configuration], "lanes": len(own), "died": died}
        known = {"mean": float(returns.mean()), "iqm": interval([returns], iqm)} if len(returns) else {}
        ranking.append(head | {"scored": len(returns), "mean": None, "iqm": None} | known)
    run.write_json(directory / "ranking.json", ranking)

    plans = [json.loads(path.read_text()) for path in sorted((directory / "batches").glob("*.json"))]
    batches = [json.loads(path.read_text()) for path in (directory / "batches").glob("*/result.json")]
    played = [row["evaluation"] for rows in batches for row in rows]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    summary = {
        "lanes": len(sweep.lanes),
        "programs": len(programs),
        "compilations": len(plans),
        "compile_seconds": round(sum(plan["compile_seconds"] for plan in plans), 3),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak,
        "steps": sum(row["steps"] for row in sweep.lanes),
        "evaluation_steps": sum(round(row["mean_length"] * row["num_episodes"]) for row in played),
        "devices": jax.device_count(),
        "died": sum(row["died_at"] is not None for row in sweep.lanes),
        "best": sweep.best,
    }
    shutil.rmtree(directory / "best", ignore_errors=True)  # of a process that was killed while it wrote
    if sweep.best is not None:
        sweep.export(sweep.best, directory / "best")
    try:
        _draw(job, names)
    except Exception as error:  # whatever a plotting library raises, a picture is not worth a sweep
        print(f"not all pictures of {directory} could be drawn: {' '.join(str(error).split())}", file=sys.stderr)
    run.write_json(directory / "summary.json", summary)  # the last: it says that the others are whole


def _draw(job: Job, varied: list[str]) -> None:
    """Pictures, as far as there is something to be seen."""
    with importing_matplotlib():
        from rlx import plot
    from rlx.report import runs

    directory = job.directory
    lanes = runs([directory])
    if any(weight for lane in lanes for weight in lane["curve"]["num_episodes"]):
        plot.learning_curves(lanes, directory / "curves.png")
    if job.pbt:
        plot.population(run.read_rows(directory / "batches" / "r0g0b0" / "metrics.jsonl"), directory / "population.png")
        return
    differ = [name for name in varied if len({json.dumps(lane["varied"][name]) for lane in lanes}) > 1]
    if differ:
        plot.sensitivity(lanes, directory / "sensitivity.png", differ)
    values = [len({json.dumps(lane["varied"][name]) for lane in lanes}) for name in differ]
    if len(differ) == 2 and max(values) <= 20:
        plot.heatmap(lanes, *differ, directory / "heatmap.png")
