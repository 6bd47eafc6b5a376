"""Does it help that the members of a group start from the same state, and how many should there be?

    python experiments/groups/compare.py
    python experiments/groups/compare.py --task CartPole-v1

Trains GRPO with groups of 2, 4, 8 and 16, which share their start or do not, and on tasks of control PPO for the same
number of steps; then draws the figure and writes the table of README.md. What has a result is left alone, and what was
interrupted is gone on with.
"""

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import matplotlib
import numpy as np
from rich.console import Console

import rlx
from rlx.algos import grpo, grpo_tokens, ppo
from rlx.devices.sharding import use_devices
from rlx.presets import preset
from rlx.report import curve, experiment, interval, iqm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "gymnax", "brax")
SIZES = (2, 4, 8, 16)
STARTS = {True: "same state", False: "same task"}


@dataclass(frozen=True)
class Task:
    env: str
    total_steps: int
    horizon: int
    seeds: int = 10
    algorithm: ModuleType = grpo
    num_episodes: int = 64  # of an update, whatever the size of a group
    sizes: tuple[int, ...] = SIZES


TASKS = {
    "CartPole-v1": Task("gymnax/CartPole-v1", 1_000_000, 500),
    "Acrobot-v1": Task("gymnax/Acrobot-v1", 1_000_000, 500),
    "reacher": Task("brax/reacher", 1_000_000, 100, 6, sizes=(8,)),
    "Sort": Task("rlx/Sort", 150_000, 8, 6, grpo_tokens, 128),
    "ModularAddition": Task("rlx/ModularAddition", 200_000, 1, 6, grpo_tokens, 1024),
}


def train(algorithm: ModuleType, task: Task, points: list[dict], fixed: dict[str, Any], directory: Path) -> list:
    """What the lanes of a sweep over points and seeds came to, by point."""
    config = preset(algorithm, task.env, total_steps=task.total_steps, **fixed)
    env = rlx.envs.make(task.env, max_steps=task.horizon)
    where = {"directory": directory, "console": Console(), "memory": 2 * 2**30}
    found = rlx.sweep(algorithm, config, env, points, num_seeds=task.seeds, eval_episodes=episodes(task), **where)
    return [
        result(point, [lane for lane in found.lanes if lane["configuration"] == i], config)
        for i, point in enumerate(points)
    ]


def episodes(task: Task) -> int:
    """Of an evaluation: more where one tells no more than right or wrong."""
    return 256 if task.algorithm is grpo_tokens else 32


def result(point: dict[str, Any], lanes: list[dict[str, Any]], config: Any) -> dict[str, Any]:
    """Returns of the final policies over whole episodes, acting deterministically, and of training."""
    returns = np.array([lane["return_mean"] for lane in lanes], np.float64)
    names = ("step", "episode_return", "num_episodes")
    line = curve(*([np.array(lane["curve"][name], np.float64) for lane in lanes] for name in names))
    return {
        "point": point,
        "steps": lanes[0]["planned_steps"],
        "seeds": [lane["seed"] for lane in lanes],
        "died": sum(lane["died_at"] is not None for lane in lanes),
        "returns": returns.tolist(),
        "iqm": interval([returns], iqm),
        "curve_iqm": interval([np.array([np.nanmean(lane["curve"]["episode_return"]) for lane in lanes])], iqm),
        "curve": {key: np.round(x, 4).tolist() for key, x in line._asdict().items()},
        "config": asdict(config) | point,
    }


