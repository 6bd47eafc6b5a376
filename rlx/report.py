"""Statistics over runs, and a report that compares groups of them.

The score of a run is one number, the mean return of its final evaluation; runs that differ only in their seed are a
group. Intervals are over runs: they say how far the result would move with other seeds, not how an episode varies.
The statistics are those of Agarwal et al. 2021, arXiv:2108.13264. Axes: R runs, K tasks (strata), P points of a curve.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy  # its stats take a second to import, and come when they are first used
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rlx.run import evaluation_points, read_rows, short_name, write_json

BATCH = 2**22  # numbers that are resampled at once; bounds the memory of a bootstrap
FEW = 10  # runs below which an interval is too narrow to be read without a warning


def iqm(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean: the mean without the lowest and the highest quarter, `floor(R / 4)` runs each.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.3.
    """
    return scipy.stats.trim_mean(scores, 0.25, axis=axis)


def optimality_gap(scores: np.ndarray, target: float, axis: int = -1) -> np.ndarray:
    """How far the runs stay below `target` on average: `mean(max(0, target - score))`, 0 when all reach it.

    In the units of the scores. With scores normalised to 1 and `target = 1` it is the optimality gap of Agarwal et al.
    2021, arXiv:2108.13264, section 4.3, where `gamma = 1` is the target; runs above the target do not make up for
    runs below it.
    """
    return np.maximum(0.0, target - np.asarray(scores)).mean(axis)


def interval(
    samples: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray] = np.mean,
    confidence: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> dict[str, float | None]:
    """`statistic` of all runs, and the ends of its percentile stratified bootstrap interval: `value`, `low`, `high`.

    Every resample draws from each stratum as many runs as it has, with replacement, and takes the statistic of all of
    them together, so differences between the strata do not widen the interval; a stratum with more runs weighs more.
    `low` and `high` are None where a stratum has a single run: one run says nothing about others. Few runs make the
    interval too narrow: at 95 % that of the mean of normal scores covers the truth in 50 % of cases for 2 runs, 74 %
    for 3, 84 % for 5, 91 % for 10.

    Args:
        samples: the scores of the runs `[R_k]` of each task (stratum); one task is a list of one array.
        statistic: `statistic(scores, axis=-1)`.
        confidence: in (0, 1).
        num_resamples: how many.
        seed: of the resampling; the same input has the same interval.

    Raises:
        ValueError: no runs, a stratum without runs, scores that are not finite or not one array a stratum.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.1.
    """
    strata = _strata(samples)

    def pooled(*strata, axis=-1):
        return statistic(np.concatenate(strata, axis), axis=axis)

    low, high = _ends(strata, pooled, confidence, num_resamples, seed)
    return _estimate(pooled(*strata), low, high)


