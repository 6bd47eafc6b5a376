"""Where the rows of a log go: a class each, and a line in `SINKS`.

`jsonl` is the log of record, which every run has: it is resumed from it, and it is written by the loop itself. All
others are written by a thread of their own (`rlx.run.background`), may fail, and may be written again afterwards by
`rlx log`. Such a sink is made for one or more runs, each with the rows that it has already.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rlx.files import write_rows
from rlx.messages import unknown_name

KINDS = ("metrics", "evaluations")  # of rows
SECONDS = 30.0  # that the end of a run waits for its sinks


@dataclass(frozen=True)
class LoggedRun:
    """A run as sinks are told of it, or a lane of a sweep."""

    folder: Path  # where a sink puts its files
    name: str  # `RUN`, or `SWEEP/lanes/3`
    settings: dict[str, Any]  # of `config.json`
    rows: dict[str, list[dict[str, Any]]]  # that it has already, by kind
    group: str = ""  # of a lane, the sweep
    checkpoints: Path | None = None  # rows after the newest of these may be taken back; None where none is
    pictures: Path | None = None  # the directory that has its pictures and its last evaluation
    began: float = 0.0  # when its `seconds` were 0, in seconds since 1970


Table = tuple[list[str], list[list[Any]]]  # columns and rows


class Sink(Protocol):
    """What the loop gives the rows of a log to."""

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """Takes one row of a kind. It has `update` and `step`; the numbers of several lanes are lists."""

    def close(self) -> None:
        """Writes what is pending."""


class RunSink(Protocol):
    """What a class of `SINKS` makes, on a thread of its own, for one or more runs.

    Making it writes the rows that the runs have already. Whatever it raises ends it, and nothing else.
    """

    def write(self, number: int, kind: str, row: dict[str, Any]) -> None:
        """Takes a row of the run of that number, in the order of the runs that it was made for."""

    def close(self) -> None:
        """Writes what is pending, and what there is at the end only."""


@dataclass(frozen=True)
class Asked:
    """What a sink is made with besides its runs."""

    say: Callable[[str], Any] = field(default=lambda text: None)  # tells the user a sentence
    seconds: float = SECONDS  # that closing it may take


class Jsonl:
    """A file `KIND.jsonl` for each kind of row: a JSON object a line, whole up to the last row at any moment."""

    def __init__(self, directory: Path, rows: dict[str, list[dict[str, Any]]]):
        self.files = {}
        for kind, known in rows.items():
            write_rows(directory / f"{kind}.jsonl", known)
            self.files[kind] = open(directory / f"{kind}.jsonl", "a")  # noqa: SIM115 (closed by `close`)

    def write(self, kind: str, row: dict[str, Any]) -> None:
        self.files[kind].write(json.dumps(row) + "\n")
        self.files[kind].flush()

    def close(self) -> None:
        for file in self.files.values():
            file.close()


class Csv:
    """A file `KIND.csv` for each kind of row, for spreadsheets: the columns are those of its first row."""

    def __init__(self, runs: Sequence[LoggedRun], asked: Asked):
        self.runs = runs
        self.columns: dict[tuple[int, str], list[str]] = {}
        for number, run in enumerate(runs):
            run.folder.mkdir(parents=True, exist_ok=True)
            for kind, known in run.rows.items():
                (run.folder / f"{kind}.csv").write_text("")
                self._write(number, kind, known)

    def write(self, number: int, kind: str, row: dict[str, Any]) -> None:
        self._write(number, kind, [row])

    def close(self) -> None:
        pass

    def _write(self, number: int, kind: str, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        # Opened each time: a sweep has more lanes than a process may have open files.
        with open(self.runs[number].folder / f"{kind}.csv", "a", newline="") as file:
            columns = self.columns.setdefault((number, kind), list(rows[0]))
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            if not file.tell():
                writer.writeheader()
            writer.writerows(rows)


def tensorboard(runs: Sequence[LoggedRun], asked: Asked) -> RunSink:
    """`rlx.run.tensorboard.TensorBoard`, imported when asked for."""
    return import_module("rlx.run.tensorboard").TensorBoard(runs, asked)


def wandb(runs: Sequence[LoggedRun], asked: Asked) -> RunSink:
    """`rlx.run.wandb.Wandb`, imported when asked for."""
    return import_module("rlx.run.wandb").Wandb(runs, asked)


SINKS: dict[str, Callable[[Sequence[LoggedRun], Asked], RunSink]] = {
    "csv": Csv,
    "tensorboard": tensorboard,
    "wandb": wandb,
}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # that a sink needs


def check_names(names: Sequence[str], flag: str = "--log") -> None:
    """Raises ValueError for a name that no sink has, and for one whose package is not installed."""
    for name in names:
        if name not in ("jsonl", *SINKS):
            raise ValueError(unknown_name("log", name, ["jsonl", *SINKS]))
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            raise ValueError(f'{flag} {name} needs {PACKAGES[name]}, which is not installed: pip install "rlx[{name}]"')


def tags(kind: str, row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row by the names that dashboards show: metrics as they are, evaluations as `evaluation/NAME`.

    An evaluation has `mean`, `low` and `high`, the mean return with its interval over episodes, 1.96 standard errors
    to each side; and the means of what the environment reported. What is missing or not finite is left out.
    """
    if kind == "metrics":
        found = {name: x for name, x in row.items() if name not in ("update", "step")}
    else:
        names = ("mean", "std", "mean_length", "unfinished", "diverged")
        found = {f"evaluation/{name}": row[name] for name in names if name in row}
        found |= {f"evaluation/{name}": x for name, x in interval(row).items()}
        found |= {f"evaluation/{name}": x for name, x in row.get("reported", {}).items()}
    numbers = {name: as_number(x) for name, x in found.items()}
    return {name: x for name, x in numbers.items() if x is not None}


