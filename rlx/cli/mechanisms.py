"""`rlx mechanisms`."""

import sys

from rich.console import Console
from rich.table import Table

from rlx.mechanisms import MECHANISMS


def mechanisms(arguments: list[str]) -> None:
    """`rlx mechanisms`."""
    if any(argument.startswith("-") for argument in arguments):
        print("usage: rlx mechanisms [part of a name, a paper or a slot]")
        sys.exit(0 if arguments[0] in ("-h", "--help") else 2)
    about = lambda row: f"{row.name} {row.paper} {row.slot} {row.function}".lower()
    found = [row for row in MECHANISMS if all(part.lower() in about(row) for part in arguments)]
    if not found:
        raise ValueError(f"no mechanism has {' and '.join(arguments)} in its name, its paper or its slot")
    console = Console()
    if not console.is_terminal:  # for other programs: a line each, with tabs
        print("\n".join("\t".join((row.name, row.paper, row.slot, row.function, row.command)) for row in found))
        return
    table = Table("name", "slot", "function", "paper")
    for row in found:
        table.add_row(row.name, row.slot, row.function, row.paper)
    console.print(table)
    for row in found if len(found) <= 3 else []:
        console.print(row.command, highlight=False)
