"""`rlx discover`: its directory, stopping and going on, its errors, and training with what it found."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from rlx import cli, meta
from rlx.algorithm import short_name
from rlx.cli import discover as cli_discover
from rlx.cli import sweep as cli_sweep
from rlx.files import read_rows
from rlx.meta import pictures
from rlx.objectives import DPO, Clip
from rlx.presets import preset
from rlx.run import checkpoint

pytestmark = pytest.mark.more

SMALL = ["--population", "4", "--steps", "300000", "--num-hidden", "4", "--look-every", "2", "--eval-seeds", "2"]
SMALL += ["--settings", "num_envs=4", "num_steps=32", "num_epochs=1", "learning_rate=1e-2", "--no-compile-cache"]
SMALL += ["--checkpoint-seconds", "0"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A directory of four generations."""
    path = tmp_path_factory.mktemp("discover") / "lpo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_discover, "OTHERS", {name: cli_discover.OTHERS[name] for name in ("PPO", "DPO", "SPO")})
        patch.setattr(cli_discover, "SCALE_SEEDS", 4)
        cli.main(["discover", "lpo", "--train", "CartPole-v1:512", "--generations", "4", *SMALL, "--out", str(path)])
    return path


@pytest.mark.more
def test_a_directory_has_everything_that_was_found(found):
    rows = read_rows(found / "generations.jsonl")
    assert [row["generation"] for row in rows] == [1, 2, 3, 4]
    assert [row["generation"] for row in rows if "proposed" in row] == [2, 4]
    assert checkpoint.numbers(found / "checkpoints") == [2, 3, 4]
    about = json.loads((found / "discovery.json").read_text())
    low, high = about["scales"]["CartPole-v1"]
    assert 15 < low < high
    results = json.loads((found / "evaluation.json").read_text())
    assert [r["objective"] for r in results] == ["LPO", "PPO", "DPO", "SPO"]
    assert all(len(r["returns"]) == 2 and not r["held_out"] for r in results)
    for name in ("curve.png", "drift.png"):
        assert (found / name).stat().st_size > 10_000


def test_the_proposed_objective_is_that_of_the_last_generation(found):
    objective = meta.load(found / "objective.npz")
    start = meta.lpo(num_hidden=4)
    strategy = meta.open_es(start, 4, 0.04)
    like = meta.first(strategy, start, jax.random.key(0))
    last = meta.mean(strategy, checkpoint.restore(found / "checkpoints", like, 4))
    jax.tree.map(np.testing.assert_array_equal, objective, last)


@pytest.mark.parametrize("how", ["stopped", "killed", "damaged"])
def test_going_on_is_bitwise_not_having_stopped(found, tmp_path, monkeypatch, capsys, how):
    """From generation 3, the newest checkpoint that is there and intact; a log that is ahead of it is cut."""
    path = tmp_path / "again"
    shutil.copytree(found, path)
    for name in ("evaluation.json", "objective.npz", "drift.png"):
        (path / name).unlink()
    if how == "damaged":
        (path / "checkpoints" / "4" / "about.json").write_text("{")
    else:
        shutil.rmtree(path / "checkpoints" / "4")
    if how == "stopped":
        lines = (path / "generations.jsonl").read_text().splitlines()
        (path / "generations.jsonl").write_text("\n".join(lines[:3]) + "\n")
    monkeypatch.setattr(cli_discover, "OTHERS", {"PPO": cli_discover.OTHERS["PPO"]})
    monkeypatch.setattr(cli_discover, "_evaluate", lambda *_: None)
    cli.main(["discover", "--resume", str(path)])
    assert ("is damaged: about.json cannot be read; going on from before it" in capsys.readouterr().out) == (
        how == "damaged"
    )
    assert checkpoint.numbers(path / "checkpoints")[-1] == 4
    assert read_rows(path / "generations.jsonl") == read_rows(found / "generations.jsonl")
    jax.tree.map(np.testing.assert_array_equal, *(meta.load(p / "objective.npz") for p in (path, found)))


