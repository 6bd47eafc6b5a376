"""Movements: where they end, how they get there, what pushes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.around import decoded
from rlx.attractor import movement, pushes
from rlx.spaces import Box
from rlx.wrappers import chunked

START, GOAL = jnp.array([0.0, 1.0]), jnp.array([1.0, -1.0])


def test_without_weights_it_is_a_critically_damped_spring():
    dt, num = 2e-4, 5_000
    path = np.asarray(movement(START, GOAL, jnp.zeros((2, 5)), num, dt))
    t = dt * np.arange(1, num + 1)
    left = (1 + 12.5 * t) * np.exp(-12.5 * t)  # of the way, with a / 2 = 12.5
    expected = GOAL + (START - GOAL) * left[:, None]
    np.testing.assert_allclose(path, expected, atol=5e-3)  # Euler's error, of the order of a dt
    coarse = np.asarray(movement(START, GOAL, jnp.zeros((2, 5)), 100, 0.01))
    assert (np.diff(np.abs(coarse - GOAL), axis=0) <= 1e-6).all()  # nearer with every step
    np.testing.assert_allclose(coarse[-1], GOAL, atol=1e-3)


def test_a_path_against_a_loop_in_numpy():
    rng = np.random.default_rng(0)
    weights = 100 * rng.normal(size=(2, 4))
    path = np.asarray(movement(START, GOAL, jnp.float32(weights), 30, 0.02))
    y, z, x = np.array(START, np.float64), np.zeros(2), 1.0
    centre = np.exp(-np.arange(4) / 3)
    for i in range(30):
        psi = np.exp(-(4**1.5) / centre * (x - centre) ** 2)
        force = (weights * psi / psi.sum()).sum(-1) * x * np.array(GOAL - START)
        # The velocity of before moves the place that it is told.
        place = y + z * 0.02
        z = z + (25 * (25 / 4 * (np.array(GOAL) - y) - z) + force) * 0.02
        y, x = place, x * (1 - 0.02)
        np.testing.assert_allclose(path[i], y, rtol=1e-4, atol=1e-4)


def test_pushes_sum_to_one_and_take_turns():
    phase = jnp.exp(-jnp.linspace(0, 1, 50))
    found = pushes(phase, 5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    assert sorted(set(np.asarray(found.argmax(-1)))) == [0, 1, 2, 3, 4]


def test_nothing_moves_where_the_goal_is_the_start_and_paths_are_linear_in_the_weights():
    weights = 100 * jax.random.normal(jax.random.key(0), (2, 5))
    still = movement(START, START, weights, 20, 0.02)
    np.testing.assert_array_equal(still, jnp.broadcast_to(START, (20, 2)))
    path = lambda w: movement(START, GOAL, w, 20, 0.02)
    both = path(weights) + path(-weights)
    np.testing.assert_allclose(both, 2 * path(0 * weights), atol=1e-4)
    with pytest.raises(ValueError, match=r"below 0\.08"):
        movement(START, GOAL, weights, 20, 0.1)


def test_an_environment_is_acted_on_through_movements(ppo):
    pendulum = rlx.envs.make("Pendulum-v1")
    size, num = 5, 3

    def decode(obs, action, key):
        path = movement(jnp.zeros(1), 2.0 * action[:1], 50.0 * action[1:][None], size, 0.05)
        return jnp.clip(path, -2.0, 2.0).reshape(-1)

    env = decoded(chunked(pendulum, size), decode, Box(-1, 1, (1 + num,)))
    config = ppo.Config(total_steps=256, num_envs=4, num_steps=32, hidden_sizes=(8,))
    _, metrics = rlx.train(ppo, config, env, jax.random.key(0))
    assert np.isfinite(metrics["policy_loss"]).all()
