"""What `test_sharding.py` needs eight devices for: a run on all of them beside the same run on one; prints JSON."""

import json
import sys
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

import rlx
from rlx import replay, rollout, run
from rlx.algos import fpo, ppo, sac
from rlx.devices import sharding
from rlx.devices.spread import placed
from rlx.devices.spread import spread as spread_lanes
from rlx.train import advance, state_shapes

SMALL = {"hidden_sizes": (16,), "total_steps": 100_000}
NORMAL = {"normalize_obs": True, "normalize_reward": True}
CASES = {
    "ppo": (ppo, "CartPole-v1", {"num_envs": 16, "num_steps": 16, **NORMAL}),
    "sac": (
        sac,
        "Pendulum-v1",
        {"num_envs": 8, "num_steps": 4, "warmup_steps": 64, "capacity": 128, "batch_size": 128},
    ),
    "fpo": (fpo, "Pendulum-v1", {"num_envs": 16, "num_steps": 16, "num_epochs": 2}),
}


def updates(algorithm, config, env):
    """Twenty, jitted."""

    def program(config, env, key):
        state = algorithm.init(config, env, key)
        return jax.lax.scan(lambda state, _: algorithm.update(config, env, state), state, length=20)

    return jax.jit(program)(config, env, jax.random.key(0))


@contextmanager
def same_shuffle():
    """The blocks of eight devices on one of them."""
    modules = (sharding, rollout, replay)
    kept = [module.num_blocks for module in modules], sharding._constrain
    for module in modules:
        module.num_blocks = lambda: 8
    sharding._constrain = lambda x, spec: x
    jax.clear_caches()
    yield
    for module, number in zip(modules, kept[0], strict=True):
        module.num_blocks = number
    sharding._constrain = kept[1]
    jax.clear_caches()


def numbers(tree):
    """All of it as one vector of floats, keys included."""
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.concatenate([np.ravel(np.asarray(raw(x), np.float64)) for x in jax.tree.leaves(tree)])


def data_parallel(name):
    algorithm, env_name, settings = CASES[name]
    config, env = algorithm.Config(**SMALL, **settings), rlx.envs.make(env_name)
    with jax.set_mesh(sharding.mesh()):
        split = updates(algorithm, config, env)
        like = placed(state_shapes(algorithm, config, env))
        program = run.jitted(advance).lower(algorithm, config, env, like, jnp.int32(0), jnp.int32(1), 4).compile()
    with same_shuffle():
        whole = updates(algorithm, config, env)
    minibatch = getattr(config, "batch_size", 0) or config.steps_per_update // config.num_minibatches
    a, b = numbers(split), numbers(whole)
    assert np.array_equal(np.isnan(a), np.isnan(b))
    return {
        "difference": float(np.nanmax(np.abs(a - b) / np.maximum(1.0, np.abs(b)))),
        "devices_of_envs": len(split[0].env_state.obs.sharding.device_set),
        "rows_here": split[0].env_state.obs.addressable_shards[0].data.shape[0],
        "collectives": sharding.collectives(program),
        "param_bytes": sum(x.nbytes for x in jax.tree.leaves(split[0].params)),
        "minibatch_bytes": minibatch * split[0].env_state.obs[0].nbytes,  # of its observations alone
    }


def sweep():
    """Whether lanes over eight devices are those of a vmap on one, for a number of lanes that does not divide."""
    algorithm, env_name, settings = CASES["ppo"]
    env = rlx.envs.make(env_name)
    configs = rlx.stack([algorithm.Config(**SMALL, **settings, learning_rate=1e-4 * (1 + i)) for i in range(11)])
    keys = jax.random.split(jax.random.key(1), 11)

    def lane(each, env):
        config, key = each
        state = algorithm.init(config, env, key)
        return jax.lax.scan(lambda state, _: algorithm.update(config, env, state), state, length=5)

    spread = spread_lanes(lane)((configs, keys), env)
    apart = jax.jit(jax.vmap(lane, (0, None)))((configs, keys), env)  # where its arguments are: on the first
    a, b = numbers(spread), numbers(apart)
    return {"difference": float(np.nanmax(np.abs(a - b) / np.maximum(1.0, np.abs(b))))}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)  # so that nothing but the order of sums differs, and that by very little
    found = {"sweep": sweep()}
    jax.config.update("jax_disable_most_optimizations", True)  # what follows need not have the same bits
    print(json.dumps(found | {name: data_parallel(name) for name in CASES}), file=sys.stdout)
