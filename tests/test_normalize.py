"""Running statistics against one numpy mean and variance over everything, and reward scaling against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.normalize import Statistics, normalize, reward_scale, scale_rewards, statistics, update_statistics

small = settings(derandomize=True, deadline=None, max_examples=20)
# Running sums of a few hundred float32 numbers of order 1.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def batches(seed, sizes, shape=(3,)):
    rng = np.random.default_rng(seed)
    return [(rng.normal(2.0, 3.0, size=(n, *shape)) + i).astype(np.float32) for i, n in enumerate(sizes)]


def update_all(stats, chunks):
    for chunk in chunks:
        stats = update_statistics(stats, jnp.asarray(chunk))
    return stats


def assert_statistics_of(stats, data):
    data = data.astype(np.float64)
    np.testing.assert_allclose(stats.mean, data.mean(axis=0), **ROUNDING)
    np.testing.assert_allclose(stats.variance, data.var(axis=0), **ROUNDING)
    assert stats.count == len(data)


@small
@given(st.integers(0, 2**16), st.lists(st.sampled_from([1, 2, 5, 16]), min_size=1, max_size=8))
def test_statistics_do_not_depend_on_how_the_data_is_split(seed, sizes):
    chunks = batches(seed, sizes)
    assert_statistics_of(update_all(statistics((3,)), chunks), np.concatenate(chunks))


def test_all_leading_axes_are_pooled_and_features_are_not():
    data = batches(0, [24], (2, 3))[0]
    stats = update_statistics(statistics((2, 3)), jnp.asarray(data.reshape(4, 6, 2, 3)))
    assert stats.mean.shape == stats.variance.shape == (2, 3)
    assert_statistics_of(stats, data)


def test_what_is_left_out_does_not_count():
    data, where = batches(0, [24])[0], np.random.default_rng(0).random(24) < 0.5
    junk = np.where(where[:, None], data, np.float32(np.nan)).reshape(4, 6, 3)
    stats = update_statistics(statistics((3,)), jnp.asarray(junk), jnp.asarray(where.reshape(4, 6)))
    assert_statistics_of(stats, data[where])


def test_scalar_statistics_pool_everything():
    data = batches(0, [24], ())[0]
    assert_statistics_of(update_statistics(statistics(), jnp.asarray(data.reshape(4, 6))), data)


def test_statistics_refuse_features_of_another_shape():
    with pytest.raises(AssertionError):
        update_statistics(statistics((3,)), jnp.zeros((8, 4)))
    with pytest.raises(AssertionError):
        update_statistics(statistics((2, 3)), jnp.zeros((8, 1, 3)))


def test_the_variance_does_not_shrink_with_the_number_of_updates():
    chunks = batches(0, [16]) * 200
    stats = update_all(statistics((3,)), chunks)
    np.testing.assert_allclose(stats.variance, chunks[0].astype(np.float64).var(axis=0), rtol=1e-3)


def test_a_large_mean_does_not_drown_the_variance():
    chunks = [c + np.float32(1e4) for c in batches(0, [64, 64])]
    stats = update_all(statistics((3,)), chunks)
    # float32 keeps 1e-3 of a number near 1e4.
    np.testing.assert_allclose(stats.variance, np.concatenate(chunks).astype(np.float64).var(axis=0), rtol=1e-2)


def test_a_constant_feature_has_variance_zero_and_normalizes_to_zero():
    stats = update_statistics(statistics((2,)), jnp.full((8, 2), 5.0))
    np.testing.assert_array_equal(stats.variance, 0)
    np.testing.assert_array_equal(normalize(stats, jnp.full((3, 2), 5.0)), 0)


def test_integer_observations_are_accepted():
    assert_statistics_of(update_statistics(statistics((2,)), jnp.arange(8).reshape(4, 2)), np.arange(8).reshape(4, 2))


def test_normalize_before_any_data_is_the_identity():
    x = jnp.linspace(-9, 9, 12).reshape(4, 3)
    # The variance is 1, and 1 + 1e-8 is 1 in float32.
    np.testing.assert_array_equal(normalize(statistics((3,)), x), x)


def test_normalized_data_has_mean_zero_and_variance_one():
    data = batches(0, [200])[0]
    result = normalize(update_statistics(statistics((3,)), jnp.asarray(data)), data)
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(result, (data - data.mean(0)) / data.std(0), rtol=1e-3, atol=1e-5)


def test_normalize_clips():
    stats = Statistics(jnp.zeros(1), jnp.ones(1), jnp.float32(10))
    np.testing.assert_array_equal(normalize(stats, jnp.array([[-50.0], [50.0]])), [[-10.0], [10.0]])
    np.testing.assert_array_equal(normalize(stats, jnp.array([[-50.0], [0.5]]), limit=1.0), [[-1.0], [0.5]])


def rewards(seed, num_steps, num_envs=3):
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 2.0, size=(num_steps, num_envs)).astype(np.float32), rng.random((num_steps, num_envs)) < 0.2


def scale_loop(chunks, gamma):
    """Scaled rewards of each chunk by the equation, with plain running sums."""
    discounted, seen, results = np.zeros(chunks[0][0].shape[1]), [], []
    for reward, done in chunks:
        for t in range(len(reward)):
            discounted = reward[t] + gamma * discounted
            seen.append(discounted.copy())
            discounted[done[t]] = 0
        results.append(np.clip(reward / np.sqrt(np.var(seen) + 1e-8), -10, 10))
    return discounted, results


@small
@given(st.integers(0, 2**16), st.floats(0, 1, width=32))
def test_scaled_rewards_match_the_loop_across_rollouts(seed, gamma):
    chunks = [rewards(seed + i, 8) for i in range(3)]
    discounted, expected = scale_loop(chunks, gamma)
    scale = reward_scale(3)
    for (reward, done), result in zip(chunks, expected, strict=True):
        scale, scaled = scale_rewards(scale, reward, done, gamma)
        np.testing.assert_allclose(scaled, result, **ROUNDING)
    np.testing.assert_allclose(scale.discounted, discounted, **ROUNDING)


def test_the_reward_scale_pools_environments_but_keeps_a_return_for_each():
    scale, _ = scale_rewards(reward_scale(3), *rewards(0, 8), 0.9)
    assert scale.discounted.shape == (3,)
    assert scale.stats.variance.shape == ()
    assert scale.stats.count == 24


def test_the_terminal_reward_counts_in_its_own_episode_only():
    reward = jnp.array([[1.0], [5.0], [1.0]])
    scale, _ = scale_rewards(reward_scale(1), reward, jnp.array([[False], [True], [False]]), 0.5)
    assert scale.discounted == 1.0
    np.testing.assert_allclose(scale.stats.mean, np.mean([1.0, 5.5, 1.0]), rtol=1e-6)


def test_scaling_keeps_the_signs_of_rewards():
    reward, done = rewards(0, 16)
    _, scaled = scale_rewards(reward_scale(3), reward, done, 0.9)
    np.testing.assert_array_equal(np.sign(scaled), np.sign(reward))
    ratios = np.asarray(scaled) / reward
    np.testing.assert_allclose(ratios, ratios[0, 0], rtol=1e-5)


def test_scaled_rewards_do_not_depend_on_the_unit_of_rewards():
    reward, done = rewards(0, 16)
    _, scaled = scale_rewards(reward_scale(3), reward, done, 0.9)
    _, other = scale_rewards(reward_scale(3), 1000 * reward, done, 0.9)
    np.testing.assert_allclose(scaled, other, rtol=1e-4)


def test_scaled_rewards_are_clipped():
    reward = jnp.ones((16, 1)).at[0].set(1000.0)
    _, scaled = scale_rewards(reward_scale(1), reward, jnp.ones((16, 1), bool), 0.9, limit=0.5)
    np.testing.assert_array_equal(scaled[0], 0.5)
    assert (scaled[1:] < 0.5).all()


def test_scale_rewards_refuses_flags_that_would_broadcast():
    with pytest.raises(AssertionError):
        scale_rewards(reward_scale(3), jnp.zeros((8, 3)), jnp.zeros((8, 1), bool), 0.9)
    with pytest.raises(AssertionError):
        scale_rewards(reward_scale(3), jnp.zeros(8), jnp.zeros(8, bool), 0.9)


def test_statistics_can_be_vmapped_over_runs():
    chunks = np.stack(batches(0, [16, 16]))
    stats = jax.vmap(lambda chunk: update_statistics(statistics((3,)), chunk))(jnp.asarray(chunks))
    np.testing.assert_allclose(stats.mean, chunks.mean(axis=1), **ROUNDING)
