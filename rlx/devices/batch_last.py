"""`jax.vmap` with the batch as the last axis, for programs of many small arrays on a CPU: physics above all.

    step = batch_last(step)  # of one example, as before
    jax.vmap(step)(states)  # the same numbers to rounding, and a multiple of the steps/s

`vmap` makes the batch the first axis. Where examples are vectors of 3 and matrices of 6 x 6, a CPU's loops then run
over the 3 and the 6, too short for its vector units, and each small factorisation is a call of LAPACK. With the batch
last every loop runs over it. A function is traced for one example, and its operations are done again on arrays
`[..., N]`: what is known when the program is built (indices, masks) is computed with numpy then; reads and writes at
known places become slices; products and sums of small arrays are kernels of their own, since XLA would otherwise do
what they are made of again for every element; factorisations and triangular solves are loops over columns.

An operation without a rule here is done by `vmap` as ever, so any function can be given. Batches below `SMALLEST`,
other devices than CPUs and versions of jaxlib that are not in `TESTED` have `vmap` as ever too, and so has everything
with `RLX_COMPILER=off` in the environment. So have gradients, which are those of the function itself.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from rlx.devices.batch_rules import REDUCTIONS, RULES, Batched, fitted, reduced, whole
from rlx.devices.compiler import switched_off
from rlx.devices.folding import constant, fold, is_constant

SMALLEST = 32  # examples: fewer do not fill the vector units
TESTED = ("0.10.2",)  # versions of jaxlib for which tests/test_batch_last.py passed
# fmt: off
ELEMENTWISE = frozenset([
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2",
    "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min",
    "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square",
    "stop_gradient", "sub", "tan", "tanh", "xor",
])
# fmt: on
ALONG_AXES = frozenset(["argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "rev"])
INLINED = frozenset(["jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"])


def batch_last(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its `vmap` computed on arrays whose last axis is the batch.

    Args:
        fun: of one example, of pytrees of arrays; without side effects.

    Returns:
        a function of the same arguments, by position. Unmapped it is `fun`; mapped it gives the numbers of
        `jax.vmap(fun)` to rounding, on an axis of any place and with any arguments unmapped.
    """
    mapped = jax.custom_batching.custom_vmap(fun)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Sequence[Any], *args: Any):
        flags = [bool(flag) for flag in jax.tree.leaves(in_batched)]
        leaves, tree = jax.tree.flatten(args)
        flat = lambda *leaves: fun(*jax.tree.unflatten(tree, leaves))
        if not applies(axis_size):
            axes = [0 if flag else None for flag in flags]
            out = jax.vmap(flat, in_axes=axes, axis_size=axis_size)(*leaves)
            return out, jax.tree.map(lambda _: True, out)
        one = [jax.ShapeDtypeStruct(leaf.shape[flag:], leaf.dtype) for leaf, flag in zip(leaves, flags, strict=True)]
        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*one)
        values = [
            Batched(jnp.moveaxis(leaf, 0, -1)) if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)
        ]
        out = [jnp.moveaxis(whole(v, axis_size), -1, 0) for v in evaluate(closed, values, axis_size)]
        out = jax.tree.unflatten(jax.tree.structure(shapes), out)
        return out, jax.tree.map(lambda _: True, out)

    alone = jax.custom_jvp(mapped)

    @alone.defjvp
    def gradient(primals, tangents):
        # JAX asks that what is mapped in the results be the same with gradients and without: everything is.
        return jax.jvp(lambda *args: tied(fun(*args), args), primals, tangents)

    return alone


def tied(results: Any, args: Any) -> Any:
    """The results as they are, each with all arguments as something it is made of."""
    never = jnp.array(False)
    for x in map(jnp.asarray, jax.tree.leaves(args)):
        if isinstance(x.dtype, np.dtype) and x.size:
            first = x.reshape(-1)[0]
            never |= (first != first) & (first == first)
    return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), results)


def applies(size: int) -> bool:
    """Whether a batch of this size is computed with the batch last."""
    tested = version("jaxlib") in TESTED and jax.default_backend() == "cpu"
    return size >= SMALLEST and tested and not switched_off()


