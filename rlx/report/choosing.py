"""What choosing among policies costs online: an evaluation of offline methods that counts their tuning.

A method leaves many policies behind, of its settings and seeds. Whoever uses it has to choose one, by playing some
episodes. The choice is a bandit's, UCB1, and what is reported is how good the policy is that it would choose after each
episode. Without any episode that is the average policy, and in the end the best one.

Source: Jackson et al. 2025, A Clean Slate for Offline Reinforcement Learning, arXiv:2504.11453, section 5.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Chosen(NamedTuple):
    """Score of the policy that is chosen after so many episodes, `[P + 1]` each, with the ends of its interval."""

    pulls: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def chosen_online(
    returns: Sequence[np.ndarray],
    worst: float,
    best: float,
    num_pulls: int = 200,
    num_policies: int = 8,
    num_trials: int = 1000,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Chosen:
    """The score of the policy that is chosen, by how many episodes it was chosen with; means over trials.

    Scores are 0 at a return of `worst` and 1 at one of `best`: the bandit's bonus is made for such a range.

    Args:
        returns: of the final episodes of each policy, `[R]` each.
        worst: such as the return of a random policy.
        best: such as that of the best policy online.
        num_pulls: P, episodes that are played at most.
        num_policies: of each trial, drawn without replacement.
        num_trials: how many.
        num_resamples: of the trials, for the 95 % interval of their mean.
        seed: of everything drawn.

    Raises:
        ValueError: for fewer policies than a trial takes, a policy without an episode, returns that are not finite,
            numbers below 1, and unless `best` is above `worst`.
    """
    if len(returns) < num_policies or min(num_pulls, num_policies, num_trials, num_resamples) < 1:
        raise ValueError(
            f"{len(returns)} policies, num_policies = {num_policies}, num_pulls = {num_pulls}, num_trials = "
            f"{num_trials}, num_resamples = {num_resamples}: give 1 or more, and as many policies as a trial has"
        )
    if not best > worst:
        raise ValueError(f"best = {best} has to be above worst = {worst}")
    scores = [(np.asarray(x, np.float64).ravel() - worst) / (best - worst) for x in returns]
    if not all(len(x) and np.isfinite(x).all() for x in scores):
        raise ValueError("every policy needs an episode, and finite returns")
    random = np.random.default_rng(seed)
    order = random.random((num_trials, len(scores))).argsort(axis=1)[:, :num_policies]
    counts = np.array([len(x) for x in scores])
    table = np.full((len(scores), counts.max()), np.nan)
    for row, own in zip(table, scores, strict=True):
        row[: len(own)] = own
    means = np.array([x.mean() for x in scores])
    draws, ties = random.random((num_pulls, num_trials)), random.random((num_pulls, num_trials, num_policies))
    values = choices(table, counts, means, order, draws, ties)
    picked = random.integers(num_trials, size=(num_resamples, num_trials))
    weights = np.stack([np.bincount(row, minlength=num_trials) for row in picked]) / num_trials
    low, high = np.percentile(weights @ values, [2.5, 97.5], axis=0)
    return Chosen(np.arange(num_pulls + 1), values.mean(0), low, high)


def choices(
    table: np.ndarray, counts: np.ndarray, means: np.ndarray, order: np.ndarray, draws: np.ndarray, ties: np.ndarray
) -> np.ndarray:
    """True mean of the policy with the highest estimate after each pull of UCB1, float64 `[I, P + 1]`.

        mean_i + sqrt(2 log t / n_i),    t pulls made, n_i of them of policy i; one without a pull comes first

    Before any pull it is the mean of all. Equal bounds are decided at random, equal estimates by the first.

    Args:
        table: scores `[M, R]` of the policies' episodes, of which the first `counts` `[M]` are there.
        counts: likewise.
        means: true means of all policies `[M]`.
        order: int `[I, K]`, the policies of each of I trials.
        draws: uniform in [0, 1) `[P, I]`: which episode a pull gives.
        ties: uniform `[P, I, K]`: what decides between equal bounds.

    Source: Auer et al. 2002, Finite-time Analysis of the Multiarmed Bandit Problem, figure 1.
    """
    trial, (num, size) = np.arange(len(order)), order.shape
    total, pulled = np.zeros((num, size)), np.zeros((num, size))
    values = [means[order].mean(1)]
    for time, (draw, tie) in enumerate(zip(draws, ties, strict=True)):
        often = np.maximum(pulled, 1)
        bound = np.where(pulled > 0, total / often + np.sqrt(2 * np.log(max(time, 1)) / often), np.inf)
        arm = np.where(bound == bound.max(1, keepdims=True), tie, -1.0).argmax(1)
        policy = order[trial, arm]
        total[trial, arm] += table[policy, (draw * counts[policy]).astype(int)]
        pulled[trial, arm] += 1
        estimate = np.where(pulled > 0, total / np.maximum(pulled, 1), -np.inf)
        values.append(means[order[trial, estimate.argmax(1)]])
    return np.stack(values, axis=1)


__all__ = ["Chosen", "choices", "chosen_online"]
