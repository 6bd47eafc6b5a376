"""Runs as pictures: learning curves, and how the final return depends on hyperparameters."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from rlx import report
from rlx.algorithm import short_name
from rlx.files import read_json, read_rows
from rlx.plot.style import (
    COLOURS,
    DPI,
    GREY,
    MAX_BANDS,
    add_legend,
    grouped,
    make_panels,
    one_environment,
    save_figure,
    tidy,
)


def smooth(values: np.ndarray, weights: np.ndarray, width: int) -> np.ndarray:
    """Centred moving average over `width` rows, each weighted; NaN where a window has no weight."""
    kernel = np.ones(width)
    total = np.convolve(np.where(weights > 0, np.nan_to_num(values) * weights, 0.0), kernel, mode="same")
    weight = np.convolve(weights, kernel, mode="same")
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def losses(rows: list[dict[str, float]], path: Path) -> None:
    """Draws the losses of behaviour cloning against gradient steps into `path`, see `rlx.data.cloning.clone`."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    steps = [row["gradient_step"] for row in rows]
    for name, label, colour in zip(("loss", "validation_loss"), ("learned from", "held out"), COLOURS, strict=False):
        axes.plot(steps, [row[name] for row in rows], label=label, color=colour, lw=2)
    axes.set(xlabel="gradient steps", ylabel="loss")
    axes.legend()
    figure.savefig(path, dpi=DPI)


def curve(runs: list[Path], path: Path, y: str = "return") -> None:
    """Draws the training return of every run against environment steps, and its final evaluation, into `path`.

    `y` is what to draw in place of the return: a name that the environment reports.

    Dots are logged rows (means over the episodes that ended within them), lines their moving average over 5 % of the
    run weighted by episodes, the diamond with a bar the final evaluation: mean and standard deviation over episodes, of
    which only that of returns is known. A run in which no episode has ended, as it learns
    from data, has its evaluations.

    Raises:
        ValueError: when the runs are on several environments.
    """
    configs = [read_json(run / "config.json") for run in runs]
    one_environment(sorted({str(config["env"]) for config in configs}), "environments")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    units = set()
    for run, config in zip(runs, configs, strict=True):
        logged = [row for row in read_rows(run / "metrics.jsonl") if row.get(f"episode_{y}") is not None]
        units.add("environment steps" if logged or "data" not in config else "gradient steps")
        if not logged:  # it plays no episodes: it learns from data
            axes.plot(*_evaluated(run, y), "o-", label=f"evaluations, {run.name}" if len(runs) > 1 else "evaluations")
            continue
        steps, returns, weights = _series(logged, y)
        label = f"seed {config['seed']}" if len(runs) == 1 else f"{run.name}"
        width = max(1, len(logged) // 20)
        over = f", moving average over {width / len(logged):.0%} of the run" if width > 1 and len(runs) == 1 else ""
        (line,) = axes.plot(steps, smooth(returns, weights, width), label=f"training, {label}{over}", lw=2)
        if len(runs) == 1:
            style = {"color": line.get_color(), "alpha": 0.25, "ms": 3, "zorder": 1}
            axes.plot(steps, returns, ".", label="mean of the episodes that ended in a row of the log", **style)
        if (run / "evaluation.json").exists():
            evaluation = read_json(run / "evaluation.json")
            mean, std, text = _final(evaluation, y)
            mean, std = (mean, std) if math.isfinite(mean) else (math.nan, math.nan)
            axes.errorbar(
                evaluation["step"],
                mean,
                yerr=std,
                fmt="D",
                color=line.get_color() if len(runs) > 1 else "black",
                label=text if len(runs) == 1 else None,
                capsize=4,
                clip_on=False,
            )
    axes.set(xlabel=" or ".join(sorted(units)), ylabel="episode return" if y == "return" else y)
    axes.set_title(", ".join(sorted({f"{short_name(c['algorithm']).upper()} on {c['env']}" for c in configs})))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)
    save_figure(figure, path)


