"""A run from the host: compiled chunks of updates, and logs, evaluations, checkpoints and pictures between them.

A run directory holds `config.json` (what ran, on what), `metrics.jsonl` (a row a line, at most about 1000),
`evaluations.jsonl` (a row for each evaluation during training), `checkpoints/` (the whole State, see
rlx.run.checkpoint), `evaluation.json` (the last evaluation of training), `curve.png`, `source/` (copies of an algorithm
file of one's own and of a learned objective, see rlx.source), `evaluations/` (those that `rlx eval` was asked for), and
`episodes/` where pictures of episodes were asked for. It can be killed at any moment: files are written in an order in
which later ones say less than earlier ones, and resuming drops what the newest checkpoint does not know.
"""

import json
import math
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from rlx import source
from rlx.algorithm import short_name
from rlx.algorithm_check import check_counters, check_metrics
from rlx.data.cloning import started_from
from rlx.devices.hosts import agree, barrier, first, most
from rlx.devices.sharding import AXIS, num_blocks
from rlx.env import EnvState
from rlx.files import evaluation_points, read_config, read_rows, write_json, write_rows
from rlx.normalize import RewardScale
from rlx.pytree import uncommitted
from rlx.replay import Replay, arranged, is_replay, with_replay, without_replay
from rlx.run.evaluations import best, draw, evaluate_run, render_episode
from rlx.run.job import OPTIONS, Job, describe, devices_of, identity, keys
from rlx.run.log import NO_LOG, ROWS, Logger
from rlx.run.progress import Display
from rlx.run.render import check_output
from rlx.run.storage import naming
from rlx.run.streams import importing_matplotlib
from rlx.run.timings import announcement, program_name, remember
from rlx.train import (
    MAX_STEPS,
    Current,
    advance,
    play,
    state_shapes,
    steps_taken,
    total_updates,
)

T = TypeVar("T")
CHUNK_SECONDS = 0.5
CHUNK_UPDATES = 256
LOGS = ("metrics.jsonl", "evaluations.jsonl")
jitted = partial(jax.jit, static_argnames=("algorithm", "length"), donate_argnames="state")
chunk = jitted(advance)


def placed(like: T) -> T:
    """The shapes of a State with where its parts are, on the devices of the mesh in use; as they are without one."""
    if num_blocks() == 1:
        return like
    mesh = jax.sharding.get_mesh()
    at = lambda spec: lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    whole, split = (partial(jax.tree.map, at(spec)) for spec in (P(), P(AXIS)))

    def place(part):
        if isinstance(part, EnvState):
            return split(part)
        if isinstance(part, Replay):
            return replace(whole(part), data=split(part.data))
        if isinstance(part, RewardScale):
            return replace(whole(part), discounted=split(part.discounted))
        return whole(part)

    return jax.tree.map(place, like, is_leaf=lambda x: isinstance(x, EnvState | Replay | RewardScale))


def execute(job: Job, console: Console, resume: bool = False, from_update: int | None = None) -> int:
    """Runs the job, or goes on with what is in its directory: from the newest checkpoint, or that of `from_update`.

    Whoever calls owns the directory, see `rlx.run.storage.owned`. Ctrl-C, SIGTERM and SIGHUP end the run at the next
    border between chunks, with a checkpoint; a second one ends it at once.

    Returns the exit status: 0, 1 when training died of NaN, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Raises:
        ValueError: for settings that do not fit the environment, or a checkpoint that does not fit them, before
            anything on disk has changed.
        Full: where the disk is full, or cannot be written for another reason.
    """
    if jax.process_count() > 1 and job.render_every:
        raise ValueError("--render-every is for runs of one process: rlx render draws episodes afterwards")
    with devices_of(job), naming(job.directory, lambda: _safe(job.directory)):
        return _execute(job, console, resume, from_update)


def _safe(directory: Path) -> str:
    """What of a run is on disk, whatever happens next."""
    from rlx.run import checkpoint

    newest = max(checkpoint.numbers(directory / "checkpoints"), default=None)
    if newest is None or not (directory / "config.json").exists():
        return f"nothing was saved yet: free some space, and begin again ({directory} may be removed)"
    logged = max((row["update"] for row in read_rows(directory / "metrics.jsonl")), default=0)
    return (
        f"the checkpoint of update {newest} is safe, and the log up to update {logged}: "
        f"free some space, and go on with --resume {directory}"
    )


