"""A policy as a program with named inputs and outputs: observations, memory and noise in, actions and memory out.

Random numbers are drawn outside: what a policy draws by a key is an input, uniform in [0, 1), so that a target needs no
generator of its own and gives the same actions for the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from rlx.agent import Agent
from rlx.deploy.flat import Flat
from rlx.spaces import parts


@dataclass(frozen=True)
class Port:
    """An input or an output: an array with an axis for the batch, which is the first but for some noise."""

    name: str
    shape: tuple[int, ...]  # without the batch
    dtype: Any
    axis: int = 0

    def of(self, batch: Any) -> tuple[Any, ...]:
        """Its shape in a batch of this size, which may be symbolic."""
        return (*self.shape[: self.axis], batch, *self.shape[self.axis :])

    def struct(self, batch: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype."""
        return jax.ShapeDtypeStruct(self.of(batch), self.dtype)


class Program:
    """The policy of an agent as a pure function of arrays in a fixed order.

        program = Program(rlx.load("runs/ppo"))
        outputs = program(*inputs)          # in the order of program.inputs and program.outputs

    Args:
        agent: whose policy it is.
        deterministic: take the most likely action. Policies of flows and diffusion begin with noise even then.

    Attributes:
        observations: inputs, those alone that actions depend on.
        memory: inputs, each of which is an output too.
        starts: their values where an episode begins.
        noise: inputs, to be drawn uniformly from [0, 1).
        actions: outputs.
        unused: names of what of an observation the policy does not look at.

    Raises:
        ValueError: for a policy that draws random numbers in another way than `jax.random` draws uniform ones.
    """

    def __init__(self, agent: Agent, deterministic: bool = True):
        self.agent, self.deterministic = agent, deterministic
        self.policy, start = agent.policy(deterministic)
        one = lambda s: jax.ShapeDtypeStruct((1, *s.shape), jax.dtypes.canonicalize_dtype(s.dtype))
        obs, memory = jax.tree.map(one, parts(agent.observation_space)), start(1)
        self.structures = jax.tree.structure(obs), jax.tree.structure(memory)
        self.seen, self.memory = ports("obs", obs), ports("memory", memory)
        self.starts = [np.asarray(x)[0] for x in jax.tree.leaves(memory)]
        action = jax.eval_shape(lambda *xs: self.policy(*xs)[0], obs, jax.random.key(0), memory)
        self.actions, self.structure = ports("action", action), jax.tree.structure(action)
        (batch,) = jax.export.symbolic_shape("b")
        flat = self.flat(batch)
        if flat.used[-1]:
            raise ValueError("the policy draws random numbers that are not made of uniform ones: it cannot be deployed")
        self.kept = flat.used[: len(self.seen)]
        self.observations = [port for port, kept in zip(self.seen, self.kept, strict=True) if kept]
        self.unused = [port.name for port, kept in zip(self.seen, self.kept, strict=True) if not kept]
        if not self.observations:
            raise ValueError("the policy looks at nothing of an observation: there is nothing to deploy")
        self.noise = []
        for i, var in enumerate(flat.noise):
            axes = [axis for axis, size in enumerate(var.aval.shape) if size is batch or not isinstance(size, int)]
            if len(axes) != 1 or str(var.aval.shape[axes[0]]) != str(batch):
                raise ValueError(f"the policy draws {list(var.aval.shape)} numbers for a batch of b, not some for each")
            shape = tuple(size for axis, size in enumerate(var.aval.shape) if axis != axes[0])
            self.noise.append(Port(f"noise.{i}", shape, var.aval.dtype, axes[0]))

    @property
    def inputs(self) -> list[Port]:
        """Observations, memory, noise."""
        return [*self.observations, *self.memory, *self.noise]

    @property
    def outputs(self) -> list[Port]:
        """Actions, memory."""
        return [*self.actions, *(replace(port, name=f"next_{port.name}") for port in self.memory)]

    @property
    def table(self) -> dict[str, dict[str, Any]]:
        """The inputs and outputs as plain values, as `rlx.deploy.runner.Policy` takes them."""
        kinds = {"observations": self.observations, "memory": self.memory, "noise": self.noise, "actions": self.actions}
        found: dict[str, dict[str, Any]] = {
            kind: {port.name: (tuple(map(int, port.shape)), np.dtype(port.dtype).name, port.axis) for port in ports}
            for kind, ports in kinds.items()
        }
        return found | {"starts": {p.name: x.tolist() for p, x in zip(self.memory, self.starts, strict=True)}}

    def __call__(self, *arrays: Any) -> list[Any]:
        """The outputs for inputs `[B, ...]`."""
        return self.function(arrays[0].shape[self.inputs[0].axis])(*arrays)

    def function(self, batch: Any) -> Callable[..., list[Any]]:
        """The outputs as a function of the inputs in batches of this size, which may be symbolic; traced already."""
        flat, num = self.flat(batch), len(self.observations)

        def function(*arrays: Any) -> list[Any]:
            given = iter(arrays[:num])
            blank = lambda port: jnp.zeros(port.of(batch), port.dtype)
            seen = [next(given) if kept else blank(p) for p, kept in zip(self.seen, self.kept, strict=True)]
            memory, noise = arrays[num : num + len(self.memory)], arrays[num + len(self.memory) :]
            key = np.zeros(2, np.uint32)  # of no use: what would be drawn by it is given
            return flat(*seen, *memory, key, *noise)

        return function

    def flat(self, batch: Any) -> Flat:
        """The operations for batches of this size, which may be symbolic; the inputs are all of an observation, memory,
        a key that nothing depends on, and noise."""
        structs = [port.struct(batch) for port in (*self.seen, *self.memory)]
        return Flat(self._function, [*structs, jax.ShapeDtypeStruct((2,), jnp.uint32)])

    def draw(self, key: jax.Array, batch: int) -> list[np.ndarray]:
        """The noise that the policy would draw by a key for a batch, `[B, ...]` each."""
        zeros = [jnp.zeros(port.of(batch), port.dtype) for port in (*self.seen, *self.memory)]
        return [np.asarray(x) for x in self.flat(batch).draw(*zeros, jax.random.key_data(key))]

    def _function(self, *arrays: Any) -> list[Any]:
        """The policy of a whole observation, memory and a key's two numbers."""
        num = len(self.seen)
        obs = jax.tree.unflatten(self.structures[0], arrays[:num])
        memory = jax.tree.unflatten(self.structures[1], arrays[num:-1])
        action, memory = self.policy(obs, jax.random.wrap_key_data(arrays[-1]), memory)
        return [*jax.tree.leaves(action), *jax.tree.leaves(memory)]


def ports(name: str, tree: Any) -> list[Port]:
    """A port for each leaf `[B, ...]` of a tree, with the names of its entries after `name`."""
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        keys = jax.tree_util.keystr(path, simple=True, separator=".")
        found.append(Port(f"{name}.{keys}" if keys else name, tuple(np.shape(x))[1:], jnp.result_type(x)))
    return found
