"""Gradients through a simulator: sums against a loop, a linear one in closed form, limits, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import Env, replace
from rlx.algos import pathwise as module
from rlx.pathwise import check_gradient, horizon_returns
from rlx.spaces import Box
from rlx.train import advance

SMALL = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "num_epochs": 2, "hidden_sizes": (16,)}
A, B, Q, R = 0.9, 0.5, 1.0, 0.1  # of the linear system
pendulum = rlx.envs.make("Pendulum-v1")


class Linear:
    """`x' = A x + B u`, and it costs `Q x^2 + R u^2`; with `cut`, the simulator hides its gradient."""

    default_params = None

    def __init__(self, kind="whole", size=1.0, constant=0.0):
        self.kind, self.size, self.constant = kind, size, constant

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Box(-2.0, 2.0, (1,))

    def reset(self, key, params):
        x = jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
        return x, x

    def step(self, key, x, action, params):
        reward = self.constant - self.size * (Q * x**2 + R * action**2)[0]
        hidden = self.kind in ("cut", "cut whole")
        reward = -self.size * Q * x[0] ** 2 if self.kind == "cut whole" else reward
        x = A * x + B * (jax.lax.stop_gradient(action) if hidden else action)
        reward = jnp.float32(1.0) if self.kind == "constant" else reward
        return x, x, reward, jnp.array(False), jnp.array(False), {}


def linear(kind="whole", **sizes):
    return Env(Linear(kind, **sizes), None, max_steps=20)


class Pair(Linear):
    """Two agents, each in a system of its own, who are paid together."""

    num_agents = 2

    def reset(self, key, params):
        x = jax.random.uniform(key, (2, 1), minval=-1.0, maxval=1.0)
        return x, x

    def step(self, key, x, action, params):
        reward = -(Q * x**2 + R * action**2).sum()
        x = A * x + B * action
        return x, x, jnp.full(2, reward), jnp.zeros(2, bool), jnp.zeros(2, bool), {}


def test_returns_of_a_horizon_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(9, 5)), rng.normal(size=(9, 5))
    terminated = rng.random((9, 5)) < 0.2
    done = terminated | (rng.random((9, 5)) < 0.2)
    wanted = np.zeros(5)
    for n in range(5):
        discount = 1.0
        for t in range(9):
            wanted[n] += discount * reward[t, n]
            discount *= 0.9
            if done[t, n] or t == 8:
                wanted[n] += 0.0 if terminated[t, n] else discount * value[t, n]
                discount = 1.0
    found = horizon_returns(*map(jnp.asarray, (reward, value, terminated, done)), 0.9)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_gradient_through_a_linear_system_is_that_of_its_closed_form():
    """Of the gain k of `u = -k x` over T steps: `sum_t (A - B k)^2t (Q + R k^2) x_0^2`, and nothing beyond."""
    env, gamma, num_steps = linear(), 0.9, 6
    x = jnp.array([0.3, -0.8])

    def through(gain):
        def step(x, _):
            u = -gain * x
            _, x, reward, *_ = jax.vmap(lambda x, u: env.environment.step(None, x[None], u[None], None))(x, u)
            return x[:, 0], reward

        reward = jax.lax.scan(step, x, None, num_steps)[1]
        none = jnp.zeros((num_steps, 2), bool)
        return horizon_returns(reward, jnp.zeros((num_steps, 2)), none, none, gamma).sum()

    def closed(gain):
        powers = gamma ** np.arange(num_steps) * (A - B * gain) ** (2 * np.arange(num_steps))
        return -np.sum(powers) * (Q + R * gain**2) * float(jnp.sum(x**2))

    np.testing.assert_allclose(through(0.4), closed(0.4), rtol=1e-5)
    difference = (closed(0.4 + 1e-5) - closed(0.4 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(through)(0.4), difference, rtol=1e-4)


@pytest.fixture(scope="module")
def state():
    return jax.jit(module.init, static_argnums=1)(module.Config(**SMALL), linear(), jax.random.key(0))


def test_the_actors_gradient_is_that_of_small_changes(state):
    """Along a random direction, through a rollout in which time limits end episodes."""
    config, env = module.Config(**SMALL | {"num_steps": 24}), linear()
    loss = jax.jit(lambda actor: module.actor_loss(actor, config, env, state, jax.random.key(1))[0])
    leaves, structure = jax.tree.flatten(state.params["actor"])
    keys = jax.random.split(jax.random.key(2), len(leaves))
    way = structure.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    moved = lambda by: jax.tree.map(lambda x, d: x + by * d, state.params["actor"], way)
    slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (jax.grad(loss)(moved(0)), way)), strict=True))
    np.testing.assert_allclose(slope, (loss(moved(1e-2)) - loss(moved(-1e-2))) / 2e-2, rtol=2e-2)
    assert module.actor_loss(moved(0), config, env, state, jax.random.key(1))[1][1].truncated.any()


def test_a_horizon_of_one_step_is_the_gradient_of_reward_and_value(state):
    """As DDPG has it, with `r(s, a) + gamma V(s')` for the value of the action."""
    config, env = module.Config(**SMALL | {"num_steps": 1}), linear()
    key = jax.random.key(1)
    rollout_key = jax.random.split(key, 2 + env.num_starts)[1]
    obs = state.env_state.obs

    def q(actor):
        acting = replace(state, params=state.params | {"actor": actor})
        u = module.act(config, env, acting, obs, rollout_key)[0]
        x = A * obs + B * u
        value = module.networks(config, env)[1].apply(state.target_params, x)
        return -(-(Q * obs**2 + R * u**2)[:, 0] + config.gamma * value).mean()

    found = jax.grad(lambda actor: module.actor_loss(actor, config, env, state, key)[0])(state.params["actor"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, jax.grad(q)(state.params["actor"]))


def test_without_a_value_it_is_the_mean_reward_of_a_horizon(state):
    config, env = module.Config(**SMALL | module.VARIANTS["apg"], gamma=1.0), linear()
    loss, (_, traj) = module.actor_loss(state.params["actor"], config, env, state, jax.random.key(1))
    np.testing.assert_allclose(loss, -traj.reward.mean(), rtol=1e-5)
    after, metrics = jax.jit(module.update, static_argnums=1)(config, env, state)
    assert "value_loss" not in metrics
    jax.tree.map(np.testing.assert_array_equal, after.params["critic"], state.params["critic"])


def test_the_gain_that_is_learned_is_riccatis():
    gamma, p = 0.9, 1.0
    for _ in range(500):  # of the cost to go `p x^2`
        p = Q + gamma * A**2 * p - (gamma * A * B * p) ** 2 / (R + gamma * B**2 * p)
    gain = gamma * A * B * p / (R + gamma * B**2 * p)
    config = module.Config(
        total_steps=60_000, num_envs=16, num_steps=16, num_epochs=4, learning_rate=3e-3, gamma=gamma, tau=0.2
    )
    env = linear()
    found = jax.jit(partial(rlx.train, module, config, env))(jax.random.key(0))[0]
    x = jnp.array([[-0.6], [0.3], [0.8]])
    u = module.act(config, env, found, x, jax.random.key(0), deterministic=True)[0]
    np.testing.assert_allclose(u, -gain * x, atol=0.1)  # of actions up to about 1


def test_a_gradient_that_is_not_finite_moves_nothing(state):
    config, env = module.Config(**SMALL), linear()
    broken = replace(state, target_params=jax.tree.map(lambda x: x * jnp.nan, state.target_params))
    after, metrics = jax.jit(module.update, static_argnums=1)(config, env, broken)
    assert metrics["share_skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.params["actor"], state.params["actor"])


def test_a_run_in_pieces_is_bitwise_the_same(state):
    chunk = jax.jit(advance, static_argnames=("algorithm", "length", "env"))
    config = module.Config(**SMALL)
    whole = chunk(module, config, linear(), state, 0, 3, 3)[0]
    parts = chunk(module, config, linear(), state, 0, 1, 3)[0]
    parts = chunk(module, config, linear(), parts, 1, 2, 3)[0]
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e4])
def test_a_gradient_is_judged_at_any_size_of_rewards(size):
    check_gradient(linear(size=size))
    check_gradient(linear(size=size, constant=100 * size))
    with pytest.raises(ValueError, match="have no gradient by its actions that is right"):
        check_gradient(linear("cut whole", size=size))


def test_rewards_of_several_agents_have_a_gradient_too():
    check_gradient(Env(Pair(), None, max_steps=20))


def test_simulators_without_a_right_gradient_are_refused():
    check_gradient(linear())
    check_gradient(pendulum)
    with pytest.raises(ValueError, match="have no gradient by its actions that is right"):
        check_gradient(linear("cut"))
    with pytest.raises(ValueError, match="depend on its actions by no more than they are rounded: there is no"):
        check_gradient(linear("constant"))
    with pytest.raises(ValueError, match="needs continuous actions"):
        module.check(module.Config(**SMALL), rlx.envs.make("CartPole-v1"))
    with pytest.raises(ValueError, match="num_epochs = 0 leaves the critic as it starts"):
        module.check(module.Config(**SMALL | {"num_epochs": 0}), pendulum)
