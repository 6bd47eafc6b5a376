"""Demonstrations from and to local files of Minari, the format of Gymnasium's people for data (extra `minari`).

Its datasets lie under `MINARI_DATASETS_PATH`, else in the home directory. Nothing is downloaded or uploaded here.
"""

import json
from typing import Any

import jax
import numpy as np

from rlx.data.demonstrations import COLUMNS, Demonstrations


def from_minari(name: str, env: str, env_options: dict[str, Any] | None = None) -> Demonstrations:
    """A dataset of Minari that lies on this machine, such as `pendulum/noisy-v0`, as demonstrations.

    The observation after the last step is the last true successor. An episode whose last step says of no end was cut
    and ends there by truncation. Floats of observations and actions become float32, rewards float32 too.

    Args:
        name: of the dataset.
        env: the environment of rlx that it is of, which Minari does not say; its shapes are compared when it is used.
        env_options: of that environment.

    Raises:
        ValueError: without the extra, where there is no such dataset, and for an episode without one observation more
            than steps, that goes on after an end or is empty.
    """
    minari = _minari()
    try:
        dataset = minari.load_dataset(name, download=False)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"there is no dataset {name} of Minari here: {error}") from error
    found = [_episode(name, episode) for episode in dataset.iterate_episodes()]
    if not found:
        raise ValueError(f"the dataset {name} has no episode")
    columns = {key: jax.tree.map(lambda *x: np.concatenate(x), *(part[key] for part in found)) for key in found[0]}
    returns = np.array([part["reward"].sum(dtype=np.float64) for part in found])
    policy = {"run": name, "episodes": len(found), "mean_return": float(returns.mean())}
    about = {"env": env, "env_options": env_options or {}, "env_params": {}}
    about["policies"] = [policy | {"std_return": float(returns.std())}]
    return Demonstrations(**columns, source=np.zeros(len(columns["reward"]), np.int32), about=about)


def to_minari(demonstrations: Demonstrations, name: str, observation_space: Any, action_space: Any) -> None:
    """Writes demonstrations as a new dataset of Minari, with their `about` as its description, a JSON text.

    Such a dataset has no specification of an environment: Minari's `recover_environment` raises for it.

    Args:
        demonstrations: the data.
        name: of the dataset, such as `pendulum/noisy-v0`.
        observation_space: of Gymnasium; `rlx.envs.gymnasium_spaces.to_gymnasium` makes it of one of rlx.
        action_space: likewise.

    Raises:
        ValueError: without the extra, for a name that Minari does not take, and where there is such a dataset.
    """
    minari = _minari()
    from minari.data_collector import EpisodeBuffer  # pyright: ignore[reportMissingImports] (an extra)

    buffers, start = [], 0
    for number, end in enumerate(demonstrations.ends + 1):
        cut = lambda tree, start=start, end=end: jax.tree.map(lambda x: x[start:end], tree)
        last = jax.tree.map(lambda x, end=end: x[end - 1 : end], demonstrations.next_obs)
        obs = jax.tree.map(lambda x, y: np.concatenate([x, y]), cut(demonstrations.obs), last)
        columns = {key: cut(getattr(demonstrations, key)) for key in COLUMNS}
        episode = {"rewards": columns["reward"].astype(np.float64), "actions": columns["action"], "observations": obs}
        ends = {"terminations": columns["terminated"], "truncations": columns["truncated"]}
        buffers.append(EpisodeBuffer(id=number, **episode, **ends))
        start = end
    minari.create_dataset_from_buffers(
        name,
        buffer=buffers,
        observation_space=observation_space,
        action_space=action_space,
        description=json.dumps(demonstrations.about),
        data_format="hdf5",
    )


def _minari() -> Any:
    try:
        import minari  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise ValueError(f'Minari is not here ({error}): pip install "rlx[minari]"') from error
    return minari


def _episode(name: str, episode: Any) -> dict[str, Any]:
    """The columns of one episode."""
    num = len(episode.rewards)
    where = f"episode {episode.id} of {name}"
    lengths = {len(x) for x in jax.tree.leaves(episode.observations)}
    others = {len(x) for x in jax.tree.leaves((episode.actions, episode.terminations, episode.truncations))}
    if not num or lengths != {num + 1} or others != {num}:
        raise ValueError(
            f"{where} has {num} rewards, {sorted(lengths)} observations and {sorted(others)} actions and ends: it has "
            "to have one observation more than of all others"
        )
    terminated, truncated = (np.array(x, bool) for x in (episode.terminations, episode.truncations))
    if (terminated | truncated)[:-1].any():
        raise ValueError(f"{where} goes on after an end")
    truncated[-1] |= ~terminated[-1]
    single = lambda x: np.asarray(x, np.float32) if np.issubdtype(np.asarray(x).dtype, np.floating) else np.asarray(x)
    return {
        "obs": jax.tree.map(lambda x: single(x)[:-1], episode.observations),
        "next_obs": jax.tree.map(lambda x: single(x)[1:], episode.observations),
        "action": jax.tree.map(single, episode.actions),
        "reward": np.asarray(episode.rewards, np.float32),
        "terminated": terminated,
        "truncated": truncated,
    }


__all__ = ["from_minari", "to_minari"]
