"""Policy objectives that evolution finds: LPO and TA-LPO beside policy gradient, PPO, DPO and SPO.

    python experiments/discovery/compare.py                   # an hour of two cores each
    python experiments/discovery/compare.py --short

Each is one `rlx discover` over the same environments with the same budget, which is evaluated there and on environments
that it did not see. What is interrupted is gone on with by the same command.
"""

import shutil
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np

from rlx import cli, meta
from rlx.files import read_json, read_rows
from rlx.meta import pictures
from rlx.objectives import DPO, SPO, Clip
from rlx.report import experiment, interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
TASKS = {"lpo": "LPO", "talpo": "TA-LPO"}
TRAIN = "CartPole-v1:30000,Acrobot-v1:30000"
HOLDOUT = "Pendulum-v1:80000,Catch-bsuite:30000,MountainCar-v0:60000,mjx/cartpole:80000"
GENERATIONS, POPULATION = 60, 32
SHORT = ["--generations", "2", "--population", "4", "--train", "CartPole-v1:2048", "--holdout", "Acrobot-v1:8192"]


def measure(kind: str, directory: Path, options: list[str]) -> dict[str, Any]:
    """Evolution, which is resumed where it was begun, and what it led to."""
    begun = (directory / "discovery.json").exists()
    cli.main(["discover", kind, *(["--resume", str(directory)] if begun else [*options, "--out", str(directory)])])
    about, rows = read_json(directory / "discovery.json"), read_rows(directory / "generations.jsonl")
    keep = ("generation", "fitness", "proposed")
    return {
        "task": kind,
        "options": about["options"],
        "scales": about["scales"],
        "versions": about["versions"],
        "generations": [{name: round(row[name], 4) for name in keep if name in row} for row in rows],
        "evaluation": read_json(directory / "evaluation.json"),
    }


def rows(results: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """By environment and objective: the returns of all seeds that have one."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind, result in results.items():
        for row in result["evaluation"]:
            env = f"{row['env']}, held out" if row["held_out"] else row["env"]
            name = TASKS[kind] if row["objective"] == kind.upper() else row["objective"]
            found.setdefault(env, {}).setdefault(name, [value for value in row["returns"] if value is not None])
    return found


def table(results: dict[str, dict]) -> str:
    """Returns after training, a row an environment."""
    found = rows(results)
    names = list(dict.fromkeys([*(TASKS[kind] for kind in results), *(name for env in found.values() for name in env)]))
    lines = [["environment", *names], ["---", *["--:"] * len(names)]]
    for env, by_name in found.items():
        scores = [interval([np.array(by_name[name])]) if by_name.get(name) else None for name in names]
        lines.append([env, *("{value:.4g} [{low:.4g}, {high:.4g}]".format(**s) if s else "" for s in scores)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(results: dict[str, dict], path: Path) -> None:
    """Fitness of the population and of what it proposes, by generations."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for i, (kind, result) in enumerate(results.items()):
        found = result["generations"]
        number = [row["generation"] for row in found]
        axes.plot(number, [row["fitness"] for row in found], color=f"C{i}", lw=0.8, alpha=0.5)
        looked = [(row["generation"], row["proposed"]) for row in found if "proposed" in row]
        axes.plot(*zip(*looked, strict=True), "D-", color=f"C{i}", ms=4, label=TASKS[kind])
    found = rows(results)
    scales = next(iter(results.values()))["scales"]
    for shade, name in zip(("0.2", "0.5", "0.65", "0.8"), ("policy gradient", "PPO", "DPO", "SPO"), strict=True):
        of = [(np.mean(found[env][name]) - low) / (high - low) for env, (low, high) in scales.items()]
        axes.axhline(np.mean(of), color=shade, ls="--", lw=1.2, label=name)
    axes.set(xlabel="generation", ylabel="fitness: 0 untrained, 1 PPO")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(task: Literal[*TASKS] | None = None, short: bool = False, runs: Path = Path("runs/discovery")) -> None:
    """Measures what has no result yet, then draws the figures and writes the table.

    Args:
        task: only this one.
        short: two generations, to see that everything works; all of it stays below `runs`.
        runs: folder of what evolution leaves behind; to have a case measured again, remove its result and its folder.
    """
    folder, runs = (runs / "short", runs / "short" / "runs") if short else (HERE, runs)
    options = ["--train", TRAIN, "--holdout", HOLDOUT, "--generations", str(GENERATIONS)]
    options += ["--population", str(POPULATION)]

    def run(kind):
        result = measure(kind, runs / kind, SHORT if short else options)
        shutil.copy(runs / kind / "objective.npz", folder / "results" / f"{kind}.npz")
        return result

    experiment(folder, {kind: kind for kind in TASKS}, run, draw, table, lambda kind: task in (None, kind))
    learned = {kind: meta.load(path) for kind in TASKS if (path := folder / "results" / f"{kind}.npz").exists()}
    shown = {"LPO": learned["lpo"]} if "lpo" in learned else {}
    if "talpo" in learned:
        shown |= {f"TA-LPO at {share:.0%}": (learned["talpo"], share) for share in (0.0, 0.5, 1.0)}
    pictures.drifts(shown | {"PPO": Clip(0.2), "DPO": DPO(), "SPO": SPO(0.2)}, folder / "drifts.png")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
