"""The replay buffer against a deque: what it holds, what it samples, what an undone insertion leaves, what it costs."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.replay import insert, replay, rewind, sample, take

EXAMPLE = {"obs": jax.ShapeDtypeStruct((2,), jnp.float32), "done": jax.ShapeDtypeStruct((), bool)}


def elements(numbers):
    """Elements that are told apart by their number, which is not 0."""
    x = jnp.asarray(numbers, jnp.float32)
    return {"obs": jnp.stack([x, -x], axis=1), "done": x % 2 == 1}


def contents(buffer):
    """The numbers in the buffer, oldest first."""
    rows = buffer.data["obs"].shape[0]
    return list(np.asarray(buffer.data["obs"][(buffer.position - buffer.size + np.arange(buffer.size)) % rows, 0]))


def sampled(buffer, num=4000):
    """Which numbers are sampled; sparing none of 8 or fewer, but by a chance of 1e-200."""
    return set(np.asarray(take(buffer, sample(buffer, jax.random.key(0), (num,)))["obs"][:, 0]).tolist())


@settings(derandomize=True, deadline=None, max_examples=8)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 5))
def test_the_oldest_leave_first(sizes, spare):
    buffer, expected, number = replay(EXAMPLE, 5, spare), deque(maxlen=5), 1
    for num in sizes:
        new = np.arange(number, number + num)
        buffer, number = insert(buffer, elements(new)), number + num
        expected.extend(new)
        assert contents(buffer) == list(expected)
        if expected:
            assert sampled(buffer) == set(expected)


def test_no_empty_slot_is_sampled():
    buffer = insert(replay(EXAMPLE, 1000, 10), elements([1, 2, 3]))
    assert sampled(buffer) == {1, 2, 3}
    assert sampled(insert(replay(EXAMPLE, 1000), elements([7]))) == {7}


def test_everything_in_the_buffer_is_equally_likely():
    buffer = replay(EXAMPLE, 7, 2)
    for first in (1, 6, 11):
        buffer = insert(buffer, elements(range(first, first + 5)))
    index = sample(buffer, jax.random.key(0), (70, 100))
    assert index.shape == (70, 100)
    counts = np.unique(take(buffer, index)["obs"][..., 0], return_counts=True)[1]
    assert len(counts) == 7
    assert scipy.stats.chisquare(counts).pvalue > 1e-3  # a fixed key


def test_elements_stay_together_and_keep_their_types():
    buffer = insert(replay(EXAMPLE, 5), elements([1, 2, 3]))
    found = take(buffer, sample(buffer, jax.random.key(1), (2, 30)))
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        "obs": ((2, 30, 2), jnp.float32),
        "done": ((2, 30), jnp.bool_),
    }
    np.testing.assert_array_equal(found["obs"][..., 1], -found["obs"][..., 0])
    np.testing.assert_array_equal(found["done"], found["obs"][..., 0] % 2 == 1)


@pytest.mark.parametrize("before", [0, 2, 5, 8, 13])
@pytest.mark.parametrize("num", [1, 3])
def test_a_rewound_buffer_is_what_it_was(before, num):
    old = replay(EXAMPLE, 5, spare=3)
    for number in range(before):
        old = insert(old, elements([number + 1]))
    new = insert(old, elements(100 + np.arange(num)))
    back = rewind(new, old, jnp.bool_(True))
    assert contents(back) == contents(old)
    assert contents(rewind(new, old, jnp.bool_(False))) == contents(new) != contents(old)
    if before:
        key = jax.random.key(3)
        again = take(back, sample(back, key, (50,)))["obs"]
        np.testing.assert_array_equal(again, take(old, sample(old, key, (50,)))["obs"])
    assert contents(insert(back, elements([50, 51]))) == contents(insert(old, elements([50, 51])))


def test_more_elements_than_rows_are_refused():
    assert contents(insert(replay(EXAMPLE, 3, spare=1), elements([1, 2, 3, 4]))) == [2, 3, 4]
    with pytest.raises(ValueError, match=r"5 elements do not fit a replay buffer of 4: raise its capacity"):
        insert(replay(EXAMPLE, 3, spare=1), elements([1, 2, 3, 4, 5]))


def test_lanes_of_a_vmap_are_buffers_of_their_own():
    first, second = insert(replay(EXAMPLE, 3), elements([1, 2])), insert(replay(EXAMPLE, 3), elements([3, 4]))
    second = insert(second, elements([5, 6]))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), first, second)
    stacked = jax.vmap(insert)(stacked, jax.tree.map(lambda *x: jnp.stack(x), elements([7]), elements([8])))
    assert [contents(jax.tree.map(lambda x, i=i: x[i], stacked)) for i in range(2)] == [[1, 2, 7], [5, 6, 8]]
    keys = jax.random.split(jax.random.key(0), 2)
    found = jax.vmap(lambda buffer, key: take(buffer, sample(buffer, key, (200,))))(stacked, keys)["obs"][..., 0]
    assert [set(np.asarray(x).tolist()) for x in found] == [{1, 2, 7}, {5, 6, 8}]


@pytest.mark.parametrize("lanes", [None, 3])
def test_insertions_in_a_loop_do_not_copy_the_buffer(lanes):
    def loop(buffer, key):
        def step(buffer, key):
            buffer = insert(buffer, elements(jnp.arange(8)))
            return buffer, take(buffer, sample(buffer, key, (16,)))["obs"].sum()

        return jax.lax.scan(step, buffer, jax.random.split(key, 4))

    buffer, key = replay(EXAMPLE, 100_000, 8), jax.random.key(0)
    if lanes:
        buffer = jax.tree.map(lambda x: jnp.stack([x] * lanes), buffer)
        loop, key = jax.vmap(loop), jax.random.split(key, lanes)
    memory = jax.jit(loop, donate_argnums=0).lower(buffer, key).compile().memory_analysis()
    held = sum(x.nbytes for x in jax.tree.leaves(buffer))
    assert held >= 900_000 * (lanes or 1)
    assert memory.alias_size_in_bytes >= held  # the result takes the place of the argument
    assert memory.temp_size_in_bytes < 100_000
