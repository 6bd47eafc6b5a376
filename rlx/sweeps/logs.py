"""The lanes of a sweep as runs of their own, for the logs beside the log of record: while it trains, and afterwards.

What a sink writes of lane 3 is in `lanes/3` of the sweep directory. Its rows are those of the batches that trained it,
which `lanes.json` of each batch names.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlx.files import read_json, read_rows
from rlx.run.background import Background, beside
from rlx.run.sinks import KINDS, LoggedRun
from rlx.sweeps.job import Lane, SweepJob, describe
from rlx.sweeps.search import split as split_point

FOLDER = "lanes"
NAMES = "lanes.json"  # of a batch: the numbers of its lanes


def logged_lanes(
    saved: dict[str, Any], directory: Path, folder: Path, rows: dict[int, dict[str, list[dict[str, Any]]]]
) -> list[LoggedRun]:
    """A run for each lane of a sweep and, as the last one, the sweep with its pictures and its table of results.

    Args:
        saved: `sweep.json`.
        directory: of the sweep.
        folder: in which sinks put their files.
        rows: of each lane, by kind.
    """
    name, seeds = directory.resolve().name, saved["num_seeds"]
    found = []
    for number in range(len(saved["points"]) * seeds):
        config, params = split_point(saved["points"][number // seeds])
        settings = saved | {
            "config": saved["config"] | config,
            "env_params": (saved["env_params"] or {}) | params,
            "seed": saved["seed"] + number % seeds,
        }
        known = rows.get(number, {kind: [] for kind in KINDS})
        found.append(LoggedRun(folder / FOLDER / str(number), f"{name}/{FOLDER}/{number}", settings, known, name))
    return [*found, LoggedRun(folder, name, {}, {kind: [] for kind in KINDS}, name, pictures=directory)]


def lane_rows(directory: Path, unfinished: bool = True) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """The rows of the lanes of a sweep directory, by their numbers and kinds; those of batches that have not ended too.

    Raises:
        ValueError: for files that cannot be read.
    """
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for batch in sorted(path for path in (directory / "batches").glob("*") if path.is_dir()):
        results = read_json(batch / "result.json") if (batch / "result.json").exists() else None
        if results is None and not (unfinished and (batch / NAMES).exists()):
            continue
        numbers = read_json(batch / NAMES) if results is None else [row["lane"] for row in results]
        for row in read_rows(batch / "metrics.jsonl"):
            for number, own in parts(numbers, row):
                found.setdefault(number, {kind: [] for kind in KINDS})["metrics"].append(own)
        for row in results or []:
            found.setdefault(row["lane"], {kind: [] for kind in KINDS})["evaluations"].append(row["evaluation"])
    for kinds in found.values():
        for rows in kinds.values():
            rows.sort(key=lambda row: row["update"])
    return found


def parts(numbers: Sequence[int], row: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of the lanes of these numbers in a row of their batch; a lane that has died has none."""
    for i, number in enumerate(numbers):
        own = {name: x[i] if isinstance(x, list) else x for name, x in row.items()}
        means = [x for name, x in own.items() if isinstance(row[name], list) and not isinstance(x, int)]
        if not means or any(x is not None for x in means):
            yield number, own


class LaneLogs:
    """The sinks that a sweep was asked for; they are opened when the first batch begins."""

    def __init__(self, job: SweepJob, console: Console):
        self.job, self.console = job, console
        self.sinks: list[Background] | None = None

    def begin(self, lanes: Sequence[Lane], known: Sequence[dict[str, Any]]) -> "list[BatchLog]":
        """Sinks for the rows of a batch, after those that it has already."""
        if not self.job.sinks:
            return []
        if self.sinks is None:
            directory = self.job.directory
            saved = read_json(directory / "sweep.json") if (directory / "sweep.json").exists() else describe(self.job)
            runs = logged_lanes(saved, directory, directory, lane_rows(directory, unfinished=False))
            self.sinks = beside(self.job.sinks, runs, self.console.print, directory, _rows_of)
        logs = [BatchLog(sink, [lane.number for lane in lanes]) for sink in self.sinks]
        for log in logs:
            for row in known:
                log.write("metrics", row)
        return logs

    def evaluated(self, results: Sequence[dict[str, Any]]) -> None:
        """Gives the sinks the evaluations of a batch, from its `result.json`."""
        for sink in self.sinks or []:
            sink.write("evaluations", {"rows": [(row["lane"], row["evaluation"]) for row in results]})

    def close(self) -> None:
        for sink in self.sinks or []:
            sink.close()


class BatchLog:
    """A sink of a sweep as the log of a batch sees it."""

    def __init__(self, sink: Background, numbers: Sequence[int]):
        self.sink, self.numbers = sink, numbers

    def write(self, kind: str, row: dict[str, Any]) -> None:
        self.sink.write(kind, {"numbers": self.numbers, "row": row})

    def close(self) -> None:
        """The sink goes on to the next batch."""


def _rows_of(item: dict[str, Any]) -> Sequence[tuple[int, dict[str, Any]]]:
    return item["rows"] if "rows" in item else list(parts(item["numbers"], item["row"]))
