"""Numbers that are not finite: which of them end a run, an episode, or nothing, and gradients that stay finite."""

import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rlx
from rlx.advantages import standardize, std
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.distributions import Categorical, Normal
from rlx.groups import group_std, standardize_rewards
from rlx.normalize import normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.pytree import pytree, replace
from rlx.run import best, evaluation
from rlx.spaces import Box
from rlx.sweeps import Sweep
from rlx.sweeps.results import returns_of
from rlx.train import advance

RANKED: Any = SimpleNamespace(rank_by="return")  # all that ranking asks of a job


@pytree
class Faults:
    """When an episode's numbers cease to be finite: after how many steps, and which."""

    after: int = 3
    obs: float = jnp.inf
    reward: float = 0.0


class Faulty:
    """A walk on the line whose observation or reward is spoilt once an episode is old; its state holds infinity."""

    default_params = Faults()

    def reset(self, key, params):
        x = jax.random.uniform(key, (1,))
        return x, (x, jnp.int32(0), jnp.float32(jnp.inf))

    def step(self, key, state, action, params):
        x, time, _ = state
        x, time = x + 0.1, time + 1
        spoilt = time > params.after
        obs = jnp.where(spoilt, x + params.obs, x)
        reward = jnp.where(spoilt, params.reward, -1.0)
        return obs, (obs, time, -x[0]), reward, jnp.array(False), jnp.array(False), {}

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))


def faulty(max_steps=6, **faults):
    return rlx.Env(Faulty(), Faults(**faults), max_steps=max_steps)


@pytest.fixture(scope="module")
def config(ppo):
    return ppo.Config(
        total_steps=128, num_envs=4, num_steps=8, num_minibatches=2, num_epochs=1, hidden_sizes=(8,), normalize_obs=True
    )


@pytest.mark.parametrize("faults", [{"obs": jnp.array(np.nan)}, {"obs": np.inf}, {"obs": 0.0, "reward": -np.inf}])
def test_a_step_that_is_not_finite_ends_its_episode_with_finite_numbers(faults):
    env = faulty(after=2, **faults)
    state = env.reset(jax.random.key(0))
    seen = []
    for _ in range(3):
        state, transition = env.advance(jax.random.key(1), state, jnp.zeros(1))
        seen.append(transition)
    assert [bool(t.diverged) for t in seen] == [bool(t.terminated) for t in seen] == [False, False, True]
    assert [float(t.reward) for t in seen] == [-1.0, -1.0, 0.0]
    np.testing.assert_array_equal(seen[2].next_obs, seen[2].obs)
    np.testing.assert_array_equal(state.obs, seen[1].next_obs)
    assert float(seen[2].episode_return) == -2.0
    assert not seen[2].truncated


def test_an_environment_that_ends_diverged_episodes_itself_is_counted():
    class Reports(Faulty):
        def step(self, *args):
            obs, state, reward, _, truncated, _ = super().step(*args)
            bad = ~jnp.isfinite(obs).all()
            return jnp.nan_to_num(obs), state, reward, bad, truncated, {"diverged": bad}

    env = rlx.Env(Reports(), Faults(after=0), max_steps=6)
    _, transition = env.advance(jax.random.key(1), env.reset(jax.random.key(0)), jnp.zeros(1))
    assert (transition.diverged, transition.terminated) == (True, True)


def test_training_goes_on_past_diverged_episodes_and_infinite_states(ppo, config):
    env = faulty()
    start = ppo.init(config, env, jax.random.key(0))
    state, metrics = jax.jit(advance, static_argnums=(0, 6))(ppo, config, env, start, 0, 4, 4)
    assert state.num_updates == 4
    np.testing.assert_array_equal(metrics["num_diverged"], 8)  # of every environment two, of four steps each
    np.testing.assert_array_equal(metrics["num_episodes"], 0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.obs_stats, metrics)))


