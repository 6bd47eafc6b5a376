"""A pytree of arrays as one array of words: one argument of a compiled program, and one transfer to the host.

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
    """What is stored of a leaf, and where in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    key: str | None  # of random keys, how they are implemented; stored are their numbers
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Where the leaves of a pytree are within one array. Made by `Layout.of`.

    Wide numbers come first, so that each is aligned. Those of 4 bytes are words as they are, which costs nothing;
    smaller ones are put together.
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
    def num_words(self) -> int:
        """W, the size of the whole in 4 bytes."""
        return -(-max((leaf.end for leaf in self.leaves), default=0) // 4)

    def pack(self, tree: Any) -> jax.Array:
        """A tree of this layout as one array, uint32 `[W]`; within a program."""
        given = self.structure.flatten_up_to(tree)
        stored = [_stored(_numbers(given[i]), self.leaves[i].dtype) for i in self.order]
        words, small = ([x for x in stored if x.dtype == kind] for kind in (jnp.uint32, jnp.uint8))
        if small:  # as bytes, and 4 of them a word
            rest = jnp.concatenate([*small, jnp.zeros(-sum(x.size for x in small) % 4, jnp.uint8)])
            words.append(jax.lax.bitcast_convert_type(rest.reshape(-1, 4), jnp.uint32))
        return jnp.concatenate(words) if words else jnp.zeros(0, jnp.uint32)

    def unpack(self, data: jax.Array) -> Any:
        """The tree of such an array; within a program."""
        small = min((leaf.start for leaf in self.leaves if leaf.dtype.itemsize < 4), default=4 * self.num_words)
        rest = jax.lax.bitcast_convert_type(data[small // 4 :], jnp.uint8).ravel()
        read = []
        for leaf in self.leaves:
            wide = leaf.dtype.itemsize >= 4
            start, end = (x // 4 if wide else x - small for x in (leaf.start, leaf.end))
            read.append(_read((data if wide else rest)[start:end], leaf))
        return jax.tree.unflatten(self.structure, read)

    def views(self, data: np.ndarray) -> Any:
        """The tree of such an array on the host: numpy arrays that are views of it, and of random keys the numbers."""
        data = data.view(np.uint8)
        views = [data[start:end].view(dtype).reshape(shape) for shape, dtype, _, start, end in self.leaves]
        return jax.tree.unflatten(self.structure, views)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _numbers(x: Any) -> jax.Array:
    return jax.random.key_data(x) if _is_key(x) else x


def _stored(x: jax.Array, dtype: np.dtype) -> jax.Array:
    """The words of a leaf of wide numbers, the bytes of another one."""
    if x.dtype != dtype:  # a wrong one would be read as other numbers
        raise TypeError(f"a leaf is {x.dtype} and its place is for {dtype}")
    kind = jnp.uint32 if dtype.itemsize >= 4 else jnp.uint8
    return (x.astype(kind) if dtype == np.bool_ else jax.lax.bitcast_convert_type(x, kind)).ravel()


def _read(data: jax.Array, leaf: Leaf) -> jax.Array:
    if leaf.dtype == np.bool_:
        return data.reshape(leaf.shape).astype(bool)
    own = data.dtype.itemsize
    wide = (leaf.dtype.itemsize // own,) if leaf.dtype.itemsize > own else ()
    numbers = jax.lax.bitcast_convert_type(data.reshape(leaf.shape + wide), leaf.dtype)
    return numbers if leaf.key is None else jax.random.wrap_key_data(numbers, impl=leaf.key)


__all__ = ["Layout"]
