"""Spaces of rlx as those of Gymnasium and the other way, and which elements of theirs are the same.

| rlx | Gymnasium | elements there |
| --- | --- | --- |
| `Box` of floats or integers | `Box` | arrays of its dtype |
| `Box` of booleans | `MultiBinary` | arrays of int8; of a legal-action mask it is what `Discrete.sample` takes |
| `Discrete(n)` | `Discrete(n)` | int64 |
| `Discrete(n, shape)` | `MultiDiscrete` of `n` everywhere | arrays of int64 |
| `Dict`, `Tuple` | `Dict`, `Tuple` | dictionaries and tuples |

Of Gymnasium's spaces a `Discrete` or `MultiDiscrete` may begin at another number than 0, which is subtracted; a
`MultiDiscrete` of different numbers is a `Tuple` of `Discrete`s. Text, graphs and sequences are no spaces of rlx.
"""

from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from rlx.spaces import Box, Dict, Discrete, Space, Tuple, named

INFINITE = float(np.finfo(np.float32).max) / 4  # from here on a bound counts as none, see rlx.spaces.Box


def to_gymnasium(space: Space) -> spaces.Space:
    """The space as one of Gymnasium.

    Raises:
        ValueError: for what is no space of rlx, or a Box of numbers that Gymnasium does not have.
    """
    match space:
        case Dict():
            return spaces.Dict({name: to_gymnasium(inner) for name, inner in space.spaces.items()})
        case Tuple():
            return spaces.Tuple([to_gymnasium(inner) for inner in space.spaces])
        case Discrete():
            return spaces.MultiDiscrete(np.full(space.shape, space.n)) if space.shape else spaces.Discrete(space.n)
        case Box():
            return _box(space)
    raise ValueError(f"{space!r} is no space of rlx: give a Box, Discrete, Dict or Tuple of rlx.spaces")


def _box(box: Box) -> spaces.Space:
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(box.dtype))
    if dtype == np.bool_:
        return spaces.MultiBinary(box.shape)
    if dtype.kind not in "iuf":
        raise ValueError(f"a Box of {dtype} is no space of Gymnasium: give it float32, float16 or integers")
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), box.shape) for bound in (box.low, box.high))
    if dtype.kind == "f":
        most = min(float(np.finfo(dtype).max), INFINITE)
        low, high = np.where(low <= -most, -np.inf, low), np.where(high >= most, np.inf, high)
    else:
        low, high = (np.clip(bound, np.iinfo(dtype).min, np.iinfo(dtype).max) for bound in (low, high))
    return spaces.Box(low.astype(dtype), high.astype(dtype), box.shape, dtype.type)


def shown(space: Box | Discrete, x: np.ndarray) -> Any:
    """An element of a Box or Discrete, or a batch of them, as an element of Gymnasium's space; x is a numpy array."""
    if isinstance(space, Discrete):
        return x.astype(np.int64)[()]  # one choice is a number, not an array
    return x.view(np.int8) if x.dtype == np.bool_ else x


def taken(space: Box | Discrete, x: Any, batch: tuple[int, ...] = (), name: str = "action") -> np.ndarray:
    """The reverse of `shown`, of shape `[*batch, *space.shape]`. Bounds of a Box are not looked at.

    Raises:
        ValueError: for another shape, for what is no integer where a choice is wanted, or a choice that there is not.
    """
    dtype = jax.dtypes.canonicalize_dtype(space.dtype)
    array, shape = np.asarray(x), batch + tuple(space.shape)
    if isinstance(space, Discrete) and isinstance(x, int | np.integer) and 0 <= x < space.n and not shape:
        return array.astype(dtype)  # the most frequent one, in half a microsecond
    _check_shape(array, shape, name)
    if isinstance(space, Box):
        return array.astype(dtype)
    if array.dtype.kind not in "iub" or (array < 0).any() or (array >= space.n).any():
        raise ValueError(f"{name} = {x}: give {'integers' if shape else 'an integer'} from 0 to {space.n - 1}")
    return array.astype(dtype)


def _check_shape(array: np.ndarray, shape: tuple[int, ...], name: str = "action") -> None:
    if array.shape != shape:
        raise ValueError(f"{name} of shape {list(array.shape)}: give one of shape {list(shape)}")


def from_gymnasium(space: spaces.Space) -> Space:
    """A space of Gymnasium as one of rlx.

    Raises:
        ValueError: for a space that rlx does not have.
    """
    match space:
        case spaces.Dict():
            return Dict({name: from_gymnasium(inner) for name, inner in space.spaces.items()})
        case spaces.Tuple():
            return Tuple(*map(from_gymnasium, space.spaces))
        case spaces.MultiBinary():
            return Box(0, 1, tuple(space.shape), np.bool_)
        case spaces.MultiDiscrete():
            if len(counts := set(space.nvec.ravel().tolist())) == 1:
                return Discrete(counts.pop(), shape=tuple(space.shape))
            return Tuple(*(Discrete(int(n)) for n in space.nvec.ravel()))
        case spaces.Discrete():
            return Discrete(int(space.n))
        case spaces.Box():
            return Box(space.low, space.high, tuple(space.shape), space.dtype)
    there = "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple"
    raise ValueError(f"{space} is no space that rlx has: choose an environment of {there}, or wrap it")


