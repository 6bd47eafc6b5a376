"""Replay buffers: the newest elements of a stream, sampled uniformly or by priority. Pure functions on a pytree."""

from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp

from rlx.devices.sharding import blocks, num_blocks, split
from rlx.pytree import per_env, pytree, static
from rlx.rollout import gather

WIDTH = 32  # of a block whose sum is kept


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


@pytree
class Prioritized:
    """A `Replay` whose elements are sampled by priority, with the sums of blocks of rows, and of blocks of blocks."""

    replay: Replay
    priority: jax.Array  # [rows, rounded up], 0 where there is no element
    sums: tuple[jax.Array, ...]  # of each WIDTH priorities, of each WIDTH of these sums, ..., [WIDTH at most]
    highest: jax.Array  # so far; what new elements have


def replay(example: Any, capacity: int, spare: int = 0, prioritized: bool = False) -> Any:
    """An empty buffer for elements like `example`, a pytree of arrays or of their shapes.

    Args:
        example: one element; its values do not matter.
        capacity: elements kept. When they are there, every further one pushes the oldest out.
        spare: elements pushed out that are kept in memory: what is inserted up to this number at once can be taken back
            by `rewind`.
        prioritized: a `Prioritized`, for `draw`, in place of a `Replay`.

    Raises:
        ValueError: with priorities over several devices.
    """
    if prioritized:
        return _prioritized(example, capacity, spare)
    blocks(capacity, "the capacity of the replay buffer")
    blocks(spare, "num_envs * num_steps")
    data = split(jax.tree.map(lambda x: jnp.zeros((capacity + spare, *x.shape), x.dtype), example))
    return Replay(data, position=jnp.int32(0), size=jnp.int32(0), capacity=capacity, blocks=num_blocks())


