"""Returns of whole episodes as functions of a policy, whose derivatives of any order are unbiased.

    log_ratio = pi.log_prob(action) - log_prob_when_acting            [T, N]
    returns = lambda params: reweighted_returns(...).mean()
    jax.grad(returns)(params)                                         the policy gradient
    jax.jvp(jax.grad(returns), (params,), (v,))[1]                    the Hessian of the return, times v

Axes: T time, N episodes.
"""

from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp

Number = float | jax.Array
T = TypeVar("T")


def reweighted_returns(log_ratio: jax.Array, reward: jax.Array, alive: jax.Array, gamma: Number) -> jax.Array:
    """What a policy is estimated to return on the episodes of another, `[N]`.

        sum_t gamma^t r_t prod_{h <= t} pi(a_h | s_h) / mu(a_h | s_h)

    A reward is weighted by what was done up to it and not by what came after. At `pi = mu` it is the return, its
    gradient is `sum_t grad log pi_t sum_{h >= t} gamma^h r_h` and its Hessian that of the expected return, unbiased.

    Args:
        log_ratio: `log pi - log mu` of each action, `[T, N]`.
        reward, alive: `[T, N]`; what is after the end of an episode does not count.
        gamma: discount.

    Source: Fatkhullin et al. 2023, Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-
    degenerate Policies, arXiv:2302.01734, whose estimate of the Hessian is this one's, written out.
    """
    chex.assert_equal_shape([log_ratio, reward, alive])
    so_far = jnp.cumsum(jnp.where(alive, log_ratio, 0.0), axis=0)
    discount = gamma ** jnp.arange(len(reward))[:, None]
    return (discount * jnp.where(alive, reward, 0.0) * jnp.exp(so_far)).sum(axis=0)


def corrected(direction: T, product: T, gradient: T, eta: Number) -> T:
    """Momentum that is corrected by the Hessian: `(1 - eta) (d + H v) + eta g`, v being the step since `d`.

    On a quadratic, with exact `g` and `H`, it is the exact gradient at every step. eta = 1 has no momentum.

    Source: Fatkhullin et al. 2023, arXiv:2302.01734 (HARPG), after Salehkaleybar et al. 2022, arXiv:2205.08253.
    """
    mixed: Any = lambda d, h, g: (1.0 - eta) * (d + h) + eta * g
    return jax.tree.map(mixed, direction, product, gradient)


__all__ = ["corrected", "reweighted_returns"]
