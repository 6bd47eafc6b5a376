"""SAC in rlx, for speed.py."""

from peers.measure import main


def program(settings):
    from functools import partial

    import jax

    import rlx
    from rlx.algos import sac

    settings = dict(settings, hidden_sizes=tuple(settings["hidden_sizes"]))
    env = rlx.envs.make(settings.pop("env"))
    config = sac.Config(**settings, alpha_learning_rate=settings["learning_rate"])
    run = jax.jit(partial(rlx.train, sac))
    return run, lambda key: (config, env, key), lambda result: rlx.steps_taken(config, result[0].num_updates)


if __name__ == "__main__":
    main(program)
