"""Convolutions as products of matrices, for the CPU."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

LARGEST = 1 << 24  # elements of the patches of a batch; of more, the rows of the kernel take a product each


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **how: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated` of images `[B, H, W, C]` and a kernel `[h, w, C, F]`: `[B, H', W', F]`.

        out[b, i, j] = sum_{m, n} x[b, s i + m, s j + n] kernel[m, n]

    On a CPU it is a product of patches and the kernel. XLA has fast convolutions there outside of loops only
    (https://github.com/jax-ml/jax/issues/12868): in one, such as a `scan` over minibatches, and for kernels that a
    `vmap` has several of, the gradient of a small one took 8 to 30 times as long (jaxlib 0.10.2). Sums are in another
    order, so bits are not those of the convolution. It goes where `flax.linen.Conv` takes `conv_general_dilated`.

    Args:
        x: the images.
        kernel: the weights.
        strides: s, of height and width.
        padding: "VALID", "SAME", or as `jax.lax.conv_general_dilated` takes it.
        how: its other arguments; anything beyond a plain convolution is left to it.
    """
    plain = all(step == 1 for name in ("lhs_dilation", "rhs_dilation") for step in how.get(name) or ())
    if jax.default_backend() != "cpu" or not plain or how.get("feature_group_count", 1) != 1 or x.ndim != 4:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **how)
    size, product = kernel.shape[:2], partial(jnp.matmul, precision=how.get("precision"))
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    down, right = strides
    height, width = ((x.shape[1 + i] - size[i]) // strides[i] + 1 for i in range(2))
    rows = jnp.concatenate([x[:, :, n : n + right * width : right] for n in range(size[1])], axis=-1)
    parts = [rows[:, m : m + down * height : down] for m in range(size[0])]
    kernel = kernel.reshape(size[0], -1, kernel.shape[-1])
    if size[0] * parts[0].size > LARGEST:
        return jnp.stack([product(part, weights) for part, weights in zip(parts, kernel, strict=True)]).sum(axis=0)
    return product(jnp.concatenate(parts, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


__all__ = ["convolve"]
