"""A run from the host: compiled chunks of updates, and logs, checkpoints and pictures between them.

A run directory holds `config.json` (what ran, on what), `metrics.jsonl` (a row a line, at most about 1000),
`checkpoints/` (the whole State), `evaluation.json` and `curve.png`.
"""

import datetime
import json
import math
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from rlx.env import Env
from rlx.progress import Display
from rlx.pytree import is_static
from rlx.train import advance, evaluate, total_updates

ROWS = 1000
CHUNK_SECONDS = 0.5
CHUNK_UPDATES = 256
CHECKPOINT_SECONDS = 60.0
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
    preset: dict[str, Any] = field(default_factory=dict)


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Independent keys of a run for training and for evaluation."""
    train_key, evaluate_key = jax.random.split(jax.random.key(seed))
    return train_key, evaluate_key


chunk = jax.jit(advance, static_argnames=("algorithm", "length"), donate_argnames="state")


def execute(job: Job, console: Console, resume: bool = False, num_eval_episodes: int = 32) -> int:
    """Runs or resumes the job. Returns the exit status: 0, 130 when it was interrupted, or 1 when it died of NaN.

    Ctrl-C (and SIGTERM) end the run at the next border between chunks, with a checkpoint; a second one ends it at once.

    Raises:
        ValueError: for settings that do not fit the environment, before anything is written.
    """
    config, env, algorithm = job.config, job.env, job.algorithm
    train_key, evaluate_key = keys(job.seed)
    updates, started = total_updates(config), time.perf_counter()
    init = jax.jit(lambda config, env, key: algorithm.init(config, env, key)).lower(config, env, train_key)
    like = jax.eval_shape(algorithm.init, config, env, train_key)
    length = min(updates, CHUNK_UPDATES)
    lowered = chunk.lower(
        algorithm, config, env, like, jnp.int32(0), jnp.int32(1), length
    )  # every error of tracing comes here

    checkpoints = job.directory / "checkpoints"
    if resume:
        from rlx.checkpoint import restore

        state = restore(checkpoints, like)
        done = int(state.num_updates)
        if done >= updates:
            raise ValueError(f"{job.directory} has done its {updates} updates: raise --total-steps to go on")
        seconds = _truncate(job.directory / "metrics.jsonl", done)
        (job.directory / "evaluation.json").unlink(missing_ok=True)
        console.print(f"resuming after {done} of {updates} updates")
    else:
        state, done, seconds = init.compile()(config, env, train_key), 0, 0.0
    job.directory.mkdir(parents=True, exist_ok=True)
    _write_json(job.directory / "config.json", _describe(job))
    if not resume:
        _save(checkpoints, 0, state)  # a state that cannot be stored is known before it is trained
    step_updates = lowered.compile()
    compile_seconds = time.perf_counter() - started
    rounded = updates * config.steps_per_update
    extra = f" (rounded up to whole updates from {config.total_steps:,})" if rounded != config.total_steps else ""
    console.print(f"{rounded:,} steps{extra} in {updates:,} updates; traced and compiled in {compile_seconds:.1f} s")

    with open(job.directory / "metrics.jsonl", "a") as log, _Stop() as stop:
        logger = _Logger(log, every=math.ceil(updates / ROWS), config=config, seconds=seconds)
        last_checkpoint, size, alive = time.perf_counter(), 1, True
        with Display(console, rounded, done * config.steps_per_update) as display:
            while done < updates and alive and not stop.asked:
                before = time.perf_counter()
                num = min(size, updates - done)
                state, metrics = step_updates(config, env, state, jnp.int32(done), jnp.int32(num))
                logger.add(done, jax.tree.map(lambda x, n=num: np.asarray(x)[:n], metrics))
                done += num
                alive = int(state.num_updates) == done
                display.show(done * config.steps_per_update, logger.episode_return)
                now = time.perf_counter()
                size = max(1, min(length, int(num * CHUNK_SECONDS / (now - before)), 8 * num))
                if now - last_checkpoint > CHECKPOINT_SECONDS and alive and done < updates:
                    logger.flush(done)  # the log has all that the checkpoint has
                    _save(checkpoints, done, state)
                    last_checkpoint = time.perf_counter()
        done = int(state.num_updates)
        logger.flush(done)
        _save(checkpoints, done, state)

    from rlx.plot import curve

    if stop.asked and done < updates:
        curve([job.directory], job.directory / "curve.png")
        console.print(
            f"interrupted after {done * config.steps_per_update:,} of {rounded:,} steps; "
            f"everything is in {job.directory}, go on with --resume {job.directory}"
        )
        return 130
    if not alive:
        console.print(
            f"update {done + 1} turned the training state into NaN or infinity: it ends with the last finite one; "
            "look at metrics.jsonl, and lower the learning rate"
        )
    evaluate_run(job, state, evaluate_key, num_eval_episodes, console)
    curve([job.directory], job.directory / "curve.png")
    console.print(f"curve: {job.directory / 'curve.png'}")
    return 0 if alive else 1


def evaluate_run(
    job: Job, state: Any, key: jax.Array, num_episodes: int, console: Console, deterministic: bool = True
) -> dict[str, Any]:
    """Evaluates on whole episodes, prints the result and writes it to `evaluation.json`."""
    episodes = evaluate(job.algorithm, job.config, job.env, state, key, num_episodes, deterministic)
    returns = np.asarray(episodes.returns, np.float64)
    result = {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "num_episodes": num_episodes,
        "mean_length": float(np.mean(episodes.lengths)),
        "unfinished": int((~np.asarray(episodes.finished)).sum()),
        "deterministic": deterministic,
        "update": int(state.num_updates),
        "step": int(state.num_updates) * job.config.steps_per_update,
        "returns": returns.tolist(),
    }
    _write_json(job.directory / "evaluation.json", result)
    console.print(
        f"evaluation: mean return {result['mean']:.1f}, standard deviation {result['std']:.1f}, {num_episodes} episodes"
    )
    if result["unfinished"]:
        console.print(
            f"{result['unfinished']} episodes did not end within the evaluation's step limit and count in part"
        )
    return result


def short_name(algorithm_name: str) -> str:
    """`ppo` for `rlx.algos.ppo` and for `/somewhere/ppo.py`."""
    return Path(algorithm_name.removeprefix("rlx.algos.")).stem


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a run directory.

    Raises:
        ValueError: when there is none.
    """
    path = directory / "config.json"
    if not path.exists():
        raise ValueError(f"{directory} is not a run directory: it has no config.json")
    return json.loads(path.read_text())


