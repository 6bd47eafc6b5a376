"""Command lines with a mistake: one line that says what to do, exit status 2, and nothing compiled or written."""

import ast
import dataclasses
import itertools
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import rlx as library
from rlx import cli, meta
from rlx.algorithm import algorithms, load_algorithm
from rlx.algos import ppo
from rlx.cli.options import check_fields
from rlx.cli.sweep import SweepOptions, _bytes
from rlx.cli.train import TrainOptions
from rlx.run import timings
from rlx.sweeps.search import Choice, parse, points

PPO = ["ppo", "--env", "CartPole-v1"]


def rlx(capsys, *arguments):
    """Exit status, and what was printed to either stream."""
    status = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code or 0
    return status, "".join(capsys.readouterr())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "list.txt").write_text("[1,2]\n")
    (tmp_path / "word.txt").write_text('{"learning_rate": "x"}\n')
    (tmp_path / "number.txt").write_text('{"hidden_sizes": 3}\n')
    (tmp_path / "twice.txt").write_text('{"no_field": 3}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["train", *PPO, "--num-envs", "100000000000"], "12,800,000,000,000 steps of an update"),
        (["train", *PPO, "--activation", "one_hot"], "not a function of jax.nn that keeps shapes"),
        (["train", *PPO, "--total-steps", "1.5"], "1.5 is not a whole number"),
        (["train", *PPO, "--total-steps", "inf"], "is not a whole number"),
        (["train", *PPO, "--gamma", "1.5"], "at most 1"),
        (["train", *PPO, "--env-options", "max_steps=abc"], "max_steps = 'abc'"),
        (["train", *PPO, "--env-options", "randomize=3"], "does not take these options"),
        (["train", *PPO, "--env-options", "num_starts=2.5"], "num_starts = 2.5"),
        (["train", "sac", "--env", "Pendulum-v1", "--utd-ratio", "0"], "above 0"),
        (["train", "dppo", "--env", "Pendulum-v1", "--imitation-coef", "-1"], "at least 0"),
        (["sweep", *PPO, "--memory", "-4GB", "--learning-rate", "1e-3,1e-4"], "--memory -4GB: give a size"),
        (["sweep", *PPO, "--configs", "list.txt"], "configuration 1 is [1, 2]"),
        (["sweep", *PPO, "--configs", "word.txt"], "Config.learning_rate = 'x': give a number"),
        (["sweep", *PPO, "--configs", "number.txt"], "Config.hidden_sizes = 3: give integers"),
        (["sweep", *PPO, "--configs", "twice.txt"], "no such field: no_field"),
        (["sweep", *PPO, "--configs", "none.txt"], "there is no such file"),
        (["sweep", *PPO, "--hidden-sizes", "64,32"], "one value of 2 numbers, --hidden-sizes 64x32, or 2 values"),
        (["sweep", *PPO, "--learning-rate", "log:1e-5:1e-2"], "--num-samples"),
        (
            ["sweep", *PPO, "--clip", "0.1,0.2", "--halving", "3"],
            "halving = 3 keeps one configuration in 3, and there are 2",
        ),
        (["sweep", *PPO, "--num-seeds", "4", "--pbt", "2"], "no number does"),
        (["sweep", *PPO, "--clip", "0.1,0.2", "--pbt", "2", "--total-steps", "512"], "give at most one an update"),
        (["sweep", *PPO, "--seed", "2147483647", "--num-seeds", "2"], "from 0 to 2^31 - 1"),
        (["sweep", *PPO, "--env-params", "gravity=1,2", "gravity=3"], "given twice"),
        (["eval", "nowhere"], "it is not there"),
        (["help", "nonsense"], "unknown command"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys, here, line, message):
    status, said = rlx(capsys, *line)
    assert status == 2
    refusal = [text for text in said.splitlines() if text.startswith("rlx: ")]
    assert len(refusal) == 1
    assert message in refusal[0]
    assert not list(here.glob("runs/*/*"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--version"], [f"rlx {library.__version__}"]),
        (["version"], [f"rlx {library.__version__}"]),
        (["help"], ["rlx COMMAND --help", "check"]),
        (["help", "eval"], ["--num-episodes"]),
        (["help", "train"], ["algorithms: ", "--checkpoint-seconds"]),
        (["train", "--help"], ["algorithms: ", "--checkpoint-seconds"]),
        (["train", "--seed", "1", "--help"], ["algorithms: ", "--checkpoint-seconds"]),
        (["sweep", "--help"], ["--num-seeds"]),
        (
            ["sweep", "ppo", "--help"],
            ["--learning-rate", "--hidden-sizes", "0.00025", "steps of each environment", "64x32"],
        ),
    ],
)
def test_help_and_version_are_where_users_look(capsys, line, words):
    status, said = rlx(capsys, *line)
    assert status == 0
    said = " ".join(said.replace("│", " ").split())
    assert all(word in said for word in words)
    assert "may be raised" not in said or line[0] != "sweep"


def test_whole_numbers_may_be_written_as_floats_and_with_underscores(capsys):
    for text, steps in (("1e3", "1,024"), ("1_000", "1,024"), ("2.048e3", "2,048")):
        status, said = rlx(capsys, "train", *PPO, "--total-steps", text, "--num-envs", "1e0", "--dry-run")
        assert (status, f"{steps} steps" in said) == (0, True)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("64x32", [(64, 32)]),
        ("(64, 32)", [(64, 32)]),
        ("64 32", [(64, 32)]),
        ("64x32,8", [(64, 32), (8,)]),
        ("(64),(32)", [(64,), (32,)]),
        ("choice:8:16x8", [(8,), (16, 8)]),
        ("()", [()]),
        ("1e1", [(10,)]),
    ],
)
def test_a_list_of_tuples_has_one_reading(text, sizes):
    from rlx.cli.sweep import _values

    found = _values(ppo.Config(), "hidden_sizes", text, "rlx sweep ppo")
    assert (found.values if isinstance(found, Choice) else found) == sizes
    assert parse("[1,2],(3,4),5") == ["[1,2]", "(3,4)", "5"]


