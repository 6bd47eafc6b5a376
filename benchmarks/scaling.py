"""Steps/s of one run by the number of devices that its environments are spread over.

    python benchmarks/scaling.py

Strong scaling: so many environments on one device, on two, on four, ... up to all. The numbers of devices take turns,
and each turn's speeds are set beside that of one device in the same turn. On a CPU the devices are virtual, one a core.

Beside it, what shuffling within the blocks of the devices saves: the same run with minibatches of any elements, and the
bytes that the two programs send between devices in an update.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from unittest.mock import patch

import jax
from physics import seconds
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

import rlx
from rlx.algos import ppo, sac
from rlx.devices import sharding
from rlx.rollout import permutations

NUM_ENVS = (16, 64, 256, 1024, 4096)
SIZES = {"num_steps": 32, "num_epochs": 4, "num_minibatches": 4, "hidden_sizes": (64, 64)}
CASES = {
    "PPO, CartPole-v1": (ppo, "CartPole-v1", SIZES),
    "PPO, mjx/hopper": (ppo, "mjx/hopper", SIZES),
    "SAC, Pendulum-v1": (
        sac,
        "Pendulum-v1",
        {"num_steps": 4, "utd_ratio": 1 / 64, "capacity": 2**16, "warmup_steps": 2**14, "batch_size": 256},
    ),
}


def program(algorithm, env, config, num_devices: int, num_updates: int):
    """A compiled call of so many updates, `state -> state`, and its first state."""
    devices = jax.devices()[:num_devices]
    with jax.set_mesh(sharding.mesh(devices)) if num_devices > 1 else nullcontext():

        def updates(config, env, state):
            return jax.lax.scan(lambda s, _: (algorithm.update(config, env, s)[0], None), state, length=num_updates)[0]

        state = jax.jit(lambda *args: algorithm.init(*args))(config, env, jax.random.key(0))
        compiled = jax.jit(updates).lower(config, env, state).compile()
        return (lambda state: jax.block_until_ready(compiled(config, env, state))), compiled(config, env, state)


def measure(case: str, num_envs: int, turns: int, budget: float) -> dict:
    """Steps/s on every number of devices, turn by turn."""
    algorithm, name, sizes = CASES[case]
    config = algorithm.Config(total_steps=2**30, num_envs=num_envs, **sizes)
    env = rlx.envs.make(name)
    counts = [2**i for i in range(jax.device_count().bit_length())]
    num_updates = max(1, 2**14 // config.steps_per_update)
    programs = {n: program(algorithm, env, config, n, num_updates) for n in counts if num_envs % n == 0}
    speeds = {n: [] for n in programs}
    for turn in range(1 + turns):
        for n, (run, state) in programs.items():
            took = seconds(run, state, budget)
            if turn:  # the first one warms up
                speeds[n].append(num_updates * config.steps_per_update / took)
    ratios = {n: [b / a for a, b in zip(speeds[1], found, strict=True)] for n, found in speeds.items()}
    return {
        "case": case,
        "num_envs": num_envs,
        "steps_per_second": {n: [round(x) for x in found] for n, found in speeds.items()},
        "over_one": {n: [round(x, 3) for x in found] for n, found in ratios.items()},
    }


def shuffling(num_envs: int, turns: int, budget: float) -> dict:
    """Bytes between devices in an update, by kind, and steps/s, of minibatches within blocks and of any elements."""
    anywhere = {
        "flatten": lambda data: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data),
        "minibatches": lambda key, n, m, e: permutations(key, e, n).reshape(e, m, -1),
        "gather": lambda data, index: jax.tree.map(lambda x: x[index], data),
    }
    env, config = rlx.envs.make("CartPole-v1"), ppo.Config(total_steps=2**30, num_envs=num_envs, **SIZES)
    sent, programs = {}, {}
    for name, verbs in {"within blocks": {}, "of any elements": anywhere}.items():
        with patch.multiple(ppo, **verbs) if verbs else nullcontext():
            programs[name] = program(ppo, env, config, jax.device_count(), 1)
            with jax.set_mesh(sharding.mesh()):
                update = jax.jit(lambda *args: ppo.update(*args)).lower(config, env, programs[name][1]).compile()
        sent[name] = {}
        for kind, size in sharding.collectives(update):
            sent[name][kind] = sent[name].get(kind, 0) + size
    times = {name: [] for name in programs}
    for turn in range(1 + turns):
        for name, (run, state) in programs.items():
            took = seconds(run, state, budget)
            if turn:
                times[name].append(took)
    within, anywhere = times.values()
    return {"num_envs": num_envs, "bytes": sent, "over_any": [b / a for a, b in zip(within, anywhere, strict=True)]}


def main(turns: int = 5, budget: float = 1.0, out: Path = RESULTS / "scaling.json") -> None:
    """Measures every case, and writes the result.

    Args:
        turns: of what is compared.
        budget: seconds of a program in a turn.
        out: the JSON file.
    """
    sharding.use_devices()
    code, console, cases = commit(), Console(), []
    for case in CASES:
        for num_envs in NUM_ENVS:
            cases.append(measure(case, num_envs, turns, budget))
            shown = {n: f"{median(found):.2f}" for n, found in cases[-1]["over_one"].items()}
            console.print(f"{case}, {num_envs} environments, over one device: {shown}")
    result = {
        "commit": code,
        "machine": machine() | {"device": jax.devices()[0].device_kind, "devices": jax.device_count()},
        "versions": versions("rlx", "jax", "jaxlib"),
        "sizes": SIZES,
        "cases": cases,
        "shuffling": shuffling(1024, turns, budget),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
