"""The commands that make a run again, from what its directory says of it."""

import dataclasses
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

from rlx import source
from rlx.algorithm import kind_of, load_algorithm, split_name
from rlx.files import loose
from rlx.pytree import plain
from rlx.schedules import Schedule

OUT = "runs/again"  # where the commands write
PATH = re.compile(r"(^|/)(rlx|__main__\.py)$")  # of the program, in a recorded command


def recorded(saved: dict[str, Any]) -> list[str]:
    """The recorded command as a shell takes it: `rlx train ...`; empty where it was another program of Python."""
    command = [str(word) for word in saved.get("command", ())]
    return ["rlx", *command[1:]] if command and PATH.search(command[0]) else []


def algorithm_of(directory: Path, saved: dict[str, Any]) -> tuple[ModuleType | None, str]:
    """The algorithm that a directory was made with, without an objective, and why there is none."""
    try:
        changed = source.changes(saved["algorithm"], saved)
        base = source.kept(directory, saved)[0] if changed else split_name(saved["algorithm"])[0]
        return load_algorithm(base), ""
    except ValueError as error:
        return None, str(error)


def defaults_of(algorithm: ModuleType | None) -> dict[str, Any]:
    """The defaults of an algorithm's Config, as JSON has them; empty without one."""
    if algorithm is None:
        return {}
    fields = dataclasses.fields(algorithm.Config)
    return {field.name: as_json(field.default) for field in fields if field.default is not dataclasses.MISSING}


def as_json(value: Any) -> Any:
    """A setting as `config.json` has it."""
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    value = str(value) if isinstance(value, Schedule) else plain(value)
    return str(value) if isinstance(value, float) and value in (float("inf"), -float("inf")) else value


def train_command(
    directory: Path, saved: dict[str, Any], defaults: dict[str, Any], total_steps: int | None = None
) -> str:
    """The command line that trains a run again, with every setting that is not a default, into `OUT`.

    Args:
        directory: of the run, which has copies of files of one's own.
        saved: its `config.json`.
        defaults: of its Config; settings that are not among them are given.
        total_steps: of the run, where they were others than `saved` says.
    """
    base, given = split_name(saved["algorithm"])
    words = ["rlx", "train", _where(directory, saved, base).removeprefix("rlx.algos."), "--env", saved["env"]]
    words += ["--no-preset"]
    for name in filter(None, given.split("+")):
        words += [f"--{kind_of(name)}", _where(directory, saved, name)]
    for kind in ("env_options", "env_params"):
        if values := saved.get(kind):
            words += [f"--{kind.replace('_', '-')}", *(f"{name}={loose(x)!r}" for name, x in values.items())]
    words += ["--seed", str(saved["seed"])]
    words += ["--start-from", saved["start_from"]] if saved.get("start_from") else []
    words += ["--data", file] if (file := saved.get("data", {}).get("file")) else []
    for name in ("num_evaluations", "eval_episodes", "devices", "stop_at_return", "patience"):
        if saved.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(saved[name])]
    words += [] if saved.get("checkpoint_replay", True) else ["--no-checkpoint-replay"]
    config = saved["config"]
    if total_steps is not None:
        config = config | {"total_steps": total_steps}
    for name, value in config.items():
        if name not in defaults or defaults[name] != value:
            words += setting(name, value)
    return shlex.join([*prefix(saved), *words, "--out", OUT])


