"""Objectives against their equations, and the identities that they must satisfy."""

import dataclasses
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import rlx
from rlx import replace
from rlx.algos import ppo
from rlx.distributions import Categorical
from rlx.objectives import (
    AWR,
    DPO,
    SPO,
    Clip,
    ClipHigher,
    Elements,
    ForwardKL,
    ImportanceWeighted,
    ReverseKL,
    Rollback,
    adapted_coef,
    approx_kl,
    asymmetric_surrogate,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    importance_weighted,
    k1,
    k2,
    k3,
    kl_adapted,
    penalized,
    reverse_kl,
    weighted_likelihood,
)

EXACT = True  # bits are compared

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
    assert explained_variance(target, jnp.ones(3)) == 0  # a number: a NaN would stop a program under debug_nans


def test_losses_refuse_a_column_against_a_vector():
    vector, column = jnp.zeros(4), jnp.zeros((4, 1))
    assert clipped_surrogate(vector, vector, 0.2).shape == clipped_value_loss(vector, vector, vector, 0.2).shape == (4,)
    with pytest.raises(AssertionError):
        clipped_surrogate(vector, column, 0.2)
    with pytest.raises(AssertionError):
        clipped_value_loss(vector, vector, column, 0.2)
    with pytest.raises(AssertionError):
        clipped_value_loss(column, vector, vector, 0.2)


def clip_drift(rho, a, low, high):
    return max(0.0, (rho - np.clip(rho, 1 - low, 1 + high)) * a)


def discovered_drift(rho, a):
    u, scale = ((rho - 1) * a, 2.0) if a >= 0 else (a * np.log(rho), 0.6)
    return max(0.0, u - scale * np.tanh(u / scale))


def adaptive(kl, coef, target):
    return coef * (1 + kl / target) * kl


# Every objective with its drift f(rho, A) as the papers have it; the loss is -(rho A - f).
DRIFTS = {
    ImportanceWeighted(): lambda rho, a: 0.0,
    Clip(0.2): lambda rho, a: clip_drift(rho, a, 0.2, 0.2),
    ClipHigher(0.2, 0.28): lambda rho, a: clip_drift(rho, a, 0.2, 0.28),
    Rollback(0.2, 0.3): lambda rho, a: 1.3 * clip_drift(rho, a, 0.2, 0.2),
    SPO(0.2): lambda rho, a: abs(a) * (rho - 1) ** 2 / 0.4,
    DPO(): discovered_drift,
    ForwardKL(0.7): lambda rho, a: 0.7 * (rho - 1 - np.log(rho)),
    ReverseKL(0.7): lambda rho, a: 0.7 * (rho * np.log(rho) - rho + 1),
    ForwardKL(0.7, 0.1): lambda rho, a: adaptive(rho - 1 - np.log(rho), 0.7, 0.1),
    ReverseKL(0.7, 0.1): lambda rho, a: adaptive(rho * np.log(rho) - rho + 1, 0.7, 0.1),
}
FIXED = [objective for objective in DRIFTS if getattr(objective, "kl_target", np.inf) == np.inf]
each_objective = pytest.mark.parametrize("objective", DRIFTS, ids=str)
loss = jax.jit(lambda objective, *given: objective(None, Elements(*given), 0.0))
slope = jax.jit(jax.grad(lambda objective, *given: objective(None, Elements(*given), 0.0), argnums=1))


@each_objective
@small
@given(log_ratio=log_ratios, advantage=numbers)
def test_an_objective_is_the_ratio_times_advantage_minus_its_drift(objective, log_ratio, advantage):
    with jax.enable_x64(True):
        result = loss(objective, jnp.float64(log_ratio), jnp.float64(advantage))
    ratio = np.exp(log_ratio)
    np.testing.assert_allclose(result, -(ratio * advantage - DRIFTS[objective](ratio, advantage)), rtol=1e-9, atol=1e-9)


@each_objective
@small
@given(log_ratio=st.floats(-7, 7), advantage=numbers)
def test_a_drift_is_never_negative_and_flat_where_the_policies_agree(objective, log_ratio, advantage):
    with jax.enable_x64(True):
        drift = float(loss(objective, jnp.float64(log_ratio), jnp.float64(advantage))) + np.exp(log_ratio) * advantage
        value, flat = (float(f(objective, jnp.float64(0), jnp.float64(advantage))) for f in (loss, slope))
    # Differences of numbers up to exp(7) * 10, and of order 1, in float64.
    assert drift >= -1e-11
    np.testing.assert_allclose([value, flat], -advantage, rtol=0, atol=1e-14)


