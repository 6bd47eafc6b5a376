"""Action distributions. The event is the last axis; every method returns one number per remaining position.

What is drawn is what `log_prob` takes. `squash` makes of it an action in unit coordinates `[-1, 1]`, which
`rlx.spaces.rescale` takes on to the environment; `unsquash` is its inverse. For all but `TanhNormal` both change
nothing. `Joint` is a distribution of several parts, such as several choices at once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln, digamma

from rlx.pytree import pytree, static

LOG_2PI = 1.8378770664093453
IMPOSSIBLE = -1e8  # a log-probability below it is of an action that is never taken, as legal actions have it
NODES = 32  # of the quadrature of an entropy


class Plain:
    """A distribution whose draws are actions in unit coordinates as they are."""

    def squash(self, x: Any) -> Any:
        """The action in unit coordinates for what was drawn."""
        return x

    def unsquash(self, action: Any) -> Any:
        """What is drawn for an action in unit coordinates."""
        return action


@pytree
class Categorical(Plain):
    """Over `0, ..., n - 1`, from unnormalised log-probabilities `[..., n]`."""

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """int32 `[...]`, by the Gumbel-max trick."""
        return jnp.argmax(self.logits + jax.random.gumbel(key, self.logits.shape), axis=-1)

    def mode(self) -> jax.Array:
        """The most probable action, int32 `[...]`."""
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """`log softmax(logits)[action]`."""
        # Selecting by comparison has a gradient that fuses; that of a gather is a scatter.
        chosen = action[..., None] == jnp.arange(self.logits.shape[-1])
        return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(self.logits), 0.0), axis=-1)

    def entropy(self) -> jax.Array:
        """`-sum p log p`, in nats."""
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        """`KL(self || other) = sum p (log p - log q)`, in nats."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    def tsallis(self, other: "Categorical", q: jax.Array) -> jax.Array:
        """`D_q(self || other)`, the Bregman divergence of the negative Tsallis entropy of index q > 0; KL at q = 1.

            D_q = sum p (log_q p - q log_q p') + (q - 1) sum p' log_q p',    log_q x = (x^(q-1) - 1) / (q - 1)
                = sum (p^q - q p p'^(q-1) + (q - 1) p'^q) / (q - 1)

        The second form is that of Basu et al. 1998, Robust and efficient estimation by minimising a density power
        divergence, Biometrika 85, equation 1, over q - 1.
        """
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        own, others = (log_tsallis(jnp.where(x > IMPOSSIBLE, x, 0.0), q) for x in (log_p, log_q))
        return jnp.sum(jnp.exp(log_p) * (own - q * others) + (q - 1.0) * jnp.exp(log_q) * others, axis=-1)

    def log_power(self, other: "Categorical", q: jax.Array) -> jax.Array:
        """`log E[p'(x)^(q-1)] / (q-1)` for x from self; `E[log p'(x)]` at q = 1."""
        c = q - 1.0
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        terms = jnp.where(log_p > IMPOSSIBLE, log_p + c * jnp.where(log_p > IMPOSSIBLE, log_q, 0.0), -jnp.inf)
        power = jax.scipy.special.logsumexp(terms, axis=-1) / jnp.where(c == 0.0, 1.0, c)
        mean = jnp.sum(jnp.exp(log_p) * log_q, axis=-1)
        variance = jnp.sum(jnp.exp(log_p) * (log_q - mean[..., None]) ** 2, axis=-1)  # for the gradient in q, at q = 1
        return jnp.where(c == 0.0, mean + 0.5 * c * variance, power)