def setting(name: str, value: Any) -> list[str]:
    """A setting as options of `rlx train`."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag, str(value)]


def prefix(saved: dict[str, Any]) -> list[str]:
    """What of the process's environment a run depended on, in front of its command."""
    words = [f"XLA_FLAGS={' '.join(flags)}"] if (flags := saved.get("xla_flags")) else []
    modes = saved.get("modes", {})
    usual = {"jax_enable_x64": False, "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True}
    words += [f"{name.upper()}={modes[name]}" for name, value in usual.items() if modes.get(name, value) != value]
    return ["env", *words] if words else []


def again(directory: Path, saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """How to get the same bits: `commands`, one after another, whether they are `exact`, and `notes`."""
    command = recorded(saved)
    if saved.get("cloned"):
        return {"commands": [moved(command)] if command else [], "exact": bool(command), "notes": []}
    if saved["env"] is None:
        note = "it was made in Python with an environment without a name: call that again"
        return {"commands": [], "exact": False, "notes": [note]}
    stages, why_not = lengths(saved), reasons(saved)
    if stages is None:
        why_not.append("it was stopped before its end and went on with another number of steps: no command does that")
        stages = []
    notes = list(why_not)
    if saved.get("start_from"):
        notes.append(f"it begins with the networks of {saved['start_from']}, which have to be there as they were")
    first, *later = [*stages, saved["config"]["total_steps"]]
    commands = [train_command(directory, saved, defaults, first)]
    for total in later:
        commands.append(shlex.join([*prefix(saved), "rlx", "train", "--resume", OUT, "--total-steps", str(total)]))
    return {"commands": commands, "exact": not why_not, "notes": notes}


def lengths(saved: dict[str, Any]) -> list[int] | None:
    """The `total_steps` at which a run had ended before it was made longer; None where it had not ended."""
    resumed = saved.get("resumed", [])
    totals, found = [*(entry["total_steps"] for entry in resumed), saved["config"]["total_steps"]], []
    for entry, total in zip(resumed, totals[1:], strict=True):
        if entry["total_steps"] != total:
            if entry["after"] != entry["updates"]:
                return None
            found.append(entry["total_steps"])
    return found


def reasons(saved: dict[str, Any]) -> list[str]:
    """Why no command gives the bits of a run."""
    found, resumed = [], saved.get("resumed", [])
    if recorded(saved)[1:2] in (["sweep"], ["export"]):
        found.append("the run is a lane of a sweep: alone it has the numbers of the lane up to rounding, not its bits")
    if "--resume" in recorded(saved) and not resumed:
        found.append("it was resumed by an rlx that kept nothing of how it was begun")
    if saved.get("changes"):
        found.append("a hook in Python changed its settings while it trained: see changes in config.json")
    names = {"versions": "other versions", "rlx_source": "another source of rlx", "source": "another algorithm file"}
    names |= {"processor": "another processor", "device": "another device", "devices": "another number of devices"}
    for name, what in names.items():
        if any(name in entry and entry[name] != saved.get(name) for entry in resumed):
            found.append(f"it was resumed with {what}")
    if resumed and not saved.get("checkpoint_replay", True):
        found.append("it was resumed without its replay buffer")
    return found


def again_sweep(saved: dict[str, Any]) -> dict[str, Any]:
    """The same for a sweep, by the command that was recorded."""
    command = recorded(saved)
    if command[1:2] != ["sweep"] or "--resume" in command:
        note = f"it was begun by {shlex.join(map(str, saved.get('command', ())))}: call that again"
        return {"commands": [], "exact": False, "notes": [note]}
    notes = ["settings that ship for the environment are taken as they are in the installed version"]
    if saved.get("memory") is None:
        notes.append("batches are cut by the memory of the machine: a machine with less cuts smaller ones")
    return {"commands": [shlex.join([*prefix(saved), *shlex.split(moved(command))])], "exact": True, "notes": notes}


def install(saved: dict[str, Any]) -> str:
    """The command that installs the recorded versions; rlx itself is of a commit."""
    versions = {name: version for name, version in saved.get("versions", {}).items() if name != "rlx"}
    return shlex.join(["pip", "install", *(f"{name}=={version}" for name, version in versions.items())])


def moved(command: list[str]) -> str:
    """A command with another `--out`."""
    words, skip = [], False
    for word in command:
        if not skip and not word.startswith("--out="):
            words.append(word)
        skip = word == "--out"
        if skip:
            words.pop()
    return shlex.join([*words, "--out", OUT])


def _where(directory: Path, saved: dict[str, Any], part: str) -> str:
    """A part of an algorithm's name; of a file of one's own that is gone or has changed, the run's copy."""
    if not part.endswith((".py", ".npz")):
        return part
    changed = {path.name for path in source.changes(saved["algorithm"], saved)}
    return str(directory / source.FOLDER / Path(part).name) if changed else part
