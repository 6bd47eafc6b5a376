"""PPO in Stable-Baselines3, for speed.py: with environments of gymnasium in one process, as its documentation has it.

What differs from the settings of speed.py: its Adam has epsilon 1e-5.
"""

from peers.measure import main, measure_loop


def keywords(settings):
    """Arguments of its PPO, and of the one that SBX makes after it."""
    from stable_baselines3.common.env_util import make_vec_env

    return {
        "policy": "MlpPolicy",
        "env": make_vec_env(settings["env"], settings["num_envs"], seed=0),
        "n_steps": settings["num_steps"],
        "batch_size": settings["num_envs"] * settings["num_steps"] // settings["num_minibatches"],
        "n_epochs": settings["num_epochs"],
        "learning_rate": settings["learning_rate"],
        "gamma": settings["gamma"],
        "gae_lambda": settings["gae_lambda"],
        "clip_range": settings["clip"],
        "clip_range_vf": settings["value_clip"],
        "vf_coef": settings["value_coef"],
        "ent_coef": settings["entropy_coef"],
        "max_grad_norm": settings["max_grad_norm"],
        "seed": 0,
    }


def learning(agent, settings):
    """`learn()` of an agent, which goes on from where it is."""
    return lambda: agent.learn(settings["total_steps"], reset_num_timesteps=False).num_timesteps


def program(settings):
    from stable_baselines3 import PPO
    from torch import nn

    network = {"net_arch": settings["hidden_sizes"], "activation_fn": getattr(nn, settings["activation"].capitalize())}
    return learning(PPO(**keywords(settings), policy_kwargs=network, device="cpu"), settings)


if __name__ == "__main__":
    main(program, measure_loop)
