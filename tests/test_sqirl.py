"""SQIRL on chains whose effective horizon is known, and its loss against a loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import Env, replace
from rlx.algos import sqirl
from rlx.partial import timed
from rlx.spaces import Box, Discrete

SMALL = {"num_envs": 64, "num_steps": 2, "num_epochs": 40, "num_minibatches": 4, "hidden_sizes": (16,)}


class Fork:
    """Whoever takes action 0 comes to a place where one action of four earns 1; whoever does not earns 0.5 at once."""

    default_params = ()

    def observation_space(self, params):
        return Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(4)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        there = state == 1
        reward = jnp.where(there, jnp.float32(action == 2), jnp.where(action == 0, 0.0, 0.5))
        ends = there | (action != 0)
        return jnp.ones(1), jnp.int32(1), reward, ends, jnp.array(False), {}


@pytest.fixture(scope="module")
def fork():
    return timed(Env(Fork(), (), max_steps=2))


@pytest.mark.parametrize(("num_iterations", "best"), [(1, 0.5), (2, 1.0)])
def test_as_many_iterations_as_the_effective_horizon_are_needed(fork, num_iterations, best):
    config = sqirl.Config(**SMALL, total_steps=4 * 128, num_iterations=num_iterations, learning_rate=1e-2)
    state, metrics = rlx.train(sqirl, config, fork, jax.random.key(0))
    found = rlx.evaluate(sqirl, config, fork, state, jax.random.key(1), 8)
    np.testing.assert_allclose(found.returns, best, rtol=1e-6)
    np.testing.assert_array_equal(metrics["learned_step"], [0, 1, 1, 1])


def test_heads_are_values_of_the_random_policy_and_of_one_that_is_greedy_once(fork):
    config = sqirl.Config(**SMALL, total_steps=128, num_iterations=2, learning_rate=1e-2)
    state, _ = rlx.train(sqirl, replace(config, num_envs=256, total_steps=512), fork, jax.random.key(0))
    q = sqirl.networks(config, fork).apply(state.params["values"], jnp.array([[0.0, 0.0], [1.0, 0.5]]))
    np.testing.assert_allclose(q[0, :, 0], [0.25, 0.5, 0.5, 0.5], atol=0.1)
    np.testing.assert_allclose(q[0, :, 1], [1.0, 0.5, 0.5, 0.5], atol=0.1)
    np.testing.assert_allclose(q[1], [[0, 0], [0, 0], [1, 1], [0, 0]], atol=0.1)


def test_the_loss_is_that_of_a_loop(fork):
    config = sqirl.Config(**SMALL, num_iterations=3, gamma=0.9)
    random = np.random.default_rng(0)
    num = 12
    batch = sqirl.Batch(
        obs=jnp.asarray(random.random((num, 2)), jnp.float32),
        action=jnp.asarray(random.integers(4, size=num)),
        reward=jnp.asarray(random.normal(size=num), jnp.float32),
        next_obs=jnp.asarray(random.random((num, 2)), jnp.float32),
        done=jnp.asarray(random.random(num) < 0.5),
        to_go=jnp.asarray(random.normal(size=num), jnp.float32),
        weight=jnp.asarray(random.random(num) < 0.7, jnp.float32),
    )
    params = sqirl.init(config, fork, jax.random.key(0)).params
    found, _ = sqirl.loss(params, params, config, fork, batch)
    apply = partial(sqirl.networks(config, fork).apply, params["values"])
    q, next_q = (np.asarray(apply(obs), np.float64) for obs in (batch.obs, batch.next_obs))
    total = 0.0
    for i in range(num):
        for head in range(3):
            target = float(batch.to_go[i])
            if head:
                target = float(batch.reward[i]) + 0.9 * (1 - bool(batch.done[i])) * next_q[i, :, head - 1].max()
            total += float(batch.weight[i]) * 0.5 * (q[i, int(batch.action[i]), head] - target) ** 2 / 3
    np.testing.assert_allclose(found, total / float(batch.weight.sum()), rtol=1e-5)


def test_steps_before_the_one_that_is_learned_are_greedy(fork):
    config = sqirl.Config(**SMALL, total_steps=128)
    state = sqirl.init(config, fork, jax.random.key(0))
    obs = jnp.tile(jnp.array([[0.3, 0.0], [0.3, 0.5]]), (50, 1))
    chosen = sqirl.act(config, fork, state, obs, jax.random.key(1))[1]
    played = sqirl.explore(config, fork, state, obs, jax.random.key(1), 1)[1]
    np.testing.assert_array_equal(played[::2], chosen[::2])
    assert len(set(np.asarray(played[1::2]).tolist())) == 4


def test_an_environment_without_time_is_refused(cartpole):
    with pytest.raises(ValueError, match="make the environment with time=True"):
        rlx.train(sqirl, sqirl.Config(), cartpole, jax.random.key(0))
    with pytest.raises(ValueError, match="raise num_steps"):
        rlx.train(sqirl, sqirl.Config(num_steps=4), timed(cartpole), jax.random.key(0))


def test_a_resumed_run_is_the_same_to_the_bit_and_a_lane_is_its_single_run(fork):
    config = sqirl.Config(**SMALL, total_steps=3 * 128)
    whole, _ = rlx.train(sqirl, config, fork, jax.random.key(0))
    half, _ = rlx.train(sqirl, replace(config, total_steps=128), fork, jax.random.key(0))
    again, _ = rlx.resume(sqirl, config, fork, half, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole.params, again.params)
    keys = jax.random.split(jax.random.key(0), 2)
    lanes, _ = jax.vmap(partial(rlx.train, sqirl, config, fork))(keys)
    single, _ = rlx.train(sqirl, config, fork, keys[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), lanes.params, single.params)
