"""The table of mechanisms: every function is there, every command trains, every file of tests exists."""

import importlib
import shlex
from pathlib import Path

import pytest

from rlx import cli
from rlx.algorithm import load_algorithm
from rlx.mechanisms import MECHANISMS

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"hidden_sizes": "8", "warmup_steps": "64", "batch_size": "8", "num_envs": "4", "num_steps": "16"}
TRAINED = [row for row in MECHANISMS if row.command.startswith("rlx ")]


def command(*arguments):
    """The exit status of a command."""
    try:
        cli.main([str(word) for word in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("row", MECHANISMS, ids=lambda row: row.name)
def test_what_a_row_names_is_there(row):
    room, _, name = row.function.rpartition(".")
    assert callable(getattr(importlib.import_module(room), name))
    assert (ROOT / "tests" / row.test).exists()


def test_names_are_of_one_row_each():
    assert len({row.name for row in MECHANISMS}) == len(MECHANISMS)


@pytest.mark.more
@pytest.mark.usefixtures("command_cache")
@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.name)
def test_a_command_trains_for_two_updates(row, tmp_path):
    words = shlex.split(row.command)[1:]
    config = load_algorithm(words[1]).Config()
    small = {name: value for name, value in SMALL.items() if hasattr(config, name)}
    steps = int(small.get("warmup_steps", 0)) + 2 * 4 * 16
    flags = [word for name, value in small.items() for word in (f"--{name.replace('_', '-')}", value)]
    if words[1] in ("avg", "stream_ac", "stream_q"):  # one environment
        flags = ["--hidden-sizes", "8", "--num-steps", "16"]
    out = tmp_path / "run"
    arguments = [*words, "--no-preset", *flags, "--total-steps", steps, "--eval-episodes", 1, "--out", out]
    assert command(*arguments) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= 2


@pytest.mark.parametrize("row", [row for row in MECHANISMS if row not in TRAINED], ids=lambda row: row.name)
def test_a_trial_is_one_of_the_experiments(row):
    text = (ROOT / "experiments" / "mechanisms" / "compare.py").read_text()
    assert f'    "{row.name}": Trial(' in text
    assert row.command == f"python experiments/mechanisms/compare.py --task {row.name}"


def test_the_list_is_filtered(capsys):
    assert command("mechanisms", "entropy-of-nothing") == 2
    assert command("mechanisms", "2505.22617") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["kl-cov", "clip-cov"]
