"""Pictures of environments: by MuJoCo, and by Matplotlib where an environment has no renderer of its own."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlx.env import EnvState


def camera_names(model: Any) -> list[str]:
    """The cameras of a MuJoCo model."""
    return [model.camera(i).name for i in range(model.ncam)]


def gl_context() -> None:
    """Lets MuJoCo draw without a display: by EGL where there is none and MUJOCO_GL does not say otherwise.

    MuJoCo decides by MUJOCO_GL when it is imported; this decides when something is drawn.

    Raises:
        ValueError: where EGL cannot be had either.
    """
    if sys.platform != "linux" or os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY"):
        return
    from mujoco.rendering.classic import gl_context as chosen

    try:
        from mujoco.egl import GLContext
    except Exception as error:  # what PyOpenGL raises differs from one missing library to the next
        raise ValueError(
            f"there is no display, and without one EGL is needed ({error}): install libegl1, or set MUJOCO_GL"
        ) from error
    chosen.GLContext = GLContext


def mujoco_frames(model: Any, place: Callable[[Any, Any], None], states: Sequence[Any], width, height, camera):
    """Images of a MuJoCo model, `place(data, state)` filling in its positions; the camera is a name, or its first."""
    import mujoco

    gl_context()
    cameras = camera_names(model)
    if camera is not None and camera not in cameras:
        raise ValueError(f"--camera {camera}: there is no such camera; there are {', '.join(cameras) or 'none'}")
    model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
    model.vis.global_.offheight = max(height, model.vis.global_.offheight)
    data, images = mujoco.MjData(model), []  # pyright: ignore[reportAttributeAccessIssue] (compiled)
    with mujoco.Renderer(model, height=height, width=width) as renderer:
        for state in states:
            place(data, state)
            mujoco.mj_forward(model, data)  # pyright: ignore[reportAttributeAccessIssue] (compiled)
            renderer.update_scene(data, camera=camera or (0 if cameras else -1))
            images.append(renderer.render())
    return images


def matplotlib_frames(draw: Callable[[Any, EnvState], None], env_states: Sequence[EnvState], width, height):
    """Images of what `draw(axes, env_state)` draws into empty axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas, images = FigureCanvasAgg(figure), []
    for env_state in env_states:
        figure.clear()
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_aspect("equal")
        axes.axis("off")
        draw(axes, env_state)
        canvas.draw()
        images.append(np.array(canvas.buffer_rgba())[..., :3])
    return images


INK, WARM, COOL, GREY = "#33415c", "#d4843e", "#3e7cb1", "#c9ced8"


def drawn_by(draw: Callable) -> Callable:
    """The method `frames` (see rlx.run.render) of an environment that `draw` draws."""

    def frames(self, env_states, params, width, height, camera):
        return matplotlib_frames(lambda axes, env_state: draw(axes, env_state, params), env_states, width, height)

    return frames
