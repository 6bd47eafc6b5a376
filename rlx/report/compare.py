"""Statistics over runs, and a report that compares groups of them.

The score of a run is one number, the mean return of its final evaluation; runs that differ only in their seed are a
group. Intervals are over runs: they say how far the result would move with other seeds, not how an episode varies.
The statistics are those of Agarwal et al. 2021, arXiv:2108.13264. Axes: R runs, K tasks (strata), P points of a curve.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy  # its stats take a second to import, and come when they are first used

from rlx.report.statistics import interval, iqm, optimality_gap, probability_of_improvement

FEW = 10  # runs below which an interval is too narrow to be read without a warning


def report(
    runs: Sequence[dict[str, Any]],
    target: float | None = None,
    bounds: dict[str, tuple[float, float]] | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Compares the groups of `runs`, as `runs(paths)` reads them. The result is made of what JSON has.

    `tasks`: for each task its `groups`, best first, and `stopped`, the runs that were stopped early, which are compared
    with nothing. A row has `group`, `runs`, of these `died` and `unscored` (not evaluated; they are in no statistic),
    `steps`, `mean`, `iqm` and `optimality_gap` with intervals, `std` over runs (with `R - 1`), `reported` (means over
    runs of what the environment reported), and `improvement`: the probability that a run of the best group beats one of
    this group. The best is that of the highest IQM among the
    groups without unscored runs.

    `overall`: the same across tasks, of `(score - low) / (high - low)`, stratified by task, for the groups that have
    runs on every task. Without `bounds` returns of different tasks are never averaged: then it has the probability of
    improvement alone, which needs no common scale, over the group that is best by the ranks of its runs.

    `notes`: what a reader has to know about these numbers, in sentences.

    Args:
        runs: with `group`, `task`, `score`, `steps`, `died_at`; further keys are used where they are there.
        target: the return that the optimality gap is measured to, of one task. With `bounds` it is their `high`.
        bounds: `(low, high)` of every task, by its name or that of its environment: returns normalised to 0 and 1.
        confidence: of all intervals.

    Raises:
        ValueError: no runs, none with a score, a target for several tasks, or bounds that do not fit the tasks.
    """
    if not len(runs):
        raise ValueError("there are no runs to report on")
    if all(run["score"] is None for run in runs):
        raise ValueError(f"none of these {len(runs)} runs came to its evaluation: rlx train --resume RUN goes on to it")
    tasks = sorted({run["task"] for run in runs})
    if bounds:
        bounds = _bounds(bounds, tasks)
    if target is not None and (bounds or len(tasks) > 1):
        raise ValueError(
            f"target = {target:g} is a return of one task: for {', '.join(tasks)} give low and high of each"
        )
    whole = [run for run in runs if run.get("dropped_at") is None]
    found = {"confidence": confidence, "result": runs[0].get("result", "return"), "tasks": [], "overall": None}
    for task in tasks:
        goal = bounds[task][1] if bounds else target
        groups = _rows(_by_group(whole, [task]), goal, confidence)
        stopped = {}
        for run in runs:
            if run["task"] == task and run.get("dropped_at") is not None:
                stopped.setdefault((run["group"], run["dropped_at"]), []).append(run)
        stopped = [_row(name, [runs], goal, confidence) | {"dropped_at": at} for (name, at), runs in stopped.items()]
        stopped.sort(key=lambda row: (-row["dropped_at"], -_iqm(row)))
        found["tasks"].append({"task": task, "target": goal, "groups": groups, "stopped": stopped})
    if len(tasks) > 1:
        groups = _by_group(_rescaled(whole, bounds), tasks)
        complete = {name: strata for name, strata in groups.items() if all(strata)}
        rows = _rows(complete, 1.0 if bounds else None, confidence)
        if not bounds:  # means of ranks only found the best
            rows = [row | {"mean": None, "iqm": None} for row in rows]
        found["overall"] = {"normalised": bool(bounds), "groups": rows, "missing": len(groups) - len(complete)}
    return found | {"notes": _notes(runs, found)}


def _reported(runs):
    """The means over runs of what the environment reported in their evaluations, by its names."""
    values = {}
    for run in runs:
        for name, value in run.get("reported", {}).items():
            values.setdefault(name, []).extend([] if value is None else [value])
    return {name: float(np.mean(of_runs)) if of_runs else None for name, of_runs in values.items()}


def _by_group(runs, tasks):
    """The runs of each group, a list a task."""
    groups = {run["group"]: [[] for _ in tasks] for run in runs if run["task"] in tasks}
    for run in runs:
        if run["task"] in tasks:
            groups[run["group"]][tasks.index(run["task"])].append(run)
    return groups


def _rescaled(runs, bounds):
    """The runs with scores that can be put together over tasks: normalised, without bounds ranks within the task."""
    scored = [run for run in runs if run["score"] is not None]
    rescaled = [run for run in runs if run["score"] is None]
    for task in sorted({run["task"] for run in scored}):
        members = [run for run in scored if run["task"] == task]
        scores = np.array([run["score"] for run in members])
        low, high = bounds[task] if bounds else (0.0, 1.0)
        scores = (scores - low) / (high - low) if bounds else scipy.stats.rankdata(scores) / len(scores)
        rescaled += [run | {"score": float(score)} for run, score in zip(members, scores, strict=True)]
    return rescaled


