"""Demonstrations: what trained policies did, as a file.

A file is a NumPy archive (`.npz`) of columns with a row a step, whole episodes one after another:

    obs [M, ...], next_obs [M, ...]    what was acted on, and its true successor
    action [M, ...]                    what the environment was given, in its own units
    reward [M]                         raw
    terminated [M], truncated [M]      how the episode ends, on its last row; every episode ends in one of them
    source [M]                         which policy acted, an index into `about["policies"]`

Observations and actions of several parts have a column for each, by its dotted name: `obs.pixels`, `action.0`.

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
from rlx.masks import masked, masks_of
from rlx.policy import acting
from rlx.rollout import episodes, reset
from rlx.spaces import Discrete, Space, parts, rescale, unit
from rlx.train import Current, now

FORMAT = 1
LIMIT = 10_000  # steps of an episode where the environment has no limit that is known


@dataclass(frozen=True)
class Demonstrations:
    """The columns of a file, NumPy arrays `[M, ...]`, and what it says about itself; see the module.

    Observations and actions of several parts are dictionaries and tuples of arrays.
    """

    obs: Any
    next_obs: Any
    action: Any
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
TREES = ("obs", "next_obs", "action")  # columns that may have parts


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
    rows = {
        name: jax.tree.map(lambda x: np.swapaxes(x, 0, 1)[alive], getattr(traj, name))
        for name in COLUMNS
        if name != "source"
    }
    last = np.flatnonzero(np.diff(np.repeat(np.arange(num_episodes), alive.sum(1)), append=num_episodes))
    rows["truncated"][last] |= ~rows["terminated"][last]  # cut by our own limit
    return Demonstrations(**rows, source=np.zeros(len(rows["reward"]), np.int32), about={})


@partial(jax.jit, static_argnames=("algorithm", "num_episodes", "num_steps", "deterministic"))
def _play(algorithm, config, env, state, key, num_episodes, num_steps, noise, deterministic):
    config, (reset_key, play_key) = now(config, state), jax.random.split(key)

    act, start = acting(algorithm, config, env, state, deterministic)
    memory = start(num_episodes)

    def policy(obs, key, memory=None):
        act_key, noise_key = jax.random.split(key)
        action, _, *after = act(obs, act_key, memory)
        return disturbed(env.action_space, obs, action, noise, noise_key), None, *(() if memory is None else after)

    return episodes(env, policy, reset(env, reset_key, num_episodes), play_key, num_steps, memory)[1:]


def disturbed(space: Space, obs: Any, action: Any, noise: float, key: jax.Array) -> Any:
    """Actions `[N, ...]` at observations with noise, legal and within the bounds of the space; see `collect`."""
    spaces, structure = jax.tree.flatten(parts(space))
    keys = [key] if len(spaces) == 1 else jax.random.split(key, len(spaces))
    legal = masks_of(space, obs)
    given = zip(spaces, legal, jax.tree.leaves(action), keys, strict=True)
    return jax.tree.unflatten(structure, [_disturbed(space, mask, x, noise, k) for space, mask, x, k in given])


def _disturbed(space: Any, mask: jax.Array | None, action: jax.Array, noise: float, key: jax.Array) -> jax.Array:
    which_key, noise_key = jax.random.split(key)
    if isinstance(space, Discrete):
        if mask is None:
            anything = jax.vmap(space.sample)(jax.random.split(noise_key, len(action)))
        else:
            anything = jax.random.categorical(noise_key, masked(jnp.zeros(mask.shape), mask)).astype(action.dtype)
        return jnp.where(jax.random.bernoulli(which_key, noise, action.shape), anything, action)
    return rescale(space, unit(space, action) + noise * jax.random.normal(noise_key, action.shape))


def mixture(policies: Sequence[Demonstrations], about: dict[str, Any]) -> Demonstrations:
    """Demonstrations of several policies as one, each with its `source`."""
    joined = lambda *columns: jax.tree.map(lambda *x: np.concatenate(x), *columns)
    columns = {name: joined(*(getattr(part, name) for part in policies)) for name in COLUMNS if name != "source"}
    source = np.repeat(np.arange(len(policies), dtype=np.int32), [len(part.reward) for part in policies])
    return Demonstrations(**columns, source=source, about=about)


def best(demonstrations: Demonstrations, share: float) -> Demonstrations:
    """The episodes with the greatest returns, in their order: the given share of all, rounded up.

    What its `about` says of policies is of the whole file; the quality that was measured of that is left out.

    Raises:
        ValueError: unless the share is above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: give more than 0 and at most 1")
    returns, ends = demonstrations.returns, demonstrations.ends
    num = int(np.ceil(share * len(returns) - 1e-9))
    chosen = np.zeros(len(returns), bool)
    chosen[np.argsort(-returns, kind="stable")[:num]] = True
    rows = np.repeat(chosen, np.diff(ends, prepend=-1))
    kept = {name: jax.tree.map(lambda x: x[rows], getattr(demonstrations, name)) for name in COLUMNS}
    about = {name: x for name, x in demonstrations.about.items() if name != "quality"} | {"best_share": share}
    return Demonstrations(**kept, about=about)


def save(path: Path, demonstrations: Demonstrations) -> None:
    """Writes the file, compressed, in one step."""
    columns = {}
    for name in COLUMNS:
        for place, x in jax.tree_util.tree_leaves_with_path(getattr(demonstrations, name)):
            part = jax.tree_util.keystr(place, simple=True, separator=".")
            columns[f"{name}.{part}" if part else name] = x
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
    found |= {name: tree for name in TREES if (tree := _grown(name, found)) is not None}
    if missing := [name for name in (*COLUMNS, "about") if name not in found]:
        raise ValueError(f"{path} has no {', '.join(missing)}: it is not a file of demonstrations")
    about = json.loads(str(found["about"]))
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} has format {about.get('format')}; this is rlx with format {FORMAT}")
    if missing := [name for name in ("env", "env_options", "env_params") if name not in about]:
        raise ValueError(f"{path} does not say its {', '.join(missing)}, in the JSON text of about")
    lengths = {
        name + jax.tree_util.keystr(path): len(x)
        for name in COLUMNS
        for path, x in jax.tree_util.tree_leaves_with_path(found[name])
    }
    if len(set(lengths.values())) > 1 or not found["reward"].size:
        raise ValueError(f"{path} has columns of {lengths} rows: they have to be as long as each other, and not empty")
    for name in ("obs", "action", "reward"):
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(found[name])):
            raise ValueError(f"{path} has numbers in its column {name} that are not finite")
    if not (found["terminated"][-1] or found["truncated"][-1]):
        raise ValueError(f"the last episode of {path} has no end: mark its last row as truncated")
    return Demonstrations(**{name: found[name] for name in COLUMNS}, about=about)


def _grown(name: str, columns: dict[str, Any]) -> Any:
    """The tree of the columns `name.part`, and theirs; None where there are none. Numbers name the parts of a tuple."""
    if name in columns:
        return columns[name]
    inner = dict.fromkeys(c[len(name) + 1 :].partition(".")[0] for c in columns if c.startswith(f"{name}."))
    if not inner:
        return None
    tree = {part: _grown(f"{name}.{part}", columns) for part in inner}
    return tuple(tree[str(i)] for i in range(len(tree))) if all(map(str.isdecimal, tree)) else tree


__all__ = ["Demonstrations", "best", "collect", "disturbed", "load", "mixture", "save"]
