"""Sequences of tokens: what an environment of them has, solved problems, and how a policy writes them.

An environment of tokens has observations `Discrete(n, shape=(L,))`: a prompt, and after it what has been written so
far; 0 stands for nothing. Action `a` writes token `a + 1`. It has names beside those of `rlx.env.Environment`:

- `prompt_size`, the place where writing begins, at least 1.
- `solved(key, params) -> tokens [L]`, the last observation of an episode that solves a random problem, where there is
  something to be taught from.
- `right_answer(state, params) -> tokens [A]` of a start, where parts of it may be given.
- `reply_size`, where the environment answers: it writes as many tokens behind each one that the policy writes.

Axes: B batch, N groups, G members of a group, T tokens of an answer, A of a right one, L places of a sequence.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.branching import writers
from rlx.distributions import Categorical
from rlx.env import Env, EnvState
from rlx.networks import Cache, Transformer
from rlx.pool import Pool
from rlx.pytree import pytree
from rlx.rollout import episodes
from rlx.spaces import Discrete, check_spaces

CHUNK = 10  # gradient steps between two looks at what has been learned


def check_tokens(env: Env, num_steps: int, taught: bool = False, given: bool = False) -> None:
    """Raises ValueError for an environment that is not one of tokens, or has no room for answers of `num_steps`.

    And where a policy is to be `taught`, for one without solved problems; where it is to be `given` parts of answers,
    for one that has none.
    """
    seen, written = env.observation_space, env.action_space
    sizes = getattr(env.environment, "prompt_size", 0), getattr(seen, "n", 0), getattr(written, "n", 0)
    if not all(sizes) or len(seen.shape) != 1 or sizes[1] != sizes[2] + 1:
        raise ValueError(
            "this policy writes tokens, and the environment is not one of tokens: use one like rlx/Reverse, or an "
            "algorithm like ppo or grpo"
        )
    check_spaces(env, actions=Discrete)
    if num_steps > (most := room(env)):
        raise ValueError(f"num_steps = {num_steps}: there is room for {most} tokens; use at most num_steps = {most}")
    if given and not hasattr(env.environment, "right_answer"):
        raise ValueError("the environment has no right_answer(state, params) to give a part of: set given = 0")
    if taught and not hasattr(env.environment, "solved"):
        raise ValueError("the environment has no solved(key, params) to be taught from: set warm_start_steps = 0")


def stride(env: Env) -> int:
    """Places from one token that the policy writes to the next: 1, and the environment's reply between them."""
    return 1 + getattr(env.environment, "reply_size", 0)


def room(env: Env) -> int:
    """How many tokens an answer may have."""
    environment: Any = env.environment
    return (env.observation_space.shape[0] - environment.prompt_size) // stride(env)


def written(env: Env, tokens: jax.Array, num_steps: int) -> jax.Array:
    """What the policy wrote in whole sequences `[..., L]`: tokens `[..., T]`, 0 where it wrote nothing."""
    environment: Any = env.environment  # one of tokens, which has more names
    return tokens[..., environment.prompt_size :: stride(env)][..., :num_steps]


def read(network: Any, params: dict, env: Env, tokens: jax.Array, num_steps: int, copies: int = 1) -> Categorical:
    """The policy at every token of the answers, `[B, T]`, of whole sequences `[B, L]`, which are read at once.

    Where so many `copies` next to each other have the same prompt, as in a group, it is read once for them.
    """
    environment: Any = env.environment
    first = environment.prompt_size - 1
    # Where a prompt is shared the last token is read, too: on a CPU 33 rows take 0.7 of the time of 32, as measured.
    num_read = num_steps if copies > 1 else num_steps - 1
    seen = tokens[:, : first + 1 + num_read * stride(env)]
    logits, _ = network.apply(params, seen, first=first, copies=copies)
    return Categorical(logits[:, :: stride(env)][:, :num_steps])


def read_last(network: Any, params: dict, env: Env, tokens: jax.Array) -> Categorical:
    """The policy at the token that comes next, `[B]`, of sequences `[B, L]`, all of which is read."""
    num_written = (written(env, tokens, room(env)) > 0).sum(axis=-1)
    logits = read(network, params, env, tokens, room(env)).logits
    return Categorical(jnp.take_along_axis(logits, num_written[:, None, None], axis=1, mode="clip")[:, 0])


@pytree
class Written:
    """What a loss needs of the moment of writing a token."""

    action: jax.Array
    log_prob: jax.Array


