"""Parameters of an environment that change over a run, by its progress and by success."""

import json
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import grpo, ppo, sac_discrete
from rlx.cli import main
from rlx.curriculum import Success, at_pace, by_success, moving, next_pace, settled
from rlx.env import Env, Transition, with_params
from rlx.rollout import reset, rollout
from rlx.schedules import linear
from rlx.spaces import Box, Discrete
from rlx.train import here

SMALL = {"num_envs": 2, "num_steps": 4, "total_steps": 40, "num_minibatches": 1, "num_epochs": 1, "hidden_sizes": (4,)}


class Pays:
    """Pays its parameter in each step, and shows it; an episode has 4 steps."""

    default_params: ClassVar = {"pay": 1.0}

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        return jnp.array([params["pay"]], jnp.float32), jnp.int32(0)

    def step(self, key, state, action, params):
        pay = jnp.asarray(params["pay"], jnp.float32)
        return pay[None], state + 1, pay, state >= 3, jnp.array(False), {}


plain = Env(Pays(), Pays.default_params, num_starts=2)
random = lambda obs, key: (jnp.zeros(len(obs), jnp.int32), None)


def test_a_schedule_among_the_parameters_has_the_value_of_each_update():
    env = with_params(plain, {"pay": "linear:1:6"})
    config = ppo.Config(**SMALL)  # 5 updates of one episode in each environment
    _, metrics = rlx.train(ppo, config, env, jax.random.key(0))
    np.testing.assert_allclose(metrics["episode_return"], 4 * np.array([1, 2, 3, 4, 5]), rtol=1e-6)


def test_a_run_in_pieces_is_the_run_in_one():
    env = with_params(plain, {"pay": linear(1, 6)})
    config = ppo.Config(**SMALL)
    whole, _ = rlx.train(ppo, config, env, jax.random.key(0))
    state = jax.jit(lambda key: ppo.init(config, here(config, env), key))(jax.random.key(0))
    for _ in range(5):
        state, _ = rlx.resume(ppo, config, env, state, num_updates=1)
    jax.tree.map(np.testing.assert_array_equal, whole.params, state.params)


def test_what_is_not_training_is_in_the_environment_that_it_ends_in():
    config = ppo.Config(**SMALL)
    for moved in (linear(1, 6), by_success(1, 6, 100)):
        env = with_params(plain, {"pay": moved})
        state, _ = rlx.train(ppo, config, env, jax.random.key(0))
        found = rlx.evaluate(ppo, config, env, state, jax.random.key(1), num_episodes=2)
        np.testing.assert_allclose(found.returns, 24.0)
        assert settled(env.params) == {"pay": 6.0}
        assert rlx.envs.check(with_params(plain, {"pay": 2.0}), num_steps=8, random_starts=False)


def test_a_parameter_goes_on_where_episodes_succeed_and_waits_where_not():
    # Episodes return four times the parameter: 4, 8, 12, ... which is enough below a threshold of 10 never.
    enough = with_params(plain, {"pay": by_success(1, 5, 4, step=0.25)})
    _, metrics = rlx.train(ppo, ppo.Config(**SMALL), enough, jax.random.key(0))
    np.testing.assert_allclose(metrics["episode_return"], 4 * np.array([1, 2, 3, 4, 5]), rtol=1e-6)
    np.testing.assert_allclose(metrics["episode_curriculum"], [0, 0.25, 0.5, 0.75, 1.0])
    never = with_params(plain, {"pay": by_success(1, 5, 10, step=0.25)})
    _, metrics = rlx.train(ppo, ppo.Config(**SMALL), never, jax.random.key(0))
    np.testing.assert_allclose(metrics["episode_return"], 4.0)


def traj_of(returns, done, reported=None):
    x = jnp.asarray(returns, jnp.float32)
    empty = dict.fromkeys(("obs", "action", "reward", "next_obs", "truncated", "episode_length", "info", "diverged"), x)
    done = jnp.asarray(done, bool)
    return Transition(
        **empty | {"terminated": done, "truncated": ~done & False}, episode_return=x, reported=reported or {}
    )


@pytest.mark.parametrize(
    ("returns", "done", "after"),
    [([4.0, 6.0, 0.0], [1, 1, 0], 0.4), ([4.0, 5.9, 9.0], [1, 1, 0], 0.3), ([9.0, 9.0, 9.0], [0, 0, 0], 0.3)],
)
def test_only_episodes_that_ended_count(returns, done, after):
    rule = {"a": by_success(0, 1, 5, step=0.1), "b": 3.0}
    np.testing.assert_allclose(next_pace(rule, jnp.float32(0.3), traj_of([returns], [done])), after, rtol=1e-6)


