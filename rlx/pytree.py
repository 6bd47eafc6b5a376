"""Dataclasses that cross jax transformations: `pytree`, `static`, `traced`, `stack`, `uncommitted`."""

import dataclasses
import operator
from collections.abc import Iterable
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")
KEEPS = {"at least": operator.ge, "at most": operator.le, "above": operator.gt}


def static(default: Any = MISSING, *, at_least: int = 1, one_of: Iterable[str] = ()) -> Any:
    """A field that is part of the compiled program: it fixes shapes or picks code, and cannot be vmapped.

    Args:
        default: the field's default; leave it out for a required field.
        at_least: the smallest value accepted where the default is an integer.
        one_of: the values accepted, where there is a choice.
    """
    return dataclasses.field(default=default, metadata={"static": True, "at_least": at_least, "one_of": tuple(one_of)})


def traced(
    default: Any = MISSING, *, at_least: float | None = None, at_most: float | None = None, above: float | None = None
) -> Any:
    """A field like an unmarked one, traced and vmapped, whose plain numbers must keep to these bounds.

    Args:
        default: the field's default; leave it out for a required field.
        at_least, at_most: bounds that are accepted themselves.
        above: a bound that is not.
    """
    bounds = {"at least": at_least, "at most": at_most, "above": above}
    given = {words: bound for words, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"bounds": given})


def is_static(field: dataclasses.Field) -> bool:
    """Whether `static` marked this dataclass field."""
    return field.metadata.get("static", False)


def _check(self) -> None:
    name = type(self).__name__
    for field in fields(self):
        value = getattr(self, field.name)
        if is_static(field):
            least, choices = field.metadata["at_least"], field.metadata["one_of"]
            if choices and value not in choices:
                raise ValueError(f"{name}.{field.name} = {value!r}: choose among {', '.join(choices)}")
            if type(field.default) is int and (type(value) is not int or value < least):
                raise ValueError(f"{name}.{field.name} = {value!r}: give an integer of at least {least}")
            if isinstance(value, tuple) and any(type(v) is int and v < least for v in value):
                raise ValueError(f"{name}.{field.name} = {value!r}: give integers of at least {least}")
            continue
        if type(field.default) is float and type(value) is int:
            object.__setattr__(self, field.name, float(value))  # 1 and 1.0 are one program, not two
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value != value:
            raise ValueError(f"{name}.{field.name} is NaN: give a number")
        bounds = field.metadata.get("bounds", {})
        if not all(KEEPS[words](value, bound) for words, bound in bounds.items()):
            wanted = " and ".join(f"{words} {bound}" for words, bound in bounds.items())
            raise ValueError(f"{name}.{field.name} = {value!r}: it has to be {wanted}")


@dataclass_transform(frozen_default=True, field_specifiers=(static, traced))
def pytree(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen dataclass that jax treats as a pytree.

    Every field is a child (traced, vmapped, differentiated), except those marked `static`, which are compared by
    value and become part of the compiled program. Change a field with `dataclasses.replace`.

    Raises (on construction): ValueError for a static integer below its bound or a word that is none of the choices, for
    a traced number that is NaN, and for one outside of the bounds that `traced` gave it. Arrays and tracers are not
    looked at.
    """
    own = cls.__dict__.get("__post_init__")

    def __post_init__(self):
        _check(self)
        if own is not None:
            own(self)

    cls.__post_init__ = __post_init__
    cls = dataclasses.dataclass(frozen=True)(cls)
    children = [f.name for f in fields(cls) if not is_static(f)]
    statics = [f.name for f in fields(cls) if is_static(f)]

    def flatten(self):
        return [getattr(self, name) for name in children], tuple(getattr(self, name) for name in statics)

    def flatten_with_keys(self):
        values, static_values = flatten(self)
        return list(zip(map(jax.tree_util.GetAttrKey, children), values, strict=True)), static_values

    def unflatten(static_values, values):  # leaves may be anything here, axes of a vmap for one: nothing is checked
        self = object.__new__(cls)
        for name, value in (*zip(children, values, strict=True), *zip(statics, static_values, strict=True)):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def stack(trees: list[T]) -> T:
    """The trees with their leaves stacked along a new first axis: `C` configs in, one config with leaves `[C]` out.

    Raises:
        ValueError: when static fields differ between the trees; these need one compiled program each.
    """
    if not trees:
        raise ValueError("stack needs at least one tree, got an empty list")
    structures = [jax.tree.structure(tree) for tree in trees]
    for i, structure in enumerate(structures):
        if structure != structures[0]:
            raise ValueError(
                f"cannot stack trees 0 and {i}: their static fields differ: {_difference(trees[0], trees[i])}; "
                "group them by static fields and stack each group"
            )
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def uncommitted(tree: T) -> T:
    """The tree with arrays that are bound to no device: programs over one device and over many may be given them."""

    def free(x: Any) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(np.asarray(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(free, tree)


def _difference(a: Any, b: Any) -> str:
    if type(a) is not type(b) or not dataclasses.is_dataclass(a):
        return f"{jax.tree.structure(a)} and {jax.tree.structure(b)}"
    pairs = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if is_static(f)]
    return ", ".join(f"{name} = {x!r} and {y!r}" for name, x, y in pairs if x != y) or "in a nested tree"


__all__ = ["is_static", "pytree", "replace", "stack", "static", "traced", "uncommitted"]
