"""The data of runs and sweeps as figures of plotly, with the colours of rlx.plot.

Text and lines of the frame have no colour of their own: the style sheet of the page gives it, light or dark.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from rlx.plot.curves import smooth
from rlx.plot.style import COLOURS as PLOTTED
from rlx.plot.style import MAX_BANDS
from rlx.report.statistics import Curve
from rlx.watch.runs import Run
from rlx.watch.sweeps import Group, Lanes

COLOURS = [to_hex(colour) for colour in PLOTTED]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
GREY = "rgba(128, 128, 128, 0.35)"
MAX_GREY = 200  # lines in the background
STEPS = "environment steps"


def frame(height: int, x: str = STEPS, y: str = "", **layout: Any) -> go.Figure:
    """An empty figure of a height in pixels, with the names of its axes."""
    figure = go.Figure()
    axis: dict[str, Any] = {"zeroline": False, "showline": False, "ticks": "", "automargin": True, "fixedrange": False}
    figure.update_layout(
        template=None,
        height=height,
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12},
        hovermode="closest",
        hoverlabel={"font": {"family": FONT, "size": 12}, "namelength": -1},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        uirevision="kept",  # zoom and hidden lines outlast a refresh
        dragmode="zoom",
    )
    figure.update_xaxes(**axis, title={"text": x, "standoff": 8, "font": {"size": 13}}, tickformat="~s")
    figure.update_yaxes(**axis, title={"text": y, "standoff": 8, "font": {"size": 13}}, tickformat="~g")
    figure.update_layout(**layout)
    return figure


def message(text: str, height: int = 320) -> go.Figure:
    """A figure that says why there is nothing to be drawn yet."""
    figure = frame(height, "")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def band(line: Curve, colour: str, legendgroup: str) -> list[go.Scatter]:
    """The interval of a curve as an area without a line."""
    if line.low is None or line.high is None:
        return []
    x = np.concatenate([line.steps, line.steps[::-1]])
    y = np.concatenate([line.high, line.low[::-1]])
    style: Any = {"fill": "toself", "fillcolor": shade(colour, 0.16), "line": {"width": 0}, "hoverinfo": "skip"}
    return [go.Scatter(x=x, y=y, mode="lines", showlegend=False, legendgroup=legendgroup, name="band", **style)]


def end_bar(line: Curve, colour: str, legendgroup: str, place: int) -> list[go.Scatter]:
    """The interval of the end of a curve as a bar beside it, the `place`-th of several."""
    if line.low is None or line.high is None:
        return []
    x = [line.steps[-1] * (1.015 + 0.01 * place)] * 2
    style: Any = {"line": {"color": colour, "width": 4}, "hoverinfo": "skip"}
    y = [line.low[-1], line.high[-1]]
    return [go.Scatter(x=x, y=y, mode="lines", showlegend=False, legendgroup=legendgroup, name="interval", **style)]


def shade(colour: str, alpha: float) -> str:
    """A colour, `#rrggbb`, with an opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def run_returns(run: Run) -> go.Figure:
    """The training return of a run, as `rlx.plot.curve` draws it, and its evaluations with intervals over episodes."""
    steps, values, weights = run.curve()
    evaluated = run.evaluated()
    if not len(steps) and not evaluated:
        return message("No episode has ended yet.")
    figure = frame(380, y="episode return")
    width = max(1, len(steps) // 20)
    dots = {"color": shade(COLOURS[0], 0.3), "size": 4}
    figure.add_scatter(x=steps, y=values, mode="markers", marker=dots, name="rows of the log", hoverinfo="skip")
    line = {"color": COLOURS[0], "width": 2}
    averaged = smooth(values, weights, width) if len(steps) else values
    name = "training" if width == 1 else f"training, moving average over {width} rows"
    figure.add_scatter(x=steps, y=averaged, mode="lines", line=line, name=name)
    if evaluated:
        ends = lambda key, sign: [0.0 if row[key] is None else sign * (row[key] - row["value"]) for row in evaluated]
        bars: Any = {"type": "data", "symmetric": False, "array": ends("high", 1), "arrayminus": ends("low", -1)}
        figure.add_scatter(
            x=[row["step"] for row in evaluated],
            y=[row["value"] for row in evaluated],
            error_y=bars | {"thickness": 1.4, "width": 3},
            mode="markers",
            marker={"color": COLOURS[2], "size": 8, "symbol": "diamond"},
            name="evaluation, 95 % interval over episodes",
        )
    return figure


def panels(series: Sequence[tuple[str, Sequence[tuple[Any, Any, str, str]]]], columns: int = 3) -> go.Figure:
    """Small panels, one for each name, of lines: steps, values, colour and label."""
    if not series:
        return message("Choose metrics from the list.", 120)
    rows = -(-len(series) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[name for name, _ in series],
        horizontal_spacing=0.06,
        vertical_spacing=min(0.3, 62 / (205 * rows)),
    )
    figure.update_layout(frame(205 * rows + 20, "").layout, showlegend=False)
    figure.update_layout(margin={"t": 34})
    for i, (_, lines) in enumerate(series):
        for x, y, colour, label in lines:
            line = {"color": colour, "width": 1.5}
            figure.add_scatter(x=x, y=y, mode="lines", line=line, name=label, row=i // columns + 1, col=i % columns + 1)
    figure.update_xaxes(zeroline=False, tickformat="~s", nticks=5, automargin=True)
    figure.update_yaxes(zeroline=False, tickformat="~g", nticks=5, automargin=True)
    figure.update_annotations(font={"size": 13}, xanchor="center")
    return figure


def run_metrics(run: Run, names: Sequence[str]) -> go.Figure:
    """Metrics of the log of a run, a panel each."""
    return panels([(name, [(*run.curve(name)[:2], COLOURS[0], name)]) for name in names])


def rates(view: Run | Lanes) -> go.Figure:
    """Steps a second over the time of training, of all lanes together."""
    seconds, rate = view.rate()
    if not len(rate):
        return message("It has no two chunks yet.", 190)
    figure = frame(190, "minutes of training and evaluation", "steps/s", showlegend=False)
    line = {"color": COLOURS[0], "width": 1.5}
    figure.add_scatter(x=seconds / 60, y=rate, mode="lines+markers", line=line, marker={"size": 4}, name="steps/s")
    figure.update_yaxes(rangemode="tozero", tickformat="~s")
    figure.update_xaxes(rangemode="tozero", tickformat="~g")
    return figure


def shown(sweep: Lanes, chosen: Sequence[str], ranked: Sequence[dict[str, Any]]) -> list[Group]:
    """The groups in colour: those that were chosen, else the best of the ranking that have a curve."""
    groups = {group.id: group for group in (*sweep.groups, *sweep.members)}
    if picked := [groups[id] for id in chosen if id in groups]:
        return picked[: len(COLOURS)]
    return [row["group"] for row in ranked if row["training"] is not None][: len(COLOURS)]


def sweep_curves(sweep: Lanes, groups: Sequence[Group]) -> go.Figure:
    """Training curves of a sweep: the groups in colour with their intervals, the others in grey.

    A single group is drawn with its lanes.
    """
    others = [group for group in sweep.groups if all(group.id != own.id for own in groups)]
    others = [others[i] for i in np.unique(np.linspace(0, len(others) - 1, min(len(others), MAX_GREY)).astype(int))]
    figure = frame(420, y=f"training {sweep.result}, IQM", legend={"font": {"size": 12}})
    grey = [curve for group in others if (curve := sweep.curve(group)) is not None]
    if grey:
        gap = [np.nan]
        x = np.concatenate([part for curve in grey for part in (curve.steps, gap)]).astype(np.float32)
        y = np.concatenate([part for curve in grey for part in (curve.value, gap)]).astype(np.float32)
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": GREY, "width": 0.8}, name=f"{len(grey)} others", hoverinfo="skip"
        )
    if len(groups) == 1 and len(groups[0].lanes) > 1:
        for lane in groups[0].lanes:
            steps, values, weights = sweep.lane_curve(lane, f"episode_{sweep.result}")
            if len(steps):
                line = {"color": shade(COLOURS[0], 0.45), "width": 1}
                y = smooth(values, weights, max(1, len(steps) // 20))
                figure.add_scatter(x=steps, y=y, mode="lines", line=line, name=f"lane {lane}", showlegend=False)
    bands = len(groups) <= MAX_BANDS
    for place, group in enumerate(groups):
        if (curve := sweep.curve(group, bands=True)) is None:
            continue
        colour = COLOURS[place % len(COLOURS)]
        figure.add_traces(band(curve, colour, group.id) if bands else end_bar(curve, colour, group.id, place))
        line = {"color": colour, "width": 2.2}
        figure.add_scatter(
            x=curve.steps, y=curve.value, mode="lines", line=line, name=group.label, legendgroup=group.id,
            meta=group.id,
        )  # fmt: skip
    return figure if figure.data else message("Not every lane has ended an episode yet.", 420)  # pyright: ignore


def sweep_metrics(sweep: Lanes, groups: Sequence[Group], names: Sequence[str]) -> go.Figure:
    """Metrics of the logs of a sweep, a panel each: interquartile means of the groups in colour."""
    series = []
    for name in names:
        found = [(sweep.curve(group, name), COLOURS[i % len(COLOURS)], group.label) for i, group in enumerate(groups)]
        series.append((name, [(curve.steps, curve.value, *rest) for curve, *rest in found if curve is not None]))
    return panels(series)
