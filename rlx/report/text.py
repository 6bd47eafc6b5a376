"""Tables as Markdown, and numbers with their intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

MOST = 6  # columns of what environments reported


def tables(report: dict[str, Any], limit: int = 20) -> Group:
    """The report for a terminal: a table a task with its best `limit` groups, one across tasks, and the notes."""
    percent = f"{100 * report['confidence']:g} %"
    parts = []
    for part in report["tasks"]:
        gap = None if part["target"] is None else f"gap to {part['target']:g} [{percent}]"
        result = report.get("result", "return")
        parts += markdown(f"{part['task']}: {result} of the final evaluation", part["groups"], gap, percent, limit)
        title = f"{part['task']}: {result} after fewer steps than planned"
        parts += markdown(title, part["stopped"], gap, percent, limit)
        parts += reported(f"{part['task']}: what the environment reported, means over runs", part["groups"], limit)
    if overall := report["overall"]:
        title, gap = f"{len(report['tasks'])} tasks", None
        if overall["normalised"]:
            title, gap = f"{title}, normalised return: 0 is low, 1 is high", f"gap to 1 [{percent}]"
        parts += markdown(title, overall["groups"], gap, percent, limit)
    return Group(*parts, *(Text(f"- {note}") for note in report["notes"]))


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Markdown in which these tables stand between `<!-- table: NAME -->` and `<!-- end -->`; the rest is as it was.

    Raises:
        ValueError: for a table that the text has no place for.
    """
    for name, table in tables.items():
        start = f"<!-- table: {name} -->\n"
        before, mark, after = text.partition(start)
        if not mark or "<!-- end -->" not in after:
            raise ValueError(f"there is no place for the table {name!r}: write {start.strip()} and <!-- end -->")
        text = before + start + table + after[after.index("<!-- end -->") :]
    return text


def markdown(title, rows, gap, percent, limit):
    if not rows:
        return []
    # Text, not strings: rich would take [none] for one of its tags.
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("group", overflow="fold")
    columns = {
        "runs": lambda row: ", ".join([str(row["runs"]), *(f"{row[k]} {k}" for k in ("died", "unscored") if row[k])]),
        "steps": lambda row: f"{row['steps']:,}",
    }
    values = [row["iqm"]["value"] for row in rows if row["iqm"]]
    if values:
        digits = decimals(values)
        columns |= {
            f"IQM [{percent}]": lambda row: _with_interval(row["iqm"], digits),
            "mean": lambda row: _number(row["mean"] and row["mean"]["value"], digits),
            "std": lambda row: _number(row["std"], digits),
        }
        if gap:
            columns[gap] = lambda row: _with_interval(row["optimality_gap"], digits)
        if all(row["std"] is None for row in rows):
            del columns["std"]
    if any(row["improvement"] for row in rows):
        columns[f"P(first beats it) [{percent}]"] = lambda row: _with_interval(row["improvement"], 2)
    for name in columns:
        table.add_column(Text(name), justify="right")
    for row in rows[:limit]:
        table.add_row(Text(row["group"]), *(Text(cell(row)) for cell in columns.values()))
    return [table, f"and {len(rows) - limit} more groups"] if len(rows) > limit else [table]


def reported(title, rows, limit):
    """A table of what the environment reported, of a group each; nothing where it reported nothing."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("reported", {})))
    if not names:
        return []
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("group", overflow="fold")
    for name in (shown := sorted(names, key=lambda name: ("success" not in name, name))[:MOST]):
        table.add_column(Text(name), justify="right", overflow="fold")
    for row in rows[:limit]:
        values = [row.get("reported", {}).get(name) for name in shown]
        table.add_row(Text(row["group"]), *("-" if value is None else f"{value:.4g}" for value in values))
    rest = len(names) - len(shown)
    return [table, f"and {rest} more names, which --json has"] if rest else [table]


def decimals(values):
    """Four significant digits of the largest value, three decimals at most."""
    largest = max(abs(value) for value in values)
    return int(np.clip(3 - np.floor(np.log10(largest)), 0, 3)) if largest > 0 else 1


def _number(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def _with_interval(estimate, digits):
    if estimate is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.{digits}f} [none]"
    return "{value:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(d=digits, **estimate)
