"""Adapter for XLand-MiniGrid: the tasks of MiniGrid, and worlds whose goals and rules are data.

An optional extra: `pip install 'rlx[xminigrid]'`.
"""

import pickle
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.pytree import pytree, replace
from rlx.spaces import Dict, Discrete

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
MINIGRID = (
    *(f"MiniGrid-{kind}-{n}x{n}" for kind in ("Empty", "EmptyRandom") for n in (5, 6, 8, 16)),
    *(f"MiniGrid-DoorKey-{n}x{n}" for n in (5, 6, 8, 16)),
    *("MiniGrid-FourRooms", "MiniGrid-LockedRoom"),
    *(f"MiniGrid-MemoryS{n}" for n in (8, 16, 32, 64, 128)),
    *("MiniGrid-Unlock", "MiniGrid-UnlockPickUp", "MiniGrid-BlockedUnlockPickUp"),
)
_sizes = {1: (9, 11, 13, 15, 17), 2: (9, 11, 13, 15, 17), 4: (9, 11, 13, 15, 17), 6: (13, 17, 19), 9: (16, 19, 25)}
XLAND = tuple(f"XLand-MiniGrid-R{rooms}-{n}x{n}" for rooms, sizes in _sizes.items() for n in sizes)
NAMES = MINIGRID + XLAND
REFUSED = {
    "MiniGrid-Playground": "it has no goal, its reward is always 0: use MiniGrid-UnlockPickUp or an XLand-MiniGrid"
}

# Their resets do not shuffle all cells, and cost about as much as a step.
QUICK = ("MiniGrid-Empty", "MiniGrid-Memory")

NUM_TILES, NUM_COLORS, NUM_DIRECTIONS, NUM_ACTIONS = 13, 12, 4, 6

# The rulesets that have names, in the suite's numbers: (tile, colour).
_ball, _square, _pyramid, _key, _star, _hexagon = (3, 1), (4, 3), (5, 2), (7, 5), (12, 5), (11, 4)
_nothing = (0, 0)
RULESETS = {  # goal, rules, objects
    "pick_up": ((1, *_ball), (), (_ball, _square, _pyramid)),
    "stand_near": ((3, *_pyramid), (), (_ball, _square, _pyramid)),
    "put_near": ((4, *_ball, *_square), (), (_ball, _square, _pyramid)),
    "craft": ((1, *_pyramid), ((3, *_ball, *_square, *_pyramid),), (_ball, _square, _key)),
    "craft_twice": ((1, *_hexagon), ((3, *_ball, *_square, *_star), (1, *_star, *_hexagon)), (_ball, _square, _key)),
}


@pytree
class Ruleset:
    """What an episode of XLand is about, in the suite's encoding: uint8, zeros mean nothing."""

    goal: Any  # [5]: a kind of goal and its arguments
    rules: Any  # [R, 7]: kinds of rules and their arguments
    init_tiles: Any  # [I, 2]: tile and colour of the objects that an episode begins with


@pytree
class Params:
    max_steps: int
    ruleset: Ruleset | None = None  # of XLand


