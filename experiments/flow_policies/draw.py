"""Pictures and the tables of README.md, from results/.

python experiments/flow_policies/draw.py
"""

import json
from pathlib import Path

import matplotlib
import numpy as np

from rlx.envs.tasks.multigoal import MultiGoal, goals
from rlx.envs.tasks.pointmaze import MAZES, layout
from rlx.report import fill, interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter

HERE = Path(__file__).resolve().parent
NAMES = {
    "ppo": "PPO, Gaussian",
    "ppo-mixture": "PPO, mixture of 6",
    "fpo": "FPO",
    "fpo++": "FPO++",
    "policyflow": "PolicyFlow",
    "policyflow-unregularised": "PolicyFlow, no Brownian term",
    "dppo": "DPPO, from scratch",
}
FORK = ((1.5, 4.5), (5.5, 5.5))  # as in run.py
CONTROL = ("Pendulum", "CartpoleSwingup", "CheetahRun", "hopper")
COLUMNS = {
    "MultiGoal": {
        "return": "return",
        "coverage": "goals with 2 %",
        "coverage_5_percent": "with 5 %",
        "entropy": "entropy / log 6",
        "return_without_noise": "return without the Gaussian noise",
    },
    "GridWorld": {"rarer": "share of the rarer direction", "return": "return", "length": "steps to a goal"},
    "PointMaze": {
        "success": "success rate",
        "return": "return",
        "success_from_fork": "success from the fork",
        "rarer": "share of the rarer way there",
    },
    **{task: {"return": "return"} for task in CONTROL},
    "Endurance": {"finite": "share of runs without NaN", "return": "return"},
}


