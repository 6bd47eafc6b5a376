"""Games of two and self-play: ratings against their equations, the environment, the pool, and Nim, which is solved."""

import dataclasses
import io
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import rlx
from rlx import replace
from rlx.advantages import gae
from rlx.algos import ppo_selfplay as module
from rlx.cli import main
from rlx.envs.tasks.nim import GAME, LARGEST, Pile
from rlx.games import Mirror, Opponents, Versus, facing, match, opened, random_move
from rlx.planning import player
from rlx.pytree import is_static
from rlx.rollout import rollout
from rlx.run.why import diverged
from rlx.selfplay import (
    bradley_terry,
    count_results,
    elo_update,
    expected_score,
    insert,
    opponent_weights,
    scores_of,
    win_rates,
    with_self,
)
from rlx.train import advance


def test_400_points_are_odds_of_ten_to_one():
    np.testing.assert_allclose(expected_score(jnp.float32(1400), jnp.float32(1000)), 10 / 11, rtol=1e-6)
    assert expected_score(jnp.float32(7), jnp.float32(7)) == 0.5


def test_an_update_of_elo_is_the_sum_over_single_games():
    others, scores, games = np.array([0.0, 300.0, -50.0]), np.array([3.5, 1.0, 0.0]), np.array([5.0, 4.0, 0.0])
    expected = 100.0
    for other, score, num in zip(others, scores, games, strict=True):
        expected += 8.0 * (score - num / (1 + 10 ** ((other - 100.0) / 400)))
    found = elo_update(jnp.float32(100), jnp.array(others), jnp.array(scores), jnp.array(games), 8.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ratings_of_two_players_are_the_logarithm_of_their_odds():
    ratings = bradley_terry(np.array([[0, 30], [10, 0]]))
    np.testing.assert_allclose(ratings[0] - ratings[1], 400 * np.log10(3), rtol=1e-6)
    np.testing.assert_allclose(ratings.sum(), 0, atol=1e-9)


def test_ratings_are_the_most_likely_ones():
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 20, (4, 4)) * (1 - np.eye(4))

    def surprise(ratings):
        return np.sum(wins * np.log1p(10 ** ((ratings - ratings[:, None]) / 400)))

    best = scipy.optimize.minimize(surprise, np.zeros(4), options={"gtol": 1e-8}).x
    np.testing.assert_allclose(bradley_terry(wins), best - best.mean(), atol=0.05)


def test_a_prior_keeps_ratings_finite_and_without_one_they_are_refused():
    wins = np.array([[0, 5], [0, 0]])
    with pytest.raises(ValueError, match="give a prior, such as prior=1"):
        bradley_terry(wins)
    ratings = bradley_terry(wins, prior=1.0)
    np.testing.assert_allclose(ratings[0] - ratings[1], 400 * np.log10(11), rtol=1e-6)  # 5.5 to 0.5
    with pytest.raises(ValueError, match="give a square"):
        bradley_terry(np.ones((2, 3)))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_opponents_are_met_by_how_hard_they_are(power):
    rate, present = np.array([0.9, 0.2, 0.5, 0.0]), np.array([True, True, True, False])
    expected = np.where(present, (1 - rate) ** power, 0)
    found = opponent_weights(jnp.array(rate), jnp.array(present), power)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)


def test_opponents_who_are_always_beaten_are_met_uniformly():
    found = opponent_weights(jnp.ones(3), jnp.array([True, True, False]), 2.0)
    np.testing.assert_allclose(found, [0.5, 0.5, 0])


def test_results_are_counted_by_opponent_and_those_beyond_the_pool_are_not():
    rng = np.random.default_rng(0)
    opponent, end, done = rng.integers(0, 3, (7, 5)), rng.integers(0, 3, (7, 5)), rng.random((7, 5)) < 0.5
    info = {name: jnp.array(end == i) for i, name in enumerate(("win", "draw", "loss"))}
    expected = np.zeros((2, 3))
    for who, how, ended in zip(opponent.ravel(), end.ravel(), done.ravel(), strict=True):
        if ended and who < 2:
            expected[who, how] += 1
    found = count_results(info | {"opponent": jnp.array(opponent)}, jnp.array(done), 2)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores_of(found), expected[:, 0] + expected[:, 1] / 2)
    np.testing.assert_allclose(win_rates(found), (expected[:, 0] + expected[:, 1] / 2 + 1) / (expected.sum(1) + 2))


def test_a_snapshot_takes_one_place_of_the_pool_and_the_present_comes_after_it():
    pool, params = {"w": jnp.arange(6.0).reshape(3, 2)}, {"w": jnp.array([8.0, 9.0])}
    np.testing.assert_array_equal(insert(pool, params, jnp.int32(1))["w"], [[0, 1], [8, 9], [4, 5]])
    np.testing.assert_array_equal(with_self(pool, params)["w"], [[0, 1], [2, 3], [4, 5], [8, 9]])


