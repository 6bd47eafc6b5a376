"""How good data is, and how much of the world it has seen: TQ and SACo.

Source: Schweighofer et al. 2022, A Dataset Perspective on Offline Reinforcement Learning, arXiv:2111.04714. The two
compare data of one environment and of equal size: what imitates follows TQ, what learns values needs SACo too.
"""

from typing import Any

import jax
import numpy as np

from rlx.data.demonstrations import Demonstrations


def trajectory_quality(demonstrations: Demonstrations, random: float, best: float) -> float:
    """TQ: the mean return of the episodes, 0 for that of a random policy and 1 for that of the best one known.

    Args:
        demonstrations: the data.
        random: mean return of a random policy.
        best: of the best policy, such as that of the last evaluation of a trained one.

    Raises:
        ValueError: unless `best` is above `random`.
    """
    if not best > random:
        raise ValueError(f"best = {best} has to be above random = {random}")
    return float((demonstrations.returns.mean() - random) / (best - random))


def coverage(demonstrations: Demonstrations, reference: Demonstrations, num_bins: int = 100) -> dict[str, float]:
    """SACo: pairs of a state and an action in the data, each counted once, to those in a reference.

    Coordinates of floats are cut into `num_bins` equal bins between the least and the greatest number of the reference;
    beyond them is one bin more on either side. The reference should be what an online run has seen.

    Returns:
        `saco`, and `unique` and `reference_unique`, the shares of pairs that are counted. Where these are 1, every pair
        is another one, and `saco` says how large the files are and nothing else: take fewer bins.

    Raises:
        ValueError: where the two are not of one shape, or `num_bins` is below 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins = {num_bins}: give at least 1")
    pairs = [[np.asarray(x) for x in jax.tree.leaves((d.obs, d.action))] for d in (demonstrations, reference)]
    shapes = [[x.shape[1:] for x in columns] for columns in pairs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the data has observations and actions of shapes {shapes[0]}, the reference {shapes[1]}")
    whole = lambda columns: np.concatenate([x.reshape(len(x), -1) for x in columns], axis=1)
    binned = [[_binned(x, r, num_bins) for x, r in zip(columns, pairs[1], strict=True)] for columns in pairs]
    counts = [len(np.unique(whole(columns), axis=0)) for columns in binned]
    sizes = [len(d.reward) for d in (demonstrations, reference)]
    shares = [count / size for count, size in zip(counts, sizes, strict=True)]
    return {"saco": counts[0] / counts[1], "unique": shares[0], "reference_unique": shares[1]}


def _binned(x: Any, reference: Any, num_bins: int) -> np.ndarray:
    """Whole numbers as they are, and of floats the bins between the ends of the reference, by dimension."""
    if not np.issubdtype(x.dtype, np.floating):
        return x.astype(np.int64)
    low, high = reference.min(0, keepdims=True).astype(float), reference.max(0, keepdims=True).astype(float)
    place = (x - low) / np.where(high > low, high - low, 1.0) * num_bins
    return np.where(x == high, num_bins - 1, np.clip(np.floor(place), -1, num_bins)).astype(np.int64)


__all__ = ["coverage", "trajectory_quality"]
