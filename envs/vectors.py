"""Vectors of Gymnasium and of EnvPool as `rlx.hosted.Vector`: N environments on the host, whatever their autoreset.

| mode | the step that ends an episode | the next step |
| --- | --- | --- |
| `DISABLED` | shows the last observation | is asked for a new episode by `reset`, here at once |
| `SAME_STEP` | shows the first observation of the next, and the last one in `info` | goes on |
| `NEXT_STEP` | shows the last observation | begins the next episode, and is no transition |

EnvPool has `NEXT_STEP` and also a `reset` of some of its environments, which makes `DISABLED` of it.
"""

import contextlib
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlx.envs.gymnasium_spaces import acted_together, observed, observed_together
from rlx.hosted import Fault, Stepped


class Named(gymnasium.Wrapper):
    """An environment that says which of several it is where it fails.

    Args:
        env: the environment.
        number: of it.
        under_way: is told the number while the environment is called.
    """

    def __init__(self, env: gymnasium.Env, number: int, under_way: list[int]):
        super().__init__(env)
        self.number, self.under_way, self.time = number, under_way, 0

    def reset(self, **how: Any) -> tuple[Any, dict]:
        """That of the environment.

        Raises:
            Fault: where it raises something.
        """
        self.time, self.under_way[:] = 0, [self.number]
        try:
            return self.env.reset(**how)
        except Exception as error:  # whatever a simulator raises
            raise Fault(f"environment {self.number} raised {_said(error)} in a reset") from error

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """That of the environment.

        Raises:
            Fault: where it raises something.
        """
        self.time, self.under_way[:] = self.time + 1, [self.number]
        try:
            return self.env.step(action)
        except Exception as error:  # whatever a simulator raises
            where = f"in step {self.time} of its episode"
            raise Fault(f"environment {self.number} raised {_said(error)} {where}") from error


class Silent(gymnasium.Wrapper):
    """A `Named` in a process of its own: what it raises in a step comes as `info["fault"]`, an end of the episode.

    Gymnasium hands exceptions of such a process over as warnings and as an exception without its cause.
    """

    def reset(self, **how: Any) -> tuple[Any, dict]:
        """That of the environment."""
        self.obs, info = self.env.reset(**how)
        return self.obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """That of the environment, or the fault."""
        try:
            stepped = self.env.step(action)
        except Fault as fault:
            return self.obs, 0.0, True, False, {"fault": str(fault)}
        self.obs = stepped[0]
        return stepped


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass
class Maker:
    """Makes the environment of a number, in this process or in one of its own."""

    spec: Any  # of Gymnasium: a process of its own may not know the name
    options: dict[str, Any]
    number: int
    under_way: list[int] = field(default_factory=list)

    def __call__(self) -> gymnasium.Env:
        env = Named(gymnasium.make(self.spec, **self.options), self.number, self.under_way)
        if multiprocessing.parent_process() is None:
            return env
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the run, which then ends its processes
        return Silent(env)


class Numbers:
    """What an environment reports of floats and truth values, of `info` of a vector."""

    def __init__(self, names: tuple[str, ...]):
        self.paths = {name: name.removeprefix("info.").split(".") for name in names}

    def of(self, info: Mapping[str, Any], num: int) -> dict[str, np.ndarray]:
        """Arrays `[N]` by name, 0 where an environment has reported nothing."""
        return {name: _array(_at(info, path), num) for name, path in self.paths.items()}


def _at(info: Any, path: list[str]) -> Any:
    for part in path:
        info = info.get(part) if isinstance(info, Mapping) else None
    return info


def _array(values: Any, num: int) -> np.ndarray:
    if values is None:
        return np.zeros(num, np.float32)
    array = np.asarray(values)
    return np.array([0.0 if x is None else x for x in array], np.float32) if array.dtype == object else array


