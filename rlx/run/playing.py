"""Evaluations, wherever the environment steps: whole episodes of a policy, as `rlx.evaluate` plays them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.hosted import Fault, host_of, is_hosted
from rlx.policy import acting
from rlx.replay import without_replay
from rlx.run.blocks import Block
from rlx.run.watching import LIMIT, Watched
from rlx.spaces import zeros
from rlx.train import EVALUATION, MAX_STEPS, Current, Episodes, check_arguments, now
from rlx.train import evaluate as evaluate_compiled

AT_ONCE = 32  # environments on the host in which episodes are played


def evaluate(
    algorithm: Any,
    config: Any,
    env: Env,
    state: Any,
    key: jax.Array,
    num_episodes: int = 32,
    deterministic: bool = True,
    limit: float = LIMIT,
) -> Episodes:
    """Plays `num_episodes` episodes from fresh starts, each once and to its end, also in an environment on the host.

    There the episodes are numpy arrays `[E]`. Which of its environments plays which of them is fixed beforehand, so
    that long episodes count as much as short ones. `limit` is in seconds, of one of its calls.

    Raises:
        ValueError: as `rlx.evaluate`.
        Fault: where an environment on the host fails.
    """
    if not is_hosted(env):
        return evaluate_compiled(algorithm, config, env, state, key, num_episodes, deterministic)
    check_arguments("act", algorithm, config, env, key)
    if not isinstance(num_episodes, int | np.integer) or num_episodes < 1:
        raise ValueError(f"num_episodes = {num_episodes}: give a whole number of at least 1")
    start_key, steps_key = jax.random.split(jax.random.fold_in(key, EVALUATION))
    seed = int(jax.random.key_data(start_key).ravel()[-1]) >> 1  # 31 bits, which every library takes
    decide = partial(_decided, Current(algorithm, env), config, env, without_replay(state), steps_key, deterministic)
    precision: Any = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue] (JAX)
    watched, blocks = Watched(limit), []
    try:
        return watched.call(_within, precision, _played, decide, env, watched, blocks, seed, num_episodes)
    except Fault as fault:
        raise Fault(f"{host_of(env).name}: {fault}, in an evaluation") from fault.__cause__
    finally:
        for block in blocks:
            block.vector.close()
        watched.close()


def _within(precision: str | None, function: Callable, *args: Any) -> Any:
    """The function's result with this precision of products: a thread does not have that of the one that began it."""
    with jax.default_matmul_precision(precision):
        return function(*args)


@partial(jax.jit, static_argnums=(0, 5))
def _decided(algorithm, config, env, state, key, deterministic, time, obs, began, memory):
    """Actions of a policy, and what it remembers after them; without a memory it begins with one."""
    policy, start = acting(algorithm, now(config, state), env, state, deterministic)
    fresh = start(began.shape[0])
    anew = lambda empty, before: jax.vmap(jnp.where)(began, empty, before)
    memory = fresh if memory is None else jax.tree.map(anew, fresh, memory)
    action, _, memory = policy(obs, jax.random.fold_in(key, time), memory)
    return action, memory


def _played(decide: Any, env: Env, watched: Watched, blocks: list[Block], seed: int, num_episodes: int) -> Episodes:
    """The episodes; in the thread."""
    host, num = host_of(env), min(num_episodes, AT_ONCE)
    blocks.append(block := Block(host, host.opened_to_play(num, 0), 0, watched))
    block.reset(seed)
    structure = jax.tree.structure(zeros(env.observation_space))
    turn, where, memory = np.zeros(num, int), np.arange(num), None  # environment i plays episodes i, i + num, ...
    found = {"returns": np.zeros(num_episodes, np.float32), "lengths": np.zeros(num_episodes, np.int32)}
    found |= {"finished": np.zeros(num_episodes, bool), "diverged": np.zeros(num_episodes, bool)}
    reported: Any = {name: np.zeros(num_episodes, np.float32) for name in host.reported}
    time = 0
    while (playing := turn * num + where < num_episodes).any():
        obs = jax.tree.unflatten(structure, block.obs)
        action, memory = decide(np.int32(time), obs, block.began, memory)
        block.send(action)
        step = block.receive()
        ended, late = step.terminated | step.truncated, block.length >= MAX_STEPS
        chosen = np.flatnonzero((ended | late) & playing & (True if step.valid is None else step.valid))
        at = turn[chosen] * num + chosen
        found["returns"][at], found["lengths"][at] = block.total[chosen], block.length[chosen]
        found["finished"][at] = ended[chosen]
        for name, values in reported.items():
            values[at] = block.reported[name][chosen]
        turn[chosen] += 1
        block.settle(step)
        time += 1
    return Episodes(**found, reported=reported)


__all__ = ["evaluate"]