def interval(row: dict[str, Any]) -> dict[str, float]:
    """`low` and `high` of an evaluation: its mean return and 1.96 standard errors over its episodes; none of one."""
    returns = [x for value in row.get("returns", ()) if (x := as_number(value)) is not None]
    if len(returns) < 2 or (mean := as_number(row["mean"])) is None:
        return {}
    variance = sum((x - mean) ** 2 for x in returns) / (len(returns) - 1)
    half = 1.96 * (variance / len(returns)) ** 0.5
    return {"low": mean - half, "high": mean + half}


def as_number(value: Any) -> float | None:
    """The value as a finite number; None where it is none, as `"nan"` of strict JSON."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def settings_of(run: LoggedRun) -> dict[str, Any]:
    """What a dashboard shows as the settings of a run: those of the Config, and what ran on what, one level deep."""
    saved = run.settings
    if not saved:
        return {}
    found = {name: x if isinstance(x, bool | int | float | str) else str(x) for name, x in saved["config"].items()}
    for kind in ("env_options", "env_params"):
        found |= {f"{kind}.{name}": str(x) for name, x in (saved.get(kind) or {}).items()}
    found |= {f"versions.{name}": x for name, x in saved.get("versions", {}).items()}
    names = ("algorithm", "env", "seed", "devices", "device", "python", "commit")
    return {name: saved[name] for name in names if saved.get(name) is not None} | found


def pictures_of(run: LoggedRun, step: int) -> dict[str, tuple[Path, int]]:
    """The whole episodes that are drawn up to an environment step: their files and steps, by their names."""
    if run.pictures is None:
        return {}
    files = [path for path in (run.pictures / "episodes").glob("*.gif") if path.stem.isdecimal()]
    files = sorted((path for path in files if int(path.stem) <= step), key=lambda path: int(path.stem))
    return {path.name: (path, int(path.stem)) for path in files}


def tables_of(run: LoggedRun, evaluations: Sequence[dict[str, Any]]) -> dict[str, Table]:
    """The tables of a run by their names: its evaluations, and the results of a sweep."""
    found = {"evaluations": table_of(evaluations)} if evaluations else {}
    if run.pictures is not None and (file := run.pictures / "results.csv").exists():
        with open(file, newline="") as text:
            columns, *rows = csv.reader(text)
        found["results"] = columns, rows
    return found


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Evaluations as a table, a row for each."""
    columns = ["step", "mean", "low", "high", "std", "episodes"]
    found = []
    for row in rows:
        ends = interval(row)
        numbers = [as_number(row["mean"]), ends.get("low"), ends.get("high"), as_number(row["std"])]
        found.append([row["step"], *numbers, row["num_episodes"]])
    return columns, found
