"""Augmentation of images: `random_shift`. H height, W width, C channels."""

import math

import jax
import jax.numpy as jnp


def random_shift(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """The images `[..., H, W, C]`, each shifted by a random number of pixels along each axis; shape and dtype stay.

        out[h, w] = image[clip(h + dy, 0, H - 1), clip(w + dx, 0, W - 1)],    dy, dx uniform over -pad, ..., pad

    which is a random crop of the image with its edges repeated `pad` times.

    Source: Yarats et al. 2021, arXiv:2107.09645, and Kostrikov et al. 2020, arXiv:2004.13649.

    Args:
        key: draws `dy` and `dx` for each image.
        images: of any dtype, such as uint8.
        pad: the largest shift, in pixels; 0 leaves the images as they are.

    Raises:
        ValueError: for arrays of fewer than three axes, or a `pad` that is no integer of at least 0.
    """
    if images.ndim < 3:
        raise ValueError(f"images of shape {images.shape}: random_shift needs [..., H, W, C]")
    if type(pad) is not int or pad < 0:
        raise ValueError(f"pad = {pad!r}: give an integer of at least 0")
    *batch, height, width, _ = images.shape
    num = math.prod(batch)
    dy, dx = jax.random.randint(key, (2, num, 1), -pad, pad + 1)
    rows = jnp.clip(jnp.arange(height) + dy, 0, height - 1)
    columns = jnp.clip(jnp.arange(width) + dx, 0, width - 1)
    flat = images.reshape(num, *images.shape[-3:])
    return jax.vmap(lambda x, i, j: x[i[:, None], j])(flat, rows, columns).reshape(images.shape)
