"""Inventory: one store that orders before it knows the demand, and pays for what it holds and for what it lacks.

Its rewards have a gradient by the orders, since the demand is drawn whatever is ordered: `rlx.algos.pathwise` goes
through it. For demand that waits, ordering up to a level is optimal and its cost is known (`waiting_cost`); for demand
that is lost the best order is not known in general, and ordering up to a level, within a cap, is a good rule.

Source: Alvo, Russo, Kanoria 2023, Neural Inventory Control in Networks via Hindsight Differentiable Policy
Optimization, arXiv:2306.11246, and its code: Poisson demand of mean 5, a lead time of 4, holding at 1 and lacking at 9.
There only periods 31 to 50 count; here all do. Episodes start with stock and orders that are drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, INK, WARM, drawn_by
from rlx.pytree import pytree
from rlx.spaces import Box


def draw(axes, env_state, params):
    """Inventory: what is in stock, and the orders on their way, the next to come first."""
    stock, coming = float(env_state.state.stock), np.asarray(env_state.state.coming)
    axes.bar(0, stock, color=COOL if stock >= 0 else WARM)
    axes.bar(np.arange(1, len(coming) + 1), coming, color=INK)
    axes.axhline(0, color=INK, lw=1)
    axes.set_ylim(min(-1.0, 1.1 * stock), max(20.0, 1.1 * stock))
    axes.set_xticks([0, *range(1, len(coming) + 1)], ["stock", *(f"{i}" for i in range(1, len(coming) + 1))])
    axes.set_xlabel("orders, periods until they come")


@pytree
class Params:
    demand: jax.Array | np.ndarray  # [K], probabilities of a demand of 0, 1, ..., K - 1 in a period
    holding: float = 1.0  # price of a piece that is left at the end of a period
    lacking: float = 9.0  # price of a piece that was asked for and was not there
    most: float = 20.0  # that can be ordered in a period


@pytree
class State:
    stock: jax.Array  # negative where demand waits
    coming: jax.Array  # [L], orders, the next to come first


def poisson(mean: float, largest: int = 64) -> np.ndarray:
    """Probabilities of a Poisson demand of 0, ..., `largest - 1`, which sum to 1."""
    log = np.arange(largest) * np.log(mean) - mean - np.cumsum(np.log(np.maximum(np.arange(largest), 1)))
    return (np.exp(log) / np.exp(log).sum()).astype(np.float32)


class Inventory:
    """Observes the stock and the orders on their way `[1 + L]`; is given an order `[1]`, any number up to `most`.

        shelf = stock + what comes;    left = shelf - demand
        reward = -(holding max(left, 0) + lacking max(-left, 0))

    What is ordered in period t comes in period t + L, before its demand; with L = 0 at once. Demand that is not served
    is lost, or waits and is taken from what comes. `info["lacked"]` is how many pieces were asked for and not there.
    """

    differentiable = True
    frames = drawn_by(draw)

    def __init__(self, lead_time: int, lost: bool):
        self.lead_time, self.lost, self.default_params = lead_time, lost, Params(poisson(5.0))

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1 + self.lead_time,))

    def action_space(self, params):
        return Box(0.0, params.most, (1,))

    def reset(self, key, params):
        mean = (jnp.arange(len(params.demand)) * params.demand).sum()
        drawn = 2.0 * mean * jax.random.uniform(key, (1 + self.lead_time,))
        state = State(drawn[0], drawn[1:])
        return drawn, state

    def step(self, key, state, action, params):
        order = jnp.clip(action, 0.0, params.most)
        coming = jnp.concatenate([state.coming, order])
        demand = (jax.random.uniform(key) >= jnp.cumsum(params.demand)[:-1]).sum(dtype=jnp.float32)
        left = state.stock + coming[0] - demand
        lacked = jnp.maximum(-left, 0.0)
        cost = params.holding * jnp.maximum(left, 0.0) + params.lacking * lacked
        state = State(jnp.maximum(left, 0.0) if self.lost else left, coming[1:])
        obs = jnp.append(state.stock[None], state.coming)
        return obs, state, -cost, jnp.array(False), jnp.array(False), {"lacked": lacked}


def up_to(obs: jax.Array, level: float | jax.Array, cap: float | jax.Array = jnp.inf) -> jax.Array:
    """The order `[..., 1]` that brings stock and orders `[..., 1 + L]` up to a level, and at most a cap."""
    return jnp.clip(level - obs.sum(axis=-1, keepdims=True), 0.0, cap)


def waiting_cost(level: float, lead_time: int, demand: np.ndarray, holding: float = 1.0, lacking: float = 9.0) -> float:
    """The expected cost of a period under `up_to` a level, where demand waits and the level was reached.

    `E[holding (level - D)^+ + lacking (D - level)^+]` with D the demand of L + 1 periods. It is least at the smallest
    level whose probability `P(D <= level)` is at least `lacking / (lacking + holding)`, the newsvendor's.
    """
    total = np.ones(1)
    for _ in range(lead_time + 1):
        total = np.convolve(total, np.asarray(demand, np.float64))
    gap = level - np.arange(len(total))
    return float(total @ (holding * np.maximum(gap, 0.0) + lacking * np.maximum(-gap, 0.0)))


def make(lead_time: int = 4, lost: bool = True, mean: float = 5.0) -> Env:
    """50 periods an episode.

    Args:
        lead_time: periods from an order to its coming, L.
        lost: whether demand that is not served is lost; else it waits.
        mean: of the Poisson demand of a period, at most 20.

    Raises:
        ValueError: for a lead time below 0 or a mean out of range.
    """
    if type(lead_time) is not int or lead_time < 0:
        raise ValueError(f"lead_time = {lead_time!r}: give an integer of at least 0")
    if not 0 < mean <= 20:
        raise ValueError(f"mean = {mean}: give a number above 0 and at most 20")
    params = Params(poisson(mean), most=max(20.0, 4.0 * mean))
    return Env(Inventory(lead_time, lost), params, max_steps=50)
