"""Lanczos against numpy, and the two shares against what they are by chance."""

import jax
import jax.numpy as jnp
import numpy as np

from rlx.curvature import captured, lanczos, overlap, products


def matrix(size, seed=0):
    a = np.random.default_rng(seed).normal(size=(size, size))
    return a + a.T


def test_eigenvalues_are_those_of_numpy():
    with jax.enable_x64(True):
        a = matrix(50)
        values, vectors = lanczos(lambda v: jnp.asarray(a) @ v, 50, 6, jax.random.key(0), num_steps=50)
        expected = sorted(np.linalg.eigvalsh(a), key=abs, reverse=True)[:6]
        np.testing.assert_allclose(values, expected, rtol=1e-8)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(6), atol=1e-8)
        np.testing.assert_allclose(vectors @ a.T, np.asarray(values)[:, None] * np.asarray(vectors), atol=1e-7)


def test_a_few_steps_find_the_largest_of_many():
    with jax.enable_x64(True):
        q, _ = np.linalg.qr(matrix(400))
        spectrum = np.concatenate([[-30.0, 20.0, 10.0], np.linspace(-1, 1, 397)])
        a = jnp.asarray(q * spectrum @ q.T)
        values, _ = lanczos(lambda v: a @ v, 400, 3, jax.random.key(1))
        np.testing.assert_allclose(values, [-30, 20, 10], rtol=1e-6)


def test_products_are_of_the_hessian():
    loss = lambda x: jnp.sum(jnp.sin(x) * x[::-1] ** 2)
    x, v = jax.random.normal(jax.random.key(0), (2, 6))
    np.testing.assert_allclose(products(loss, x)(v), jax.hessian(loss)(x) @ v, rtol=1e-4, atol=1e-5)


def test_shares_are_one_of_everything_and_by_chance_those_of_the_sizes():
    q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(200, 200)))
    gradient = np.random.default_rng(3).normal(size=200)
    np.testing.assert_allclose(captured(q, gradient), 1.0, rtol=1e-5)
    shares = [captured(np.roll(q, i, axis=0)[:20], gradient) for i in range(0, 200, 20)]
    np.testing.assert_allclose(np.mean(shares), 0.1, rtol=1e-5)  # ten bases that are everything together
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(20, 20)))
    np.testing.assert_allclose(overlap(q[:20], turn @ q[:20]), 1.0, rtol=1e-5)
    np.testing.assert_allclose(overlap(q[:20], q[20:40]), 0.0, atol=1e-9)
    other, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(200, 200)))
    np.testing.assert_allclose(overlap(q[:20], other.T[:20]), 0.1, atol=0.03)
