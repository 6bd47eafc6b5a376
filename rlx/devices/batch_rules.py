"""Operations on arrays whose last axis is a batch, each as JAX has it for one example. `batch_last` is made of them.

A rule takes an operation of a jaxpr, its values and the size of the batch. Values are `Batched`, or the same for all
examples: arrays, and numpy arrays where they are known when the program is built. It returns the array `[..., N]`, a
list of values where there are several, or None for what it does not cover.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from rlx.devices.folding import is_constant, read, write

LARGEST = 24  # columns of a matrix that is factorised here; a larger one is for LAPACK
UNROLLED = 8  # columns of a matrix up to which a factorisation is written out
TERMS = 4  # of a contraction that is a loop, which a step of it adds: more are no longer vector code
LOOPED = 500  # products of an example from which a contraction is a loop

REDUCTIONS = {
    "reduce_sum": jnp.sum,
    "reduce_max": jnp.max,
    "reduce_min": jnp.min,
    "reduce_prod": jnp.prod,
    "reduce_and": jnp.all,
    "reduce_or": jnp.any,
}


@dataclass(frozen=True)
class Batched:
    """An array `[..., N]` whose last axis is the batch. Other values are the same for all: arrays, and constants."""

    array: jax.Array


def whole(value: Any, n: int) -> jax.Array:
    """The array `[..., n]` of a value, which is repeated where it is the same for all."""
    if isinstance(value, Batched):
        return value.array
    value = jnp.asarray(value)
    return jnp.broadcast_to(value[..., None], (*value.shape, n))


def fitted(value: Any, shape: tuple[int, ...], n: int) -> jax.Array:
    """A value as an operand `[*shape, n]`; numbers are repeated."""
    if isinstance(value, Batched) and value.array.ndim == len(shape) + 1:
        return value.array
    array = value.array if isinstance(value, Batched) else jnp.asarray(value)
    axes = (len(shape),) if isinstance(value, Batched) else tuple(range(array.ndim))
    return lax.broadcast_in_dim(array, (*shape, n), axes)


def kernel(fun: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`fun(*arrays)` as a kernel of its own: XLA neither pulls into it what the arrays are made of nor it into others.

    An attribute of XLA keeps the call from being inlined. A version that does not know it inlines, which is slower.
    """
    with set_xla_metadata(inlineable="false"):
        return fun(*arrays)


@partial(jax.jit, static_argnums=0, inline=False)
def _over_first(reduction, x):
    return reduction(x, axis=0)


@partial(jax.jit, static_argnums=0, inline=False)
def _products_summed(axis, x, y):
    return (x * y).sum(axis)


@partial(jax.jit, inline=False)
def _without_square(x, c):
    return x - c[:, None] * c


def reduced(eqn, x: jax.Array) -> jax.Array:
    """A reduction over several axes, as one over the first: XLA makes vector code of that alone."""
    axes = tuple(eqn.params["axes"])
    kept = [i for i in range(x.ndim) if i not in axes]
    x = lax.transpose(x, (*axes, *kept)).reshape(-1, *(x.shape[i] for i in kept))
    return kernel(partial(_over_first, REDUCTIONS[eqn.primitive.name]), x).astype(eqn.outvars[0].aval.dtype)


def _broadcast(eqn, values, n):
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    return lax.broadcast_in_dim(values[0].array, (*shape, n), (*axes, len(shape)))


def _reshape(eqn, values, n):
    if eqn.params.get("dimensions") is not None:
        return None
    return lax.reshape(values[0].array, (*eqn.outvars[0].aval.shape, n))


def _transpose(eqn, values, n):
    order = eqn.params["permutation"]
    return lax.transpose(values[0].array, (*order, len(order)))


def _slice(eqn, values, n):
    starts, limits, strides = (eqn.params[k] for k in ("start_indices", "limit_indices", "strides"))
    return lax.slice(values[0].array, (*starts, 0), (*limits, n), strides and (*strides, 1))


def _concatenate(eqn, values, n):
    # Behind the barrier XLA does not see the parts, or it would compute them again wherever one of them is read.
    return lax.optimization_barrier(lax.concatenate([whole(v, n) for v in values], eqn.params["dimension"]))


def _stack(eqn, values, n):
    return lax.optimization_barrier(jnp.stack([whole(v, n) for v in values], eqn.params["axis"]))


def _tile(eqn, values, n):
    return jnp.tile(values[0].array, (*eqn.params["reps"], 1))


def _pad(eqn, values, n):
    x, filling = values
    if isinstance(filling, Batched):
        return None
    return lax.pad(whole(x, n), jnp.asarray(filling), (*eqn.params["padding_config"], (0, 0, 0)))


def _split(eqn, values, n):
    return [Batched(x) for x in lax.split(values[0].array, eqn.params["sizes"], eqn.params["axis"])]


def _sort(eqn, values, n):
    return [Batched(x) for x in eqn.primitive.bind(*(whole(v, n) for v in values), **eqn.params)]


def _dynamic_slice(eqn, values, n):
    x, *starts = values
    if any(isinstance(i, Batched) for i in starts):
        return None
    zero = np.zeros((), starts[0].dtype) if starts else 0
    return lax.dynamic_slice(x.array, [*starts, zero], (*eqn.params["slice_sizes"], n))


def _dynamic_update_slice(eqn, values, n):
    x, update, *starts = values
    if any(isinstance(i, Batched) for i in starts):
        return None
    zero = np.zeros((), starts[0].dtype) if starts else 0
    return lax.dynamic_update_slice(whole(x, n), whole(update, n), [*starts, zero])


