"""Maze: walls between an agent and a goal, of which it sees the cells before it.

Walls, start and goal are `params`: they are a level. In `rlx/Maze` each episode has one of its own, drawn anew;
`maze="Spiral"` is one that stays, and `maze="Labyrinth-7"` one of any number of labyrinths. Those are what a curriculum
is judged by: hardly any level that is drawn looks like them.

Source: the kind of task is that of Dennis et al. 2020, arXiv:2012.02096 (13 x 13 cells, a view of 5 x 5, 250 steps).
Mazes with names, and how levels are drawn and changed, are our own.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, INK, WARM, drawn_by
from rlx.levels import drawn
from rlx.pytree import pytree, replace
from rlx.spaces import Dict, Discrete

SIZE, WALLS, VIEW, LIMIT = 13, 60, 5, 250
LEFT, RIGHT, FORWARD = range(3)
DIRECTIONS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left, as row and column
FREE, WALL, GOAL = range(3)
LABYRINTH = "Labyrinth-"
MAZES = ("FourRooms", "SixteenRooms", "Zigzag", "Spiral", "Comb")


def draw(axes, env_state, params):
    """A maze: walls, the goal, the agent and what it sees."""
    from matplotlib.colors import ListedColormap

    axes.imshow(np.asarray(params.walls), cmap=ListedColormap(["white", INK]), vmin=0, vmax=1)
    place, direction = np.asarray(env_state.state.place), int(env_state.state.direction)
    row, column = params.goal
    axes.plot(column, row, "*", color=WARM, ms=14)
    view = len(env_state.obs["cells"])
    far = np.asarray(_offset(np.array([(0, 0), (view - 1, view - 1)]), direction, view)) + place
    (top, left), (bottom, right) = far.min(0) - 0.5, far.max(0) + 0.5
    axes.fill_between([left, right], top, bottom, color=COOL, alpha=0.12, lw=0)
    axes.plot(*place[::-1], marker=(3, 0, -90.0 * direction), color=COOL, ms=12)


@pytree
class Params:
    walls: jax.Array  # bool [X, X]
    start: jax.Array  # int32 [2], row and column
    direction: jax.Array  # int32, of the start: up, right, down or left
    goal: jax.Array  # int32 [2]
    most_walls: Any = float(WALLS)  # of a level that is drawn


@pytree
class State:
    place: jax.Array  # int32 [2]
    direction: jax.Array  # int32


@dataclass(frozen=True)
class Maze:
    """Observes `cells` `[V, V]`, whether each is free, wall or goal, and `direction`, where the agent looks.

    The view is turned so that the agent looks up; it stands in the middle of the last row. What is beyond the border is
    wall. Actions turn left, turn right, and go forward, which a wall prevents. Reaching the goal pays 1 and ends the
    episode; `info["success"]` tells so.
    """

    size: int = SIZE
    view: int = VIEW

    differentiable = False
    frames = drawn_by(draw)

    @property
    def default_params(self):
        """A maze without walls, from one corner to the other."""
        walls, place = jnp.zeros((self.size, self.size), bool), lambda i: jnp.full(2, i, jnp.int32)
        return Params(walls, place(0), jnp.int32(1), place(self.size - 1))

    def observation_space(self, params):
        return Dict(cells=Discrete(3, jnp.int32, (self.view, self.view)), direction=Discrete(4))

    def action_space(self, params):
        return Discrete(3)

    def reset(self, key, params):
        place, direction = (jnp.asarray(x, jnp.int32) for x in (params.start, params.direction))
        state = State(place, direction)
        return self._seen(state, params), state

    def step(self, key, state, action, params):
        turn = jnp.array([3, 1, 0])[action]
        direction = (state.direction + turn) % 4
        ahead = state.place + jnp.array(DIRECTIONS)[direction]
        open_ = (action == FORWARD) & (self._cells(ahead, params) != WALL)
        state = State(jnp.where(open_, ahead, state.place).astype(jnp.int32), direction.astype(jnp.int32))
        reached = (state.place == params.goal).all()
        return self._seen(state, params), state, reached * 1.0, reached, jnp.array(False), {"success": reached}

    def level(self, key, params):
        """Any start, goal and number of walls up to the most there may be; the goal may be out of reach."""
        keys = jax.random.split(key, 3)
        cells = jnp.stack(jnp.divmod(jax.random.permutation(keys[0], self.size**2), self.size), -1)
        cells = cells.astype(jnp.int32)
        walls = jnp.arange(self.size**2 - 2) + 1.0 <= (params.most_walls + 1.0) * jax.random.uniform(keys[1])
        blocked = jnp.zeros((self.size, self.size), bool).at[cells[2:, 0], cells[2:, 1]].set(walls)
        direction = jax.random.randint(keys[2], (), 0, 4)
        return replace(params, walls=blocked, start=cells[0], direction=direction, goal=cells[1])

    def mutate(self, key, params):
        """One change: three times in four a wall comes or goes, else the goal moves, to any cell that is free."""
        keys = jax.random.split(key, 3)
        x = jnp.arange(self.size)
        is_at = lambda place: (x[:, None] == place[0]) & (x == place[1])
        kept = is_at(params.start) | is_at(params.goal)
        any_of = lambda key, free: jax.random.categorical(key, jnp.where(free.reshape(-1), 0.0, -jnp.inf))
        cell = jnp.stack(jnp.divmod(any_of(keys[0], ~kept), self.size)).astype(jnp.int32)
        goal = jnp.stack(jnp.divmod(any_of(keys[1], ~kept & ~params.walls), self.size)).astype(jnp.int32)
        moves = (jax.random.uniform(keys[2]) < 0.25) & (~kept & ~params.walls).any()
        walls = jnp.where(moves, params.walls, params.walls ^ is_at(cell))
        return replace(params, walls=walls, goal=jnp.where(moves, goal, params.goal))

    def _cells(self, places, params):
        """What is in cells `[..., 2]`."""
        inside = ((places >= 0) & (places < self.size)).all(-1)
        row, column = jnp.moveaxis(jnp.clip(places, 0, self.size - 1), -1, 0)
        wall = ~inside | jnp.asarray(params.walls)[row, column]
        return jnp.where(wall, WALL, jnp.where((places == params.goal).all(-1), GOAL, FREE)).astype(jnp.int32)

    def _seen(self, state, params):
        cells = jnp.stack(jnp.meshgrid(*[jnp.arange(self.view)] * 2, indexing="ij"), -1)
        places = state.place + _offset(cells, state.direction, self.view)
        return {"cells": self._cells(places, params), "direction": state.direction}


def _offset(cell, direction, view):
    """Where a cell `[..., 2]` of the view is, from the agent."""
    ahead, aside = view - 1 - cell[..., 0], cell[..., 1] - view // 2
    directions = jnp.array(DIRECTIONS)
    return ahead[..., None] * directions[direction] + aside[..., None] * directions[(direction + 1) % 4]


def named(name: str, size: int = SIZE) -> Params:
    """The level of a maze with a name: one of `MAZES`, or `Labyrinth-N` for any number.

    In a labyrinth one path leads from any cell to any other. From the start, at the top left, to the goal all are open.

    Raises:
        ValueError: there is none of this name, or the size is even or below 7.
    """
    number = name.removeprefix(LABYRINTH)
    if not (name in MAZES or (name.startswith(LABYRINTH) and number.isdecimal())):
        raise ValueError(f"maze = {name!r}: there are {', '.join(MAZES)} and {LABYRINTH}0, {LABYRINTH}1, ...")
    if size % 2 == 0 or size < 7:
        raise ValueError(f"size = {size}: mazes with names have an odd size of at least 7")
    walls, last = np.zeros((size, size), bool), size - 1
    goal = (last, last)
    if name == "FourRooms":
        walls[size // 2] = walls[:, size // 2] = True
        for door in ((size // 2, 1), (size // 2, last - 1), (1, size // 2), (last - 1, size // 2)):
            walls[door] = False
    elif name == "SixteenRooms":
        lines = [size // 4, size // 2, last - size // 4]
        walls[lines] = walls[:, lines] = True
        middles = [(a + b) // 2 for a, b in zip([-1, *lines], [*lines, size], strict=True)]
        for line in lines:
            walls[line, middles] = walls[middles, line] = False
    elif name == "Zigzag":
        walls[1::2] = True
        walls[1::4, last] = walls[3::4, 0] = False
        goal = (last, 0 if size % 4 == 1 else last)
    elif name == "Comb":
        walls[1:, 1::2] = True
    elif name == "Spiral":
        walls, goal = _spiral(size)
    else:
        walls = _labyrinth(size, int(number))
    place = lambda x: jnp.array(x, jnp.int32)
    return Params(jnp.asarray(walls), place((0, 0)), jnp.int32(1), place(goal))


def _spiral(size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A corridor that winds from the border to the middle, and where it ends."""
    walls = np.ones((size, size), bool)
    place, turn = np.array((0, 0)), 1
    walls[0, 0] = False
    inside = lambda cell: bool(((cell >= 0) & (cell < size)).all())
    while True:
        for _ in range(2):
            step = DIRECTIONS[turn % 4]
            ahead, beyond = place + step, place + 2 * step
            # It goes on where the cell ahead is uncut and what follows does not touch the corridor.
            if inside(ahead) and walls[tuple(ahead)] and (not inside(beyond) or walls[tuple(beyond)]):
                break
            turn += 1
        else:
            return walls, (int(place[0]), int(place[1]))
        place = ahead
        walls[tuple(place)] = False


