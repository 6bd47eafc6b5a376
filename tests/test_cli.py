"""The command line as a user meets it: run directories, resuming, bad input. Commands run in this process."""

import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx as library
from rlx import cli
from rlx.algorithm import OBJECTIVES, short_name
from rlx.algos import ppo
from rlx.cli.options import tuned_elsewhere
from rlx.files import evaluation_points
from rlx.objectives import SPO
from rlx.run import Logger, best, evaluate_run, keys
from rlx.run.checkpoint import numbers, restore
from rlx.run.progress import Display
from rlx.run.saved import environment
from rlx.run.training import on_a_thread

EXACT = True  # bits are compared

SMALL = ["--total-steps", "2048", "--num-envs", "4", "--num-steps", "32", "--hidden-sizes", "8"]
SMALL += ["--eval-episodes", "4"]
TRAIN = ["train", "ppo", "--env", "CartPole-v1", *SMALL]
ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("command_cache")


def rlx(*arguments):
    """The exit status of a command."""
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def rows(run, name="metrics.jsonl"):
    """The rows of a log, without the seconds."""
    found = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def content(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def state_of(run, total_steps=2048, num_updates=None):
    config = ppo.Config(total_steps=total_steps, num_envs=4, num_steps=32, hidden_sizes=(8,))
    like = jax.eval_shape(ppo.init, config, environment("gymnax/CartPole-v1", {}, {}), jax.random.key(0))
    return restore(run / "checkpoints", like, num_updates)


def same_state(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), state_of(a), state_of(b))))


