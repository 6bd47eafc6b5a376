"""A replay buffer: the newest elements of a stream, sampled uniformly. Pure functions on a pytree."""

from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp

from rlx.devices.sharding import blocks, num_blocks, split
from rlx.pytree import per_env, pytree, static
from rlx.rollout import gather


@pytree
class Replay:
    """The newest `capacity` elements of all that were inserted, in a ring of `capacity + spare` rows.

    Over several devices each has a block of the rows, which is a ring of its own: all are written at the same place.
    """

    data: Any = per_env()  # leaves [capacity + spare, ...], by the environments that they are from
    position: jax.Array  # int32, the row of each block that is written next
    size: jax.Array  # int32, elements that can be sampled: those of the rows before `position`
    capacity: int = static()
    blocks: int = static(1)


def replay(example: Any, capacity: int, spare: int = 0) -> Replay:
    """An empty buffer for elements like `example`, a pytree of arrays or of their shapes.

    Args:
        example: one element; its values do not matter.
        capacity: elements kept. When they are there, every further one pushes the oldest out.
        spare: elements pushed out that are kept in memory: what is inserted up to this number at once can be taken back
            by `rewind`.
    """
    blocks(capacity, "the capacity of the replay buffer")
    blocks(spare, "num_envs * num_steps")
    data = split(jax.tree.map(lambda x: jnp.zeros((capacity + spare, *x.shape), x.dtype), example))
    return Replay(data, position=jnp.int32(0), size=jnp.int32(0), capacity=capacity, blocks=num_blocks())


def insert(buffer: Replay, elements: Any) -> Replay:
    """The buffer with `elements`, leaves `[n, ...]`, as its newest, in their order.

    Raises:
        ValueError: when there are more than the buffer has rows.
    """
    chex.assert_equal_shape_prefix(jax.tree.leaves(elements), 1)
    num, rows = jax.tree.leaves(elements)[0].shape[0], jax.tree.leaves(buffer.data)[0].shape[0]
    if num > rows:
        raise ValueError(f"{num} elements do not fit a replay buffer of {rows}: raise its capacity")
    count = _same_blocks(buffer)
    index = (buffer.position + jnp.arange(blocks(num, "the number of elements to insert"))) % (rows // count)

    def write(rows, new):
        if count == 1:
            return rows.at[index].set(new)
        by_block = lambda x: split(x.reshape(count, -1, *x.shape[1:]))
        return split(by_block(rows).at[:, index].set(by_block(new)).reshape(rows.shape))

    return replace(
        buffer,
        data=jax.tree.map(write, buffer.data, elements),
        position=(buffer.position + num // count) % (rows // count),
        size=jnp.minimum(buffer.size + num, buffer.capacity),
    )


def sample(buffer: Replay, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Where to find random elements, int32 `shape`: uniform over those in the buffer, with replacement.

    `take` reads them. Of an empty buffer the result has no meaning. Over several devices the last axis has a block of
    elements from each.
    """
    num, rows = _same_blocks(buffer), jax.tree.leaves(buffer.data)[0].shape[0]
    if num == 1:
        return (buffer.position - jax.random.randint(key, shape, 1, buffer.size + 1)) % rows
    age = jax.random.randint(key, shape, 1, buffer.size // num + 1)
    first = jnp.repeat(rows // num * jnp.arange(num), blocks(shape[-1], "batch_size"))
    return (buffer.position - age) % (rows // num) + first


def take(buffer: Replay, index: jax.Array) -> Any:
    """The elements at `index`, leaves `[*index.shape, ...]`."""
    return gather(buffer.data, index)


def rewind(buffer: Replay, old: Replay, undo: jax.Array) -> Replay:
    """`buffer` where `undo` is False, else what `old` was before at most `spare` elements were inserted into it.

    Costs nothing: only the counters go back, to rows that are still there. A select between the two would copy both.
    """
    back = lambda new, old: jnp.where(undo, old, new)
    return replace(buffer, position=back(buffer.position, old.position), size=back(buffer.size, old.size))


def arranged(buffer: Replay, now: int) -> Replay:
    """The buffer as one of `now` blocks: the same elements by their age, less what does not divide."""
    before, rows = buffer.blocks, jax.tree.leaves(buffer.data)[0].shape[0]

    def one(x):
        rings = jnp.roll(x.reshape(before, rows // before, *x.shape[1:]), -buffer.position, axis=1)
        by_age = rings.swapaxes(0, 1).reshape(rows // now, now, *x.shape[1:])
        return by_age.swapaxes(0, 1).reshape(x.shape)

    data, size = jax.tree.map(one, buffer.data), buffer.size // now * now
    return replace(buffer, data=data, position=jnp.int32(0), size=size, blocks=now)


def _same_blocks(buffer: Replay) -> int:
    """How many blocks the buffer has. Raises ValueError where these are not those of the mesh in use."""
    if buffer.blocks != num_blocks():
        raise ValueError(
            f"a replay buffer of {buffer.blocks} devices is used on {num_blocks()}: rlx.replay.arranged makes one of it"
        )
    return buffer.blocks


def check_replay(total_steps: int, warmup_steps: int, batch_size: int, capacity: int) -> None:
    """Raises ValueError where a warm-up leaves nothing to learn in, or it or a batch does not fit the buffer."""
    if warmup_steps >= total_steps:
        raise ValueError(f"warmup_steps = {warmup_steps} leave nothing of total_steps = {total_steps} to learn in")
    if not 0 < max(batch_size, warmup_steps) <= capacity:
        raise ValueError(
            f"batch_size = {batch_size} and warmup_steps = {warmup_steps} must fit the buffer: "
            f"raise capacity = {capacity}"
        )


def check_ratio(utd_ratio: float, steps_per_update: int) -> None:
    """Raises ValueError where updates to data do not make a whole number of gradient steps, at least 1, an update."""
    exact = utd_ratio * steps_per_update
    if exact >= 2**31:
        raise ValueError(f"utd_ratio = {utd_ratio} makes {exact:g} gradient steps an update: it has to be below 2^31")
    if round(exact) < 1 or abs(round(exact) - exact) > 1e-6:
        raise ValueError(
            f"utd_ratio = {utd_ratio} makes {exact:g} gradient steps for num_envs * num_steps = "
            f"{steps_per_update}: choose them so that it is a whole number"
        )


def without_replay(tree: Any) -> Any:
    """The tree with None where it has a `Replay`."""
    return jax.tree.map(lambda x: None if is_replay(x) else x, tree, is_leaf=is_replay)


def with_replay(tree: Any, other: Any) -> Any:
    """What `without_replay` made of a tree like `other`, with the `Replay` of `other`."""
    return jax.tree.map(lambda x, kept: x if is_replay(x) else kept, other, tree, is_leaf=is_replay)


def is_replay(x: Any) -> bool:
    """Whether x is a `Replay`: where it is, trees are to be mapped no deeper."""
    return isinstance(x, Replay)


__all__ = [
    "Replay",
    "arranged",
    "check_ratio",
    "check_replay",
    "insert",
    "is_replay",
    "replay",
    "rewind",
    "sample",
    "take",
    "with_replay",
    "without_replay",
]