@dataclass(frozen=True)
class XMiniGrid:
    """A task of XLand-MiniGrid under the contract of `rlx.env.Environment`.

    Observes the cells before the agent, turned so that it looks up: `tile` and `color` `[V, V]`, categories of uint8;
    and `direction`, where it looks (up, right, down, left), which the suite has in a wrapper. Neither what it carries
    nor goals and rules of XLand are seen: those are found out by trying, with a memory.

    Reaching the goal after n steps pays `1 - 0.9 n / max_steps` and ends the episode; `info["success"]` tells so. In
    the tasks of memory the wrong object ends it as well, and pays nothing. The time limit is truncation. It is in
    `params` with the ruleset of XLand: a vmap over them is a sweep over tasks.
    """

    task: Any
    static: Any  # the suite's parameters, without what is in `params`

    differentiable = False

    @property
    def default_params(self):
        return Params(self.task.default_params(height=self.static.height, width=self.static.width).max_steps)

    def _params(self, params):
        own = {} if params.ruleset is None else {"ruleset": params.ruleset}
        return self.static.replace(max_steps=params.max_steps, **own)

    def reset(self, key, params):
        timestep = self.task.reset(self._params(params), key)
        return self._observed(timestep), timestep.state

    def level(self, key, params):
        """Of XLand one of the rulesets with names, where arrays of `params` have their shapes; else they stay."""
        if params.ruleset is None:
            return params
        known = jax.tree.map(lambda *rows: jnp.stack([jnp.asarray(x) for x in rows]), *map(ruleset, RULESETS))
        if jax.tree.map(lambda x: x.shape[1:], known) != jax.tree.map(jnp.shape, params.ruleset):
            return params
        which = jax.random.randint(key, (), 0, len(RULESETS))
        return replace(params, ruleset=jax.tree.map(lambda rows: rows[which], known))

    def step(self, key, state, action, params):
        timestep = self.task.step(self._params(params), self._timestep(state), action)
        terminated = timestep.discount == 0
        truncated = timestep.state.step_num >= params.max_steps  # the suite asks for equality: one more step is no end
        info = {"success": timestep.reward > 0}
        return self._observed(timestep), timestep.state, timestep.reward, terminated, truncated, info

    def observation_space(self, params):
        view = (self.static.view_size,) * 2
        tile, color = (Discrete(n, jnp.uint8, view) for n in (NUM_TILES, NUM_COLORS))
        return Dict(tile=tile, color=color, direction=Discrete(NUM_DIRECTIONS))

    def action_space(self, params):
        """Forward, turn right, turn left, pick up, put down, toggle."""
        return Discrete(NUM_ACTIONS)

    def frames(self, env_states, params, width, height, camera):
        """The suite's pictures, scaled to fit, on white."""
        from PIL import Image

        images = []
        for env_state in env_states:
            state = env_state.state
            seen = self.task.render(self._params(params), self._timestep(jax.tree.map(jnp.asarray, state)))
            scale = min(width / seen.shape[1], height / seen.shape[0])
            size = (max(1, round(seen.shape[1] * scale)), max(1, round(seen.shape[0] * scale)))
            page = Image.new("RGB", (width, height), "white")
            page.paste(Image.fromarray(seen).resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
            images.append(np.asarray(page))
        return images

    def _timestep(self, state):
        """What the suite steps from; it reads the state alone."""
        timestep = import_module("xminigrid.types").TimeStep
        return timestep(state=state, step_type=None, reward=None, discount=None, observation=None)

    def _observed(self, timestep) -> Any:
        tile, color = jnp.moveaxis(timestep.observation, -1, 0)
        direction = jnp.asarray(timestep.state.agent.direction, jnp.int32)
        return {"tile": tile.astype(jnp.uint8), "color": color.astype(jnp.uint8), "direction": direction}


def ruleset(name: str) -> Ruleset:
    """One of the rulesets with names, `RULESETS`. All have arrays of the same shapes, so that they can be stacked.

    - `pick_up`: pick up the red ball.
    - `stand_near`: step next to the green pyramid.
    - `put_near`: put the red ball and the blue square side by side.
    - `craft`: put them side by side, and they become a green pyramid; pick it up.
    - `craft_twice`: they become a yellow star, which becomes a purple hexagon in the hand.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in RULESETS:
        raise ValueError(f"ruleset = {name!r} is not one of {', '.join(RULESETS)}")
    num_rules, num_tiles = (max(len(found[i]) for found in RULESETS.values()) for i in (1, 2))
    goal, rules, tiles = RULESETS[name]
    return Ruleset(_padded([goal], (1, 5))[0], _padded(rules, (num_rules, 7)), _padded(tiles, (num_tiles, 2)))


def _padded(rows: Any, shape: tuple[int, int]) -> np.ndarray:
    table = np.zeros(shape, np.uint8)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def make(
    name: str, *, ruleset: Any = None, benchmark: str | None = None, ruleset_id: int = 0, view_size: int | None = None
) -> Env:
    """XLand-MiniGrid needs a ruleset: without one the suite has worlds in which no episode can succeed.

    Args:
        name: one of `NAMES`.
        ruleset: of XLand: one of the names in `RULESETS`, or arrays of a goal `[5]`, rules `[R, 7]` and objects
            `[I, 2]` in the suite's encoding.
        benchmark: path of a file of rulesets, as the suite publishes them. It is a pickle, which can run any code when
            it is read: take none that you do not trust. Nothing is downloaded.
        ruleset_id: which ruleset of the file.
        view_size: cells that the agent sees in each direction, odd; None leaves it to the suite.

    Raises:
        ValueError: XLand-MiniGrid is not installed, a ruleset is missing, wrong, or given to a task of MiniGrid.
    """
    task, static = _task(name)
    if view_size is not None:
        if view_size < 3 or view_size % 2 == 0:
            raise ValueError(f"view_size = {view_size}: give an odd number of at least 3")
        static = static.replace(view_size=int(view_size))
    if name in MINIGRID and not (ruleset is benchmark is None):
        raise ValueError(f"xminigrid/{name} has a goal of its own: a ruleset is for XLand-MiniGrid-...")
    rules = _ruleset(name, ruleset, benchmark, ruleset_id) if name in XLAND else None
    environment = XMiniGrid(task, static)
    params = Params(environment.default_params.max_steps, rules)
    return Env(environment, params, lazy_starts=not name.startswith(QUICK))


@cache  # the suite's objects compare by identity: programs of one task with several rulesets are the same
def _task(name: str) -> tuple[Any, Any]:
    """The suite's task, and its parameters without the limit and the ruleset, which can be hashed."""
    try:
        suite = import_module("xminigrid")
    except ImportError as error:
        raise ValueError(f"xminigrid/{name} needs another package: pip install 'rlx[xminigrid]' ({error})") from error
    task, params = suite.make(name)
    return task, params.replace(max_steps=None, **({"ruleset": None} if name in XLAND else {}))


def _ruleset(name: str, given: Any, benchmark: str | None, number: int) -> Ruleset:
    if (given is None) == (benchmark is None):
        raise ValueError(
            f"xminigrid/{name} needs a ruleset: give ruleset={' or '.join(RULESETS)}, three arrays, or benchmark=PATH "
            "and ruleset_id" + (", and not both" if given is not None else "")
        )
    if isinstance(given, str):
        return ruleset(given)
    return _given(given) if given is not None else _from_file(Path(str(benchmark)), number)


def _given(parts: Any) -> Ruleset:
    try:
        arrays = [np.asarray(part, np.int64) for part in parts]
    except (TypeError, ValueError):  # no list, or lists that are no arrays
        arrays = []
    last = [(x.ndim, x.shape[-1]) for x in arrays if x.ndim]
    if last != [(1, 5), (2, 7), (2, 2)] or any(((x < 0) | (x > 255)).any() for x in arrays):
        seen = f"of {', '.join(str(x.shape) for x in arrays)}" if arrays else repr(parts)
        raise ValueError(f"ruleset is {seen}: give a goal [5], rules [R, 7] and objects [I, 2] of 0 to 255")
    return Ruleset(*(x.astype(np.uint8) for x in arrays))


def _from_file(path: Path, number: int) -> Ruleset:
    try:
        found = import_module("xminigrid.benchmarks").load_benchmark_from_path(str(path))
    except (OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"benchmark = {path}: no file of rulesets can be read there ({error})") from error
    if type(number) is not int or not 0 <= number < found.num_rulesets():
        raise ValueError(f"ruleset_id = {number}: {path} has {found.num_rulesets()}, counted from 0")
    return Ruleset(*(np.asarray(part[number], np.uint8) for part in (found.goals, found.rules, found.init_tiles)))
