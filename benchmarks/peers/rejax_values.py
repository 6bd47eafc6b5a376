"""PQN, DQN, TD3 and IQN in Rejax, for speed.py: jitted as its documentation does, nothing evaluated within the run.

What they fix, and the settings of speed.py follow: two hidden layers of 64, Adam, elementwise clips that are off. What
differs: gradient steps follow every environment step, and batches are drawn without replacement.
"""

from peers.measure import main

PARTS = {"PQN": (), "DQN": ("agent_kwargs",), "IQN": ("agent_kwargs",), "TD3": ("actor_kwargs", "critic_kwargs")}


def program(settings):
    import jax
    import jax.numpy as jnp
    import rejax

    name = settings["algorithm"]
    activation = {part: {"activation": settings["activation"]} for part in PARTS[name]}
    common = {
        "env": settings["env"],
        "total_timesteps": settings["total_steps"],
        "eval_freq": settings["total_steps"],
        "skip_initial_evaluation": True,
        "num_envs": settings["num_envs"],
        "learning_rate": settings["learning_rate"],
        "gamma": settings["gamma"],
    }
    if name == "PQN":
        own = {key: settings[key] for key in ("num_steps", "num_epochs", "num_minibatches", "td_lambda")}
    else:
        own = {
            "num_epochs": round(settings["num_envs"] * settings["utd_ratio"]),
            "buffer_size": settings["capacity"],
            "fill_buffer": settings["warmup_steps"],
            "batch_size": settings["batch_size"],
            "polyak": 1.0 - settings["tau"],
        }
    algorithm = getattr(rejax, name).create(**common, **own, **activation)
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: jnp.zeros(()))
    return jax.jit(algorithm.train), lambda key: (key,), lambda result: result[0].global_step


if __name__ == "__main__":
    main(program)
