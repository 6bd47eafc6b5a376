"""PPO in rlx over many seeds, for sweeps.py: the lanes of `rlx sweep`, without evaluation and without a log."""

from peers.measure import main


def program(settings):
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import rlx
    from rlx.algos import ppo
    from rlx.devices.sharding import use_devices
    from rlx.train import advance

    use_devices()
    settings = dict(settings, hidden_sizes=tuple(settings["hidden_sizes"]))
    num_lanes, env = settings.pop("num_lanes"), rlx.envs.make(settings.pop("env"))
    config = ppo.Config(**settings)
    updates = rlx.total_updates(config)
    mesh = jax.make_mesh((jax.device_count(),), ("lane",), (jax.sharding.AxisType.Auto,))

    def lane(config, env, key):
        return advance(ppo, config, env, ppo.init(config, env, key), 0, updates, updates)

    lanes = jax.vmap(lane, (None, None, 0))
    run = jax.shard_map(lanes, mesh=mesh, in_specs=(P(), P(), P("lane")), out_specs=P("lane"), check_vma=False)
    whole, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("lane"))
    config, env = jax.device_put((config, env), whole)
    arguments = lambda key: (config, env, jax.device_put(jax.random.split(key, num_lanes), spread))
    return jax.jit(run), arguments, lambda result: result[0].num_updates.sum() * config.steps_per_update


if __name__ == "__main__":
    main(program)
