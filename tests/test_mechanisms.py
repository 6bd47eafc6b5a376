"""The table of mechanisms: every function is there, every command trains, every file of tests exists."""

import importlib
import shlex
from pathlib import Path

import jax
import pytest

import rlx
from rlx import cli
from rlx.algorithm import load_algorithm
from rlx.mechanisms import MECHANISMS
from rlx.presets import variant

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"hidden_sizes": "8", "warmup_steps": "64", "batch_size": "8", "num_envs": "4", "num_steps": "16"}
COMMANDS = [row for row in MECHANISMS if row.command.startswith("rlx ")]
# Those of writers of tokens are many, and most differ by a stage: they are traced. One of each file is trained.
OF_TOKENS = [row for row in COMMANDS if row.command.split()[2] in ("grpo_tokens", "pairs_tokens", "ppo_tokens")]
WRITERS = [row for row in OF_TOKENS if row.name in ("max-at-k", "graded-hints", "rebel", "t-ppo")]
TRAINED = [row for row in COMMANDS if row not in OF_TOKENS] + WRITERS
TEACH = {"warm_start_steps": "10", "warm_start_examples": "16", "warm_start_batch": "8", "width": "16"}


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
    small = {name: value for name, value in (SMALL | TEACH).items() if hasattr(config, name)}
    if row in WRITERS:
        small |= {"num_steps": "8", "num_groups": "4", "group_size": "2"}
    steps = int(small.get("warmup_steps", 0)) + 2 * 4 * 16
    flags = [word for name, value in small.items() for word in (f"--{name.replace('_', '-')}", value)]
    if words[1] in ("avg", "stream_ac", "stream_q"):  # one environment
        flags = ["--hidden-sizes", "8", "--num-steps", "16"]
    if words[1] == "reinforce":  # whole episodes
        flags += ["--num-envs", "2", "--env-options", "max_steps=16"]
    out = tmp_path / "run"
    arguments = [*words, "--no-preset", *flags, "--total-steps", steps, "--eval-episodes", 1, "--out", out]
    assert command(*arguments) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= 2


@pytest.mark.parametrize("row", [row for row in OF_TOKENS if row not in WRITERS], ids=lambda row: row.name)
def test_a_command_for_writers_of_tokens_is_an_update(row):
    options = [option.split() for option in row.command.split(" --")[1:]]
    found = {name.replace("-", "_"): values for name, *values in options}
    found = {name: values[0] if len(values) == 1 else values or True for name, values in found.items()}
    algorithm = load_algorithm("+".join([row.command.split()[2], *filter(None, [found.pop("objective", "")])]))
    env = rlx.envs.make(found.pop("env"))
    values = variant(algorithm, found.pop("variant")) if "variant" in found else {}
    number = lambda text: int(text) if isinstance(text, str) and text.isdigit() else text
    found = {name: [*map(number, x)] if isinstance(x, list) else number(x) for name, x in found.items()}
    config = algorithm.Config(**values | found, warm_start_steps=0)
    state = jax.eval_shape(algorithm.init, config, env, jax.random.key(0))
    new, metrics = jax.eval_shape(algorithm.update, config, env, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["policy_loss"].shape == ()


@pytest.mark.parametrize("row", [row for row in MECHANISMS if row not in COMMANDS], ids=lambda row: row.name)
def test_a_trial_is_one_of_the_experiments(row):
    python, script, option, task = row.command.split()
    assert (python, option) == ("python", "--task")
    assert task.replace("_", "-") == row.name
    assert f'"{task}": ' in (ROOT / script).read_text()  # a key of its tasks


def test_the_list_is_filtered(capsys):
    assert command("mechanisms", "entropy-of-nothing") == 2
    assert command("mechanisms", "2505.22617") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["kl-cov", "clip-cov"]
