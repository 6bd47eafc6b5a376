"""Random shifts of images: where pixels come from, and how the shifts are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.augment import random_shift


def crops(image, pad):
    """All crops of the image with its edges repeated, by the corner `[dy, dx]`: `[2 pad + 1, 2 pad + 1, H, W, C]`."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    corners = range(2 * pad + 1)
    return np.array([[padded[y : y + height, x : x + width] for x in corners] for y in corners])


def images(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize(("shape", "pad"), [((30, 5, 7, 3), 2), ((30, 3, 2, 1), 4), ((30, 6, 6, 2), 1)])
def test_a_shift_is_a_crop_of_the_image_with_its_edges_repeated(shape, pad):
    given = images(*shape)
    shifted = np.asarray(random_shift(jax.random.key(0), jnp.array(given), pad))
    for image, out in zip(given, shifted, strict=True):
        assert (crops(image, pad) == out).all(axis=(2, 3, 4)).any()
    assert any((image != out).any() for image, out in zip(given, shifted, strict=True))


def test_shifts_are_uniform_and_each_image_has_its_own():
    image, pad, num = images(6, 6, 1), 1, 9000
    shifted = np.asarray(random_shift(jax.random.key(1), jnp.broadcast_to(image, (num, 6, 6, 1)), pad))
    counts = [[(shifted == crop).all(axis=(1, 2, 3)).sum() for crop in row] for row in crops(image, pad)]
    assert np.sum(counts) == num
    np.testing.assert_allclose(counts, num / 9, atol=4 * np.sqrt(num * 1 / 9 * 8 / 9))  # four standard errors


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_shape_and_dtype_stay_and_leading_axes_are_images_of_their_own(dtype):
    given = jnp.array(images(2, 3, 4, 5, 2, dtype=dtype))
    shifted = random_shift(jax.random.key(0), given, 2)
    assert shifted.dtype == dtype
    flat = random_shift(jax.random.key(0), given.reshape(6, 4, 5, 2), 2)
    np.testing.assert_array_equal(shifted, flat.reshape(given.shape))
    assert random_shift(jax.random.key(0), given[0, 0]).shape == (4, 5, 2)


def test_nothing_is_shifted_by_a_pad_of_0_and_a_key_gives_the_same_under_jit():
    given = jnp.array(images(4, 5, 5, 1))
    np.testing.assert_array_equal(random_shift(jax.random.key(0), given, 0), given)
    key = jax.random.key(3)
    np.testing.assert_array_equal(jax.jit(random_shift)(key, given), random_shift(key, given))


@pytest.mark.parametrize(
    ("shape", "pad", "message"), [((5, 5), 4, "needs"), ((5, 5, 1), -1, "pad = -1"), ((5, 5, 1), 1.0, "pad = 1.0")]
)
def test_bad_images_and_pads_are_refused(shape, pad, message):
    with pytest.raises(ValueError, match=message):
        random_shift(jax.random.key(0), jnp.zeros(shape), pad)