@pytree
class Normal(Plain):
    """Independent normals over the `A` dimensions of the last axis: mean and log_std `[..., A]`."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Reparameterised, `mean + std * noise`, `[..., A]`."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> jax.Array:
        """The mean."""
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        """`sum_i -((a_i - mean_i) / std_i)^2 / 2 - log std_i - log(2 pi) / 2`."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - 0.5 * LOG_2PI, axis=-1)

    def entropy(self) -> jax.Array:
        """`sum_i 1/2 + log(2 pi) / 2 + log std_i`, in nats."""
        return jnp.sum(jnp.broadcast_to(self.log_std, self.mean.shape) + 0.5 + 0.5 * LOG_2PI, axis=-1)

    def kl(self, other: "Normal") -> jax.Array:
        """`KL(self || other) = sum_i log(s'_i / s_i) + (s_i^2 + (m_i - m'_i)^2) / (2 s'_i^2) - 1/2`, in nats."""
        log_ratio = self.log_std - other.log_std
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(-log_ratio + 0.5 * (jnp.exp(2 * log_ratio) + z**2) - 0.5, axis=-1)

    def tsallis(self, other: "Normal", q: jax.Array) -> jax.Array:
        """`D_q(self || other)` of `Categorical.tsallis`, with densities and integrals; KL at q = 1.

        It is infinite, and NaN is returned, where q < 1 and a variance of self is `1 / (1 - q)` times other's or more.
        """
        return tsallis(self, other, q)

    def log_power(self, other: "Normal", q: jax.Array) -> jax.Array:
        """`log E[p'(x)^(q-1)] / (q-1)` for x from self: a sum over dimensions of Gaussian integrals.

        With `c = q - 1` and `k_i = s_i^2 / s'_i^2`, `E[p'(x)^c]^(1/c) =`
        `prod_i (2 pi s'_i^2)^(-1/2) (1 + c k_i)^(-1/(2c)) exp(-((m_i - m'_i) / s'_i)^2 / (2 (1 + c k_i)))`.
        """
        c = q - 1.0
        k = jnp.exp(2.0 * (self.log_std - other.log_std))
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        spread = jnp.where(c == 0.0, k - 0.5 * c * k**2, jnp.log1p(c * k) / jnp.where(c == 0.0, 1.0, c))
        return jnp.sum(-0.5 * (LOG_2PI + spread + z**2 / (1.0 + c * k)) - other.log_std, axis=-1)


@pytree
class NormalMixture(Plain):
    """`sum_k w_k N(mean_k, std_k)`: several `Normal`s, of which softmax(logits `[..., K]`) chooses one.

    Mean `[..., K, A]`; log_std is broadcast to it.
    """

    logits: jax.Array
    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """`[..., A]`; no gradient goes through the choice."""
        choice_key, noise_key = jax.random.split(key)
        return self._of(Categorical(self.logits).sample(choice_key), self.normals.sample(noise_key))

    def mode(self) -> jax.Array:
        """The mean of the most probable component."""
        return self._of(Categorical(self.logits).mode(), self.mean)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """`log sum_k w_k N(action; mean_k, std_k)`."""
        log_prob = jax.nn.log_softmax(self.logits) + self.normals.log_prob(action[..., None, :])
        return jax.scipy.special.logsumexp(log_prob, axis=-1)

    def entropy(self) -> jax.Array:
        """A lower bound, in nats; the entropy itself has no closed form.

            sum_k w_k H(N_k) - sum_k w_k log sum_j w_j exp(-B_kj),    B the Bhattacharyya distance

        Exact where components are equal or far apart. Source: Kolchinsky and Tracey 2017, arXiv:1706.02419,
        equation 10 with alpha = 1/2.
        """
        log_w = jax.nn.log_softmax(self.logits)
        shape = jnp.broadcast_shapes(jnp.shape(self.log_std), self.mean.shape[-2:])  # not of the batch, for speed
        mean, log_std = self.mean, jnp.broadcast_to(self.log_std, shape)
        log_variance = jnp.logaddexp(2 * log_std[..., :, None, :], 2 * log_std[..., None, :, :])  # of the sum
        z = (mean[..., :, None, :] - mean[..., None, :, :]) * jnp.exp(-0.5 * log_variance)
        spread = log_variance - jnp.log(2.0) - log_std[..., :, None, :] - log_std[..., None, :, :]
        distance = jnp.sum(0.25 * z**2 + 0.5 * spread, axis=-1)
        overlap = jax.scipy.special.logsumexp(log_w[..., None, :] - distance, axis=-1)
        return jnp.sum(jnp.exp(log_w) * (self.normals.entropy() - overlap), axis=-1)

    @property
    def normals(self) -> Normal:
        """The components."""
        return Normal(self.mean, self.log_std)

    def _of(self, component, values):
        chosen = component[..., None] == jnp.arange(self.logits.shape[-1])
        return jnp.sum(jnp.where(chosen[..., None], values, 0.0), axis=-2)


