"""What a path is for `rlx watch`: a run, a sweep, or a folder of several."""

from pathlib import Path
from typing import Any

import numpy as np

from rlx.run.storage import is_owned
from rlx.watch.runs import Run
from rlx.watch.sweeps import Lanes

POINTS = 60  # of a small curve


def kind_of(directory: Path) -> str:
    """`run`, `sweep`, `begun` (owned, with nothing in it yet), or nothing where it is neither."""
    if (directory / "sweep.json").exists():
        return "sweep"
    if (directory / "config.json").exists():
        return "run"
    return "begun" if is_owned(directory) else ""


class Folder:
    """A folder of runs and sweeps. `refresh` reads which there are, and what each says."""

    kind = "folder"

    def __init__(self, directory: Path):
        self.directory, self.problem = directory, ""
        self.entries: dict[str, Run | Lanes] = {}  # by name, the newest first

    def look(self) -> None:
        """Reads which runs and sweeps there are, and nothing of them. What fails is said in `problem`."""
        self.problem, found = "", {}
        try:
            for path in sorted(self.directory.iterdir()):
                if path.is_dir() and (kind := kind_of(path)):
                    known = self.entries.get(path.name)
                    wanted = "sweep" if kind == "sweep" else "run"
                    found[path.name] = known if known and known.kind == wanted else view_of(path)
            self.entries = found
        except OSError as error:
            self.problem = str(error)

    def refresh(self) -> None:
        """Reads on in all of them. What cannot be read is said in `problem`, and the rest stays as it was."""
        self.look()
        for entry in self.entries.values():
            entry.refresh()
        # What compiles has no time yet, and is the newest.
        started = lambda name: str((self.entries[name].config or {}).get("started", "9"))
        self.entries = {name: self.entries[name] for name in sorted(self.entries, key=started, reverse=True)}

    @property
    def version(self) -> str:
        """Changes when anything that is shown has changed."""
        return f"{[(name, entry.version) for name, entry in self.entries.items()]} {self.problem}"


def view_of(directory: Path) -> Run | Lanes:
    """The sweep or the run of a directory; one that is neither yet is a run without a config."""
    return Lanes(directory) if kind_of(directory) == "sweep" else Run(directory)


def opened(path: Path) -> Run | Lanes | Folder:
    """What there is to be watched at a path.

    Raises:
        ValueError: where there is nothing.
    """
    if not path.is_dir():
        raise ValueError(
            f"{path} is {'a file' if path.exists() else 'not there'}: give a run, a sweep, or their folder"
        )
    if kind_of(path):
        return view_of(path)
    if not any(child.is_dir() and kind_of(child) for child in path.iterdir()):
        raise ValueError(f"{path} is no run and no sweep, and holds none: it has no config.json and no sweep.json")
    return Folder(path)


def small_curve(entry: Run | Lanes) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[P]` and training returns `[P]` of a run, or of the best configuration of a sweep; as few as can be seen.

    Returns empty arrays before an episode has ended.
    """
    if isinstance(entry, Run):
        steps, values, _ = entry.curve()
    else:
        curve = best_curve(entry)
        steps, values = (np.zeros(0), np.zeros(0)) if curve is None else (curve.steps, curve.value)
    if len(steps) <= POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), POINTS + 1).astype(int)
    means = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    return steps[edges[1:] - 1], means


def best_curve(sweep: Lanes) -> Any:
    """The curve of the configuration that trains best, a `rlx.report.Curve`; None before there is one."""
    curves = [curve for group in sweep.groups if (curve := sweep.curve(group)) is not None]
    return max(curves, key=lambda curve: curve.value[-1], default=None)
