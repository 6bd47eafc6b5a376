"""Experience: starting environments, rolling a policy out, cutting what came of it into minibatches."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import jax
import jax.numpy as jnp

from rlx.env import Env, EnvState, Transition

T = TypeVar("T")


def reset(env: Env, key: jax.Array, num_envs: int) -> EnvState:
    """`num_envs` independent fresh starts, leaves `[N, ...]`."""
    return jax.vmap(env.reset)(jax.random.split(key, num_envs))


def rollout(
    env: Env, policy: Callable, env_state: EnvState, key: jax.Array, num_steps: int
) -> tuple[EnvState, Transition]:
    """Steps `N` environments `num_steps` times with `policy(obs [N, ...], key) -> action [N, ...], recorded`.

    Returns the environment states to go on from and the transitions, time-major `[T, N, ...]`, with what the
    policy recorded under `.recorded`. Episodes that end are restarted.
    """
    act_key, env_key, starts_key, choice_key = jax.random.split(key, 4)
    num_envs = env_state.time.shape[0]
    starts = reset(env, starts_key, env.num_starts)
    choice = jax.random.randint(choice_key, (num_steps, num_envs), 0, env.num_starts)

    def step(env_state, x):
        act_key, env_keys, choice = x
        action, recorded = policy(env_state.obs, act_key)
        start = jax.tree.map(lambda leaf: leaf[choice], starts)
        env_state, transition = jax.vmap(env.step)(env_keys, env_state, action, start)
        return env_state, replace(transition, recorded=recorded)

    # All keys and choices at once, outside of the loop: small random draws are what a step would wait for.
    act_keys, env_keys = jax.random.split(act_key, num_steps), jax.random.split(env_key, (num_steps, num_envs))
    return jax.lax.scan(step, env_state, (act_keys, env_keys, choice))


def minibatches(key: jax.Array, data: T, num_minibatches: int) -> T:
    """The elements of `data` `[T, N, ...]` in random order, as minibatches `[M, T * N / M, ...]`.

    Each element comes exactly once.

    Raises:
        ValueError: when `T * N` is not a multiple of `num_minibatches`.
    """
    num_steps, num_envs = jax.tree.leaves(data)[0].shape[:2]
    check_divides(num_steps, num_envs, num_minibatches)
    order = jax.random.permutation(key, num_steps * num_envs).reshape(num_minibatches, -1)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[order], data)


def check_divides(num_steps: int, num_envs: int, num_minibatches: int) -> None:
    """Raises ValueError, naming the nearest numbers that fit, unless `T * N` splits into equal minibatches."""
    total = num_steps * num_envs
    if total % num_minibatches:
        fits = [m for m in range(1, total + 1) if total % m == 0]
        near = {max(m for m in fits if m < num_minibatches), min([m for m in fits if m > num_minibatches] or [total])}
        raise ValueError(
            f"num_envs * num_steps = {total} is not a multiple of num_minibatches = {num_minibatches}; "
            f"use {' or '.join(map(str, sorted(near)))}"
        )


def episode_metrics(traj: Transition) -> dict[str, jax.Array]:
    """Mean return and length of the episodes that ended within `traj` `[T, N]`, and how many did.

    The means are NaN where none ended. Returns are sums of raw rewards over whole episodes.
    """
    done = traj.done
    num_episodes = done.sum()
    mean = lambda x: jnp.where(done, x, 0).sum() / num_episodes.astype(jnp.float32)  # 0 / 0 is the NaN
    return {
        "episode_return": mean(traj.episode_return),
        "episode_length": mean(traj.episode_length),
        "num_episodes": num_episodes,
    }


__all__ = ["check_divides", "episode_metrics", "minibatches", "reset", "rollout"]
