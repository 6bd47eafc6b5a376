"""Runs as pictures: learning curves, and how the final return depends on hyperparameters."""

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from rlx import report
from rlx.report import decimals, interval, iqm, read_json, setting_text
from rlx.run import read_rows, short_name

# Told apart by colour-blind eyes: Petroff 2021, arXiv:2107.02270; without its two greys.
COLOURS = [colour for i, colour in enumerate(matplotlib.color_sequences["petroff10"]) if i not in (3, 8)]
GREY = "0.65"
MAX_BANDS = 4  # intervals that can overlap and be told apart
LINE = {"color": "black", "lw": 1.4, "zorder": 5}
DPI = 130


def smooth(values: np.ndarray, weights: np.ndarray, width: int) -> np.ndarray:
    """Centred moving average over `width` rows, each weighted; NaN where a window has no weight."""
    kernel = np.ones(width)
    total = np.convolve(np.where(weights > 0, np.nan_to_num(values) * weights, 0.0), kernel, mode="same")
    weight = np.convolve(weights, kernel, mode="same")
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def losses(rows: list[dict[str, float]], path: Path) -> None:
    """Draws the losses of behaviour cloning against gradient steps into `path`, see `rlx.cloning.clone`."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    steps = [row["gradient_step"] for row in rows]
    for name, label, colour in zip(("loss", "validation_loss"), ("learned from", "held out"), COLOURS, strict=False):
        axes.plot(steps, [row[name] for row in rows], label=label, color=colour, lw=2)
    axes.set(xlabel="gradient steps", ylabel="loss")
    axes.legend()
    figure.savefig(path, dpi=DPI)


def curve(runs: list[Path], path: Path) -> None:
    """Draws the training return of every run against environment steps, and its final evaluation, into `path`.

    Dots are logged rows (means over the episodes that ended within them), lines their moving average over 5 % of the
    run weighted by episodes, the diamond with a bar the final evaluation: mean and standard deviation over episodes.

    Raises:
        ValueError: when the runs are on several environments.
    """
    configs = [read_json(run / "config.json") for run in runs]
    _one(sorted({str(config["env"]) for config in configs}), "environments")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    for run, config in zip(runs, configs, strict=True):
        logged = [row for row in read_rows(run / "metrics.jsonl") if row.get("episode_return") is not None]
        if not logged:
            continue
        steps, returns, weights = _series(logged)
        label = f"seed {config['seed']}" if len(runs) == 1 else f"{run.name}"
        width = max(1, len(logged) // 20)
        over = f", moving average over {width / len(logged):.0%} of the run" if width > 1 and len(runs) == 1 else ""
        (line,) = axes.plot(steps, smooth(returns, weights, width), label=f"training, {label}{over}", lw=2)
        if len(runs) == 1:
            style = {"color": line.get_color(), "alpha": 0.25, "ms": 3, "zorder": 1}
            axes.plot(steps, returns, ".", label="mean of the episodes that ended in a row of the log", **style)
        if (run / "evaluation.json").exists():
            evaluation = read_json(run / "evaluation.json")
            mean, std = float(evaluation["mean"]), float(evaluation["std"])  # may be "nan" or "inf"
            text = f"final evaluation, {mean:.1f} ± {std:.1f} (standard deviation of an episode)"
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
    axes.set(xlabel="environment steps", ylabel="episode return")
    axes.set_title(", ".join(sorted({f"{short_name(c['algorithm']).upper()} on {c['env']}" for c in configs})))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _tidy(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)
    _save(figure, path)


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
    for (task, group), members in _by(runs, "task", "group").items():
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

    figure, panels = _panels(len(curves), 6.5 if len(curves) == 1 else 4.6, 3.4)
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
        _tidy(axes)
    panels[0].set_ylabel("training return, IQM")

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
    _legend(figure, *zip(*legend, strict=True))
    _save(figure, path)


def sensitivity(lanes: Sequence[dict[str, Any]], path: Path, names: Sequence[str] | None = None) -> None:
    """Draws the final evaluation return of every run against each hyperparameter into `path`, a panel each.

    Where configurations share values (a grid), the line is the interquartile mean per value over seeds and all other
    settings. Its bar is the 95 % bootstrap interval over seeds, stratified by configuration, where every value was
    tried with the same other settings (none where a configuration has one seed), else over configurations, by the
    means over their seeds. Where every configuration has its own value (random draws), the line is the median of the
    fifth of the runs around it and the band their quartiles, which is a spread and no interval. Runs that died are
    crosses at the bottom, besides their last finite score; runs stopped early are grey and in no line.

    Args:
        lanes: runs of one algorithm on one task, from `rlx.report.runs`.
        path: of the picture.
        names: the hyperparameters; all that were varied when None.

    Raises:
        ValueError: no runs with a score, several tasks or algorithms, or a hyperparameter that was not varied.
    """
    varied = _varied(lanes)
    names = list(varied) if names is None else list(names)
    for name in names:
        _check_name(name, varied)
    figure, panels = _panels(len(names), 3.6, 3.0, sharey=True)
    for axes, name in zip(panels, names, strict=True):
        _sensitivity_panel(axes, name, [lane for lane in lanes if name in lane["varied"]])
    for axes in panels[:: min(3, len(panels))]:
        axes.set_ylabel("final evaluation return")
    if any(lane["died_at"] is not None for lane in lanes):
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(low - 0.05 * (high - low), high)  # room for the crosses
    handles = {}
    for axes in panels:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _legend(figure, handles.values(), handles.keys())
    figure.suptitle(f"{_title(lanes)}: {len(lanes)} runs", fontsize=11)
    _save(figure, path)


def heatmap(lanes: Sequence[dict[str, Any]], x: str, y: str, path: Path, most: int = 20) -> None:
    """Draws the interquartile mean of the final evaluation return for every pair of values of `x` and `y` into `path`.

    A cell is over the seeds and over all other settings that were varied, as the title says. Runs that died are in it
    with their last finite score, and counted; runs stopped early are not in it.

    Args:
        lanes: runs of one algorithm on one task, from `rlx.report.runs`.
        x, y: two hyperparameters that were varied on a grid.
        path: of the picture.
        most: values of a hyperparameter up to which it counts as a grid.

    Raises:
        ValueError: as `sensitivity`, and for `x` equal to `y` or more values than a grid has.
    """
    varied = _varied(lanes)
    for name in (x, y):
        _check_name(name, varied)
        if len(varied[name]) > most:
            raise ValueError(f"{name} has {len(varied[name])} values: a heatmap needs a grid; draw its sensitivity")
    if x == y:
        raise ValueError(f"x and y are both {x}: give two hyperparameters of {', '.join(varied)}")
    columns, lines = varied[x], varied[y]
    cells = {}
    for lane in lanes:
        if x in lane["varied"] and y in lane["varied"]:
            place = lines.index(lane["varied"][y]), columns.index(lane["varied"][x])
            cells.setdefault(place, []).append(lane)
    values = np.full((len(lines), len(columns)), np.nan)
    texts, sizes = {}, set()
    for place, members in cells.items():
        whole = [lane for lane in members if lane["dropped_at"] is None]
        scores = [lane["score"] for lane in whole if lane["score"] is not None]
        sizes.add(len(scores))
        values[place] = iqm(np.array(scores)) if scores else np.nan
        died = sum(lane["died_at"] is not None for lane in members)
        early = len(members) - len(whole)
        texts[place] = [f"{early} stopped"] * (early > 0) + [f"{died} died"] * (died > 0)
    if np.isnan(values).all():
        raise ValueError("every run was stopped early: there is no return at the end to draw")

    figure = Figure(figsize=(2.4 + 0.75 * len(columns), 2.0 + 0.55 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.93")
    image = axes.pcolormesh(values, cmap="cividis", edgecolors="white", lw=1.5)
    digits = decimals(values[~np.isnan(values)])
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        number = "-" if np.isnan(value) else f"{value:.{digits}f}"
        dark = not np.isnan(value) and image.norm(value) < 0.55
        text = "\n".join([number, *texts.get((row, column), [])])
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color="white" if dark else "0.1")
    axes.set_xticks(np.arange(len(columns)) + 0.5, [setting_text(value) for value in columns])
    axes.set_yticks(np.arange(len(lines)) + 0.5, [setting_text(value) for value in lines])
    axes.set(xlabel=x, ylabel=y)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="final evaluation return, IQM")
    over = [f"{len(varied[name])} values of {name}" for name in varied if name not in (x, y)]
    size = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else f"{max(sizes)}"
    text = textwrap.fill("IQM over " + " and ".join(["seeds", *over]), int(14 * figure.get_size_inches()[0]))
    figure.suptitle(f"{_title(lanes)}\n{text}\n{size} runs a cell", fontsize=9)
    _save(figure, path)


def population(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws what population-based training did into `path`: the return and every setting that varied, over the steps.

    A line is a member; it jumps where the member copied another one. The member that ends best is in colour.

    Args:
        rows: of the population's log, lists over its members.
        path: of the picture.
    """
    steps = [row["step"] for row in rows]
    names = [name for name in rows[0] if name.startswith("varied.")]
    series = {"training return": "episode_return"} | {name.removeprefix("varied."): name for name in names}
    values = {label: np.array([row[name] for row in rows], float) for label, name in series.items()}
    last = np.where(np.isfinite(values["training return"][-1]), values["training return"][-1], -np.inf)
    figure, panels = _panels(len(series), 3.6, 3.0)
    for axes, (label, columns) in zip(panels, values.items(), strict=True):
        for member in np.argsort(last):
            best = member == last.argmax()
            style = {"color": COLOURS[0], "lw": 2.0} if best else {"color": GREY, "lw": 0.8}
            axes.step(steps, columns[:, member], where="post", **style)
        if label != "training return" and 0 < 10 * columns.min() < columns.max():
            axes.set_yscale("log")
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _tidy(axes)
    marks = (Line2D([], [], color=COLOURS[0], lw=2.0), Line2D([], [], color=GREY, lw=0.8))
    _legend(figure, marks, ("the member that ends best", "the others; a member jumps where it copies another"))
    figure.suptitle(f"Population of {len(last)} members", fontsize=11)
    _save(figure, path)


