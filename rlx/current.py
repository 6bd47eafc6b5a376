"""Whether what an algorithm calls is still what a program was compiled of: `Current`."""

import operator
import os
import sys
from functools import cache
from types import FunctionType, ModuleType
from typing import Any


class Current:
    """An algorithm as a static argument of jit, equal to another as long as nothing that it calls is replaced.

    Compared are, by identity, the names of its module, those of the modules of rlx and the own ones that these come
    from, the methods of classes there and of the environment, the attributes of the environment, and the globals of
    functions that were put in from elsewhere: after `ppo.networks = mine` or `networks.Torso.__call__ = mine` the next
    program is a new one. Attributes are those of the algorithm.
    """

    def __init__(self, algorithm: Any, env: Any = None):
        self.algorithm = algorithm.algorithm if isinstance(algorithm, Current) else algorithm
        own = vars(self.algorithm)
        names, self.values = {}, []
        for value in own.values():
            kind = type(value)
            if kind is FunctionType:
                names[value.__globals__.get("__name__")] = value.__globals__
                if value.__globals__.get("__name__") == "__main__":
                    self.values += map(value.__globals__.get, value.__code__.co_names)
            elif kind is ModuleType:
                names[value.__name__] = vars(value)
            elif isinstance(value, type):
                names[value.__module__] = getattr(sys.modules.get(value.__module__), "__dict__", {})
        spaces = [space for name, space in names.items() if space is not own and _is_own(name, space.get("__file__"))]
        for space in (own, *spaces):
            for name, value in space.items():
                if name[:2] == "__":
                    continue
                self.values.append(value)
                if isinstance(value, type) and value.__module__ == space.get("__name__"):
                    self.values += _methods(value)
        inner = getattr(env, "environment", None)
        while inner is not None:  # one around another has it as its own `environment`
            self.values += [*vars(inner).values(), *_methods(type(inner))] if hasattr(inner, "__dict__") else []
            inner = vars(inner).get("environment") if hasattr(inner, "__dict__") else None

    def __getattr__(self, name):
        return getattr(self.algorithm, name)

    def __hash__(self):
        return hash(self.algorithm)

    def __eq__(self, other):
        if not isinstance(other, Current) or self.algorithm is not other.algorithm:
            return False
        return len(self.values) == len(other.values) and all(map(operator.is_, self.values, other.values))


def _methods(kind: type) -> list[FunctionType]:
    return [value for value in vars(kind).values() if type(value) is FunctionType]


@cache
def _is_own(name: str, file: str | None) -> bool:
    """Whether a module is one of rlx or a file of the user's, neither of a package nor typed in."""
    others = ("site-packages", "dist-packages", os.path.dirname(os.__file__))
    return name.startswith("rlx.") or not (name == "__main__" or file is None or any(part in file for part in others))
