"""The command line as a user meets it: run directories, resuming, bad input. Commands run in this process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rlx import cli
from rlx.algos import ppo
from rlx.checkpoint import restore
from rlx.progress import Display
from rlx.run import short_name

SMALL = ["--total-steps", "2048", "--num-envs", "4", "--num-steps", "32", "--hidden-sizes", "8"]
SMALL += ["--eval-episodes", "4", "--no-compile-cache"]
ROOT = Path(__file__).resolve().parents[1]


def rlx(*arguments):
    """The exit status of a command."""
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state_of(run, total_steps=2048):
    config = ppo.Config(total_steps=total_steps, num_envs=4, num_steps=32, hidden_sizes=(8,))
    like = jax.eval_shape(ppo.init, config, cli.make("gymnax/CartPole-v1", {}), jax.random.key(0))
    return restore(run / "checkpoints", like)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert rlx("train", "ppo", "--env", "CartPole-v1", "--out", directory, *SMALL) == 0
    return directory


def test_train_leaves_a_run_directory(run):
    config = json.loads((run / "config.json").read_text())
    assert config["env"] == "gymnax/CartPole-v1"
    assert config["algorithm"] == "rlx.algos.ppo"
    assert config["config"]["num_steps"] == 32
    assert config["steps"] == 2048
    assert {"jax", "rlx", "gymnax"} <= set(config["versions"])
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["returns"]) == 4
    assert evaluation["mean"] == pytest.approx(np.mean(evaluation["returns"]))


def test_logged_rows_cover_every_update(run):
    logged = rows(run)
    assert [row["update"] for row in logged] == list(range(1, 17))
    assert [row["step"] for row in logged] == [128 * i for i in range(1, 17)]
    assert all(row["episode_return"] is None or row["episode_return"] >= 8 for row in logged)


def test_host_loop_is_the_same_run_as_train(run):
    import rlx as library

    config = ppo.Config(total_steps=2048, num_envs=4, num_steps=32, hidden_sizes=(8,))
    key, _ = jax.random.split(jax.random.key(0))
    state, metrics = library.train(ppo, config, library.envs.make("CartPole-v1"), key)
    logged = [row["entropy"] for row in rows(run)]
    # Two programs with the same operations: they may be fused differently, and differences grow over 16 updates.
    np.testing.assert_allclose(logged, metrics["entropy"], rtol=1e-3)
    assert int(state.num_updates) == int(state_of(run).num_updates) == 16


def test_resumed_run_is_bitwise_the_run_that_was_never_stopped(run, tmp_path, monkeypatch):
    show = Display.show

    def show_and_interrupt(self, steps, episode_return):
        show(self, steps, episode_return)
        if 128 * 5 <= steps < 128 * 16:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "show", show_and_interrupt)
        patch.setattr("rlx.run.CHUNK_UPDATES", 3)
        assert rlx("train", "ppo", "--env", "CartPole-v1", "--out", tmp_path / "cut", *SMALL) == 130
    assert 5 <= rows(tmp_path / "cut")[-1]["update"] < 16
    assert rlx("train", "--resume", tmp_path / "cut", "--no-compile-cache") == 0
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), state_of(run), state_of(tmp_path / "cut"))
    assert all(jax.tree.leaves(equal))
    drop = lambda row: {name: value for name, value in row.items() if name != "seconds"}
    assert list(map(drop, rows(run))) == list(map(drop, rows(tmp_path / "cut")))


def test_resume_goes_beyond_the_end_when_total_steps_is_raised(run, tmp_path):
    shutil.copytree(run, tmp_path / "longer")
    assert rlx("train", "ppo", "--resume", tmp_path / "longer", "--total-steps", "4096", "--no-compile-cache") == 0
    assert int(state_of(tmp_path / "longer", 4096).num_updates) == 32
    assert [row["update"] for row in rows(tmp_path / "longer")] == list(range(1, 33))


def test_a_run_that_was_stopped_before_its_first_row_can_be_resumed(run, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rlx.run.Stop.__enter__", stop)
        assert rlx("train", "ppo", "--env", "CartPole-v1", "--out", tmp_path / "cut", *SMALL) == 130
    (tmp_path / "cut" / "metrics.jsonl").unlink(missing_ok=True)
    assert rlx("train", "--resume", tmp_path / "cut", "--no-compile-cache") == 0
    assert [row["update"] for row in rows(tmp_path / "cut")] == list(range(1, 17))


def test_a_run_that_diverges_ends_with_its_last_finite_state(tmp_path, capsys):
    diverging = ["--learning-rate", "inf", *SMALL]
    assert rlx("train", "ppo", "--env", "CartPole-v1", "--out", tmp_path / "run", *diverging) == 1
    assert "update 1 turned the training state into NaN or infinity" in capsys.readouterr().out
    state = state_of(tmp_path / "run")
    assert int(state.num_updates) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("name", ["rlx.algos.ppo", "/somewhere/else/ppo.py"])
def test_pictures_and_directories_call_the_algorithm_by_its_short_name(name):
    assert short_name(name) == "ppo"


def test_eval_plot_and_envs_work_on_what_train_left(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert rlx("eval", copy, "--num-episodes", "3", "--no-compile-cache") == 0
    assert "3 episodes" in capsys.readouterr().out
    assert rlx("plot", run, copy, "--output", tmp_path / "both.png") == 0
    assert (tmp_path / "both.png").exists()
    assert rlx("envs", "cartpole") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "gymnax/CartPole-v1"


def test_a_copy_of_the_file_anywhere_runs_edited(tmp_path):
    text = (ROOT / "algos" / "ppo.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace('"learning_rate": learning_rate,', '"my_metric": learning_rate,'))
    command = [sys.executable, "mine.py", "--env", "probe/Action", "--out", "run", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "my_metric" in rows(tmp_path / "run")[0]
    assert rlx("eval", tmp_path / "run", "--num-episodes", "2", "--no-compile-cache") == 0


BAD = {
    "train ppo --env CartPoel-v1": "did you mean CartPole-v1",
    "train poo --env CartPole-v1": "did you mean ppo?",
    "trian ppo": "did you mean train?",
    "train ppo": "needs an environment",
    "train": "needs an algorithm",
    "train ppo --env CartPole-v1 --learning-ratee 3": "--learning-rate",
    "train ppo --env CartPole-v1 --learning-rate x": "learning-rate",
    "train ppo --env CartPole-v1 --learning-rate nan": "learning_rate is NaN",
    "train ppo --env CartPole-v1 --num-envs 0": "num_envs = 0: give an integer of at least 1",
    "train ppo --env CartPole-v1 --hidden-sizes 0": "give integers of at least 1",
    "train ppo --env CartPole-v1 --num-minibatches 3": "use 2 or 4",
    "train ppo --env CartPole-v1 --eval-episodes 0": "at least 1",
    "train ppo --env CartPole-v1 --activation sigmund": "use tanh",
    "train ppo --env CartPole-v1 --conv-features 8": "leave conv_features empty",
    "train ppo --env CartPole-v1 --env-options max_steps=0": "at least 1",
    "train ppo --env CartPole-v1 --env-options gravity": "name=value",
    "train ppo --env CartPole-v1 --env-options gravity=3": "does not take",
    "train ppo --env brax/hopper --env-options backend=bullet": "spring",
    "train ppo --env CartPole-v1 --seed -1": "give a number from 0",
    "train ppo --env CartPole-v1 --seed 5000000000": "give a number from 0",
    "eval nowhere": "not a run directory",
    "plot": "at least one run",
    "plot nowhere": "not a run directory",
    "envs nothinglikeit": "no environment",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_status_2(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rlx(*command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("rlx: ")
    assert error.count("\n") == 1
    assert BAD[command] in error
    assert not any(tmp_path.iterdir())


def test_a_directory_with_a_run_is_never_written_to(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert rlx("train", "ppo", "--env", "CartPole-v1", "--out", run, *SMALL) == 2
    assert "--resume" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_resume_refuses_other_settings(run, capsys):
    assert rlx("train", "--resume", run, "--learning-rate", "1") == 2
    assert "learning_rate = 0.00025 -> 1.0" in capsys.readouterr().err
    assert rlx("train", "--resume", run, "--seed", "3") == 2
    assert rlx("train", "--resume", run, "--no_preset") == 2
    assert "--no-preset" in capsys.readouterr().err
    assert rlx("train", "--resume", run) == 2
    assert "raise --total-steps" in capsys.readouterr().err


def test_ctrl_c_leaves_logs_whole_and_says_how_far_it_came(tmp_path):
    command = [sys.executable, "-m", "rlx", "train", "ppo", "--env", "CartPole-v1", "--out", "run"]
    command += ["--total-steps", "1000000000", "--hidden-sizes", "8", "--no-compile-cache"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
        if process.poll() is not None:
            break
    # Rows are rare in so long a run: what is pending when the signal comes has to be written too.
    time.sleep(1.0 if log.exists() else 0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted after" in output
    assert "--resume" in output
    last = rows(tmp_path / "run")[-1]
    assert last["update"] == max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
