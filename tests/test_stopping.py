"""Rules that stop a run: against a numpy loop, in single runs, in lanes, and when resumed."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.run.checkpoint import read
from rlx.stopping import EPISODES, LOOKS, Stopping, arrays, seen, stopping, why
from rlx.sweeps.job import SweepJob, check_rule
from rlx.sweeps.strategies import Halving, Population

EXACT = True  # programs in one piece and in several are compared bit for bit
CONFIG = {"num_envs": 8, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (8,)}


def loop(at_return, patience, every, returns, counts):
    """The rule in plain Python: after which update the run stops, or None."""
    best, waited, total, episodes, updates = -math.inf, 0, 0.0, 0, 0
    for i, (mean, num) in enumerate(zip(returns, counts, strict=True)):
        if num:
            total, episodes = total + num * mean, episodes + num
        updates += 1
        if updates < every or episodes < EPISODES:
            continue
        look, total, episodes, updates = total / episodes, 0.0, 0, 0
        best, waited = (look, 0) if look > best else (best, waited + 1)
        if look >= at_return or waited >= patience:
            return i + 1
    return None


@pytest.mark.parametrize(("at_return", "patience"), [(60.0, math.inf), (math.inf, 2), (1e9, 3), (55.0, 4)])
@pytest.mark.parametrize("every", [1, 3])
def test_the_rule_is_its_loop_in_numpy(at_return, patience, every):
    draw = np.random.default_rng(0)
    returns = np.cumsum(draw.normal(0, 6, (30, 80)), 1) + 40
    counts = draw.integers(0, 9, (30, 80))

    def stops(returns, counts):
        def step(rule, x):
            after = seen(rule, *x)
            rule = jax.tree.map(lambda new, old: jnp.where(rule.stopped, old, new), after, rule)
            return rule, rule.stopped

        return jax.lax.scan(step, arrays(Stopping(at_return, patience, every)), (returns, counts))[1]

    found = np.asarray(jax.vmap(stops)(jnp.float32(returns), counts))
    expected = [loop(at_return, patience, every, *row) for row in zip(returns, counts, strict=True)]
    assert {x is None for x in expected} <= {True, False}
    assert any(expected)
    assert [int(row.argmax()) + 1 if row.any() else None for row in found] == expected


def test_an_update_without_episodes_may_report_nan():
    rule = seen(arrays(Stopping(at_return=1.0)), jnp.float32(jnp.nan), jnp.int32(0))
    assert rule.total == 0
    assert not rule.stopped


def test_a_rule_without_numbers_is_none_and_bad_numbers_are_refused():
    assert stopping(None, None, 100) is None
    assert stopping(1.0, None, 10 * LOOKS).every == 10
    with pytest.raises(ValueError, match="patience = 0: give at least 1"):
        stopping(None, 0, 100)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"stop_at_return = {bad}: give a finite number"):
            stopping(bad, None, 100)


def test_a_run_says_why_it_stopped():
    assert "reached 51, asked for were 50" in why(Stopping(at_return=50.0, best=51.0))
    assert "in 3 looks its episodes returned no more than the best before, 7" in why(Stopping(best=7.0, waited=3))


@pytest.fixture(scope="module")
def config(request):
    from rlx.algos import ppo

    return ppo.Config(**CONFIG, total_steps=200 * 128)


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    from rlx.algos import ppo

    directory = tmp_path_factory.mktemp("stopped") / "run"
    return rlx.fit(ppo, config, "CartPole-v1", directory=directory, stop_at_return=30.0)


def test_a_run_stops_by_its_return_and_is_evaluated_there(stopped):
    evaluation = json.loads((stopped.directory / "evaluation.json").read_text())
    assert not stopped.complete
    assert not stopped.died
    assert 0 < stopped.agent.num_updates < 200
    assert evaluation["update"] == stopped.agent.num_updates
    assert "asked for were 30" in evaluation["stopped"]
    assert stopped.metrics[-1]["update"] == stopped.agent.num_updates
    assert read(stopped.directory / "checkpoints")["rule"]["stopped"] is True


def test_a_report_takes_a_stopped_run_as_whole(stopped):
    from rlx.report.read import runs

    (run,) = runs([stopped.directory])
    assert run["died_at"] is None
    assert run["dropped_at"] is None


def test_a_stopped_run_refuses_the_same_rule_and_goes_on_without(stopped, config, tmp_path):
    from rlx.algos import ppo

    with pytest.raises(ValueError, match="has stopped by its rule: give another --stop-at-return"):
        rlx.fit(ppo, config, "CartPole-v1", directory=stopped.directory, stop_at_return=30.0)
    further = rlx.fit(ppo, config, "CartPole-v1", directory=stopped.directory)
    whole = rlx.fit(ppo, config, "CartPole-v1", directory=tmp_path / "whole")
    assert further.complete
    same = jax.tree.map(np.array_equal, further.agent.state.params, whole.agent.state.params)
    assert all(jax.tree.leaves(same))


def test_each_lane_stops_where_its_single_run_does(config, tmp_path):
    from rlx.algos import ppo

    env = rlx.envs.make("CartPole-v1")
    rates = {"learning_rate": [1e-5, 3e-3]}
    found = rlx.sweep(ppo, config, env, rates, num_seeds=2, directory=tmp_path / "sweep", stop_at_return=60.0)
    for lane in (0, 3):
        own = rlx.replace(config, learning_rate=rates["learning_rate"][lane // 2])
        run = rlx.fit(ppo, own, env, directory=tmp_path / str(lane), seed=lane % 2, stop_at_return=60.0)
        assert found.lanes[lane]["updates"] == run.agent.num_updates
        assert found.lanes[lane]["died_at"] is None
        assert (found.lanes[lane]["stopped_at"] is None) == run.complete
    assert {lane["stopped_at"] is None for lane in found.lanes} == {True, False}
    log = found.log(3)
    assert log[-1]["update"] >= found.lanes[3]["updates"]


def test_a_stopped_lane_stays_where_it_is_in_the_next_rung(config, tmp_path):
    from rlx.algos import ppo

    env = rlx.envs.make("CartPole-v1")
    arguments = {"num_seeds": 1, "halving": 2, "stop_at_return": 25.0}
    found = rlx.sweep(ppo, config, env, {"learning_rate": [1e-5, 3e-3]}, directory=tmp_path / "sweep", **arguments)
    best = found.lanes[found.best]
    assert best["stopped_at"] is not None
    assert best["stopped_at"] < 100  # the border of the rungs
    assert best["died_at"] is None
    assert rlx.load(tmp_path / "sweep", env=env).num_updates == best["stopped_at"]


def test_lanes_that_act_on_each_other_do_not_stop():
    job = dict.fromkeys(SweepJob.__dataclass_fields__) | {"stop_at_return": 1.0}
    check_rule(SweepJob(**job | {"strategy": Halving(2)}))
    with pytest.raises(ValueError, match="act on each other"):
        check_rule(SweepJob(**job | {"strategy": Population(3)}))


def test_a_run_stops_after_its_seconds(config, tmp_path):
    from rlx.algos import ppo

    longer = rlx.replace(config, total_steps=10**9)
    run = rlx.fit(ppo, longer, "CartPole-v1", directory=tmp_path / "run", max_seconds=0.5)
    assert not run.complete
    assert json.loads((run.directory / "evaluation.json").read_text())["stopped"] == "0.5 seconds are over"


def test_the_command_line_refuses_bad_rules(capsys):
    from rlx.cli import main

    for flag, said in (("--patience 0", "at least 1 look"), ("--max-seconds 0", "give more than 0")):
        with pytest.raises(SystemExit, match="2"):
            main(["train", "ppo", "--env", "CartPole-v1", *flag.split()])
        assert said in capsys.readouterr().err
