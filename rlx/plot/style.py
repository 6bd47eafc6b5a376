"""How pictures look: colours, panels, legends."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from rlx.algorithm import short_name

# Told apart by colour-blind eyes: Petroff 2021, arXiv:2107.02270; without its two greys.
COLOURS = [colour for i, colour in enumerate(matplotlib.color_sequences["petroff10"]) if i not in (3, 8)]
GREY = "0.65"
MAX_BANDS = 4  # intervals that can overlap and be told apart
LINE = {"color": "black", "lw": 1.4, "zorder": 5}
DPI = 130


def one_environment(values: list[str], what: str) -> None:
    if len(values) > 1:
        raise ValueError(
            f"one picture cannot compare returns of several {what}: {', '.join(values)}; draw one at a time"
        )


def grouped(runs: Sequence[dict[str, Any]], *keys: str) -> dict[Any, list[dict[str, Any]]]:
    found = {}
    for run in runs:
        found.setdefault(tuple(run[key] for key in keys), []).append(run)
    return found


def title_of(lanes: Sequence[dict[str, Any]]) -> str:
    return f"{short_name(lanes[0]['algorithm']).upper()} on {lanes[0]['task']}"


def make_panels(count: int, width: float, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, three a row."""
    columns, lines = min(3, count), math.ceil(count / 3)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **options)
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, list(axes.flat[:count])


def add_legend(figure: Any, handles: Iterable[Any], labels: Iterable[str]) -> None:
    """A legend below the panels, for which the figure grows, in as many columns as its longest text leaves room for."""
    labels = list(labels)
    width, height = figure.get_size_inches()
    columns = max(1, min(len(labels), int(width / (0.6 + 0.068 * max(map(len, labels))))))
    figure.set_size_inches(width, height + 0.2 + 0.17 * math.ceil(len(labels) / columns))
    figure.legend(list(handles), labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def tidy(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
