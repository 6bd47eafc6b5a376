"""Dataclasses that cross jax transformations: `pytree`, `static`, `traced`, `per_env`, `stack`, `uncommitted`."""

import dataclasses
import operator
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar, cast, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rlx.schedules import Schedule, alike, is_written, parse

T = TypeVar("T")
KEEPS = {"at least": operator.ge, "at most": operator.le, "above": operator.gt}
KINDS = {kind.__name__: kind for kind in (bool, int, float, str, tuple)}
NEEDS = {bool: "True or False", int: "an integer", float: "a number", str: "a word"}
LARGEST = 2**31 - 1  # of a traced integer


def static(
    default: Any = MISSING, *, at_least: float | None = None, above: float | None = None, one_of: Iterable[str] = ()
) -> Any:
    """A field that is part of the compiled program: it fixes shapes or picks code, and cannot be vmapped.

    Args:
        default: the field's default; leave it out for a required field.
        at_least: the smallest value accepted; of an integer, and of those in a tuple, 1 unless it says otherwise.
        above: a bound of a number that is not accepted itself.
        one_of: the values accepted, or those of a tuple, where there is a choice.
    """
    given = {"at least": at_least, "above": above}
    bounds = {words: bound for words, bound in given.items() if bound is not None}
    least = 1 if at_least is None else at_least
    metadata = {"static": True, "at_least": least, "one_of": tuple(one_of), "bounds": bounds}
    return dataclasses.field(default=default, metadata=metadata)


def traced(
    default: Any = MISSING, *, at_least: float | None = None, at_most: float | None = None, above: float | None = None
) -> Any:
    """A field like an unmarked one, traced and vmapped, whose plain numbers must keep to these bounds.

    One that is a float takes a schedule of `rlx.schedules` too, whose numbers must keep to them as well.

    Args:
        default: the field's default; leave it out for a required field.
        at_least, at_most: bounds that are accepted themselves.
        above: a bound that is not.
    """
    bounds = {"at least": at_least, "at most": at_most, "above": above}
    given = {words: bound for words, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"bounds": given})


def per_env(default: Any = MISSING) -> Any:
    """A traced field whose leaves have the environments as their first axis, `[N, ...]`.

    A run over several devices splits it into a block a device; every other field is whole on each of them.
    """
    return dataclasses.field(default=default, metadata={"per_env": True})


def is_per_env(field: dataclasses.Field) -> bool:
    """Whether `per_env` marked this dataclass field."""
    return field.metadata.get("per_env", False)


def plain(value: Any) -> Any:
    """A NumPy scalar or word, and an array without axes, as a Python value; tracers and anything else as they are."""
    if isinstance(value, np.str_):
        return str(value)
    array = isinstance(value, np.generic | np.ndarray | jax.Array) and not isinstance(value, Tracer)
    if not array or np.shape(value) or not _is_real(value.dtype) or not getattr(value, "is_fully_addressable", True):
        return value
    return float(value) if jnp.issubdtype(value.dtype, np.floating) else np.asarray(value).item()


def is_static(field: dataclasses.Field) -> bool:
    """Whether `static` marked this dataclass field."""
    return field.metadata.get("static", False)


def _check(self) -> None:
    name = type(self).__name__
    for field in fields(self):
        given = getattr(self, field.name)
        value = _static(name, field, given) if is_static(field) else _traced(name, field, given)
        if value is not given:
            object.__setattr__(self, field.name, value)
        bounds = field.metadata.get("bounds", {})
        numbers = value.values if isinstance(value, Schedule) else (value,)
        numbers = [x for x in numbers if isinstance(x, int | float) and not isinstance(x, bool)]
        if any(x != x for x in numbers):
            raise ValueError(f"{name}.{field.name} is NaN: give a number")
        if not all(KEEPS[words](x, bound) for x in numbers for words, bound in bounds.items()):
            wanted = " and ".join(f"{words} {bound}" for words, bound in bounds.items())
            raise ValueError(f"{name}.{field.name} = {given!r}: it has to be {wanted}")


def _kind(field: dataclasses.Field) -> type | None:
    """The type that a field's default says that its values have, or its annotation; None where neither tells."""
    if field.default is not MISSING:
        kind = float if isinstance(field.default, Schedule) else type(field.default)
        return kind if kind in KINDS.values() else None
    word = getattr(field.type, "__name__", str(field.type)).partition("[")[0]
    return KINDS.get(word)


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (np.bool_, np.integer, np.floating))


def _static(name: str, field: dataclasses.Field, given: Any) -> Any:
    """The value of a static field as a Python value of the field's kind. Raises ValueError for one of another kind."""
    kind, at_least, choices = _kind(field), field.metadata["at_least"], field.metadata["one_of"]
    value: Any = plain(given)
    wrong = f"{name}.{field.name} = {given!r}"
    if isinstance(value, Tracer):
        raise ValueError(f"{name}.{field.name} is traced, and it is static: it takes part in no vmap, grad or jit")
    chosen = value if kind is tuple and isinstance(value, list | tuple) else (value,)
    if choices and not all(isinstance(name, str) and name in choices for name in chosen):
        raise ValueError(f"{wrong}: choose among {', '.join(choices)}")
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple:
        array = isinstance(value, np.ndarray | jax.Array) and np.ndim(value)
        value = tuple(map(plain, value)) if array or isinstance(value, list | tuple) else value
        whole = re.search(r"\bint\b", str(field.type)) is not None
        if whole and not (isinstance(value, tuple) and all(type(v) is int and v >= at_least for v in value)):
            raise ValueError(f"{wrong}: give integers of at least {at_least}, as a tuple such as (64, 64)")
        if not isinstance(value, tuple):
            raise ValueError(f"{wrong}: give a tuple")
    elif kind is int and (type(value) is not int or value < at_least):
        raise ValueError(f"{wrong}: give an integer of at least {at_least}")
    elif kind is not None and type(value) is not kind:
        raise ValueError(f"{wrong}: give {NEEDS[kind]}")
    try:
        hash(value)
    except TypeError:
        raise ValueError(f"{wrong}: a static field takes values that can be hashed, such as tuples") from None
    return value


