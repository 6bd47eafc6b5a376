"""Names of environments: `namespace/Name`; a suite is imported when one of its environments is asked for."""

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import jax
from jax.core import eval_context

from rlx.env import Env, own_limits
from rlx.partial import hidden, remembering, stacked
from rlx.wrappers import chunked, randomized

# namespace -> module with NAMES and `make(name, **options) -> Env`; it imports its suite inside `make`
_suites = {
    "gymnax": "rlx.envs.suites.from_gymnax",
    "brax": "rlx.envs.suites.from_brax",
    "mjx": "rlx.envs.tasks.mjx_tasks",
    "playground": "rlx.envs.suites.from_playground",
    "rlx": "rlx.envs.tasks.own",
    "probe": "rlx.envs.tasks.probes",
}
_registered: dict[str, Callable[..., Env]] = {}


def register(name: str, constructor: Callable[..., Env]) -> None:
    """Makes `constructor(**options) -> Env` available as `make(name)`; names look like `namespace/Name`.

    Raises:
        ValueError: for a name without a namespace, or one that is taken.
    """
    namespace, slash, rest = name.partition("/")
    if not (namespace and slash and rest):
        raise ValueError(f"{name!r} is not of the form namespace/Name")
    if name in _registered or namespace in _suites:
        raise ValueError(f"{name!r} is taken" if name in _registered else f"the namespace {namespace!r} is taken")
    _registered[name] = constructor


def names(namespace: str | None = None) -> list[str]:
    """Full names of all environments, or of one namespace's."""
    suites = [namespace] if namespace in _suites else [] if namespace else list(_suites)
    found = [f"{suite}/{name}" for suite in suites for name in import_module(_suites[suite]).NAMES]
    return found + [name for name in _registered if namespace in (None, name.partition("/")[0])]


def full_name(name: str) -> str:
    """`namespace/Name` for a full or an unambiguous bare name.

    Raises:
        ValueError: for a name that nothing or more than one thing has; the message names the closest.
    """
    namespace, slash, _ = name.partition("/")
    if slash:
        if name in _registered or (namespace in _suites and name in names(namespace)):
            return name
        candidates = []
    else:
        candidates = [known for known in names() if known.partition("/")[2] == name]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(f"environment {name!r} is ambiguous: use {' or '.join(candidates)}")
    known = names()
    lower = {k.lower(): k for full in known for k in (full, full.partition("/")[2])}
    close = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else "rlx envs lists all"
    raise ValueError(f"unknown environment {name!r}: {hint}")


def make(
    name: str,
    *,
    max_steps: int | None = None,
    num_starts: int | None = None,
    randomize: dict[str, tuple[float, float]] | None = None,
    hide: int | str | tuple[int | str, ...] = (),
    remember: int = 0,
    stack: int = 1,
    chunk: int | tuple[int, int] | None = None,
    **options: Any,
) -> Env:
    """The environment of this name, bound to its default parameters.

    Without options of a suite it is the same object every time, for which nothing is compiled again.

    Args:
        name: `namespace/Name`, or `Name` where only one namespace has it.
        max_steps: time limit in place of the suite's own.
        num_starts: size of the pool of start states, see `Env`; None leaves it to the suite.
        randomize: names of parameters and between which factors each episode multiplies them, see `randomized`.
        hide: entries of the observation that are not seen, see `rlx.partial.hidden`.
        remember: how many numbers the policy writes with its actions and observes after, see `rlx.partial.remembering`.
        stack: how many observations are seen at once, with what is remembered, see `rlx.partial.stacked`.
        chunk: how many actions each step takes, or that and how many of them are executed, see `chunked`.
        options: passed to the suite, such as `backend="mjx"` for Brax.

    Raises:
        ValueError: unknown or ambiguous name, or a size below its bound.
    """
    name = full_name(name)
    namespace, _, rest = name.partition("/")
    if name in _registered:
        env = _registered[name](**options)
    elif options:
        env = import_module(_suites[namespace]).make(rest, **options)
    else:
        env = _plain(namespace, rest, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue] (JAX)
    if max_steps is not None:
        env = _limited(env, max_steps)
    if num_starts is not None:
        env = replace(env, num_starts=num_starts)
    if randomize:
        env = randomized(env, randomize)
    env = stacked(remembering(hidden(env, hide), remember), stack)
    if chunk is None:
        return env
    return chunked(env, *chunk) if isinstance(chunk, tuple | list) else chunked(env, chunk)


@cache
def _plain(namespace: str, name: str, x64: bool) -> Env:
    """The same one whenever it is asked for: a program that was compiled for it serves again."""
    with eval_context():  # no array of it belongs to a trace that it may be made in
        return import_module(_suites[namespace]).make(name)


def _limited(env: Env, max_steps: int) -> Env:
    if type(max_steps) is not int or max_steps < 1:
        raise ValueError(f"max_steps = {max_steps!r}: give an integer of at least 1")
    # A limit that the suite keeps in its params would go on cutting episodes at its own number of steps.
    own = dict.fromkeys(own_limits(env.params), max_steps)
    if isinstance(env.params, dict):
        return replace(env, params=env.params | own, max_steps=max_steps)
    params = replace(env.params, **own) if own else env.params
    return replace(env, params=params, max_steps=max_steps)
