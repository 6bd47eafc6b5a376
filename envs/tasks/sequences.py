"""Tasks on sequences whose answers can be checked: an action is a token, and the reward comes with the last.

An observation, as `rlx.tokens` has it, is the prompt and what has been answered so far, padded with 0. Token `i + 1` is
the symbol or number i; in Countdown the last four are `+`, `-`, `*` and the end of the answer. How hard a problem is
are parameters, up to sizes that `make` fixes. `label_noise` is the probability that a grade g is paid as `1 - g`.
Which answers these are belongs to the draw of a problem: members of a group get the same for the same answer. `unpaid`
is the share of problems for which nothing is ever paid.

- Reverse: the prompt's symbols from the last to the first.
- Sort: the prompt's symbols in order.
- ModularAddition: `(a + b) mod m` of the two numbers of the prompt, one token.
- Countdown: an expression in postfix notation (`3 4 + 2 *`) of the prompt's first numbers, each at most once, whose
  value is the prompt's last. Every problem has a solution.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.pytree import pytree, static
from rlx.spaces import Discrete

NUMBERS = 100  # of Countdown: 0 to 99, which have the tokens 1 to 100
PLUS, MINUS, TIMES, END = range(NUMBERS + 1, NUMBERS + 5)
LISTED = 3  # numbers of Countdown, up to which answers are listed
# What a problem's key is folded with for draws beside its symbols; `jax.random.split` gives what small numbers would.
LENGTH, NOISE = 0x6C656E67, 0x6E6F6973


@pytree
class Copying:
    """Parameters of Reverse and Sort."""

    length: int = 8  # symbols of a prompt
    num_symbols: int = 10
    partial: float = 0.0  # of the reward of 1: the part for the share of tokens that are right, if not all are
    min_length: int = 0  # of a prompt, whose length is uniform from here to `length`; 0: they all have that length
    label_noise: float = 0.0
    unpaid: float = 0.0


@pytree
class Adding:
    """Parameters of ModularAddition."""

    modulus: int = 23
    label_noise: float = 0.0
    unpaid: float = 0.0


@pytree
class Counting:
    """Parameters of Countdown."""

    count: int = 3  # numbers of a prompt
    largest: int = 10  # and from 1 to which, 50 at most
    label_noise: float = 0.0
    unpaid: float = 0.0


@pytree
class State:
    tokens: jax.Array  # int32 [P + A], the observation
    answer: jax.Array  # int32 [A], one that is right
    time: jax.Array  # int32
    noise: jax.Array  # uint32, decides which answers get a wrong grade


@pytree
class Sequences:
    """A task, by `problem(key, params) -> prompt [P], answer [A]` and `grade(prompt, given [A], answer, params)`."""

    differentiable = False
    reply_size = 0
    default_params: Any
    problem: Callable = static()
    grade: Callable = static()
    vocabulary: int = static(2)  # with 0
    prompt_size: int = static(1)
    answer_size: int = static(1)
    end: int = static(0, at_least=0)  # the token that ends an answer, beside its length; 0 where none does

    def observation_space(self, params):
        return Discrete(self.vocabulary, shape=(self.prompt_size + self.answer_size,))

    def action_space(self, params):
        return Discrete(self.vocabulary - 1)

    def reset(self, key, params):
        prompt, answer = self.problem(key, params)
        tokens = jnp.concatenate([prompt, jnp.zeros(self.answer_size, jnp.int32)])
        noise = jax.random.bits(jax.random.fold_in(key, NOISE), (), jnp.uint32)
        return tokens, State(tokens, answer, jnp.int32(0), noise)

    def solved(self, key, params):
        """The observation after the whole right answer of a random problem."""
        return jnp.concatenate(self.problem(key, params))

    def right_answer(self, state, params):
        """An answer that is right, tokens `[A]`."""
        return state.answer

    def step(self, key, state, action, params):
        token = jnp.int32(action) + 1
        tokens = state.tokens.at[self.prompt_size + state.time].set(token)
        length = self.answer_size if self.end else (state.answer > 0).sum()
        done = (state.time + 1 >= length) | (token == self.end)
        prompt, given = tokens[: self.prompt_size], tokens[self.prompt_size :]
        grade = self.grade(prompt, given, state.answer, params)
        success = done & (grade == 1.0)
        grade = jnp.where(_chance(state.noise, given) < params.label_noise, 1.0 - grade, grade)
        grade = jnp.where(_chance(state.noise, jnp.zeros_like(given)) < params.unpaid, 0.0, grade)
        state = State(tokens, state.answer, state.time + 1, state.noise)
        return tokens, state, done * grade, done, jnp.array(False), {"success": success}


def _chance(noise, given):
    """A number in [0, 1) that belongs to an answer `[A]` under this noise: a hash, as it is needed at every step.

    Source: the last mixing of 32 bits in MurmurHash3, by Appleby.
    """
    factors = np.array([pow(0x9E3779B1, i, 2**32) for i in range(1, given.size + 1)], np.uint32)
    bits = noise ^ (given.astype(jnp.uint32) * factors).sum(dtype=jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    return ((bits ^ (bits >> 16)) >> 8) / np.float32(2**24)


def _symbols(key, size, length, num_symbols):
    """Random symbols' tokens `[size]`, padded."""
    symbols = jax.random.randint(key, (size,), 0, num_symbols)
    return jnp.where(jnp.arange(size) < length, symbols + 1, 0)


