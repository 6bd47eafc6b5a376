"""Policies that are improved by weights: likelihoods of good actions go up, and duals say how far a step may go.

V-MPO weighs the better half of a batch by `exp(A / eta)`. Its temperature `eta` is the dual of a bound on how far the
weights are from uniform ones, its multiplier `alpha` that of a bound on how far the policy goes.
"""

import chex
import jax
import jax.numpy as jnp


def better_half(advantage: jax.Array) -> jax.Array:
    """The positions of the `(B + 1) // 2` largest of advantages `[B]`, int32, the largest first.

    Of equal ones the earlier come first. Source: Song et al. 2019, V-MPO, arXiv:1909.12238, section 4.
    """
    chex.assert_rank(advantage, 1)
    return jax.lax.top_k(advantage, (advantage.shape[0] + 1) // 2)[1]


def boltzmann_weights(advantage: jax.Array, temperature: jax.Array) -> jax.Array:
    """`w_i = exp(A_i / eta) / sum_j exp(A_j / eta)` of advantages `[M]`: uniform as eta grows, the best alone at 0.

    Source: Song et al. 2019, V-MPO, arXiv:1909.12238, section 4, psi.
    """
    chex.assert_rank(advantage, 1)
    return jax.nn.softmax(advantage / temperature)


def temperature_loss(temperature: jax.Array, advantage: jax.Array, bound: jax.Array) -> jax.Array:
    """`eta bound + eta log mean_i exp(A_i / eta)` of advantages `[M]`, a scalar, convex in eta.

    It is smallest where `KL(w || uniform) = bound` for `w = boltzmann_weights(A, eta)`. Where even the best alone is
    within the bound, `log M <= bound`, it falls all the way to eta = 0.

    Source: Song et al. 2019, V-MPO, arXiv:1909.12238, section 4, the temperature loss.
    """
    chex.assert_rank(advantage, 1)
    spread = jax.nn.logsumexp(advantage / temperature) - jnp.log(advantage.shape[0])
    return temperature * (bound + spread)


def multiplier_loss(
    multiplier: jax.Array, fixed_multiplier: jax.Array, kl: jax.Array, fixed_kl: jax.Array, bound: jax.Array
) -> jax.Array:
    """`alpha (bound - fixed_kl) + fixed_alpha kl`, a scalar: alpha rises where the KL is above its bound.

    `fixed_multiplier` and `fixed_kl` are the same numbers, taken as given: the policy's part has no gradient in alpha,
    and alpha's has none in the policy.

    Source: Song et al. 2019, V-MPO, arXiv:1909.12238, section 4, the loss of the KL constraint.
    """
    return multiplier * (bound - fixed_kl) + fixed_multiplier * kl
