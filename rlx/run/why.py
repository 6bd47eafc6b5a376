"""Why an update ends in NaN or infinity: the line that makes the first such number of finite ones, and where it goes.

An update is replayed as its jaxpr. From a number of the new State that is not finite the search goes back, from
equation to equation, through those of its inputs that are not finite either, and into loops and functions where their
inputs are finite, until a single operation is left. Environments whose episodes diverged in the update are named, with
their states before that step.
"""

import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jax.tree_util import keystr, tree_leaves_with_path

from rlx.env import Env
from rlx.pytree import replace
from rlx.replay import is_replay
from rlx.train import here, now

PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex")


def not_finite(tree: Any) -> list[str]:
    """The dotted names of the leaves with a number that is NaN or infinite; a `Replay` is not read."""
    own = jax.tree.map(lambda x: None if is_replay(x) else x, tree, is_leaf=is_replay)
    return [keystr(path, simple=True, separator=".") for path, leaf in tree_leaves_with_path(own) if _bad(leaf)]


def why(algorithm: Any, config: Any, env: Any, state: Any) -> list[str]:
    """Lines that say what of the update after `state` is not finite, and which operation made it so; none if all is."""
    update = lambda state: algorithm.update(now(config, state), here(config, env, state), state)
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


@dataclass(frozen=True)
class Diverged:
    """A step of one environment whose observation or reward is not finite, or that the environment says has diverged.

    `index` is the environment's place among all, `step` that of the call within the update, from 0. `state` is the
    environment's own state before the step. Arrays are numpy's.
    """

    index: int
    step: int
    state: Any
    action: Any
    next_obs: Any
    reward: Any

    def named(self) -> dict[str, np.ndarray]:
        """All of it by dotted names, to be written to a file."""
        leaves = tree_leaves_with_path(vars(self))
        arrays = [(keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]
        return {name: np.asarray(leaf) for name, leaf in arrays}


def diverged(algorithm: Any, config: Any, env: Env, state: Any, most: int = 8) -> list[Diverged]:
    """The first `most` diverged steps of the update after `state`, in the order in which they were taken."""
    found, calls = [], [0]

    def see(bad, env_state, action, next_obs, reward):
        """Called with all environments of a step at once, whose axis is the first one; with one without an axis."""
        seen = jax.tree.map(np.asarray, (env_state, action, next_obs, reward))
        for index in np.flatnonzero(np.asarray(bad)):
            if len(found) < most:
                one = jax.tree.map(lambda x, i=int(index): x[i] if np.ndim(bad) else x, seen)
                found.append(Diverged(int(index), calls[0], *one))
        calls[0] += 1
        return np.zeros(np.shape(bad), np.float32)

    watched = replace(env, environment=_Watched(env.environment, see))
    jax.block_until_ready(
        jax.jit(lambda state: algorithm.update(now(config, state), here(config, watched, state), state))(state)
    )
    return found


class _Watched:
    """An environment that shows every step to `see`; everything else of it is as it was."""

    def __init__(self, environment: Any, see: Any):
        self.looked_at, self.see = environment, see

    def __getattr__(self, name: str) -> Any:
        return getattr(self.looked_at, name)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        next_obs, stepped, reward, terminated, truncated, info = self.looked_at.step(key, state, action, params)
        reported = jnp.any(info["diverged"]) if isinstance(info, dict) and "diverged" in info else False
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((next_obs, reward)) if _floating(x)]
        bad = ~jnp.all(jnp.array(finite)) | reported
        plain = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, (state, action, next_obs, reward))
        kind = jax.ShapeDtypeStruct((), jnp.float32)
        zero = jax.pure_callback(self.see, kind, bad, *plain, vmap_method="broadcast_all")
        return next_obs, stepped, reward + jax.lax.stop_gradient(zero), terminated, truncated, info


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
        return _in_scan(equation, args, target)
    if equation.primitive.name == "cond":
        lines, argument = _origin(params["branches"][int(args[0])], args[1:], target)
        return lines, None if argument is None else argument + 1
    inner = next((params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params), None)
    if inner is None or equation.primitive.name == "while":
        return None
    inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
    return _origin(inner, args, target) if len(inner.jaxpr.invars) == len(args) else None


def _in_scan(equation: Any, args: list[Any], target: int) -> tuple[list[str], int | None]:
    """`_origin` within the iteration of a scan that made its output, or what it carries, cease to be finite."""
    params, body = equation.params, equation.params["jaxpr"]
    # What is cut into iterations has an axis more outside than inside; versions of JAX name the numbers differently.
    larger = lambda pair: len(pair[0].aval.shape) > len(pair[1].aval.shape)
    stacked = lambda outside, inside: sum(map(larger, zip(outside, inside, strict=True)))
    num_carry = len(equation.outvars) - stacked(equation.outvars, body.jaxpr.outvars)
    num_consts = len(equation.invars) - num_carry - stacked(equation.invars, body.jaxpr.invars)
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
    """The inputs and outputs of an operation, and its lines of code, the innermost first."""
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
    x = np.zeros(0) if _is_key(x) else np.asarray(x)
    if not x.size:
        return f"an array {list(x.shape)}"
    if x.size == 1:
        return f"{x.item():.4g}" if x.dtype != bool else str(x.item())
    bad = np.argwhere(~np.isfinite(x.astype(np.float32)))
    if bad.size:
        return f"{x[tuple(bad[0])]:.4g} at {bad[0].tolist()} of {list(x.shape)}, {len(bad)} of {x.size} not finite"
    return f"{list(x.shape)} within [{x.min():.4g}, {x.max():.4g}]"


def _bad(x: Any) -> bool:
    return _floating(x) and not bool(jnp.isfinite(x).all())


def _floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


__all__ = ["Diverged", "diverged", "not_finite", "why"]
