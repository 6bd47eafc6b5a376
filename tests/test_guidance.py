"""A range around an expert: its limits, which episodes it is in, and a task that is not learned without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.env import with_params
from rlx.guidance import guided
from rlx.rollout import reset, rollout


@pytest.fixture(scope="module")
def pendulum():
    return rlx.envs.make("Pendulum-v1", max_steps=20)


def expert(obs, key):
    return 1.5 * jnp.tanh(obs[:1])


def played(env, policy, num_steps=40, num_envs=64):
    act = lambda obs, key: (jax.vmap(policy)(obs, jax.random.split(key, len(obs))), None)
    key = jax.random.key(0)
    return jax.jit(lambda env: rollout(env, act, reset(env, key, num_envs), key, num_steps)[1])(env)


def anything(obs, key):
    return jax.random.uniform(key, (1,), minval=-2.0, maxval=2.0)


def pushed(traj):
    """The torque that Pendulum was given, from its velocities."""
    obs, after = np.asarray(traj.obs, np.float64), np.asarray(traj.next_obs, np.float64)
    return ((after[..., 2] - obs[..., 2]) / 0.05 - 15.0 * obs[..., 1]) / 3.0


def test_without_guided_episodes_it_is_the_environment(pendulum):
    plain, other = (played(env, anything) for env in (pendulum, guided(pendulum, expert, share=0.0)))
    np.testing.assert_array_equal(plain.next_obs, other.next_obs[..., :3])
    np.testing.assert_array_equal(plain.reward, other.reward)
    np.testing.assert_array_equal(other.obs[..., 3], 0)
    assert other.truncated.any()


@pytest.mark.parametrize("width", [0.0, 0.2])
def test_a_guided_episode_stays_within_the_range_around_the_expert(pendulum, width):
    traj = played(guided(pendulum, expert, width, share=1.0), anything)
    wanted = np.asarray(1.5 * np.tanh(traj.obs[..., 0]))
    chosen = np.clip(wanted / 2 + width * np.asarray(traj.action[..., 0]) / 2, -1, 1) * 2
    inner = np.abs(np.asarray(traj.next_obs[..., 2])) < 7.9  # its velocity is cut at 8
    np.testing.assert_allclose(pushed(traj)[inner], chosen[inner], atol=2e-3)
    assert (np.abs(chosen - wanted) <= 2 * width + 1e-6).all()


def test_the_share_is_of_episodes_and_each_says_which_it_is(pendulum):
    env = guided(pendulum, expert, share=0.25)
    seen = np.asarray(played(env, anything, num_steps=40, num_envs=512).obs[..., 3])
    episodes = seen.reshape(2, 20, 512)
    assert (episodes == episodes[:, :1]).all()
    assert abs(episodes[:, 0].mean() - 0.25) < 0.05
    none = with_params(env, {"share": 0.0})
    assert played(none, anything).obs[..., 3].sum() == 0


@pytest.mark.more
def test_it_keeps_the_contract(pendulum):
    rlx.envs.check(guided(pendulum, expert), num_steps=64)


def test_what_does_not_fit_is_refused(pendulum, cartpole):
    for env, changes, message in (
        (cartpole, {}, "continuous"),
        (pendulum, {"share": 1.5}, "share = 1.5"),
        (pendulum, {"width": -1.0}, "width = -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            guided(env, expert, **changes)
