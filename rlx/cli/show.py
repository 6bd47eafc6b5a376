"""`rlx show`: the reproducibility card of a run, of a sweep, or of a lane of a sweep."""

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from rlx.cli.options import parse_options


@dataclasses.dataclass(frozen=True)
class ShowOptions:
    """Show what made a run or a sweep, how to make it again to the bit, and what is another here and now."""

    path: tyro.conf.Positional[Path]
    """Run directory or sweep directory."""
    lane: int | None = None
    """Number of a lane of the sweep to show."""
    json: bool = False
    """Print the card as JSON."""
    markdown: bool = False
    """Print the card as Markdown, to be kept as a file; a terminal gets it set out otherwise."""


def show(arguments: list[str]) -> None:
    """`rlx show`."""
    from rlx.report.card import card
    from rlx.report.card_text import text

    options = parse_options(ShowOptions, arguments, "rlx show")
    if options.json and options.markdown:
        raise ValueError("--json and --markdown are two forms of the card: give one of them")
    found = card(options.path, options.lane)
    if options.json:
        print(json.dumps(found, indent=2))
    elif options.markdown or not sys.stdout.isatty():
        print(text(found), end="")
    else:
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text(found)))