class GymnasiumVector:
    """A vector of Gymnasium as a `rlx.hosted.Vector`.

    Args:
        envs: the vector, which has its mode in `metadata["autoreset_mode"]`.
        reported: names of what is kept of `info`.
        first: the number of its first environment, of all that there are.
        under_way: has the number of the environment that is called, where all step in this process.

    Raises:
        ValueError: for a vector that does not say its mode.
    """

    def __init__(
        self, envs: VectorEnv, reported: tuple[str, ...] = (), first: int = 0, under_way: list[int] | None = None
    ):
        self.envs, self.num_envs, self.numbers = envs, envs.num_envs, Numbers(reported)
        self.first, self.under_way = first, under_way
        self.obs_space, self.action_space = envs.single_observation_space, envs.single_action_space
        mode = envs.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(f'{envs} has no metadata["autoreset_mode"]: give it one, or step single environments')
        self.mode, self.ended = mode, np.zeros(self.num_envs, bool)

    def reset(self, seed: int) -> Any:
        """First observations `[N, ...]`."""
        self.ended[:] = False
        return self._observed(self.envs.reset(seed=seed)[0])

    def send(self, action: Any) -> None:
        """Begins a step with actions `[N, ...]`, where the vector can; else keeps them."""
        self.action = acted_together(self.action_space, action)
        if isinstance(self.envs, AsyncVectorEnv):
            with self._alive():
                self.envs.step_async(self.action)

    def receive(self) -> Stepped:
        """Waits for the step.

        Raises:
            Fault: where an environment raises something, or its process has ended.
        """
        with self._alive():
            stepped = self.envs.step_wait() if isinstance(self.envs, AsyncVectorEnv) else self.envs.step(self.action)
            found, reward, terminated, truncated, info = stepped
            if "fault" in info:
                raise Fault(next(text for text in info["fault"] if text))
            ended, valid = terminated | truncated, None
            obs = next_obs = self._observed(found)
            numbers = self.numbers.of(info, self.num_envs)
            if self.mode == AutoresetMode.DISABLED and ended.any():
                obs = self._observed(self.envs.reset(options={"reset_mask": ended})[0])
        if self.mode == AutoresetMode.SAME_STEP and ended.any():
            next_obs = self._with_last(next_obs, ended, info["final_obs"])
            last = self.numbers.of(info.get("final_info", {}), self.num_envs)
            numbers = {name: np.where(ended, last[name], x) for name, x in numbers.items()}
        if self.mode == AutoresetMode.NEXT_STEP:
            valid, self.ended = ~self.ended, ended
            numbers = {name: np.where(valid, x, 0) for name, x in numbers.items()}
        return Stepped(obs, next_obs, reward.astype(np.float32), terminated, truncated, numbers, valid)

    def waiting(self) -> str:
        """Which environments do not answer."""
        if isinstance(self.envs, AsyncVectorEnv):
            pipes = enumerate(self.envs.parent_pipes)
            numbers = [self.first + i for i, pipe in pipes if pipe is not None and not pipe.closed and not pipe.poll(0)]
        else:
            numbers = self.under_way or []
        return f"environment {' and '.join(map(str, numbers))}" if numbers else "an environment"

    def close(self) -> None:
        """Ends the environments and their processes."""
        if isinstance(self.envs, AsyncVectorEnv):
            for process in self.envs.processes:
                process.kill()  # one that hangs would be waited for
            for process in self.envs.processes:
                process.join()
            self.envs.closed = True
        else:
            self.envs.close()

    def _observed(self, found: Any) -> Any:
        """Observations of rlx, in arrays that the vector does not write into again."""
        obs = observed_together(self.obs_space, found)
        return obs if isinstance(self.envs, SyncVectorEnv | AsyncVectorEnv) else jax.tree.map(np.array, obs)

    def _with_last(self, obs: Any, ended: np.ndarray, last: Any) -> Any:
        """Observations with those with which episodes have ended in their places."""
        leaves, structure = jax.tree.flatten(obs)
        leaves = [x.copy() for x in leaves]
        for i in np.flatnonzero(ended):
            for x, y in zip(leaves, jax.tree.leaves(observed(self.obs_space, last[i])), strict=True):
                x[i] = y
        return jax.tree.unflatten(structure, leaves)

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Says of a connection that has ended which process it was of."""
        try:
            yield
        except (EOFError, OSError) as error:
            processes = self.envs.processes if isinstance(self.envs, AsyncVectorEnv) else []
            for i, process in enumerate(processes):
                process.join(0.1)
                if (status := process.exitcode) is not None:
                    how = f"by signal {-status}" if status < 0 else f"with status {status}"
                    raise Fault(f"environment {self.first + i} ended its process {how}") from error
            raise


class EnvpoolVector:
    """A pool of EnvPool as a `rlx.hosted.Vector`, made at each `reset`, as its seed is given there.

    Args:
        make: `make(seed)` makes the pool.
        num_envs: N.
        reported: names of what is kept of `info`.
        first: the number of its first environment, of all that there are.
    """

    def __init__(self, make: Callable[[int], Any], num_envs: int, reported: tuple[str, ...] = (), first: int = 0):
        self.make, self.num_envs, self.numbers, self.first = make, num_envs, Numbers(reported), first
        self.pool: Any = None

    def reset(self, seed: int) -> Any:
        """First observations `[N, ...]`."""
        self.close()
        self.pool = self.make(seed)
        with unwarned():
            self.obs_space, self.action_space = self.pool.observation_space, self.pool.action_space
        return observed_together(self.obs_space, self.pool.reset()[0])

    def send(self, action: Any) -> None:
        """Begins a step with actions `[N, ...]`."""
        action = acted_together(self.action_space, action)
        self.pool.send(action.astype(np.int32) if action.dtype == np.int64 else action)

    def receive(self) -> Stepped:
        """Waits for the step; where episodes have ended, for the next ones too."""
        found, reward, terminated, truncated, info = self.pool.recv()
        obs = next_obs = observed_together(self.obs_space, found)
        if (ended := terminated | truncated).any():
            index = np.flatnonzero(ended).astype(np.int32)
            first, again = observed_together(self.obs_space, self.pool.reset(index)[0]), jax.tree.leaves(obs)
            again = [x.copy() for x in again]
            for x, y in zip(again, jax.tree.leaves(first), strict=True):
                x[index] = y
            obs = jax.tree.unflatten(jax.tree.structure(obs), again)
        return Stepped(obs, next_obs, reward, terminated, truncated, self.numbers.of(info, self.num_envs))

    def waiting(self) -> str:
        """Which it waits for is not known."""
        return f"one of the environments {self.first} to {self.first + self.num_envs - 1}"

    def close(self) -> None:
        """Ends the pool with its threads."""
        if self.pool is not None:
            self.pool.close()
            self.pool = None


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Without what Gymnasium says of bounds that it rounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


__all__ = ["EnvpoolVector", "GymnasiumVector", "Maker", "Named", "Numbers", "Silent", "unwarned"]
