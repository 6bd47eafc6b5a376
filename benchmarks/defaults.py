"""Returns with the defaults for a kind of environment and with those of the Config, on tasks without a table.

    python benchmarks/defaults.py

Writes `results/defaults.json`: by algorithm and task the mean evaluation return of each seed, with the defaults of the
Config and with those of `[defaults.continuous]` in the algorithm's TOML file, after as many steps. Settings were not
chosen on these tasks.
"""

import json
from functools import partial
from importlib import import_module
from pathlib import Path

import jax
from provenance import RESULTS, commit, machine, versions

import rlx
from rlx.presets import configure, defaults, settings

ON_POLICY = {"gymnax/MountainCarContinuous-v0": 200_000, "gymnax/Reacher-misc": 200_000}
TASKS = dict.fromkeys(("ppo", "mdpo", "trpo", "grpo", "fpo", "policyflow", "dppo"), ON_POLICY)
NUM_SEEDS = 3


def returns(algorithm, config, env) -> list[float]:
    """Mean return of each seed."""

    def seed(key):
        train_key, evaluate_key = jax.random.split(key)
        state, _ = rlx.train(algorithm, config, env, train_key)
        return rlx.evaluate(algorithm, config, env, state, evaluate_key, num_episodes=32).returns.mean()

    return jax.jit(jax.vmap(seed))(jax.random.split(jax.random.key(0), NUM_SEEDS)).tolist()


def measured(algorithm, task: str, total_steps: int) -> dict:
    """Both on one task, whose time limit both know."""
    env = rlx.envs.make(task)
    if settings(algorithm, task):
        raise ValueError(f"{algorithm.__name__} has a table for {task}: defaults are for tasks without one")
    steps = {"total_steps": total_steps} | rlx.presets.of_episode(algorithm, env)
    make = partial(configure, algorithm.Config)
    both = {"config_defaults": make(steps), "defaults_of_the_kind": make(defaults(algorithm, env)[0] | steps)}
    return {"total_steps": total_steps} | {title: returns(algorithm, config, env) for title, config in both.items()}


def main(out: Path = RESULTS / "defaults.json", only: tuple[str, ...] = tuple(TASKS)) -> None:
    """Measures, and keeps what is in the file for other algorithms.

    Args:
        out: the JSON file.
        only: algorithms to measure.
    """
    found = json.loads(out.read_text()).get("algorithms", {}) if out.exists() else {}
    for name in only:
        algorithm = import_module(f"rlx.algos.{name}")
        found[name] = {}
        for task, total_steps in TASKS[name].items():
            found[name][task] = measured(algorithm, task, total_steps)
            print(name, task, found[name][task], flush=True)
        about = {"seeds": NUM_SEEDS, "commit": commit(), "machine": machine(), "versions": versions("jax", "gymnax")}
        out.write_text(json.dumps({"algorithms": found, **about}, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
