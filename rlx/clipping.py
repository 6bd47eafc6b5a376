"""Gradients held to a norm, with derivatives where a gradient is 0: training itself can be differentiated."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


def global_norm(tree: Any) -> jax.Array:
    """`sqrt(sum_i x_i^2)` over all numbers of a pytree; where it is 0, so is its gradient."""
    square = jnp.sum(ravel_pytree(tree)[0] ** 2)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def clip_by_global_norm(max_norm: jax.Array) -> optax.GradientTransformation:
    """`g min(1, max_norm / |g|)` for the norm of all gradients together; `max_norm` may be infinite.

    It is that of optax but for its derivative, which there is NaN at `g = 0`, and everywhere with an infinite bound.
    """
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda updates, state, params=None: (_clipped(updates, max_norm), state)
    )


@jax.custom_jvp
def _clipped(grads: Any, max_norm: jax.Array) -> Any:
    return optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())[0]


@_clipped.defjvp
def _(primals, tangents):
    def clipped(grads, max_norm):
        norm = global_norm(grads)
        keep = norm < max_norm
        norm, bound = jnp.where(keep, 1.0, norm), jnp.where(keep, 1.0, max_norm)
        return jax.tree.map(lambda x: jnp.where(keep, x, x / norm * bound), grads)

    return jax.jvp(clipped, primals, tangents)


__all__ = ["clip_by_global_norm", "global_norm"]
