"""The parts of the page: its head, settings, tables and lists, as components of dash."""

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import dash_ag_grid as grid
import numpy as np
from dash import dcc, html

from rlx.report.read import setting_text
from rlx.watch.figures import COLOURS
from rlx.watch.folders import Folder, small_curve
from rlx.watch.runs import Run
from rlx.watch.sweeps import Lanes

GRAPH: Any = {"displaylogo": False, "displayModeBar": False, "responsive": True}
MOST_ROWS = 10  # of a table, before it scrolls
WIDTH, HEIGHT = 180, 36  # of a small curve, in pixels


def graph(id: str, height: int) -> dcc.Graph:
    """A place for a figure."""
    return dcc.Graph(id=id, config=GRAPH, style={"height": f"{height}px"}, responsive=True)


def section(title: str, *children: Any, note: str = "") -> html.Section:
    """A part of the page under a heading, with a sentence of what is seen."""
    return html.Section([html.H2(title), *([html.P(note, className="note")] if note else []), *children])


def number(value: float | None, digits: int = 4) -> str:
    """A number in words: 12,345, 0.0123, or a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """A time in words: 42 s, 3 min, 2.5 h, 4.2 days."""
    for size, unit, digits in ((86400 * 2, "days", 1), (3600 * 2, "h", 1), (120, "min", 0)):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def head(view: Run | Lanes | Folder, home: bool) -> list[Any]:
    """What stands above: the title, the state, progress, and the numbers of now; `home` has a link to the folder."""
    back = [html.A("all runs", href="/", className="back")] if home else []
    if isinstance(view, Folder):
        count = len(view.entries)
        words = [html.Span(f"{count} run{'s' * (count != 1)} and sweeps", className="dim")]
        return [html.Div([html.H1(view.directory.resolve().name), *words], className="title"), *problem(view.problem)]
    name = view.directory.resolve().name
    title = html.Div([html.H1(view.title), *state(view)], className="title")
    seed = f"seed {view.config['seed']}" if isinstance(view, Run) and view.config else ""
    lanes = ""
    if isinstance(view, Lanes) and view.config:
        points, seeds = len(view.config["points"] or [{}]), view.config["num_seeds"]
        lanes = f"{points} configurations, {seeds} seed{'s' * (seeds > 1)} each"
    started = f"begun {view.config['started'].replace('T', ' ')[:16]} UTC" if view.config else ""
    device = view.config.get("device", "") if view.config else ""
    about = " · ".join(text for text in (name, lanes or seed, started, device) if text)
    above: list[Any] = [html.Div([*back, html.Span(about, className="dim")], className="about"), title]
    if view.state.text:
        above.append(html.P(view.state.text, className="dim"))
    return [*above, *problem(view.problem), bar(view), html.Dl(numbers(view), className="numbers")]


def problem(text: str) -> list[Any]:
    """A line that says what could not be read."""
    return [html.P(text, className="problem")] if text else []


def state(view: Run | Lanes) -> list[Any]:
    """The state in a word, with its dot."""
    word = view.state.word
    return [html.Span([html.I(), word], className=f"state {word.replace(' ', '-')}")]


def bar(view: Run | Lanes) -> html.Div:
    """How much is done, as a thin line."""
    share = view.share
    return html.Div(html.Div(style={"width": f"{100 * (share or 0):.2f}%"}), className="bar")


def numbers(view: Run | Lanes) -> list[Any]:
    """The numbers of now: a name and a value each."""
    rate, share = view.rate_now(), view.share
    planned = view.config["steps"] if view.config else None
    if isinstance(view, Lanes) and planned is not None:
        planned = planned * len(view.members) if share is not None else None
    found = [("steps", f"{view.step:,}" + (f" of {planned:,}" if planned else ""))]
    if isinstance(view, Run):
        found.append(("training return", number(view.latest())))
        if scores := [(row["value"], row["step"]) for row in view.evaluated() if np.isfinite(row["value"])]:
            found.append(("last evaluation", number(scores[-1][0])))
            found.append(("best evaluation", f"{number(max(scores)[0])} at {max(scores)[1]:,}"))
    else:
        best = max((row["value"] for row in view.ranking() if row["value"] is not None), default=None)
        found.append((f"best evaluated {view.result}, IQM", number(best)))
        found.append(("lanes evaluated", f"{len(view.results)} of {len(view.members)}"))
    found.append(("steps/s", number(rate)))
    if view.state.word == "under way" and rate and planned:
        found.append(("time left", duration(max(0.0, planned - view.step) / rate)))
    return [html.Div([html.Dt(name), html.Dd(value)]) for name, value in found]


def settings(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Settings that differ from the defaults, and the others folded away."""
    changed = [row for row in rows if row["origin"] != "default"]
    others = [row for row in rows if row["origin"] == "default"]
    parts = []
    if changed:
        parts.append(settings_table(changed, True))
    if others:
        count = f"{len(others)} settings at their defaults"
        parts.append(html.Details([html.Summary(count), settings_table(others, False)]))
    return parts


