"""Tokens/s of writing answers with and without the cache, and of whole updates with prompts read once and apart.

    python benchmarks/decoding.py

An answer has as many tokens as its prompt (Reverse). Without the cache the policy reads the whole sequence for each
token it writes, places still empty included: the compiler has to know shapes. An update reads a prompt once where the
answers of its group stay together in minibatches. The last case is a transformer of a million parameters. The programs
of a case take turns; ratios are of runs next to each other.
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

# Tokens of an answer, width and layers of the transformer.
CASES = ((8, 64, 2), (32, 64, 2), (64, 64, 2), (32, 128, 5))
SIZES = {"num_groups": 16, "group_size": 8, "num_minibatches": 4, "num_epochs": 2, "warm_start_steps": 0}


def programs(length: int, width: int, num_layers: int) -> tuple[dict, int]:
    """Compiled programs of a state and a key, and how many parameters the transformer has.

    They are answers with the cache and without it, and an update with prompts read apart and once.
    """
    env = rlx.envs.make("Reverse", max_length=length)
    config = grpo_tokens.Config(num_steps=length, total_steps=1, width=width, num_layers=num_layers, **SIZES)

    def cached(state, key):
        start = grpo_tokens.starts(config, env, state.pool, key)
        network = grpo_tokens.networks(config, env)
        same = {"copies": config.group_size}
        return write(network, state.params["actor"], env, start, key, config.num_steps, **same)[1].recorded

    def uncached(state, key):
        policy = partial(grpo_tokens.act, config, env, state)
        return episodes(env, policy, grpo_tokens.starts(config, env, state.pool, key), key, length)[1].recorded

    def update(together, state, key):
        changed = rlx.replace(config, together=together)
        return grpo_tokens.update(changed, env, rlx.replace(state, key=key))[0].params

    state = jax.jit(grpo_tokens.init)(config, env, jax.random.key(0))
    updates = {"update": partial(update, 1), "update_together": partial(update, config.group_size)}
    functions = {"cached": cached, "uncached": uncached} | updates
    compiled = {
        name: partial(jax.jit(function).lower(state, jax.random.key(0)).compile(), state)
        for name, function in functions.items()
    }
    return compiled, sum(x.size for x in jax.tree.leaves(state.params))


def seconds(program, budget: float) -> float:
    """Of one call, over as many as fit into the budget."""
    num, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget or num == 0:
        jax.block_until_ready(program(jax.random.key(num)))
        num += 1
    return elapsed / num


def measure(case: tuple[int, int, int], turns: int, budget: float) -> dict:
    """Tokens/s and ratios of a case: the median over the turns, the lowest and the highest."""
    length, width, num_layers = case
    compiled, num_params = programs(*case)
    found = {name: [] for name in compiled}
    for program in compiled.values():
        seconds(program, 0.0)
    for _ in range(turns):
        for name, program in compiled.items():
            found[name].append(seconds(program, budget))
    num_tokens = SIZES["num_groups"] * SIZES["group_size"] * length
    over = lambda a, b: [one / other for one, other in zip(found[a], found[b], strict=True)]
    ratios = {
        "speedup": over("uncached", "cached"),
        "share_of_writing": over("cached", "update"),
        "speedup_together": over("update", "update_together"),
    }
    return {
        "answer_tokens": length,
        "width": width,
        "num_layers": num_layers,
        "num_params": num_params,
        "tokens_per_second": {name: num_tokens / median(times) for name, times in found.items()},
        **{name: {"median": median(x), "low": min(x), "high": max(x)} for name, x in ratios.items()},
    }


def main(turns: int = 5, budget: float = 2.0, out: Path = RESULTS / "decoding.json") -> None:
    """Measures every case.

    Args:
        turns: of the programs of a case.
        budget: seconds of a program in a turn.
        out: the JSON file.
    """
    console = Console()
    cases = []
    for case in CASES:
        cases.append(measure(case, turns, budget))
        console.print(cases[-1])
    result = {
        "settings": SIZES | {"num_heads": 4},
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
