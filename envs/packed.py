"""A pytree of arrays as one array of bytes: one argument of a compiled program, and one transfer to the host.

A call of a program costs a microsecond or so for each array that goes in or comes out. Of a small environment that is
more than the step itself.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Leaf(NamedTuple):
    """What is stored of a leaf, and where."""

    shape: tuple[int, ...]
    dtype: np.dtype
    key: str | None  # of random keys, how they are implemented; stored are their numbers
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Where the leaves of a pytree are within its bytes. Made by `Layout.of`.

    Wide numbers come first, so that each is aligned.
    """

    structure: Any
    leaves: tuple[Leaf, ...]  # in the order of the structure
    order: tuple[int, ...]  # in which they are stored

    @classmethod
    def of(cls, tree: Any) -> "Layout":
        """The layout of a tree of arrays or of `jax.ShapeDtypeStruct`s."""
        leaves, structure = jax.tree.flatten(tree)
        keys: list[str | None] = []

        def stored(leaves):
            keys.extend(str(jax.random.key_impl(x)) if _is_key(x) else None for x in leaves)
            return [_numbers(x) for x in leaves]

        found, end, places = jax.eval_shape(stored, leaves), 0, {}
        order = sorted(range(len(found)), key=lambda i: -found[i].dtype.itemsize)
        for i in order:
            start, end = end, end + math.prod(found[i].shape) * found[i].dtype.itemsize
            places[i] = Leaf(found[i].shape, np.dtype(found[i].dtype), keys[i], start, end)
        return cls(structure, tuple(places[i] for i in range(len(found))), tuple(order))

    @property
    def num_bytes(self) -> int:
        """B, the size of the whole."""
        return max((leaf.end for leaf in self.leaves), default=0)

    def pack(self, tree: Any) -> jax.Array:
        """The bytes of a tree of this layout, uint8 `[B]`; within a program."""
        leaves = self.structure.flatten_up_to(tree)
        stored = [_bytes(_numbers(leaves[i]), self.leaves[i].dtype) for i in self.order]
        return jnp.concatenate(stored) if stored else jnp.zeros(0, jnp.uint8)

    def unpack(self, data: jax.Array) -> Any:
        """The tree of bytes `[B]`; within a program."""
        return jax.tree.unflatten(self.structure, [_read(data[leaf.start : leaf.end], leaf) for leaf in self.leaves])

    def views(self, data: np.ndarray) -> Any:
        """The tree of bytes `[B]` on the host: numpy arrays that are views of them, and of keys the numbers."""
        views = [data[start:end].view(dtype).reshape(shape) for shape, dtype, _, start, end in self.leaves]
        return jax.tree.unflatten(self.structure, views)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _numbers(x: Any) -> jax.Array:
    return jax.random.key_data(x) if _is_key(x) else x


def _bytes(x: jax.Array, dtype: np.dtype) -> jax.Array:
    if x.dtype != dtype:  # a wrong one would be read as other numbers
        raise TypeError(f"a leaf is {x.dtype} and its place is for {dtype}")
    return (x.astype(jnp.uint8) if dtype == np.bool_ else jax.lax.bitcast_convert_type(x, jnp.uint8)).ravel()


def _read(data: jax.Array, leaf: Leaf) -> jax.Array:
    if leaf.dtype == np.bool_:
        return data.reshape(leaf.shape).astype(bool)
    wide = (leaf.dtype.itemsize,) if leaf.dtype.itemsize > 1 else ()
    numbers = jax.lax.bitcast_convert_type(data.reshape(leaf.shape + wide), leaf.dtype)
    return numbers if leaf.key is None else jax.random.wrap_key_data(numbers, impl=leaf.key)


__all__ = ["Layout"]
