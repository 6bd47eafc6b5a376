"""Whole runs as pure functions: `train`, `resume`, `evaluate`.

An algorithm is a module with `Config`, `init(config, env, key) -> State`, `update(config, env, state, ...) ->
(State, metrics)` and `act(config, env, state, obs, key, deterministic=False) -> (action, recorded)`. Its Config has
`total_steps` (static) and `steps_per_update`, and `init_steps` where `init` already takes steps that belong to the run;
its State counts its updates in `num_updates` (int32). Where settings have to fit numbers of the environment, which are
traced in `init`, it has `check(config, env)`, which raises ValueError; `init` calls it too.
One that learns from data has `update(config, env, state, data)`, see `rlx.data.steps`; where it does not step the
environment, its `total_steps` are gradient steps.
"""

import inspect
from dataclasses import field, fields, is_dataclass
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rlx.current import Current as Current
from rlx.env import Env, EnvState
from rlx.hosted import answered
from rlx.masks import check_mask
from rlx.modes import check_unvarying, ordinary
from rlx.multiagent import folded, unfolded
from rlx.policy import acting
from rlx.pytree import is_static, pytree
from rlx.replay import is_replay, rewind
from rlx.rollout import reset
from rlx.schedules import at, is_scheduled
from rlx.spaces import check_spaces
from rlx.stopping import Stopping, seen

EVALUATION = 0x65766C  # names the random stream of `evaluate`
MAX_STEPS = 100_000  # of an episode that it plays
# Static fields that shape networks; a State that has others differs in its parameters.
NETWORK = ("hidden_sizes", "critic_sizes", "conv_features", "num_components", "num_features", "num_critics", "cell")
NETWORK += ("memory_size", "torso", "policy", "actor_obs", "critic_obs", "embed_size", "num_layers", "num_heads")
NETWORK += ("num_values",)


def total_updates(config: Any) -> int:
    """Number of updates of a whole run: `ceil((total_steps - init_steps) / steps_per_update)`."""
    return -(-(config.total_steps - getattr(config, "init_steps", 0)) // config.steps_per_update)


def steps_taken(config: Any, num_updates: int) -> int:
    """Environment steps of `init` and `num_updates` updates: `init_steps + num_updates * steps_per_update`."""
    return getattr(config, "init_steps", 0) + num_updates * config.steps_per_update


def training_progress(config: Any, state: Any) -> jax.Array:
    """The share of a run's updates that are made, `min(num_updates / total_updates, 1)`; schedules follow it."""
    return jnp.minimum(state.num_updates / total_updates(config), 1.0)


def now(config: Any, state: Any = None) -> Any:
    """The Config with numbers for schedules, at the State's progress or at the start: what algorithms are given."""
    return at(config, 0.0 if state is None else training_progress(config, state)) if is_scheduled(config) else config


def here(config: Any, env: Env, state: Any = None) -> Env:
    """The environment with numbers for schedules among its parameters, at the State's progress or at the start."""
    return at(env, 0.0 if state is None else training_progress(config, state)) if is_scheduled(env) else env


def takes_data(algorithm: Any) -> bool:
    """Whether the algorithm learns from data: its `update` has an argument of that name."""
    return "data" in inspect.signature(algorithm.update).parameters


def check(algorithm: Any, config: Any, env: Env) -> None:
    """Raises ValueError for spaces that no policy serves exactly, and what the algorithm's own `check` raises."""
    check_spaces(env)
    check_mask(env.observation_space, env.action_space)
    if hasattr(algorithm, "check"):
        algorithm.check(now(config), env)


def check_arguments(needs: str, algorithm: Any, config: Any, env: Any, key: Any = None, kwargs: Any = None) -> None:
    """Raises ValueError for an argument that is no algorithm, Config, environment or key; the message says what to
    give.

    `needs` are the names that the algorithm has to have, between spaces.
    """
    if missing := [name for name in needs.split() if not hasattr(algorithm, name)]:
        raise ValueError(
            f"algorithm = {algorithm!r} has no {' and no '.join(missing)}: give a module such as rlx.algos.ppo"
        )
    own = getattr(algorithm, "Config", None)
    if isinstance(config, type):
        raise ValueError(f"config is the class {config.__name__}: give one of its objects, {config.__name__}()")
    names = {field.name for field in fields(own)} if is_dataclass(own) else set()
    if missing := sorted(name for name in names if not hasattr(config, name)):
        raise ValueError(f"config is of another algorithm: it has no {missing[0]}; give the algorithm's own Config")
    if not hasattr(env, "advance"):
        hint = f"rlx.envs.make({env!r})" if isinstance(env, str) else "rlx.envs.make(NAME), or rlx.Env around your own"
        raise ValueError(f"env = {env!r} is no environment: give {hint}")
    for name in names:
        value = getattr(now(config), name)
        if hasattr(value, "shape") and value.shape and jnp.issubdtype(value.dtype, jnp.number):
            raise ValueError(
                f"Config.{name} has shape {list(value.shape)}: for several values vmap over rlx.stack(configs)"
            )
    if key is not None and not _is_key(key):
        raise ValueError(f"key = {key!r} is no random key: give jax.random.key(0)")
    if "update" in needs and takes_data(algorithm) and (kwargs or {}).get("data") is None:
        raise ValueError(f"{algorithm.__name__} learns from data: give data=rlx.data.columns(env, demonstrations)")
    for name, value in (kwargs or {}).items():
        if bad := [leaf for leaf in jax.tree.leaves(value) if not _is_array(leaf)]:
            hint = "wrap a function in jax.tree_util.Partial" if callable(bad[0]) else "give an object of its class"
            raise ValueError(f"{name} = {bad[0]!r} is no pytree of arrays: {hint}")


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | int | float | complex | jax.ShapeDtypeStruct)


