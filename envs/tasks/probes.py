"""Probe environments: each isolates one thing that an algorithm must get right, with known optimal values.

| name | episode | tests | value |
|---|---|---|---|
| Constant | one step, reward 1 | the critic's loss | V = 1 |
| Observation | one step, reward = observation, -1 or 1 | the critic's input | V(o) = o |
| Discount | two steps, reward 1 at the second | bootstrapping | V(0) = gamma, V(1) = 1 |
| Action | one step, reward 1 for action 1, else -1 | the policy's gradient | V = 1 |
| ObservationAction | one step, reward 1 where the action fits the observation, else -1 | both together | V = 1 |
| ContinuousAction | one step, reward 1 - (action - observation / 2)^2 | continuous actions | V = 1 |
| Legal | one step, 10 actions, 3 of them illegal; the first legal one from a number on is best | masks | V = 0 |
| Composite | one step; a tool, three keys and a push as they are seen | actions of several parts | V = 0 |
| Endless | never ends; reward 1 a step; cut after `max_steps` | time limits | V = 1 / (1 - gamma) |
"""

import jax
import jax.numpy as jnp

from rlx.env import Env
from rlx.pytree import pytree
from rlx.spaces import Box, Dict, Discrete, Space


@pytree
class Params:
    reward: float = 1.0  # multiplies every reward


class Probe:
    """One step, observation 0, reward 1, whatever the action."""

    default_params = Params()
    differentiable = True

    def observation_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        obs = self.start(key)
        return obs, obs

    def step(self, key, state, action, params):
        reward = params.reward * jnp.asarray(self.reward(state[0], action), jnp.float32)
        return state, state, reward, jnp.array(True), jnp.array(False), {}

    def start(self, key):
        return jnp.zeros(1)

    def reward(self, obs, action):
        return 1.0


class Constant(Probe):
    pass


class Observation(Probe):
    def start(self, key):
        return jax.random.rademacher(key, (1,), jnp.float32)

    def reward(self, obs, action):
        return obs


class Discount(Probe):
    def step(self, key, state, action, params):
        last = state[0] > 0.5
        obs = jnp.ones(1)
        return obs, obs, params.reward * last.astype(jnp.float32), last, jnp.array(False), {}


class Action(Probe):
    def reward(self, obs, action):
        return 2.0 * action - 1.0


class ObservationAction(Observation):
    def reward(self, obs, action):
        return obs * (2.0 * action - 1.0)


class ContinuousAction(Observation):
    def action_space(self, params):
        return Box(-2.0, 2.0, (1,))

    def reward(self, obs, action):
        return 1.0 - (action[0] - obs / 2.0) ** 2


class Legal(Probe):
    """The reward is minus the steps from the best legal action on, over 9; -1 for an illegal one, which is reported."""

    num_actions, num_illegal = 10, 3

    def observation_space(self, params):
        return Dict(target=Discrete(self.num_actions), action_mask=Box(0, 1, (self.num_actions,), jnp.bool_))

    def action_space(self, params):
        return Discrete(self.num_actions)

    def start(self, key):
        target_key, mask_key = jax.random.split(key)
        order = jax.random.permutation(mask_key, self.num_actions)
        return {
            "target": jax.random.randint(target_key, (), 0, self.num_actions),
            "action_mask": order >= self.num_illegal,
        }

    def step(self, key, state, action, params):
        after = (jnp.arange(self.num_actions) - state["target"]) % self.num_actions
        best = jnp.min(jnp.where(state["action_mask"], after, self.num_actions))
        illegal = ~state["action_mask"][action]
        reward = jnp.where(illegal, -1.0, (best - after[action]) / (self.num_actions - 1.0))
        return state, state, params.reward * reward, jnp.array(True), jnp.array(False), {"illegal": illegal}


class Composite(Probe):
    """The reward is minus the share of wrong keys, 1 for a wrong tool, and the mean squared error of the push."""

    space = Dict(tool=Discrete(3), keys=Discrete(2, shape=(3,)), push=Box(-1.0, 1.0, (2,)))

    def observation_space(self, params):
        return self.space

    def action_space(self, params):
        return self.space

    def start(self, key):
        return self.space.sample(key)

    def step(self, key, state, action, params):
        wrong = (action["tool"] != state["tool"]) + jnp.mean(action["keys"] != state["keys"])
        reward = -wrong - jnp.mean((action["push"] - state["push"]) ** 2)
        return state, state, params.reward * reward, jnp.array(True), jnp.array(False), {}


class Endless(Probe):
    def step(self, key, state, action, params):
        return state, state, jnp.float32(params.reward), jnp.array(False), jnp.array(False), {}


@pytree
class Drawn:
    kind: jax.Array  # which probe the episode is
    state: jax.Array  # of that probe


class Mixed:
    """Every episode is one of several probes, told by a one-hot number beside the probe's own observation.

    One program learns all of them; the actions are those of `action_space`, which the probes must take.
    """

    default_params = Params()

    def __init__(self, kinds: tuple[type[Probe], ...], actions: Space):
        self.probes, self.actions = [kind() for kind in kinds], actions

    def observation_space(self, params):
        return Box(-1.0, 1.0, (len(self.probes) + 1,))

    def action_space(self, params):
        return self.actions

    def reset(self, key, params):
        kind_key, key = jax.random.split(key)
        kind = jax.random.randint(kind_key, (), 0, len(self.probes))
        keys = jax.random.split(key, len(self.probes))
        state = jnp.stack([probe.start(key) for probe, key in zip(self.probes, keys, strict=True)])[kind]
        return self.obs(kind, state[0]), Drawn(kind, state)

    def step(self, key, state, action, params):
        steps = [probe.step(None, state.state, action, params)[1:4] for probe in self.probes]  # none needs a key
        successor, reward, terminated = (jnp.stack(x)[state.kind] for x in zip(*steps, strict=True))
        obs = self.obs(state.kind, successor[0])
        return obs, Drawn(state.kind, successor), reward, terminated, jnp.array(False), {}

    def obs(self, kind, obs):
        """The observation of an episode of this kind, in which the probe shows `obs`."""
        return jnp.append(jax.nn.one_hot(kind, len(self.probes)), obs)


PROBES = {
    p.__name__: p
    for p in (Constant, Observation, Discount, Action, ObservationAction, ContinuousAction, Legal, Composite, Endless)
}
NAMES = tuple(PROBES)


def make(name: str) -> Env:
    probe = PROBES[name]()
    return Env(probe, probe.default_params, max_steps=5 if name == "Endless" else None)