def _traced(name: str, field: dataclasses.Field, given: Any) -> Any:
    """The value of a traced field: NumPy scalars as Python numbers, text as schedules, arrays and pytrees as they are.

    Raises ValueError for a Python value of another kind than the field's, and for arrays of anything but numbers.
    """
    kind, wrong = _kind(field), f"{name}.{field.name} = {given!r}"
    value = given if isinstance(given, jax.Array) else plain(given)
    if kind not in (bool, int, float):
        return given
    if isinstance(value, Schedule) or is_written(value):
        if kind is not float:
            raise ValueError(f"{wrong}: give {NEEDS[kind]}; only fields that are real numbers take a schedule")
        return _parsed(name, field, value) if is_written(value) else value
    if hasattr(value, "dtype"):
        if not _is_real(value.dtype):
            raise ValueError(f"{name}.{field.name} is an array of {value.dtype}: give {NEEDS[kind]}")
        return value
    if kind is float and type(value) is int:
        return float(value)  # 1 and 1.0 are one program, not two
    if type(value) is kind and not (kind is int and abs(value) > LARGEST):
        return value
    if value is None or isinstance(value, list | tuple | dict) or jax.tree_util.all_leaves([value]):
        size = f" of at most {LARGEST:,}" if type(value) is int and kind is int else ""
        raise ValueError(f"{wrong}: give {NEEDS[kind]}{size}")
    return value


def _parsed(name: str, field: dataclasses.Field, text: str) -> Schedule:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name}.{field.name} = {error}") from None


# A checker sees the default of a field specifier by its keyword only, and `static(64)` is what one writes: `static` and
# `traced` are therefore plain defaults to it, and `per_env()` is a field that has to be given.
@dataclass_transform(frozen_default=True, field_specifiers=(per_env, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen dataclass that jax treats as a pytree.

    Every field is a child (traced, vmapped, differentiated), except those marked `static`, which are compared by
    value and become part of the compiled program. Change a field with `dataclasses.replace`.

    NumPy scalars become Python numbers, and lists for a static tuple become tuples.

    Raises (on construction): ValueError for a value of another kind than the field's default (a word or a number for a
    bool, a float for an integer), for a static integer below its bound or a word that is none of the choices, for a
    number that is NaN, and for one outside of the bounds that `static` or `traced` gave it. Numbers in arrays and
    tracers are not looked at.
    """
    own = cls.__dict__.get("__post_init__")

    def __post_init__(self):
        _check(self)
        if own is not None:
            own(self)

    setattr(cls, "__post_init__", __post_init__)  # noqa: B010 (no class is known to have it)
    cls = dataclasses.dataclass(frozen=True)(cls)
    children = [f.name for f in fields(cast(Any, cls)) if not is_static(f)]
    statics = [f.name for f in fields(cast(Any, cls)) if is_static(f)]

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

    Where some have a schedule and others a number, the number becomes a constant schedule of that kind.

    Raises:
        ValueError: when static fields or kinds of schedules differ between the trees; these need one compiled program
            each.
    """
    if not trees:
        raise ValueError("stack needs at least one tree, got an empty list")
    if len(kinds := {type(tree) for tree in trees}) > 1:
        raise ValueError(f"cannot stack {' and '.join(sorted(str(kind) for kind in kinds))}: give trees of one class")
    trees = alike(trees)
    structures = [jax.tree.structure(tree) for tree in trees]
    for i, structure in enumerate(structures):
        if structure != structures[0]:
            raise ValueError(
                f"cannot stack trees 0 and {i}: their static fields or schedules differ: "
                f"{_difference(trees[0], trees[i])}; group them by these and stack each group"
            )
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def num_rows(tree: Any) -> int:
    """The length of the first axis of the arrays of a tree, which have it in common."""
    return jax.tree.leaves(tree)[0].shape[0]


def uncommitted(tree: T) -> T:
    """The tree with arrays that are bound to no device: programs over one device and over many may be given them."""

    def free(x: Any) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(cast(Any, np.asarray(jax.random.key_data(x))), impl=jax.random.key_impl(x))
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(free, tree)


def _difference(a: Any, b: Any) -> str:
    if type(a) is not type(b) or not dataclasses.is_dataclass(a):
        return f"{jax.tree.structure(a)} and {jax.tree.structure(b)}"
    pairs = [(f.name, is_static(f), getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    other = lambda x, y: Schedule in (type(x), type(y)) and jax.tree.structure(x) != jax.tree.structure(y)
    differ = [f"{name} = {x!r} and {y!r}" for name, own, x, y in pairs if (own and x != y) or other(x, y)]
    return ", ".join(differ) or "in a nested tree"


__all__ = ["is_per_env", "is_static", "num_rows", "per_env", "plain", "pytree", "replace"]
__all__ += ["stack", "static", "traced", "uncommitted"]
