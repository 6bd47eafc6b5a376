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
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from physics import seconds
from provenance import RESULTS, commit, machine, versions
from rich.console import Console
from speed import CASES

import rlx
from rlx.algos import ppo, sac
from rlx.replay import sample
from rlx.rollout import minibatches, rollout

COUNTED = {"CartPole-v1": ppo, "Breakout-MinAtar": ppo, "brax/hopper, spring": ppo, "SAC, buffer 10^4": sac}
MOVES = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id"}
SHUFFLES = {"copy", "reshape", "transpose", "broadcast", "slice", "concatenate", "pad", "gather", "iota", "reverse"}
SHUFFLES |= {"dynamic-slice", "dynamic-update-slice", "convert", "copy-start", "copy-done"}  # no arithmetic
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)")
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


@dataclass(frozen=True)
class Cost:
    """Of a computation: arithmetic operations, bytes that kernels read and write, kernels."""

    operations: float = 0
    bytes: float = 0
    kernels: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.operations + other.operations, self.bytes + other.bytes, self.kernels + other.kernels)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.operations * times, self.bytes * times, self.kernels * times)


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    kind: str
    operands: list[str]
    rest: str


def arrays(shape: str) -> list[tuple[int, int]]:
    """Elements and bytes of each array of a shape in HLO's notation."""
    found = []
    for kind, bits, sizes in ARRAY.findall(shape):
        num = math.prod(int(n) for n in sizes.split(",") if n)
        found.append((num, num * (1 if kind == "pred" else max(1, int(bits or 8) // 8))))
    return found


def elements(shape: str) -> int:
    return sum(num for num, _ in arrays(shape))


def size(shape: str) -> int:
    return sum(num_bytes for _, num_bytes in arrays(shape))


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of an HLO module by name, and the name of the one that it begins with."""
    found: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        if begins := re.match(r"(ENTRY )?%([\w.\-]+) .*\{$", line):
            name = begins[2]
            entry = name if begins[1] else entry
            found[name] = []
        elif name and (match := INSTRUCTION.match(line)):
            operands = re.findall(r"%([\w.\-]+)", match[4])
            found[name].append(Instruction(match[1], match[2], match[3], operands, match[5]))
    return found, entry


def cost(text: str) -> Cost:
    """What running an HLO module once costs.

    Raises:
        ValueError: when it is not known how often a loop goes round.
    """
    module, entry = computations(text)
    named = lambda pattern, one: re.search(pattern + r"=%?([\w.\-]+)", one.rest)[1]

    def operations(one: Instruction, shapes: dict[str, str]) -> float:
        """Arithmetic of one instruction."""
        if one.kind in MOVES | SHUFFLES:
            return 0
        if one.kind == "fusion":
            return within(named("calls", one))
        if one.kind == "dot":
            left = [int(n) for n in ARRAY.search(shapes[one.operands[0]])[3].split(",") if n]
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)[1]
            return 2 * elements(one.shape) * math.prod(left[int(i)] for i in contracted.split(",") if i)
        if one.kind == "convolution":
            kernel = elements(shapes[one.operands[1]])
            features = re.search(r"dim_labels=\w+_(\w+)->", one.rest)[1].index("o")
            outputs = int(ARRAY.search(shapes[one.operands[1]])[3].split(",")[features])
            return 2 * elements(one.shape) * kernel / outputs
        if one.kind in ("reduce", "reduce-window", "sort", "scatter"):
            return elements(shapes[one.operands[0]])
        return elements(one.shape)

    def within(name: str) -> float:
        """Arithmetic of a computation that is one kernel."""
        shapes = {one.name: one.shape for one in module[name]}
        return sum(operations(one, shapes) for one in module[name])

    def read(one: Instruction, shapes: dict[str, str]) -> float:
        """Bytes of operands that a kernel reads, and of what it writes: slices where it takes or changes slices."""
        if one.kind != "fusion":
            if one.kind == "dynamic-update-slice":
                return 2 * size(shapes[one.operands[1]])
            if one.kind in ("dynamic-slice", "gather"):
                return 2 * size(one.shape)
            return size(one.shape) + sum(size(shapes[name]) for name in one.operands)
        body = module[named("calls", one)]
        users = defaultdict(list)
        for inner in body:
            for position, operand in enumerate(inner.operands):
                users[operand].append((inner, position))
        inside = {inner.name: inner.shape for inner in body}
        total = 0.0
        for inner in body:
            if inner.kind == "parameter":
                for user, position in users[inner.name]:
                    if user.kind in ("dynamic-slice", "gather") and position == 0:
                        total += size(user.shape)
                    elif user.kind != "dynamic-update-slice" or position:
                        total += size(inner.shape)
                        break
        last = body[-1]
        if last.kind == "dynamic-update-slice":
            return total + size(inside[last.operands[1]])
        return total + size(one.shape)

    def of(name: str) -> Cost:
        total, shapes = Cost(), {one.name: one.shape for one in module[name]}
        for one in module[name]:
            if one.kind == "while":
                if (times := re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)) is None:
                    raise ValueError(f"it is not known how often %{one.name} goes round")
                total += (of(named("body", one)) + of(named("condition", one))) * int(times[1])
            elif one.kind == "call":
                total += of(named("to_apply", one))
            elif one.kind not in MOVES:
                total += Cost(operations(one, shapes), read(one, shapes), 1)
        return total

    return of(entry)


def ceilings(budget: float) -> dict[str, float]:
    """Operations a second of matrix products, bytes a second of a copy, and seconds to start a kernel."""
    large, layer = jnp.ones((1024, 1024)), jnp.full((64, 64), 1e-2)
    batch, memory = jnp.ones((128, 64)), jnp.ones(2**25)
    num = 2000
    programs = {
        "large": (lambda x: x @ large * 1e-3, large),
        "layers": (lambda x: jax.lax.fori_loop(0, num, lambda _, x: x @ layer, x), batch),
        "copy": (lambda x: x + 1, memory),
        # Of 4 kB: XLA makes one kernel of a loop over less than 1 kB.
        "kernel": (lambda x: jax.lax.fori_loop(0, num, lambda _, x: x * 0.5, x), jnp.ones(1024)),
    }
    times, kernels = {}, {}
    for name, (function, x) in programs.items():
        compiled = jax.jit(function).lower(x).compile()
        seconds(compiled, x, 0.0)
        times[name], kernels[name] = seconds(compiled, x, budget), cost(compiled.as_text()).kernels
    return {
        "large_product_flops": 2 * 1024**3 / times["large"],
        "layers_flops": num * 2 * 128 * 64 * 64 / times["layers"],
        "copy_bytes_per_second": 2 * memory.nbytes / times["copy"],
        "seconds_per_kernel": times["kernel"] / kernels["kernel"],
    }


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
