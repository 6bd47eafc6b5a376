"""Sweeps: many configurations and seeds in few compiled programs, and the directory that they leave behind.

A sweep directory holds `sweep.json` (settings, versions, device), `batches/` (log, checkpoints and evaluation of every
batch of lanes), and at the end `lanes.jsonl` (a row a lane with its full config), `results.csv`, `ranking.json`,
pictures, `best/`: the best lane as an ordinary run directory, where one has a return, and `source/` as a run directory
has it.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from rlx import source
from rlx.algorithm import name_of, short_name
from rlx.data.demonstrations import Demonstrations
from rlx.data.steps import Columns
from rlx.env import Env
from rlx.files import read_config, read_rows, strict, write_json
from rlx.pytree import plain
from rlx.run.evaluations import evaluation as evaluation_of
from rlx.run.job import CHECKPOINT_SECONDS
from rlx.run.job import keys as keys_of
from rlx.run.learned_from import given_data, keywords_of
from rlx.run.log import NO_LOG, Logger
from rlx.run.progress import Display
from rlx.run.sinks import Jsonl, check_names
from rlx.run.stop import Stop
from rlx.run.storage import naming, owned
from rlx.run.timings import announcement, program_name, remember
from rlx.run.training import CHUNK_SECONDS, CHUNK_UPDATES
from rlx.sweeps.job import (
    SweepJob,
    check_programs,
    check_sizes,
    describe,
    label,
    listed_points,
    plan,
    planned_steps,
)
from rlx.sweeps.lanes import MIB, Program, carry, fit, groups, memory_bound, shapes
from rlx.sweeps.logs import NAMES, LaneLogs
from rlx.sweeps.results import Sweep, carried, members_of, returns_of, write_results
from rlx.sweeps.search import points
from rlx.sweeps.strategies import STRATEGIES, Grid, strategy_of
from rlx.train import steps_taken

ROWS = 100  # of each lane's log


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
    strategy: Grid | None = None,
    memory: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    console: Console | None = None,
    rank_by: str = "return",
    stop_at_return: float | None = None,
    patience: int | None = None,
    log: Sequence[str] = (),
    data: Demonstrations | Columns | str | Path | None = None,
) -> Sweep:
    """Trains and evaluates every configuration of `space` with `num_seeds` seeds; resumes what `directory` holds.

        found = rlx.sweep(ppo, config, env, {"learning_rate": [1e-4, 1e-3]}, num_seeds=8, directory="runs/rates")
        state = found.state(found.best)

    On a CPU the lanes are spread over its cores only where every core is a device of jax, which has to be said before
    jax is used: `rlx.devices.sharding.use_devices()` at the top of the script.

    Args:
        space: names of Config fields, and of environment parameters as `env.NAME`, with lists of values for a grid or
            the distributions of `rlx.sweeps.search`; or a list of such points, each with one value a name.
        seed: of the first lane of each configuration, the others count on; lane and single run of a seed are the same
            run. Also of the draws.
        num_samples: how many draws, for each point of the grid.
        directory: of the sweep. An interrupted sweep of the same settings is resumed.
        env_name: by which `rlx.envs.make` makes the environment; without it the command line cannot use what is
            exported.
        halving: factor of successive halving, at least 2.
        pbt: generations of population-based training, at least 2.
        strategy: another way to search, as `rlx.sweeps.strategies` has them, in place of the last two.
        memory: bound in bytes; a larger sweep runs in batches.
        checkpoint_seconds: how often to write a checkpoint.
        console: where progress is shown; by default nowhere.
        rank_by: what says which lanes are best and which continue: `return`, or the name of something that the
            environment reports (`rlx.env.reports`), of which more is better.
        stop_at_return: a lane stops by itself where its training episodes return this much, see `rlx.stopping`.
        patience: a lane stops by itself after so many hundredths of the run without a better return, see there.
        log: names of `rlx.run.sinks.SINKS` that get the rows of every lane, as a run of its own.
        data: what all lanes learn from, see `rlx.fit`.

    Raises:
        ValueError: for settings that do not fit; for a directory that holds something else.
        KeyboardInterrupt: after Ctrl-C, when everything is saved.
    """
    found = points(space, num_samples, seed) if isinstance(space, Mapping) else listed_points(space) or [{}]
    num_seeds, seed, eval_episodes = map(plain, (num_seeds, seed, eval_episodes))
    given = strategy_of({"halving": plain(halving), "pbt": plain(pbt)})
    if strategy is not None and given != Grid():
        raise ValueError(f"strategy = {strategy} and {given} are two ways to search: give one of them")
    strategy = strategy or given
    check_sizes(len(found), num_seeds, seed, eval_episodes, strategy)
    check_names(log, "log")
    job = SweepJob(
        algorithm=algorithm,
        algorithm_name=name_of(algorithm),
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
        strategy=strategy,
        memory=memory,
        checkpoint_seconds=checkpoint_seconds,
        rank_by=rank_by,
        stop_at_return=stop_at_return,
        patience=patience,
        sinks=tuple(log),
        **given_data(data, env),
    )
    with owned(job.directory, resume=_resumes(job)):
        status, result = execute(job, console or Console(quiet=True), resume=_resumes(job))
    if result is None:
        raise KeyboardInterrupt(f"status {status}: {directory} holds everything; the same call resumes it")
    return result


def _resumes(job: SweepJob) -> bool:
    """Whether the job's directory holds an unfinished sweep, which has to be the same one."""
    path = job.directory / "sweep.json"
    if not job.directory.exists() or not any(job.directory.iterdir()):
        return False
    if not path.exists():
        raise ValueError(f"{job.directory} is not empty and not a sweep: give another directory")
    saved, now = read_config(job.directory, "sweep.json"), json.loads(json.dumps(strict(describe(job))))
    names = ("algorithm", "env", "env_checksum", "config", "points", "num_seeds", "seed", "eval_episodes")
    names += ("strategy",) if "strategy" in saved else tuple(STRATEGIES)
    names += ("rank_by", "stop_at_return", "patience")
    saved = {"rank_by": "return", "stop_at_return": None, "patience": None} | saved  # as it was without a choice
    changed = [f"{name} = {saved[name]} -> {now[name]}" for name in names if saved[name] != now[name]]
    if (saved.get("data") or {}).get("checksum") != (job.data_about or {}).get("checksum"):
        changed.append("data is not what it learned from")
    changed += [f"{file} {what}" for file, what in source.changes(job.algorithm_name, saved, job.algorithm).items()]
    if changed:
        raise ValueError(f"{job.directory} holds another sweep: {'; '.join(changed)}")
    return True


