"""Sequence tasks: problems and their answers against plain Python, the checker of Countdown, rewards at the end."""

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


def test_the_same_task_is_the_same_program():
    assert jax.tree.structure(rlx.envs.make("Sort")) == jax.tree.structure(rlx.envs.make("Sort"))
    assert jax.tree.structure(rlx.envs.make("Sort")) != jax.tree.structure(rlx.envs.make("Reverse"))


@pytest.mark.parametrize("options", [{"max_length": 0}, {"max_symbols": 1}, {"max_modulus": 1.5}, {"max_count": 1}])
def test_sizes_without_a_problem_are_refused(options):
    with pytest.raises(ValueError, match="give an integer of at least"):
        rlx.envs.make("Reverse", **options)