def test_evaluations_leave_out_episodes_that_diverged(ppo, config):
    env = faulty()
    state = ppo.init(config, env, jax.random.key(0))
    episodes = rlx.evaluate(ppo, config, env, state, jax.random.key(1), num_episodes=2)
    assert (episodes.diverged & episodes.finished).all()
    half = replace(episodes, diverged=jnp.array([True, False]), returns=jnp.array([7.0, 3.0]))
    found = evaluation(half, 0, config)
    assert (found["mean"], found["std"], found["diverged"], found["returns"]) == (3.0, 0.0, 1, ["nan", 3.0])
    assert evaluation(episodes, 0, config)["mean"] == "nan"


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_training_and_evaluation_run_under_debug_nans(name):
    algorithm = import_module(f"rlx.algos.{name}")
    sizes = {"ppo": {"num_minibatches": 2}, "sac": {"warmup_steps": 8, "batch_size": 4, "capacity": 64}}[name]
    config = algorithm.Config(total_steps=24, num_envs=2, num_steps=4, hidden_sizes=(8,), **sizes)
    with jax.debug_nans(True):
        state, metrics = rlx.train(algorithm, config, faulty(max_steps=3), jax.random.key(0))
        rlx.evaluate(algorithm, config, faulty(max_steps=3), state, jax.random.key(1), num_episodes=2)
    assert metrics["num_episodes"].sum() > 0


def row(lane, configuration, mean, died_at=None):
    return {"lane": lane, "configuration": configuration, "return_mean": mean, "died_at": died_at, "dropped_at": None}


@pytest.mark.parametrize("bad", ["inf", "-inf", "nan"])
def test_a_lane_without_a_finite_return_is_never_best_and_lowers_its_configuration_alone(bad):
    rows = [row(0, 0, 5.0), row(1, 0, bad), row(2, 1, 4.0), row(3, 1, 4.5), row(4, 2, bad), row(5, 2, bad)]
    assert returns_of(rows) == {0: [5.0, 4.0], 1: [4.0, 4.5], 2: [-np.inf, -np.inf]}
    found = Sweep(RANKED, rows)
    assert found.ranking() == [0, 1, 2]
    assert found.best == 0
    assert Sweep(RANKED, rows[4:]).best is None


def test_a_lane_that_died_is_never_best():
    rows = [row(0, 0, 100.0, died_at=3), row(1, 0, 1.0), row(2, 1, 2.0), row(3, 1, 2.0)]
    found = Sweep(RANKED, rows)
    assert found.ranking() == [1, 0]
    assert found.best == 2
    assert Sweep(RANKED, rows[:2]).best == 1


def test_the_best_evaluation_of_a_run_has_a_finite_return():
    rows = [{"mean": mean, "update": i} for i, mean in enumerate([1.0, "inf", "nan", 3.0, "-inf"])]
    assert best(rows)["update"] == 3


@pytest.mark.parametrize("size", [1.0, 1e10, 1e18, 1e20, 1e30])
def test_observations_of_any_size_are_normalised(size):
    x = np.random.default_rng(0).normal(size=(3, 64, 2)).astype(np.float32) * np.float32(size) * [1.0, 0.5]
    stats = statistics((2,))
    for batch in x:
        stats = update_statistics(stats, jnp.asarray(batch, jnp.float32))
    flat = x.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(stats.mean, flat.mean(0), rtol=1e-3, atol=1e-5 * size)
    np.testing.assert_allclose(stats.variance, np.minimum(flat.var(0), np.finfo(np.float32).max), rtol=1e-4)
    z = np.asarray(normalize(stats, jnp.asarray(x[0], jnp.float32)))
    assert np.isfinite(z).all()
    expected = (x[0] - flat.mean(0)) / np.minimum(flat.std(0), np.sqrt(np.finfo(np.float32).max))
    np.testing.assert_allclose(z, np.clip(expected, -10, 10), rtol=1e-3, atol=1e-3)


def test_the_mean_of_observations_whose_sum_overflows_is_right():
    stats = update_statistics(statistics(), jnp.full(8, 3e38))
    np.testing.assert_allclose(stats.mean, 3e38, rtol=1e-6)
    stats = update_statistics(stats, jnp.full(8, -3e38))
    assert abs(float(stats.mean)) < 1e33
    np.testing.assert_array_equal(normalize(stats, jnp.array([3e38, -3e38])), [10.0, -10.0])


def test_rewards_whose_returns_overflow_are_scaled():
    reward = jnp.full((64, 2), 3e37).at[::2].set(-3e37)
    scale, scaled = scale_rewards(reward_scale(2), reward, jnp.zeros((64, 2), bool), 1.0)
    scale, scaled = scale_rewards(scale, jnp.full((64, 2), 3e37), jnp.zeros((64, 2), bool), 1.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((scale, scaled)))
    np.testing.assert_array_equal(scaled, 10.0)


def test_an_advantage_alone_in_its_minibatch_is_not_standardised_away():
    assert float(standardize(jnp.array([3.0]))[0]) == 3.0
    np.testing.assert_allclose(standardize(jnp.array([1.0, 3.0])), [-1.0, 1.0])


