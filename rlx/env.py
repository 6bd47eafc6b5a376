"""The environment contract, and `Env`: auto-reset, time limits, true successors, episode statistics, parameters."""

import difflib
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import field
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from rlx.curriculum import ends, has_pace, is_moving, moving, settled
from rlx.modes import ordinary
from rlx.pytree import per_env, pytree, replace, static
from rlx.spaces import Space, parts

LIMITS = ("max_steps", "max_steps_in_episode", "max_timesteps")  # as what suites keep the time limit in their params
TAKEN = ("return", "length")  # of an episode: what an environment reports under these names gets `info.` before it


class Environment(Protocol):
    """What an environment provides: one episode, no batch axis, no auto-reset, pure functions.

    `params` is a pytree of everything that may vary without a new program (masses, rewards, limits).
    `rlx.envs.check(env)` tests an implementation against this contract.

    It may have more names. `differentiable` says whether gradients through its steps, in actions and params, are
    those of finite differences (True), or are not (False). `horizon(params)` is the most steps of an episode, or None.
    `reuses_keys` is the reason where it consumes a key twice, which `check` then reports.

    One with several agents has `num_agents`, their number A, and arrays of them: observations `[A, ...]`, actions
    `[A, ...]` and rewards `[A]`. Its spaces are those of one agent, and an episode ends for all of them at once. What
    differs between agents in `info` is `info["alive"]`, bool `[A]`: those that were in the game when they acted.

    What `info` holds of floats and bools without axes are results: see `reports`. An environment around an `Env`, which
    keeps an `EnvState` of it, has a third name, `reported(state)`: the results that the other has counted so far.
    """

    if TYPE_CHECKING:  # a property, for the checker alone: it may be read-only, as in a dataclass that is frozen

        @property
        def default_params(self) -> Any: ...
    else:
        default_params: Any

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """A start state drawn with `key`: `obs, state`."""
        ...

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple:
        """One step: `obs, state, reward, terminated, truncated, info`, where `obs` is the successor's."""
        ...

    def observation_space(self, params: Any) -> Space:
        """Box or Discrete, or a Dict or Tuple of spaces."""
        ...

    def action_space(self, params: Any) -> Space:
        """Likewise."""
        ...


@pytree
class EnvState:
    """An episode under way: the environment's own state and what acting on it needs."""

    state: Any = per_env()
    obs: jax.Array = per_env()  # to act on next
    time: jax.Array = per_env()  # int32, steps taken in this episode
    episode_return: jax.Array = per_env()  # float32, undiscounted sum of the rewards so far, of each agent
    # float32 each, by its name: what the environment reported in this episode so far, see `reports`
    reported: dict[str, jax.Array] = field(default_factory=dict, metadata=per_env().metadata)
    # float32, how far a curriculum has come; the same in all, see rlx.curriculum
    pace: Any = field(default=None, metadata=per_env().metadata)


@pytree
class Transition:
    """One environment step, or arrays of them with leading axes `[T, N]`."""

    obs: jax.Array  # what was acted on
    action: jax.Array  # what the environment was given
    reward: jax.Array  # raw, float32
    next_obs: jax.Array  # the true successor, also where an episode ended
    terminated: jax.Array  # bool: the successor is terminal, its value is 0
    truncated: jax.Array  # bool: cut by a time limit, never together with terminated
    episode_return: jax.Array  # of the episode up to and with this step; whole where done
    episode_length: jax.Array  # int32, likewise
    info: Any  # whatever the environment reports
    diverged: jax.Array  # bool: the step led to numbers that are not finite, see `Env.advance`
    recorded: Any = None  # what the policy kept for the loss
    reported: dict[str, jax.Array] = field(default_factory=dict)  # of the episode up to and with this step
    num_agents: int = static(1)  # that share the steps of one environment, next to each other, see rlx.multiagent

    @property
    def done(self) -> jax.Array:
        """terminated | truncated."""
        return self.terminated | self.truncated


