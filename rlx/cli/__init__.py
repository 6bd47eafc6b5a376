"""The command line: `rlx COMMAND ...`, and `python some/ppo.py`."""

from rlx.cli.commands import main, run_file

__all__ = ["main", "run_file"]
