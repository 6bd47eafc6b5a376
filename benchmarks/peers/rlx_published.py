"""An algorithm of rlx with a critic of its own size, as flow policies have been published beside PPO, for speed.py."""

from peers.measure import main


def program(settings):
    from functools import partial
    from importlib import import_module

    import jax

    import rlx
    from rlx.networks import Critic, Torso

    algorithm = import_module(f"rlx.algos.{settings.pop('algorithm')}")
    env, critic_sizes = rlx.envs.make(settings.pop("env")), tuple(settings.pop("critic_sizes"))
    networks = algorithm.networks

    def published(config, env):
        actor, _ = networks(config, env)
        return actor, Critic(Torso(env.observation_space, critic_sizes, config.activation))

    algorithm.networks = published
    config = algorithm.Config(**dict(settings, hidden_sizes=tuple(settings["hidden_sizes"])))
    run = jax.jit(partial(rlx.train, algorithm))
    return run, lambda key: (config, env, key), lambda result: result[0].num_updates * config.steps_per_update


if __name__ == "__main__":
    main(program)
