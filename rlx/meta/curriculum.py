"""A curriculum over levels by regret: levels on which the learner falls short of a reference are drawn again.

    buffer = fill(key, draw, 200)
    rows = choose(buffer, key, 8)                       # which levels to live through next
    buffer = record(buffer, rows, regret, key, draw)    # and how much was missed there

A level is any pytree that `draw(key)` makes; a buffer has many of them, leaves `[L, ...]`.

Reference: GROOVE, Jackson et al. 2023, Discovering General Reinforcement Learning Algorithms with Adversarial
Environment Design, arXiv:2310.02782, whose regret is the return of an ordinary agent trained on a level less that of
the one that learns by the rule.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx.pytree import pytree

LEAST = -1e30  # the score of a level without one: below all others, above that of new levels


@pytree
class Buffer:
    """Levels and what is known of them."""

    levels: Any  # leaves [L, ...]
    score: jax.Array  # [L], the regret when they were last lived through
    new: jax.Array  # bool [L], not lived through yet


def fill(key: jax.Array, draw: Callable[[jax.Array], Any], size: int) -> Buffer:
    """A buffer of `size` new levels."""
    levels = jax.vmap(draw)(jax.random.split(key, size))
    return Buffer(levels, jnp.full(size, -jnp.inf), jnp.ones(size, bool))


def choose(buffer: Buffer, key: jax.Array, num: int, replay: float = 0.5) -> jax.Array:
    """Rows of `num` different levels, int32: each an old one with probability `replay`, else a new one.

    The old ones are those of the highest scores, the new ones any; where there are too few of one kind, the other's
    take their place.

    Raises:
        ValueError: for more than there are.
    """
    if num > len(buffer.new):
        raise ValueError(f"{num} different levels of a buffer of {len(buffer.new)}: give fewer")
    count_key, new_key = jax.random.split(key)
    wanted = jnp.sum(jax.random.bernoulli(count_key, replay, (num,)))
    num_old, num_new = jnp.sum(~buffer.new), jnp.sum(buffer.new)
    wanted = jnp.clip(wanted, num - num_new, num_old)
    old = jnp.argsort(jnp.where(buffer.new, jnp.inf, -buffer.score))  # best first, then the new ones
    order = jax.random.uniform(new_key, buffer.new.shape)
    new = jnp.argsort(jnp.where(buffer.new, order, 2.0))  # the new ones in any order, then the old ones
    place = jnp.arange(num)
    return jnp.where(place < wanted, old[place], new[jnp.maximum(place - wanted, 0)])


def record(
    buffer: Buffer, rows: jax.Array, score: jax.Array, key: jax.Array, draw: Callable[[jax.Array], Any]
) -> Buffer:
    """The buffer after the levels in `rows` were lived through, with these scores; what is not finite counts as lowest.

    Of the levels that are old now, as many as there are rows, those of the lowest scores, are replaced by new ones, as
    long as less than half of the buffer is new.
    """
    score = jnp.where(jnp.isfinite(score), score, LEAST)
    scores, new = buffer.score.at[rows].set(score), buffer.new.at[rows].set(False)
    size, num = len(new), len(rows)
    lowest = jnp.argsort(jnp.where(new, jnp.inf, scores))[:num]
    free = ~new[lowest] & (jnp.sum(new) + jnp.arange(num) < size // 2)
    drawn = jax.vmap(draw)(jax.random.split(key, num))

    def put(old, fresh):
        mask = free.reshape(-1, *[1] * (old.ndim - 1))
        return old.at[lowest].set(jnp.where(mask, fresh, old[lowest]))

    levels = jax.tree.map(put, buffer.levels, drawn)
    return Buffer(
        levels, scores.at[lowest].set(jnp.where(free, -jnp.inf, scores[lowest])), new.at[lowest].set(new[lowest] | free)
    )


__all__ = ["Buffer", "choose", "fill", "record"]
