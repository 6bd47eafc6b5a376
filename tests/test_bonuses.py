"""Bonuses for what is new: against numpy, in every algorithm that takes them, from the command line."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import cli
from rlx.algorithm import load_algorithm, short_name, split_name
from rlx.bonuses import RND, Counts, begin, pay, with_bonus
from rlx.objectives import SPO
from rlx.rollout import reset, rollout

BONUSES = (RND(bonus_sizes=(16,), bonus_features=8), Counts(bonus_bits=8))
SMALL = {"total_steps": 256, "num_envs": 4, "num_steps": 16, "hidden_sizes": (8,)}
TAKERS = {
    "ppo": {},
    "mdpo": {},
    "ppo_recurrent": {"memory_size": 8, "sequence_length": 8, "num_minibatches": 1},
    "pqn": {},
    "dqn": {"warmup_steps": 64, "batch_size": 8},
    "sac": {"warmup_steps": 64, "batch_size": 8, "utd_ratio": 0.0625},
}


@pytest.fixture(scope="module")
def traj(cartpole):
    act = lambda obs, key: (jax.random.bernoulli(key, shape=(4,)).astype(jnp.int32), None)
    key = jax.random.key(0)
    return jax.jit(lambda key: rollout(cartpole, act, reset(cartpole, key, 4), key, 32)[1])(key)


def paid_for(bonus, env, traj, times=1):
    """Its State after `times` rollouts of the same transitions, and what was paid each time."""
    state = begin(bonus, env, 4, jax.random.key(1))
    rewards = []
    for _ in range(times):
        paid, state, metrics = jax.jit(partial(pay, bonus, env))(state, traj)
        rewards.append(np.asarray(paid.reward - traj.reward))
    return state, rewards, metrics


def dense(params, x):
    return x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def features(params, x):
    """`Features` of one layer, in numpy."""
    torso, head = params["params"]["torso"], params["params"]["head"]
    return dense(head, np.maximum(dense(torso["Dense_0"], x), 0.0))


def test_random_network_distillation_is_the_error_of_a_prediction(cartpole, traj):
    bonus = replace(BONUSES[0], bonus_coef=0.5)
    state = begin(bonus, cartpole, 4, jax.random.key(1))
    _, (paid,), _ = paid_for(bonus, cartpole, traj)
    seen = np.asarray(traj.next_obs, np.float64)
    obs = np.clip((seen - seen.mean((0, 1))) / np.sqrt(seen.var((0, 1)) + 1e-8), -5, 5)
    error = ((features(state.params, obs) - features(state.target, obs)) ** 2).mean(-1)
    total, sums = np.zeros(4), []
    for row in error:  # through the ends of episodes, of which there are some
        total = row + 0.99 * total
        sums.append(total)
    assert traj.done.any()
    np.testing.assert_allclose(paid, 0.5 * error / np.std(sums), rtol=2e-4)


def test_random_network_distillation_pays_less_for_what_it_knows(cartpole, traj):
    bonus = replace(BONUSES[0], bonus_steps=64, bonus_learning_rate=3e-3)
    state, rewards, _ = paid_for(bonus, cartpole, traj, times=4)
    other = replace(traj, next_obs=traj.next_obs + jnp.array([0.0, 3.0, 0.0, 3.0]))
    unknown, _, _ = pay(bonus, cartpole, state, other)
    # The scale of what is paid has fallen with the error, so the comparison is within one scale.
    assert (unknown.reward - traj.reward).mean() > 3 * rewards[-1].mean()


def test_counts_are_those_of_a_table(cartpole, traj):
    bonus = replace(BONUSES[1], bonus_coef=2.0)
    state, rewards, metrics = paid_for(bonus, cartpole, traj, times=2)
    seen = np.asarray(traj.next_obs)
    obs = (seen - seen.mean((0, 1))) / np.sqrt(seen.var((0, 1)) + 1e-8)
    cells = [tuple(signs) for signs in (obs.reshape(-1, 4) @ np.asarray(state.directions) > 0)]
    visits = Counter(cells)
    once = np.array([visits[cell] for cell in cells]).reshape(32, 4)
    np.testing.assert_allclose(rewards[0], 2 / np.sqrt(once), rtol=1e-5)
    np.testing.assert_allclose(rewards[1], 2 / np.sqrt(2 * once), rtol=1e-5)  # the same moments, so the same cells
    assert metrics["visited"] == len(visits) > 10
    assert state.counts.sum() == 2 * once.size


def test_counts_refuse_a_table_that_is_too_large(cartpole):
    with pytest.raises(ValueError, match="up to 24"):
        begin(Counts(bonus_bits=25), cartpole, 4, jax.random.key(0))


@pytest.mark.parametrize("name", TAKERS)
def test_algorithms_learn_from_reward_and_bonus(name, cartpole):
    algorithm = load_algorithm(name)
    env = rlx.envs.make("Pendulum-v1") if name == "sac" else cartpole
    config = algorithm.Config(**SMALL | TAKERS[name])
    key = jax.random.key(0)
    none, plain = rlx.train(algorithm, config, env, key)
    free, unpaid = rlx.train(algorithm, config, env, key, bonus=Counts(bonus_coef=0.0))
    _, paid = rlx.train(algorithm, config, env, key, bonus=Counts(bonus_coef=5.0))
    loss = "critic_loss" if name == "sac" else "value_loss"
    np.testing.assert_allclose(unpaid[loss], plain[loss], rtol=1e-4)  # another program, so other rounding
    assert abs(paid[loss][0] - plain[loss][0]) > 0.1 * plain[loss][0]
    assert paid["bonus"][0] > 0 == unpaid["bonus"][0]
    assert none.bonus is None
    assert free.bonus.counts.sum() == config.total_steps
    # The return is of the rewards of the environment: in CartPole that of an episode is its length.
    if env is cartpole:
        np.testing.assert_allclose(paid["episode_return"], paid["episode_length"])


@pytest.mark.parametrize("bonus", BONUSES, ids=["RND", "Counts"])
def test_a_run_with_a_bonus_can_be_resumed_to_the_bit(ppo, cartpole, bonus):
    config = ppo.Config(**SMALL)
    whole, _ = rlx.train(ppo, config, cartpole, jax.random.key(0), bonus=bonus)
    half, _ = rlx.train(ppo, replace(config, total_steps=128), cartpole, jax.random.key(0), bonus=bonus)
    end, rest = rlx.resume(ppo, config, cartpole, half, 2, bonus=bonus)
    again, _ = rlx.resume(ppo, config, cartpole, half, 2, bonus=bonus)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(end.bonus), jax.tree.leaves(again.bonus))
    assert rest["bonus"].shape == (2,)
    assert end.num_updates == whole.num_updates
    with pytest.raises(ValueError, match="bonus"):
        rlx.resume(ppo, config, cartpole, half, 2)


def test_coefficients_of_a_bonus_are_swept(ppo, cartpole):
    explorer = with_bonus(ppo, Counts)
    configs = [explorer.Config(**SMALL, bonus_coef=coef) for coef in (0.0, 1.0)]
    run = jax.jit(jax.vmap(lambda config: rlx.train(explorer, config, cartpole, jax.random.key(0))[1]["bonus"][0]))
    bonus = run(rlx.stack(configs))
    assert bonus[0] == 0 < bonus[1]


def test_an_algorithm_without_a_bonus_says_so():
    with pytest.raises(ValueError, match="es takes no bonus"):
        load_algorithm("es+RND")


def test_names_keep_objective_and_bonus():
    assert split_name("rlx.algos.ppo+SPO+RND") == ("rlx.algos.ppo", "SPO+RND")
    assert split_name("ppo+RND") == ("ppo", "RND")
    both = load_algorithm("ppo+SPO+RND")
    assert both.__name__ == "rlx.algos.ppo+SPO+RND"
    assert short_name(both.__name__) == "ppo+SPO+RND"
    assert {"epsilon", "bonus_coef"} <= set(vars(both.Config())) == set(vars(load_algorithm("ppo+RND+SPO").Config()))


def test_objective_and_bonus_together_are_those_given_by_hand(ppo, cartpole):
    both = load_algorithm("ppo+SPO+Counts")
    named = rlx.train(both, both.Config(**SMALL), cartpole, jax.random.key(0))[1]
    by_hand = rlx.train(ppo, ppo.Config(**SMALL), cartpole, jax.random.key(0), objective=SPO(), bonus=Counts())[1]
    np.testing.assert_array_equal(named["policy_loss"], by_hand["policy_loss"])


def command(*arguments):
    """The exit status of a command."""
    try:
        cli.main([str(word) for word in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.usefixtures("command_cache")
def test_a_bonus_is_an_option_and_is_remembered(tmp_path, capsys):
    out = tmp_path / "run"
    train = ["train", "ppo", "--env", "CartPole-v1", "--num-envs", 4, "--num-steps", 16, "--out", out]
    train += ["--bonus", "counts", "--bonus-coef", 0.3, "--total-steps", 128, "--eval-episodes", 2]
    assert command(*train) == 0
    assert command("train", "--resume", out, "--total-steps", 256) == 0
    rows = [row for line in (out / "metrics.jsonl").read_text().splitlines() if "bonus" in (row := json.loads(line))]
    assert rows[-1]["step"] == 256
    assert all(0 < row["bonus"] <= 0.3 for row in rows)
    assert command("show", out) == 0
    assert "--bonus Counts" in capsys.readouterr().out
    assert command(*train, "--bonus", "curiosity") == 2
    assert "unknown bonus 'curiosity'" in capsys.readouterr().err
