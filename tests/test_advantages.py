"""Advantages against a loop over the equation, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.advantages import gae, standardize

T, N = 7, 3
small = settings(derandomize=True, deadline=None, max_examples=30)
seeds = st.integers(0, 2**16)
units = st.floats(0, 1, width=32)
# Sums of at most seven float32 terms of order 1.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}

compiled = jax.jit(gae)


def problem(seed, ends=True):
    """Random rewards, values and flags; without episode ends each successor is the next step's state."""
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, T, N)).astype(np.float32)
    terminated = ends & (rng.random((T, N)) < 0.2)
    truncated = ends & (rng.random((T, N)) < 0.2) & ~terminated
    done = terminated | truncated
    next_value[:-1] = np.where(done[:-1], next_value[:-1], value[1:])
    return reward, value, next_value, terminated, done


def loop(reward, value, next_value, terminated, done, gamma, gae_lambda):
    advantage = np.zeros((T + 1, N))
    for t in reversed(range(T)):
        for n in range(N):
            delta = float(reward[t, n]) - value[t, n]
            if not terminated[t, n]:
                delta += gamma * next_value[t, n]
            advantage[t, n] = delta
            if not done[t, n]:
                advantage[t, n] += gamma * gae_lambda * advantage[t + 1, n]
    return advantage[:T]


@small
@given(seeds, units, units)
def test_gae_is_the_loop_over_its_equation(seed, gamma, gae_lambda):
    data = problem(seed)
    np.testing.assert_allclose(compiled(*data, gamma, gae_lambda), loop(*data, gamma, gae_lambda), **ROUNDING)


@small
@given(seeds, units)
def test_gae_with_lambda_one_is_the_monte_carlo_return_minus_the_value(seed, gamma):
    reward, value, next_value, *flags = problem(seed, ends=False)
    expected = np.zeros((T, N))
    for t in range(T):
        discounts = gamma ** np.arange(T - t)
        expected[t] = discounts @ reward[t:] + gamma ** (T - t) * next_value[-1] - value[t]
    np.testing.assert_allclose(compiled(reward, value, next_value, *flags, gamma, 1.0), expected, **ROUNDING)


@small
@given(seeds, units)
def test_gae_with_lambda_zero_is_the_temporal_difference(seed, gamma):
    reward, value, next_value, terminated, done = problem(seed)
    expected = reward + gamma * (1 - terminated) * next_value - value
    np.testing.assert_allclose(compiled(reward, value, next_value, terminated, done, gamma, 0.0), expected, **ROUNDING)


@small
@given(seeds, units)
def test_gae_with_gamma_zero_is_the_reward_minus_the_value(seed, gae_lambda):
    reward, value, *rest = problem(seed)
    np.testing.assert_allclose(compiled(reward, value, *rest, 0.0, gae_lambda), reward - value, **ROUNDING)


@small
@given(seeds, units, units)
def test_gae_of_exact_values_is_zero(seed, gamma, gae_lambda):
    reward, _, next_value, terminated, done = problem(seed)
    value = np.zeros((T, N), np.float32)
    for t in reversed(range(T)):
        if t < T - 1:
            next_value[t] = np.where(done[t], next_value[t], value[t + 1])
        value[t] = reward[t] + gamma * (1 - terminated[t]) * next_value[t]
    np.testing.assert_allclose(compiled(reward, value, next_value, terminated, done, gamma, gae_lambda), 0, atol=1e-5)


@small
@given(seeds, units, units)
def test_gae_equals_the_form_that_adds_the_bootstrap_to_the_reward(seed, gamma, gae_lambda):
    reward, value, next_value, terminated, done = problem(seed)
    augmented = reward + gamma * (done & ~terminated) * next_value
    ended = compiled(augmented.astype(np.float32), value, next_value, done, done, gamma, gae_lambda)
    result = compiled(reward, value, next_value, terminated, done, gamma, gae_lambda)
    np.testing.assert_allclose(result, ended, **ROUNDING)


def one_end(terminated):
    """Data with a single episode end, at step 3 of every environment."""
    reward, value, next_value, *_ = problem(5, ends=False)
    done = np.zeros((T, N), bool)
    done[3] = True
    return reward, value, next_value, done & terminated, done


@pytest.mark.parametrize("terminated", [True, False])
def test_gae_before_an_end_does_not_depend_on_what_follows_it(terminated):
    reward, value, next_value, terminal, done = one_end(terminated)
    before = compiled(reward, value, next_value, terminal, done, 0.9, 0.95)
    changed = [x.copy() for x in (reward, value, next_value)]
    for x in changed:
        x[4:] += 100.0
    after = compiled(*changed, terminal, done, 0.9, 0.95)
    np.testing.assert_array_equal(after[:4], before[:4])
    assert not np.allclose(after[4:], before[4:])


