"""Demonstrations of several entries and parts, and of policies that remember: the file, the noise, what is cloned."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import ppo, ppo_recurrent
from rlx.data import clone, collect, disturbed, examples, load, save
from rlx.env import Env
from rlx.pytree import replace
from rlx.spaces import Box, Dict, Discrete, Tuple

SIZES = {"total_steps": 64, "num_envs": 4, "num_steps": 16, "num_minibatches": 2}


def policy(act, **more):
    return type("Policy", (), {"act": staticmethod(act), **{name: staticmethod(f) for name, f in more.items()}})


class Copied:
    """Two steps in which the parts of the observation are to be done."""

    default_params = None
    space = Dict(tool=Discrete(3), pair=Tuple(Discrete(2, shape=(2,)), Box(-1.0, 1.0, (2,))))

    def observation_space(self, params):
        return Dict(self.space.spaces | {"pixels": Box(0, 255, (3, 3, 1), jnp.uint8)})

    def action_space(self, params):
        return self.space

    def reset(self, key, params):
        return self.observation_space(params).sample(key), jnp.int32(0)

    def step(self, key, state, action, params):
        obs, _ = self.reset(key, params)
        return obs, state + 1, jnp.float32(0), state >= 1, jnp.array(False), {}


@pytest.fixture(scope="module")
def env():
    return Env(Copied(), None)


@pytest.fixture(scope="module")
def shown(env):
    copy = lambda config, env, state, obs, key, deterministic=False: ({n: obs[n] for n in ("tool", "pair")}, None)
    found = collect(policy(copy), None, env, None, jax.random.key(0), 120)
    return replace(found, about={"env": "my/Copied", "env_options": {}, "env_params": {}})


def test_a_file_keeps_every_entry_under_its_name(shown, tmp_path):
    save(tmp_path / "d.npz", shown)
    columns = set(np.load(tmp_path / "d.npz").files)
    assert {"obs.pixels", "obs.tool", "obs.pair.0", "action.tool", "action.pair.1", "next_obs.pixels"} <= columns
    found = load(tmp_path / "d.npz")
    for name in ("obs", "next_obs", "action"):
        assert jax.tree.structure(getattr(found, name)) == jax.tree.structure(getattr(shown, name))
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(shown, name))
    assert found.obs["pixels"].dtype == np.uint8
    assert found.obs["pixels"].shape == (240, 3, 3, 1)


def test_every_part_is_cloned(env, shown):
    config = ppo.Config(**SIZES, hidden_sizes=(32,), normalize_obs=True)
    state, rows = clone(ppo, config, env, shown, jax.random.key(0), 600, 64, 1e-2, num_rows=3)
    action, _ = ppo.act(config, env, state, shown.obs, jax.random.key(1), deterministic=True)
    assert (action["tool"] == shown.obs["tool"]).mean() > 0.95
    assert (action["pair"][0] == shown.obs["pair"][0]).mean() > 0.95
    assert np.abs(action["pair"][1] - shown.obs["pair"][1]).mean() < 0.1
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]


def test_demonstrations_of_other_parts_are_refused(env, shown):
    other = Env(Copied(), None)
    other.environment.space = Dict(tool=Discrete(3))
    with pytest.raises(ValueError, match=r"of the demonstrations has shape .*, the environment has"):
        examples(other, shown)
    del other.environment.space
    wrong = jax.tree.map(np.copy, shown.action)
    wrong["tool"][0] = 3
    with pytest.raises(ValueError, match="outside of the environment's: Discrete"):
        examples(env, replace(shown, action=wrong))


def test_noise_keeps_to_legal_actions():
    obs = {"action_mask": jnp.tile(jnp.array([True, False, True]), (20_000, 1))}
    found = np.asarray(disturbed(Discrete(3), obs, jnp.zeros(20_000, jnp.int32), 0.4, jax.random.key(0)))
    np.testing.assert_allclose(np.bincount(found, minlength=3) / 20_000, [0.8, 0.0, 0.2], atol=0.01)


def test_a_policy_that_remembers_is_shown_by_one_and_cloned_into_one():
    """The cue is in the first observation alone: what acts three steps later has to remember it."""
    env = rlx.envs.make("rlx/Recall-8", delay=3)

    def act(config, env, state, obs, key, memory, deterministic=False):
        memory = jnp.where(obs[:, 0] == 0, memory, obs[:, 0])
        return (memory > 0).astype(jnp.int32), None, memory

    expert = policy(act, memory=lambda config, env, num: jnp.zeros(num))
    shown = collect(expert, None, env, None, jax.random.key(0), 64)
    assert (shown.returns == 1).all()
    config = ppo_recurrent.Config(**SIZES, memory_size=16, sequence_length=8)
    state, _ = clone(ppo_recurrent, config, env, shown, jax.random.key(1), 300, 64, 1e-2, num_rows=3)
    assert (rlx.evaluate(ppo_recurrent, config, env, state, jax.random.key(2), 32).returns == 1).all()
    forgetful, _ = clone(ppo, ppo.Config(**SIZES), env, shown, jax.random.key(1), 300, 64, 1e-2, num_rows=3)
    returns = rlx.evaluate(ppo, ppo.Config(**SIZES), env, forgetful, jax.random.key(2), 32).returns
    assert abs(float(returns.mean())) < 0.6  # 32 fair coins: standard deviation 0.18


@pytest.mark.parametrize("kind", ["state_std", "tanh_normal", "beta"])
def test_every_density_learns_a_continuous_probe(kind):
    env = rlx.envs.make("probe/ContinuousAction")
    config = ppo.Config(
        total_steps=40_000,
        num_envs=32,
        num_steps=8,
        learning_rate=3e-3,
        hidden_sizes=(16,),
        entropy_coef=0.0,
        policy=kind,
    )
    keys = jax.random.split(jax.random.key(0), 3)
    states, metrics = jax.vmap(partial(rlx.train, ppo, config, env))(keys)
    returns = jax.vmap(lambda s: rlx.evaluate(ppo, config, env, s, jax.random.key(1), 64).returns.mean())(states)
    assert (returns > 0.97).all()  # of 1
    assert jnp.abs(metrics["approx_kl"][:, 0]).max() < 0.1
