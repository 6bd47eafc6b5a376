"""Data that look as a policy's own: sampling what is missing, and a clip for rollouts of earlier policies."""

import jax
import jax.numpy as jnp

from rlx.objectives import clipped_surrogate


def missing_loss(log_ratio: jax.Array, clip: float | jax.Array) -> jax.Array:
    """`max(rho, clip(rho, 1 - clip, 1 + clip))` of data, any shape, which a behavior policy minimises.

    `rho` is its probability of an action to that of the policy whose data are wanted. What was sampled often has a
    larger weight in a mean over the data, so it becomes less probable, down to `1 - clip`. It is PPO's clipped loss for
    actions of advantage -1.

    Source: Corrado, Hanna 2023, On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling,
    arXiv:2311.08290.
    """
    return clipped_surrogate(log_ratio, -jnp.ones_like(log_ratio), clip)


def replayed_surrogate(
    log_ratio: jax.Array, advantage: jax.Array, log_drift: jax.Array, clip: float | jax.Array
) -> jax.Array:
    """`-min(rho A, clip(rho, q - clip, q + clip) A)`, any shape: PPO's, with its clip around how far a policy has come.

    Args:
        log_ratio: `log rho`, of the new policy to the one that acted.
        advantage: A.
        log_drift: `log q`, of the policy at the start of the update to the one that acted; 0 on fresh data, where it is
            `rlx.objectives.clipped_surrogate`.
        clip: how far rho may go from q.

    Source: Queeney et al. 2021, Generalized Proximal Policy Optimization with Sample Reuse.
    """
    ratio, drift = jnp.exp(log_ratio), jnp.exp(log_drift)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, drift - clip, drift + clip) * advantage)


def sampling_error(counts: jax.Array, probabilities: jax.Array) -> jax.Array:
    """How far the actions in data are from a policy: the mean KL from it of the frequencies in each state.

        sum_s,a n(s, a) / n  log( n(s, a) / n(s) / pi(a | s) )

    Args:
        counts: n, `[S, A]`.
        probabilities: pi, `[S, A]`.

    Source: Corrado, Hanna 2023, arXiv:2311.08290, with the policy of greatest likelihood in closed form.
    """
    counts = counts.astype(jnp.float32)
    frequency = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1.0)
    log = jnp.log(jnp.where(counts > 0, frequency, 1.0)) - jnp.where(counts > 0, jnp.log(probabilities), 0.0)
    return (counts * log).sum() / jnp.maximum(counts.sum(), 1.0)


__all__ = ["missing_loss", "replayed_surrogate", "sampling_error"]