def test_advantages_change_their_sign_with_the_turn():
    rng = np.random.default_rng(0)
    reward, value, after = rng.normal(size=(3, 6, 4))
    over, sign = rng.random((6, 4)) < 0.2, np.where(rng.random((6, 4)) < 0.7, -1, 1)
    expected = np.zeros((7, 4))
    for t in reversed(range(6)):
        delta = reward[t] + 0.9 * sign[t] * after[t] * ~over[t] - value[t]
        expected[t] = delta + 0.9 * 0.8 * sign[t] * expected[t + 1] * ~over[t]
    found = gae(*map(jnp.array, (reward, value, after, over, over)), 0.9 * jnp.array(sign), 0.8)
    np.testing.assert_allclose(found, expected[:-1], rtol=1e-4, atol=1e-5)


env = rlx.envs.make("rlx/Nim")


def fixed(params, obs, key):
    """An opponent that takes as many as its parameter says, where there are as many."""
    return jnp.minimum(params, obs["action_mask"].sum() - 1).astype(jnp.int32)


def pile(num, turn=0):
    return Pile(jnp.int32(num), jnp.int32(turn), jnp.zeros(2))


def test_a_step_is_ones_move_and_the_answer_of_the_opponent_that_was_drawn():
    game = Versus(GAME, fixed)
    params = Opponents(jnp.array([0, 2]), jnp.array([0.0, 1.0]))
    obs, state = game.reset(jax.random.key(0), params)
    assert state.opponent == 1
    state = replace(state, position=pile(9))
    obs, state, reward, terminated, _, info = game.step(jax.random.key(1), state, jnp.int32(0), params)
    assert obs["obs"].argmax() == 9 - 1 - 3
    assert (reward, terminated, info["win"], info["loss"], info["opponent"]) == (0, False, False, False, 1)
    obs, state, reward, terminated, _, info = game.step(jax.random.key(1), state, jnp.int32(1), params)
    assert (reward, terminated, info["win"], info["loss"]) == (-1, True, False, True)  # it took the last 3


def test_one_wins_by_ones_own_move_and_the_opponent_does_not_answer():
    game = Versus(GAME, fixed)
    params = Opponents(jnp.array([0]), jnp.ones(1))
    _, state = game.reset(jax.random.key(0), params)
    state = replace(state, position=pile(2))
    _, state, reward, terminated, _, info = game.step(jax.random.key(1), state, jnp.int32(1), params)
    assert (reward, terminated, info["win"], state.position.num) == (1, True, True, 0)


def test_a_pool_is_drawn_from_by_its_weights():
    params = Opponents(jnp.arange(3), jnp.array([1.0, 0.0, 3.0]))
    _, state = jax.vmap(Versus(GAME, fixed).reset, (0, None))(jax.random.split(jax.random.key(0), 2000), params)
    shares = np.bincount(state.opponent, minlength=3) / 2000
    np.testing.assert_allclose(shares, [0.25, 0, 0.75], atol=0.04)  # four standard deviations


class Twice:
    """Nim in which a player moves twice in turn."""

    def __getattr__(self, name):
        return getattr(GAME, name)

    alternates = False

    def move(self, key, position, action):
        after = GAME.move(key, position, action)
        return replace(after, turn=jnp.where(position.num % 2 == 0, position.turn, after.turn))


def test_an_opponent_moves_until_it_is_the_other_ones_turn():
    game = Versus(Twice(), fixed)
    params = Opponents(jnp.array([0]), jnp.ones(1))
    _, state = game.reset(jax.random.key(0), params)
    state = replace(state, position=pile(11))
    _, state, *_ = game.step(jax.random.key(1), state, jnp.int32(0), params)  # 11 -> 10, theirs -> 9, theirs -> 8
    assert (state.position.num, state.position.turn) == (8, 0)


def test_random_openings_are_of_every_length_and_end_no_game():
    keys = jax.random.split(jax.random.key(0), 500)
    after = jax.vmap(lambda key: opened(GAME, pile(12), key, 3))(keys)
    moved = np.bincount(np.asarray(after.turn))
    assert ((after.num < 12).mean() > 0.6) & (after.num == 12).any()
    assert moved.min() > 100
    ended = jax.vmap(lambda key: opened(GAME, pile(3), key, 5))(keys)
    assert (ended.num > 0).all()


