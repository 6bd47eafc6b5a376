"""Sinks on threads of their own: neither a server that hangs nor a disk that is full slows or ends a run."""

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlx.run.sinks import SECONDS, SINKS, Asked, LoggedRun

ROWS = 2000  # that wait for a sink; more than a run has as a rule
QUIET = 1.0  # seconds of waiting at the end before that is said


Rows = Sequence[tuple[int, dict[str, Any]]]


def whole(row: dict[str, Any]) -> Rows:
    """The rows of the runs of a sink, with their numbers, in a row of a log: of one run, the row."""
    return [(0, row)]


class Background:
    """A sink beside the log of record, for one or more runs, on a thread of its own.

    `write` never waits. A sink that fails, or that more than `ROWS` rows wait for, gets no further row, which is said
    once, by whoever calls `write` or `close`. So the rows that it has are the first ones, and `rlx log` can add those
    that are missing. `close` waits at most `seconds`.

    Args:
        name: of `SINKS`.
        runs: whose rows it gets.
        say: takes a sentence for the user.
        directory: that `rlx log` is to be given.
        seconds: of waiting at the end.
        split: the numbers of runs and their rows in a row that `write` is given; called by the thread.
    """

    def __init__(
        self,
        name: str,
        runs: Sequence[LoggedRun],
        say: Callable[[str], Any],
        directory: Path,
        seconds: float = SECONDS,
        split: Callable[[dict[str, Any]], Rows] = whole,
    ):
        self.name, self.runs, self.say, self.directory = name, runs, say, directory
        self.seconds, self.split = seconds, split
        self.given, self.taken, self.failed = 0, 0, False  # rows, rows, and whether it gets no more
        self.rows: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()  # by the thread, to be told by another one
        self.error: str | None = None
        self.thread = threading.Thread(target=self._work, name=f"log {name}", daemon=True)
        self.thread.start()

    def write(self, kind: str, row: dict[str, Any]) -> None:
        self.given += 1
        self._tell()
        if self.failed:
            return
        if self.rows.qsize() >= ROWS:
            self.failed = True
            self.say(f"--log {self.name} is {ROWS} rows behind: the run continues without it")
            return
        self.rows.put((kind, row))

    def close(self) -> None:
        self.rows.put(None)
        self.thread.join(min(QUIET, self.seconds))
        self._tell()
        if self.thread.is_alive():
            self.say(f"waiting up to {self.seconds:.0f} s for --log {self.name}")
            self.thread.join(max(0.0, self.seconds - QUIET))
            self._tell()
        alive, all_rows = self.thread.is_alive(), self.taken == self.given
        if not alive and not self.failed:
            return
        how = f"did not end within {self.seconds:.0f} s" if alive else "failed"
        has = "has every row, not all of the end" if all_rows else f"has {self.taken} of {self.given} rows"
        self.say(f"--log {self.name} {how} and {has}: rlx log {self.directory} --to {self.name} writes what is missing")

    def _tell(self) -> None:
        """Says what the thread has to say: a console is written by one thread alone, between its own lines."""
        while not self.said.empty():
            self.say(f"--log {self.name}: {self.said.get()}")
        if self.error is not None and not self.failed:
            self.failed = True
            self.say(f"--log {self.name}: {self.error}; the run continues without it")

    def _work(self) -> None:
        try:
            sink = SINKS[self.name](self.runs, Asked(self.said.put, self.seconds))
            while (item := self.rows.get()) is not None:
                kind, row = item
                for number, own in self.split(row):
                    sink.write(number, kind, own)
                self.taken += 1
            sink.close()
        except Exception as error:  # whatever it raises, training is not to end by it
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())}"


def beside(
    names: Sequence[str],
    runs: Sequence[LoggedRun],
    say: Callable[[str], Any],
    directory: Path,
    split: Callable[[dict[str, Any]], Rows] = whole,
) -> list[Background]:
    """The sinks of these names but the log of record, each on its thread."""
    names = [name for name in dict.fromkeys(names) if name != "jsonl"]
    return [Background(name, runs, say, directory, SECONDS, split) for name in names]
