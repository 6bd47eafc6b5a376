"""The reproducibility card: what made a run or a sweep, how to make it again, and what is another now."""

import json
from pathlib import Path
from typing import Any

from rlx import source
from rlx.algorithm import preset_file, split_name
from rlx.files import read_config, read_json, read_rows
from rlx.presets import settings as tuned_settings
from rlx.report.recipe import again, again_sweep, algorithm_of, defaults_of, install, recorded
from rlx.run.evaluations import best
from rlx.run.job import provenance

DETERMINISM = (
    "the same versions, source, XLA flags, kind of processor and device, and number of devices give the same bits",
    "a resumed run has the bits of one never stopped, where its checkpoints hold the replay buffer, and its settings "
    "and number of devices stay",
    "another version of jaxlib, another processor or another number of devices gives another program: results differ "
    "by rounding, and after thousands of updates visibly",
    "a lane of a sweep and the single run of its seed differ by rounding, for they are two programs",
)
ON_GPU = (
    "on a GPU XLA may choose other kernels at each start and add in any order: the same bits need "
    "XLA_FLAGS=--xla_gpu_deterministic_ops=true at the first run and at the next"
)
FOLLOWS = {
    "versions": "another program: results differ by rounding, or by what the package changed",
    "python": "no other bits are expected",
    "rlx_source": "another program: install rlx as it was",
    "source": "another algorithm: the run has a copy of a file of your own in source/",
    "device": "another program: results differ by rounding",
    "processor": "another program: XLA compiles for the processor, and results may differ by rounding",
    "xla_flags": "another program: the command sets the flags",
    "modes": "other dtypes or other random numbers: the command sets them",
    "compiler": "another program: RLX_COMPILER says whether rlx changes JAX",
    "preset": "the settings that ship have changed: the command gives those of the run",
}


def card(directory: Path, lane: int | None = None) -> dict[str, Any]:
    """All of the card of a run directory, of a sweep directory or of a lane of a sweep, as strict JSON.

    Raises:
        ValueError: for a directory that is neither, files that cannot be read, or a lane that there is not.
    """
    is_sweep = (directory / "sweep.json").exists()
    saved = read_config(directory, "sweep.json" if is_sweep else "config.json")
    if lane is not None and not is_sweep:
        raise ValueError(f"--lane {lane}: {directory} is a run, and lanes are of sweeps")
    algorithm, why = algorithm_of(directory, saved)
    defaults = defaults_of(algorithm)
    found = {"kind": "sweep" if is_sweep else "run", "path": str(directory), **made_by(saved)}
    row = None
    if lane is not None:
        saved, row = lane_of(directory, saved, lane)
        found |= {"kind": "lane", "lane": lane, "seed": saved["seed"], "env": environment(saved)}
    found["settings"] = changed_settings(saved, defaults)
    found["determinism"] = [*DETERMINISM, *([ON_GPU] if not saved.get("device", "cpu").startswith("cpu") else [])]
    recipe = again_sweep(saved) if is_sweep else again(directory, saved, defaults)
    if lane is not None:
        recipe["commands"].append(f"rlx export runs/again {lane} --out runs/lane-{lane}")
    if recipe["exact"] and "changes" in (saved.get("commit") or "") and saved.get("rlx_source") != source.package():
        recipe["exact"] = False
        recipe["notes"].append("rlx had changes that no commit has, and is another here: what it was is not known")
    found["again"] = {"install": install(saved), "rlx": revision(saved), **recipe}
    found["now"] = differences(directory, saved, algorithm) + ([{"what": "algorithm", "follows": why}] if why else [])
    return found | (results_of_sweep(directory, saved, row) if is_sweep else results_of_run(directory))


def made_by(saved: dict[str, Any]) -> dict[str, Any]:
    """What was run, by what, on what."""
    names = ("algorithm", "source", "seed", "num_seeds", "devices", "started", "python", "versions", "device")
    names += ("processor", "matmul_precision", "xla_flags", "modes", "compiler", "commit", "rlx_source")
    command = recorded(saved) or [str(word) for word in saved.get("command", ())]
    found = {"command": command, "env": environment(saved)} | {name: saved[name] for name in names if name in saved}
    names = ("num_evaluations", "eval_episodes", "steps", "updates", "start_from", "resumed", "strategy", "varied")
    return found | {name: saved[name] for name in names if name in saved}


def environment(saved: dict[str, Any]) -> dict[str, Any]:
    return {"name": saved["env"], "options": saved["env_options"], "params": saved["env_params"]}


