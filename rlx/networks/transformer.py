"""A transformer that writes, and the cache of what it has read.

Axes: B batch, S tokens that are read, L places of a sequence, H heads, D numbers of a head, W width, V outputs.
"""

from collections.abc import Callable
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlx.networks.torso import Module
from rlx.pytree import pytree

SMALL = nn.initializers.normal(0.02)


@pytree
class Cache:
    """Keys and values of the tokens read so far: of each layer `[L, H, D, B]`, apart, so that loops write in place.

    Sequences are the last axis, and so next to each other in memory: on a CPU one more token is looked up in a third of
    the time. The prompt of a group may be a cache of its own, `[P, H, D, N]` for N groups, which is only looked into:
    then it is not repeated for the B / N members, which are next to each other.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    prompt: "Cache | None" = None

    @property
    def num_shared(self) -> int:
        """P, places of the prompt that is a cache of its own."""
        return 0 if self.prompt is None else len(self.prompt.keys[0])

    def known(self, layer: int) -> list[tuple[jax.Array, jax.Array]]:
        """Keys and values of a layer, those of the prompt first."""
        own = (self.keys[layer], self.values[layer])
        return [own] if self.prompt is None else [*self.prompt.known(layer), own]


def batch_last(x: jax.Array) -> jax.Array:
    """`[B, ...]` as `[..., B]`."""
    return jnp.moveaxis(x, 0, -1)


def looked_up(query: jax.Array, known: list[tuple[jax.Array, jax.Array]], visible: jax.Array) -> jax.Array:
    """Attention of a few tokens to what is known, `softmax(q k / sqrt(D)) v` over visible places, `[S, H, D, B]`.

    Args:
        query: `[S, H, D, B]`.
        known: keys and values `[P, H, D, N]` of the places one after another; B / N next to each other have the same.
        visible: bool `[S, L]`, of all these places.
    """
    num_tokens, num_heads, depth, batch_size = query.shape
    few = depth**-0.5 * query
    grouped = lambda x, like: x.reshape(*x.shape[:-1], like.shape[-1], -1)  # [..., N, B / N]
    products = lambda keys: jnp.stack([(grouped(one, keys) * keys[..., None]).sum(axis=2) for one in few])
    scores = [products(keys).reshape(num_tokens, len(keys), num_heads, batch_size) for keys, _ in known]
    seen = jnp.where(visible[:, :, None, None], jnp.concatenate(scores, axis=1), -jnp.inf)  # [S, L, H, B]
    weights = jnp.split(jax.nn.softmax(seen, axis=1), np.cumsum([len(keys) for keys, _ in known])[:-1], axis=1)
    means = lambda part, values: jnp.stack([(grouped(w[:, :, None], values) * values[..., None]).sum(0) for w in part])
    parts = [means(part, values).reshape(query.shape) for part, (_, values) in zip(weights, known, strict=True)]
    return reduce(jnp.add, parts)


def attended(query: jax.Array, key: jax.Array, value: jax.Array, begin: int = 0, size: int = 32) -> jax.Array:
    """Attention of tokens to themselves and those before them, `softmax(q k / sqrt(D)) v`: `[B, S - begin, H, D]`.

    It is done for about `size` tokens at a time, so that little is computed that a mask takes away.

    Args:
        query: `[B, S - begin, H, D]`, of the tokens from `begin` on.
        key: `[B, S, H, D]`.
        value: likewise.
        begin: the first token that asks.
        size: of a piece, all of which are about as long.
    """
    found, num_asked = [], key.shape[1] - begin
    length = -(-num_asked // max(1, round(num_asked / size)))
    for at in range(begin, key.shape[1], length):
        end = min(at + length, key.shape[1])
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

    def cache(self, batch_size: int, num_places: int | None = None, prompt: Cache | None = None) -> Cache:
        """Room for sequences of which nothing but a `prompt` is read yet, of `num_places`, or of the longest."""
        room = self.num_places if num_places is None else num_places
        empty = jnp.zeros((room, self.num_heads, self.width // self.num_heads, batch_size))
        return Cache((empty,) * self.num_layers, (empty,) * self.num_layers, prompt)

    @nn.nowrap
    def layer(self, number: int) -> tuple[Callable, Callable]:
        """Of tokens `[B, S, W]`: query, keys and values; what comes of the tokens and of what they attended to."""
        into_residual = nn.initializers.normal(0.02 / (2 * self.num_layers) ** 0.5)
        dense = lambda name, size, init=SMALL: nn.Dense(size, kernel_init=init, name=f"{name}_{number}")
        norm, heads, seen_by = nn.LayerNorm(), dense("heads", 3 * self.width), dense("seen", self.width, into_residual)
        norm_after, hidden = nn.LayerNorm(), dense("hidden", 4 * self.width)
        out = dense("out", self.width, into_residual)

        def asks(x):
            return jnp.split(heads(norm(x)).reshape(*x.shape[:2], 3 * self.num_heads, -1), 3, axis=2)

        def follows(x, seen):
            x += seen_by(seen.reshape(x.shape))
            return x + out(jax.nn.gelu(hidden(norm_after(x))))

        return asks, follows

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        cache: Cache | None = None,
        start: jax.Array | int = 0,
        first: int = 0,
        copies: int = 1,
    ) -> tuple[jax.Array, Cache | None]:
        """Reads tokens `[B, S]`, which are at the places `start, ..., start + S - 1`, after those in the cache.

        Returns logits `[B, S - first, V]` and the cache with these tokens. Without a cache the tokens are the whole
        sequence. Tokens before `first` have no logits, and the last layer is spared the work for them. Without a cache,
        so many `copies` next to each other may have the same tokens before `first`, which are then read once for them.

        Raises:
            ValueError: when `num_heads` does not divide `width`.
        """
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} is not a multiple of num_heads = {self.num_heads}")
        num_tokens, shared = tokens.shape[1], copies > 1 and first > 0
        place = start + jnp.arange(num_tokens)
        token = nn.Embed(self.vocabulary, self.width, embedding_init=SMALL, name="tokens")
        position = nn.Embed(self.num_places, self.width, embedding_init=SMALL, name="places")
        begin = first if shared else 0
        x, prompt = token(tokens[:, begin:]) + position(place[begin:]), None
        if shared:
            prompt = token(tokens[::copies, :first]) + position(place[:first])
        new = []
        for layer in range(self.num_layers):
            asks, follows = self.layer(layer)
            query, *own = asks(x)
            last = layer == self.num_layers - 1
            asked = first if last and not shared else 0
            query, x = query[:, asked:], x[:, asked:]
            if cache is not None:
                known = zip((cache.keys[layer], cache.values[layer]), map(batch_last, own), strict=True)
                at = (start - cache.num_shared, 0, 0, 0)
                new.append([jax.lax.dynamic_update_slice(old, kept, at) for old, kept in known])
            if prompt is not None:
                of_prompt = asks(prompt)
                copied = (jnp.repeat(x, copies, axis=0) for x in of_prompt[1:])
                own = [jnp.concatenate(both, axis=1) for both in zip(copied, own, strict=True)]
                seen = attended(query, *own, first)
                prompt = None if last else follows(prompt, attended(*of_prompt))
            elif cache is None or (isinstance(start, int) and start == 0):  # nothing was read before
                seen = attended(query, *own, asked)
            else:
                known = [*(cache.prompt.known(layer) if cache.prompt else []), tuple(new[-1])]
                visible = jnp.arange(sum(len(keys) for keys, _ in known)) <= place[asked:, None]
                seen = jnp.moveaxis(looked_up(batch_last(query), known, visible), -1, 0)
            x = follows(x, seen)
        logits = nn.Dense(self.num_outputs, kernel_init=SMALL, name="head")(nn.LayerNorm()(x))
        if cache is None:
            return logits, None
        keys, values = zip(*new, strict=True)
        return logits, Cache(keys, values, cache.prompt)


__all__ = ["Cache", "Transformer", "attended"]
