"""A paper estimate: where communication starts to dominate data-parallel training, on 1 to 1024 devices.

    python benchmarks/communication.py

Nothing here is timed. What is known is counted: the parameters of a State, gradient steps of an update, all-reduces of
a gradient step. What is assumed stands in `ASSUMED`. An update is

    compute        2 P elements for acting and 6 P elements epochs for learning, in operations, over what a device does,
                   and a launch for every small operation of a step in the environments and of a gradient step
    communication  for every gradient step one all-reduce of 4 P bytes and `SMALL` of a few numbers: inside of a machine
                   2 (d - 1) / d bytes over the link and a latency, between n machines the share of one device,
                   2 (n - 1) / n of it over its link, and log2 n latencies

with the same number of environments on every device (weak scaling).
"""

import json
import math
from pathlib import Path

import jax
from provenance import RESULTS, commit, versions

import rlx
from rlx.algos import grpo_tokens, ppo
from rlx.train import state_shapes

DEVICES = (1, 2, 4, 8, 16, 64, 256, 1024)
ASSUMED = {
    "devices_a_machine": 8,
    "operations_per_second": 0.3 * 67e12,  # of an H100 (SXM) in float32, its data sheet's number, 30 % of it
    "launch": 4e-6,  # seconds of a kernel, however small
    "launches_a_step": 40,  # of acting and stepping
    "launches_a_gradient_step": 80,
    "link_inside": 450e9,  # bytes a second, NVLink of an H100, one way
    "latency_inside": 10e-6,  # seconds of an all-reduce of nothing
    "link_between": 50e9,  # bytes a second, a 400 Gb/s adapter for every device
    "latency_between": 10e-6,  # and for every doubling of machines
}
SMALL = 2  # mean and variance of the advantages of a minibatch


def workloads() -> dict[str, tuple]:
    """Algorithm, config and environment, with the settings of one device."""
    cartpole, countdown = rlx.envs.make("CartPole-v1"), rlx.envs.make("Countdown")
    many = {"num_envs": 4096, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4}
    tokens = {"num_groups": 64, "group_size": 8, "num_steps": 8, "num_epochs": 2, "num_minibatches": 4}
    return {
        "PPO, 2 x 64": (ppo, ppo.Config(**many), cartpole),
        "PPO, 3 x 512": (ppo, ppo.Config(**many, hidden_sizes=(512,) * 3), cartpole),
        "GRPO, transformer 64 x 2": (grpo_tokens, grpo_tokens.Config(**tokens), countdown),
        "GRPO, transformer 768 x 12": (
            grpo_tokens,
            grpo_tokens.Config(**tokens, width=768, num_layers=12, num_heads=12),
            countdown,
        ),
    }


def all_reduce(size: float, devices: int) -> float:
    """Seconds of one of `size` bytes."""
    inside = min(devices, ASSUMED["devices_a_machine"])
    machines = devices // inside
    seconds = 2 * (inside - 1) / inside * size / ASSUMED["link_inside"] + ASSUMED["latency_inside"] * (inside > 1)
    over = 2 * (machines - 1) / machines * size / inside / ASSUMED["link_between"]
    return seconds + over + ASSUMED["latency_between"] * math.log2(machines)


def estimate(algorithm, config, env) -> dict:
    """Bytes and milliseconds of an update, by number of devices."""
    params = sum(x.size for x in jax.tree.leaves(state_shapes(algorithm, config, env).params))
    steps = config.num_epochs * config.num_minibatches
    operations = params * config.steps_per_update * (2 + 6 * config.num_epochs)
    launches = config.num_steps * ASSUMED["launches_a_step"] + steps * ASSUMED["launches_a_gradient_step"]
    compute = operations / ASSUMED["operations_per_second"] + launches * ASSUMED["launch"]
    sent = {n: steps * (all_reduce(4 * params, n) + SMALL * all_reduce(8, n)) for n in DEVICES}
    return {
        "params": params,
        "gradient_bytes": 4 * params,
        "gradient_steps": steps,
        "compute_ms": round(1e3 * compute, 3),
        "communication_ms": {n: round(1e3 * seconds, 3) for n, seconds in sent.items()},
        "share": {n: round(seconds / (seconds + compute), 3) for n, seconds in sent.items()},
    }


def main(out: Path = RESULTS / "communication.json") -> None:
    """Writes the estimate."""
    found = {name: estimate(*workload) for name, workload in workloads().items()}
    result = {"commit": commit(), "versions": versions("rlx", "jax"), "assumed": ASSUMED, "workloads": found}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
