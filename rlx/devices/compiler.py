"""Changes to how JAX and XLA compile for a CPU, each for the versions on which its tests passed. Importing makes them.

Every use that rlx makes of private parts of JAX stands in this file. A version that `TESTED` does not list is left as
it is, and so is every version with `RLX_COMPILER=off` in the environment. `docs/compiler.md` has what each is for.
"""

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial

import jax
import numpy as np
from jax.export import is_symbolic_dim

SWITCH = "RLX_COMPILER"
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
WAIT = "--xla_cpu_collective_call_terminate_timeout_seconds"
WEEK = 7 * 24 * 3600
PIECE = 200_000  # operations up to which a kernel of LAPACK leaves its batch in one piece


def keep_reductions_from_ynn() -> None:
    """Has XLA compile sums over arrays on a CPU itself, rather than hand them to the library YNN.

    It gains correct numbers. jaxlib 0.10.2 gets some sums wrong without a word: the squared lengths of 32,769 vectors
    after `vmap` over `matrix @ vector`, the natural gradients of ten seeds at once; other sums never end. jaxlib 0.11.2
    has both mended. YNN's matrix products are right and stay. Nothing is done where XLA_FLAGS has the flag already.

    Source: github.com/jax-ml/jax/issues/39103, github.com/jax-ml/jax/issues/39257.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags:
        return
    if in_use():
        text = (
            f"XLA may sum wrongly on a CPU: import rlx before JAX computes anything, or set XLA_FLAGS='{FLAG}=-reduce'"
        )
        warnings.warn(text, stacklevel=4)
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()


def wait_for_other_devices() -> None:
    """Has a virtual device of a CPU wait a week for the others, rather than the 40 seconds after which XLA gives up.

    It gains that work is not lost. Lanes of a sweep run apart and meet at the end of their program, where XLA ends the
    process when one of them is later. Nothing is done where XLA_FLAGS has the flag already, or where JAX is in use.

    Source: XLA, xla/debug_options_flags.cc, which has the 40 seconds.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if WAIT not in flags and not in_use():
        os.environ["XLA_FLAGS"] = f"{flags} {WAIT}={WEEK}".strip()


def unroll_threefry() -> None:
    """Has JAX's random bits compiled as one expression, as on other devices; the bits stay the same.

    JAX makes a loop of the rounds there: 26 small kernels and a `while` for each draw. Unrolled it is one or two. On
    two cores it gains 8 % [3, 12] of the steps/s of SAC and 6 % [2, 11] of its compile time, 7 % [-2, 17] of the
    steps/s of PPO on CartPole, and nothing measurable on Breakout (benchmarks/results/switches.json).
    """
    from jax.extend.random import threefry2x32_p
    from jax.interpreters import mlir

    unrolled = partial(threefry, rule(threefry2x32_p))
    mlir.register_lowering(threefry2x32_p, unrolled, platform="cpu", inline=False)


def solve_in_pieces() -> None:
    """Has LAPACK factorise and solve large batches piece by piece on several devices; results stay the same.

    It gains that such programs end. The kernels of jaxlib 0.10 give the parts of a batch of more than 200,000
    operations to XLA's threads, one a core, and wait for them on one of these. When all threads wait, for the devices
    together have as many, none is left for the parts. Pieces below that are done where they are. QR, eigenvalues and
    SVD are left as they were. jaxlib 0.11.2 ends without it.

    Source: jaxlib 0.10, jaxlib/cpu/lapack_kernels.cc, GetLapackBatchChunkSize.
    """
    from jax.interpreters import mlir
    from jax.lax import linalg

    for primitive, cost in {
        linalg.cholesky_p: lambda a: a.shape[-1] ** 3 // 3,
        linalg.triangular_solve_p: lambda a, b: math.prod(b.shape[-2:]) * a.shape[-1],
        linalg.lu_p: lambda a: math.prod(a.shape[-2:]) * min(a.shape[-2:]),
    }.items():
        mlir.register_lowering(primitive, partial(in_pieces, primitive, cost, rule(primitive)), platform="cpu")


# What was tested: the change, and the versions of jaxlib for which tests/test_compiler.py passed with it.
TESTED = {
    keep_reductions_from_ynn: ("0.10.2",),
    wait_for_other_devices: ("0.10.2", "0.11.2"),
    unroll_threefry: ("0.10.2",),
    solve_in_pieces: ("0.10.2",),
}


def active() -> list[str]:
    """Names of the changes that this process has, in the order in which they are made."""
    from jaxlib.version import __version__

    off = switched_off()
    return [change.__name__ for change, versions in TESTED.items() if not off and __version__ in versions]


