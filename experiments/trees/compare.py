"""What is claimed of trees of choices, where every value is exact: ROVER, Tree-OPO, and branching as in ARPO.

    python experiments/trees/compare.py
    python experiments/trees/compare.py --task rover

A policy is a table, its values are sums over the tree, and what needs samples has intervals over seeds. It takes a
minute. What has a result is left alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from rlx.envs.tasks.tree import exact_values
from rlx.report import experiment, interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
ARITY, SEEDS = 3, 5


def trees(key: jax.Array, num: int, depth: int, share: float, graded: bool = False) -> jax.Array:
    """Leaves of random trees `[num, A^D]`: of each a share is right, at least one; or graded, uniform in [0, 1)."""
    drawn = jax.random.uniform(key, (num, ARITY**depth))
    if graded:
        return drawn
    return jnp.argsort(jnp.argsort(drawn, axis=1), axis=1) < max(1, round(share * ARITY**depth))


def num_nodes(depth: int) -> int:
    return (ARITY**depth - 1) // (ARITY - 1)


def branch_values(leaves: jax.Array, pi: jax.Array, slip: float = 0.0) -> jax.Array:
    """`Q(node, branch)` `[..., M, A]` of a policy `[..., M, A]`; with probability `slip` another is taken at random."""
    taken = (1.0 - slip) * pi + slip / ARITY
    values = exact_values(leaves, taken)
    below = values[..., 1:].reshape(*values.shape[:-1], -1, ARITY)
    return (1.0 - slip) * below + slip * below.mean(axis=-1, keepdims=True)


def reached(pi: jax.Array) -> jax.Array:
    """The probability of each node and leaf, `[..., M + A^D]`, of a policy `[..., M, A]`."""
    found = [jnp.ones((*pi.shape[:-2], 1))]
    first = 0
    while first < pi.shape[-2]:
        level = found[-1].shape[-1]
        found.append((found[-1][..., None] * pi[..., first : first + level, :]).reshape(*pi.shape[:-2], -1))
        first += level
    return jnp.concatenate(found, axis=-1)


def greedy(values: jax.Array) -> jax.Array:
    """The policy that takes the best branch."""
    return jax.nn.one_hot(values.argmax(axis=-1), ARITY)


def best_value(leaves: jax.Array, slip: float) -> jax.Array:
    """The value of the root under the best policy, `[...]`."""
    values = leaves.astype(jnp.float32)
    while values.shape[-1] > 1:
        below = values.reshape(*values.shape[:-1], -1, ARITY)
        values = (1.0 - slip) * below.max(axis=-1) + slip * below.mean(axis=-1)
    return values[..., 0]


def rover(depth: int = 4, num: int = 200) -> dict[str, list[float]]:
    """Share of trees in which the best branches by the values of random play are the best policy."""

    def share(key, graded=False, slip=0.0):
        leaves = trees(key, num, depth, 0.1, graded)
        uniform = jnp.full((num, num_nodes(depth), ARITY), 1 / ARITY)
        policy = greedy(branch_values(leaves, uniform, slip))
        value = exact_values(leaves, (1.0 - slip) * policy + slip / ARITY)[:, 0]
        return (value >= best_value(leaves, slip) - 1e-5).mean()

    keys = jax.random.split(jax.random.key(0), SEEDS)
    kinds: dict[str, dict] = {"0/1 at the leaves": {}, "0/1, slips of 40 %": {"slip": 0.4}, "graded": {"graded": True}}
    return {name: [float(share(key, **how)) for key in keys] for name, how in kinds.items()}


def diversity(depth: int = 4, num: int = 100, steps: int = 3000) -> dict[str, list[float]]:
    """Of policies that are right nine times of ten: how many right leaves they use in effect, over how many there are.

    One is the softmax of the values of random play, as cold as it has to be. The other climbs the exact gradient of the
    expected reward from the uniform policy.
    """

    def used(leaves, pi):
        p = reached(pi)[..., -leaves.shape[-1] :] * leaves
        q = p / p.sum(axis=-1, keepdims=True)
        entropy = -jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1.0)), 0.0).sum(axis=-1)
        return jnp.exp(entropy) / leaves.sum(axis=-1)

    def cold(leaves):
        values = branch_values(leaves, jnp.full((num_nodes(depth), ARITY), 1 / ARITY))
        policies = jax.nn.softmax(values / jnp.geomspace(1.0, 1e-3, 60)[:, None, None], axis=-1)
        right = exact_values(jnp.broadcast_to(leaves, (60, leaves.size)), policies)[:, 0]
        return policies[jnp.argmax(right >= 0.9)]

    def climbed(leaves):
        value = lambda logits: exact_values(leaves, jax.nn.softmax(logits, axis=-1))[0]

        def step(logits, _):
            right, slope = jax.value_and_grad(value)(logits)
            return jnp.where(right < 0.9, logits + 10.0 * slope, logits), None

        return jax.nn.softmax(jax.lax.scan(step, jnp.zeros((num_nodes(depth), ARITY)), length=steps)[0], axis=-1)

    def lane(key, policy: Callable):
        leaves = trees(key, num, depth, 0.1)
        return used(leaves, jax.vmap(policy)(leaves)).mean()

    keys = jax.random.split(jax.random.key(1), SEEDS)
    arms = {"softmax of values of random play": cold, "exact policy gradient": climbed}
    return {
        name: [float(jax.jit(lane, static_argnums=1)(key, policy)) for key in keys] for name, policy in arms.items()
    }


def sampled(key: jax.Array, pi: jax.Array, node: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Nodes that are met from `node` on, `[length + 1]`, and the branches that are taken, `[length]`."""

    def step(node, key):
        branch = jax.random.categorical(key, jnp.log(pi[node]))
        return ARITY * node + 1 + branch, (node, branch)

    last, (nodes, branches) = jax.lax.scan(step, node, jax.random.split(key, length))
    return jnp.append(nodes, last), branches