def results(task: str) -> dict[str, dict]:
    """By method, in the order of `NAMES`."""
    paths = {name: HERE / "results" / f"{task}-{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def panels(found: dict[str, dict], title) -> tuple:
    """A column a method: an axis for the ways it takes and below it one for its actions, with its first seed."""
    size = {"figsize": (2.6 * len(found), 5.4), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(2, len(found), **size)
    for (above, below), (name, result) in zip(axes.T, found.items(), strict=True):
        above.set_title(f"{NAMES[name]}\n{title(result)}", fontsize=9)
        for axis in (above, below):
            axis.set_aspect("equal")
            axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel("ways", fontsize=9)
    axes[1, 0].set_ylabel("actions", fontsize=9)
    return figure, zip(*axes, found.values(), strict=True)


def draw_multi_goal(found: dict[str, dict]) -> None:
    """Ways from the middle, and actions at rest there and at (0, 4)."""
    figure, parts = panels(found, lambda r: f"{r['coverage'][0]:.0f} goals, return {r['return'][0]:.1f}")
    places = np.asarray(goals(MultiGoal.default_params))
    for above, below, result in parts:
        ways = np.array(result["ways"], float)  # [time, trajectory, 2]
        ways = np.concatenate([np.zeros_like(ways[:1]), ways])
        above.plot(*ways.transpose(2, 0, 1), lw=0.6, alpha=0.6, color="tab:blue")
        above.plot(*places.T, "*", color="tab:red", ms=9)
        above.plot(0, 4, "o", color="tab:orange", ms=4)
        above.set(xlim=(-8, 8), ylim=(-8, 8))
        for actions, color in zip(np.array(result["actions"]), ("tab:blue", "tab:orange"), strict=True):
            below.plot(*actions.T, ".", ms=3, alpha=0.5, color=color)
        below.set(xlim=(-9, 9), ylim=(-9, 9))
    save(figure, "multigoal.png")


def draw_grid_world(found: dict[str, dict]) -> None:
    """Ways from the saddle, and actions there; beyond half a unit they move."""
    figure, parts = panels(found, lambda r: f"up {r['up'][0]:.0%}, down {r['down'][0]:.0%}")
    for above, below, result in parts:
        ways = np.array(result["ways"], float)
        ways = np.concatenate([np.zeros_like(ways[:1]), ways])
        for border in (-1.04, 0.87):
            above.axhspan(border, border + 0.17, color="tab:red", alpha=0.25, lw=0)
        above.plot(*ways.transpose(2, 0, 1), lw=0.6, alpha=0.6, color="tab:blue")
        above.set(xlim=(-1.04, 1.04), ylim=(-1.04, 1.04))
        below.axhspan(-0.5, 0.5, color="0.93", zorder=0)
        below.plot(*np.clip(np.array(result["actions"]), -1, 1).T, ".", ms=3, alpha=0.5)
        below.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    save(figure, "gridworld.png")


def draw_point_maze(found: dict[str, dict]) -> None:
    """Ways from one place to another to which two are equally long, and actions at rest at the start."""
    figure, parts = panels(
        found, lambda r: f"arrive {r['success_from_fork'][0]:.0%}, rarer way {r['rarer'][0] or 0:.0%}"
    )
    walls, (start, goal) = layout(MAZES["medium"][0]), FORK
    picture = {"cmap": "gray", "vmin": 0, "vmax": 1, "extent": (0, walls.shape[1], walls.shape[0], 0)}
    for above, below, result in parts:
        ways = np.array(result["ways"], float)
        above.imshow(np.where(walls, 0.6, 1.0), **picture)
        above.plot(*ways.transpose(2, 0, 1)[::-1], lw=0.6, alpha=0.6, color="tab:blue")
        above.plot(*start[::-1], "o", color="tab:orange", ms=6)
        above.plot(*goal[::-1], "*", color="tab:red", ms=10)
        below.plot(*np.clip(np.array(result["actions"]), -1, 1)[0, :, ::-1].T, ".", ms=3, alpha=0.5, color="tab:orange")
        below.set(xlim=(-1.1, 1.1), ylim=(1.1, -1.1))  # as the maze is drawn: right, and down
    save(figure, "pointmaze.png")


def draw_control(found: dict[str, dict[str, dict]]) -> None:
    """Training return of each task by environment steps and by processor time: mean over seeds and its interval."""
    size = {"figsize": (9, 2.8 * len(found) + 0.6), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(len(found), 2, **size)
    for axes, (task, results) in zip(panels, found.items(), strict=True):
        for color, (name, result) in zip(plt.cm.tab10.colors, results.items(), strict=False):
            curve = np.array(result["curve"], float)  # [S, points]
            share = (np.arange(curve.shape[1]) + 1) / curve.shape[1]
            known = ~np.isnan(curve).any(axis=0)
            bands = [interval([seeds]) for seeds in curve.T[known]]
            value, low, high = ([band[key] for band in bands] for key in ("value", "low", "high"))
            spans = (result["steps"], result["cpu_seconds"]["run"] / len(curve))
            for axis, span, label in zip(axes, spans, ("environment steps", "processor seconds of a run"), strict=True):
                axis.plot(span * share[known], value, color=color, label=NAMES[name])
                axis.fill_between(span * share[known], low, high, color=color, alpha=0.2, lw=0)
                axis.set(xlabel=label)
                axis.grid(alpha=0.3)
                axis.xaxis.set_major_formatter(EngFormatter())
        axes[0].set(ylabel=f"{task}\nreturn in training")
        axes[1].set_xscale("log", subs=[2, 5])
        axes[1].xaxis.set_major_formatter(EngFormatter())
        axes[1].xaxis.set_minor_formatter(EngFormatter())
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    save(figure, "control.png", dpi=75)


def save(figure, name: str, dpi: int = 100) -> None:
    figure.savefig(HERE / name, dpi=dpi)
    plt.close(figure)


def table(task: str, found: dict[str, dict]) -> str:
    """Means over seeds and their 95 % bootstrap intervals."""
    columns = {key: text for key, text in COLUMNS[task].items() if any(key in result for result in found.values())}
    rows = [f"| method | {' | '.join(columns.values())} |", f"| --- |{' --: |' * len(columns)}"]
    for name, result in found.items():
        cells = [cell(result[key]) if key in result else "" for key in columns]
        rows.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def cell(values: list[float | None]) -> str:
    known = np.array([value for value in values if value is not None])
    if len(known) < len(values):
        return f"undefined on {len(values) - len(known)} of {len(values)} seeds"
    found = interval([known])
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def main() -> None:
    readme = HERE / "README.md"
    text = readme.read_text()
    drawings = {"MultiGoal": draw_multi_goal, "GridWorld": draw_grid_world, "PointMaze": draw_point_maze}
    there = {task: found for task in COLUMNS if (found := results(task))}
    for task, found in there.items():
        if task in drawings:
            drawings[task](found)
        first = next(iter(found.values()))
        note = f"{first['steps']:,} environment steps, {len(first['seeds'])} seeds: mean [95 % interval].\n\n"
        assert all(result["steps"] == first["steps"] for result in found.values())
        text = fill(text, {task: f"{note}{table(task, found)}\n"})
    if control := {task: there[task] for task in CONTROL if task in there}:
        draw_control(control)
    readme.write_text(text)


if __name__ == "__main__":
    main()
