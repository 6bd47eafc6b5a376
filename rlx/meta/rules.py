"""Update rules that are learned: recurrent networks that look back over a rollout and say what to change.

They are pytrees and take the place of the rule of `rlx.algos.lpg`:

    rlx.train(lpg, config, env, key, rule=rlx.meta.lpg(key))
"""

from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.pytree import pytree, static


class Backwards(nn.Module):
    """A GRU from the end of a rollout to its beginning, that begins anew in each episode: `[T, N, F]` to `[T, N, U]`.

    Args:
        num_units: U.
    """

    num_units: int

    @nn.compact
    def __call__(self, x: jax.Array, done: jax.Array) -> jax.Array:
        def step(cell, carry, x):
            features, done = x
            return cell(jnp.where(done[..., None], 0.0, carry), features)

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, reverse=True)
        start = jnp.zeros((*x.shape[1:-1], self.num_units))
        return scan(nn.GRUCell(self.num_units), start, (x, done))[1]


class LPGNetwork(nn.Module):
    """`(direction [T, N], target [T, N, M])` of what an agent has seen.

        phi     = MLP 16, 1 with ReLU, of a prediction
        h_t     = ReLU(GRU back from the end of [r_t, d_t, pi(a_t | s_t), phi(y_t), phi(y_t+1)])
        output  = W h_t  and  softmax(V h_t)

    `d_t` is whether the successor is terminal, and `phi(y_t+1)` is 0 then; the GRU begins anew where `done`.

    Source: Oh et al. 2020, arXiv:2007.08794, section 3.2, and the code of Jackson et al. 2023, arXiv:2310.02782.
    """

    num_units: int
    num_values: int

    @nn.compact
    def __call__(self, seen: Any) -> tuple[jax.Array, jax.Array]:
        inner, outer = nn.Dense(16, name="phi_0"), nn.Dense(1, name="phi_1")
        phi = lambda prediction: outer(nn.relu(inner(prediction)))
        successor = jnp.where(seen.terminated[..., None], 0.0, phi(seen.next_prediction))
        numbers = jnp.stack([seen.reward, seen.terminated.astype(jnp.float32), seen.prob], axis=-1)
        features = jnp.concatenate([numbers, phi(seen.prediction), successor], axis=-1)
        hidden = nn.relu(Backwards(self.num_units, name="gru")(features, seen.done))
        direction, target = nn.Dense(1, name="direction")(hidden), nn.Dense(self.num_values, name="target")(hidden)
        return direction[..., 0], jax.nn.softmax(target)


@pytree
class LPG:
    """The rule with these weights."""

    params: Any
    num_units: int = static(64)
    num_values: int = static(8)

    def __call__(self, config, seen, progress):
        return LPGNetwork(self.num_units, self.num_values).apply(self.params, seen)


def lpg(key: jax.Array, num_units: int = 64, num_values: int = 8) -> LPG:
    """The rule with random weights; the paper has 256 units."""
    one, prediction = jnp.zeros((1, 1)), jnp.zeros((1, 1, num_values))
    seen = {"reward": one, "terminated": one > 0, "done": one > 0, "prob": one}
    seen |= {"prediction": prediction, "next_prediction": prediction}
    return LPG(LPGNetwork(num_units, num_values).init(key, SimpleNamespace(**seen)), num_units, num_values)


__all__ = ["LPG", "Backwards", "LPGNetwork", "lpg"]
