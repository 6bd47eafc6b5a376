"""Tokens/s of writing answers with and without the cache, and the share of an update that writing takes.

    python benchmarks/decoding.py

An answer has as many tokens as its prompt (Reverse). Without the cache the policy reads the whole sequence for each
token it writes, places still empty included: the compiler has to know shapes. The programs of a case take turns; ratios
are of runs next to each other.
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
from rlx.algos import grpo_tokens
from rlx.rollout import episodes
from rlx.tokens import write

LENGTHS = (8, 32, 64)
SIZES = {"num_groups": 16, "group_size": 8, "num_minibatches": 4, "num_epochs": 2, "warm_start_steps": 0}


def programs(length: int) -> dict:
    """Compiled programs of a state and a key: answers with the cache and without it, and a whole update."""
    env = rlx.envs.make("Reverse", max_length=length)
    config = grpo_tokens.Config(num_steps=length, total_steps=1, **SIZES)

    def cached(state, key):
        start = grpo_tokens.starts(config, env, state, key)
        network = grpo_tokens.networks(config, env)
        return write(network, state.params["actor"], env, start, key, config.num_steps)[1].recorded

    def uncached(state, key):
        policy = partial(grpo_tokens.act, config, env, state)
        return episodes(env, policy, grpo_tokens.starts(config, env, state, key), key, length)[1].recorded

    def update(state, key):
        return grpo_tokens.update(config, env, rlx.replace(state, key=key))[0].params

    state = jax.jit(grpo_tokens.init)(config, env, jax.random.key(0))
    functions = {"cached": cached, "uncached": uncached, "update": update}
    return {
        name: partial(jax.jit(function).lower(state, jax.random.key(0)).compile(), state)
        for name, function in functions.items()
    }


def seconds(program, budget: float) -> float:
    """Of one call, over as many as fit into the budget."""
    num, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget or num == 0:
        jax.block_until_ready(program(jax.random.key(num)))
        num += 1
    return elapsed / num


def measure(length: int, turns: int, budget: float) -> dict:
    """Tokens/s and ratios at a length; a list of every turn's and, by name, its median."""
    compiled = programs(length)
    found = {name: [] for name in compiled}
    for program in compiled.values():
        seconds(program, 0.0)
    for _ in range(turns):
        for name, program in compiled.items():
            found[name].append(seconds(program, budget))
    num_tokens = SIZES["num_groups"] * SIZES["group_size"] * length
    ratios = {
        "speedup": [slow / fast for slow, fast in zip(found["uncached"], found["cached"], strict=True)],
        "share_of_writing": [part / whole for part, whole in zip(found["cached"], found["update"], strict=True)],
    }
    return {
        "answer_tokens": length,
        "tokens_per_second": {name: num_tokens / median(times) for name, times in found.items()},
        **{name: {"median": median(x), "low": min(x), "high": max(x)} for name, x in ratios.items()},
    }


def main(turns: int = 5, budget: float = 2.0, out: Path = RESULTS / "decoding.json") -> None:
    """Measures every length.

    Args:
        turns: of the programs of a length.
        budget: seconds of a program in a turn.
        out: the JSON file.
    """
    console = Console()
    cases = []
    for length in LENGTHS:
        cases.append(measure(length, turns, budget))
        console.print(cases[-1])
    result = {
        "settings": SIZES | {"width": 64, "num_layers": 2, "num_heads": 4},
        "cases": cases,
        "commit": commit(),
        "versions": versions("rlx", "jax", "jaxlib", "flax", "optax"),
        "machine": machine(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
