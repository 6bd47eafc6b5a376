"""The page: what is on it, and what is asked again every few seconds."""

import logging
import threading
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from rlx.watch import figures, parts
from rlx.watch.folders import Folder, kind_of, opened, view_of
from rlx.watch.parallel import parallel
from rlx.watch.runs import Run
from rlx.watch.sweeps import Lanes

SECONDS = 3.0  # between two looks at the files
INTERVALS = (
    "Interquartile means over lanes with 95 % bootstrap intervals: bands around up to four lines, else bars beside "
    "their ends."
)
FIRST = 6  # metrics that are drawn where none was chosen


class Watched:
    """What is watched, for the requests of the page, which come from several threads: one at a time is served."""

    def __init__(self, path: Path):
        self.root, self.lock = opened(path), threading.Lock()
        self.name = uuid.uuid4().hex  # of this process: what a page has seen from an earlier one is not known here

    def at(self, pathname: str | None) -> Run | Lanes | Folder | None:
        """What an address shows, read anew; None where there is nothing. An address is looked up, and opens no file."""
        root, name = self.root, unquote((pathname or "/").strip("/"))
        if isinstance(root, Folder):
            root.look()
            view = root.entries.get(name) if name else root
            if view is not None:
                view.refresh()
            return view
        if isinstance(root, Run) and root.config is None and kind_of(root.directory) == "sweep":
            root = self.root = view_of(root.directory)  # it was only begun before
        root.refresh()
        return None if name else root

    def picture(self, pathname: str) -> Path | None:
        """The newest picture of an episode of what an address shows; None where there is none."""
        view = self.at(pathname)
        return view.picture[0] if isinstance(view, Run) and view.picture else None


def app_of(path: Path, seconds: float = SECONDS) -> tuple[Dash, Watched]:
    """The page of a run, a sweep or their folder, as an app of dash, and what it watches.

    Raises:
        ValueError: where there is nothing to be watched.
    """
    watched = Watched(path)
    name = watched.root.directory.resolve().name
    app = Dash(
        "rlx.watch.page",
        title=f"{name} · rlx",
        update_title="",
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        suppress_callback_exceptions=True,
        enable_mcp=False,
        add_log_handler=False,
    )
    app.logger.setLevel(logging.ERROR)
    app.layout = html.Main(
        [
            dcc.Location(id="where"),
            dcc.Interval(id="tick", interval=int(1000 * seconds)),
            dcc.Store(id="kind"),
            html.Header(id="head"),
            html.Div(id="page"),
            html.Footer(id="foot"),
        ]
    )
    _add_frame(app, watched)
    _add_run(app, watched)
    _add_sweep(app, watched)
    _add_choice(app)
    return app, watched


def body(kind: str) -> list[Any]:
    """The parts of the page of a run, a sweep or a folder, before they are filled."""
    seen = dcc.Store(id=f"{kind}-seen")
    if kind == "folder":
        return [seen, html.Div(id="folder-list")]
    rate = parts.section("Throughput", parts.graph(f"{kind}-rates", 190))
    choice = dcc.Dropdown(id=f"{kind}-choice", multi=True, placeholder="metrics", options=[], value=None)
    metrics = parts.section("Metrics", choice, parts.graph(f"{kind}-metrics", 430))
    settings = parts.section("Settings", html.Div(id=f"{kind}-settings"))
    if kind == "run":
        returns = parts.section("Return", parts.graph("run-returns", 380))
        episode = html.Section([html.H2("Newest episode"), html.Div(id="run-picture")], id="run-episode")
        return [seen, html.Div([returns, episode], className="beside"), metrics, rate, settings]
    unit: Any = dcc.RadioItems(
        id="sweep-unit", options=["configurations", "lanes"], value="configurations", inline=True, className="unit"
    )
    note = "Choose rows, or lines below, to see their curves, eight at most. Without a choice the best are in colour."
    return [
        seen,
        parts.section("Training", parts.graph("sweep-curves", 420), note=INTERVALS),
        parts.section("Ranking", unit, parts.table("sweep-table"), note=note),
        parts.section(
            "Settings against the result",
            parts.graph("sweep-parallel", 380),
            note="A line is a row of the ranking. Click it, or drag a box over an axis.",
        ),
        metrics,
        rate,
        settings,
    ]


def _add_frame(app: Dash, watched: Watched) -> None:
    @app.callback(
        Output("head", "children"),
        Output("foot", "children"),
        Output("page", "children"),
        Output("kind", "data"),
        Input("tick", "n_intervals"),
        Input("where", "pathname"),
        State("kind", "data"),
    )
    def frame(_: Any, pathname: str, before: Any) -> Any:
        with watched.lock:
            view = watched.at(pathname)
            home = isinstance(watched.root, Folder) and pathname not in (None, "", "/")
            if view is None:
                return [html.P("There is no such run."), html.A("back", href="/")], "", [], None
            now = [view.kind, pathname]
            page = (no_update, no_update) if now == before else (body(view.kind), now)
            return parts.head(view, home), parts.clock(), *page

    @app.callback(
        Output("folder-list", "children"),
        Output("folder-seen", "data"),
        Input("tick", "n_intervals"),
        Input("where", "pathname"),
        State("folder-seen", "data"),
    )
    def folder(_: Any, pathname: str, seen: Any) -> Any:
        with watched.lock:
            view, token = _changed(watched, pathname, Folder, seen)
            return parts.entries(view), token


