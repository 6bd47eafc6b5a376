"""Environments of rlx as environments of Gymnasium, one at a time and many at once.

    env = GymnasiumEnv("CartPole-v1", render_mode="rgb_array")
    envs = GymnasiumVectorEnv("brax/ant", num_envs=64)

A step is one call of a compiled program and one transfer to the host, whatever the observation is made of. Environments
of one kind share their programs.

**Seeds.** `reset(seed=s)` draws 64 bits from Gymnasium's `np_random` of that seed. They and the number of resets since
give each episode its key, so that the same seed gives the same episodes. Environment i of a vector with seed s is the
single one with seed s + i.

**Ends.** A time limit, of the suite or `max_steps`, is `truncated`. The observation of `step` is the true successor,
also where an episode ends: the vector environment is of `AutoresetMode.NEXT_STEP`, Gymnasium's default. The step after
the end of an episode takes no notice of its action and gives the first observation of the next one, with a reward of 0.

**info** has what the environment reports in each step by its dotted names, as `rlx.env.reports` names them. It is empty
after a reset. `diverged` is True in steps with numbers that are not finite, which end their episode.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jax.tree_util import keystr, tree_leaves_with_path

from rlx.env import Env, EnvState
from rlx.envs.gymnasium_spaces import shown, taken, to_gymnasium
from rlx.envs.packed import Layout
from rlx.envs.registry import full_name, make
from rlx.multiagent import check_one_agent
from rlx.pytree import pytree
from rlx.run.render import STEP_SECONDS
from rlx.spaces import Box, Discrete, named, parts


@pytree
class Play:
    """An episode under way, and where the next ones come from."""

    words: jax.Array  # uint32 [2], the seed
    number: jax.Array  # int32, of the episode since it was given
    key: jax.Array  # of the steps of this episode
    env_state: EnvState
    over: jax.Array  # bool, the last step ended it


def _episode(env: Env, words: jax.Array, number: jax.Array) -> Play:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(words[0]), words[1]), number)
    reset_key, steps_key = jax.random.split(key)
    return Play(words, number, steps_key, env.reset(reset_key), jnp.bool_(False))


def _restart(env: Env, play: Play, words: jax.Array, seeded: jax.Array, chosen: jax.Array) -> Play:
    """Where it is chosen, the next episode, or the first one of a seed that is given."""
    new = _episode(env, jnp.where(seeded, words, play.words), jnp.where(seeded, 0, play.number + 1))
    return _where(chosen, new, play)


def _step(env: Env, play: Play, action: Any) -> tuple[Play, tuple]:
    key = jax.random.fold_in(play.key, play.env_state.time)
    env_state, transition = env.advance(key, play.env_state, action)
    leaves = tree_leaves_with_path(transition.info)
    info = {keystr(path, simple=True, separator=".") or "info": x for path, x in leaves}
    info["diverged"] = transition.diverged
    shown = (transition.next_obs, transition.reward, transition.terminated, transition.truncated, info)
    return Play(play.words, play.number, play.key, env_state, transition.done), shown


def _step_all(env: Env, play: Play, action: Any) -> tuple[Play, tuple]:
    """A step of all `[N]`, or the next episode where the last one is over; `info` is that of those that did step."""
    stepped, (obs, reward, terminated, truncated, info) = jax.vmap(partial(_step, env))(play, action)
    begin = jax.vmap(lambda old: _episode(env, old.words, old.number + 1))
    new = jax.lax.cond(play.over.any(), begin, lambda old: old, play)  # resets may be dear
    chosen = jax.vmap(_where)
    obs = chosen(play.over, new.env_state.obs, obs)
    shown = (obs, jnp.where(play.over, 0.0, reward), terminated & ~play.over, truncated & ~play.over, info, ~play.over)
    return chosen(play.over, new, stepped), shown


def _where(chosen: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), new, old)


class Programs(NamedTuple):
    """What is compiled for environments of one kind; an episode goes in and comes out as one array, see `packed`."""

    restart: Callable  # leaves of the Env, episode, words, seeded, chosen -> episode, observation
    step: Callable  # leaves of the Env, episode, action -> episode, what is shown
    play: Layout
    obs: Layout
    shown: Layout


@cache
def programs(structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], num: int | None, x64: bool) -> Programs:
    """For an `Env` of this structure and with leaves of these shapes; `num` of them at once, or one where it is None.

    Its parameters are arguments of the programs: others need no new ones. `x64` is JAX's mode, which decides on dtypes.
    """
    of = lambda leaves: jax.tree.unflatten(structure, leaves)
    words, number = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((), jnp.int32)
    begin, restarted, step = (lambda leaves, *x: _episode(of(leaves), *x)), _restart, _step
    action = jax.eval_shape(lambda leaves, key: of(leaves).action_space.sample(key), shapes, jax.random.key(0))
    if num is not None:
        many = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), tree)
        words, number, action = many((words, number, action))
        begin = jax.vmap(begin, in_axes=(None, 0, 0))
        restarted, step = jax.vmap(_restart, in_axes=(None, 0, 0, 0, 0)), _step_all
    play = jax.eval_shape(begin, shapes, words, number)
    shown = jax.eval_shape(lambda leaves, *x: step(of(leaves), *x)[1], shapes, play, action)
    layouts = Layout.of(play), Layout.of(play.env_state.obs), Layout.of(shown)

    @jax.jit
    def restart_program(leaves, data, words, seeded, chosen):
        new = restarted(of(leaves), layouts[0].unpack(data), words, seeded, chosen)
        return layouts[0].pack(new), layouts[1].pack(new.env_state.obs)

    @jax.jit
    def step_program(leaves, data, action):
        new, shown = step(of(leaves), layouts[0].unpack(data), action)
        return layouts[0].pack(new), layouts[2].pack(shown)

    return Programs(restart_program, step_program, *layouts)


class GymnasiumEnv(gymnasium.Env):
    """An environment of rlx as a `gymnasium.Env`; see the head of this file.

    `rlx_env` is the environment. `spec`, which `gymnasium.make` takes, is there where it was given by name.

    Args:
        env: an `rlx.Env`, or the name of one.
        render_mode: "rgb_array" for images from `render()`, uint8 `[height, width, 3]`.
        width: of images, in pixels.
        height: of images, in pixels.
        camera: name of one of the model's cameras; by default its first.
        options: of an environment by name, as `rlx.envs.make` has them, such as `max_steps`.

    Raises:
        ValueError: for what is no environment or has spaces that Gymnasium does not have; for another `render_mode`, or
            any where the environment cannot be drawn.
    """

    # Of the class, for gymnasium.make; an environment has its own.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": round(1 / STEP_SECONDS)}  # noqa: RUF012

    def __init__(
        self,
        env: Env | str,
        *,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        camera: str | None = None,
        **options: Any,
    ):
        self.rlx_env, self.spec = _given(env, options), _spec(env, options)
        self.metadata, self.render_mode = _drawing(self.rlx_env, render_mode, camera), render_mode
        self.observation_space = to_gymnasium(self.rlx_env.observation_space)
        self.action_space = to_gymnasium(self.rlx_env.action_space)
        self._size, self._show, self._take = (width, height, camera), *_elements(self.rlx_env)
        self._leaves, self._programs = _compiled(self.rlx_env, None)
        self._words, self._data, self._over = None, None, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new episode: the first observation, and an empty `info`.

        With a seed it is the first episode of that seed, without one the next; at first the seed is drawn by the
        system. There are no options.

        Raises:
            ValueError: for options.
        """
        super().reset(seed=seed)
        if options:
            raise ValueError(f"options {', '.join(options)}: there are none; give options of the environment to make")
        seeded = seed is not None or self._words is None
        if seeded:
            self._words = _words(self.np_random)
        data = np.zeros(self._programs.play.num_words, np.uint32) if self._data is None else self._data
        self._data, obs = self._programs.restart(self._leaves, data, self._words, np.bool_(seeded), np.True_)
        self._over = False
        return self._show(self._programs.obs.views(np.array(obs))), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step: `obs, reward, terminated, truncated, info`.

        Raises:
            ValueError: for an action of another shape or structure, or a choice that there is not. Bounds of a Box are
                the environment's matter.
            gymnasium.error.ResetNeeded: before the first reset, after the end of an episode, and after `close`.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("there is no episode, or it has ended: call reset() first")
        self._data, shown = self._programs.step(self._leaves, self._data, self._take(action))
        # A copy: what JAX gives cannot be written to, and may not be kept.
        obs, reward, terminated, truncated, info = self._programs.shown.views(np.array(shown))
        terminated, truncated = terminated.item(), truncated.item()
        self._over = terminated or truncated
        info = {name: x.item() if x.dtype == np.bool_ and not x.shape else x[()] for name, x in info.items()}
        return self._show(obs), reward.item(), terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """The present state as an image, uint8 `[height, width, 3]`; None, with a warning, without a `render_mode`."""
        if (states := _states(self, self._data)) is None:
            return None
        return _images(self.rlx_env, [states], self._size)[0]

    def close(self) -> None:
        """Ends the episode. Nothing else is held; `reset` begins another one."""
        self._over, self._data, self._words = True, None, None


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
    """Environments of rlx as a `gymnasium.vector.VectorEnv`, all stepped by one program; see the head of this file.

    Each has the episodes that a `GymnasiumEnv` has. Rewards are float64 `[num_envs]`, as those of `SyncVectorEnv`, and
    `info` has for each name the values of all environments, and with `_` before it a mask of those that stepped.

    Args:
        env: an `rlx.Env`, or the name of one.
        num_envs: how many.
        render_mode: as of `GymnasiumEnv`; `render()` gives a tuple of images.
        width: of images, in pixels.
        height: of images, in pixels.
        camera: name of one of the model's cameras; by default its first.
        options: of an environment by name, as `rlx.envs.make` has them.

    Raises:
        ValueError: as `GymnasiumEnv`, and for a number below 1.
    """

    metadata: dict[str, Any] = GymnasiumEnv.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        env: Env | str,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        camera: str | None = None,
        **options: Any,
    ):
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs = {num_envs!r}: give a whole number of at least 1")
        self.rlx_env, self.num_envs, self.spec = _given(env, options), int(num_envs), _spec(env, options)
        self.metadata, self.render_mode = _drawing(self.rlx_env, render_mode, camera), render_mode
        self.metadata["autoreset_mode"] = AutoresetMode.NEXT_STEP
        self.single_observation_space = to_gymnasium(self.rlx_env.observation_space)
        self.single_action_space = to_gymnasium(self.rlx_env.action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._size, self._show, self._take = (width, height, camera), *_elements(self.rlx_env, (self.num_envs,))
        self._leaves, self._programs = _compiled(self.rlx_env, self.num_envs)
        self._data = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """New episodes: the first observations `[num_envs, ...]`, and an empty `info`.

        Args:
            seed: that of the first environment, the others have the following ones; or one for each, where None is the
                next episode of that environment. Without a seed all have their next ones.
            options: `{"reset_mask": bool [num_envs]}` leaves those alone where it is False.

        Raises:
            ValueError: for another number of seeds, another mask, or other options.
        """
        super().reset(seed=seed if isinstance(seed, int | np.integer) else None)
        seeds = self._seeds(seed)
        mask = np.ones(self.num_envs, bool)
        if options:
            mask = np.asarray(options.get("reset_mask", mask))
            if [*options] != ["reset_mask"] or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise ValueError(f"options {options}: there is reset_mask, a bool array of shape [{self.num_envs}]")
        seeded, data = np.array([s is not None for s in seeds]), self._data
        if data is None:
            if not mask.all():
                raise ValueError("reset_mask is for later resets: the first one is of all environments")
            seeded[:], data = True, np.zeros(self._programs.play.num_words, np.uint32)
        words = [_words(self.np_random if s is None else seeding.np_random(s)[0]) for s in seeds]
        self._data, obs = self._programs.restart(self._leaves, data, np.array(words), seeded, mask)
        return self._show(self._programs.obs.views(np.array(obs))), {}

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments: give one for each, or one number")
        return list(seed)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of all: `obs, rewards, terminated, truncated, info`, arrays `[num_envs, ...]`.

        An environment whose episode ended in the step before begins its next one instead, whatever its action.

        Raises:
            ValueError: as `GymnasiumEnv.step`, for actions that are no batch.
            gymnasium.error.ResetNeeded: before the first reset and after `close`.
        """
        if self._data is None:
            raise gymnasium.error.ResetNeeded("there are no episodes: call reset() first")
        self._data, shown = self._programs.step(self._leaves, self._data, self._take(actions))
        obs, reward, terminated, truncated, info, stepped = self._programs.shown.views(np.array(shown))
        infos = {}
        if stepped.any():  # else all begin an episode, which reports nothing
            for name, x in info.items():
                infos[name] = np.where(stepped.reshape(-1, *(1 for _ in x.shape[1:])), x, np.zeros_like(x))
                infos[f"_{name}"] = stepped.copy()
        return self._show(obs), reward.astype(np.float64), terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """An image of each; None, with a warning, without a `render_mode`."""
        if (states := _states(self, self._data)) is None:
            return None
        each = [jax.tree.map(lambda x, i=i: x[i], states) for i in range(self.num_envs)]
        return tuple(_images(self.rlx_env, each, self._size))

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the episodes. Nothing else is held."""
        self._data = None


def _given(env: Any, options: dict[str, Any]) -> Env:
    if not isinstance(env, str) and not hasattr(env, "advance"):
        raise ValueError(
            f"env = {env!r} is no environment: give a name, rlx.envs.make(NAME), or rlx.Env around your own"
        )
    if not isinstance(env, str) and options:
        raise ValueError(f"{next(iter(options))} is an option of an environment by name: give it to rlx.envs.make")
    made = make(env, **options) if isinstance(env, str) else env
    check_one_agent(made, "an environment of Gymnasium")
    return made


def _spec(env: Any, options: dict[str, Any]) -> EnvSpec | None:
    """How `gymnasium.make` and `make_vec` make another one; an `Env` itself has no name to make it by."""
    if not isinstance(env, str):
        return None
    entries = (f"rlx.envs.bridge:{cls.__name__}" for cls in (GymnasiumEnv, GymnasiumVectorEnv))
    entry, vector = entries
    return EnvSpec(full_name(env), entry, kwargs={"env": env, **options}, vector_entry_point=vector)


def _drawing(env: Env, render_mode: str | None, camera: str | None) -> dict[str, Any]:
    """The metadata of an environment that is to be drawn in this way; raises ValueError where it cannot be."""
    environment: Any = env.environment
    modes = ["rgb_array"] if hasattr(environment, "frames") else []
    if render_mode is not None and not modes:
        raise ValueError("this environment cannot be drawn: leave render_mode out, or give it a method frames")
    if render_mode not in (None, *modes):
        raise ValueError(f"render_mode = {render_mode!r}: give 'rgb_array', or None")
    cameras = getattr(environment, "cameras", lambda params: [])(env.params)
    if camera is not None and camera not in cameras:
        raise ValueError(f"camera = {camera!r}: there is no such camera; there are {', '.join(cameras) or 'none'}")
    return {"render_modes": modes, "render_fps": round(1 / getattr(environment, "dt", STEP_SECONDS))}


def _elements(env: Env, batch: tuple[int, ...] = ()) -> tuple[Callable, Callable]:
    """What makes elements of Gymnasium's observation space, and what takes those of its action space."""
    seen, acted = parts(env.observation_space), parts(env.action_space)
    structure, spaces = jax.tree.structure(acted), named(env.action_space)
    show = lambda obs: jax.tree.map(shown, seen, obs)

    def take(action: Any) -> Any:
        try:
            leaves = structure.flatten_up_to(action)
        except ValueError as error:
            raise ValueError(f"action {action!r}: give one of the structure of {env.action_space}") from error
        pairs = zip(spaces.items(), leaves, strict=True)
        return structure.unflatten([taken(space, x, batch, f"action {name}".strip()) for (name, space), x in pairs])

    if isinstance(seen, Box | Discrete):
        show = partial(shown, seen)
    return show, partial(taken, acted, batch=batch) if isinstance(acted, Box | Discrete) else take


def _compiled(env: Env, num: int | None) -> tuple[list[Any], Programs]:
    leaves, structure = jax.tree.flatten(env)
    leaves = [jax.device_put(x) for x in leaves]  # once, not in each step
    avals = tuple(jax.eval_shape(lambda: leaves))
    return leaves, programs(structure, avals, num, jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


def _words(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2**32, 2, np.uint32)


def _states(env: Any, data: Any) -> EnvState | None:
    """The states under way, of a bridge that has a `render_mode` and was reset."""
    if env.render_mode is None:
        gymnasium.logger.warn("render() without a render_mode: give render_mode='rgb_array' when it is made")
        return None
    if data is None:
        raise gymnasium.error.ResetNeeded("there is nothing to draw yet: call reset() first")
    return env._programs.play.views(np.array(data)).env_state


def _images(env: Env, states: list[EnvState], size: tuple[int, int, str | None]) -> Sequence[np.ndarray]:
    environment: Any = env.environment  # that draws, see `_drawing`
    return [np.ascontiguousarray(image) for image in environment.frames(states, env.params, *size)]


__all__ = ["GymnasiumEnv", "GymnasiumVectorEnv"]