def switched_off() -> bool:
    """Whether the environment says that JAX and XLA are to be left as they are."""
    value = os.environ.get(SWITCH) or "on"
    if value not in ("on", "off"):
        raise ImportError(f"{SWITCH}={value}: give on, or off to leave JAX and XLA as they are")
    return value == "off"


def in_use() -> bool:
    """Whether JAX has made its devices, after which neither their number nor XLA's flags can be chosen."""
    num = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue] (made by JAX)
    try:
        jax.config.update("jax_num_cpu_devices", num + 1)  # another number is refused from then on
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", num)
    return False


@cache
def known_flags(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Those of XLA's flags that the installed version knows. It ends a process that has another, so one is tried."""
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    if not done.returncode:
        return flags
    rest = tuple(flag for flag in flags if flag not in done.stderr.split())
    if rest == flags:
        raise RuntimeError(f"XLA_FLAGS='{' '.join(flags)}': {done.stderr.strip()}")
    return known_flags(rest) if rest else ()


def rule(primitive) -> Callable:
    """How JAX lowers a primitive on a CPU."""
    from jax.interpreters import mlir

    return mlir._platform_specific_lowerings["cpu"][primitive].rule


def constant(shapes: Iterable[tuple]) -> bool:
    """Whether all sizes are numbers, as they are but for `jax.export` of symbolic shapes."""
    return not any(is_symbolic_dim(size) for shape in shapes for size in shape)


def threefry(looped: Callable, ctx, *words) -> list:
    """Threefry-2x32 with 20 rounds, in the operations of XLA: two words of random bits for two of a key and a counter.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (SC '11), section 3.3.
    """
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo as hlo
    from jax.interpreters import mlir

    out = ctx.avals_out[0]
    if not constant([out.shape]):
        return looped(ctx, *words)
    kind = ir.RankedTensorType.get(out.shape, ir.IntegerType.get_unsigned(32))
    number = lambda value: mlir.ir_constant(np.broadcast_to(np.uint32(value), out.shape))

    def whole(word, aval):
        return hlo.broadcast_in_dim(kind, word, mlir.dense_int_array(range(out.ndim - aval.ndim, out.ndim)))

    key1, key2, x1, x2 = map(whole, words, ctx.avals_in)
    keys = [key1, key2, hlo.xor(hlo.xor(key1, key2), number(0x1BD11BDA))]
    x1, x2 = hlo.add(x1, keys[0]), hlo.add(x2, keys[1])
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x1 = hlo.add(x1, x2)
            turned = hlo.or_(hlo.shift_left(x2, number(turn)), hlo.shift_right_logical(x2, number(32 - turn)))
            x2 = hlo.xor(x1, turned)
        x1 = hlo.add(x1, keys[(i + 1) % 3])
        x2 = hlo.add(x2, hlo.add(keys[(i + 2) % 3], number(i + 1)))
    return [x1, x2]


def in_pieces(primitive, cost: Callable, whole: Callable, ctx, *arrays, **params):
    """Lowers a primitive over a batch `[..., n, m]`: at once where its cost allows, or as a loop over equal pieces."""
    from jax.interpreters import mlir

    context = ctx.module_context.axis_context
    devices = context.mesh.size if isinstance(context, mlir.SPMDAxisContext) else context.num_devices
    first = ctx.avals_in[0]
    if devices == 1 or not constant(aval.shape for aval in ctx.avals_in):
        return whole(ctx, *arrays, **params)
    batch = first.shape[:-2]
    operations = cost(*ctx.avals_in) * (3 if np.issubdtype(first.dtype, np.complexfloating) else 1)
    size = math.ceil(PIECE / max(operations, 1))
    if math.prod(batch) <= size:
        return whole(ctx, *arrays, **params)
    size = max(i for i in range(1, size + 1) if math.prod(batch) % i == 0)

    def pieces(*arrays, **params):
        # A piece has matrices from everywhere in the batch: one that is spread over devices stays where it is.
        split = lambda x: x.reshape(size, -1, *x.shape[len(batch) :]).swapaxes(0, 1)
        joined = lambda x: x.swapaxes(0, 1).reshape(*batch, *x.shape[2:])
        results = jax.lax.map(lambda x: primitive.bind(*x, **params), [split(x) for x in arrays])
        return jax.tree.map(joined, results)

    return mlir.lower_fun(pieces, primitive.multiple_results)(ctx, *arrays, **params)


for name in active():
    globals()[name]()