def _evaluated(run: Path, y: str) -> tuple[list[int], list[float]]:
    """Steps and means of the evaluations of a run."""
    rows = read_rows(run / "evaluations.jsonl")
    of = lambda row: row["mean"] if y == "return" else row["reported"].get(y, math.nan)
    return [row["step"] for row in rows], [float(of(row)) for row in rows]


def learning_curves(runs: Sequence[dict[str, Any]], path: Path, max_lines: int = len(COLOURS)) -> None:
    """Draws the training return of groups of runs against environment steps into `path`, a panel a task.

    A line is the interquartile mean over the runs of a group with its 95 % interval, as `rlx.report.curve` has it: a
    point is over the episodes that ended in the 2 % of the run before it, nothing after it enters. Intervals are bands
    around up to four lines; with more they are bars beside the ends of the lines. A run that died of NaN stays at its
    last return to the end. Runs in which no episode ended are left out, and counted in the legend; so are groups whose
    shortest run stops before every run has ended one.

    Args:
        runs: from `rlx.report.runs`.
        path: of the picture.
        max_lines: groups in colour, those that end highest, stopped ones last; the others are grey.

    Raises:
        ValueError: no runs, or none with an ended episode.
    """
    curves, counts, places, stopped = {}, {}, {}, set()
    for (task, group), members in grouped(runs, "task", "group").items():
        series = [s for s in map(_logged, members) if (s[2] > 0).any()]
        if series and max(s[0][s[2] > 0][0] for s in series) <= min(s[0][-1] for s in series):
            curves.setdefault(task, {})[group] = report.curve(*zip(*series, strict=True))
        count = (
            f"{len(series)} of " if len(series) < len(members) else ""
        ) + f"{len(members)} run{'s' * (len(members) > 1)}"
        if len({s[0][-1] for s in series}) > 1:
            count += ", to the end of the shortest"
        if any(run["dropped_at"] is not None for run in members):
            count += ", stopped early"
            stopped.add(group)
        counts.setdefault(group, {})[count] = None
    if not curves:
        raise ValueError(f"no episode had ended in these {len(runs)} runs: there is nothing to draw")
    for lines in curves.values():
        for place, group in enumerate(sorted(lines, key=lambda group: (group in stopped, -lines[group].value[-1]))):
            places.setdefault(group, []).append(place / len(lines))
    best = sorted(places, key=lambda group: np.mean(places[group]))[:max_lines]  # of several tasks: by mean place
    bands = len(best) <= MAX_BANDS

    figure, panels = make_panels(len(curves), 6.5 if len(curves) == 1 else 4.6, 3.4)
    for axes, (task, lines) in zip(panels, curves.items(), strict=True):
        for group, line in lines.items():
            if group not in best:
                axes.plot(line.steps, line.value, color=GREY, lw=0.7, zorder=1)
                continue
            place = best.index(group)
            style = {"color": COLOURS[place % len(COLOURS)], "zorder": 3 + len(best) - place}
            axes.plot(line.steps, line.value, lw=1.8, **style)
            if line.low is not None and bands:
                axes.fill_between(line.steps, line.low, line.high, alpha=0.15, lw=0, color=style["color"])
            elif line.low is not None:
                beside = line.steps[-1] * (1.02 + 0.018 * place)
                axes.plot([beside, beside], [line.low[-1], line.high[-1]], lw=3, solid_capstyle="butt", **style)
                axes.plot(beside, line.value[-1], "_", color="white", ms=4, zorder=20)
        axes.set_title(task, fontsize=10)
        axes.set(xlabel="environment steps", xlim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        tidy(axes)
    panels[0].set_ylabel(f"training {runs[0].get('result', 'return')}, IQM")

    legend = []
    for place, group in enumerate(best):
        handle = Line2D([], [], color=COLOURS[place % len(COLOURS)], lw=1.8)
        legend.append((handle, f"{group}  ({' and '.join(counts[group])})"))
    early = " or stopped early" * any(group in stopped for group in places if group not in best)
    if rest := len(places) - len(best):
        legend.append((Line2D([], [], color=GREY, lw=0.7), f"{rest} more group{'s' * (rest > 1)}, ending lower{early}"))
    if silent := [group for group in counts if group not in places]:
        names = ", ".join(silent) if len(silent) < 3 else f"{len(silent)} groups"
        legend.append((Line2D([], [], lw=0), f"{names}: no line, no episode had ended"))
    if any(line.low is not None for lines in curves.values() for line in lines.values()):
        text = "95 % interval over runs, " + ("of each point" if bands else "at the end")
        legend.append((Patch(color=GREY, alpha=0.4, lw=0), text))
    add_legend(figure, *zip(*legend, strict=True))
    save_figure(figure, path)


def population(rows: Sequence[dict[str, Any]], path: Path, y: str = "return") -> None:
    """Draws what population-based training did into `path`: the return and every setting that varied, over the steps.

    A line is a member; it jumps where the member copied another one. The member that ends best is in colour.

    Args:
        rows: of the population's log, lists over its members.
        path: of the picture.
        y: the return, or what the environment reports under that name.
    """
    steps = [row["step"] for row in rows]
    names = [name for name in rows[0] if name.startswith("varied.")]
    first = f"training {y}"
    series = {first: f"episode_{y}"} | {name.removeprefix("varied."): name for name in names}
    values = {label: np.array([row[name] for row in rows], float) for label, name in series.items()}
    last = np.where(np.isfinite(values[first][-1]), values[first][-1], -np.inf)
    figure, panels = make_panels(len(series), 3.6, 3.0)
    for axes, (label, columns) in zip(panels, values.items(), strict=True):
        for member in np.argsort(last):
            best = member == last.argmax()
            style = {"color": COLOURS[0], "lw": 2.0} if best else {"color": GREY, "lw": 0.8}
            axes.step(steps, columns[:, member], where="post", **style)
        if label != first and 0 < 10 * columns.min() < columns.max():
            axes.set_yscale("log")
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        tidy(axes)
    marks = (Line2D([], [], color=COLOURS[0], lw=2.0), Line2D([], [], color=GREY, lw=0.8))
    add_legend(figure, marks, ("the member that ends best", "the others; a member jumps where it copies another"))
    figure.suptitle(f"Population of {len(last)} members", fontsize=11)
    save_figure(figure, path)


def _final(evaluation: dict[str, Any], y: str) -> tuple[float, float, str]:
    """Mean and standard deviation of an evaluation, and both in words."""
    if y != "return":
        mean = float(evaluation.get("reported", {}).get(y, math.nan))
        return mean, math.nan, f"final evaluation, {mean:.3g}"
    mean, std = float(evaluation["mean"]), float(evaluation["std"])  # may be "nan" or "inf"
    return mean, std, f"final evaluation, {mean:.1f} ± {std:.1f} (standard deviation of an episode)"


def _series(logged: list[dict[str, Any]], y: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, returns or what `y` names (NaN where no episode ended), and episodes of logged rows."""
    column = lambda name: np.array([row.get(name) for row in logged], float)
    values = column(f"episode_{y}")
    return column("step"), values, np.where(np.isnan(values), 0.0, column("num_episodes"))


def _logged(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The series of a run. The series of a run that died reaches to its planned end, without episodes."""
    y = run.get("result", "return")
    if "curve" in run:
        rows = [dict(zip(run["curve"], row, strict=True)) for row in zip(*run["curve"].values(), strict=True)]
        (steps, returns, weights), end = _series(rows, y), run["planned_steps"]
    else:
        directory = Path(run["path"])
        steps, returns, weights = _series(read_rows(directory / "metrics.jsonl"), y)
        end = read_json(directory / "config.json")["steps"]
    if run["died_at"] is not None:
        steps, returns, weights = np.append(steps, end), np.append(returns, np.nan), np.append(weights, 0.0)
    return steps, returns, weights
