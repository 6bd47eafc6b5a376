"""A run from the host: compiled chunks of updates, and logs, evaluations, checkpoints and pictures between them.

A run directory holds `config.json` (settings, versions, device), `metrics.jsonl` (a row a line, at most about 1000),
`evaluations.jsonl` (a row for each evaluation during training), `checkpoints/` (the whole State, see
rlx.run.checkpoint), `evaluation.json` (the last evaluation of training), `curve.png`, `source/` (copies of an algorithm
file of one's own and of a learned objective, see rlx.source), `evaluations/` (those that `rlx eval` was asked for), and
`episodes/` where pictures of episodes were asked for. A run can be killed at any moment. Files are written in an order
that keeps every prefix consistent, and resuming drops rows after the newest checkpoint.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from rlx import source
from rlx.algorithm import checksum, short_name
from rlx.algorithm_check import check_counters, check_metrics
from rlx.data.cloning import started_from
from rlx.devices.hosts import agree, barrier, first
from rlx.devices.sharding import num_blocks
from rlx.devices.spread import placed
from rlx.files import loose, read_config, read_rows, write_json
from rlx.hosted import host_of, is_hosted
from rlx.pytree import uncommitted
from rlx.replay import Replay, arranged, is_replay, with_replay, without_replay
from rlx.run.background import beside
from rlx.run.collecting import Collector, collecting
from rlx.run.evaluations import best, draw
from rlx.run.job import HOST_OPTIONS, OPTIONS, Job, describe, devices_of, identity, keys, resumptions
from rlx.run.known import Known, known
from rlx.run.learned_from import keywords_of
from rlx.run.log import NO_LOG
from rlx.run.render import check_output
from rlx.run.sinks import KINDS, Jsonl, LoggedRun, Sink
from rlx.run.storage import naming
from rlx.run.streams import importing_matplotlib
from rlx.run.timings import announcement, program_name, remember
from rlx.run.training import CHUNK_UPDATES, End, Start, on_a_thread, trained
from rlx.stopping import Stopping, arrays, stopping
from rlx.train import (
    MAX_STEPS,
    Current,
    advance,
    advance_until,
    check,
    here,
    now,
    play,
    state_shapes,
    steps_taken,
    total_updates,
)

T = TypeVar("T")
jitted = partial(jax.jit, static_argnames=("algorithm", "length"), donate_argnames="state")
chunk, chunk_until = jitted(advance), jitted(advance_until)


def execute(job: Job, console: Console, resume: bool = False, from_update: int | None = None) -> int:
    """Runs the job, or resumes what is in its directory: from the newest checkpoint, or that of `from_update`.

    Whoever calls owns the directory, see `rlx.run.storage.owned`. Ctrl-C, SIGTERM and SIGHUP end the run at the next
    border between chunks, with a checkpoint; a second one ends it at once.

    Returns the exit status: 0, 1 when training died of NaN, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Raises:
        Fault: where an environment on the host fails; the run is saved before.
        ValueError: for settings that do not fit the environment, or a checkpoint that does not fit them, before
            anything on disk has changed.
        Full: where the disk is full, or cannot be written for another reason.
    """
    if jax.process_count() > 1 and job.after is not None:
        raise ValueError("a hook is for runs of one process")
    if jax.process_count() > 1 and job.render_every:
        raise ValueError("--render-every is for runs of one process: rlx render draws episodes afterwards")
    with devices_of(job), naming(job.directory, lambda: _safe(job.directory)), collecting(job) as collector:
        return _execute(job, console, resume, from_update, collector)


def _safe(directory: Path) -> str:
    """The parts of a run that are safe on disk, in words."""
    from rlx.run import checkpoint

    newest = max(checkpoint.numbers(directory / "checkpoints"), default=None)
    if newest is None or not (directory / "config.json").exists():
        return f"nothing was saved yet: free some space, and begin again ({directory} may be removed)"
    logged = max((row["update"] for row in read_rows(directory / "metrics.jsonl")), default=0)
    return (
        f"the checkpoint of update {newest} is safe, and the log up to update {logged}: "
        f"free some space, and resume with --resume {directory}"
    )


def _execute(job: Job, console: Console, resume: bool, from_update: int | None, collector: Collector | None) -> int:
    started, updates = time.perf_counter(), total_updates(job.config)
    name = program_name(short_name(job.algorithm_name), job.env_name, job.config, job.devices)
    length = min(updates, CHUNK_UPDATES if collector is None else 1)
    rule = stopping(job.stop_at_return, job.patience, updates)
    kept = known(job, rule, length)
    again = kept.everything
    if again:  # what is traced asks for itself
        check(Current(job.algorithm), job.config, job.env)
    like = placed(kept.shapes(lambda: state_shapes(Current(job.algorithm), job.config, job.env)))
    check_counters(job.config, like)
    console.print(f"loading {name.rpartition(' ')[0]}: its programs are known here" if again else announcement(name))
    programs = _traced(job, like, collector, kept, length, rule)
    kept.traced(like)
    start = _restored(job, programs, console, from_update) if resume else Start(rule=programs.rule)
    if not job.render_every:  # which draws at once, and parts of a library are not to be imported by two at a time
        # Compiling and training leave the interpreter to others: they do not wait for this second.
        threading.Thread(target=_import_early, args=("rlx.plot",), daemon=True).start()
    init = on_a_thread(programs.init)
    step = programs.step.compile()
    start = _begun(job, programs, start, collector, init)

    # Everything that can fail early has succeeded: only from here on is anything written or deleted.
    barrier("everything is read")
    sinks = _written(job, start, resume, console) if first() else []
    barrier("the directory is there")
    compile_seconds = time.perf_counter() - started
    if not again:
        remember(name, compile_seconds)
    rounded = steps_taken(job.config, updates)
    made = "loaded" if again else "traced and compiled"
    extra = f" (rounded up to whole updates from {job.config.total_steps:,})" * (rounded != job.config.total_steps)
    console.print(f"{rounded:,} steps{extra} in {updates:,} updates; {made} in {compile_seconds:.1f} s")
    with contextlib.ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.close)
        evaluation = on_a_thread(programs.evaluation)  # compiled while training runs
        end = trained(job, step, programs.length, start, sinks, console, collector, evaluation)
        return _ended(job, end, console)


@dataclass(frozen=True)
class Programs:
    """The programs of a run, traced and not yet compiled."""

    like: Any  # shapes and shardings of the State
    shardings: Any  # of the State; None on one device
    step: Any  # of a chunk of at most `length` updates
    init: Any  # None where experience on the host has to be collected for it
    evaluation: Any  # of episodes; None where that is compiled when it is called
    length: int
    rule: Stopping | None  # that stops it, with nothing seen


def _traced(
    job: Job, like: Any, collector: Collector | None, kept: Known, length: int, rule: Stopping | None
) -> Programs:
    """Traces all that will run and is not known: every error of a user's code and settings comes here."""
    algorithm, config, env = Current(job.algorithm), job.config, job.env if collector is None else collector.like
    train_key, evaluate_key = keys(job.seed)
    shardings = None if num_blocks() == 1 else jax.tree.map(lambda x: x.sharding, like)
    everywhere = None if shardings is None else NamedSharding(jax.sharding.get_mesh(), P())
    if rule is None:
        step = chunk if shardings is None else jitted(advance, out_shardings=(shardings, everywhere))
    else:
        step = chunk_until
        if shardings is not None:
            step = jitted(advance_until, out_shardings=(shardings, everywhere, everywhere))
    states = (like,) if rule is None else (like, rule)

    def lower():
        lowered = step.lower(algorithm, config, env, *states, jnp.int32(0), jnp.int32(1), length, **keywords_of(job))
        check_metrics(lowered.out_info[1], 1)
        return lowered

    counts = (jnp.int32(0), jnp.int32(1))
    lowered = kept.program("step", lower, config, env, *states, *counts, **keywords_of(job))
    if job.render_every:
        check_output(env, job.directory / "episodes.gif")
    if collector is not None:
        return Programs(like, shardings, lowered, None, None, length, rule)
    begin = jax.jit(lambda *args: algorithm.init(*args), out_shardings=shardings)
    first_config, first_env = now(config), here(config, env)
    of_init = lambda: begin.lower(first_config, first_env, train_key)
    init = kept.program("init", of_init, first_config, first_env, train_key)
    of_play = lambda: play.lower(algorithm, config, env, like, evaluate_key, job.eval_episodes, True, MAX_STEPS)
    evaluation = kept.program("play", of_play, config, env, like, evaluate_key)
    return Programs(like, shardings, lowered, init, evaluation if shardings is None else None, length, rule)


