"""What has become of a run or a sweep, told from its files and from whether a process owns its directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlx.files import evaluation_points


class State(NamedTuple):
    """A word for what a run or a sweep does or has come to, and a sentence about it."""

    word: str  # starting, under way, done, cloned, stopped, died, killed, unknown
    text: str


def newest_checkpoint(directory: Path) -> int | None:
    """The largest number of updates that a folder of checkpoints has one of; None where it has none."""
    try:
        return max((int(path.name) for path in directory.iterdir() if path.name.isdigit()), default=None)
    except FileNotFoundError:
        return None


def state_of_run(
    directory: Path,
    owned: bool | None,
    config: dict[str, Any] | None,
    evaluation: dict[str, Any] | None,
    evaluations: Sequence[dict[str, Any]],
    update: int,
) -> State:
    """The state of a run.

    Args:
        directory: of the run.
        owned: by a process; it has to be looked up before the files are read, as a run that ends writes them first.
            None where nothing tells.
        config: of `config.json`; None where there is none.
        evaluation: of `evaluation.json`; None where there is none.
        evaluations: the rows of `evaluations.jsonl`.
        update: of the last row of its log.
    """
    if owned:
        return State("starting", "It compiles.") if config is None else State("under way", "")
    if config is None:
        return State("unknown", "There is no config.json.")
    resume = f"rlx train --resume {directory} continues it."
    if evaluation is not None:
        done, planned = evaluation["update"], config["updates"]
        if done < planned and (reason := evaluation.get("stopped")):  # by a rule or a hook
            return State("stopped", f"It stopped by itself: {reason}. {resume}")
        trained = any(row["update"] == done for row in evaluations)  # or it was evaluated later, by hand
        due = evaluation_points(planned, config.get("num_evaluations", 1))
        if done < planned and trained and done not in due and not (directory / "cloning.jsonl").exists():
            return State("died", f"Update {done + 1} made it NaN or infinite; rlx why {directory} says what was first.")
        early = f"It was evaluated after {done} of {planned} updates." if done < planned else ""
        return State("cloned" if "cloned" in config and not update else "done", early)
    if "cloned" in config and not update:
        return State("cloned", "")
    if owned is None:
        return State("unknown", "Its file system has no locks: it is under way, or it was killed.")
    if (directory / "curve.png").exists():  # a run that is stopped draws it, and one that is resumed removes it
        return State("stopped", f"Everything is saved; {resume}")
    newest = newest_checkpoint(directory / "checkpoints")
    if newest is None:
        return State("killed", "There is no checkpoint: begin it again.")
    lost = f", and trains what came after update {newest} again" if update > newest else ""
    return State("killed", f"{resume[:-1]}{lost}.")


def state_of_sweep(
    directory: Path, owned: bool | None, sweep: dict[str, Any] | None, done: bool, batches: dict[str, tuple[bool, int]]
) -> State:
    """The state of a sweep.

    Args:
        directory: of the sweep.
        owned: as in `state_of_run`.
        sweep: of `sweep.json`; None where there is none.
        done: whether there is a `summary.json`, which comes last.
        batches: whether each has its result, and the update of the last row of its log.
    """
    if owned:
        return State("starting", "It compiles.") if sweep is None else State("under way", "")
    if sweep is None:
        return State("unknown", "There is no sweep.json.")
    if done:
        return State("done", "")
    if owned is None:
        return State("unknown", "Its file system has no locks: it is under way, or it was killed.")
    resume = f"rlx sweep --resume {directory} continues it."
    for name, (ended, update) in batches.items():
        newest = newest_checkpoint(directory / "batches" / name / "checkpoints")
        if not ended and (newest is None or update > newest):
            again = f", and trains what came after update {newest or 0} of batch {name} again"
            return State("killed", f"{resume[:-1]}{again}.")
    return State("stopped", f"Nothing was lost; {resume}")