def _labyrinth(size: int, seed: int) -> np.ndarray:
    """Walls of a labyrinth: a random walk that cuts its way, and goes back where it is stuck."""
    rng, walls, path = np.random.default_rng(seed), np.ones((size, size), bool), [(0, 0)]
    walls[0, 0] = False
    while path:
        row, column = path[-1]
        open_ = [
            (row + 2 * i, column + 2 * j, row + i, column + j)
            for i, j in DIRECTIONS.tolist()
            if 0 <= row + 2 * i < size and 0 <= column + 2 * j < size and walls[row + 2 * i, column + 2 * j]
        ]
        if not open_:
            path.pop()
            continue
        *cell, i, j = open_[rng.integers(len(open_))]
        walls[tuple(cell)] = walls[i, j] = False
        path.append((cell[0], cell[1]))
    return walls


def make(maze: str | None = None, size: int = SIZE, walls: int | None = None, view: int = VIEW) -> Env:
    """A maze.

    Args:
        maze: one of `MAZES`, or `Labyrinth-N`; None draws another level for each episode.
        size: cells of a side.
        walls: the most walls of a level that is drawn; None for about a third of the cells, 60 of 13 x 13.
        view: cells of a side of what is seen, odd.

    Raises:
        ValueError: for a maze that there is not, or sizes out of their range.
    """
    walls = size**2 * WALLS // SIZE**2 if walls is None else walls
    if size < 2 or view < 1 or view % 2 == 0 or not 0 <= walls <= size**2 - 2:
        raise ValueError(
            f"size = {size}, view = {view}, walls = {walls}: give a size of at least 2, an odd view, and at most "
            f"size * size - 2 walls"
        )
    environment = Maze(size, view)
    env = Env(environment, replace(environment.default_params, most_walls=float(walls)), max_steps=LIMIT)
    return drawn(env) if maze is None else replace(env, params=named(maze, size))
