"""Directions in which a loss is curved, and how much of a gradient lies in them.

    product = products(loss, params)
    values, vectors = lanczos(product, size, 10, key)
    captured(vectors, gradient)

Parameters are vectors `[P]` here, see `jax.flatten_util.ravel_pytree`; K directions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def products(loss: Callable, params: jax.Array) -> Callable:
    """`v -> H v` with the Hessian H of a loss at parameters `[P]`; the forward pass is shared by all products."""
    return jax.linearize(jax.grad(loss), params)[1]


def lanczos(product: Callable, size: int, num: int, key: jax.Array, num_steps: int | None = None) -> tuple:
    """The eigenvalues of a symmetric matrix that are largest in size, `[K]`, and their vectors, `[K, P]`.

    By Lanczos' method from a random start, with full reorthogonalisation: without, eigenvectors repeat. They are
    ordered by size, so negative ones may be among them; a policy loss has such.

    Args:
        product: `v -> H v`.
        size: P.
        num: K.
        key: of the start.
        num_steps: of the Krylov space, `min(P, 4 K + 20)` unless given. With P of them all is exact but for rounding.

    Source: Golub and Van Loan, Matrix Computations, chapter 10; as a diagnostic of policy gradients Schneider et al.
    2024, Identifying Policy Gradient Subspaces, ICLR.
    """
    num_steps = min(size, 4 * num + 20) if num_steps is None else num_steps
    unit = lambda v: v / jnp.maximum(jnp.linalg.norm(v), 1e-30)

    def step(carry, i):
        basis, v = carry
        basis = basis.at[i].set(v)
        w = product(v)
        alpha = v @ w
        for _ in range(2):  # twice is enough
            w = w - basis.T @ (basis @ w)
        return (basis, unit(w)), (alpha, jnp.linalg.norm(w))

    first = unit(jax.random.normal(key, (size,)))
    start = jnp.zeros((num_steps, size)), first
    (basis, _), (alpha, beta) = jax.lax.scan(step, start, jnp.arange(num_steps))
    small = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(small)
    order = jnp.argsort(-jnp.abs(values))[:num]
    return values[order], (basis.T @ vectors[:, order]).T


def captured(vectors: jax.Array, gradient: jax.Array) -> jax.Array:
    """`|V g|^2 / |g|^2`: the part of a gradient `[P]` within K orthonormal directions `[K, P]`; by chance `K / P`."""
    return jnp.sum((vectors @ gradient) ** 2) / jnp.sum(gradient**2)


def overlap(first: jax.Array, second: jax.Array) -> jax.Array:
    """`|V_1 V_2^T|_F^2 / K` of two sets of orthonormal directions `[K, P]`: 1 for the same space, by chance `K / P`."""
    return jnp.sum((first @ second.T) ** 2) / len(first)


__all__ = ["captured", "lanczos", "overlap", "products"]
