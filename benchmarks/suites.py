"""Which environments of other suites keep the contract of rlx, and which are not offered.

    python benchmarks/suites.py
    python benchmarks/suites.py --suite xminigrid --force

Runs `rlx.envs.check` on every environment that the registry has of these suites, each in a process of its own, and
writes `results/suites.json` after each: one that was stopped goes on where it was. A suite that is not installed is
passed over.
"""

import json
import os
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from provenance import RESULTS, commit, machine, versions
from rich.console import Console

import rlx
from rlx.envs.contract.evidence import ContractError
from rlx.envs.registry import refused
from rlx.files import read_json

SUITES = ("craftax", "xminigrid", "jumanji", "pgx", "jaxmarl")
OPTIONS = {"xminigrid/XLand-*": {"ruleset": "craft"}}  # what environments cannot be made without
NUM_STEPS = 64  # of the random episodes
LIMIT = 1200.0  # seconds for one environment
# Most of the time goes to compiling programs that run once.
FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def offered(suite: str) -> list[str]:
    """Full names of the environments of a suite; none where it is not installed, or not registered."""
    return rlx.envs.names(suite) if find_spec(suite) else []


def judge(name: str, num_steps: int = NUM_STEPS) -> dict[str, Any]:
    """What `rlx.envs.check` says of an environment.

    `passes`; `not_judged`, reasons by clause; `fixed_starts`, whether all episodes begin in one state, which `check` is
    then told; and `error` where a clause is broken or the environment cannot be made.
    """
    options = {key: x for names, found in OPTIONS.items() if fnmatchcase(name, names) for key, x in found.items()}
    lines, fixed = [], False
    try:
        env = rlx.envs.make(name, **options)
        try:
            lines = rlx.envs.check(env, num_steps=num_steps)
        except ContractError as error:
            if error.clause != "starts":
                raise
            lines, fixed = rlx.envs.check(env, num_steps=num_steps, random_starts=False), True
    except Exception as error:  # whatever a suite raises is a result
        text = str(error).strip().partition("\n")[0]
        return {
            "passes": False,
            "error": text if isinstance(error, ContractError) else f"{type(error).__name__}: {text}",
        }
    found = [line.removeprefix("not judged: ").partition(": ") for line in lines if line.startswith("not judged: ")]
    return {"passes": True, "fixed_starts": fixed, "not_judged": {clause: reason for clause, _, reason in found}}


def judged(name: str, num_steps: int = NUM_STEPS, limit: float = LIMIT) -> dict[str, Any]:
    """The same in a process of its own, with its `seconds`; one that takes longer than `limit` does not pass."""
    command, start = [sys.executable, __file__, "--only", name, "--num-steps", str(num_steps)], time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, env=os.environ | FAST
        )
        ended = f"the process ended with status {done.returncode}: {done.stderr.strip()[-300:]}"
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"passes": False, "error": ended}
    except subprocess.TimeoutExpired:
        found = {"passes": False, "error": f"it took longer than {limit:.0f} s"}
    return found | {"seconds": round(time.monotonic() - start, 1)}


def write(path: Path, found: dict[str, Any]) -> None:
    """Puts the results in place at once: one that is stopped while writing leaves the old ones."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(part, path)


def main(
    suite: str | None = None,
    force: bool = False,
    only: str | None = None,
    num_steps: int = NUM_STEPS,
    out: Path = RESULTS / "suites.json",
) -> None:
    """Judges, and writes `suites.json`.

    Args:
        suite: only this one.
        force: judge again what is in the file.
        only: print what is said of this environment, as JSON, and write nothing.
        num_steps: of the random episodes.
        out: the JSON file.
    """
    if only is not None:
        print(json.dumps(judge(only, num_steps)))
        return
    console, code = Console(), commit()
    for name in SUITES if suite is None else [suite]:
        found = read_json(out) if out.exists() else {"suites": {}}
        if not (names := offered(name)):
            continue
        about = {"version": versions(name)[name], "machine": machine(), "versions": versions("rlx", "jax", "jaxlib")}
        there = found["suites"].get(name, {}).get("environments", {})
        there = {known: result for known, result in there.items() if known in names and not force}
        for i, full in enumerate(names):
            if full not in there:
                there[full] = judged(full, num_steps) | {"commit": code}
                said = "passes" if there[full]["passes"] else there[full]["error"]
                console.print(f"{i + 1} of {len(names)}, {full}: {said}, {there[full]['seconds']:.0f} s")
            found["suites"][name] = about | {"environments": there, "refused": refused(name)}
            write(out, found)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
