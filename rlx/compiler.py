"""How programs are compiled for a CPU: a switch of XLA, random bits, and linear systems. Importing sets it."""

import math
import os
import warnings
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax._src import xla_bridge
from jax._src.core import is_constant_shape
from jax._src.lax import linalg
from jax._src.sharding_impls import SPMDAxisContext
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo as hlo
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir
from jaxlib.version import __version_info__ as version

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
PIECE = 200_000  # operations up to which a kernel of LAPACK leaves its batch in one piece


def keep_reductions_from_ynn() -> None:
    """Have XLA compile sums over arrays on a CPU itself, rather than hand them to the library YNN.

    Since jaxlib 0.10.2 YNN gets them, and some come out wrong without a word: the squared lengths of 32,769 vectors
    after `vmap` over `matrix @ vector`, the natural gradients of ten seeds at once. Others never end. Its matrix
    products are right and stay. Nothing is done where XLA_FLAGS has the switch already, nor for versions that may not
    know it: XLA ends a process for an unknown one.

    Source: github.com/jax-ml/jax/issues/39103, github.com/jax-ml/jax/issues/39257.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not (0, 10, 2) <= version < (0, 12) or FLAG in flags:
        return
    if xla_bridge.backends_are_initialized():
        text = (
            f"XLA may sum wrongly on a CPU: import rlx before JAX computes anything, or set XLA_FLAGS='{FLAG}=-reduce'"
        )
        warnings.warn(text, stacklevel=3)
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()


def rule(primitive) -> Callable:
    """How JAX lowers a primitive on a CPU."""
    return mlir._platform_specific_lowerings["cpu"][primitive].rule


def threefry(looped: Callable, ctx: mlir.LoweringRuleContext, *words: ir.Value) -> list[ir.Value]:
    """Threefry-2x32 with 20 rounds, in the operations of XLA: two words of random bits for two of a key and a counter.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (SC '11), section 3.3.
    """
    out = ctx.avals_out[0]
    if not is_constant_shape(out.shape):  # of jax.export
        return looped(ctx, *words)
    kind = ir.RankedTensorType.get(out.shape, ir.IntegerType.get_unsigned(32))
    constant = lambda number: mlir.ir_constant(np.broadcast_to(np.uint32(number), out.shape))

    def whole(word, aval):
        return hlo.broadcast_in_dim(kind, word, mlir.dense_int_array(range(out.ndim - aval.ndim, out.ndim)))

    key1, key2, x1, x2 = map(whole, words, ctx.avals_in)
    keys = [key1, key2, hlo.xor(hlo.xor(key1, key2), constant(0x1BD11BDA))]
    x1, x2 = hlo.add(x1, keys[0]), hlo.add(x2, keys[1])
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x1 = hlo.add(x1, x2)
            turned = hlo.or_(hlo.shift_left(x2, constant(turn)), hlo.shift_right_logical(x2, constant(32 - turn)))
            x2 = hlo.xor(x1, turned)
        x1 = hlo.add(x1, keys[(i + 1) % 3])
        x2 = hlo.add(x2, hlo.add(keys[(i + 2) % 3], constant(i + 1)))
    return [x1, x2]


def unroll_threefry() -> None:
    """Have JAX's random bits on a CPU compiled as one expression, as on other devices; they stay what they are.

    JAX makes a loop of the rounds there, which comes to 26 small kernels and a `while` each time that something is
    drawn. Unrolled it is one or two: less to compile, and less to start where few numbers are drawn at a time.
    """
    unrolled = partial(threefry, rule(threefry2x32_p))
    mlir.register_lowering(threefry2x32_p, unrolled, platform="cpu", inline=False)


def solve_in_pieces() -> None:
    """Have LAPACK factorise and solve large batches piece by piece on several devices of a CPU; results stay the same.

    Its kernels give the parts of a batch of more than 200,000 operations to XLA's threads, one a core, and wait for
    them on one of these. When all threads wait, for the devices together have as many, none is left for the parts and
    the program never ends. Pieces below that are done where they are. QR, eigenvalues and SVD are left as they were.

    Source: jaxlib 0.10, jaxlib/cpu/lapack_kernels.cc, GetLapackBatchChunkSize.
    """
    for primitive, cost in {
        linalg.cholesky_p: lambda a: a.shape[-1] ** 3 // 3,
        linalg.triangular_solve_p: lambda a, b: math.prod(b.shape[-2:]) * a.shape[-1],
        linalg.lu_p: lambda a: math.prod(a.shape[-2:]) * min(a.shape[-2:]),
    }.items():
        mlir.register_lowering(primitive, partial(in_pieces, primitive, cost, rule(primitive)), platform="cpu")


def in_pieces(primitive, cost: Callable, whole: Callable, ctx: mlir.LoweringRuleContext, *arrays: ir.Value, **params):
    """Lowers a primitive over a batch `[..., n, m]`: at once where its cost allows, or as a loop over equal pieces."""
    context = ctx.module_context.axis_context
    devices = context.mesh.size if isinstance(context, SPMDAxisContext) else context.num_devices
    first = ctx.avals_in[0]
    if devices == 1 or not all(is_constant_shape(aval.shape) for aval in ctx.avals_in):
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
        found = jax.lax.map(lambda x: primitive.bind(*x, **params), [split(x) for x in arrays])
        return jax.tree.map(joined, found)

    return mlir.lower_fun(pieces, primitive.multiple_results)(ctx, *arrays, **params)


keep_reductions_from_ynn()
if version < (0, 12):  # later ones may keep their rules elsewhere
    unroll_threefry()
    solve_in_pieces()