def _execute(job: Job, console: Console, resume: bool, from_update: int | None) -> int:
    config, env, algorithm, directory = job.config, job.env, Current(job.algorithm), job.directory
    train_key, evaluate_key = keys(job.seed)
    updates, started = total_updates(config), time.perf_counter()
    name = program_name(short_name(job.algorithm_name), job.env_name, config, job.devices)
    like = placed(state_shapes(algorithm, config, env))
    check_counters(config, like)
    console.print(announcement(name))
    kept = (lambda state: state) if job.checkpoint_replay else without_replay  # of a state, in checkpoints
    length = min(updates, CHUNK_UPDATES)
    # Every error of tracing comes here.
    shardings = None if num_blocks() == 1 else jax.tree.map(lambda x: x.sharding, like)
    everywhere = None if shardings is None else NamedSharding(jax.sharding.get_mesh(), P())
    step = chunk if shardings is None else jitted(advance, out_shardings=(shardings, everywhere))
    lowered = step.lower(algorithm, config, env, like, jnp.int32(0), jnp.int32(1), length)
    check_metrics(lowered.out_info[1], 1)
    init = jax.jit(lambda *args: algorithm.init(*args), out_shardings=shardings).lower(config, env, train_key)
    play.lower(algorithm, config, env, like, evaluate_key, job.eval_episodes, True, MAX_STEPS)
    if job.render_every:
        check_output(env, directory / "episodes.gif")

    from rlx.run import checkpoint

    checkpoints = directory / "checkpoints"
    state, done, logged = None, 0, NO_LOG
    rows, evaluations = agree([read_rows(directory / name) if resume else [] for name in LOGS])
    newest = agree(max(checkpoint.numbers(checkpoints), default=None))
    if resume and (rows or from_update is not None or newest is not None):
        wanted = newest if from_update is None else from_update
        state = checkpoint.restore(checkpoints, kept(like), wanted, {"run": identity(job)})
        done = int(state.num_updates)
        about = agree(checkpoint.read(checkpoints, done) if first() else None)
        logged, num_before = about["log"], about.get("devices", 1)
        if num_before != job.devices:
            console.print(
                f"{job.devices} devices instead of {num_before}: minibatches are of other elements than they were"
            )
            regroup = lambda x: arranged(replace(x, blocks=num_before), job.devices) if is_replay(x) else x
            regrouped = lambda state: jax.tree.map(regroup, state, is_leaf=is_replay)
            at = jax.tree.map(lambda x: x.sharding, state)
            state = jax.jit(regrouped, out_shardings=at, donate_argnums=0)(state)
        rows = [row for row in rows if row["update"] <= done - logged["count"]]
        evaluations = [row for row in evaluations if row["update"] <= done]
        if first():
            _check_unfinished(directory, done, updates, evaluations)
    if resume:
        console.print(f"resuming after {done} of {updates} updates")
        _warn_of_schedules(directory, steps_taken(config, done), steps_taken(config, updates), console)
    origin = {"start_from": str(job.start_from)} if job.start_from else {}
    if resume:
        origin = {name: value for name, value in read_config(directory).items() if name in ("start_from", "cloned")}
        if state is None and origin:
            raise ValueError(f"{directory} was stopped before its first checkpoint: remove it, and begin again")
    if not job.render_every:  # which draws at once, and parts of a library are not to be imported by two at a time
        # Compiling and training leave the interpreter to others: they do not wait for this second.
        threading.Thread(target=_import_early, args=("rlx.plot",), daemon=True).start()
    step_updates = lowered.compile()
    if state is None:
        state = init.compile()(config, env, train_key)
        if job.learned is not None:
            state = jax.device_put(started_from(state, uncommitted(job.learned)), shardings)
    elif not job.checkpoint_replay:
        state = with_replay(state, init.compile()(config, env, train_key))

    # Everything that can fail early has succeeded: only from here on is anything written or deleted.
    barrier("everything is read")
    if first():
        directory.mkdir(parents=True, exist_ok=True)
        if resume:
            checkpoint.set_aside(checkpoints, done)
            for name, known in zip(LOGS, (rows, evaluations), strict=True):
                write_rows(directory / name, known)
            for stale in ("evaluation.json", "curve.png"):
                with suppress(IsADirectoryError, PermissionError):  # what is not ours stays, and writing says so
                    (directory / stale).unlink(missing_ok=True)
        source.keep(directory, source.read(job.algorithm_name, algorithm))
        write_json(directory / "config.json", describe(job, *OPTIONS) | origin)
    barrier("the directory is there")
    compile_seconds = time.perf_counter() - started
    remember(name, compile_seconds)
    rounded = steps_taken(config, updates)
    extra = f" (rounded up to whole updates from {config.total_steps:,})" if rounded != config.total_steps else ""
    console.print(f"{rounded:,} steps{extra} in {updates:,} updates; traced and compiled in {compile_seconds:.1f} s")

    points = evaluation_points(updates, job.num_evaluations)
    metrics_log, evaluations_log = (directory / name if first() else os.devnull for name in LOGS)
    with open(metrics_log, "a") as metrics_file, open(evaluations_log, "a") as evaluations_file, Stop() as stop:
        logger = Logger(metrics_file, math.ceil(updates / ROWS), config, logged)

        def save():
            about = {"run": identity(job), "log": logger.saved(), "devices": job.devices}
            keep = [] if (top := best(evaluations)) is None else [top["update"]]
            checkpoint.save(checkpoints, done, kept(state), about, keep)

        save()  # a state that cannot be stored is known before it is trained
        last_checkpoint, size, alive, asked = time.perf_counter(), 1, True, 0
        with Display(console, rounded, steps_taken(config, done)) as display:
            while not asked:
                if (done in points or not alive) and all(row["update"] != done for row in evaluations):
                    save()  # the best checkpoint holds exactly what was evaluated
                    evaluations.append(evaluate_run(job, state, evaluate_key, job.eval_episodes, console))
                    print(json.dumps(evaluations[-1], allow_nan=False), file=evaluations_file, flush=True)
                    if job.render_every and len(evaluations) % job.render_every == 0:
                        render_episode(job, state, evaluate_key, evaluations[-1]["step"], console)
                if done >= updates or not alive:
                    break
                before = time.perf_counter()
                num = min(size, next(point for point in points if point > done) - done)
                state, metrics = step_updates(config, env, state, jnp.int32(done), jnp.int32(num))
                survived = int(state.num_updates) - done
                logger.add(done, {name: np.asarray(x)[:survived] for name, x in metrics.items()})
                done, alive = done + survived, survived == num
                display.show(steps_taken(config, done), logger.episode_return)
                now = time.perf_counter()
                size = max(1, min(length, int(num * CHUNK_SECONDS / max(now - before, 1e-9)), 8 * num))
                size, due, asked = most(size, now - last_checkpoint > job.checkpoint_seconds, stop.asked)
                if due:
                    save()
                    last_checkpoint = time.perf_counter()
        save()
        logger.flush(done)

    complete = (done >= updates or not alive) and any(row["update"] == done for row in evaluations)
    if first():
        if complete:
            write_json(directory / "evaluation.json", evaluations[-1])
        drawn = draw(directory, console)
    if not complete:
        console.print(
            f"interrupted after {steps_taken(config, done):,} of {rounded:,} steps; "
            f"everything is in {directory}, go on with --resume {directory}"
        )
        return 128 + asked
    if not alive:
        console.print(
            f"update {done + 1} turned the training state into NaN or infinity: it ends with the last finite one; "
            f"rlx why {directory} says what was first"
        )
    if (top := best(evaluations))["update"] != done:
        console.print(
            f"best evaluation: mean return {float(top['mean']):.1f} after {top['step']:,} steps; "
            f"rlx eval {directory} --best plays other episodes with it"
        )
    if first() and drawn:
        console.print(f"curve: {directory / 'curve.png'}")
    return 0 if alive else 1


