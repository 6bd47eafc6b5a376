"""What a run is: its job, its keys, and all that `config.json` says of it."""

import datetime
import json
import os
import platform
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from rlx import source
from rlx.algorithm import learned, short_name
from rlx.devices import compiler
from rlx.devices.sharding import mesh
from rlx.env import Env
from rlx.files import strict
from rlx.pytree import is_static
from rlx.run.pause import Hook
from rlx.run.watching import LIMIT
from rlx.train import state_bytes, steps_taken, total_updates

CHECKPOINT_SECONDS = 60.0
OPTIONS = ("num_evaluations", "eval_episodes", "checkpoint_replay", "devices", "stop_at_return", "patience")
HOST_OPTIONS = ("host_timeout", "overlap")  # of runs on the host
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "chex", "numpy", "gymnax", "brax", "mujoco", "mujoco-mjx")
PACKAGES += ("playground",)
MODES = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")  # of JAX, that change what is drawn
PROVENANCE = ("started", "command", "python", "versions", "device", "processor", "matmul_precision", "modes")
PROVENANCE += ("xla_flags", "compiler", "rlx_source", "commit")


@dataclass(frozen=True)
class Job:
    """What to run and where: everything that `config.json` needs to say."""

    algorithm: ModuleType
    algorithm_name: str  # a module's name, or the path of a file
    config: Any
    env: Env
    env_name: str | None  # None where a sweep in Python was given an environment without one
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
    sinks: tuple[str, ...] = ()  # of rlx.run.sinks, that get the rows of the log as well
    stop_at_return: float | None = None  # of the episodes of a look at training, see rlx.stopping
    patience: int | None = None  # looks without a better one
    max_seconds: float | None = None  # of this start, after which it stops
    after: Hook | None = None  # is called between chunks
    every: int = 1  # updates between two of its calls
    host_timeout: float = LIMIT  # seconds that a call of an environment on the host may take
    overlap: bool = False  # collect on the host while the device learns
    data: Any = None  # columns to learn from, see rlx.data.steps
    data_about: dict[str, Any] | None = None  # what `config.json` says of them


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Independent keys of a run for training and for evaluation."""
    train_key, evaluate_key = jax.random.split(jax.random.key(seed))
    return train_key, evaluate_key


def devices_of(job: Job) -> Any:
    """The context of a job's devices."""
    devices = jax.devices()
    if not 1 <= job.devices <= len(devices):
        raise ValueError(
            f"--devices {job.devices}: there are {len(devices)}; give at most that many, which may be others than the "
            "run had before"
        )
    return jax.set_mesh(mesh(devices[: job.devices])) if job.devices > 1 else nullcontext()


def plan(job: Job) -> str:
    """What would run and how large its training state is, in words; nothing of it is allocated."""
    updates = total_updates(job.config)
    with devices_of(job):
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


def identity(job: Job) -> dict[str, Any]:
    """The settings that a resumed run may not change, as strict JSON: everything but how long it lasts."""
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


def describe(job: Any, *names: str) -> dict[str, Any]:
    """The content of `config.json` and `sweep.json`: the settings, the versions, the device, and the named fields of
    the job."""
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
        **({} if job.data_about is None else {"data": job.data_about}),
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
        "processor": _processor(),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
        "modes": {name: getattr(jax.config, name) for name in MODES},
        "xla_flags": _xla_flags(),
        "compiler": compiler.active(),
        "rlx_source": source.package(),
        "commit": _commit(),
    }


def resumptions(before: dict[str, Any], done: int) -> list[dict[str, Any]]:
    """What `config.json` keeps of how a run was made before it is resumed after `done` updates: an entry for each time.

    An entry has `after`, the updates that were made, and what was so until then: `total_steps`, `updates`, `devices`,
    `source`, and what `provenance` says.
    """
    names = ("updates", "devices", "source", *PROVENANCE)
    own = {"after": done, "total_steps": before["config"].get("total_steps")} | {
        name: before[name] for name in names if name in before
    }
    return [entry for entry in before.get("resumed", []) if entry["after"] <= done] + [own]


def _xla_flags() -> list[str]:
    """The flags of XLA that are set besides those that rlx itself sets."""
    own = (compiler.FLAG, compiler.WAIT, "--xla_force_host_platform_device_count")
    return [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(own)]


def _processor() -> str | None:
    """The name of the CPU's model, where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


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
