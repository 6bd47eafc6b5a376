"""PQN, DQN, TD3 and IQN in rlx, for speed.py."""

from peers.measure import main

FILES = {"PQN": ("pqn", ""), "DQN": ("dqn", "double"), "IQN": ("dqn", "iqn"), "TD3": ("ddpg", "td3")}


def program(settings):
    from functools import partial
    from importlib import import_module

    import jax

    import rlx

    file, variant = FILES[settings.pop("algorithm")]
    algorithm = import_module(f"rlx.algos.{file}")
    env = rlx.envs.make(settings.pop("env"))
    settings = (algorithm.VARIANTS[variant] if variant else {}) | settings
    settings |= {"hidden_sizes": tuple(settings["hidden_sizes"])}
    if file == "ddpg":
        settings["critic_learning_rate"] = settings["learning_rate"]
    config = algorithm.Config(**settings)
    run = jax.jit(partial(rlx.train, algorithm))
    return run, lambda key: (config, env, key), lambda result: rlx.steps_taken(config, result[0].num_updates)


if __name__ == "__main__":
    main(program)
