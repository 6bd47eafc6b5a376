"""The gradient of a return that is regularised by a divergence from the policy that acted, in eight forms."""

import chex
import jax
import jax.numpy as jnp

from rlx.pytree import pytree, static, traced

DIVERGENCES = ("forward", "forward_unnormalized", "reverse", "reverse_unnormalized")


@pytree
class KLRegularized:
    """The gradient of `E_pi[A] - kl_coef D(pi, pi_old)`, exact on samples of `pi_old`, in eight forms.

    D by name, the loss whose gradient it is, and the weight W of the form `-W log pi`, `score=True`:

        forward              -rho A - c l                 rho A + c
        forward_unnormalized -rho A + c (rho - l - 1)     rho A - c (rho - 1)
        reverse              -rho A + c rho l             rho (A - c (l + 1))
        reverse_unnormalized -rho A + c (rho l - rho)     rho (A - c l)

    with `l = log rho`; forward is `KL(pi_old, pi)` and reverse `KL(pi, pi_old)`.

    Source: Zhang et al. 2025, On the Design of KL-Regularized Policy Gradient Algorithms, arXiv:2505.17508.
    """

    kl_coef: float = traced(0.1, at_least=0)
    divergence: str = static("reverse", one_of=DIVERGENCES)
    score: bool = static(False)

    def __call__(self, config, elements, progress):
        log_ratio, advantage, c = elements.log_ratio, elements.advantage, self.kl_coef
        chex.assert_equal_shape([log_ratio, advantage])
        i, rho = DIVERGENCES.index(self.divergence), jnp.exp(log_ratio)
        terms = -log_ratio, rho - log_ratio - 1.0, rho * log_ratio, rho * log_ratio - rho
        if not self.score:
            return -rho * advantage + c * terms[i]
        if elements.log_prob is None:
            raise ValueError("score=True needs log-probabilities, and the policy of this algorithm has none")
        weights = (
            rho * advantage + c,
            rho * advantage - c * (rho - 1.0),
            rho * (advantage - c * (log_ratio + 1.0)),
            rho * (advantage - c * log_ratio),
        )
        return -jax.lax.stop_gradient(weights[i]) * elements.log_prob


__all__ = ["DIVERGENCES", "KLRegularized"]
