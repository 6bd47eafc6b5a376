"""PPO of rlx and of Rejax with and without an annealed learning rate, and Rejax at the best of a grid.

    python benchmarks/annealing.py

rlx anneals its learning rate to 0 and Rejax keeps it constant, so that the returns of both at the same settings compare
two things at once. Here rlx runs at a constant rate too, and Rejax with `GRID`, parts of the learning rate that ships,
and both with the clip of gradients that ships and with Rejax's default. The best of its grid is chosen by the same
seeds that it is judged by, which favours it. Seeds, steps and episodes are those of `returns.py`.
"""

import json
from pathlib import Path

import jax
from peer_returns import measure as measure_peer
from provenance import RESULTS, commit, machine
from returns import TASKS
from returns import measure as measure_ours
from rich.console import Console

from rlx.files import read_json

NAMES = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "Breakout-MinAtar")
GRID = (1.0, 0.25, 0.0625)
CLIP = 0.5  # Rejax's default max_grad_norm


def compared(name: str) -> dict:
    """What both come to on a task: means with intervals, and the returns of each seed."""
    annealed = read_json(RESULTS / "returns" / f"ppo-{name}.json")
    (constant,) = measure_ours([TASKS[name]], num_seeds=len(annealed["seeds"]), anneal_learning_rate=False)
    rates = [share * annealed["config"]["learning_rate"] for share in GRID]
    clips = dict.fromkeys([annealed["config"]["max_grad_norm"], CLIP])
    peers = []
    for settings in [{"learning_rate": rate, "max_grad_norm": clip} for clip in clips for rate in rates]:
        found = measure_peer(annealed | {"config": annealed["config"] | settings})
        peers.append(settings | {part: found[part] for part in ("mean", "returns", "steps")})
    ours = {
        title: {part: result[part] for part in ("mean", "returns", "steps")}
        for title, result in (("annealed", annealed), ("constant", constant))
    }
    return {"rlx": ours, "rejax": peers, "best": max(peers, key=lambda peer: peer["mean"]["value"])}


def main(out: Path = RESULTS / "annealing.json", force: bool = False) -> None:
    """Measures the tasks that are not in the file yet.

    Args:
        out: the JSON file.
        force: measure all of them again.
    """
    jax.config.update("jax_num_cpu_devices", machine()["cpus"])
    console, code = Console(), commit()
    found = read_json(out)["tasks"] if out.exists() and not force else {}
    for name in NAMES:
        if name not in found:
            found[name] = compared(name)
            out.write_text(json.dumps({"tasks": found, "machine": machine(), "commit": code}, indent=1) + "\n")
            console.print(name, {title: one["mean"]["value"] for title, one in found[name]["rlx"].items()})
            console.print([(p["learning_rate"], p["max_grad_norm"], p["mean"]["value"]) for p in found[name]["rejax"]])


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
