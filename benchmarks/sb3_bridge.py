"""PPO of Stable-Baselines3 on CartPole of rlx, through `rlx.envs.bridge`.

    pip install stable-baselines3
    python benchmarks/sb3_bridge.py

Eight environments, 30,000 steps and ten seeds, with settings for so few steps. Each agent is evaluated once, with
whole episodes of other seeds. Gymnasium's own CartPole is beside it, with the same settings and seeds.
"""

import json
import time
from collections.abc import Callable

import gymnasium
import numpy as np
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

from rlx.envs.bridge import GymnasiumEnv

STEPS, NUM_ENVS, NUM_SEEDS, NUM_EPISODES = 30_000, 8, 10, 40
SETTINGS = {"n_steps": 128, "batch_size": 256, "learning_rate": 1e-3, "gae_lambda": 0.8, "gamma": 0.98}
ENVIRONMENTS = {
    "rlx.envs.bridge": lambda: GymnasiumEnv("CartPole-v1"),
    "Gymnasium": lambda: gymnasium.make("CartPole-v1"),
}


def trained(env: Callable[[], gymnasium.Env], seed: int) -> tuple[float, float]:
    """Mean return of the trained agent, and the seconds that its training took."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    agent = PPO("MlpPolicy", make_vec_env(env, NUM_ENVS, seed=1000 * seed), seed=seed, device="cpu", **SETTINGS)
    start = time.perf_counter()
    agent.learn(STEPS)
    seconds = time.perf_counter() - start
    mean, _ = evaluate_policy(agent, make_vec_env(env, NUM_ENVS, seed=1000 * seed + 500), NUM_EPISODES)
    return float(mean), seconds


def main() -> None:
    runs = {name: [trained(env, seed) for seed in range(NUM_SEEDS)] for name, env in ENVIRONMENTS.items()}
    result = {
        "commit": commit(),
        "machine": machine(),
        "versions": versions("stable-baselines3", "torch", "gymnasium", "jax"),
        "steps": STEPS,
        "episodes": NUM_EPISODES,
        "returns": {name: [mean for mean, _ in found] for name, found in runs.items()},
        "seconds": {name: float(np.median([seconds for _, seconds in found])) for name, found in runs.items()},
    }
    (RESULTS / "sb3_bridge.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(result)


if __name__ == "__main__":
    main()