def _exact(prompt, given, answer, params):
    """1 where the whole answer is right, else the share that is, times `partial`."""
    wanted = answer > 0
    right = jnp.where(wanted, given == answer, True)
    return jnp.where(right.all(), 1.0, params.partial * (right & wanted).sum() / jnp.maximum(wanted.sum(), 1))


@cache  # functions are static: made anew, they would be another program
def _copying(order: Callable, max_length: int, max_symbols: int) -> Env:
    def problem(key, params):
        longest = jnp.minimum(params.length, max_length)
        shortest = jnp.where(params.min_length > 0, jnp.minimum(params.min_length, longest), longest)
        length = jax.random.randint(jax.random.fold_in(key, LENGTH), (), shortest, longest + 1)
        prompt = _symbols(key, max_length, length, jnp.minimum(params.num_symbols, max_symbols))
        return prompt, order(prompt, length)

    sizes = {"vocabulary": max_symbols + 1, "prompt_size": max_length, "answer_size": max_length}
    params = Copying(min(8, max_length), min(10, max_symbols))
    return Env(Sequences(params, problem, _exact, **sizes), params, max_steps=max_length)


def _reversed(prompt: jax.Array, length: jax.Array) -> jax.Array:
    place = length - 1 - jnp.arange(prompt.size)
    return jnp.where(place >= 0, prompt[place], 0)


def _sorted(prompt: jax.Array, length: jax.Array) -> jax.Array:
    in_order = jnp.sort(jnp.where(prompt > 0, prompt, jnp.iinfo(jnp.int32).max))
    return jnp.where(jnp.arange(prompt.size) < length, in_order, 0)


@cache
def _added(max_modulus: int) -> Env:
    def problem(key, params):
        modulus = jnp.minimum(params.modulus, max_modulus)
        terms = jax.random.randint(key, (2,), 0, modulus)
        return terms + 1, (terms.sum() % modulus + 1)[None]

    right = lambda prompt, given, answer, params: jnp.float32((given == answer).all())
    params = Adding(min(23, max_modulus))
    sizes = {"vocabulary": max_modulus + 1, "prompt_size": 2, "answer_size": 1}
    return Env(Sequences(params, problem, right, **sizes), params, max_steps=1)


