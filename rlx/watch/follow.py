"""Files that grow or are replaced while they are read: each is read on from where it was read to."""

import json
import os
from itertools import chain
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
        try:  # all lines as one text, which is read several times faster than each by itself
            rows = json.loads(b"[" + whole.rstrip(b"\n").replace(b"\n", b",") + b"]")
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
        self.parts: dict[str, list[np.ndarray]] = {}  # of each column, one after another, without gaps
        self.shapes: dict[str, tuple[int, ...]] = {}  # of a row of it

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Takes further rows. What is no number, or of another shape than before, is NaN; a text is no column."""
        if not rows:
            return
        for name in dict.fromkeys(chain(self.parts, *rows)):
            values = [row.get(name) for row in rows]
            lanes = next((len(x) for x in values if isinstance(x, list)), None)
            shape = self.shapes.get(name, () if lanes is None else (lanes,))
            if (read := _read(values, shape)) is None:
                if name not in self.parts:
                    continue
                read = np.full((len(rows), *shape), np.nan)
            if name not in self.parts:
                self.shapes[name] = shape
                self.parts[name] = [np.full((self.num_rows, *shape), np.nan)]
            self.parts[name].append(read)
        self.num_rows += len(rows)

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def __getitem__(self, name: str) -> np.ndarray:
        """The column of a name; rows that lack it are NaN."""
        if len(self.parts[name]) > 1:
            self.parts[name] = [np.concatenate(self.parts[name])]
        return self.parts[name][0]

    def names(self) -> list[str]:
        """The names of the columns, in the order in which they came."""
        return list(self.parts)


def _read(values: list[Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """Rows of a column as an array; None where they are no numbers of one shape."""
    if shape:
        values = [[None] * shape[0] if x is None else x for x in values]
    try:
        read = np.array(values, np.float64)  # which reads None as NaN
    except (TypeError, ValueError):
        return None
    return read if read.shape[1:] == shape else None


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
