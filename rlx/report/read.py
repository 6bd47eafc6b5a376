"""Runs and lanes read from their directories, in groups that differ in their seeds only."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlx.algorithm import short_name
from rlx.files import evaluation_points, read_json, read_rows


def runs(paths: Sequence[Path], result: str = "return") -> list[dict[str, Any]]:
    """The runs of run directories and of sweep directories (a run a lane), with their groups.

    A run is `name`, `algorithm`, `task` (environment and its options), `seed`, `group`, `varied` (its values of the
    settings that differ between the groups), `config`, `steps` it took, `score` (None where nothing was evaluated),
    `died_at` (the update that turned its state into NaN, else None; the score is that of its last finite state),
    `dropped_at` (updates after which it was stopped or evaluated early, else None; its score is of that point), `path`,
    `result` (of what the score is, the return or what the environment reports under that name), `reported` (all that it
    reported in its evaluation), and for lanes of a sweep `curve` (columns of its log), `planned_steps` and `num_seeds`.

    Runs of one algorithm on one task with equal settings are a group, whatever their seeds, unless the source of the
    algorithm changed between them (`source=` and the head of its hash, which old runs may not have). It is called by
    what differs between groups of the same algorithm on the same task and by what a sweep varied, `learning_rate=1e-04
    clip=0.2`, with the algorithm in front where there are several; by the algorithm alone where nothing differs.

    Raises:
        ValueError: no paths, a path that is neither kind of directory, a sweep that has not ended, files that cannot
            be read, one seed of a group twice (the same run again is no further evidence), or a result that no run has.
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
                    raise ValueError(f"{path} has not ended: resume it by rlx sweep --resume {path}")
                found += [_lane(path, sweep, lane, result) for lane in lanes]
            elif (path / "config.json").exists():
                found.append(_run(path, result))
            else:
                raise ValueError(f"{path} is neither a run nor a sweep: it has no config.json and no sweep.json")
        except KeyError as error:
            raise ValueError(f"{path} holds no {error.args[0]}: not a run or sweep of this version") from None
    known = dict.fromkeys(["return", *(name for run in found for name in run["reported"])])
    if result not in known and any(run["evaluated"] for run in found):
        raise ValueError(f"these runs have no result {result!r}: there are {', '.join(known)}")
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


def _run(path, result):
    saved = read_json(path / "config.json")
    file = path / "evaluation.json"
    evaluation = read_json(file) if file.exists() else {"mean": None, "step": 0, "update": 0}
    update = evaluation["update"]
    # A run that a rule or a hook has stopped is whole: it says so.
    early = evaluation["mean"] is not None and evaluation["step"] < saved["steps"] and "stopped" not in evaluation
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
        **_results(evaluation, evaluation["mean"], result),
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


def _results(evaluation, mean, result):
    """What an evaluation says: the score, of what it is, and everything that the environment reported."""
    reported = {name: _score(value) for name, value in evaluation.get("reported", {}).items()}
    score = _score(mean) if result == "return" else reported.get(result)
    return {"score": score, "result": result, "reported": reported, "evaluated": mean is not None}


def _lane(path, sweep, lane, result):
    own = lane["config"] | _prefixed(sweep.get("env_params")) | lane["varied"]
    return {
        "name": f"{path.name}, lane {lane['lane']}",
        "algorithm": sweep["algorithm"],
        "source": _version(sweep),
        "task": _task(sweep["env"], sweep.get("env_options")),
        "seed": lane["seed"],
        "config": lane["config"],
        "settings": {"lane": lane["lane"]} if sweep.get("interacts", sweep.get("pbt")) else own,
        "steps": lane["steps"],
        **_results(lane.get("evaluation", {}), lane["return_mean"], result),
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