def _dot(eqn, values, n):
    """Products summed over the contracted axes, which come first; batch axes of the product itself come next."""
    (contracted, batched), dtype = eqn.params["dimension_numbers"], eqn.outvars[0].aval.dtype
    shapes = [v.aval.shape for v in eqn.invars]
    free = [[i for i in range(len(shapes[k])) if i not in contracted[k] and i not in batched[k]] for k in (0, 1)]
    sizes = [math.prod(shapes[k][i] for i in axes) for k, axes in ((0, contracted[0]), (0, free[0]), (1, free[1]))]
    length = sizes[0]

    def operand(k):
        value, shape = values[k], shapes[k]
        x = value.array if isinstance(value, Batched) else jnp.asarray(value)[..., None]
        x = lax.transpose(x, (*contracted[k], *batched[k], *free[k], len(shape)))
        ones, own = [1] * len(free[1 - k]), [shape[i] for i in free[k]]
        middle = own + ones if k == 0 else ones + own
        return x.reshape(length, *(shape[i] for i in batched[k]), *middle, x.shape[-1]).astype(dtype)

    x, y = operand(0), operand(1)
    if length == 1:
        return x[0] * y[0]
    if math.prod(sizes) < LOOPED:
        return kernel(partial(_products_summed, 0), x, y)
    zeros = jnp.zeros((*eqn.outvars[0].aval.shape, n), dtype)
    return lax.fori_loop(0, length, lambda i, total: total + x[i] * y[i], zeros, unroll=TERMS)


def _cholesky(eqn, values, n):
    """Lower factors of matrices `[M, M, N]`, column by column: `c = a_j / sqrt(a_jj)`, then `A - c c'`.

    Only the lower triangle is read.
    """
    rest = values[0].array
    if rest.ndim != 3 or not 0 < rest.shape[0] <= LARGEST or eqn.params.get("symmetrize_input"):
        return None
    rows = []
    for j in range(rest.shape[0]):
        c = rest[:, 0] / jnp.sqrt(rest[0, 0])
        rows.append(jnp.pad(c, ((j, 0), (0, 0))))
        rest = kernel(_without_square, rest[1:, 1:], c[1:])
    return jnp.swapaxes(jnp.stack(rows), 0, 1)


def _triangular_solve(eqn, values, n):
    """`x` of `a x = b` for `a [M, M, N]` and `b [M, K, N]`, row by row."""
    p, a, b = eqn.params, whole(values[0], n), whole(values[1], n)
    if a.ndim != 3 or not p["left_side"] or not a.shape[0]:
        return None
    columns = a if p["transpose_a"] else jnp.swapaxes(a, 0, 1)
    size, forward = a.shape[0], bool(p["lower"]) != bool(p["transpose_a"])
    rows = np.arange(size)[:, None]

    def row(i, b):
        j = i if forward else size - 1 - i
        x = b[j] if p["unit_diagonal"] else b[j] / columns[j, j]
        later = rows > j if forward else rows < j
        return (b - jnp.where(later, columns[j], 0)[:, None] * x).at[j].set(x)

    return lax.fori_loop(0, size, row, b, unroll=size <= UNROLLED)


def _gather(eqn, values, n):
    x, indices = values
    numbers, sizes, out = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval
    if not isinstance(x, Batched) or isinstance(indices, Batched) or numbers.operand_batching_dims:
        return None
    fills = eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    if is_constant(indices) and (found := read(x.array, indices, numbers, sizes, fills, out.ndim)) is not None:
        return found
    whole_rows = lax.GatherDimensionNumbers(
        offset_dims=(*map(int, numbers.offset_dims), out.ndim),
        collapsed_slice_dims=tuple(map(int, numbers.collapsed_slice_dims)),
        start_index_map=tuple(map(int, numbers.start_index_map)),
    )
    mode, fill_value = eqn.params["mode"], eqn.params.get("fill_value")
    return lax.gather(x.array, jnp.asarray(indices), whole_rows, (*sizes, n), mode=mode, fill_value=fill_value)


def _scatter(eqn, values, n):
    x, indices, updates = values
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    if isinstance(indices, Batched) or numbers.operand_batching_dims:
        return None
    x, updates = whole(x, n), whole(updates, n)
    if p["mode"] == lax.GatherScatterMode.CLIP:
        return None
    if is_constant(indices):
        found = write(x, indices, updates, numbers, eqn.primitive.name)
        if found is not None:
            return found
    whole_rows = lax.ScatterDimensionNumbers(
        update_window_dims=(*map(int, numbers.update_window_dims), updates.ndim - 1),
        inserted_window_dims=tuple(map(int, numbers.inserted_window_dims)),
        scatter_dims_to_operand_dims=tuple(map(int, numbers.scatter_dims_to_operand_dims)),
    )
    kinds = {"scatter": lax.scatter, "scatter-add": lax.scatter_add, "scatter-mul": lax.scatter_mul}
    same = {name: p[name] for name in ("indices_are_sorted", "unique_indices", "mode")}
    return kinds[eqn.primitive.name](x, jnp.asarray(indices), updates, whole_rows, **same)


RULES: dict[str, Callable[[Any, list[Any], int], Any]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "concatenate": _concatenate,
    "stack": _stack,
    "tile": _tile,
    "pad": _pad,
    "split": _split,
    "sort": _sort,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "dot_general": _dot,
    "cholesky": _cholesky,
    "triangular_solve": _triangular_solve,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter-mul": _scatter,
}
