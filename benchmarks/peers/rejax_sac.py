"""SAC in Rejax, for speed.py: jitted as its documentation does, and nothing evaluated within the run.

What its SAC fixes, and the settings of speed.py follow: one learning rate for all, Adam with epsilon 1e-8, target
entropy -1 an action dimension, log_std in [-10, 2]. What differs: gradient steps follow every environment step,
batches are drawn without replacement, and the first steps, which only fill the buffer, act with the policy.
"""

from peers.measure import main


def agent(settings):
    """Its SAC with these settings."""
    from rejax import SAC

    return SAC.create(
        env=settings["env"],
        total_timesteps=settings["total_steps"],
        eval_freq=settings["total_steps"],
        skip_initial_evaluation=True,
        agent_kwargs={"activation": settings["activation"]},
        hidden_layer_sizes=tuple(settings["hidden_sizes"]),
        num_envs=settings["num_envs"],
        num_epochs=round(settings["num_envs"] * settings["utd_ratio"]),
        buffer_size=settings["capacity"],
        fill_buffer=settings["warmup_steps"],
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        gamma=settings["gamma"],
        polyak=1.0 - settings["tau"],
    )


def program(settings):
    import jax
    import jax.numpy as jnp

    algorithm = agent(settings)
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: jnp.zeros(()))
    return jax.jit(algorithm.train), lambda key: (key,), lambda result: result[0].global_step


if __name__ == "__main__":
    main(program)
