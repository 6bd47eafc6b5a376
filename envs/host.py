"""Policies in environments of Gymnasium, which step on the host: whole episodes, one after another.

    episodes = play(policy, lambda: gymnasium.make("CartPole-v1"), num_episodes=32, seed=0)

A policy is any object with `reset()`, called where an episode begins, and `act(obs) -> action`: one observation and one
action, of numpy arrays, without a batch axis. They are elements of the spaces that `spaces_of` gives.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import gymnasium
import jax
import numpy as np

from rlx.env import TAKEN
from rlx.envs.gymnasium_spaces import acted, check_fit, from_gymnasium, observed
from rlx.spaces import Space, parts
from rlx.train import MAX_STEPS, Episodes

PREFIX = "gymnasium/"  # of names that are Gymnasium's
ROLES = ("observation", "action")


class Policy(Protocol):
    """What `play` needs of a policy."""

    def reset(self) -> None:
        """Forgets what it remembers of an episode."""
        ...

    def act(self, obs: Any) -> Any:
        """The action for an observation."""
        ...


def spaces_of(env: gymnasium.Env) -> tuple[Space, Space]:
    """The observation space and the action space of a Gymnasium environment, as spaces of rlx.

    Raises:
        ValueError: for a space that rlx does not have, such as text.
    """
    return from_gymnasium(env.observation_space), from_gymnasium(env.action_space)


def play(
    policy: Policy,
    env: gymnasium.Env | Callable[[], gymnasium.Env],
    num_episodes: int = 32,
    seed: int = 0,
    max_steps: int = MAX_STEPS,
) -> Episodes:
    """Plays whole episodes of a policy in a Gymnasium environment, each from a start of its own to its end.

    Returns `Episodes` of numpy arrays: returns float32 `[E]`, lengths int32 `[E]`, `finished` False where `max_steps`
    came first. `reported` has what `info` holds of real numbers and truth values, as `rlx.env.reports` counts it; what
    is missing in a step counts as 0. `diverged` is True where the last `info` says so; only a bridge of rlx does.

    Args:
        policy: has `reset()` and `act(obs)`.
        env: an environment, or a function that makes one. One that is made here is closed here.
        num_episodes: E, at least 1.
        seed: chooses a seed for the start of each episode, so that policies meet the same starts.
        max_steps: cuts an episode that does not end.

    Raises:
        ValueError: for what is no single environment, for spaces that rlx does not have, or for an action that is not
            of the action space.
    """
    for name, value, least in (("num_episodes", num_episodes, 1), ("max_steps", max_steps, 1), ("seed", seed, 0)):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} = {value!r}: give a whole number of at least {least}")
    if missing := [name for name in ("reset", "act") if not callable(getattr(policy, name, None))]:
        raise ValueError(f"policy = {policy!r} has no {' and no '.join(missing)}: give an object with both")
    made = not isinstance(env, gymnasium.Env) and callable(env)
    found: Any = env() if made else env  # pyright: ignore[reportCallIssue] (a function)
    try:
        if not isinstance(found, gymnasium.Env):
            raise ValueError(f"env = {found!r} is no gymnasium.Env: give one that is not a vector, or what makes one")
        spaces_of(found)
        seeds = np.random.SeedSequence(seed).generate_state(num_episodes)
        rows = [_episode(policy, found, int(start), max_steps) for start in seeds]
    finally:
        if made and hasattr(found, "close"):
            found.close()
    returns, lengths, finished, diverged, reported = zip(*rows, strict=True)
    names = dict.fromkeys(name for row in reported for name in row)
    column: Any = lambda values, dtype: np.array(values, dtype)  # of numpy, where `Episodes` has arrays of JAX
    return Episodes(
        returns=column(returns, np.float32),
        lengths=column(lengths, np.int32),
        finished=column(finished, bool),
        diverged=column(diverged, bool),
        reported={name: column([row.get(name, 0.0) for row in reported], np.float32) for name in names},
    )


def _episode(policy: Policy, env: gymnasium.Env, seed: int, max_steps: int) -> tuple[float, int, bool, bool, dict]:
    """Return, length, whether it ended and whether it diverged, and what was reported."""
    obs, _ = env.reset(seed=seed)
    policy.reset()
    total, reported = 0.0, {}
    for length in range(1, max_steps + 1):
        action = acted(env.action_space, policy.act(observed(env.observation_space, obs)))
        obs, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        for name, value in numbers(info).items():
            before = reported.get(name, 0.0)
            reported[name] = max(before, float(value)) if isinstance(value, bool) else before + value
        if terminated or truncated:
            return total, length, True, bool(info.get("diverged", False)), reported
    return total, max_steps, False, False, reported


def numbers(info: Mapping[Any, Any], inside: str = "") -> dict[str, bool | float]:
    """Real numbers and truth values of `info` by their dotted names, as `rlx.env.reports` chooses and names them."""
    found = {}
    for key, value in info.items():
        name = f"{inside}{key}"
        if isinstance(value, Mapping):
            found |= numbers(value, f"{name}.")
        elif isinstance(value, bool | np.bool_ | float | np.floating):
            number = bool(value) if isinstance(value, bool | np.bool_) else float(value)
            found[f"info.{name}" if name in TAKEN else name] = number
    found.pop("diverged", None)  # is counted by itself
    return found


def evaluate(
    policy: Policy,
    observation_space: Space,
    action_space: Space,
    name: str,
    num_episodes: int = 32,
    seed: int = 0,
    **options: Any,
) -> Episodes:
    """Plays a policy that was trained for these spaces in the Gymnasium environment of this name; returns as `play`.

    Args:
        policy: has `reset()` and `act(obs)`. It is given observations of the dtypes of `observation_space`.
        observation_space: of the environment in which it was trained.
        action_space: likewise.
        name: `gymnasium/NAME`, where `gymnasium.make(NAME)` knows the name, as `gymnasium/CartPole-v1`.
        num_episodes: E, at least 1.
        seed: chooses the starts.
        options: of `gymnasium.make`.

    Raises:
        ValueError: for an unknown name, or spaces that do not fit; the message says which part of them.
    """
    env = make(name, **options)
    try:
        for role, trained, found in zip(ROLES, (observation_space, action_space), spaces_of(env), strict=True):
            check_fit(trained, found, role, name)
        return play(Cast(policy, observation_space), env, num_episodes, seed)
    finally:
        env.close()


def make(name: str, **options: Any) -> gymnasium.Env:
    """The environment that `gymnasium.make` makes of `gymnasium/NAME` and options.

    Raises:
        ValueError: for a name without `gymnasium/`, one that Gymnasium does not know, or what is missing for it.
    """
    own = name.removeprefix(PREFIX)
    if own == name:
        raise ValueError(f"{name!r} is no name of Gymnasium's: write {PREFIX}{name}")
    try:
        return gymnasium.make(own, **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:  # a name, a package, an option
        raise ValueError(f"{name} cannot be made: {error}") from error


class Cast:
    """A policy that is given observations of the dtypes of the space that it was trained with."""

    def __init__(self, policy: Policy, observation_space: Space):
        self.policy, self.parts = policy, parts(observation_space)

    def reset(self) -> None:
        """That of the policy."""
        self.policy.reset()

    def act(self, obs: Any) -> Any:
        """That of the policy."""
        return self.policy.act(jax.tree.map(lambda space, x: np.asarray(x, space.dtype), self.parts, obs))


__all__ = ["Policy", "evaluate", "make", "play", "spaces_of"]
