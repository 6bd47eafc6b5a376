"""Sequences of tokens: what an environment of them has, solved problems, and a transformer that writes.

An environment of tokens has observations `Discrete(n, shape=(L,))`: a prompt, and after it what has been written so
far; 0 stands for nothing. Action `a` writes token `a + 1`. It has two names beside those of `rlx.env.Environment`:
`prompt_size`, the place where writing begins, at least 1, and, where there is something to be taught from,
`solved(key, params) -> tokens [L]`, the last observation of an episode that solves a random problem.

Axes: B batch, S tokens that are read, L places of a sequence, H heads, D numbers of a head, V outputs.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rlx.env import Env
from rlx.networks import Module
from rlx.pytree import pytree
from rlx.spaces import Discrete, check_spaces

CHUNK = 10  # gradient steps between two looks at what has been learned


def check_tokens(env: Env, num_steps: int, taught: bool = False) -> None:
    """Raises ValueError for an environment that is not one of tokens, or has no room for answers of `num_steps`.

    And where a policy is to be `taught`, for one without solved problems.
    """
    seen, written = env.observation_space, env.action_space
    sizes = getattr(env.environment, "prompt_size", 0), getattr(seen, "n", 0), getattr(written, "n", 0)
    if not all(sizes) or len(seen.shape) != 1 or sizes[1] != sizes[2] + 1:
        raise ValueError(
            "this policy writes tokens, and the environment is not one of tokens: use one like rlx/Reverse, or an "
            "algorithm like ppo or grpo"
        )
    check_spaces(env, actions=Discrete)
    if num_steps > (room := seen.shape[0] - sizes[0]):
        raise ValueError(f"num_steps = {num_steps}: there is room for {room} tokens; use at most num_steps = {room}")
    if taught and not hasattr(env.environment, "solved"):
        raise ValueError("the environment has no solved(key, params) to be taught from: set warm_start_steps = 0")


def examples(env: Env, key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Solved problems: whole sequences `[num, L]`, and of these the answers `[num, L - P]`."""
    environment: Any = env.environment  # one of tokens, which has more names
    tokens = jax.vmap(environment.solved, (0, None))(jax.random.split(key, num), env.params)
    return tokens, tokens[:, environment.prompt_size :]


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
    """Keys and values of the tokens read so far: of each layer `[B, L, H, D]`, apart, so that loops write in place."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


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
        empty = jnp.zeros((batch_size, self.num_places, self.num_heads, self.width // self.num_heads))
        return Cache(*[(empty,) * self.num_layers] * 2)

    @nn.compact
    def __call__(self, tokens: jax.Array, cache: Cache, start: jax.Array) -> tuple[jax.Array, Cache]:
        """Reads tokens `[B, S]`, which are at the places `start, ..., start + S - 1`, after those in the cache.

        Returns logits `[B, S, V]` and the cache with these tokens. With an empty cache and `start` 0 that is the whole
        sequence at once.

        Raises:
            ValueError: when `num_heads` does not divide `width`.
        """
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} is not a multiple of num_heads = {self.num_heads}")
        normal = nn.initializers.normal(0.02)
        into_residual = nn.initializers.normal(0.02 / (2 * self.num_layers) ** 0.5)
        batch_size, num_tokens = tokens.shape
        place = start + jnp.arange(num_tokens)
        visible = jnp.arange(self.num_places) <= place[:, None]
        x = nn.Embed(self.vocabulary, self.width, embedding_init=normal, name="tokens")(tokens)
        x += nn.Embed(self.num_places, self.width, embedding_init=normal, name="places")(place)
        new = []
        for layer in range(self.num_layers):
            heads = nn.Dense(3 * self.width, kernel_init=normal, name=f"heads_{layer}")(nn.LayerNorm()(x))
            query, *own = jnp.split(heads.reshape(batch_size, num_tokens, 3 * self.num_heads, -1), 3, axis=2)
            known = (cache.keys[layer], cache.values[layer])
            kept = [jax.lax.dynamic_update_slice(old, x, (0, start, 0, 0)) for old, x in zip(known, own, strict=True)]
            seen = jax.nn.dot_product_attention(query, *kept, mask=visible[None, None])
            x += nn.Dense(self.width, kernel_init=into_residual, name=f"seen_{layer}")(seen.reshape(x.shape))
            hidden = nn.Dense(4 * self.width, kernel_init=normal, name=f"hidden_{layer}")(nn.LayerNorm()(x))
            x += nn.Dense(self.width, kernel_init=into_residual, name=f"out_{layer}")(jax.nn.gelu(hidden))
            new.append(kept)
        logits = nn.Dense(self.num_outputs, kernel_init=normal, name="head")(nn.LayerNorm()(x))
        return logits, Cache(*zip(*new, strict=True))


__all__ = ["Cache", "Transformer", "check_tokens", "examples", "teach"]
