"""Action distributions. The event is the last axis; every method returns one number per remaining position."""

import jax
import jax.numpy as jnp

from rlx.pytree import pytree

LOG_2PI = 1.8378770664093453


@pytree
class Categorical:
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
        own, others = log_tsallis(log_p, q), log_tsallis(log_q, q)
        return jnp.sum(jnp.exp(log_p) * (own - q * others) + (q - 1.0) * jnp.exp(log_q) * others, axis=-1)


@pytree
class Normal:
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
        own, cross, others = (p._mean_log(r, q) for p, r in ((self, self), (self, other), (other, other)))
        return own - q * cross + (q - 1.0) * others

    def _mean_log(self, other: "Normal", q: jax.Array) -> jax.Array:
        """`E[log_q p'(x)]` for x from self: `log_tsallis` of a product over dimensions of Gaussian integrals.

        With `c = q - 1` and `k_i = s_i^2 / s'_i^2`, `E[p'(x)^c]^(1/c) =`
        `prod_i (2 pi s'_i^2)^(-1/2) (1 + c k_i)^(-1/(2c)) exp(-((m_i - m'_i) / s'_i)^2 / (2 (1 + c k_i)))`.
        """
        c = q - 1.0
        k = jnp.exp(2.0 * (self.log_std - other.log_std))
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        spread = jnp.where(c == 0.0, k - 0.5 * c * k**2, jnp.log1p(c * k) / jnp.where(c == 0.0, 1.0, c))
        return log_tsallis(jnp.sum(-0.5 * (LOG_2PI + spread + z**2 / (1.0 + c * k)) - other.log_std, axis=-1), q)


@pytree
class NormalMixture:
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
        return Normal(self.mean, self.log_std).sample(key)

    def mode(self) -> jax.Array:
        """The mean of `u`: the squashed median, the usual deterministic action."""
        return self.mean

    def log_prob(self, u: jax.Array) -> jax.Array:
        """`log N(u) - sum_i log(1 - tanh(u_i)^2)`: the density of `tanh(u)`.

        The determinant is `2 (log 2 - u - softplus(-2 u))` a dimension, which neither overflows nor cancels.
        """
        return Normal(self.mean, self.log_std).log_prob(u) - jnp.sum(tanh_log_det(u), axis=-1)

    def kl(self, other: "TanhNormal") -> jax.Array:
        """`KL(self || other)`, in nats: that of the normals, because both are squashed alike."""
        return Normal(self.mean, self.log_std).kl(Normal(other.mean, other.log_std))


def log_tsallis(log_x: jax.Array, q: jax.Array) -> jax.Array:
    """`log_q x = (x^(q-1) - 1) / (q - 1)` from `log x`, elementwise; `log x` at q = 1."""
    c = q - 1.0
    # The second term is for the gradient in q, at q = 1.
    return jnp.where(c == 0.0, log_x + 0.5 * c * log_x**2, jnp.expm1(c * log_x) / jnp.where(c == 0.0, 1.0, c))


def tanh_log_det(u: jax.Array) -> jax.Array:
    """`log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))`, elementwise."""
    return 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u))


__all__ = ["Categorical", "Normal", "NormalMixture", "TanhNormal", "log_tsallis", "tanh_log_det"]
