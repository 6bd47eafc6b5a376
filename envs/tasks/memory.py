"""Tasks for a policy with memory: what matters was seen a while ago, or is not seen at all.

| name | what is hidden | best return with memory | without |
|---|---|---|---|
| Recall-8, -32, -128 | a cue that was shown `delay` steps ago | 1 | 0 |
| TMaze-10 | a signal that was shown at the start of a corridor | 4 | 1.95 |
| HiddenCartPole | the two velocities of gymnax/CartPole-v1 | 500 | |
| HiddenPendulum | the velocity of gymnax/Pendulum-v1 | that of Pendulum-v1 | |
| HiddenHopper | the six velocities of mjx/hopper | that of hopper | |

Sources: the T-maze of Bakker 2002, Reinforcement Learning with Long Short-Term Memory. Velocities are hidden as by
Wierstra et al. 2007, Solving Deep Memory POMDPs with Recurrent Policy Gradients.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.env import Env
from rlx.envs.frames import COOL, GREY, INK, WARM, drawn_by
from rlx.partial import hidden
from rlx.pytree import pytree
from rlx.spaces import Box, Discrete

# namespace, name and the entries of the observation that are hidden
HIDDEN = {
    "HiddenCartPole": ("gymnax", "CartPole-v1", (1, 3)),
    "HiddenPendulum": ("gymnax", "Pendulum-v1", (2,)),
    "HiddenHopper": ("mjx", "hopper", tuple(range(5, 11))),
}


def draw_recall(axes, env_state, params):
    """Recall: how much time has passed, the cue while it is shown, and the question."""
    delay, (cue, ask) = int(params.delay), env_state.obs
    axes.set_aspect("auto")
    axes.set(xlim=(-0.1, 1.1), ylim=(-1, 1))
    axes.plot([0, 1], [0, 0], color=GREY, lw=3)
    axes.plot(min(1.0, float(env_state.time) / max(delay, 1)), 0, "o", color=COOL, ms=9)
    if cue:
        axes.plot(0, 0.5 * cue, "^" if cue > 0 else "v", color=WARM, ms=14)
    if ask:
        axes.plot([1, 1], [0.5, -0.5], "s", color=INK, ms=9)


@pytree
class RecallParams:
    delay: int = 8  # steps from the cue to the question
    reward: float = 1.0  # of the right answer; the wrong one costs as much


@pytree
class RecallState:
    cue: jax.Array  # float32, -1 or 1
    time: jax.Array  # int32


class Recall:
    """Observes `[cue, ask]`: a cue of -1 or 1 at the start, 0 later, and 1 where it is asked for, `delay` steps later.

    The action at that step ends the episode: the reward is 1 where it is the cue's (1 for a cue of 1, 0 for -1), else
    -1. All other rewards are 0. With `continuous` actions `[1]` in `[-1, 1]` that reward is cue times action.
    """

    default_params = RecallParams()
    differentiable = True
    frames = drawn_by(draw_recall)

    def __init__(self, continuous: bool = False):
        self.continuous = continuous

    def observation_space(self, params):
        return Box(np.array([-1.0, 0.0]), 1.0, (2,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(2)

    def horizon(self, params):
        return params.delay + 1

    def reset(self, key, params):
        state = RecallState(jax.random.rademacher(key, (), jnp.float32), jnp.int32(0))
        return self._observe(state, params), state

    def step(self, key, state, action, params):
        answered = state.time >= params.delay
        answer = jnp.clip(action[0], -1.0, 1.0) if self.continuous else 2.0 * action - 1.0
        reward = jnp.where(answered, params.reward * state.cue * answer, 0.0)
        state = RecallState(state.cue, state.time + 1)
        return self._observe(state, params), state, reward, answered, jnp.array(False), {}

    def _observe(self, state, params):
        # An answer leaves the question where it is: the last observation is not that of a start.
        return jnp.stack([jnp.where(state.time == 0, state.cue, 0.0), jnp.float32(state.time >= params.delay)])


NORTH, EAST, SOUTH, WEST = range(4)


def draw_maze(axes, env_state, params):
    """T-maze: the corridor, its arms, the one with the goal, and where one is; the signal at the start."""
    length, goal = int(params.length), 1 if env_state.state.north else -1
    axes.set(xlim=(-1, length + 1), ylim=(-2.5, 2.5))
    for xs, ys in (([0, length], [0, 0]), ([length, length], [-1, 1])):
        axes.plot(xs, ys, color=GREY, lw=10, solid_capstyle="projecting")
    axes.plot(length, goal, "s", color=WARM, ms=9)
    axes.plot(0, 0.8 * goal, "^" if goal > 0 else "v", color=WARM, ms=9)
    axes.plot(int(env_state.state.place), 0, "o", color=COOL, ms=9)


@pytree
class MazeParams:
    length: int = 10  # steps from the start to the junction
    goal_reward: float = 4.0
    penalty: float = 0.1  # for the wrong turn, and for a step that leads nowhere


@pytree
class MazeState:
    place: jax.Array  # int32, from 0 to the junction at `length`
    north: jax.Array  # bool, where the goal is


class TMaze:
    """A corridor that ends in a junction: the goal is north or south of it, and only the start of the corridor tells.

        observation    start: 011 (goal north) or 110 (south); corridor: 101; junction: 010; after a turn: 000
        actions        0 north, 1 east, 2 south, 3 west
        reward         4 for a turn to the goal, -0.1 for the other one, both of which end the episode; -0.1 for a step
                       that leads nowhere, else 0

    The task without noise of Bakker 2002; which signal means which side, and the time limit of `make`, are chosen here.
    """

    default_params = MazeParams()
    differentiable = True
    frames = drawn_by(draw_maze)

    def observation_space(self, params):
        return Box(0.0, 1.0, (3,))

    def action_space(self, params):
        return Discrete(4)

    def reset(self, key, params):
        state = MazeState(jnp.int32(0), jax.random.bernoulli(key))
        return self._observe(state, params), state

    def step(self, key, state, action, params):
        turned = (state.place >= params.length) & ((action == NORTH) | (action == SOUTH))
        found = (action == NORTH) == state.north
        place = jnp.clip(state.place + (action == EAST) - (action == WEST), 0, params.length).astype(jnp.int32)
        lost = jnp.where(turned, ~found, place == state.place)
        reward = jnp.where(lost, -params.penalty, jnp.where(turned, params.goal_reward, 0.0))
        state = MazeState(place, state.north)
        obs = jnp.where(turned, 0.0, self._observe(state, params))
        return obs, state, reward, turned, jnp.array(False), {}

    def _observe(self, state, params):
        signal = jnp.where(state.north, jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 0.0]))
        corridor, junction = jnp.array([1.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 0.0])
        later = jnp.where(state.place >= params.length, junction, corridor)
        return jnp.where(state.place == 0, signal, later)


def recall(delay: int, continuous: bool = False) -> Env:
    """Recall, whose episodes take `delay + 1` steps.

    Raises:
        ValueError: for a delay below 0.
    """
    if type(delay) is not int or delay < 0:
        raise ValueError(f"delay = {delay!r}: give an integer of at least 0")
    return Env(Recall(continuous), RecallParams(delay))


def tmaze(length: int) -> Env:
    """The T-maze, whose episodes are cut after ten times the steps that the best policy takes to the junction.

    Raises:
        ValueError: for a length below 1.
    """
    if type(length) is not int or length < 1:
        raise ValueError(f"length = {length!r}: give an integer of at least 1")
    return Env(TMaze(), MazeParams(length), max_steps=10 * length)


def make(name: str, **options: Any) -> Env:
    """`options`: `delay=` and `continuous=` of Recall, `length=` of TMaze, else those of what is hidden.

    Raises:
        ValueError: for a delay or a length that is too small.
    """
    if name in HIDDEN:
        namespace, inner, indices = HIDDEN[name]
        if namespace == "mjx":
            from rlx.envs.tasks import mjx_tasks as suite
        else:
            from rlx.envs.suites import from_gymnax as suite

        return hidden(suite.make(inner, **options), indices)
    kind, _, number = name.partition("-")
    task, size = (recall, "delay") if kind == "Recall" else (tmaze, "length")
    given: dict[str, Any] = {size: int(number)} | options
    return task(**given)