def lane_of(directory: Path, saved: dict[str, Any], lane: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What `sweep.json` would say of a lane by itself, and its row of `lanes.jsonl`; None before the end."""
    num = len(saved["points"]) * saved["num_seeds"]
    if not 0 <= lane < num:
        raise ValueError(f"--lane {lane}: {directory} has lanes 0 to {num - 1}")
    row = next((row for row in read_rows(directory / "lanes.jsonl") if row["lane"] == lane), None)
    point = row["varied"] if row is not None else saved["points"][lane // saved["num_seeds"]]
    params = {name.removeprefix("env."): x for name, x in point.items() if name.startswith("env.")}
    own = {name: x for name, x in point.items() if not name.startswith("env.")}
    seed = saved["seed"] + lane % saved["num_seeds"]
    env_params = (saved["env_params"] or {}) | params
    return saved | {"config": saved["config"] | own, "seed": seed, "env_params": env_params}, row


def changed_settings(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings that are not the Config's defaults, those of them that are not the tuned ones, and the tuned ones."""
    config, preset = saved["config"], saved["preset"]
    other = {name: x for name, x in config.items() if name not in defaults or defaults[name] != x}
    usual = defaults | preset
    own = {name: x for name, x in config.items() if name not in usual or usual[name] != x}
    return {"not_default": other, "not_tuned": own, "tuned": preset, "points": saved.get("points")}


def revision(saved: dict[str, Any]) -> str:
    """How to have rlx as it was."""
    commit, _, changes = (saved.get("commit") or "").partition(" ")
    if not commit:
        return f"rlx {saved.get('versions', {}).get('rlx', '')}, of no known commit"
    return f"git checkout {commit}" + (", which then had changes that are not known" if changes else "")


def differences(directory: Path, saved: dict[str, Any], algorithm: Any) -> list[dict[str, Any]]:
    """What is another here and now than it was for the run: `what`, `was`, `now`, and what `follows` from it."""
    here, found = provenance(), []
    now = here | {"source": source.hashes(split_name(saved["algorithm"])[0], {})}

    def compare(what, kind, was, is_now):
        if was != is_now:
            found.append({"what": what, "was": was, "now": is_now, "follows": FOLLOWS[kind]})

    for name in sorted(saved.get("versions", {}).keys() | here["versions"].keys()):
        compare(name, "versions", saved.get("versions", {}).get(name), here["versions"].get(name))
    for name in ("python", "rlx_source", "processor", "xla_flags", "modes", "compiler"):
        if name in saved:
            compare(name, name, saved[name], now[name])
        else:
            found.append(
                {"what": name, "was": None, "now": now[name], "follows": "not known: an older rlx did not keep it"}
            )
    compare("device", "device", *(of["device"].rpartition(" x ")[0] for of in (saved, here)))
    for file, value in saved.get("source", {}).items():
        if file in now["source"]:
            compare(file, "source", value[:12], now["source"][file][:12])
    for path, what in source.changes(saved["algorithm"], saved).items():
        found.append({"what": path.name, "was": "there", "now": what, "follows": FOLLOWS["source"]})
    if algorithm is not None and saved["env"] and saved["preset"]:
        shipped = json.loads(json.dumps(tuned_settings(preset_file(algorithm), saved["env"])))
        same = {name: x for name, x in saved["preset"].items() if name in shipped}
        if shipped and shipped != same:
            compare("tuned settings", "preset", same, shipped)
    return found


def results_of_run(directory: Path) -> dict[str, Any]:
    """The checkpoints of a run, its evaluations during training and the best of them, and those that were asked for."""
    folder = directory / "checkpoints"
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []
    rows = read_rows(directory / "evaluations.jsonl")
    top = best(rows)
    asked = [read_json(path) | {"file": path.name} for path in sorted((directory / "evaluations").glob("*.json"))]
    return {
        "checkpoints": numbers,
        "evaluations": [_short(row) for row in rows],
        "best": None if top is None else _short(top),
        "asked": [_short(row) | {name: row.get(name) for name in ("file", "seed")} for row in asked],
        "ended": (directory / "evaluation.json").exists(),
    }


def results_of_sweep(directory: Path, saved: dict[str, Any], row: dict[str, Any] | None) -> dict[str, Any]:
    """What a sweep has come to, or a lane of it."""
    summary = directory / "summary.json"
    ended = summary.exists()
    if row is not None:
        names = ("updates", "steps", "died_at", "dropped_at", "varied")
        lane = {name: row[name] for name in names} | {"batch": f"batches/{row['batch']}"}
        return {"ended": ended, "evaluations": [_short(row["evaluation"])], "result": lane}
    num = len(saved["points"]) * saved["num_seeds"]
    return {"ended": ended, "num_lanes": num, "summary": read_json(summary) if ended else None}


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("update", "step", "mean", "std", "num_episodes", "deterministic")}
