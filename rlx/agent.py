"""A trained policy as an object: `rlx.load` makes it of a run, of a lane of a sweep, or of a checkpoint.

    agent = rlx.load("runs/ppo")
    action = agent.act(obs)                  # numpy in, numpy out
    episodes = agent.evaluate(num_episodes=100)

Everything but the arrays stays inside: observations are normalised and actions rescaled as they were in training.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.devices.hosts import fetch
from rlx.env import Env
from rlx.files import read_config
from rlx.policy import acting, remembers
from rlx.run.job import keys
from rlx.run.pause import given
from rlx.run.playing import evaluate
from rlx.run.saved import saved_run, saved_state
from rlx.spaces import Dict, Tuple, parts
from rlx.train import Episodes, now, steps_taken

PRECISION = "float32"  # of matrix products, as the command line has it


@dataclass
class Agent:
    """A policy with the parameters of a checkpoint, and what it was trained with.

    Attributes:
        algorithm: the module.
        config: its settings.
        env: the environment that it was trained in.
        state: the whole State of the checkpoint: `rlx.resume` continues training from it.
        env_name: by which `rlx.envs.make` makes the environment; None where it was made in Python.
        seed: of the run.
        directory: that it was read from.
        sample_seed: of the actions that are sampled.
    """

    algorithm: ModuleType
    config: Any
    env: Env
    state: Any
    env_name: str | None = None
    seed: int = 0
    directory: Path | None = None
    sample_seed: int = 0
    num_actions: int = field(default=0, init=False)  # batches of them so far: each draws with another key
    memory: Any = field(default=None, init=False)  # of the episodes under way, leaves `[N, ...]`
    num_remembered: int | None = field(default=None, init=False)  # N

    @property
    def num_updates(self) -> int:
        """Updates that the policy was trained for."""
        return int(self.state.num_updates)

    @property
    def steps(self) -> int:
        """Environment steps that the policy was trained for."""
        return steps_taken(self.config, self.num_updates)

    @cached_property
    def observation_space(self) -> Any:
        """The space of one observation."""
        return self.env.observation_space

    @cached_property
    def action_space(self) -> Any:
        """The space of one action."""
        return self.env.action_space

    @property
    def remembers(self) -> bool:
        """Whether actions depend on earlier observations: then `reset` has to be called where an episode begins."""
        return remembers(self.algorithm)

    def act(self, obs: Any, deterministic: bool = True) -> Any:
        """The action for an observation, or actions `[N, ...]` for N of them.

        Args:
            obs: an element of the observation space, or of each entry N of them; arrays or lists. What only the critic
                sees may be left out.
            deterministic: take the most likely action; else one is drawn, each time with another key.

        Raises:
            ValueError: for other shapes than those of the space, and for another N than that of the policy's memory.
        """
        batch, single = batched(self.observation_space, obs)
        num = len(jax.tree.leaves(batch)[0])
        if self.remembers and self.num_remembered != num:
            if self.num_remembered is not None:
                raise ValueError(
                    f"{num} observations, and the policy remembers {self.num_remembered} episodes: "
                    "call reset() before acting in another number of them"
                )
            self.memory, self.num_remembered = self._start(num), num
        action, self.memory = self._programs[deterministic](batch, self.memory, np.int32(self.num_actions))
        self.num_actions += 1
        return jax.tree.map(lambda x: np.asarray(x)[0] if single else np.asarray(x), action)

    def reset(self, where: Any = None) -> None:
        """Forgets what was seen, as at the beginning of an episode.

        Args:
            where: bools `[N]`: the episodes that begin, where only some do. All of them, and their number, without it.

        Raises:
            ValueError: for another number of bools than the policy remembers episodes.
        """
        if where is None:
            self.memory, self.num_remembered = None, None
        elif self.num_remembered is not None:
            where = np.asarray(where, bool)
            if where.shape != (self.num_remembered,):
                raise ValueError(f"where has shape {list(where.shape)}: give {self.num_remembered} bools, one each")
            choose = lambda old, new: jnp.where(where.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            self.memory = jax.tree.map(choose, self.memory, self._start(self.num_remembered))

    def evaluate(self, num_episodes: int = 32, seed: int = 0, deterministic: bool = True) -> Episodes:
        """Plays whole episodes from fresh starts in its own environment, as `rlx eval --seed` does: numpy `[E]` each.

        See `rlx.evaluate`.
        """
        key = jax.random.fold_in(keys(self.seed)[1], seed + 1)
        with jax.default_matmul_precision(PRECISION):
            found = evaluate(self.algorithm, self.config, self.env, self.state, key, num_episodes, deterministic)
        return fetch(found)

    def policy(self, deterministic: bool = True) -> tuple[Callable, Callable[[int], Any]]:
        """`policy(obs, key, memory) -> action, memory` and `start(num) -> memory`, pure functions of arrays.

        The parameters are constants in them.
        """
        config = now(self.config, self.state)
        act, start = acting(self.algorithm, config, self.env, self.state, deterministic)

        def policy(obs: Any, key: jax.Array, memory: Any = None) -> tuple[Any, Any]:
            action, _, memory = act(obs, key, memory)
            return action, memory

        return policy, start

    def _start(self, num: int) -> Any:
        return jax.tree.map(jnp.asarray, self.policy()[1](num))

    @cached_property
    def _programs(self) -> dict[bool, Callable]:
        def program(deterministic):
            policy, seed = self.policy(deterministic)[0], self.sample_seed

            def act(obs, memory, count):
                with jax.default_matmul_precision(PRECISION):  # while it is traced: a call does not wait for it
                    return policy(obs, jax.random.fold_in(jax.random.key(seed), count), memory)

            return jax.jit(act)

        return {deterministic: program(deterministic) for deterministic in (True, False)}


def load(
    path: str | Path,
    *,
    lane: int | None = None,
    best: bool = False,
    from_update: int | None = None,
    env: Env | None = None,
    algorithm: ModuleType | None = None,
    seed: int = 0,
) -> Agent:
    """The policy of a run, of a lane of a sweep, or of a checkpoint.

        rlx.load("runs/ppo")                       # the newest checkpoint of a run
        rlx.load("runs/ppo", best=True)            # the one that did best in the evaluations during training
        rlx.load("runs/ppo/checkpoints/120")       # that of an update, as from_update=120
        rlx.load("runs/sweep")                     # the best lane of a sweep
        rlx.load("runs/sweep", lane=7)

    Args:
        path: of a run, of a sweep, or of a checkpoint.
        lane: of the sweep.
        best: the checkpoint of the best evaluation.
        from_update: the checkpoint of this update.
        env: the environment, where the run was given one without a name; or another in which to evaluate.
        algorithm: the module, where it is not to be that of the run.
        seed: of the actions that `act` draws.

    Raises:
        ValueError: where nothing can be loaded; the message says what is there.
    """
    path = Path(path).expanduser()
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        if from_update is not None and from_update != int(path.name):
            raise ValueError(f"{path} is not the checkpoint of update {from_update}: leave one of them out")
        path, from_update = path.parent.parent, int(path.name)
    if (path / "sweep.json").exists() and not (path / "config.json").exists():
        if best or from_update is not None:
            raise ValueError(f"{path} is a sweep, whose lanes have one checkpoint each: give lane=, or neither")
        return _lane(path, lane, env, algorithm, seed)
    if lane is not None:
        raise ValueError(f"{path} is not a sweep: it has no lane {lane}")
    job = saved_run(path, env, algorithm)
    state = saved_state(job, best, from_update)
    config = given(job.config, read_config(path).get("changes", []), int(state.num_updates))
    return Agent(job.algorithm, config, job.env, state, job.env_name, job.seed, path, seed)


def _lane(path: Path, lane: int | None, env: Env | None, algorithm: ModuleType | None, seed: int) -> Agent:
    from rlx.sweeps.saved import load_sweep

    sweep = load_sweep(path, env, algorithm)
    number = sweep.best if lane is None else lane
    if number is None:
        raise ValueError(f"no lane of {path} has a finite return: say which one with lane=")
    if not 0 <= number < len(sweep.lanes):
        raise ValueError(f"{path} has lanes 0 to {len(sweep.lanes) - 1}, not {number}")
    own, row = sweep.settings(number), sweep.lanes[number]
    state = sweep.state(number)
    return Agent(sweep.job.algorithm, *own, state, sweep.job.env_name, row["seed"], path, seed)


def batched(space: Any, obs: Any) -> tuple[Any, bool]:
    """Observations `[N, ...]` in the dtypes of the space, and whether one without N was given, which then is 1.

    An entry of a Dict that is privileged may be missing: it is filled with zeros.

    Raises:
        ValueError: for an entry that is missing, and for a shape that is neither that of the space nor N of it.
    """
    given = _numpy(space, obs, "obs")
    spaces = jax.tree.leaves(parts(space))
    arrays, structure = jax.tree.flatten(given, is_leaf=lambda x: x is None)
    leading = {x.shape[: x.ndim - len(s.shape)] for x, s in zip(arrays, spaces, strict=True) if x is not None}
    if len(leading) != 1 or len(next(iter(leading))) > 1:
        shapes = [None if x is None else list(x.shape) for x in arrays]
        needed = [list(s.shape) for s in spaces]
        raise ValueError(
            f"obs of shapes {shapes}: one observation is {needed}, and several have one more axis, which is the same"
        )
    (axes,) = leading
    num = axes[0] if axes else 1
    fill = lambda x, s: np.zeros((num, *s.shape), s.dtype) if x is None else x.reshape(num, *s.shape)
    arrays = [fill(x, s) for x, s in zip(arrays, spaces, strict=True)]
    return jax.tree.unflatten(structure, arrays), not axes


def _numpy(space: Any, obs: Any, name: str) -> Any:
    """The observation as numpy arrays in the structure of the space, None for what may be missing and is."""
    if isinstance(space, Dict):
        if not hasattr(obs, "keys"):
            raise ValueError(f"{name} is {type(obs).__name__}: give a dictionary with {', '.join(space.spaces)}")
        if missing := [key for key in space.spaces if key not in obs and key not in space.privileged]:
            raise ValueError(f"{name} has no entry {missing[0]!r}: there are {', '.join(map(str, obs))}")
        return {
            key: _numpy(own, obs[key], f"{name}[{key!r}]") if key in obs else jax.tree.map(lambda _: None, parts(own))
            for key, own in space.spaces.items()
        }
    if isinstance(space, Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise ValueError(f"{name} is no tuple of {len(space.spaces)} entries")
        return tuple(_numpy(own, x, f"{name}[{i}]") for i, (own, x) in enumerate(zip(space.spaces, obs, strict=True)))
    x = np.asarray(obs)
    if x.shape[x.ndim - len(space.shape) :] != space.shape or x.ndim < len(space.shape):
        raise ValueError(f"{name} has shape {list(x.shape)}: one is {list(space.shape)}, and N are [N, ...] of that")
    return np.asarray(x, jax.dtypes.canonicalize_dtype(space.dtype))


__all__ = ["Agent", "batched", "load"]
