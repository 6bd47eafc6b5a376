"""LPG: what the rule may know of what, its loss, the agent with the rule of the file, and the levels."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import cli, meta
from rlx.algos import lpg
from rlx.envs.tasks import levels
from rlx.rollout import rollout

T, N, M = 7, 3, 4


@pytest.fixture(scope="module")
def learned():
    rule = meta.lpg(jax.random.key(0), num_units=8, num_values=M)
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), rule)


@pytest.fixture(scope="module")
def seen():
    keys = jax.random.split(jax.random.key(1), 4)
    done = jnp.zeros((T, N), bool).at[2, 0].set(True).at[4, 1].set(True)
    terminated = done.at[4, 1].set(False)  # a time limit
    successor = jax.nn.softmax(jax.random.normal(keys[3], (T, N, M)))
    return lpg.Seen(
        reward=jax.random.normal(keys[0], (T, N)),
        terminated=terminated,
        done=done,
        prob=jax.random.uniform(keys[1], (T, N)),
        prediction=jax.nn.softmax(jax.random.normal(keys[2], (T, N, M))),
        next_prediction=jnp.where(terminated[..., None], 0.0, successor),
    )


@pytest.mark.more
def test_a_target_is_a_distribution(learned, seen):
    direction, target = learned(None, seen, 0.0)
    assert direction.shape == (T, N)
    assert target.shape == (T, N, M)
    np.testing.assert_allclose(target.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(("env", "end"), [(0, 2), (1, 4)])
def test_a_rule_looks_back_from_the_end_of_an_episode_and_not_beyond(learned, seen, env, end):
    before = learned(None, seen, 0.0)
    for time in range(T):
        after = learned(None, replace(seen, reward=seen.reward.at[time, env].add(1.0)), 0.0)
        changed = np.abs(np.asarray(before[0] - after[0])).T > 1e-7
        assert not changed[[i for i in range(N) if i != env]].any()
        first = 0 if time <= end else end + 1
        assert changed[env].tolist() == [first <= t <= time for t in range(T)]


def test_what_follows_a_terminal_state_is_not_seen(learned, seen):
    other = replace(seen, next_prediction=jnp.roll(seen.next_prediction, 1, axis=-1) + 0.1)
    alone = lambda x: jax.tree.map(lambda leaf: leaf[2:3, 0:1], x)
    for a, b in zip(learned(None, alone(seen), 0.0), learned(None, alone(other), 0.0), strict=True):
        np.testing.assert_array_equal(a, b)
    cut = lambda x: jax.tree.map(lambda leaf: leaf[4:5, 1:2], x)  # a time limit has a successor
    assert float(jnp.abs(learned(None, cut(seen), 0.0)[0] - learned(None, cut(other), 0.0)[0]).max()) > 1e-6


def test_the_network_is_that_of_the_equations(learned, seen):
    """In numpy, for one environment: phi, a GRU backwards, and the two outputs."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), learned.params["params"])
    dense = lambda w, x: x @ w["kernel"] + w.get("bias", 0.0)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    phi = lambda y: dense(p["phi_1"], np.maximum(dense(p["phi_0"], y), 0.0))
    (gru,) = p["gru"].values()
    for env in range(N):
        hidden, wanted = np.zeros(8), np.zeros((T, 1 + M))
        for t in reversed(range(T)):
            hidden = np.zeros(8) if seen.done[t, env] else hidden
            ends = bool(seen.terminated[t, env])
            successor = np.zeros(1) if ends else phi(np.asarray(seen.next_prediction[t, env]))
            x = np.array([seen.reward[t, env], float(ends), seen.prob[t, env]])
            x = np.concatenate([x, phi(np.asarray(seen.prediction[t, env])), successor])
            r, z = (sigmoid(dense(gru[f"i{g}"], x) + dense(gru[f"h{g}"], hidden)) for g in "rz")
            n = np.tanh(dense(gru["in"], x) + r * dense(gru["hn"], hidden))
            hidden = (1 - z) * n + z * hidden
            out = np.maximum(hidden, 0.0)
            logits = dense(p["target"], out)
            wanted[t] = [dense(p["direction"], out)[0], *(np.exp(logits) / np.exp(logits).sum())]
        direction, target = learned(None, seen, 0.0)
        np.testing.assert_allclose(direction[:, env], wanted[:, 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(target[:, env], wanted[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def agent():
    env = rlx.envs.make("rlx/Levels", seed=1)
    config = lpg.Config(total_steps=64_000, num_values=M, learning_rate=3e-2)
    return env, config, lpg.init(config, env, jax.random.key(0))


def steps(env, config, state):
    policy = partial(lpg.act, config, env, state)
    return rollout(env, policy, state.env_state, jax.random.key(2), config.num_steps)[1]


@pytest.mark.more
def test_the_policy_goes_down_what_the_rule_says(agent):
    """`mean(direction grad log pi)`, and nothing of it reaches the predictor, nor the rule's inputs the policy."""
    env, config, state = agent
    traj = steps(env, config, state)
    direction, target = meta.lpg(jax.random.key(0), 8, M)(config, lpg.look(config, env, state.params, traj), 0.0)
    grads = jax.grad(lambda p: lpg.loss(p, config, env, traj, direction, target)[0])(state.params)
    actor, _ = lpg.networks(config, env)

    def weighted(params):
        return jnp.mean(direction * actor.apply(params, traj.obs).log_prob(traj.action))

    wanted = jax.grad(weighted)(state.params["actor"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), grads["actor"], wanted)
    through = jax.grad(lambda p: lpg.look(config, env, p, traj).prob.sum())(state.params)
    assert all(bool((x == 0).all()) for x in jax.tree.leaves(through))


def test_the_prediction_loss_is_the_divergence_from_the_target(agent):
    env, config, state = agent
    traj = steps(env, config, state)
    target = jax.nn.softmax(jax.random.normal(jax.random.key(3), (*traj.reward.shape, M)))
    _, predictor = lpg.networks(config, env)
    y = np.asarray(jax.nn.softmax(predictor.apply(state.params["predictor"], traj.obs).logits), np.float64)
    _, parts = lpg.loss(state.params, config, env, traj, jnp.zeros_like(traj.reward), target)
    np.testing.assert_allclose(parts["prediction_loss"], (y * np.log(y / np.asarray(target))).sum(-1).mean(), rtol=1e-4)


def test_the_rule_of_the_file_is_the_return_to_go(agent):
    env, config, state = agent
    traj = steps(env, config, state)
    direction, target = lpg.rule(config, lpg.look(config, env, state.params, traj), 0.0)
    reward, done = np.asarray(traj.reward, np.float64), np.asarray(traj.done)
    to_go, after = np.zeros_like(reward), 0.0
    for t in reversed(range(len(reward))):
        after = reward[t] + 0.99 * np.where(done[t], 0.0, after)
        to_go[t] = after
    np.testing.assert_allclose(direction, to_go.mean() - to_go, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target.sum(-1), 1.0, rtol=1e-5)


def test_the_rule_of_the_file_learns(agent):
    env, config, _ = agent
    _, metrics = rlx.train(lpg, config, env, jax.random.key(0))
    assert meta.last_return(metrics) > 0.05 > -0.1 > metrics["episode_return"][2]


def test_continuous_actions_are_refused():
    env = rlx.envs.make("Pendulum-v1")
    with pytest.raises(ValueError, match="this policy needs discrete actions"):
        lpg.init(lpg.Config(), env, jax.random.key(0))


@pytest.mark.more
def test_a_population_of_rules_on_a_population_of_levels_is_a_vmap():
    env = rlx.envs.make("rlx/Levels")
    config = lpg.Config(total_steps=400, num_envs=4, num_steps=10)
    rules = jax.vmap(lambda key: meta.lpg(key, 8))(jax.random.split(jax.random.key(0), 3))
    drawn = jax.vmap(levels.level)(jax.random.split(jax.random.key(1), 3))

    def live(rule, drawn, key):
        return rlx.train(lpg, config, levels.bound(env, drawn), key, rule=rule)[1]["entropy"]

    found = jax.vmap(live)(rules, drawn, jax.random.split(jax.random.key(2), 3))
    one = live(*(jax.tree.map(lambda x: x[1], x) for x in (rules, drawn)), jax.random.split(jax.random.key(2), 3)[1])
    np.testing.assert_allclose(found[1], one, rtol=1e-4)


# --- levels


def test_a_level_is_what_its_numbers_say():
    """Walked by hand: walls stop, an object pays once and is gone, some end the episode, some come back."""
    params = levels.Params(
        walls=jnp.zeros((4, 4), bool).at[1, 0].set(True),
        place=jnp.array([[0, 1], [3, 3], [levels.NOWHERE, levels.NOWHERE]]),
        reward=jnp.array([0.5, 2.0, 9.0]),
        end=jnp.array([0.0, 1.0, 1.0]),
        back=jnp.array([1.0, 0.0, 1.0]),
    )
    world = levels.Levels()
    state = levels.State(jnp.array([0, 0]), jnp.array([True, True, False]))
    move = {tuple(m): i for i, m in enumerate(np.asarray(levels.MOVES).tolist())}
    key = jax.random.key(0)
    wanted = [  # move, place, which are there, reward, ended
        ((1, 0), (0, 0), (True, True), 0.0, False),  # a wall
        ((-1, 0), (0, 0), (True, True), 0.0, False),  # the border
        ((0, 1), (0, 1), (False, True), 0.5, False),
        ((0, 0), (0, 1), (True, True), 0.0, False),  # it comes back, under the agent
        ((0, 0), (0, 1), (False, True), 0.5, False),
        ((1, 1), (1, 2), (True, True), 0.0, False),
        ((1, 1), (2, 3), (True, True), 0.0, False),
        ((1, 0), (3, 3), (True, False), 2.0, True),
    ]
    for direction, place, there, reward, ended in wanted:
        obs, state, paid, terminated, truncated, _ = world.step(key, state, move[direction], params)
        assert tuple(state.place.tolist()) == place
        assert tuple(state.there.tolist()) == (*there, False)
        assert (float(paid), bool(terminated), bool(truncated)) == (reward, ended, False)
        assert int(obs) == (place[0] * 4 + place[1]) * 8 + there[0] + 2 * there[1]


def test_drawn_levels_are_within_their_bounds():
    params, limit = jax.vmap(levels.level)(jax.random.split(jax.random.key(0), 500))
    walls, place = np.asarray(params.walls), np.asarray(params.place)
    exists = place[..., 0] != levels.NOWHERE
    assert exists[:, 0].all()
    assert set(exists.sum(1)) == {1, 2, 3}
    assert (limit >= 20).all()
    assert (limit <= 75).all()
    inner = [int((~w).any(1).sum()) for w in walls]
    assert min(inner) >= 3
    assert set(inner) >= {4, 5, 6}
    for w, p, e in zip(walls, place, exists, strict=True):
        cells = [tuple(x) for x in p[e]]
        assert len(set(cells)) == len(cells)
        assert not any(w[cell] for cell in cells)
    assert (params.reward[:, 0] >= 0).all()
    assert (np.abs(params.reward) <= 1).all()
    assert (params.reward < 0).any()


def test_a_start_is_a_free_cell():
    env = rlx.envs.make("rlx/Levels", seed=3)
    starts = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 500))
    place = np.asarray(starts.state.place)
    assert not np.asarray(env.params.walls)[place[:, 0], place[:, 1]].any()
    assert not (place[:, None] == np.asarray(env.params.place)).all(-1).any()
    free = (~np.asarray(env.params.walls)).sum() - (np.asarray(env.params.place)[:, 0] >= 0).sum()
    assert len({tuple(p) for p in place}) == free
    for options, message in (({"seed": 0, "size": 3}, "give at least 4"), ({"size": 8}, "give a seed")):
        with pytest.raises(ValueError, match=message):
            rlx.envs.make("rlx/Levels", **options)


@pytest.mark.more
def test_rules_live_through_trials(agent):
    env, config, _ = agent
    config = rlx.replace(config, total_steps=20 * config.steps_per_update)
    rules = jax.vmap(lambda key: meta.lpg(key, 8, M))(jax.random.split(jax.random.key(0), 2))
    found = meta.trial(lpg, [meta.Lifetime(config, env)], num_seeds=2, keyword="rule")(rules, jax.random.key(1))
    assert found.shape == (1, 2, 2)
    assert np.isfinite(found).all()


def test_a_timed_rule_is_told_how_far_a_life_has_gone_and_how_long_it_is(seen):
    rule = meta.lpg(jax.random.key(2), num_units=8, num_values=M, timed=True)
    rule = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), rule)
    short, long = lpg.Config(total_steps=10 * 1280), lpg.Config(total_steps=90 * 1280)
    found = {(n, p): rule(config, seen, jnp.float32(p))[0] for n, config in ((10, short), (90, long)) for p in (0, 0.5)}
    assert all(np.isfinite(x).all() for x in found.values())
    assert np.abs(found[10, 0] - found[10, 0.5]).max() > 1e-3
    assert np.abs(found[10, 0] - found[90, 0]).max() > 1e-3
    # The two numbers stand behind the features of every step: n / N and log N.
    params = jax.tree.map(lambda x: x, rule.params)
    cut = replace(rule, params=jax.tree_util.tree_map_with_path(without_time, params))
    np.testing.assert_allclose(cut(short, seen, jnp.float32(0))[0], cut(long, seen, jnp.float32(0.5))[0], atol=1e-7)
    untimed = replace(cut, params=jax.tree.map(lambda x: x[:5] if len(x) == 7 else x, cut.params), timed=False)
    np.testing.assert_allclose(untimed(None, seen, 0.0)[0], cut(short, seen, jnp.float32(0.0))[0], atol=1e-6)


