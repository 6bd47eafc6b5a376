"""n-step elements, distributions of returns and choosing by values: against loops, closed forms and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from rlx.exploration import epsilon_at, epsilon_greedy, greedy
from rlx.values import (
    at_actions,
    expectile_loss,
    gumbel_loss,
    hl_gauss,
    legal_values,
    midpoints,
    munchausen_bonus,
    n_step,
    projection,
    quantile_huber,
    soft_value,
)

RNG = np.random.default_rng(0)


def rollout_of(num_steps=12, num_envs=50):
    """Rewards, ends and successors that tell where they are from."""
    reward = RNG.normal(size=(num_steps, num_envs)).astype(np.float32)
    terminated = RNG.random((num_steps, num_envs)) < 0.2
    done = terminated | (RNG.random((num_steps, num_envs)) < 0.2)
    next_obs = np.arange(num_steps * num_envs, dtype=np.float32).reshape(num_steps, num_envs)
    return reward, terminated, done, {"x": next_obs[..., None]}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
def test_steps_of_several_are_those_of_a_loop(n):
    reward, terminated, done, next_obs = rollout_of()
    found = n_step(*map(jnp.asarray, (reward, terminated, done)), next_obs, n, 0.9)
    num_steps, num_envs = reward.shape
    for env in range(num_envs):
        for t in range(num_steps):
            total, m = 0.0, 0
            while True:
                total, m = total + 0.9**m * reward[t + m, env], m + 1
                if done[t + m - 1, env] or m == n or t + m == num_steps:
                    break
            last = t + m - 1
            np.testing.assert_allclose(found.reward[t, env], total, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.discount[t, env], 0.9**m * (not terminated[last, env]), rtol=1e-6)
            assert found.next_obs["x"][t, env, 0] == next_obs["x"][last, env, 0]
            assert found.num[t, env] == m


def test_one_step_is_the_step():
    reward, terminated, done, next_obs = rollout_of()
    found = n_step(*map(jnp.asarray, (reward, terminated, done)), next_obs, 1, 0.97)
    np.testing.assert_array_equal(found.reward, reward)
    np.testing.assert_array_equal(found.discount, np.where(terminated, 0, np.float32(0.97)))
    np.testing.assert_array_equal(found.next_obs["x"], next_obs["x"])


def test_the_best_legal_action_is_taken_and_of_equal_ones_the_first():
    q = jnp.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [-1e12, -1e11, -1e13]])
    mask = jnp.array([[True, False, True], [False, True, True], [False, False, False]])
    assert greedy(q).tolist() == [1, 0, 1]
    assert greedy(q, mask).tolist() == [2, 1, 1]
    np.testing.assert_array_equal(legal_values(q), q)


def test_epsilon_is_how_often_any_legal_action_is_taken():
    q, num = jnp.tile(jnp.array([0.0, 2.0, 1.0, 9.0]), (60_000, 1)), 60_000
    mask = jnp.tile(jnp.array([True, True, True, False]), (num, 1))
    assert (epsilon_greedy(q, 0.0, jax.random.key(0), mask) == 1).all()
    for epsilon, wanted in ((1.0, [1 / 3, 1 / 3, 1 / 3, 0]), (0.3, [0.1, 0.8, 0.1, 0])):
        counts = np.bincount(epsilon_greedy(q, epsilon, jax.random.key(1), mask), minlength=4)
        assert counts[3] == 0
        assert stats.chisquare(counts[:3], num * np.array(wanted[:3])).pvalue > 1e-3
    each = epsilon_greedy(q, jnp.where(jnp.arange(num) < num // 2, 0.0, 1.0), jax.random.key(2))
    assert (each[: num // 2] == 3).all()
    assert stats.chisquare(np.bincount(each[num // 2 :], minlength=4)).pvalue > 1e-3


def test_a_soft_value_is_the_highest_one_at_a_temperature_of_zero():
    q = jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32)
    np.testing.assert_allclose(soft_value(q, 1e-3), q.max(-1), atol=2e-3)
    np.testing.assert_allclose(soft_value(q, 1.0), np.log(np.exp(np.asarray(q)).sum(-1)), rtol=1e-5)
    np.testing.assert_allclose(soft_value(jnp.zeros(4), 0.5), 0.5 * np.log(4), rtol=1e-6)


def test_the_bonus_of_munchausen_is_a_clipped_log_probability():
    q = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    p = np.exp(np.array([1.0, 0.0]) / 0.5)
    wanted = 0.5 * np.log(p / p.sum())
    found = munchausen_bonus(q, jnp.array([0, 1]), 0.5, 0.9, -10.0)
    np.testing.assert_allclose(found, 0.9 * wanted, rtol=1e-5)
    np.testing.assert_allclose(munchausen_bonus(q, jnp.array([1, 1]), 0.03, 0.9, -1.0), [-0.9, -0.9], rtol=1e-6)


def project_by_index(probs, atoms, support):
    """The projection with floor and ceil, atom by atom."""
    width, found = support[1] - support[0], np.zeros(len(support))
    for p, z in zip(probs, np.clip(atoms, support[0], support[-1]), strict=True):
        place = (z - support[0]) / width
        low, high = int(np.floor(place)), int(np.ceil(place))
        if low == high:
            found[low] += p
        else:
            found[low] += p * (high - place)
            found[high] += p * (place - low)
    return found


def test_a_projection_is_that_by_floor_and_ceil_and_keeps_mass_and_mean():
    support = np.linspace(-2, 3, 11)
    probs = RNG.dirichlet(np.ones(11), size=20)
    atoms = RNG.normal(size=(20, 1)) + RNG.random((20, 1)) * support
    found = projection(*(jnp.asarray(x, jnp.float32) for x in (probs, atoms, support)))
    wanted = np.array([project_by_index(p, z, support) for p, z in zip(probs, atoms, strict=True)])
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    mean = (probs * np.clip(atoms, -2, 3)).sum(-1)
    np.testing.assert_allclose(found @ jnp.asarray(support, jnp.float32), mean, atol=1e-5)
    same = projection(jnp.asarray(probs), jnp.asarray(support), jnp.asarray(support))
    np.testing.assert_allclose(same, probs, atol=1e-5)


def test_gauss_bins_hold_the_value_and_become_one_bin():
    support = jnp.linspace(-10.0, 10.0, 81)
    value = jnp.array([-6.03, 0.0, 3.14159, 8.9])
    probs = hl_gauss(value, support)
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(probs @ support, value, atol=1e-4)
    sigma = 0.75 * 0.25
    edges = np.linspace(-10.125, 10.125, 82)
    wanted = np.diff(stats.norm.cdf(edges, 3.14159, sigma))
    np.testing.assert_allclose(probs[2], wanted / wanted.sum(), atol=2e-6)
    np.testing.assert_allclose(hl_gauss(jnp.array([3.0]), support, 0.01)[0], support == 3.0, atol=1e-6)
    np.testing.assert_array_equal(hl_gauss(jnp.array([50.0]), support), hl_gauss(jnp.array([10.0]), support))


def test_quantiles_are_where_their_loss_is_least():
    targets = np.sort(RNG.normal(size=41))
    loss = lambda x, level: float(quantile_huber(jnp.array([x]), jnp.asarray(targets), jnp.array([level]), 1e-3))
    for level in (0.1, 0.5, 0.75):
        best = optimize.minimize_scalar(lambda x, level=level: loss(x, level), bounds=(-3, 3), method="bounded").x
        np.testing.assert_allclose(best, np.quantile(targets, level), atol=0.1)


def test_the_loss_of_quantiles_is_a_double_loop():
    quantiles, targets, levels = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 6)) * 2, midpoints(4)
    found = quantile_huber(*map(jnp.asarray, (quantiles, targets)), levels, 0.7)
    for b in range(3):
        total = 0.0
        for i in range(4):
            for j in range(6):
                u = targets[b, j] - quantiles[b, i]
                huber = 0.5 * u * u if abs(u) <= 0.7 else 0.7 * (abs(u) - 0.35)
                total += abs(levels[i] - (u < 0)) * huber / 0.7 / 6
        np.testing.assert_allclose(found[b], total, rtol=1e-5)


def test_one_quantile_is_a_quarter_of_the_squared_error():
    u = jnp.array([-0.9, 0.2, 0.7])
    found = quantile_huber(jnp.zeros((3, 1)), u[:, None], midpoints(1))
    np.testing.assert_allclose(found, u**2 / 4, rtol=1e-6)


def test_an_expectile_is_the_mean_at_one_half_and_the_maximum_at_one():
    u = jnp.array([-2.0, 3.0])
    np.testing.assert_allclose(expectile_loss(u, 0.5), 0.5 * u**2)
    x = jnp.asarray(RNG.normal(size=50))
    loss = lambda v: float(expectile_loss(x - v, 0.999).mean())
    best = optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded").x
    assert x.max() - 0.3 < best < x.max()


@pytest.mark.parametrize("scale", [0.5, 2.0, 1e3])
def test_the_minimum_of_the_loss_of_gumbel_is_a_soft_maximum(scale):
    x = RNG.normal(size=50)
    loss = lambda v: float(gumbel_loss(jnp.asarray(x - v), scale).mean())
    best = optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded").x
    expected = scale * np.log(np.exp(x / scale).mean())
    np.testing.assert_allclose(best, expected, atol=1e-2 if scale < 100 else 0.1)  # flat there, in float32


def test_the_loss_of_gumbel_is_half_a_square_near_0_and_is_cut():
    u = jnp.array([-0.01, 0.02])
    np.testing.assert_allclose(gumbel_loss(u, 1.0), 0.5 * u**2, rtol=0.02)
    assert jax.grad(gumbel_loss)(8.0, 1.0) == 0.0
    assert gumbel_loss(jnp.float32(800.0), 1.0) == gumbel_loss(jnp.float32(7.0), 1.0)


def test_epsilon_falls_and_stays():
    found = epsilon_at(jnp.array([0.0, 0.1, 0.2, 0.9]), 1.0, 0.2, 0.2)
    np.testing.assert_allclose(found, [1.0, 0.6, 0.2, 0.2], rtol=1e-6)


def test_values_of_actions_are_picked_row_by_row():
    q = RNG.normal(size=(5, 3, 4, 2))
    action = RNG.integers(4, size=(5, 3))
    found = at_actions(jnp.asarray(q), jnp.asarray(action))
    for i in range(5):
        for j in range(3):
            np.testing.assert_allclose(found[i, j], q[i, j, action[i, j]], rtol=1e-6)
