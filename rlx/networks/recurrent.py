"""Memories: networks whose output depends on the observations before, as one step and as a whole sequence.

Axes: B sequences, L steps, H size of the memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlx.networks.torso import Module, Torso, is_separate

GATES = {"gru": 3, "lstm": 4, "mingru": 2}  # blocks of H numbers that a step computes from what it is given
CELLS = tuple(GATES)


def gru(kernel: jax.Array, x: jax.Array, h: jax.Array) -> jax.Array:
    """The next memory `[..., H]` of a gated recurrent unit; x `[..., 3 H]` is what the inputs contribute.

        r = sigmoid(x_r + U_r h),  z = sigmoid(x_z + U_z h),  n = tanh(x_n + r U_n h),  h' = (1 - z) n + z h

    Source: Cho et al. 2014, arXiv:1406.1078, with the reset after the product, as cuDNN has it.
    """
    size = h.shape[-1]
    u = h @ kernel
    r, z = jnp.split(jax.nn.sigmoid(x[..., : 2 * size] + u[..., : 2 * size]), 2, axis=-1)
    n = jnp.tanh(x[..., 2 * size :] + r * u[..., 2 * size :])
    return n + z * (h - n)


def lstm(kernel: jax.Array, x: jax.Array, memory: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The next memory of a long short-term memory, its cell and output `[..., H]`; x `[..., 4 H]`.

        i, f, o = sigmoid(x_{i,f,o} + U_{i,f,o} h),  g = tanh(x_g + U_g h),  c' = f c + i g,  h' = o tanh(c')

    Source: Hochreiter and Schmidhuber 1997, Neural Computation 9(8); the forget gate: Gers et al. 2000.
    """
    size = x.shape[-1] // 4
    gates = x + memory["hidden"] @ kernel
    i, f, o = jnp.split(jax.nn.sigmoid(gates[..., : 3 * size]), 3, axis=-1)
    cell = f * memory["cell"] + i * jnp.tanh(gates[..., 3 * size :])
    return {"cell": cell, "hidden": o * jnp.tanh(cell)}


def mingru(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Factor and addend of the next memory, `h' = a h + b` with `a = sigmoid(x_z)` and `b = (1 - a) x_n`.

    Neither depends on the memory, so that a sequence takes time logarithmic in its length on enough cores. Source:
    Feng et al. 2024, arXiv:2410.01201, equation 5 without the logarithms.
    """
    z, n = jnp.split(x, 2, axis=-1)
    keep = jax.nn.sigmoid(z)
    return keep, (1.0 - keep) * n


def empty_memory(cell: str, size: int, num: int) -> Any:
    """The memory of `num` episodes that begin: zeros, `[num, H]`."""
    zeros = lambda: jnp.zeros((num, size))
    return {"cell": zeros(), "hidden": zeros()} if cell == "lstm" else zeros()


class Kernel(Module):
    """One matrix."""

    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", nn.initializers.zeros, self.shape)


class Memory(Module):
    """What is remembered at an observation, `[..., H]`: a cell on top of a torso.

    The gate that keeps starts with biases `log(t)`, t uniform between 1 and `span` steps, so that memories fade at all
    paces up to that one. Source: Tallec and Ollivier 2018, arXiv:1804.11188, equation 16.
    """

    torso: Torso
    cell: str = "gru"
    size: int = 64
    span: int = 32

    @nn.compact
    def __call__(self, obs: Any, memory: Any, reset: jax.Array | None = None) -> tuple[jax.Array, Any]:
        """What is remembered, and the memory after that.

        Args:
            obs: `[B, ...]`; or, with `reset`, sequences `[B, L, ...]`.
            memory: of what was before, `[B, ...]`; see `empty_memory`.
            reset: bool `[B, L]`: True at steps before which the memory is emptied, as an episode has ended there.
        """
        if is_separate(self.torso):
            raise ValueError(
                "a memory has one network for all: leave separate out, or take an algorithm without a memory"
            )
        if self.cell not in GATES:
            raise ValueError(f"cell = {self.cell!r}: choose among {', '.join(GATES)}")
        x = nn.Dense(GATES[self.cell] * self.size, name="inputs", bias_init=self._biases)(self.torso(obs))
        if self.cell == "mingru":
            return _linear(x, memory, reset)
        kernel = Kernel((self.size, GATES[self.cell] * self.size), name="recurrent")()
        step = partial(gru if self.cell == "gru" else lstm, kernel)
        output = lambda memory: memory if self.cell == "gru" else memory["hidden"]
        if reset is None:
            memory = step(x, memory)
            return output(memory), memory
        return _scanned(step, output, x, memory, reset)

    def _biases(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """0, but for the gate that keeps: the second of GRU and LSTM, the first of minGRU."""
        times = jax.random.uniform(key, (self.size,), dtype, 1.0, max(self.span, 2))
        start = 0 if self.cell == "mingru" else self.size
        return jnp.zeros(shape, dtype).at[start : start + self.size].set(jnp.log(times))


def _scanned(step: Callable, output: Callable, x: Any, memory: Any, reset: jax.Array) -> tuple[jax.Array, Any]:
    """A sequence, one step after another."""

    def one(memory, inputs):
        x, reset = inputs
        memory = step(x, jax.tree.map(lambda m: jnp.where(reset[:, None], 0.0, m), memory))
        return memory, output(memory)

    memory, outputs = jax.lax.scan(one, memory, (jnp.swapaxes(x, 0, 1), reset.T))
    return jnp.swapaxes(outputs, 0, 1), memory


def _linear(x: jax.Array, memory: jax.Array, reset: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """A step, or a sequence by a parallel scan over compositions of linear maps."""
    keep, add = mingru(x)
    if reset is None:
        memory = keep * memory + add
        return memory, memory
    keep = jnp.where(reset[..., None], 0.0, keep)
    compose = lambda first, second: (first[0] * second[0], second[0] * first[1] + second[1])
    factor, addend = jax.lax.associative_scan(compose, (keep, add), axis=1)
    outputs = factor * memory[:, None] + addend
    return outputs, outputs[:, -1]


__all__ = ["CELLS", "GATES", "Kernel", "Memory", "empty_memory", "gru", "lstm", "mingru"]
