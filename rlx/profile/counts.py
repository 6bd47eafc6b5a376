"""What a compiled program does, counted in what XLA made of it, and what this machine can do, measured.

Operations, bytes and kernels are counted in the program, loops as often as they go round: a matrix product of `[m, k]`
by `[k, n]` is 2 m k n operations, anything else one for each element that it makes; bytes are those that kernels read
and write, whether or not from a cache. The ceilings are measured: a large matrix product and one of layers of 64 in a
loop, a copy in memory, and a kernel that has nothing to do.
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

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
    """A line of a computation in HLO."""

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
    """The number of elements of all arrays of a shape."""
    return sum(num for num, _ in arrays(shape))


def size(shape: str) -> int:
    """The bytes of all arrays of a shape."""
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


class Module:
    """A module in HLO: what its computations cost."""

    def __init__(self, text: str):
        self.computations, self.entry = computations(text)

    def cost(self, name: str) -> Cost:
        """Of a computation, loops as often as they go round."""
        total, shapes = Cost(), {one.name: one.shape for one in self.computations[name]}
        for one in self.computations[name]:
            if one.kind == "while":
                if (times := re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)) is None:
                    raise ValueError(f"it is not known how often %{one.name} goes round")
                total += (self.cost(_named("body", one)) + self.cost(_named("condition", one))) * int(times[1])
            elif one.kind == "call":
                total += self.cost(_named("to_apply", one))
            elif one.kind not in MOVES:
                total += Cost(self._operations(one, shapes), self._moved(one, shapes), 1)
        return total

    def _operations(self, one: Instruction, shapes: dict[str, str]) -> float:
        """Arithmetic of one instruction."""
        if one.kind in MOVES | SHUFFLES:
            return 0
        if one.kind == "fusion":
            return self._within(_named("calls", one))
        if one.kind == "dot":
            left = _sizes(shapes[one.operands[0]])
            contracted = _found(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
            return 2 * elements(one.shape) * math.prod(left[int(i)] for i in contracted.split(",") if i)
        if one.kind == "convolution":
            kernel = shapes[one.operands[1]]
            features = _found(r"dim_labels=\w+_(\w+)->", one.rest).index("o")
            return 2 * elements(one.shape) * elements(kernel) / _sizes(kernel)[features]
        if one.kind in ("reduce", "reduce-window", "sort", "scatter"):
            return elements(shapes[one.operands[0]])
        return elements(one.shape)

    def _within(self, name: str) -> float:
        """Arithmetic of a computation that is one kernel."""
        shapes = {one.name: one.shape for one in self.computations[name]}
        return sum(self._operations(one, shapes) for one in self.computations[name])

    def _moved(self, one: Instruction, shapes: dict[str, str]) -> float:
        """Bytes of operands that a kernel reads, and of what it writes: slices where it takes or changes slices."""
        if one.kind != "fusion":
            if one.kind == "dynamic-update-slice":
                return 2 * size(shapes[one.operands[1]])
            if one.kind in ("dynamic-slice", "gather"):
                return 2 * size(one.shape)
            return size(one.shape) + sum(size(shapes[name]) for name in one.operands)
        body = self.computations[_named("calls", one)]
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


def _found(pattern: str, text: str) -> str:
    """The first group of a pattern."""
    if (match := re.search(pattern, text)) is None:
        raise ValueError(f"{text.strip()} has no {pattern}")
    return match[1]


def _named(attribute: str, one: Instruction) -> str:
    """The computation that an attribute of an instruction names."""
    return _found(attribute + r"=%?([\w.\-]+)", one.rest)


def _sizes(shape: str) -> list[int]:
    """The sizes of the axes of a shape's first array."""
    return [int(n) for n in _found(r"\b[a-z]+\d*\w*\[([\d,]*)\]", shape).split(",") if n]


def cost(text: str) -> Cost:
    """What running an HLO module once costs.

    Raises:
        ValueError: when it is not known how often a loop goes round.
    """
    module = Module(text)
    return module.cost(module.entry)


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
        times[name], kernels[name] = seconds(compiled, x, budget), cost(compiled.as_text() or "").kernels
    return {
        "large_product_flops": 2 * 1024**3 / times["large"],
        "layers_flops": num * 2 * 128 * 64 * 64 / times["layers"],
        "copy_bytes_per_second": 2 * memory.nbytes / times["copy"],
        "seconds_per_kernel": times["kernel"] / kernels["kernel"],
    }


def seconds(program: Callable, state: Any, budget: float) -> float:
    """Of one call, over as many as fit into the budget; each goes on from where the last one came to."""
    num, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget or num == 0:
        state = jax.block_until_ready(program(state))
        num += 1
    return elapsed / num
