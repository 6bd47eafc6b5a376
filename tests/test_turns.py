"""Tasks in turns: every step against plain Python, best play against its value, noise, solved problems, pictures."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import tokens
from rlx.env import with_params
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.tasks.turns import best_value

NUM = 200


@pytest.mark.parametrize("name", ["Guess", "Calculator"])
def test_contract(name):
    assert len(rlx.envs.check(rlx.envs.make(name), num_steps=64)) == len(CLAUSES)


@pytest.fixture(scope="module")
def play():
    """Transitions `[N, T]` of episodes in which the given tokens `[N, T]` are written, and their start states."""

    @jax.jit
    def run(env, given, key):
        def episode(given, key):
            reset_key, *keys = jax.random.split(key, 1 + len(given))
            start = env.reset(reset_key)
            step = lambda state, x: env.advance(x[1], state, x[0] - 1)
            return start, jax.lax.scan(step, start, (given, jnp.stack(keys)))[1]

        return jax.vmap(episode)(given, jax.random.split(key, len(given)))

    def played(env, given, key=0):
        start, traj = run(env, jnp.asarray(given), jax.random.key(key))
        return jax.tree.map(np.asarray, (start.state, traj))

    return played


def guessing(hidden, largest, size, given, turns, cost):
    """Rewards, ends, intervals before each turn, and the whole observation of an episode of Guess; plain Python."""
    low, high, told = 1, largest, [largest]
    rewards, ends, intervals = [], [], []
    for k, guess in enumerate(given):
        intervals.append((low, high))
        if guess == hidden:
            told += [guess, size + 3]
        elif guess > hidden:
            told += [guess, size + 1]
            high = min(high, guess - 1)
        else:
            told += [guess, size + 2]
            low = max(low, guess + 1)
        rewards.append(1 - cost * k if guess == hidden else 0)
        ends.append(guess == hidden or k + 1 == turns)
        if ends[-1]:
            break
    return rewards, ends, intervals, told


@pytest.mark.parametrize(("largest", "turns"), [(6, 5), (4, 3), (9, 9)])
def test_guess_is_its_rules(play, largest, turns):
    env = rlx.envs.make("Guess", size=6, max_turns=5)
    assert (env.observation_space.n, env.observation_space.shape) == (10, (11,))
    assert env.action_space.n == 9
    assert (env.environment.prompt_size, env.environment.reply_size, env.max_steps) == (1, 1, 5)
    given = np.random.default_rng(0).integers(1, 10, size=(NUM, 5))  # tokens of replies among them
    start, traj = play(with_params(env, {"largest": largest, "turns": turns, "cost": 0.1}), given)
    most, last = min(largest, 6), min(turns, 5)
    assert set(start.hidden) == set(range(1, most + 1))
    for n in range(NUM):
        rewards, ends, intervals, told = guessing(int(start.hidden[n]), most, 6, given[n], last, 0.1)
        num = len(ends)
        np.testing.assert_allclose(traj.reward[n, :num], rewards, rtol=1e-6)
        np.testing.assert_array_equal(traj.terminated[n, :num], ends)
        np.testing.assert_array_equal(traj.info["success"][n, :num], np.array(rewards) > 0)
        np.testing.assert_array_equal(traj.info["place"][n, :num], [(a - 1) * 6 + b - 1 for a, b in intervals])
        np.testing.assert_array_equal(traj.next_obs[n, num - 1], told + [0] * (11 - len(told)))
    assert not traj.truncated.any()


def test_the_same_possible_numbers_are_the_same_place_however_they_were_found():
    """From all paths of two guesses, for each hidden number."""
    env = rlx.envs.make("Guess", size=7)
    step = jax.jit(env.environment.step)
    _, start = env.environment.reset(jax.random.key(0), env.params)
    found = {}
    for hidden in range(1, 8):
        for first in range(1, 8):
            for second in range(1, 8):
                state = replace(start, hidden=jnp.int32(hidden))
                for guess in (first, second):
                    _, state, *_ = step(None, state, jnp.int32(guess - 1), env.params)
                if hidden not in (first, second):
                    below = [g for g in (first, second) if g < hidden]
                    above = [g for g in (first, second) if g > hidden]
                    possible = max(below, default=0) + 1, min(above, default=8) - 1
                    found.setdefault(possible, set()).add(int(env.environment.place(state)))
    assert all(len(places) == 1 for places in found.values())
    places = set.union(*found.values())
    assert len(places) == len(found) > 15
    assert all(0 <= place < 49 for place in places)


@cache
def most(num, k, turns, cost):
    """The largest sum of returns over `num` numbers that are possible, k guesses having been made."""
    if num == 0 or k == turns:
        return 0.0
    splits = (
        max(1 - cost * k, 0) + most(a, k + 1, turns, cost) + most(num - 1 - a, k + 1, turns, cost) for a in range(num)
    )
    return max(splits)


@pytest.mark.parametrize("cost", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("turns", [1, 3, 8])
def test_the_best_value_is_that_of_dynamic_programming(turns, cost):
    for largest in range(1, 34):
        np.testing.assert_allclose(best_value(largest, turns, cost), most(largest, 0, turns, cost) / largest, rtol=1e-9)


@pytest.mark.parametrize(("largest", "turns", "cost"), [(16, 8, 0.05), (16, 3, 0.2), (11, 8, 0.0), (1, 1, 0.5)])
def test_a_player_that_halves_gets_the_best_value(largest, turns, cost):
    """Over all hidden numbers; it reads the observation alone."""
    env = with_params(rlx.envs.make("Guess"), {"largest": largest, "turns": turns, "cost": cost})
    advance = jax.jit(env.advance)
    start, total = env.reset(jax.random.key(0)), 0.0
    for hidden in range(1, largest + 1):
        state, low, done = replace(start, state=replace(start.state, hidden=jnp.int32(hidden))), 1, False
        high = int(start.obs[0])
        while not done:
            guess = (low + high) // 2
            state, transition = advance(jax.random.key(0), state, jnp.int32(guess - 1))
            reply = int(transition.next_obs[2 * int(transition.episode_length)])
            low, high = (guess + 1, high) if reply == env.environment.higher else (low, guess - 1)
            done = bool(transition.done)
        total += float(transition.episode_return)
        assert bool(transition.info["success"]) == (reply == env.environment.right)
    np.testing.assert_allclose(total / largest, best_value(largest, turns, cost), rtol=1e-6)


def solved(env, num=NUM):
    return np.asarray(jax.jit(lambda key: tokens.examples(env, key, num)[0])(jax.random.key(0)))


@pytest.mark.parametrize("halving", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("turns", [2, 8])
def test_solved_guesses_find_the_number_by_guesses_that_are_possible(halving, turns):
    env = with_params(rlx.envs.make("Guess"), {"halving": halving, "turns": turns})
    rows, middle, others = solved(env), 0, 0
    hidden = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM)).state.hidden  # the same keys
    for row, number in zip(rows, hidden, strict=True):
        given = [int(token) for token in row[1::2] if token]
        rewards, ends, intervals, told = guessing(int(number), 16, 16, given, turns, 0.05)
        assert len(ends) == len(given)
        assert rewards[-1] > 0
        np.testing.assert_array_equal(row, told + [0] * (17 - len(told)))
        for k, ((low, high), guess) in enumerate(zip(intervals, given, strict=True)):
            assert low <= guess <= high
            if k + 1 < turns and low < high:
                others += 1
                middle += guess == (low + high) // 2
    share = middle / others
    assert share == 1.0 if halving == 1.0 else (share < 0.25 if halving == 0.0 else 0.4 < share < 0.75)
    if not halving:
        counts = np.bincount(rows[:, 1], minlength=17)[1:17]
        assert counts.min() > 0  # of 200 / 16


def test_a_right_answer_is_what_halving_writes():
    env = with_params(rlx.envs.make("Guess"), {"halving": 0.0})
    halved = solved(with_params(env, {"halving": 1.0}))[:, 1::2]
    answer = jax.vmap(lambda key: env.environment.right_answer(env.reset(key).state, env.params))
    np.testing.assert_array_equal(answer(jax.random.split(jax.random.key(0), NUM)), halved)


def calculating(a, b, modulus, call, replies, given, max_calls, cost, always):
    """Rewards, ends, calls and the whole observation of an episode of Calculator, given replies; plain Python."""
    told, rewards, ends, calls = [a + 1, b + 1], [], [], 0
    for token, reply in zip(given, replies, strict=True):
        if token == call and calls < max_calls:
            told += [token, reply]
            calls += 1
            rewards.append(0)
            ends.append(False)
            continue
        right = token - 1 == (a + b) % modulus
        told += [token, 0]
        rewards.append(right - cost * calls * (right or always))
        ends.append(True)
        break
    return rewards, ends, calls, told


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("modulus", [2, 5, 9])
def test_calculator_is_its_rules(play, modulus, always):
    env = rlx.envs.make("Calculator", max_modulus=5, max_calls=2)
    assert (env.observation_space.n, env.observation_space.shape, env.action_space.n) == (7, (8,), 6)
    assert (env.environment.prompt_size, env.environment.reply_size, env.max_steps) == (2, 1, 3)
    given = np.random.default_rng(0).choice([1, 2, 3, 4, 5, 6, 6, 6, 6], size=(NUM, 3))
    options = {"modulus": modulus, "cost": 0.2, "cost_always": always}
    start, traj = play(with_params(env, options), given)
    modulus, lengths = min(modulus, 5), set()
    for n in range(NUM):
        a, b = (int(token) - 1 for token in start.tokens[n, :2])
        assert 0 <= min(a, b) <= max(a, b) < modulus
        right = (a + b) % modulus + 1
        rewards, ends, calls, told = calculating(a, b, modulus, 6, [right] * 3, given[n], 2, 0.2, always)
        num = len(ends)
        lengths.add(num)
        np.testing.assert_allclose(traj.reward[n, :num], rewards, rtol=1e-6)
        np.testing.assert_array_equal(traj.terminated[n, :num], ends)
        np.testing.assert_array_equal(traj.next_obs[n, num - 1], told + [0] * (8 - len(told)))
        assert traj.info["success"][n, :num].any() == (given[n, num - 1] == right)
        assert traj.reported["calls"][n, num - 1] == traj.info["calls"][n, :num].sum() == calls
    assert lengths == {1, 2, 3}


def test_a_noisy_tool_replies_with_any_other_number(play):
    env = with_params(rlx.envs.make("Calculator"), {"modulus": 5, "tool_noise": 0.4})
    given = np.full((2000, 3), env.environment.call)
    start, traj = play(env, given)
    reply = traj.next_obs[:, -1, 3::2][:, :3] - 1
    off = (reply - (start.tokens[:, :2] - 1).sum(axis=1)[:, None]) % 5
    share = np.bincount(off.reshape(-1), minlength=5) / off.size
    np.testing.assert_allclose(share, [0.6, 0.1, 0.1, 0.1, 0.1], atol=0.02)  # five standard errors and more
    both = (off[:, 0] == 0) & (off[:, 1] == 0)
    np.testing.assert_allclose(both.mean(), 0.36, atol=0.05)  # each call is a draw of its own


@pytest.mark.parametrize("max_calls", [0, 3])
def test_solved_sums_are_asked_for_where_that_is_possible(play, max_calls):
    env = with_params(rlx.envs.make("Calculator", max_calls=max_calls), {"tool_noise": 0.9})
    call, rows = env.environment.call, solved(env)
    for a, b, *rest in rows:
        right = (a - 1 + b - 1) % 23 + 1
        asked = [call, right, right, 0, 0, 0, 0, 0] if max_calls else [right, 0]
        assert rest == asked
    answer = jax.vmap(lambda key: env.environment.right_answer(env.reset(key).state, env.params))
    np.testing.assert_array_equal(answer(jax.random.split(jax.random.key(0), NUM)), rows[:, 2::2])
    assert len(np.unique(rows[:, :2], axis=0)) > 100
    prompts = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM)).obs[:, :2]  # the same keys
    np.testing.assert_array_equal(rows[:, :2], prompts)


def test_the_same_task_is_the_same_program():
    for name, other in (("Guess", {"max_turns": 3}), ("Calculator", {"max_calls": 1})):
        same, again = (jax.tree.structure(rlx.envs.make(name, **options)) for options in ({}, {}))
        assert same == again
        assert same != jax.tree.structure(rlx.envs.make(name, **other))


@pytest.mark.parametrize("options", [{"size": 0}, {"max_turns": 1.5}, {"max_modulus": 1}, {"max_calls": -1}])
def test_sizes_without_a_problem_are_refused(options):
    with pytest.raises(ValueError, match="give an integer of at least"):
        rlx.envs.make("Guess", **options)


def test_guesses_are_drawn():
    env = rlx.envs.make("Guess")
    start = env.reset(jax.random.key(0))
    hidden = int(start.state.hidden)
    guess = 12 if hidden < 12 else 3
    moved, _ = env.advance(jax.random.key(0), start, jnp.int32(guess - 1))
    first, same, other = env.environment.frames([start, start, moved], env.params, 170, 100, None)
    np.testing.assert_array_equal(first, same)
    row = slice(48, 52)  # the numbers stand in a row, in columns 10, 20, ...
    blue = lambda image, number: (np.abs(image[row, 10 * number].astype(int) - (0x3E, 0x7C, 0xB1)).max(-1) < 40).all()
    assert all(blue(first, number) for number in range(1, 17))
    possible = [number for number in range(1, 17) if (number < guess) == (hidden < guess) and number != guess]
    assert [number for number in range(1, 17) if blue(other, number)] == possible
