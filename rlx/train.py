"""Whole runs as pure functions: `train`, `resume`, `evaluate`.

An algorithm is a module with `Config`, `init(config, env, key) -> State`, `update(config, env, state, ...) ->
(State, metrics)` and `act(config, env, state, obs, key, deterministic=False) -> (action, recorded)`. Its Config has
`total_steps` (static) and `steps_per_update`, and `init_steps` where `init` already takes steps that belong to the run;
its State counts its updates in `num_updates` (int32). Where settings have to fit numbers of the environment, which are
traced in `init`, it has `check(config, env)`, which raises ValueError; `init` calls it too.
"""

from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlx.env import Env, EnvState
from rlx.modes import check_unvarying, ordinary
from rlx.pytree import pytree
from rlx.replay import is_replay, rewind
from rlx.rollout import reset
from rlx.spaces import check_spaces

EVALUATION = 0x65766C  # names the random stream of `evaluate`


def total_updates(config: Any) -> int:
    """Number of updates of a whole run: `ceil((total_steps - init_steps) / steps_per_update)`."""
    return -(-(config.total_steps - getattr(config, "init_steps", 0)) // config.steps_per_update)


def steps_taken(config: Any, num_updates: int) -> int:
    """Environment steps of `init` and `num_updates` updates: `init_steps + num_updates * steps_per_update`."""
    return getattr(config, "init_steps", 0) + num_updates * config.steps_per_update


def check(algorithm: Any, config: Any, env: Env) -> None:
    """Raises ValueError for spaces that no policy serves exactly, and what the algorithm's own `check` raises."""
    check_spaces(env)
    if hasattr(algorithm, "check"):
        algorithm.check(config, env)


@ordinary
def state_shapes(algorithm: Any, config: Any, env: Env) -> Any:
    """The State of a run as `jax.ShapeDtypeStruct`s. Raises what `init` has against the config and the environment."""
    check(algorithm, config, env)  # neither is traced here: checks may look at numbers
    return jax.eval_shape(partial(algorithm.init, config, env), jax.random.key(0))


def state_bytes(algorithm: Any, config: Any, env: Env) -> dict[str, int]:
    """Memory of the State of a run, in bytes by its fields, known without allocating any of it."""
    state = state_shapes(algorithm, config, env)
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return {field.name: size(getattr(state, field.name)) for field in fields(state)}


def train(algorithm: Any, config: Any, env: Env, key: jax.Array, **kwargs: Any) -> tuple[Any, Any]:
    """A whole run: `init`, then `total_updates(config)` updates, compiled as one program.

    Returns the final State and the metrics of every update, leaves `[num_updates]`. Pure, so it can be vmapped over
    config, env and key, differentiated and sharded. Further keywords go to `algorithm.update` and must be pytrees.
    Statistics of episodes mean something only where `metrics["num_episodes"]` is above 0; they are 0 elsewhere.

    Raises:
        ValueError: for settings that do not fit the environment, and inside of a `jax.shard_map` with `check_vma`.
    """
    check_unvarying((config, env, key))
    check(algorithm, config, env)
    return _train(algorithm, config, env, key, kwargs)


def resume(
    algorithm: Any, config: Any, env: Env, state: Any, num_updates: int | None = None, **kwargs: Any
) -> tuple[Any, Any]:
    """Goes on from `state` for `num_updates` updates; without a number, to the end of the run as `config` has it.

    Returns the State and the metrics of these updates.

    Raises:
        ValueError: when no number is given and it cannot be known (under vmap or jit), or nothing is left to do.
    """
    if num_updates is None:
        if isinstance(state.num_updates, jax.core.Tracer) or jnp.ndim(state.num_updates):
            raise ValueError(
                "resume cannot tell how many updates are left of a traced or stacked state: give num_updates="
            )
        num_updates = total_updates(config) - int(state.num_updates)
        if num_updates <= 0:
            raise ValueError(
                f"this state has done {int(state.num_updates)} updates and total_steps = {config.total_steps} asks for "
                f"{total_updates(config)}: raise total_steps, or give num_updates="
            )
    check_unvarying((config, env, state))
    return _resume(algorithm, config, env, state, num_updates, kwargs)


@partial(jax.jit, static_argnames="algorithm")
@ordinary
def _train(algorithm, config, env, key, kwargs):
    return _resume(algorithm, config, env, algorithm.init(config, env, key), total_updates(config), kwargs)


@partial(jax.jit, static_argnames=("algorithm", "num_updates"))
@ordinary
def _resume(algorithm, config, env, state, num_updates, kwargs):
    def update(state, _):
        return algorithm.update(config, env, state, **kwargs)

    return jax.lax.scan(update, state, length=num_updates)


@ordinary
def advance(
    algorithm: Any, config: Any, env: Env, state: Any, done: jax.Array, num: jax.Array, length: int
) -> tuple[Any, Any]:
    """`num` updates of a run that has done `done`, for drivers that look at a run between its updates.

    Returns the State and the metrics `[length]`, of which the first `num <= length` are filled; `done` and `num` are
    traced, so one program serves any. A run is frozen by the first update that turns a finite number of its State into
    NaN or infinity: that update is undone and later ones change nothing, so `state.num_updates < done + num` tells
    which runs died and after how many updates. Metrics are 0 from there on. What environments hold as their own state
    may be anything. A `Replay` is rewound, which takes back as many elements as it has `spare` rows.
    """
    update = partial(jax.jit(algorithm.update, inline=True), config, env)  # is traced once for its two uses
    shapes = jax.eval_shape(update, state)[1]
    metrics = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

    def body(i, carry):
        state, alive, metrics = carry
        new, new_metrics = update(state)
        alive &= _sound(state, new)
        state = jax.tree.map(partial(_keep, alive), new, state, is_leaf=is_replay)
        metrics = jax.tree.map(lambda all_, x: all_.at[i].set(jnp.where(alive, x, 0)), metrics, new_metrics)
        return state, alive, metrics

    state, _, metrics = jax.lax.fori_loop(0, num, body, (state, state.num_updates == done, metrics))
    return state, metrics


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

    returns: jax.Array  # float32 [E], undiscounted sums of raw rewards
    lengths: jax.Array  # int32 [E]
    finished: jax.Array  # bool [E]; False where max_steps was reached first
    diverged: jax.Array  # bool [E]; True where it ended with numbers that are not finite: the return is of no use


@partial(jax.jit, static_argnames=("algorithm", "num_episodes", "deterministic", "max_steps"))
@ordinary
def evaluate(
    algorithm: Any,
    config: Any,
    env: Env,
    state: Any,
    key: jax.Array,
    num_episodes: int = 32,
    deterministic: bool = True,
    max_steps: int = 100_000,
) -> Episodes:
    """Plays `num_episodes` episodes from fresh starts, each once and to its end.

    Every environment contributes its first episode and nothing else, so long episodes count as much as short ones.
    Rewards are raw. `max_steps` bounds an environment that never ends an episode; `finished` says where it did.
    `diverged` says where an episode ended because a number was not finite: its return is the sum before that.
    Training state is not touched.
    """
    # A stream of its own: handed the key that training splits next, evaluation would otherwise replay it.
    reset_key, steps_key = jax.random.split(jax.random.fold_in(key, EVALUATION))
    env_state = reset(env, reset_key, num_episodes)
    episodes = Episodes(
        returns=jnp.zeros(num_episodes),
        lengths=jnp.zeros(num_episodes, jnp.int32),
        finished=jnp.zeros(num_episodes, bool),
        diverged=jnp.zeros(num_episodes, bool),
    )

    def running(carry):
        _, episodes, time = carry
        return ~episodes.finished.all() & (time < max_steps)

    def step(carry):
        env_state, episodes, time = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(steps_key, time))
        action, _ = algorithm.act(config, env, state, env_state.obs, act_key, deterministic=deterministic)
        env_state, transition = jax.vmap(env.advance)(jax.random.split(env_key, num_episodes), env_state, action)
        episodes = Episodes(
            returns=jnp.where(episodes.finished, episodes.returns, transition.episode_return),
            lengths=jnp.where(episodes.finished, episodes.lengths, transition.episode_length),
            finished=episodes.finished | transition.done,
            diverged=jnp.where(episodes.finished, episodes.diverged, transition.diverged),
        )
        return env_state, episodes, time + 1

    return jax.lax.while_loop(running, step, (env_state, episodes, jnp.int32(0)))[1]
