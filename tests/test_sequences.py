"""Sequence tasks: problems and their answers against plain Python, the checker of Countdown, rewards at the end.

Lengths that vary, grades that are wrong at times, and the list of all answers to a problem of Countdown.
"""

from dataclasses import replace
from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import tokens
from rlx.env import with_params
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.tasks import sequences
from rlx.envs.tasks.sequences import END, MINUS, NUMBERS, PLUS, TIMES

NAMES = ("Reverse", "Sort", "ModularAddition", "Countdown")
NUM = 200


@pytest.fixture(scope="module")
def solved():
    """Solved problems of a task by its parameters: prompts and answers, tokens as lists without padding."""
    made = jax.jit(tokens.examples, static_argnums=2)

    def examples(name, **params):
        env = with_params(rlx.envs.make(name), params)
        whole, answers = (np.asarray(x) for x in made(env, jax.random.key(0), NUM))
        cut = lambda row: row[row > 0].tolist()
        return [
            (cut(row[: env.environment.prompt_size]), cut(answer)) for row, answer in zip(whole, answers, strict=True)
        ]

    return examples


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    assert len(rlx.envs.check(rlx.envs.make(name))) == len(CLAUSES)


@pytest.mark.parametrize(("name", "order"), [("Reverse", lambda x: x[::-1]), ("Sort", sorted)])
@pytest.mark.parametrize("length", [1, 5, 8])
def test_the_answer_is_the_prompt_in_another_order(solved, name, order, length):
    problems = solved(name, length=length, num_symbols=7)
    for prompt, answer in problems:
        assert len(prompt) == length
        assert answer == list(order(prompt))
    assert {token for prompt, _ in problems for token in prompt} == set(range(1, 8))


@pytest.mark.parametrize("modulus", [2, 23])
def test_the_answer_is_the_sum_of_the_prompt(solved, modulus):
    problems = solved("ModularAddition", modulus=modulus)
    for (a, b), (answer,) in problems:
        assert answer - 1 == (a - 1 + b - 1) % modulus
    assert {token for prompt, _ in problems for token in prompt} == set(range(1, modulus + 1))


