"""An update by its phases, its programs by what they take to compile and to hold, and the best number of environments.

Phases are timed in programs of their own: a rollout with actions that are there already, one with the policy, one with
the advantages, and the whole update. A phase is the difference of two of them, so that what XLA fuses across a border
counts where it was fused; a difference below 0 counts as 0.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from rlx.env import Env
from rlx.multiagent import folded
from rlx.policy import acting
from rlx.profile.counts import cost, seconds
from rlx.pytree import replace
from rlx.rollout import rollout
from rlx.train import Current, advance, here, now, play, state_bytes

MAX_STEPS = 100_000
EVAL_EPISODES = 32


@dataclass(frozen=True)
class Part:
    """A program of a run: what it took to make, in seconds, and what it holds, in bytes."""

    name: str
    trace: float
    lower: float
    compile: float
    arguments: int
    outputs: int
    temporaries: int
    shared: int  # of the outputs with the arguments: donated


def compiled(name: str, function: Any, *args: Any) -> tuple[Any, Part]:
    """The compiled program of a jitted function, and what it took."""
    times = [time.perf_counter()]
    traced = function.trace(*args)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    program = lowered.compile()
    times.append(time.perf_counter())
    trace, lower, made = (b - a for a, b in pairwise(times))
    memory = program.memory_analysis()
    sizes = [getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp", "alias")]
    return program, Part(name, trace, lower, made, *sizes)


def programs(algorithm: Any, config: Any, env: Env) -> tuple[dict[str, Any], list[Part]]:
    """The programs of `rlx train`, compiled here and now: `init`, `update`, `evaluation`."""
    key = jax.random.key(0)
    current = Current(algorithm, env)
    like = jax.eval_shape(lambda key: algorithm.init(now(config), here(config, env), key), key)
    step = jax.jit(advance, static_argnames=("algorithm", "length"), donate_argnames="state")
    made = {
        "init": (jax.jit(lambda key: algorithm.init(now(config), here(config, env), key)), key),
        "update": (step, current, config, env, like, jnp.int32(0), jnp.int32(1), 1),
        "evaluation": (play, current, config, env, like, key, EVAL_EPISODES, True, MAX_STEPS),
    }
    found = {name: compiled(name, *args) for name, args in made.items()}
    return {name: program for name, (program, _) in found.items()}, [part for _, part in found.values()]


def phases(algorithm: Any, config: Any, env: Env, state: Any) -> dict[str, Callable]:
    """Parts of an update as functions of its State, each with all that is before it.

    `environment`, `rollout`, `advantages` and `update`; without `advantages` where the algorithm has no such function
    of a rollout, and with `update` alone where its State has no environments.
    """
    config = now(config, state)
    found: dict[str, Callable] = {"update": lambda state: algorithm.update(config, env, state)}
    if not hasattr(state, "env_state"):
        return found
    num_envs = jax.tree.leaves(state.env_state.time)[0].shape[0]
    num_steps = getattr(config, "num_steps", None) or max(1, config.steps_per_update // num_envs)
    actions = folded(env, jax.vmap(env.sample_action)(jax.random.split(jax.random.key(1), num_envs)))

    def played(policy: Callable, state: Any, memory: Any = None) -> Any:
        begun = {} if memory is None else {"memory": memory, "empty": memory}
        return rollout(env, policy, state.env_state, state.key, num_steps, **begun)

    def acted(state: Any) -> Any:
        policy, start = acting(algorithm, config, env, state, deterministic=False)
        memory = start(num_envs * env.num_agents)
        if memory is None:
            return played(lambda obs, key: policy(obs, key)[:2], state)
        return played(policy, state, memory)

    found["environment"] = lambda state: played(lambda obs, key: (actions, None), state)
    found["rollout"] = acted
    if hasattr(algorithm, "advantages"):
        later = lambda state: algorithm.advantages(config, env, state, acted(state)[1])
        try:
            jax.eval_shape(later, state)
        except Exception:  # it is a function of something else than a rollout
            return found
        found["advantages"] = later
    return found


def shares(took: dict[str, float]) -> dict[str, float]:
    """Seconds of each phase, from those of the programs of `phases`."""
    if "rollout" not in took:
        return {"update": took["update"]}
    collected = took.get("advantages", took["rollout"])
    apart = {"environment": took["environment"], "policy": took["rollout"] - took["environment"]}
    if "advantages" in took:
        apart["advantages"] = collected - took["rollout"]
    apart["gradient steps" if "advantages" in took else "all else"] = took["update"] - collected
    return {name: max(0.0, part) for name, part in apart.items()}


def timed(functions: dict[str, Callable], state: Any, turns: int, budget: float) -> tuple[dict[str, float], dict]:
    """Median seconds of a call of each, which take turns, and their compiled programs."""
    made = {name: jax.jit(function).lower(state).compile() for name, function in functions.items()}

    def again(program: Any, state: Any) -> Any:
        jax.block_until_ready(program(state))
        return state

    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(1 + turns):
        for name, program in made.items():
            times[name].append(seconds(partial(again, program), state, budget))
    return {name: median(found[1:]) for name, found in times.items()}, made


def counted(program: Any) -> dict[str, float] | None:
    """Operations, bytes and kernels of a compiled program; None where a loop's length is not known to it."""
    try:
        found = cost(program.as_text())
    except (ValueError, KeyError, TypeError, AttributeError):  # of a backend that writes its programs otherwise
        return None
    return {"operations": found.operations, "bytes": found.bytes, "kernels": found.kernels}


def profile(algorithm: Any, config: Any, env: Env, turns: int = 3, budget: float = 0.5) -> dict[str, Any]:
    """Where an update spends its time, what its programs take and hold, and what it does.

    Returns strict JSON: `steps` of an update, `seconds` of it, `steps_per_second`, `phases` in seconds, `programs`,
    `state` in bytes by its fields, and `counts`, None where they cannot be told.

    Args:
        algorithm: a module.
        config: its settings.
        env: an environment.
        turns: of the programs of the phases, which take turns; medians count.
        budget: seconds of a program in a turn.
    """
    made, parts = programs(algorithm, config, env)
    state = made["init"](jax.random.key(0))
    took, whole = timed(phases(algorithm, config, env, state), state, turns, budget)
    return {
        "steps": config.steps_per_update,
        "seconds": took["update"],
        "steps_per_second": config.steps_per_update / took["update"],
        "phases": shares(took),
        "programs": [vars(part) for part in parts],
        "state": state_bytes(algorithm, config, env),
        "counts": counted(whole["update"]),
    }


def fastest(
    algorithm: Any, config: Any, env: Env, numbers: Sequence[int], budget: float = 0.5, max_seconds: float = 60.0
) -> Iterator[dict[str, Any]]:
    """Steps/s of updates with each number of environments, until the time is over; `refused` says why there is none.

    Args:
        numbers: of environments.
        budget: seconds that updates are timed for.
        max_seconds: after which no further number is tried.
    """
    began = time.perf_counter()
    for num in numbers:
        if time.perf_counter() - began > max_seconds:
            return
        try:
            own = replace(config, num_envs=num)
            state = jax.jit(lambda key, own=own: algorithm.init(now(own), here(own, env), key))(jax.random.key(0))
            update = lambda state, own=own: algorithm.update(now(own, state), here(own, env, state), state)
            took, _ = timed({"update": update}, state, 1, budget)
        except ValueError as error:  # a setting that does not go with this number
            yield {"num_envs": num, "refused": str(error)}
        else:
            yield {"num_envs": num, "steps_per_second": own.steps_per_update / took["update"]}