def without_time(path, x):
    """The weights of the inputs of the GRU, 0 for the last two."""
    return x.at[5:].set(0.0) if x.ndim == 2 and len(x) == 7 else x


def test_a_rule_in_a_file_is_the_rule(tmp_path, learned, seen):
    meta.save(tmp_path / "rule.npz", learned, {"generations": 3})
    found = meta.load(tmp_path / "rule.npz")
    jax.tree.map(np.testing.assert_array_equal, found, learned)
    jax.tree.map(np.testing.assert_array_equal, found(None, seen, 0.0), learned(None, seen, 0.0))
    wider = replace(learned, num_units=9)
    meta.save(tmp_path / "wider.npz", wider)
    with pytest.raises(ValueError, match="not those of a rule of its sizes"):
        meta.load(tmp_path / "wider.npz")
    with pytest.raises(ValueError, match="not a population"):
        meta.save(tmp_path / "all.npz", meta.alone(learned))
    with pytest.raises(ValueError, match="learns by no rule"):
        meta.with_rule(rlx.algos.ppo, learned)
    with pytest.raises(ValueError, match="give num_values = 4"):
        jax.eval_shape(lambda: lpg_of(learned))


def command(*arguments):
    """The exit status of a command."""
    try:
        cli.main([str(word) for word in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def lpg_of(rule):
    """A step of an agent whose predictions are over another number of values."""
    env, config = rlx.envs.make("rlx/Levels"), lpg.Config(num_envs=2, num_steps=2)
    return lpg.update(config, env, lpg.init(config, env, jax.random.key(0)), rule=rule)


@pytest.mark.more
@pytest.mark.usefixtures("command_cache")
def test_a_rule_is_an_option(tmp_path, learned, capsys):
    path = tmp_path / "rule.npz"
    meta.save(path, learned)
    flags = ["--env", "rlx/Levels", "--num-envs", 4, "--num-steps", 4, "--total-steps", 64, "--eval-episodes", 1]
    out = tmp_path / "run"
    assert command("train", "lpg", *flags, "--num-values", M, "--rule", path, "--out", out) == 0
    assert command("train", "--resume", out, "--total-steps", 96) == 0
    agent = rlx.load(out)
    assert agent.algorithm.__name__ == "rlx.algos.lpg+LPG"
    env = rlx.envs.make("rlx/Levels")
    config = lpg.Config(num_envs=4, num_steps=4, total_steps=64, num_values=M)
    whole, _ = rlx.train(lpg, config, env, jax.random.key(0), rule=learned)
    assert jax.tree.structure(whole.params) == jax.tree.structure(agent.state.params)
    assert command("train", "lpg", *flags, "--rule", "evolved", "--out", tmp_path / "evolved") == 0
    capsys.readouterr()
    assert command("train", "ppo", "--env", "CartPole-v1", "--rule", "evolved") == 2
    assert "learns by no rule" in capsys.readouterr().err
    assert command("train", "lpg", *flags, "--rule", "evolved", "--objective", "SPO") == 2
    assert "so give one" in capsys.readouterr().err
    assert command("train", "lpg", *flags, "--rule", "best") == 2
    assert "give evolved, or the file of a rule" in capsys.readouterr().err