def write(
    network: Any,
    params: dict,
    env: Env,
    start: EnvState,
    key: jax.Array,
    num_steps: int,
    given: jax.Array | None = None,
    copies: int = 1,
    branches: tuple[int, ...] = (),
) -> tuple[EnvState, Any, jax.Array]:
    """Plays answers from start states `[B]`; a cache keeps what has been read. Returns as `rlx.rollout.episodes` does.

    Args:
        network: a `Transformer`.
        params: its parameters.
        env: an environment of tokens.
        start: the states.
        key: of the tokens that are drawn.
        num_steps: T.
        given: tokens `[B, T]` that are written whatever the policy says, 0 where it is free. Their log-probabilities
            are the policy's.
        copies: states next to each other that begin with the same prompt, as in a group: it is read once for them.
        branches: of groups whose answers are a tree, see `rlx.branching`.
    """
    environment: Any = env.environment
    last, step = environment.prompt_size - 1, stride(env)
    shared, prompt = max(last - step + 1, 0), None  # the others are read when the first of the answer is written
    if shared:
        empty = network.cache(len(start.obs) // copies, shared)
        _, prompt = network.apply(params, start.obs[::copies, :shared], empty, 0)
    cache = network.cache(len(start.obs), network.num_places - shared, prompt)
    writer = jnp.asarray(writers(branches, num_steps)) if branches else None

    def policy(obs, key, memory):
        cache, place = memory
        begin = place if step == 1 else jnp.maximum(place - step + 1, 0)
        tokens = jax.lax.dynamic_slice_in_dim(obs, begin, step, axis=1)
        logits, cache = network.apply(params, tokens, cache, begin)
        pi = Categorical(jax.lax.dynamic_index_in_dim(logits, place - begin, axis=1, keepdims=False))
        action = pi.sample(key)
        if given is not None:
            forced = jax.lax.dynamic_index_in_dim(given, (place - last) // step, axis=1, keepdims=False)
            action = jnp.where(forced > 0, forced - 1, action)
        if writer is not None:
            action = action.reshape(-1, copies)[:, writer[(place - last) // step]].reshape(action.shape)
        return action, Written(action, pi.log_prob(action)), (cache, place + step)

    return episodes(env, policy, start, key, num_steps, memory=(cache, last))


def hints(config: Any, env: Env, start: EnvState, pool: Pool | None, index: jax.Array | None) -> jax.Array:
    """Tokens of right answers for `write` to be given, `[N * G, T]`, 0 where the policy is free.

    A group is given the first `given` tokens, all of its members the same, or, where it is `graded`, `(1 - p) given` of
    them, with the share p of answers to the problem that were right. Groups from a share `given_share` on get nothing.

    Args:
        config: with `given`, `given_share`, `graded`, `num_groups`, `group_size` and `num_steps`.
        env: an environment of tokens with `right_answer(state, params) -> tokens [A]`.
        start: states `[N * G]` in which nothing is written yet.
        pool: of problems, where it is graded.
        index: which of them the groups answer, `[N]`.

    Source: POPE, arXiv:2601.18779, for parts of answers to some groups; the sizes by rate are ours.
    """
    environment: Any = env.environment
    answer = jax.vmap(environment.right_answer, (0, None))(start.state, env.params)[:, : config.num_steps]
    some = jnp.arange(config.num_groups) < config.given_share * config.num_groups
    rate = pool.rate[index] if config.graded and pool is not None else 0.0
    size = jnp.repeat(jnp.where(some, jnp.round(config.given * (1.0 - rate)), 0), config.group_size)
    return jnp.where(jnp.arange(config.num_steps) < size[:, None], answer, 0)


def examples(env: Env, key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Solved problems: whole sequences `[num, L]`, and of these the answers `[num, T]`, as long as there is room."""
    environment: Any = env.environment
    tokens = jax.vmap(environment.solved, (0, None))(jax.random.split(key, num), env.params)
    return tokens, written(env, tokens, room(env))


def warm_start(
    network: Any, params: dict, env: Env, key: jax.Array, optimizer: optax.GradientTransformation, config: Any
) -> dict:
    """Params that were taught on solved problems, and as they are where the Config asks for no warm start.

    The gradient steps, of the mean log-likelihood of answers, end when the probability of whole answers is
    `warm_start_accuracy` on average over 512 fresh problems.

    Args:
        network: a `Transformer`.
        params: its first parameters.
        env: an environment of tokens with `solved`.
        key: of the problems and of the minibatches.
        optimizer: of the params.
        config: with the fields `warm_start_examples`, `_batch`, `_steps` and `_accuracy`.
    """
    if not (config.warm_start_examples and config.warm_start_steps):
        return params
    pool_key, fresh_key, teach_key = jax.random.split(key, 3)
    pool, fresh = (examples(env, key, num) for key, num in ((pool_key, config.warm_start_examples), (fresh_key, 512)))

    def log_prob(params, tokens, answer):
        pi = read(network, params, env, tokens, room(env))
        return jnp.where(answer > 0, pi.log_prob(answer - 1), 0.0).sum(axis=-1)

    loss = lambda params, *batch: -log_prob(params, *batch).mean()
    learned = lambda params: jnp.exp(log_prob(params, *fresh)).mean() >= config.warm_start_accuracy
    sizes = {"batch_size": config.warm_start_batch, "max_steps": config.warm_start_steps}
    return teach(loss, learned, params, optimizer, pool, teach_key, **sizes)


def teach(
    loss: Callable,
    learned: Callable,
    params: Any,
    optimizer: optax.GradientTransformation,
    examples: tuple,
    key: jax.Array,
    *,
    batch_size: int,
    max_steps: int,
) -> Any:
    """Params after gradient steps on examples, until they have learned.

    Args:
        loss: `loss(params, *batch) -> scalar`.
        learned: `learned(params) -> bool`, asked before the first step and after every 10.
        params: to begin with.
        optimizer: of the params.
        examples: arrays `[num, ...]`, of which every step gets `batch_size` at random.
        key: of that choice.
        batch_size: examples of a step.
        max_steps: gradient steps after which it ends in any case, rounded up to tens.
    """

    def step(carry, key):
        params, opt_state = carry
        chosen = jax.random.randint(key, (batch_size,), 0, len(examples[0]))
        grads = jax.grad(loss)(params, *(x[chosen] for x in examples))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def some(carry):
        learner, num = carry
        keys = jax.random.split(jax.random.fold_in(key, num), CHUNK)
        return jax.lax.scan(step, learner, keys)[0], num + CHUNK

    more = lambda carry: (carry[1] < max_steps) & jnp.logical_not(learned(carry[0][0]))
    return jax.lax.while_loop(more, some, ((params, optimizer.init(params)), jnp.int32(0)))[0][0]


__all__ = [
    "Cache",
    "Transformer",
    "Written",
    "check_tokens",
    "examples",
    "hints",
    "read",
    "read_last",
    "room",
    "stride",
    "teach",
]
__all__ += ["warm_start", "write", "written"]