def execute(job: SweepJob, console: Console, resume: bool = False) -> tuple[int, Sweep | None]:
    """Runs or resumes the sweep, in a directory that the caller owns. Returns the exit status and what it found.

    The status is 0, or that of an interrupted run; then everything is saved, and nothing was found yet.

    Raises:
        ValueError: for settings that fit neither the environment nor the memory.
        Full: where the disk is full, or cannot be written for another reason.
    """
    with naming(job.directory, lambda: _safe(job.directory)):
        return _execute(job, console, resume)


def _safe(directory: Path) -> str:
    """The parts of a sweep that are safe on disk, in words."""
    if not (directory / "sweep.json").exists():
        return f"nothing was saved yet: free some space, and begin again ({directory} may be removed)"
    done = len(list((directory / "batches").glob("*/result.json")))
    return (
        f"the results of {done} batches and the checkpoints of the others are safe: "
        f"free some space, and resume with --resume {directory}"
    )


def _execute(job: SweepJob, console: Console, resume: bool) -> tuple[int, Sweep | None]:
    if resume and (job.directory / "summary.json").exists():
        rows = read_rows(job.directory / "lanes.jsonl")
        if len(rows) == len(job.points) * job.num_seeds:
            console.print(f"{job.directory} has come to its end")
            return 0, Sweep(job, rows)
        console.print(f"{job.directory} has lost rows of lanes.jsonl: they are written again")
    started, programs = time.perf_counter(), groups(job.settings)
    check_programs(job, programs)
    lanes = job.lanes
    console.print(plan(job))
    found: dict[int, dict[str, Any]] = {}
    before = 0.0
    schedule = job.strategy.rungs(len(job.points))
    with ExitStack() as stack, Stop() as stop, Display(console, 1) as display:
        logs = LaneLogs(job, console)
        stack.callback(logs.close)
        for rung, (share, keep) in enumerate(schedule):
            display.expect(display.done + planned_steps(programs, lanes, before, schedule[rung:]))
            for number, group in enumerate(programs):
                start, end = (math.ceil(s * group.updates - 1e-9) for s in (before, share))
                own = [lane for lane in lanes if lane.configuration in group.numbers]
                for row in _train_group(job, group, f"r{rung}g{number}", own, start, end, found, display, stop, logs):
                    found[row["lane"]] = row
                if stop.asked:
                    console.print(
                        f"interrupted: everything is in {job.directory}, resume with --resume {job.directory}"
                    )
                    return 128 + stop.asked, None
            kept = job.strategy.kept(returns_of((found[lane.number] for lane in lanes), job.rank_by), keep)
            for lane in lanes:
                if lane.configuration not in kept:
                    found[lane.number]["dropped_at"] = found[lane.number]["updates"]
            lanes = [lane for lane in lanes if lane.configuration in kept]
            before = share
        rows = [found[lane.number] for lane in job.lanes]
        write_results(Sweep(job, rows), programs, time.perf_counter() - started)
    return 0, Sweep(job, read_rows(job.directory / "lanes.jsonl"))


