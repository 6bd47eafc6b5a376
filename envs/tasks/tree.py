"""Trees: D choices among A branches, one after another, and leaves of which some are right.

An observation, as `rlx.tokens` has it, is the number of the tree in base A and the branches that were taken; digit and
branch i are token i + 1. The reward is 1 at a right leaf, else 0. Which leaves are right is in `params`.

Nodes are the prefixes of answers. They are numbered level by level from the root, 0: node i is followed by the nodes
`A i + 1, ..., A i + A`. `M = (A^D - 1) / (A - 1)` of them come before the leaves, of which there are `A^D`.
`info["place"]` is the node that a branch was taken at. Where a policy is a table `[M, A]`, values are exact:
`exact_values`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, GREY, WARM, matplotlib_frames
from rlx.pytree import pytree, static
from rlx.spaces import Discrete

LARGEST = 2**20  # leaves of all trees together


@pytree
class Params:
    leaves: (
        jax.Array | np.ndarray
    )  # bool [number of trees, A^D], which are right; each tree needs one to have solved problems


@pytree
class State:
    tokens: jax.Array  # int32 [P + D], the observation
    tree: jax.Array  # int32
    node: jax.Array  # int32
    time: jax.Array  # int32


@pytree
class Tree:
    """`num_trees` trees, of whose leaves a `share` is right, at random places that `seed` draws, but at least one."""

    differentiable = False
    reply_size = 0
    depth: int = static(6)
    arity: int = static(3, at_least=2)
    num_trees: int = static(3)
    share: float = static(0.05)
    seed: int = static(0, at_least=0)

    @property
    def default_params(self):
        num_leaves = self.arity**self.depth
        leaves = np.zeros((self.num_trees, num_leaves), bool)
        for tree, row in enumerate(leaves):
            row[: max(1, round(self.share * num_leaves))] = True
            np.random.default_rng((self.seed, tree)).shuffle(row)
        return Params(leaves)

    @property
    def prompt_size(self) -> int:
        """Digits that the number of a tree needs."""
        return next(size for size in range(1, LARGEST) if self.arity**size >= self.num_trees)

    def observation_space(self, params):
        return Discrete(self.arity + 1, shape=(self.prompt_size + self.depth,))

    def action_space(self, params):
        return Discrete(self.arity)

    def place(self, state):
        """The number of the node that the state is at, int32."""
        return state.node

    def reset(self, key, params):
        tree = jax.random.randint(key, (), 0, self.num_trees, jnp.int32)
        tokens = jnp.concatenate([self._digits(tree, self.prompt_size), jnp.zeros(self.depth, jnp.int32)])
        return tokens, State(tokens, tree, jnp.int32(0), jnp.int32(0))

    def step(self, key, state, action, params):
        branch, info = jnp.int32(action), {"place": self.place(state)}
        tokens = state.tokens.at[self.prompt_size + state.time].set(branch + 1)
        state = State(tokens, state.tree, self.arity * state.node + 1 + branch, state.time + 1)
        done = state.time >= self.depth
        leaf = state.node - (self.arity**self.depth - 1) // (self.arity - 1)
        right = done & jnp.asarray(params.leaves)[state.tree, leaf]
        return tokens, state, jnp.float32(right), done, jnp.array(False), info | {"success": right}

    def solved(self, key, params):
        """The observation at a random right leaf of a random tree."""
        state = self.reset(key, params)[1]
        right = jnp.where(jnp.asarray(params.leaves)[state.tree], 0.0, -jnp.inf)
        leaf = jax.random.categorical(jax.random.fold_in(key, self.depth), right)
        return state.tokens.at[self.prompt_size :].set(self._digits(leaf, self.depth))

    def right_answer(self, state, params):
        """The branches to the first right leaf of the tree, tokens `[D]`."""
        return self._digits(jnp.argmax(jnp.asarray(params.leaves)[state.tree]), self.depth)

    def frames(self, env_states, params, width, height, camera):
        """Pictures of the levels, the right leaves and the way so far, see `rlx.run.render`."""

        def draw(axes, env_state):
            across = lambda level, index: (np.asarray(index) + 0.5) / self.arity**level
            axes.set_aspect("auto")
            axes.set(xlim=(0, 1), ylim=(-self.depth - 0.5, 0.5))
            for level in range(self.depth + 1):
                axes.plot(across(level, [0, self.arity**level - 1]), [-level, -level], color=GREY, lw=2)
            right = np.flatnonzero(np.asarray(params.leaves)[int(env_state.state.tree)])
            axes.plot(across(self.depth, right), np.full(right.size, -self.depth), "o", color=WARM, ms=5)
            way = [0]
            for branch in np.asarray(env_state.obs)[self.prompt_size :][: int(env_state.state.time)]:
                way.append(self.arity * way[-1] + int(branch) - 1)
            places = [across(level, index) for level, index in enumerate(way)]
            axes.plot(places, -np.arange(len(way)), "o-", color=COOL, lw=3, ms=8)

        return matplotlib_frames(draw, env_states, width, height)

    def _digits(self, number, size):
        """Tokens `[size]` of the digits of a number in base A."""
        return number.astype(jnp.int32) // self.arity ** np.arange(size - 1, -1, -1, dtype=np.int32) % self.arity + 1


def prefixes(depth: int, arity: int) -> np.ndarray:
    """The branches that lead to every node, as tokens, int32 `[M + A^D, D]`, padded with 0; the leaves come last.

    Behind a prompt they are the observations at the nodes, by which any policy can be written as a table.
    """
    levels = []
    for level in range(depth + 1):
        digits = np.arange(arity**level)[:, None] // arity ** np.arange(level - 1, -1, -1) % arity + 1
        levels.append(np.pad(digits, [(0, 0), (0, depth - level)]))
    return np.concatenate(levels).astype(np.int32)


def exact_values(leaves: jax.Array, probabilities: jax.Array) -> jax.Array:
    """The expected reward from every node on, float32 `[..., M + A^D]`: `V(i) = sum_a pi(a | i) V(A i + 1 + a)`.

    The value of a leaf is its reward; the first is that of the root. Gradients are exact, too.

    Args:
        leaves: rewards `[..., A^D]`, bools or numbers.
        probabilities: of each branch at each node, `[..., M, A]`.

    Raises:
        ValueError: where the sizes are not those of one tree.
    """
    *_, num_nodes, arity = probabilities.shape
    depth = round(math.log(leaves.shape[-1], arity)) if arity > 1 else 0
    if arity < 2 or (arity**depth, (arity**depth - 1) // (arity - 1)) != (leaves.shape[-1], num_nodes):
        raise ValueError(
            f"{leaves.shape[-1]} leaves and a table {num_nodes, arity} are of no tree: give A^D leaves and a table "
            "((A^D - 1) / (A - 1), A)"
        )
    levels = [jnp.asarray(leaves, jnp.float32)]
    for level in reversed(range(depth)):
        first = (arity**level - 1) // (arity - 1)
        below = levels[0].reshape(*levels[0].shape[:-1], arity**level, arity)
        levels.insert(0, (probabilities[..., first : first + arity**level, :] * below).sum(axis=-1))
    return jnp.concatenate(levels, axis=-1)


def make(depth: int = 6, arity: int = 3, num_trees: int = 3, share: float = 0.05, seed: int = 0) -> Env:
    """See `Tree`. With one tree all episodes start alike: check such an environment with `random_starts=False`.

    Raises:
        ValueError: for sizes that are none, more than 2^20 leaves, or a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share!r}: give a number above 0 and at most 1")
    environment = Tree(depth, arity, num_trees, share, seed)
    if arity**depth * num_trees > LARGEST:
        raise ValueError(f"{arity}^{depth} leaves of {num_trees} trees are more than {LARGEST:,}: give smaller sizes")
    return Env(environment, environment.default_params, max_steps=depth)