def _sensitivity_panel(axes: Any, name: str, lanes: list[dict[str, Any]]) -> None:
    values = _distinct(lane["varied"][name] for lane in lanes)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    log = numbers and _log_spaced(values)
    shared = len(values) < len({lane["group"] for lane in lanes}) or (
        len(lanes[0]["varied"]) == 1 and len(values) <= 20
    )
    if log:
        axes.set_xscale("log")

    def at(lane: dict[str, Any]) -> float:
        value = lane["varied"][name]
        return (math.log10(value) if log else value) if numbers else values.index(value)

    places = np.array([at(lane) for lane in lanes], float)
    width = np.ptp(places) or 1.0
    jitter = np.random.default_rng(0).uniform(-0.025, 0.025, len(lanes)) * width if shared else 0.0
    x = 10 ** (places + jitter) if log else places + jitter
    score = np.array([np.nan if lane["score"] is None else lane["score"] for lane in lanes])
    early = np.array([lane["dropped_at"] is not None for lane in lanes])
    died = np.array([lane["died_at"] is not None for lane in lanes])
    dots = {"marker": "o", "s": 11, "lw": 0.7}
    for chosen, style, label in (
        (~early & ~died, {"color": COLOURS[0], "alpha": 0.45, "lw": 0}, "a run"),
        (early, {"color": GREY, "alpha": 0.6, "lw": 0}, "stopped early, return then; in no line"),
        (died & ~early, {"facecolors": "none", "edgecolors": COLOURS[2]}, None),
    ):
        if (chosen & ~np.isnan(score)).any():
            axes.scatter(x[chosen], score[chosen], **(dots | style), label=label)
    if died.any():
        bottom = axes.get_xaxis_transform()  # x in data, y in the panel
        style = {"marker": "x", "s": 18, "lw": 1, "color": COLOURS[2], "transform": bottom}
        label = "died of NaN; circle: last finite state"
        axes.scatter(x[died], np.full(died.sum(), 0.02), label=label, **style)

    whole = [lane for lane in lanes if lane["dropped_at"] is None and lane["score"] is not None]
    back = (lambda place: 10.0**place) if log else (lambda place: place)
    if shared and whole:
        _line_per_value(axes, name, whole, lambda lane: back(at(lane)), "o-" if numbers else "o")
    elif len(whole) >= 5:
        _running_median(axes, sorted(whole, key=at), at, back)

    if not numbers:
        axes.set_xlim(-0.5, len(values) - 0.5)
    if not numbers or (shared and len(values) <= 8):
        axes.xaxis.set_major_locator(FixedLocator(values if numbers else range(len(values))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([setting_text(value) for value in values])
    axes.set_xlabel(name)
    _tidy(axes)


def _line_per_value(axes, name, lanes, at, style):
    groups = {}
    for lane in sorted(lanes, key=at):
        groups.setdefault(at(lane), {}).setdefault(lane["group"], []).append(lane)
    others = [{_others(members[0], name) for members in value.values()} for value in groups.values()]
    balanced = all(other == others[0] for other in others)
    estimates = []
    for value in groups.values():
        strata = [np.array([lane["score"] for lane in members]) for members in value.values()]
        estimates.append(interval(strata if balanced else [np.array([s.mean() for s in strata])], iqm))
    values = np.array([e["value"] for e in estimates])
    ends = np.array([[e["value"] if e[end] is None else e[end] for e in estimates] for end in ("low", "high")])
    if all(e["low"] is None for e in estimates):
        axes.plot(list(groups), values, style, ms=3, label="IQM per value; one seed, no interval", **LINE)
        return
    label = f"IQM per value, 95 % interval over {'seeds' if balanced else 'settings'}"
    axes.errorbar(list(groups), values, np.abs(ends - values), fmt=style, ms=3, capsize=2.5, label=label, **LINE)


def _running_median(axes, lanes, at, back):
    count = max(5, math.ceil(len(lanes) / 5))
    windows = np.lib.stride_tricks.sliding_window_view
    middle = back(np.median(windows([at(lane) for lane in lanes], count), axis=-1))
    low, median, high = np.quantile(windows([lane["score"] for lane in lanes], count), (0.25, 0.5, 0.75), axis=-1)
    axes.plot(middle, median, label=f"median of {count} nearest runs, and quartiles", **LINE)
    axes.fill_between(middle, low, high, color="black", alpha=0.12, lw=0, zorder=1)


def _others(lane, name):
    return json.dumps({field: value for field, value in lane["varied"].items() if field != name}, sort_keys=True)


def _varied(lanes: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values that every varied setting takes, sorted; after a check that the runs belong in one picture."""
    if not len(lanes):
        raise ValueError("there are no runs to draw")
    _one(sorted({lane["task"] for lane in lanes}), "tasks")
    _one(sorted({short_name(lane["algorithm"]) for lane in lanes}), "algorithms")
    if all(lane["score"] is None for lane in lanes):
        raise ValueError(f"none of these {len(lanes)} runs was evaluated: there is nothing to draw")
    names = dict.fromkeys(name for lane in lanes for name in lane["varied"])
    if not names:
        raise ValueError("these runs differ in nothing but their seed: there is no hyperparameter to draw")
    return {name: _distinct(lane["varied"][name] for lane in lanes if name in lane["varied"]) for name in names}


def _distinct(values: Iterable[Any]) -> list[Any]:
    found = []
    for value in values:
        if value not in found:
            found.append(value)
    try:
        return sorted(found)
    except TypeError:  # None among numbers, or the like
        return sorted(found, key=str)


def _check_name(name: str, varied: dict[str, list[Any]]) -> None:
    if name not in varied:
        raise ValueError(f"{name} was not varied in these runs: there are {', '.join(varied)}")


def _one(values: list[str], what: str) -> None:
    if len(values) > 1:
        raise ValueError(
            f"one picture cannot compare returns of several {what}: {', '.join(values)}; draw one at a time"
        )


def _log_spaced(values: list[float]) -> bool:
    """Whether the middle value is nearer to the geometric than to the arithmetic mean of the ends; of two, if far."""
    low, middle, high = values[0], float(np.median(values)), values[-1]
    if low <= 0 or len(values) < 3:
        return low > 0 and high >= 100 * low
    return high > low and abs(middle - math.sqrt(low * high)) < abs(middle - (low + high) / 2)


def _by(runs: Sequence[dict[str, Any]], *keys: str) -> dict[Any, list[dict[str, Any]]]:
    found = {}
    for run in runs:
        found.setdefault(tuple(run[key] for key in keys), []).append(run)
    return found


def _title(lanes: Sequence[dict[str, Any]]) -> str:
    return f"{short_name(lanes[0]['algorithm']).upper()} on {lanes[0]['task']}"


def _series(logged: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, returns (NaN where no episode ended) and episodes of logged rows."""
    return tuple(np.array([row[name] for row in logged], float) for name in ("step", "episode_return", "num_episodes"))


def _logged(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The series of a run; one that died goes on to its planned end without episodes."""
    if "curve" in run:
        columns = (run["curve"][name] for name in ("step", "episode_return", "num_episodes"))
        (steps, returns, weights), end = (np.array(column, float) for column in columns), run["planned_steps"]
    else:
        directory = Path(run["path"])
        steps, returns, weights = _series(read_rows(directory / "metrics.jsonl"))
        end = read_json(directory / "config.json")["steps"]
    if run["died_at"] is not None:
        steps, returns, weights = np.append(steps, end), np.append(returns, np.nan), np.append(weights, 0.0)
    return steps, returns, weights


def _panels(count: int, width: float, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, three a row."""
    columns, lines = min(3, count), math.ceil(count / 3)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **options)
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, list(axes.flat[:count])


def _legend(figure: Any, handles: Iterable[Any], labels: Iterable[str]) -> None:
    """A legend below the panels, for which the figure grows, in as many columns as its longest text leaves room for."""
    labels = list(labels)
    width, height = figure.get_size_inches()
    columns = max(1, min(len(labels), int(width / (0.6 + 0.068 * max(map(len, labels))))))
    figure.set_size_inches(width, height + 0.2 + 0.17 * math.ceil(len(labels) / columns))
    figure.legend(list(handles), labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