def _prioritized(example: Any, capacity: int, spare: int) -> Prioritized:
    if num_blocks() > 1:
        raise ValueError("a replay buffer with priorities is on one device: give devices=1")
    whole = lambda num: WIDTH * -(-num // WIDTH)
    sizes = [whole(capacity + spare)]
    while sizes[-1] > WIDTH:
        num = sizes[-1] // WIDTH
        sizes.append(whole(num) if num > WIDTH else num)
    levels = [jnp.zeros(size) for size in sizes]
    return Prioritized(replay(example, capacity, spare), levels[0], tuple(levels[1:]), jnp.float32(1))


def insert(buffer: Any, elements: Any) -> Any:
    """The buffer with `elements`, leaves `[n, ...]`, as its newest, in their order.

    With priorities all have the highest one so far.

    Raises:
        ValueError: when there are more than the buffer has rows.
    """
    if isinstance(buffer, Prioritized):
        return _inserted(buffer, elements)
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


def take(buffer: Any, index: jax.Array) -> Any:
    """The elements at `index`, leaves `[*index.shape, ...]`."""
    return gather(buffer.replay.data if isinstance(buffer, Prioritized) else buffer.data, index)


def _inserted(buffer: Prioritized, elements: Any) -> Prioritized:
    num, rows = (jax.tree.leaves(x)[0].shape[0] for x in (elements, buffer.replay.data))
    inside = insert(buffer.replay, elements)
    index = (buffer.replay.position + jnp.arange(num)) % rows
    spare = (inside.position + jnp.arange(rows - inside.capacity)) % rows  # the oldest, no longer sampled
    priority = buffer.priority.at[index].set(buffer.highest).at[spare].set(0.0)
    return _summed(replace(buffer, replay=inside, priority=priority), jnp.append(index, spare))


def draw(buffer: Any, key: jax.Array, num: int, beta: Any) -> tuple[jax.Array, jax.Array]:
    """Where to find `num` random elements, int32 `[num]`, and their weights, `[num]`: all 1 where samples are uniform.

        P(i) = p_i / sum_k p_k,    w_i = (N P(i))^-beta / max w

    At beta 1 a weighted mean is that of uniform samples, up to a factor. With priorities a block of blocks is drawn by
    the sums, then a block in it, then an element by the priorities there: one running sum over all would lose small
    ones, as float32 has 2^24 steps.

    Source: Schaul et al. 2016, Prioritized Experience Replay, arXiv:1511.05952, equation 1 and section 3.4.
    """
    if isinstance(buffer, Replay):
        return sample(buffer, key, (num,)), jnp.ones(num)
    *lower, top = buffer.priority, *buffer.sums
    first, *others = jax.random.uniform(key, (1 + len(lower), num))
    index = _drawn(top[None], first)
    for level, uniform in zip(reversed(lower), others, strict=True):
        index = index * WIDTH + _drawn(level.reshape(-1, WIDTH)[index], uniform)
    weight = (buffer.replay.size * buffer.priority[index] / top.sum()) ** -beta
    # The index waits for the weights, which are never below 0. If priorities could be read after `reprioritize` changed
    # them, XLA would copy all of them for every draw.
    index = jnp.where(weight >= 0, index, 0)
    return index.astype(jnp.int32), weight / weight.max()


def reprioritize(buffer: Any, index: jax.Array, priority: jax.Array) -> Any:
    """The buffer with other priorities `[num]` of the elements at `index`; of one that is there twice, one of both.

    The sums of their blocks are made anew, so that no error adds up. One without priorities stays as it is.
    """
    if isinstance(buffer, Replay):
        return buffer
    highest = jnp.maximum(buffer.highest, priority.max())
    return _summed(replace(buffer, priority=buffer.priority.at[index].set(priority), highest=highest), index)


def _summed(buffer: Prioritized, index: jax.Array) -> Prioritized:
    """The buffer with the sums that the rows `index` are in made anew."""
    below, sums = buffer.priority, []
    for level in buffer.sums:
        index = index // WIDTH
        below = level.at[index].set(below.reshape(-1, WIDTH)[index].sum(axis=-1))
        sums.append(below)
    return replace(buffer, sums=tuple(sums))


def _drawn(priority: jax.Array, uniform: jax.Array) -> jax.Array:
    """Columns `[num]` of rows `[num, n]`, or of one row, as often as their priorities say; never one of priority 0."""
    # The running sum as a product of matrices: on a CPU it takes a fraction of the time of `jnp.cumsum`.
    ends = jnp.dot(priority, jnp.tri(priority.shape[-1]).T, precision="highest")
    chosen = jnp.sum(ends <= uniform[:, None] * ends[:, -1:], axis=-1)
    last = priority.shape[-1] - 1 - jnp.argmax(priority[..., ::-1] > 0, axis=-1)  # rounding may lead beyond it
    return jnp.minimum(chosen, last)


def rewind(buffer: Any, old: Any, undo: jax.Array) -> Any:
    """`buffer` where `undo` is False, else what `old` was before at most `spare` elements were inserted into it.

    Costs nothing: only the counters go back, to rows that are still there. A select between the two would copy both.
    Priorities are few numbers, and are selected.
    """
    back = lambda new, old: jnp.where(undo, old, new)
    if isinstance(buffer, Prioritized):
        names = ("priority", "sums", "highest")
        numbers = {name: jax.tree.map(back, getattr(buffer, name), getattr(old, name)) for name in names}
        return replace(buffer, replay=rewind(buffer.replay, old.replay, undo), **numbers)
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


def check_delay(policy_delay: int, gradient_steps: int) -> None:
    """Raises ValueError where an update's gradient steps do not divide into groups, each with one of the actor."""
    if gradient_steps % policy_delay:
        raise ValueError(
            f"policy_delay = {policy_delay} does not divide the {gradient_steps} gradient steps of an update, "
            "utd_ratio * num_envs * num_steps: change one of these"
        )


def without_replay(tree: Any) -> Any:
    """The tree with None where it has a `Replay`."""
    return jax.tree.map(lambda x: None if is_replay(x) else x, tree, is_leaf=is_replay)


def with_replay(tree: Any, other: Any) -> Any:
    """What `without_replay` made of a tree like `other`, with the `Replay` of `other`."""
    return jax.tree.map(lambda x, kept: x if is_replay(x) else kept, other, tree, is_leaf=is_replay)


def is_replay(x: Any) -> bool:
    """Whether x is a `Replay`, or one with priorities: where it is, trees are to be mapped no deeper."""
    return isinstance(x, Replay | Prioritized)


__all__ = [
    "Prioritized",
    "Replay",
    "arranged",
    "check_delay",
    "check_ratio",
    "check_replay",
    "draw",
    "insert",
    "is_replay",
    "replay",
    "reprioritize",
    "rewind",
    "sample",
    "take",
    "with_replay",
    "without_replay",
]
