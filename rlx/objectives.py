"""Policy and value losses of trust-region methods, per element: the algorithm takes the mean."""

import chex
import jax
import jax.numpy as jnp


def clipped_surrogate(log_ratio: jax.Array, advantage: jax.Array, clip: jax.Array) -> jax.Array:
    """`-min(rho A, clip(rho, 1 - clip, 1 + clip) A)` with `rho = exp(log_ratio)`, any shape.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7 (negated: minimised).
    """
    chex.assert_equal_shape([log_ratio, advantage])
    ratio = jnp.exp(log_ratio)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)


def asymmetric_surrogate(log_ratio: jax.Array, advantage: jax.Array, clip: jax.Array) -> jax.Array:
    """`clipped_surrogate` where `A > 0`, else `-(rho A - |A| (rho - 1)^2 / (2 clip))`, any shape.

    The penalty, unlike the clip, pulls the ratios of bad actions back to `1 - clip`, where it is smallest.

    Source: ASPO, Yi et al. 2026, arXiv:2602.02481; the penalty is SPO's, Xie et al. 2024, arXiv:2401.16025.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    good = advantage > 0
    ratio = jnp.exp(jnp.where(good, 0.0, log_ratio))  # where it is not used its square must not overflow
    penalised = -(ratio * advantage - jnp.abs(advantage) * (ratio - 1.0) ** 2 / (2.0 * clip))
    return jnp.where(good, clipped_surrogate(log_ratio, advantage, clip), penalised)


def clipped_value_loss(value: jax.Array, old_value: jax.Array, target: jax.Array, clip: jax.Array) -> jax.Array:
    """`max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) / 2`, any shape.

    An infinite clip leaves `(V - R)^2 / 2`. Source: the PPO implementation of openai/baselines; not in the paper.
    """
    chex.assert_equal_shape([value, old_value, target])
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return 0.5 * jnp.maximum((value - target) ** 2, (clipped - target) ** 2)


def kl_adapted(learning_rate: jax.Array, kl: jax.Array, target: jax.Array) -> jax.Array:
    """The learning rate for the next epoch: over 1.5 where `kl > 2 target`, times 1.5 where `kl < target / 2`.

    Between 1e-6 and 1e-2. Source: the adaptive rate of Heess et al. 2017, arXiv:1707.02286, as implemented in skrl.
    """
    factor = jnp.where(kl > 2.0 * target, 1.0 / 1.5, jnp.where(kl < 0.5 * target, 1.5, 1.0))
    return jnp.clip(factor * learning_rate, 1e-6, 1e-2)


def approx_kl(log_ratio: jax.Array) -> jax.Array:
    """`k3 = (rho - 1) - log rho >= 0`, an unbiased estimate of `KL(pi_old || pi)` for actions drawn from `pi_old`.

    Source: J. Schulman, Approximating KL divergence, 2020 (joschu.net/blog/kl-approx.html).
    """
    return jnp.expm1(log_ratio) - log_ratio


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """`1 - Var(target - value) / Var(target)`: 1 for a perfect critic, 0 for a constant one, NaN without variance."""
    variance = jnp.var(target)
    return jnp.where(variance > 0, 1.0 - jnp.var(target - value) / variance, jnp.nan)
