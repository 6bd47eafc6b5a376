"""What made an update end in NaN: the operation is named, and its line."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from rlx.why import why


def logarithm(config, log_ratio, advantage, progress):
    return -jnp.log(advantage) * log_ratio


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
    assert "in logarithm: return -jnp.log(advantage) * log_ratio" in lines[first + 1]
    assert lines[-2:] == ["  in iteration 1 of 2 of a loop"] * 2


def test_nothing_is_said_of_a_finite_update(ppo, cartpole, start):
    assert why(ppo, start[0], cartpole, start[1]) == []
