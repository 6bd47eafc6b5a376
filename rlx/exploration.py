"""Choosing by values, and how often something else.

Axes: N rows, A actions, any leading axes `...`.
"""

import jax
import jax.numpy as jnp

from rlx.masks import ILLEGAL, allowed
from rlx.values import legal_values

Number = float | jax.Array


def greedy(q: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The legal actions of the highest values, int32 `[...]`; of equal ones the first."""
    return jnp.argmax(legal_values(q, mask), axis=-1).astype(jnp.int32)


def epsilon_greedy(q: jax.Array, epsilon: Number, key: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Actions, int32 `[N]`, by values `[N, A]`: with probability epsilon any legal one, the highest among them.

    `epsilon` is a number or one for each row, `[N]`.
    """
    which_key, any_key = jax.random.split(key)
    logits = jnp.zeros(q.shape) if mask is None else jnp.where(allowed(mask), 0.0, ILLEGAL)
    drawn = jax.random.categorical(any_key, logits).astype(jnp.int32)
    return jnp.where(jax.random.uniform(which_key, drawn.shape) < epsilon, drawn, greedy(q, mask))


def epsilon_at(progress: Number, start: Number, end: Number, share: Number) -> jax.Array:
    """Epsilon at a progress from 0 to 1: from `start` it falls linearly to `end` within a share of the run."""
    return start + (end - start) * jnp.minimum(progress / share, 1.0)


__all__ = ["epsilon_at", "epsilon_greedy", "greedy"]
