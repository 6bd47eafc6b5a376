"""Meta-gradients: finite differences, where Adam has no slope, environments that cannot be differentiated, learning."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rlx
from rlx import meta
from rlx.algos import ppo
from rlx.meta.gradients import detached, outcome, unrolled
from rlx.rollout import flatten, rollout

pytestmark = pytest.mark.more

TINY = {"total_steps": 640, "num_envs": 2, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2}


def rates(rule, config):
    """A learning rate and an entropy coefficient, by their logarithms."""
    changed = {"learning_rate": jnp.exp(rule["learning_rate"]), "entropy_coef": jnp.exp(rule["entropy_coef"])}
    return rlx.replace(config, **changed), {}


def drift(rule, config):
    return config, {"objective": rule}


def in_float64(state, config):
    """The State with parameters in float64; the environment stays as it is."""
    up = lambda tree: jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
    params = up(state.params)
    return rlx.replace(state, params=params, opt_state=ppo.optimizer(config, 1e-3).init(params))


@pytest.mark.parametrize("name", ["CartPole-v1", "probe/ObservationAction"])
@pytest.mark.parametrize("kind", ["rates", "drift"])
def test_the_gradient_through_updates_is_that_of_finite_differences(name, kind):
    with jax.enable_x64(True):
        env = rlx.envs.make(name)
        config = ppo.Config(**TINY, hidden_sizes=(4,), learning_rate=3e-3)
        state = in_float64(ppo.init(config, env, jax.random.key(0)), config)
        rule = {"learning_rate": jnp.log(3e-3), "entropy_coef": jnp.log(0.05)}
        apply = rates
        if kind == "drift":
            rule, apply = jax.tree.map(lambda x: x.astype(float), meta.lpo(jax.random.key(1), 4)), drift

        def result(rule):
            inner, keywords = apply(rule, config)
            end, _ = unrolled(ppo, inner, env, state, 3, **keywords)
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(end.params))

        grads, result = jax.jit(jax.grad(result))(rule), jax.jit(result)
        flat, restore = jax.flatten_util.ravel_pytree(rule)
        slopes = jax.flatten_util.ravel_pytree(grads)[0]
        assert bool(jnp.isfinite(slopes).all())
        assert bool((jnp.abs(slopes) > 1e-9).any())
        for i in np.argsort(-np.abs(slopes))[:3]:
            step = 1e-4 * (jnp.arange(flat.size) == i)
            numeric = (result(restore(flat + step)) - result(restore(flat - step))) / 2e-4
            np.testing.assert_allclose(slopes[i], numeric, rtol=2e-3, atol=1e-7)


@pytest.fixture(scope="module")
def cartpole():
    env, config = rlx.envs.make("CartPole-v1"), ppo.Config(**TINY, hidden_sizes=(4,))
    return env, config, ppo.init(config, env, jax.random.key(0))


def test_the_outcome_has_the_gradient_of_policy_gradient(cartpole):
    """`-E[A grad log pi]` over the steps, whose probabilities, values and advantages count as given."""
    env, config, state = cartpole

    def value(params):
        return outcome(ppo, config, env, rlx.replace(state, params=params), jax.random.key(1))[0]

    env_state, traj = rollout(
        env, partial(ppo.act, config, env, state), state.env_state, jax.random.key(1), config.num_steps
    )
    batch = flatten(ppo.advantages(config, env, state, traj)[0])
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)

    def by_hand(params):
        actor, _ = ppo.networks(config, env)
        return -(advantage * actor.apply(params["actor"], batch.obs).log_prob(batch.action)).mean()

    found, wanted = jax.grad(value)(state.params), jax.grad(by_hand)(state.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found["actor"], wanted["actor"])
    assert all(bool((x == 0).all()) for x in jax.tree.leaves(found["critic"]))
    _, after = outcome(ppo, config, env, state, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, after.env_state, env_state)


def test_adam_has_a_slope_where_a_gradient_is_zero():
    """An input that is always 0 has weights whose gradients, and their squares' mean, are 0: the root has no slope."""
    env = rlx.envs.make("probe/Constant")
    assert bool((env.reset(jax.random.key(0)).obs == 0).all())
    config = ppo.Config(**TINY, hidden_sizes=(4,), learning_rate=1e-2)
    state = ppo.init(config, env, jax.random.key(0))

    def result(rate):
        end, _ = unrolled(ppo, rlx.replace(config, learning_rate=rate), env, state, 2)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(end.params))

    slope = jax.grad(result)(1e-2)
    assert np.isfinite(slope)
    assert slope != 0


def test_what_cannot_be_differentiated_is_not():
    """Solvers of physics are loops of unknown length, which have no reverse derivative."""
    env = rlx.envs.make("mjx/pendulum", max_steps=8)
    config = ppo.Config(**TINY, hidden_sizes=(4,))
    state = ppo.init(config, env, jax.random.key(0))

    def result(rate, env):
        end, _ = unrolled(ppo, rlx.replace(config, learning_rate=rate), env, state, 1)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(end.params))

    assert np.isfinite(jax.grad(result)(1e-2, detached(env)))
    np.testing.assert_array_equal(result(1e-2, detached(env)), result(1e-2, env))


def test_actions_count_as_given_where_they_are_continuous():
    env = rlx.envs.make("Pendulum-v1")
    config = ppo.Config(**TINY, hidden_sizes=(4,))
    state = ppo.init(config, env, jax.random.key(0))

    def actions(params):
        moved = rlx.replace(state, params=params)
        return ppo.act(config, env, moved, state.env_state.obs, jax.random.key(1))[1].action.sum()

    assert all(bool((x == 0).all()) for x in jax.tree.leaves(jax.grad(actions)(state.params)))


def test_the_schedule_of_the_updates_comes_to_its_end(cartpole):
    env, config, _ = cartpole
    config = rlx.replace(config, total_steps=32 * 13, anneal_learning_rate=True)  # 13 rollouts: 5 steps of the rule
    state, (metrics, *_) = meta.meta_train(
        ppo, lambda rule, config: (config, {}), config, env, jnp.float32(0.0), jax.random.key(0), 2
    )
    assert int(state.state.num_updates) == 10
    rates = metrics["learning_rate"].reshape(-1) / config.learning_rate
    np.testing.assert_allclose(rates, 1 - np.arange(10) / 10, rtol=1e-5)


def test_a_rule_of_no_consequence_is_not_changed(cartpole):
    env, config, _ = cartpole
    state, (metrics, rules, grads) = meta.meta_train(
        ppo, lambda rule, config: (config, {}), config, env, jnp.float32(3.0), jax.random.key(0), 2
    )
    assert state.rule == 3.0
    assert not grads.any()
    num = -(-rlx.total_updates(config) // 3)
    assert metrics["policy_loss"].shape == (num, 2)
    assert rules.shape == (num,)
    assert int(state.state.num_updates) == 2 * num


def test_a_learning_rate_that_is_too_low_is_raised():
    sizes = {"num_envs": 8, "num_steps": 64, "hidden_sizes": (16,), "total_steps": 15 * 5 * 512}
    env, config = rlx.envs.make("CartPole-v1"), ppo.Config(**sizes, anneal_learning_rate=False)
    rule = {"learning_rate": jnp.log(1e-4), "entropy_coef": jnp.log(1e-3)}
    run = jax.jit(partial(meta.meta_train, ppo, rates, num_updates=4, optimizer=optax.adam(0.1)))
    state, _ = run(config, env, rule, jax.random.key(0))
    assert state.rule["learning_rate"] > jnp.log(2e-4)