def test_sizes_of_memory_are_positive():
    assert (_bytes("4GB"), _bytes("1.5 KiB"), _bytes("1e3"), _bytes("")) == (4 * 10**9, 1536, 1000, None)
    for text in ("-4GB", "0", "GB", "4 GB extra", "4XB", "."):
        with pytest.raises(ValueError, match="give a size"):
            _bytes(text)


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_a_space_of_arrays_is_one_of_python_numbers(array):
    found = points({"gamma": array([0.5, 0.25]), "num_envs": array([4]), "hidden_sizes": array([[8, 4]])})
    assert found == [{"gamma": g, "num_envs": 4, "hidden_sizes": (8, 4)} for g in (0.5, 0.25)]
    assert json.loads(json.dumps(found))[0]["gamma"] == 0.5
    drawn = points({"num_envs": Choice(array([4, 8]))}, num_samples=3)
    assert {type(point["num_envs"]) for point in drawn} == {int}
    for space in ({"gamma": array(0.5)}, {"gamma": 0.5}, {"activation": "tanh"}, {"gamma": []}):
        with pytest.raises(ValueError, match=r"give a list of values|has no values"):
            points(space)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"seed": -1}, "from 0 to"),
        ({"seed": 2**31 - 1, "num_seeds": 2}, "from 0 to"),
        ({"seed": 1.5}, "from 0 to"),
        ({"num_seeds": 0}, "num_seeds = 0"),
        ({"num_seeds": 2.0}, "num_seeds = 2.0"),
        ({"halving": 3}, "halving = 3 keeps"),
        ({"halving": 2, "pbt": 2}, "two ways"),
        ({"space": [3]}, "list of dicts"),
    ],
)
def test_a_sweep_in_python_refuses_numbers_out_of_range(tmp_path, cartpole, how, message):
    how = {"space": {"gamma": np.array([0.5, 0.9])}} | how
    with pytest.raises(ValueError, match=message):
        library.sweep(ppo, ppo.Config(), cartpole, directory=tmp_path / "sweep", **how)
    assert not (tmp_path / "sweep").exists()


