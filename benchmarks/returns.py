"""The learning table: what the shipped settings reach, over many seeds.

    python benchmarks/returns.py
    python benchmarks/returns.py --task CartPole-v1 --force
    python benchmarks/returns.py --algorithm dqn:rainbow --task Breakout-MinAtar
    python benchmarks/returns.py --algorithm dqn+RND --task MountainCar-v0

All seeds of a task train in one program, as lanes that are spread over the devices; on a CPU there is one virtual
device a core. Then every seed plays whole episodes, deterministically. A task whose result is there is skipped.

Where nothing is annealed a run does not depend on how long it will be: tasks at fewer steps are the same runs on their
way.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from provenance import RESULTS, ROOT, commit, machine, versions
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import rlx
from rlx.algorithm import load_algorithm
from rlx.devices.spread import spread
from rlx.presets import preset, settings
from rlx.report import interval, iqm

METRICS = ("episode_return", "num_episodes", "alive_steps")
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "gymnax", "brax", "mujoco-mjx", "numpy", "scipy")


@dataclass(frozen=True)
class Task:
    env: str  # the full name, by which its settings are found
    total_steps: int
    options: dict[str, Any] = field(default_factory=dict)  # of the environment
    at_least: float | None = None  # the return to reach, by the mean over seeds
    share: float | None = None  # or by this share of the seeds
    seeds: int | None = None  # where there are fewer than of other tasks
    episodes: int = 32  # that every seed plays
    sampled: bool = False  # they are played by samples, where the mode of a policy gets stuck
    untrained: bool = False  # the first policy plays as many, by samples: near to random moves


TASKS = {
    "CartPole-v1": Task("gymnax/CartPole-v1", 500_000, at_least=475, share=0.9),
    "Acrobot-v1": Task("gymnax/Acrobot-v1", 500_000, at_least=-90, episodes=128),
    "Pendulum-v1": Task("gymnax/Pendulum-v1", 1_000_000, at_least=-200, episodes=128),
    "inverted_pendulum": Task("brax/inverted_pendulum", 1_000_000, {"backend": "mjx"}, at_least=950, share=0.9),
    "Breakout-MinAtar": Task("gymnax/Breakout-MinAtar", 1_000_000, at_least=15),
    "hopper": Task("brax/hopper", 2_000_000, {"backend": "spring"}),
    "hopper-200k": Task("brax/hopper", 200_000, {"backend": "spring"}, seeds=5),
    "hopper-500k": Task("brax/hopper", 500_000, {"backend": "spring"}, seeds=5),
    "halfcheetah-200k": Task("brax/halfcheetah", 200_000, {"backend": "spring"}, seeds=5),
    "halfcheetah-500k": Task("brax/halfcheetah", 500_000, {"backend": "spring"}, seeds=5),
    "Pendulum-150k": Task("gymnax/Pendulum-v1", 150_000),
    "mjx-pendulum": Task("mjx/pendulum", 1_000_000, seeds=5),
    "mjx-cartpole": Task("mjx/cartpole", 1_000_000, seeds=5),
    "mjx-reacher": Task("mjx/reacher", 1_000_000, seeds=5),
    "CartpoleBalance": Task("playground/CartpoleBalance", 1_000_000, seeds=5),
    "CartpoleSwingup": Task("playground/CartpoleSwingup", 2_000_000, seeds=5),
    "PendulumSwingup": Task("playground/PendulumSwingup", 2_000_000, {"action_repeat": 4}, seeds=5),
}
# Of the suites.
new = partial(Task, seeds=5, untrained=True)
CRAFTAX = {"craftax-classic": new("craftax/Craftax-Classic-Symbolic-v1", 1_000_000, sampled=True)}
MINIGRID = {
    "EmptyRandom-6x6": new("xminigrid/MiniGrid-EmptyRandom-6x6", 500_000),
    "DoorKey-5x5": new("xminigrid/MiniGrid-DoorKey-5x5", 1_000_000),
    "Unlock": new("xminigrid/MiniGrid-Unlock", 1_000_000),
}
JUMANJI = {
    "Snake": new("jumanji/Snake-v1", 2_000_000),
    "Knapsack": new("jumanji/Knapsack-v1", 2_000_000, episodes=128),
}
AGENTS = {  # independent learners
    "simple_spread": new("jaxmarl/MPE_simple_spread_v3", 2_000_000, episodes=128),
    "SMAX-3m": new("jaxmarl/HeuristicEnemySMAX", 2_000_000, {"scenario": "3m"}, episodes=128),
}
# Of values.
MINATAR = {
    f"{name}-MinAtar": Task(f"gymnax/{name}-MinAtar", 500_000, seeds=5)
    for name in ("Breakout", "Asterix", "Freeway", "SpaceInvaders")
}
VALUES = {
    "CartPole-v1": Task("gymnax/CartPole-v1", 100_000, at_least=475, share=0.7),
    "Acrobot-v1": Task("gymnax/Acrobot-v1", 500_000, at_least=-95, episodes=128),
    "MountainCar-v0": Task("gymnax/MountainCar-v0", 500_000, at_least=-190, share=0.5),
    **MINATAR,
}
# Of bonuses: with nothing but small costs until the end is found.
SPARSE = {
    "MountainCar-v0": VALUES["MountainCar-v0"],
    "DeepSea": Task("gymnax/DeepSea-bsuite", 200_000, {"size": 16}, at_least=0.9, share=0.8),
}
PENDULUM_OFF_POLICY = Task("gymnax/Pendulum-v1", 20_000, at_least=-170, share=0.9, episodes=128)
# Of algorithms that need fewer steps for these, or more.
OWN = {
    "ppo": TASKS | CRAFTAX | JUMANJI | AGENTS | SPARSE,
    "ppo_recurrent": CRAFTAX | MINIGRID,
    "mappo": {name: replace(task, options=task.options | {"world": True}) for name, task in AGENTS.items()},
    "sac": {
        "Pendulum-v1": PENDULUM_OFF_POLICY,
        "MountainCarContinuous-v0": Task("gymnax/MountainCarContinuous-v0", 50_000, seeds=5),
        **{f"mjx-{name}": Task(f"mjx/{name}", 100_000, seeds=5) for name in ("pendulum", "cartpole", "reacher")},
        "inverted_pendulum": Task("brax/inverted_pendulum", 50_000, {"backend": "mjx"}, at_least=950, share=0.9),
        **{name: task for name, task in TASKS.items() if name.startswith(("hopper-", "halfcheetah-"))},
    },
    **{name: {"Pendulum-v1": PENDULUM_OFF_POLICY} for name in ("ddpg", "tqc", "redq", "redq:droq", "crossq")},
    "reppo": {"Pendulum-v1": Task("gymnax/Pendulum-v1", 300_000, at_least=-200, episodes=128)},
    "es": {"CartPole-v1": Task("gymnax/CartPole-v1", 3_200_000, at_least=475, share=0.9)},
    "dqn": VALUES | SPARSE,
    **{f"dqn:{variant}": VALUES for variant in ("rainbow", "c51", "qr", "iqn", "munchausen")},
    "pqn": {
        "CartPole-v1": Task("gymnax/CartPole-v1", 200_000, at_least=475, share=0.9),
        "Acrobot-v1": Task("gymnax/Acrobot-v1", 500_000, at_least=-90, episodes=128),
        **{name: replace(task, total_steps=1_000_000) for name, task in MINATAR.items()},
    },
    **{f"{name}+{bonus}": SPARSE for name in ("ppo", "dqn") for bonus in ("RND", "Counts")},
    "sac_discrete": {
        "CartPole-v1": Task("gymnax/CartPole-v1", 50_000, at_least=475, share=0.9),
        "Acrobot-v1": Task("gymnax/Acrobot-v1", 50_000, at_least=-100),
    },
    "dppo": {
        "Pendulum-150k": Task("gymnax/Pendulum-v1", 150_000, at_least=-200),
        "mjx-cartpole": Task("mjx/cartpole", 1_000_000, seeds=5),
    },
    "grpo": {"CartPole-v1": Task("gymnax/CartPole-v1", 1_000_000, at_least=475, share=0.9)},
}
NAMES = tuple(dict.fromkeys(name for tasks in (TASKS, *OWN.values()) for name in tasks))
EXTRAS = {name: name for name in ("craftax", "xminigrid", "jumanji", "jaxmarl")} | {"playground": "mujoco_playground"}


def bar(task: Task, returns: np.ndarray) -> dict[str, Any] | None:
    """What the task asks for and whether the returns `[S]` reach it."""
    if task.at_least is None:
        return None
    if task.share is None:
        return {"at_least": task.at_least, "passed": bool(returns.mean() >= task.at_least)}
    needed, reached = math.ceil(task.share * len(returns)), int((returns >= task.at_least).sum())
    return {"at_least": task.at_least, "seeds": needed, "reached": reached, "passed": reached >= needed}


def alive(metrics: dict[str, np.ndarray], num_updates: int) -> dict[str, float]:
    """How many of the steps were within episodes, mean over seeds, where an algorithm waits for the longest one."""
    if "alive_steps" not in metrics:
        return {}
    return {"alive_steps": float(metrics["alive_steps"][:, :num_updates].sum(axis=1, dtype=np.float64).mean())}


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


def named(name: str) -> tuple[ModuleType, dict[str, Any]]:
    """The algorithm of a name, and the settings of the variant that may be behind it: `dqn:rainbow`, `ppo+RND`."""
    base, _, variant = name.partition(":")
    algorithm = load_algorithm(base)
    return algorithm, algorithm.VARIANTS[variant] if variant else {}


def lanes_program(algorithm, updates, task):
    """Training of a lane a key, with an evaluation after each number of `updates`; every device has its own lanes."""

    def lane(key, config, env):
        train_key, evaluate_key = jax.random.split(key)
        state, parts, episodes = algorithm.init(config, env, train_key), [], []
        first = ()
        if task.untrained:
            first = rlx.evaluate(algorithm, config, env, state, evaluate_key, task.episodes, deterministic=False)
        for num in np.diff(updates, prepend=0).tolist():
            state, metrics = rlx.resume(algorithm, config, env, state, num_updates=num)
            parts.append({name: metrics[name] for name in METRICS if name in metrics})
            episodes.append(rlx.evaluate(algorithm, config, env, state, evaluate_key, task.episodes, not task.sampled))
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts), first, episodes

    return spread(lane)


def measure(
    tasks: Sequence[Task], algorithm_name: str = "ppo", num_seeds: int = 10, **changed: Any
) -> list[dict[str, Any]]:
    """Trains and evaluates all seeds of a task, or of tasks that are the same runs after more and more steps.

    Fields of the Config that are `changed` are others than those that ship.

    Returns the results as they are written to their files.
    """
    algorithm, of_variant = named(algorithm_name)
    changed = of_variant | changed
    env_name, options, num_episodes = tasks[0].env, tasks[0].options, tasks[0].episodes
    configs = [preset(algorithm, task.env, **{"total_steps": task.total_steps} | changed) for task in tasks]
    updates = [rlx.total_updates(config) for config in configs]
    env = rlx.envs.make(env_name, **options)
    keys = jax.vmap(jax.random.key)(np.arange(num_seeds))

    start = time.perf_counter()
    program = lanes_program(algorithm, updates, tasks[0]).lower(keys, configs[-1], env).compile()
    compiled = time.perf_counter()
    metrics, first, evaluations = jax.device_get(program(keys, configs[-1], env))
    done = time.perf_counter()

    found = []
    for task, config, num_updates, episodes in zip(tasks, configs, updates, evaluations, strict=True):
        returns = episodes.returns.mean(1, dtype=np.float64)
        trained = [metrics[name][:, :num_updates] for name in ("episode_return", "num_episodes")]
        result = {
            "algorithm": algorithm_name,
            "env": env_name,
            "options": options,
            "settings": settings(algorithm, env_name) | {"total_steps": task.total_steps},
            "config": asdict(config),
            "steps": rlx.steps_taken(config, num_updates),
            **alive(metrics, num_updates),
            "seeds": list(range(num_seeds)),
            "episodes_per_seed": num_episodes,
            "all_finished": bool(episodes.finished.all()),
            "returns": returns.tolist(),
            "mean": interval([returns]),
            "iqm": interval([returns], iqm),
            "reported": {
                name: interval([values.mean(1, dtype=np.float64)])
                for name, values in episodes.reported.items()
                if np.isfinite(values).all()
            },
            **({"sampled": True} if task.sampled else {}),
            **({"untrained": interval([first.returns.mean(1, dtype=np.float64)])} if first else {}),
            "bar": bar(task, returns),
            "curve": curve(*trained, partial(rlx.steps_taken, config)),
            "seconds": {"compile": compiled - start, "run": done - compiled},
            "versions": versions(*PACKAGES),
            "machine": machine() | {"device": jax.devices()[0].device_kind, "devices": jax.device_count()},
        }
        found.append(result)
    return found


def batches(algorithm_name: str) -> list[dict[str, Task]]:
    """The tasks of an algorithm by name, those together that one run serves, fewest steps first."""
    together: dict[Any, dict[str, Task]] = {}
    annealed = hasattr(named(algorithm_name)[0].Config, "anneal_learning_rate")
    for name, task in OWN.get(algorithm_name, TASKS).items():
        same = name if annealed else (task.env, str(task.options))
        together.setdefault(same, {})[name] = task
    return [dict(sorted(tasks.items(), key=lambda item: item[1].total_steps)) for tasks in together.values()]


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
        algorithm: a module of rlx.algos, with the name of a variant after a colon, or of a bonus after a plus.
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
    for tasks in batches(algorithm):
        paths = {name: out / f"{algorithm.replace(':', '-')}-{name}.json" for name in tasks}
        if task is not None and task not in tasks:
            continue
        if all(path.exists() for path in paths.values()) and not force:
            console.print(f"{', '.join(tasks)}: done, {out}")
            continue
        chosen = list(tasks.values())
        extra = chosen[0].env.partition("/")[0]
        if extra in EXTRAS and not find_spec(EXTRAS[extra]):
            console.print(f"{', '.join(tasks)}: needs another package, pip install 'rlx[{extra}]'")
            continue
        if short:
            before = getattr(preset(named(algorithm)[0], chosen[0].env), "init_steps", 0)
            chosen = [replace(one, total_steps=before + one.total_steps // 100) for one in chosen]
        num_seeds = min(seeds, chosen[0].seeds or seeds)
        console.print(f"{', '.join(tasks)}: {num_seeds} seeds of {chosen[-1].total_steps:,} steps")
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            progress.add_task("training", total=None)
            results = measure(chosen, algorithm, num_seeds)
        for (name, path), result in zip(paths.items(), results, strict=True):
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
