"""Pictures of the return against what was varied."""

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from rlx.algorithm import short_name
from rlx.plot.style import COLOURS, GREY, LINE, add_legend, make_panels, one_environment, save_figure, tidy, title_of
from rlx.report.read import setting_text
from rlx.report.statistics import interval, iqm
from rlx.report.text import decimals


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
    figure, panels = make_panels(len(names), 3.6, 3.0, sharey=True)
    for axes, name in zip(panels, names, strict=True):
        _sensitivity_panel(axes, name, [lane for lane in lanes if name in lane["varied"]])
    for axes in panels[:: min(3, len(panels))]:
        axes.set_ylabel(f"final evaluation {lanes[0].get('result', 'return')}")
    if any(lane["died_at"] is not None for lane in lanes):
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(low - 0.05 * (high - low), high)  # room for the crosses
    handles = {}
    for axes in panels:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    add_legend(figure, handles.values(), handles.keys())
    figure.suptitle(f"{title_of(lanes)}: {len(lanes)} runs", fontsize=11)
    save_figure(figure, path)


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
        dark = not np.isnan(value) and np.less(image.norm(value), 0.55)
        text = "\n".join([number, *texts.get((row, column), [])])
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color="white" if dark else "0.1")
    axes.set_xticks(np.arange(len(columns)) + 0.5, [setting_text(value) for value in columns])
    axes.set_yticks(np.arange(len(lines)) + 0.5, [setting_text(value) for value in lines])
    axes.set(xlabel=x, ylabel=y)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=f"final evaluation {lanes[0].get('result', 'return')}, IQM")
    over = [f"{len(varied[name])} values of {name}" for name in varied if name not in (x, y)]
    size = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else f"{max(sizes)}"
    text = textwrap.fill("IQM over " + " and ".join(["seeds", *over]), int(14 * figure.get_size_inches()[0]))
    figure.suptitle(f"{title_of(lanes)}\n{text}\n{size} runs a cell", fontsize=9)
    save_figure(figure, path)


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
    tidy(axes)


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
    one_environment(sorted({lane["task"] for lane in lanes}), "tasks")
    one_environment(sorted({short_name(lane["algorithm"]) for lane in lanes}), "algorithms")
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


def _log_spaced(values: list[float]) -> bool:
    """Whether the middle value is nearer to the geometric than to the arithmetic mean of the ends; of two, if far."""
    low, middle, high = values[0], float(np.median(values)), values[-1]
    if low <= 0 or len(values) < 3:
        return low > 0 and high >= 100 * low
    return high > low and abs(middle - math.sqrt(low * high)) < abs(middle - (low + high) / 2)