# What `examples` gave for three keys before lengths could vary and grades be wrong.
DRAWN = {
    "Reverse": [
        [2, 2, 8, 8, 7, 5, 8, 8, 8, 8, 5, 7, 8, 8, 2, 2],
        [3, 3, 7, 6, 2, 8, 3, 1, 1, 3, 8, 2, 6, 7, 3, 3],
        [10, 5, 4, 6, 7, 3, 6, 5, 5, 6, 3, 7, 6, 4, 5, 10],
    ],
    "Sort": [
        [2, 2, 8, 8, 7, 5, 8, 8, 2, 2, 5, 7, 8, 8, 8, 8],
        [3, 3, 7, 6, 2, 8, 3, 1, 1, 2, 3, 3, 3, 6, 7, 8],
        [10, 5, 4, 6, 7, 3, 6, 5, 3, 4, 5, 5, 6, 6, 7, 10],
    ],
    "ModularAddition": [[14, 4, 17], [2, 20, 21], [22, 20, 18]],
    "Countdown": [
        [3, 9, 8, 0, 18, 3, 9, 101, 8, 101, 104, 0, 0],
        [9, 3, 4, 0, 19, 9, 3, 102, 4, 103, 104, 0, 0],
        [11, 10, 10, 0, 100, 11, 10, 103, 10, 101, 104, 0, 0],
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_problems_are_the_ones_that_they_were(name):
    np.testing.assert_array_equal(tokens.examples(rlx.envs.make(name), jax.random.key(0), 3)[0], DRAWN[name])


@pytest.mark.parametrize("length", [3, 8])
def test_symbols_are_one_draw_of_the_key_where_lengths_do_not_vary(length):
    env = with_params(rlx.envs.make("Reverse"), {"length": length})
    for key in jax.random.split(jax.random.key(7), 20):
        symbols = jax.random.randint(key, (8,), 0, 10)
        np.testing.assert_array_equal(env.reset(key).obs[:8], [*(symbols[:length] + 1), *[0] * (8 - length)])


@pytest.mark.parametrize(("name", "order"), [("Reverse", lambda x: x[::-1]), ("Sort", sorted)])
@pytest.mark.parametrize(("shortest", "length"), [(1, 8), (3, 5), (6, 4)])
def test_lengths_are_uniform_between_two(solved, name, order, shortest, length):
    problems = solved(name, length=length, min_length=shortest)
    assert all(answer == list(order(prompt)) for prompt, answer in problems)
    lengths = np.bincount([len(prompt) for prompt, _ in problems], minlength=9)
    least = min(shortest, length)
    num = length - least + 1
    expected = NUM / num * ((np.arange(9) >= least) & (np.arange(9) <= length))
    np.testing.assert_allclose(lengths, expected, atol=4 * np.sqrt(NUM / num * (1 - 1 / num)))
    assert not lengths[expected == 0].any()


def test_lengths_say_nothing_of_symbols():
    """A prompt is the start of the one that it would be without a shortest length."""
    whole, cut = (with_params(rlx.envs.make("Sort"), {"min_length": least}) for least in (0, 1))
    keys = jax.random.split(jax.random.key(1), 4000)
    long, short = (np.asarray(jax.vmap(env.reset)(keys).obs[:, :8]) for env in (whole, cut))
    np.testing.assert_array_equal(short, np.where(short > 0, long, 0))
    for place in (0, 3, 7):
        table = np.histogram2d((short > 0).sum(axis=1), long[:, place], (np.arange(1, 10), np.arange(1, 12)))[0]
        # Chi squared of 79 degrees of freedom, and five times its standard deviation of 12.6.
        assert ((table - 50) ** 2 / 50).sum() < 79 + 63


def value(tokens, numbers):
    """The value of a postfix expression, or None where it is none; plain Python."""
    stack, left = [], list(numbers)
    if END not in tokens:
        return None
    for token in tokens[: tokens.index(END)]:
        if 1 <= token <= NUMBERS:
            if token not in left:
                return None
            left.remove(token)
            stack.append(token - 1)
        elif PLUS <= token <= TIMES and len(stack) >= 2:
            b, a = stack.pop(), stack.pop()
            stack.append({PLUS: a + b, MINUS: a - b, TIMES: a * b}[token])
            if abs(stack[-1]) > 10**6:
                return None
        else:
            return None
    return stack[0] if len(stack) == 1 else None


@pytest.mark.parametrize("largest", [12, 99])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_countdown_can_be_solved(solved, count, largest):
    problems = solved("Countdown", count=count, largest=largest)
    for (*numbers, target), answer in problems:
        assert len(numbers) == count
        assert all(1 <= number - 1 <= min(largest, 50) for number in numbers)
        assert 0 <= target - 1 < NUMBERS
        assert value(answer, numbers) == target - 1
    operations = [token for _, answer in problems for token in answer if PLUS <= token <= TIMES]
    if largest == 12:
        assert np.bincount(operations)[PLUS : TIMES + 1].min() > 0.1 * len(operations)


def test_problems_are_no_larger_than_what_was_made(solved):
    assert solved("Reverse", length=50, num_symbols=50)[0] == solved("Reverse", length=8, num_symbols=10)[0]
    assert solved("ModularAddition", modulus=50) == solved("ModularAddition", modulus=23)
    assert solved("Countdown", count=9) == solved("Countdown", count=4)


def test_the_checker_of_countdown_is_an_interpreter_of_postfix():
    rng, size = np.random.default_rng(0), 6
    numbers = rng.integers(1, 5, size=(4000, 3))
    given = rng.choice([0, 1, 2, 3, 4, PLUS, MINUS, TIMES, END], size=(4000, size))
    given[:2000, :3] = numbers[:2000]  # many that are nearly right
    given[:2000, 3:5] = rng.choice([PLUS, MINUS, TIMES], size=(2000, 2))
    given[:1500, 5] = END
    given[1000:1500, 2:4] = given[1000:1500, 3:1:-1]
    found, valid = jax.jit(jax.vmap(sequences.evaluate_postfix))(jnp.asarray(given), jnp.asarray(numbers))
    expected = [value(tokens.tolist(), left.tolist()) for tokens, left in zip(given, numbers, strict=True)]
    np.testing.assert_array_equal(valid, [x is not None for x in expected])
    assert 1400 < valid.sum() < 2500
    np.testing.assert_array_equal(found[valid], [x for x in expected if x is not None])


def test_an_expression_without_its_end_is_none():
    given = jnp.array([5, 5, PLUS])
    assert not sequences.evaluate_postfix(given, jnp.array([5, 5]))[1]
    assert sequences.evaluate_postfix(jnp.append(given, END), jnp.array([5, 5])) == (8, True)


def test_large_values_are_no_expressions():
    given = jnp.array([100, 100, TIMES, 100, TIMES, 100, TIMES, END])  # 99^4 is above 10^6
    assert not sequences.evaluate_postfix(given, jnp.full(4, 100))[1]
    assert sequences.evaluate_postfix(jnp.array([100, 100, TIMES, END]), jnp.full(4, 100)) == (99**2, True)


@pytest.fixture(scope="module")
def play():
    """The rewards and ends of an episode in which the answer is given, with some tokens of it changed."""

    @jax.jit
    def run(env, key, change):
        state = env.reset(key)
        answer = state.state.answer

        def step(state, x):
            token, change = x
            action = (token - 1 + change) % env.action_space.n
            state, transition = env.advance(key, state, action)
            return state, (transition.reward, transition.terminated, transition.truncated)

        return jax.lax.scan(step, state, (answer, change))[1]

    return lambda name, change=(), **params: jax.tree.map(
        np.asarray,
        run(
            with_params(rlx.envs.make(name), params),
            jax.random.key(0),
            jnp.zeros(rlx.envs.make(name).environment.answer_size, jnp.int32).at[jnp.array(change, jnp.int32)].set(1),
        ),
    )


@pytest.mark.parametrize(
    ("name", "params", "length"),
    [
        ("Reverse", {"length": 5}, 5),
        ("Sort", {"length": 8}, 8),
        ("ModularAddition", {}, 1),
        ("Countdown", {"count": 3}, 6),
    ],
)
def test_the_reward_comes_with_the_last_token_and_is_one_for_a_right_answer(play, name, params, length):
    reward, terminated, truncated = play(name, **params)
    np.testing.assert_array_equal(reward[:length], np.arange(length) == length - 1)
    np.testing.assert_array_equal(terminated[:length], np.arange(length) == length - 1)
    assert not truncated.any()
    reward, terminated, _ = play(name, [0], **params)
    np.testing.assert_array_equal(reward[:length], 0)
    assert terminated[length - 1]


def test_part_of_the_reward_may_be_for_the_share_that_is_right(play):
    reward = play("Reverse", [1, 2], length=5, partial=0.4)[0]
    np.testing.assert_allclose(reward[:5], [0, 0, 0, 0, 0.4 * 3 / 5], rtol=1e-6)
    assert play("Reverse", [1, 2], length=8)[0][7] == 0
    assert play("Reverse", length=8, partial=0.4)[0][7] == 1


@pytest.fixture(scope="module")
def graded():
    """Rewards `[N, T]` and successes of episodes that give the answer, but for `change` in its first token."""

    @jax.jit
    def run(env, keys, change):
        def episode(key, change):
            start = env.reset(key)
            answer = start.state.answer.at[0].add(change)
            alive = jnp.cumsum(answer > 0) == jnp.arange(1, answer.size + 1)
            step = lambda state, token: env.advance(key, state, (token - 1) % env.action_space.n)
            traj = jax.lax.scan(step, start, answer)[1]
            return jnp.where(alive, traj.reward, 0.0), (alive & traj.info["success"]).any()

        return jax.vmap(episode)(keys, change)

    def graded(name, num, change=0, key=0, **params):
        env = with_params(rlx.envs.make(name), params)
        keys, change = jax.random.split(jax.random.key(key), num), jnp.broadcast_to(jnp.int32(change), num)
        return tuple(np.asarray(x) for x in run(env, keys, change))

    return graded


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [0, 1])
def test_a_share_of_the_grades_is_wrong_and_success_stays_the_truth(graded, name, change):
    num, noise = 2000, 0.2
    reward, success = graded(name, num, change, label_noise=noise)
    true, same = graded(name, num, change)
    np.testing.assert_array_equal(success, same)
    share = true.sum(axis=1) == 1
    np.testing.assert_array_equal(success, share)
    assert share.mean() == 1 if not change else share.mean() < 0.2
    assert set(reward.reshape(-1)) == {0.0, 1.0}
    assert reward.sum(axis=1).max() == 1  # only the end of an answer pays
    wrong = reward.sum(axis=1) != true.sum(axis=1)
    np.testing.assert_allclose(wrong.mean(), noise, atol=4 * np.sqrt(noise * (1 - noise) / num))
    np.testing.assert_array_equal(graded(name, num, change, label_noise=1.0)[0].sum(axis=1), 1 - true.sum(axis=1))


def test_the_same_answer_to_the_same_problem_gets_the_same_grade_and_others_their_own(graded):
    num, noise = 1000, 0.5
    first, again, other = (graded("Sort", num, change, label_noise=noise)[0].sum(axis=1) for change in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose((first == other).mean(), 0.5, atol=4 * 0.5 / np.sqrt(num))
    elsewhere = graded("Sort", num, 1, key=1, label_noise=noise)[0].sum(axis=1)
    np.testing.assert_allclose((first == elsewhere).mean(), 0.5, atol=4 * 0.5 / np.sqrt(num))


def test_members_of_a_group_are_graded_alike_whatever_else_is_drawn():
    """From clones of one start, with keys of their own."""
    env = with_params(rlx.envs.make("ModularAddition"), {"label_noise": 0.5})
    start = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 40))
    step = jax.jit(jax.vmap(lambda key, state: env.advance(key, state, jnp.int32(3))[1].reward))
    first, second = (np.asarray(step(jax.random.split(jax.random.key(key), 40), start)) for key in (1, 2))
    np.testing.assert_array_equal(first, second)
    assert 10 < first.sum() < 30


