"""`rlx log`: runs and sweeps that were trained, or that are training, as TensorBoard, W&B or CSV has them."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from rlx.cli.options import parse_options
from rlx.files import read_config, read_rows
from rlx.run.background import Background
from rlx.run.sinks import KINDS, LoggedRun, check_names
from rlx.run.storage import is_owned
from rlx.sweeps.logs import lane_rows, logged_lanes

SECONDS = 600.0  # that writing may take


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """Write a run, or every lane of a sweep, as TensorBoard, Weights & Biases or a spreadsheet has it.

    Pictures and tables are written too. What W&B has of a run already is not sent again.
    """

    path: tyro.conf.Positional[Path]
    """Run directory or sweep directory; one that is training is written as far as it is."""
    to: Literal["tensorboard", "wandb", "csv"]
    """Log to write."""
    output: Path | None = None
    """Directory to write a folder of the run's or the sweep's name into; by default the directory itself gets the
    files."""


def log(arguments: list[str]) -> None:
    """`rlx log`."""
    options = parse_options(LogOptions, arguments, "rlx log")
    check_names((options.to,), "--to")
    directory, output = options.path, options.output
    is_sweep = (directory / "sweep.json").exists()
    saved = read_config(directory, "sweep.json" if is_sweep else "config.json")
    folder = directory if output is None else output / directory.resolve().name
    under_way = is_owned(directory)
    if under_way and output is None and options.to in saved.get("log", ()):
        raise ValueError(f"{directory} is training and writes {options.to} itself: give --output to write another one")
    if is_sweep:
        rows = lane_rows(directory)
        runs = logged_lanes(saved, directory, folder, rows)
        ended = (directory / "summary.json").exists()
        reached = max((row["step"] for kinds in rows.values() for row in kinds["metrics"]), default=0)
    else:
        runs = [logged_run(directory, folder)]
        ended = (directory / "evaluation.json").exists() and not under_way
        reached = max((row["step"] for row in runs[0].rows["metrics"]), default=0)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not ended:
        how = "is training" if under_way else "has not come to its end"
        console.print(f"{directory} {how}: what there is of it by now, up to step {reached:,}, is written")
    said: list[str] = []
    sink = Background(options.to, runs, said.append, directory, SECONDS)
    sink.close()
    for text in said:
        if not sink.failed:
            console.print(text.removeprefix("--log "))
    if sink.failed or sink.thread.is_alive():
        raise OSError("; ".join(said).replace("--log", "--to"))
    num = f"{len(runs) - 1} lanes" if is_sweep else f"{sum(map(len, runs[0].rows.values()))} rows"
    console.print(f"{options.to}: {num} of {directory}, in {folder}")


def logged_run(directory: Path, folder: Path) -> LoggedRun:
    """A run directory as sinks are told of it; they write into `folder`.

    Raises:
        ValueError: when it is none.
    """
    rows = {kind: read_rows(directory / f"{kind}.jsonl") for kind in KINDS}
    log = directory / "metrics.jsonl"
    written = log.stat().st_mtime if log.exists() else 0.0
    return LoggedRun(
        folder=folder,
        name=directory.resolve().name,
        settings=read_config(directory),
        rows=rows,
        checkpoints=directory / "checkpoints",
        pictures=directory,
        began=written - max((row["seconds"] for row in rows["metrics"]), default=0.0),
    )
