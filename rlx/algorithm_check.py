"""The contract of an algorithm file, and its proof: `check_algorithm`. docs/guides/own-algorithm.md says it in words.

Every clause is one function of the evidence. It returns None where it is proven and a reason where it cannot be judged,
and raises `AlgorithmError` where it is broken. What a trace shows is judged in a trace; three programs are compiled:
`init`, one update, and one update of two lanes.
"""

import dataclasses
import inspect
import re
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.multiagent import folded
from rlx.policy import remembers
from rlx.train import Current, now, takes_data, total_updates

EPISODES = ("num_episodes", "episode_return", "episode_length")  # metrics that logs and plots are made of
RESERVED = ("update", "step", "seconds", "parent")  # columns of a log that are no metrics
LARGEST = 2**31 - 1  # of a counter, int32
NUM_OBS = 3  # observations that `act` is asked about
NUM_STEPS = 32  # of random data, for one that learns from data
TOLERANCE = 1e-2  # programs that are fused differently round differently, which Adam enlarges; mixed lanes are off by 1


class AlgorithmError(AssertionError):
    """An algorithm breaks the contract; `clause` names the clause."""

    clause = ""

    def __str__(self):
        return f"{self.clause}: {super().__str__()}"


def check_algorithm(algorithm: Any, env: Env, config: Any = None, key: jax.Array | None = None) -> list[str]:
    """Proves the contract of an algorithm on `env`, by tracing it and by a few updates.

    Args:
        algorithm: a module, or anything with `Config`, `init`, `update` and `act`; with `memory`, if it remembers.
        env: an environment that the algorithm is made for.
        config: settings to check it with, best small ones; `algorithm.Config()` by default.
        key: of `init`; `jax.random.key(0)` by default.

    Returns:
        A line for each clause, in the order in which they were judged: what was proven, or `not judged: ` and why.

    Raises:
        AlgorithmError: for the first clause that is broken: what was seen, and what to do.
    """
    key = jax.random.key(0) if key is None else key
    if callable(getattr(algorithm, "update", None)) and takes_data(algorithm):
        from rlx.data.steps import drawn, with_data

        algorithm = with_data(algorithm, drawn(env, key, NUM_STEPS))
    evidence = Evidence(algorithm, env, config, key)
    lines = []
    for clause in CLAUSES:
        name = clause.__name__.replace("_", " ")
        try:
            reason = clause(evidence)
        except AlgorithmError as error:
            error.clause = error.clause or name
            raise
        proven = str(clause.__doc__).partition("\n")[0].rstrip(".")
        lines.append(f"{name}: {proven}" if reason is None else f"not judged: {name}: {reason}")
    return lines


def check_module(algorithm: Any, name: str) -> None:
    """Raises ValueError where a module lacks a name, or its Config a field, that every algorithm has."""
    missing = [part for part in ("Config", "init", "update", "act") if not callable(getattr(algorithm, part, None))]
    if missing:
        raise ValueError(f"{name} is not an algorithm: it has no {', '.join(missing)}")
    config = algorithm.Config
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ValueError(f"{name} is not an algorithm: its Config is no dataclass; put @rlx.pytree above it")
    fields = {field.name: field for field in dataclasses.fields(config)}
    missing = [] if "total_steps" in fields else ["field total_steps: int = rlx.static(500_000)"]
    missing += [] if hasattr(config, "steps_per_update") else ["property steps_per_update"]
    if missing:
        raise ValueError(f"{name} is not an algorithm: its Config has no {' and no '.join(missing)}")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if required:
        raise ValueError(f"{name}: Config.{required[0]} has no default; every field needs one")


def check_counters(config: Any, state: Any) -> None:
    """Raises ValueError where a run could not count its updates: `state` is the State, or its shapes."""
    if not hasattr(state, "num_updates"):
        raise ValueError("the State has no field num_updates: int32, 0 in init, and one more after each update")
    for name, number in (("steps of an update", config.steps_per_update), ("updates", total_updates(config))):
        if number > LARGEST:
            raise ValueError(f"{number:,} {name} are more than {LARGEST:,}: lower num_envs, num_steps or total_steps")


