"""Policy objectives that look at their whole minibatch: which elements to hold back, and where to clip.

They are callable pytrees as those of `rlx.objectives` are, given `Elements`. What they find out of a minibatch is taken
as given: nothing is differentiated through it. Elements that are not alive are in none of their statistics.

Axes: any, `[...]`, for the elements; J pairs of bounds.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlx.adjustments import mixed_surrogate
from rlx.objectives import Elements, clipped_surrogate, dual_clipped_surrogate, importance_weighted
from rlx.pytree import pytree, static, traced


def _alive(elements: Elements) -> jax.Array:
    """Which elements count, bool `[...]`."""
    return jnp.ones(elements.log_ratio.shape, bool) if elements.alive is None else elements.alive


def covariance(elements: Elements) -> jax.Array:
    """`(A - mean A) (log pi - mean log pi)` of each element, without a gradient, `[...]`; minus infinity if not alive.

    To first order the entropy of a softmax policy changes by `-Cov(log pi, dz)` as its logits move by `dz`, so the
    elements with the largest are those that take it away.

    Source: Cui et al. 2025, The Entropy Mechanism, arXiv:2505.22617.

    Raises:
        ValueError: for a policy that has no log-probabilities.
    """
    if elements.log_prob is None:
        raise ValueError("this objective needs log-probabilities, and the policy of this algorithm has none")
    alive = _alive(elements)
    centred = lambda x: x - jnp.mean(x, where=alive)
    found = centred(elements.advantage) * centred(elements.log_prob)
    return jax.lax.stop_gradient(jnp.where(alive, found, -jnp.inf))


def largest(x: jax.Array, num: int) -> jax.Array:
    """The `num` largest of `[...]`, bool; of equal ones the first, and never one that is minus infinity."""
    index = jax.lax.top_k(x.ravel(), num)[1]
    return jnp.zeros(x.size, bool).at[index].set(True).reshape(x.shape) & (x > -jnp.inf)


def _count(share: float, size: int) -> int:
    """How many of so many a share is: none of 0, else at least one."""
    return 0 if share == 0 else max(1, int(share * size))


@pytree
class KLCov:
    """KL-Cov: nothing is clipped, and the elements that move the entropy most are held by `kl_coef |log rho|`.

    These are the share with the largest `covariance`. In the first minibatch of an update the ratio is 1 and the
    penalty has no slope: it needs several epochs or minibatches.

    Source: Cui et al. 2025, arXiv:2505.22617. There 0.2 % of thousands of tokens.
    """

    cov_share: float = static(0.02, at_least=0)
    kl_coef: float = traced(1.0, at_least=0)

    def __call__(self, config, elements, progress):
        held = largest(covariance(elements), _count(self.cov_share, elements.log_ratio.size))
        penalty = jnp.where(held, self.kl_coef * jnp.abs(elements.log_ratio), 0.0)
        return importance_weighted(elements.log_ratio, elements.advantage) + penalty


@pytree
class ClipCov:
    """Clip-Cov: `clipped_surrogate`, without the elements that move the entropy most.

    These are the share with the largest `covariance` of those within two quantiles of it that are not clipped already;
    the paper draws from the band at random. There the bounds are numbers, 1 and 5, for tokens.

    Source: Cui et al. 2025, arXiv:2505.22617.
    """

    cov_share: float = static(0.02, at_least=0)
    cov_low: float = traced(0.8, at_least=0, at_most=1)
    cov_high: float = traced(0.99, at_least=0, at_most=1)
    clip: float = traced(0.2, above=0)

    def __call__(self, config, elements, progress):
        found, ratio = covariance(elements), jnp.exp(jax.lax.stop_gradient(elements.log_ratio))
        known = jnp.where(jnp.isfinite(found), found, jnp.nan)
        low, high = (jnp.nanquantile(known, level) for level in (self.cov_low, self.cov_high))
        gain = jnp.sign(elements.advantage)
        clipped = gain * ratio > gain * (1.0 + gain * self.clip)
        band = jnp.where((found >= low) & (found <= high) & ~clipped, found, -jnp.inf)
        held = largest(band, _count(self.cov_share, found.size))
        return jnp.where(held, 0.0, clipped_surrogate(elements.log_ratio, elements.advantage, self.clip))


@pytree
class BAPO:
    """Bounds of the ratio that balance the signs: `dual_clipped_surrogate` with the first pair that does.

    The lower bound goes from `low_first` to `low_last` in steps, then the upper one from `high_first` to `high_last`,
    until `P / (P + M) >= positive_share`, else to the last pair;

        P = sum rho A [A > 0, rho <= high],    M = sum rho |A| [A < 0, rho >= low]

    is what carries a gradient. The measure of the published code has `max(rho, low)` in M, which grows with the lower
    bound, so that its search always ends at the largest.

    Source: Xi et al. 2025, BAPO, arXiv:2510.18927.
    """

    low_first: float = static(0.6, above=0)
    low_last: float = static(0.9, above=0)
    high_first: float = static(1.2, above=1)
    high_last: float = static(3.0, above=1)
    bound_step: float = static(0.05, above=0)
    positive_share: float = traced(0.5, at_least=0, at_most=1)
    dual_clip: float = traced(3.0, above=1)

    def bounds(self) -> np.ndarray:
        """The pairs in the order in which they are tried, `[J, 2]`."""
        lows = np.arange(self.low_first, self.low_last + 1e-6, self.bound_step)
        highs = np.arange(self.high_first, self.high_last + 1e-6, self.bound_step)
        if not len(lows) or not len(highs) or self.low_last >= 1:
            raise ValueError(
                f"bounds from {self.low_first} to {self.low_last} and from {self.high_first} to {self.high_last}: the "
                "first of each has to be the smaller one, and the lower ones below 1"
            )
        return np.array([*((low, highs[0]) for low in lows), *((lows[-1], high) for high in highs[1:])])

    def __call__(self, config, elements, progress):
        given = jax.lax.stop_gradient((elements.log_ratio, elements.advantage))
        ratio, advantage = (jnp.where(_alive(elements), x, 0.0).ravel() for x in (jnp.exp(given[0]), given[1]))
        low, high = jnp.asarray(self.bounds(), ratio.dtype).T
        weighted = ratio * advantage
        gain = jnp.sum(jnp.where((advantage > 0) & (ratio <= high[:, None]), weighted, 0.0), axis=-1)
        cost = jnp.sum(jnp.where((advantage < 0) & (ratio >= low[:, None]), -weighted, 0.0), axis=-1)
        balanced = gain >= self.positive_share * (gain + cost)
        chosen = jnp.where(balanced.any(), jnp.argmax(balanced), len(low) - 1)
        bounds = 1.0 - low[chosen], high[chosen] - 1.0
        return dual_clipped_surrogate(elements.log_ratio, elements.advantage, *bounds, self.dual_clip)


@pytree
class DropoutClip:
    """D-PPO: `clipped_surrogate` of the elements whose terms vary least together.

    With `z = rho A` an element's part of the square of the mean is `z_i sum_j z_j`. Of the elements in which that is
    positive the given share is left out, and the same share of the others: those in which it is largest in size. What
    is left counts for as much as all. The paper's rule is known here by its summary, and which end of each part is left
    out was derived: with the most negative ones kept instead, the mean overshoots zero and its variance grows.

    Source: Xie et al. 2023, Dropout Strategy in Reinforcement Learning, arXiv:2310.20380.
    """

    dropped: float = static(0.2, at_least=0)
    clip: float = traced(0.2, above=0)

    def __call__(self, config, elements, progress):
        alive = _alive(elements)
        z = jax.lax.stop_gradient(jnp.exp(elements.log_ratio) * elements.advantage)
        keep = alive & ~most_varying(jnp.where(alive, z, 0.0), alive, self.dropped)
        scale = alive.sum() / jnp.maximum(keep.sum(), 1)
        surrogate = clipped_surrogate(elements.log_ratio, elements.advantage, self.clip)
        return jnp.where(keep | ~alive, jnp.where(keep, scale, 1.0) * surrogate, 0.0)


def most_varying(z: jax.Array, alive: jax.Array, share: float) -> jax.Array:
    """Which of `[...]` `DropoutClip` leaves out, bool: a share of each part by the sign of `z_i sum_j z_j`."""
    part = (z * z.sum()).ravel()
    out = jnp.zeros(part.shape, bool)
    for group in (alive.ravel() & (part > 0), alive.ravel() & (part <= 0)):
        key = jnp.where(group, jnp.abs(part), -1.0)
        rank = jnp.argsort(jnp.argsort(-key, stable=True))  # 0 for the largest
        out |= group & (rank < jnp.floor(share * group.sum()))
    return out.reshape(z.shape)


@pytree
class DHPO:
    """DHPO: a part of the clipped surrogate of each step's ratio, and the rest of that of its sequence's.

    For algorithms whose elements are `[..., T]`, steps of sequences, such as those of GRPO with ratios of steps; the
    bounds are its own. Shares 1 and 0 are GRPO and GSPO. Equation and source: `rlx.adjustments.mixed_surrogate`.
    """

    share: float = traced(0.5, at_least=0, at_most=1)
    clip: float = traced(0.2, above=0)
    clip_high: float = traced(0.28, above=0)
    sequence_clip: float = traced(3e-4, above=0)
    sequence_clip_high: float = traced(4e-4, above=0)

    def __call__(self, config, elements, progress):
        if elements.alive is None:
            raise ValueError("DHPO takes ratios of sequences, and elements are single steps here: use it with grpo")
        bounds = self.clip, self.clip_high, self.sequence_clip, self.sequence_clip_high
        return mixed_surrogate(elements.log_ratio, elements.alive, elements.advantage, self.share, *bounds)


def surrogate_variance(elements: Elements) -> jax.Array:
    """The variance of `rho A` over the elements that are alive, a scalar.

    Source: Xie et al. 2023, arXiv:2310.20380, of which it is the quantity that is held down.
    """
    return jnp.var(jnp.exp(elements.log_ratio) * elements.advantage, where=_alive(elements))


__all__ = [
    "BAPO",
    "DHPO",
    "ClipCov",
    "DropoutClip",
    "KLCov",
    "covariance",
    "largest",
    "most_varying",
    "surrogate_variance",
]