@pytest.mark.parametrize("objective", FIXED, ids=str)
@small
@given(log_ratio=log_ratios, advantage=numbers)
def test_the_slope_of_an_objective_is_that_of_its_equation(objective, log_ratio, advantage):
    assume(min(abs(log_ratio - np.log([0.8, 1.0, 1.2, 1.28]))) > 1e-3)  # kinks
    equation = lambda x: -(np.exp(x) * advantage - DRIFTS[objective](np.exp(x), advantage))
    expected = (equation(log_ratio + 1e-6) - equation(log_ratio - 1e-6)) / 2e-6
    with jax.enable_x64(True):
        result = slope(objective, jnp.float64(log_ratio), jnp.float64(advantage))
    # Central differences: 1e-16 of numbers up to 1e4 over 1e-6, and a step squared.
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_objectives_treat_every_element_alike_and_refuse_a_column():
    rng = np.random.default_rng(0)
    log_ratio, advantage = rng.normal(size=(2, 6, 4)).astype(np.float32)
    for objective in DRIFTS:
        with pytest.raises(AssertionError):
            loss(objective, log_ratio[:, 0], advantage[:, :1])
        result = loss(objective, log_ratio, advantage)
        assert result.shape == (6, 4)
        if objective in FIXED:
            drifts = np.vectorize(DRIFTS[objective])(np.exp(log_ratio), advantage)
            expected = -(np.exp(log_ratio) * advantage - drifts)
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@each_objective
def test_every_coefficient_is_a_leaf_that_changes_the_result(objective):
    log_ratio, advantage = jnp.array([-1.0, -0.3, 0.4, 1.1] * 2), jnp.array([2.0] * 4 + [-1.0] * 4)
    names = [field.name for field in dataclasses.fields(objective)]
    assert len(jax.tree.leaves(objective)) == len(names)
    before = loss(objective, log_ratio, advantage).mean()
    for name in names:
        value = getattr(objective, name)
        changed = replace(objective, **{name: 1.5 * value if np.isfinite(value) else 1.0})
        assert abs(loss(changed, log_ratio, advantage).mean() - before) > 1e-3


def test_an_infinite_or_vanishing_scale_turns_the_discovered_drift_off_or_into_a_clip_at_one():
    log_ratio, advantage = jnp.array([-1.0, 1.0, -1.0, 1.0]), jnp.array([2.0, 2.0, -2.0, -2.0])
    free, tight = DPO(1e6, 1e6), DPO(1e-6, 1e-6)
    linear = importance_weighted(log_ratio, advantage)
    np.testing.assert_allclose(loss(free, log_ratio, advantage), linear, rtol=1e-5)
    # rho A for A >= 0 and rho <= 1, and A past it; for A < 0 the argument is A log rho, which is 2 at log rho = -1.
    expected = np.where([False, True, True, False], np.array([0, -2.0, linear[2] + 2.0, 0]), linear)
    np.testing.assert_allclose(loss(tight, log_ratio, advantage), expected, rtol=1e-5)


def test_the_discovered_drift_rolls_back_for_bad_actions_only():
    slopes = lambda log_ratio, advantage: jax.vmap(slope, (None, 0, None))(DPO(), log_ratio, advantage)
    # The loss falls when the ratio is raised again: tanh(log(0.3) / 0.6)^2 = 0.93 > 0.3.
    assert slope(DPO(), jnp.log(0.3), -1.0) < 0
    # Rounding of a difference of numbers of order 100.
    assert (slopes(jnp.log(jnp.linspace(1.0, 50.0, 100)), 3.0) < 1e-4).all()


def test_the_best_ratio_of_the_quadratic_penalty_is_one_plus_epsilon_towards_the_advantage():
    for advantage in (-3.0, 2.0):
        best = jnp.log(1 + 0.2 * np.sign(advantage))
        assert abs(slope(SPO(0.2), best, advantage)) < 1e-5
        np.testing.assert_allclose(loss(SPO(0.2), best, advantage), -(advantage + abs(advantage) * 0.1), rtol=1e-5)


def test_a_rollback_of_slope_zero_is_a_clip_and_equal_bounds_are_one():
    log_ratio, advantage = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    clip = loss(Clip(0.2), log_ratio, advantage)
    np.testing.assert_allclose(loss(Rollback(0.2, 0.0), log_ratio, advantage), clip, rtol=1e-6)
    np.testing.assert_array_equal(loss(ClipHigher(0.2, 0.2), log_ratio, advantage), clip)
    np.testing.assert_array_equal(clipped_surrogate(log_ratio, advantage, 0.2), clip)