def test_a_grade_does_not_depend_on_who_wrote_the_answer():
    """The policy, token by token, or its beginning before the start."""
    env = with_params(rlx.envs.make("Sort"), {"label_noise": 0.5})
    start = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 40))
    ahead = start.state.tokens.at[:, 8:15].set(start.state.answer[:, :7])
    given = replace(start, state=replace(start.state, tokens=ahead, time=jnp.full(40, 7)))
    step = jax.jit(jax.vmap(lambda state, token: env.advance(jax.random.key(0), state, token - 1)))
    for token in start.state.answer.T:
        start, transition = step(start, token)
    np.testing.assert_array_equal(step(given, token)[1].reward, transition.reward)
    assert 10 < transition.reward.sum() < 30


def test_a_share_of_problems_is_never_paid_whatever_is_answered(graded):
    reward, success = graded("ModularAddition", 2000, 0, unpaid=0.25)
    assert success.all()
    share = 1 - reward.sum() / success.sum()
    np.testing.assert_allclose(share, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 2000))
    again = graded("ModularAddition", 2000, 0, unpaid=0.25)[0]
    np.testing.assert_array_equal(again, reward)


def test_noise_turns_a_part_of_the_reward_around(graded):
    reward = graded("Reverse", 100, 1, length=5, partial=0.5, label_noise=1.0)[0]
    parts = graded("Reverse", 100, 1, length=5, partial=0.5)[0]
    np.testing.assert_allclose(reward[:, 4], 1 - parts[:, 4], rtol=1e-6)
    np.testing.assert_allclose(parts[:, 4], 0.4, rtol=1e-6)


