"""A run as data, read from its directory again and again."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rlx.algorithm import load_algorithm, short_name, split_name
from rlx.report.statistics import interval
from rlx.run.storage import is_owned
from rlx.schedules import is_written
from rlx.watch.follow import Columns, File, Tail
from rlx.watch.state import State, state_of_run

PLACES = ("update", "step", "seconds")  # columns that say where a row is, and are no metrics
PICTURES = (".gif", ".png")
RECENT = 0.1  # share of the time that the rate of now is over
PAUSE = 0.05  # seconds between the rows of two chunks, at least
RESAMPLES = 1999


class Run:
    """A run directory. `refresh` reads what has changed since it was called last; the other methods read no files."""

    kind = "run"

    def __init__(self, directory: Path):
        self.directory, self.problem = directory, ""
        self.log, self.evaluation_log = Tail(directory / "metrics.jsonl"), Tail(directory / "evaluations.jsonl")
        self.config_file, self.evaluation_file = File(directory / "config.json"), File(directory / "evaluation.json")
        self.config: dict[str, Any] | None = None
        self.metrics, self.evaluations = Columns(), []
        self.state = State("unknown", "")
        self.picture: tuple[Path, int] | None = None  # the newest one of an episode, and when it was written
        self.intervals: dict[tuple[float, ...], dict[str, Any]] = {}

    def refresh(self) -> None:
        """Reads on. What cannot be read is said in `problem`, and the rest stays as it was."""
        self.problem = ""
        try:
            owned = is_owned(self.directory)  # before the files: a run that ends writes them first
            self.config, evaluation = self.config_file.read(), self.evaluation_file.read()
            void, rows = self.log.read()
            self.metrics = Columns() if void else self.metrics
            self.metrics.add(rows)
            void, rows = self.evaluation_log.read()
            self.evaluations = [*([] if void else self.evaluations), *rows]
            self.state = state_of_run(self.directory, owned, self.config, evaluation, self.evaluations, self.update)
            self.picture = newest_picture(self.directory)
        except (OSError, ValueError, KeyError) as error:
            self.problem = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)

    @property
    def version(self) -> str:
        """Changes when anything that is shown has changed."""
        numbers = (self.log.version, self.evaluation_log.version, self.config_file.version)
        return f"{numbers} {self.state} {self.picture} {self.problem}"

    @property
    def update(self) -> int:
        """Updates after the last row of the log."""
        return int(self.metrics["update"][-1]) if self.metrics.num_rows else 0

    @property
    def step(self) -> int:
        """Environment steps after the last row of the log."""
        return int(self.metrics["step"][-1]) if self.metrics.num_rows else 0

    @property
    def title(self) -> str:
        """The algorithm and the environment."""
        return title_of(self.config)

    @property
    def share(self) -> float | None:
        """How much of the planned steps is done, from 0 to 1; None where nothing is planned yet."""
        return min(1.0, self.step / self.config["steps"]) if self.config and self.config["steps"] else None

    def curve(self, name: str = "episode_return") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps `[R]`, a metric `[R]` and the number of episodes that it is over `[R]`, of the rows that have it."""
        if name not in self.metrics:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        values = self.metrics[name]
        of_episodes = name.startswith("episode_") and "num_episodes" in self.metrics
        weights = self.metrics["num_episodes"] if of_episodes else np.ones(len(values))
        known = np.isfinite(values)
        return self.metrics["step"][known], values[known], weights[known]

    def evaluated(self) -> list[dict[str, Any]]:
        """The evaluations: `step`, `value` (mean return), and the ends of its 95 % interval over episodes."""
        return [{"step": row["step"]} | self._interval(row) for row in self.evaluations]

    def _interval(self, row: dict[str, Any]) -> dict[str, Any]:
        returns = tuple(float(x) for x in row.get("returns", ()))
        if returns not in self.intervals:
            known = np.array(returns)[np.isfinite(returns)]
            none = {"value": float(row["mean"]), "low": None, "high": None}
            self.intervals[returns] = interval([known], num_resamples=RESAMPLES) if known.size else none
        return self.intervals[returns]

    def metric_names(self) -> list[str]:
        """The metrics of the log: what environments report first, then losses, then the others."""
        names = [name for name in self.metrics.names() if name not in (*PLACES, "episode_return")]
        return sorted(names, key=metric_order)

    def rate(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of training `[P]` and the steps a second `[P]` in the stretches that end there."""
        if self.metrics.num_rows < 2:
            return np.zeros(0), np.zeros(0)
        return rate_of(self.metrics["seconds"], self.metrics["step"])

    def rate_now(self) -> float | None:
        """Steps a second of late; None before there are two chunks."""
        return recent_rate(self.rate()[1])

    def settings(self) -> list[dict[str, Any]]:
        """The settings, those that differ from the defaults first, see `settings_of`."""
        return settings_of(self.config)

    def latest(self) -> float | None:
        """The last mean return that is known."""
        values = self.curve()[1]
        return float(values[-1]) if len(values) else None


def title_of(config: dict[str, Any] | None) -> str:
    """The algorithm and the environment of a `config.json` or `sweep.json`, in words."""
    if config is None:
        return "Nothing written yet"
    return f"{short_name(config['algorithm']).upper()} on {config['env'] or 'an unnamed environment'}"


def metric_order(name: str) -> tuple[int, str]:
    """A sort key of metrics: what environments report, then losses, then the others, counts last."""
    reported = name.startswith("episode_") and name != "episode_length"
    return (0 if reported else 1 if "loss" in name else 3 if name.startswith("num_") else 2), name


def rate_of(seconds: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The seconds `[P]` at the ends of stretches of R rows, and the steps a second `[P]` of each stretch.

    A stretch is half a second or a hundredth of the time, whatever is more. The rows of a chunk are written at one
    moment, so a stretch ends between two chunks.
    """
    ends = np.flatnonzero(np.append(np.diff(seconds) > PAUSE, True))
    span, kept = max(0.5, float(seconds[-1]) / 100), [ends[0]]
    for end in ends[1:]:
        if seconds[end] - seconds[kept[-1]] >= span:
            kept.append(end)
    took = np.diff(seconds[kept])
    return seconds[kept][1:], np.diff(steps[kept]) / took


def recent_rate(rates: np.ndarray) -> float | None:
    """The mean of the rates of the last tenth of the stretches, `rate_of`; None before there is one."""
    return float(np.mean(rates[-max(1, round(RECENT * len(rates))) :])) if len(rates) else None


def settings_of(config: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The settings of a `config.json` or `sweep.json`: `name`, `value`, `default` and `origin`.

    The origin is `asked for`, `tuned` (it shipped for the environment) or `default`, in this order. A file of one's own
    is not run to be watched: its defaults are not known, and the origin of what is not tuned is `own file`.
    """
    if config is None:
        return []
    defaults = _defaults(config["algorithm"])
    preset, rows = config.get("preset") or {}, []
    for name, value in config["config"].items():
        default = None if defaults is None else defaults.get(name)
        if name in preset and _same(preset[name], value):
            origin = "tuned"
        elif defaults is None:
            origin = "own file"
        else:
            origin = "default" if _same(value, default) else "asked for"
        rows.append({"name": name, "value": value, "default": default, "origin": origin})
    for kind in ("env_options", "env_params"):
        prefix = "" if kind == "env_options" else "env."
        rows += [
            {"name": f"{prefix}{name}", "value": value, "default": None, "origin": "asked for"}
            for name, value in (config.get(kind) or {}).items()
        ]
    order = ("asked for", "tuned", "own file", "default")
    return sorted(rows, key=lambda row: order.index(row["origin"]))


def _defaults(algorithm: str) -> dict[str, Any] | None:
    base = split_name(algorithm)[0]
    if not base.startswith("rlx.algos."):
        return None
    fields = dataclasses.fields(load_algorithm(base).Config)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def _same(a: Any, b: Any) -> bool:
    plain = lambda x: [plain(y) for y in x] if isinstance(x, list | tuple) else x
    a, b = plain(a), plain(b)
    if isinstance(a, str) and isinstance(b, float) and not is_written(a):
        return a == str(b)  # "inf" in JSON
    return a == b


def newest_picture(directory: Path) -> tuple[Path, int] | None:
    """The newest picture of an episode that lies within a run directory, and when it was written in nanoseconds."""
    folder, found = directory / "episodes", [directory / "episode.gif", directory / "episode.png"]
    if folder.is_dir():
        found += folder.iterdir()
    root, newest = directory.resolve(), None
    for path in found:
        if path.suffix not in PICTURES or not path.is_file() or not path.resolve().is_relative_to(root):
            continue
        written = path.stat().st_mtime_ns
        if newest is None or written > newest[1]:
            newest = path.resolve(), written
    return newest
