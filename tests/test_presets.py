"""Settings that ship with the algorithms: they fit the Configs, are for environments that exist, and say where from."""

import dataclasses
import json
import tomllib
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

import rlx
from rlx import cli
from rlx.algorithm import load_algorithm
from rlx.algos import dppo, fpo
from rlx.cli.options import tell_settings
from rlx.presets import configure, defaults, of_episode, origin, preset, published, renamed, settings

FILES = sorted(Path(rlx.algos.__path__[0]).glob("*.toml"))
MEASURED = sorted((Path(__file__).parent.parent / "benchmarks" / "results" / "returns").glob("*.json"))
SPACES = ("gymnax", "brax", "mjx", "playground", "craftax", "xminigrid", "jumanji", "pgx", "jaxmarl", "rlx")
NAMES = [name for space in SPACES for name in rlx.envs.names(space)]


@pytest.mark.filterwarnings("ignore:no tuned settings")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_settings_fit_the_config_and_are_for_environments_that_exist(path):
    algorithm = import_module(f"rlx.algos.{path.stem}")
    for patterns in set(tomllib.loads(path.read_text())) - {"defaults"}:
        for pattern in patterns.split():  # a name that is misspelled would be for nothing, in silence
            assert any(fnmatchcase(name, pattern) for name in NAMES), pattern
    for name in NAMES:
        config = preset(algorithm, name)
        assert config.total_steps >= config.steps_per_update


@pytest.mark.filterwarnings("ignore:no tuned settings")
@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_what_was_measured_with_shipped_settings_was_measured_with_those_that_ship(path):
    result = json.loads(path.read_text())
    name, _, variant = result["algorithm"].partition(":")
    algorithm = load_algorithm(name)
    recorded = {name: tuple(x) if isinstance(x, list) else x for name, x in result["config"].items()}
    recorded = renamed(algorithm.Config, recorded)
    changed = (algorithm.VARIANTS[variant] if variant else {}) | {"total_steps": recorded["total_steps"]}
    shipped = dataclasses.asdict(preset(algorithm, result["env"], **changed))
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


def test_settings_of_a_pattern_say_on_what_they_were_tuned(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('["a/*"]\nmeasured_on = "a/x"\nclip = 0.1\n["a/z"]\nclip = 0.2\n')
    copied = tmp_path / "copied.toml"
    copied.write_text('["a/x"]\nsizes_of = "grpo"\nclip = 0.1\n')
    assert origin(copied, "a/x") == "sizes of grpo, not tuned for this algorithm"
    assert settings(copied, "a/x") == {"clip": 0.1}
    found = {name: origin(path, name) for name in ("a/x", "a/y", "a/z")}
    assert found == {"a/x": "tuned settings", "a/y": "settings for a/*, measured on a/x", "a/z": "tuned settings"}
    assert settings(path, "a/y") == {"clip": 0.1}
    assert settings(rlx.algos.__path__[0] / Path("sac.toml"), "brax/reacher").get("reward_scale") is None


def test_where_no_table_fits_defaults_are_chosen_by_the_spaces_and_the_horizon(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[defaults.continuous]\nclip = 0.1\n[defaults.discrete]\nclip = 0.2\n[defaults.image]\nclip = 0.3\n"
        '[defaults.episode]\nfields = ["num_steps"]\n'
    )

    def of(name, **options):
        env = rlx.envs.make(name, **options)
        return *defaults(path, env), of_episode(path, env)

    assert of("Pendulum-v1", chunk=4) == ({"clip": 0.1}, "continuous actions", {"num_steps": 50})
    assert of("CartPole-v1", max_steps=20) == ({"clip": 0.2}, "discrete actions", {"num_steps": 20})
    assert of("Breakout-MinAtar")[:2] == ({"clip": 0.3}, "image observations")
    assert defaults(tmp_path / "none.toml", rlx.envs.make("CartPole-v1")) == ({}, "discrete actions")
    arguments = ["train", "ppo", "--env", "gymnax/Reacher-misc", "--num-envs", "8", "--dry-run"]
    cli.main(arguments)
    out = capsys.readouterr().out
    assert "default settings for continuous actions: total_steps=1000000" in out
    assert "your settings: num_envs=8" in out
    cli.main([*arguments[:3], "gymnax/CartPole-v1", "--dry-run"])
    assert "no tuned settings for gymnax/CartPole-v1" in capsys.readouterr().out
    cli.main(["train", "grpo", "--env", "Pendulum-v1", "--env-options", "max_steps=1e1", "--dry-run"])
    out = capsys.readouterr().out
    assert "num_steps=10" in out
    assert "is not known" not in out
    cli.main(["sweep", *arguments[1:4], "--learning-rate", "1e-3,1e-4", "--dry-run"])
    assert "default settings for continuous actions: total_steps=1000000" in capsys.readouterr().out


def test_grpo_says_so_where_the_length_of_an_episode_is_not_known(capsys):
    endless = rlx.Env(rlx.envs.make("rlx/MultiGoal").environment, None)
    console = Console(width=200)
    tell_settings(console, import_module("rlx.algos.grpo"), "mine", endless, {})
    assert (
        "how many steps an episode of mine takes is not known: one has to fit in num_steps" in capsys.readouterr().out
    )
    tell_settings(console, import_module("rlx.algos.ppo"), "mine", endless, {})
    assert "is not known" not in capsys.readouterr().out


def test_the_defaults_of_the_kind_are_there_in_python_too_and_their_lack_is_said():
    ppo, env = import_module("rlx.algos.ppo"), rlx.envs.make("gymnax/Reacher-misc")
    assert preset(ppo, "my/Robot", env).num_envs == 16
    with pytest.warns(UserWarning, match="no tuned settings for my/Robot: give preset the Env too"):
        assert preset(ppo, "my/Robot") == ppo.Config()
    grpo = import_module("rlx.algos.grpo")
    assert preset(grpo, "my/Robot", env).num_steps == env.horizon


def test_fields_are_found_by_their_names_of_the_release_before():
    old = {"num_samples": 3, "noise_loss": False, "clip": 0.1}
    config = configure(fpo.Config, old)
    assert (config.samples_per_action, config.predict_noise, config.clip) == (3, False, 0.1)
    assert configure(dppo.Config, {"cloning_coef": 0.5}).imitation_coef == 0.5
    grpo = import_module("rlx.algos.grpo")
    assert configure(grpo.Config, {"drop_degenerate": True}).masks == ("degenerate",)
    assert configure(grpo.Config, {"drop_degenerate": False}) == grpo.Config()
    with pytest.raises(ValueError, match="no such field: num_samples"):
        configure(dppo.Config, old)
