"""Tasks in several turns: an action is a token, and the environment replies to each with another.

An observation, as `rlx.tokens` has it, is the prompt and after it, turn by turn, the token that was written and the
reply, 0 where there is none: with `reply_size` = 1 the token of turn t is at place `prompt_size + 2 t`. Numbers come
first among the tokens, those of replies and calls last.

| | Guess | Calculator |
|---|---|---|
| prompt | n, for a hidden number of 1 to n | two numbers below the modulus m |
| tokens | number i is token i; `lower`, `higher`, `right` | number i is token i + 1; `call` |
| a turn | a number; the reply says where the hidden one is | `call`, to which a number is replied; a number ends it |
| ends | with the hidden number, or after `turns` | with anything but `call`, or after `max_calls + 1` tokens |
| reward at the end | `1 - cost (guesses - 1)`, 0 without success | 1 for `(a + b) mod m`; `cost` a call is taken off |
| `info` | `success`, `place` | `success`, `calls` |

A token that is no number is a wrong guess, and a wrong answer. Best play of Guess halves what is left; its value is
`best_value`. `info["place"]` is the key of the numbers that were possible when the guess was made: there is one for
each first and last of them, whatever was guessed before and in how many turns.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, GREY, INK, WARM, drawn_by
from rlx.pytree import pytree, static
from rlx.spaces import Discrete

PATH = 0x70617468  # what a problem's key is folded with to draw a way to solve it


def draw(axes, env_state, params):
    """Guess: all numbers, those that are possible, the hidden one, and the guesses below."""
    state, num = env_state.state, int(params.largest)
    axes.set_aspect("auto")
    axes.set(xlim=(0, num + 1), ylim=(-1, 1))
    numbers, guesses = np.arange(1, num + 1), np.asarray(env_state.obs)[1::2]
    possible = (numbers >= state.low) & (numbers <= state.high)
    for shown, color in ((~possible, GREY), (possible, COOL)):
        axes.plot(numbers[shown], np.zeros(shown.sum()), "s", color=color, ms=7)
    axes.plot(int(state.hidden), 0.3, "v", color=WARM, ms=10)
    guesses = guesses[guesses > 0]
    axes.plot(
        np.minimum(guesses, num + 0.5),
        -0.2 - 0.7 * np.arange(len(guesses)) / max(len(guesses), 8),
        "^",
        color=INK,
        ms=7,
    )


@pytree
class GuessParams:
    """Parameters of Guess."""

    largest: int = 16  # n, at least 1
    turns: int = 8  # at most
    cost: float = 0.05  # of each guess but the first
    halving: float = 1.0  # of solved problems: the share of guesses in the middle; the others are any that is possible


@pytree
class GuessState:
    tokens: jax.Array  # int32 [L], the observation
    hidden: jax.Array  # int32
    low: jax.Array  # int32, the least number that is possible
    high: jax.Array  # int32, and the largest
    time: jax.Array  # int32


class Turns:
    """What the two have in common: sizes and spaces, of `num_tokens` tokens and `num_steps` turns."""

    differentiable = False
    reply_size = 1
    prompt_size: Any
    num_tokens: Any
    num_steps: Any

    def observation_space(self, params):
        return Discrete(self.num_tokens + 1, shape=(self.prompt_size + 2 * self.num_steps,))

    def action_space(self, params):
        return Discrete(self.num_tokens)

    def start(self, prompt):
        """An observation of nothing but the prompt, int32 `[P]`."""
        return jnp.concatenate([prompt, jnp.zeros(2 * self.num_steps, jnp.int32)])

    def written(self, tokens, time, token, reply):
        """The observation with a turn more."""
        place = self.prompt_size + 2 * time
        return tokens.at[place].set(token).at[place + 1].set(reply)


@pytree
class Guess(Turns):
    """A hidden number is to be found by questions that each cost something."""

    frames = drawn_by(draw)
    prompt_size = 1
    size: int = static(16)
    max_turns: int = static(8)

    @property
    def default_params(self):
        return GuessParams(self.size, self.max_turns)

    @property
    def num_tokens(self):
        return self.size + 3

    @property
    def num_steps(self):
        return self.max_turns

    @property
    def lower(self) -> int:
        """The reply where the hidden number is below the guess."""
        return self.size + 1

    @property
    def higher(self) -> int:
        """The reply where the hidden number is above the guess."""
        return self.size + 2

    @property
    def right(self) -> int:
        """The reply where the hidden number is the guess."""
        return self.size + 3

    def place(self, state):
        """The key of the numbers that are possible, int32, below the square of `size`."""
        return (state.low - 1) * self.size + state.high - 1

    def reset(self, key, params):
        largest = jnp.minimum(params.largest, self.size).astype(jnp.int32)
        hidden = jax.random.randint(key, (), 1, largest + 1, jnp.int32)
        tokens = self.start(largest[None])
        return tokens, GuessState(tokens, hidden, jnp.int32(1), largest, jnp.int32(0))

    def step(self, key, state, action, params):
        guess = jnp.int32(action) + 1  # tokens that are no numbers are as numbers above all others
        right, below = guess == state.hidden, guess < state.hidden
        reply = jnp.where(right, self.right, jnp.where(below, self.higher, self.lower))
        tokens = self.written(state.tokens, state.time, guess, reply)
        low = jnp.where(guess <= state.hidden, jnp.maximum(state.low, guess + ~right), state.low)
        high = jnp.where(guess >= state.hidden, jnp.minimum(state.high, guess - ~right), state.high)
        info = {"success": right, "place": self.place(state)}
        reward = right * (1.0 - params.cost * state.time)
        state = GuessState(tokens, state.hidden, low, high, state.time + 1)
        done = right | (state.time >= self._limit(params))
        return tokens, state, reward, done, jnp.array(False), info

    def solved(self, key, params):
        """The observation after an episode that finds a random number, at the latest in the last turn.

        With the probability `halving` a guess is the middle of what is possible, else any of it.
        """
        state = self.reset(key, params)[1]
        return self._found(state, params, jax.random.fold_in(key, PATH), params.halving).tokens

    def right_answer(self, state, params):
        """What a player writes from a start who halves what is possible, tokens `[max_turns]`, 0 after the end."""
        return self._found(state, params, jax.random.key(0), 1.0).tokens[self.prompt_size :: 2]

    def _found(self, state, params, key, halving):
        """The state in which the number is found."""

        def turn(carry, key):
            state, done = carry
            halves_key, number_key = jax.random.split(key)
            anywhere = jax.random.randint(number_key, (), state.low, state.high + 1, jnp.int32)
            guess = jnp.where(jax.random.bernoulli(halves_key, halving), (state.low + state.high) // 2, anywhere)
            guess = jnp.where(state.time + 1 >= self._limit(params), state.hidden, guess)
            _, stepped, _, ended, _, _ = self.step(key, state, guess - 1, params)
            return jax.tree.map(lambda old, new: jnp.where(done, old, new), (state, done), (stepped, ended)), None

        return jax.lax.scan(turn, (state, jnp.array(False)), jax.random.split(key, self.max_turns))[0][0]

    def _limit(self, params):
        return jnp.minimum(params.turns, self.max_turns)


def best_value(largest: int, turns: int, cost: float) -> float:
    """The mean return of best play of Guess, the sum over `k < turns` of `c_k max(1 - k cost, 0) / n`.

    Halving finds `c_k = min(2^k, n - c_0 - ... - c_{k-1})` of the n numbers by its guess k + 1, and no play finds more
    of them by then.
    """
    left, total = largest, 0.0
    for k in range(turns):
        found = min(2**k, left)
        left, total = left - found, total + found * max(1.0 - k * cost, 0.0)
    return total / largest


@pytree
class CalculatorParams:
    """Parameters of Calculator."""

    modulus: int = 23  # at least 2
    cost: float = 0.1  # of a call
    cost_always: bool = False  # whether calls before a wrong answer cost too
    tool_noise: float = 0.0  # the probability that a reply is another number, each of them alike


@pytree
class CalculatorState:
    tokens: jax.Array  # int32 [L], the observation
    time: jax.Array  # int32, which is the number of calls


@pytree
class Calculator(Turns):
    """A sum that may be asked for, at a cost."""

    prompt_size = 2
    max_modulus: int = static(23)
    max_calls: int = static(3, at_least=0)

    @property
    def default_params(self):
        return CalculatorParams(self.max_modulus)

    @property
    def num_tokens(self):
        return self.max_modulus + 1

    @property
    def num_steps(self):
        return self.max_calls + 1

    @property
    def call(self) -> int:
        """The token of a call."""
        return self.max_modulus + 1

    def reset(self, key, params):
        terms = jax.random.randint(key, (2,), 0, self._modulus(params), jnp.int32)
        tokens = self.start(terms + 1)
        return tokens, CalculatorState(tokens, jnp.int32(0))

    def step(self, key, state, action, params):
        token, answer = jnp.int32(action) + 1, self._answer(state.tokens, params)
        called = (token == self.call) & (state.time < self.max_calls)
        right = token == answer + 1
        noise_key, number_key = jax.random.split(key)
        modulus = self._modulus(params)
        wrong = (answer + jax.random.randint(number_key, (), 1, modulus, jnp.int32)) % modulus
        result = jnp.where(jax.random.bernoulli(noise_key, params.tool_noise), wrong, answer)
        tokens = self.written(state.tokens, state.time, token, jnp.where(called, result + 1, 0))
        reward = ~called * (right - params.cost * state.time * (right | params.cost_always))
        info = {"success": right, "calls": jnp.float32(called)}
        return tokens, CalculatorState(tokens, state.time + 1), reward, ~called, jnp.array(False), info

    def solved(self, key, params):
        """The observation after one call, where one may be made, its right reply, and the answer."""
        tokens = self.reset(key, params)[0]
        answer = self._answer(tokens, params) + 1
        calls = min(1, self.max_calls)
        if calls:
            tokens = self.written(tokens, 0, self.call, answer)
        return self.written(tokens, calls, answer, 0)

    def right_answer(self, state, params):
        """What is written in a solved problem, tokens `[max_calls + 1]`: a call where one may be made, and the sum."""
        calls = min(1, self.max_calls)
        written = jnp.zeros(self.num_steps, jnp.int32).at[0].set(self.call)
        return written.at[calls].set(self._answer(state.tokens, params) + 1)

    def _modulus(self, params):
        return jnp.minimum(params.modulus, self.max_modulus).astype(jnp.int32)

    def _answer(self, tokens, params):
        return (tokens[0] + tokens[1] - 2) % self._modulus(params)


def make(name: str, size: int = 16, max_turns: int = 8, max_modulus: int = 23, max_calls: int = 3) -> Env:
    """Guess takes `size`, the largest n, and `max_turns`; Calculator takes `max_modulus` and `max_calls`.

    Raises:
        ValueError: a size without a problem of its kind.
    """
    least: dict[str, Any] = {"size": (size, 1), "max_turns": (max_turns, 1), "max_modulus": (max_modulus, 2)}
    for option, (value, bound) in (least | {"max_calls": (max_calls, 0)}).items():
        if type(value) is not int or value < bound:
            raise ValueError(f"{option} = {value!r}: give an integer of at least {bound}")
    environment = Guess(size, max_turns) if name == "Guess" else Calculator(max_modulus, max_calls)
    return Env(environment, environment.default_params, max_steps=environment.num_steps)
