"""Sequences of tokens: what an environment of them has, solved problems, and a transformer that writes.

An environment of tokens has observations `Discrete(n, shape=(L,))`: a prompt, and after it what has been written so
far; 0 stands for nothing. Action `a` writes token `a + 1`. It has names beside those of `rlx.env.Environment`:

- `prompt_size`, the place where writing begins, at least 1.
- `solved(key, params) -> tokens [L]`, the last observation of an episode that solves a random problem, where there is
  something to be taught from.
- `right_answer(state, params) -> tokens [A]` of a start, where parts of it may be given.
- `reply_size`, where the environment answers: it writes as many tokens behind each one that the policy writes.

Axes: B batch, T tokens of an answer, S tokens that are read, L places of a sequence, H heads, D numbers of a head, V
outputs.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rlx.distributions import Categorical
from rlx.env import Env, EnvState
from rlx.networks import Module
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


def read(network: Any, params: dict, env: Env, tokens: jax.Array, num_steps: int) -> Categorical:
    """The policy at every token of the answers, `[B, T]`, of whole sequences `[B, L]`, which are read at once."""
    environment: Any = env.environment
    first = environment.prompt_size - 1
    seen = tokens[:, : first + 1 + (num_steps - 1) * stride(env)]
    logits, _ = network.apply(params, seen, first=first)
    return Categorical(logits[:, :: stride(env)])


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
    """
    environment: Any = env.environment
    last, step = environment.prompt_size - 1, stride(env)
    cache = network.cache(len(start.obs) // copies)
    if last:  # all of the prompt but its last token, which is read when the first of the answer is written
        _, cache = network.apply(params, start.obs[::copies, :last], cache, 0)
    cache = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=-1), cache)

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


@pytree
class Cache:
    """Keys and values of the tokens read so far: of each layer `[L, H, D, B]`, apart, so that loops write in place.

    Sequences are the last axis, and so next to each other in memory: on a CPU one more token is looked up in a third of
    the time.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def batch_last(x: jax.Array) -> jax.Array:
    """`[B, ...]` as `[..., B]`."""
    return jnp.moveaxis(x, 0, -1)


def looked_up(query: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of a few tokens to a cache, `softmax(q k / sqrt(D)) v` over visible places, `[S, H, D, B]`.

    Args:
        query: `[S, H, D, B]`.
        keys: `[L, H, D, B]`.
        values: likewise.
        visible: bool `[S, L]`.
    """
    few = query.shape[2] ** -0.5 * query
    scores = jnp.stack([(one * keys).sum(axis=2) for one in few])  # [S, L, H, B]
    weights = jax.nn.softmax(jnp.where(visible[:, :, None, None], scores, -jnp.inf), axis=1)
    return jnp.stack([(one[:, :, None] * values).sum(axis=0) for one in weights])


def attended(query: jax.Array, key: jax.Array, value: jax.Array, begin: int = 0, size: int = 32) -> jax.Array:
    """Attention of tokens to themselves and those before them, `softmax(q k / sqrt(D)) v`: `[B, S - begin, H, D]`.

    It is done for `size` tokens at a time, so that little is computed that a mask takes away.

    Args:
        query: `[B, S - begin, H, D]`, of the tokens from `begin` on.
        key: `[B, S, H, D]`.
        value: likewise.
        begin: the first token that asks.
        size: of a piece.
    """
    found = []
    for at in range(begin, key.shape[1], size):
        end = min(at + size, key.shape[1])
        mask = jnp.arange(end) <= jnp.arange(at, end)[:, None]
        piece = query[:, at - begin : end - begin]
        found.append(jax.nn.dot_product_attention(piece, key[:, :end], value[:, :end], mask=mask))
    return jnp.concatenate(found, axis=1)


class Transformer(Module):
    """Logits of the token that follows each place, from it and those before it.

    Layer norm comes before attention and before the perceptron of every layer, and once more at the end; places have
    learned embeddings. Weights are normal with a standard deviation of 0.02, over `sqrt(2 layers)` where they write
    into the residual stream.

    Source: Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019, Language models are unsupervised multitask
    learners, section 2.3 (where the norms are and how weights start).
    """

    vocabulary: int  # tokens that are read
    num_places: int  # L, the longest sequence
    num_outputs: int  # V, of a token to write
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4

    def cache(self, batch_size: int) -> Cache:
        """Room for sequences of which nothing is read yet."""
        empty = jnp.zeros((self.num_places, self.num_heads, self.width // self.num_heads, batch_size))
        return Cache(*[(empty,) * self.num_layers] * 2)

    @nn.compact
    def __call__(
        self, tokens: jax.Array, cache: Cache | None = None, start: jax.Array | int = 0, first: int = 0
    ) -> tuple[jax.Array, Cache | None]:
        """Reads tokens `[B, S]`, which are at the places `start, ..., start + S - 1`, after those in the cache.

        Returns logits `[B, S - first, V]` and the cache with these tokens. Without a cache the tokens are the whole
        sequence. Tokens before `first` have no logits, and the last layer is spared the work for them.

        Raises:
            ValueError: when `num_heads` does not divide `width`.
        """
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} is not a multiple of num_heads = {self.num_heads}")
        normal = nn.initializers.normal(0.02)
        into_residual = nn.initializers.normal(0.02 / (2 * self.num_layers) ** 0.5)
        batch_size, num_tokens = tokens.shape
        place = start + jnp.arange(num_tokens)
        x = nn.Embed(self.vocabulary, self.width, embedding_init=normal, name="tokens")(tokens)
        x += nn.Embed(self.num_places, self.width, embedding_init=normal, name="places")(place)
        new = []
        for layer in range(self.num_layers):
            heads = nn.Dense(3 * self.width, kernel_init=normal, name=f"heads_{layer}")(nn.LayerNorm()(x))
            query, *own = jnp.split(heads.reshape(batch_size, num_tokens, 3 * self.num_heads, -1), 3, axis=2)
            asked = first if layer == self.num_layers - 1 else 0
            query, x = query[:, asked:], x[:, asked:]
            if cache is not None:
                known = zip((cache.keys[layer], cache.values[layer]), map(batch_last, own), strict=True)
                new.append([jax.lax.dynamic_update_slice(old, kept, (start, 0, 0, 0)) for old, kept in known])
            if isinstance(start, int) and start == 0:  # nothing was read before
                seen = attended(query, own[0], own[1], asked)
            else:
                visible = jnp.arange(self.num_places) <= place[asked:, None]
                seen = jnp.moveaxis(looked_up(batch_last(query), new[-1][0], new[-1][1], visible), -1, 0)
            x += nn.Dense(self.width, kernel_init=into_residual, name=f"seen_{layer}")(seen.reshape(x.shape))
            hidden = nn.Dense(4 * self.width, kernel_init=normal, name=f"hidden_{layer}")(nn.LayerNorm()(x))
            x += nn.Dense(self.width, kernel_init=into_residual, name=f"out_{layer}")(jax.nn.gelu(hidden))
        logits = nn.Dense(self.num_outputs, kernel_init=normal, name="head")(nn.LayerNorm()(x))
        return logits, None if cache is None else Cache(*zip(*new, strict=True))


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