@cache
def _countdown(max_count: int) -> Env:
    size = 2 * max_count  # as many numbers, operations between them, and the end

    def problem(key, params):
        """Random numbers, each combined with the value so far by an operation whose result is between 0 and 99."""
        number_key, operation_key = jax.random.split(key)
        count, largest = jnp.minimum(params.count, max_count), jnp.minimum(params.largest, NUMBERS // 2)
        numbers = jax.random.randint(number_key, (max_count,), 1, largest + 1)
        choices = jax.random.randint(operation_key, (max_count,), 0, 3)
        value, answer = numbers[0], jnp.zeros(size, jnp.int32).at[0].set(numbers[0] + 1)
        for i in range(1, max_count):
            number = numbers[i]
            results = jnp.stack([value + number, value - number, value * number])
            allowed = (results >= 0) & (results < NUMBERS)
            # A sum that is too large leaves a difference that is not negative: no number exceeds 50.
            order = (choices[i] + jnp.arange(3)) % 3
            choice = order[jnp.argmax(allowed[order])]
            used = i < count
            value = jnp.where(used, results[choice], value)
            pair = jnp.where(used, jnp.stack([number + 1, PLUS + choice]), 0)
            answer = jax.lax.dynamic_update_slice(answer, pair.astype(jnp.int32), (2 * i - 1,))
        answer = answer.at[2 * count - 1].set(END)
        shown = jnp.where(jnp.arange(max_count) < count, numbers + 1, 0)
        return jnp.append(shown, value + 1).astype(jnp.int32), answer

    def grade(prompt, given, answer, params):
        value, valid = evaluate_postfix(given, prompt[:-1])
        return jnp.float32(valid & (value == prompt[-1] - 1))

    params = Counting(min(3, max_count))
    sizes = {"vocabulary": END + 1, "prompt_size": max_count + 1, "answer_size": size, "end": END}
    return Env(Sequences(params, problem, grade, **sizes), params, max_steps=size)


def evaluate_postfix(given: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The value of an expression of Countdown, tokens `[A]`, and whether it is one.

    It is one if it ends with END, every operation has its two operands, a single value is left, no value on the way
    exceeds 10^6 in size, and it uses no number more often than `numbers` (tokens, 0 for none) has it.
    """
    size = given.size

    def step(carry, token):
        stack, height, left, valid, ended = carry
        number, operation = (token >= 1) & (token <= NUMBERS), (token >= PLUS) & (token <= TIMES)
        places = (left == token) & number
        left = left.at[jnp.argmax(places)].set(jnp.where(places.any() & ~ended, 0, left[jnp.argmax(places)]))
        a, b = stack[jnp.maximum(height - 2, 0)], stack[jnp.maximum(height - 1, 0)]
        result = jnp.select([token == PLUS, token == MINUS, token == TIMES], [a + b, a - b, a * b], token - 1)
        sound = jnp.where(number, places.any(), operation & (height >= 2)) & (jnp.abs(result) <= 10**6)
        place = jnp.where(number, height, jnp.maximum(height - 2, 0))
        active = ~ended & (token != END)
        stack = jnp.where(active & (jnp.arange(size) == place), result, stack)
        height = jnp.where(active, jnp.where(number, height + 1, jnp.maximum(height - 1, 0)), height)
        return (stack, height, left, valid & (sound | ~active), ended | (token == END)), None

    start = (jnp.zeros(size, jnp.int32), jnp.int32(0), numbers, jnp.bool_(True), jnp.bool_(False))
    (stack, height, _, valid, ended), _ = jax.lax.scan(step, start, given)
    return stack[0], valid & ended & (height == 1)


def candidates(count: int) -> np.ndarray:
    """All expressions over some of `count` numbers in postfix notation, int32 `[C, 2 count]`, padded with 0.

    A number is given by its place in the prompt, from 1; each is used once at most. Operations and the end are tokens.
    There are 1, 8 and 129 for 1, 2 and 3 numbers.

    Raises:
        ValueError: for less than 1 and more than 3 numbers.
    """
    if not 1 <= count <= LISTED:
        raise ValueError(f"count = {count}: answers are listed for 1 to {LISTED} numbers")

    def endings(tokens, left, height):
        found = [(*tokens, END)] if height == 1 else []
        for number in left:
            found += endings((*tokens, number), left - {number}, height + 1)
        for operation in (PLUS, MINUS, TIMES) if height > 1 else ():
            found += endings((*tokens, operation), left, height - 1)
        return found

    rows = endings((), frozenset(range(1, count + 1)), 0)
    return np.array([row + (0,) * (2 * count - len(row)) for row in rows], np.int32)


def right_answers(prompt: jax.Array, count: int = LISTED) -> tuple[jax.Array, jax.Array]:
    """Answers to a problem of Countdown and which of them are right: tokens `[C, A]` and bool `[C]`.

    All right answers of the first `count` numbers are marked, each of them once: where a number occurs twice, the
    second of two answers of the same tokens is not. The probability of a right answer is then a sum over the marked.

    Args:
        prompt: tokens `[P]` of the numbers, 0 for none, and of the value.
        count: how many of the numbers are used.

    Raises:
        ValueError: for less than 1 and more than 3 numbers, or more than the prompt has room for.
    """
    places, room = candidates(count), prompt.size - 1
    if count > room:
        raise ValueError(f"count = {count}: the prompt has room for {room} numbers")
    places = np.pad(places, [(0, 0), (0, 2 * (room - count))])
    answers = jnp.where((places > 0) & (places <= count), prompt[np.clip(places - 1, 0, count - 1)], places)
    value, valid = jax.vmap(evaluate_postfix, (0, None))(answers, prompt[:-1])
    same = (answers[:, None] == answers).all(axis=-1)
    return answers, valid & (value == prompt[-1] - 1) & ~jnp.tril(same, -1).any(axis=-1)


def make(name: str, max_length: int = 8, max_symbols: int = 10, max_modulus: int = 23, max_count: int = 4) -> Env:
    """Reverse and Sort take `max_length` and `max_symbols`, ModularAddition `max_modulus`, Countdown `max_count`.

    Raises:
        ValueError: a size without a problem of its kind.
    """
    least = {"max_length": (max_length, 1), "max_symbols": (max_symbols, 2), "max_modulus": (max_modulus, 2)}
    for size, (value, bound) in (least | {"max_count": (max_count, 2)}).items():
        if type(value) is not int or value < bound:
            raise ValueError(f"{size} = {value!r}: give an integer of at least {bound}")
    if name == "Reverse":
        return _copying(_reversed, max_length, max_symbols)
    if name == "Sort":
        return _copying(_sorted, max_length, max_symbols)
    return _added(max_modulus) if name == "ModularAddition" else _countdown(max_count)
