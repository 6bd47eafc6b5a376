"""Files that grow or are replaced while they are read: each is read on from where it was read to."""

import json
import math
import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np

TAIL = 256  # bytes before the place that a file was read to, by which it is known again


class Tail:
    """The rows of a JSONL file that grows. A file that was written anew, as by a resumed run, is read from its start.

    `version` changes whenever what was read did.
    """

    def __init__(self, path: Path):
        self.path, self.version = path, 0
        self.seen: tuple[int, int, int] | None = None  # inode, size, time of the last change
        self.offset, self.before = 0, b""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether all earlier rows are void, and the rows that came since. A last line without an end waits.

        Raises:
            ValueError: where a line cannot be read.
        """
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            gone = self.seen is not None
            self.seen, self.offset, self.before, self.version = None, 0, b"", self.version + gone
            return gone, []
        if (now.st_ino, now.st_size, now.st_mtime_ns) == self.seen:
            return False, []
        with open(self.path, "rb") as file:
            now = os.fstat(file.fileno())
            file.seek(self.offset - len(self.before))
            void = self.seen is not None and (now.st_ino != self.seen[0] or file.read(len(self.before)) != self.before)
            if void:
                self.offset, self.before = 0, b""
            file.seek(self.offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        rows = []
        for line in whole.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{self.path} is damaged: {error}") from None
        self.seen = now.st_ino, now.st_size, now.st_mtime_ns
        self.offset, self.before = self.offset + len(whole), (self.before + whole)[-TAIL:]
        self.version += void or bool(rows)
        return void, rows


class Columns:
    """Rows as columns of numbers: arrays `[R]` of R rows, or `[R, L]` of the lists of L lanes; null is NaN."""

    def __init__(self):
        self.num_rows = 0
        self.values: dict[str, Any] = {}
        self.cached: dict[str, np.ndarray] = {}

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Takes further rows. What is no number, and what has another shape than before, is left out."""
        self.cached = {} if rows else self.cached
        for row in rows:
            for name, value in row.items():
                if (read := _numbers(value)) is None:
                    continue
                if name not in self.values:
                    self.values[name] = array("d") if isinstance(read, float) else []
                column = self.values[name]
                if isinstance(column, array) != isinstance(read, float):
                    continue
                blank = math.nan if isinstance(read, float) else np.full_like(read, math.nan)
                column.extend([blank] * (self.num_rows - len(column)))
                column.append(read)
            self.num_rows += 1

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> np.ndarray:
        """The column of a name, rows that lack it are NaN."""
        if name not in self.cached:
            column = np.array(self.values[name])
            missing = np.full((self.num_rows - len(column), *column.shape[1:]), np.nan)
            self.cached[name] = np.concatenate([column, missing])
        return self.cached[name]

    def names(self) -> list[str]:
        """The names of the columns, in the order in which they came."""
        return list(self.values)


def _numbers(value: Any) -> Any:
    if value is None:
        return math.nan
    try:
        return np.array(value, np.float64) if isinstance(value, list) else float(value)
    except (TypeError, ValueError):
        return None


class File:
    """A JSON file that is replaced as a whole, read again when it has changed."""

    def __init__(self, path: Path):
        self.path, self.version, self.value = path, 0, None
        self.seen: tuple[int, int, int] | None = None

    def read(self) -> Any:
        """Its content; None where there is none.

        Raises:
            ValueError: where it is no JSON.
        """
        try:
            now = os.stat(self.path)
            key = now.st_ino, now.st_size, now.st_mtime_ns
            if key != self.seen:
                self.value, self.seen, self.version = json.loads(self.path.read_text()), key, self.version + 1
        except FileNotFoundError:
            self.version += self.seen is not None
            self.value = self.seen = None
        except ValueError as error:
            raise ValueError(f"{self.path} is not readable as JSON: {error}") from None
        return self.value
