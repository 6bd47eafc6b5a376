"""Diffusion: schedules against their tables and identities, the chain, its likelihood, clipping by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.diffusion import (
    add_noise,
    clean,
    cosine_betas,
    ddim,
    ddpm,
    denoise,
    denoised_mean,
    mean_log_prob,
    shifted,
    step_clips,
)

# By K, in the order t = 0, ..., K - 1: computed apart from this code, to six decimals.
TABLES = {
    1: {"beta": ".999", "sigma": "0", "c1": "1", "c2": "0", "scale": "31.622777", "noise": "31.606961"},
    2: {"beta": ".506156 .999", "sigma": "0 .711267", "c1": "1 .702384", "c2": "0 .016014"},
    5: {
        "beta": ".101294 .279544 .473635 .724052 .999",
        "sigma": "0 .283416 .503280 .725834 .951385",
        "c1": "1 .751749 .578157 .466573 .306391",
        "c2": "0 .243894 .387988 .382224 .028651",
    },
    10: {
        "beta": ".027907 .075494 .124396 .177190 .237282 .309883 .404003 .536998 .743829 .999",
        "sigma": "0 .144219 .243172 .327271 .406521 .487794 .578098 .687273 .830970 .987399",
        "c1": "1 .734819 .553418 .445877 .377217 .330356 .295971 .267143 .233740 .155064",
        "c2": "0 .264904 .444811 .548310 .608252 .637874 .638617 .598518 .469853 .030862",
        "noise": ".169436 .335725 .520377 .737871 1.01239 1.390751 1.980697 3.10373 6.364592 203.732741",
    },
    20: {
        "sigma": "0 .07583 .12324 .16168 .19515 .22571 .25459 .28267 .31066 .33921 .36898 .40073 .43544 .47438 .51942 "
        ".57344 .64118 .73098 .85726 .99647"
    },
}


@pytest.mark.parametrize("num_steps", TABLES)
def test_the_schedule_is_that_of_the_table(num_steps):
    schedule = ddpm(num_steps)
    parts = {"sigma": schedule.std, "c1": schedule.from_clean, "c2": schedule.from_noisy}
    parts |= {"scale": schedule.scale, "noise": schedule.noise}
    parts = {name: part[::-1] for name, part in parts.items()} | {"beta": cosine_betas(num_steps)}
    for name, row in TABLES[num_steps].items():
        expected = np.array(row.split(), float)
        np.testing.assert_allclose(parts[name], expected, rtol=2e-6, atol=6e-6, err_msg=name)
    np.testing.assert_array_equal(schedule.time, np.arange(num_steps)[::-1])


@given(st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_the_schedule_keeps_the_marginals_of_the_noise(num_steps):
    """c1 + c2 sqrt(abar) = sqrt(abar') and c2^2 (1 - abar) + std^2 = 1 - abar'."""
    schedule = ddpm(num_steps)
    abar = np.cumprod(1 - cosine_betas(num_steps))[::-1]
    after = np.append(abar[1:], 1.0)
    c1, c2, std = (np.asarray(x, np.float64) for x in (schedule.from_clean, schedule.from_noisy, schedule.std))
    np.testing.assert_allclose(c1 + c2 * np.sqrt(abar), np.sqrt(after), atol=1e-6)
    np.testing.assert_allclose(c2**2 * (1 - abar) + std**2, 1 - after, atol=1e-6)


def test_ddpm_is_the_posterior_of_its_paper():
    """Equations 6 and 7 of arXiv:2006.11239, beside the form of DDIM that it is computed by."""
    beta = cosine_betas(7)
    abar = np.cumprod(1 - beta)
    before = np.append(1.0, abar[:-1])
    schedule = ddpm(7)
    np.testing.assert_allclose(schedule.std[::-1], np.sqrt(beta * (1 - before) / (1 - abar)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(schedule.from_clean[::-1], beta * np.sqrt(before) / (1 - abar), rtol=1e-5)
    expected = (1 - before) * np.sqrt(1 - beta) / (1 - abar)
    np.testing.assert_allclose(schedule.from_noisy[::-1], expected, rtol=1e-4, atol=1e-7)


def test_ddim_visits_some_steps_and_is_deterministic_without_eta():
    schedule = ddim(100, 5, eta=0.0)
    np.testing.assert_array_equal(schedule.time, [80, 60, 40, 20, 0])
    np.testing.assert_array_equal(schedule.std, 0.0)
    abar = np.cumprod(1 - cosine_betas(100))[[80, 60, 40, 20, 0]]
    after = np.append(abar[1:], 1.0)
    x, x0 = 0.7, -0.2
    noise = (x - np.sqrt(abar) * x0) / np.sqrt(1 - abar)  # recomputed from the clean action
    expected = np.sqrt(after) * x0 + np.sqrt(1 - after) * noise
    np.testing.assert_allclose(schedule.from_clean * x0 + schedule.from_noisy * x, expected, rtol=1e-4, atol=1e-6)


def test_half_the_noise_of_ddim_is_between():
    none, half, full = (ddim(8, 4, eta) for eta in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(half.std, 0.5 * full.std, rtol=1e-6)
    assert jnp.all(none.from_noisy[:-1] > half.from_noisy[:-1])
    assert jnp.all(half.from_noisy[:-1] > full.from_noisy[:-1])


@pytest.mark.parametrize("num_visited", [0, 9])
def test_more_steps_than_there_are_cannot_be_visited(num_visited):
    with pytest.raises(ValueError, match="between 1 and 8 can be visited"):
        ddim(8, num_visited, 1.0)


def test_a_chain_that_knows_the_action_ends_there_and_has_its_marginals_on_the_way():
    """With the noise that the action a implies, x_t ~ N(sqrt(abar_{t-1}) a, 1 - abar_{t-1}) after step t."""
    num_steps, num, a = 10, 20_000, 0.4
    schedule, abar = ddpm(num_steps), jnp.asarray(np.cumprod(1 - cosine_betas(num_steps)), jnp.float32)
    predict = lambda x, t: (x - jnp.sqrt(abar[t]) * a) / jnp.sqrt(1 - abar[t])
    start_key, key = jax.random.split(jax.random.key(0))
    x = jnp.sqrt(abar[-1]) * a + jnp.sqrt(1 - abar[-1]) * jax.random.normal(start_key, (num, 1))
    noise = jax.random.normal(key, (num_steps, num, 1))
    end, chain = denoise(schedule, predict, x, noise, jnp.zeros(num_steps))
    np.testing.assert_allclose(end, a, atol=1e-5)
    after = np.append(abar[::-1][1:], 1.0)
    # Four standard errors.
    np.testing.assert_allclose(chain[1:].mean(axis=(1, 2)), np.sqrt(after) * a, atol=4 / num**0.5)
    np.testing.assert_allclose(chain[1:].var(axis=(1, 2)), 1 - after, atol=4 * (2 / num) ** 0.5)
    assert chain.shape == (num_steps + 1, num, 1)
    np.testing.assert_array_equal(chain[0], x)
    np.testing.assert_array_equal(chain[-1], end)


def test_the_last_step_is_the_clean_action():
    schedule = ddpm(6)
    last = jax.tree.map(lambda x: x[-1], schedule)
    x, noise = jnp.array([0.3, -2.0, 5.0]), jnp.array([0.1, 0.2, -0.4])
    np.testing.assert_allclose(denoised_mean(last, x, noise), clean(last, x, noise), rtol=1e-6)
    np.testing.assert_array_equal(clean(last, x, noise)[1:], [-1.0, 1.0])


def test_the_likelihood_of_a_chain_is_that_of_the_noise_that_made_it():
    """log p = -n^2 (s / s')^2 / 2 - log s' - log(2 pi) / 2, drawn with s and judged by s'."""
    schedule, rng = ddpm(4), np.random.default_rng(0)
    x, noise = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), jnp.asarray(rng.normal(size=(4, 3, 2)), jnp.float32)
    predict = lambda x, t: 0.3 * x + 0.1 * t
    _, chain = denoise(schedule, predict, x, noise, jnp.full(4, 0.2))
    steps = jax.tree.map(lambda x: x[:, None, None], schedule)
    predicted = jax.vmap(predict)(chain[:-1], schedule.time)
    drawn, judged = np.maximum(schedule.std, 0.2), np.maximum(schedule.std, 0.5)
    deviation = chain[1:] - denoised_mean(steps, chain[:-1], predicted)
    found = mean_log_prob(deviation, jnp.asarray(judged)[:, None], low=-np.inf, high=np.inf)
    ratio = (drawn / judged)[:, None, None]
    each = -0.5 * (np.asarray(noise) * ratio) ** 2 - np.log(judged)[:, None, None] - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found, each.mean(-1), rtol=1e-4, atol=1e-4)
    clipped = mean_log_prob(deviation, jnp.asarray(judged)[:, None], low=-1.0, high=-0.5)
    np.testing.assert_allclose(clipped, np.clip(each, -1.0, -0.5).mean(-1), rtol=1e-4, atol=1e-4)