def tree_opo(depth: int = 6, at: int = 3, members: int = 8, groups: int = 2000) -> dict[str, list[float]]:
    """Variance of the gradient of groups whose members start at prefixes of a random search, over that of alpha 0.

    A member gets `R - alpha V(prefix)` less the mean of its group, with the exact value of its prefix.
    """

    def lane(key, alpha):
        tree_key, policy_key, group_key = jax.random.split(key, 3)
        leaves = trees(tree_key, 1, depth, 0.1)[0]
        pi = jax.nn.softmax(jax.random.normal(policy_key, (num_nodes(depth), ARITY)), axis=-1)
        values = exact_values(leaves, pi)

        def gradient(key):
            start_key, play_key = jax.random.split(key)
            start = num_nodes(at) + jax.random.randint(start_key, (members,), 0, ARITY**at)
            play = jax.vmap(lambda key, node: sampled(key, pi, node, depth - at))
            nodes, branches = play(jax.random.split(play_key, members), start)
            outcome = values[nodes[:, -1]] - alpha * values[start]
            score = jax.nn.one_hot(branches, ARITY) - pi[nodes[:, :-1]]  # of the logits of the nodes that were met
            weighted = (outcome - outcome.mean())[:, None, None] * score / members
            return jnp.zeros(pi.shape).at[nodes[:, :-1]].add(weighted)

        found = jax.lax.map(gradient, jax.random.split(group_key, groups))
        return found.var(axis=0).sum()

    keys = jax.random.split(jax.random.key(2), SEEDS)
    run = jax.jit(lane)
    base = [float(run(key, 0.0)) for key in keys]
    arms = {f"alpha {alpha}": alpha for alpha in (0.5, 1.0)}
    return {name: [float(run(k, alpha)) / b for k, b in zip(keys, base, strict=True)] for name, alpha in arms.items()}


