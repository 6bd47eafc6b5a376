"""The log of a run: metrics averaged over updates, a row a line."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlx.files import strict
from rlx.run.sinks import Sink
from rlx.train import steps_taken

ROWS = 1000
NO_LOG = {"seconds": 0.0, "count": 0, "sums": {}}


class Logger:
    """Averages the metrics of `every` updates into a row for all sinks. Episode statistics are weighted by episodes.

    Metrics are those of a run, `[num]`, or of several, `[L, num]`, whose rows have lists in place of numbers.
    `saved()` is what a checkpoint has to keep of it, so that a resumed run writes the rows of one never stopped.
    """

    def __init__(self, sinks: Sequence[Sink], every: int, config: Any, saved: dict[str, Any] = NO_LOG):
        self.sinks, self.every, self.config = sinks, every, config
        self.start, self.count = time.perf_counter() - saved["seconds"], saved["count"]
        self.sums = {name: np.array(total, np.float64) for name, total in saved["sums"].items()}
        self.episode_return = None  # the latest

    def saved(self) -> dict[str, Any]:
        """The row under way, as strict JSON."""
        sums = {name: strict(total.tolist()) for name, total in self.sums.items()}
        return {"seconds": self._seconds(), "count": self.count, "sums": sums}

    def add(self, done: int, metrics: dict[str, np.ndarray], extra: dict[str, Any] | None = None) -> None:
        """Takes the metrics of the updates after the first `done`; `extra` goes into their rows as it is."""
        episodes = metrics["num_episodes"]
        values = {}
        for name, x in metrics.items():
            of_episodes = name.startswith("episode_")  # the statistic of no episodes is NaN
            values[name] = np.where(episodes > 0, episodes * x, 0.0) if of_episodes else np.asarray(x, np.float64)
        for i in range(episodes.shape[-1]):
            for name, x in values.items():  # one after another: the sums do not depend on where chunks are cut
                self.sums[name] = self.sums.get(name, 0.0) + x[..., i]
            self.count += 1
            if (done + i + 1) % self.every == 0:
                self.flush(done + i + 1, extra)

    def flush(self, num_updates: int, extra: dict[str, Any] | None = None) -> None:
        """Writes what is pending as one row, after `num_updates` updates."""
        if not self.count:
            return
        row = {"update": num_updates, "step": steps_taken(self.config, num_updates), "seconds": self._seconds()}
        episodes = self.sums["num_episodes"]
        for name, total in self.sums.items():
            if name in ("num_episodes", "num_diverged", "num_unmasked"):
                row[name] = total.astype(int).tolist()
            else:
                with np.errstate(divide="ignore", invalid="ignore"):
                    row[name] = _numbers((total / (episodes if name.startswith("episode_") else self.count)).tolist())
        self.episode_return = _latest(row["episode_return"], self.episode_return)
        for sink in self.sinks:
            sink.write("metrics", row | (extra or {}))
        self.count, self.sums = 0, {}

    def _seconds(self) -> float:
        return round(time.perf_counter() - self.start, 3)


def _numbers(x: Any) -> Any:
    """Numbers to six digits. JSON has no NaN or infinity: null."""
    if isinstance(x, list):
        return [_numbers(item) for item in x]
    return float(f"{x:.6g}") if math.isfinite(x) else None


def _latest(new: Any, old: Any) -> Any:
    """`new` where it is known, else `old`."""
    if isinstance(new, list):
        return [_latest(*pair) for pair in zip(new, old or [None] * len(new), strict=True)]
    return old if new is None else new
