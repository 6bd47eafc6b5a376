"""The commands that compare runs: `rlx report`, `rlx plot`."""

import dataclasses
import json
import math
from pathlib import Path

import tyro
from rich.console import Console

from rlx.cli.options import parse_options
from rlx.envs.registry import full_name
from rlx.run.storage import naming


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Compare groups of runs: means, interquartile means, intervals, and who beats whom."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories and sweep directories to compare; runs that differ only in their seed are a group."""
    rank_by: str = "return"
    """What groups are compared by: return, or a name that the environment reports, such as success."""
    target: float | None = None
    """Return that the optimality gap is measured to."""
    bounds: tuple[str, ...] = ()
    """Returns that count as 0 and as 1 in an environment, as NAME=LOW:HIGH, to compare across environments."""
    confidence: float = 0.95
    """Confidence of the intervals, between 0 and 1."""
    limit: int = 20
    """Largest number of rows of a table."""
    json: Path | None = None
    """JSON file to write the whole report to."""


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw runs and sweeps: learning curves with intervals over seeds, or the return against what was varied."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories and sweep directories to draw."""
    output: Path = Path("curves.png")
    """Picture to write."""
    y: str = "return"
    """What is drawn: return, or a name that the environment reports, such as success."""
    sensitivity: tuple[str, ...] | None = None
    """Draw the final return against these settings; with none given, against all that were varied."""
    heatmap: tuple[str, str] | None = None
    """Draw the final return against these two settings of a grid."""


def plain_console() -> Console:
    """Tables are wide: where nothing says how wide the output may be, 120 columns."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, markup=False, soft_wrap=True, width=120)


def report(arguments: list[str]) -> None:
    """`rlx report`."""
    options = parse_options(ReportOptions, arguments, "rlx report")
    print_report(options, plain_console())


def print_report(options: ReportOptions, console: Console) -> None:
    from rlx import report

    bounds = {}
    for text in options.bounds:
        name, _, ends = text.rpartition("=")
        try:
            low, high = map(float, ends.split(":"))
        except ValueError:
            raise ValueError(f"--bounds {text}: give NAME=LOW:HIGH") from None
        bounds[full_name(name)] = low, high
    if options.limit < 1:
        raise ValueError(f"--limit {options.limit}: give at least 1")
    if options.target is not None and not math.isfinite(options.target):
        raise ValueError(f"--target {options.target}: give a number")
    if not 0 < options.confidence < 1:
        raise ValueError(f"--confidence {options.confidence}: give a number between 0 and 1")
    runs = report.runs(options.paths, options.rank_by)
    found = report.report(runs, options.target, bounds or None, options.confidence)
    console.print(report.tables(found, options.limit))
    if options.json:
        with naming(options.json, lambda: "the runs are as they were"):
            options.json.write_text(json.dumps(found, indent=1) + "\n")


def plot(arguments: list[str]) -> None:
    """`rlx plot`."""
    from rlx import plot
    from rlx.report.read import runs

    options = parse_options(PlotOptions, arguments, "rlx plot")
    found = runs(options.paths, options.y)
    with naming(options.output, lambda: "the runs are as they were; --output says where else"):
        if options.heatmap is not None:
            plot.heatmap(found, *options.heatmap, options.output)
        elif options.sensitivity is not None:
            plot.sensitivity(found, options.output, options.sensitivity or None)
        elif len(found) == 1 and "curve" not in found[0]:
            plot.curve(list(options.paths), options.output, options.y)
        else:
            plot.learning_curves(found, options.output)
    print(f"picture: {options.output}")
