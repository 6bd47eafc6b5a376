"""Demonstrations: what trained policies did, as a file.

A file is a NumPy archive (`.npz`) of columns with a row a step, whole episodes one after another:

    obs [M, ...], next_obs [M, ...]    what was acted on, and its true successor
    action [M, ...]                    what the environment was given, in its own units
    reward [M]                         raw
    terminated [M], truncated [M]      how the episode ends, on its last row; every episode ends in one of them
    source [M]                         which policy acted, an index into `about["policies"]`

and `about`, a JSON text: `format`, the environment (`env`, `env_options`, `env_params`) and `policies`, for each its
run, its options, and the returns of its episodes. `numpy.load` reads it without rlx.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.rollout import episodes, reset
from rlx.spaces import Discrete, Space, rescale, unit
from rlx.train import Current, now

FORMAT = 1
LIMIT = 10_000  # steps of an episode where the environment has no limit that is known


@dataclass(frozen=True)
class Demonstrations:
    """The columns of a file, NumPy arrays `[M, ...]`, and what it says about itself; see the module."""

    obs: np.ndarray
    next_obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    source: np.ndarray
    about: dict[str, Any]

    @property
    def ends(self) -> np.ndarray:
        """The last row of each episode, int `[E]`."""
        return np.flatnonzero(self.terminated | self.truncated)

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 `[E]`."""
        return np.diff(np.cumsum(self.reward, dtype=np.float64)[self.ends], prepend=0.0)


COLUMNS = tuple(field.name for field in fields(Demonstrations) if field.name != "about")


def collect(
    algorithm: Any,
    config: Any,
    env: Env,
    state: Any,
    key: jax.Array,
    num_episodes: int,
    noise: float = 0.0,
    deterministic: bool = True,
) -> Demonstrations:
    """Whole episodes of a policy from fresh starts, its `source` 0 and nothing in `about`.

    Args:
        noise: standard deviation of what is added to each continuous action, in units in which a bounded action goes
            from -1 to 1; for discrete actions how probable it is that one is replaced by any.
        deterministic: whether the policy takes its most likely action, before that noise.
    """
    limit = env.horizon or LIMIT
    traj, alive = jax.device_get(
        _play(Current(algorithm), config, env, state, key, num_episodes, limit, noise, deterministic)
    )
    alive = alive.T
    rows = {name: np.swapaxes(getattr(traj, name), 0, 1)[alive] for name in COLUMNS if name != "source"}
    last = np.flatnonzero(np.diff(np.repeat(np.arange(num_episodes), alive.sum(1)), append=num_episodes))
    rows["truncated"][last] |= ~rows["terminated"][last]  # cut by our own limit
    return Demonstrations(**rows, source=np.zeros(len(rows["reward"]), np.int32), about={})


@partial(jax.jit, static_argnames=("algorithm", "num_episodes", "num_steps", "deterministic"))
def _play(algorithm, config, env, state, key, num_episodes, num_steps, noise, deterministic):
    config, (reset_key, play_key) = now(config, state), jax.random.split(key)

    def policy(obs, key):
        act_key, noise_key = jax.random.split(key)
        action, _ = algorithm.act(config, env, state, obs, act_key, deterministic=deterministic)
        return disturbed(env.action_space, action, noise, noise_key), None

    return episodes(env, policy, reset(env, reset_key, num_episodes), play_key, num_steps)[1:]


def disturbed(space: Space, action: jax.Array, noise: float, key: jax.Array) -> jax.Array:
    """Actions `[N, ...]` with noise, within the bounds of the space; see `collect`."""
    which_key, noise_key = jax.random.split(key)
    if isinstance(space, Discrete):
        anything = jax.vmap(space.sample)(jax.random.split(noise_key, len(action)))
        return jnp.where(jax.random.bernoulli(which_key, noise, action.shape), anything, action)
    return rescale(space, unit(space, action) + noise * jax.random.normal(noise_key, action.shape))


def mixture(parts: Sequence[Demonstrations], about: dict[str, Any]) -> Demonstrations:
    """Demonstrations of several policies as one, each with its `source`."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS if name != "source"}
    source = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.reward) for part in parts])
    return Demonstrations(**columns, source=source, about=about)


def save(path: Path, demonstrations: Demonstrations) -> None:
    """Writes the file, compressed, in one step."""
    columns = {name: getattr(demonstrations, name) for name in COLUMNS}
    # NumPy files know no bfloat16, whose numbers are float32 as well.
    columns = {name: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x for name, x in columns.items()}
    about = json.dumps({"format": FORMAT} | demonstrations.about, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **columns, about=np.array(about))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> Demonstrations:
    """Reads a file.

    Raises:
        ValueError: for a file that is none, that lacks a column, whose columns differ in length, that holds numbers
            that are not finite, or whose last episode has no end.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: rlx collect runs/NAME --output {path} writes it")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no file of demonstrations, or was cut short: they are NumPy archives, which rlx collect writes"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as demonstrations, it is damaged: {error}") from error
    if missing := [name for name in (*COLUMNS, "about") if name not in found]:
        raise ValueError(f"{path} has no {', '.join(missing)}: it is not a file of demonstrations")
    about = json.loads(str(found["about"]))
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} has format {about.get('format')}; this is rlx with format {FORMAT}")
    if missing := [name for name in ("env", "env_options", "env_params") if name not in about]:
        raise ValueError(f"{path} does not say its {', '.join(missing)}, in the JSON text of about")
    lengths = {name: len(found[name]) for name in COLUMNS}
    if len(set(lengths.values())) > 1 or not found["reward"].size:
        raise ValueError(f"{path} has columns of {lengths} rows: they have to be as long as each other, and not empty")
    for name in ("obs", "action", "reward"):
        if not np.isfinite(found[name]).all():
            raise ValueError(f"{path} has numbers in its column {name} that are not finite")
    if not (found["terminated"][-1] or found["truncated"][-1]):
        raise ValueError(f"the last episode of {path} has no end: mark its last row as truncated")
    return Demonstrations(**{name: found[name] for name in COLUMNS}, about=about)


__all__ = ["Demonstrations", "collect", "disturbed", "load", "mixture", "save"]