def _is_key(x: Any) -> bool:
    kind = getattr(x, "dtype", None)
    return kind is not None and (jnp.issubdtype(kind, jax.dtypes.prng_key) or (kind == jnp.uint32 and x.shape != ()))


@ordinary
def state_shapes(algorithm: Any, config: Any, env: Env) -> Any:
    """The State of a run as `jax.ShapeDtypeStruct`s. Raises what `init` has against the config and the environment."""
    check(algorithm, config, env)  # neither is traced here: checks may look at numbers
    init = lambda key: answered(lambda env: algorithm.init(now(config), here(config, env), key), env)
    return jax.eval_shape(init, jax.random.key(0))


def state_bytes(algorithm: Any, config: Any, env: Env) -> dict[str, int]:
    """Memory of the State of a run, in bytes by its fields, known without allocating any of it."""
    state = state_shapes(algorithm, config, env)
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return {field.name: size(getattr(state, field.name)) for field in fields(state)}


def train(algorithm: Any, config: Any, env: Env, key: jax.Array, **kwargs: Any) -> tuple[Any, Any]:
    """A whole run: `init`, then `total_updates(config)` updates, compiled as one program.

    Returns the final State and the metrics of every update, leaves `[num_updates]`. Pure, so it can be vmapped over
    config, env and key, differentiated and sharded. Further keywords, pytrees, go to `algorithm.update`, and to `init`
    where it takes them. Statistics of episodes mean nothing where `metrics["num_episodes"]` is 0; they are 0 there.

    Raises:
        ValueError: for settings that do not fit the environment, and inside of a `jax.shard_map` with `check_vma`.
    """
    check_arguments("init update", algorithm, config, env, key, kwargs)
    check_unvarying((config, env, key))
    check(algorithm, config, env)
    return _train(Current(algorithm, env), config, env, key, kwargs)


def resume(
    algorithm: Any, config: Any, env: Env, state: Any, num_updates: int | None = None, **kwargs: Any
) -> tuple[Any, Any]:
    """Goes on from `state` for `num_updates` updates; without a number, to the end of the run as `config` has it.

    Returns the State and the metrics of these updates.

    Raises:
        ValueError: when no number is given and it cannot be known (under vmap or jit), or nothing is left to do; when
            the state is not of the shapes that these settings and this environment give.
    """
    if num_updates is not None and (not isinstance(num_updates, int | np.integer) or num_updates < 0):
        raise ValueError(f"num_updates = {num_updates}: give a whole number of updates")
    if num_updates is None:
        if isinstance(state.num_updates, Tracer) or jnp.ndim(state.num_updates):
            raise ValueError(
                "resume cannot tell how many updates are left of a traced or stacked state: give num_updates="
            )
        num_updates = total_updates(config) - int(state.num_updates)
        if num_updates <= 0:
            raise ValueError(
                f"this state has done {int(state.num_updates)} updates and total_steps = {config.total_steps} asks for "
                f"{total_updates(config)}: raise total_steps, or give num_updates="
            )
    check_arguments("update", algorithm, config, env, kwargs=kwargs)
    check_unvarying((config, env, state))
    return _resume(Current(algorithm, env), config, env, state, num_updates, kwargs)


@partial(jax.jit, static_argnames="algorithm")
@ordinary
def _train(algorithm, config, env, key, kwargs):
    return _scan(algorithm, config, env, _first(algorithm, config, env, key, kwargs), total_updates(config), kwargs)


@partial(jax.jit, static_argnames=("algorithm", "num_updates"))
@ordinary
def _resume(algorithm, config, env, state, num_updates, kwargs):
    like = jax.eval_shape(partial(_first, algorithm, config, env, kwargs=kwargs), jax.random.key(0))
    check_state(config, state, like)
    return _scan(algorithm, config, env, state, num_updates, kwargs)