def test_all_expressions_are_listed_once():
    """As many as places of numbers, times orders of operations (Catalan numbers), times operations."""
    for count, num in ((1, 1), (2, 2 + 2 * 3), (3, 3 + 6 * 3 + 6 * 2 * 9)):
        found = sequences.candidates(count)
        assert found.shape == (len(np.unique(found, axis=0)), 2 * count) == (num, 2 * count)
        assert found.dtype == np.int32
        for row in found.tolist():
            ops = [token for token in row if PLUS <= token <= TIMES]
            places = [token for token in row if 1 <= token <= count]
            assert len(set(places)) == len(places) == len(ops) + 1
            assert row == row[: 2 * len(places)] + [0] * (2 * (count - len(places)))
            assert row[2 * len(places) - 1] == END


@cache
def every(num):
    """All that may be written of `num` symbols, from 0, before an end, up to five."""
    return [given for size in (1, 3, 5) for given in product(range(num), repeat=size)]


@pytest.mark.parametrize("max_count", [3, 4])
@pytest.mark.parametrize(
    ("numbers", "target"), [([3, 4, 2], 14), ([5, 5, 2], 10), ([2, 2, 2], 4), ([1, 1], 1), ([7, 3], 99), ([1, 2, 3], 6)]
)
def test_right_answers_are_all_that_a_search_finds(numbers, target, max_count):
    """Among all sequences of the numbers' tokens and operations; each of them is listed as right once."""
    held = [number + 1 for number in numbers]
    symbols = [*sorted(set(held)), PLUS, MINUS, TIMES]
    wanted = set()
    for given in every(len(symbols)):
        written = [*(symbols[i] for i in given), END]
        if value(written, held) == target:
            wanted.add((*written, *[0] * (2 * max_count - len(written))))
    prompt = jnp.array([*held, *[0] * (max_count - len(held)), target + 1])
    answers, right = (np.asarray(x) for x in jax.jit(sequences.right_answers)(prompt))
    assert answers.shape == (129, 2 * max_count)
    found = [tuple(row) for row in answers[right].tolist()]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert bool(wanted) == (target != 99)