class Stop:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into `asked`, its number; the second one has its usual effect.

    Python has signals in the main thread only: in another one nothing is ever asked.
    """

    def __enter__(self):
        self.asked, self.previous = 0, {}
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self.previous[number] = signal.signal(number, self._ask) or signal.SIG_DFL
        return self

    def _ask(self, number, frame):
        self.asked = number
        signal.signal(number, self.previous[number])

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _import_early(name: str) -> None:
    """Imports a module ahead of its use; where that fails, its use says why."""
    with suppress(Exception), importing_matplotlib():
        import_module(name)


def _check_unfinished(directory: Path, done: int, updates: int, evaluations: list[dict[str, Any]]) -> None:
    """Raises ValueError where nothing is left to do: not even to evaluate and to draw."""
    written = all((directory / name).exists() for name in ("evaluation.json", "curve.png"))
    if done > updates or (done == updates and written and any(row["update"] == done for row in evaluations)):
        raise ValueError(f"{directory} has done its {done} updates: raise --total-steps to go on")


def _warn_of_schedules(directory: Path, done: int, steps: int, console: Console) -> None:
    """Says so where a resumed run lasts for another number of steps than before."""
    before = read_config(directory)["steps"]
    if steps != before:
        console.print(
            f"{steps:,} steps instead of {before:,}: after {done:,} the run is {done / steps:.0%} done instead of "
            f"{done / before:.0%}, and what is scheduled over it, such as a learning rate that falls, jumps there"
        )
