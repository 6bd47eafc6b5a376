"""Layers whose weights are drawn anew each time, as exploration that is learned."""

import flax.linen as nn
import jax
import jax.numpy as jnp

NOISE = "noise"  # the name of its random stream


class NoisyDense(nn.Module):
    """`x (W + S_W e_W) + b + S_b e_b`, `[..., features]`, with factorised noise and learned scales S.

        e_W = f(e_in) f(e_out)^T,    e_b = f(e_out),    f(x) = sign(x) sqrt |x|,    e normal

    Noise is drawn where `apply` is given `rngs={"noise": key}`, the same for all rows; without it there is none. All
    scales start at `scale / sqrt(inputs)`.

    Source: Fortunato et al. 2018, Noisy Networks for Exploration, arXiv:1706.10295, equations 9 to 11.
    """

    features: int
    scale: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        num = x.shape[-1]
        start = nn.initializers.constant(self.scale / num**0.5)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (num, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel_scale = self.param("kernel_scale", start, (num, self.features))
        bias_scale = self.param("bias_scale", start, (self.features,))
        if not self.has_rng(NOISE):
            return x @ kernel + bias
        # Drawn as one row: XLA on a CPU takes long over several small draws in a loop.
        drawn = _shaped(jax.random.normal(self.make_rng(NOISE), (num + self.features,)))
        ins, outs = drawn[:num], drawn[num:]
        return x @ (kernel + kernel_scale * ins[:, None] * outs) + bias + bias_scale * outs


def _shaped(x: jax.Array) -> jax.Array:
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x))


__all__ = ["NOISE", "NoisyDense"]
