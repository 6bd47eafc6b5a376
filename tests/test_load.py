"""`rlx.load`: policies of runs, lanes and checkpoints as objects, and `rlx eval` in environments of Gymnasium."""

import json

import jax
import numpy as np
import pytest

import rlx
from rlx.agent import batched
from rlx.algos import ppo, ppo_recurrent
from rlx.cli import main
from rlx.run.job import keys
from rlx.spaces import Box, Dict

SMALL = {"num_envs": 4, "num_steps": 8, "num_epochs": 1, "num_minibatches": 2, "hidden_sizes": (8,)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = ppo.Config(**SMALL, total_steps=160, normalize_obs=True)
    directory = tmp_path_factory.mktemp("load") / "run"
    return rlx.fit(ppo, config, "CartPole-v1", directory=directory, num_evaluations=2, eval_episodes=4)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    config = ppo_recurrent.Config(**SMALL, total_steps=64, sequence_length=8, memory_size=8)
    directory = tmp_path_factory.mktemp("load") / "recurrent"
    return rlx.fit(ppo_recurrent, config, "CartPole-v1", directory=directory, eval_episodes=4).agent


def test_an_agent_acts_as_its_algorithm_does(run):
    agent = rlx.load(run.directory)
    obs = np.asarray(jax.random.normal(jax.random.key(0), (5, 4)))
    expected, _ = ppo.act(agent.config, agent.env, agent.state, obs, jax.random.key(1), deterministic=True)
    assert np.array_equal(agent.act(obs), expected)
    assert [agent.act(x) for x in obs] == expected.tolist()
    assert agent.act(obs[0].tolist()).shape == ()
    assert agent.num_updates == 5
    assert agent.steps == 160


def test_sampled_actions_are_drawn_anew_and_repeat_with_the_seed(run):
    obs = np.zeros((64, 4))
    first, again = (rlx.load(run.directory, seed=3) for _ in range(2))
    one, two = first.act(obs, deterministic=False), first.act(obs, deterministic=False)
    assert not np.array_equal(one, two)
    assert np.array_equal(one, again.act(obs, deterministic=False))
    assert not np.array_equal(one, rlx.load(run.directory, seed=4).act(obs, deterministic=False))


def test_an_agent_evaluates_as_the_command_does(run, capsys):
    main(["eval", str(run.directory), "--num-episodes", "6", "--seed", "2"])
    (file,) = (run.directory / "evaluations").glob("*-seed-2-episodes-6.json")
    expected = json.loads(file.read_text())["returns"]
    assert rlx.load(run.directory).evaluate(6, seed=2).returns.tolist() == expected


def test_checkpoints_are_found_by_their_path_their_number_and_as_the_best(run):
    numbers = sorted(int(path.name) for path in (run.directory / "checkpoints").iterdir())
    early = rlx.load(run.directory / "checkpoints" / str(numbers[0]))
    assert early.num_updates == numbers[0]
    assert rlx.load(run.directory, from_update=numbers[0]).num_updates == numbers[0]
    top = max(run.evaluations, key=lambda row: (float(row["mean"]), row["update"]))
    assert rlx.load(run.directory, best=True).num_updates == top["update"]
    with pytest.raises(ValueError, match="is not the checkpoint of update 9999"):
        rlx.load(run.directory / "checkpoints" / str(numbers[0]), from_update=9999)


def test_training_goes_on_from_what_was_loaded(run):
    agent = rlx.load(run.directory)
    state, _ = rlx.resume(agent.algorithm, agent.config, agent.env, agent.state, num_updates=1)
    assert state.num_updates == agent.num_updates + 1


def test_lanes_of_a_sweep_are_loaded(tmp_path):
    config, env = ppo.Config(**SMALL, total_steps=64), rlx.envs.make("CartPole-v1")
    rates = {"learning_rate": [1e-4, 1e-2]}
    found = rlx.sweep(ppo, config, env, rates, directory=tmp_path, env_name="CartPole-v1", eval_episodes=4)
    agent = rlx.load(tmp_path, lane=1)
    assert agent.config.learning_rate == pytest.approx(1e-2)
    same = jax.tree.map(np.array_equal, agent.state.params, found.state(1).params)
    assert all(jax.tree.leaves(same))
    assert rlx.load(tmp_path).config.learning_rate == pytest.approx(rates["learning_rate"][found.best])
    assert agent.evaluate(4, seed=0).returns.shape == (4,)
    with pytest.raises(ValueError, match="has lanes 0 to 1, not 2"):
        rlx.load(tmp_path, lane=2)
    with pytest.raises(ValueError, match="is a sweep, whose lanes have one checkpoint each"):
        rlx.load(tmp_path, best=True)


def test_what_cannot_be_loaded_is_said(run, tmp_path):
    with pytest.raises(ValueError, match="is not a run directory: it is not there"):
        rlx.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is not a sweep: it has no lane 0"):
        rlx.load(run.directory, lane=0)
    agent = rlx.load(run.directory)
    with pytest.raises(ValueError, match=r"obs has shape \[3\]: one is \[4\], and N are"):
        agent.act(np.zeros(3))


def test_a_run_in_an_environment_without_a_name_needs_it_again(tmp_path):
    env = rlx.envs.make("CartPole-v1", max_steps=20)
    run = rlx.fit(ppo, ppo.Config(**SMALL, total_steps=32), env, directory=tmp_path / "run", eval_episodes=2)
    with pytest.raises(ValueError, match=r"an environment without a name: rlx\.load takes env="):
        rlx.load(run.directory)
    assert rlx.load(run.directory, env=env).evaluate(2).lengths.max() <= 20


def test_memory_is_kept_between_calls_and_forgotten_by_reset(recurrent):
    obs = np.asarray(jax.random.normal(jax.random.key(0), (6, 2, 4)))
    act = lambda x, key, memory: ppo_recurrent.act(
        recurrent.config, recurrent.env, recurrent.state, x, key, memory, deterministic=True
    )
    memory, expected = ppo_recurrent.memory(recurrent.config, recurrent.env, 2), []
    for x in obs:
        action, _, memory = act(x, jax.random.key(1), memory)
        expected.append(np.asarray(action))
    recurrent.reset()
    assert np.array_equal([recurrent.act(x) for x in obs], expected)
    assert np.allclose(jax.tree.leaves(recurrent.memory)[0], jax.tree.leaves(memory)[0], atol=1e-6)
    recurrent.reset(where=[True, False])
    kept = jax.tree.leaves(recurrent.memory)[0]
    assert np.all(np.asarray(kept[0]) == 0)
    assert np.any(np.asarray(kept[1]) != 0)
    with pytest.raises(ValueError, match=r"call reset\(\) before acting in another number"):
        recurrent.act(obs[0, 0])
    with pytest.raises(ValueError, match="give 2 bools"):
        recurrent.reset(where=[True])
    recurrent.reset()
    assert recurrent.act(obs[0, 0]).shape == ()


def test_an_agent_plays_in_gymnasium(run, recurrent, capsys):
    pytest.importorskip("gymnasium")
    for directory in (run.directory, recurrent.directory):
        main(["eval", str(directory), "--env", "gymnasium/CartPole-v1", "--num-episodes", "3"])
        assert "gymnasium/CartPole-v1, after" in capsys.readouterr().out
        (file,) = (directory / "evaluations").glob("*gymnasium-CartPole-v1.json")
        assert json.loads(file.read_text())["num_episodes"] == 3
    with pytest.raises(SystemExit, match="2"):
        main(["eval", str(run.directory), "--env", "gymnasium/Pendulum-v1"])
    assert "gymnasium/Pendulum-v1" in capsys.readouterr().err


def test_what_only_critics_see_may_be_left_out():
    space = Dict(seen=Box(-1.0, 1.0, (2,)), hidden=Box(-1.0, 1.0, (3,)), privileged=("hidden",))
    batch, single = batched(space, {"seen": [1.0, 2.0]})
    assert single
    assert batch["seen"].shape == (1, 2)
    assert np.array_equal(batch["hidden"], np.zeros((1, 3)))
    batch, single = batched(space, {"seen": np.ones((5, 2)), "hidden": np.ones((5, 3))})
    assert not single
    assert batch["hidden"].dtype == np.float32
    with pytest.raises(ValueError, match="obs has no entry 'seen'"):
        batched(space, {"hidden": np.ones(3)})
    with pytest.raises(ValueError, match="and several have one more axis"):
        batched(space, {"seen": np.ones((5, 2)), "hidden": np.ones(3)})


def test_an_agent_of_evaluation_meets_the_starts_of_its_run(run):
    agent = rlx.load(run.directory)
    key = jax.random.fold_in(keys(agent.seed)[1], 1)
    expected = rlx.evaluate(ppo, agent.config, agent.env, agent.state, key, 4)
    assert np.array_equal(agent.evaluate(4).returns, expected.returns)
