"""A run from the host: compiled chunks of updates, and logs, evaluations, checkpoints and pictures between them.

A run directory holds `config.json` (what ran, on what), `metrics.jsonl` (a row a line, at most about 1000),
`evaluations.jsonl` (a row for each evaluation during training), `checkpoints/` (the whole State, see rlx.checkpoint),
`evaluation.json` (the last evaluation of training), `curve.png`, `source/` (copies of an algorithm file of one's own
and of a learned objective, see rlx.source), `evaluations/` (those that `rlx eval` was asked for), and `episodes/` where
pictures of episodes were asked for. It can be killed at any moment: what is written later says less than what is
written before it, and resuming drops what the newest checkpoint does not know.
"""

import datetime
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from rlx import source
from rlx.algorithm_check import check_counters, check_metrics
from rlx.cloning import started_from
from rlx.env import Env, EnvState
from rlx.hosts import agree, barrier, fetch, first, most
from rlx.normalize import RewardScale
from rlx.progress import Display
from rlx.pytree import is_static, uncommitted
from rlx.render import check_output, record, write
from rlx.replay import Replay, arranged, is_replay, with_replay, without_replay
from rlx.sharding import AXIS, mesh, num_blocks
from rlx.storage import naming
from rlx.streams import importing_matplotlib
from rlx.timings import announcement, program_name, remember
from rlx.train import (
    MAX_STEPS,
    Current,
    Episodes,
    advance,
    evaluate,
    play,
    state_bytes,
    state_shapes,
    steps_taken,
    total_updates,
)

T = TypeVar("T")

ROWS = 1000
CHUNK_SECONDS = 0.5
CHUNK_UPDATES = 256
CHECKPOINT_SECONDS = 60.0
OPTIONS = ("num_evaluations", "eval_episodes", "checkpoint_replay", "devices")
NEEDED = (
    "algorithm",
    "env",
    "env_options",
    "env_params",
    "seed",
    "eval_episodes",
    "config",
    "preset",
    "updates",
    "steps",
)
LOGS = ("metrics.jsonl", "evaluations.jsonl")
NO_LOG = {"seconds": 0.0, "count": 0, "sums": {}}
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "chex", "numpy", "gymnax", "brax", "mujoco", "mujoco-mjx")


@dataclass(frozen=True)
class Job:
    """What to run and where: everything that `config.json` needs to say."""

    algorithm: ModuleType
    algorithm_name: str  # a module's name, or the path of a file
    config: Any
    env: Env
    env_name: str
    env_options: dict[str, Any]
    seed: int
    directory: Path
    env_params: dict[str, Any] = field(default_factory=dict)  # what `env` has other than the default parameters
    preset: dict[str, Any] = field(default_factory=dict)
    num_evaluations: int = 1
    eval_episodes: int = 32
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    checkpoint_replay: bool = True
    render_every: int = 0  # draw an episode at every so many evaluations; 0 for never
    devices: int = 1  # that the environments are spread over
    start_from: Path | None = None  # the run whose last state is `learned`
    learned: Any = None  # a State to begin with the networks of


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Independent keys of a run for training and for evaluation."""
    train_key, evaluate_key = jax.random.split(jax.random.key(seed))
    return train_key, evaluate_key


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

    Whoever calls owns the directory, see `rlx.storage.owned`. Ctrl-C, SIGTERM and SIGHUP end the run at the next border
    between chunks, with a checkpoint; a second one ends it at once.

    Returns the exit status: 0, 1 when training died of NaN, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Raises:
        ValueError: for settings that do not fit the environment, or a checkpoint that does not fit them, before
            anything on disk has changed.
        Full: where the disk is full, or cannot be written for another reason.
    """
    if jax.process_count() > 1 and job.render_every:
        raise ValueError("--render-every is for runs of one process: rlx render draws episodes afterwards")
    with _devices(job), naming(job.directory, lambda: _safe(job.directory)):
        return _execute(job, console, resume, from_update)


def _safe(directory: Path) -> str:
    """What of a run is on disk, whatever happens next."""
    from rlx import checkpoint

    newest = max(checkpoint.numbers(directory / "checkpoints"), default=None)
    if newest is None or not (directory / "config.json").exists():
        return f"nothing was saved yet: free some space, and begin again ({directory} may be removed)"
    logged = max((row["update"] for row in read_rows(directory / "metrics.jsonl")), default=0)
    return (
        f"the checkpoint of update {newest} is safe, and the log up to update {logged}: "
        f"free some space, and go on with --resume {directory}"
    )


