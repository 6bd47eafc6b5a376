"""The command that shows runs in a browser: `rlx watch`."""

import dataclasses
from functools import partial
from pathlib import Path

import tyro

from rlx.cli.options import parse_options


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """Show a run or a sweep, under way or done, on a page of this machine that refreshes by itself."""

    path: tyro.conf.Positional[Path]
    """Run directory, sweep directory, or a folder of several."""
    port: int = 8050
    """Port of the page; the next free one where it is taken."""
    open: bool = False
    """Open the page in the browser."""


def watch(arguments: list[str]) -> None:
    """`rlx watch`."""
    from rlx.watch.serve import serve

    options = parse_options(WatchOptions, arguments, "rlx watch")
    serve(options.path, options.port, options.open, partial(print, flush=True))
