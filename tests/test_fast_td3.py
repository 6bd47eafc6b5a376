"""FastTD3 and D4PG: targets against numpy and against TD3's, noise of each episode, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import replace
from rlx.algos import fast_td3 as module
from rlx.train import advance

pendulum = rlx.envs.make("Pendulum-v1")
SMALL = {"num_envs": 4, "num_steps": 8, "utd_ratio": 0.25, "batch_size": 16, "capacity": 256, "warmup_steps": 64}
SMALL |= {"hidden_sizes": (16,), "critic_hidden_sizes": (16,), "num_atoms": 21}
small = module.Config(total_steps=256, learning_rate=1e-3, **SMALL)


@pytest.fixture(scope="module")
def state():
    """A state whose parameters are all disturbed, so that no two critics agree."""
    state = jax.jit(module.init)(small, pendulum, jax.random.key(0))
    move = lambda x, by: x + by * jax.random.normal(jax.random.key(x.size), x.shape)
    params = jax.tree.map(lambda x: move(x, 0.3), state.params)
    return replace(state, params=params, target_params=jax.tree.map(lambda x: move(x, 0.5), state.target_params))


@pytest.fixture(scope="module")
def batch():
    x = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    ends, num = jax.random.bernoulli(jax.random.key(5), 0.3, (32,)), jnp.where(jnp.arange(32) % 3, 1, 2)
    return module.Batch(x(1, 32, 3), jnp.tanh(x(2, 32, 1)), 2 * x(3, 32), x(4, 32, 3), ends, num)


def probabilities(params, batch, action):
    critic = module.networks(small, pendulum)[1]
    logits = jax.vmap(critic.apply, in_axes=(0, None, None))(params["critic"], batch.next_obs, action)
    return np.asarray(jax.nn.softmax(logits), np.float64)


@pytest.mark.parametrize("slow", [False, True])
def test_the_target_is_the_projected_distribution_with_the_lowest_mean(slow, state, batch):
    config = replace(small, target_actor=slow, gamma=0.9, reward_scale=0.5, target_noise=0.3, target_noise_clip=0.2)
    noise = jax.random.normal(jax.random.key(6), (32, 1))
    actor_params = (state.target_params if slow else state.params)["actor"]
    found = module.target(state.target_params, actor_params, config, pendulum, batch, noise)
    mean = module.networks(config, pendulum)[0].apply(actor_params, batch.next_obs)
    action = jnp.clip(mean + jnp.clip(0.3 * noise, -0.2, 0.2), -1, 1)
    probs, atoms = probabilities(state.target_params, batch, action), np.linspace(-10, 10, 21)
    choices = set()
    for i in range(32):
        each = np.zeros((2, 21))
        for e in range(2):
            for p, z in zip(probs[e, i], atoms, strict=True):
                goes_on = 0.0 if batch.terminated[i] else 0.9 ** int(batch.num[i])
                at = (np.clip(0.5 * float(batch.reward[i]) + goes_on * z, -10, 10) + 10) / 1.0
                low = min(int(at), 19)
                each[e, low] += p * (low + 1 - at)
                each[e, low + 1] += p * (at - low)
        choices.add(lowest := int(np.argmin(each @ atoms)))
        np.testing.assert_allclose(found[i], each[lowest], atol=1e-5)
    assert choices == {0, 1}


def test_the_mean_of_the_target_is_that_of_td3(state, batch):
    """Within the atoms a projection keeps the mean: the lowest of both critics, as clipped double Q-learning has it."""
    config, noise = replace(small, gamma=0.5), jnp.zeros((32, 1))
    found = module.target(state.target_params, state.params["actor"], config, pendulum, batch, noise)
    action = module.networks(config, pendulum)[0].apply(state.params["actor"], batch.next_obs)
    q = (probabilities(state.target_params, batch, action) @ np.linspace(-10, 10, 21)).min(axis=0)
    wanted = np.asarray(batch.reward) + np.where(batch.terminated, 0, 0.5 ** np.asarray(batch.num) * q)
    inside = np.abs(np.asarray(batch.reward)) < 4  # nothing of it is beyond the ends
    np.testing.assert_allclose((found @ np.linspace(-10, 10, 21))[inside], wanted[inside], atol=1e-4)


def test_the_critics_loss_is_a_cross_entropy_and_has_no_gradient_for_its_target(state, batch):
    noise = jnp.zeros((32, 1))
    inputs = state.params, state.target_params, small, pendulum, batch, noise
    loss, (value, _) = module.critic_loss(state.params["critic"], *inputs)
    wanted = np.asarray(module.target(state.target_params, state.params["actor"], small, pendulum, batch, noise))
    critic = module.networks(small, pendulum)[1]
    logits = jax.vmap(critic.apply, in_axes=(0, None, None))(state.params["critic"], batch.obs, batch.action)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(loss, -(wanted * log_p).sum(-1).sum(0).mean(), rtol=1e-5)
    np.testing.assert_allclose(value, np.exp(log_p) @ np.linspace(-10, 10, 21), atol=1e-4)
    grads = jax.grad(lambda params: module.critic_loss(state.params["critic"], params, *inputs[1:])[0])(state.params)
    assert all(not x.any() for x in jax.tree.leaves(grads["critic"]))


def test_the_actor_follows_the_lowest_value(state, batch):
    found = module.actor_loss(state.params["actor"], state.params, small, pendulum, batch)
    actor, critic = module.networks(small, pendulum)
    action = actor.apply(state.params["actor"], batch.obs)
    logits = jax.vmap(critic.apply, in_axes=(0, None, None))(state.params["critic"], batch.obs, action)
    q = np.asarray(jax.nn.softmax(logits)) @ np.linspace(-10, 10, 21)
    np.testing.assert_allclose(found, -q.min(axis=0).mean(), rtol=1e-4)


def test_each_episode_has_noise_of_one_size():
    env = replace(pendulum, max_steps=3)
    config = replace(small, lowest_noise=0.1, highest_noise=0.5)
    state = jax.jit(module.init)(config, env, jax.random.key(0))
    assert ((state.noise >= 0.1) & (state.noise <= 0.5)).all()
    assert len(set(np.asarray(state.noise).tolist())) == 4
    after, _ = jax.jit(module.update)(config, env, state)  # of 8 steps: all episodes have ended in it
    assert ((after.noise >= 0.1) & (after.noise <= 0.5)).all()
    assert (after.noise != state.noise).all()
    obs, size = jnp.zeros((20_000, 3)), jnp.full(20_000, 0.2)
    action = module.act_with(config, env, state, obs, jax.random.key(1), size)[1]
    np.testing.assert_allclose(action.std(), 0.2, rtol=0.02)
    kept = jax.jit(module.update)(config, pendulum, jax.jit(module.init)(config, pendulum, jax.random.key(0)))[0]
    np.testing.assert_array_equal(kept.noise, state.noise)  # of episodes that go on


def test_a_run_in_pieces_is_bitwise_the_same(state):
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    whole = chunk(module, small, pendulum, state, 0, 3, 3)[0]
    parts = chunk(module, small, pendulum, state, 0, 1, 3)[0]
    parts = chunk(module, small, pendulum, parts, 1, 2, 3)[0]
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="needs continuous actions"):
        module.check(small, rlx.envs.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"lowest_return = 3.0 has to be below highest_return = 2.0, both finite"):
        module.check(replace(small, lowest_return=3.0, highest_return=2.0), pendulum)
    with pytest.raises(ValueError, match="n_step = 9"):
        module.check(replace(small, n_step=9), pendulum)
