"""PPO in rlx, for speed.py."""

from peers.measure import main


def program(settings):
    from functools import partial

    import jax

    import rlx
    from rlx.algos import ppo

    settings = dict(settings, hidden_sizes=tuple(settings["hidden_sizes"]))
    env = rlx.envs.make(settings.pop("env"), **settings.pop("options", {}))
    config = ppo.Config(**settings)
    run = jax.jit(partial(rlx.train, ppo))
    return run, lambda key: (config, env, key), lambda result: result[0].num_updates * config.steps_per_update


if __name__ == "__main__":
    main(program)
