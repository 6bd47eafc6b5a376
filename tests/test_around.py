"""Environments with something between them and the agent, and such as begin elsewhere."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.around import chosen, decoded, restarted, rewarded
from rlx.rollout import reset, rollout
from rlx.spaces import Box, Discrete

EXACT = True  # bits are compared


@pytest.fixture(scope="module")
def pendulum():
    return rlx.envs.make("Pendulum-v1", max_steps=20)


def played(env, policy, num_steps=48, num_envs=3, seed=0):
    """Transitions `[T, N]` of a policy that is a function of observations and keys."""
    key = jax.random.key(seed)
    act = lambda obs, key: (jax.vmap(policy)(obs, jax.random.split(key, num_envs)), None)
    return jax.jit(lambda env, key: rollout(env, act, reset(env, key, num_envs), key, num_steps)[1])(env, key)


def uniform(obs, key):
    return jax.random.uniform(key, (1,), minval=-2.0, maxval=2.0)


IDENTITIES = {
    "decoded": lambda env: decoded(env, lambda obs, action, key: action, env.action_space),
    "rewarded": lambda env: rewarded(env, lambda step: step.reward),
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_with_nothing_in_between_it_is_the_environment_to_the_bit(kind, pendulum):
    plain, other = (played(env, uniform) for env in (pendulum, IDENTITIES[kind](pendulum)))
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated", "episode_return", "episode_length"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))
    assert plain.truncated.any()  # time limits are those of the environment inside
    assert IDENTITIES[kind](pendulum).horizon == pendulum.horizon == 20


@pytest.mark.parametrize("kind", IDENTITIES)
def test_they_keep_the_contract(kind, pendulum):
    lines = rlx.envs.check(IDENTITIES[kind](pendulum))
    assert all(lines)


def test_an_action_is_what_the_decoder_makes_of_it(pendulum):
    push = lambda obs, action, key: jnp.where(action == 1, 2.0, -2.0)[None] * jnp.sign(obs[2])
    env = decoded(pendulum, push, Discrete(2))
    ones = played(env, lambda obs, key: jnp.int32(1))
    by_hand = played(pendulum, lambda obs, key: 2.0 * jnp.sign(obs[2])[None])
    np.testing.assert_array_equal(ones.next_obs, by_hand.next_obs)
    assert env.action_space == Discrete(2)


def test_decoders_that_draw_have_keys_of_their_own(pendulum):
    env = decoded(pendulum, lambda obs, action, key: uniform(obs, key), Box(-1, 1, (1,)))
    traj = played(env, lambda obs, key: jnp.zeros(1))
    alone = played(pendulum, lambda obs, key: jnp.zeros(1))
    moves = np.asarray(traj.next_obs[..., 2] - alone.next_obs[..., 2])[0]
    assert len(np.unique(moves)) == 3


def test_decoders_are_a_sweep(pendulum):
    times = lambda scale, obs, action, key: scale * action
    scaled = lambda scale: decoded(pendulum, jax.tree_util.Partial(times, scale), pendulum.action_space)
    env = scaled(jnp.float32(1))
    of = lambda scale: replace(env, params=replace(env.params, decode=scaled(scale).params.decode))
    both = replace(env, params=rlx.stack([of(jnp.float32(x)).params for x in (0.5, 1.0)]))
    key, act = jax.random.key(0), lambda obs, key: (jnp.ones((3, 1)), None)
    run = lambda env: rollout(env, act, reset(env, key, 3), key, 10)[1].next_obs
    swept = jax.jit(jax.vmap(run))(both)
    for i, scale in enumerate((0.5, 1.0)):
        np.testing.assert_allclose(swept[i], jax.jit(run)(scaled(jnp.float32(scale))), rtol=1e-5, atol=1e-6)


def test_gradients_reach_a_decoder():
    env = rlx.envs.make("mjx/pendulum")
    state = env.reset(jax.random.key(0))
    key = jax.random.key(1)

    def velocity(gain):
        through = decoded(env, jax.tree_util.Partial(lambda g, o, a, k: g * a, gain), env.action_space)
        return through.environment.step(key, state, jnp.full(env.action_space.shape, 0.5), through.params)[0].sum()

    slope = (velocity(1.01) - velocity(0.99)) / 0.02
    np.testing.assert_allclose(jax.grad(velocity)(1.0), slope, rtol=1e-2)
    assert abs(slope) > 1e-3


def test_an_action_chooses_a_controller(pendulum):
    still, left = (lambda obs, key: jnp.zeros(1)), (lambda obs, key: jnp.full(1, -2.0))
    env = chosen(pendulum, [still, left])
    for i, controller in enumerate((still, left)):
        traj = played(env, lambda obs, key, i=i: jnp.int32(i))
        np.testing.assert_array_equal(traj.next_obs, played(pendulum, controller).next_obs)
    with pytest.raises(ValueError, match="at least 2"):
        chosen(pendulum, [still])


def test_another_reward_and_the_own_one(pendulum):
    env = rewarded(pendulum, lambda step: 2.0 * step.next_obs[2] + step.reward * 0)
    traj, plain = played(env, uniform), played(pendulum, uniform)
    np.testing.assert_array_equal(traj.reward, 2.0 * plain.next_obs[..., 2])
    np.testing.assert_array_equal(traj.reported["own_return"], plain.episode_return)


@pytest.fixture(scope="module")
def states(pendulum):
    """States on the way of episodes, `[M]`."""

    def one(key):
        start = pendulum.reset(key)
        step = lambda state, key: (pendulum.advance(key, state, uniform(None, key))[0],) * 2
        return jax.lax.scan(step, start, jax.random.split(key, 5))[0]

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 40))


def test_episodes_begin_from_kept_states_as_often_as_asked(pendulum, states):
    kept = {tuple(np.asarray(obs)) for obs in states.obs}
    for share in (0.0, 0.5, 1.0):
        env = restarted(pendulum, states, share)
        starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2_000))
        again = np.array([tuple(obs) in kept for obs in np.asarray(starts.obs)])
        np.testing.assert_allclose(again.mean(), share, atol=0.04)  # 3.5 standard errors
        assert not starts.time.any()
        assert not starts.episode_return.any()
    # All of them as often: 50 times, with a standard error of 7.
    counts = np.unique(np.asarray(starts.obs), axis=0, return_counts=True)[1]
    assert len(counts) == 40
    assert 20 < counts.min() < counts.max() < 85


def test_a_kept_state_goes_on_as_it_would_have(pendulum, states):
    env = restarted(pendulum, states, 1.0)
    start = env.reset(jax.random.key(5))
    index = int(np.flatnonzero((np.asarray(states.obs) == np.asarray(start.obs)).all(-1))[0])
    one = jax.tree.map(lambda x: x[index], states)
    action, key = jnp.ones(1), jax.random.key(6)
    expected, found = pendulum.advance(key, one, action)[1], env.advance(key, start, action)[1]
    np.testing.assert_array_equal(found.next_obs, expected.next_obs)
    np.testing.assert_array_equal(found.reward, expected.reward)


def test_restarts_keep_the_contract_and_refuse_other_states(pendulum, states, cartpole):
    assert all(rlx.envs.check(restarted(pendulum, states, 0.5)))
    with pytest.raises(ValueError, match="of another environment"):
        restarted(cartpole, states)
    with pytest.raises(ValueError, match="from 0 to 1"):
        restarted(pendulum, states, 1.5)


def test_training_from_restarts_is_one_program(ppo, pendulum, states):
    env = restarted(pendulum, states, 0.5)
    config = ppo.Config(total_steps=512, num_envs=4, num_steps=64, hidden_sizes=(8,))
    _, metrics = rlx.train(ppo, config, env, jax.random.key(0))
    assert metrics["num_episodes"].sum() > 0
    run = jax.jit(jax.vmap(lambda share: rlx.train(ppo, config, replace_share(env, share), jax.random.key(0))[1]))
    swept = run(jnp.array([0.0, 1.0]))
    assert swept["episode_return"].shape == (2, 2)


def replace_share(env, share):
    return replace(env, params=replace(env.params, share=share))


def test_wrappers_in_each_other(pendulum, states):
    env = decoded(restarted(pendulum, states, 1.0), lambda obs, action, key: -action, pendulum.action_space)
    env = rewarded(env, lambda step: -step.reward)
    traj = played(env, partial(uniform))
    assert (traj.reward >= 0).all()
