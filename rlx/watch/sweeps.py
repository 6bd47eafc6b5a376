"""A sweep as data, read from its directory again and again: lanes, configurations, curves, a ranking."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx.report.read import setting_text
from rlx.report.statistics import Curve, along, interval, iqm
from rlx.report.statistics import curve as curve_of
from rlx.run.storage import is_owned
from rlx.watch.follow import Columns, File, Tail
from rlx.watch.runs import PLACES, metric_order, rate_of, recent_rate, settings_of, title_of
from rlx.watch.state import State, state_of_sweep

RESAMPLES = 1999
POINTS = 50  # of a curve, as `rlx.report.curve` has them
BATCH = re.compile(r"r(\d+)g(\d+)b(\d+)")  # rung, group and number


class Batch:
    """A batch of lanes: its log, and its result once it has come to its end."""

    def __init__(self, directory: Path):
        self.log, self.metrics = Tail(directory / "metrics.jsonl"), Columns()
        self.lanes_file, self.result_file = File(directory / "lanes.json"), File(directory / "result.json")
        self.lanes: list[int] = []
        self.rows: list[dict[str, Any]] | None = None

    def refresh(self) -> None:
        self.rows = self.result_file.read()
        lanes = self.lanes_file.read()  # which older sweeps do not have
        self.lanes = [row["lane"] for row in self.rows or []] if lanes is None else lanes
        void, rows = self.log.read()
        self.metrics = Columns() if void else self.metrics
        self.metrics.add(rows)

    @property
    def version(self) -> tuple[int, ...]:
        return self.log.version, self.lanes_file.version, self.result_file.version

    @property
    def update(self) -> int:
        return int(self.metrics["update"][-1]) if self.metrics.num_rows else 0


class Group(NamedTuple):
    """What is drawn as one line: the lanes of a configuration, or a single lane."""

    id: str  # `c` and the number of the configuration, or `l` and that of the lane
    label: str
    varied: dict[str, Any]
    lanes: list[int]


class Table(NamedTuple):
    """A metric of the lanes L that went through the same batches, in R rows, and on a grid of P steps."""

    lanes: dict[int, int]  # the column of each
    steps: np.ndarray  # [R]
    values: np.ndarray  # [R, L]
    weights: np.ndarray  # [R, L], episodes that a value is over; 0 where it is not known
    grid: np.ndarray  # [P]
    on_grid: np.ndarray  # [P, L], as `rlx.report.on_grid` has it


class Lanes:
    """A sweep directory. `refresh` reads what has changed since it was called last; the other methods read no files.

    Members of a population change their settings: each is a group by itself.
    """

    kind = "sweep"

    def __init__(self, directory: Path):
        self.directory, self.problem = directory, ""
        self.sweep_file, self.summary_file = File(directory / "sweep.json"), File(directory / "summary.json")
        self.config: dict[str, Any] | None = None
        self.summary: dict[str, Any] | None = None
        self.batches: dict[str, Batch] = {}
        self.state = State("unknown", "")
        self.picture = None
        self.groups: list[Group] = []
        self.members: list[Group] = []  # every lane
        self.results: dict[int, dict[str, Any]] = {}  # of lanes, those of their last rung
        self.series: dict[int, list[tuple[str, int]]] = {}  # batches of each lane, and its place in their rows
        self.tables: dict[Any, Table | None] = {}  # by metric and batches
        self.varied: list[str] = []  # the names of the settings that differ between configurations
        self.curves: dict[Any, Curve | None] = {}
        self.rungs: dict[int, int] = {}  # of successive halving, the last one of each lane
        self.intervals: dict[Any, dict[str, Any]] = {}  # by the scores that they are of
        self.known = ""

    def refresh(self) -> None:
        """Reads on. What cannot be read is said in `problem`, and the rest stays as it was."""
        self.problem = ""
        try:
            owned = is_owned(self.directory)  # before the files: a sweep that ends writes them first
            self.config, self.summary = self.sweep_file.read(), self.summary_file.read()
            folder = self.directory / "batches"
            names = [path.name for path in folder.iterdir() if BATCH.fullmatch(path.name)] if folder.is_dir() else []
            for name in sorted(names, key=batch_numbers):
                self.batches.setdefault(name, Batch(folder / name)).refresh()
            self.batches = {name: batch for name, batch in self.batches.items() if name in names}
            about = {name: (batch.rows is not None, batch.update) for name, batch in self.batches.items()}
            self.state = state_of_sweep(self.directory, owned, self.config, self.summary is not None, about)
            if self.version != self.known:
                self._arrange()
                self.known = self.version
        except (OSError, ValueError, KeyError) as error:
            self.problem = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)

    def _arrange(self) -> None:
        self.curves, self.tables, self.results, self.series, self.rungs = {}, {}, {}, {}, {}
        for name, batch in self.batches.items():  # in the order of their rungs
            for place, lane in enumerate(batch.lanes):
                self.rungs[lane] = batch_numbers(name)[0]
                self.series.setdefault(lane, []).append((name, place))
            self.results |= {row["lane"]: row for row in batch.rows or []}
        if self.config is None:
            return
        points, seeds = self.config["points"] or [{}], self.config["num_seeds"]
        texts = labels(points)
        self.members = [
            Group(f"l{lane}", f"lane {lane}: {texts[lane // seeds]}, seed {self.config['seed'] + lane % seeds}",
                  self._now(lane, points[lane // seeds]), [lane])
            for lane in range(len(points) * seeds)
        ]  # fmt: skip
        self.groups = [
            Group(f"c{i}", text, points[i], list(range(i * seeds, (i + 1) * seeds))) for i, text in enumerate(texts)
        ]
        if self.config.get("interacts", self.config.get("pbt")):
            self.groups = [group._replace(label=f"member {i}") for i, group in enumerate(self.members)]
        names = dict.fromkeys(name for point in points for name in point)
        self.varied = [name for name in names if len({repr(group.varied.get(name)) for group in self.groups}) > 1]

    def _now(self, lane: int, point: dict[str, Any]) -> dict[str, Any]:
        """What a lane trains with: of a population's member, what it has come to."""
        if lane not in self.series:
            return point
        name, place = self.series[lane][-1]
        metrics = self.batches[name].metrics
        return {n: float(metrics[c][-1, place]) if (c := f"varied.{n}") in metrics else x for n, x in point.items()}

    @property
    def version(self) -> str:
        """Changes when anything that is shown has changed."""
        batches = {name: batch.version for name, batch in self.batches.items()}
        return f"{batches} {self.sweep_file.version} {self.summary_file.version} {self.state} {self.problem}"

    @property
    def title(self) -> str:
        """The algorithm and the environment."""
        return title_of(self.config)

    @property
    def result(self) -> str:
        """What lanes are ranked by: `return`, or what the environment reports under another name."""
        return (self.config or {}).get("rank_by", "return")

    @property
    def step(self) -> int:
        """Environment steps of all lanes together."""
        ends = {name: batch.metrics["step"][-1] for name, batch in self.batches.items() if batch.metrics.num_rows}
        return int(sum(max(ends.get(name, 0) for name, _ in own) for own in self.series.values()))

    @property
    def share(self) -> float | None:
        """How much of the planned steps is done, from 0 to 1; None where lanes may be dropped on the way."""
        if self.state.word == "done":
            return 1.0
        if self.config is None or self.config.get("halving") or not self.members:
            return None
        return min(1.0, self.step / max(1, len(self.members) * self.config["steps"]))

    def metric_names(self) -> list[str]:
        """The metrics of the logs: what environments report first, then losses, then the others."""
        names = dict.fromkeys(name for batch in self.batches.values() for name in batch.metrics.names())
        hidden = (*PLACES, "parent", f"episode_{self.result}")
        return sorted((x for x in names if x not in hidden and not x.startswith("varied.")), key=metric_order)

    def rate(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of training of all batches, one after another, and steps a second of all lanes of each."""
        before, seconds, rates = 0.0, [], []
        for batch in self.batches.values():
            if batch.metrics.num_rows < 2:
                continue
            own, rate = rate_of(batch.metrics["seconds"], batch.metrics["step"] * len(batch.lanes))
            seconds.append(before + own)
            rates.append(rate)
            before += batch.metrics["seconds"][-1]
        return (np.concatenate(seconds), np.concatenate(rates)) if seconds else (np.zeros(0), np.zeros(0))

    def rate_now(self) -> float | None:
        """Steps a second of all lanes of late; None before there are two chunks."""
        return recent_rate(self.rate()[1])

    def settings(self) -> list[dict[str, Any]]:
        """The settings that all lanes share, those that differ from the defaults first, see `settings_of`."""
        return [row for row in settings_of(self.config) if row["name"] not in self.varied]

    def lane_curve(self, lane: int, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps `[R]`, a metric `[R]` and its episodes `[R]` of a lane; a row in which the metric is unknown has none.

        They are empty where no row of it has the metric.
        """
        if (table := self.table(name, tuple(batch for batch, _ in self.series.get(lane, ())))) is None:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        place = table.lanes[lane]
        return table.steps, table.values[:, place], table.weights[:, place]

    def table(self, name: str, batches: tuple[str, ...]) -> "Table | None":
        """A metric of all lanes that were in these batches, one after another; None where none of them has it."""
        key = name, batches
        if key not in self.tables:
            parts = [self.batches[batch] for batch in batches if name in self.batches[batch].metrics]
            lanes = [x for x, own in self.series.items() if tuple(batch for batch, _ in own) == batches]
            found = [_columns(batch, name, lanes) for batch in parts if batch.metrics[name].ndim == 2]
            self.tables[key] = _table(lanes, *zip(*found, strict=True)) if found and lanes else None
        return self.tables[key]

    def curve(self, group: Group, name: str = "", bands: bool = False) -> Curve | None:
        """The interquartile mean of a metric over the lanes of a group, as `rlx.report.curve` has it.

        `name` is the metric, by default what lanes are ranked by in training; `bands` asks for the interval too. None
        where not every lane has a row yet in a stretch that all share.
        """
        name = name or f"episode_{self.result}"
        key = group.id, name, bands
        if key not in self.curves:
            self.curves[key] = self._curve(group, name, bands)
        return self.curves[key]

    def _curve(self, group: Group, name: str, bands: bool) -> Curve | None:
        paths = {tuple(batch for batch, _ in self.series.get(lane, ())) for lane in group.lanes}
        if not bands and len(paths) == 1 and (table := self.table(name, paths.pop())) is not None:
            values = table.on_grid[:, [table.lanes[lane] for lane in group.lanes]]
            values = values[:, ~np.isnan(values).all(0)]  # lanes in which no episode ended are left out
            known = ~np.isnan(values).any(1)
            if not values.size or not known.any():
                return None
            return Curve(table.grid[known], iqm(values[known]) if values.shape[1] > 1 else values[known, 0], None, None)
        series = [x for lane in group.lanes if (x := self.lane_curve(lane, name))[2].any()]
        if not series:
            return None
        args: Any = zip(*series, strict=True)
        try:
            if bands:
                return curve_of(*args, num_resamples=RESAMPLES)
            grid, values = along(*args)
        except ValueError:  # there is no step yet by which an episode had ended in every lane
            return None
        return Curve(grid, iqm(values), None, None)

    def ranking(self, by_lane: bool = False) -> list[dict[str, Any]]:
        """Configurations, or lanes: those with the highest evaluation first, then those that train best.

        A row has `group`, `training` (the end of its curve), `value`, `low` and `high` (interquartile mean over the
        lanes' evaluations and its 95 % interval), `evaluated` (number of lanes) and `note` (died, dropped).
        """
        rows = [self._ranked(group) for group in (self.members if by_lane else self.groups)]
        number = lambda x: -math.inf if x is None else x
        return sorted(rows, key=lambda row: (row["dropped"], -number(row["value"]), -number(row["training"])))

    def _ranked(self, group: Group) -> dict[str, Any]:
        found = [self.results[lane] for lane in group.lanes if lane in self.results]
        scores = np.array([x for row in found if math.isfinite(x := score_of(row, self.result))])
        estimate: dict[str, Any] = {"value": None, "low": None, "high": None}
        if len(group.lanes) == 1 and len(scores):
            estimate["value"] = float(scores[0])
        elif len(scores):
            key = ("score", *scores)
            if key not in self.intervals:
                self.intervals[key] = interval([scores], iqm, num_resamples=RESAMPLES)
            estimate = self.intervals[key]
        curve = self.curve(group)
        died = sum(row["died_at"] is not None for row in found)
        last = max(self.rungs.values(), default=0)
        dropped = self.state.word == "done" and any(self.rungs.get(lane, 0) < last for lane in group.lanes)
        notes = [f"{died} died" if len(group.lanes) > 1 else "died"] * bool(died) + ["dropped early"] * dropped
        return {
            "group": group,
            "training": None if curve is None else float(curve.value[-1]),
            **estimate,
            "evaluated": len(scores),
            "dropped": dropped,
            "note": ", ".join(notes),
        }


def _columns(batch: Batch, name: str, lanes: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps `[R]`, a metric `[R, L]` and its episodes `[R, L]` of lanes of a batch."""
    at = {lane: place for place, lane in enumerate(batch.lanes)}
    places = [at[lane] for lane in lanes]
    values = batch.metrics[name][:, places]
    of_episodes = name.startswith("episode_") and "num_episodes" in batch.metrics
    weights = batch.metrics["num_episodes"][:, places] if of_episodes else np.ones(values.shape)
    return batch.metrics["step"], values, np.where(np.isfinite(values), weights, 0.0)


def _table(lanes: list[int], steps: Any, values: Any, weights: Any) -> Table:
    """The parts of several batches, one after another, and all lanes at once on the grid of `rlx.report.curve`."""
    steps, values, weights = np.concatenate(steps), np.concatenate(values), np.concatenate(weights)
    grid = np.rint(np.linspace(0, steps[-1], min(POINTS, len(steps)) + 1)[1:])
    ends = np.searchsorted(steps, grid, side="right")
    until = lambda x: np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0)])[ends]
    sums = lambda x: np.diff(until(x), axis=0, prepend=0.0)
    counts = sums(weights)
    totals = sums(np.where(weights > 0, np.nan_to_num(values) * weights, 0.0))
    last = np.maximum.accumulate(np.where(counts > 0, np.arange(len(grid))[:, None], -1), axis=0)
    held = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
    found = np.where(last < 0, np.nan, np.take_along_axis(held, np.maximum(last, 0), axis=0))
    return Table({lane: i for i, lane in enumerate(lanes)}, steps, values, weights, grid, found)


def batch_numbers(name: str) -> tuple[int, ...]:
    """Rung, group and number of a batch, from its name."""
    return tuple(map(int, re.findall(r"\d+", name)))


def labels(points: list[dict[str, Any]]) -> list[str]:
    """A name for each configuration: its settings, with as many digits as tell them apart."""
    found = []
    for digits in (3, 17):
        found = [" ".join(f"{k}={setting_text(v, digits)}" for k, v in point.items()) for point in points]
        if len(set(found)) == len(points):
            break
    return [text or "defaults" for text in found]


def score_of(row: dict[str, Any], result: str = "return") -> float:
    """A lane's evaluation by the return or by what the environment reported; NaN where it has none, or died."""
    value = row["return_mean"] if result == "return" else row["evaluation"].get("reported", {}).get(result)
    return math.nan if value is None or row["died_at"] is not None else float(value)