def test_success_counts_where_the_environment_reports_it():
    rule = by_success(0, 1, 0.5, step=0.1)
    traj = traj_of([[-3.0, -4.0]], [[1, 1]], {"success": jnp.array([[1.0, 0.0]])})
    np.testing.assert_allclose(next_pace(rule, jnp.float32(0), traj), 0.1, rtol=1e-6)
    assert next_pace(by_success(0, 1, 0.6, step=0.1), jnp.float32(0), traj) == 0


def test_the_pace_stays_within_0_and_1_and_gives_the_ends():
    rule = Success(1.0, 9.0, 0.0, 0.3)
    np.testing.assert_allclose(rule.moved(jnp.float32(0.9), jnp.float32(1), jnp.int32(1)), 1.0)
    assert (at_pace(rule, 0.0), at_pace(rule, 1.0)) == (1.0, 9.0)


def test_off_policy_learners_keep_the_pace_and_it_is_lane_by_lane():
    env = with_params(plain, {"pay": by_success(1, 5, 4, step=0.25)})
    config = sac_discrete.Config(
        num_envs=2, num_steps=4, total_steps=48, warmup_steps=8, capacity=64, batch_size=4, hidden_sizes=(4,)
    )
    state, metrics = rlx.train(sac_discrete, config, env, jax.random.key(0))
    assert metrics["episode_curriculum"][-1] > metrics["episode_curriculum"][0]
    assert state.env_state.pace.shape == (2,)
    envs = [with_params(plain, {"pay": by_success(1, 5, t, step=0.25)}) for t in (4.0, 10.0)]
    run = jax.vmap(partial(rlx.train, ppo), in_axes=(None, 0, None))
    _, metrics = run(ppo.Config(**SMALL), rlx.stack(envs), jax.random.key(0))
    np.testing.assert_allclose(metrics["episode_curriculum"][:, -1], [1.0, 0.0])


def test_the_pace_is_part_of_the_state_and_of_rollouts():
    env = with_params(plain, {"pay": by_success(1, 5, 4, step=0.25)})
    start = reset(env, jax.random.key(0), 3)
    np.testing.assert_array_equal(start.pace, 0.0)
    after, traj = jax.jit(partial(rollout, env, random, num_steps=4))(start, jax.random.key(1))
    np.testing.assert_allclose(after.pace, 0.25)
    np.testing.assert_array_equal(traj.reported["curriculum"], 0.0)
    assert reset(plain, jax.random.key(0), 3).pace is None


def test_groups_of_episodes_keep_no_pace():
    env = with_params(plain, {"pay": by_success(1, 5, 4)})
    config = grpo.Config(num_groups=2, group_size=2, num_steps=4, total_steps=64, num_minibatches=1)
    with pytest.raises(ValueError, match="keep no pace of a curriculum: give a schedule"):
        rlx.train(grpo, config, env, jax.random.key(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("success:1:9", "has 2 numbers: give success:START:END:THRESHOLD"),
        ("success:1:9:x", "give success:START:END:THRESHOLD"),
        ("success:1:9:4:2", "STEP is above 0 and at most 1"),
        ("success:1:9:inf", "give finite numbers"),
        ("linear:1", "has no END"),
    ],
)
def test_what_is_written_wrong_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        moving(text)


def test_it_is_printed_as_it_is_written():
    assert str(moving("success:1:9.8:400")) == "success:1:9.8:400"
    assert str(moving("success:1:9.8:400:0.1")) == "success:1:9.8:400:0.1"


def test_only_a_real_number_changes():
    class Whole(Pays):
        default_params: ClassVar = {"pay": 1}

    with pytest.raises(ValueError, match="parameter pay = 'linear:1:2': only a real number changes over a run"):
        with_params(Env(Whole(), Whole.default_params), {"pay": "linear:1:2"})


def test_the_command_line_resumes_a_run_with_a_curriculum_to_the_bit(tmp_path, command_cache):
    command = ["train", "ppo", "--env", "CartPole-v1", "--num-envs", "2", "--num-steps", "8", "--hidden-sizes", "4"]
    command += ["--num-minibatches", "1", "--eval-episodes", "2", "--curriculum", "gravity=linear:1:9.8"]
    command += ["length=success:1:0.5:5:0.25", "--out"]
    main([*command, str(tmp_path / "a"), "--total-steps", "160"])
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved["env_params"] == {"gravity": "linear:1:9.8", "length": "success:1:0.5:5:0.25"}
    whole = rlx.load(tmp_path / "a")
    assert float(whole.state.env_state.pace[0]) > 0
    assert whole.env.settled.gravity == pytest.approx(9.8)
    main([*command, str(tmp_path / "b"), "--total-steps", "160", "--max-seconds", "0.001"])
    assert rlx.load(tmp_path / "b").num_updates < 10
    main(["train", "--resume", str(tmp_path / "b")])
    other = rlx.load(tmp_path / "b")
    assert other.num_updates == 10
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, other.state.params)
    np.testing.assert_array_equal(whole.state.env_state.pace, other.state.env_state.pace)