P, Q = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)


def gradients(estimator, learned):
    """Mean over samples from q of the gradient in the logits of `learned`, by enumeration."""

    def mean(logits):
        log_p, log_q = jax.nn.log_softmax(P), jax.nn.log_softmax(Q)
        if learned == "p":
            log_p = jax.nn.log_softmax(logits)
        else:
            log_q = jax.nn.log_softmax(logits)
        return jnp.sum(jax.nn.softmax(Q) * estimator(log_p - log_q))

    return jax.grad(mean)(P if learned == "p" else Q)


FORWARD = lambda p, q: Categorical(q).kl(Categorical(p))  # KL(q || p)
BACKWARD = lambda p, q: Categorical(p).kl(Categorical(q))


@pytest.mark.parametrize(
    ("estimator", "learned", "divergence"),
    [
        (k1, "p", FORWARD),
        (k3, "p", FORWARD),
        (reverse_kl, "p", BACKWARD),
        (k1, "q", lambda p, q: 0.0 * q.sum()),
        (k2, "q", FORWARD),
        (k3, "q", BACKWARD),
    ],
)
def test_the_gradients_of_kl_estimators_are_those_documented(estimator, learned, divergence):
    expected = jax.grad(divergence, argnums="pq".index(learned))(P, Q)
    np.testing.assert_allclose(gradients(estimator, learned), expected, rtol=1e-4, atol=1e-6)


def test_the_values_of_kl_estimators():
    p, q = (np.exp(x - np.log(np.exp(x).sum())) for x in (P.astype(np.float64), Q.astype(np.float64)))
    log_ratio = np.log(p / q).astype(np.float32)
    mean = lambda estimator: np.sum(q * np.asarray(estimator(log_ratio)))
    forward, backward = np.sum(q * np.log(q / p)), np.sum(p * np.log(p / q))
    np.testing.assert_allclose([mean(k1), mean(k3), mean(reverse_kl)], [forward, forward, backward], rtol=1e-4)
    np.testing.assert_allclose(mean(k2), np.sum(q * np.log(p / q) ** 2 / 2), rtol=1e-4)


@small
@given(st.floats(-10, 10, width=32))
def test_reverse_kl_is_never_negative_and_zero_at_one(log_ratio):
    result = reverse_kl(jnp.float32(log_ratio))
    # Of a difference of two float32 numbers of this size, where the result is small.
    assert result >= -1e-6
    np.testing.assert_allclose(result, np.exp(np.float64(log_ratio)) * log_ratio - np.expm1(log_ratio), **ROUNDING)
    assert reverse_kl(jnp.float32(0)) == 0


def test_the_coefficient_of_a_penalty_answers_the_divergence_of_the_batch():
    log_ratio, advantage, kl = jnp.array([0.1, -0.2]), jnp.array([1.0, 2.0]), jnp.array([0.01, 0.05])
    linear = importance_weighted(log_ratio, advantage)
    np.testing.assert_allclose(penalized(log_ratio, advantage, kl, 3.0, jnp.inf), linear + 3 * kl, rtol=1e-6)
    np.testing.assert_allclose(penalized(log_ratio, advantage, kl, 3.0, 0.03), linear + 6 * kl, rtol=1e-6)
    with_kl = lambda kl: penalized(log_ratio, advantage, kl, 3.0, 0.015).mean()
    squared = lambda kl: (linear + 3.0 * (kl.mean() + kl.mean() ** 2 / 0.03)).mean()
    np.testing.assert_allclose(jax.grad(with_kl)(kl), jax.grad(squared)(kl), rtol=1e-6)


def test_the_coefficient_adapts_between_updates_by_factors_of_two():
    kl = jnp.array([0.0, 0.0066, 0.0067, 0.01, 0.0149, 0.0151, 1.0])
    np.testing.assert_array_equal(adapted_coef(3.0, kl, 0.01), [1.5, 1.5, 3, 3, 3, 6, 6])


