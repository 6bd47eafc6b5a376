"""Risk as a return: against nested risks by exact sums, and its limit cases."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import Env
from rlx.risk import risk_averse
from rlx.spaces import Box, Discrete

EXACT = True  # bits are compared
LEVELS = (0.0, 1.0, 9.0)


class TwoSteps:
    """The second step costs 1 for the first action; for the second 9, with the probability that the params are."""

    default_params = jnp.float32(0.1)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        risky = 9.0 * jax.random.bernoulli(key, params)
        cost = jnp.where(state == 0, 0.0, jnp.where(action == 0, 1.0, risky))
        return jnp.float32(state + 1)[None], state + 1, -cost, state == 1, False, {}

    def observation_space(self, params):
        return Box(0, 2, (1,))

    def action_space(self, params):
        return Discrete(2)

    def horizon(self, params):
        return 2


@pytest.fixture(scope="module")
def played():
    """The return of an episode by its second action, the index of the level, how risk counts, and what happens."""

    @jax.jit
    def total(action, level, lam, happens):
        env = risk_averse(Env(TwoSteps(), TwoSteps.default_params), 0.5, 0.1, 1.0, LEVELS)
        env = replace(env, params=replace(env.params, params=happens, lam=lam))
        state, key = env.reset(jax.random.key(0)), jax.random.key(1)
        state, first = env.advance(key, state, level)
        _, second = env.advance(key, state, 3 * action)
        return first.reward + second.reward

    def expected(action, level, lam):
        return sum(p * float(total(action, level, lam, jnp.float32(x))) for p, x in ((0.9, 0.0), (0.1, 1.0)))

    return expected


@pytest.mark.parametrize("lam", [0.0, 0.005, 0.1 / 8.1 - 1e-3, 0.1 / 8.1 + 1e-3, 0.3, 1.0])
def test_the_best_levels_give_the_nested_risk_and_the_best_action(played, lam):
    risk = {0: 1.0, 1: (1 - lam) * 0.9 + lam * 9.0}  # the tail of a tenth is the cost of 9 alone
    best = {a: max(played(a, level, jnp.float32(lam)) for level in range(3)) for a in (0, 1)}
    for action in (0, 1):
        np.testing.assert_allclose(best[action], -risk[action], rtol=1e-5)
    assert (best[0] > best[1]) == (lam > 0.1 / 8.1)


def test_without_risk_rewards_are_the_environments_own_to_the_bit():
    env = rlx.envs.make("Pendulum-v1")
    other = risk_averse(env, 0.0, 0.1, 0.99, (0.0, 20.0))
    state, own = other.reset(jax.random.key(0)), env.reset(jax.random.key(0))
    for i in range(3):
        key = jax.random.key(i)
        state, found = jax.jit(other.advance)(key, state, jnp.array([0.5, 3.0]))
        own, plain = jax.jit(env.advance)(key, own, jnp.array([0.5]))
        np.testing.assert_array_equal(found.reward, plain.reward)
        np.testing.assert_array_equal(found.next_obs, jnp.append(plain.next_obs, 3.0))


def test_a_level_that_is_not_needed_is_not_paid_for(played):
    """Both levels of the last step come to the same: there is no step that they would be of."""
    env = risk_averse(Env(TwoSteps(), TwoSteps.default_params), 0.5, 0.1, 1.0, LEVELS)
    state, _ = env.advance(jax.random.key(0), env.reset(jax.random.key(0)), jnp.int32(1))
    ends = [env.advance(jax.random.key(1), state, jnp.int32(level))[1].reward for level in range(3)]
    assert ends[0] == ends[1] == ends[2]


def test_it_keeps_the_contract_and_trains(ppo, cartpole):
    env = risk_averse(cartpole, 0.5, 0.2, 0.99, (-1.0, 0.0))
    assert env.action_space.n == 4
    assert all(rlx.envs.check(env))
    config = ppo.Config(total_steps=128, num_envs=4, num_steps=16, hidden_sizes=(8,))
    _, metrics = rlx.train(ppo, config, env, jax.random.key(0))
    assert np.isfinite(metrics["policy_loss"]).all()


def test_what_cannot_work_is_refused(cartpole):
    with pytest.raises(ValueError, match="alpha above 0"):
        risk_averse(cartpole, 0.5, 0.0, 0.99, LEVELS)
    with pytest.raises(ValueError, match="stands beside a vector"):
        risk_averse(rlx.envs.make("Breakout-MinAtar"), 0.5, 0.1, 0.99, LEVELS)