def probability_of_improvement(
    x: Sequence[np.ndarray],
    y: Sequence[np.ndarray],
    confidence: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> dict[str, float | None]:
    """How probable it is that a run of `x` beats one of `y` on a task, averaged over tasks, with its interval.

        P(X > Y) = 1 / K  sum_k  1 / (R_k Q_k)  sum_ij  [x_ki > y_kj] + [x_ki = y_kj] / 2

    0.5 means no difference; it says how often, not by how much, so it needs no common scale of the tasks. The interval
    is a percentile bootstrap that resamples the runs of either side within each task; `low` and `high` are None where
    a task has a single run of a side. Where all runs of one side are above all of the other it has no width, however
    few they are.

    Args:
        x, y: the scores of the runs of each task, `[R_k]` and `[Q_k]`, tasks in the same order.
        confidence, num_resamples, seed: as in `interval`.

    Raises:
        ValueError: as `interval`, and when `x` and `y` differ in the number of tasks.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.3; the Mann-Whitney U statistic over the number of pairs.
    """
    x, y = _strata(x), _strata(y)
    if len(x) != len(y):
        raise ValueError(f"x has runs of {len(x)} tasks and y of {len(y)}: give the same tasks, in the same order")

    def probability(*strata, axis=-1):
        tasks = zip(strata[: len(x)], strata[len(x) :], strict=True)
        return np.mean([_mann_whitney(a, b) / (a.shape[-1] * b.shape[-1]) for a, b in tasks], axis=0)

    low, high = _ends([*x, *y], probability, confidence, num_resamples, seed)
    return _estimate(probability(*x, *y), low, high)


class Curve(NamedTuple):
    """A statistic of several runs along their training, all `[P]`; `low` and `high` are None for a single run."""

    steps: np.ndarray
    value: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def curve(
    steps: Sequence[np.ndarray],
    returns: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    num_points: int = 50,
    statistic: Callable[..., np.ndarray] = iqm,
    confidence: float = 0.95,
    num_resamples: int = 1999,
    seed: int = 0,
) -> Curve:
    """The learning curves of R runs as one: `statistic` over the runs, with its interval, on a common grid of steps.

    The grid divides the steps of the shortest run into equal stretches, `num_points` or as many as there are rows; a
    point stands at the end of its stretch, and each run has there what `on_grid` says. Every point is over all of the
    runs: the curve starts where each of them has ended an episode and stops with the shortest, so that it never moves
    because its runs changed. The interval is for each point by itself (a percentile bootstrap over whole runs), not a
    band that holds the whole curve.

    Args:
        steps: of the rows of each run, increasing; a row holds what happened since the one before.
        returns: mean return of the episodes that ended within a row; NaN where none did.
        weights: how many ended there.
        num_points: the largest P.
        statistic, confidence, num_resamples, seed: as in `interval`.

    Raises:
        ValueError: no runs, a run in which no episode ended, or no step by which one had ended in every run.
    """
    if not len(steps):
        raise ValueError("a curve needs at least one run, got none")
    if not all(len(s) == len(r) == len(w) for s, r, w in zip(steps, returns, weights, strict=True)):
        raise ValueError("steps, returns and weights of a run differ in length")
    if not all((np.asarray(w) > 0).any() for w in weights):
        raise ValueError("there is a run in which no episode ended: leave it out, and say so")
    end = min(s[-1] for s in steps)
    num_rows = max(np.sum(np.asarray(s) <= end) for s in steps)
    grid = np.rint(np.linspace(0, end, min(num_points, num_rows) + 1)[1:])
    values = np.stack([on_grid(*run, grid) for run in zip(steps, returns, weights, strict=True)], axis=-1)
    known = ~np.isnan(values).any(-1)
    if not known.any():
        raise ValueError(f"no step up to {end:,} of the shortest run at which every run has ended an episode")
    grid, values = grid[known], values[known]
    return Curve(grid, statistic(values, axis=-1), *_ends([values], statistic, confidence, num_resamples, seed))


def on_grid(steps: np.ndarray, returns: np.ndarray, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """One run's mean return `[P]` over the episodes that ended in `(grid[p - 1], grid[p]]`, each counted once.

    Where none ended, the last known value is held; NaN before the first one. Nothing after `grid[p]` enters point p.
    """
    steps, returns, weights = (np.asarray(x, np.float64) for x in (steps, returns, weights))
    inside = (weights > 0) & (steps <= grid[-1])
    stretch = np.searchsorted(grid, steps[inside])
    totals = np.bincount(stretch, returns[inside] * weights[inside], len(grid))
    counts = np.bincount(stretch, weights[inside], len(grid))
    last = np.maximum.accumulate(np.where(counts > 0, np.arange(len(grid)), -1))
    return np.where(last < 0, np.nan, totals[last] / np.where(counts > 0, counts, np.nan)[last])


def runs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The runs of run directories and of sweep directories (a run a lane), with their groups.

    A run is `name`, `algorithm`, `task` (environment and its options), `seed`, `group`, `varied` (its values of the
    settings that differ between the groups), `config`, `steps` it took, `score` (None where nothing was evaluated),
    `died_at` (the update that turned its state into NaN, else None; the score is that of its last finite state),
    `dropped_at` (updates after which it was stopped or evaluated early, else None; its score is of that point), `path`,
    and for lanes of a sweep `curve` (columns of its log), `planned_steps` and `num_seeds`.

    Runs of one algorithm on one task with equal settings are a group, whatever their seeds, unless the source of the
    algorithm changed between them (`source=` and the head of its hash, which old runs may not have). It is called by
    what differs between groups of the same algorithm on the same task and by what a sweep varied, `learning_rate=1e-04
    clip=0.2`, with the algorithm in front where there are several; by the algorithm alone where nothing differs.

    Raises:
        ValueError: no paths, a path that is neither kind of directory, a sweep that has not ended, files that cannot
            be read, or one seed of a group twice: the same run again is no further evidence.
    """
    if not len(paths):
        raise ValueError("give at least one run directory or sweep directory")
    found, declared = [], {}
    for path in map(Path, paths):
        try:
            if (path / "sweep.json").exists():
                sweep = read_json(path / "sweep.json")
                declared.setdefault(sweep["algorithm"], []).extend(sweep["varied"])
                lanes = read_rows(path / "lanes.jsonl")
                if not lanes:
                    raise ValueError(f"{path} has not ended: go on with it by rlx sweep --resume {path}")
                found += [_lane(path, sweep, lane) for lane in lanes]
            elif (path / "config.json").exists():
                found.append(_run(path))
            else:
                raise ValueError(f"{path} is neither a run nor a sweep: it has no config.json and no sweep.json")
        except KeyError as error:
            raise ValueError(f"{path} holds no {error.args[0]}: not a run or sweep of this version") from None
    _tell_sources_apart(found, declared)
    _name_groups(found, declared)
    seen = {}
    for run in found:
        key = run["task"], run["group"], run["seed"]
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {run['name']} are the same run ({run['group']} on {run['task']}, seed {run['seed']}):"
                " the same seed again is no further evidence; leave one out"
            )
        seen[key] = run["name"]
    return found


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: when it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from None


def report(
    runs: Sequence[dict[str, Any]],
    target: float | None = None,
    bounds: dict[str, tuple[float, float]] | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Compares the groups of `runs`, as `runs(paths)` reads them. The result is made of what JSON has.

    `tasks`: for each task its `groups`, best first, and `stopped`, the runs that were stopped early, which are compared
    with nothing. A row has `group`, `runs`, of these `died` and `unscored` (not evaluated; they are in no statistic),
    `steps`, `mean`, `iqm` and `optimality_gap` with intervals, `std` over runs (with `R - 1`), and `improvement`: the
    probability that a run of the best group beats one of this group. The best is that of the highest IQM among the
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
    found = {"confidence": confidence, "tasks": [], "overall": None}
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


def tables(report: dict[str, Any], limit: int = 20) -> Group:
    """The report for a terminal: a table a task with its best `limit` groups, one across tasks, and the notes."""
    percent = f"{100 * report['confidence']:g} %"
    parts = []
    for part in report["tasks"]:
        gap = None if part["target"] is None else f"gap to {part['target']:g} [{percent}]"
        parts += _table(f"{part['task']}: return of the final evaluation", part["groups"], gap, percent, limit)
        parts += _table(f"{part['task']}: return after fewer steps than planned", part["stopped"], gap, percent, limit)
    if overall := report["overall"]:
        title, gap = f"{len(report['tasks'])} tasks", None
        if overall["normalised"]:
            title, gap = f"{title}, normalised return: 0 is low, 1 is high", f"gap to 1 [{percent}]"
        parts += _table(title, overall["groups"], gap, percent, limit)
    return Group(*parts, *(Text(f"- {note}") for note in report["notes"]))


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Markdown in which these tables stand between `<!-- table: NAME -->` and `<!-- end -->`; the rest is as it was.

    Raises:
        ValueError: for a table that the text has no place for.
    """
    for name, table in tables.items():
        start = f"<!-- table: {name} -->\n"
        before, mark, after = text.partition(start)
        if not mark or "<!-- end -->" not in after:
            raise ValueError(f"there is no place for the table {name!r}: write {start.strip()} and <!-- end -->")
        text = before + start + table + after[after.index("<!-- end -->") :]
    return text


def experiment(
    folder: Path,
    cases: Mapping[Any, str],
    measure: Callable[[Any], dict[str, Any]],
    draw: Callable[[dict[Any, dict], Path], None],
    table: Callable[[dict[Any, dict]], str],
    only: Callable[[Any], bool] = lambda case: True,
) -> None:
    """Measures the cases of an experiment that have no result yet, then draws its figure and writes its table.

    What is interrupted is gone on with by the next call; to have a case measured again, remove its file.

    Args:
        folder: gets `results/NAME.json` for each case, `figure.png`, and in `README.md` the table called returns.
        cases: the name of each, in the order in which they are measured and shown.
        measure: gives the result of a case, as strict JSON.
        draw: `draw(results, path)`; of those that are there, by case.
        table: `table(results)`, in Markdown.
        only: which cases to measure.
    """
    paths = {case: folder / "results" / f"{name}.json" for case, name in cases.items()}
    (folder / "results").mkdir(parents=True, exist_ok=True)
    for case, path in paths.items():
        if only(case) and not path.exists():
            started = time.perf_counter()
            result = measure(case)
            write_json(path, result | {"seconds": round(time.perf_counter() - started, 1)})
            print(f"{path.stem}: {path}", flush=True)
    results = {case: read_json(path) for case, path in paths.items() if path.exists()}
    if results:
        draw(results, folder / "figure.png")
        readme = folder / "README.md"
        text = readme.read_text() if readme.exists() else "<!-- table: returns -->\n<!-- end -->\n"
        readme.write_text(fill(text, {"returns": table(results)}))


def _strata(samples):
    strata = [np.asarray(sample, np.float64) for sample in samples]
    if not strata or any(s.ndim != 1 or not s.size for s in strata):
        raise ValueError(
            f"give a list with the scores [R] of the runs of each task, got shapes {[s.shape for s in strata]}"
        )
    if not all(np.isfinite(s).all() for s in strata):
        raise ValueError("scores have to be finite: leave out runs without a score, and say so")
    return strata


def _ends(samples, statistic, confidence, num_resamples, seed):
    """Ends of the percentile bootstrap interval of `statistic(*samples, axis=-1)`; None where a sample is one run."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: give a number between 0 and 1, 0.95 for example")
    if min(sample.shape[-1] for sample in samples) < 2:
        return None, None
    batch = max(1, min(num_resamples, BATCH // sum(sample.size for sample in samples)))
    options = {"confidence_level": confidence, "n_resamples": num_resamples, "batch": batch, "axis": -1}
    ends = scipy.stats.bootstrap(samples, statistic, method="percentile", rng=seed, **options).confidence_interval
    return ends.low, ends.high


def _estimate(value, low, high):
    ends = (None, None) if low is None else (float(low), float(high))
    return dict(zip(("value", "low", "high"), (float(value), *ends), strict=True))


def _mann_whitney(x, y):
    """U of x over the last axis: pairs in which x is larger, those with equal ones half."""
    n = x.shape[-1]
    ranks = scipy.stats.rankdata(np.concatenate([x, y], axis=-1), axis=-1)  # ties share their mean rank
    return ranks[..., :n].sum(-1) - n * (n + 1) / 2


def _run(path):
    saved = read_json(path / "config.json")
    file = path / "evaluation.json"
    evaluation = read_json(file) if file.exists() else {"mean": None, "step": 0, "update": 0}
    update = evaluation["update"]
    early = evaluation["mean"] is not None and evaluation["step"] < saved["steps"]
    died = early and _died(path, update, saved)
    return {
        "name": path.name,
        "algorithm": saved["algorithm"],
        "source": _version(saved),
        "task": _task(saved["env"], saved["env_options"]),
        "seed": saved["seed"],
        "config": saved["config"],
        "settings": saved["config"] | _prefixed(saved.get("env_params")),
        "steps": evaluation["step"],
        "score": _score(evaluation["mean"]),
        "died_at": update + 1 if died else None,
        "dropped_at": update if early and not died else None,
        "path": str(path),
    }


def _died(path, update, saved):
    """Whether training itself evaluated after `update`, where no evaluation was due: it only does when it died."""
    rows = read_rows(path / "evaluations.jsonl")
    if all(row["update"] != update for row in rows):
        return False  # evaluated later, by hand
    if not update:
        return True
    return update not in evaluation_points(saved["updates"], saved["num_evaluations"])


def _lane(path, sweep, lane):
    own = lane["config"] | _prefixed(sweep.get("env_params")) | lane["varied"]
    return {
        "name": f"{path.name}, lane {lane['lane']}",
        "algorithm": sweep["algorithm"],
        "source": _version(sweep),
        "task": _task(sweep["env"], sweep.get("env_options")),
        "seed": lane["seed"],
        "config": lane["config"],
        "settings": {"lane": lane["lane"]} if sweep.get("pbt") else own,
        "steps": lane["steps"],
        "score": _score(lane["return_mean"]),
        "died_at": lane["died_at"],
        "dropped_at": lane["dropped_at"],
        "path": str(path),
        "curve": lane["curve"],
        "planned_steps": lane["planned_steps"],
        "num_seeds": sweep["num_seeds"],
    }


def _task(env, options):
    named = env or "unnamed environment"
    return " ".join([named, *(f"{name}={setting_text(value)}" for name, value in (options or {}).items())])


def _prefixed(env_params):
    return {f"env.{name}": value for name, value in (env_params or {}).items()}


def _version(saved):
    """What tells the source of a run's algorithm from others; None where an older rlx kept nothing of it."""
    hashes = sorted(saved.get("source", {}).items())
    return "-".join(f"{value[:8]}" for _, value in hashes) or None


def _tell_sources_apart(found, declared):
    """Files of equal source are one algorithm, wherever they are; where a file was changed, its runs are not alike."""
    first = {}
    for run in found:
        name = run["algorithm"]
        if run["source"] is not None and name != first.setdefault((short_name(name), run["source"]), name):
            run["algorithm"] = first[short_name(name), run["source"]]
            declared.setdefault(run["algorithm"], []).extend(declared.pop(name, ()))
    for task, name in {(run["task"], run["algorithm"]): None for run in found}:
        alike = [run for run in found if (run["task"], run["algorithm"]) == (task, name)]
        if len({run["source"] for run in alike} - {None}) > 1:
            for run in alike:
                run["settings"] = run["settings"] | {"source": run["source"] or "unknown"}


def _score(value):
    """A number, None where there is none; `"nan"` stands for one in strict JSON."""
    return float(value) if value is not None and np.isfinite(float(value)) else None


def _name_groups(found, declared):
    """Gives every run its `group` and `varied`, in place of its settings."""
    names = {run["algorithm"]: short_name(run["algorithm"]) for run in found}
    if len(set(names.values())) < len(names):  # two files of one name
        names = {name: name for name in names}
    fields = {name: list(dict.fromkeys(declared.get(name, ()))) for name in names}
    for task, name in {(run["task"], run["algorithm"]): None for run in found}:
        alike = [run["settings"] for run in found if (run["task"], run["algorithm"]) == (task, name)]
        for field in dict.fromkeys(field for settings in alike for field in settings):
            if field not in fields[name] and len({_identity(settings.get(field)) for settings in alike}) > 1:
                fields[name].append(field)
    for run in found:
        settings, _ = run.pop("settings"), run.pop("source")
        run["varied"] = {field: settings[field] for field in fields[run["algorithm"]] if field in settings}
    groups = {(run["task"], run["algorithm"], _identity(run["varied"])) for run in found}
    for digits in (3, 17):  # random draws may agree in three digits
        for run in found:
            parts = [f"{field}={setting_text(value, digits)}" for field, value in run["varied"].items()]
            run["group"] = " ".join([names[run["algorithm"]], *parts] if len(names) > 1 or not parts else parts)
        if len({(run["task"], run["group"]) for run in found}) == len(groups):
            break


def _identity(value):
    return json.dumps(value, sort_keys=True)


def setting_text(value, digits=3):
    """A setting as it stands in names: 0.2, 1e-04, 64x64."""
    if isinstance(value, list | tuple):
        return "x".join(map(str, value)) or "none"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}g}"
    return np.format_float_scientific(value, precision=digits - 1, trim="-", exp_digits=2)


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
    best = max(rows, key=lambda row: (not row["unscored"], _iqm(row)), default=None)
    rows.sort(key=lambda row: (row is not best, -_iqm(row)))
    for row in rows[1:]:
        x, y = _scores(groups[best["group"]]), _scores(groups[row["group"]])
        if x is not None and y is not None:
            row["improvement"] = probability_of_improvement(x, y, confidence)
    return rows


