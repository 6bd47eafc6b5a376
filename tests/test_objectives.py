"""Objectives against their equations, and the identities that they must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.objectives import (
    approx_kl,
    asymmetric_surrogate,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    kl_adapted,
)

small = settings(derandomize=True, deadline=None, max_examples=50)
log_ratios = st.floats(-3, 3, width=32)
numbers = st.floats(-10, 10, width=32)
clips = st.floats(0, 1, width=32)
# A few float32 operations on numbers up to exp(3) * 10, and their squares.
ROUNDING = {"rtol": 1e-5, "atol": 1e-4}

surrogate_slope = jax.jit(jax.grad(clipped_surrogate))


@small
@given(log_ratios, numbers, clips)
def test_clipped_surrogate_is_the_ratio_times_advantage_minus_a_drift(log_ratio, advantage, clip):
    ratio = np.exp(np.float64(log_ratio))
    clipped = np.clip(ratio, 1 - clip, 1 + clip)
    expected = -(ratio * advantage - max((ratio - clipped) * advantage, 0))
    result = clipped_surrogate(jnp.float32(log_ratio), jnp.float32(advantage), clip)
    np.testing.assert_allclose(result, expected, **ROUNDING)


def test_clipped_surrogate_matches_the_equation_elementwise():
    log_ratio, advantage = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    ratio = np.exp(log_ratio.astype(np.float64))
    expected = -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    np.testing.assert_allclose(clipped_surrogate(log_ratio, advantage, 0.2), expected, rtol=1e-5)


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 1.3), (2.0, 5.0), (-1.0, 0.7), (-2.0, 0.1)])
def test_clipped_surrogate_has_no_gradient_past_the_clip_in_the_good_direction(advantage, ratio):
    assert surrogate_slope(jnp.log(ratio), advantage, 0.2) == 0


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 0.7), (2.0, 0.1), (-1.0, 1.3), (-2.0, 5.0)])
def test_clipped_surrogate_keeps_the_gradient_past_the_clip_in_the_bad_direction(advantage, ratio):
    np.testing.assert_allclose(surrogate_slope(jnp.log(ratio), advantage, 0.2), -ratio * advantage, rtol=1e-5)


@pytest.mark.parametrize("clip", [0.05, 0.2, 1e6])
@pytest.mark.parametrize("advantage", [-2.0, 0.0, 3.0])
def test_clipped_surrogate_at_the_old_policy_is_the_policy_gradient_for_every_clip(clip, advantage):
    np.testing.assert_allclose(surrogate_slope(0.0, advantage, clip), -advantage, rtol=1e-6)


@small
@given(log_ratios, numbers)
def test_clipped_surrogate_without_a_clip_is_the_importance_weighted_advantage(log_ratio, advantage):
    unclipped = clipped_surrogate(jnp.float32(log_ratio), jnp.float32(advantage), 1e6)
    np.testing.assert_allclose(unclipped, -np.exp(np.float64(log_ratio)) * advantage, **ROUNDING)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_a_clip_of_zero_leaves_a_gradient_only_where_the_ratio_moved_the_wrong_way(advantage):
    slopes = {sign: surrogate_slope(0.5 * sign * np.sign(advantage), advantage, 0.0) for sign in (-1, 1)}
    assert slopes[1] == 0
    assert slopes[-1] != 0


def test_a_zero_advantage_has_no_gradient():
    log_ratio = jnp.linspace(-2, 2, 9)
    slope = jax.grad(lambda x: clipped_surrogate(x, jnp.zeros(9), 0.2).sum())(log_ratio)
    np.testing.assert_array_equal(slope, np.zeros(9))


@small
@given(numbers, numbers, numbers, clips)
def test_clipped_value_loss_is_the_larger_of_the_two_squares(value, old, target, clip):
    clipped = old + np.clip(value - old, -clip, clip)
    expected = 0.5 * max((value - target) ** 2, (clipped - target) ** 2)
    result = clipped_value_loss(*map(jnp.float32, (value, old, target, clip)))
    np.testing.assert_allclose(result, expected, **ROUNDING)
    assert result >= 0.5 * (value - target) ** 2 - 1e-4 * (1 + result)


@small
@given(numbers, numbers, st.floats(-1, 1, width=32))
def test_clipped_value_loss_is_the_squared_error_within_the_clip_and_without_one(value, target, change):
    value, target, old = map(jnp.float32, (value, target, value + 0.875 * change))
    expected = 0.5 * (np.float64(value) - np.float64(target)) ** 2
    np.testing.assert_allclose(clipped_value_loss(value, old, target, 1.0), expected, **ROUNDING)
    np.testing.assert_allclose(clipped_value_loss(value, old + 50.0, target, jnp.inf), expected, **ROUNDING)


def test_clipped_value_loss_has_no_gradient_for_a_value_past_the_clip_towards_its_target():
    slope = lambda value, *args: jax.grad(clipped_value_loss)(*map(jnp.float32, (value, *args)))
    assert slope(1.5, 1.0, 5.0, 0.2) == 0
    assert slope(1.5, 1.0, -5.0, 0.2) == 6.5
    assert slope(1.5, 1.0, 5.0, np.inf) == -3.5


@small
@given(st.floats(-20, 20, width=32))
def test_approx_kl_is_never_negative_and_has_its_minimum_at_one(log_ratio):
    result = approx_kl(jnp.float32(log_ratio))
    assert result >= 0
    np.testing.assert_allclose(result, np.expm1(np.float64(log_ratio)) - log_ratio, rtol=1e-5, atol=1e-6)
    assert approx_kl(jnp.float32(0)) == 0


def test_approx_kl_is_unbiased():
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.4, 0.2])
    expectation = np.sum(p * np.asarray(approx_kl(jnp.log(q / p))))
    np.testing.assert_allclose(expectation, np.sum(p * np.log(p / q)), rtol=1e-5)


def test_explained_variance_matches_numpy():
    value, target = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    expected = 1 - np.var(target.astype(np.float64) - value) / np.var(target.astype(np.float64))
    np.testing.assert_allclose(explained_variance(value, target), expected, rtol=1e-5)


def test_explained_variance_of_a_perfect_and_a_constant_critic_and_a_constant_target():
    target = jnp.array([1.0, 2.0, 4.0])
    assert explained_variance(target, target) == 1
    assert explained_variance(jnp.full(3, 7.0), target) == 0
    assert np.isnan(explained_variance(target, jnp.ones(3)))


def test_losses_refuse_a_column_against_a_vector():
    vector, column = jnp.zeros(4), jnp.zeros((4, 1))
    assert clipped_surrogate(vector, vector, 0.2).shape == clipped_value_loss(vector, vector, vector, 0.2).shape == (4,)
    with pytest.raises(AssertionError):
        clipped_surrogate(vector, column, 0.2)
    with pytest.raises(AssertionError):
        clipped_value_loss(vector, vector, column, 0.2)
    with pytest.raises(AssertionError):
        clipped_value_loss(column, vector, vector, 0.2)


asymmetric_slope = jax.jit(jax.grad(asymmetric_surrogate))


@small
@given(log_ratios, numbers)
def test_asymmetric_surrogate_matches_its_equation(log_ratio, advantage):
    ratio = np.exp(np.float64(log_ratio))
    if advantage > 0:
        expected = min(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage)
    else:
        expected = ratio * advantage - abs(advantage) / 0.2 * (ratio - 1) ** 2
    result = asymmetric_surrogate(jnp.float32(log_ratio), jnp.float32(advantage), 0.1)
    np.testing.assert_allclose(result, -expected, rtol=1e-4, atol=1e-4)


def test_asymmetric_surrogate_at_the_old_policy_is_the_policy_gradient():
    advantage = jnp.linspace(-3, 3, 7)
    zero = jnp.zeros(7)
    np.testing.assert_allclose(asymmetric_surrogate(zero, advantage, 0.05), -advantage, rtol=1e-6)
    slope = jax.grad(lambda x: asymmetric_surrogate(x, advantage, 0.05).sum())(zero)
    np.testing.assert_allclose(slope, -advantage, rtol=1e-6)


@pytest.mark.parametrize(("ratio", "sign"), [(1.0, 1), (0.95, 0), (0.9, -1)])
def test_asymmetric_surrogate_pulls_bad_actions_back_to_one_minus_clip(ratio, sign):
    # Positive: descent lowers the ratio. The clip alone has no gradient from 0.95 downwards.
    slope = asymmetric_slope(jnp.log(ratio), -2.0, 0.05)
    assert np.sign(np.round(slope, 4)) == sign
    assert surrogate_slope(jnp.log(0.9), -2.0, 0.05) == 0


@pytest.mark.parametrize("advantage", [-2.0, -0.5])
def test_asymmetric_surrogate_is_smallest_at_one_minus_clip(advantage):
    ratio = np.linspace(0.5, 1.5, 1001)
    values = asymmetric_surrogate(jnp.log(ratio), jnp.full(1001, advantage), 0.1)
    assert abs(ratio[np.argmin(values)] - 0.9) < 2e-3
    np.testing.assert_allclose(values.min(), -(advantage + 0.05 * abs(advantage)), rtol=1e-4)


def test_asymmetric_surrogate_of_good_actions_does_not_overflow():
    log_ratio, advantage = jnp.array([80.0]), jnp.array([1.0])  # the square of exp(80) is beyond float32
    np.testing.assert_allclose(asymmetric_surrogate(log_ratio, advantage, 0.05), -1.05, rtol=1e-6)
    slope = jax.grad(lambda x: asymmetric_surrogate(x, advantage, 0.05).sum())(log_ratio)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.0, 1.5e-3), (0.004, 1.5e-3), (0.006, 1e-3), (0.019, 1e-3), (0.021, 1e-3 / 1.5)]
)
def test_the_learning_rate_follows_the_divergence(kl, expected):
    np.testing.assert_allclose(kl_adapted(1e-3, kl, 0.01), expected, rtol=1e-6)


def test_the_adapted_learning_rate_stays_within_its_bounds():
    np.testing.assert_allclose(kl_adapted(9e-3, 0.0, 0.01), 1e-2, rtol=1e-6)
    np.testing.assert_allclose(kl_adapted(1.2e-6, 1.0, 0.01), 1e-6, rtol=1e-6)
