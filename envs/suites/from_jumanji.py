"""Adapter for Jumanji: puzzles, packing, routing and teams on grids.

An optional extra: `pip install 'rlx[jumanji]'`.
"""

import dataclasses
import math
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import drawn_by
from rlx.envs.suites.jumanji_drawings import JUMANJI
from rlx.masks import allowed
from rlx.pytree import pytree
from rlx.spaces import MASK, Box, Dict, Discrete

# Listed here so that looking a name up does not import the suite; a test compares with the installed one.
NAMES = (
    *("Game2048-v1", "GraphColoring-v1", "Minesweeper-v0", "RubiksCube-v0", "RubiksCube-partly-scrambled-v0"),
    *("SlidingTilePuzzle-v0", "Sudoku-v0", "Sudoku-very-easy-v0", "BinPack-v2", "FlatPack-v0", "JobShop-v0"),
    *("Knapsack-v1", "Tetris-v0", "CVRP-v1", "Cleaner-v0", "Connector-v3", "LevelBasedForaging-v0", "MMST-v0"),
    *("Maze-v0", "MultiCVRP-v0", "PacMan-v1", "RobotWarehouse-v0", "Snake-v1", "TSP-v1", "SearchAndRescue-v0"),
)
REFUSED = {"Sokoban-v0": "it downloads its levels when it is made; use jumanji/SlidingTilePuzzle-v0 or jumanji/Maze-v0"}

# Where an action has a part for each machine, vehicle or agent, with legal ones of its own. The parts of all other
# actions belong together: which column is legal depends on the rotation.
ROWS = ("Cleaner", "Connector", "JobShop", "LevelBasedForaging", "MMST", "MultiCVRP", "RobotWarehouse")

# Ends that are a success, seen in the state after them.
SUCCESS = {
    "BinPack": lambda state: ~(state.items_mask & ~state.items_placed).any(),
    "Cleaner": lambda state: ~(state.grid == 0).any(),
    "Connector": lambda state: (state.agents.position == state.agents.target).all(),
    "FlatPack": lambda state: (state.grid > 0).all(),
    "JobShop": lambda state: ~state.ops_mask.any() & (state.machines_remaining_times == 0).all(),
    "LevelBasedForaging": lambda state: state.food_items.eaten.all(),
    "MMST": lambda state: state.finished_agents.all(),
    "Maze": lambda state: _same(state.agent_position, state.target_position),
    "Minesweeper": lambda state: (state.board >= 0).sum() == state.board.size - state.flat_mine_locations.size,
    "PacMan": lambda state: state.pellets == 0,
    "RubiksCube": lambda state: (state.cube == state.cube[:, :1, :1]).all(),
    "SearchAndRescue": lambda state: state.targets.found.all(),
    "SlidingTilePuzzle": lambda state: (state.puzzle.reshape(-1)[:-1] == 1 + jnp.arange(state.puzzle.size - 1)).all(),
    "Snake": lambda state: state.length == state.body.size,
    "Sudoku": lambda state: (state.board >= 0).all(),
}

# The limit fixes shapes, or rewards fall with the time that is left: it stays where it is, and is told apart here.
OWN_LIMIT = ("MMST", "SearchAndRescue")
NEVER = 2**30  # steps

# The most steps where there is no limit.
HORIZONS = {
    "BinPack": lambda game: game.generator.max_num_items,
    "CVRP": lambda game: 2 * game.num_nodes,
    "FlatPack": lambda game: game.num_blocks,
    "GraphColoring": lambda game: game.num_nodes,
    "Knapsack": lambda game: game.num_items,
    "Minesweeper": lambda game: game.num_rows * game.num_cols - game.num_mines,
    "Sudoku": lambda game: 81,
    "TSP": lambda game: game.num_cities,
}

REUSES_KEYS = {
    "FlatPack": "Jumanji's generator of FlatPack splits the key of a start twice",
    "MMST": "Jumanji's generator of MMST splits the key of a start twice",
    "PacMan": "the ghosts of Jumanji's PacMan split the key of a step twice",
}

# What is not seen: the time, which does not matter where a limit truncates, and sums of rewards.
HIDDEN = ("step_count", "score")
GRIDS = ("board", "grid", "puzzle", "walls")  # get an axis of channels, so that convolutions see them
# Integers that are sizes; all others are categories.
QUANTITIES = (
    *("adj_matrix", "agents_view", "capacities", "demands", "frightened_state_time", "ghost_locations"),
    *("machines_remaining_times", "num_mines", "ops_durations", "pellet_locations", "power_up_locations", "step"),
)
COUNTDOWNS = ("frightened_state_time",)  # they go on below 0, where nothing happens any more
# Least and greatest number, where Jumanji declares none.
BOUNDS = {
    ("Game2048", "board"): lambda game: (0, game.board_size**2 + 1),  # exponents
    ("PacMan", "frightened_state_time"): lambda game: (0, 30),
    ("PacMan", "ghost_locations"): lambda game: (0, max(game.x_size, game.y_size)),
    ("PacMan", "pellet_locations"): lambda game: (0, max(game.x_size, game.y_size)),
    ("PacMan", "power_up_locations"): lambda game: (0, max(game.x_size, game.y_size)),
    ("TSP", "position"): lambda game: (-1, game.num_cities - 1),  # -1 at the start
    ("RobotWarehouse", "agents_view"): lambda game: (0, max(game.grid_size)),
}