def _restored(job: Job, programs: Programs, console: Console, from_update: int | None) -> Start:
    """What the directory of a run holds, up to the newest checkpoint or that of `from_update`."""
    from rlx.run import checkpoint

    checkpoints, updates = job.directory / "checkpoints", total_updates(job.config)
    state, done, about = None, 0, {}
    rows: dict[str, Any] = dict(
        zip(KINDS, agree([read_rows(job.directory / f"{kind}.jsonl") for kind in KINDS]), strict=True)
    )
    newest = agree(max(checkpoint.numbers(checkpoints), default=None))
    if rows["metrics"] or from_update is not None or newest is not None:
        wanted = newest if from_update is None else from_update
        state = checkpoint.restore(checkpoints, _stored(job, programs.like), wanted, {"run": identity(job)})
        done = int(state.num_updates)
        about = agree(checkpoint.read(checkpoints, done) if first() else {})
        num_before = about.get("devices", 1)
        if num_before != job.devices:
            console.print(
                f"{job.devices} devices instead of {num_before}: minibatches are of other elements than they were"
            )
            state = _regrouped(state, num_before, job.devices)
        rows["metrics"] = [row for row in rows["metrics"] if row["update"] <= done - about["log"]["count"]]
        rows["evaluations"] = [row for row in rows["evaluations"] if row["update"] <= done]
        if first():
            _check_unfinished(job.directory, done, updates, rows["evaluations"])
    console.print(f"resuming after {done} of {updates} updates")
    if is_hosted(job.env):
        console.print(f"{host_of(job.env).name} begins new episodes: it keeps none of those that were under way")
    _warn_of_schedules(job.directory, steps_taken(job.config, done), steps_taken(job.config, updates), console)
    saved = read_config(job.directory)
    origin = {name: value for name, value in saved.items() if name in ("start_from", "cloned")}
    if state is None and origin:
        raise ValueError(f"{job.directory} was stopped before its first checkpoint: remove it, and begin again")
    hooked = about.get("hook", Start().hooked)
    again = job.after is not None and hooked["pending"] is not None  # the hook is called once more
    changes = [change for change in saved.get("changes", []) if change["update"] <= done - again]
    rule = _ruled(job, programs.rule, about)
    return Start(state, done, about.get("log", NO_LOG), rows, origin, rule, changes, hooked)


