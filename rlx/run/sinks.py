"""Where the rows of a log go: a class each, and a line in `SINKS`.

A sink is made with the directory of the run and the rows that a resumed run keeps, by kind. It writes each further row
when it comes, and is closed at the end. `jsonl` is the log of record: runs are resumed from it.
"""

import json
from pathlib import Path
from typing import Any, Protocol

from rlx.files import write_rows

KINDS = ("metrics", "evaluations")  # of rows


class Sink(Protocol):
    """What takes the rows of a log."""

    def __init__(self, directory: Path, rows: dict[str, list[dict[str, Any]]]) -> None: ...

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


SINKS: dict[str, type[Sink]] = {"jsonl": Jsonl}
