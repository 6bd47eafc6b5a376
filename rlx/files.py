"""The files of run and sweep directories: JSON that is strict, rows of JSONL, and what `config.json` has to say."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlx.schedules import Schedule

NEEDED = (
    "algorithm",
    "env",
    "env_options",
    "env_params",
    "seed",
    "eval_episodes",
    "config",
    "preset",
    "updates",
    "steps",
)


def evaluation_points(num_updates: int, num_evaluations: int) -> list[int]:
    """After which updates to evaluate: `num_evaluations` of them, evenly spread, the last one at the end."""
    return sorted({-(-num_updates * i // num_evaluations) for i in range(1, num_evaluations + 1)})


def read_config(directory: Path, file: str = "config.json") -> dict[str, Any]:
    """The `config.json` of a run directory, or the `sweep.json` of a sweep directory.

    Raises:
        ValueError: when there is none, or it cannot be read.
    """
    path = directory / file
    if not path.exists():
        kind, other = ("run", "sweep.json") if file == "config.json" else ("sweep", "config.json")
        hint = "it is a run" if kind == "sweep" else f"it is a sweep, whose best lane is {directory / 'best'}; "
        hint += f"rlx export {directory} LANE --out RUN writes another" if kind == "run" else ""
        hint = (
            hint if (directory / other).exists() else f"it has no {file}" if directory.exists() else "it is not there"
        )
        raise ValueError(f"{directory} is not a {kind} directory: {hint}")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no settings")
    if missing := [name for name in NEEDED if name not in found]:
        raise ValueError(f"{path} has no {', '.join(missing)}: another version of rlx wrote it, or it was changed")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where there is no file. A last line that a crash cut short is left out.

    Raises:
        ValueError: when another line cannot be read.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path} is damaged in line {number}: {error}") from error
    return found


def write_json(path: Path, value: Any) -> None:
    """Replaces the file in one step by `value` as strict JSON, see `strict`."""
    _replace(path, json.dumps(strict(value), indent=2, allow_nan=False) + "\n")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces a JSONL file in one step."""
    _replace(path, "".join(json.dumps(strict(row), allow_nan=False) + "\n" for row in rows))


def strict(value: Any) -> Any:
    """The value with the numbers that JSON does not have as `"inf"`, `"-inf"` and `"nan"`, which `float` reads.

    Schedules become what they are written as, which a Config reads.
    """
    if isinstance(value, dict):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    text = isinstance(value, Schedule) or (isinstance(value, float) and not math.isfinite(value))
    return str(value) if text else value


def loose(value: Any) -> Any:
    """What a setting was before JSON: tuples for lists, numbers for what `strict` wrote as text."""
    if isinstance(value, list):
        return tuple(loose(item) for item in value)
    return float(value) if value in ("inf", "-inf", "nan") else value


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: when it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from None