def _first(algorithm, config, env, key, kwargs):
    """The State that `init` makes with those of the keywords that it takes."""
    own = kwargs.keys() & inspect.signature(algorithm.init).parameters.keys()
    return algorithm.init(now(config), here(config, env), key, **{name: kwargs[name] for name in own})


def _scan(algorithm, config, env, state, num_updates, kwargs):
    def update(state, _):
        return algorithm.update(now(config, state), here(config, env, state), state, **kwargs)

    return jax.lax.scan(update, state, length=num_updates)


def check_state(config: Any, state: Any, like: Any, field: str = "") -> None:
    """Raises ValueError where a State has not the leaves that `config` gives it, `like`, by `jax.ShapeDtypeStruct`s.

    Both may be a `field` of it, such as ".params".
    """
    trees = map(jax.tree_util.tree_leaves_with_path, (jax.eval_shape(lambda x: x, state), like))
    kinds = [{jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in leaves} for leaves in trees]
    for name in {**kinds[1], **kinds[0]}:
        has, gives = (kind.get(name) for kind in kinds)
        if has == gives:
            continue
        sizes = () if has is None or gives is None else {*gives[0]} - {*has[0]}
        part = (field + name).partition("[")[0].partition(".opt_state")
        network = bool(part[1]) or part[0] in (".params", ".target_params", ".reference", ".pretrained")
        kinds_of = [f.name for f in fields(config) if is_static(f) and (f.name in NETWORK) == network]
        settings = {name: getattr(config, name) for name in kinds_of}
        likely = [n for n, v in settings.items() if {*(v if isinstance(v, tuple) else [v])} & {*sizes}]
        named = f", probably with another {' or '.join(likely)}" if likely else ", or for another environment"
        has, gives = ("nothing" if x is None else f"{x[1]}{list(x[0])}" for x in (has, gives))
        raise ValueError(
            f"state{field}{name} is {has} and these settings and this environment make it {gives}: the state was made "
            f"with others{named}; give those"
        )


@ordinary
def advance(
    algorithm: Any, config: Any, env: Env, state: Any, done: jax.Array, num: jax.Array, length: int, **kwargs: Any
) -> tuple[Any, Any]:
    """`num` updates of a run that has done `done`, for drivers that look at a run between its updates.

    Returns the State and the metrics `[length]`, of which the first `num <= length` are filled; `done` and `num` are
    traced, so one program serves any. A run is frozen by the first update that turns a finite number of its State into
    NaN or infinity: that update is undone and later ones change nothing, so `state.num_updates < done + num` tells
    which runs died and after how many updates. Metrics are 0 from there on. What environments hold as their own state
    may be anything. A `Replay` is rewound, which takes back as many elements as it has `spare` rows. Further
    keywords go to `update`.
    """
    return _advanced(algorithm, config, env, state, None, done, num, length, kwargs)[:2]


@ordinary
def advance_until(
    algorithm: Any, config: Any, env: Env, state: Any, rule: Stopping, done: Any, num: Any, length: int, **kwargs: Any
) -> tuple[Any, Any, Stopping]:
    """`advance` that stops by a rule: the State, the metrics, and the rule with what it has seen.

    A run that the rule has stopped is frozen after the update that it was stopped by, which counts.
    """
    return _advanced(algorithm, config, env, state, rule, done, num, length, kwargs)


def _advanced(algorithm, config, env, state, rule, done, num, length, kwargs):
    # Is traced once for its two uses, and again for every trace of this function: what `update` calls may be replaced.
    moved = lambda config, env, state: algorithm.update(now(config, state), here(config, env, state), state, **kwargs)
    updated = wraps(algorithm.update)(moved)
    update = partial(jax.jit(updated, inline=True), config, env)
    shapes = jax.eval_shape(update, state)[1]
    metrics = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

    def body(i, carry):
        state, rule, alive, metrics = carry
        new, new_metrics = update(state)
        alive &= _sound(state, new)
        state = jax.tree.map(partial(_keep, alive), new, state, is_leaf=is_replay)
        metrics = jax.tree.map(lambda all_, x: all_.at[i].set(jnp.where(alive, x, 0)), metrics, new_metrics)
        if rule is not None:
            after = seen(rule, new_metrics["episode_return"], new_metrics["num_episodes"])
            rule = jax.tree.map(partial(jnp.where, alive), after, rule)
            alive &= ~rule.stopped
        return state, rule, alive, metrics

    alive = state.num_updates == done
    if rule is not None:
        alive &= ~rule.stopped
    state, rule, _, metrics = jax.lax.fori_loop(0, num, body, (state, rule, alive, metrics))
    return state, metrics, rule