def measure(task: Task, directory: Path) -> dict[str, Any]:
    """GRPO for every size of a group with both kinds of starts, and PPO where the task is one of control."""
    sizes = [{"num_groups": task.num_episodes // size, "group_size": size} for size in task.sizes]
    points = [size | {"same_start": same} for same in STARTS for size in sizes]
    # The mean over the whole group would scale the gradient by (G - 1) / G, and with it all but the entropy bonus.
    fixed = {"num_steps": task.horizon, "baseline": "others"}
    return {
        "env": task.env,
        "horizon": task.horizon,
        "grpo": train(task.algorithm, task, points, fixed, directory / "grpo"),
        "ppo": train(ppo, task, [{}], {}, directory / "ppo")[0] if task.algorithm is grpo else None,
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def draw(results: dict[str, dict], path: Path) -> None:
    """Three panels a task: what groups of each size come to in the end and on the way, and learning curves."""
    size = {"figsize": (12, 2.7 * len(results) + 0.6), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(len(results), 3, **size)
    for (*summaries, curves), (task, found) in zip(panels, results.items(), strict=True):
        for axes, of, words in zip(summaries, ("iqm", "curve_iqm"), ("evaluation", "training"), strict=True):
            for color, (same, label) in zip(("C0", "C3"), STARTS.items(), strict=True):
                rows = [row for row in found["grpo"] if row["point"]["same_start"] == same]
                value, low, high = (np.array([row[of][key] for row in rows]) for key in ("value", "low", "high"))
                place = [SIZES.index(row["point"]["group_size"]) + 0.08 * (-1 if same else 1) for row in rows]
                axes.errorbar(place, value, [value - low, high - value], color=color, fmt="o-", capsize=3, label=label)
            if found["ppo"]:
                axes.axhline(found["ppo"][of]["value"], color="grey", lw=1, label="PPO")
                axes.axhspan(found["ppo"][of]["low"], found["ppo"][of]["high"], color="grey", alpha=0.15, lw=0)
            axes.set(title=task, xlabel="members of a group", ylabel=f"return in {words}, IQM")
            axes.set_xticks(range(len(SIZES)), SIZES)
        for color, same in zip(("C0", "C3"), STARTS, strict=True):
            rows = [row for row in found["grpo"] if row["point"]["same_start"] == same]
            for row, shade in zip(rows, np.linspace(0.35, 1, len(rows)), strict=True):
                curves.plot(row["curve"]["steps"], row["curve"]["value"], color=color, alpha=shade, lw=1.3)
        if found["ppo"]:
            curves.plot(found["ppo"]["curve"]["steps"], found["ppo"]["curve"]["value"], color="grey", lw=1.3)
        curves.set(title=task, xlabel="steps, with those after ends", ylabel="return in training, IQM")
        for axes in (*summaries, curves):
            axes.grid(alpha=0.3)
    panels[0, 0].legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(results: dict[str, dict]) -> str:
    """Returns in Markdown: a row a task, a kind of start and a size."""
    lines = [["task", "members", "starts", "seeds", "evaluation, IQM [95 %]", "training, IQM [95 %]"]]
    lines.append(["---", "--:", "---", "--:", "--:", "--:"])
    for task, found in results.items():
        rows = [(row["point"]["group_size"], STARTS[row["point"]["same_start"]], row) for row in found["grpo"]]
        if found["ppo"]:
            rows.append(("PPO", "", found["ppo"]))
        digits = 1 if found["ppo"] else 3
        for members, starts, row in rows:
            number = f"{{value:.{digits}f}} [{{low:.{digits}f}}, {{high:.{digits}f}}]"
            estimates = [number.format(**row[of]) for of in ("iqm", "curve_iqm")]
            lines.append([task, str(members), starts, str(len(row["seeds"])), *estimates])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(task: Literal[*TASKS] | None = None, short: bool = False, runs: Path = Path("runs/groups")) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        short: one update of two seeds, to see that everything works; all of it stays below `runs`.
        runs: folder of what training leaves behind; to have a task measured again, remove its result and its folder.
    """
    use_devices()
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)

    def run(name):
        chosen = TASKS[name]
        if short:
            horizon = min(chosen.horizon, 20)
            chosen = replace(chosen, total_steps=chosen.num_episodes * horizon, horizon=horizon, seeds=2)
        return {"task": name} | measure(chosen, runs / name)

    experiment(folder, {name: name for name in TASKS}, run, draw, table, lambda name: task in (None, name))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
