"""Settings that ship with the algorithms: they fit the Configs, are for environments that exist, and say where from."""

import dataclasses
import json
import tomllib
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path

import pytest

import rlx
from rlx import cli
from rlx.presets import preset, published, settings

FILES = sorted(Path(rlx.algos.__path__[0]).glob("*.toml"))
MEASURED = sorted((Path(__file__).parent.parent / "benchmarks" / "results" / "returns").glob("*.json"))
SPACES = ("gymnax", "brax", "mjx", "playground", "rlx")
NAMES = [name for space in SPACES for name in rlx.envs.names(space)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_settings_fit_the_config_and_are_for_environments_that_exist(path):
    algorithm = import_module(f"rlx.algos.{path.stem}")
    for patterns in tomllib.loads(path.read_text()):
        for pattern in patterns.split():  # a name that is misspelled would be for nothing, in silence
            assert any(fnmatchcase(name, pattern) for name in NAMES), pattern
    for name in NAMES:
        config = preset(algorithm, name)
        assert config.total_steps >= config.steps_per_update


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_what_was_measured_with_shipped_settings_was_measured_with_those_that_ship(path):
    result = json.loads(path.read_text())
    algorithm = import_module(f"rlx.algos.{result['algorithm']}")
    recorded = {name: tuple(x) if isinstance(x, list) else x for name, x in result["config"].items()}
    shipped = dataclasses.asdict(preset(algorithm, result["env"], total_steps=recorded["total_steps"]))
    assert {name: shipped[name] for name in recorded} == recorded  # settings that are newer than the result are free


def write(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '["a/*"]\npublished = "a paper"\nlearning_rate = 1.0\nclip = 0.1\n'
        '["a/x b/*"]\nclip = 0.3\nhidden_sizes = [8, 8]\n["b/y"]\npublished = "a book"\n'
    )
    return path


def test_tables_apply_in_order_and_one_may_be_for_several_patterns(tmp_path):
    path = write(tmp_path)
    assert settings(path, "a/x") == {"learning_rate": 1.0, "clip": 0.3, "hidden_sizes": (8, 8)}
    assert settings(path, "b/z") == {"clip": 0.3, "hidden_sizes": (8, 8)}
    assert settings(path, "c/x") == settings(tmp_path / "none.toml", "a/x") == {}


def test_the_last_table_says_whether_settings_are_only_published(tmp_path):
    path = write(tmp_path)
    found = {name: published(path, name) for name in ("a/y", "a/x", "b/y", "c/x")}
    assert found == {"a/y": "a paper", "a/x": "", "b/y": "a book", "c/x": ""}


def test_whoever_trains_with_published_settings_is_told(capsys):
    arguments = ["train", "ppo", "--env", "brax/reacher", "--num-envs", "8", "--dry-run"]
    cli.main(arguments)
    out = capsys.readouterr().out
    assert "published settings, not tried here (Brax, notebooks/training.ipynb): total_steps=50000000" in out
    cli.main([*arguments[:3], "gymnax/Pendulum-v1", *arguments[4:]])
    assert "tuned settings: total_steps=1000000" in capsys.readouterr().out
