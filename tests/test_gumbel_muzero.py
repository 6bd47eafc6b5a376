"""AlphaZero with the Gumbel policy: signs of a search, targets against a recursion, and Nim, which is solved."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import replace
from rlx.envs.tasks.nim import GAME, LARGEST, Pile
from rlx.games import match
from rlx.planning import player, search, turn_sign
from rlx.rollout import rollout
from rlx.train import advance

env = rlx.envs.make("rlx/Nim")


def test_a_search_without_mctx_says_what_to_install(without):
    without("mctx")
    with pytest.raises(ValueError, match=r'search needs another package: pip install "rlx\[search\]"'):
        search(GAME, judge, piles([3]), jax.random.key(0), 4)


def test_the_sign_is_that_of_whose_turn_it_is():
    np.testing.assert_array_equal(turn_sign(jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])), [1, -1, -1, 1])


def piles(numbers, turn=0):
    num = jnp.array(numbers, jnp.int32)
    return Pile(num, jnp.full(num.shape, turn, jnp.int32), jnp.zeros((len(numbers), 2)))


def judge(obs):
    """Knows nothing."""
    return jnp.where(obs["action_mask"], 0.0, -1e9), jnp.zeros(obs["obs"].shape[0])


def knowing(obs):
    """Knows the values of all positions, and nothing of moves."""
    num = obs["obs"].argmax(-1)
    return judge(obs)[0], jnp.where(num % 4 == 0, -1.0, 1.0)


@pytest.mark.more
@pytest.mark.parametrize("turn", [0, 1])
def test_a_search_to_the_end_finds_the_best_moves_for_either_player(turn):
    pytest.importorskip("mctx")
    position = piles([1, 2, 3, 5, 6, 7], turn)
    plan = jax.jit(lambda key: search(GAME, judge, position, key, 64, gumbel_scale=0.0))(jax.random.key(0))
    np.testing.assert_array_equal(plan.action, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(plan.weights.argmax(-1), [0, 1, 2, 0, 1, 2])
    assert plan.value[0] > 0.9  # a mean over the search, in which the others' moves are still tried


@pytest.mark.more
def test_a_search_of_one_move_uses_the_values_of_the_other_with_the_opposite_sign():
    pytest.importorskip("mctx")
    numbers = [5, 6, 7, 9, 10, 11]
    plan = jax.jit(lambda key: search(GAME, knowing, piles(numbers), key, 3, gumbel_scale=0.0))(jax.random.key(0))
    np.testing.assert_array_equal(plan.action, [n % 4 - 1 for n in numbers])


@pytest.fixture(scope="module")
def zero():
    pytest.importorskip("mctx")
    from rlx.algos import gumbel_muzero

    return gumbel_muzero


@pytest.fixture(scope="module")
def small(zero):
    sizes = {"num_envs": 8, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (16,)}
    return zero.Config(total_steps=4 * 64, learning_rate=1e-2, num_simulations=4, num_random=2, **sizes)


@pytest.fixture(scope="module")
def start(zero, small):
    return jax.jit(partial(zero.init, small, env))(jax.random.key(0))


@pytest.mark.more
def test_targets_are_the_outcome_seen_by_who_moved(zero, small, start):
    config = replace(small, gae_lambda=1.0, gamma=1.0)
    key = jax.random.key(1)
    policy = lambda position, key: zero.searched(config, env, start, position, key)
    _, traj = jax.jit(lambda s: rollout(zero.mirrored(config, env), policy, s, key, 12))(start.env_state)
    batch, value = jax.jit(partial(zero.targets, config, env, start))(traj)
    last = jax.vmap(GAME.observe)(jax.tree.map(lambda x: x[-1], traj.next_obs))
    turn, after = np.asarray(traj.info["turn"]), np.asarray(traj.next_obs.turn)
    expected = np.zeros((13, 8))
    expected[12] = zero.judge(config, env, start.params, last)[1]
    for t in reversed(range(12)):
        sign = np.where(turn[t] == after[t], 1, -1)
        expected[t] = np.where(traj.done[t], traj.reward[t], sign * expected[t + 1])
    np.testing.assert_allclose(batch.target, expected[:-1], atol=1e-5)
    assert np.asarray(traj.done).sum() > 8
    np.testing.assert_allclose(batch.weights.sum(-1), 1, rtol=1e-5)
    assert value.shape == (12, 8)


@pytest.mark.more
def test_the_loss_is_its_equation(zero, small, start):
    rng = np.random.default_rng(0)
    numbers = rng.integers(3, 12, 16)
    obs = jax.vmap(GAME.observe)(piles(numbers.tolist()))
    weights = rng.dirichlet(np.ones(3), 16)
    weights[0] = [0, 0, 1]
    target = rng.normal(size=16)
    batch = zero.Batch(obs, jnp.array(weights), jnp.array(target))
    logits, value = map(np.asarray, zero.judge(small, env, start.params, obs))
    log_pi = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    cross = np.where(weights > 0, weights * (np.log(np.maximum(weights, 1e-30)) - log_pi), 0).sum(-1).mean()
    square = 0.5 * ((value - target) ** 2).mean()
    total, parts = zero.loss(start.params, replace(small, value_coef=0.7), env, batch)
    np.testing.assert_allclose(total, cross + 0.7 * square, rtol=1e-4)
    np.testing.assert_allclose(parts["value_loss"], square, rtol=1e-4)


@pytest.mark.more
def test_resume_is_bitwise(zero, small, start):
    program = jax.jit(partial(advance, zero, small, env, length=4))
    whole, metrics = program(state=start, done=0, num=4)
    half, _ = program(state=start, done=0, num=2)
    again, _ = program(state=half, done=2, num=2)
    bare = lambda state: replace(state, key=jax.random.key_data(state.key))
    jax.tree.map(np.testing.assert_array_equal, bare(again), bare(whole))
    assert np.isfinite(metrics["policy_loss"]).all()


@pytest.mark.more
def test_a_lane_is_the_single_run(zero, small):
    configs, keys = [small, replace(small, learning_rate=1e-3, gamma=0.9)], jax.random.split(jax.random.key(0), 2)
    states, _ = jax.jit(jax.vmap(lambda c, k: rlx.train(zero, c, env, k)))(rlx.stack(configs), keys)
    for i, config in enumerate(configs):
        single, _ = rlx.train(zero, config, env, keys[i])
        # Sums in another order, over 4 updates.
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=2e-3), states.params, single.params)


@pytest.mark.more
def test_it_learns_the_best_moves_of_nim_and_their_values(zero):
    config = zero.Config(
        total_steps=60 * 512,
        num_envs=32,
        num_steps=16,
        num_simulations=8,
        learning_rate=1e-2,
        hidden_sizes=(32,),
        num_random=2,
    )
    state, metrics = rlx.train(zero, config, env, jax.random.key(0))
    winning = [n for n in range(1, LARGEST + 1) if n % 4]
    obs = jax.vmap(GAME.observe)(piles(winning))
    action, _ = zero.act(config, env, state, obs, jax.random.key(0), deterministic=True)
    np.testing.assert_array_equal(action, [n % 4 - 1 for n in winning])
    lost = jax.vmap(GAME.observe)(piles([4, 8, 12]))
    np.testing.assert_allclose(zero.judge(config, env, state.params, obs)[1], 1, atol=0.2)
    np.testing.assert_allclose(zero.judge(config, env, state.params, lost)[1], -1, atol=0.2)
    assert metrics["policy_loss"][-1] < metrics["policy_loss"][0]
    found = match(GAME, player(zero, config, env, state, 8), player(zero, config, env, state), jax.random.key(1), 64)
    num = np.asarray(jax.vmap(GAME.start)(jax.random.split(jax.random.split(jax.random.key(1))[0], 64)).num)
    np.testing.assert_array_equal(found.scores > 0, found.began == (num % 4 != 0))


@pytest.mark.more
def test_hidden_cards_are_refused(zero, small):
    pytest.importorskip("pgx")
    with pytest.raises(ValueError, match="a search looks at what the other hides in this game: use ppo_selfplay"):
        zero.check(small, rlx.envs.make("pgx/kuhn_poker"))


def test_a_player_that_remembers_is_refused():
    from rlx.algos import ppo_recurrent, sac_discrete

    with pytest.raises(ValueError, match="has a memory"):
        player(ppo_recurrent, ppo_recurrent.Config(), env, None)
    with pytest.raises(ValueError, match="has no judge"):
        player(sac_discrete, sac_discrete.Config(), env, None, 4)