def test_a_file_of_an_objective_is_refused_for_another_pytree_and_for_a_population(tmp_path):
    with pytest.raises(ValueError, match="an LPO, a TALPO or an LPG, not a dict"):
        meta.save(tmp_path / "x.npz", {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="not a population"):
        meta.save(tmp_path / "x.npz", meta.alone(meta.lpo()))
    assert not list(tmp_path.glob("*.npz"))


def test_how_long_a_program_took_is_said_before_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setattr(timings, "_path", lambda: Path(tmp_path / "new" / "compile_seconds.json"))
    name = timings.program_name("ppo", "gymnax/CartPole-v1", ppo.Config())
    assert name == timings.program_name("ppo", "gymnax/CartPole-v1", ppo.Config(total_steps=7, gamma=0.5))
    assert name != timings.program_name("ppo", "gymnax/CartPole-v1", ppo.Config(num_envs=8))
    assert "compiling ppo on gymnax/CartPole-v1: no program like it" in timings.announcement(name)
    timings.remember(name, 12.34)
    assert timings.announcement(name).endswith("last time it took 12.3 s")
    for i in range(timings.MOST):
        timings.remember(f"other {i}", 1.0)
    assert "no program like it" in timings.announcement(name)
    (tmp_path / "new" / "compile_seconds.json").write_text("[not json")
    assert "no program like it" in timings.announcement(name)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(timings, "_path", lambda: tmp_path / "file" / "compile_seconds.json")
    timings.remember(name, 1.0)  # nothing can be written there
    assert "no program like it" in timings.announcement(name)


def test_a_sweep_directory_given_for_a_run_names_its_best_run(capsys, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text("{}")
    status, said = rlx(capsys, "eval", "s")
    assert status == 2
    assert "s/best" in said
    assert "rlx export s" in said


def test_tuned_settings_of_no_field_are_refused_with_their_file(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(Path(ppo.__file__).read_text())
    for text, message in (
        ('["gymnax/*"]\nno_field = 1\n', "sets no_field for gymnax/CartPole-v1"),
        ("clip = 0.1\n", "stands outside of a table"),
        ("[", "no TOML file"),
    ):
        (tmp_path / "mine.toml").write_text(text)
        status, said = rlx(capsys, "train", "mine.py", "--env", "CartPole-v1", "--dry-run")
        assert status == 2
        assert message in said
        assert "mine.toml" in said


@pytest.mark.parametrize(
    "name", ["options", "train", "play", "sweep", "report", "check", "demonstrations", "discover", "game"]
)
def test_the_help_of_every_option_is_a_sentence_that_stands_alone(name):
    tree = ast.parse((Path(library.__file__).parent / "cli" / f"{name}.py").read_text())
    words = ("Options", "Sources", "Checkpoint")
    options = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith(words)]
    pairs = [pair for node in options for pair in itertools.pairwise(node.body) if isinstance(pair[0], ast.AnnAssign)]
    assert pairs
    for field, text in pairs:
        assert isinstance(text, ast.Expr), f"{name}: {field.target.id} has no help"
        found = " ".join(text.value.value.split())
        assert re.fullmatch(r"[A-Z]\S* \S+.* .*[.]", found), f"{name}: {field.target.id}: {found}"


def test_no_setting_has_the_name_of_an_option_and_one_of_a_file_of_ones_own_is_refused():
    """A flag would mean both, and tyro ends in an AssertionError."""
    for name in algorithms():
        for options in (TrainOptions, SweepOptions):
            check_fields(load_algorithm(name).Config, options, "rlx")
    clash = dataclasses.make_dataclass("Config", [("seed", int)])
    with pytest.raises(ValueError, match=r"rlx train: Config.seed has the name of an option of the command"):
        check_fields(clash, TrainOptions, "rlx train")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train policyflow --env Pendulum-v1 --num-features 4", "num_features = 4: give an integer of at least 8"),
        ("report word.txt --limit 0", "--limit 0: give at least 1"),
        ("report word.txt --target nan", "--target nan: give a number"),
        ("sweep ppo --env CartPole-v1 --clip 0.1,0.2 --gamma uniform:1:0.1", "--gamma: uniform from 1.0 to 0.1"),
        ("sweep ppo --env CartPole-v1 --env-params gravity=log:0:1", "--env-params gravity: log-uniform from 0.0"),
        ("clone sac word.txt", "cannot be cloned into: it has no cloning_loss"),
        ("clone ppo word.txt", "word.txt is no file of demonstrations, or was cut short"),
        ("clone ppo missing.npz", "missing.npz is not there: rlx collect"),
        ("train ppo --env CartPole-v1 --out word.txt/below", "word.txt, which is a file: give another --out"),
        ("train ppo --env CartPole-v1 --out dangling", "dangling is a link to nowhere, which is not there"),
        ("train dppo --env Pendulum-v1 --critic-warmup 1000000", "the actor would never learn"),
    ],
)
def test_siblings_that_an_outsider_found_are_named(here, capsys, line, said):
    (here / "dangling").symlink_to("nowhere")
    status, text = rlx(capsys, *line.split())
    assert status == 2
    assert said in text
    assert text.count("rlx: ") == 1


def test_an_own_file_that_fails_names_its_line(here, capsys):
    whole = Path(ppo.__file__).read_text()
    before, main, after = whole.replace("def update(", "def other(").partition("\n\nif __name__")
    broken = f"{before}\n\ndef update(config, env, state):\n    return state.nothing, {{}}\n{main}{after}"
    (here / "mine.py").write_text(broken)
    status, text = rlx(capsys, "train", "mine.py", "--env", "CartPole-v1", "--total-steps", "64")
    assert status == 2
    assert "mine.py fails in line" in text
    assert "(return state.nothing, {}): AttributeError" in text
    assert "rlx check" in text
