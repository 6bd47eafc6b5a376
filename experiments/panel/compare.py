"""Six ways to use a rollout: REINFORCE, A2C, PPO, TRPO, V-MPO and AWR, on the same networks and settings.

    python experiments/panel/compare.py
    python experiments/panel/compare.py --task CartPole-v1 --method vmpo

Trains what has no result yet, one file a method and a task, then draws the figure and writes the table of README.md.
Three learning rates of each method train on selection seeds; the one with the best evaluation trains again on the seeds
that are reported. Environments, networks, discount and normalisation are those of PPO's settings for all. What is
interrupted is gone on with by the same command.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import matplotlib
import numpy as np
from rich.console import Console

import rlx
from rlx.algos import ppo, trpo, vmpo
from rlx.devices.sharding import use_devices
from rlx.objectives import AWR, with_objective
from rlx.presets import configure, settings
from rlx.report import Curve, curve, experiment, interval, iqm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
FIRST_SELECTION_SEED = 1000  # the seeds reported are 0, 1, 2, ...
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "gymnax")


@dataclass(frozen=True)
class Method:
    label: str
    algorithm: ModuleType
    own: dict[str, Any]  # what goes over the settings of PPO
    grid: tuple[dict[str, float], ...]  # one setting of it is chosen


def grid(name: str, *values: float) -> tuple[dict[str, float], ...]:
    return tuple({name: value} for value in values)


RATES = grid("learning_rate", 3e-4, 1e-3, 3e-3)
METHODS = {
    "reinforce": Method(
        "REINFORCE", ppo, ppo.VARIANTS["reinforce"] | {"num_envs": 4}, grid("learning_rate", 1e-3, 3e-3, 1e-2)
    ),
    "a2c": Method("A2C", ppo, ppo.VARIANTS["a2c"], RATES),
    "ppo": Method("PPO", ppo, {}, RATES),
    "trpo": Method("TRPO", trpo, {"entropy_coef": 0.0}, grid("max_kl", 0.003, 0.01, 0.03)),
    "vmpo": Method("V-MPO", vmpo, {}, RATES),
    "awr": Method("AWR", with_objective(ppo, AWR), {}, RATES),
}


@dataclass(frozen=True)
class Task:
    env: str
    total_steps: int
    seeds: int = 5
    selection_seeds: int = 2


TASKS = {
    "CartPole-v1": Task("gymnax/CartPole-v1", 200_000),
    "Acrobot-v1": Task("gymnax/Acrobot-v1", 200_000),
    "Pendulum-v1": Task("gymnax/Pendulum-v1", 300_000),
}


def train(method: Method, task: Task, points: Sequence[dict[str, float]], seeds: range, directory: Path) -> list[list]:
    """The lanes of a sweep over points and seeds, by point: `return_mean` of the evaluation, `curve` of training."""
    config = config_of(method, task)
    env = rlx.envs.make(task.env)
    where = {"seed": seeds[0], "num_seeds": len(seeds), "directory": directory, "console": Console()}
    lanes = rlx.sweep(method.algorithm, config, env, points, **where).lanes
    return [[lane for lane in lanes if lane["configuration"] == i] for i in range(len(points))]


def config_of(method: Method, task: Task) -> Any:
    """What all points of a method have in common."""
    known = {f.name for f in fields(method.algorithm.Config)}
    shared = {name: value for name, value in settings(ppo, task.env).items() if name in known}
    return configure(method.algorithm.Config, shared | method.own | {"total_steps": task.total_steps})


def returns(lanes: Sequence[dict[str, Any]]) -> np.ndarray:
    """Evaluation return of each lane; that of its last finite state where a lane died."""
    return np.array([lane["return_mean"] for lane in lanes], np.float64)


def learning_curve(lanes: Sequence[dict[str, Any]]) -> Curve:
    """The interquartile mean over lanes of what their episodes in training returned, with its interval."""
    names = ("step", "episode_return", "num_episodes")
    return curve(*([np.array(lane["curve"][name], np.float64) for lane in lanes] for name in names))


def measure(method: Method, task: Task, directory: Path) -> dict[str, Any]:
    """Selects a setting and measures it; the result as it is written to its file."""
    selecting = range(FIRST_SELECTION_SEED, FIRST_SELECTION_SEED + task.selection_seeds)
    tried = train(method, task, method.grid, selecting, directory / "selection")
    # Training decides between equal evaluations.
    scores = [(float(returns(lanes).mean()), float(learning_curve(lanes).value.mean())) for lanes in tried]
    best = method.grid[max(range(len(scores)), key=scores.__getitem__)]
    (lanes,) = train(method, task, [best], range(task.seeds), directory / "seeds")
    line = learning_curve(lanes)
    return {
        "env": task.env,
        "steps": lanes[0]["planned_steps"],
        "selection": {
            "seeds": list(selecting),
            "grid": [
                point | {"evaluation": score, "training": training}
                for point, (score, training) in zip(method.grid, scores, strict=True)
            ],
        },
        "chosen": best,
        "seeds": list(range(task.seeds)),
        "died": sum(lane["died_at"] is not None for lane in lanes),
        "returns": returns(lanes).tolist(),
        "iqm": interval([returns(lanes)], iqm),
        "mean_of_curve": float(line.value.mean()),
        "curve": {key: np.round(x, 2).tolist() for key, x in line._asdict().items()},
        "config": asdict(config_of(method, task)) | best,
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


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
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2 * columns)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(results: dict[tuple[str, str], dict]) -> str:
    """Evaluation returns in Markdown, a row a task and a method."""
    lines = [
        ["task", "method", "setting", "seeds", "evaluation, IQM [95 %]", "mean of the training curve"],
        ["---", "---", "---", "--:", "--:", "--:"],
    ]
    for (task, name), result in results.items():
        chosen = ", ".join(f"`{key} {value:g}`" for key, value in result["chosen"].items())
        estimate = "{value:.1f} [{low:.1f}, {high:.1f}]".format(**result["iqm"])
        row = [task, METHODS[name].label, chosen, str(len(result["seeds"])), estimate]
        lines.append([*row, f"{result['mean_of_curve']:.1f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(
    task: Literal[*TASKS] | None = None,
    method: Literal[*METHODS] | None = None,
    short: bool = False,
    runs: Path = Path("runs/panel"),
) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        method: only this one.
        short: a twentieth of the steps, to see that everything works; all of it stays below `runs`.
        runs: folder of what training leaves behind; to have a case measured again, remove its result and its folder.
    """
    use_devices()
    jax.config.update("jax_default_matmul_precision", "float32")
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)
    cases = {(t, m): f"{t}-{m}" for t in TASKS for m in METHODS}

    def run(case):
        chosen = TASKS[case[0]]
        if short:
            chosen = Task(**vars(chosen) | {"total_steps": chosen.total_steps // 20})
        return {"task": case[0], "method": case[1]} | measure(METHODS[case[1]], chosen, runs / cases[case])

    only = lambda case: task in (None, case[0]) and method in (None, case[1])
    experiment(folder, cases, run, draw, table, only)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
