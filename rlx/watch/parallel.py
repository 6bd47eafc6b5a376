"""The settings of a sweep against what came of them, as parallel coordinates."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from plotly import graph_objects as go

from rlx.report.read import setting_text
from rlx.watch.figures import COLOURS, frame, message
from rlx.watch.sweeps import Lanes

SHADES = 8  # colours of lines
FEW = 7  # values of a setting that are all written beside its axis


class Axis(NamedTuple):
    """An upright axis: where each configuration is on it, from 0 to 1, and what is written where."""

    name: str
    places: np.ndarray  # [C], NaN where it has no value
    ticks: list[tuple[float, str]]


def axis_of(name: str, values: Sequence[Any], decades: bool = True) -> Axis:
    """The axis of values `[C]`: linear for numbers, logarithmic from a decade on where `decades`; else a place a value.

    A value that is None or not finite has no place.
    """
    numbers = [isinstance(x, int | float) and not isinstance(x, bool) for x in values if x is not None]
    if not all(numbers) or not numbers:
        texts = sorted({_text(x) for x in values if x is not None})
        at = {text: (i + 0.5) / len(texts) for i, text in enumerate(texts)}
        places = np.array([math.nan if x is None else at[_text(x)] for x in values])
        return Axis(name, places, [(place, text) for text, place in at.items()])
    read = np.array([math.nan if x is None else float(x) for x in values])
    read[~np.isfinite(read)] = math.nan
    if np.isnan(read).all():
        return Axis(name, read, [])
    low, high = float(np.nanmin(read)), float(np.nanmax(read))
    log = decades and low > 0 and high >= 10 * low
    scale = np.log10 if log else np.asarray
    span = float(scale(high) - scale(low)) or 1.0
    place = lambda x: (scale(x) - scale(low)) / span if high > low else np.where(np.isnan(x), math.nan, 0.5)
    distinct = np.unique(read[~np.isnan(read)])
    if len(distinct) > FEW:
        distinct = np.geomspace(low, high, 5) if log else np.linspace(low, high, 5)
    return Axis(name, place(read), [(float(place(x)), setting_text(float(x))) for x in distinct])


def _text(value: Any) -> str:
    return setting_text(tuple(value) if isinstance(value, list) else value)


def parallel(sweep: Lanes, ranked: Sequence[dict[str, Any]], chosen: Sequence[str]) -> go.Figure:
    """A line for each row of a ranking through its settings to its result; better ones have stronger colours.

    The result is the evaluation, or the end of the training curve where not every row has one yet.
    """
    names = sweep.varied
    if not names or not ranked:
        return message("All configurations have the same settings.")
    whole = all(row["value"] is not None for row in ranked if not row["note"])
    results = [row["value"] if whole else row["training"] for row in ranked]
    axes = [axis_of(name, [row["group"].varied.get(name) for row in ranked]) for name in names]
    axes.append(axis_of(f"{'evaluation' if whole else 'training'}: {sweep.result}", results, False))
    figure = frame(380, "", showlegend=False, dragmode="select", margin={"l": 30, "r": 30, "t": 48, "b": 12})
    figure.update_xaxes(visible=False, range=[-0.25, len(axes) - 0.6], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.06, 1.06], fixedrange=True)
    for i, axis in enumerate(axes):
        figure.add_shape(type="line", x0=i, x1=i, y0=0, y1=1, line={"width": 1})
        name = axis.name.replace("_", " ")
        figure.add_annotation(x=i, y=1.06, text=f"<b>{name}</b>", showarrow=False, yanchor="bottom")
        for place, text in axis.ticks:
            figure.add_annotation(x=i, y=place, text=text, showarrow=False, xanchor="left", xshift=6, font={"size": 12})
    places = np.stack([axis.places for axis in axes], axis=-1)  # [C, axes]
    shades = np.nan_to_num(places[:, -1] * (SHADES - 1)).round().astype(int)
    for shade in range(SHADES):
        _add_lines(figure, places, ranked, shades == shade, shade / (SHADES - 1), 1.2)
    _add_lines(
        figure,
        places,
        ranked,
        np.array([row["group"].id in chosen for row in ranked]),
        None,
        2.6 if len(chosen) < 9 else 1.6,
    )
    return figure


def _add_lines(figure, places, ranked, chosen, strength, width):
    """Lines of one colour as one trace: a trace a line would be slow where they are many."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return
    num = places.shape[1]
    x = np.tile(np.append(np.arange(num), np.nan), len(rows))
    y = np.concatenate([np.append(places[row], np.nan) for row in rows])
    ids = [ranked[row]["group"].id for row in rows for _ in range(num + 1)]
    texts = [ranked[row]["group"].label for row in rows for _ in range(num + 1)]
    colour = COLOURS[1] if strength is None else mixed(strength)
    figure.add_scatter(
        x=x,
        y=y,
        customdata=ids,
        text=texts,
        hovertemplate="%{text}<extra></extra>",
        mode="lines+markers",
        line={"color": colour, "width": width},
        marker={"size": 5, "color": colour},
        opacity=1.0 if strength is None else 0.45 + 0.55 * strength,
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )


def mixed(strength: float) -> str:
    """From grey for the worst, 0, over blue to red for the best, 1."""
    stops = [(170, 170, 170), *(tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (COLOURS[0], COLOURS[2]))]
    place = min(strength * 2, 1.999)
    low, high, share = stops[int(place)], stops[int(place) + 1], place % 1
    return "rgb({}, {}, {})".format(*(round(a + share * (b - a)) for a, b in zip(low, high, strict=True)))