def settings_table(rows: Sequence[dict[str, Any]], compared: bool) -> html.Table:
    """A table of settings, `compared` with their defaults."""
    names = ("setting", "value", "default", "from") if compared else ("setting", "value")
    body = []
    for row in rows:
        cells = [html.Td(row["name"]), html.Td(text_of(row["value"]), className="value")]
        if compared:
            default = "" if row["default"] is None else text_of(row["default"])
            cells += [html.Td(default, className="dim"), html.Td(row["origin"], className="dim")]
        body.append(html.Tr(cells))
    return html.Table([html.Thead(html.Tr([html.Th(name) for name in names])), html.Tbody(body)])


def text_of(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return setting_text(tuple(value) if isinstance(value, list) else value, 6)


def table(id: str) -> grid.AgGrid:
    """An empty table that can be sorted and whose rows can be chosen."""
    theme = (
        "themeQuartz.withParams({backgroundColor: 'var(--paper)', foregroundColor: 'var(--ink)', accentColor: "
        "'var(--accent)', borderColor: 'var(--line)', headerBackgroundColor: 'var(--paper)', fontFamily: 'inherit', "
        "headerTextColor: 'var(--dim)', wrapperBorder: false, rowHeight: 34, headerHeight: 36, fontSize: 13})"
    )
    options: Any = {
        "theme": {"function": theme},
        "rowSelection": {"mode": "multiRow", "enableClickSelection": True, "headerCheckbox": False},
        "animateRows": False,
        "suppressCellFocus": True,
    }
    return grid.AgGrid(
        id=id,
        rowData=[],
        columnDefs=[],
        defaultColDef={"sortable": True, "resizable": True, "suppressMovable": True},
        dashGridOptions=options,
        getRowId="params.data.id",
        columnSize="responsiveSizeToFit",
        style=table_size(MOST_ROWS),
    )


def table_size(num_rows: int) -> dict[str, str]:
    """The height of a table, which scrolls where it has many rows."""
    return {"height": f"{44 + 34 * min(max(1, num_rows), MOST_ROWS)}px"}


def table_of(sweep: Lanes, ranked: Sequence[dict[str, Any]], by_lane: bool) -> tuple[list[Any], list[Any]]:
    """The columns and the rows of a ranking."""
    written = lambda form: {
        "valueFormatter": {"function": f"params.value == null ? '-' : d3.format('{form}')(params.value)"}
    }
    short: Any = written(",.4~g")
    right: Any = {"type": "rightAligned", "minWidth": 104}
    columns: list[Any] = [{"field": "rank", "headerName": "", "width": 88, "maxWidth": 88, "type": "rightAligned"}]
    columns += [
        {"field": "lane", "headerName": "lane", "maxWidth": 90, **right},
        {"field": "seed", "headerName": "seed", "maxWidth": 90, **right},
    ] * by_lane
    for i, name in enumerate(sweep.varied):
        columns.append(
            {"field": f"s{i}", "headerName": name, **({} if _is_text(ranked, name) else right | written(".3~g"))}
        )
    columns.append(
        {"field": "value", "headerName": f"evaluation{'' if by_lane else ', IQM'}", **short, **right, "minWidth": 142}
    )
    if not by_lane:
        columns.append(
            {"field": "interval", "headerName": "95 % interval", "sortable": False, **right, "minWidth": 146}
        )
    columns.append({"field": "training", "headerName": "training", **right, **short})
    columns += [{"field": "evaluated", "headerName": "lanes", **right, "minWidth": 84, "maxWidth": 84}] * (not by_lane)
    if any(row["note"] for row in ranked):
        columns.append({"field": "note", "headerName": "", "minWidth": 110})
    rows = []
    for rank, row in enumerate(ranked, start=1):
        group = row["group"]
        found = {"id": group.id, "rank": rank, "note": row["note"], "evaluated": row["evaluated"]}
        found |= {"training": row["training"], "value": row["value"], "interval": ""}
        if row["low"] is not None:
            found["interval"] = f"{number(row['low'])} to {number(row['high'])}"
        if by_lane and sweep.config:
            lane, seeds = group.lanes[0], sweep.config["num_seeds"]
            found |= {"lane": lane, "seed": sweep.config["seed"] + lane % seeds}
        for i, name in enumerate(sweep.varied):
            value = group.varied.get(name)
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            found[f"s{i}"] = value if plain or value is None else text_of(value)
        rows.append(found)
    return columns, rows


def _is_text(ranked: Sequence[dict[str, Any]], name: str) -> bool:
    return any(isinstance(row["group"].varied.get(name), str | bool | list) for row in ranked)


def entries(folder: Folder) -> list[Any]:
    """The runs and sweeps of a folder: a line each, with a small curve."""
    lines = []
    for name, entry in folder.entries.items():
        values = small_curve(entry)[1]
        kind = "sweep" if entry.kind == "sweep" else ""
        if isinstance(entry, Lanes) and entry.members:
            kind = f"sweep of {len(entry.members)} lanes"
        share = "" if entry.share is None else f"{100 * entry.share:.0f} %"
        lines.append(
            html.Tr(
                [
                    html.Td([html.A(name, href=f"/{quote(name, safe='')}"), html.Div(kind, className="dim")]),
                    html.Td(entry.title),
                    html.Td(state(entry)),
                    html.Td([f"{entry.step:,}", html.Div(share, className="dim")], className="right"),
                    html.Td(number(values[-1] if len(values) else None), className="right"),
                    html.Td(html.Img(src=spark(values), width=WIDTH, height=HEIGHT, alt="") if len(values) > 1 else ""),
                ]
            )
        )
    names = ("name", "what", "state", "steps", "return", "")
    classes = ("", "", "", "right", "right", "")
    headings = [html.Th(text, className=kind) for text, kind in zip(names, classes, strict=True)]
    return [html.Table([html.Thead(html.Tr(headings)), html.Tbody(lines)], className="list")]


def spark(values: np.ndarray) -> str:
    """A small curve as the address of a picture that holds its own data."""
    low, high = float(values.min()), float(values.max())
    x = np.linspace(2, WIDTH - 2, len(values))
    y = HEIGHT - 3 - (values - low) / ((high - low) or 1.0) * (HEIGHT - 6)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"><polyline points="{points}" '
        f'fill="none" stroke="{COLOURS[0]}" stroke-width="1.6" stroke-linejoin="round"/></svg>'
    )
    return f"data:image/svg+xml,{quote(text)}"


def clock() -> str:
    """When the files were read, for the foot of the page."""
    return f"read at {time.strftime('%H:%M:%S')}"
