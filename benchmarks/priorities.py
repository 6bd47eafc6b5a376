"""What priorities cost DQN with a buffer of a million elements: updates with them and without, in turns.

    python benchmarks/priorities.py

The buffer is donated, so that it is changed in place. Times are of the processor, all cores together.
"""

import json
import time
from functools import partial
from pathlib import Path
from statistics import median

import jax
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

import rlx
from rlx.algos import dqn
from rlx.presets import preset

UPDATES = {"gymnax/CartPole-v1": 40, "gymnax/Breakout-MinAtar": 8}  # of a turn
CAPACITY = 1_000_000


def program(name: str, prioritized: bool, num_updates: int):
    """A compiled run of updates, and the State that it begins with."""
    env = rlx.envs.make(name)
    config = preset(dqn, name, env, total_steps=CAPACITY, capacity=CAPACITY, prioritized=prioritized)
    state = jax.jit(dqn.init)(config, env, jax.random.key(0))
    run = jax.jit(lambda state: rlx.resume(dqn, config, env, state, num_updates=num_updates)[0], donate_argnums=0)
    return run.lower(state).compile(), state


def measure(name: str, turns: int) -> dict:
    """Seconds of the processor for an update, median over the turns, and the ratios of runs next to each other."""
    programs = {title: program(name, title == "prioritized", UPDATES[name]) for title in ("uniform", "prioritized")}
    states = {title: jax.block_until_ready(run(state)) for title, (run, state) in programs.items()}
    seconds = {title: [] for title in programs}
    for _ in range(turns):
        for title, (run, _) in programs.items():
            start = time.process_time()
            states[title] = jax.block_until_ready(run(states[title]))
            seconds[title].append((time.process_time() - start) / UPDATES[name])
    ratios = [with_them / without for without, with_them in zip(*seconds.values(), strict=True)]
    return {
        "seconds": {title: median(found) for title, found in seconds.items()},
        "ratio": {"median": median(ratios), "low": min(ratios), "high": max(ratios)},
    }


def main(turns: int = 7, out: Path = RESULTS / "priorities.json") -> None:
    """Measures every environment.

    Args:
        turns: of the two programs.
        out: the JSON file.
    """
    found = dict(zip(UPDATES, map(partial(measure, turns=turns), UPDATES), strict=True))
    Console().print(found)
    packages = versions("rlx", "jax", "jaxlib", "gymnax")
    result = {
        "capacity": CAPACITY,
        "environments": found,
        "commit": commit(),
        "versions": packages,
        "machine": machine(),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
