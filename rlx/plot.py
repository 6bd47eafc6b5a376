"""Learning curves as pictures."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rlx.run import short_name


def rows(run: Path) -> list[dict[str, Any]]:
    """The logged rows of a run directory. A last line that a crash cut short is left out."""
    if not (run / "metrics.jsonl").exists():  # stopped before its first update
        return []
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise
    return found


def smooth(values: np.ndarray, weights: np.ndarray, width: int) -> np.ndarray:
    """Centred moving average over `width` rows, each weighted; NaN where a window has no weight."""
    kernel = np.ones(width)
    total = np.convolve(np.where(weights > 0, np.nan_to_num(values) * weights, 0.0), kernel, mode="same")
    weight = np.convolve(weights, kernel, mode="same")
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def curve(runs: list[Path], path: Path) -> None:
    """Draws the training return of every run against environment steps, and its final evaluation, into `path`.

    Dots are logged rows (means over the episodes that ended within them), lines their moving average over 5 % of the
    run weighted by episodes, the diamond with a bar the final evaluation: mean and standard deviation over episodes.
    """
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    titles = set()
    for run in runs:
        config = json.loads((run / "config.json").read_text())
        title = f"{short_name(config['algorithm']).upper()} on {config['env']}"
        titles.add(title)
        logged = [row for row in rows(run) if row.get("episode_return") is not None]
        if not logged:
            continue
        steps, returns, weights = (
            np.array([row[name] for row in logged], float) for name in ("step", "episode_return", "num_episodes")
        )
        label = f"seed {config['seed']}" if len(runs) == 1 else f"{run.name}"
        (line,) = axes.plot(
            steps, smooth(returns, weights, max(1, len(logged) // 20)), label=f"training, {label}", lw=2
        )
        if len(runs) == 1:
            axes.plot(steps, returns, ".", color=line.get_color(), alpha=0.25, ms=3, zorder=1)
        if (run / "evaluation.json").exists():
            evaluation = json.loads((run / "evaluation.json").read_text())
            text = f"final evaluation, {evaluation['mean']:.1f} ± {evaluation['std']:.1f}"
            axes.errorbar(
                evaluation["step"],
                evaluation["mean"],
                yerr=evaluation["std"],
                fmt="D",
                color=line.get_color() if len(runs) > 1 else "black",
                label=text if len(runs) == 1 else None,
                capsize=4,
                clip_on=False,
            )
    axes.set_xlabel("environment steps")
    axes.set_ylabel("episode return")
    axes.set_title(", ".join(sorted(titles)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
