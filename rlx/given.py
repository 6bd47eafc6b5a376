"""An algorithm with one of its arguments given: an objective, a bonus, a transform."""

import inspect
from collections.abc import Callable
from dataclasses import field, fields
from functools import wraps
from types import ModuleType
from typing import Any

from rlx.pytree import pytree


def with_argument(algorithm: ModuleType, argument: str, value: Any, otherwise: str) -> ModuleType:
    """The algorithm whose `init` and `update`, where they have an argument of that name, are given `value`.

    Of a class, the fields become fields of its Config; one that the Config has already is that field, with the Config's
    default. An object is taken as it is. The algorithm returned has a + and the name of the class behind its name.

    Args:
        algorithm: the module.
        argument: of its `update`, and of its `init` where that has it too.
        value: the class of a pytree, or an object.
        otherwise: what is said of an algorithm that has no such argument.

    Raises:
        ValueError: where its `update` has no such argument.
    """
    if argument not in inspect.signature(algorithm.update).parameters:
        raise ValueError(f"{algorithm.__name__} {otherwise}")
    config_class, chosen = algorithm.Config, lambda config: value
    if isinstance(value, type):
        names = [f.name for f in fields(value)]
        own = {f.name for f in fields(algorithm.Config)}
        new = [(f.name, f.type, field(default=f.default, metadata=f.metadata)) for f in fields(value)]
        namespace = {name: spec for name, _, spec in new if name not in own}
        namespace["__annotations__"] = {name: kind for name, kind, _ in new if name not in own}
        namespace["__post_init__"] = algorithm.Config.__post_init__
        config_class = pytree(type("Config", (algorithm.Config,), namespace))
        chosen = lambda config: value(**{name: getattr(config, name) for name in names})

    def filled(function: Callable) -> Callable:
        signature = inspect.signature(function)
        if argument not in signature.parameters:
            return function

        @wraps(function)
        def with_value(config: Any, *args: Any, **kwargs: Any) -> Any:
            return function(config, *args, **kwargs, **{argument: chosen(config)})

        others = [p for name, p in signature.parameters.items() if name != argument]
        vars(with_value)["__signature__"] = signature.replace(parameters=others)
        return with_value

    name = value.__name__ if isinstance(value, type) else type(value).__name__
    module = ModuleType(f"{algorithm.__name__}+{name}")
    vars(module).update({k: v for k, v in vars(algorithm).items() if k != "__name__"})
    vars(module).update(Config=config_class, init=filled(algorithm.init), update=filled(algorithm.update))
    return module


__all__ = ["with_argument"]
