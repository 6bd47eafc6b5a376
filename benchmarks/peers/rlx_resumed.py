"""An algorithm of rlx from where it has been initialised, for speed.py: starting physics may take as long as a run."""

from peers.measure import main_without_cache


def program(settings):
    from functools import cache
    from importlib import import_module

    import jax

    import rlx
    from rlx.networks import Critic, Torso

    algorithm = import_module(f"rlx.algos.{settings.pop('algorithm')}")
    env = rlx.envs.make(settings.pop("env"), **settings.pop("options", {}))
    if critic_sizes := settings.pop("critic_sizes", None):  # of its own, as flow policies have been published
        networks = algorithm.networks

        def published(config, env):
            actor, _ = networks(config, env)
            return actor, Critic(Torso(env.observation_space, tuple(critic_sizes), config.activation))

        algorithm.networks = published
    config = algorithm.Config(**dict(settings, hidden_sizes=tuple(settings["hidden_sizes"])))

    @cache
    def start():
        return jax.jit(lambda env, key: algorithm.init(config, env, key))(env, jax.random.key(0))

    def run(env, state):
        return rlx.resume(algorithm, config, env, state, rlx.total_updates(config))

    return jax.jit(run), lambda key: (env, start()), lambda result: result[0].num_updates * config.steps_per_update


if __name__ == "__main__":
    main_without_cache(program)
