"""Environments by name, adapters for other suites, and the proof of the contract: `make`, `names`, `check`."""

if __name__ != "rlx.envs":
    raise ImportError(
        f"imported as {__name__!r}: this folder is the package rlx.envs; run pip install -e . and import that"
    )

from importlib import import_module
from typing import TYPE_CHECKING

from rlx.envs.registry import make, names, register

if TYPE_CHECKING:
    from rlx.envs import bridge as bridge
    from rlx.envs import host as host
    from rlx.envs.contract.clauses import check

__all__ = ["check", "make", "names", "register"]

if not TYPE_CHECKING:  # a checker would take every name for this one

    def __getattr__(name):
        if name == "check":
            from rlx.envs.contract.clauses import check

            return check
        if name in ("bridge", "host"):  # which import gymnasium
            return import_module(f"rlx.envs.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
