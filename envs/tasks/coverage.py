"""Coverage: what is seen on a grid counts once, so that rewards have diminishing returns.

Each step moves on a torus of cells and sees all cells within a distance. The reward is the number of cells that are
seen for the first time: the sum over an episode is a submodular function of where one was, and what a step is worth
depends on all those before.

Source: Prajapat et al. 2023, Submodular Reinforcement Learning (its coverage task; there the grid is 30 x 30, discs are
in the plane and episodes have 80 steps; here the grid has no border, so that all starts are alike).
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, INK, drawn_by
from rlx.pytree import pytree
from rlx.spaces import Box, Discrete

MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))


def draw(axes, env_state, params):
    """Coverage: cells that were seen, and where one is."""
    from matplotlib.colors import ListedColormap

    cell, seen = env_state.state
    axes.imshow(np.asarray(seen).T, cmap=ListedColormap(["white", INK]), vmin=0, vmax=2)
    axes.plot(*cell, "o", color=COOL, ms=7)


@pytree
class Params:
    reward: float = 1.0  # of a cell


class Coverage:
    """Observes the cell, one-hot by axis `[2 n]`, and what was seen `[n n]`; moves in one of four directions.

    `info["covered"]` tells which share of the grid was seen for the first time; its sum is that of the episode.
    """

    default_params = Params()
    frames = drawn_by(draw)

    def __init__(self, size: int, radius: float, shown: bool, additive: bool):
        self.size, self.shown, self.additive = size, shown, additive
        place = np.minimum(np.arange(size), size - np.arange(size))
        self.disc = place[:, None] ** 2 + place[None] ** 2 <= radius**2  # around cell 0, 0 of the torus

    def observation_space(self, params):
        return Box(0.0, 1.0, (2 * self.size + self.size**2 * self.shown,))

    def action_space(self, params):
        return Discrete(len(MOVES))

    def reset(self, key, params):
        cell = jax.random.randint(key, (2,), 0, self.size)
        state = cell, self._around(cell)
        return self._observed(*state), state

    def step(self, key, state, action, params):
        cell, seen = state
        cell = (cell + jnp.array(MOVES)[action]) % self.size
        around = self._around(cell)
        new = around & ~seen
        seen = seen | around
        reward = params.reward * (around if self.additive else new).sum().astype(jnp.float32)
        info = {"covered": new.mean(dtype=jnp.float32)}
        return self._observed(cell, seen), (cell, seen), reward, jnp.array(False), jnp.array(False), info

    def _around(self, cell):
        """The cells within the distance of one, bool `[n, n]`."""
        return jnp.roll(jnp.asarray(self.disc), cell, axis=(0, 1))

    def _observed(self, cell, seen):
        place = jax.nn.one_hot(cell, self.size).reshape(-1)
        return jnp.concatenate([place, seen.reshape(-1).astype(jnp.float32)]) if self.shown else place


def make(size: int = 8, radius: float = 1.0, shown: bool = True, additive: bool = False) -> Env:
    """Coverage on a torus of `size` x `size` cells, 24 steps an episode.

    Args:
        size: of the grid, from 2 on.
        radius: within which cells are seen; 0 is one's own cell.
        shown: whether what was seen is part of the observation. Without it the state cannot be told.
        additive: whether a cell pays each time that it is seen; then there are no diminishing returns.

    Raises:
        ValueError: for a grid below 2 x 2, or a negative radius.
    """
    if size < 2 or radius < 0:
        raise ValueError(f"size = {size}, radius = {radius}: give a size of at least 2 and a radius of at least 0")
    env = Coverage(size, radius, shown, additive)
    return Env(env, env.default_params, max_steps=24)
