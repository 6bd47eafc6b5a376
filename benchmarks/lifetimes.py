"""Whole PPO lifetimes a second, by how many learned objectives live at once in one program.

    python benchmarks/lifetimes.py

A lifetime is a training from beginning to end under an objective of its own, see `rlx.meta.trial`. The lanes are spread
over the devices; on a CPU there is one virtual device a core. The sizes of the population take turns.
"""

import json
import time
from pathlib import Path
from statistics import median

import jax
from provenance import RESULTS, commit, machine, versions
from rich.console import Console
from rich.table import Table

import rlx
from rlx import meta
from rlx.algos import ppo
from rlx.devices.sharding import use_devices

ENV = "gymnax/CartPole-v1"
SIZES = {"total_steps": 8_192, "num_envs": 8, "num_steps": 64, "num_epochs": 4, "num_minibatches": 4}
POPULATIONS = (1, 2, 4, 8, 16, 32, 64, 128)


def main(repeats: int = 5, populations: tuple[int, ...] = POPULATIONS, out: Path = RESULTS / "lifetimes.json") -> None:
    """Measures, prints the table and writes the result.

    Args:
        repeats: turns of every size.
        populations: how many objectives live at once.
        out: the JSON file.
    """
    use_devices()
    code, program = commit(), meta.lived(ppo)
    config, env = ppo.Config(**SIZES), rlx.envs.make(ENV)
    keys = jax.random.split(jax.random.key(0), max(populations))
    objectives = jax.vmap(meta.lpo)(keys)
    compiled = {}
    for num in populations:
        each = jax.tree.map(lambda x, num=num: x[:num], (objectives, keys))
        compiled[num] = program.lower(each, config, env).compile(), each
    speeds: dict[int, list[float]] = {num: [] for num in populations}
    for turn in range(repeats + 1):
        for num, (run, each) in compiled.items():
            started = time.perf_counter()
            jax.block_until_ready(run(each, config, env))
            if turn:  # the first one warms up
                speeds[num].append(num / (time.perf_counter() - started))
    first = populations[0]
    ratios = {num: [b / a for a, b in zip(speeds[first], values, strict=True)] for num, values in speeds.items()}
    result = {
        "commit": code,
        "machine": machine() | {"device": jax.devices()[0].device_kind, "devices": jax.device_count()},
        "versions": versions("jax", "jaxlib", "gymnax", "evosax"),
        "env": ENV,
        "sizes": SIZES,
        "parameters": sum(x[0].size for x in jax.tree.leaves(objectives)),
        "lifetimes_per_second": {str(num): [round(x, 3) for x in values] for num, values in speeds.items()},
        "over_first": {str(num): [round(x, 3) for x in values] for num, values in ratios.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("at once", "lifetimes/s", f"over {first}", title=f"{ENV}, {SIZES['total_steps']:,} steps each")
    for num, values in speeds.items():
        low, high = min(ratios[num]), max(ratios[num])
        table.add_row(str(num), f"{median(values):.2f}", f"{median(ratios[num]):.2f} [{low:.2f}, {high:.2f}]")
    Console().print(table)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
