"""The replay buffer of rlx beside flashbax's: time, compilation and memory of inserting and sampling in a jitted loop.

    pip install flashbax
    python benchmarks/replay.py

A program makes a number of updates; each inserts a block of transitions and then reads batches, one after the other as
gradient steps do. Both libraries run in this process and take turns. The buffer is donated to the program, and
is full when it is timed.
"""

import json
import time
from pathlib import Path
from statistics import median

import flashbax
import jax
import jax.numpy as jnp
from provenance import RESULTS, commit, machine, versions
from rich.console import Console
from rich.table import Table

from rlx.replay import insert, replay, sample, take

# block: transitions inserted by an update, from which as many gradient steps follow; lanes: seeds of a vmap
CASES = {
    "Pendulum": {"obs": 3, "action": 1, "capacity": 100_000, "block": 64, "lanes": 1},
    "Pendulum, a step at a time": {"obs": 3, "action": 1, "capacity": 100_000, "block": 1, "lanes": 1},
    "Pendulum, 8 seeds": {"obs": 3, "action": 1, "capacity": 100_000, "block": 64, "lanes": 8},
    "HalfCheetah": {"obs": 18, "action": 6, "capacity": 1_000_000, "block": 64, "lanes": 1},
}
BATCH = 256
UPDATES = 2048  # transitions of a program, over its block


def transitions(case: dict, key: jax.Array, num: int) -> dict[str, jax.Array]:
    """Random transitions, leaves `[num, ...]`."""
    draw = lambda i, *shape: jax.random.normal(jax.random.fold_in(key, i), (num, *shape))
    return {
        "obs": draw(0, case["obs"]),
        "action": draw(1, case["action"]),
        "reward": draw(2),
        "next_obs": draw(3, case["obs"]),
        "terminated": draw(4) > 2,
    }


def total(batch):
    """A number that depends on all of a batch."""
    return sum(x.sum() for x in jax.tree.leaves(batch))


def rlx_program(case):
    """An empty buffer, and an update of it: the new buffer and the sum of all batches."""
    example = jax.tree.map(lambda x: x[0], transitions(case, jax.random.key(0), 1))

    def update(buffer, elements, key):
        buffer = insert(buffer, elements)
        index = sample(buffer, key, (case["block"], BATCH))
        return buffer, jax.lax.scan(lambda sum_, i: (sum_ + total(take(buffer, i)), None), 0.0, index)[0]

    return replay(example, case["capacity"], spare=case["block"]), update


def flashbax_program(case):
    """The same with flashbax."""
    item = flashbax.make_item_buffer(case["capacity"], 1, BATCH, add_batches=True)
    example = jax.tree.map(lambda x: x[0], transitions(case, jax.random.key(0), 1))

    def update(buffer, elements, key):
        buffer = item.add(buffer, elements)
        keys = jax.random.split(key, case["block"])
        read = lambda sum_, key: (sum_ + total(item.sample(buffer, key).experience), None)
        return buffer, jax.lax.scan(read, 0.0, keys)[0]

    return item.init(example), update


LIBRARIES = {"rlx": rlx_program, "flashbax": flashbax_program}


class Measured:
    """A library's compiled program of a case, its full buffer, and what was measured of it."""

    def __init__(self, library: str, case: dict):
        self.case, self.num_updates, self.seconds = case, UPDATES // case["block"], []
        self.buffer, update = LIBRARIES[library](case)

        def run(buffer, key):
            def body(buffer, key):
                elements_key, sample_key = jax.random.split(key)
                return update(buffer, transitions(case, elements_key, case["block"]), sample_key)

            return jax.lax.scan(body, buffer, jax.random.split(key, self.num_updates))

        if case["lanes"] > 1:
            run, self.buffer = jax.vmap(run), jax.tree.map(lambda x: jnp.stack([x] * case["lanes"]), self.buffer)
        start = time.perf_counter()
        self.program = jax.jit(run, donate_argnums=0).lower(self.buffer, self.keys(0)).compile()
        self.compile_seconds = time.perf_counter() - start
        for i in range(-(-case["capacity"] // UPDATES)):
            self.buffer, _ = self.program(self.buffer, self.keys(i))
        jax.block_until_ready(self.buffer)

    def keys(self, i: int) -> jax.Array:
        key = jax.random.key(i)
        return jax.random.split(key, self.case["lanes"]) if self.case["lanes"] > 1 else key

    def time(self, i: int) -> None:
        start = time.perf_counter()
        self.buffer, sums = self.program(self.buffer, self.keys(i))
        jax.block_until_ready(sums)
        self.seconds.append(time.perf_counter() - start)

    def result(self) -> dict:
        memory = self.program.memory_analysis()
        return {
            "microseconds_per_batch": 1e6 * median(self.seconds) / UPDATES,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "state_bytes": sum(x.nbytes for x in jax.tree.leaves(self.buffer)),
            "program_bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        }


def main(repeats: int = 15, out: Path = RESULTS / "replay.json") -> None:
    """Measures, prints the table and writes the result.

    Args:
        repeats: timed runs of every program.
        out: the JSON file.
    """
    code, results = commit(), {}
    table = Table("case", "library", "us / batch", "compile, s", "state, MiB", "program, KiB")
    for name, case in CASES.items():
        measured = {library: Measured(library, case) for library in LIBRARIES}
        for i in range(repeats):
            for one in measured.values():
                one.time(i)
        results[name] = {library: one.result() for library, one in measured.items()}
        for library, r in results[name].items():
            table.add_row(
                name,
                library,
                f"{r['microseconds_per_batch']:.1f}",
                f"{r['compile_seconds']:.2f}",
                f"{r['state_bytes'] / 2**20:.2f}",
                f"{r['program_bytes'] / 2**10:.0f}",
            )
    packages = versions("rlx", "flashbax", "jax", "jaxlib")
    machine_ = machine() | {"device": jax.devices()[0].device_kind}
    result = {"commit": code, "machine": machine_, "versions": packages, "batch": BATCH, "cases": CASES}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result | {"results": results}, indent=1) + "\n")
    Console().print(table)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
