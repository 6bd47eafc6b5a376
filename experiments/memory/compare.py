"""What a memory is worth: a recurrent policy, a window of observations and neither, where the present does not tell.

    python experiments/memory/compare.py
    python experiments/memory/compare.py --task Recall-32 --method gru

Trains what has no result yet, one file a method and a task, then draws the figure and writes the table of README.md.
What is interrupted is gone on with by the same command.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import matplotlib
import numpy as np
from rich.console import Console

import rlx
from rlx.algos import ppo, ppo_recurrent
from rlx.devices.sharding import use_devices
from rlx.presets import configure
from rlx.report import Curve, curve, experiment, interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
SEEDS = range(5)
WINDOW = 4  # observations that are seen at once
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "gymnax")


@dataclass(frozen=True)
class Method:
    label: str
    algorithm: ModuleType
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # of the environment


METHODS = {
    "full": Method("PPO, everything seen", ppo),
    "gru": Method("PPO with memory, GRU", ppo_recurrent, {"cell": "gru"}),
    "mingru": Method("PPO with memory, minGRU", ppo_recurrent, {"cell": "mingru"}),
    "window": Method(f"PPO, window of {WINDOW}", ppo, options={"stack": WINDOW}),
    "none": Method("PPO", ppo),
}


@dataclass(frozen=True)
class Task:
    env: str
    total_steps: int
    settings: dict[str, Any]  # of all methods
    memory: dict[str, Any]  # of those with a memory, besides
    full: str = ""  # the environment in which everything is seen
    methods: tuple[str, ...] = tuple(METHODS)


def recall(delay: int, total_steps: int, sequence_length: int, num_steps: int) -> Task:
    """A cue, shown once, is asked for after so many steps."""
    settings = {"num_envs": 32, "num_steps": num_steps, "learning_rate": 1e-3, "num_minibatches": 4}
    methods = ("gru", "mingru", "window", "none")
    return Task(f"rlx/Recall-{delay}", total_steps, settings, {"sequence_length": sequence_length}, methods=methods)


TASKS = {
    "Recall-8": recall(8, 200_000, 32, 64),
    "Recall-32": recall(32, 600_000, 64, 128),
    "Recall-128": recall(128, 2_000_000, 256, 256),
    "CartPole, velocities hidden": Task(
        "rlx/HiddenCartPole",
        500_000,
        {"num_envs": 16, "num_steps": 128, "learning_rate": 1e-3, "num_minibatches": 8, "normalize_obs": True},
        {"sequence_length": 32},
        "gymnax/CartPole-v1",
    ),
    "Pendulum, velocities hidden": Task(
        "rlx/HiddenPendulum",
        1_500_000,
        {
            **{"num_envs": 16, "num_steps": 256, "num_epochs": 10, "num_minibatches": 32, "learning_rate": 1e-3},
            **{"gamma": 0.95, "entropy_coef": 0.0, "normalize_obs": True, "normalize_reward": True},
            "max_grad_norm": 10.0,
        },
        {"sequence_length": 64, "num_minibatches": 16, "learning_rate": 3e-4, "hidden_sizes": (64, 64)},
        "gymnax/Pendulum-v1",
    ),
}


def measure(method: Method, name: str, task: Task, directory: Path) -> dict[str, Any]:
    """Trains all seeds and evaluates them; the result as it is written to its file."""
    own = task.memory if method.algorithm is ppo_recurrent else {}
    settings = task.settings | own | method.settings | {"total_steps": task.total_steps}
    config = configure(method.algorithm.Config, settings)
    env = rlx.envs.make(task.full if name == "full" else task.env, **method.options)
    where = {"num_seeds": len(SEEDS), "directory": directory, "console": Console()}
    lanes = rlx.sweep(method.algorithm, config, env, **where).lanes
    line = learning_curve(lanes)
    found = np.array([lane["return_mean"] for lane in lanes], np.float64)
    return {
        "env": task.full if name == "full" else task.env,
        "options": method.options,
        "steps": lanes[0]["planned_steps"],
        "seeds": list(SEEDS),
        "died": sum(lane["died_at"] is not None for lane in lanes),
        "returns": found.tolist(),
        "mean": interval([found], np.mean),
        "curve": {key: np.round(x, 2).tolist() for key, x in line._asdict().items()},
        "config": asdict(config),
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def learning_curve(lanes: Sequence[dict[str, Any]]) -> Curve:
    """The interquartile mean over lanes of what their episodes in training returned, with its interval."""
    names = ("step", "episode_return", "num_episodes")
    return curve(*([np.array(lane["curve"][name], np.float64) for lane in lanes] for name in names))


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """Learning curves: a panel a task, a line a method, interquartile means with their intervals."""
    tasks = list(dict.fromkeys(task for task, _ in results))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    size = {"figsize": (4.5 * columns, 3.2 * rows + 1), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(rows, columns, **size)
    for axes in panels.flat[len(tasks) :]:
        axes.axis("off")
    for axes, task in zip(panels.flat, tasks, strict=False):
        for color, (name, method) in zip(plt.cm.tab10.colors, METHODS.items(), strict=False):
            if (task, name) in results:
                points = {key: np.asarray(value) for key, value in results[task, name]["curve"].items()}
                axes.plot(points["steps"], points["value"], color=color, label=method.label, lw=1.5)
                axes.fill_between(points["steps"], points["low"], points["high"], color=color, alpha=0.12, lw=0)
        axes.set(title=task, xlabel="environment steps", ylabel="return in training")
        axes.grid(alpha=0.3)
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=max(columns, 2))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(results: dict[tuple[str, str], dict]) -> str:
    """Evaluation returns in Markdown, a row a task and a method."""
    lines = [["task", "method", "steps", "seeds", "evaluation, mean [95 %]"], ["---", "---", "--:", "--:", "--:"]]
    for (task, name), result in results.items():
        estimate = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**result["mean"])
        lines.append([task, METHODS[name].label, f"{result['steps']:,}", str(len(result["seeds"])), estimate])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(
    task: Literal[*TASKS] | None = None,
    method: Literal[*METHODS] | None = None,
    short: bool = False,
    runs: Path = Path("runs/memory"),
) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        method: only this one.
        short: a fiftieth of the steps, to see that everything works; all of it stays below `runs`.
        runs: folder of what training leaves behind; to have a case measured again, remove its result and its folder.
    """
    use_devices()
    jax.config.update("jax_default_matmul_precision", "float32")
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)
    cases = {(t, m): f"{t.replace(', ', '-').replace(' ', '-')}-{m}" for t in TASKS for m in TASKS[t].methods}

    def run(case):
        chosen = TASKS[case[0]]
        if short:
            chosen = Task(**vars(chosen) | {"total_steps": chosen.total_steps // 50})
        return {"task": case[0], "method": case[1]} | measure(METHODS[case[1]], case[1], chosen, runs / cases[case])

    only = lambda case: task in (None, case[0]) and method in (None, case[1])
    experiment(folder, cases, run, draw, table, only)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