@pytree
class Env:
    """An environment bound to its parameters, ready to be stepped for ever.

    A pytree: `params` and `max_steps` are traced, so a vmap over them is a sweep over environments.

    Args:
        environment: an `Environment`.
        params: its parameters.
        max_steps: truncate episodes after this many steps; None leaves that to the environment.
        num_starts: how many fresh start states a rollout draws at its beginning. Episodes that begin within the
            rollout begin from a random one of them, so that no reset is computed inside its loop.
        lazy_starts: draw them only when the first episode of the rollout ends, for environments whose reset costs as
            much as a step or more. The episodes are the same.
    """

    environment: Environment = static()
    params: Any  # pyright: ignore[reportGeneralTypeIssues] (`static()` is no default, see rlx.pytree)
    max_steps: Any = None
    num_starts: int = static(64)
    lazy_starts: bool = static(False)

    def __post_init__(self):
        number = isinstance(self.max_steps, int | float | np.integer | np.floating)
        if number and (self.max_steps < 1 or self.max_steps != int(self.max_steps)):
            raise ValueError(f"max_steps = {self.max_steps}: give a whole number of at least 1, or None")

    @property
    def settled(self) -> Any:
        """The params, with the last values of those that change over a run: what the environment goes by."""
        return settled(self.params)

    @property
    def observation_space(self) -> Any:
        return self.environment.observation_space(self.settled)

    @property
    def action_space(self) -> Any:
        return self.environment.action_space(self.settled)

    @property
    def has_agents(self) -> bool:
        """Whether observations, actions and rewards have an axis of agents."""
        return hasattr(self.environment, "num_agents")

    @property
    def num_agents(self) -> int:
        """How many agents act in each step."""
        return getattr(self.environment, "num_agents", 1)

    def sample_action(self, key: jax.Array) -> Any:
        """A random action of the action space; of each agent, `[A, ...]`, where there are several."""
        if not self.has_agents:
            return self.action_space.sample(key)
        return jax.vmap(self.action_space.sample)(jax.random.split(key, self.num_agents))

    @property
    def horizon(self) -> int | None:
        """The most steps that an episode takes; None where that is not known, as inside of a trace.

        The least of `max_steps`, the time limit that the suite keeps in its params, and `environment.horizon(params)`,
        which an environment may have, and one around another has to have. Of stacked limits it is the largest.
        """
        own = getattr(self.environment, "horizon", lambda params: None)
        limits = [self.max_steps, *own_limits(self.settled).values(), own(self.settled)]
        return min((most for limit in limits if (most := _most(limit)) is not None), default=None)

    @ordinary
    def reset(self, key: jax.Array) -> EnvState:
        """A fresh start of one episode."""
        obs, state = self.environment.reset(key, self.settled)
        # A fixed dtype on every leaf: Python scalars in a start state would make the second call another program.
        obs, state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), (obs, state))
        space, agents = self.observation_space, (self.num_agents,) if self.has_agents else ()
        if isinstance(space, Space) and _shapes(obs) != _shapes(parts(space), agents):
            raise ValueError(
                f"reset gives an observation of {_shapes(obs)} and observation_space is of "
                f"{_shapes(parts(space), agents)}; correct one"
            )
        pace = jnp.float32(0) if has_pace(self.params) else None
        return EnvState(state, obs, jnp.int32(0), jnp.zeros(agents), self._nothing_reported(key, state), pace)

    def _nothing_reported(self, key: jax.Array, state: Any) -> dict[str, jax.Array]:
        """Zeros by the names of what the environment reports, which one abstract trace of a step tells."""
        if (totals := getattr(self.environment, "reported", None)) is not None:
            return totals(state)
        action = jax.eval_shape(self.sample_action, key)
        info = _info.eval_shape(self.environment.step, key, state, action, self.settled)
        return {name: jnp.float32(0) for name in reports(info)}

    @ordinary
    def advance(self, key: jax.Array, env_state: EnvState, action: jax.Array) -> tuple[EnvState, Transition]:
        """One step of one environment without a restart: after the end of an episode the state is of no use.

        A step that both terminates and reaches the time limit counts as terminated.

        A step whose observation or reward is not finite has diverged, and ends its episode alone. It has no successor
        that could be valued, so it is terminated; its reward is 0, and its `next_obs` is the observation before it. The
        environment's own state is not looked at. One that ends diverged episodes itself reports `info["diverged"]`.
        """
        next_obs, state, reward, terminated, truncated, info = self.environment.step(
            key, env_state.state, action, self.settled
        )
        reward = jnp.asarray(reward, jnp.float32)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(truncated, bool)
        finite = is_finite((next_obs, reward))
        next_obs = jax.tree.map(lambda new, old: jnp.where(finite, new, old), next_obs, env_state.obs)
        reward, terminated = jnp.where(finite, reward, 0.0), terminated | ~finite
        diverged = jnp.any(info["diverged"]) if isinstance(info, dict) and "diverged" in info else False
        time = env_state.time + 1
        if self.max_steps is not None:
            truncated |= time >= self.max_steps
        if (totals := getattr(self.environment, "reported", None)) is not None:
            reported = totals(state)
        else:
            values = reports(info)
            reported = {name: _with(total, values[name]) for name, total in env_state.reported.items()}
        stepped = EnvState(state, next_obs, time, env_state.episode_return + reward, reported, env_state.pace)
        return stepped, Transition(
            obs=env_state.obs,
            action=action,
            reward=reward,
            next_obs=next_obs,
            terminated=terminated,
            truncated=truncated & ~terminated,
            episode_return=stepped.episode_return,
            episode_length=time,
            info=info,
            diverged=~finite | diverged,
            reported=reported,
        )

    def step(
        self, key: jax.Array, env_state: EnvState, action: jax.Array, start: EnvState
    ) -> tuple[EnvState, Transition]:
        """One step of one environment; where the episode ends, the state to act on next is `start`.

        The transition holds the true successor either way.
        """
        stepped, transition = self.advance(key, env_state, action)
        return jax.tree.map(lambda a, b: jnp.where(transition.done, a, b), start, stepped), transition


def _shapes(tree: Any, before: tuple[int, ...] = ()) -> str:
    """The shapes of the arrays of a tree, in words, with axes `before` them."""
    shapes = [f"{keystr(path)} {(*before, *x.shape)}".strip() for path, x in tree_leaves_with_path(tree)]
    return f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {', '.join(shapes)}"


