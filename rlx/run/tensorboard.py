"""TensorBoard's event files, by the messages of tensorboardX: scalars by environment step, settings, pictures, tables.

A run has one event file. A run that is resumed gets a new one, with the rows that it keeps, and the old one is deleted
when the new one is whole: nobody finds a row twice, or one that the checkpoint does not know. The new file begins with
the start of a session at step 0, at which a TensorBoard that is open drops what it has read.

tensorboardX's own writer is not used. It writes by a thread, in which an error ends the thread and no one is told.
"""

import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.crc32c import crc32c

# Classes that their modules make when they are imported, which no checker of types sees.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from rlx.run.sinks import Asked, LoggedRun, pictures_of, settings_of, tables_of, tags

FILES = "events.out.tfevents.*.rlx"
BAND = {"evaluation": {"return": ["Margin", ["evaluation/mean", "evaluation/low", "evaluation/high"]]}}


class TensorBoard:
    """An event file in the folder of each run, so that `tensorboard --logdir runs` calls a run by its directory."""

    def __init__(self, runs: Sequence[LoggedRun], asked: Asked):
        self.files = [EventFile(run) for run in runs]

    def write(self, number: int, kind: str, row: dict[str, Any]) -> None:
        self.files[number].add(kind, row)

    def close(self) -> None:
        for file in self.files:
            file.end()


class EventFile:
    """The event file of a run, from its first row on; earlier files of the run are deleted."""

    def __init__(self, run: LoggedRun):
        self.run, self.step = run, 0
        self.began = self.time = run.began or time.time()
        self.shown: set[str] = set()  # names of pictures
        self.evaluations: list[dict[str, Any]] = []
        run.folder.mkdir(parents=True, exist_ok=True)
        before = list(run.folder.glob(FILES))
        # Readers take the files of a folder in the order of their names.
        self.path = run.folder / f"events.out.tfevents.{time.time():.6f}.rlx"
        events = [Event(wall_time=self.time, file_version="brain.Event:2")]
        if before:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=self.time, step=0, session_log=start))
        if run.settings:
            experiment, session, _ = summary.hparams(settings_of(run), {"evaluation/mean": 0, "episode_return": 0})
            events += [self._event(x, 0) for x in (experiment, session, summary.custom_scalars(BAND))]
        rows = [(row["update"], kind, row) for kind, known in run.rows.items() for row in known]
        for _, kind, row in sorted(rows, key=lambda item: item[0]):
            events.append(self._row(kind, row))
        self._append(events)
        for path in before:
            path.unlink(missing_ok=True)

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Appends a row, and the pictures of episodes that are new."""
        self._append([self._row(kind, row), *self._pictures()])

    def end(self) -> None:
        """Appends what there is at the end: the rest of the pictures, the learning curve, tables."""
        events = self._pictures()
        if self.run.pictures is not None:
            events += [self._picture(x.stem, x, self.step) for x in sorted(self.run.pictures.glob("*.png"))]
        for name, (columns, rows) in tables_of(self.run, self.evaluations).items():
            lines = [columns, ["---:"] * len(columns), *([_cell(x) for x in row] for row in rows)]
            text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            events.append(self._event(summary.text(name, text), self.step))
        self._append(events)

    def _row(self, kind: str, row: dict[str, Any]) -> Event:
        self.step = max(self.step, row["step"])
        if kind == "metrics":
            self.time = self.began + row["seconds"]
        else:
            self.evaluations.append(row)
        values = [Summary.Value(tag=name, simple_value=x) for name, x in tags(kind, row).items()]
        return self._event(Summary(value=values), row["step"])

    def _pictures(self) -> list[Event]:
        """The pictures of episodes that are new."""
        found = {n: of for n, of in pictures_of(self.run, self.step).items() if n not in self.shown}
        events = [self._picture("episode", path, step) for path, step in found.values()]
        self.shown |= found.keys()
        return events

    def _picture(self, tag: str, path: Path, step: int) -> Event:
        """A file as it is: TensorBoard's page shows a GIF as the browser does, which plays it."""
        from PIL import Image

        with Image.open(path) as opened:
            width, height = opened.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        return self._event(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def _event(self, content: Any, step: int) -> Event:
        return Event(wall_time=self.time, step=step, summary=content)

    def _append(self, events: Sequence[Event]) -> None:
        """Writes the events; the file is opened each time, for a sweep has more lanes than a process may open files."""
        with open(self.path, "ab") as file:
            file.write(b"".join(record(event.SerializeToString()) for event in events))


def record(content: bytes) -> bytes:
    """The bytes as a record of an event file: their length and the bytes, each followed by its checksum."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