def test_gae_does_not_bootstrap_at_termination():
    reward, value, next_value, terminal, done = one_end(terminated=True)
    before = compiled(reward, value, next_value, terminal, done, 0.9, 0.95)
    next_value = next_value.copy()
    next_value[3] = np.nan  # a terminal state has no value: not even a broken one may count
    np.testing.assert_array_equal(compiled(reward, value, next_value, terminal, done, 0.9, 0.95), before)


def test_gae_bootstraps_at_truncation():
    reward, value, next_value, terminal, done = one_end(terminated=False)
    slope = jax.jacobian(lambda v: gae(reward, value, v, terminal, done, 0.9, 0.95))(jnp.asarray(next_value))
    decay = 0.9 * 0.95
    for n in range(N):
        # dA_t / dV(s'_3) = gamma (gamma lambda)^(3 - t) up to the cut, 0 after it.
        expected = [0.9 * decay ** (3 - t) if t <= 3 else 0 for t in range(T)]
        np.testing.assert_allclose(slope[:, n, 3, n], expected, rtol=1e-5)
        np.testing.assert_array_equal(slope[:, n, 3, [m for m in range(N) if m != n]], 0)


def brax(reward, value, next_value, terminated, gamma, gae_lambda):
    """Brax's `compute_gae` without truncation: its advantages, which lack a factor lambda, and its value targets."""
    delta = reward + gamma * (1 - terminated) * next_value - value
    traces = np.zeros((T + 1, N))
    for t in reversed(range(T)):
        traces[t] = delta[t] + gamma * gae_lambda * (1 - terminated[t]) * traces[t + 1]
    return delta + gamma * (1 - terminated) * traces[1:], traces[:-1] + value


@pytest.mark.parametrize("gae_lambda", [0.5, 0.95, 1.0])
def test_gae_has_the_factor_lambda_that_brax_lacks(gae_lambda):
    reward, value, next_value, terminated, _ = problem(2)
    next_value[:-1] = np.where(terminated[:-1], next_value[:-1], value[1:])
    result = compiled(reward, value, next_value, terminated, terminated, 0.9, gae_lambda)
    advantage, target = brax(reward, value, next_value, terminated, 0.9, gae_lambda)
    np.testing.assert_allclose(result, target - value, **ROUNDING)
    assert np.allclose(result, advantage, **ROUNDING) == (gae_lambda == 1.0)


@small
@given(seeds, st.floats(0.125, 100, width=32))
def test_standardized_gae_does_not_depend_on_the_scale_of_rewards(seed, scale):
    reward, value, next_value, *flags = problem(seed)
    result = compiled(reward, value, next_value, *flags, 0.9, 0.95)
    scaled = compiled(*(np.float32(scale) * x for x in (reward, value, next_value)), *flags, 0.9, 0.95)
    np.testing.assert_allclose(scaled, scale * result, rtol=1e-4, atol=1e-5 * scale)
    # The 1e-8 beside a standard deviation of at least 0.1, and rounding.
    np.testing.assert_allclose(standardize(scaled), standardize(result), rtol=1e-4, atol=1e-5)


def test_gae_can_be_vmapped_over_gamma_and_lambda():
    data, gammas, lambdas = problem(1), jnp.array([0.9, 0.99]), jnp.array([0.95, 0.5])
    results = jax.vmap(lambda g, x: gae(*data, g, x))(gammas, lambdas)
    for i in range(2):
        np.testing.assert_allclose(results[i], loop(*data, float(gammas[i]), float(lambdas[i])), **ROUNDING)


@pytest.mark.parametrize("wrong", range(5))
@pytest.mark.parametrize("shape", [(T, 1), (T, N, 1), (T + 1, N), (N,)])
def test_gae_refuses_shapes_that_would_broadcast(wrong, shape):
    data = list(problem(0))
    data[wrong] = np.zeros(shape, data[wrong].dtype)
    with pytest.raises(AssertionError):
        gae(*data, 0.9, 0.95)


def test_gae_refuses_data_without_an_environment_axis():
    with pytest.raises(AssertionError):
        gae(*(x[:, 0] for x in problem(0)), 0.9, 0.95)


def test_standardize_gives_mean_zero_and_variance_one():
    x = 5 + 3 * np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    result = standardize(x)
    np.testing.assert_allclose([result.mean(), result.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(result, (x - x.mean()) / x.std(), rtol=1e-4, atol=1e-5)


def test_standardize_measures_by_chosen_elements_alone():
    x, chosen = jnp.array([1.0, 3.0, 1e6, 5.0]), jnp.array([True, True, False, True])
    np.testing.assert_allclose(standardize(x, where=chosen)[chosen], standardize(x[chosen]), rtol=1e-6)
    np.testing.assert_allclose(standardize(x, where=chosen)[2], (1e6 - 3.0) / np.std([1.0, 3.0, 5.0]), rtol=1e-5)
    np.testing.assert_allclose(standardize(x, where=~chosen & chosen), standardize(x), rtol=1e-6)


def test_standardize_of_a_constant_is_zero():
    np.testing.assert_array_equal(standardize(jnp.full(4, 3.0)), 0)
