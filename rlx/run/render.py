"""Seeing what a policy does: an episode as a GIF, a film, a filmstrip or a page, by `record` and `write`.

An environment that can be drawn has a method `frames(env_states, params, width, height, camera)`, which gives an image,
uint8 `[H, W, 3]`, for each `EnvState`; one that knows how long a step takes has `dt` in seconds.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env, EnvState
from rlx.multiagent import folded, unfolded
from rlx.policy import acting
from rlx.train import EVALUATION, Current, now

FORMATS = (".gif", ".mp4", ".png", ".html")
FRAMES_PER_SECOND = 25.0
STRIP = 8  # images of a filmstrip
STEP_SECONDS = 0.05  # where the environment does not say


@partial(jax.jit, static_argnames=("algorithm", "num_steps", "deterministic"))
def _play(algorithm, config, env, state, key, num_steps, deterministic):
    reset_key, steps_key = jax.random.split(jax.random.fold_in(key, EVALUATION))
    config = now(config, state)
    policy, start = acting(algorithm, config, env, state, deterministic)

    def step(carry, time):
        env_state, memory = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(steps_key, time))
        action, _, memory = policy(folded(env, jax.tree.map(lambda x: x[None], env_state.obs)), act_key, memory)
        stepped, transition = env.advance(env_key, env_state, jax.tree.map(lambda x: x[0], unfolded(env, action)))
        return (stepped, memory), (env_state, transition.done, transition.episode_return.mean())

    begin = env.reset(reset_key), start(env.num_agents)
    (last, _), (states, done, returns) = jax.lax.scan(step, begin, jnp.arange(num_steps))
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), states, last), done, returns


def record(
    algorithm: Any,
    config: Any,
    env: Env,
    state: Any,
    key: jax.Array,
    num_steps: int = 1000,
    deterministic: bool = True,
) -> tuple[list[EnvState], float]:
    """One episode from a fresh start: its states in order, the last one included, and its return.

    It ends with the episode or after `num_steps`.
    """
    limit = num_steps if env.horizon is None else min(num_steps, env.horizon)
    states, done, returns = jax.device_get(_play(Current(algorithm), config, env, state, key, limit, deterministic))
    length = int(np.argmax(done)) + 1 if done.any() else limit
    at = lambda i: jax.tree.map(lambda x: x[i], states)
    return [at(i) for i in range(length + 1)], float(returns[length - 1])


def check_output(env: Env, path: Path, camera: str | None = None) -> None:
    """Raises ValueError where no picture of this environment can be written to such a file, or by such a camera."""
    if path.suffix not in FORMATS:
        raise ValueError(f"--output {path}: the name has to end in one of {', '.join(FORMATS)}")
    drawn = hasattr(env.environment, "html" if path.suffix == ".html" else "frames")
    if not drawn and path.suffix == ".html":
        raise ValueError(f"--output {path}: only Brax environments have a page; write a .gif, .mp4 or .png")
    if not drawn:
        raise ValueError("this environment cannot be drawn: give it a method frames, see rlx/run/render.py")
    if path.suffix == ".mp4":
        _mediapy()
    cameras = getattr(env.environment, "cameras", lambda params: [])(env.settled)
    if camera is not None and (path.suffix == ".html" or camera not in cameras):
        known = f"there are {', '.join(cameras)}" if cameras and path.suffix != ".html" else "leave it out"
        raise ValueError(f"--camera {camera}: there is no such camera; {known}")


def write(
    env: Env, env_states: Sequence[EnvState], path: Path, width: int = 320, height: int = 240, camera: str | None = None
) -> None:
    """Draws the states of an episode into a file, whose ending says how.

    `.gif` and `.mp4` play at the pace of the environment, leaving out what is more than 25 frames a second; `.png` is a
    filmstrip of 8 images that are evenly spread over the episode; `.html` is Brax's page.

    Raises:
        ValueError: for another ending, an environment that cannot be drawn in this way, or what is missing for it.
    """
    check_output(env, path, camera)
    environment: Any = env.environment  # that draws, see `check_output`
    params = env.settled
    dt = getattr(environment, "dt", STEP_SECONDS)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        path.write_text(environment.html(env_states, params))
        return
    if path.suffix == ".png":
        chosen = _spread(len(env_states))
        dt = 0.0
    else:
        every = max(1, round(1.0 / (FRAMES_PER_SECOND * dt)))
        chosen, dt = range(0, len(env_states), every), every * dt
    images = environment.frames([env_states[i] for i in chosen], params, width, height, camera)
    if path.suffix == ".mp4":
        _mediapy().write_video(path, images, fps=1.0 / dt)
        return
    from PIL import Image

    if path.suffix == ".png":
        Image.fromarray(np.concatenate(list(images), axis=1)).save(path, optimize=True)
        return
    # One palette for all frames, so that what stands still is the same in each and takes no space.
    some = np.concatenate([images[i] for i in _spread(len(images))], axis=1)
    palette = Image.fromarray(some).quantize(64, dither=Image.Dither.NONE)
    frames = [Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 * dt), loop=0, optimize=True)


def _spread(length: int) -> np.ndarray:
    """Indices of at most 8 evenly spread images, the first and the last among them."""
    return np.linspace(0, length - 1, min(STRIP, length)).round().astype(int)


def _mediapy() -> Any:
    import shutil

    try:
        import mediapy  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise ValueError("films need mediapy: pip install 'rlx[film]', or write a .gif") from error
    if shutil.which("ffmpeg") is None:
        raise ValueError("films need ffmpeg, which is not on the path: install it, or write a .gif")
    return mediapy