def _ruled(job: Job, rule: Stopping | None, about: dict[str, Any]) -> Stopping | None:
    """The rule that stops a resumed run, with what it had seen where it is the same one."""
    if rule is None or (saved := about.get("rule")) is None:
        return rule
    before = arrays(Stopping(**{name: loose(value) for name, value in saved.items()}))
    if (before.at_return, before.patience) != (rule.at_return, rule.patience):
        return rule
    if before.stopped:
        raise ValueError(
            f"{job.directory} has stopped by its rule: give another --stop-at-return or --patience, or None for none"
        )
    return replace(before, every=rule.every)


def _regrouped(state: T, num_before: int, num_devices: int) -> T:
    """The state with the rows of its replay buffer arranged for another number of devices."""
    regroup = lambda x: arranged(replace(x, blocks=num_before), num_devices) if isinstance(x, Replay) else x
    regrouped = lambda state: jax.tree.map(regroup, state, is_leaf=is_replay)
    at = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(regrouped, out_shardings=at, donate_argnums=0)(state)


def _stored(job: Job, state: T) -> T:
    """What checkpoints keep of a state."""
    return state if job.checkpoint_replay else without_replay(state)


def _begun(
    job: Job, programs: Programs, start: Start, collector: Collector | None, compiled: Callable[[], Any] | None
) -> Start:
    """The start with a whole state: a fresh one, that of another run, or what a checkpoint left out."""
    key = keys(job.seed)[0]
    if compiled is not None:
        fresh = lambda: compiled()(now(job.config), here(job.config, job.env), key)
    else:
        assert collector is not None  # else init is compiled
        collector.open(start.done)
        init = jax.jit(lambda *args: job.algorithm.init(*args))
        fresh = lambda: init(now(job.config), collector.begin(job.config, key), key)
    if start.state is None:
        state = fresh()
        if job.learned is not None:
            state = jax.device_put(started_from(state, uncommitted(job.learned)), programs.shardings)
            start = replace(start, origin={"start_from": str(job.start_from)})
        return replace(start, state=state)
    return start if job.checkpoint_replay else replace(start, state=with_replay(start.state, fresh()))