@pytree
class Game:
    """A state of Jumanji without its key, and what its `extras` were."""

    state: Any
    extras: dict[str, Any]  # of the last step, float32; 0 at the start


class Jumanji:
    """A Jumanji environment under the contract of `rlx.env.Environment`.

    Observations are dictionaries, nested as Jumanji's. Categories are integers from 0 on, grids have an axis of
    channels, quantities are float32 and divided by their greatest size where that is above 1. The number of steps is
    left out. Which actions are legal is the entry `action_mask`; where nothing is, everything is.

    An action of several parts that belong together (a rotation and a column) is one number: they are unravelled in the
    order of Jumanji's. One with a part for each agent or machine is an array of categories. Rewards of several agents
    are added up.

    Jumanji draws with a key that the state holds. Here it is the key of the step, and the state holds none: a copy of a
    state that is stepped with another key goes another way.

    Every end is a termination, but for `OWN_LIMIT`: limits are left to `Env.max_steps`. `info` has the metrics of
    Jumanji as changes, so that their sum over an episode is the last value, and `success` where an end is one.
    """

    default_params = None
    differentiable = False

    def __init__(self, environment: Any):
        self.environment, self.kind = environment, type(environment).__name__
        entries = _leaves(environment.observation_spec)
        mask = entries.pop((MASK,), None)
        self.entries = {path: self._entry(path, spec) for path, spec in entries.items() if path[-1] not in HIDDEN}
        self._actions, self.sizes = self._action_space(environment.action_spec, mask)
        if self.kind in REUSES_KEYS:
            self.reuses_keys = REUSES_KEYS[self.kind]
        spaces: dict[tuple[str, ...], Any] = {path: space for path, (space, _) in self.entries.items()}
        self.legal = None if mask is None else (*self._actions.shape, self._actions.n)  # the shape of the mask
        if self.legal:
            spaces[(MASK,)] = Box(0, 1, self.legal, jnp.bool_)
        self._observations = Dict(_nested(spaces, Dict))

    def _entry(self, path: tuple[str, ...], spec: Any) -> tuple[Any, float]:
        """The space of a part of the observation; and what it is divided by, or of a category its least number."""
        shape, name = tuple(spec.shape), path[-1]
        if name in GRIDS and len(shape) == 2:
            shape = (*shape, 1)
        elif name not in GRIDS and len(shape) > 2:  # what is no image has no shape of one
            shape = (shape[0], math.prod(shape[1:]))
        if spec.dtype == jnp.bool_:
            return Box(0, 1, shape, jnp.bool_), 1.0
        bounds = BOUNDS.get((self.kind, name))
        if bounds:
            low, high = bounds(self.environment)
        else:
            low, high = np.min(spec.minimum).item(), np.max(spec.maximum).item()
        integer = jnp.issubdtype(spec.dtype, jnp.integer)
        if integer and name not in QUANTITIES and (low, high) != (0, 1):
            return Discrete(high - low + 1, shape=shape), low
        size = max(abs(low), abs(high), 1.0)
        return Box(low / size, high / size, shape), size

    def _action_space(self, spec: Any, mask: Any) -> tuple[Any, tuple[int, ...] | None]:
        """The space; and the numbers of choices of the parts of an action that is one number."""
        if jnp.issubdtype(spec.dtype, jnp.floating):
            low, high = np.min(spec.minimum).item(), np.max(spec.maximum).item()
            return Box(low, high, (math.prod(spec.shape),)), None
        if self.kind in ROWS:
            return Discrete(mask.shape[-1], shape=tuple(spec.shape)), None
        sizes = tuple(np.atleast_1d(spec.num_values).tolist())
        return Discrete(math.prod(sizes)), sizes if spec.shape else None

    def reset(self, key, params) -> tuple[Any, Any]:
        state, timestep = self.environment.reset(key)
        extras = {name: jnp.float32(0) for name in timestep.extras or {}}
        return self._seen(timestep.observation), Game(_with_key(state, None), extras)

    def step(self, key, state, action, params):
        with warnings.catch_warnings():  # BinPack writes float32 numbers, which are whole, into arrays of int32
            warnings.filterwarnings("ignore", message="scatter inputs have incompatible", category=FutureWarning)
            new, timestep = self.environment.step(_with_key(state.state, key), self._taken(action))
        info = self._reported(new, timestep, state.extras)
        extras = {name: jnp.float32(timestep.extras[name]) for name in state.extras}
        # A state may come back with counters of another integer type.
        new = jax.tree.map(lambda x, old: jnp.asarray(x, jnp.result_type(old)), _with_key(new, None), state.state)
        limit = timestep.last() & ~info["success"] if self.kind in OWN_LIMIT else jnp.bool_(False)
        reward = jnp.sum(timestep.reward, dtype=jnp.float32)
        return self._seen(timestep.observation), Game(new, extras), reward, timestep.last() & ~limit, limit, info

    def _taken(self, action):
        """Jumanji's action for one of ours."""
        spec = self.environment.action_spec
        if self.sizes is not None:
            action = jnp.stack(jnp.unravel_index(action, self.sizes))
        return action.reshape(spec.shape).astype(spec.dtype)

    def _seen(self, observation):
        """Our observation for one of Jumanji's."""
        seen = {}
        for path, (space, number) in self.entries.items():
            x = jnp.asarray(_at(observation, path)).reshape(space.shape)
            x = jnp.maximum(x, 0) if path[-1] in COUNTDOWNS else x
            if isinstance(space, Discrete):
                seen[path] = x.astype(jnp.int32) - number
            else:
                seen[path] = x if space.dtype == jnp.bool_ else x.astype(jnp.float32) / number
        if self.legal:
            seen[(MASK,)] = allowed(observation.action_mask.reshape(self.legal))
        return _nested(seen, dict)

    def _reported(self, state, timestep, before):
        info = {}
        for name, old in before.items():
            value = timestep.extras[name]
            info[name] = value if value.dtype == jnp.bool_ else jnp.float32(value) - old
        if self.kind in SUCCESS:
            info["success"] = timestep.last() & SUCCESS[self.kind](state)
        return info

    def horizon(self, params):
        return HORIZONS[self.kind](self.environment) if self.kind in HORIZONS else None

    def observation_space(self, params):
        return self._observations

    def action_space(self, params):
        return self._actions

    @property
    def frames(self):
        """For what can be drawn on a grid or a map."""
        if self.kind not in JUMANJI:
            raise AttributeError("frames")
        return partial(drawn_by(JUMANJI[self.kind]), self)


