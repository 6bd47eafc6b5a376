"""PQN, DQN, TD3 and IQN in rlx, for speed.py."""

from peers.measure import main

FILES = {"PQN": ("pqn", ""), "DQN": ("dqn", "double"), "IQN": ("dqn", "iqn"), "TD3": ("ddpg", "td3")}


def configured(settings):
    """The algorithm of a case, and its Config."""
    from importlib import import_module

    file, variant = FILES[settings["algorithm"]]
    algorithm = import_module(f"rlx.algos.{file}")
    settings = {k: v for k, v in settings.items() if k not in ("algorithm", "env")}
    settings = (algorithm.VARIANTS[variant] if variant else {}) | settings
    settings |= {"hidden_sizes": tuple(settings["hidden_sizes"])}
    if file == "ddpg":
        settings["critic_learning_rate"] = settings["learning_rate"]
    return algorithm, algorithm.Config(**settings)


def program(settings):
    from functools import partial

    import jax

    import rlx

    algorithm, config = configured(settings)
    env = rlx.envs.make(settings["env"])
    run = jax.jit(partial(rlx.train, algorithm))
    return run, lambda key: (config, env, key), lambda result: rlx.steps_taken(config, result[0].num_updates)


if __name__ == "__main__":
    main(program)