def _devices(job: Job) -> Any:
    """The context of a job's devices."""
    devices = jax.devices()
    if not 1 <= job.devices <= len(devices):
        raise ValueError(
            f"--devices {job.devices}: there are {len(devices)}; give at most that many, which may be others than the "
            "run had before"
        )
    return jax.set_mesh(mesh(devices[: job.devices])) if job.devices > 1 else nullcontext()


def _execute(job: Job, console: Console, resume: bool, from_update: int | None) -> int:
    config, env, algorithm, directory = job.config, job.env, Current(job.algorithm), job.directory
    train_key, evaluate_key = keys(job.seed)
    updates, started = total_updates(config), time.perf_counter()
    name = program_name(short_name(job.algorithm_name), job.env_name, config, job.devices)
    console.print(announcement(name))
    like = placed(state_shapes(algorithm, config, env))
    check_counters(config, like)
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

    from rlx import checkpoint

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
                        _render(job, state, evaluate_key, evaluations[-1]["step"], console)
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


def plan(job: Job) -> str:
    """What would run and how large its training state is, in words; nothing of it is allocated."""
    updates = total_updates(job.config)
    with _devices(job):
        sizes = state_bytes(job.algorithm, job.config, job.env)
    replay = sizes.get("replay", 0)
    parts = ", ".join(f"{name} {_mebibytes(size)}" for name, size in sizes.items() if size >= sum(sizes.values()) / 100)
    lines = [
        f"{steps_taken(job.config, updates):,} steps in {updates:,} updates",
        f"training state: {_mebibytes(sum(sizes.values()))} ({parts})"
        + (f", environments and replay over {job.devices} devices" if job.devices > 1 else ""),
        f"checkpoint: {_mebibytes(sum(sizes.values()) - (0 if job.checkpoint_replay else replay))}",
    ]
    if replay and job.checkpoint_replay:
        without = _mebibytes(sum(sizes.values()) - replay)
        lines[-1] += f"; {without} with --no-checkpoint-replay, and then a resumed run starts with a new buffer"
    return "\n".join(lines)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def evaluation_points(num_updates: int, num_evaluations: int) -> list[int]:
    """After which updates to evaluate: `num_evaluations` of them, evenly spread, the last one at the end."""
    return sorted({-(-num_updates * i // num_evaluations) for i in range(1, num_evaluations + 1)})


def evaluate_run(
    job: Job, state: Any, key: jax.Array, num_episodes: int, console: Console, deterministic: bool = True
) -> dict[str, Any]:
    """Evaluates on whole episodes and prints the result. Returns it as strict JSON."""
    episodes = fetch(evaluate(job.algorithm, job.config, job.env, state, key, num_episodes, deterministic))
    result = evaluation(episodes, int(state.num_updates), job.config, deterministic)
    console.print(
        f"evaluation after {result['step']:,} steps: mean return {float(result['mean']):.1f}, "
        f"standard deviation {float(result['std']):.1f}, {num_episodes} episodes"
    )
    if result["diverged"]:
        console.print(
            f"{result['diverged']} episodes ended in an observation or a reward that is not finite and count in no mean"
        )
    if result["unfinished"]:
        console.print(
            f"{result['unfinished']} episodes did not end within the evaluation's step limit and count in part"
        )
    return result


def _render(job: Job, state: Any, key: jax.Array, step: int, console: Console) -> None:
    """Draws an episode into the run directory; training goes on where that fails, as without a display."""
    path = job.directory / "episodes" / f"{step}.gif"
    try:
        write(job.env, record(job.algorithm, job.config, job.env, state, key)[0], path)
    except Exception as error:  # whatever a renderer raises, a picture is not worth a run
        console.print(f"no picture of an episode: {error}")
    else:
        console.print(f"an episode: {path}")


def evaluation(episodes: Episodes, num_updates: int, config: Any, deterministic: bool = True) -> dict[str, Any]:
    """What is kept of an evaluation after `num_updates` updates, as strict JSON.

    Episodes that diverged have no return: they are counted, and mean and deviation are of the others, NaN without any.
    """
    diverged = np.asarray(episodes.diverged)
    returns = np.where(diverged, np.nan, np.asarray(episodes.returns, np.float64))
    whole = returns[~diverged]
    found = {
        "mean": float(whole.mean()) if len(whole) else math.nan,
        "std": float(whole.std()) if len(whole) and np.isfinite(whole).all() else math.nan,
        "num_episodes": len(returns),
        "mean_length": float(np.mean(episodes.lengths)),
        "unfinished": int((~np.asarray(episodes.finished)).sum()),
        "diverged": int(diverged.sum()),
        "deterministic": deterministic,
        "update": num_updates,
        "step": steps_taken(config, num_updates),
        "returns": returns.tolist(),
    }
    return strict(found)


def best(evaluations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the highest finite mean return, of equal ones the last; None where there is none at all."""
    rank = lambda row: (mean if math.isfinite(mean := float(row["mean"])) else -math.inf, row["update"])
    return max(evaluations, key=rank, default=None)


def identity(job: Job) -> dict[str, Any]:
    """What a run may not change when it goes on, as strict JSON: everything but how long it lasts."""
    values = {
        "algorithm": short_name(job.algorithm_name),
        "env": job.env_name,
        "env_options": job.env_options,
        "env_params": job.env_params,
        "seed": job.seed,
        "config": {name: value for name, value in asdict(job.config).items() if name != "total_steps"},
    }
    values |= learned(job.algorithm)
    return json.loads(json.dumps(strict(values)))


def learned(algorithm: ModuleType) -> dict[str, int]:
    """A checksum of the algorithm's objective, where that is of a file, which may be written again; else nothing."""
    return {"objective": checksum(algorithm.learned)} if hasattr(algorithm, "learned") else {}


def checksum(tree: Any) -> int:
    """CRC-32 of all numbers of a pytree."""
    return zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)))


def short_name(algorithm_name: str) -> str:
    """`ppo` for `rlx.algos.ppo` and for `/somewhere/ppo.py`; `ppo+SPO` with another objective, by its name or file."""
    base, _, objective = algorithm_name.rpartition("+")
    if objective.endswith(".npz"):
        return f"{short_name(base)}+{Path(objective).stem}"
    return re.sub(r"\.py(?=\+|$)", "", Path(algorithm_name.removeprefix("rlx.algos.")).name)


def read_config(directory: Path, file: str = "config.json") -> dict[str, Any]:
    """The `config.json` of a run directory, or the `sweep.json` of a sweep directory.

    Raises:
        ValueError: when there is none, or it cannot be read.
    """
    path = directory / file
    if not path.exists():
        kind, other = ("run", "sweep.json") if file == "config.json" else ("sweep", "config.json")
        hint = "it is a run" if kind == "sweep" else f"it is a sweep, whose best lane is {directory / 'best'}; "
        hint += f"rlx export {directory} LANE --out RUN writes another" if kind == "run" else ""
        hint = (
            hint if (directory / other).exists() else f"it has no {file}" if directory.exists() else "it is not there"
        )
        raise ValueError(f"{directory} is not a {kind} directory: {hint}")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if missing := [name for name in NEEDED if name not in found]:
        raise ValueError(f"{path} has no {', '.join(missing)}: another version of rlx wrote it, or it was changed")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where there is no file. A last line that a crash cut short is left out.

    Raises:
        ValueError: when another line cannot be read.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path} is damaged in line {number}: {error}") from error
    return found


