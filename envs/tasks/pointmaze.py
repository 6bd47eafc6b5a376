"""PointMaze: a ball that is pushed through a maze to a goal, with walls that stop it.

After the task of the same name in D4RL (Fu et al. 2020, arXiv:2004.07219), of which it has the idea, the sizes of the
mazes, the reward and what counts as success; layouts and physics are rlx's own. The mazes have loops: between most
places there are two ways.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, WARM, drawn_by
from rlx.pytree import pytree
from rlx.spaces import Box


def draw(axes, env_state, params):
    """PointMaze from above: walls, the ball, and the goal with the distance that counts as success."""
    from matplotlib.patches import Circle

    walls, state = np.asarray(params.walls), env_state.state
    axes.imshow(np.where(walls, 0.3, 1.0), cmap="gray", vmin=0, vmax=1, extent=(0, walls.shape[1], walls.shape[0], 0))
    axes.add_patch(Circle(state.goal[::-1], float(params.success_distance), color=WARM, alpha=0.5))
    axes.add_patch(Circle(state.position[::-1], float(params.radius), color=COOL))


# (rows, steps an episode); a row is one metre, `#` a wall
MAZES = {
    "medium": (
        """
        ########
        #......#
        #.##.#.#
        #.#..#.#
        #...##.#
        #.#....#
        #...##.#
        ########
        """,
        150,
    ),
    "large": (
        """
        ############
        #....#.....#
        #.##.#.###.#
        #.#......#.#
        #...##.#...#
        #.#....#.#.#
        #.##.###.#.#
        #..........#
        ############
        """,
        250,
    ),
}
# Walls beside the ball before walls that it can only touch with a corner: along a row of cells there is nothing to hit.
SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
SUBSTEPS = 2


@pytree
class Params:
    walls: jax.Array | np.ndarray  # bool [X, Y]: cell `[i, j]` spans `[i, i + 1] x [j, j + 1]` m; walled all around
    radius: float = 0.2  # m
    max_acceleration: float = 20.0  # m/s^2, of a full push
    drag: float = 0.25  # 1/s
    max_speed: float = 5.0  # m/s an axis; in one substep the ball must move less than its radius
    success_distance: float = 0.45  # m
    spread: float = 0.25  # m, of start and goal around the middle of their cells
    dt: float = 0.05  # s


@pytree
class State:
    position: jax.Array  # [2], m
    velocity: jax.Array  # [2], m/s
    goal: jax.Array  # [2], m


def layout(rows: str) -> np.ndarray:
    """Walls `[X, Y]` of a maze that is drawn with `#` and `.`; x goes down, y to the right."""
    return np.array([[cell == "#" for cell in row] for row in rows.split()])


class PointMaze:
    """Observes position, velocity and goal `[6]`, positions from the middle of the maze; is given a push `[2]`.

    The reward is `exp(-distance to the goal)` in metres; `info["success"]` tells whether that is below 0.45. Episodes
    go on at the goal.
    """

    default_params = Params(layout(MAZES["medium"][0]))
    frames = drawn_by(draw)

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (6,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def reset(self, key, params):
        cell_key, other_key, spread_key = jax.random.split(key, 3)
        free = ~jnp.asarray(params.walls).reshape(-1)
        start = jax.random.categorical(cell_key, jnp.where(free, 0.0, -jnp.inf))
        others = free & (jnp.arange(free.size) != start)
        goal = jax.random.categorical(other_key, jnp.where(others, 0.0, -jnp.inf))
        cells = jnp.stack(jnp.divmod(jnp.stack([start, goal]), params.walls.shape[1]), axis=-1)
        places = cells + 0.5 + params.spread * jax.random.uniform(spread_key, (2, 2), minval=-1.0, maxval=1.0)
        state = State(places[0], jnp.zeros(2), places[1])
        return _obs(state, params), state

    def step(self, key, state, action, params):
        push = params.max_acceleration * jnp.clip(action, -1.0, 1.0)
        position, velocity, dt = state.position, state.velocity, params.dt / SUBSTEPS
        for _ in range(SUBSTEPS):
            velocity = velocity + (push - params.drag * velocity) * dt
            velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
            position, velocity = collide(position + velocity * dt, velocity, params.walls, params.radius)
        state = State(position, velocity, state.goal)
        distance = jnp.linalg.norm(position - state.goal)
        info = {"success": distance < params.success_distance}
        return _obs(state, params), state, jnp.exp(-distance), jnp.array(False), jnp.array(False), info


def collide(
    position: jax.Array, velocity: jax.Array, walls: jax.Array, radius: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Position and velocity `[2]` after contact of a ball with the walls, whose middle is not inside of one.

    Where it overlaps a wall it is moved out along the shortest way, and the velocity into the wall is taken from it:
    no bounce, no friction.
    """
    walls, home = jnp.asarray(walls), jnp.floor(position).astype(jnp.int32)
    for offset in SIDES + CORNERS:
        cell = home + jnp.array(offset)
        nearest = jnp.clip(position, cell, cell + 1)
        gap = position - nearest
        distance = jnp.sqrt(jnp.maximum(jnp.sum(gap**2), 1e-12))
        normal = gap / distance
        hit = walls[cell[0], cell[1]] & (distance < radius)
        position = jnp.where(hit, nearest + radius * normal, position)
        velocity = jnp.where(hit, velocity - jnp.minimum(velocity @ normal, 0.0) * normal, velocity)
    return position, velocity


def _obs(state, params):
    middle = jnp.array(params.walls.shape) / 2.0
    return jnp.concatenate([state.position - middle, state.velocity, state.goal - middle])


def make(size: str) -> Env:
    rows, max_steps = MAZES[size]
    return Env(PointMaze(), Params(layout(rows)), max_steps=max_steps)
