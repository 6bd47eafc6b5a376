"""Sweeps, reports and plots by what an environment reports, where more of it is less return."""

import csv
import json
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import cli, report
from rlx.files import read_rows
from rlx.plot import curves
from rlx.pytree import pytree, replace
from rlx.spaces import Box
from rlx.sweeps.results import score_of

SKILLS = [0.2, 0.4, 0.6, 0.8, 1.0]


@pytree
class Params:
    skill: float = 0.5


class Trade:
    """Episodes of two steps that cost as much as they succeed."""

    default_params: ClassVar = Params()

    def observation_space(self, params):
        return Box(0.0, 2.0, (1,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def reset(self, key, params):
        return jnp.zeros(1), jnp.float32(0)

    def step(self, key, state, action, params):
        count = state + 1.0
        info = {"success": params.skill * (count == 2.0), "constant": 1.0}
        return count[None], count, -params.skill, count >= 2.0, jnp.array(False), info


@pytest.fixture(scope="module")
def config(small):
    return replace(small, num_envs=4, num_steps=8, total_steps=4 * 8 * 6)


@pytest.fixture(scope="module")
def sweep(ppo, config):
    env = rlx.Env(Trade(), Params())

    def run(directory, **options):
        space = {"env.skill": SKILLS}
        return rlx.sweep(ppo, config, env, space, directory=directory, eval_episodes=2, **options)

    return run


@pytest.fixture(scope="module")
def swept(sweep, tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("sweeps") / "sweep", rank_by="success", halving=5)


def test_the_best_lane_is_that_of_the_most_success(swept, sweep, tmp_path):
    directory = swept.job.directory
    assert swept.ranking() == [4]
    assert swept.best == 4
    assert [row["dropped_at"] is None for row in swept.lanes] == [False] * 4 + [True]  # halving kept it
    assert [row["evaluation"]["reported"]["success"] for row in swept.lanes] == pytest.approx(SKILLS)
    assert [score_of(row, "success") for row in swept.lanes] == pytest.approx(SKILLS)
    assert [score_of(row) for row in swept.lanes] == pytest.approx([-2 * x for x in SKILLS])
    ranking = json.loads((directory / "ranking.json").read_text())
    assert ranking[0]["mean"] == pytest.approx(1.0)
    assert json.loads((directory / "summary.json").read_text())["rank_by"] == "success"
    table = list(csv.DictReader((directory / "results.csv").read_text().splitlines()))
    assert [float(row["success_mean"]) for row in table] == pytest.approx(SKILLS)
    assert [float(row["constant_mean"]) for row in table] == [2.0] * 5
    assert json.loads((directory / "best" / "evaluation.json").read_text())["reported"]["success"] == pytest.approx(1)
    rows = read_rows(directory / "best" / "metrics.jsonl")
    assert [row["episode_success"] for row in rows] == pytest.approx([1.0] * len(rows))
    with pytest.raises(ValueError, match="holds another sweep: rank_by = success -> return"):
        sweep(directory, halving=5)


def test_halving_by_return_keeps_another_one(sweep, tmp_path):
    assert sweep(tmp_path / "sweep", halving=5).ranking() == [0]


@pytest.mark.parametrize(("rank_by", "worst", "best"), [("success", 0, 4), ("return", 4, 0)])
def test_a_population_copies_those_of_the_most(sweep, tmp_path, rank_by, worst, best):
    sweep(tmp_path / "sweep", rank_by=rank_by, pbt=2)
    rows = read_rows(tmp_path / "sweep" / "batches" / "r0g0b0" / "metrics.jsonl")
    parents = [own if own != worst else best for own in range(5)]
    assert rows[-1]["parent"] == parents
    assert (tmp_path / "sweep" / "population.png").exists()


def test_a_name_that_nothing_reports_is_refused_with_those_there_are(sweep, tmp_path):
    with pytest.raises(ValueError, match=r"^rank_by = 'succes': lanes of this sweep can be ranked by return, constant"):
        sweep(tmp_path / "sweep", rank_by="succes")
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_the_command_line_ranks_by_what_an_environment_reports(tmp_path, capsys):
    given = ["sweep", "ppo", "--env", "rlx/GridWorld", "--learning-rate", "1e-3,1e-4", "--out", str(tmp_path / "s")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*given, "--rank-by", "sucess"])
    assert stopped.value.code == 2
    assert "can be ranked by return, success" in capsys.readouterr().err


def test_a_sweep_of_before_is_one_by_return(swept, tmp_path):
    saved = json.loads((swept.job.directory / "sweep.json").read_text())
    assert saved["rank_by"] == "success"
    from rlx.sweeps.saved import saved_job

    del saved["rank_by"]
    saved |= {"env": "rlx/GridWorld", "points": [{}], "env_params": {}, "env_options": {}, "algorithm": "rlx.algos.ppo"}
    (tmp_path / "sweep.json").write_text(json.dumps(saved))
    assert saved_job(tmp_path).rank_by == "return"


def test_reports_and_plots_are_of_what_is_asked_for(swept, tmp_path, capsys, monkeypatch):
    directory = str(swept.job.directory)
    runs = report.runs([Path(directory)], "success")
    assert [run["score"] for run in runs] == pytest.approx(SKILLS)
    assert report.runs([Path(directory)])[0]["score"] == pytest.approx(-2 * SKILLS[0])
    with pytest.raises(ValueError, match="no result 'other': there are return, constant, success"):
        report.runs([Path(directory)], "other")
    found = report.report(runs)
    assert found["tasks"][0]["groups"][0]["reported"] == pytest.approx({"success": 1.0, "constant": 2.0})
    cli.main(["report", directory, "--rank-by", "success"])
    said = capsys.readouterr().out
    assert "success of the final evaluation" in said
    assert "what the environment reported" in said

    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure.axes[0]))
    curves.learning_curves(runs, tmp_path / "x.png")
    assert drawn[0].get_ylabel() == "training success, IQM"
    ends = sorted(float(np.asarray(line.get_ydata())[-1]) for line in drawn[0].lines)
    assert ends[-1] == pytest.approx(1.0)
    curves.curve([Path(directory) / "best"], tmp_path / "x.png", "success")
    assert drawn[1].get_ylabel() == "success"
    assert np.asarray(drawn[1].lines[0].get_ydata()) == pytest.approx(1.0)
    cli.main(["plot", f"{directory}/best", "--y", "success", "--output", str(tmp_path / "best.png")])
    assert len(drawn) == 3
    assert drawn[2].get_ylabel() == "success"


def test_runs_of_before_have_reported_nothing(tmp_path, swept):
    best = tmp_path / "old"
    best.mkdir()
    for name in ("config.json", "evaluation.json", "metrics.jsonl"):
        (best / name).write_text((swept.job.directory / "best" / name).read_text())
    evaluation = json.loads((best / "evaluation.json").read_text())
    del evaluation["reported"]
    (best / "evaluation.json").write_text(json.dumps(evaluation))
    (run,) = report.runs([best])
    assert run["reported"] == {}
    assert report.report([run])["tasks"][0]["groups"][0]["reported"] == {}
    with pytest.raises(ValueError, match=r"there are return$"):
        report.runs([best], "success")
