"""Drawings of environments that have no renderer of their own, each a `draw(axes, env_state, params)`."""

from collections.abc import Callable

import numpy as np

from rlx.render import matplotlib_frames

INK, WARM, COOL, GREY = "#33415c", "#d4843e", "#3e7cb1", "#c9ced8"


def drawn_by(draw: Callable) -> Callable:
    """The method `frames` (see rlx.render) of an environment that `draw` draws."""

    def frames(self, env_states, params, width, height, camera):
        return matplotlib_frames(lambda axes, env_state: draw(axes, env_state, params), env_states, width, height)

    return frames


def cartpole(axes, env_state, params):
    x, angle = float(env_state.state.x), float(env_state.state.theta)
    reach = float(params.x_threshold)
    axes.set(xlim=(-reach, reach), ylim=(-0.5, 1.5))
    axes.axhline(0, color=GREY, lw=1)
    axes.plot([x - 0.25, x + 0.25], [0, 0], color=INK, lw=12, solid_capstyle="butt")
    length = 2 * float(params.length)
    axes.plot([x, x + length * np.sin(angle)], [0, length * np.cos(angle)], color=WARM, lw=6, solid_capstyle="round")


def pendulum(axes, env_state, params):
    angle = float(env_state.state.theta)
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.2, 1.2))
    axes.plot([0, np.sin(angle)], [0, np.cos(angle)], color=WARM, lw=8, solid_capstyle="round")
    axes.plot(0, 0, "o", color=INK, ms=8)


def acrobot(axes, env_state, params):
    first = float(env_state.state.joint_angle1)
    second = first + float(env_state.state.joint_angle2)
    elbow = np.array([np.sin(first), -np.cos(first)])
    hand = elbow + np.array([np.sin(second), -np.cos(second)])
    axes.set(xlim=(-2.9, 2.9), ylim=(-2.2, 2.2))
    axes.axhline(1, color=GREY, lw=1)
    for a, b, color in (((0, 0), elbow, COOL), (elbow, hand, WARM)):
        axes.plot([a[0], b[0]], [a[1], b[1]], "o-", color=color, lw=6, ms=7, mfc=INK, mec=INK, solid_capstyle="round")


def mountain_car(axes, env_state, params):
    height = lambda x: 0.45 * np.sin(3 * x) + 0.55
    x, xs = float(env_state.state.position), np.linspace(float(params.min_position), float(params.max_position), 100)
    axes.set(xlim=(xs[0], xs[-1]), ylim=(0, 1.2))
    axes.plot(xs, height(xs), color=INK, lw=1.5)
    goal = float(params.goal_position)
    axes.plot([goal, goal], [height(goal), height(goal) + 0.15], color=WARM, lw=3)
    axes.plot(x, height(x) + 0.04, "o", color=COOL, ms=12)


def channels(axes, env_state, params):
    """An observation `[H, W, C]`, as MinAtar's: a colour a channel, later channels over earlier ones."""
    import matplotlib

    obs = np.asarray(env_state.obs)
    image = np.ones((*obs.shape[:2], 3))
    for i in range(obs.shape[2]):
        image[obs[..., i] > 0] = matplotlib.colormaps["tab10"](i % 10)[:3]
    axes.imshow(image, interpolation="nearest")


def maze(axes, env_state, params):
    """PointMaze from above: walls, the ball, and the goal with the distance that counts as success."""
    from matplotlib.patches import Circle

    walls, state = np.asarray(params.walls), env_state.state
    axes.imshow(np.where(walls, 0.3, 1.0), cmap="gray", vmin=0, vmax=1, extent=(0, walls.shape[1], walls.shape[0], 0))
    axes.add_patch(Circle(state.goal[::-1], float(params.success_distance), color=WARM, alpha=0.5))
    axes.add_patch(Circle(state.position[::-1], float(params.radius), color=COOL))


def goals(axes, env_state, params):
    """MultiGoal: the point, where it is heading, and the goals."""
    from rlx.envs import multigoal

    (x, y), (u, v), limit = env_state.state.position, env_state.state.velocity, float(params.limit)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.plot(*multigoal.goals(params).T, "o", color=WARM, ms=14, alpha=0.6)
    axes.plot([x, x + 0.3 * u], [y, y + 0.3 * v], color=COOL, lw=2)
    axes.plot(x, y, "o", color=INK, ms=8)


def grid(axes, env_state, params):
    """GridWorld: free cells, walls, goals and death, and where one is."""
    from matplotlib.colors import ListedColormap

    axes.imshow(np.asarray(params.cells).T, cmap=ListedColormap(["white", INK, WARM, "#c0392b"]), vmin=0, vmax=3)
    axes.plot(*env_state.state, "o", color=COOL, ms=7)


def level(axes, env_state, params):
    """A grid world of `rlx/Levels`: walls, objects by what they are worth, and where one is."""
    from matplotlib.colors import ListedColormap

    axes.imshow(np.asarray(params.walls).T, cmap=ListedColormap(["white", INK]), vmin=0, vmax=1)
    for (x, y), there, reward in zip(params.place, env_state.state.there, params.reward, strict=True):
        if there:
            axes.plot(x, y, "s", color=WARM if reward > 0 else "#c0392b", ms=4 + 10 * abs(float(reward)))
    axes.plot(*env_state.state.place, "o", color=COOL, ms=9)


GYMNAX = {
    "CartPole-v1": cartpole,
    "Pendulum-v1": pendulum,
    "Acrobot-v1": acrobot,
    "MountainCar-v0": mountain_car,
    "MountainCarContinuous-v0": mountain_car,
}
