"""DDPG: its equations and limits, noise that remembers, the average reward, and what it learns on probes."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import Env, replace, stack
from rlx.algos import ddpg
from rlx.envs.tasks.probes import ContinuousAction, Endless, Mixed
from rlx.replay import take
from rlx.spaces import Box
from rlx.train import advance

ENDLESS, ACTION = 0, 1
mixed = Mixed((Endless, ContinuousAction), Box(-2.0, 2.0, (1,)))
env = Env(mixed, mixed.default_params, max_steps=3)
SIZES = {"num_envs": 4, "num_steps": 8, "batch_size": 16, "capacity": 64, "hidden_sizes": (16,)}
SMALL = {"total_steps": 128, "warmup_steps": 32, "utd_ratio": 0.25, "learning_rate": 1e-2, "tau": 0.1, **SIZES}
small = ddpg.Config(**SMALL, critic_learning_rate=1e-2)
init, update = jax.jit(ddpg.init), jax.jit(ddpg.update)


def moved(params, phase=0.0):
    return jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size) + phase).reshape(x.shape), params)


@pytest.fixture(scope="module")
def problem():
    """Parameters, those of the targets, a batch with ends in it, and noise."""
    state = init(small, env, jax.random.key(0))
    batch = take(state.replay, jnp.arange(32))
    assert 0 < batch.terminated.sum() < 32
    return (
        moved(state.params),
        moved(state.target_params, 1.0),
        batch,
        3 * jax.random.normal(jax.random.key(1), (32, 1)),
    )


def equation(config, params, target_params, batch, noise):
    """The losses in float64, from what the networks say."""
    actor, critic = ddpg.networks(config, env)
    q = lambda params, *args: np.asarray(jax.vmap(critic.apply, in_axes=(0, None, None))(params, *args), np.float64)
    smooth = np.clip(config.target_noise * np.asarray(noise), -config.target_noise_clip, config.target_noise_clip)
    next_action = np.clip(actor.apply(target_params["actor"], batch.next_obs) + smooth, -1, 1)
    next_value = q(target_params["critic"], batch.next_obs, jnp.float32(next_action)).min(0)
    going_on = config.gamma ** np.asarray(batch.num, np.float64) * (1.0 - np.asarray(batch.terminated))
    target = config.reward_scale * np.asarray(batch.reward) + going_on * next_value
    error = q(params["critic"], batch.obs, batch.action) - target
    chosen = actor.apply(params["actor"], batch.obs)
    return 0.5 * (error**2).sum(0).mean(), -q(params["critic"], batch.obs, chosen)[0].mean()


@pytest.mark.parametrize("changes", [{}, {"target_noise": 0.0, "gamma": 0.5}, {"reward_scale": 3.0}])
def test_the_losses_are_their_equations(problem, changes):
    params, target_params, batch, noise = problem
    config, batch = replace(small, **changes), replace(batch, num=1 + jnp.arange(32) % 3)
    of_critics, of_actor = equation(config, params, target_params, batch, noise)
    found = ddpg.critic_loss(params, target_params, config, env, batch, noise)[0]
    np.testing.assert_allclose(found, of_critics, rtol=1e-4)  # means of 32 float32 numbers of order 1 to 10
    np.testing.assert_allclose(ddpg.actor_loss(params["actor"], params, config, env, batch), of_actor, rtol=1e-4)


def test_with_one_critic_and_no_noise_the_target_is_that_of_ddpg(problem):
    """The noise of targets is clipped, and the minimum of one critic is that critic."""
    params, target_params, batch, noise = problem
    one = jax.tree.map(lambda x: x[:1], {"critic": params["critic"]})
    target = {"actor": target_params["actor"], "critic": jax.tree.map(lambda x: x[:1], target_params["critic"])}
    actor, critic = ddpg.networks(small, env)
    next_value = critic.apply(
        jax.tree.map(lambda x: x[0], target["critic"]),
        batch.next_obs,
        actor.apply(target["actor"], batch.next_obs),
    )
    y = batch.reward + small.gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = critic.apply(jax.tree.map(lambda x: x[0], one["critic"]), batch.obs, batch.action)
    plain = replace(small, target_noise=0.0)
    loss, _ = ddpg.critic_loss(one, target, plain, env, batch, noise)
    np.testing.assert_allclose(loss, 0.5 * jnp.mean((value - y) ** 2), rtol=1e-5)
    far = ddpg.critic_loss(one, target, replace(small, target_noise=1e6, target_noise_clip=0.0), env, batch, noise)[0]
    np.testing.assert_allclose(far, loss, rtol=1e-6)
    assert ddpg.critic_loss(one, target, small, env, batch, noise)[0] != loss


def test_actor_and_targets_move_once_for_each_group_of_steps_of_the_critics():
    for delay, expected in ((1, 8), (2, 4), (8, 1)):
        config = replace(small, policy_delay=delay)
        state, _ = update(config, env, init(config, env, jax.random.key(0)))
        count = lambda name, state=state: [
            int(x) for x in jax.tree.leaves(state.opt_state[name]) if x.dtype == jnp.int32 and x.ndim == 0
        ]
        assert count("actor") == [expected]
        assert count("critic") == [8]
    frozen = replace(small, tau=0.0)
    start = init(frozen, env, jax.random.key(0))
    after, _ = update(frozen, env, start)
    jax.tree.map(np.testing.assert_array_equal, after.target_params, start.target_params)
    follows, _ = update(replace(small, tau=1.0), env, start)
    jax.tree.map(np.testing.assert_array_equal, follows.target_params, follows.params)


def test_the_noise_of_actions_remembers_and_ends_with_the_episode():
    state = init(small, env, jax.random.key(0))
    config = replace(small, exploration_noise=0.5, noise_decay=0.25)
    obs, before, key = jnp.zeros((4, *env.observation_space.shape)), jnp.full((4, 1), 0.4), jax.random.key(3)
    action, unit, after = ddpg.act_noisily(config, env, state, obs, key, before)
    drawn = 0.5 * jax.random.normal(key, (4, 1))
    np.testing.assert_allclose(after, 0.75 * 0.4 + drawn, rtol=1e-6)
    _, quiet = ddpg.act(config, env, state, obs, key, deterministic=True)
    np.testing.assert_allclose(unit, np.clip(quiet + after, -1, 1), rtol=1e-6)
    np.testing.assert_allclose(action, 2 * unit, rtol=1e-6)
    white = ddpg.act_noisily(replace(config, noise_decay=1.0), env, state, obs, key, before)
    np.testing.assert_array_equal(white[1], ddpg.act(config, env, state, obs, key)[1])
    # Where nothing is drawn a noise stays as it was, but for those whose episode has ended.
    still = replace(config, exploration_noise=0.0, noise_decay=0.0)
    endless = Env(mixed, mixed.default_params, max_steps=1000)
    kept, _ = update(still, endless, replace(init(still, endless, jax.random.key(0)), noise=before))
    ended, _ = update(still, env, replace(init(still, env, jax.random.key(0)), noise=before))
    assert set(kept.noise.ravel().tolist()) <= {0.0, np.float32(0.4)}
    np.testing.assert_array_equal(ended.noise, 0.0)


class Ring:
    """Three states in a ring; one of them pays 1, and where `ends` an episode ends after each round."""

    default_params: ClassVar = 0.0  # paid beside it at every step

    def __init__(self, ends):
        self.ends = ends

    def observation_space(self, params):
        return Box(0.0, 1.0, (3,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def reset(self, key, params):
        return jax.nn.one_hot(0, 3), jnp.int32(0)

    def step(self, key, state, action, params):
        after, last = (state + 1) % 3, state == 2
        seen = jax.nn.one_hot(after, 3) * ~(last & self.ends)  # of an end nothing
        return seen, after, last + params, last & self.ends, jnp.array(False), {}


@pytest.mark.parametrize("ends", [False, True])
def test_the_average_reward_of_a_ring_is_found_whether_or_not_its_rounds_are_episodes(ends):
    """A round pays 1 in three steps, and half a unit more at every step is as much more of the average."""
    config = ddpg.Config(
        **SIZES | {"batch_size": 64, "capacity": 2048, "total_steps": 8_256},
        **{"warmup_steps": 64, "utd_ratio": 0.5, "tau": 0.2, "critic_learning_rate": 1e-2, "learning_rate": 1e-3},
        average_reward=True,
    )
    ring = Env(Ring(ends), jnp.array([0.0, 0.5]), max_steps=50)
    train = jax.vmap(lambda pay: rlx.train(ddpg, config, replace(ring, params=pay), jax.random.key(0)))
    state, metrics = train(ring.params)
    np.testing.assert_allclose(metrics["average_reward"][:, -1], [1 / 3, 0.5 + 1 / 3], atol=0.05)
    _, critic = ddpg.networks(config, replace(ring, params=0.0))
    first = jax.tree.map(lambda x: x[0, 0], state.params["critic"])
    value = critic.apply(first, jnp.eye(3), jnp.zeros((3, 1)))
    # Differential values: Q(0) + 1/3 = 0 + Q(1), and so on.
    np.testing.assert_allclose(np.diff(value), 1 / 3, atol=0.08)


def test_an_episode_that_ends_is_followed_by_the_next_start_where_the_reward_is_averaged():
    ring = Env(Ring(True), 0.0, max_steps=50)
    config = replace(small, average_reward=True)
    state = init(config, ring, jax.random.key(0))
    batch = take(state.replay, jnp.arange(32))
    assert not batch.terminated.any()
    np.testing.assert_array_equal(batch.next_obs, jnp.roll(batch.obs, 1, axis=-1))
    cut = Env(Ring(False), 0.0, max_steps=2)  # a time limit: the true successor, and no start
    batch = take(init(config, cut, jax.random.key(0)).replay, jnp.arange(32))
    np.testing.assert_array_equal(batch.next_obs.argmax(-1), (batch.obs.argmax(-1) + 1) % 3)


def test_several_steps_are_kept_as_one():
    ring = Env(Ring(False), 0.0, max_steps=50)
    config = replace(small, n_step=3, gamma=0.5)
    batch = take(init(config, ring, jax.random.key(0)).replay, jnp.arange(32))
    where, whole = batch.obs.argmax(-1), batch.num == 3
    assert 0 < whole.sum() < 32
    np.testing.assert_allclose(batch.reward[whole], 0.5 ** (2.0 - where[whole]))
    np.testing.assert_array_equal(batch.next_obs.argmax(-1), (where + batch.num) % 3)


@pytest.fixture(scope="module")
def learned():
    """Runs on the probes of td3 and of ddpg."""
    sizes = {"total_steps": 150 * 64 + 256, "warmup_steps": 256, "num_envs": 16, "num_steps": 4, "utd_ratio": 0.5}
    rates = {"learning_rate": 3e-3, "critic_learning_rate": 1e-2, "tau": 0.05, "gamma": 0.9, "hidden_sizes": (32, 32)}
    config = ddpg.Config(**sizes, **rates, batch_size=128, capacity=2048, target_noise=0.1)
    train = jax.jit(partial(rlx.train, ddpg, config, env))
    return config, train(jax.random.key(0))[0]


def test_the_policy_takes_the_best_action_and_time_limits_bootstrap(learned):
    """Endless pays 1 at every step: Q = 1 / (1 - gamma), although every episode is cut after three."""
    config, state = learned
    obs = jnp.stack([mixed.obs(ACTION, -1.0), mixed.obs(ACTION, 1.0), mixed.obs(ENDLESS, 0.0)])
    action, unit = ddpg.act(config, env, state, obs, jax.random.key(0), deterministic=True)
    np.testing.assert_allclose(action[:2, 0], [-0.5, 0.5], atol=0.2)
    _, critic = ddpg.networks(config, env)
    value = jax.vmap(critic.apply, in_axes=(0, None, None))(state.params["critic"], obs[2], unit[2])
    np.testing.assert_allclose(value, 10.0, rtol=0.05)


def test_a_run_in_pieces_is_bitwise_the_same_and_uses_no_key_twice():
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    start = init(small, env, jax.random.key(0))
    whole, _ = chunk(ddpg, small, env, start, 0, 3, 3)
    state, _ = chunk(ddpg, small, env, start, 0, 1, 3)
    state, _ = chunk(ddpg, small, env, state, 1, 2, 3)
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), state, whole)
    with jax.debug_key_reuse(True):
        rlx.train(ddpg, replace(small, gamma=0.98), env, jax.random.key(0))


TRACED = {
    "learning_rate": 3e-2,
    "critic_learning_rate": 3e-2,
    "weight_decay": 0.1,
    "target_noise": 0.5,
    "target_noise_clip": 0.1,
    "exploration_noise": 0.5,
    "noise_decay": 0.5,
    "gamma": 0.5,
    "tau": 0.5,
    "reward_scale": 3.0,
}


def test_every_traced_setting_changes_the_weights_and_a_sweep_equals_its_single_runs():
    configs = [*(replace(small, **{name: value}) for name, value in TRACED.items()), small]
    lanes, _ = jax.vmap(partial(rlx.train, ddpg), in_axes=(0, None, None))(stack(configs), env, jax.random.key(0))
    weights = np.concatenate([np.reshape(x, (len(configs), -1)) for x in jax.tree.leaves(lanes.params)], axis=1)
    for i, name in enumerate(TRACED):
        assert np.abs(weights[i] - weights[-1]).max() > 1e-4, name
    single, _ = rlx.train(ddpg, small, env, jax.random.key(0))
    # A batched matrix product sums in another order: 1e-7 an operation, which 24 steps of Adam enlarge.
    close = lambda x, y: np.testing.assert_allclose(x[-1], y, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, lanes.params, single.params)


def test_variants_are_whole_settings():
    assert replace(ddpg.Config(), **ddpg.VARIANTS["td3"]) == ddpg.Config()
    for values in ddpg.VARIANTS.values():
        ddpg.check(replace(ddpg.Config(), **values), env)


def test_bad_settings_are_refused():
    for changes, message in (
        ({"policy_delay": 3}, "policy_delay = 3 does not divide the 8 gradient steps"),
        ({"n_step": 9}, "n_step = 9 is more than num_steps = 8"),
        ({"batch_size": 65}, "raise capacity = 64"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(rlx.train, ddpg), replace(small, **changes), env, jax.random.key(0))
