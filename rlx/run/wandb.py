"""Weights & Biases, through a process of its own (`rlx.run.wandb_client`), which a server that hangs cannot outlive.

wandb asks for input, waits at the exit of its process and takes a second of it to be imported: none of that happens in
the process that trains. What a history has is not taken back. So a row is sent when a checkpoint or an evaluation says
that no resumed run will write it again; the last row of a run, which a longer one would replace, goes into the summary.
"""

import json
import secrets
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlx.files import read_json, write_json
from rlx.run.sinks import Asked, LoggedRun, pictures_of, settings_of, tables_of, tags

FILE = "wandb.json"  # of a run: its id, and the last update of each kind that was given to wandb
PROJECT = "rlx"  # where WANDB_PROJECT is not set


class Wandb:
    """A run of W&B for each run, by an id that its folder keeps in `wandb.json`."""

    def __init__(self, runs: Sequence[LoggedRun], asked: Asked):
        self.asked = asked
        self.histories = [History(run) for run in runs]
        client = Path(__file__).with_name("wandb_client.py")
        # -P: its folder, where this file is called wandb too, is no place to import from.
        command = [sys.executable, "-P", str(client)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        root = runs[0].folder if len(runs) == 1 else runs[0].folder.parent
        begin = {"project": PROJECT, "folder": str(root.resolve()), "seconds": 0.8 * asked.seconds}
        self._send(begin | {"runs": [history.begin() for history in self.histories]})
        for number, history in enumerate(self.histories):
            self._release(number, history)

    def write(self, number: int, kind: str, row: dict[str, Any]) -> None:
        self.histories[number].add(kind, row)
        self._release(number, self.histories[number])

    def close(self) -> None:
        for number, history in enumerate(self.histories):
            self._release(number, history)
            for line in history.end():
                self._send({"run": number} | line)
        said = self._ended()
        if self.process.returncode:
            raise OSError(f"{' '.join(said)} (status {self.process.returncode} of the process that speaks to W&B)")
        for line in said:
            self.asked.say(line)

    def _release(self, number: int, history: "History") -> None:
        for line in history.released():
            self._send({"run": number} | line)

    def _send(self, line: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise OSError(" ".join(self._ended()) or "the process that speaks to W&B has ended") from None

    def _ended(self) -> list[str]:
        """What the process said, after the end of its input, at which it ends in time by itself."""
        with suppress(BrokenPipeError):
            return self.process.communicate()[0].splitlines()
        return []


class History:
    """What of a run is to be sent: rows that no resumed run will write again, after those that were sent."""

    def __init__(self, run: LoggedRun):
        self.run, self.file = run, run.folder / FILE
        run.folder.mkdir(parents=True, exist_ok=True)
        saved = read_json(self.file) if self.file.exists() else {"id": secrets.token_hex(6), "given": {}}
        self.id, self.given = saved["id"], dict(saved["given"])
        write_json(self.file, saved)
        self.settled = -1 if run.checkpoints is not None else sys.maxsize  # the update up to which rows stay
        self.waiting: list[tuple[int, str, dict[str, Any]]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.last: dict[str, float] = {}
        self.step, self.update = 0, 0
        rows = [(row["update"], kind, row) for kind, known in run.rows.items() for row in known]
        for _, kind, row in sorted(rows, key=lambda item: item[0]):
            self.add(kind, row)

    def begin(self) -> dict[str, Any]:
        """What the client is told of the run."""
        about = {"id": self.id, "name": self.run.name, "group": self.run.group, "config": settings_of(self.run)}
        return about | {"file": str(self.file.resolve()), "mark": self.given}

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Takes a row, to be sent when it is settled."""
        if kind == "evaluations":
            self.evaluations.append(row)
            self.settled = max(self.settled, row["update"])  # a checkpoint precedes each evaluation
        else:
            self.last = tags(kind, row)
        self.step, self.update = max(self.step, row["step"]), max(self.update, row["update"])
        if row["update"] > self.given.get(kind, -1):
            self.waiting.append((row["update"], kind, row))

    def released(self) -> list[dict[str, Any]]:
        """Lines for the rows that are settled by now, and for the pictures up to the last of them."""
        if self.waiting and self.run.checkpoints is not None:
            self.settled = max(self.settled, settled(self.run.checkpoints))
        ready = [item for item in self.waiting if item[0] <= self.settled]
        self.waiting = self.waiting[len(ready) :]
        lines = [
            {"step": row["step"], "values": tags(kind, row) | {"global_step": row["step"]}, "update": update}
            | {"kind": kind}
            for update, kind, row in ready
        ]
        return lines + self._pictures(ready[-1][2]["step"] if ready else -1)

    def end(self) -> list[dict[str, Any]]:
        """Lines for what there is at the end of a run that has come to its end: the last row, pictures and a table."""
        files = [] if self.run.pictures is None else sorted(self.run.pictures.glob("*.png"))
        if self.run.pictures is not None and not any(
            (self.run.pictures / name).exists() for name in ("evaluation.json", "summary.json")
        ):
            return []
        lines: list[dict[str, Any]] = self._pictures(self.step)
        new = lambda kind: self.given.get(kind) != self.update
        for path in files:
            if new(kind := f"pictures/{path.name}"):
                lines.append(self._picture(path.stem, path, self.step, self.update, kind))
        for name, table in tables_of(self.run, self.evaluations).items():
            if new(kind := f"tables/{name}"):
                lines.append({"table": table, "name": name, "step": self.step, "update": self.update, "kind": kind})
        return [*lines, {"summary": self.last}]

    def _pictures(self, step: int) -> list[dict[str, Any]]:
        """Lines for the pictures of episodes up to a step which were not sent; their steps are kept as their mark."""
        found = [of for of in pictures_of(self.run, step).values() if of[1] > self.given.get("pictures", -1)]
        if found:
            self.given["pictures"] = found[-1][1]
        return [self._picture("episode", path, max(step, at), at, "pictures") for path, at in found]

    @staticmethod
    def _picture(name: str, path: Path, step: int, mark: int, kind: str) -> dict[str, Any]:
        return {"step": step, "name": name, "path": str(path.resolve()), "update": mark, "kind": kind}


def settled(checkpoints: Path) -> int:
    """The update up to which a run that is resumed from its newest checkpoint keeps the rows of its log; -1 for none.

    A checkpoint that is being deleted while it is read counts as none.
    """
    try:
        numbers = [int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()]
        newest = max(numbers)
        about = json.loads((checkpoints / str(newest) / "about.json").read_text())["about"]
        return newest - about["log"]["count"]
    except (OSError, ValueError, KeyError):
        return -1