def test_a_loop_over_updates_can_carry_an_objective_that_adapts(ppo, small_run):
    """The KL of an update comes near its target from a coefficient far too small and from one far too large."""
    config, env, state = small_run

    @jax.jit
    def run(state, objective):
        def update(carry, _):
            state, objective = carry
            state, metrics = ppo.update(config, env, state, objective=objective)
            coef = adapted_coef(objective.kl_coef, metrics["approx_kl"], 0.01)
            return (state, replace(objective, kl_coef=coef)), (metrics["approx_kl"], coef)

        return jax.lax.scan(update, (state, objective), length=30)[1]

    for coef in (1e-3, 1e3):
        kl, coefs = run(state, ForwardKL(jnp.float32(coef)))
        assert not 0.01 / 1.5 < kl[0] < 0.01 * 1.5
        assert coefs[0] == (2 * coef if kl[0] > 0.01 else coef / 2)
        # A rule that answers by factors of two to the noise of 64 samples: it hovers around the target.
        assert 0.01 / 4 < np.exp(np.log(kl[-15:]).mean()) < 0.01 * 4


@pytest.fixture(scope="module")
def small_run(ppo, small, cartpole, init):
    config = replace(small, total_steps=30 * 64, anneal_learning_rate=False, num_epochs=8)
    return config, cartpole, init(config, cartpole, jax.random.key(0))


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


@small
@given(log_ratio=log_ratios, advantage=numbers)
def test_weighted_likelihood_matches_its_equation(log_ratio, advantage):
    result = weighted_likelihood(jnp.float32(log_ratio), jnp.float32(advantage), 0.7, 5.0)
    wanted = -min(np.exp(advantage / 0.7), 5.0) * log_ratio
    np.testing.assert_allclose(result, wanted, **ROUNDING)


def test_weighted_likelihood_has_the_slope_of_its_weight_wherever_the_policy_is():
    grad = jax.vmap(jax.grad(weighted_likelihood), (0, None, None, None))
    np.testing.assert_allclose(grad(jnp.array([-2.0, 0.0, 2.0]), jnp.float32(1.5), 0.5, 100.0), -np.exp(3.0), rtol=1e-5)
    np.testing.assert_allclose(
        grad(jnp.array([-2.0, 0.0, 2.0]), jnp.float32(1e30), 0.5, 20.0), -20.0, rtol=1e-5
    )  # no overflow


def test_weighted_likelihood_clones_what_was_done_as_the_temperature_grows():
    """The gradient in logits is that of the likelihood of the actions taken, whatever their advantages."""
    logits, advantage = jax.random.normal(jax.random.key(0), (2, 6))
    action = jnp.array([0, 3, 3, 5, 1, 0])
    log_prob = lambda logits: Categorical(jnp.broadcast_to(logits, (6, 6))).log_prob(action)
    cloned = jax.grad(lambda x: -log_prob(x).mean())(logits)
    acted = log_prob(0.3 * logits)
    awr = lambda x, t: weighted_likelihood(log_prob(x) - acted, advantage, t, 20.0).mean()
    np.testing.assert_allclose(jax.grad(awr)(logits, jnp.inf), cloned, atol=1e-6)
    np.testing.assert_allclose(jax.grad(awr)(logits, 1e6), cloned, atol=1e-5)
    assert np.abs(jax.grad(awr)(logits, 1.0) - cloned).max() > 0.01


def test_awr_has_its_coefficients_as_leaves():
    log_ratio, advantage = jnp.array([-1.0, 0.5, 1.0]), jnp.array([2.0, -1.0, 40.0])
    found = AWR(0.5, 7.0)(None, Elements(log_ratio, advantage), 0.0)
    np.testing.assert_allclose(found, weighted_likelihood(log_ratio, advantage, 0.5, 7.0))
    assert jax.tree.leaves(AWR(0.5, 7.0)) == [0.5, 7.0]
    with pytest.raises(AssertionError):
        weighted_likelihood(log_ratio[:, None], advantage, 1.0, 20.0)


def test_what_an_objective_sees_costs_nothing():
    """The program of PPO is the one of a loss that calls the clipped surrogate itself."""
    seen = "objective(config, Elements(log_ratio, advantage, log_prob), progress)"
    source = Path(ppo.__file__).read_text()
    assert source.count(seen) == 1
    direct = ModuleType("direct")
    exec(source.replace(seen, "clipped_surrogate(log_ratio, advantage, config.clip)"), vars(direct))
    env, key = rlx.envs.make("CartPole-v1"), jax.random.key(0)

    def program(algorithm):
        config = algorithm.Config(num_envs=4, num_steps=8, num_minibatches=2, hidden_sizes=(8,))
        state = jax.eval_shape(partial(algorithm.init, config, env), key)
        return jax.jit(partial(algorithm.update, config, env)).lower(state).as_text()

    assert program(direct) == program(ppo)