def branching(depth: int = 6, rows: int = 16, groups: int = 500) -> dict[str, list[float]]:
    """Distinct leaves of a group for as many new choices, half of its members branched off, over all from the root.

    The first half plays from the root. Each of the others begins at a node of one of these, where the policy was least
    sure or anywhere, and what stands before is free.
    """

    def lane(key, how):
        policy_key, group_key = jax.random.split(key)
        pi = jax.nn.softmax(2.0 * jax.random.normal(policy_key, (num_nodes(depth), ARITY)), axis=-1)
        entropy = -(pi * jnp.log(pi)).sum(axis=-1)

        def group(key):
            first_key, pick_key, branch_key = jax.random.split(key, 3)
            num = rows if how == "root" else rows // 2
            root = jnp.zeros(num, jnp.int32)
            nodes, _ = jax.vmap(lambda key, node: sampled(key, pi, node, depth))(jax.random.split(first_key, num), root)
            leaves, cost = nodes[:, -1], num * depth
            if how != "root":
                met = nodes[:, :-1].reshape(-1)
                step = jnp.tile(jnp.arange(depth), num)
                least_sure = jnp.argsort(-entropy[met])[:num]
                index = least_sure if how == "least sure" else jax.random.randint(pick_key, (num,), 0, len(met))

                def rest(key, at):
                    def one(node, x):
                        key, t = x
                        branch = jax.random.categorical(key, jnp.log(pi[jnp.minimum(node, len(pi) - 1)]))
                        return jnp.where(t >= step[at], ARITY * node + 1 + branch, node), None

                    return jax.lax.scan(one, met[at], (jax.random.split(key, depth), jnp.arange(depth)))[0]

                more = jax.vmap(rest)(jax.random.split(branch_key, num), index)
                leaves, cost = jnp.concatenate([leaves, more]), cost + (depth - step[index]).sum()
            ordered = jnp.sort(leaves)
            return 1 + (ordered[1:] != ordered[:-1]).sum(), cost

        found, cost = jax.lax.map(group, jax.random.split(group_key, groups))
        return found.sum() / cost.sum()

    keys = jax.random.split(jax.random.key(3), SEEDS)
    run = jax.jit(lane, static_argnums=1)
    base = [float(run(key, "root")) for key in keys]
    arms = {"branched anywhere": "any", "branched where least sure": "least sure"}
    return {name: [float(run(k, how)) / b for k, b in zip(keys, base, strict=True)] for name, how in arms.items()}


TASKS = {"rover": rover, "diversity": diversity, "tree_opo": tree_opo, "branching": branching}
QUANTITIES = {
    "rover": "trees in which the greedy policy is the best",
    "diversity": "right leaves in use, of all",
    "tree_opo": "variance of the gradient, over alpha 0",
    "branching": "distinct leaves for as many choices, over all from the root",
}


def draw(results: dict[str, dict], path: Path) -> None:
    """A panel a task, with an interval for each arm."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 4.2), layout="constrained")
    for axes, (task, result) in zip(panels.flat, results.items(), strict=False):
        for place, (_, found) in enumerate(reversed(result["arms"].items())):
            estimate = interval([np.array(found)])
            axes.plot([estimate["low"], estimate["high"]], [place, place], color="tab:blue")
            axes.plot(estimate["value"], place, "o", color="tab:blue")
        axes.set_yticks(range(len(result["arms"])), reversed(result["arms"]))
        axes.set(title=task, xlabel=QUANTITIES[task])
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def table(results: dict[str, dict]) -> str:
    """A row an arm."""
    lines = [["task", "what", "arm", "mean [95 %]"], ["---", "---", "---", "--:"]]
    for task, result in results.items():
        for name, found in result["arms"].items():
            estimate = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**interval([np.array(found)]))
            lines.append([task, QUANTITIES[task], name, estimate])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(task: Literal[*TASKS] | None = None) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
    """
    run = lambda case: {"task": case, "arms": TASKS[case]()}
    experiment(HERE, {name: name for name in TASKS}, run, draw, table, lambda case: task in (None, case))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
