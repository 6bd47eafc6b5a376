"""PPO in Rejax, for speed.py: jitted as its documentation does, and nothing evaluated within the run.

What its PPO fixes, and the settings of speed.py follow: the value loss is clipped by the policy's clip, advantages
are standardised, the learning rate is constant, Adam has epsilon 1e-8. What differs: it clips gradients per element.
"""

from peers.measure import main


def agent(settings):
    """Its PPO with these settings."""
    from rejax import PPO

    network = {"hidden_layer_sizes": tuple(settings["hidden_sizes"]), "activation": settings["activation"]}
    return PPO.create(
        env=settings["env"],
        total_timesteps=settings["total_steps"],
        eval_freq=settings["total_steps"],
        skip_initial_evaluation=True,
        agent_kwargs=network,
        num_envs=settings["num_envs"],
        num_steps=settings["num_steps"],
        num_epochs=settings["num_epochs"],
        num_minibatches=settings["num_minibatches"],
        learning_rate=settings["learning_rate"],
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip_eps=settings["clip"],
        vf_coef=settings["value_coef"],
        ent_coef=settings["entropy_coef"],
        max_grad_norm=settings["max_grad_norm"],
        normalize_observations=settings.get("normalize_obs", False),
        normalize_rewards=settings.get("normalize_reward", False),
    )


def program(settings):
    import jax
    import jax.numpy as jnp

    algorithm = agent(settings)
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: jnp.zeros(()))
    return jax.jit(algorithm.train), lambda key: (key,), lambda result: result[0].global_step


if __name__ == "__main__":
    main(program)