@partial(jax.jit, static_argnums=0)  # only ever traced, and once for all resets of a program
def _info(step: Callable, *args: Any) -> Any:
    return step(*args)[5]


def reports(info: Any) -> dict[str, Any]:
    """What counts of `info` as a result of a task: its floats and bools without axes, by their dotted names.

    Over an episode, floats are summed in float32, as rewards are; a bool counts as 1 where it was True in any step, so
    that its mean over episodes is the share in which it happened. Integers and arrays with axes are no results, nor is
    `diverged`, which is counted by itself. Names that are taken, `return` and `length`, get `info.` before them.
    """
    found = {}
    for path, leaf in tree_leaves_with_path(info):
        name, kind = keystr(path, simple=True, separator=".") or "info", jnp.result_type(leaf)
        number = any(jnp.issubdtype(kind, wanted) for wanted in (jnp.floating, jnp.bool_))
        if name == "diverged" or jnp.shape(leaf) or not number:
            continue
        while name in found or name in TAKEN:
            name = f"info.{name}"
        found[name] = leaf
    return found


def _with(total: jax.Array, value: Any) -> jax.Array:
    """What an episode reported so far with the value of one more step."""
    if jnp.issubdtype(jnp.result_type(value), jnp.bool_):
        return jnp.where(value, jnp.float32(1), total)
    return total + jnp.asarray(value, jnp.float32)


def is_finite(tree: Any) -> jax.Array:
    """Whether no floating-point number of the tree is NaN or infinite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return reduce(operator.and_, (jnp.isfinite(leaf).all() for leaf in floats), jnp.bool_(True))


def with_params(env: Env, values: dict[str, Any]) -> Env:
    """The environment with some of its parameters changed, the others as they are.

        with_params(env, {"gravity": 3.7})
        with_params(env, {"opt.timestep": 0.001, "link.inertia.mass": [10.0, 1.0, 1.0, 1.0]})

    Args:
        env: the environment.
        values: numbers, or nested lists of them, by the dotted names of leaves of `env.params`. Each is cast to the
            dtype of its leaf. What a suite has computed from a parameter beforehand is another parameter, and stays.
            A number may change over the run, as `linear(1, 9.8)` or "linear:1:9.8": see `rlx.curriculum`.

    Raises:
        ValueError: for a name that no leaf has, naming the closest, or a value that its leaf cannot hold.
    """
    found = check_names(env.params, values)
    leaves = [_cast(name, values[name], leaf) if name in values else leaf for name, leaf in found.items()]
    return replace(env, params=jax.tree.unflatten(jax.tree.structure(env.params), leaves))


def check_names(params: Any, names: Iterable[str]) -> dict[str, Any]:
    """The leaves of `params` by their dotted names. Raises ValueError for a name that none has, naming the closest."""
    found = {keystr(path, simple=True, separator="."): leaf for path, leaf in tree_leaves_with_path(params)}
    if unknown := [name for name in names if name not in found]:
        close = difflib.get_close_matches(unknown[0], found, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"the environment has no parameter {unknown[0]!r}: {hint}there are {', '.join(found) or 'none'}"
        )
    return found


def own_limits(params: Any) -> dict[str, Any]:
    """The time limits that a suite keeps in `params`, by their names; params may be a dictionary.

    Those of an `Env`, which a chunked environment has as params, are in other steps and not among them.
    """
    if isinstance(params, Env):
        return {}
    fields = params if isinstance(params, dict) else {n: getattr(params, n) for n in LIMITS if hasattr(params, n)}
    return {name: fields[name] for name in LIMITS if fields.get(name) is not None}


def _most(limit: Any) -> int | None:
    """The largest of a number or an array of them, rounded up; None where it is traced or no finite number."""
    if limit is None or isinstance(limit, Tracer):
        return None
    most = np.max(np.asarray(limit, np.float64), initial=-np.inf)
    return math.ceil(most) if np.isfinite(most) else None


def _cast(name: str, value: Any, leaf: Any) -> Any:
    """The value as the leaf's type: a Python number for a Python number, else an array of its dtype and shape."""
    if is_moving(value):
        if jnp.shape(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"parameter {name} = {value!r}: only a real number changes over a run")
        for end in ends(moving(value)):
            _cast(name, end, leaf)
        return moving(value)
    dtype, shape = jnp.result_type(leaf), jnp.shape(leaf)
    try:
        given = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        given = np.full(shape, np.nan)
    if given.shape != shape or np.isnan(given).any():
        needs = f"numbers in shape {list(shape)}" if shape else "a number"
        raise ValueError(f"parameter {name} = {value!r}: it takes {needs}")
    with np.errstate(invalid="ignore", over="ignore"):
        cast = given.astype(dtype)
    if not (jnp.issubdtype(dtype, jnp.floating) or np.array_equal(given, cast)):
        raise ValueError(f"parameter {name} = {value!r}: it takes what {dtype} can hold")
    return type(leaf)(given) if isinstance(leaf, bool | int | float) else jnp.asarray(cast)
