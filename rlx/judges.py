"""Answers that a network judges, and what it learns from: right answers beside wrong ones.

    env = rewarded(env, Verdict(params, network))    an answer is paid by the judge; `success` stays the truth

Axes: L places of a sequence, T tokens of an answer.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rlx.pytree import pytree, static


def scores(network: Any, params: dict, tokens: jax.Array) -> jax.Array:
    """The judge's score of whole sequences `[B, L]`, `[B]`: what a transformer of one output says at the last place."""
    return network.apply(params, tokens)[0][:, -1, 0]


@pytree
class Verdict:
    """A reward for `rlx.around.rewarded`: `sigmoid(score)` of a whole answer, 0 before its end."""

    params: dict
    network: Any = static()

    def __call__(self, made):
        score = scores(self.network, self.params, made.next_obs[None])[0]
        return jnp.where(made.terminated, jax.nn.sigmoid(score), 0.0)


def preference_loss(better: jax.Array, worse: jax.Array) -> jax.Array:
    """`-log sigmoid(s+ - s-)` of scores, element by element: that of a judge who is to prefer the first.

    Source: Bradley and Terry 1952, as reward models are trained; the loss of Cooper, arXiv:2508.05613.
    """
    return jax.nn.softplus(worse - better)


def one_changed(key: jax.Array, answer: jax.Array, num_tokens: int) -> jax.Array:
    """An answer `[T]` with one of its tokens, any of those above 0, made another one of `1, ..., num_tokens`."""
    place_key, token_key = jax.random.split(key)
    place = jax.random.categorical(place_key, jnp.where(answer > 0, 0.0, -jnp.inf))
    shift = jax.random.randint(token_key, (), 1, num_tokens)
    return answer.at[place].set((answer[place] - 1 + shift) % num_tokens + 1)


__all__ = ["Verdict", "one_changed", "preference_loss", "scores"]