@pytree
class TanhNormal:
    """`tanh(u)` with `u` from `Normal(mean, log_std)`; densities are of the action, but everything takes `u`.

    Actions are handled before the squash, so nothing is ever inverted: `log_prob(u)` stays finite where `tanh(u)`
    rounds to 1. Multiply `tanh(u)` by the action scale and subtract `A log(scale)` for a scaled space.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """The action before the squash, `u`, `[..., A]`, reparameterised."""
        return self.normal.sample(key)

    def squash(self, u: jax.Array) -> jax.Array:
        """`tanh(u)`."""
        return jnp.tanh(u)

    def unsquash(self, action: jax.Array) -> jax.Array:
        """`artanh` of the action, which is kept within 1 - 1e-5."""
        return jnp.arctanh(jnp.clip(action, -1.0 + 1e-5, 1.0 - 1e-5))

    def mode(self) -> jax.Array:
        """The mean of `u`: the squashed median, the usual deterministic action."""
        return self.mean

    def log_prob(self, u: jax.Array) -> jax.Array:
        """`log N(u) - sum_i log(1 - tanh(u_i)^2)`: the density of `tanh(u)`.

        The determinant is `2 (log 2 - u - softplus(-2 u))` a dimension, which neither overflows nor cancels.
        """
        return self.normal.log_prob(u) - jnp.sum(tanh_log_det(u), axis=-1)

    def kl(self, other: "TanhNormal") -> jax.Array:
        """`KL(self || other)`, in nats: that of the normals, because both are squashed alike."""
        return self.normal.kl(other.normal)

    def entropy(self) -> jax.Array:
        """`H(u) + sum_i E[log(1 - tanh(u_i)^2)]`, in nats; the expectation by Gauss-Hermite quadrature of 32 nodes."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        u = self.mean[..., None] + jnp.exp(self.log_std)[..., None] * jnp.asarray(nodes, self.mean.dtype)
        weights = jnp.asarray(weights / weights.sum(), self.mean.dtype)
        return self.normal.entropy() + jnp.sum(tanh_log_det(u) @ weights, axis=-1)

    def tsallis(self, other: "TanhNormal", q: jax.Array) -> jax.Array:
        """`D_q` of the normals, before the squash; that of the actions has no closed form, and is the same at q = 1."""
        return self.normal.tsallis(other.normal, q)

    def log_power(self, other: "TanhNormal", q: jax.Array) -> jax.Array:
        """That of the normals; see `tsallis`."""
        return self.normal.log_power(other.normal, q)

    @property
    def normal(self) -> Normal:
        """The distribution of `u`."""
        return Normal(self.mean, self.log_std)


@pytree
class Beta(Plain):
    """`2 b - 1` with `b` from Beta(alpha, beta): independent dimensions on `[-1, 1]`, alpha and beta `[..., A]`.

    Source: Chou et al. 2017, Improving stochastic policy gradients with the Beta distribution (ICML).
    """

    alpha: jax.Array
    beta: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """`[..., A]`, within 1 - 2e-6 of 0, so that the density stays finite; reparameterised by implicit gradients."""
        return jnp.clip(2.0 * jax.random.beta(key, self.alpha, self.beta) - 1.0, -1.0 + 2e-6, 1.0 - 2e-6)

    def mode(self) -> jax.Array:
        """`(alpha - 1) / (alpha + beta - 2)` on `[0, 1]`, where both are above 1; the mean where they are not."""
        peaked = (self.alpha > 1.0) & (self.beta > 1.0)
        peak = (self.alpha - 1.0) / jnp.where(peaked, self.alpha + self.beta - 2.0, 1.0)
        return 2.0 * jnp.where(peaked, peak, self.alpha / (self.alpha + self.beta)) - 1.0

    def log_prob(self, action: jax.Array) -> jax.Array:
        """`sum_i (alpha_i - 1) log b_i + (beta_i - 1) log(1 - b_i) - log B(alpha_i, beta_i) - log 2`."""
        b = jnp.clip((action + 1.0) / 2.0, 1e-6, 1.0 - 1e-6)
        powers = (self.alpha - 1.0) * jnp.log(b) + (self.beta - 1.0) * jnp.log1p(-b)
        return jnp.sum(powers - betaln(self.alpha, self.beta) - jnp.log(2.0), axis=-1)

    def entropy(self) -> jax.Array:
        """`-E[log p]`, in nats, from the digamma function."""
        return -self._mean_log_prob(self)

    def kl(self, other: "Beta") -> jax.Array:
        """`KL(self || other) = E[log p - log p']`, in nats."""
        return self._mean_log_prob(self) - self._mean_log_prob(other)

    def tsallis(self, other: "Beta", q: jax.Array) -> jax.Array:
        """`D_q(self || other)` of `Categorical.tsallis`, with densities and integrals; KL at q = 1.

        It is infinite, and NaN is returned, where an integral diverges.
        """
        return tsallis(self, other, q)

    def log_power(self, other: "Beta", q: jax.Array) -> jax.Array:
        """`log E[p'(x)^(q-1)] / (q-1)` for x from self: with `c = q - 1`, a sum over dimensions of

        `(log B(a + c (a' - 1), b + c (b' - 1)) - log B(a, b)) / c - log B(a', b') - log 2`.
        """
        c = q - 1.0
        grown = betaln(self.alpha + c * (other.alpha - 1.0), self.beta + c * (other.beta - 1.0))
        power = (grown - betaln(self.alpha, self.beta)) / jnp.where(c == 0.0, 1.0, c)
        power = jnp.sum(power - betaln(other.alpha, other.beta) - jnp.log(2.0), axis=-1)
        return jnp.where(c == 0.0, self._mean_log_prob(other), power)

    def _mean_log_prob(self, other: "Beta") -> jax.Array:
        """`E[log p'(x)]` for x from self."""
        both = digamma(self.alpha + self.beta)
        powers = (other.alpha - 1.0) * (digamma(self.alpha) - both) + (other.beta - 1.0) * (digamma(self.beta) - both)
        return jnp.sum(powers - betaln(other.alpha, other.beta) - jnp.log(2.0), axis=-1)