def _bounds(bounds, tasks):
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


def _table(title, rows, gap, percent, limit):
    if not rows:
        return []
    # Text, not strings: rich would take [none] for one of its tags.
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("group", overflow="fold")
    columns = {
        "runs": lambda row: ", ".join([str(row["runs"]), *(f"{row[k]} {k}" for k in ("died", "unscored") if row[k])]),
        "steps": lambda row: f"{row['steps']:,}",
    }
    values = [row["iqm"]["value"] for row in rows if row["iqm"]]
    if values:
        digits = decimals(values)
        columns |= {
            f"IQM [{percent}]": lambda row: _with_interval(row["iqm"], digits),
            "mean": lambda row: _number(row["mean"] and row["mean"]["value"], digits),
            "std": lambda row: _number(row["std"], digits),
        }
        if gap:
            columns[gap] = lambda row: _with_interval(row["optimality_gap"], digits)
        if all(row["std"] is None for row in rows):
            del columns["std"]
    if any(row["improvement"] for row in rows):
        columns[f"P(first beats it) [{percent}]"] = lambda row: _with_interval(row["improvement"], 2)
    for name in columns:
        table.add_column(Text(name), justify="right")
    for row in rows[:limit]:
        table.add_row(Text(row["group"]), *(Text(cell(row)) for cell in columns.values()))
    return [table, f"and {len(rows) - limit} more groups"] if len(rows) > limit else [table]


def decimals(values):
    """Four significant digits of the largest value, three decimals at most."""
    largest = max(abs(value) for value in values)
    return int(np.clip(3 - np.floor(np.log10(largest)), 0, 3)) if largest > 0 else 1


def _number(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def _with_interval(estimate, digits):
    if estimate is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.{digits}f} [none]"
    return "{value:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(d=digits, **estimate)