def _written(job: Job, start: Start, resume: bool, console: Console) -> list[Sink]:
    """Writes `config.json` and the source, and drops the rows and checkpoints after the one that is resumed."""
    from rlx.run import checkpoint

    job.directory.mkdir(parents=True, exist_ok=True)
    if resume:
        checkpoint.set_aside(job.directory / "checkpoints", start.done)
        for stale in ("evaluation.json", "curve.png"):
            with suppress(IsADirectoryError, PermissionError):  # what is not ours stays, and writing says so
                (job.directory / stale).unlink(missing_ok=True)
    record = Jsonl(job.directory, start.rows)
    source.keep(job.directory, source.read(job.algorithm_name, job.algorithm))
    options = OPTIONS + HOST_OPTIONS * is_hosted(job.env)
    settings = describe(job, *options) | {"env_checksum": checksum(job.env), "log": list(job.sinks)} | start.origin
    if start.changes:
        settings["changes"] = start.changes
    if resume:
        settings["resumed"] = resumptions(read_config(job.directory), start.done)
    write_json(job.directory / "config.json", settings)
    if not job.sinks:
        return [record]
    run = LoggedRun(
        folder=job.directory,
        name=job.directory.resolve().name,
        settings=settings,
        rows={kind: list(rows) for kind, rows in start.rows.items()},  # the loop adds to its own
        checkpoints=job.directory / "checkpoints",
        pictures=job.directory,
        began=time.time() - max((row["seconds"] for row in start.rows["metrics"]), default=0.0),
    )
    return [record, *beside(job.sinks, [run], console.print, job.directory)]


def _ended(job: Job, end: End, console: Console) -> int:
    """Writes the last evaluation and the curve, says how it went, and returns the exit status."""
    updates, directory = total_updates(job.config), job.directory
    complete = (end.done >= updates or not end.alive or end.reason) and any(
        row["update"] == end.done for row in end.evaluations
    )
    if first():
        if complete:
            stopped = {"stopped": end.reason} if end.reason and end.done < updates else {}
            write_json(directory / "evaluation.json", end.evaluations[-1] | stopped)
        drawn = draw(directory, console)
    if end.fault is not None:
        console.print(
            f"{end.fault}: the checkpoint of update {end.done} is saved, and everything else is in {directory}; resume "
            f"with --resume {directory}"
        )
        raise end.fault
    if not complete:
        console.print(
            f"interrupted after {steps_taken(job.config, end.done):,} of {steps_taken(job.config, updates):,} steps; "
            f"everything is in {directory}, resume with --resume {directory}"
        )
        return 128 + end.signal
    if end.reason and end.done < updates:
        console.print(
            f"stopped after {steps_taken(job.config, end.done):,} of {steps_taken(job.config, updates):,} steps: "
            f"{end.reason}; resume with --resume {directory}"
        )
    if not end.alive:
        console.print(
            f"update {end.done + 1} turned the training state into NaN or infinity: it ends with the last finite one"
            + ("" if is_hosted(job.env) else f"; rlx why {directory} says what was first")
        )
    if (top := best(end.evaluations)) is not None and top["update"] != end.done:
        console.print(
            f"best evaluation: mean return {float(top['mean']):.1f} after {top['step']:,} steps; "
            f"rlx eval {directory} --best plays other episodes with it"
        )
    if first() and drawn:
        console.print(f"curve: {directory / 'curve.png'}")
    return 0 if end.alive else 1


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