def test_the_global_norm_clips_as_optax_does_and_can_be_differentiated_at_0():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]])}
    for bound in (1.0, 13.0, 20.0):
        clips = clip_by_global_norm(bound), optax.clip_by_global_norm(bound)
        clipped = [clip.update(grads, clip.init(grads))[0] for clip in clips]
        jax.tree.map(np.testing.assert_array_equal, *clipped)
    assert np.isnan(clip_by_global_norm(1.0).update({"a": jnp.array([jnp.nan])}, optax.EmptyState())[0]["a"]).all()
    through = lambda bound, scale: clip_by_global_norm(bound).update(scale * jnp.ones(3), optax.EmptyState())[0].sum()
    assert float(jax.grad(through, 1)(1.0, 0.0)) == 3.0
    assert float(jax.grad(through, 1)(jnp.inf, 0.5)) == 3.0
    assert float(jax.grad(global_norm)(jnp.zeros(3))[0]) == 0.0


def test_deviations_of_equal_numbers_have_gradients():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    np.testing.assert_allclose(std(x, axis=1, ddof=1), np.std(np.asarray(x), axis=1, ddof=1), rtol=1e-5)
    for function in (std, standardize, group_std):
        assert np.isfinite(jax.grad(lambda x, f=function: f(x).sum())(jnp.ones((2, 3)))).all()
    alive = jnp.ones((1, 2, 3), bool)
    assert np.isfinite(jax.grad(lambda r: standardize_rewards(r, alive)[0, 0, 0])(jnp.ones((1, 2, 3)))).all()


def test_the_tsallis_divergence_has_its_gradient_in_the_index_at_1():
    pairs = [
        (Categorical(jnp.array([0.1, 1.0, -0.5])), Categorical(jnp.array([0.3, -0.2, 0.4]))),
        (Normal(jnp.array([0.2]), jnp.array([-0.1])), Normal(jnp.array([-0.1]), jnp.array([0.2]))),
    ]
    for p, other in pairs:
        slope, h = float(jax.grad(partial(p.tsallis, other))(1.0)), 0.05
        expected = (float(p.tsallis(other, 1 + h)) - float(p.tsallis(other, 1 - h))) / (2 * h)
        assert slope == pytest.approx(expected, rel=0.02)


GRADIENTS = """
import jax, jax.numpy as jnp
from importlib import import_module
import rlx
SIZES = dict(total_steps=64, warmup_steps=32, num_envs=4, num_steps=8, batch_size=16, hidden_sizes=(8,), capacity=128)
for name, env in (("sac", "Pendulum-v1"), ("mdpo_offpolicy", "Pendulum-v1"), ("sac_discrete", "CartPole-v1"),
        ("ddpg", "Pendulum-v1"), ("tqc", "Pendulum-v1"), ("redq", "Pendulum-v1"), ("crossq", "Pendulum-v1"),
        ("fast_td3", "Pendulum-v1")):
    algorithm, env = import_module(f"rlx.algos.{name}"), rlx.envs.make(env)
    has = algorithm.Config.__dataclass_fields__
    more = dict(critic_hidden_sizes=(8,), utd_ratio=1.0, policy_delay=2)
    config = algorithm.Config(**SIZES, activation="tanh", **{k: v for k, v in more.items() if k in has})

    def last(rate):
        state, _ = rlx.train(algorithm, rlx.replace(config, learning_rate=rate), env, jax.random.key(0))
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(state.params))

    value = jax.jit(last)
    print(float(jax.jit(jax.grad(last))(1e-3)), float(value(1e-3 + 1e-6) - value(1e-3 - 1e-6)) / 2e-6)
"""


@pytest.mark.more
def test_gradients_through_training_are_finite_differences_where_losses_take_each_other_as_given():
    """In float64. A stop_gradient in a loss would hold for the outer gradient as well, and make it wrong and finite."""
    out = subprocess.run(
        [sys.executable, "-c", GRADIENTS], capture_output=True, text=True, env=os.environ | {"JAX_ENABLE_X64": "1"}
    )
    assert out.returncode == 0, out.stderr
    pairs = [[float(x) for x in line.split()] for line in out.stdout.splitlines()]
    assert len(pairs) == 8
    for gradient, difference in pairs:
        np.testing.assert_allclose(gradient, difference, rtol=1e-4)
