"""Experience: starting environments, rolling a policy out, cutting what came of it into minibatches."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from math import gcd
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from rlx.curriculum import at_pace, has_pace, next_pace
from rlx.devices.sharding import blocks, num_blocks, split, whole
from rlx.env import Env, EnvState, Transition
from rlx.hosted import begun, check_hosted, collected, is_hosted
from rlx.masks import mask_of, num_unmasked
from rlx.multiagent import check_one_agent, folded, rows, unfolded

T = TypeVar("T")


def reset(env: Env, key: jax.Array, num_envs: int) -> EnvState:
    """`num_envs` independent fresh starts, leaves `[N, ...]`."""
    if is_hosted(env):
        return begun(env, num_envs)
    return split(jax.vmap(env.reset)(jax.random.split(key, num_envs)))


def rollout(
    env: Env,
    policy: Callable,
    env_state: EnvState,
    key: jax.Array,
    num_steps: int,
    memory: Any = None,
    empty: Any = None,
    starts: EnvState | None = None,
) -> tuple:
    """Steps `N` environments `num_steps` times with `policy(obs [N, ...], key) -> action [N, ...], recorded`.

    Returns the environment states after the last step and the transitions, time-major `[T, N, ...]`. `.recorded` holds
    the policy's records. Episodes that end are restarted.

    With a memory, a pytree `[N, ...]`, the policy is `policy(obs, key, memory) -> action, recorded, memory`: what it
    returns is what it is given at the next step, or `empty` where an episode has ended. The memory after the last step
    is returned too.

    Episodes begin again from `starts`, `[N, ...]`, each environment from its own, where these are given.

    Of several agents each is a row, for the policy and in the transitions: N is then the environments times the agents.

    Of an environment that steps on the host the transitions are those that `rlx.run.collecting` has collected with this
    policy, see `rlx.hosted`.
    """
    if is_hosted(env):
        return collected(env, policy, env_state, key, num_steps, *(() if memory is None else (memory, empty)))
    if has_pace(env.params):
        return _paced(env, policy, env_state, key, num_steps, memory, empty, starts=starts)
    num_envs = env_state.time.shape[0]
    blocks(num_envs, "num_envs")
    # Everything random at once, outside of the loop: small draws are what a step would wait for.
    keys = jax.random.split(key, 1 + num_steps + env.num_starts)
    env_key, act_keys, start_keys = keys[0], keys[1 : 1 + num_steps], keys[1 + num_steps :]
    env_keys = jax.random.split(env_key, (num_steps, num_envs))
    draw = lambda: whole(jax.vmap(env.reset)(start_keys))
    lazy = env.lazy_starts and starts is None
    if starts is not None:
        pool = (), True
    elif env.lazy_starts:  # until they are drawn something of their shapes, from which nothing begins
        pool = whole(jax.tree.map(lambda leaf: leaf[jnp.arange(env.num_starts) % num_envs], env_state)), False
    else:
        pool = draw(), True
    # Starts are i.i.d.: any order will do in which every environment comes through all of them, so no common factor.
    stride = next(s for s in count(num_envs + 1) if gcd(s, env.num_starts) == 1)

    def step(carry, x):
        env_state, (pool, drawn), *memory = carry
        time, act_key, env_keys = x
        action, recorded, *memory = policy(folded(env, env_state.obs), act_key, *memory)
        env_state, transition = jax.vmap(env.advance)(env_keys, env_state, unfolded(env, action))
        if lazy:
            needed = _in_any_lane(transition.done.any()) & ~drawn
            pool, drawn = jax.lax.cond(needed, draw, lambda: pool), drawn | needed
        turn = (time * stride + jnp.arange(num_envs)) % env.num_starts
        start = jax.tree.map(lambda leaf: leaf[turn], pool) if starts is None else starts
        anew = lambda done: lambda a, b: jax.vmap(jnp.where)(done, a, b)
        env_state = jax.tree.map(anew(transition.done), start, env_state)
        transition = rows(env, transition)
        memory = [jax.tree.map(anew(transition.done), empty, after) for after in memory]
        return (env_state, (pool, drawn), *memory), replace(transition, recorded=recorded)

    begin = (env_state, pool, *(() if memory is None else (memory,)))
    (env_state, _, *memory), traj = jax.lax.scan(step, begin, (jnp.arange(num_steps), act_keys, env_keys))
    return env_state, traj, *memory


def _paced(env: Env, policy: Callable, env_state: EnvState, *rest: Any, starts: EnvState | None) -> tuple:
    """`rollout` at the pace of a curriculum, which is `curriculum` among what is reported, and the next pace."""
    pace = env_state.pace.mean()
    starts = starts and replace(starts, pace=None)
    begin = replace(env_state, pace=None)
    env_state, traj, *memory = rollout(at_pace(env, pace), policy, begin, *rest, starts=starts)
    after = split(jnp.broadcast_to(next_pace(env, pace, traj), env_state.time.shape))
    traj = replace(traj, reported=traj.reported | {"curriculum": jnp.broadcast_to(pace, traj.reward.shape)})
    return replace(env_state, pace=after), traj, *memory


@jax.custom_batching.custom_vmap
def _in_any_lane(x: jax.Array) -> jax.Array:
    """`x`, bool; under vmap whether any lane has it, for all of them: a condition that stays one."""
    return x


@_in_any_lane.def_vmap
def _(axis_size, in_batched, x):
    return _in_any_lane(x.any(0) if in_batched[0] else x), False


def episodes(
    env: Env, policy: Callable, env_state: EnvState, key: jax.Array, num_steps: int, memory: Any = None
) -> tuple[EnvState, Transition, jax.Array]:
    """Plays one episode in each of `N` environments, to its end or for `num_steps`, without a restart.

    With a memory, a pytree, the policy is `policy(obs, key, memory) -> action, recorded, memory`: what it returns is
    what it is given at the next step.

    Returns where they came to, the transitions `[T, N, ...]` with what the policy recorded, and `alive`, bool `[T, N]`:
    True for the steps of the episode, the one that ends it included. After them rewards are 0, nothing terminates and
    nothing is truncated; the rest means nothing there.
    """
    check_hosted(env, "its state cannot be set: episodes from chosen starts need an environment of JAX")
    check_one_agent(env, "a group of episodes from one start")
    if has_pace(env.params):
        raise ValueError(
            "episodes from given starts keep no pace of a curriculum: give a schedule such as linear:1:9.8"
        )
    act_key, env_key = jax.random.split(key)
    num_envs = env_state.time.shape[0]

    def step(carry, x):
        env_state, alive, *memory = carry
        act_key, env_keys = x
        action, recorded, *memory = policy(env_state.obs, act_key, *memory)
        stepped, transition = jax.vmap(env.advance)(env_keys, env_state, action)
        env_state = jax.tree.map(lambda new, old: jax.vmap(jnp.where)(alive, new, old), stepped, env_state)
        transition = replace(
            transition,
            recorded=recorded,
            reward=jnp.where(alive, transition.reward, 0.0),
            terminated=transition.terminated & alive,
            truncated=transition.truncated & alive,
            diverged=transition.diverged & alive,
        )
        return (env_state, alive & ~transition.done, *memory), (transition, alive)

    keys = jax.random.split(act_key, num_steps), jax.random.split(env_key, (num_steps, num_envs))
    start = (env_state, jnp.ones(num_envs, bool), *(() if memory is None else (memory,)))
    (env_state, *_), (traj, alive) = jax.lax.scan(step, start, keys)
    return env_state, traj, alive


def check_horizon(env: Env, num_steps: int) -> None:
    """Raises ValueError where it is known that `num_steps` do not hold a whole episode."""
    if env.horizon is not None and num_steps < env.horizon:
        max_steps = num_steps * getattr(env.environment, "executed", 1)  # of a chunk, whose limit is in single actions
        raise ValueError(
            f"num_steps = {num_steps}: an episode of this environment may take {env.horizon} steps and has to fit; "
            f"raise num_steps, or make the environment with max_steps={max_steps}"
        )


def flatten(data: T) -> T:
    """Arrays `[T, N, ...]` as `[T * N, ...]`; over several devices one block of environments comes after another."""
    num = num_blocks()

    def flat(x):
        time, num_envs, *rest = x.shape
        by_block = x.reshape(time, num, blocks(num_envs, "num_envs"), *rest)
        return split(jnp.moveaxis(by_block, 1, 0).reshape(-1, *rest))

    return jax.tree.map(flat if num > 1 else lambda x: x.reshape(-1, *x.shape[2:]), data)


def sequences(data: T, length: int) -> T:
    """Arrays `[T, N, ...]` as `[N T / length, length, ...]`: what follows one another in an environment, in pieces."""
    cut = lambda x: split(jnp.swapaxes(x, 0, 1).reshape(-1, length, *x.shape[2:]))
    return jax.tree.map(cut, data)


def check_sequences(num_envs: int, num_steps: int, length: int, num_minibatches: int) -> None:
    """Raises ValueError unless rollouts split into sequences of a length, and these into equal minibatches."""
    if num_steps % length:
        fits = min((n for n in range(1, num_steps + 1) if num_steps % n == 0), key=lambda n: abs(n - length))
        raise ValueError(f"sequence_length = {length} does not divide num_steps = {num_steps}; use {fits}")
    check_divides(num_envs * num_steps // length, num_minibatches, "num_envs * num_steps / sequence_length")


def restarts(done: jax.Array) -> jax.Array:
    """Whether an episode begins with the step, as the step before has ended one, bool `[T, N]`; False for the first."""
    return jnp.roll(done, 1, axis=0).at[0].set(False)


def minibatches(
    key: jax.Array, num_elements: int, num_minibatches: int, num_epochs: int, together: int = 1
) -> jax.Array:
    """Indices of random minibatches for several epochs, int32 `[E, M, B]` with `B = num_elements / M`.

    Every epoch visits every element exactly once, in an order of its own. Over several devices each block of a
    minibatch is of the elements of its device, see `gather`. So many elements next to each other may stay `together`.

    Raises:
        ValueError: when the elements do not split into `num_minibatches` equal parts, on every device.
    """
    if together > 1:
        check_divides(num_elements, num_minibatches * together)
        first = together * minibatches(key, num_elements // together, num_minibatches, num_epochs)
        return (first[..., None] + jnp.arange(together, dtype=jnp.int32)).reshape(num_epochs, num_minibatches, -1)
    check_divides(num_elements, num_minibatches)
    num, size = num_blocks(), blocks(num_elements, "the number of elements")
    check_divides(size, num_minibatches, f"the number of elements / {num} devices")
    orders = split(permutations(key, num * num_epochs, size).reshape(num, num_epochs, num_minibatches, -1))
    orders += size * jnp.arange(num, dtype=jnp.int32)[:, None, None, None]
    return jnp.moveaxis(orders, 0, 2).reshape(num_epochs, num_minibatches, -1)


def gather(data: T, index: jax.Array) -> T:
    """The elements of arrays `[n, ...]` at `index` `[..., B]`.

    Over several devices the last axis of the index has a block for each, which points into the block of the data that
    is there, as `minibatches` and `rlx.replay.sample` have it: nothing moves between devices.
    """
    num, axis = num_blocks(), index.ndim - 1

    def within(x):
        size = x.shape[0] // num
        local = index.reshape(*index.shape[:-1], num, -1) - size * jnp.arange(num)[:, None]
        found = jax.vmap(lambda x, i: x[i], in_axes=(0, axis), out_axes=axis)(x.reshape(num, size, *x.shape[1:]), local)
        return split(found.reshape(*index.shape, *x.shape[1:]), axis)

    return jax.tree.map(within if num > 1 else lambda x: x[index], data)


def permutations(key: jax.Array, num: int, n: int) -> jax.Array:
    """`num` random orders of the integers `0, ..., n - 1`, int32 `[num, n]`.

    Sorts random words. Up to 2^13 elements a word holds its element in its lower bits, which sorts faster on a CPU than
    words and elements in pairs. Elements that draw the same bits keep their order: at most 1 in 60 has such a partner.
    """
    bits = jax.random.bits(key, (num * n,)).reshape(num, n)
    width = (n - 1).bit_length()
    if width > 13:
        return jnp.argsort(bits).astype(jnp.int32)
    words = (bits << width) | jnp.arange(n, dtype=jnp.uint32)
    return (jnp.sort(words) & ((1 << width) - 1)).astype(jnp.int32)


def check_divides(num_elements: int, num_minibatches: int, what: str = "num_envs * num_steps") -> None:
    """Raises ValueError, naming the nearest numbers that fit, unless the elements split into equal minibatches.

    `what` is how the settings make the number of elements.
    """
    if num_elements % num_minibatches:
        fits = [m for m in range(1, num_elements + 1) if num_elements % m == 0]
        near = [max(m for m in fits if m < num_minibatches), *(m for m in fits if m > num_minibatches)][:2]
        raise ValueError(
            f"{what} = {num_elements} is not a multiple of num_minibatches = {num_minibatches}; "
            f"use {' or '.join(map(str, near))}"
        )


def episode_metrics(traj: Transition) -> dict[str, jax.Array]:
    """Mean return and length of the whole episodes that ended within `traj` `[T, N]`, and how many did.

    The means are 0 where none ended: they mean something only where `num_episodes` is above 0, and means over updates
    are weighted by it. Returns are sums of raw rewards. Episodes that diverged have no return: they are counted in
    `num_diverged` and nowhere else. Where there are masks of legal actions, `num_unmasked` counts the steps in which
    nothing was legal, where policies choose among all actions. Where there are several agents, the return is a mean
    over them, and an episode counts once.

    What the environment reports, as `rlx.env.reports` has it, is `episode_NAME` each, a mean over the same episodes. An
    episode that reported a number that is not finite is left out of that mean, which is NaN where no other ended.
    """
    whole = traj.done & ~traj.diverged
    num_episodes = whole.sum()
    mean = lambda x: jnp.where(whole, x, 0).sum() / jnp.maximum(num_episodes, 1).astype(jnp.float32)
    once = lambda num: num if traj.num_agents == 1 else num // traj.num_agents
    unmasked = {} if mask_of(traj.obs) is None else {"num_unmasked": num_unmasked(traj.obs)}
    return {
        **{f"episode_{name}": _mean_of_finite(x, whole) for name, x in traj.reported.items()},
        "episode_return": mean(traj.episode_return),
        "episode_length": mean(traj.episode_length),
        "num_episodes": once(num_episodes),
        "num_diverged": once(traj.diverged.sum()),
        **unmasked,
    }


def no_episodes() -> dict[str, jax.Array]:
    """The metrics of episodes of an update that plays none: all 0, as `episode_metrics` has them then."""
    zero = jnp.float32(0)
    none = jnp.int32(0)
    return {"episode_return": zero, "episode_length": zero, "num_episodes": none, "num_diverged": none}


def _mean_of_finite(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """The mean of the finite ones of those chosen: NaN where none of them is finite, 0 where none is chosen."""
    finite = chosen & jnp.isfinite(x)
    total = jnp.where(finite, x, 0).sum()
    return jnp.where(chosen.any() & ~finite.any(), jnp.nan, total / jnp.maximum(finite.sum(), 1).astype(jnp.float32))


__all__ = [
    "check_divides",
    "check_horizon",
    "check_sequences",
    "episode_metrics",
    "episodes",
    "flatten",
    "gather",
    "minibatches",
    "no_episodes",
    "permutations",
    "reset",
    "restarts",
    "rollout",
    "sequences",
]