def test_what_noise_leaves_of_an_action_is_denoised_to_it():
    x, noise = jnp.array([[0.5, -0.3]] * 4), jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    t = jnp.array([0, 1, 3, 5])
    noisy = add_noise(8, x, noise, t)
    schedule = ddpm(8)
    steps = jax.tree.map(lambda part: part[::-1][t][:, None], schedule)
    np.testing.assert_allclose(clean(steps, noisy, noise), x, atol=1e-5)
    abar = np.cumprod(1 - cosine_betas(8))[3]
    np.testing.assert_allclose(noisy[2], np.sqrt(abar) * x[2] + np.sqrt(1 - abar) * noise[2], rtol=1e-5)


def test_clips_grow_exponentially_to_the_last_step():
    found = step_clips(10, 0.001, 0.01, 3.0)
    expected = [0.001, 0.001187, 0.001447, 0.00181, 0.002317, 0.003025, 0.004013, 0.005391, 0.007315, 0.01]
    np.testing.assert_allclose(found, expected, atol=6e-7)
    np.testing.assert_allclose(step_clips(4, 0.1, 0.1, 3.0), 0.1, rtol=1e-6)
    np.testing.assert_allclose(step_clips(1, 0.001, 0.01, 3.0), [0.01])


def test_a_shifted_chunk_goes_on_with_its_last_action():
    chunk = jnp.arange(10.0).reshape(1, 5, 2)
    np.testing.assert_array_equal(shifted(chunk, 2)[0], [[4, 5], [6, 7], [8, 9], [8, 9], [8, 9]])
    np.testing.assert_array_equal(shifted(chunk, 0), chunk)
    np.testing.assert_array_equal(shifted(chunk, 9)[0], [[8, 9]] * 5)


def test_a_perfect_denoiser_needs_only_the_last_step_from_anywhere():
    """Of a single clean action the noise is known exactly, and one step leads to it."""
    action, steps = jnp.array([0.3, -0.6]), ddim(20, 20, eta=0.0)
    last = jax.tree.map(lambda x: x[-1:], steps)
    predict = lambda x, t: (steps.scale[19 - t] * x - action) / steps.noise[19 - t]
    end, _ = denoise(last, predict, jnp.array([0.9, 0.1]), jnp.zeros((1, 2)), jnp.zeros(1))
    np.testing.assert_allclose(end, action, atol=1e-5)
