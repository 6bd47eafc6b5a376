"""What of a program is known when it is built: its constants in numpy, and reads and writes at places that are known.

`batch_last` does a program's operations again, and leaves to this file those that do not depend on the examples.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

MOST = 4096  # elements of a constant that is computed here
RUNS = 8  # pieces of neighbours up to which rows are taken by slices; from there by a table of indices

FOLDED = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "rem": np.fmod,
    "neg": np.negative,
    "sign": np.sign,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "copy": np.copy,
    "stop_gradient": np.copy,
}


def is_constant(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def constant(value: Any) -> Any:
    """The numpy array of what is known, or the value itself."""
    keys = not isinstance(value.dtype, np.dtype)
    return value if keys or isinstance(value, Tracer) else np.asarray(value)


def fold(eqn, values: Sequence[np.ndarray]) -> np.ndarray | None:
    """The result of an operation on constants, in its dtype; None for what is not computed here.

    Floats are left to XLA but for being moved and copied: its rounding is that of the rest of the program.
    """
    name, p, out = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
    if not isinstance(out.dtype, np.dtype) or out.size > MOST:
        return None
    found = None
    if name in FOLDED and all(v.dtype.kind in "biu" for v in values):
        found = FOLDED[name](*values)
    elif name == "select_n" and len(values) == 3 and values[0].dtype == bool:
        found = np.where(values[0], values[2], values[1])
    elif name == "broadcast_in_dim":
        shape = [1] * len(p["shape"])
        for axis, size in zip(p["broadcast_dimensions"], values[0].shape, strict=True):
            shape[axis] = size
        found = np.broadcast_to(values[0].reshape(shape), p["shape"])
    elif name == "iota":
        shape = [-1 if axis == p["dimension"] else 1 for axis in range(out.ndim)]
        found = np.broadcast_to(np.arange(out.shape[p["dimension"]]).reshape(shape), out.shape)
    elif name == "convert_element_type" and values[0].dtype.kind in "biu":
        found = values[0]
    elif name == "concatenate":
        found = np.concatenate(values, p["dimension"])
    elif name == "squeeze" or (name == "reshape" and p.get("dimensions") is None):
        found = values[0].reshape(out.shape)
    elif name == "transpose":
        found = values[0].transpose(p["permutation"])
    elif name == "slice":
        strides = p["strides"] or (1,) * out.ndim
        found = values[0][tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]
    return None if found is None else np.asarray(found, out.dtype).reshape(out.shape)


def runs(source: np.ndarray) -> list[tuple[int, int]]:
    """Neighbours among the places: `(first, one after the last)` of each piece."""
    ends = np.flatnonzero(np.diff(source) != 1) + 1
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in np.split(source, ends) if len(piece)]


def rows(parts: Sequence[jax.Array], source: np.ndarray) -> jax.Array:
    """Rows of arrays `[n, ...]` that are counted one after the other, at places `[m]`: `[m, ...]`."""
    if not len(source):
        return parts[0][:0]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    pieces = [
        (part[max(low, start) - start : min(high, start + len(part)) - start])
        for low, high in runs(source)
        for part, start in zip(parts, starts, strict=False)
        if max(low, start) < min(high, start + len(part))
    ]
    if len(pieces) == 1:
        return pieces[0]
    steps = np.diff(source)
    if len(parts) == 1 and steps[0] > 1 and (steps == steps[0]).all():
        return parts[0][int(source[0]) : int(source[-1]) + 1 : int(steps[0])]
    if len(pieces) <= RUNS:
        return jnp.concatenate(pieces)
    table = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    return table.at[source].get(mode="promise_in_bounds")


def read(x: jax.Array, indices: np.ndarray, numbers: Any, sizes: Sequence[int], fills: bool, ndim: int) -> Any:
    """`lax.gather` of `x` with one more axis at its end, at known places; None for what is not a choice of rows.

    Args:
        x: the operand.
        indices: `[..., 1]`.
        numbers: the gather's `GatherDimensionNumbers`, of the operand without its last axis.
        sizes: its `slice_sizes`.
        fills: whether what lies outside is filled; otherwise it is moved to the border.
        ndim: axes of the result without its last one.
    """
    axis, *others = map(int, numbers.start_index_map) if len(numbers.start_index_map) else (0, 0)
    collapsed = tuple(map(int, numbers.collapsed_slice_dims))
    if others or numbers.operand_batching_dims or collapsed not in ((), (axis,)):
        return None
    length, size = x.shape[axis], sizes[axis]
    if any(sizes[i] != x.shape[i] for i in range(x.ndim - 1) if i != axis):
        return None
    chosen = indices[..., 0]
    if fills and ((chosen < 0) | (chosen > length - size)).any():
        return None
    batch = chosen.shape
    source = (np.clip(chosen, 0, length - size).reshape(-1, 1) + np.arange(size)).reshape(-1)
    y = rows([jnp.moveaxis(x, axis, 0)], source)
    rest = y.shape[1:]
    if collapsed:
        y = y.reshape(*batch, *rest)
    else:
        y = jnp.moveaxis(y.reshape(*batch, size, *rest), len(batch), len(batch) + axis)
    offsets = list(map(int, numbers.offset_dims))
    order = [axis for axis in range(ndim) if axis not in offsets] + offsets  # where the axes of `y` go
    return jnp.moveaxis(y, range(ndim), order)


def write(x: jax.Array, indices: np.ndarray, updates: jax.Array, numbers: Any, name: str) -> Any:
    """`lax.scatter`, `scatter-add` or `scatter-mul` of arrays with one more axis at their end, at known places.

    What would be written outside is left out. None for what does not write whole rows.
    """
    axes = tuple(map(int, numbers.scatter_dims_to_operand_dims))
    windows = list(map(int, numbers.update_window_dims))
    batch = [i for i in range(updates.ndim - 1) if i not in windows]
    rest = [i for i in range(x.ndim - 1) if i not in axes]
    if numbers.operand_batching_dims or not axes or axes != tuple(map(int, numbers.inserted_window_dims)):
        return None
    if [updates.shape[i] for i in windows] != [x.shape[i] for i in rest]:
        return None
    sizes = [x.shape[i] for i in axes]
    chosen = indices.reshape(-1, len(axes))
    inside = np.flatnonzero(((chosen >= 0) & (chosen < sizes)).all(1))
    target = np.ravel_multi_index(tuple(chosen[inside].T), sizes)
    y = lax.transpose(updates, (*batch, *windows, updates.ndim - 1))
    y = y.reshape(-1, *y.shape[len(batch) :])
    table = jnp.moveaxis(x, axes, range(len(axes)))
    shape, table = table.shape, table.reshape(-1, *table.shape[len(axes) :])
    if name == "scatter":  # the last one counts
        source = np.arange(len(table))
        source[target] = len(table) + inside
        table = rows([table, y], source)
    else:
        neutral = jnp.full((1, *y.shape[1:]), name == "scatter-mul", y.dtype)
        found = [inside[target == place] for place in range(len(table))]
        for turn in range(max(map(len, found), default=0)):
            source = np.array([few[turn] if turn < len(few) else len(y) for few in found])
            more = rows([y, neutral], source)
            table = table + more if name == "scatter-add" else table * more
    return jnp.moveaxis(table.reshape(shape), range(len(axes)), axes)