def _sound(old: Any, new: Any) -> jax.Array:
    """Whether no number that was finite has become NaN or infinite.

    Of environments only the observations are looked at, and what a `Replay` holds is not read.
    """
    pairs = zip(*(jax.tree.leaves(_judged(tree)) for tree in (old, new)), strict=True)
    floats = ((a, b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating))
    worse = [jnp.any(jnp.isfinite(a) & ~jnp.isfinite(b)) for a, b in floats]
    return ~jnp.any(jnp.array(worse)) if worse else jnp.bool_(True)


def _judged(tree: Any) -> Any:
    """What a run owns of its State: not what environments hold, nor the elements of a `Replay`."""
    own = lambda x: None if is_replay(x) else x.obs if isinstance(x, EnvState) else x
    return jax.tree.map(own, tree, is_leaf=lambda x: is_replay(x) or isinstance(x, EnvState))


def _keep(alive: jax.Array, new: Any, old: Any) -> Any:
    """`new` where alive, else `old`."""
    return rewind(new, old, ~alive) if is_replay(new) else jnp.where(alive, new, old)


@pytree
class Episodes:
    """One whole episode each: what `evaluate` returns."""

    returns: jax.Array  # float32 [E], undiscounted sums of raw rewards, means over several agents
    lengths: jax.Array  # int32 [E]
    finished: jax.Array  # bool [E]; False where max_steps was reached first
    diverged: jax.Array  # bool [E]; True where it ended with numbers that are not finite: the return is of no use
    reported: dict[str, jax.Array] = field(default_factory=dict)  # float32 [E] each, see `rlx.env.reports`


def evaluate(
    algorithm: Any,
    config: Any,
    env: Env,
    state: Any,
    key: jax.Array,
    num_episodes: int = 32,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
) -> Episodes:
    """Plays `num_episodes` episodes from fresh starts, each once and to its end.

    Every environment contributes its first episode and nothing else, so long episodes count as much as short ones.
    Rewards are raw; of several agents the return is the mean of theirs. `max_steps` bounds an environment that never
    ends an episode; `finished` says where it did. `diverged` says where an episode ended because a number was not
    finite: its return is the sum before that.
    Training state is not touched.

    Raises:
        ValueError: for parameters of other networks than `config` and `env` give.
    """
    check_arguments("act", algorithm, config, env, key)
    if not isinstance(num_episodes, int | np.integer) or num_episodes < 1:
        raise ValueError(f"num_episodes = {num_episodes}: give a whole number of at least 1")
    try:
        return play(Current(algorithm, env), config, env, state, key, num_episodes, deterministic, max_steps)
    except Exception:  # whatever a network raises for parameters that are not its own
        like = state_shapes(algorithm, config, env)
        if hasattr(state, "params"):
            check_state(config, state.params, like.params, ".params")
        raise


@partial(jax.jit, static_argnames=("algorithm", "num_episodes", "deterministic", "max_steps"))
@ordinary
def play(algorithm, config, env, state, key, num_episodes, deterministic, max_steps):
    """The program of `evaluate`, whose algorithm is a `Current`."""
    # A stream of its own: handed the key that training splits next, evaluation would otherwise replay it.
    reset_key, steps_key = jax.random.split(jax.random.fold_in(key, EVALUATION))
    config, env_state = now(config, state), reset(env, reset_key, num_episodes)
    episodes = Episodes(
        returns=jnp.zeros(num_episodes),
        lengths=jnp.zeros(num_episodes, jnp.int32),
        finished=jnp.zeros(num_episodes, bool),
        diverged=jnp.zeros(num_episodes, bool),
        reported=env_state.reported,
    )

    policy, start = acting(algorithm, config, env, state, deterministic)

    def running(carry):
        _, _, episodes, time = carry
        return ~episodes.finished.all() & (time < max_steps)

    def step(carry):
        env_state, memory, episodes, time = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(steps_key, time))
        action, _, memory = policy(folded(env, env_state.obs), act_key, memory)
        keys, action = jax.random.split(env_key, num_episodes), unfolded(env, action)
        env_state, transition = jax.vmap(env.advance)(keys, env_state, action)
        keep = partial(jnp.where, episodes.finished)
        team = transition.episode_return.mean(axis=1) if env.has_agents else transition.episode_return
        episodes = Episodes(
            returns=jnp.where(episodes.finished, episodes.returns, team),
            lengths=jnp.where(episodes.finished, episodes.lengths, transition.episode_length),
            finished=episodes.finished | transition.done,
            diverged=jnp.where(episodes.finished, episodes.diverged, transition.diverged),
            reported=jax.tree.map(keep, episodes.reported, transition.reported),
        )
        return env_state, memory, episodes, time + 1

    memory = start(num_episodes * env.num_agents)
    return jax.lax.while_loop(running, step, (env_state, memory, episodes, jnp.int32(0)))[2]
