"""Returns of PPO with its defaults for a kind of environment and with those of its Config, on tasks without a table.

    python benchmarks/defaults.py

Writes `results/defaults.json`: by task the mean evaluation return of each seed, with the defaults of the Config and
with those of `[defaults.continuous]` in `algos/ppo.toml`, after as many steps. The defaults were not chosen on them.
"""

import json
from functools import partial
from pathlib import Path

import jax

import rlx
from rlx.algos import ppo
from rlx.presets import configure, defaults

TASKS = {"gymnax/MountainCarContinuous-v0": 200_000}
NUM_SEEDS = 3
OUT = Path(__file__).parent / "results" / "defaults.json"


def returns(config, env) -> list[float]:
    """Mean return of each seed."""

    def seed(key):
        train_key, evaluate_key = jax.random.split(key)
        state, _ = rlx.train(ppo, config, env, train_key)
        return rlx.evaluate(ppo, config, env, state, evaluate_key, num_episodes=32).returns.mean()

    return jax.jit(jax.vmap(seed))(jax.random.split(jax.random.key(0), NUM_SEEDS)).tolist()


def main() -> None:
    found = {}
    for name, total_steps in TASKS.items():
        env = rlx.envs.make(name)
        make = partial(configure, ppo.Config)
        own = make({"total_steps": total_steps})
        of_kind = make(defaults(ppo, env)[0] | {"total_steps": total_steps})
        found[name] = {
            "total_steps": total_steps,
            "config_defaults": returns(own, env),
            "defaults_of_the_kind": returns(of_kind, env),
        }
        print(name, found[name], flush=True)
        OUT.write_text(json.dumps({"algorithm": "ppo", "tasks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
