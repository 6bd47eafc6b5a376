"""Observation and action spaces, and which of them a policy can serve.

`Box` and `Discrete` are spaces of arrays; `Dict` and `Tuple` are made of spaces, and their elements of arrays. `parts`
gives any space as a pytree of Boxes and Discretes, over which everything else is a tree map.
"""

import dataclasses
import math
from collections.abc import Iterable
from types import UnionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """Arrays of `shape` with `low <= x <= high`; the bounds are scalars or of `shape`, and may be infinite.

    A bound counts as infinite where it is the greatest number of the dtype, which some suites write for infinity, or is
    above a quarter of the greatest float32, with which the map of `rescale` would overflow.
    """

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def __post_init__(self):
        for name in ("low", "high"):
            if isinstance(bound := getattr(self, name), list | tuple):
                object.__setattr__(self, name, np.asarray(bound))
        if isinstance(self.shape, list):
            object.__setattr__(self, "shape", tuple(self.shape))

    def sample(self, key: jax.Array) -> jax.Array:
        """Uniform between two bounds, standard normal where there is none, half of one where there is one bound.

        Of integers and booleans each of those between the bounds is equally probable. Shape `self.shape`.
        """
        uniform_key, normal_key = jax.random.split(key)
        low, high, below, above = _bounds(self)
        uniform = jax.random.uniform(uniform_key, self.shape)
        normal = jax.random.normal(normal_key, self.shape)
        if _is_float(self):
            between = low + (high - low) * uniform
        else:
            between, normal = jnp.floor(low + (high - low + 1.0) * uniform), jnp.round(normal)
        tail = jnp.where(below, low + jnp.abs(normal), jnp.where(above, high - jnp.abs(normal), normal))
        return jnp.clip(jnp.where(below & above, between, tail), *_edges(self)).astype(
            jax.dtypes.canonicalize_dtype(self.dtype)
        )

    def contains(self, x: Any) -> jax.Array:
        """Whether shape and bounds fit, as a boolean scalar."""
        if jnp.shape(x) != self.shape:
            return jnp.array(False)
        low, high = _edges(self)
        return jnp.all((x >= low) & (x <= high))


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers `0, ..., n - 1`, or arrays of them."""

    n: int
    dtype: Any = jnp.int32
    shape: tuple[int, ...] = ()

    def sample(self, key: jax.Array) -> jax.Array:
        """Uniform over the `n` integers, each for itself."""
        return jax.random.randint(key, self.shape, 0, self.n, self.dtype)

    def contains(self, x: Any) -> jax.Array:
        """Whether shape and range fit and the numbers are whole, as a boolean scalar."""
        if jnp.shape(x) != self.shape:
            return jnp.array(False)
        return jnp.all((x >= 0) & (x < self.n) & (x == jnp.floor(x)))


class Dict:
    """Spaces by name: elements are dictionaries with an element of each.

        Dict(pixels=Box(0, 255, (64, 64, 3), jnp.uint8), speed=Box(-1.0, 1.0, (2,)), privileged=("speed",))

    Args:
        spaces: the spaces by name; further ones may be given as keywords.
        privileged: of these, what critics see and actors do not, unless an algorithm's settings say otherwise.
        separate: the entry, a `Discrete(n)`, for each of whose categories networks have parameters of their own.
    """

    def __init__(self, spaces: Any = None, *, privileged: Iterable[str] = (), separate: Any = None, **named: "Space"):
        self.spaces, self.privileged = {**(spaces or {}), **named}, tuple(privileged)
        if unknown := [name for name in self.privileged if name not in self.spaces]:
            raise ValueError(f"privileged = {unknown[0]!r} is no entry: there are {', '.join(self.spaces)}")
        entry = self.spaces.get(separate) if isinstance(separate, str) else Discrete(1)
        if not isinstance(entry, Discrete) or entry.shape:
            raise ValueError(f"separate = {separate!r} is no entry of categories Discrete(n)")
        self.separate = (separate, entry.n) if isinstance(separate, str) else separate

    def sample(self, key: jax.Array) -> dict[str, Any]:
        """An element of each space, drawn as it draws them."""
        return _samples(self, key)

    def contains(self, x: Any) -> jax.Array:
        """Whether the names are those of the space and each element is in its own, as a boolean scalar."""
        return _contains(self, x)

    def __repr__(self) -> str:
        return f"Dict({', '.join(f'{name}={_name(space)}' for name, space in self.spaces.items())})"


class Tuple:
    """Spaces in order: elements are tuples with an element of each. `Tuple(Discrete(3), Box(-1.0, 1.0, (2,)))`."""

    def __init__(self, *spaces: "Space"):
        self.spaces = spaces

    def sample(self, key: jax.Array) -> tuple[Any, ...]:
        """An element of each space, drawn as it draws them."""
        return _samples(self, key)

    def contains(self, x: Any) -> jax.Array:
        """Whether there are as many elements as spaces and each is in its own, as a boolean scalar."""
        return _contains(self, x)

    def __repr__(self) -> str:
        return f"Tuple({', '.join(map(_name, self.spaces))})"


Space = Box | Discrete | Dict | Tuple
MASK = "action_mask"  # the entry of an observation that says which actions are legal


def parts(space: Any) -> Any:
    """The space as a pytree with Boxes and Discretes as leaves: dictionaries in place of Dicts, tuples of Tuples."""
    if isinstance(space, Dict):
        return {name: parts(inner) for name, inner in space.spaces.items()}
    return tuple(map(parts, space.spaces)) if isinstance(space, Tuple) else space


def named(space: Any) -> dict[str, Any]:
    """The Boxes and Discretes of a space by their dotted names, in the order of the leaves of its elements."""
    leaves = jax.tree_util.tree_leaves_with_path(parts(space))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def zeros(space: Space) -> Any:
    """An element of zeros, of the shapes and dtypes of the space."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, jax.dtypes.canonicalize_dtype(s.dtype)), parts(space))


