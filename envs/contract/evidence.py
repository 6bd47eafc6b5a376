"""What the clauses of the contract look at: episodes of an environment, played and traced in several ways."""

import dataclasses
import gc
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from rlx.env import Env, own_limits
from rlx.masks import sample
from rlx.spaces import Box, parts, rescale

NUM_EPISODES = 32
PUSH = 2.0  # standard deviation between policies of the mean of their actions, in unit coordinates
NUM_ENDS = 8  # fewer episode ends than this say nothing about what an end looks like
NUM_DIFFERENTIATED = 3  # steps of the episodes whose gradients are taken
LITTLE = 1e-2  # of the half width of an action, or of a parameter: what finite differences move them by
EAGER_OPERATIONS = 400  # without jit each operation compiles alone, so larger programs would take minutes
# Programs that differ only in how XLA fuses them round differently in the last bits, and one step of contact physics
# (an iterative solver) amplifies that by some orders of magnitude. A wrong batch axis is off by the value itself.
TOLERANCE = 1e-3
CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class ContractError(AssertionError):
    """An environment breaks the contract; `clause` names the clause."""

    clause = ""

    def __str__(self):
        return f"{self.clause}: {super().__str__()}"


@dataclasses.dataclass
class Evidence:
    """What the clauses judge; each part is computed when the first of them asks for it."""

    env: Env
    key: jax.Array
    num_steps: int
    random_starts: bool

    @property
    def action(self) -> Any:
        """The shape of an action."""
        return jax.eval_shape(self.env.sample_action, self.key)

    @cached_property
    def reset(self) -> Any:
        """Shapes of what `environment.reset` returns."""
        return shapes_of("reset", lambda key: self.env.environment.reset(key, self.env.params), self.key)

    @cached_property
    def step(self) -> Any:
        """Shapes of what `environment.step` returns."""
        program = lambda key, state, action: self.env.environment.step(key, state, action, self.env.params)
        return shapes_of("step", program, self.key, self.reset[1], self.action)

    @cached_property
    def later(self) -> Any:
        """Shapes of what `environment.step` returns after a step."""
        program = lambda key, state, action: self.env.environment.step(key, state, action, self.env.params)
        return shapes_of("step", program, self.key, self.step[1], self.action)

    @cached_property
    def episodes(self) -> "Episodes":
        return self.play(self.env)

    @cached_property
    def limited(self) -> dict[str, tuple["Episodes", "Episodes", int]]:
        """For each time limit that can be moved: the episodes without one, those with a short one, and that one."""
        limits = limits_of(self.env)
        if not limits:
            return {}
        free = self.episodes
        if any(np.min(value) <= self.num_steps for value in limits.values()):
            free = self.play(limit_of(self.env, dict.fromkeys(limits, self.num_steps + 1)))
        # Half of the typical episode, so that about as many reach the limit as can.
        short = max(1, int(np.median(free.length)) // 2)
        moved = {}
        for name in limits:
            env = limit_of(self.env, dict.fromkeys(limits, self.num_steps + 1) | {name: short})
            moved[name] = (free, self.play(env), short)
        return moved

    def play(self, env: Env) -> "Episodes":
        played = play_episodes(env, jax.random.split(self.key, NUM_EPISODES), self.num_steps)
        start, traj = jax.tree.map(on_host, played)
        return Episodes(start=start, **traj)

    def one(self, index: int) -> tuple:
        """Arguments of `_one` for the first step of an episode."""
        reset_key, step_keys, _ = episode_keys(jax.random.split(self.key, NUM_EPISODES)[index], self.num_steps)
        return self.env, reset_key, step_keys[0], jax.tree.map(lambda x: jnp.asarray(x[index, 0]), self.episodes.action)


@dataclasses.dataclass
class Episodes:
    """Episodes, each from a fresh start; steps after an end are there and mean nothing. `[N, T]`.

    Every other one is of random legal actions. In the rest continuous actions are those of a random policy:
    normal around a push of its own, in unit coordinates, so that many of them lie on the bounds.
    """

    start: Any
    action: Any
    next_obs: Any
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    diverged: np.ndarray
    reported: dict[str, np.ndarray]  # of the episode up to and with each step

    @property
    def obs(self) -> Any:
        """What is acted on."""
        return jax.tree.map(lambda x: x[:, :-1], self.seen)

    @property
    def seen(self) -> Any:
        """All observations, `[N, T + 1]`."""
        return jax.tree.map(lambda a, b: np.concatenate([a[:, None], b], axis=1), self.start.obs, self.next_obs)

    @property
    def length(self) -> np.ndarray:
        """Steps up to and with the first end; T where there is none."""
        done = self.terminated | self.truncated
        return np.where(done.any(1), done.argmax(1) + 1, done.shape[1])

    @property
    def valid(self) -> np.ndarray:
        """The steps up to and with the first end."""
        return np.arange(self.terminated.shape[1]) < self.length[:, None]


def episode_keys(key, num_steps):
    reset_key, steps_key, actions_key = jax.random.split(key, 3)
    return reset_key, jax.random.split(steps_key, num_steps), jax.random.split(actions_key, num_steps)


def one_episode(env, reset_key, step_key, action):
    """The first step of one episode, and the spaces: everything that a caller does with an `Env`."""
    start = env.reset(reset_key)
    stepped, transition = env.advance(step_key, start, action)
    return start, stepped, transition


single_steps = jax.jit(one_episode)


@jax.jit(static_argnames="num_steps")
def play_episodes(env, keys, num_steps):
    space = env.action_space

    def episode(key, by_policy):
        reset_key, step_keys, action_keys = episode_keys(key, num_steps)
        start = env.reset(reset_key)
        push_key = jax.random.fold_in(key, 3)  # `_keys` has the first three
        push = jax.tree.map(lambda space: PUSH * jax.random.normal(push_key, space.shape), parts(space))

        def step(env_state, keys):
            step_key, action_key = keys

            def act(obs, action_key):
                action = sample(space, obs, action_key)

                def of_policy(space, action, push):
                    if not isinstance(space, Box):
                        return action
                    normal = rescale(space, push + jax.random.normal(action_key, space.shape))
                    return jnp.where(by_policy, normal, action)

                return jax.tree.map(of_policy, parts(space), action, push)

            if env.has_agents:
                action = jax.vmap(act)(env_state.obs, jax.random.split(action_key, env.num_agents))
            else:
                action = act(env_state.obs, action_key)
            stepped, transition = env.advance(step_key, env_state, action)
            names = ("action", "next_obs", "reward", "terminated", "truncated", "diverged", "reported")
            return stepped, {name: getattr(transition, name) for name in names}

        return start, jax.lax.scan(step, start, (step_keys, action_keys))[1]

    return jax.vmap(episode)(keys, jnp.arange(len(keys)) % 2 == 1)


def shapes_of(name, program, *args):
    try:
        return jax.eval_shape(program, *args)
    except jax.errors.UnexpectedTracerError as error:
        raise leak_of(first_line(error)) from error
    except CONCRETE as error:
        raise ContractError(
            f"{name} needs the value of a traced array: {first_line(error)}; "
            "choose with jnp.where or jax.lax.cond, and compute with jax.numpy"
        ) from error
    except Exception as error:
        raise ContractError(f"{name} cannot be traced: {type(error).__name__}: {first_line(error)}") from error


def leak_of(seen):
    leak = ContractError(
        f"a tracer outlives the call that made it: {seen}; return what changes as part of the state, and "
        "assign nothing to the environment object within reset and step"
    )
    leak.clause = "tracers"
    return leak


def kept_tracer(environment):
    """A tracer that can be reached from the environment object, its class or its module's globals, or None."""
    cls = type(environment)
    module = getattr(sys.modules.get(cls.__module__), "__dict__", {})  # code that was typed in has none
    seen, todo = set(), [environment, *map(vars, cls.__mro__), module]
    while todo:
        item = todo.pop()
        if isinstance(item, Tracer):
            return item
        if id(item) in seen or isinstance(item, (type, ModuleType, jax.Array, np.ndarray)):
            continue
        seen.add(id(item))
        # A function leads on to the globals of its module, and from there to everything.
        todo += gc.get_referents(*(closure_of(item) if isinstance(item, FunctionType) else (item,)))
    return None


def closure_of(function):
    return function.__closure__, function.__defaults__, function.__kwdefaults__, function.__dict__


def first_line(error):
    return str(error).strip().partition("\n")[0]


def numbers_of(tree: Any, num_axes: int) -> np.ndarray:
    """The numbers of a tree of arrays, which have so many axes in common, as one array `[..., n]` of float64."""
    flat = [x.reshape(*x.shape[:num_axes], -1).astype(np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate(flat, axis=-1)


def is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def on_host(leaf):
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def paths_of(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path) or "the result", on_host(jnp.asarray(leaf))


def read_of(params, name):
    return params.get(name) if isinstance(params, dict) else getattr(params, name, None)


def limits_of(env: Env) -> dict[str, Any]:
    found = {} if env.max_steps is None else {"env.max_steps": env.max_steps}
    return found | {f"params.{name}": limit for name, limit in own_limits(env.params).items()}


def limit_of(env: Env, limits: dict[str, int]) -> Env:
    for name, value in limits.items():
        owner, _, field = name.partition(".")
        if owner == "env":
            env = replace(env, max_steps=alike(env.max_steps, value))
            continue
        new = {field: alike(read_of(env.params, field), value)}
        env = replace(env, params={**env.params, **new} if isinstance(env.params, dict) else replace(env.params, **new))
    return env


def alike(old, value):
    return jnp.full_like(old, value) if hasattr(old, "dtype") else type(old)(value)


def operations_of(jaxpr: Jaxpr | ClosedJaxpr) -> Iterator[tuple]:
    """Every operation of a traced program with its constants, so that two traces can be compared."""
    if isinstance(jaxpr, ClosedJaxpr):
        yield from (("constant", on_host(jnp.asarray(const)).tobytes()) for const in jaxpr.consts)
        jaxpr = jaxpr.jaxpr
    for eqn in jaxpr.eqns:
        params = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr)))
        settings = tuple(repr(x) for x in params if isinstance(x, (bool, int, float, str)))
        literals = tuple(repr(v.val) for v in eqn.invars if isinstance(v, Literal))
        yield eqn.primitive.name, literals, settings, tuple(str(v.aval) for v in eqn.outvars)
        for inner in params:
            if isinstance(inner, (Jaxpr, ClosedJaxpr)):
                yield from operations_of(inner)
