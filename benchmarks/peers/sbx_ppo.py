"""PPO in SBX, Stable-Baselines3 in JAX, for speed.py: gradient steps are compiled, environments are those of gymnasium.

What differs from the settings of speed.py: its Adam has epsilon 1e-5.
"""

from peers.measure import main, measure_loop
from peers.sb3_ppo import keywords, learning


def program(settings):
    import flax.linen as nn
    from sbx import PPO

    network = {"net_arch": settings["hidden_sizes"], "activation_fn": getattr(nn, settings["activation"])}
    return learning(PPO(**keywords(settings), policy_kwargs=network), settings)


if __name__ == "__main__":
    main(program, measure_loop)
