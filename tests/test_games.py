"""Games of pgx under the contract, and exact play: minimax, its proof, and alpha-beta, against plain recursions."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.envs import check
from rlx.envs.suites import from_pgx, pgx_games
from rlx.envs.yardsticks import (
    alpha_beta,
    bitboards,
    connect_four_move,
    dropped,
    four,
    legal_columns,
    observations,
    perfect_moves,
    prove,
    tic_tac_toe,
)
from rlx.games import match, random_move

SHORT = ("tic_tac_toe", "connect_four", "kuhn_poker")
LONG = [name for name in pgx_games.NAMES if name not in (*SHORT, "chess", "shogi", "go_19x19")]


def test_minimax_knows_all_positions_and_that_the_game_is_a_draw():
    values = tic_tac_toe()
    assert len(values) == 5478
    assert values[(0,) * 9] == 0
    assert values[(1, 1, 0, 2, 2, 0, 0, 0, 0)] == 1  # it wins at once
    assert values[(1, 0, 0, 0, 2, 0, 0, 2, 1)] == 0


def test_a_value_is_that_of_the_best_move():
    values = tic_tac_toe()
    rng, boards = np.random.default_rng(0), list(values)
    for board in (boards[i] for i in rng.choice(len(boards), 200, replace=False)):
        wins = [[board[i] for i in line] for line in ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 4, 8), (2, 4, 6))]
        wins += [[board[i] for i in range(column, 9, 3)] for column in range(3)]
        after = [tuple(2 if j == i else (0, 2, 1)[x] for j, x in enumerate(board)) for i in range(9) if not board[i]]
        expected = -1 if [2, 2, 2] in wins else max((-values[b] for b in after), default=0)
        assert values[board] == expected


def numbers(obs):
    cells = obs["obs"].reshape(-1, 9, 2)
    return ((cells[..., 0] + 2 * cells[..., 1]) * 3 ** np.arange(9)).sum(-1).astype(int)


def perfect(obs):
    return perfect_moves()[numbers(obs)].argmax(-1)


def test_perfect_play_is_proven_never_to_lose():
    proof = prove(perfect)
    assert proof.never_loses
    assert (proof.wins > 0) & (proof.draws > 0)


def test_a_single_losing_answer_is_found():
    """To a stone in the corner the centre is the only answer that does not lose."""
    corner = numbers(observations([(2, 0, 0, 0, 0, 0, 0, 0, 0)]))

    def flawed(obs):
        return np.where(numbers(obs) == corner, 8, perfect(obs))

    proof = prove(flawed)
    assert not proof.never_loses
    for board in proof.lost:
        assert tic_tac_toe()[board] == -1
        assert (board[0], board[8]) == (2, 1)


def test_an_illegal_move_loses():
    proof = prove(lambda obs: np.full(len(obs["obs"]), 4))
    assert any(board[4] for board in proof.lost)


def test_observations_are_those_of_the_boards():
    obs = observations([(1, 2, 0, 0, 0, 0, 0, 0, 1)])
    np.testing.assert_array_equal(obs["obs"][0, ..., 0], [[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(obs["obs"][0, ..., 1], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(obs["action_mask"][0], [False, False] + [True] * 6 + [False])


def lines(grid):
    """Whether four ones lie in a line of a grid `[6, 7]`, cell by cell."""
    for row in range(6):
        for column in range(7):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                cells = [(row + i * down, column + i * right) for i in range(4)]
                if all(0 <= r < 6 and 0 <= c < 7 and grid[r, c] for r, c in cells):
                    return True
    return False


def random_position(rng, num):
    """Planes `[6, 7, 2]` after so many moves, of the player to move."""
    planes = np.zeros((6, 7, 2))
    for _ in range(num):
        free = [c for c in range(7) if not planes[0, c].any()]
        column = rng.choice(free)
        row = max(r for r in range(6) if not planes[r, column].any())
        planes[row, column, 0] = 1
        planes = planes[..., ::-1].copy()
    return planes


def test_bitboards_know_lines_moves_and_full_columns():
    rng = np.random.default_rng(0)
    found = []
    for num in rng.integers(0, 35, 300):
        planes = random_position(rng, num)
        mine, theirs = bitboards(planes)
        assert (mine.bit_count(), theirs.bit_count()) == (planes[..., 0].sum(), planes[..., 1].sum())
        assert four(mine) == lines(planes[..., 0])
        found.append(four(mine))
        assert sorted(legal_columns(mine, theirs)) == [c for c in range(7) if not planes[0, c].any()]
        for column in legal_columns(mine, theirs):
            after = planes.copy()
            after[max(r for r in range(6) if not planes[r, column].any()), column, 0] = 1
            assert dropped(mine, theirs, column) == bitboards(after)[0]
    assert 0.05 < np.mean(found) < 0.95


def test_alpha_beta_has_the_value_of_plain_minimax():
    @cache
    def plain(mine, theirs, depth):
        if not depth or (mine | theirs).bit_count() == 42:
            return 0
        values = []
        for column in legal_columns(mine, theirs):
            moved = dropped(mine, theirs, column)
            values.append(43 - (moved | theirs).bit_count() if four(moved) else -plain(theirs, moved, depth - 1))
        return max(values)

    rng, values = np.random.default_rng(0), []
    for num in rng.integers(4, 34, 60):
        mine, theirs = bitboards(random_position(rng, num))
        if four(mine) or four(theirs):
            continue
        values.append(plain(mine, theirs, 4))
        assert alpha_beta(mine, theirs, 4) == values[-1]
    assert min(values) < 0 < max(values)


def test_alpha_beta_wins_at_once_and_stops_a_line():
    planes = np.zeros((6, 7, 2))
    planes[5, 1:4, 0] = 1
    assert connect_four_move(planes, 1, np.random.default_rng(0)) in (0, 4)
    planes[5, 0, 1] = 1
    assert connect_four_move(planes[..., ::-1], 2, np.random.default_rng(0)) == 4
    with pytest.raises(ValueError, match="depth = 0: give at least 1"):
        connect_four_move(planes, 0, np.random.default_rng(0))


def made(name, **options):
    pytest.importorskip("pgx")
    return rlx.envs.make(f"pgx/{name}", **options)


@pytest.mark.more
def test_the_names_are_those_of_the_suite():
    pgx = pytest.importorskip("pgx")
    one_player = {name for name in pgx.available_envs() if name.startswith(("minatar", "2048"))}
    assert set(pgx_games.NAMES) | one_player == set(pgx.available_envs()) - set(from_pgx.REFUSED)


@pytest.mark.more
@pytest.mark.parametrize("name", SHORT)
def test_contract(name):
    check(made(name), num_steps=32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in pgx_games.NAMES if name not in (*SHORT, "chess", "shogi", "go_19x19")]
)
def test_contract_of_larger_games(name):
    check(made(name), num_steps=32)


def play(env, num_games=256):
    game = env.environment.game
    random = jax.jit(
        lambda position, key: jax.vmap(lambda obs, k: random_move(None, obs, k))(
            jax.vmap(game.observe)(position), jax.random.split(key, num_games)
        )
    )
    return match(game, random, random, jax.random.key(0), num_games)


@pytest.mark.more
def test_random_play_of_tic_tac_toe_ends_as_is_known():
    """Who begins wins 58.5 % of random games, and 12.7 % are draws."""
    found = play(made("tic_tac_toe"), 2000)
    first = np.where(found.began, found.scores, -found.scores)
    np.testing.assert_allclose([(first > 0).mean(), (first == 0).mean()], [0.585, 0.127], atol=0.04)


@pytest.mark.more
def test_a_perfect_opponent_loses_to_no_play():
    env = made("tic_tac_toe", opponent="perfect")

    @jax.jit
    def ends(key):
        def step(env_state, key):
            act_key, step_key, reset_key = jax.random.split(key, 3)
            action = random_move(None, env_state.obs, act_key)
            env_state, transition = env.step(step_key, env_state, action, env.reset(reset_key))
            return env_state, (transition.done, transition.info["win"], transition.info["loss"])

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, 2000))[1]

    done, win, loss = ends(jax.random.key(0))
    assert done.sum() > 300
    assert not win.any()
    assert loss.sum() > 0.5 * done.sum()


@pytest.mark.more
def test_an_observation_is_of_the_player_who_is_seen():
    env = made("connect_four")
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 16))
    stones = np.asarray(states.obs["obs"]).sum((1, 2))
    assert set(map(tuple, stones.tolist())) == {(0.0, 0.0), (0.0, 1.0)}  # the opponent began in some
    stepped, traj = jax.jit(jax.vmap(env.advance))(
        jax.random.split(jax.random.key(1), 16), states, jnp.zeros(16, jnp.int32)
    )
    assert np.asarray(traj.next_obs["obs"])[:, :, 0, 0].sum(1).min() == 1  # one's own stone in the first column
    np.testing.assert_array_equal(np.asarray(stepped.obs["obs"]).sum((1, 2))[:, 1], stones[:, 1] + 1)


@pytest.mark.more
def test_a_board_is_written_and_its_moves_are_named():
    env = made("tic_tac_toe")
    game = env.environment.game
    position = game.move(None, game.start(jax.random.key(0)), 5)
    mark = "O" if int(position.current_player) == 0 else "X"
    assert game.text(position) == f"   a b c\n 1 . . .\n 2 . . {mark}\n 3 . . ."
    assert game.move_names[5] == "c2"
    assert made("connect_four").environment.game.move_names == tuple("1234567")
    assert made("othello").environment.game.move_names[-2:] == ("h8", "pass")
    with pytest.raises(ValueError, match=re.escape("pgx/kuhn_poker has no board of stones")):
        made("kuhn_poker").environment.game.text(position)


@pytest.mark.more
def test_boards_are_drawn_and_others_have_no_frames():
    env = made("tic_tac_toe")
    frames = env.environment.frames([jax.tree.map(np.asarray, env.reset(jax.random.key(0)))], env.params, 60, 60, None)
    assert frames[0].shape == (60, 60, 3)
    assert not hasattr(made("kuhn_poker").environment, "frames")


@pytest.mark.parametrize("name", ["connect_four", "tic_tac_toe"])
def test_an_unknown_opponent_is_refused(name):
    with pytest.raises(ValueError, match="opponent = 'me': choose random"):
        rlx.envs.make(f"pgx/{name}", opponent="me")


def test_games_that_are_not_offered_say_why():
    with pytest.raises(ValueError, match="pgx/sparrow_mahjong is not offered: it has three players"):
        rlx.envs.make("pgx/sparrow_mahjong")
