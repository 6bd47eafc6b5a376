"""Batch renormalisation: its equation, its limits, and when its statistics follow."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlx.networks import BatchRenorm, batch_renorm

x = 2.0 + 3.0 * jax.random.normal(jax.random.key(0), (64, 4))
mean, variance = jnp.array([0.0, 2.0, 30.0, 2.0]), jnp.array([1.0, 9.0, 9.0, 1e-4])


def test_it_is_its_equation():
    y, own_mean, own_variance = batch_renorm(x, mean, variance, (3.0, 5.0))
    a, m, v = (np.asarray(z, np.float64) for z in (x, mean, variance))
    own, running = np.sqrt(a.var(0) + 1e-3), np.sqrt(v + 1e-3)
    r, d = np.clip(own / running, 1 / 3, 3), np.clip((a.mean(0) - m) / running, -5, 5)
    np.testing.assert_allclose(y, (a - a.mean(0)) / own * r + d, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own_mean, a.mean(0), rtol=1e-5)
    np.testing.assert_allclose(own_variance, a.var(0), rtol=1e-5)
    assert r[3] == 3
    assert d[2] == -5


def test_without_bounds_it_goes_by_the_running_statistics_and_with_the_tightest_by_the_batch():
    free, *_ = batch_renorm(x, mean, variance, (jnp.inf, jnp.inf))
    np.testing.assert_allclose(free, (x - mean) / jnp.sqrt(variance + 1e-3), rtol=1e-3, atol=1e-3)
    tight, *_ = batch_renorm(x, mean, variance, (1.0, 0.0))
    norm = nn.BatchNorm(use_running_average=False, epsilon=1e-3)
    expected, _ = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")
    np.testing.assert_allclose(tight, expected, rtol=1e-3, atol=1e-4)


def test_no_gradient_goes_through_what_draws_it_to_the_running_statistics():
    """So the gradient is that of batch normalisation, times r."""
    y = lambda bounds: jax.vjp(lambda x: batch_renorm(x, mean, variance, bounds)[0], x)[1](jnp.cos(x))[0]
    r = jnp.clip(jnp.sqrt(x.var(0) + 1e-3) / jnp.sqrt(variance + 1e-3), 1 / 3, 3)
    np.testing.assert_allclose(y((3.0, 5.0)), y((1.0, 0.0)) * r, rtol=1e-3, atol=1e-5)


def test_statistics_follow_where_they_may_change_and_are_used_where_not():
    norm = BatchRenorm(momentum=0.9, warmup=1)
    variables = norm.init(jax.random.key(0), x[0])
    assert variables["stats"]["count"] == 0
    first, after = norm.apply(variables, x, mutable="stats")
    np.testing.assert_allclose(first, batch_renorm(x, jnp.zeros(4), jnp.ones(4), (1.0, 0.0))[0], rtol=1e-4, atol=1e-5)
    stats = after["stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats["variance"], 0.9 + 0.1 * x.var(0), rtol=1e-4)
    # The second batch is drawn to them as they were before it.
    second, _ = norm.apply({**variables, "stats": stats}, x, mutable="stats")
    expected, *_ = batch_renorm(x, stats["mean"], stats["variance"], (3.0, 5.0))
    np.testing.assert_allclose(second, expected, rtol=1e-4, atol=1e-5)
    used = norm.apply({**variables, "stats": stats}, x[:3])
    np.testing.assert_allclose(used, (x[:3] - stats["mean"]) / jnp.sqrt(stats["variance"] + 1e-3), rtol=1e-4)
