"""Population-based training: who copies whom, and how settings are perturbed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.sweeps import exploit, explore

KEYS = jax.random.split(jax.random.key(0), 500)


@pytest.mark.parametrize(("num", "fraction", "cut"), [(10, 0.2, 2), (4, 0.2, 1), (8, 0.5, 4), (2, 0.1, 1)])
def test_the_lowest_copy_random_ones_of_the_highest(num, fraction, cut):
    scores = np.random.default_rng(0).permutation(num).astype(np.float32)
    order = np.argsort(scores)
    parents = np.asarray(jax.vmap(lambda key: exploit(key, jnp.asarray(scores), fraction))(KEYS))
    for member in range(num):
        expected = set(order[-cut:]) if member in order[:cut] else {member}
        assert set(parents[:, member]) == expected  # in 500 draws every one of at most 4 comes up


def test_equal_scores_copy_nothing():
    assert exploit(jax.random.key(0), jnp.ones(6)).tolist() == list(range(6))


def test_members_without_a_score_copy_and_are_not_copied():
    scores = jnp.array([jnp.nan, 1.0, 2.0, jnp.nan, 0.0])
    parents = exploit(jax.random.key(0), scores, 0.4)
    assert set(parents[jnp.array([0, 3])].tolist()) <= {1, 2}
    assert parents[jnp.array([1, 2, 4])].tolist() == [1, 2, 4]
    assert exploit(jax.random.key(0), jnp.full(4, jnp.nan)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("num", "fraction"), [(1, 0.2), (10, 0.0), (10, 0.6)])
def test_populations_that_cannot_be_cut(num, fraction):
    with pytest.raises(ValueError, match="at least 2 members and a fraction"):
        exploit(jax.random.key(0), jnp.arange(num), fraction)


def test_values_go_up_or_down_by_a_fifth_and_stay_in_range():
    values = jax.vmap(lambda key: explore(key, jnp.array([1e-3, 1.1e-2, 1e-5]), 1e-5, 1.2e-2))(KEYS)
    assert {round(float(v), 9) for v in values[:, 0]} == {round(1e-3 * 1.2, 9), round(1e-3 / 1.2, 9)}
    assert float(values[:, 1].max()) == np.float32(1.2e-2)
    assert float(values[:, 2].min()) == np.float32(1e-5)
    assert abs(float((values[:, 0] > 1e-3).mean()) - 0.5) < 4 * 0.5 / np.sqrt(500)


def test_a_narrow_range_is_crossed_in_five_steps():
    low, high = 0.9, 0.99
    values = jnp.float32(low)
    up = next(key for key in KEYS if explore(key, values, low, high) > low)
    for i in range(1, 6):
        values = explore(up, values, low, high)
        np.testing.assert_allclose(values, low * (high / low) ** (i / 5), rtol=1e-6)


def test_a_range_from_zero_uses_the_factor():
    values = {round(float(v), 6) for v in jax.vmap(lambda key: explore(key, jnp.float32(0.5), 0.0, 1.0))(KEYS)}
    assert values == {0.6, round(0.5 / 1.2, 6)}
