"""Why an update ends in NaN or infinity: the line that makes the first such number of finite ones, and where it goes.

An update is replayed as its jaxpr. From a number of the new State that is not finite the search goes back, from
equation to equation, through those of its inputs that are not finite either, and into loops and functions where their
inputs are finite, until a single operation is left.
"""

import linecache
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jax.tree_util import keystr, tree_leaves_with_path

from rlx.replay import is_replay

PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex")


def not_finite(tree: Any) -> list[str]:
    """The dotted names of the leaves with a number that is NaN or infinite; a `Replay` is not read."""
    own = jax.tree.map(lambda x: None if is_replay(x) else x, tree, is_leaf=is_replay)
    return [keystr(path, simple=True, separator=".") for path, leaf in tree_leaves_with_path(own) if _bad(leaf)]


def why(algorithm: Any, config: Any, env: Any, state: Any) -> list[str]:
    """Lines that say what of the update after `state` is not finite, and which operation made it so; none if all is."""
    update = lambda state: algorithm.update(config, env, state)
    new, metrics = jax.jit(update)(state)
    fields = [name for name in not_finite(new) if name not in not_finite(state) and ".state." not in f".{name}"]
    lines = [f"metrics that are not finite: {', '.join(found)}"] if (found := not_finite(metrics)) else []
    if metrics.get("num_diverged"):
        lines.append(f"episodes that ended in an observation or a reward that is not finite: {metrics['num_diverged']}")
    if not fields:
        return lines
    lines.append(f"of the new state, not finite: {', '.join(fields)}")
    names = [keystr(path, simple=True, separator=".") for path, _ in tree_leaves_with_path((new, metrics))]
    jaxpr = jax.make_jaxpr(update)(state)
    return lines + _origin(jaxpr, jax.tree.leaves(state), names.index(f"0.{fields[0]}"))[0]


def _origin(jaxpr: ClosedJaxpr, args: Sequence[Any], target: int) -> tuple[list[str], int | None]:
    """Lines about the operation behind output `target`; or the number of the argument that was not finite already."""
    values = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    values |= dict(zip(jaxpr.jaxpr.invars, args, strict=True))
    read = lambda x: x.val if isinstance(x, Literal) else values[x]
    made: dict[Any, Any] = {}
    for equation in jaxpr.jaxpr.eqns:
        made |= {x: equation for x in equation.outvars if str(x) != "_"}  # those are never read
    about = jaxpr.jaxpr.debug_info._replace(result_paths=None)
    everything = ClosedJaxpr(jaxpr.jaxpr.replace(outvars=list(made), debug_info=about), jaxpr.consts)
    values |= dict(zip(made, jax.jit(jaxpr_as_fun(everything))(*args), strict=True))
    variable = jaxpr.jaxpr.outvars[target]
    while not isinstance(variable, Literal) and variable in made:
        equation = made[variable]
        inside = _inside(equation, [read(x) for x in equation.invars], equation.outvars.index(variable))
        if inside is not None:
            lines, argument = inside
            if argument is None:
                return lines, None
            variable = equation.invars[argument]
            continue
        bad = [x for x in equation.invars if _bad(read(x))]
        if not bad:
            return _told(equation, [read(x) for x in equation.invars], values[variable]), None
        variable = next((x for x in bad if np.isnan(np.asarray(read(x))).any()), bad[0])
    return [], None if isinstance(variable, Literal) else [*jaxpr.jaxpr.invars].index(variable)


def _inside(equation: Any, args: list[Any], target: int) -> tuple[list[str], int | None] | None:
    """`_origin` within a loop or a function that is called; None for a plain operation."""
    params = equation.params
    if equation.primitive.name == "scan":
        return _in_scan(params, args, target)
    if equation.primitive.name == "cond":
        lines, argument = _origin(params["branches"][int(args[0])], args[1:], target)
        return lines, None if argument is None else argument + 1
    inner = next((params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params), None)
    if inner is None or equation.primitive.name == "while":
        return None
    inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
    return _origin(inner, args, target) if len(inner.jaxpr.invars) == len(args) else None


def _in_scan(params: dict[str, Any], args: list[Any], target: int) -> tuple[list[str], int | None]:
    """`_origin` within the iteration of a scan that made its output, or what it carries, cease to be finite."""
    body, num_consts, num_carry = params["jaxpr"], params["num_consts"], params["num_carry"]
    consts, carry, xs = args[:num_consts], args[num_consts:][:num_carry], args[num_consts + num_carry :]
    step, order = jax.jit(jaxpr_as_fun(body)), range(params["length"])
    carries, outs = [carry], []
    for i in reversed(order) if params["reverse"] else order:
        out = step(*consts, *carry, *[x[i] for x in xs])
        outs.append((i, out))
        carry = out[:num_carry]
        carries.append(carry)
    last = next(n for n, (_, out) in enumerate(outs) if _bad(out[target]))
    while True:
        i, _ = outs[last]
        lines, argument = _origin(body, [*consts, *carries[last], *[x[i] for x in xs]], target)
        if argument is None:
            return [*lines, f"  in iteration {i + 1} of {params['length']} of a loop"], None
        target = argument - num_consts
        if not 0 <= target < num_carry or last == 0:
            return [], argument
        last -= 1


def _told(equation: Any, inputs: list[Any], output: Any) -> list[str]:
    """What an operation made of what, and the lines of code that it is of, the innermost first."""
    shown = ", ".join(_range(x) for x in inputs)
    found = [f"the first: {equation.primitive.name} of {shown} is {_range(output)}"]
    frames = equation.source_info.traceback.frames if equation.source_info.traceback else []
    for frame in frames:
        parts = Path(frame.file_name).parts
        if frame.file_name.startswith("<") or any(name in parts for name in PACKAGES):
            continue
        code = linecache.getline(frame.file_name, frame.line_num).strip()
        found.append(f"  {Path(frame.file_name).name}, line {frame.line_num}, in {frame.function_name}: {code}")
        if frame.function_name == "update" or len(found) > 8:
            break
    return found


def _range(x: Any) -> str:
    x = np.asarray(x) if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else np.zeros(0)
    if not x.size:
        return f"an array {list(x.shape)}"
    if x.size == 1:
        return f"{x.item():.4g}" if x.dtype != bool else str(x.item())
    bad = np.argwhere(~np.isfinite(x.astype(np.float32)))
    if bad.size:
        return f"{x[tuple(bad[0])]:.4g} at {bad[0].tolist()} of {list(x.shape)}, {len(bad)} of {x.size} not finite"
    return f"{list(x.shape)} within [{x.min():.4g}, {x.max():.4g}]"


def _bad(x: Any) -> bool:
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return False
    return not bool(jnp.isfinite(x).all())


__all__ = ["not_finite", "why"]
