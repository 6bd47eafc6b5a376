"""What a sweep found: lanes, states, tables, pictures, and the best lane as a run."""

import csv
import json
import math
import resource
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from rlx import source
from rlx.env import Env
from rlx.files import loose, read_rows, write_json, write_rows
from rlx.run.evaluations import draw
from rlx.run.job import OPTIONS, Job, identity
from rlx.run.job import describe as describe_run
from rlx.run.log import NO_LOG
from rlx.run.storage import naming, owned
from rlx.run.streams import importing_matplotlib
from rlx.sweeps.job import SweepJob, apply, describe
from rlx.sweeps.lanes import Group, Program, groups, shapes
from rlx.sweeps.search import split


@dataclass(frozen=True)
class Sweep:
    """A sweep that has come to its end: a row for each lane, as in `lanes.jsonl`."""

    job: SweepJob
    lanes: list[dict[str, Any]]

    def ranking(self) -> list[int]:
        """Configurations that trained to the end, by the interquartile mean of their lanes' scores, best first."""
        from rlx.report.statistics import iqm

        returns = returns_of((row for row in self.lanes if row["dropped_at"] is None), self.job.rank_by)
        return sorted(returns, key=lambda c: -iqm(np.array(returns[c])))

    @property
    def best(self) -> int | None:
        """The best lane of the best configuration; None where every lane died or has no finite return."""
        best = self.ranking()[0]
        score = partial(score_of, rank_by=self.job.rank_by)
        own = max((row for row in self.lanes if row["configuration"] == best), key=score)
        return own["lane"] if score(own) > -math.inf else None

    def settings(self, lane: int) -> tuple[Any, Env]:
        """Config and environment of a lane; of a population's member, those that it ended with."""
        varied = {name: loose(value) for name, value in self.lanes[lane]["varied"].items()}
        return apply(self.job.config, self.job.env, varied)

    def state(self, lane: int) -> Any:
        """The training state that a lane ended with."""
        row = self.lanes[lane]
        group = next(group for group in groups(self.job.settings) if row["configuration"] in group.numbers)
        return jax.tree.map(lambda x: x[0], states_of(self.job, group, [row]))

    def log(self, lane: int) -> list[dict[str, Any]]:
        """A lane's log from its first update to its last, rows as in the `metrics.jsonl` of a run."""
        found = []
        for numbers, rows in self._logs:
            if lane in numbers:
                i = numbers.index(lane)
                found += [{k: v[i] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        return sorted(found, key=lambda row: row["update"])

    @cached_property
    def _logs(self) -> list[tuple[list[int], list[dict[str, Any]]]]:
        """The lanes and the log of every batch."""
        batches = [path.parent for path in (self.job.directory / "batches").glob("*/result.json")]
        lanes = [[row["lane"] for row in json.loads((batch / "result.json").read_text())] for batch in batches]
        return [(own, read_rows(batch / "metrics.jsonl")) for own, batch in zip(lanes, batches, strict=True)]

    def export(self, lane: int, directory: Path) -> None:
        """Writes a lane as a run directory, which can be evaluated, plotted and resumed like any other.

        Raises:
            ValueError: when there is something in the directory, or another process writes it.
            Full: where the disk is full.
        """
        with owned(directory), naming(directory, lambda: f"{self.job.directory} is as it was, free some space"):
            self._export(lane, directory)

    def _export(self, lane: int, directory: Path) -> None:
        from rlx.run.checkpoint import save

        job, row = self.job, self.lanes[lane]
        config, env = self.settings(lane)
        own = Job(
            algorithm=job.algorithm,
            algorithm_name=job.algorithm_name,
            config=config,
            env=env,
            env_name=job.env_name,
            env_options=job.env_options,
            env_params=job.env_params | split(row["varied"])[1],
            seed=row["seed"],
            directory=directory,
            preset=job.preset,
            eval_episodes=job.eval_episodes,
            data=job.data,
            data_about=job.data_about,
        )
        source.keep(directory, source.read(job.algorithm_name, job.algorithm))
        about = {"run": identity(own), "log": NO_LOG}
        save(directory / "checkpoints", row["updates"], self.state(lane), about)
        log = [entry for entry in self.log(lane) if entry["update"] <= row["updates"]]
        write_rows(directory / "metrics.jsonl", log)
        write_rows(directory / "evaluations.jsonl", [row["evaluation"]])
        write_json(directory / "evaluation.json", row["evaluation"])
        write_json(directory / "config.json", describe_run(own, *OPTIONS))
        draw(directory, Console(stderr=True, highlight=False, markup=False, soft_wrap=True))


def members_of(program: Program, state: dict[str, Any], num: int) -> dict[str, list]:
    """What the members of a population train with now, and whom each copied last; nothing for independent lanes."""
    if not program.interval:
        return {}
    columns = {f"varied.{name}": x for name, x in zip(program.group.names, state["values"], strict=True)}
    return {name: np.asarray(x)[:num].tolist() for name, x in (columns | {"parent": state["parent"]}).items()}


def states_of(job: SweepJob, group: Group, rows: Sequence[dict[str, Any]]) -> Any:
    """The states that these lanes ended with, leaves `[L, ...]`; rows of a batch come one after another."""
    return carried(job, group, rows)["state"]


def carried(job: SweepJob, group: Group, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What these lanes ended with: `state`, and `rule` where they stop by one; see `rlx.sweeps.lanes.carry`."""
    from rlx.run.checkpoint import Damaged, restore

    found = []
    for name in dict.fromkeys(row["batch"] for row in rows):
        batch = job.directory / "batches" / name
        numbers = [row["lane"] for row in json.loads((batch / "result.json").read_text())]
        like = shapes(job.algorithm, group, len(numbers), job.strategy.interacts, job.rule(group))
        try:
            saved = restore(batch / "checkpoints", like)
        except Damaged as error:
            again = (
                f"delete {batch} and {job.directory / 'summary.json'}, and --resume trains it again, to the same bits"
            )
            raise ValueError(f"{str(error).partition(';')[0]}; {again}") from error
        picked = np.array([numbers.index(row["lane"]) for row in rows if row["batch"] == name])
        own = {name: saved[name] for name in ("state", "rule") if name in saved}
        found.append(jax.tree.map(lambda x, picked=picked: x[picked], own))
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *found)


def returns_of(rows: Iterable[dict[str, Any]], rank_by: str = "return") -> dict[int, list[float]]:
    """The scores of the lanes of every configuration, best ranked by their means; -inf for all where none has one.

    A lane without a score counts as the lowest of all lanes, so that it lowers its configuration and no other.
    """
    scores: dict[int, list[float]] = {}
    for row in rows:
        scores.setdefault(row["configuration"], []).append(score_of(row, rank_by))
    lowest = min((x for own in scores.values() for x in own if x > -math.inf), default=-math.inf)
    known = {c: max(own) > -math.inf for c, own in scores.items()}
    return {c: [max(x, lowest) if known[c] else x for x in own] for c, own in scores.items()}


def score_of(row: dict[str, Any], rank_by: str = "return") -> float:
    """A lane's mean return, or that of what its environment reported under another name, in its evaluation.

    -inf for a lane that died, or where it is not finite: it is worse than any other.
    """
    value = float(row["return_mean"] if rank_by == "return" else row["evaluation"]["reported"][rank_by])
    return value if math.isfinite(value) and row["died_at"] is None else -math.inf


def reported_by(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The names of what environments reported in the evaluations of these lanes."""
    return list(dict.fromkeys(name for row in rows for name in row["evaluation"].get("reported", {})))


def write_results(sweep: Sweep, programs: list[Group], seconds: float) -> None:
    """The rows of the lanes, the ranking, what it took, pictures, and the best lane as a run."""
    from rlx.report.statistics import interval, iqm

    directory, job = sweep.job.directory, sweep.job
    rows = []
    for row in sweep.lanes:
        config, _ = sweep.settings(row["lane"])
        log = [entry for entry in sweep.log(row["lane"]) if entry["update"] <= row["updates"]]
        columns = ["step", "episode_return", "num_episodes", *(f"episode_{name}" for name in reported_by([row]))]
        curve = {name: [entry[name] for entry in log] for name in columns if all(name in entry for entry in log)}
        rows.append(row | {"config": asdict(config), "curve": curve})
    write_rows(directory / "lanes.jsonl", rows)

    columns = ["seed", "updates", "steps", "return_mean", "return_std", "training_return", "died_at", "dropped_at"]
    names, reported = describe(job)["varied"], reported_by(sweep.lanes)
    with open(directory / "results.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["lane", "configuration", *names, *columns, *(f"{name}_mean" for name in reported)])
        for row in sweep.lanes:
            varied = [row["varied"].get(name) for name in names]
            known = row["evaluation"].get("reported", {})
            known = [*(row[name] for name in columns), *(known.get(name) for name in reported)]
            table.writerow([row["lane"], row["configuration"], *varied, *known])

    ranking = []
    for configuration in sweep.ranking():
        own = [row for row in sweep.lanes if row["configuration"] == configuration]
        returns = np.array([score for row in own if (score := score_of(row, job.rank_by)) > -math.inf])
        died = sum(row["died_at"] is not None for row in own)
        head = {"configuration": configuration, "varied": job.points[configuration], "lanes": len(own), "died": died}
        known = {"mean": float(returns.mean()), "iqm": interval([returns], iqm)} if len(returns) else {}
        ranking.append(head | {"scored": len(returns), "mean": None, "iqm": None} | known)
    write_json(directory / "ranking.json", ranking)

    plans = [json.loads(path.read_text()) for path in sorted((directory / "batches").glob("*.json"))]
    batches = [json.loads(path.read_text()) for path in (directory / "batches").glob("*/result.json")]
    played = [row["evaluation"] for rows in batches for row in rows]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    summary = {
        "lanes": len(sweep.lanes),
        "programs": len(programs),
        "compilations": len(plans),
        "compile_seconds": round(sum(plan["compile_seconds"] for plan in plans), 3),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak,
        "steps": sum(row["steps"] for row in sweep.lanes),
        "evaluation_steps": sum(round(row["mean_length"] * row["num_episodes"]) for row in played),
        "devices": jax.device_count(),
        "died": sum(row["died_at"] is not None for row in sweep.lanes),
        "rank_by": job.rank_by,
        "best": sweep.best,
    }
    shutil.rmtree(directory / "best", ignore_errors=True)  # of a process that was killed while it wrote
    if sweep.best is not None:
        sweep.export(sweep.best, directory / "best")
    try:
        draw_results(job, names)
    except Exception as error:  # whatever a plotting library raises, a picture is not worth a sweep
        print(f"not all pictures of {directory} could be drawn: {' '.join(str(error).split())}", file=sys.stderr)
    write_json(directory / "summary.json", summary)  # the last: it says that the others are whole


def draw_results(job: SweepJob, varied: list[str]) -> None:
    """Pictures, as far as there is something to be seen."""
    with importing_matplotlib():
        from rlx import plot
    from rlx.report.read import runs

    directory = job.directory
    lanes = runs([directory], job.rank_by)
    if any(weight for lane in lanes for weight in lane["curve"]["num_episodes"]):
        plot.learning_curves(lanes, directory / "curves.png")
    if job.strategy.interacts:
        rows = read_rows(directory / "batches" / "r0g0b0" / "metrics.jsonl")
        plot.population(rows, directory / "population.png", job.rank_by)
        return
    differ = [name for name in varied if len({json.dumps(lane["varied"][name]) for lane in lanes}) > 1]
    if differ:
        plot.sensitivity(lanes, directory / "sensitivity.png", differ)
    values = [len({json.dumps(lane["varied"][name]) for lane in lanes}) for name in differ]
    if len(differ) == 2 and max(values) <= 20:
        plot.heatmap(lanes, *differ, directory / "heatmap.png")