def _train_group(job, group, name, lanes, start, end, found, display, stop, logs):
    """Trains lanes of a group from their update `start` to `end`, in batches. Yields a row for each that is done."""
    if not lanes:
        return
    batches = job.directory / "batches"
    cut, program = batches / f"{name}.json", None

    def build(num_lanes):
        args = job.algorithm, group, num_lanes, job.eval_episodes, CHUNK_UPDATES, start == 0
        return Program(*args, job.strategy, len(lanes), job.rank_by, job.rule(group), keywords_of(job))

    if not cut.exists():
        program = _compiled(job, group, build, len(lanes), start, cut, display)
    size = json.loads(cut.read_text())["num_lanes"]
    for i in range(0, len(lanes), size):
        batch, own = batches / f"{name}b{i // size}", lanes[i : i + size]
        if (batch / "result.json").exists():
            display.skip((end - start) * group.config.steps_per_update * len(own))
        else:
            # Batches hold the lanes that they held, whatever the number of devices that it is resumed with.
            program = program or build(math.ceil(size / jax.device_count()) * jax.device_count())
            trained = _train_batch(job, program, batch, own, start, end, found, display, stop, logs)
            if trained is None:
                return
            write_json(batch / "result.json", _rows(job, program, batch, own, *trained))
            logs.evaluated(json.loads((batch / "result.json").read_text()))
        yield from json.loads((batch / "result.json").read_text())


def _compiled(job, group, build, num_lanes, start, cut, display):
    """The program of a group in batches that fit the memory. Writes what the sweep is, and the cut into batches."""
    known = program_name(short_name(job.algorithm_name), job.env_name, group.config, num_lanes, start == 0)
    display.console.print(announcement(known))
    program = fit(build, num_lanes, jax.device_count(), job.memory or memory_bound())
    remember(known, program.seconds)
    if job.strategy.interacts and program.num_lanes < num_lanes:
        raise ValueError("a population is one batch and this one does not fit: raise --memory or take fewer members")
    cut.parent.mkdir(parents=True, exist_ok=True)
    if not (job.directory / "sweep.json").exists():
        source.keep(job.directory, source.read(job.algorithm_name, job.algorithm))
        write_json(job.directory / "sweep.json", describe(job))
    used = {"num_lanes": program.num_lanes, "bytes": program.bytes, "compile_seconds": program.seconds}
    write_json(cut, used)
    display.console.print(
        f"{label(job, group)}{num_lanes} lanes in batches of {program.num_lanes}, {program.bytes / MIB:,.0f} MiB "
        f"({program.bytes / MIB / program.num_lanes:.1f} a lane); compiled in {program.seconds:.1f} s"
    )
    return program


