"""What flow and diffusion policies cost: steps/s of FPO, PolicyFlow and DPPO beside PPO, on the same sizes of all.

    python benchmarks/flow.py

Every case is one program of whole updates. The cases take turns, and each turn's speeds are set beside that of PPO in
the same turn, because what else the machine does changes from turn to turn.
"""

import json
import time
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import jax
from provenance import RESULTS, commit, machine, versions
from rich.console import Console
from rich.table import Table

import rlx
from rlx.algos import dppo, fpo, policyflow, ppo

ENV = "rlx/MultiGoal"
SIZES = {"num_envs": 64, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4, "hidden_sizes": (64, 64)}
CASES: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "PPO": (ppo, {}),
    "PPO, mixture of 6": (ppo, {"num_components": 6}),
    **{f"FPO, {n} flow steps, 8 samples": (fpo, {"flow_steps": n, "samples_per_action": 8}) for n in (5, 10, 20)},
    **{f"FPO, 10 flow steps, {n} samples": (fpo, {"flow_steps": 10, "samples_per_action": n}) for n in (1, 4, 16)},
    "FPO++, 10 flow steps, 8 samples": (fpo, {"sample_ratios": True, "asymmetric": True, "predict_noise": False}),
    **{f"PolicyFlow, {n} flow steps": (policyflow, {"flow_steps": n}) for n in (5, 10, 20)},
    **{f"DPPO, {n} denoising steps": (dppo, {"denoising_steps": n, "trained_steps": n}) for n in (1, 5, 10, 20)},
    "DPPO, 20 denoising steps, 10 of them trained": (dppo, {"denoising_steps": 20, "trained_steps": 10}),
}


def programs(num_updates: int) -> dict[str, Any]:
    """A compiled run of each case, to be called with a key, and the steps it takes."""
    env, found = rlx.envs.make(ENV), {}
    for name, (algorithm, changes) in CASES.items():
        config = algorithm.Config(**SIZES | changes)
        config = rlx.replace(config, total_steps=num_updates * config.steps_per_update)
        run = jax.jit(lambda key, a=algorithm, c=config: rlx.train(a, c, env, key)[1]["policy_loss"])
        found[name] = run.lower(jax.random.key(0)).compile(), config.total_steps
    return found


def main(repeats: int = 5, num_updates: int = 8, out: Path = RESULTS / "flow.json") -> None:
    """Measures, prints the table and writes the result.

    Args:
        repeats: turns of every case.
        num_updates: of each run.
        out: the JSON file.
    """
    code, compiled = commit(), programs(num_updates)
    for program, _ in compiled.values():
        program(jax.random.key(0)).block_until_ready()
    speeds: dict[str, list[float]] = {name: [] for name in compiled}
    for turn in range(repeats):
        for name, (program, steps) in compiled.items():
            started = time.perf_counter()
            program(jax.random.key(turn)).block_until_ready()
            speeds[name].append(steps / (time.perf_counter() - started))
    ratios = {name: [b / a for a, b in zip(speeds["PPO"], values, strict=True)] for name, values in speeds.items()}
    result = {
        "commit": code,
        "machine": machine() | {"device": jax.devices()[0].device_kind},
        "versions": versions("jax", "jaxlib"),
        "env": ENV,
        "sizes": SIZES,
        "steps_per_second": {name: [round(x) for x in values] for name, values in speeds.items()},
        "over_ppo": {name: [round(x, 4) for x in values] for name, values in ratios.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("case", "steps/s", "over PPO", title=f"{ENV}, {len(next(iter(speeds.values())))} turns: median")
    for name, values in speeds.items():
        low, high = min(ratios[name]), max(ratios[name])
        table.add_row(name, f"{median(values):,.0f}", f"{median(ratios[name]):.2f} [{low:.2f}, {high:.2f}]")
    Console().print(table)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
