"""The program that speaks to Weights & Biases for a run that trains in another process. Of packages it needs wandb.

It reads JSON lines from its input:

- first the runs: `{"runs": [...], "project", "folder", "seconds"}`
- rows, in the order of their steps: `{"run", "step", "values", "update", "kind"}`
- pictures: `{"run", "step", "name", "path", "update", "kind"}`
- tables: `{"run", "step", "name", "table", "update", "kind"}`
- at the end: `{"run", "summary"}`

It prints a line for its user where there is something to say. The end of its input is its end, at most `seconds` later:
whatever becomes of the process that trains, and of the server, nothing is left behind or waited for.

What has been given to wandb is kept in the run's `wandb.json`, by kind the last update, so that a run that is resumed
adds what is new.
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

SHARE = 0.5  # of the seconds, for reaching the server


def main() -> None:
    """Reads its input to the end, see above."""
    lines: queue.SimpleQueue = queue.SimpleQueue()
    begin = json.loads(sys.stdin.readline() or "null")
    if begin is None:
        return
    threading.Thread(target=_read, args=(lines, begin["seconds"]), daemon=True).start()
    try:
        import wandb  # pyright: ignore[reportMissingImports] (an extra)

        session = Session(wandb, begin)
        while (line := lines.get()) is not None:
            session.take(line)
        session.finish()
    except Exception as error:  # whoever started this process says it
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        sys.exit(1)


class Session:
    """The runs of wandb that this process writes."""

    def __init__(self, wandb: Any, begin: dict[str, Any]):
        self.wandb, self.begin, self.mode = wandb, begin, None
        self.marks = [run["mark"] for run in begin["runs"]]
        self.runs: list[Any] = []
        for run in begin["runs"]:
            self.runs.append(self._begun(run))

    def take(self, line: dict[str, Any]) -> None:
        """Gives wandb what a line says, and keeps that it was given."""
        number = line["run"]
        run, about = self.runs[number], self.begin["runs"][number]
        if "summary" in line:
            run.summary.update(line["summary"])
            return
        if "table" in line:
            columns, rows = line["table"]
            run.log({line["name"]: self.wandb.Table(columns=columns, data=rows)}, step=line["step"])
        elif "path" in line:
            path = line["path"]
            media = self.wandb.Video(path, format="gif") if path.endswith(".gif") else self.wandb.Image(path)
            run.log({line["name"]: media}, step=line["step"])
        else:
            run.log(line["values"], step=line["step"])
        self.marks[number][line["kind"]] = line["update"]
        _write(Path(about["file"]), {"id": about["id"], "given": self.marks[number]})

    def finish(self) -> None:
        """Waits until all is where it belongs."""
        for run in self.runs:
            run.finish()

    def _begun(self, about: dict[str, Any]) -> Any:
        """The run of wandb, the same again where it has been there; on disk where there is no server."""
        try:
            return self._init(about)
        except (self.wandb.errors.UsageError, self.wandb.errors.CommError) as error:
            if self.mode == "offline" or self.runs:
                raise
            first = " ".join(str(error).split()).partition(";")[0]
            folder = Path(self.begin["folder"]) / "wandb"
            print(f"{first}: it goes into {folder}, and `wandb sync` uploads it from there", flush=True)
            self.mode = "offline"
            self.wandb.teardown()  # its service takes the run for one that is in use
            return self._init(about)

    def _init(self, about: dict[str, Any]) -> Any:
        settings = self.wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            disable_git=True,
            disable_code=True,
            init_timeout=self.begin["seconds"] * SHARE,
        )
        return self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", self.begin["project"]),
            dir=self.begin["folder"],
            id=about["id"],
            name=about["name"],
            group=about["group"] or None,
            config=about["config"],
            resume="allow",
            reinit="create_new",
            mode=self.mode,
            settings=settings,
        )


def _read(lines: queue.SimpleQueue, seconds: float) -> None:
    """Reads all lines as they come, so that whoever writes them never waits; then sees to it that this process ends."""
    for line in sys.stdin:
        lines.put(json.loads(line))
    lines.put(None)
    timer = threading.Timer(seconds, os._exit, args=(3,))
    timer.daemon = True
    timer.start()


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
