"""Environments on the host that step together: where each is in its episode, and what their steps came to."""

from typing import Any

import jax
import numpy as np

from rlx.hosted import Fault, Host, Stepped, Vector
from rlx.run.watching import Watched


class Block:
    """N environments that step together on the host.

    Attributes:
        vector: that steps them.
        rows: which of all environments they are.
        obs: to act on next, leaves `[N, ...]`.
        began: bool `[N]`, where an episode begins with it.
        total: float32 `[N]`, of the rewards of the episode so far.
        length: int32 `[N]`, its steps so far.
        reported: float32 `[N]` each, what was reported in it so far.
        memory: what the policy that acts in it remembers; None at first.
    """

    memory: Any = None

    def __init__(self, host: Host, vector: Vector, first: int, watched: Watched):
        self.host, self.vector, self.watched = host, vector, watched
        self.rows = slice(first, first + vector.num_envs)
        self.numbers = [name for name in host.reported if name not in host.flags]

    def reset(self, seed: int) -> None:
        """Begins an episode everywhere."""
        num = self.vector.num_envs
        with self.watched.waiting(self.vector.waiting):
            self.obs = jax.tree.leaves(self.vector.reset(seed))
        self.began = np.ones(num, bool)
        self.total, self.length = np.zeros(num, np.float32), np.zeros(num, np.int32)
        self.reported = {name: np.zeros(num, np.float32) for name in self.host.reported}
        if (at := _infinite(self.obs)) is not None:
            raise Fault(f"environment {self.rows.start + at} began with an observation that is not finite")

    def send(self, action: Any) -> None:
        """Begins a step with actions, a pytree of arrays of JAX or numpy."""
        with self.watched.waiting(self.vector.waiting):
            self.vector.send(jax.tree.map(np.asarray, action))

    def receive(self) -> Stepped:
        """The step that was begun; statistics are those with it until `settle` is called.

        Raises:
            Fault: for numbers that are not finite.
        """
        with self.watched.waiting(self.vector.waiting):
            step = self.vector.receive()
        for what, values in (("a reward", [step.reward]), ("an observation", jax.tree.leaves(step.next_obs))):
            if (at := _infinite(values)) is not None:
                where = f"in step {self.length[at] + 1} of its episode"
                raise Fault(f"environment {self.rows.start + at} gave {what} that is not finite {where}")
        self.total = self.total + np.asarray(step.reward, np.float32)
        self.length = self.length + (1 if step.valid is None else step.valid)
        for name in self.numbers:
            self.reported[name] = self.reported[name] + np.asarray(step.info[name], np.float32)
        for name in self.host.flags:
            self.reported[name] = np.where(step.info[name], np.float32(1), self.reported[name])
        return step

    def settle(self, step: Stepped) -> None:
        """Goes on to the observations that follow, where episodes have ended to those of the next."""
        self.obs = jax.tree.leaves(step.obs)
        ended = step.terminated | step.truncated
        self.began = ended if step.valid is None else ended | ~step.valid
        if ended.any():
            self.total[ended], self.length[ended] = 0, 0
            for total in self.reported.values():
                total[ended] = 0


def _infinite(arrays: list[Any]) -> int | None:
    """The first environment of arrays `[N, ...]` with a number that is not finite; None where there is none."""
    for x in arrays:
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            return int(np.argwhere(~np.isfinite(x))[0][0])
    return None


__all__ = ["Block"]
