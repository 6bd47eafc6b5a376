"""Names of environments: `namespace/Name`; a suite is imported when one of its environments is asked for."""

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import jax
from jax.core import eval_context

from rlx.action_tokens import tokenized
from rlx.env import Env, own_limits
from rlx.levels import drawn
from rlx.partial import hidden, remembering, stacked, timed
from rlx.wrappers import chunked, randomized

# namespace -> module with NAMES and `make(name, **options) -> Env`; it imports its suite inside `make`. One that does
# not offer all of its suite has REFUSED too: the reason by the name.
_suites = {
    "gymnax": "rlx.envs.suites.from_gymnax",
    "brax": "rlx.envs.suites.from_brax",
    "mjx": "rlx.envs.tasks.mjx_tasks",
    "playground": "rlx.envs.suites.from_playground",
    "craftax": "rlx.envs.suites.from_craftax",
    "xminigrid": "rlx.envs.suites.from_xminigrid",
    "jumanji": "rlx.envs.suites.from_jumanji",
    "pgx": "rlx.envs.suites.from_pgx",
    "jaxmarl": "rlx.envs.suites.from_jaxmarl",
    "rlx": "rlx.envs.tasks.own",
    "probe": "rlx.envs.tasks.probes",
}
# Those whose environments step on the host, by the names that they have there: none of them is known by its bare name.
_hosts = {"gymnasium": "rlx.envs.suites.from_gymnasium", "envpool": "rlx.envs.suites.from_envpool"}
_registered: dict[str, Callable[..., Env]] = {}


def register(name: str, constructor: Callable[..., Env]) -> None:
    """Makes `constructor(**options) -> Env` available as `make(name)`; names look like `namespace/Name`.

    Raises:
        ValueError: for a name without a namespace, or one that is taken.
    """
    namespace, slash, rest = name.partition("/")
    if not (namespace and slash and rest):
        raise ValueError(f"{name!r} is not of the form namespace/Name")
    if name in _registered or namespace in _suites or namespace in _hosts:
        raise ValueError(f"{name!r} is taken" if name in _registered else f"the namespace {namespace!r} is taken")
    _registered[name] = constructor


def names(namespace: str | None = None) -> list[str]:
    """Full names of all environments, or of one namespace's."""
    suites = [namespace] if namespace in _suites else [] if namespace else list(_suites)
    found = [f"{suite}/{name}" for suite in suites for name in import_module(_suites[suite]).NAMES]
    return found + [name for name in _registered if namespace in (None, name.partition("/")[0])]


def refused(namespace: str) -> dict[str, str]:
    """Why environments of a suite are not offered, by their full names."""
    reasons = getattr(import_module(_suites[namespace]), "REFUSED", {})
    return {f"{namespace}/{name}": reason for name, reason in reasons.items()}


def full_name(name: str) -> str:
    """`namespace/Name` for a full or an unambiguous bare name.

    Raises:
        ValueError: for a name that nothing or more than one thing has; the message names the closest.
    """
    namespace, slash, rest = name.partition("/")
    if namespace in _hosts and rest:
        return name
    if slash:
        if name in _registered or (namespace in _suites and name in names(namespace)):
            return name
        if reason := namespace in _suites and refused(namespace).get(name):
            raise ValueError(f"{name} is not offered: {reason}")
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


def on_host(name: str) -> bool:
    """Whether the environment of a full name steps on the host."""
    return name.partition("/")[0] in _hosts


def make(
    name: str,
    *,
    max_steps: int | None = None,
    num_starts: int | None = None,
    randomize: dict[str, tuple[float, float]] | None = None,
    levels: bool = False,
    hide: int | str | tuple[int | str, ...] = (),
    time: bool = False,
    remember: int = 0,
    stack: int = 1,
    chunk: int | tuple[int, int] | None = None,
    tokens: int | None = None,
    **options: Any,
) -> Env:
    """The environment of this name, bound to its default parameters.

    Without options of a suite it is the same object every time, for which nothing is compiled again.

    Args:
        name: `namespace/Name`, or `Name` where only one namespace has it; `gymnasium/NAME` and `envpool/NAME` step on
            the host, see `rlx.hosted`.
        max_steps: time limit in place of the suite's own.
        num_starts: size of the pool of start states, see `Env`; None leaves it to the suite.
        randomize: names of parameters and between which factors each episode multiplies them, see `randomized`.
        levels: each episode has a level of its own, drawn anew, see `rlx.levels`.
        hide: entries of the observation that are not seen, see `rlx.partial.hidden`.
        time: the share of the longest episode that is over is seen too, see `rlx.partial.timed`.
        remember: how many numbers the policy writes with its actions and observes after, see `rlx.partial.remembering`.
        stack: how many observations are seen at once, with what is remembered, see `rlx.partial.stacked`.
        chunk: how many actions each step takes, or that and how many of them are executed, see `chunked`.
        tokens: each dimension of an action is a choice of so many, with a step of its own, see `rlx.action_tokens`.
        options: passed to the suite, such as `backend="mjx"` for Brax.

    Raises:
        ValueError: unknown or ambiguous name, or a size below its bound.
    """
    name = full_name(name)
    namespace, _, rest = name.partition("/")
    if namespace in _hosts:
        changed = randomize or levels or hide or time or remember or stack != 1 or chunk is not None
        if num_starts is not None or tokens is not None or changed:
            raise ValueError(f"{name} steps on the host: it is wrapped by its own library; max_steps is its time limit")
        return _hosted(namespace, rest, max_steps, options)
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
    if levels:
        env = drawn(env)
    env = hidden(env, hide)
    env = stacked(remembering(timed(env) if time else env, remember), stack)
    if tokens is not None and chunk is not None:
        raise ValueError("tokens= chooses actions by dimension and chunk= several at once: give one of them")
    env = env if tokens is None else tokenized(env, tokens)
    if chunk is None:
        return env
    return chunked(env, *chunk) if isinstance(chunk, tuple | list) else chunked(env, chunk)


def _hosted(namespace: str, name: str, max_steps: int | None, options: dict[str, Any]) -> Env:
    """An environment that steps on the host; without options it is the same one whenever it is asked for."""
    if max_steps is None and not options:
        return _plain(namespace, name, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue] (JAX)
    return import_module(_hosts[namespace]).make(name, max_steps=max_steps, **options)


@cache
def _plain(namespace: str, name: str, x64: bool) -> Env:
    """The same one whenever it is asked for: a program that was compiled for it serves again."""
    with eval_context():  # no array of it belongs to a trace that it may be made in
        return import_module((_suites | _hosts)[namespace]).make(name)


def _limited(env: Env, max_steps: int) -> Env:
    if type(max_steps) is not int or max_steps < 1:
        raise ValueError(f"max_steps = {max_steps!r}: give an integer of at least 1")
    # A limit that the suite keeps in its params would go on cutting episodes at its own number of steps.
    own = dict.fromkeys(own_limits(env.params), max_steps)
    if isinstance(env.params, dict):
        return replace(env, params=env.params | own, max_steps=max_steps)
    params = replace(env.params, **own) if own else env.params
    return replace(env, params=params, max_steps=max_steps)