def test_right_answers_are_those_that_are_paid():
    """All that are listed, to problems as they are drawn; and the right answer that the problem comes with is one."""
    env = with_params(rlx.envs.make("Countdown", max_count=3), {"largest": 4})
    keys = jax.random.split(jax.random.key(0), 20)

    @jax.jit
    @jax.vmap
    def paid(key):
        start = env.reset(key)
        answers, right = sequences.right_answers(start.obs[:4])

        def episode(answer):
            traj = jax.lax.scan(lambda s, token: env.advance(key, s, token - 1), start, answer)[1]
            return jnp.where(jnp.cumsum(traj.done) - traj.done == 0, traj.reward, 0.0).sum()

        own = (answers == start.state.answer).all(axis=-1)
        return answers, right, jax.vmap(episode)(answers), own

    answers, right, reward, own = (np.asarray(x) for x in paid(keys))
    assert (own & right).any(axis=1).all()
    for row, marked, got in zip(answers, right, reward, strict=True):
        assert {tuple(answer) for answer in row[got == 1].tolist()} == {
            tuple(answer) for answer in row[marked].tolist()
        }
        assert marked.sum() == len(np.unique(row[marked], axis=0))
    assert right.sum(axis=1).max() < (reward == 1).sum(axis=1).max()  # numbers that occur twice


@pytest.mark.parametrize(
    ("count", "message"),
    [(0, "listed for 1 to 3"), (4, "count = 4: answers are listed for 1 to 3"), (3, "has room for 2 numbers")],
)
def test_answers_that_cannot_be_listed_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        sequences.right_answers(jnp.array([3, 4, 12]), count)


def test_the_same_task_is_the_same_program():
    assert jax.tree.structure(rlx.envs.make("Sort")) == jax.tree.structure(rlx.envs.make("Sort"))
    assert jax.tree.structure(rlx.envs.make("Sort")) != jax.tree.structure(rlx.envs.make("Reverse"))


@pytest.mark.parametrize("options", [{"max_length": 0}, {"max_symbols": 1}, {"max_modulus": 1.5}, {"max_count": 1}])
def test_sizes_without_a_problem_are_refused(options):
    with pytest.raises(ValueError, match="give an integer of at least"):
        rlx.envs.make("Reverse", **options)