def _scores(strata):
    """The scores of each task's runs; None where a task has none."""
    scores = [np.array([run["score"] for run in runs if run["score"] is not None]) for runs in strata]
    return scores if all(s.size for s in scores) else None


def _row(name, strata, target, confidence):
    runs, scores = [run for runs in strata for run in runs], _scores(strata)
    row = {
        "group": name,
        "runs": len(runs),
        "died": sum(run["died_at"] is not None for run in runs),
        "unscored": sum(run["score"] is None for run in runs),
        "steps": max(run["steps"] for run in runs),
        "reported": _reported(runs),
        **dict.fromkeys(("mean", "iqm", "std", "optimality_gap", "improvement")),
    }
    if scores is not None:
        row["mean"] = interval(scores, np.mean, confidence)
        row["iqm"] = interval(scores, iqm, confidence)
        if len(scores) == 1 and scores[0].size > 1:
            row["std"] = float(scores[0].std(ddof=1))
        if target is not None:
            row["optimality_gap"] = interval(scores, partial(optimality_gap, target=target), confidence)
    return row


def _iqm(row):
    return -np.inf if row["iqm"] is None else row["iqm"]["value"]


def _rows(groups, target, confidence):
    """The rows of the groups, the best first, and for the others the probability that the best beats them."""
    rows = [_row(name, strata, target, confidence) for name, strata in groups.items()]
    best: Any = max(rows, key=lambda row: (not row["unscored"], _iqm(row)), default=None)
    rows.sort(key=lambda row: (row is not best, -_iqm(row)))
    for row in rows[1:]:
        x, y = _scores(groups[best["group"]]), _scores(groups[row["group"]])
        if x is not None and y is not None:
            row["improvement"] = probability_of_improvement(x, y, confidence)
    return rows


def _bounds(bounds, tasks) -> dict[str, Any]:
    """The bounds of each task."""
    for name, (low, high) in bounds.items():
        if not low < high:
            raise ValueError(f"low = {low} and high = {high} of {name}: low has to be below high")
    found = {task: bounds.get(task, bounds.get(task.partition(" ")[0])) for task in tasks}
    if missing := [task for task in tasks if found[task] is None]:
        raise ValueError(f"there are no low and high of {', '.join(missing)}: normalisation needs every task")
    if unknown := [name for name in bounds if not any(name in (task, task.partition(" ")[0]) for task in tasks)]:
        raise ValueError(f"there are no runs on {', '.join(unknown)}: the tasks are {', '.join(tasks)}")
    return found


def _notes(runs, found):
    rows = [row for part in found["tasks"] for row in part["groups"]]
    stopped = [row for part in found["tasks"] for row in part["stopped"]]
    sizes = [row["runs"] - row["unscored"] for row in rows + stopped]
    notes = []
    if died := sum(row["died"] for row in rows + stopped):
        notes.append(f"{died} of {len(runs)} runs died of NaN; each counts with the return of its last finite state.")
    if unscored := sum(row["unscored"] for row in rows + stopped):
        notes.append(
            f"{unscored} of {len(runs)} runs have no score and are in no statistic: the others of their groups may "
            "look better than the group is."
        )
    if stopped:
        notes.append(
            f"{sum(row['runs'] for row in stopped)} of {len(runs)} runs were stopped or evaluated early; they are "
            "listed with their return at that point and compared with nothing."
        )
    if 1 in sizes:
        notes.append("A single run has no interval: run more seeds.")
    if any(1 < size < FEW for size in sizes):
        notes.append(
            f"Groups of fewer than {FEW} runs: bootstrap intervals of so few are too narrow (of 5 runs, one of 95 % "
            "covers about 84 %)."
        )
    if any(len(part["groups"]) > 2 for part in found["tasks"]):
        notes.append(
            "The best of several groups was picked by these very runs, so its numbers are optimistic: repeat it on "
            "fresh seeds before quoting them."
        )
    improvements = [row["improvement"] for row in rows if row["improvement"]]
    if any(p["low"] is not None and p["low"] == p["high"] != 0.5 for p in improvements):
        notes.append(
            "Where every run of one group beats every run of the other, resampling finds nothing else: the interval of "
            "that probability has no width, which is no certainty."
        )
    for part in found["tasks"]:
        if len({row["steps"] for row in part["groups"] if not row["died"] and row["iqm"] is not None}) > 1:
            notes.append(f"Groups on {part['task']} trained for different numbers of steps.")
    if names := sorted({field for run in runs for field in run.get("varied", ()) if field.startswith("env.")}):
        notes.append(f"Groups differ in {', '.join(names)}: their returns are of different environments.")
    planned = {}
    for run in runs:
        planned.setdefault((run["task"], run["group"]), []).append(run.get("num_seeds", 0))
    if short := sum(len(seeds) < max(seeds) for seeds in planned.values()):
        notes.append(f"Groups with fewer runs than their sweep has seeds, whose rows are missing: {short}.")
    if len(found["tasks"]) > 1:
        if not found["overall"]["normalised"]:
            notes.append(
                "Tasks are kept apart: returns are averaged over tasks only when low and high of each are given."
            )
        if missing := found["overall"]["missing"]:
            notes.append(f"Groups without runs on every task, not compared across tasks: {missing}.")
    return notes
