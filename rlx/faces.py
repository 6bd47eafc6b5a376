"""The face of a package: names of its files under the package's own, imported when they are asked for.

`moved` is the face of a module that has moved.
"""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any


def face(package: str, homes: dict[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package, from its files and the names of each, between spaces."""
    home = {name: file for file, names in homes.items() for name in names.split()}

    def found(name: str) -> Any:
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return sorted(home), found, lambda: sorted([*home, *homes])


def moved(old: str, new: str) -> Callable[[str], Any]:
    """`__getattr__` of a module whose names are elsewhere for one release, and which says so."""

    def found(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warnings.warn(f"{old} has moved to {new}: import it from there", DeprecationWarning, stacklevel=2)
        return getattr(import_module(new), name)

    return found