def observed(space: spaces.Space, x: Any) -> Any:
    """An element of Gymnasium's space as one of `from_gymnasium(space)`, of numpy arrays."""
    match space:
        case spaces.Dict():
            return {name: observed(inner, x[name]) for name, inner in space.spaces.items()}
        case spaces.Tuple():
            return tuple(observed(inner, y) for inner, y in zip(space.spaces, x, strict=True))
        case spaces.MultiBinary():
            return np.asarray(x).astype(np.bool_)
        case spaces.Discrete():
            return np.asarray(x - space.start, np.int32)
        case spaces.MultiDiscrete():
            array = (np.asarray(x) - space.start).astype(np.int32)
            return array if len(set(space.nvec.ravel().tolist())) == 1 else tuple(map(np.asarray, array.ravel()))
    return np.asarray(x)


def acted(space: spaces.Space, x: Any) -> Any:
    """An element of `from_gymnasium(space)` as one of Gymnasium's space: the inverse of `observed`.

    Raises:
        ValueError: for another structure or shape, or a choice that there is not.
    """
    match space:
        case spaces.Dict():
            if not isinstance(x, dict) or x.keys() != space.spaces.keys():
                raise ValueError(f"action {x!r}: give a dictionary of {', '.join(space.spaces)}")
            return {name: acted(inner, x[name]) for name, inner in space.spaces.items()}
        case spaces.Tuple():
            _check_parts(x, len(space.spaces))
            return tuple(acted(inner, y) for inner, y in zip(space.spaces, x, strict=True))
        case spaces.MultiDiscrete() if len(set(space.nvec.ravel().tolist())) > 1:
            _check_parts(x, space.nvec.size)
            choices = [taken(Discrete(int(n)), y) for n, y in zip(space.nvec.ravel(), x, strict=True)]
            return np.reshape(choices, space.shape).astype(space.dtype) + space.start
        case spaces.Box() | spaces.MultiBinary():
            _check_shape(array := np.asarray(x), space.shape)
            return array.astype(space.dtype)
        case spaces.Discrete() | spaces.MultiDiscrete():
            choices = taken(from_gymnasium(space), x)  # pyright: ignore[reportArgumentType] (a Discrete)
            return (choices + space.start).astype(space.dtype)[() if isinstance(space, spaces.Discrete) else ...]
    raise AssertionError(space)  # `from_gymnasium` has refused it


def observed_together(space: spaces.Space, x: Any) -> Any:
    """Elements of Gymnasium's space, as vectors of its environments have N of them, as those of rlx, `[N, ...]` each.

    Numbers have the dtypes that JAX has: float32 for float64.
    """
    match space:
        case spaces.Dict():
            return {name: observed_together(inner, x[name]) for name, inner in space.spaces.items()}
        case spaces.Tuple():
            return tuple(observed_together(inner, y) for inner, y in zip(space.spaces, x, strict=True))
        case spaces.MultiDiscrete():
            array = (np.asarray(x) - space.start).astype(np.int32)
            if len(set(space.nvec.ravel().tolist())) == 1:
                return array
            return tuple(np.ascontiguousarray(y) for y in array.reshape(len(array), -1).T)
        case spaces.MultiBinary() | spaces.Discrete():
            return observed(space, x)
    return np.asarray(x, jax.dtypes.canonicalize_dtype(space.dtype))


def acted_together(space: spaces.Space, x: Any) -> Any:
    """The inverse of `observed_together`, for numpy arrays that are known to be of the space."""
    match space:
        case spaces.Dict():
            return {name: acted_together(inner, x[name]) for name, inner in space.spaces.items()}
        case spaces.Tuple():
            return tuple(acted_together(inner, y) for inner, y in zip(space.spaces, x, strict=True))
        case spaces.MultiDiscrete():
            joined = np.stack(x, axis=-1).reshape(-1, *space.shape) if isinstance(x, tuple) else x
            return joined.astype(space.dtype) + space.start
        case spaces.Discrete():
            return x.astype(space.dtype) + space.start
    return x.astype(space.dtype)


def _check_parts(x: Any, num: int) -> None:
    if not isinstance(x, tuple | list) or len(x) != num:
        raise ValueError(f"action {x!r}: give a tuple of {num}")


def check_fit(trained: Space, found: Space, role: str, name: str) -> None:
    """Raises ValueError where an environment has not the space that a policy was trained for.

    Kinds, shapes, numbers of choices and names of entries have to be the same, and of actions also the bounds, since a
    policy acts within its own. Bounds of observations may differ, and so may widths of numbers, which are cast.

    Args:
        trained: the space of the environment that the policy was trained in.
        found: the space of the other environment.
        role: "observation" or "action".
        name: of the other environment, for the message.
    """
    needs, has = ({entry: _described(leaf, role) for entry, leaf in named(x).items()} for x in (trained, found))
    for entry in {**needs, **has}:
        if needs.get(entry) != has.get(entry):
            part = f"{role} {entry}".strip()
            raise ValueError(
                f"{name} does not fit: {part} is {has.get(entry, 'not there')} and the policy was trained with "
                f"{needs.get(entry, 'none of it')}; choose an environment of the same spaces, or wrap it"
            )


def _described(space: Box | Discrete, role: str) -> str:
    """What of the space has to fit, in words."""
    if isinstance(space, Discrete):
        return f"{list(space.shape)} choices of {space.n}" if space.shape else f"a choice of {space.n}"
    kind = {"f": "real numbers", "b": "booleans"}.get(np.dtype(space.dtype).kind, "integers")
    text = f"{kind} of shape {list(space.shape)}"
    if role != "action":
        return text
    bounds = (np.broadcast_to(np.asarray(bound, np.float64), space.shape).ravel() for bound in (space.low, space.high))
    low, high = ([f"{x:.5g}" if abs(x) < INFINITE else f"{np.copysign(np.inf, x)}" for x in b] for b in bounds)
    return f"{text} from {', '.join(dict.fromkeys(low))} to {', '.join(dict.fromkeys(high))}"
