"""Steps within a trust region: natural gradients and the search along them. Parameters are pytrees of arrays."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

T = TypeVar("T")


def natural_gradient(kl: Callable, params: T, gradient: T, damping: jax.Array, num_iterations: int) -> tuple[T, T]:
    """`x` with `H x = gradient`, and `H x`, for `H = F + damping I` and F the Hessian of `kl(params) -> scalar`.

    Where `kl` is the mean divergence from the policy of `params` itself, F is the Fisher information. H is never
    formed, only multiplied by, in `num_iterations` of conjugate gradients. These solve the equation when there are as
    many as parameters, and nearly with far fewer; `H x` is what the length of the step needs.

    Source: Schulman et al. 2015, arXiv:1502.05477, appendix C.1; damping: Martens 2010, Deep learning via Hessian-free
    optimization, ICML, section 4.1.
    """
    _, fisher = jax.linearize(jax.grad(kl), params)  # the forward pass is shared by all products
    product = lambda x: jax.tree.map(lambda fx, x: fx + damping * x, fisher(x), x)
    direction, _ = jax.scipy.sparse.linalg.cg(product, gradient, maxiter=num_iterations)
    return direction, product(direction)


def longest_step(direction: T, product: T, max_kl: jax.Array) -> T:
    """`-sqrt(2 max_kl / x^T H x) x`: down along `direction`, to where the quadratic model of the KL is `max_kl`.

    Zero where the direction is. Source: Schulman et al. 2015, arXiv:1502.05477, appendix C.
    """
    curvature = optax.tree.vdot(direction, product)
    scale = jnp.sqrt(2.0 * max_kl / jnp.maximum(curvature, jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(lambda x: -scale * x, direction)


def line_search(accept: Callable, params: T, step: T, shrink: jax.Array, num_trials: int) -> tuple[T, jax.Array]:
    """`params + shrink^i step` for the first `i < num_trials` that `accept(params) -> bool` takes, and its `shrink^i`.

    Where it takes none, `params` as they are, and 0.
    """
    moved = lambda i: jax.tree.map(lambda p, s: p + shrink**i * s, params, step)
    refused = lambda i: (i < num_trials) & ~accept(moved(i))
    trials = jax.lax.while_loop(refused, lambda i: i + 1, jnp.int32(0))
    found = trials < num_trials
    return jax.tree.map(lambda a, b: jnp.where(found, a, b), moved(trials), params), found * shrink**trials