def visible(space: Space, entries: tuple[str, ...] = (), privileged: bool = False) -> Space:
    """What a network sees of an observation space.

    Args:
        space: of the whole observation.
        entries: of a Dict, by name; without any, all but the legal actions (`MASK`) and what is for critics.
        privileged: whether that is for this network, too.

    Raises:
        ValueError: for an entry that the space does not have, or where nothing is left.
    """
    if not isinstance(space, Dict):
        if entries:
            raise ValueError(f"entries {', '.join(entries)} are of a Dict: the observation space is {_name(space)}")
        return space
    if unknown := [name for name in entries if name not in space.spaces]:
        raise ValueError(f"the observation has no entry {unknown[0]!r}: there are {', '.join(space.spaces)}")
    hidden = (MASK,) if privileged else (MASK, *space.privileged)
    chosen = entries or [name for name in space.spaces if name not in hidden]
    if not chosen:
        raise ValueError(f"{_name(space)} leaves nothing to see: give it an entry that is not {' or '.join(hidden)}")
    return Dict({name: space.spaces[name] for name in chosen}, separate=space.separate)


def seen(space: Space, obs: Any) -> Any:
    """Of an observation that may have more entries, those of the space."""
    if isinstance(space, Dict):
        return {name: seen(inner, obs[name]) for name, inner in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(seen(inner, x) for inner, x in zip(space.spaces, obs, strict=True))
    return obs


def _samples(space: Any, key: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten(parts(space))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [leaf.sample(k) for leaf, k in zip(leaves, keys, strict=True)])


def _contains(space: Any, x: Any) -> jax.Array:
    leaves, structure = jax.tree.flatten(parts(space))
    if jax.tree.structure(x) != structure:
        return jnp.array(False)
    return jnp.all(jnp.stack([leaf.contains(y) for leaf, y in zip(leaves, jax.tree.leaves(x), strict=True)]))


def _is_float(box: Box) -> bool:
    return jnp.issubdtype(box.dtype, jnp.floating)


def _limit(box: Box) -> float:
    """The size from which on a bound counts as infinite."""
    if not _is_float(box):
        return math.inf
    dtype = jax.dtypes.canonicalize_dtype(box.dtype)
    return min(float(jnp.finfo(dtype).max), float(jnp.finfo(jnp.promote_types(dtype, jnp.float32)).max) / 4)


def _edges(box: Box) -> tuple[Any, Any]:
    """Low and high as numbers of the box's dtype, at least as wide as float32 where that is of floats."""
    if not _is_float(box):
        low, high = (x if isinstance(x, jax.Array) else np.asarray(x) for x in (box.low, box.high))
        return low, high
    dtype = jax.dtypes.canonicalize_dtype(box.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    with np.errstate(over="ignore"):  # a bound beyond the dtype is infinite
        low, high = (jnp.asarray(x, dtype).astype(wide) for x in (box.low, box.high))
    return low, high


def _bounds(box: Box) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Low and high, -1 and 1 in place of what is infinite, and where there is a lower and an upper bound."""
    low, high = _edges(box)
    below, above = low > -_limit(box), high < _limit(box)
    return jnp.where(below, low, -1.0), jnp.where(above, high, 1.0), below, above


def rescale(space: Space, action: Any) -> Any:
    """The environment's action for a policy's action in unit coordinates, of the dtype of the space and in its bounds.

    Box, by dimension, with `a` the policy's action:

        two bounds      low + (high - low) (clip(a, -1, 1) + 1) / 2
        a lower one     low + (max(a, -1) + 1)
        an upper one    high + (min(a, 1) - 1)
        none            a

    So policies see every lower bound at -1 and every upper one at 1: one initial standard deviation fits all, and a
    bound is reached as easily wherever it lies. Where `low = high` it is that number. The gradient is the slope within
    the bounds and 0 beyond them. Log-probabilities stay those of the unclipped action. Discrete actions keep their
    value. Of a Dict or Tuple each part is treated by itself.
    """
    return jax.tree.map(_rescale, parts(space), action)


def _rescale(space: Any, action: jax.Array) -> jax.Array:
    dtype = jax.dtypes.canonicalize_dtype(space.dtype)
    if isinstance(space, Discrete):
        return action.astype(dtype)
    low, high, below, above = _bounds(space)
    a = jnp.clip(action, jnp.where(below, -1.0, -jnp.inf), jnp.where(above, 1.0, jnp.inf))
    between = low + (high - low) * (a + 1.0) / 2.0
    tail = jnp.where(below, low + (a + 1.0), jnp.where(above, high + (a - 1.0), a))
    return jnp.clip(jnp.where(below & above, between, tail), *_edges(space)).astype(dtype)


def unit(space: Space, action: Any) -> Any:
    """A policy's action in unit coordinates for an environment's action: the inverse of `rescale`.

    Box, by dimension: `2 (a - low) / (high - low) - 1` with two bounds and 0 where they are equal, `a - low - 1` with a
    lower one, `a - high + 1` with an upper one, else `a`. What is clipped there cannot be had back. Of a Dict or Tuple
    each part is treated by itself.
    """
    return jax.tree.map(_unit, parts(space), action)


def _unit(space: Any, action: jax.Array) -> jax.Array:
    if isinstance(space, Discrete):
        return action
    low, high, below, above = _bounds(space)
    width = high - low
    between = jnp.where(width > 0.0, (action - low) / jnp.where(width > 0.0, width, 1.0) * 2.0 - 1.0, 0.0)
    tail = jnp.where(below, action - low - 1.0, jnp.where(above, action - high + 1.0, action))
    return jnp.where(below & above, between, tail)


def size(space: Space) -> int:
    """Number of inputs that a network needs for the space: elements of a Box, categories of each of a Discrete."""
    own = lambda s: int(np.prod(s.shape, dtype=int)) * (s.n if isinstance(s, Discrete) else 1)
    return sum(map(own, jax.tree.leaves(parts(space))))


def num_free(box: Box) -> jax.Array:
    """How many dimensions of a Box have room between their bounds, int32."""
    low, high = _edges(box)
    return jnp.sum(jnp.broadcast_to(low < high, box.shape))


def check_spaces(env: Any, actions: type | UnionType = Space, bounded: bool = False, normalized: bool = False) -> None:
    """Raises ValueError, with the space and a way out, unless a policy can serve the spaces of an environment exactly.

    Args:
        env: has an `observation_space` and an `action_space`. Bounds that are traced are not looked at.
        actions: what the policy has a distribution of: Box, Discrete or, with arrays of these, any Space.
        bounded: its continuous actions are within [-1, 1], so that every dimension needs two bounds.
        normalized: it sees observations in standard deviations from their mean, which categories do not have.
    """
    observed, taken = env.observation_space, env.action_space
    _check_space("observation", observed, "show a constant")
    _check_space("action", taken, "use Discrete(1)")
    if normalized and isinstance(observed, Discrete):
        raise ValueError(
            f"observation space {_name(observed)}: categories cannot be normalised; leave normalize_obs off"
        )
    name = f"action space {_name(taken)}"
    if not isinstance(taken, actions):
        needed, others = ("continuous actions", "sac_discrete") if actions is Box else ("discrete actions", "sac")
        served = "trpo or grpo" if isinstance(taken, Dict | Tuple) else f"trpo, grpo or {others}"
        raise ValueError(f"{name}: this policy needs {needed}; use ppo, mdpo, {served}")
    for part in jax.tree.leaves(parts(taken)):
        if isinstance(part, Discrete):
            if part.shape and actions is not Space:
                raise ValueError(
                    f"{name}: this policy makes one choice a step; use ppo, mdpo, trpo or grpo, or number the "
                    f"{part.n} ** {math.prod(part.shape)} combinations as one Discrete, and take them apart in step"
                )
        else:
            _check_continuous(part, bounded)


def _check_continuous(box: Box, bounded: bool) -> None:
    name = f"action space {_name(box)}"
    if not _is_float(box):
        raise ValueError(f"{name} has dtype {jnp.dtype(box.dtype)}; use Discrete, or float32 and round in step")
    if len(box.shape) != 1:
        raise ValueError(f"{name}: policies act with vectors; give the Box one axis, as the option chunk=1 does")
    low, high = _known(box)
    open_ = np.argwhere((low <= -_limit(box)) | (high >= _limit(box)))
    if bounded and open_.size:
        i = open_[0][0]
        raise ValueError(
            f"{name} goes from {low[i]:g} to {high[i]:g} in dimension {i} and this policy acts within bounds; give it "
            "two with rlx.wrappers.bounded, or use ppo, mdpo, trpo or grpo"
        )


def _check_space(role: str, space: Any, nothing: str) -> None:
    """Raises ValueError for what is no space, or is malformed; `nothing` is advice where there is nothing in it."""
    if isinstance(space, Dict | Tuple):
        inner = space.spaces.values() if isinstance(space, Dict) else space.spaces
        if not inner:
            raise ValueError(f"{role} space {_name(space)} is empty: {nothing}")
        for part in inner:
            _check_space(role, part, nothing)
        return
    if not isinstance(space, Box | Discrete):
        kind = f"{type(space).__module__}.{type(space).__qualname__}".removeprefix("builtins.")
        hint = {dict: "; write rlx.spaces.Dict(...)", tuple: "; write rlx.spaces.Tuple(...)"}.get(type(space), "")
        raise ValueError(f"{role} space of type {kind}: policies serve rlx.spaces.Box, Discrete, Dict and Tuple{hint}")
    name, integer = f"{role} space {_name(space)}", int | np.integer
    if not (isinstance(space.shape, tuple) and all(isinstance(n, integer) and n > 0 for n in space.shape)):
        raise ValueError(f"{name}: a shape has integers of at least 1; where it would be empty, {nothing}")
    try:
        dtype = jax.dtypes.canonicalize_dtype(space.dtype)
    except TypeError:
        dtype = None
    fits = (jnp.integer,) if isinstance(space, Discrete) else (jnp.integer, jnp.floating, jnp.bool_)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in fits):
        needed = "integers" if isinstance(space, Discrete) else "real numbers"
        raise ValueError(f"{name} has dtype {space.dtype}; give it a dtype of {needed}")
    if isinstance(space, Discrete):
        if not isinstance(space.n, integer) or isinstance(space.n, bool) or space.n < 1:
            raise ValueError(f"{name} has n = {space.n!r}; give it an integer of at least 1")
        if space.n - 1 > jnp.iinfo(dtype).max:
            raise ValueError(f"{name}: {dtype} ends at {jnp.iinfo(dtype).max}; give it a wider dtype")
        return
    try:
        low, high = _known(space)
    except (TypeError, ValueError) as error:
        shapes = np.shape(space.low), np.shape(space.high)
        raise ValueError(
            f"{name} has bounds of shapes {shapes[0]} and {shapes[1]}; give it numbers that fit"
        ) from error
    bad = np.argwhere(~(low <= high) | (low == np.inf) | (high == -np.inf))
    if bad.size:
        where = tuple(map(int, bad[0]))
        raise ValueError(f"{name} goes from {low[where]} to {high[where]} at index {where}; put the bounds in order")


def _name(space: Any) -> str:
    if isinstance(space, Dict | Tuple):
        return repr(space)
    if isinstance(space, Box):
        return f"Box of shape {space.shape}"
    return f"Discrete({space.n}, shape={space.shape})" if space.shape else f"Discrete({space.n})"


def _known(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Low and high, float64 of the box's shape; -1 and 1 for traced ones. Raises ValueError where they do not fit."""
    bounds = box.low, box.high
    if any(isinstance(bound, Tracer) for bound in bounds):
        bounds = -1.0, 1.0
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), box.shape) for bound in bounds)
    return low, high
