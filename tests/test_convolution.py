"""Convolutions as products: those of JAX, their gradients, and the same parameters."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.networks import convolution
from rlx.networks.convolution import convolve

HOW = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": None}
CASES = [((3, 3), (1, 1), "VALID"), ((3, 3), (1, 1), "SAME"), ((4, 3), (2, 3), "VALID"), ((8, 8), (4, 4), "VALID")]
CASES += [((5, 4), (2, 1), "SAME"), ((3, 2), (2, 2), [(1, 0), (2, 1)])]


@pytest.fixture(params=[1 << 24, 1], ids=["one product", "a product a row"])
def largest(request, monkeypatch):
    monkeypatch.setattr(convolution, "LARGEST", request.param)


@pytest.mark.usefixtures("largest")
@pytest.mark.parametrize(("size", "strides", "padding"), CASES)
def test_a_convolution_is_that_of_jax_and_so_are_its_gradients(size, strides, padding):
    x = jax.random.normal(jax.random.key(0), (3, 12, 11, 2))
    kernel = jax.random.normal(jax.random.key(1), (*size, 2, 5))
    wanted = jax.lax.conv_general_dilated(x, kernel, strides, padding, **HOW)
    weights = jax.random.normal(jax.random.key(2), wanted.shape)
    loss = lambda conv: lambda x, kernel: (weights * conv(x, kernel, strides, padding, **HOW)).sum()
    np.testing.assert_allclose(convolve(x, kernel, strides, padding, **HOW), wanted, rtol=1e-4, atol=1e-4)
    found, other = (jax.grad(loss(conv), (0, 1))(x, kernel) for conv in (convolve, jax.lax.conv_general_dilated))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), found, other)


def test_no_convolution_is_left_in_a_program_for_the_cpu():
    args = jnp.ones((2, 10, 10, 4)), jnp.ones((3, 3, 4, 16))
    assert "conv_general" not in str(jax.make_jaxpr(lambda x, k: convolve(x, k, (1, 1), "VALID", **HOW))(*args))


@pytest.mark.parametrize("how", [{"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}, {"feature_group_count": 2}])
def test_what_is_no_plain_convolution_is_left_to_jax(how):
    x, kernel = jnp.ones((2, 12, 11, 2)), jnp.ones((3, 3, 2 // how.get("feature_group_count", 1), 6))
    args = x, kernel, (1, 1), [(0, 0), (1, 0)]
    np.testing.assert_array_equal(convolve(*args, **HOW, **how), jax.lax.conv_general_dilated(*args, **HOW, **how))


def test_a_layer_has_the_parameters_of_flax_and_its_numbers():
    x = jax.random.normal(jax.random.key(3), (2, 3, 10, 10, 4))  # more axes of a batch
    plain, ours = nn.Conv(7, (3, 3)), nn.Conv(7, (3, 3), conv_general_dilated=convolve)
    params = plain.init(jax.random.key(4), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(4), x), params)
    np.testing.assert_allclose(ours.apply(params, x), plain.apply(params, x), rtol=1e-4, atol=1e-5)


def test_kernels_of_lanes_are_each_their_own():
    x, kernel = (
        jax.random.normal(jax.random.key(5), (4, 2, 6, 6, 3)),
        jax.random.normal(jax.random.key(6), (4, 3, 3, 3, 5)),
    )
    conv = lambda x, k: convolve(x, k, (1, 1), "VALID", **HOW)
    wanted = [jax.lax.conv_general_dilated(*pair, (1, 1), "VALID", **HOW) for pair in zip(x, kernel, strict=True)]
    np.testing.assert_allclose(jax.vmap(conv)(x, kernel), wanted, rtol=1e-4, atol=1e-4)