class _Stop:
    """Turns the first Ctrl-C or SIGTERM into `asked`; the second one has its usual effect."""

    def __enter__(self):
        self.asked, self.previous = False, {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, frame):
        self.asked = True
        signal.signal(number, self.previous[number])

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class _Logger:
    """Averages the metrics of `every` updates into a row. Episode statistics are weighted by their episodes."""

    def __init__(self, file, every: int, config: Any, seconds: float):
        self.file, self.every, self.config = file, every, config
        self.start, self.pending, self.episode_return = time.perf_counter() - seconds, [], None

    def add(self, done: int, metrics: Any) -> None:
        """Takes the metrics of the updates after the first `done`, leaves `[num]`."""
        names = list(metrics)
        for i in range(len(metrics[names[0]])):
            self.pending.append({name: metrics[name][i] for name in names})
            if (done + i + 1) % self.every == 0:
                self.flush(done + i + 1)

    def flush(self, num_updates: int) -> None:
        """Writes what is pending as one row, after `num_updates` updates."""
        if not self.pending:
            return
        row = {
            "update": num_updates,
            "step": num_updates * self.config.steps_per_update,
            "seconds": round(time.perf_counter() - self.start, 3),
        }
        episodes = np.array([m["num_episodes"] for m in self.pending], np.float64)
        for name in self.pending[0]:
            values = np.array([m[name] for m in self.pending], np.float64)
            if name == "num_episodes":
                row[name] = int(episodes.sum())
            elif name.startswith("episode_"):
                known = episodes > 0
                row[name] = _number((values[known] * episodes[known]).sum() / episodes.sum()) if known.any() else None
            else:
                row[name] = _number(values.mean())
        self.episode_return = (
            row.get("episode_return") if row.get("episode_return") is not None else self.episode_return
        )
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self.pending = []


def _number(x: float) -> float | None:
    """JSON has no NaN or infinity: null."""
    return float(f"{x:.6g}") if math.isfinite(x) else None


def _save(directory: Path, num_updates: int, state: Any) -> None:
    from rlx.checkpoint import save

    save(directory, num_updates, state)


def _truncate(log: Path, num_updates: int) -> float:
    """Drops rows that a checkpoint does not have. Returns the seconds of the last row kept."""
    from rlx.plot import rows

    if not log.exists():  # interrupted before the first row
        return 0.0
    kept = [row for row in rows(log.parent) if row["update"] <= num_updates]
    temporary = log.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    temporary.replace(log)
    return kept[-1]["seconds"] if kept else 0.0


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def _describe(job: Job) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "algorithm": job.algorithm_name,
        "env": job.env_name,
        "env_options": job.env_options,
        "seed": job.seed,
        "config": asdict(job.config),
        "static": [f for f, spec in type(job.config).__dataclass_fields__.items() if is_static(spec)],
        "preset": job.preset,
        "steps": total_updates(job.config) * job.config.steps_per_update,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The git commit of this source tree, with a mark where it has changes; None outside of one."""
    try:
        git = ["git", "-C", str(Path(__file__).resolve().parent)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if dirty.strip() else "")
