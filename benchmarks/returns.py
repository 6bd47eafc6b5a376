"""The learning table: what the shipped settings reach, over many seeds.

    python benchmarks/returns.py
    python benchmarks/returns.py --task CartPole-v1 --force

All seeds of a task train in one program, as lanes that are spread over the devices; on a CPU there is one virtual
device a core. Then every seed plays whole episodes, deterministically. A task whose result is there is skipped.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from provenance import RESULTS, ROOT, commit, machine, versions
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import rlx
from rlx.presets import preset, settings
from rlx.report import interval, iqm

PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "gymnax", "brax", "mujoco-mjx", "numpy", "scipy")


@dataclass(frozen=True)
class Task:
    env: str  # the full name, by which its settings are found
    total_steps: int
    options: dict[str, Any] = field(default_factory=dict)  # of the environment
    at_least: float | None = None  # the return to reach, by the mean over seeds
    share: float | None = None  # or by this share of the seeds


TASKS = {
    "CartPole-v1": Task("gymnax/CartPole-v1", 500_000, at_least=475, share=0.9),
    "Acrobot-v1": Task("gymnax/Acrobot-v1", 500_000, at_least=-90),
    "Pendulum-v1": Task("gymnax/Pendulum-v1", 1_000_000, at_least=-200),
    "inverted_pendulum": Task("brax/inverted_pendulum", 1_000_000, {"backend": "mjx"}, at_least=950, share=0.9),
    "Breakout-MinAtar": Task("gymnax/Breakout-MinAtar", 1_000_000, at_least=15),
    "hopper": Task("brax/hopper", 2_000_000, {"backend": "spring"}),
}
# Of algorithms that keep what they have seen, and need less of it.
OFF_POLICY = {
    "sac": {
        "Pendulum-v1": Task("gymnax/Pendulum-v1", 20_000, at_least=-170, share=0.9),
        "MountainCarContinuous-v0": Task("gymnax/MountainCarContinuous-v0", 50_000, at_least=90, share=0.9),
        "inverted_pendulum": Task("brax/inverted_pendulum", 50_000, {"backend": "mjx"}, at_least=950, share=0.9),
        "hopper": Task("brax/hopper", 200_000, {"backend": "spring"}),
        "halfcheetah": Task("brax/halfcheetah", 200_000, {"backend": "spring"}),
    },
    "sac_discrete": {
        "CartPole-v1": Task("gymnax/CartPole-v1", 50_000, at_least=475, share=0.9),
        "Acrobot-v1": Task("gymnax/Acrobot-v1", 50_000, at_least=-100),
    },
}
NAMES = tuple(dict.fromkeys(name for tasks in (TASKS, *OFF_POLICY.values()) for name in tasks))


def bar(task: Task, returns: np.ndarray) -> dict[str, Any] | None:
    """What the task asks for and whether the returns `[S]` reach it."""
    if task.at_least is None:
        return None
    if task.share is None:
        return {"at_least": task.at_least, "passed": bool(returns.mean() >= task.at_least)}
    needed, reached = math.ceil(task.share * len(returns)), int((returns >= task.at_least).sum())
    return {"at_least": task.at_least, "seeds": needed, "reached": reached, "passed": reached >= needed}


def curve(episode_return: np.ndarray, num_episodes: np.ndarray, steps: Callable, num_points: int = 50) -> dict:
    """Training return over `num_points` stretches of the run, from metrics `[S, U]`.

    Each point is the mean over the seeds of their mean over the episodes that ended within the stretch, which ends at
    `steps` of so many updates; None where no episode ended.
    """
    num_updates = num_episodes.shape[1]
    edges = np.linspace(0, num_updates, min(num_points, num_updates) + 1).astype(int)
    sums = np.add.reduceat(np.where(num_episodes > 0, episode_return * num_episodes, 0.0), edges[:-1], axis=1)
    counts = np.add.reduceat(num_episodes, edges[:-1], axis=1)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    seeds = (counts > 0).sum(0)
    points = [float(total / n) if n else None for total, n in zip(means.sum(0), seeds, strict=True)]
    return {"steps": [steps(int(edge)) for edge in edges[1:]], "mean_return": points}


def lanes_program(algorithm, mesh, num_episodes):
    """Training and evaluation of a lane a key, each device its own lanes and none waiting for another."""

    def lane(config, env, key):
        train_key, evaluate_key = jax.random.split(key)
        state, metrics = rlx.train(algorithm, config, env, train_key)
        episodes = rlx.evaluate(algorithm, config, env, state, evaluate_key, num_episodes=num_episodes)
        return {name: metrics[name] for name in ("episode_return", "num_episodes")}, episodes

    lanes = jax.vmap(lane, in_axes=(None, None, 0))
    specs = {"in_specs": (P(), P(), P("lane")), "out_specs": P("lane")}
    return jax.jit(jax.shard_map(lanes, mesh=mesh, **specs, check_vma=False))


def measure(task: Task, algorithm_name: str = "ppo", num_seeds: int = 10, num_episodes: int = 32) -> dict[str, Any]:
    """Trains and evaluates all seeds of a task; the result as it is written to its file."""
    algorithm = import_module(f"rlx.algos.{algorithm_name}")
    config = preset(algorithm, task.env, total_steps=task.total_steps)
    mesh = Mesh(np.array(jax.devices()), ("lane",))
    env = jax.device_put(rlx.envs.make(task.env, **task.options), NamedSharding(mesh, P()))
    num_lanes = math.ceil(num_seeds / mesh.size) * mesh.size  # every device the same number; the surplus is dropped
    keys = jax.vmap(jax.random.key)(np.arange(num_lanes))

    start = time.perf_counter()
    program = lanes_program(algorithm, mesh, num_episodes).lower(config, env, keys).compile()
    compiled = time.perf_counter()
    metrics, episodes = jax.device_get(program(config, env, keys))
    done = time.perf_counter()

    metrics, episodes = jax.tree.map(lambda x: x[:num_seeds], (metrics, episodes))
    returns = episodes.returns.mean(1, dtype=np.float64)
    return {
        "algorithm": algorithm_name,
        "env": task.env,
        "options": task.options,
        "settings": settings(algorithm, task.env) | {"total_steps": task.total_steps},
        "config": asdict(config),
        "steps": rlx.steps_taken(config, rlx.total_updates(config)),
        "seeds": list(range(num_seeds)),
        "episodes_per_seed": num_episodes,
        "all_finished": bool(episodes.finished.all()),
        "returns": returns.tolist(),
        "mean": interval([returns]),
        "iqm": interval([returns], iqm),
        "bar": bar(task, returns),
        "curve": curve(metrics["episode_return"], metrics["num_episodes"], partial(rlx.steps_taken, config)),
        "seconds": {"compile": compiled - start, "run": done - compiled},
        "versions": versions(*PACKAGES),
        "machine": machine() | {"device": jax.devices()[0].device_kind, "devices": mesh.size},
    }


def main(
    task: Literal[*NAMES] | None = None,
    algorithm: str = "ppo",
    seeds: int = 10,
    force: bool = False,
    short: bool = False,
    out: Path = RESULTS / "returns",
) -> None:
    """Measures the tasks that have no result yet.

    Args:
        task: only this one.
        algorithm: a module of rlx.algos.
        seeds: how many; these are 0, 1, 2, ...
        force: measure also what is done.
        short: a hundredth of the steps, to see that everything works; writes below runs/ unless told where.
        out: folder of the JSON files.
    """
    jax.config.update("jax_num_cpu_devices", machine()["cpus"])
    if short:
        out = ROOT / "runs" / "benchmarks" / "returns" if out == RESULTS / "returns" else out
    out.mkdir(parents=True, exist_ok=True)
    console, code = Console(), commit()  # of the start: what is imported now is what will run
    for name, chosen in OFF_POLICY.get(algorithm, TASKS).items():
        path = out / f"{algorithm}-{name}.json"
        if task not in (None, name):
            continue
        if path.exists() and not force:
            console.print(f"{name}: done, {path}")
            continue
        if short:
            before = getattr(preset(import_module(f"rlx.algos.{algorithm}"), chosen.env), "init_steps", 0)
            chosen = replace(chosen, total_steps=before + chosen.total_steps // 100)
        console.print(f"{name}: {seeds} seeds of {chosen.total_steps:,} steps")
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            progress.add_task("training", total=None)
            result = measure(chosen, algorithm, seeds)
        partial_path = path.with_suffix(".partial")
        partial_path.write_text(json.dumps({"task": name} | result | {"commit": code}, indent=1) + "\n")
        partial_path.replace(path)  # a result is there in full or not at all
        mean, seconds = result["mean"], result["seconds"]
        console.print(
            f"{name}: mean return {mean['value']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}] after "
            f"{result['steps']:,} steps; compiled in {seconds['compile']:.0f} s, ran in {seconds['run']:.0f} s"
        )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