def test_in_a_mirror_each_move_is_a_step_and_pays_who_made_it():
    game = Mirror(GAME)
    _, state = game.reset(jax.random.key(0), ())
    state = replace(state, position=pile(2, 1), began=jnp.int32(0))
    _, state, reward, over, _, info = game.step(jax.random.key(0), state, jnp.int32(0), ())
    assert (reward, over, info["turn"], info["first"]) == (0, False, 1, False)
    _, state, reward, over, _, info = game.step(jax.random.key(0), state, jnp.int32(0), ())
    assert (reward, over, info["turn"], info["first"], info["second"]) == (1, True, 0, True, False)


def best(obs):
    """Leaves a multiple of 4 where that can be."""
    num = obs["obs"].argmax(-1)
    return jnp.where(num % 4, num % 4 - 1, 0)


def of(policy):
    return lambda position, key: policy(jax.vmap(GAME.observe)(position))


def test_a_match_is_won_by_who_begins_where_both_play_the_best_moves():
    found = match(GAME, of(best), of(best), jax.random.key(0), 200)
    start = np.asarray(jax.vmap(GAME.start)(jax.random.split(jax.random.split(jax.random.key(0))[0], 200)).num)
    np.testing.assert_array_equal(found.scores > 0, found.began == (start % 4 != 0))
    assert sum(found.rates.values()) == pytest.approx(1)
    assert 0.3 < found.began.mean() < 0.7
    with pytest.raises(ValueError, match="num_games = 0"):
        match(GAME, of(best), of(best), jax.random.key(0), 0)


SMALL = {"num_envs": 8, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (16,), "pool_size": 3}
small = module.Config(total_steps=4 * 64, learning_rate=1e-2, snapshot_every=1, **SMALL)


@pytest.fixture(scope="module")
def train():
    return jax.jit(lambda config, key: rlx.train(module, config, env, key))


def test_snapshots_are_what_the_actor_was_and_the_oldest_is_replaced():
    init, update = jax.jit(module.init), jax.jit(module.update)
    state = init(small, env, jax.random.key(0))
    actors, elos = [state.params["actor"]], [0.0]
    for _ in range(4):
        state, metrics = update(small, env, state)
        actors.append(state.params["actor"])
        elos.append(float(state.elo))
    assert state.num_snapshots == metrics["num_snapshots"] == 5
    for place, number in ((0, 3), (1, 4), (2, 2)):
        jax.tree.map(lambda p, a, i=place: np.testing.assert_array_equal(p[i], a), state.pool, actors[number])
        np.testing.assert_allclose(state.pool_elo[place], elos[number])
    np.testing.assert_array_equal(state.results[1], 0)


def test_a_snapshot_waits_for_its_time_and_for_strength(train):
    state, _ = train(replace(small, snapshot_every=3), jax.random.key(0))
    assert state.num_snapshots == 2
    state, _ = train(replace(small, snapshot_above=1.0), jax.random.key(0))
    assert state.num_snapshots == 1


@pytest.mark.more
def test_the_rollout_is_against_the_pool_and_the_present(train):
    state, _ = train(small, jax.random.key(0))
    for mirror, expected in ((0.0, {0, 1, 2}), (1.0, {3})):
        opposed = module.against(replace(small, mirror=mirror), env, state.params, state.pool, jnp.ones(3) / 3)
        policy = partial(module.act, small, env, state)
        start = jax.vmap(opposed.reset)(jax.random.split(jax.random.key(1), 8))
        _, traj = jax.jit(partial(rollout, num_steps=16))(
            opposed, policy=jax.tree_util.Partial(policy), env_state=start, key=jax.random.key(2)
        )
        assert set(np.asarray(traj.info["opponent"]).ravel().tolist()) == expected


def test_resume_is_bitwise():
    program = jax.jit(partial(advance, module, small, env, length=4))
    start = jax.jit(partial(module.init, small, env))(jax.random.key(0))
    whole, metrics = program(state=start, done=0, num=4)
    half, _ = program(state=start, done=0, num=2)
    again, _ = program(state=half, done=2, num=2)
    bare = lambda state: replace(state, key=jax.random.key_data(state.key))
    jax.tree.map(np.testing.assert_array_equal, bare(again), bare(whole))
    assert metrics["num_snapshots"].tolist() == [2, 3, 4, 5]


def test_a_lane_is_the_single_run(train):
    configs = [small, replace(small, mirror=0.0, opponent_power=2.0, learning_rate=1e-3)]
    keys = jax.random.split(jax.random.key(0), 2)
    states, _ = jax.jit(jax.vmap(lambda c, k: rlx.train(module, c, env, k)))(rlx.stack(configs), keys)
    for i, config in enumerate(configs):
        single, _ = train(config, keys[i])
        # Sums in another order, over 4 updates.
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=2e-4), states.params, single.params)
        np.testing.assert_array_equal(states.num_snapshots[i], single.num_snapshots)


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        state, _ = rlx.train(module, replace(small, value_coef=0.6), env, jax.random.key(0))
    assert state.num_updates == 4


