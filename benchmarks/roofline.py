"""How far updates are from what this machine can do, and where their time goes.

    python benchmarks/roofline.py

Operations, bytes and kernels of one update are counted in the program that XLA has compiled, loops as often as they go
round: a matrix product of `[m, k]` by `[k, n]` is 2 m k n operations, anything else one for each element that it makes;
bytes are those that kernels read and write, whether or not from a cache. The ceilings are measured: a large matrix
product and one of layers of 64 in a loop, a copy in memory, and a kernel that has nothing to do. What the counts would
take at each ceiling is set beside the measured time. The parts of an update are timed apart: a rollout with actions
that are there already, one with the policy, the advantages, and the whole.
"""

import json
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
from provenance import RESULTS, commit, machine, versions
from rich.console import Console
from speed import CASES

import rlx
from rlx.algos import ppo, sac
from rlx.profile.counts import ceilings, cost, seconds
from rlx.replay import sample
from rlx.rollout import minibatches, rollout

COUNTED = {"CartPole-v1": ppo, "Breakout-MinAtar": ppo, "brax/hopper, spring": ppo, "SAC, buffer 10^4": sac}


def parts(algorithm: Any, config: Any, env: rlx.Env) -> dict[str, Any]:
    """Parts of an update as functions of its state; only PPO has advantages."""
    actions = jax.vmap(env.action_space.sample)(jax.random.split(jax.random.key(1), config.num_envs))

    def played(policy, state):
        return rollout(env, policy, state.env_state, state.key, config.num_steps)

    def acted(state):
        return played(partial(algorithm.act, config, env, state), state)

    def order(state):
        if algorithm is sac:
            return sample(state.replay, state.key, (config.gradient_steps, config.batch_size))
        return minibatches(state.key, config.steps_per_update, config.num_minibatches, config.num_epochs)

    found = {
        "environment": lambda state: played(lambda obs, key: (actions, None), state),
        "rollout": acted,
        "order": order,
        "update": lambda state: algorithm.update(config, env, state),
    }
    if algorithm is ppo:
        found["advantages"] = lambda state: ppo.advantages(config, env, state, acted(state)[1])
    return found


def measure(case: str, turns: int, budget: float) -> dict[str, Any]:
    """Counts of an update, its seconds, and the shares of its parts."""
    numbers = dict(CASES[case][0])
    env = rlx.envs.make(numbers.pop("env"), **numbers.pop("options", {}))
    algorithm = COUNTED[case]
    config = algorithm.Config(**numbers | {"hidden_sizes": tuple(numbers["hidden_sizes"])})
    state = jax.jit(algorithm.init)(config, env, jax.random.key(0))
    compiled = {name: jax.jit(f).lower(state).compile() for name, f in parts(algorithm, config, env).items()}
    times = {name: [] for name in compiled}

    def again(program, state):
        jax.block_until_ready(program(state))
        return state

    for _ in range(1 + turns):
        for name, program in compiled.items():
            times[name].append(seconds(partial(again, program), state, budget))
    took = {name: median(found[1:]) for name, found in times.items()}
    collected = took.get("advantages", took["rollout"])
    apart = {
        "environment": took["environment"],
        "policy": took["rollout"] - took["environment"],
        "advantages": collected - took["rollout"],
        "order of minibatches": took["order"],
        "gradient steps": took["update"] - collected - took["order"],
    }
    found = cost(compiled["update"].as_text())
    return {
        "case": case,
        "steps": config.steps_per_update,
        "seconds": took["update"],
        "operations": found.operations,
        "bytes": found.bytes,
        "kernels": found.kernels,
        "shares": {name: max(0.0, part) / took["update"] for name, part in apart.items()},
    }


def main(turns: int = 3, budget: float = 1.0, out: Path = RESULTS / "roofline.json") -> None:
    """Measures, prints and writes the result.

    Args:
        turns: of the parts of an update, which take turns.
        budget: seconds of a program in a turn.
        out: the JSON file.
    """
    console = Console()
    found = {"ceilings": ceilings(budget), "cases": []}
    console.print(found["ceilings"])
    for case in COUNTED:
        found["cases"].append(measure(case, turns, budget))
        console.print(found["cases"][-1])
    about = {"commit": commit(), "machine": machine() | {"device": jax.devices()[0].device_kind}}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found | about | {"versions": versions("rlx", "jax", "jaxlib")}, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