@pytree
class Joint:
    """Independent distributions of the parts of an action: `parts` is a pytree of them.

    Log-probabilities, entropies and divergences add up. `num_axes` says of each, in the order of the leaves, how many
    axes of its own it has between those of the batch and that of the event: 1 for several choices `[..., k, n]`.
    """

    parts: Any
    num_axes: tuple[int, ...] = static(at_least=0)

    def sample(self, key: jax.Array) -> Any:
        """A draw of each part, with keys of their own."""
        leaves, structure = jax.tree.flatten(self.parts, is_leaf=is_distribution)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(structure, [pi.sample(k) for pi, k in zip(leaves, keys, strict=True)])

    def mode(self) -> Any:
        """The mode of each part."""
        return self._each(lambda pi: pi.mode())

    def squash(self, x: Any) -> Any:
        """Each part in unit coordinates."""
        return self._each(lambda pi, x: pi.squash(x), x)

    def unsquash(self, action: Any) -> Any:
        """What is drawn of each part."""
        return self._each(lambda pi, x: pi.unsquash(x), action)

    def log_prob(self, x: Any) -> jax.Array:
        """The sum over the parts."""
        return self._sum(self._each(lambda pi, x: pi.log_prob(x), x))

    def entropy(self) -> jax.Array:
        """The sum over the parts, in nats."""
        return self._sum(self._each(lambda pi: pi.entropy()))

    def kl(self, other: "Joint") -> jax.Array:
        """`KL(self || other)`: the sum over the parts, in nats."""
        return self._sum(self._each(lambda pi, other: pi.kl(other), other.parts))

    def tsallis(self, other: "Joint", q: jax.Array) -> jax.Array:
        """`D_q(self || other)` of the product of the parts: no sum of theirs, but at q = 1."""
        return tsallis(self, other, q)

    def log_power(self, other: "Joint", q: jax.Array) -> jax.Array:
        """`log E[p'(x)^(q-1)] / (q-1)` for x from self: the sum over the parts."""
        return self._sum(self._each(lambda pi, other: pi.log_power(other, q), other.parts))

    def _each(self, function: Callable, *others: Any) -> Any:
        return jax.tree.map(function, self.parts, *others, is_leaf=is_distribution)

    def _sum(self, values: Any) -> jax.Array:
        leaves = zip(jax.tree.leaves(values), self.num_axes, strict=True)
        return sum(x.sum(axis=tuple(range(-num, 0))) if num else x for x, num in leaves)  # pyright: ignore


def is_distribution(x: Any) -> bool:
    """Whether x is a distribution of one part of an action: trees of them are to be mapped no deeper."""
    return hasattr(x, "log_prob")


def tsallis(p: Any, other: Any, q: jax.Array) -> jax.Array:
    """`D_q(p || other)` from `log_power`: `E_p[log_q p] - q E_p[log_q p'] + (q - 1) E_p'[log_q p']`."""
    own, cross, others = (log_tsallis(a.log_power(b, q), q) for a, b in ((p, p), (p, other), (other, other)))
    return own - q * cross + (q - 1.0) * others


def log_tsallis(log_x: jax.Array, q: jax.Array) -> jax.Array:
    """`log_q x = (x^(q-1) - 1) / (q - 1)` from `log x`, elementwise; `log x` at q = 1."""
    c = q - 1.0
    # The second term is for the gradient in q, at q = 1.
    return jnp.where(c == 0.0, log_x + 0.5 * c * log_x**2, jnp.expm1(c * log_x) / jnp.where(c == 0.0, 1.0, c))


def tanh_log_det(u: jax.Array) -> jax.Array:
    """`log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))`, elementwise."""
    return 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u))


__all__ = ["Beta", "Categorical", "Joint", "Normal", "NormalMixture", "Plain", "TanhNormal"]
__all__ += ["is_distribution", "log_tsallis", "tanh_log_det", "tsallis"]
