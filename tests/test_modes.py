"""Whole runs under the modes of JAX that a caller may have set."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import rlx
from rlx.algos import ppo, sac, trpo

pytestmark = pytest.mark.more

SIZES = {"total_steps": 96, "num_envs": 4, "num_steps": 8, "hidden_sizes": (8,)}
ON_POLICY = {"num_minibatches": 2, "num_epochs": 1}
RUNS = {
    "ppo": (ppo, ppo.Config(**SIZES, **ON_POLICY), "CartPole-v1"),
    "trpo": (trpo, trpo.Config(**SIZES), "Pendulum-v1"),
    "sac": (sac, sac.Config(**SIZES, warmup_steps=32, batch_size=16, capacity=256, utd_ratio=0.25), "Pendulum-v1"),
}


def run(name):
    """The parameters after a whole run, as one vector, and the returns of two episodes."""
    algorithm, config, env = RUNS[name]
    env = rlx.envs.make(env, max_steps=12)
    state, _ = rlx.train(algorithm, config, env, jax.random.key(0))
    episodes = rlx.evaluate(algorithm, config, env, state, jax.random.key(1), num_episodes=2)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]), np.asarray(episodes.returns)


@pytest.fixture(scope="module")
def ordinary():
    return {name: run(name) for name in RUNS}


@pytest.mark.parametrize(
    "mode",
    [partial(jax.numpy_dtype_promotion, "strict"), partial(jax.numpy_rank_promotion, "raise")],
    ids=["dtypes", "ranks"],
)
@pytest.mark.parametrize("name", RUNS)
def test_strict_promotion_changes_no_bit(ordinary, name, mode):
    with mode():
        for own, other in zip(run(name), ordinary[name], strict=True):
            np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("name", RUNS)
def test_under_x64_all_parameters_are_float64(name):
    with jax.enable_x64(True):
        params, returns = run(name)
    assert params.dtype == np.float64
    assert np.isfinite(params).all()
    assert np.isfinite(returns).all()


def test_without_jit_a_run_is_the_same_but_for_rounding(ordinary):
    # One program rounds otherwise than its operations one by one: by 1e-7 a step of parameters that move by 1e-3.
    with jax.disable_jit():
        np.testing.assert_allclose(run("ppo")[0], ordinary["ppo"][0], atol=1e-5)


def test_a_run_inside_of_a_checked_shard_map_is_refused_in_words():
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))
    algorithm, config, env = RUNS["ppo"]
    train = lambda keys: rlx.train(algorithm, config, rlx.envs.make(env, max_steps=12), keys[0])[1]["value_loss"]
    spread = partial(jax.shard_map, train, mesh=mesh, in_specs=P("device"), out_specs=P("device"))
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="check_vma=False"):
        jax.jit(spread())(keys)
    losses = jax.jit(spread(check_vma=False))(keys).reshape(2, -1)
    assert jnp.isfinite(losses).all()
    assert not (losses[0] == losses[1]).any()


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_here_is_named_in_one_line(tmp_path, platform):
    command = [sys.executable, "-m", "rlx", "train", "ppo", "--env", "CartPole-v1"]
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("rlx:")]
    assert lines == [f"rlx: JAX_PLATFORMS={platform}: no such device is here; leave it out, or give cpu"]
    assert "Traceback" not in done.stderr