CHANGED = {
    "snapshot_every": 3,
    "snapshot_above": 0.9,
    "opponent_power": 3.0,
    "mirror": 0.9,
    "results_decay": 0.1,
    "elo_k": 7.0,
    "gamma": 0.5,
    "gae_lambda": 0.5,
    "clip": 0.01,
    "value_clip": 0.01,
    "value_coef": 2.0,
    "entropy_coef": 0.5,
    "max_grad_norm": 0.05,
    "adam_epsilon": 1e-2,
    "learning_rate": 3e-2,
    "normalize_advantage": False,
    "anneal_learning_rate": False,
}


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(small) if not is_static(f) and f.name != "target_kl"]
)
def test_every_traced_setting_changes_the_state(train, name):
    leaves = lambda state: np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves((state.params, state.pool, state.elo, state.results))]
    )
    base = replace(small, opponent_power=1.0)
    before, _ = train(base, jax.random.key(0))
    after, _ = train(replace(base, **{name: CHANGED[name]}), jax.random.key(0))
    assert np.abs(leaves(before) - leaves(after)).max() > 1e-4


@pytest.mark.more
def test_self_play_learns_the_best_moves_of_nim():
    config = module.Config(
        total_steps=120 * 512,
        num_envs=32,
        num_steps=16,
        num_minibatches=4,
        learning_rate=1e-2,
        hidden_sizes=(32,),
        pool_size=4,
        snapshot_every=5,
        gamma=1.0,
        num_random=2,
    )
    state, metrics = rlx.train(module, config, env, jax.random.key(0))
    winning = [n for n in range(1, LARGEST + 1) if n % 4]
    obs = {"obs": jnp.eye(LARGEST + 1)[jnp.array(winning)], "action_mask": jnp.arange(3) < jnp.array(winning)[:, None]}
    action, _ = module.act(config, env, state, obs, jax.random.key(0), deterministic=True)
    np.testing.assert_array_equal(action, [n % 4 - 1 for n in winning])
    assert metrics["elo"][-1] > 100
    found = match(GAME, player(module, config, env, state), of(best), jax.random.key(1), 64)
    start = np.asarray(jax.vmap(GAME.start)(jax.random.split(jax.random.split(jax.random.key(1))[0], 64)).num)
    np.testing.assert_array_equal(found.scores > 0, found.began == (start % 4 != 0))


def test_what_is_no_game_of_two_is_refused(cartpole):
    with pytest.raises(ValueError, match="Gymnax is no game of two players: give one such as pgx/tic_tac_toe"):
        rlx.train(module, small, cartpole, jax.random.key(0))
    with pytest.raises(ValueError, match="no game of two"):
        facing(cartpole, random_move, jnp.zeros(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory, command_cache):
    """The directory of a short run."""
    out = tmp_path_factory.mktemp("runs") / "nim"
    flags = "--total-steps 64 --num-envs 8 --num-steps 8 --num-minibatches 2 --hidden-sizes 8 --pool-size 2"
    main(f"train ppo_selfplay --env rlx/Nim {flags} --out {out}".split())
    return out


def answers(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_person_plays_against_a_run_to_the_end(run, monkeypatch, capsys):
    answers(monkeypatch, "nonsense\n9\n" + "1\n" * 12)
    main(["play", str(run)])
    said = capsys.readouterr().out
    assert "nonsense is no legal move: give one of 1 2 3, or q" in said
    assert "9 is no legal move" in said
    assert "pile: " in said
    assert "the policy moves " in said
    assert said.rstrip().endswith(("you win", "you lose"))


@pytest.mark.parametrize("text", ["q\n", "", "7\nquit\n"])
def test_a_person_may_leave_a_game(run, monkeypatch, capsys, text):
    answers(monkeypatch, text)
    main(["play", str(run)])
    assert capsys.readouterr().out.rstrip().endswith("the game is not finished")


@pytest.mark.parametrize(
    ("flags", "said"), [("--search -1", "--search -1: give at least 0"), ("--best --from-update 1", "two checkpoints")]
)
def test_wrong_options_of_play_are_one_line(run, capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        main(["play", str(run), *flags.split()])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_play_refuses_what_is_no_game(tmp_path, capsys, command_cache):
    out = Path(tmp_path) / "cartpole"
    flags = "--total-steps 64 --num-envs 4 --num-steps 16 --num-minibatches 2 --hidden-sizes 8"
    main(f"train ppo --env CartPole-v1 {flags} --out {out}".split())
    with pytest.raises(SystemExit):
        main(["play", str(out)])
    assert "is no game of two players" in capsys.readouterr().err


def test_what_looks_for_the_cause_of_nan_goes_through_games_too():
    state = jax.jit(module.init)(small, env, jax.random.key(0))
    assert diverged(module, small, env, state) == []
