"""What environments report is a result: summed over episodes, in metrics, logs, evaluations and checkpoints."""

import json
import types
from dataclasses import replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import cli
from rlx.env import EnvState, reports
from rlx.files import read_rows
from rlx.pytree import pytree
from rlx.rollout import episode_metrics, episodes, reset, rollout
from rlx.run.checkpoint import restore, save
from rlx.run.evaluations import evaluation
from rlx.run.log import Logger
from rlx.spaces import Box
from rlx.train import Episodes
from rlx.wrappers import bounded, chunked, randomized

N, T = 4, 23
NAMES = ["distance", "info.length", "info.return", "success", "terms.half"]


@pytree
class Params:
    length: float = 4.0  # steps to the end from a start at 0
    not_finite: float = jnp.inf  # the step that reports NaN
    diverges: float = jnp.inf  # the step whose reward is NaN
    bonus: float = 1.0


class Reporter:
    """Counts up from 0, 1 or 2 to `length`, and reports numbers of all kinds."""

    default_params: ClassVar = Params()

    def observation_space(self, params):
        return Box(0.0, np.inf, (1,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def reset(self, key, params):
        count = jax.random.randint(key, (), 0, 3).astype(jnp.float32)
        return count[None], count

    def step(self, key, state, action, params):
        count = state + 1.0
        noise = jax.random.normal(key)
        info = {
            "distance": jnp.where(count == params.not_finite, jnp.nan, params.bonus * noise),
            "success": noise > 1.0,
            "terms": {"half": jnp.float16(0.5) * action[0].astype(jnp.float16), "vector": jnp.ones(3)},
            "count": jnp.int32(1),
            "return": 2.0,
            "length": noise,
            "diverged": jnp.array(False),
            "key": key,
        }
        reward = jnp.where(count == params.diverges, jnp.nan, noise)
        return count[None], count, reward, count >= params.length, jnp.array(False), info


def env(max_steps=None, **params):
    return rlx.Env(Reporter(), Params(**params), max_steps, num_starts=8)


def act(obs, key):
    return jnp.sin(3.0 * obs), None


@partial(jax.jit, static_argnums=2)
def rolled(env, key, num_steps=T):
    start_key, key = jax.random.split(key)
    return rollout(env, act, reset(env, start_key, N), key, num_steps)


def totals(traj):
    """The loop of the equation: each of `[T, N]` the result of its episode so far, by its name."""
    named = {
        "distance": traj.info["distance"],
        "success": traj.info["success"],
        "terms.half": traj.info["terms"]["half"],
        "info.return": traj.info["return"],
        "info.length": traj.info["length"],
    }
    found = {}
    for name, values in named.items():
        values = np.asarray(values)
        found[name] = np.zeros(values.shape)
        for n in range(values.shape[1]):
            total = 0.0
            for t in range(values.shape[0]):
                total = max(total, float(values[t, n])) if values.dtype == bool else total + float(values[t, n])
                found[name][t, n] = total
                total = 0.0 if traj.done[t, n] else total
    return found


@pytest.mark.parametrize("given", [{}, {"max_steps": 2}, {"length": 9.0, "max_steps": 6}])
def test_results_are_summed_over_each_episode_and_no_further(given):
    env_state, traj = rolled(env(**given), jax.random.key(0))
    assert traj.done.sum() > 4
    assert bool(traj.truncated.any()) == ("max_steps" in given)
    expected = totals(traj)
    assert list(traj.reported) == NAMES == sorted(expected)
    for name, values in expected.items():
        assert traj.reported[name].dtype == jnp.float32
        np.testing.assert_allclose(traj.reported[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
        under_way = np.where(traj.done[-1], 0.0, values[-1])
        np.testing.assert_allclose(env_state.reported[name], under_way, rtol=1e-5, atol=1e-5, err_msg=name)


def test_metrics_are_means_over_the_whole_episodes_that_end():
    _, traj = rolled(env(length=5.0, diverges=3.0), jax.random.key(1))
    _, other = rolled(env(max_steps=3), jax.random.key(1))
    traj = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), traj, other)  # diverged ones beside others
    whole = np.asarray(traj.done & ~traj.diverged)
    assert 4 < whole.sum() < traj.done.sum()
    metrics = episode_metrics(traj)
    for name, values in totals(traj).items():
        np.testing.assert_allclose(metrics[f"episode_{name}"], values[whole].mean(), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(metrics["episode_return"], traj.episode_return[whole].mean(), rtol=1e-5)
    assert 0 < metrics["episode_success"] < 1


def test_metrics_are_0_where_no_episode_ended():
    metrics = episode_metrics(rolled(env(length=99.0), jax.random.key(0), 5)[1])
    assert metrics["num_episodes"] == 0
    assert {float(metrics[f"episode_{name}"]) for name in NAMES} == {0.0}


def test_a_number_that_is_not_finite_stays_in_its_episode():
    """Step 1 reports NaN, and only those episodes have it that began at 0."""
    _, traj = rolled(env(not_finite=1.0), jax.random.key(0))
    found = np.asarray(traj.reported["distance"])
    bad = np.isnan(found)
    np.testing.assert_array_equal(bad, np.isnan(totals(traj)["distance"]))
    ended = np.asarray(traj.done)
    assert 0 < bad[ended].sum() < ended.sum()
    metrics = episode_metrics(traj)
    np.testing.assert_allclose(metrics["episode_distance"], found[ended & ~bad].mean(), rtol=1e-4)
    none_left = replace(traj, reported={"distance": jnp.full_like(traj.reward, jnp.inf)})
    assert np.isnan(episode_metrics(none_left)["episode_distance"])


def test_a_log_writes_null_for_a_mean_that_is_not_finite_and_goes_on():
    config, rows = types.SimpleNamespace(steps_per_update=10), []
    sink = types.SimpleNamespace(write=lambda kind, row: rows.append(json.loads(json.dumps(row, allow_nan=False))))
    logger = Logger([sink], 2, config)
    means = np.array([0.5, 1.0, np.nan, 1.0, 0.25, 7.0])
    counts = np.array([1, 3, 1, 2, 4, 0])
    logger.add(0, {"num_episodes": counts, "episode_return": np.ones(6), "episode_success": means})
    assert [row["episode_success"] for row in rows] == [0.875, None, 0.25]


def test_an_environment_that_reports_nothing_has_no_sums():
    for name in ("CartPole-v1", "Catch-bsuite", "rlx/MultiGoal"):
        plain = rlx.envs.make(name)
        shapes = jax.eval_shape(lambda plain=plain: plain.reset(jax.random.key(0)))
        assert shapes.reported == {}
    cartpole = rlx.envs.make("CartPole-v1")
    start = cartpole.reset(jax.random.key(0))
    transition = cartpole.advance(jax.random.key(0), start, jnp.int32(0))[1]
    assert transition.info == transition.reported == {}
    assert not [x for x in episode_metrics(jax.tree.map(lambda x: x[None], transition)) if x.startswith("episode_s")]


def test_names_are_dotted_and_step_aside():
    found = reports({"a": {"b": 1.0, "c": 1}, "a.b": 2.0, "return": True, "diverged": True, "xs": np.ones(2)})
    assert found == {"a.b": 1.0, "info.a.b": 2.0, "info.return": True}
    assert list(reports((1.0, 2))) == ["0"]
    assert list(reports(jnp.float32(1))) == ["info"]
    assert reports({}) == reports(None) == {}


def test_lanes_report_each_for_itself():
    one = env()
    envs = rlx.stack([replace(one, params=Params(bonus=bonus)) for bonus in (1.0, -2.0)])
    keys = jax.random.split(jax.random.key(0), 2)
    _, both = jax.jit(jax.vmap(lambda env, key: rolled(env, key)))(envs, keys)
    for i, bonus in enumerate((1.0, -2.0)):
        _, alone = rolled(env(bonus=bonus), keys[i])
        for name in NAMES:
            np.testing.assert_allclose(both.reported[name][i], alone.reported[name], rtol=1e-6, atol=1e-6)


def test_a_step_that_is_replaced_reports_what_the_new_one_does(monkeypatch):
    one = env()
    one.reset(jax.random.key(0))
    step = Reporter.step
    monkeypatch.setattr(Reporter, "step", lambda *args: (*step(*args)[:5], {"other": 1.0}))
    start = one.reset(jax.random.key(0))
    assert list(start.reported) == ["other"]
    assert one.advance(jax.random.key(0), start, jnp.zeros(1))[1].reported["other"] == 1.0


def test_episodes_without_a_restart_report_up_to_their_end():
    @jax.jit
    def played(env, key):
        return episodes(env, act, reset(env, key, N), key, 7)

    env_state, traj, alive = played(env(), jax.random.key(2))
    last = np.asarray(alive).sum(0) - 1
    expected = totals(traj)
    metrics = episode_metrics(traj)
    for name in NAMES:
        ends = expected[name][last, range(N)]
        np.testing.assert_allclose(env_state.reported[name], ends, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(metrics[f"episode_{name}"], ends.mean(), rtol=1e-4)


@pytest.mark.parametrize("around", ["chunk", "chunk of chunks", "bounds", "randomized"])
def test_chunks_report_the_steps_up_to_and_with_the_end(around):
    inner = env(length=5.0)
    env_ = {
        "chunk": lambda: chunked(inner, 3),
        "chunk of chunks": lambda: chunked(chunked(inner, 2), 2),
        "bounds": lambda: bounded(chunked(inner, 3), -0.5, 0.5),
        "randomized": lambda: randomized(chunked(inner, 3), {"params.bonus": (1.0, 1.0)}),
    }[around]()
    size = env_.action_space.shape[0]
    push = lambda obs, key: (jnp.tile(jnp.sin(3.0 * obs), size), None)
    _, traj = jax.jit(lambda env, key: rollout(env, push, reset(env, key, N), key, T))(env_, jax.random.key(0))
    assert list(traj.reported) == NAMES
    ended = np.asarray(traj.done)
    assert ended.sum() > 4
    # Two times the steps to the end from starts at 0, 1 or 2: what lies after it in the last chunk is not there.
    assert set(np.asarray(traj.reported["info.return"])[ended].tolist()) == {6.0, 8.0, 10.0}
    if around == "chunk":
        values, total = np.asarray(traj.info["distance"]), np.zeros(N)
        steps = np.asarray(traj.reported["info.return"]) / 2
        before = np.zeros(N)
        for t in range(T):
            for n in range(N):
                total[n] += values[t, n, : int(steps[t, n] - before[n])].sum()
            np.testing.assert_allclose(traj.reported["distance"][t], total, rtol=1e-5, atol=1e-5)
            total, before = np.where(ended[t], 0.0, total), np.where(ended[t], 0.0, steps[t])


class Sine:
    @staticmethod
    def act(config, env, state, obs, key, deterministic):
        return jnp.sin(3.0 * obs), None


def test_evaluation_reports_the_first_episode_of_each_environment():
    found = rlx.evaluate(Sine, None, env(), None, jax.random.key(3), num_episodes=6)
    assert list(found.reported) == NAMES
    np.testing.assert_allclose(found.reported["info.return"], 2.0 * found.lengths)
    np.testing.assert_allclose(found.reported["info.length"], found.returns, rtol=1e-6)
    assert set(found.reported["success"].tolist()) == {0.0, 1.0}
    cut = rlx.evaluate(Sine, None, env(), None, jax.random.key(3), num_episodes=6, max_steps=1)
    assert not cut.finished.all()
    assert set(cut.reported["info.return"].tolist()) == {2.0}


def test_an_evaluation_keeps_the_means_of_what_was_reported_in_whole_episodes():
    episodes = Episodes(
        returns=jnp.arange(4.0),
        lengths=jnp.arange(4),
        finished=jnp.ones(4, bool),
        diverged=jnp.array([False, False, False, True]),
        reported={"success": jnp.array([1.0, 0.0, 1.0, 1.0]), "cost": jnp.array([1.0, jnp.nan, 3.0, 9.0])},
    )
    config = types.SimpleNamespace(steps_per_update=10)
    found = evaluation(episodes, 3, config)
    assert found["reported"] == {"success": pytest.approx(2 / 3), "cost": 2.0}
    bad = evaluation(replace(episodes, reported={"cost": jnp.full(4, jnp.inf)}), 3, config)
    assert bad["reported"] == {"cost": "nan"}
    assert evaluation(replace(episodes, reported={}), 3, config)["reported"] == {}


def test_a_checkpoint_from_before_an_environment_reported_begins_its_sums_at_0(tmp_path):
    state = {"env_state": reset(chunked(env(), 2), jax.random.key(0), N), "key": jax.random.key(1)}
    state["env_state"] = replace(state["env_state"], reported=jax.tree.map(jnp.ones_like, state["env_state"].reported))
    inner = replace(state["env_state"].state, reported={})
    old = state | {"env_state": replace(state["env_state"], reported={}, state=inner)}
    like = jax.eval_shape(lambda: state)
    save(tmp_path / "old", 1, old)
    save(tmp_path / "new", 1, state)
    found, same = (restore(tmp_path / name, like) for name in ("old", "new"))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert {float(x) for leaf in found["env_state"].reported.values() for x in leaf} == {0.0}
    assert {float(x) for leaf in same["env_state"].reported.values() for x in leaf} == {1.0}
    np.testing.assert_array_equal(found["env_state"].obs, state["env_state"].obs)
    with pytest.raises(ValueError, match="it has no obs"):
        restore(tmp_path / "old", like | {"obs": like["env_state"].obs})


def test_a_state_made_by_hand_reports_nothing():
    plain = env()
    start = plain.reset(jax.random.key(0))
    bare = EnvState(start.state, start.obs, start.time, start.episode_return)
    stepped, transition = plain.advance(jax.random.key(0), bare, jnp.zeros(1))
    assert stepped.reported == transition.reported == {}


@pytest.mark.parametrize(
    ("name", "options", "names"),
    [
        ("rlx/PointMaze-medium", {}, ["success"]),
        ("rlx/GridWorld", {}, ["success"]),
        ("rlx/Sort", {}, ["success"]),
        ("brax/reacher", {"backend": "spring"}, ["reward_ctrl", "reward_dist"]),
    ],
)
def test_tasks_report_what_they_know(name, options, names):
    found = jax.eval_shape(rlx.envs.make(name, **options).reset, jax.random.key(0))
    assert list(found.reported) == names


def test_success_is_of_goals_in_the_grid_and_of_whole_right_answers():
    grid = rlx.envs.make("rlx/GridWorld")
    step = jax.jit(lambda cell, move: grid.environment.step(None, cell, move, grid.params))
    for cell, move in ((jnp.array([5, 2]), -1.0), (jnp.array([5, 3]), 1.0)):
        *_, reward, terminated, _, info = step(cell, jnp.array([0.0, move]))
        assert info["success"] == terminated == (reward > 0) == (move < 0)
    task = rlx.envs.make("rlx/Reverse", max_length=2)
    task = replace(task, params=replace(task.params, length=2, partial=0.5))
    start = task.reset(jax.random.key(0))
    for wrong in (0, 1):
        state = start
        for token, last in zip(start.state.answer, (0, 1), strict=True):
            answer = (token - 1 + wrong * last) % 10
            state, transition = task.advance(jax.random.key(0), state, answer)
        assert transition.done
        assert transition.reported["success"] == 1 - wrong
        assert transition.reward > 0  # half of it is right


def test_a_run_logs_evaluates_and_resumes_what_its_environment_reports(tmp_path, capsys):
    run, half = tmp_path / "run", tmp_path / "half"
    sizes = "--num-envs 4 --num-steps 16 --num-minibatches 2 --num-epochs 1 --hidden-sizes 4 --no-anneal-learning-rate"
    given = [*sizes.split(), "--eval-episodes", "8", "--env", "rlx/GridWorld", "--env-options", "max_steps=30"]
    cli.main(["train", "ppo", *given, "--total-steps", "1024", "--out", str(run), "--no-compile-cache"])
    said = capsys.readouterr().out
    rows = read_rows(run / "metrics.jsonl")
    known = [row["episode_success"] for row in rows if row["num_episodes"]]
    assert all(0 <= share <= 1 for share in known)
    assert max(known) > 0
    mean = json.loads((run / "evaluation.json").read_text())["reported"]["success"]
    assert f", success {mean:.3g}" in said

    cli.main(["train", "ppo", *given, "--total-steps", "576", "--out", str(half), "--no-compile-cache"])
    cli.main(["train", "--resume", str(half), "--total-steps", "1024", "--no-compile-cache"])
    resumed = [row["episode_success"] for row in read_rows(half / "metrics.jsonl")]
    assert resumed == [row["episode_success"] for row in rows]
    capsys.readouterr()
    cli.main(["eval", str(run), "--num-episodes", "3", "--no-compile-cache"])
    assert ", success " in capsys.readouterr().out
