"""Pictures of gymnax's environments, each a `draw(axes, env_state, params)`."""

import numpy as np

from rlx.envs.frames import COOL, GREY, INK, WARM


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


GYMNAX = {
    "CartPole-v1": cartpole,
    "Pendulum-v1": pendulum,
    "Acrobot-v1": acrobot,
    "MountainCar-v0": mountain_car,
    "MountainCarContinuous-v0": mountain_car,
}