def write_json(path: Path, value: Any) -> None:
    """Replaces the file in one step by `value` as strict JSON, see `strict`."""
    _replace(path, json.dumps(strict(value), indent=2, allow_nan=False) + "\n")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces a JSONL file in one step."""
    _replace(path, "".join(json.dumps(strict(row), allow_nan=False) + "\n" for row in rows))


def strict(value: Any) -> Any:
    """The value with the numbers that JSON does not have as `"inf"`, `"-inf"` and `"nan"`; `float` reads these."""
    if isinstance(value, dict):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def loose(value: Any) -> Any:
    """What a setting was before JSON: tuples for lists, numbers for what `strict` wrote as text."""
    if isinstance(value, list):
        return tuple(loose(item) for item in value)
    return float(value) if value in ("inf", "-inf", "nan") else value


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


class Logger:
    """Averages the metrics of `every` updates into a row of `file`. Episode statistics are weighted by their episodes.

    Metrics are those of a run, `[num]`, or of several, `[L, num]`, whose rows have lists in place of numbers.
    `saved()` is what a checkpoint has to keep of it, so that a resumed run writes the rows of one never stopped.
    """

    def __init__(self, file, every: int, config: Any, saved: dict[str, Any] = NO_LOG):
        self.file, self.every, self.config = file, every, config
        self.start, self.count = time.perf_counter() - saved["seconds"], saved["count"]
        self.sums = {name: np.array(total, np.float64) for name, total in saved["sums"].items()}
        self.episode_return = None  # the latest

    def saved(self) -> dict[str, Any]:
        """The row under way, as strict JSON."""
        sums = {name: strict(total.tolist()) for name, total in self.sums.items()}
        return {"seconds": self._seconds(), "count": self.count, "sums": sums}

    def add(self, done: int, metrics: dict[str, np.ndarray], extra: dict[str, Any] | None = None) -> None:
        """Takes the metrics of the updates after the first `done`; `extra` goes into their rows as it is."""
        episodes = metrics["num_episodes"]
        values = {}
        for name, x in metrics.items():
            of_episodes = name.startswith("episode_")  # the statistic of no episodes is NaN
            values[name] = np.where(episodes > 0, episodes * x, 0.0) if of_episodes else np.asarray(x, np.float64)
        for i in range(episodes.shape[-1]):
            for name, x in values.items():  # one after another: the sums do not depend on where chunks are cut
                self.sums[name] = self.sums.get(name, 0.0) + x[..., i]
            self.count += 1
            if (done + i + 1) % self.every == 0:
                self.flush(done + i + 1, extra)

    def flush(self, num_updates: int, extra: dict[str, Any] | None = None) -> None:
        """Writes what is pending as one row, after `num_updates` updates."""
        if not self.count:
            return
        row = {"update": num_updates, "step": steps_taken(self.config, num_updates), "seconds": self._seconds()}
        episodes = self.sums["num_episodes"]
        for name, total in self.sums.items():
            if name in ("num_episodes", "num_diverged"):
                row[name] = total.astype(int).tolist()
            else:
                with np.errstate(divide="ignore", invalid="ignore"):
                    row[name] = _numbers((total / (episodes if name.startswith("episode_") else self.count)).tolist())
        self.episode_return = _latest(row["episode_return"], self.episode_return)
        self.file.write(json.dumps(row | (extra or {})) + "\n")
        self.file.flush()
        self.count, self.sums = 0, {}

    def _seconds(self) -> float:
        return round(time.perf_counter() - self.start, 3)


def _numbers(x: float | list[float]) -> float | list[float | None] | None:
    """Numbers to six digits. JSON has no NaN or infinity: null."""
    if isinstance(x, list):
        return [_numbers(item) for item in x]
    return float(f"{x:.6g}") if math.isfinite(x) else None


def _latest(new: Any, old: Any) -> Any:
    """`new` where it is known, else `old`."""
    if isinstance(new, list):
        return [_latest(*pair) for pair in zip(new, old or [None] * len(new), strict=True)]
    return old if new is None else new


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


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


def draw(directory: Path, console: Console) -> bool:
    """Draws `curve.png` of a run directory, or says why it cannot be; returns whether it is there."""
    temporary = directory / "curve.tmp.png"
    try:
        with importing_matplotlib():
            from rlx.plot import curve

        curve([directory], temporary)
        temporary.replace(directory / "curve.png")
    except Exception as error:  # whatever a plotting library raises, a picture is not worth a run
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        console.print(f"no curve.png, everything else is in {directory}: {' '.join(str(error).split())}")
        return False
    return True


def describe(job: Any, *names: str) -> dict[str, Any]:
    """What a run or a sweep is, on what it ran, and those of the job's fields that are named."""
    return {
        "algorithm": job.algorithm_name,
        "source": source.hashes(job.algorithm_name, source.read(job.algorithm_name, job.algorithm)),
        **learned(job.algorithm),
        "env": job.env_name,
        "env_options": job.env_options,
        "env_params": job.env_params,
        "seed": job.seed,
        **{name: getattr(job, name) for name in names},
        "config": asdict(job.config),
        "static": [f for f, spec in type(job.config).__dataclass_fields__.items() if is_static(spec)],
        "preset": job.preset,
        "updates": total_updates(job.config),
        "steps": steps_taken(job.config, total_updates(job.config)),
        **provenance(),
    }


def provenance() -> dict[str, Any]:
    """When something was begun, by which command, with which versions and on what."""
    device = jax.devices()[0]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The git commit of this source tree, with a mark where it has changes; None outside of one."""
    try:
        git = ["git", "-C", str(Path(__file__).resolve().parent)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if dirty.strip() else "")
