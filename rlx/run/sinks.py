"""Where the rows of a log go: a class each, and a line in `SINKS`.

A sink is made with the directory of the run and the rows that a resumed run keeps, by kind. It writes each further row
when it comes, and is closed at the end. `jsonl` is the log of record, which every run has: it is resumed from it.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlx.files import write_rows
from rlx.messages import unknown_name

KINDS = ("metrics", "evaluations")  # of rows


class Sink(Protocol):
    """What takes the rows of a log."""

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """Takes one row of a kind. It has `update` and `step`; the numbers of several lanes are lists."""

    def close(self) -> None:
        """Writes what is pending."""


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

    def __init__(self, directory: Path, rows: dict[str, list[dict[str, Any]]]):
        self.files = {kind: open(directory / f"{kind}.csv", "w", newline="") for kind in rows}  # noqa: SIM115
        self.writers: dict[str, csv.DictWriter] = {}
        for kind, known in rows.items():
            for row in known:
                self.write(kind, row)

    def write(self, kind: str, row: dict[str, Any]) -> None:
        if kind not in self.writers:
            self.writers[kind] = csv.DictWriter(self.files[kind], list(row), extrasaction="ignore")
            self.writers[kind].writeheader()
        self.writers[kind].writerow(row)
        self.files[kind].flush()

    def close(self) -> None:
        for file in self.files.values():
            file.close()


SINKS: dict[str, Callable[[Path, dict[str, list[dict[str, Any]]]], Sink]] = {"jsonl": Jsonl, "csv": Csv}


class Guarded:
    """A sink beside the log of record: where it fails, that is said once, and the run continues without it."""

    def __init__(self, name: str, directory: Path, rows: dict[str, list[dict[str, Any]]], say: Callable[[str], Any]):
        self.name, self.say = name, say
        self.sink: Sink | None = self._tried(lambda: SINKS[name](directory, rows))

    def write(self, kind: str, row: dict[str, Any]) -> None:
        if (sink := self.sink) is not None:
            self._tried(lambda: sink.write(kind, row))

    def close(self) -> None:
        if self.sink is not None:
            self._tried(self.sink.close)

    def _tried(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever it raises, training is not to end by it
            self.sink = None
            self.say(f"--log {self.name}: {type(error).__name__}: {error}; the run continues without it")


def opened(
    names: Sequence[str], directory: Path, rows: dict[str, list[dict[str, Any]]], say: Callable[[str], Any]
) -> list[Sink]:
    """The log of record and the sinks of these names, in a directory whose earlier rows are known."""
    return [Jsonl(directory, rows), *(Guarded(name, directory, rows, say) for name in names if name != "jsonl")]


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for a name that no sink has."""
    for name in names:
        if name not in SINKS:
            raise ValueError(unknown_name("log", name, list(SINKS)))
