"""`rlx profile`: phases add up, every algorithm can be measured, and the command says what it found."""

import importlib
import json

import jax
import pytest

import rlx
from rlx.cli import main
from rlx.profile.phases import fastest, phases, profile, programs, shares

SMALL = {"num_envs": 4, "num_steps": 8, "num_epochs": 1, "num_minibatches": 2, "hidden_sizes": (8,)}
SIZES = {
    "ppo": ("CartPole-v1", SMALL),
    "ppo_recurrent": ("CartPole-v1", SMALL | {"sequence_length": 8, "memory_size": 8}),
    "grpo": ("CartPole-v1", {"num_envs": 8, "hidden_sizes": (8,)}),
    "sac": ("Pendulum-v1", {"hidden_sizes": (8,), "num_envs": 2, "capacity": 64, "batch_size": 8, "warmup_steps": 8}),
    "fpo": ("Pendulum-v1", SMALL),
}
QUICK = ("ppo", "ppo_recurrent")


@pytest.fixture(scope="module")
def ppo_case():
    from rlx.algos import ppo

    return ppo, ppo.Config(**SMALL), rlx.envs.make("CartPole-v1")


@pytest.fixture(scope="module")
def measured(ppo_case):
    return profile(*ppo_case, turns=1, budget=0.01)


def test_phases_are_differences_that_add_up():
    took = {"environment": 1.0, "rollout": 3.0, "advantages": 4.0, "update": 10.0}
    assert shares(took) == {"environment": 1.0, "policy": 2.0, "advantages": 1.0, "gradient steps": 6.0}
    assert sum(shares(took).values()) == took["update"]
    assert shares({"environment": 1.0, "rollout": 3.0, "update": 10.0})["all else"] == 7.0
    assert shares({"update": 2.0}) == {"update": 2.0}
    assert shares({"environment": 2.0, "rollout": 1.9, "update": 3.0})["policy"] == 0.0


def test_an_update_is_measured_whole(measured, ppo_case):
    assert measured["steps"] == ppo_case[1].steps_per_update == 32
    assert measured["steps_per_second"] == pytest.approx(32 / measured["seconds"])
    assert set(measured["phases"]) == {"environment", "policy", "advantages", "gradient steps"}
    assert measured["state"] == rlx.state_bytes(*ppo_case)
    assert measured["counts"]["operations"] > 0
    assert json.loads(json.dumps(measured)) == measured


def test_programs_hold_at_least_the_state(measured, ppo_case):
    parts = {part["name"]: part for part in measured["programs"]}
    size = sum(measured["state"].values())
    assert parts["init"]["outputs"] >= size
    assert parts["update"]["arguments"] >= size
    assert parts["update"]["shared"] > 0  # the state is donated
    assert all(part["compile"] > 0 for part in parts.values())


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.more) for n in SIZES])
def test_the_phases_of_every_kind_of_algorithm_run(name):
    env_name, sizes = SIZES[name]
    algorithm, env = importlib.import_module(f"rlx.algos.{name}"), rlx.envs.make(env_name)
    known = algorithm.Config.__dataclass_fields__
    config = algorithm.Config(**{key: value for key, value in sizes.items() if key in known})
    state = jax.jit(lambda key: algorithm.init(config, env, key))(jax.random.key(0))
    found = phases(algorithm, config, env, state)
    for function in found.values():
        jax.block_until_ready(jax.jit(function)(state))
    assert {"environment", "rollout", "update"} <= set(found) or set(found) == {"update"}
    assert ("advantages" in found) == (name in ("ppo", "ppo_recurrent", "fpo"))


def test_the_programs_are_those_of_a_run(ppo_case):
    made, _ = programs(*ppo_case)
    assert set(made) == {"init", "update", "evaluation"}


def test_numbers_of_environments_that_do_not_fit_are_said(ppo_case):
    algorithm, config, env = ppo_case
    found = list(fastest(algorithm, rlx.replace(config, num_minibatches=3, num_steps=3), env, [1, 2], budget=0.01))
    assert [row["num_envs"] for row in found] == [1, 2]
    assert all(("refused" in row) != ("steps_per_second" in row) for row in found)
    assert list(fastest(algorithm, config, env, [4], max_seconds=-1.0)) == []


def test_the_command_measures_an_algorithm_and_a_run(tmp_path, capsys):
    sizes = ["--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "8", "--num-minibatches", "2"]
    how = ["--turns", "1", "--budget", "0.01", "--json", str(tmp_path / "a.json")]
    main(["profile", "ppo", "--env", "CartPole-v1", *sizes, *how, "--try-num-envs", "2", "4"])
    said = capsys.readouterr().out
    assert "an update of 32 steps takes" in said
    assert "fastest here: num_envs" in said
    assert [row["num_envs"] for row in json.loads((tmp_path / "a.json").read_text())["num_envs"]] == [2, 4]
    main(["train", "ppo", "--env", "CartPole-v1", *sizes, "--total-steps", "32", "--out", str(tmp_path / "run")])
    main(["profile", str(tmp_path / "run"), *how, "--max-seconds", "0"])
    assert "an update of 32 steps takes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["profile", "ppo"])
    assert "needs an environment" in capsys.readouterr().err