def _changed(watched: Watched, pathname: str, kind: type, seen: Any, *choices: Any) -> tuple[Any, str]:
    """What an address shows, and the name of all that decides what it looks like.

    Raises:
        PreventUpdate: where it is of another kind, or looks as the page has it already.
    """
    view: Any = watched.at(pathname)
    if not isinstance(view, kind):
        raise PreventUpdate
    token = f"{watched.name} {pathname} {view.version} {choices}"
    if token == seen:
        raise PreventUpdate
    return view, token


def _add_run(app: Dash, watched: Watched) -> None:
    @app.callback(
        Output("run-returns", "figure"),
        Output("run-metrics", "figure"),
        Output("run-metrics", "style"),
        Output("run-rates", "figure"),
        Output("run-settings", "children"),
        Output("run-picture", "children"),
        Output("run-episode", "hidden"),
        Output("run-choice", "options"),
        Output("run-choice", "value"),
        Output("run-seen", "data"),
        Input("tick", "n_intervals"),
        Input("run-choice", "value"),
        State("where", "pathname"),
        State("run-seen", "data"),
    )
    def run(_: Any, choice: list[str] | None, pathname: str, seen: Any) -> Any:
        with watched.lock:
            view, token = _changed(watched, pathname, Run, seen, choice)
            names = view.metric_names()
            chosen = first_of(names) if choice is None and names else choice
            token = f"{watched.name} {pathname} {view.version} {(chosen,)}"
            metrics = figures.run_metrics(view, [name for name in chosen or [] if name in names])
            picture = []
            if view.picture:
                source = f"/picture{pathname.rstrip('/')}?{view.picture[1]}"
                picture = [html.Img(src=source, alt="an episode"), html.P(view.picture[0].name, className="dim")]
            return (
                figures.run_returns(view),
                metrics,
                {"height": f"{metrics.layout.height}px"},  # pyright: ignore[reportAttributeAccessIssue]
                figures.rates(view),
                parts.settings(view.settings()),
                picture,
                not picture,
                names,
                chosen,
                token,
            )


def first_of(names: list[str]) -> list[str]:
    """The metrics that are drawn where none was chosen: the first few, without counts."""
    return [name for name in names if not name.startswith("num_") and name != "episode_length"][:FIRST]


def _add_sweep(app: Dash, watched: Watched) -> None:
    @app.callback(
        Output("sweep-curves", "figure"),
        Output("sweep-metrics", "figure"),
        Output("sweep-metrics", "style"),
        Output("sweep-rates", "figure"),
        Output("sweep-settings", "children"),
        Output("sweep-parallel", "figure"),
        Output("sweep-table", "columnDefs"),
        Output("sweep-table", "rowData"),
        Output("sweep-table", "style"),
        Output("sweep-choice", "options"),
        Output("sweep-choice", "value"),
        Output("sweep-seen", "data"),
        Input("tick", "n_intervals"),
        Input("sweep-choice", "value"),
        Input("sweep-unit", "value"),
        Input("sweep-table", "selectedRows"),
        State("where", "pathname"),
        State("sweep-seen", "data"),
        State("sweep-table", "columnDefs"),
    )
    def sweep(_, choice, unit, rows, pathname, seen, columns_before):
        with watched.lock:
            picked = chosen_of(rows)
            view, token = _changed(watched, pathname, Lanes, seen, choice, unit, picked)
            names, by_lane = view.metric_names(), unit == "lanes"
            chosen = first_of(names) if choice is None and names else choice
            token = f"{watched.name} {pathname} {view.version} {(chosen, unit, picked)}"
            ranked = view.ranking(by_lane)
            groups = figures.shown(view, picked, view.ranking())
            metrics = figures.sweep_metrics(view, groups, [name for name in chosen or [] if name in names])
            columns, data = parts.table_of(view, ranked, by_lane)
            data = no_update if ctx.triggered_id == "sweep-table" else data
            return (
                figures.sweep_curves(view, groups),
                metrics,
                {"height": f"{metrics.layout.height}px"},  # pyright: ignore[reportAttributeAccessIssue]
                figures.rates(view),
                parts.settings(view.settings()),
                parallel(view, ranked, picked),
                no_update if columns == columns_before else columns,  # a table that gets columns loses its order
                data,
                parts.table_size(len(ranked)),
                names,
                chosen,
                token,
            )


def _add_choice(app: Dash) -> None:
    """Lines of the parallel coordinates choose rows of the table, which says what is chosen."""

    @app.callback(
        Output("sweep-table", "selectedRows"),
        Input("sweep-parallel", "clickData"),
        Input("sweep-parallel", "selectedData"),
        State("sweep-table", "selectedRows"),
        prevent_initial_call=True,
    )
    def pick(clicked, boxed, rows):
        if ctx.triggered_prop_ids.get("sweep-parallel.clickData"):
            own = points_of(clicked)
            before = chosen_of(rows)
            return {"ids": [x for x in before if x not in own] + [x for x in own if x not in before]}
        found = points_of(boxed)
        if not found:
            raise PreventUpdate
        return {"ids": found}


def chosen_of(rows: Any) -> list[str]:
    """The groups of chosen rows, as the table tells them and as it is told."""
    return [row["id"] for row in rows] if isinstance(rows, list) else (rows or {}).get("ids", [])


def points_of(event: dict[str, Any] | None) -> list[str]:
    """The groups that an event of the parallel coordinates is about."""
    points = (event or {}).get("points", [])
    return list(dict.fromkeys(point["customdata"] for point in points if point.get("customdata")))
