"""Update rules that are learned: recurrent networks that look back over a rollout and say what to change.

They are pytrees and take the place of the rule of `rlx.algos.lpg`:

    rlx.train(lpg, config, env, key, rule=rlx.meta.lpg(key))

`rlx train lpg --rule evolved` takes the one that ships, and `--rule FILE` one that `rlx.meta.save` wrote.
"""

from types import ModuleType, SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.given import with_argument
from rlx.pytree import pytree, static
from rlx.train import total_updates


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

    `d_t` is whether the successor is terminal, and `phi(y_t+1)` is 0 then; the GRU begins anew where `done`. What is
    `told` beside, numbers that are the same for all steps, goes into the GRU too.

    Source: Oh et al. 2020, arXiv:2007.08794, section 3.2, and the code of Jackson et al. 2023, arXiv:2310.02782.
    """

    num_units: int
    num_values: int

    @nn.compact
    def __call__(self, seen: Any, told: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        inner, outer = nn.Dense(16, name="phi_0"), nn.Dense(1, name="phi_1")
        phi = lambda prediction: outer(nn.relu(inner(prediction)))
        successor = jnp.where(seen.terminated[..., None], 0.0, phi(seen.next_prediction))
        numbers = jnp.stack([seen.reward, seen.terminated.astype(jnp.float32), seen.prob], axis=-1)
        features = jnp.concatenate([numbers, phi(seen.prediction), successor], axis=-1)
        if told is not None:
            told = jnp.broadcast_to(told, (*features.shape[:-1], *told.shape))
            features = jnp.concatenate([features, told], axis=-1)
        hidden = nn.relu(Backwards(self.num_units, name="gru")(features, seen.done))
        direction, target = nn.Dense(1, name="direction")(hidden), nn.Dense(self.num_values, name="target")(hidden)
        return direction[..., 0], jax.nn.softmax(target)


@pytree
class LPG:
    """The rule with these weights.

    A `timed` one is told how far the agent's life has gone and how long it is, `n / N` and `log N` of N updates, so
    that it can begin otherwise than it ends (TA-LPG: Jackson et al. 2024, Discovering Temporally-Aware Reinforcement
    Learning Algorithms, arXiv:2402.05828, whose code gives n and N as they are).
    """

    params: Any
    num_units: int = static(64)
    num_values: int = static(8)
    timed: bool = static(False)

    def __call__(self, config, seen, progress):
        if seen.prediction.shape[-1] != self.num_values:
            raise ValueError(
                f"the rule is of predictions over {self.num_values} values, and the agent has num_values = "
                f"{seen.prediction.shape[-1]}: give num_values = {self.num_values}"
            )
        told = jnp.stack([progress, jnp.log(total_updates(config))]).astype(jnp.float32) if self.timed else None
        return LPGNetwork(self.num_units, self.num_values).apply(self.params, seen, told)


def lpg(key: jax.Array, num_units: int = 64, num_values: int = 8, timed: bool = False) -> LPG:
    """The rule with random weights; the paper has 256 units."""
    one, prediction = jnp.zeros((1, 1)), jnp.zeros((1, 1, num_values))
    seen = {"reward": one, "terminated": one > 0, "done": one > 0, "prob": one}
    seen |= {"prediction": prediction, "next_prediction": prediction}
    told = jnp.zeros(2) if timed else None
    params = LPGNetwork(num_units, num_values).init(key, SimpleNamespace(**seen), told)
    return LPG(params, num_units, num_values, timed)


def with_rule(algorithm: ModuleType, rule: Any) -> ModuleType:
    """The algorithm with a learned rule in place of its own.

    Raises:
        ValueError: when its `update` takes no rule.
    """
    module = with_argument(algorithm, "rule", rule, "learns by no rule that could be replaced; rlx.algos.lpg does")
    vars(module)["learned"] = rule
    return module


__all__ = ["LPG", "Backwards", "LPGNetwork", "lpg", "with_rule"]
