"""The loop of a run: chunks of updates, and what is done at the borders between them."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from rlx.devices.hosts import most
from rlx.files import evaluation_points, read_config, strict, write_json
from rlx.hosted import Fault
from rlx.replay import without_replay
from rlx.run.collecting import Collector
from rlx.run.evaluations import best, evaluate_run, render_episode
from rlx.run.job import Job, identity, keys
from rlx.run.learned_from import keywords_of
from rlx.run.log import NO_LOG, ROWS, Logger
from rlx.run.pause import Pause, given
from rlx.run.progress import Display
from rlx.run.sinks import KINDS, Sink
from rlx.run.stop import Stop
from rlx.stopping import Stopping, why
from rlx.train import steps_taken, total_updates

CHUNK_SECONDS = 0.5
CHUNK_UPDATES = 256


@dataclass(frozen=True)
class Start:
    """Where a run begins: at its first update, or where its directory stops."""

    state: Any = None
    done: int = 0  # updates
    logged: dict[str, Any] = field(default_factory=lambda: NO_LOG)  # the row of the log under way
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    origin: dict[str, Any] = field(default_factory=dict)  # of its networks
    rule: Stopping | None = None  # when it stops by itself, and what that has seen
    changes: list[dict[str, Any]] = field(default_factory=list)  # of settings by a hook, each with its update
    hooked: dict[str, Any] = field(default_factory=lambda: {"log": NO_LOG, "pending": None})  # what a hook waits for


@dataclass(frozen=True)
class End:
    """Where training stopped."""

    done: int  # updates
    alive: bool  # or died of NaN
    signal: int  # that stopped it, or 0
    reason: str  # why a rule or a hook stopped it; empty otherwise
    evaluations: list[dict[str, Any]]
    fault: Fault | None = None  # of an environment on the host


def on_a_thread(lowered: Any) -> Callable[[], Any] | None:
    """Compiles a program on a thread of its own, from now on; what is returned waits for it. None of None."""
    if lowered is None:
        return None
    pool = ThreadPoolExecutor(1)
    compiled = pool.submit(lowered.compile)
    pool.shutdown(wait=False)
    return compiled.result


class Rows:
    """A sink that keeps the last row."""

    def __init__(self):
        self.row: dict[str, Any] | None = None

    def write(self, kind: str, row: dict[str, Any]) -> None:
        self.row = row

    def close(self) -> None: ...


class Training:
    """A run under way: what it holds, and what is done with it between two chunks."""

    def __init__(
        self,
        job: Job,
        start: Start,
        sinks: list[Sink],
        console: Console,
        collector: Collector | None = None,
        evaluation: Callable[[], Any] | None = None,
    ):
        self.job, self.sinks, self.console, self.collector = job, sinks, console, collector
        self.evaluation = evaluation
        self.updates = total_updates(job.config)
        self.state, self.done, self.rule = start.state, start.done, start.rule
        self.alive, self.reason = True, ""
        self.changes, self.evaluations = start.changes, start.rows["evaluations"]
        self.logger = Logger(sinks, math.ceil(self.updates / ROWS), job.config, start.logged)
        self.last = Rows()
        self.last.row = start.hooked["pending"]
        self.hook_logger = Logger([self.last], job.every or 1, job.config, start.hooked["log"])
        self.config = given(job.config, self.changes)

    @property
    def over(self) -> bool:
        """Whether no update is to follow."""
        return self.done >= self.updates or not self.alive or bool(self.reason)

    def save(self) -> None:
        """A checkpoint, unless there is one of this update."""
        from rlx.run import checkpoint

        about = {"run": identity(self.job), "log": self.logger.saved(), "devices": self.job.devices}
        if self.rule is not None:
            about["rule"] = strict({name: np.asarray(x).item() for name, x in vars(self.rule).items()})
        if self.job.after is not None:
            about["hook"] = {"log": self.hook_logger.saved(), "pending": self.last.row}
        keep = [] if (top := best(self.evaluations)) is None else [top["update"]]
        stored = self.state if self.job.checkpoint_replay else without_replay(self.state)
        checkpoint.save(self.job.directory / "checkpoints", self.done, stored, about, keep)

    def look(self) -> None:
        """Evaluates, and draws an episode where it is its turn."""
        key, job = keys(self.job.seed)[1], replace(self.job, config=self.config)
        self.save()  # the best checkpoint holds exactly what was evaluated
        program = None if self.evaluation is None else self.evaluation()
        self.evaluations.append(evaluate_run(job, self.state, key, job.eval_episodes, self.console, program=program))
        for sink in self.sinks:
            sink.write("evaluations", self.evaluations[-1])
        if job.render_every and len(self.evaluations) % job.render_every == 0:
            render_episode(job, self.state, key, self.evaluations[-1]["step"], self.console)

    def advance(self, step: Any, num: int) -> None:
        """At most `num` updates by the compiled program `step`, and their rows of the log."""
        counts, env, data = (jnp.int32(self.done), jnp.int32(num)), self.job.env, keywords_of(self.job)
        if self.collector is not None:
            env = self.collector.experience(self.config, self.state)
        if self.rule is None:
            self.state, metrics = step(self.config, env, self.state, *counts, **data)
        else:
            self.state, metrics, self.rule = step(self.config, env, self.state, self.rule, *counts, **data)
        survived = int(self.state.num_updates) - self.done
        made = {name: np.asarray(x)[:survived] for name, x in metrics.items()}
        self.logger.add(self.done, made)
        if self.job.after is not None:
            self.hook_logger.add(self.done, made)
        self.done += survived
        if self.rule is not None and self.rule.stopped:
            self.reason = why(jax.tree.map(lambda x: np.asarray(x).item(), self.rule))
        self.alive = survived == num or bool(self.reason)

    def call(self) -> None:
        """Calls the hook where it is due, and does what it asks for.

        A checkpoint of this border that was written before has the row that the hook is called with, so that a resumed
        run calls it again: also where it has raised.
        """
        if self.job.after is None or (row := self.last.row) is None:
            return
        step = steps_taken(self.config, self.done)
        pause = Pause(self.done, step, self.state, row, list(self.evaluations), self.config)
        try:
            self.job.after(pause)
        except BaseException:
            self.save()
            raise
        self.last.row, self.reason = None, self.reason or pause.reason
        if pause.changes:
            self.config = pause.config
            self.changes.append(strict({"update": self.done, "settings": pause.changes}))
            saved = read_config(self.job.directory)
            write_json(self.job.directory / "config.json", saved | {"changes": self.changes})


def trained(
    job: Job,
    step: Any,
    length: int,
    start: Start,
    sinks: list[Sink],
    console: Console,
    collector: Collector | None = None,
    evaluation: Callable[[], Any] | None = None,
) -> End:
    """Trains from `start` in chunks of at most `length` updates, and evaluates, saves and logs between them.

    `collector` has the environments that step on the host; `evaluation` gives the compiled program of evaluations,
    where there is one.
    """
    run = Training(job, start, sinks, console, collector, evaluation)
    try:
        asked, fault = _trained(run, step, length, console), None
    except Fault as error:  # what was trained before it is whole
        asked, fault = 0, error
    run.save()
    run.logger.flush(run.done)
    return End(run.done, run.alive, asked, run.reason, run.evaluations, fault)


def _trained(run: Training, step: Any, length: int, console: Console) -> int:
    """Trains to the end or until something stops the run; returns the signal that did, or 0."""
    job, size, began = run.job, 1, time.perf_counter()
    points, limit = evaluation_points(run.updates, job.num_evaluations), job.max_seconds or math.inf
    with Stop() as stop:
        run.save()  # a state that cannot be stored is known before it is trained
        asked, saved_at = 0, time.perf_counter()
        with Display(console, steps_taken(job.config, run.updates), steps_taken(job.config, run.done)) as display:
            run.call()
            while not asked:
                if (run.done in points or run.over) and all(row["update"] != run.done for row in run.evaluations):
                    run.look()
                    run.call()
                if run.over:
                    break
                before = time.perf_counter()
                num = min(size, next(point for point in points if point > run.done) - run.done)
                if job.after is not None:
                    num = min(num, job.every - run.done % job.every)
                run.advance(step, num)
                display.show(steps_taken(job.config, run.done), run.logger.episode_return)
                now = time.perf_counter()
                size = max(1, min(length, int(num * CHUNK_SECONDS / max(now - before, 1e-9)), 8 * num))
                due, late = now - saved_at > job.checkpoint_seconds, now - began > limit
                size, due, late, asked = most(size, due, late, stop.asked)
                if not (run.done in points or run.over):  # there the hook is called with the evaluation
                    run.call()
                if late:
                    run.reason = run.reason or f"{job.max_seconds:g} seconds are over"
                if due:
                    run.save()
                    saved_at = time.perf_counter()
    return asked