def _train_batch(job, program, batch, lanes, start, end, found, display, stop, logs):
    """Trains one batch. Returns its carry, the updates made and the last training returns; None if interrupted."""
    from rlx.run import checkpoint

    group, num = program.group, len(lanes)
    steps = num * group.config.steps_per_update  # of an update of all lanes
    checkpoints, done, logged = batch / "checkpoints", start, NO_LOG
    like = shapes(job.algorithm, group, num, job.strategy.interacts, job.rule(group))
    saved, intact = checkpoint.newest_intact(checkpoints, like, display.console.print)
    if saved is not None:
        state, done, logged = program.place(saved), intact, checkpoint.read(checkpoints, intact)["log"]
    else:
        state = _first_carry(job, program, lanes, [found[lane.number] for lane in lanes] if start else None)
    batch.mkdir(exist_ok=True)
    checkpoint.set_aside(checkpoints, done)
    known = [row for row in read_rows(batch / "metrics.jsonl") if row["update"] <= done - logged["count"]]
    display.skip((done - start) * steps)
    display.label = f"lanes {lanes[0].number} to {lanes[-1].number}, best "

    write_json(batch / NAMES, [lane.number for lane in lanes])
    with closing(Jsonl(batch, {"metrics": known})) as log:
        logger = Logger(
            [log, *logs.begin(lanes, known)], program.interval or math.ceil(group.updates / ROWS), group.config, logged
        )

        def save():
            own = jax.tree.map(lambda x: jax.device_put(x[:num], jax.devices()[0]), state)
            checkpoint.save(checkpoints, done, own, {"log": logger.saved()})

        saved_at, size, members = time.perf_counter(), 1, members_of(program, state, num)
        while done < end and not stop.asked:
            before = time.perf_counter()
            taken = min(size, end - done, program.interval - done % program.interval if program.interval else size)
            state, metrics = program.step(state, program.shared, jnp.int32(done), jnp.int32(taken))
            ran = np.asarray(state["state"].num_updates)[:num] - done
            logger.add(done, {name: _until(np.asarray(x)[:num, :taken], ran) for name, x in metrics.items()}, members)
            done, members = done + taken, members_of(program, state, num)
            if (ran < taken).all() and not job.strategy.interacts:  # every lane has died or stopped by itself
                display.skip((end - done) * steps)
                done = end
            known = [x for x in logger.episode_return or [] if x is not None]
            display.show(display.done + taken * steps, max(known, default=None))
            now = time.perf_counter()
            size = max(1, min(program.length, int(taken * CHUNK_SECONDS / max(now - before, 1e-9)), 8 * taken))
            if now - saved_at > job.checkpoint_seconds and done < end:
                save()
                saved_at = time.perf_counter()
        save()
        if done < end:
            return None
        logger.flush(done, members)
    return state, done, logger.episode_return or [None] * num


def _first_carry(job, program, lanes, rows):
    """The carry that lanes begin with: fresh states, or those at which the rung before has left them (`rows`)."""
    keys = jnp.stack([keys_of(lane.seed)[0] for lane in lanes])
    values, keys = program.place((program.group.values([lane.configuration for lane in lanes]), keys))
    if rows is None:
        return carry(values, program.init(values, program.shared, keys), keys, job.strategy.interacts, program.rule)
    before = program.place(carried(job, program.group, rows))
    return carry(values, before["state"], keys, job.strategy.interacts) | before


def _rows(job, program, batch, lanes, state, done, training_returns):
    """Evaluates a batch that has come to its end: a row a lane."""
    group, keys = program.group, jnp.stack([keys_of(lane.seed)[1] for lane in lanes])
    episodes = program.evaluate(state["values"], program.shared, state["state"], program.place(keys))
    episodes = jax.tree.map(np.asarray, episodes)
    updates = np.asarray(state["state"].num_updates)
    stopped = np.asarray(state["rule"].stopped) if "rule" in state else np.zeros(len(updates), bool)
    values = [np.asarray(column) for column in state["values"]]
    rows = []
    for i, lane in enumerate(lanes):
        point = job.points[lane.configuration]
        if job.strategy.interacts:
            point = point | group.point([column[i] for column in values])
        evaluation = evaluation_of(jax.tree.map(lambda x, i=i: x[i], episodes), int(updates[i]), group.config)
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
                "training_return": training_returns[i],
                "died_at": evaluation["update"] + 1 if updates[i] < done and not stopped[i] else None,
                "stopped_at": evaluation["update"] if stopped[i] else None,
                "dropped_at": None,
                "evaluation": evaluation,
                "batch": batch.name,
            }
        )
    return rows


def _until(metric: np.ndarray, ran: np.ndarray) -> np.ndarray:
    """A metric `[L, num]` of lanes of which the first `ran` updates were made: NaN after them, where it can be."""
    if not np.issubdtype(metric.dtype, np.floating):
        return metric
    return np.where(np.arange(metric.shape[1]) < ran[:, None], metric, np.nan)
