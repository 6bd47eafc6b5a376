"""What made an update end in NaN: the operation is named, and its line."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.run.why import diverged, why
from rlx.spaces import Box, Discrete


def logarithm(config, elements, progress):
    return -jnp.log(elements.advantage) * elements.log_ratio


@pytest.fixture(scope="module")
def start(ppo, cartpole):
    config = ppo.Config(total_steps=64, num_envs=4, num_steps=4, num_minibatches=2, num_epochs=2, hidden_sizes=(8,))
    return config, ppo.init(config, cartpole, jax.random.key(0))


def test_the_first_operation_that_is_not_finite_is_named_with_its_line(ppo, cartpole, start):
    objective = jax.tree_util.Partial(logarithm)
    update = lambda config, env, state: ppo.update(config, env, state, objective=objective)
    lines = why(SimpleNamespace(update=update), start[0], cartpole, start[1])
    first = next(i for i, line in enumerate(lines) if line.startswith("the first: log of [8] within [-"))
    assert "test_why.py" in lines[first + 1]
    assert "in logarithm: return -jnp.log(elements.advantage) * elements.log_ratio" in lines[first + 1]
    assert lines[-2:] == ["  in iteration 1 of 2 of a loop"] * 2


def test_nothing_is_said_of_a_finite_update(ppo, cartpole, start):
    assert why(ppo, start[0], cartpole, start[1]) == []


class Exploding:
    """Counts its steps; the observation of the environment that starts at 2.5 is infinite at its third step."""

    default_params = None

    def reset(self, key, params):
        start = jax.random.uniform(key, minval=0.0, maxval=3.0)
        return start[None], {"start": start, "time": jnp.int32(0)}

    def step(self, key, state, action, params):
        bad = (state["time"] == 2) & (state["start"] > 2)
        state = state | {"time": state["time"] + 1}
        obs = jnp.where(bad, jnp.inf, state["start"])[None]
        return obs, state, jnp.float32(1), jnp.array(False), jnp.array(False), {}

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Discrete(2)


def test_environments_that_diverge_are_named_with_their_states(ppo):
    env = rlx.Env(Exploding(), None, max_steps=10)
    config = ppo.Config(total_steps=64, num_envs=8, num_steps=4, num_minibatches=2, num_epochs=1, hidden_sizes=(8,))
    state = ppo.init(config, env, jax.random.key(0))
    starts = np.asarray(state.env_state.state["start"])
    found = diverged(ppo, config, env, state)
    assert [(step.index, step.step) for step in found] == [(i, 2) for i in np.flatnonzero(starts > 2)]
    for step in found:
        assert step.state == {"start": starts[step.index], "time": 2}
        assert np.isinf(step.next_obs).all()
        assert step.named()["state.time"] == 2
    assert why(ppo, config, env, state)[-1].endswith(f"not finite: {len(found)}")
