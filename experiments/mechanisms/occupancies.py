"""How evenly a policy comes to the cells of a grid: N-VR-PG, single batches, random moves, and the most there can be.

The grid is GridWorld's two rooms, whose goals are free cells here, so that no episode ends; all begin in a corner. The
policy has a logit for each of eight moves in each cell. What is measured is exact: the entropy of the occupancy of
states, discounted over endless episodes, of the policy at the end. Episodes of training are cut after 200 steps, where
2 % of the occupancy is still to come.

Rates of 0.1, 0.3 and 1 were tried before, with one seed and half of the updates. At 0.3 importance weights are near 1;
at 1 they spread, so that rate is measured too.

Axes: T time, N episodes, S cells that are free, A moves.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

import rlx
from rlx import replace
from rlx.around import decoded, restarted
from rlx.clipping import global_norm
from rlx.envs.tasks.gridworld import FREE, SIZE, WALL, observe
from rlx.occupancy import (
    carried,
    entropy_reward,
    exact_occupancy,
    greatest_entropy,
    importance,
    occupancy,
    paid,
)
from rlx.rollout import episodes, reset
from rlx.spaces import Discrete

MOVES = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y], np.float32)
GAMMA, NUM_STEPS, NUM_EPISODES, NUM_UPDATES = 0.98, 200, 16, 1_000
FLOOR = 1e-4
STEPS = NUM_STEPS * NUM_EPISODES * NUM_UPDATES  # of the whole training


@cache
def rooms():
    """The environment, its transitions `[S, A, S]`, and of each cell of the grid which of the S it is, `[25 * 25]`."""
    grid = rlx.envs.make("rlx/GridWorld", layout="two_slits", max_steps=NUM_STEPS)
    free = np.asarray(grid.params.cells) != WALL
    grid = replace(grid, params=replace(grid.params, cells=np.where(free, FREE, WALL)))
    move = lambda cell, move: grid.environment.step(jax.random.key(0), cell, move, grid.params)[1]
    reached = jax.vmap(jax.vmap(move, (None, 0)), (0, None))(np.argwhere(free), MOVES)
    numbers = np.cumsum(free) - 1
    corner = jnp.zeros(2, jnp.int32)
    start = replace(grid.reset(jax.random.key(0)), state=corner, obs=observe(corner))
    env = restarted(grid, jax.tree.map(lambda x: x[None], start), 1.0)
    env = decoded(env, lambda obs, action, key: jnp.asarray(MOVES)[action], Discrete(len(MOVES)))
    return env, np.eye(free.sum())[numbers[np.asarray(reached) @ (SIZE, 1)]], numbers


def log_prob(logits, states, actions):
    return jax.nn.log_softmax(logits)[states, actions]


def gradients(logits, reward, states, actions, alive):
    """The gradient that each episode gives of a policy `[S, A]`, for a reward `[S]`, `[N, S, A]`."""

    def one(logits, *episode):
        states, actions, alive = (x[:, None] for x in episode)
        now = log_prob(logits, states, actions)
        return paid(now - jax.lax.stop_gradient(now), states, alive, reward, GAMMA)[0]

    return jax.vmap(jax.grad(one), (None, 1, 1, 1))(logits, states, actions, alive)


@partial(jax.jit, static_argnums=2)
def learned(env, numbers, num_states, eta, learning_rate, key):
    """The logits `[S, A]` after training, with eta = 1 by single batches."""
    cell = lambda obs: numbers[jnp.round(obs * (SIZE // 2) + SIZE // 2).astype(jnp.int32) @ jnp.array([SIZE, 1])]

    def update(carry, x):
        (logits, reward), (logits_then, reward_then), direction, seen = carry
        is_first, key = x
        start_key, key = jax.random.split(key)
        act = lambda obs, key: (jax.random.categorical(key, logits[cell(obs)]),) * 2
        _, traj, alive = episodes(env, act, reset(env, start_key, NUM_EPISODES), key, NUM_STEPS)
        states, actions = cell(traj.obs), traj.recorded

        weight = importance(log_prob(logits_then, states, actions), log_prob(logits, states, actions), alive)
        share = jnp.where(is_first, 1.0, eta)
        now = occupancy(states, alive, GAMMA, num_states)
        seen = carried(seen, now, now, weight, share)
        reward = jnp.where(is_first, entropy_reward(seen, FLOOR), reward)  # there is none of before
        of_now = gradients(logits, reward, states, actions, alive)
        of_then = gradients(logits_then, reward_then, states, actions, alive)
        direction = carried(direction, of_now, of_then, weight, share)
        after = logits + learning_rate * direction / global_norm(direction)
        return ((after, entropy_reward(seen, FLOOR)), (logits, reward), direction, seen), None

    logits, row = jnp.zeros((num_states, len(MOVES))), jnp.zeros(num_states)
    begin = (logits, row), (logits, row), logits, row
    xs = jnp.arange(NUM_UPDATES) == 0, jax.random.split(key, NUM_UPDATES)
    return jax.lax.scan(update, begin, xs)[0][0][0]


def covered(policy):
    """The entropy of what a policy `[S, A]` comes to."""
    transitions = rooms()[1]
    reached = exact_occupancy(transitions, policy, np.eye(len(transitions))[0], GAMMA)
    return -(reached * np.log(reached)).sum()


def covering(eta, learning_rate):
    """Measures a policy that has learned."""

    def measured(_, seed):
        env, transitions, numbers = rooms()
        logits = learned(env, jnp.asarray(numbers), len(transitions), eta, learning_rate, jax.random.key(seed))
        return {"coverage": covered(np.asarray(jax.nn.softmax(logits), np.float64))}

    return measured


def by_chance(_, seed):
    """Measures moves that are all as likely."""
    return {"coverage": covered(np.full((len(rooms()[1]), len(MOVES)), 1.0 / len(MOVES)))}


@cache
def most():
    """The policy that covers best, and how much it may lack."""
    transitions = rooms()[1]
    return greatest_entropy(transitions, np.eye(len(transitions))[0], GAMMA)


def at_most(_, seed):
    """Measures it."""
    policy, gap = most()
    return {"coverage": covered(policy), "gap": gap}