@pytest.mark.more
def test_a_learned_objective_is_an_option_of_train_and_of_what_goes_on(found, tmp_path, capsys):
    objective = found / "objective.npz"
    size = ["--num-envs", "4", "--num-steps", "32", "--total-steps", "256", "--eval-episodes", "2"]
    cli.main(
        ["train", "ppo", "--env", "CartPole-v1", "--objective", str(objective), *size, "--out", str(tmp_path / "r")]
    )
    assert "ppo+objective on gymnax/CartPole-v1" in capsys.readouterr().out
    cli.main(["eval", str(tmp_path / "r"), "--num-episodes", "2"])
    cli.main(["train", "--resume", str(tmp_path / "r"), "--total-steps", "384"])
    assert "384" in capsys.readouterr().out
    assert short_name(f"rlx.algos.ppo+{objective}") == "ppo+objective"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "rlx discover needs environments: --train CartPole-v1,Acrobot-v1"),
        (["--train", "CartPole"], "CartPole-v1"),
        (["--train", "CartPole-v1", "--holdout", "gymnax/CartPole-v1"], "is named twice: what is held out"),
        (["--train", "CartPole-v1", "--settings", "clip=0.3"], "objectives have a clip of their own"),
        (["--train", "CartPole-v1", "--settings", "total_steps=9"], "--steps says how long a lifetime is"),
        (["--train", "CartPole-v1:many"], "after the colon give a number of steps"),
        (["--train", "CartPole-v1", "--population", "5"], "give an even number"),
        (["--train", "CartPole-v1", "--sigma", "0"], "--sigma 0.0: give a number above 0"),
        (["--train", "CartPole-v1", "--generations", "0"], "--generations 0: give at least 1"),
        (["--train", "CartPole-v1", "--settings", "clips=1"], "no such field: clips"),
    ],
)
def test_bad_input_is_one_line(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["discover", "lpo", *options, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_settings_cannot_go_on(found, capsys):
    with pytest.raises(SystemExit):
        cli.main(["discover", "lpo", "--resume", str(found), "--sigma", "0.1"])
    assert "was begun with other settings: leave out sigma" in capsys.readouterr().err


def test_resume_knows_what_it_was_and_where(found, tmp_path, capsys):
    for arguments, message in (
        (["--resume", str(tmp_path)], "is not a directory of rlx discover"),
        (["--resume", str(found), "--out", str(tmp_path / "x")], "leave out --out"),
        ([], "rlx discover needs to know what"),
        (["lpo", "--train", "CartPole-v1", "--out", str(found)], "resume it by --resume"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["discover", *arguments])
        assert message in capsys.readouterr().err


def test_other_settings_of_the_agents_cannot_go_on(found, monkeypatch, capsys):
    """As another version of rlx may have them."""
    other = lambda *args, **kwargs: replace(preset(*args, **kwargs), gamma=0.9)
    monkeypatch.setattr(cli_discover, "preset", other)
    with pytest.raises(SystemExit):
        cli.main(["discover", "--resume", str(found)])
    assert "was begun with other settings of PPO" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_another_objective_in_the_same_file(found, tmp_path, capsys):
    shutil.copy(found / "objective.npz", tmp_path / "mine.npz")
    size = ["--num-envs", "4", "--num-steps", "32", "--total-steps", "256", "--eval-episodes", "2"]
    size += ["--env", "CartPole-v1", "--out", str(tmp_path / "r")]
    cli.main(["train", "ppo", "--objective", str(tmp_path / "mine.npz"), *size])
    meta.save(tmp_path / "mine.npz", meta.lpo(jax.random.key(9), 4))
    with pytest.raises(SystemExit):
        cli.main(["train", "--resume", str(tmp_path / "r"), "--total-steps", "384"])
    assert "mine.npz has changed since" in capsys.readouterr().err


@pytest.mark.more
def test_a_sweep_does_not_go_on_with_another_objective_in_the_same_file(found, tmp_path, capsys):
    shutil.copy(found / "objective.npz", tmp_path / "mine.npz")
    size = ["--num-envs", "4", "--num-steps", "32", "--total-steps", "256", "--eval-episodes", "2"]
    size += ["--env", "CartPole-v1", "--num-seeds", "2", "--out", str(tmp_path / "s")]
    cli.main(["sweep", "ppo", "--objective", str(tmp_path / "mine.npz"), *size])
    assert cli_sweep.saved_job(tmp_path / "s").num_seeds == 2
    meta.save(tmp_path / "mine.npz", meta.lpo(jax.random.key(9), 4))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--resume", str(tmp_path / "s")])
    assert "mine.npz has changed since" in capsys.readouterr().err


def test_a_file_that_is_no_objective_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "ppo", "--env", "CartPole-v1", "--objective", str(tmp_path / "none.npz")])
    assert "there is no objective" in capsys.readouterr().err


def test_surfaces_are_the_drift_and_the_slope_of_what_is_maximised():
    drift, slope = pictures.surfaces(Clip(0.2))
    advantage, ratio = np.meshgrid(pictures.ADVANTAGES, pictures.RATIOS, indexing="ij")
    np.testing.assert_allclose(drift, np.maximum(0, (ratio - np.clip(ratio, 0.8, 1.2)) * advantage), atol=1e-5)
    held = ((ratio > 1.21) & (advantage > 0)) | ((ratio < 0.79) & (advantage < 0))
    np.testing.assert_allclose(slope[held], 0.0, atol=1e-6)
    free = (ratio > 0.81) & (ratio < 1.19)
    np.testing.assert_allclose(slope[free], advantage[free], atol=1e-5)
    back = pictures.surfaces(DPO())[1][(advantage < -1) & (ratio < 0.5)]
    assert (back > 0).any()
