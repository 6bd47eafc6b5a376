"""Actions as several choices: what the environment is given, when it steps, and that no time passes within one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import Env
from rlx.action_tokens import discounts, tokenized
from rlx.advantages import gae
from rlx.algos import ppo
from rlx.rollout import reset, rollout
from rlx.spaces import Box, Discrete


class Two:
    """Two numbers are given, and 1 - |a - target|^2 is paid; four steps an episode."""

    default_params = ()

    def observation_space(self, params):
        return Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return Box(jnp.array([-2.0, 0.0]), jnp.array([2.0, 1.0]), (2,))

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        reward = 1.0 - (action[0] - 1.0) ** 2 - (action[1] - 0.5) ** 2
        obs = jnp.full(1, (state + 1) / 4)
        return obs, state + 1, reward, jnp.array(False), jnp.array(False), {"given": action}


@pytest.fixture(scope="module")
def two():
    return Env(Two(), (), max_steps=4)


def played(env, choices, num_envs=2):
    act = lambda obs, key: (choices(obs), None)
    key = jax.random.key(0)
    return rollout(env, act, reset(env, key, num_envs), key, 16)[1]


def test_an_action_is_complete_with_its_last_dimension(two):
    env = tokenized(two, 5)
    assert env.action_space == Discrete(5)
    assert env.horizon == 8
    first = lambda obs: obs[:, -2] == 1
    traj = played(env, lambda obs: jnp.where(first(obs), 3, 4).astype(jnp.int32))
    np.testing.assert_array_equal(traj.obs[:4, 0, 1:], [[0, 0, 1, 0], [0.5, 0, 0, 1]] * 2)
    np.testing.assert_allclose(traj.info["given"][1::2, 0], [[1.0, 1.0]] * 8)
    np.testing.assert_allclose(traj.reward[:, 0], [0.0, 0.75] * 8)
    assert traj.done[:, 0].tolist() == [False] * 7 + [True] + [False] * 7 + [True]
    np.testing.assert_allclose(traj.episode_return[7], 3.0)
    np.testing.assert_array_equal(traj.obs[:8:2, 0, 0], [0, 0.25, 0.5, 0.75])


def test_of_one_dimension_it_is_the_environment_with_chosen_actions():
    pendulum = rlx.envs.make("Pendulum-v1", max_steps=6)
    env = rlx.envs.make("Pendulum-v1", max_steps=6, tokens=3)
    key = jax.random.key(0)
    tokens = rollout(env, lambda obs, key: (jnp.full(2, 2), None), reset(env, key, 2), key, 12)[1]
    plain = rollout(pendulum, lambda obs, key: (jnp.full((2, 1), 2.0), None), reset(pendulum, key, 2), key, 12)[1]
    np.testing.assert_allclose(tokens.reward, plain.reward, rtol=1e-6)
    np.testing.assert_array_equal(tokens.done, plain.done)
    np.testing.assert_allclose(tokens.next_obs[..., :3], plain.next_obs, rtol=1e-6)


def test_values_and_advantages_of_choices_are_those_of_actions():
    """Of tokens, with 1 within an action: the advantage of its last choice is that of the action."""
    random = np.random.default_rng(0)
    num, size = 6, 3
    reward, value, next_value = random.normal(size=(3, num, 1))
    value[1:] = next_value[:-1]
    done = np.zeros((num, 1), bool)
    whole = gae(*map(jnp.float32, (reward, value, next_value)), jnp.asarray(done), jnp.asarray(done), 0.9, 0.8)
    tokens = np.repeat(value, size, axis=0)  # a critic that knows no more within an action
    later = np.append(tokens[1:], next_value[-1:], axis=0)
    paid = np.zeros((num * size, 1))
    paid[size - 1 :: size] = reward
    within = np.tile(np.arange(size) < size - 1, num)[:, None, None]
    gamma, gae_lambda = discounts({"within_action": jnp.asarray(within)}, 0.9, 0.8)
    none = jnp.zeros((num * size, 1), bool)
    found = gae(*map(jnp.float32, (paid, tokens, later)), none, none, gamma, gae_lambda)
    for i in range(size):
        np.testing.assert_allclose(found[i::size], whole, rtol=1e-5)
    assert discounts({}, 0.9, 0.8) == (0.9, 0.8)
    assert discounts(None, 0.9, 0.8) == (0.9, 0.8)


def test_ppo_finds_the_best_of_all_bins(two):
    env = tokenized(two, 5)
    config = ppo.Config(
        total_steps=60 * 512, num_envs=16, num_steps=32, learning_rate=5e-3, hidden_sizes=(32,), gamma=0.9
    )
    state, _ = rlx.train(ppo, config, env, jax.random.key(0))
    found = rlx.evaluate(ppo, config, env, state, jax.random.key(1), 4)
    np.testing.assert_allclose(found.returns, 4.0, rtol=1e-5)
    best = played(env, lambda obs: jnp.where(obs[:, -2] == 1, 3, 2)).obs[:8, 0]
    value = ppo.networks(config, env)[1].apply(state.params["critic"], best)
    # 1 a step of the environment, for ever, since a time limit ends no value; with a discount a choice it were 5.
    np.testing.assert_allclose(value, 1 / (1 - 0.9), atol=0.3)


@pytest.mark.more
def test_it_keeps_the_contract():
    rlx.envs.check(rlx.envs.make("Pendulum-v1", tokens=5), num_steps=64)


class Bursting(Two):
    """Says so itself where it has diverged, at a first number of 2."""

    def step(self, key, state, action, params):
        obs, state, reward, *ends, info = super().step(key, state, action, params)
        return obs, state, reward, *ends, info | {"diverged": action[0] > 1.9}


def test_an_episode_that_diverges_inside_is_told():
    env = tokenized(Env(Bursting(), (), max_steps=4), 5)
    traj = played(env, lambda obs: jnp.full(len(obs), 4))
    np.testing.assert_array_equal(traj.diverged[:, 0], [False, True] * 8)


def test_what_does_not_fit_is_refused(two, cartpole):
    with pytest.raises(ValueError, match="1 bins: give at least 2"):
        tokenized(two, 1)
    with pytest.raises(ValueError, match="continuous"):
        tokenized(cartpole, 3)
