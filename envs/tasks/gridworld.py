"""GridWorld: continuous actions that are rounded to steps on a 25 x 25 grid, with several ways to a goal.

Where two goals are equally near, both directions are right and their mean is not: a saddle of the value, at which a
policy with one mode has to choose.

Source: McAllister et al. 2025, arXiv:2507.21053, section 4.1, and its code. There an episode may begin inside a wall,
here every start is a free cell.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, INK, WARM, drawn_by
from rlx.pytree import pytree
from rlx.spaces import Box


def draw(axes, env_state, params):
    """GridWorld: free cells, walls, goals and death, and where one is."""
    from matplotlib.colors import ListedColormap

    axes.imshow(np.asarray(params.cells).T, cmap=ListedColormap(["white", INK, WARM, "#c0392b"]), vmin=0, vmax=3)
    axes.plot(*env_state.state, "o", color=COOL, ms=7)


SIZE = 25
FREE, WALL, GOAL, DEATH = range(4)


@pytree
class Params:
    cells: jax.Array | np.ndarray  # int32 [25, 25], indexed [x, y]: what each is
    goal_reward: float = 20.0
    death_reward: float = -10.0


def _layouts() -> dict[str, np.ndarray]:
    """All layouts, `[x, y]`."""
    names = ("two_walls", "three_goals", "tree_in_the_middle", "two_slits", "cshape")
    grid = {name: np.full((SIZE, SIZE), FREE, np.int32) for name in names}
    grid["two_walls"][:, [0, 1, 23, 24]] = GOAL
    for x, y in ((12, 18), (7, 7), (17, 7)):
        grid["three_goals"][x - 1 : x + 2, y - 1 : y + 2] = GOAL
    grid["three_goals"][11:14, 11:14] = DEATH
    grid["tree_in_the_middle"][13:18, 10:15] = DEATH
    grid["tree_in_the_middle"][23:, 10:15] = GOAL
    grid["two_slits"][15, :] = WALL
    grid["two_slits"][15, [*range(4, 8), *range(17, 21)]] = FREE
    grid["two_slits"][24, :] = GOAL
    grid["cshape"][7:18, [7, 17]] = WALL
    grid["cshape"][17, 7:18] = WALL
    grid["cshape"][10:15, 10:15] = GOAL
    return grid


LAYOUTS = _layouts()


class GridWorld:
    """Observes the cell, scaled to `[-1, 1]^2`; is given a direction `[2]` that is rounded to -1, 0 or 1 an axis.

    Walls and the border stop a step. A goal pays 20, death costs 10, both end the episode; `info["success"]` tells that
    it was a goal.
    """

    default_params = Params(LAYOUTS["two_walls"])
    differentiable = False
    frames = drawn_by(draw)

    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def reset(self, key, params):
        logits = jnp.where(params.cells.reshape(-1) == FREE, 0.0, -jnp.inf)
        cell = jnp.stack(jnp.divmod(jax.random.categorical(key, logits), SIZE))
        return observe(cell), cell

    def step(self, key, state, action, params):
        move = jnp.round(jnp.clip(action, -1.0, 1.0)).astype(jnp.int32)
        cell = jnp.clip(state + move, 0, SIZE - 1)
        cell = jnp.where(_at(params, cell) == WALL, state, cell)
        what = _at(params, cell)
        reward = jnp.where(what == GOAL, params.goal_reward, jnp.where(what == DEATH, params.death_reward, 0.0))
        info = {"success": what == GOAL}
        return observe(cell), cell, reward, (what == GOAL) | (what == DEATH), jnp.array(False), info


def observe(cell: jax.Array) -> jax.Array:
    """What is seen of the cells `[..., 2]`: `(cell - 12) / 12`."""
    middle = (SIZE - 1) // 2
    return (cell - middle) / jnp.float32(middle)


def _at(params, cell):
    return jnp.asarray(params.cells)[cell[0], cell[1]]


def make(layout: str = "two_walls") -> Env:
    """100 steps an episode.

    Raises:
        ValueError: unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout = {layout!r} is not one of {', '.join(LAYOUTS)}")
    return Env(GridWorld(), Params(LAYOUTS[layout]), max_steps=100)