def check_metrics(metrics: Any, axes: int = 0) -> None:
    """Raises ValueError where a log could not hold these metrics, arrays or shapes with so many leading axes."""
    if not isinstance(metrics, dict):
        raise ValueError(f"update returns a {type(metrics).__name__} as metrics: return a dict from names to numbers")
    for name, x in metrics.items():
        if not isinstance(name, str) or name in RESERVED or name.startswith("varied."):
            raise ValueError(f"the metric {name!r} has a name that logs use themselves: give it another")
        if not hasattr(x, "dtype"):
            raise ValueError(f"the metric {name!r} is a {type(x).__name__} of metrics: give each a name of its own")
        if len(x.shape) > axes:
            shape = list(x.shape[axes:])
            raise ValueError(f"the metric {name!r} has shape {shape}: give one number, such as its mean, or one a name")
        if not any(jnp.issubdtype(x.dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
            raise ValueError(f"the metric {name!r} is of {x.dtype}: logs hold real numbers")
    if missing := [name for name in EPISODES if name not in metrics]:
        raise ValueError(
            f"the metrics have no {', '.join(missing)}: rlx.rollout.episode_metrics makes them of a rollout"
        )


@dataclasses.dataclass
class Evidence:
    """What the clauses judge; each part is computed when the first of them asks for it."""

    algorithm: Any
    env: Env
    given: Any
    key: jax.Array

    @cached_property
    def config(self) -> Any:
        return now(self.algorithm.Config() if self.given is None else self.given)

    @cached_property
    def shapes(self) -> Any:
        """Shapes of the State."""
        return _shapes("init(config, env, key)", self.algorithm.init, self.config, self.env, self.key)

    @cached_property
    def updated(self) -> Any:
        """Shapes of what `update` returns."""
        return _shapes("update(config, env, state)", self.algorithm.update, self.config, self.env, self.shapes)

    @cached_property
    def init(self) -> Any:
        return jax.jit(lambda *args: self.algorithm.init(*args))

    @cached_property
    def update(self) -> Any:
        return jax.jit(lambda *args: self.algorithm.update(*args))

    @cached_property
    def start(self) -> Any:
        return self.init(self.config, self.env, self.key)

    @cached_property
    def first(self) -> Any:
        """State and metrics after one update."""
        return self.update(self.config, self.env, self.start)


def _shapes(call, program, *args):
    try:
        return jax.eval_shape(lambda *args: program(*args), *args)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise AlgorithmError(
            f"{call} needs the value of a traced array: {_first_line(error)}; mark a field that fixes shapes or picks "
            "code with rlx.static, and choose with jnp.where or jax.lax.cond"
        ) from error
    except Exception as error:
        raise AlgorithmError(f"{call} cannot be traced: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error):
    return str(error).strip().partition("\n")[0]


def _leaves(tree):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _host(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def _different(a, b):
    """The name of the first leaf that is not the same to the bit; None where all are."""
    pairs = zip(_leaves(a).items(), jax.tree.leaves(b), strict=True)
    return next((name for (name, x), y in pairs if not np.array_equal(_host(x), _host(y), equal_nan=True)), None)


def names(evidence: Evidence) -> None:
    """Config, init, update and act are there, and Config has total_steps and steps_per_update."""
    name = getattr(evidence.algorithm, "__name__", "it")
    try:
        check_module(evidence.algorithm, name)
    except ValueError as error:
        raise AlgorithmError(str(error)) from error
    remembering = remembers(evidence.algorithm)
    arguments = {"init": 3, "update": 3, "act": 5 + remembering} | ({"memory": 3} if remembering else {})
    for part, wanted in arguments.items():
        function = getattr(evidence.algorithm, part)
        try:
            inspect.signature(function).bind(*range(wanted), **({"deterministic": True} if part == "act" else {}))
        except TypeError as error:
            called = {"init": "config, env, key", "update": "config, env, state", "memory": "config, env, num"}
            given = "config, env, state, obs, key, memory" if remembering else "config, env, state, obs, key"
            how = called.get(part, f"{given}, deterministic=True")
            raise AlgorithmError(f"{part} is called as {part}({how}), and that fails: {error}") from error


def settings(evidence: Evidence) -> None:
    """The Config is a pytree, whose total_steps and steps_per_update are integers in a trace too."""
    try:
        config = evidence.config
    except Exception as error:
        raise AlgorithmError(f"Config() fails: {type(error).__name__}: {_first_line(error)}") from error
    if jax.tree_util.all_leaves([config]):
        raise AlgorithmError("the Config is no pytree: put @rlx.pytree above the class")
    bad = [
        name for name, x in _leaves(config).items() if not isinstance(x, bool | int | float | jax.Array | np.ndarray)
    ]
    if bad:
        raise AlgorithmError(f"Config{bad[0]} is no number: mark it with rlx.static, or leave it out")

    def sizes(config):
        kinds.update({name: type(getattr(config, name)) for name in ("total_steps", "steps_per_update")})
        return 0

    kinds = {}
    try:
        jax.eval_shape(sizes, config)
    except Exception as error:
        raise AlgorithmError(f"steps_per_update fails: {type(error).__name__}: {_first_line(error)}") from error
    for name, kind in kinds.items():
        if kind is not int:
            raise AlgorithmError(f"{name} is {kind.__name__} in a trace: make it of fields marked with rlx.static only")
    if config.steps_per_update < 1:
        raise AlgorithmError(f"steps_per_update is {config.steps_per_update}: an update takes at least 1 step")


def state(evidence: Evidence) -> None:
    """init gives a pytree of arrays with num_updates, an int32 that is 0."""
    count = getattr(evidence.shapes, "num_updates", None)
    if count is None:
        raise AlgorithmError("the State has no num_updates: give it num_updates=jnp.int32(0)")
    if (count.shape, count.dtype) != ((), jnp.int32):
        raise AlgorithmError(f"num_updates is {count.dtype}{list(count.shape)}: it has to be jnp.int32(0)")
    if int(evidence.start.num_updates) != 0:
        raise AlgorithmError(f"num_updates is {int(evidence.start.num_updates)} after init: it has to be 0")


def update(evidence: Evidence) -> None:
    """update gives a State of the same structure, shapes and dtypes, and metrics."""
    found = evidence.updated
    if not (isinstance(found, tuple) and len(found) == 2):
        raise AlgorithmError(f"update returns a {type(found).__name__}: it has to return (State, metrics)")
    before, after = (
        {name: (x.shape, x.dtype) for name, x in _leaves(tree).items()} for tree in (evidence.shapes, found[0])
    )
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            is_, was = (f"{x[name][1]}{list(x[name][0])}" if name in x else "not there" for x in (after, before))
            raise AlgorithmError(f"state{name} is {is_} after update and {was} before: keep shape and dtype")
    if jax.tree.structure(found[0]) != jax.tree.structure(evidence.shapes):
        raise AlgorithmError("update changes the structure of the State, such as a static field or the kind of a part")


def metrics(evidence: Evidence) -> None:
    """The metrics are real numbers by name, with num_episodes, episode_return and episode_length."""
    try:
        check_metrics(evidence.updated[1])
    except ValueError as error:
        raise AlgorithmError(str(error)) from error


def actions(evidence: Evidence) -> None:
    """act gives an action of the space for each observation [N, ...], deterministic or not, and what it recorded.

    With a memory, arrays [N, ...], it gives the next one too, of the same structure, shapes and dtypes.
    """
    env, space, keys = evidence.env, evidence.env.action_space, jax.random.split(evidence.key, NUM_OBS)
    wanted = _leaves(jax.eval_shape(jax.vmap(space.sample), keys))
    started = lambda keys: folded(env, jax.vmap(env.reset)(keys).obs)  # of several agents more than are needed
    obs = jax.eval_shape(lambda keys: jax.tree.map(lambda x: x[:NUM_OBS], started(keys)), keys)
    memory = _memory(evidence)
    more = f"{', memory' * len(memory)}, deterministic="
    for deterministic in (False, True):
        call = f"act(config, env, state, obs, key{more}{deterministic})"
        program = lambda *args, d=deterministic: evidence.algorithm.act(*args, deterministic=d)
        found = _shapes(call, program, evidence.config, evidence.env, evidence.shapes, obs, evidence.key, *memory)
        if not (isinstance(found, tuple) and len(found) == 2 + len(memory)):
            returned = "(action, recorded, memory)" if memory else "(action, recorded)"
            raise AlgorithmError(f"{call} returns a {type(found).__name__}: it has to return {returned}")
        if memory and _kinds(found[2]) != _kinds(memory[0]):
            raise AlgorithmError(f"{call} gives the memory {_kinds(found[2])} for {_kinds(memory[0])}: keep its shapes")
        action = _leaves(found[0])
        for name in {**wanted, **action}:
            has, needs = (x.get(name) for x in (action, wanted))
            kind = np.integer if needs is not None and jnp.issubdtype(needs.dtype, np.integer) else np.inexact
            if has is None or needs is None or has.shape != needs.shape or not jnp.issubdtype(has.dtype, kind):
                has, needs = ("nothing" if x is None else f"{x.dtype}{list(x.shape)}" for x in (has, needs))
                raise AlgorithmError(
                    f"{call} gives action{name} {has} for {NUM_OBS} observations: {space} needs {needs}"
                )


def _kinds(tree):
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in _leaves(tree).items()}


def _memory(evidence: Evidence) -> tuple[Any, ...]:
    """The shapes of a memory for `NUM_OBS` observations; nothing where policies have none."""
    if not remembers(evidence.algorithm):
        return ()
    call = f"memory(config, env, {NUM_OBS})"
    program = lambda config, env: evidence.algorithm.memory(config, env, NUM_OBS)
    found = _shapes(call, program, evidence.config, evidence.env)
    if not _leaves(found) or any(x.shape[:1] != (NUM_OBS,) for x in _leaves(found).values()):
        raise AlgorithmError(
            f"{call} gives {_kinds(found)}: give arrays with a first axis of {NUM_OBS}, one an episode"
        )
    return (found,)


def traces(evidence: Evidence) -> None:
    """Tracing update twice gives one program, changes no global and leaks no tracer; traced settings do not retrace."""
    before, programs = Current(evidence.algorithm), []
    for _ in range(2):
        with jax.checking_leaks():
            try:
                program = jax.make_jaxpr(lambda *args: evidence.algorithm.update(*args))
                programs.append(program(evidence.config, evidence.env, evidence.shapes))
            except Exception as error:
                raise AlgorithmError(f"update keeps a tracer after its trace: {_first_line(error)}") from error
    if before != Current(evidence.algorithm):
        raise AlgorithmError("update changes a global of its module while it is traced: keep what changes in the State")
    texts = [re.sub(r"0x[0-9a-f]+", "", str(program)) for program in programs]
    consts = [[_host(jnp.asarray(x)) for x in program.consts] for program in programs]
    same = len(consts[0]) == len(consts[1]) and all(map(np.array_equal, *consts))
    if texts[0] != texts[1] or not same:
        raise AlgorithmError(
            "two traces of update are two programs: it depends on something of Python that changes, such as a counter, "
            "a clock or numpy.random; keep it in the State, and draw with jax.random"
        )
    counts = []
    counted = jax.jit(lambda *args: (counts.append(1), evidence.algorithm.update(*args))[1])
    other = jax.tree.map(lambda x: x if isinstance(x, bool) else x * 2, evidence.config)
    for config in (evidence.config, other):
        counted.trace(config, evidence.env, evidence.shapes)
    if len(counts) > 1:
        raise AlgorithmError("another value of a traced setting makes another program: a setting is no number or array")


def counter(evidence: Evidence) -> None:
    """num_updates counts by 1."""
    second = evidence.update(evidence.config, evidence.env, evidence.first[0])[0]
    seen = [int(x.num_updates) for x in (evidence.start, evidence.first[0], second)]
    if seen != [0, 1, 2]:
        raise AlgorithmError(f"num_updates is {seen[1]} after one update and {seen[2]} after two: return it + 1")


def randomness(evidence: Evidence) -> None:
    """The same key gives the same State to the bit, another key another one."""
    again = evidence.update(evidence.config, evidence.env, evidence.init(evidence.config, evidence.env, evidence.key))
    if (name := _different(evidence.first, again)) is not None:
        where = f"state{name[3:]}" if name.startswith("[0]") else f"metrics{name[3:]}"
        raise AlgorithmError(f"{where} differs between two updates from one key: draw with keys of the State only")
    other = evidence.init(evidence.config, evidence.env, jax.random.fold_in(evidence.key, 1))
    if _different(evidence.start, other) is None:
        raise AlgorithmError("init gives the same State for another key: it does not use its key")
    if _different(evidence.start, evidence.init(evidence.config, evidence.env, evidence.key)) is not None:
        raise AlgorithmError("init gives another State for the same key: draw with its key only")


def lanes(evidence: Evidence) -> None:
    """Two runs in one program, by vmap, are the runs that they are alone."""
    states = jax.tree.map(lambda a, b: jnp.stack([a, b]), evidence.start, evidence.first[0])
    program = lambda state: evidence.algorithm.update(evidence.config, evidence.env, state)
    try:
        both = jax.jit(jax.vmap(program))(states)
    except Exception as error:
        raise AlgorithmError(f"update fails in a vmap: {type(error).__name__}: {_first_line(error)}") from error
    for name, lane in _leaves(jax.tree.map(lambda x: x[0], both)).items():
        single = _leaves(evidence.first)[name]
        if jnp.issubdtype(single.dtype, np.floating):
            scale = np.abs(_host(single)[np.isfinite(_host(single))]).sum() / max(single.size, 1)
            apart = np.abs(_host(lane) - _host(single)) > TOLERANCE * (1 + scale)
            if single.size and apart.mean() > 0.5:
                where = f"state{name[3:]}" if name.startswith("[0]") else f"metrics{name[3:]}"
                raise AlgorithmError(
                    f"{where} of a run beside another is not that of the run alone: the lanes are mixed"
                )


CLAUSES = (names, settings, state, actions, update, metrics, traces, counter, randomness, lanes)

__all__ = ["AlgorithmError", "check_algorithm", "check_counters", "check_metrics", "check_module"]