def _with_key(state: Any, key: Any) -> Any:
    """A copy of a state with this key, where it holds one."""
    return dataclasses.replace(state, **({"key": key} if hasattr(state, "key") else {}))


def _same(a: Any, b: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(x == y) for x, y in zip(a, b, strict=True)]))


def _leaves(spec: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The specs of arrays within one of Jumanji by their paths."""
    inner = spec._specs
    if not inner:
        return {path: spec}
    return {name: leaf for key, part in inner.items() for name, leaf in _leaves(part, (*path, key)).items()}


def _at(observation: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        observation = getattr(observation, name)
    return observation


def _nested(leaves: dict[tuple[str, ...], Any], kind: Any) -> dict[str, Any]:
    """What stands at paths of names, as dictionaries in one; those within it are made a `kind`."""
    tree = {path[0]: leaf for path, leaf in leaves.items() if len(path) == 1}
    deeper: dict[str, dict] = {}
    for path, leaf in leaves.items():
        if len(path) > 1:
            deeper.setdefault(path[0], {})[path[1:]] = leaf
    return {**tree, **{name: kind(_nested(inner, kind)) for name, inner in deeper.items()}}


def make(name: str, **options: Any) -> Env:
    """`options` go to the environment's constructor: `time_limit=200`, `generator=...`, `num_rows=8`, ...

    The time limit is that of `Env.max_steps`, and truncates. MMST and SearchAndRescue keep theirs too, which
    `max_steps` can shorten; a longer one is the option `time_limit`.

    Raises:
        ValueError: when Jumanji is not installed, or an option is not one of the environment's.
    """
    try:
        from jumanji.registration import make as made  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise ValueError(f"jumanji/{name} needs another package: pip install 'rlx[jumanji]' ({error})") from error
    try:
        game: Any = made(name, **options)
    except TypeError as error:
        raise ValueError(f"jumanji/{name}: {error}; options are those of its constructor in Jumanji") from error
    limit = getattr(game, "time_limit", None)
    environment = Jumanji(game)
    if limit is not None and environment.kind not in OWN_LIMIT:
        game.time_limit = NEVER  # its specs, which are of this size, have been made
    return Env(environment, max_steps=limit, params=None, lazy_starts=True)