def same_run(a, b):
    """Whether two run directories hold the same states, rows and evaluations, bit for bit."""
    files = ("metrics.jsonl", "evaluations.jsonl")
    return same_state(a, b) and all(rows(a, name) == rows(b, name) for name in files)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert rlx(*TRAIN, "--out", directory) == 0
    return directory


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The same training, with eight evaluations, of which the second seems best, and rows of four updates."""
    directory = tmp_path_factory.mktemp("runs") / "long"
    with pytest.MonkeyPatch.context() as patch:
        as_long(patch)
        assert rlx(*TRAIN, "--out", directory, "--num-evaluations", "8") == 0
    return directory


def as_long(patch):
    def evaluate(job, state, *args, **kwargs):
        result = evaluate_run(job, state, *args, **kwargs)
        return result | {"mean": 1e6 if int(state.num_updates) == 4 else result["mean"]}

    patch.setattr("rlx.run.training.evaluate_run", evaluate)
    patch.setattr("rlx.run.training.ROWS", 4)
    patch.setattr("rlx.run.loop.CHUNK_UPDATES", 3)


def interrupt(patch, first, number=signal.SIGINT):
    """Sends the signal when `first` updates are done."""
    show = Display.show

    def show_and_interrupt(self, steps, episode_return):
        show(self, steps, episode_return)
        if steps >= 128 * first:
            signal.raise_signal(number)

    patch.setattr(Display, "show", show_and_interrupt)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """`long`, interrupted after 7 updates or a few more, with checkpoints of 2 updates and later."""
    directory = tmp_path_factory.mktemp("runs") / "cut"
    with pytest.MonkeyPatch.context() as patch:
        as_long(patch)
        interrupt(patch, 7)
        assert rlx(*TRAIN, "--out", directory, "--num-evaluations", "8") == 130
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


@pytest.mark.more
def test_host_loop_is_the_same_run_as_train(run):
    config = ppo.Config(total_steps=2048, num_envs=4, num_steps=32, hidden_sizes=(8,))
    key, _ = jax.random.split(jax.random.key(0))
    state, metrics = library.train(ppo, config, library.envs.make("CartPole-v1"), key)
    logged = [row["entropy"] for row in rows(run)]
    # Two programs with the same operations: they may be fused differently, and differences grow over 16 updates.
    np.testing.assert_allclose(logged, metrics["entropy"], rtol=1e-3)
    assert int(state.num_updates) == int(state_of(run).num_updates) == 16


def test_evaluations_do_not_change_what_is_trained(run, long):
    assert same_state(run, long)
    evaluations = rows(long, "evaluations.jsonl")
    assert [row["update"] for row in evaluations] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert evaluations[-1:] == rows(run, "evaluations.jsonl") == [json.loads((run / "evaluation.json").read_text())]


@pytest.mark.parametrize(("num", "points"), [(1, [10]), (3, [4, 7, 10]), (10, range(1, 11)), (99, range(1, 11))])
def test_evaluations_are_evenly_spread_and_the_last_one_is_at_the_end(num, points):
    assert evaluation_points(10, num) == list(points)


def test_the_best_checkpoint_is_kept_and_holds_what_was_evaluated(long, tmp_path, capsys):
    assert numbers(long / "checkpoints") == [4, 12, 14, 16]
    row = rows(long, "evaluations.jsonl")[1]
    config = ppo.Config(total_steps=2048, num_envs=4, num_steps=32, hidden_sizes=(8,))
    state, env = state_of(long, num_updates=4), library.envs.make("CartPole-v1")
    assert library.evaluate(ppo, config, env, state, keys(0)[1], 4).returns.tolist() == row["returns"]
    shutil.copytree(long, tmp_path / "long")
    for flags, update in ((["--best"], 4), (["--from-update", "12"], 12), ([], 16)):
        assert rlx("eval", tmp_path / "long", "--num-episodes", "4", *flags) == 0
        file = tmp_path / "long" / "evaluations" / f"update-{update}-seed-0-episodes-4.json"
        assert json.loads(file.read_text())["update"] == update
    assert rlx("eval", tmp_path / "long", "--best", "--from-update", "12") == 2
    assert "give one of them" in capsys.readouterr().err


def test_of_equal_evaluations_the_last_is_best_and_nan_the_worst():
    evaluations = [{"mean": mean, "update": i} for i, mean in enumerate(["-inf", 1.0, 3.0, 3.0, "nan", 2.0])]
    assert best(evaluations)["update"] == 3
    assert best(evaluations[4:5])["update"] == 4
    assert best([]) is None


def test_resumed_run_is_bitwise_the_run_that_was_never_stopped(long, cut, tmp_path, monkeypatch, capsys):
    shutil.copytree(cut, tmp_path / "cut")
    assert 7 <= numbers(cut / "checkpoints")[-1] < 16
    with monkeypatch.context() as patch:
        as_long(patch)
        interrupt(patch, 13, signal.SIGTERM)
        assert rlx("train", "--resume", tmp_path / "cut") == 143
        assert f"resume with --resume {tmp_path / 'cut'}" in capsys.readouterr().out
        assert rows(tmp_path / "cut")[-1]["update"] == numbers(tmp_path / "cut" / "checkpoints")[-1] < 16
    with monkeypatch.context() as patch:
        as_long(patch)
        assert rlx("train", "--resume", tmp_path / "cut") == 0
    assert same_run(long, tmp_path / "cut")
    assert 4 in numbers(tmp_path / "cut" / "checkpoints")


MOMENTS = {
    "rlx.run.checkpoint.save": 1,  # before the first checkpoint
    "rlx.run.training.evaluate_run": 8,  # the last one
    "rlx.run.loop.draw": 1,
    "rlx.run.checkpoint._checksums": 5,
}


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_was_killed_can_be_resumed(long, tmp_path, monkeypatch, moment):
    left = iter(range(MOMENTS[moment] - 1, -1, -1))

    def call_or_die(*args, original, **kwargs):
        if next(left) == 0:
            raise KilledError
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        as_long(patch)
        patch.setattr(moment, partial(call_or_die, original=pkgutil.resolve_name(moment)))
        with pytest.raises(KilledError):
            rlx(*TRAIN, "--out", tmp_path / "cut", "--num-evaluations", "8")
    with monkeypatch.context() as patch:
        as_long(patch)
        assert rlx("train", "--resume", tmp_path / "cut") == 0
    assert same_run(long, tmp_path / "cut")
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {path.name for path in long.iterdir()}


def test_what_was_killed_before_it_wrote_anything_can_be_started_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *args: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            rlx(*TRAIN, "--out", tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    (tmp_path / "cut" / "source").mkdir(parents=True)  # what is left where not even an exception was raised
    (tmp_path / "cut" / "config.tmp").write_text("{")
    assert rlx(*TRAIN, "--out", tmp_path / "cut") == 0


@pytest.mark.more
def test_same_key_same_bits_in_another_process(run, tmp_path):
    command = [sys.executable, "-m", "rlx", *TRAIN, "--out", "run", "--no-compile-cache"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert same_run(run, tmp_path / "run")


def test_same_key_same_bits_in_this_process(run, tmp_path):
    assert rlx(*TRAIN, "--out", tmp_path / "run") == 0
    assert same_run(run, tmp_path / "run")


@pytest.mark.more
def test_resume_goes_beyond_the_end_when_total_steps_is_raised(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "longer")
    assert rlx("train", "ppo", "--resume", tmp_path / "longer", "--total-steps", "4096") == 0
    assert "4,096 steps instead of 2,048: after 2,048 the run is 50% done instead of 100%" in capsys.readouterr().out
    assert int(state_of(tmp_path / "longer", 4096).num_updates) == 32
    assert [row["update"] for row in rows(tmp_path / "longer")] == list(range(1, 33))
    assert [row["update"] for row in rows(tmp_path / "longer", "evaluations.jsonl")] == [16, 32]


def test_a_run_that_diverges_ends_with_its_last_finite_state(tmp_path, capsys):
    diverging = ["--learning-rate", "inf", *SMALL]
    assert rlx("train", "ppo", "--env", "CartPole-v1", "--out", tmp_path / "run", *diverging) == 1
    assert "update 1 turned the training state into NaN or infinity" in capsys.readouterr().out
    state = state_of(tmp_path / "run")
    assert int(state.num_updates) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert rows(tmp_path / "run") == []
    assert rlx("train", "--resume", tmp_path / "run") == 1


@pytest.mark.parametrize("name", ["rlx.algos.ppo", "/somewhere/else/ppo.py"])
def test_pictures_and_directories_call_the_algorithm_by_its_short_name(name):
    assert short_name(name) == "ppo"


def test_eval_plot_and_envs_work_on_what_train_left(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert rlx("eval", copy, "--num-episodes", "3") == 0
    assert "3 episodes" in capsys.readouterr().out
    assert rlx("plot", run, copy, "--output", tmp_path / "both.png") == 2
    assert "the same seed again is no further evidence" in capsys.readouterr().err
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"seed": 1}))
    assert rlx("plot", run, copy, "--output", tmp_path / "both.png") == 0
    assert (tmp_path / "both.png").exists()
    assert rlx("envs", "cartpole-v1") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "gymnax/CartPole-v1"


@pytest.mark.more
def test_a_copy_of_the_file_anywhere_runs_edited(tmp_path):
    text = (ROOT / "algos" / "ppo.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace('"learning_rate": learning_rate,', '"my_metric": learning_rate,'))
    command = [sys.executable, "mine.py", "--env", "probe/Action", "--out", "run", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "my_metric" in rows(tmp_path / "run")[0]
    assert rlx("eval", tmp_path / "run", "--num-episodes", "2") == 0


BAD = {
    "train ppo --env CartPoel-v1": "did you mean CartPole-v1",
    "train poo --env CartPole-v1": "did you mean ppo",
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
    "train ppo --env CartPole-v1 --env-params gravity": "name=value",
    "train ppo --env CartPole-v1 --env-params gravty=3": "did you mean gravity? there are max_steps_in_episode, ",
    "train ppo --env CartPole-v1 --env-params gravity=low": "gravity = 'low': it takes a number",
    "train ppo --env CartPole-v1 --gamma 1.5": "gamma = 1.5: it has to be at least 0 and at most 1",
    "train ppo --env CartPole-v1 --learning-rate -1": "learning_rate = -1.0: it has to be at least 0",
    "train ppo --env CartPole-v1 --clip 0": "clip = 0.0: it has to be above 0",
    "train ppo --env CartPole-v1 --num-evaluations 0": "--num-evaluations 0: give at least 1",
    "train ppo --env CartPole-v1 --checkpoint-seconds -1": "--checkpoint-seconds -1.0: give 0 or more",
    "train ppo --env CartPole-v1 --from-update 3": "needs --resume",
    "train ppo --env CartPole-v1 --objective spoo": "unknown objective 'spoo': did you mean spo or dpo",
    "train pqn --env CartPole-v1 --variant dapo": "unknown variant 'dapo': this algorithm has none",
    "train ppo --env CartPole-v1 --variant dapo": "unknown variant 'dapo': there are a2c, reinforce",
    "train grpo --env CartPole-v1 --variant dappo": "unknown variant 'dappo': there are grpo, process, dr_grpo, dapo,",
    "train ppo --env CartPole-v1 --objective SPO --epsilon 0": "epsilon = 0.0: it has to be above 0",
    "train ppo --env CartPole-v1 --epsilon 0.1": "--epsilon",
    "train ppo --env": "Missing value for argument",
    "train --resume nowhere": "not a run directory",
    "train ppo --env CartPole-v1 --seed -1": "give a number from 0",
    "train ppo --env CartPole-v1 --seed 5000000000": "give a number from 0",
    "eval nowhere": "not a run directory",
    "plot": "at least one run",
    "plot nowhere": "neither a run nor a sweep",
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


REFUSED = {
    "--learning-rate 1": "learning_rate = 0.00025 -> 1.0",
    "--seed 3": "seed = 0 -> 3",
    "--env Acrobot-v1": "env = gymnax/CartPole-v1 -> gymnax/Acrobot-v1",
    "--env-params gravity=3": "env_params = {} -> {'gravity': 3}",
    "--out elsewhere": "-> elsewhere",
    "--no_preset": "--no-preset",
    "--variant dapo": "--variant dapo",
    "": "raise --total-steps",
    "--total-steps 128": "raise --total-steps",
    "--from-update 3": "holds no checkpoint of update 3: there are 0, 16",
    "--total-steps 4096 --num-evaluations 0": "give at least 1",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_resume_refuses_other_settings_and_changes_nothing(run, capsys, flags):
    before = content(run)
    assert rlx("train", "--resume", run, *flags.split()) == 2
    assert REFUSED[flags] in capsys.readouterr().err
    assert content(run) == before


def test_what_is_repeated_on_resume_may_agree(cut, tmp_path, monkeypatch):
    shutil.copytree(cut, tmp_path / "cut")
    flags = ["--env", "CartPole-v1", "--seed", "0", "--num_envs=4", "--out", tmp_path / "cut"]
    interrupt(monkeypatch, 0)
    assert rlx("train", "ppo", "--resume", tmp_path / "cut", *flags) == 130


def edit(**changes):
    """Changes fields of config.json, `config__` ones in its Config; without a value they go."""

    def change(directory):
        config = json.loads((directory / "config.json").read_text())
        for name, value in changes.items():
            *outer, name = name.split("__")
            (config[outer[0]] if outer else config)[name] = value
        kept = {name: value for name, value in config.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(kept))

    return change


def damage(directory):
    newest = directory / "checkpoints" / str(numbers(directory / "checkpoints")[-1])
    (newest / "state" / "manifest.ocdbt").unlink()


MIXED_UP = {
    "another environment": (edit(env="gymnax/Acrobot-v1"), "run.env is gymnax/CartPole-v1, not gymnax/Acrobot-v1"),
    "another size": (edit(config__hidden_sizes=[16]), "run.config.hidden_sizes is [8], not [16]"),
    "another seed": (edit(seed=1), "run.seed is 0, not 1"),
    "an unknown field": (edit(config__momentum=0.9), "no such field: momentum"),
    "another version": (edit(env_params=None), "config.json has no env_params: another version of rlx wrote it"),
    "another algorithm": (edit(algorithm="rlx.algos.other"), "is a run of other, not of ppo"),
    "a damaged checkpoint": (damage, "--from-update 6 takes the newest intact one"),
    "a damaged config": (lambda run: (run / "config.json").write_text("{"), "config.json is damaged"),
    "a damaged log": (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), "metrics.jsonl is damaged in line 1"),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), "holds no checkpoint"),
}


@pytest.mark.parametrize("what", MIXED_UP)
def test_resume_refuses_what_does_not_belong_together_and_changes_nothing(cut, tmp_path, capsys, what):
    change, message = MIXED_UP[what]
    shutil.copytree(cut, tmp_path / "cut")
    change(tmp_path / "cut")
    before = content(tmp_path / "cut")
    assert rlx("train", "ppo", "--resume", tmp_path / "cut") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert content(tmp_path / "cut") == before


def test_a_resume_that_cannot_compile_changes_nothing(cut, tmp_path, monkeypatch):
    shutil.copytree(cut, tmp_path / "cut")
    before = content(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr("jax.stages.Lowered.compile", lambda self: (_ for _ in ()).throw(ValueError("out of memory")))
        assert rlx("train", "--resume", tmp_path / "cut") == 2
    assert content(tmp_path / "cut") == before


def test_a_damaged_checkpoint_can_be_gone_around(long, cut, tmp_path, monkeypatch):
    shutil.copytree(cut, tmp_path / "cut")
    damage(tmp_path / "cut")
    as_long(monkeypatch)
    assert rlx("train", "--resume", tmp_path / "cut", "--from-update", "6") == 0
    assert same_run(long, tmp_path / "cut")
    assert numbers(tmp_path / "cut" / "checkpoints-set-aside") == numbers(cut / "checkpoints")[-1:]


@pytest.mark.more
@pytest.mark.usefixtures("long")
def test_parameters_of_the_environment_are_recorded_and_kept(tmp_path, capsys, monkeypatch):
    as_long(monkeypatch)  # and so its compiled programs
    flags = ["--env-params", "gravity=3", "length=0.75", "--value-clip", "inf", "--total-steps", "384"]
    assert rlx(*TRAIN, "--out", tmp_path / "run", *flags) == 0
    assert "environment: gravity=3, length=0.75" in capsys.readouterr().out
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    saved = json.loads((tmp_path / "run" / "config.json").read_text(), parse_constant=refuse)
    assert saved["env_params"] == {"gravity": 3, "length": 0.75}
    assert saved["config"]["value_clip"] == "inf"
    params = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlx.cli.play.evaluate_run", lambda job, *args, **kwargs: params.append(job.env.params) or {})
        assert rlx("eval", tmp_path / "run") == 0
    assert (params[0].gravity, params[0].length, params[0].tau) == (3.0, 0.75, 0.02)
    assert rlx("train", "--resume", tmp_path / "run", "--total-steps", "512") == 0
    assert rlx("train", "--resume", tmp_path / "run", "--env-params", "gravity=4") == 2
    assert "env_params = {'gravity': 3, 'length': 0.75} -> {'gravity': 4}" in capsys.readouterr().err


def test_a_renamed_file_is_told_where_tuned_settings_are(tmp_path):
    (tmp_path / "mine.py").touch()
    mine, own = SimpleNamespace(__file__=str(tmp_path / "mine.py")), SimpleNamespace(__file__=str(tmp_path / "ppo.py"))
    assert "ppo.toml" in tuned_elsewhere(mine, "gymnax/Pendulum-v1").split(", ")
    assert tuned_elsewhere(mine, "probe/Action") == ""
    assert tuned_elsewhere(own, "gymnax/Pendulum-v1") == ""


TEN = SimpleNamespace(steps_per_update=10, init_steps=5)


class Kept:
    """A sink that keeps what it gets, as JSON has it."""

    def __init__(self):
        self.rows = []

    def write(self, kind, row):
        self.rows.append(json.loads(json.dumps(row)))


def test_rows_are_means_weighted_by_episodes_wherever_the_run_was_cut():
    rng = np.random.default_rng(0)
    episodes = np.array([0, 3, 1, 0, 0, 0, 2])
    loss, returns = rng.normal(size=7), np.where(episodes > 0, rng.normal(size=7), np.nan)
    metrics = {"num_episodes": episodes, "episode_return": returns, "loss": loss}
    part = lambda start, stop: {name: values[start:stop] for name, values in metrics.items()}
    logs = []
    for border in range(8):
        sink = Kept()
        first = Logger([sink], 3, TEN)
        first.add(0, part(0, border))
        second = Logger([sink], 3, TEN, json.loads(json.dumps(first.saved())))
        second.add(border, part(border, 7))
        second.flush(7)
        logs.append([{name: value for name, value in row.items() if name != "seconds"} for row in sink.rows])
    assert all(log == logs[0] for log in logs)
    assert [row["step"] for row in logs[0]] == [35, 65, 75]
    assert [row["num_episodes"] for row in logs[0]] == [4, 0, 2]
    assert logs[0][0]["episode_return"] == pytest.approx((3 * returns[1] + returns[2]) / 4, rel=1e-5)
    assert logs[0][1]["episode_return"] is None
    assert [row["loss"] for row in logs[0]] == pytest.approx([loss[:3].mean(), loss[3:6].mean(), loss[6]], rel=1e-5)


def test_rows_of_several_runs_are_those_of_each():
    """Logging lanes `[L, num]` is logging each lane, as lists."""
    rng = np.random.default_rng(1)
    metrics = {"num_episodes": rng.integers(0, 3, (2, 7)), "episode_return": rng.normal(size=(2, 7))}
    sinks = [Kept() for _ in range(3)]
    for sink, of in zip(sinks, (metrics, *({k: v[i] for k, v in metrics.items()} for i in range(2))), strict=True):
        logger = Logger([sink], 3, TEN)
        logger.add(0, of)
        logger.flush(7)
    both, *each = (sink.rows for sink in sinks)
    for name in metrics:
        assert [row[name] for row in both] == [
            list(pair) for pair in zip(*([r[name] for r in e] for e in each), strict=True)
        ]


@pytest.mark.more
def test_ctrl_c_leaves_logs_whole_and_says_how_far_it_came(tmp_path):
    command = [sys.executable, "-m", "rlx", "train", "ppo", "--env", "CartPole-v1", "--out", "run"]
    command += ["--total-steps", "1000000000", "--hidden-sizes", "8"]
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


@pytest.mark.more
def test_another_objective_is_an_option_with_its_coefficients_and_is_remembered(tmp_path, capsys):
    spo = ["--objective", "spo", "--epsilon", "0.05"]
    out = tmp_path / "spo"
    assert rlx(*TRAIN, *spo, "--total-steps", "1024", "--out", out) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["algorithm"] == "rlx.algos.ppo+SPO"
    assert (config["config"]["epsilon"], config["config"]["clip"]) == (0.05, 0.2)
    assert rlx("eval", out, "--num-episodes", "2") == 0
    capsys.readouterr()
    assert rlx("train", "--resume", out, "--objective", "dpo") == 2
    assert rlx("train", "--resume", out, "--epsilon", "0.1") == 2
    error = capsys.readouterr().err
    assert "is a run of ppo+SPO, not of ppo+DPO" in error
    assert "epsilon = 0.05 -> 0.1" in error
    assert rlx("train", "--resume", out, "--total-steps", "2048") == 0
    assert rlx(*TRAIN, *spo, "--out", tmp_path / "whole") == 0
    # The rate falls over 1024 steps in one run and over 2048 in the other: the rows differ, but not their places.
    assert [row["update"] for row in rows(out)] == [row["update"] for row in rows(tmp_path / "whole")]


@pytest.mark.more
def test_another_objective_trains_as_in_the_library(tmp_path):
    for name, flags in {"SPO": ["--epsilon", "0.05"], "ImportanceWeighted": []}.items():
        assert rlx(*TRAIN, "--objective", name, *flags, "--out", tmp_path / name) == 0
    config = ppo.Config(total_steps=2048, num_envs=4, num_steps=32, hidden_sizes=(8,))
    env, (key, _) = library.envs.make("CartPole-v1"), keys(0)
    _, metrics = library.train(ppo, config, env, key, objective=SPO(0.05))
    logged = [row["policy_loss"] for row in rows(tmp_path / "SPO")]
    # Two programs with the same operations: they may be fused differently, and differences grow over 16 updates.
    np.testing.assert_allclose(logged, metrics["policy_loss"], rtol=0.05, atol=1e-4)
    assert not np.allclose(logged, [row["policy_loss"] for row in rows(tmp_path / "ImportanceWeighted")], rtol=0.05)


@pytest.mark.more
def test_an_edited_copy_takes_another_objective_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "algos" / "ppo.py", tmp_path / "mine.py")
    arguments = ["--objective", "forward-kl", "--kl-coef", "2", "--total-steps", "256"]
    assert rlx("train", "mine.py", *TRAIN[2:], *arguments, "--out", "run") == 0
    assert json.loads(Path("run/config.json").read_text())["algorithm"] == f"{tmp_path.resolve()}/mine.py+ForwardKL"
    assert rlx("train", "--resume", "run", "--total-steps", "512") == 0
    assert rlx("eval", "run", "--num-episodes", "2") == 0


@pytest.mark.parametrize("name", ["rlx.algos.ppo+SPO", "/somewhere/else/ppo.py+SPO"])
def test_the_short_name_keeps_the_objective(name):
    assert short_name(name) == "ppo+SPO"


def test_every_objective_can_be_named():
    from rlx import batch_objectives, kl_objectives, objectives

    names = {**vars(objectives), **vars(kl_objectives), **vars(batch_objectives)}
    kinds = [kind for kind in names.values() if isinstance(kind, type) and "__call__" in vars(kind)]
    assert sorted(OBJECTIVES) == sorted(kind.__name__ for kind in kinds)


def test_a_program_on_a_thread_is_waited_for_and_tells_its_error():
    assert on_a_thread(None) is None
    lowered = jax.jit(lambda x: x + 1).lower(jnp.float32(0))
    assert on_a_thread(lowered)()(jnp.float32(1)) == 2

    class Wrong:
        def compile(self):
            raise RuntimeError("no such instruction")

    with pytest.raises(RuntimeError, match="no such instruction"):
        on_a_thread(Wrong())()