def evaluate(closed, values: Sequence[Any], n: int) -> list[Any]:
    """The results of a jaxpr of one example on values that may be `Batched`."""
    jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    env = dict(zip(jaxpr.invars, values, strict=True))
    env |= {var: constant(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}
    value_of = lambda v: np.asarray(v.val, v.aval.dtype) if isinstance(v, core.Literal) else env[v]  # pyright: ignore[reportAttributeAccessIssue] (arrays)
    for eqn in jaxpr.eqns:
        env |= zip(eqn.outvars, operation(eqn, [value_of(v) for v in eqn.invars], n), strict=True)
    return [value_of(v) for v in jaxpr.outvars]


def operation(eqn, values: list[Any], n: int) -> list[Any]:
    """The results of one operation."""
    name = eqn.primitive.name
    if name in INLINED:
        inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
        return evaluate(inner, values, n)
    if all(map(is_constant, values)) and (known := fold(eqn, values)) is not None:
        return [known]
    if not any(isinstance(v, Batched) for v in values):
        return once(eqn, *values)
    if name in ELEMENTWISE:
        shape = eqn.outvars[0].aval.shape
        return [Batched(eqn.primitive.bind(*(fitted(v, shape, n) for v in values), **eqn.params))]
    if name in ALONG_AXES:
        return [Batched(eqn.primitive.bind(values[0].array, **eqn.params))]
    if name in REDUCTIONS:
        return [Batched(reduced(eqn, values[0].array))]
    rule = LOOPS.get(name) or RULES.get(name)
    found = rule(eqn, values, n) if rule else None
    if found is None:  # as ever
        axes = [-1 if isinstance(v, Batched) else None for v in values]
        arrays = [v.array if isinstance(v, Batched) else v for v in values]
        found = [Batched(x) for x in jax.vmap(partial(once, eqn), axes, -1)(*arrays)]
    return found if isinstance(found, list) else [Batched(found)]


def once(eqn, *values) -> list[jax.Array]:
    """The results of an operation of one example, as JAX does it."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    inner, params = bound if isinstance(bound, tuple) else ((), bound)  # JAX 0.10 has no functions among them
    out = eqn.primitive.bind(*inner, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


# -- loops and branches
def spread(jaxpr, flags: Sequence[bool]) -> list[bool]:
    """Which results of a jaxpr may depend on the batch, for the arguments that do."""
    reached = {var for var, flag in zip(jaxpr.invars, flags, strict=True) if flag}
    inside = lambda v: not isinstance(v, core.Literal) and v in reached
    for eqn in jaxpr.eqns:
        if any(map(inside, eqn.invars)):
            reached |= set(eqn.outvars)
    return [inside(v) for v in jaxpr.outvars]


def carried(jaxpr, consts: Sequence[Any], carry: Sequence[Any], rest: Sequence[bool] = ()) -> list[bool]:
    """Which parts of a loop's carry depend on the batch, at any step."""
    flags = [isinstance(v, Batched) for v in carry]
    while True:
        out = spread(jaxpr, [*(isinstance(v, Batched) for v in consts), *flags, *rest])
        new = [a or b for a, b in zip(flags, out, strict=False)]
        if new == flags:
            return flags
        flags = new


def plain(values: Sequence[Any], flags: Sequence[bool], n: int) -> list[jax.Array]:
    """Arrays of values, `[..., n]` where flagged."""
    return [whole(v, n) if flag else jnp.asarray(v) for v, flag in zip(values, flags, strict=True)]


def wrapped(arrays: Sequence[jax.Array], flags: Sequence[bool]) -> list[Any]:
    return [Batched(x) if flag else x for x, flag in zip(arrays, flags, strict=True)]


def _while(eqn, values, n):
    p = eqn.params
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    of_test, of_body, carry = values[:first], values[first:second], values[second:]
    flags = carried(p["body_jaxpr"].jaxpr, of_body, carry)
    ends_apart = any(spread(p["cond_jaxpr"].jaxpr, [*(isinstance(v, Batched) for v in of_test), *flags]))
    flags = [flag or ends_apart for flag in flags]

    def goes_on(carry):
        return evaluate(p["cond_jaxpr"], [*of_test, *wrapped(carry, flags)], n)[0]

    def test(carry):
        found = goes_on(carry)
        return found.array.any() if isinstance(found, Batched) else found

    def body(carry):
        new = plain(evaluate(p["body_jaxpr"], [*of_body, *wrapped(carry, flags)], n), flags, n)
        found = goes_on(carry)
        if not isinstance(found, Batched):
            return new
        return [jnp.where(found.array, a, b) for a, b in zip(new, carry, strict=True)]

    return wrapped(lax.while_loop(test, body, plain(carry, flags, n)), flags)


def _scan(eqn, values, n):
    p = eqn.params
    first, second = p["num_consts"], p["num_consts"] + p["num_carry"]
    consts, carry, xs = values[:first], values[first:second], values[second:]
    each = [isinstance(v, Batched) for v in xs]
    flags = carried(p["jaxpr"].jaxpr, consts, carry, each)
    ys = spread(p["jaxpr"].jaxpr, [*(isinstance(v, Batched) for v in consts), *flags, *each])[len(flags) :]

    def step(carry, x):
        out = evaluate(p["jaxpr"], [*consts, *wrapped(carry, flags), *wrapped(x, each)], n)
        return plain(out[: len(flags)], flags, n), plain(out[len(flags) :], ys, n)

    xs = [v.array if isinstance(v, Batched) else jnp.asarray(v) for v in xs]  # their first axis is that of the scan
    carry, out = lax.scan(
        step, plain(carry, flags, n), xs, length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    return wrapped(carry, flags) + wrapped(out, ys)


def _cond(eqn, values, n):
    """Every branch, of which each example takes its own; one branch where all take the same."""
    index, *operands = values
    branches = eqn.params["branches"]
    if is_constant(index):
        return evaluate(branches[int(np.clip(index, 0, len(branches) - 1))], operands, n)
    run = lambda branch: [whole(v, n) for v in evaluate(branch, operands, n)]
    if not isinstance(index, Batched):
        return [Batched(x) for x in lax.switch(index, [partial(run, branch) for branch in branches])]
    which = jnp.clip(index.array, 0, len(branches) - 1)
    which = which > 0 if len(branches) == 2 else which
    cases = zip(*map(run, branches), strict=True)
    return [Batched(lax.select_n(jnp.broadcast_to(which, case[0].shape), *case)) for case in cases]


LOOPS = {"while": _while, "scan": _scan, "cond": _cond}
