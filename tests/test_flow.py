"""Flows: which way time runs, how fast the samplers converge, and what the losses are where they have a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rlx.flow import (
    brownian_residual,
    composed,
    euler,
    interpolate,
    midpoint,
    noise_and_time,
    noise_loss,
    samplewise,
    velocity_loss,
)

SAMPLERS = [euler, midpoint]
MEAN, STD = 0.7, 0.3


def gaussian(x, t):
    """Velocity of the flow to N(0.7, 0.3^2): `E[action - noise | x_t]`."""
    variance = (t * STD) ** 2 + (1 - t) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def backwards(x, t):
    """The velocity of somebody to whom time 0 is the action."""
    return -gaussian(x, 1 - t)


def error(sampler, num_steps, velocity=gaussian):
    """The largest error of actions that begin within two standard deviations; the exact ones are `mean + std noise`."""
    noise = jnp.linspace(-2.0, 2.0, 41)
    return float(jnp.abs(sampler(velocity, noise, num_steps) - (MEAN + STD * noise)).max())


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_time_zero_is_noise_and_time_one_is_the_action():
    noise, action = random(5, 2), random(5, 2, seed=1)
    np.testing.assert_array_equal(interpolate(noise, action, jnp.zeros(5)), noise)
    np.testing.assert_array_equal(interpolate(noise, action, jnp.ones(5)), action)
    # The velocity of the losses is the slope of the path.
    slope = jax.jvp(lambda t: interpolate(noise, action, t), (jnp.full(5, 0.3),), (jnp.ones(5),))[1]
    np.testing.assert_allclose(velocity_loss(slope, noise, action), 0.0, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_run_from_noise_to_the_action(sampler):
    noise = random(1000)
    actions = sampler(gaussian, noise, 50)
    np.testing.assert_allclose([actions.mean(), actions.std()], [MEAN, STD], atol=0.02)
    np.testing.assert_allclose(actions, MEAN + STD * noise, atol=0.05)
    assert error(sampler, 50, backwards) > 0.5


@pytest.mark.parametrize(
    ("sampler", "order", "errors"),
    [
        (euler, 1, {5: 0.200, 10: 0.106, 20: 0.055, 40: 0.028, 80: 0.014}),
        (midpoint, 2, {5: 2.4e-3, 10: 3.6e-4, 20: 4.7e-5}),
    ],
)
def test_errors_of_the_samplers_have_their_order(sampler, order, errors):
    found = {num_steps: error(sampler, num_steps) for num_steps in errors}
    np.testing.assert_allclose(list(found.values()), list(errors.values()), rtol=0.05)
    for num_steps in list(errors)[:-1]:
        # Twice the steps, an error smaller by 2^order, up to what is of higher order.
        assert found[num_steps] / found[2 * num_steps] > 0.9 * 2**order


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_a_constant_velocity_is_added_by_any_number_of_steps(sampler, num_steps):
    noise = random(4, 2)
    moved = sampler(lambda x, t: jnp.array([0.5, -2.0]), noise, num_steps)
    np.testing.assert_allclose(moved, noise + np.array([0.5, -2.0]), rtol=1e-6, atol=1e-6)
    # Velocity 0 is the identity, in every bit.
    np.testing.assert_array_equal(sampler(lambda x, t: jnp.zeros_like(x), noise, num_steps), noise)


def test_the_midpoint_rule_is_exact_where_velocity_is_affine_in_time():
    np.testing.assert_allclose(midpoint(lambda x, t: 3.0 - 4.0 * t, 0.0, 1), 1.0, rtol=1e-6)
    assert abs(euler(lambda x, t: 3.0 - 4.0 * t, 0.0, 1) - 1.0) > 1


@pytest.mark.parametrize(("sampler", "factor"), [(euler, 1.1**10), (midpoint, (1 + 0.1 + 0.005) ** 10)])
def test_ten_steps_of_exponential_growth(sampler, factor):
    np.testing.assert_allclose(sampler(lambda x, t: x, 1.0, 10), factor, rtol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ten_steps_gather_up_to_a_slope_of_twice_their_number_and_spread_beyond(sampler):
    end = lambda slope: abs(float(sampler(lambda x, t: slope * x, 1.0, 10)))  # the exact one is exp(slope)
    assert end(-18.0) < 0.5
    assert end(-22.0) > 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_can_be_differentiated(sampler):
    slope = jax.grad(lambda rate: sampler(lambda x, t: rate * x, 1.0, 4))(0.0)
    np.testing.assert_allclose(slope, 1.0, rtol=1e-6)


def test_matching_losses_match_their_equations():
    velocity, noise, action = random(3, 6, 2, 4)
    t = np.random.default_rng(3).uniform(size=(6, 2)).astype(np.float32)
    x = (1 - t[..., None]) * noise + t[..., None] * action
    np.testing.assert_allclose(interpolate(noise, action, t), x, rtol=1e-6, atol=1e-6)
    expected = np.square(velocity - (action - noise)).mean(-1)
    np.testing.assert_allclose(velocity_loss(velocity, noise, action), expected, rtol=1e-5)
    # The noise that the velocity implies: where one gets from x_t in time t, backwards.
    implied = x - t[..., None] * velocity
    np.testing.assert_allclose(noise_loss(velocity, noise, x, t), np.square(implied - noise).mean(-1), rtol=1e-5)
    # Cancellation in x - noise, against terms of order 1.
    np.testing.assert_allclose(noise_loss(velocity, noise, x, t), t**2 * expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_learned_of_the_noise_at_time_zero():
    noise, velocity = random(2, 5, 3)
    loss = lambda velocity: noise_loss(velocity, noise, noise, jnp.zeros(5)).sum()
    value, slope = jax.value_and_grad(loss)(velocity)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_losses_of_a_flow_that_stands_still():
    noise, action = random(2, 40_000, 2)
    t = np.repeat(np.arange(10) / 10, 4000).astype(np.float32)
    still = np.zeros_like(noise)
    # Means of 40000 numbers with a standard deviation of 2: four standard errors are 0.04.
    np.testing.assert_allclose(velocity_loss(still, noise, action).mean(), 2.0, atol=0.04)
    loss = noise_loss(still, noise, interpolate(noise, action, t), t).mean()
    np.testing.assert_allclose(loss, 2 * np.mean((np.arange(10) / 10) ** 2), atol=0.04)  # 0.57


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_least_loss_of_a_gaussian_is_the_variance_of_its_velocity(t):
    noise, data = random(2, 200_000)
    action = MEAN + STD * data
    x = interpolate(noise[:, None], action[:, None], jnp.full(len(noise), t))
    losses = velocity_loss(gaussian(x, t), noise[:, None], action[:, None])
    expected = 1 + STD**2 - (t * STD**2 - (1 - t)) ** 2 / ((t * STD) ** 2 + (1 - t) ** 2)
    # Squares of normals: the standard deviation of the mean is sqrt(2 / 200000) of it; four of them.
    np.testing.assert_allclose(losses.mean(), expected, rtol=0.013)
    worse = velocity_loss(gaussian(x, t) + 0.3, noise[:, None], action[:, None]).mean()
    np.testing.assert_allclose(worse, expected + 0.09, rtol=0.02)


@pytest.fixture(scope="module")
def draws():
    key_data = jax.random.key_data(jax.random.split(jax.random.key(0), 500))
    return key_data, jax.jit(lambda data: noise_and_time(data, 8, 2, 10))(key_data)


def test_noise_is_standard_normal_and_times_are_those_of_the_sampler(draws):
    _, (noise, t) = draws
    assert noise.shape == (500, 8, 2)
    assert t.shape == (500, 8)
    seen = []
    euler(lambda x, t: seen.append(t) or jnp.zeros_like(x), jnp.zeros(1), 10)  # traced: what is evaluated is i / 10
    assert len(seen) == 1
    np.testing.assert_allclose(np.unique(t), np.arange(10) / 10, atol=1e-7)
    assert scipy.stats.chisquare(np.unique(t, return_counts=True)[1]).pvalue > 1e-3
    assert scipy.stats.kstest(np.ravel(noise), "norm").pvalue > 1e-3
    # Four standard errors of a zero correlation.
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 4 / np.sqrt(4000)
    assert abs(np.corrcoef(noise[..., 0].ravel(), np.ravel(t))[0, 1]) < 4 / np.sqrt(4000)


def test_the_same_key_data_give_the_same_draws_in_any_batch(draws):
    key_data, (noise, t) = draws
    again = noise_and_time(key_data[::7], 8, 2, 10)
    np.testing.assert_array_equal(again[0], noise[::7])
    np.testing.assert_array_equal(again[1], t[::7])
    assert len(np.unique(np.asarray(noise).reshape(500, -1), axis=0)) == 500


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_losses_and_gradients_of_samples_are_those_of_each(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    noise, t = jax.random.normal(jax.random.key(0), (5, 3, 2)), jax.random.uniform(jax.random.key(1), (5, 3))
    weight, scale = jnp.array([0.5, -2.0]), jnp.arange(1.0, 6.0)  # of the closure, and one for each element
    found, slope = jax.value_and_grad(lambda w: samplewise(lambda n, t: scale * t * jnp.tanh(n @ w), noise, t).sum())(
        weight
    )
    n, u, k = np.asarray(noise, np.float64), np.asarray(t, np.float64), np.arange(1.0, 6.0)[:, None]
    np.testing.assert_allclose(found, (k * u * np.tanh(n @ weight)).sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, np.einsum("bs,bsa->a", k * u / np.cosh(n @ weight) ** 2, n), rtol=1e-5)
    each = samplewise(lambda n, t: scale * t * jnp.tanh(n @ weight), noise, t)
    np.testing.assert_allclose(each, k * u * np.tanh(n @ weight), rtol=1e-5, atol=1e-6)


def test_the_brownian_residual_is_the_velocity_plus_the_score():
    x, t = random(50), np.linspace(0.02, 0.98, 50).astype(np.float32)
    velocity = random(50, seed=1)
    score = -(x - t * MEAN) / ((t * STD) ** 2 + (1 - t) ** 2)  # of N(t mean, t^2 std^2 + (1 - t)^2)
    residual = brownian_residual(velocity[:, None], gaussian(x, t)[:, None], x[:, None], t)[:, 0]
    np.testing.assert_allclose(residual, (1 - t) * (velocity + score), rtol=1e-4, atol=1e-4)
    spreading = brownian_residual(-score[:, None], gaussian(x, t)[:, None], x[:, None], t)
    np.testing.assert_allclose(spreading, 0, atol=1e-5)


def test_the_brownian_residual_of_the_reference_itself():
    velocity, x = random(2, 6, 3)
    t = np.linspace(0, 1, 6).astype(np.float32)
    np.testing.assert_allclose(brownian_residual(velocity, velocity, x, t), velocity - x, rtol=1e-5, atol=1e-6)
    # Its square has the slope 2 (1 - t) (v - x): none at the action, and v = x is the fixed point.
    penalty = lambda v: jnp.sum(brownian_residual(v, velocity, x, t) ** 2)
    expected = 2 * (1 - t[:, None]) * (velocity - x)
    np.testing.assert_allclose(jax.grad(penalty)(velocity), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(brownian_residual(x, x, x, t)[jnp.array([0, -1])], 0)
    np.testing.assert_allclose(brownian_residual(x, x, x, t), 0, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_two_normals_compose_to_the_one_in_between(weight):
    """Velocities of normals of one variance differ by a function of time, so the flow ends at the mean in between."""

    def to(mean):
        return lambda x, t: mean + (t * STD**2 - (1 - t)) / ((t * STD) ** 2 + (1 - t) ** 2) * (x - t * mean)

    x = jnp.linspace(-2, 2, 41)
    end = euler(composed(to(-0.5), to(1.5), weight), x, 400)
    expected = euler(to(-0.5 + 2.0 * weight), x, 400)
    np.testing.assert_allclose(end, expected, atol=1e-4)
