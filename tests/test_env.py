"""Env: restarts, true successors, time limits and episode statistics, on an environment that counts."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import Env, envs, pytree, replace
from rlx.env import with_params
from rlx.spaces import Box, Discrete


@pytree
class Params:
    terminate_at: float = 1000.0
    truncate_at: float = 1000.0


class Counter:
    """The observation counts up from a random start in [0, 0.5); the reward is the count before the step."""

    default_params: ClassVar = Params()

    def observation_space(self, params):
        return Box(0.0, np.inf, (1,))

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        count = 0.5 * jax.random.uniform(key)
        return count[None], count

    def step(self, key, state, action, params):
        count = state + 1.0
        info = {"action": action}
        return count[None], count, state, count >= params.terminate_at, count >= params.truncate_at, info


def counter(max_steps: Any = None, **params) -> Env:
    return Env(Counter(), Params(**params), max_steps)


def play(env, num_steps, step=None):
    """The starts, the states after each step, and the transitions."""
    step = step or jax.jit(lambda env, *args: env.step(*args))
    keys = jax.random.split(jax.random.key(0), 2 * num_steps + 1)
    env_state = env.reset(keys[-1])
    starts, states, transitions = [env_state], [], []
    for key, start_key in keys[:-1].reshape(num_steps, 2):
        start = env.reset(start_key)
        env_state, transition = step(env, key, env_state, jnp.int32(1), start)
        starts.append(start), states.append(env_state), transitions.append(transition)
    return starts, states, transitions


def test_reset_draws_a_start_and_zeroes_the_statistics():
    env = counter()
    a, b = env.reset(jax.random.key(0)), env.reset(jax.random.key(1))
    assert a.obs != b.obs
    assert (a.time, a.episode_return) == (0, 0.0)
    assert (a.time.dtype, a.episode_return.dtype) == (jnp.int32, jnp.float32)


def test_the_state_after_an_episode_is_the_fresh_start():
    starts, states, transitions = play(counter(max_steps=2), 4)
    assert [bool(t.done) for t in transitions] == [False, True, False, True]
    jax.tree.map(np.testing.assert_array_equal, states[1], starts[2])
    jax.tree.map(np.testing.assert_array_equal, states[3], starts[4])
    assert states[0].obs == starts[0].obs + 1


def test_next_obs_is_the_true_successor_at_an_episodes_end():
    starts, states, transitions = play(counter(max_steps=2), 4)
    for transition in transitions:
        np.testing.assert_array_equal(transition.next_obs, transition.obs + 1)
    assert transitions[1].next_obs == starts[0].obs + 2
    assert transitions[1].next_obs != states[1].obs


@pytest.mark.parametrize("params", [{"max_steps": 3}, {"truncate_at": 3.0}])
def test_a_time_limit_truncates_and_does_not_terminate(params):
    transitions = play(counter(**params), 6)[2]
    assert [bool(t.truncated) for t in transitions] == [False, False, True] * 2
    assert not any(t.terminated for t in transitions)


def test_termination_does_not_truncate():
    transitions = play(counter(terminate_at=3.0), 6)[2]
    assert [bool(t.terminated) for t in transitions] == [False, False, True] * 2
    assert not any(t.truncated for t in transitions)


@pytest.mark.parametrize("params", [{"max_steps": 3}, {"truncate_at": 3.0}])
def test_termination_wins_over_truncation(params):
    transitions = play(counter(terminate_at=3.0, **params), 3)[2]
    assert [bool(t.terminated) for t in transitions] == [False, False, True]
    assert not any(t.truncated for t in transitions)


def test_episode_statistics_restart_with_the_episode():
    _, states, transitions = play(counter(max_steps=3), 6)
    for first in (0, 3):
        rewards = [float(t.reward) for t in transitions[first : first + 3]]
        returns = [float(t.episode_return) for t in transitions[first : first + 3]]
        # Sums of three numbers of order 1 in float32.
        np.testing.assert_allclose(returns, np.cumsum(rewards), rtol=1e-6)
        assert [int(t.episode_length) for t in transitions[first : first + 3]] == [1, 2, 3]
    assert [int(s.time) for s in states] == [1, 2, 0, 1, 2, 0]
    assert states[2].episode_return == 0


def test_advance_goes_past_the_end_without_a_restart():
    env = counter(max_steps=1)
    start = env.reset(jax.random.key(0))
    env_state, transition = env.advance(jax.random.key(1), start, jnp.int32(0))
    assert transition.done
    np.testing.assert_array_equal(env_state.obs, transition.next_obs)
    assert env_state.time == 1


def test_the_action_and_the_info_are_those_of_the_environment():
    transition = play(counter(), 1)[2][0]
    assert transition.action == transition.info["action"] == 1
    assert transition.recorded is None


def test_a_state_can_be_stepped_from_any_number_of_times():
    env = counter()
    env_state = env.reset(jax.random.key(0))
    once = env.advance(jax.random.key(1), env_state, jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, once, env.advance(jax.random.key(1), env_state, jnp.int32(0)))
    assert env_state.time == 0


def test_parameters_and_the_time_limit_can_be_vmapped():
    env_state = counter().reset(jax.random.key(0))
    step = lambda env: env.advance(jax.random.key(1), env_state, jnp.int32(0))[1]
    limits = jax.vmap(lambda n: step(replace(counter(), max_steps=n)))(jnp.array([1, 2]))
    np.testing.assert_array_equal(limits.truncated, [True, False])
    ends = jax.vmap(lambda at: step(replace(counter(), params=Params(terminate_at=at))))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(ends.terminated, [True, False])


def test_python_scalars_of_an_environment_become_arrays_of_fixed_types():
    class Plain(Counter):
        def reset(self, key, params):
            return jnp.zeros(1), 0

        def step(self, key, state, action, params):
            return jnp.zeros(1), state, 1, 0, 1, {}

    env = Env(Plain(), Params())
    start = env.reset(jax.random.key(0))
    assert not start.state.weak_type
    env_state, transition = env.step(jax.random.key(1), start, jnp.int32(0), start)
    assert transition.reward.dtype == jnp.float32
    assert transition.terminated.dtype == transition.truncated.dtype == bool
    assert jax.tree.map(jnp.result_type, env_state) == jax.tree.map(jnp.result_type, start)


def test_jit_changes_nothing():
    compiled, plain = play(counter(max_steps=2), 4), play(counter(max_steps=2), 4, lambda env, *args: env.step(*args))
    jax.tree.map(np.testing.assert_array_equal, compiled, plain)
    assert len(compiled[2]) == 4


@pytree
class Body:
    mass: jax.Array
    count: Any = 2
    rigid: Any = True


@pytree
class World:
    body: Body
    gravity: float = 9.8


WORLD = Env(Counter(), World(Body(jnp.ones(3, jnp.bfloat16), jnp.int32(4))))


def test_parameters_change_by_name_and_keep_their_types():
    values = {"gravity": 3, "body.mass": [1, 2.5, float("inf")], "body.count": 7.0, "body.rigid": False}
    changed = with_params(WORLD, values).params
    assert jax.tree.structure(changed) == jax.tree.structure(WORLD.params)
    assert (type(changed.gravity), changed.gravity) == (float, 3.0)
    assert (type(changed.body.rigid), changed.body.rigid) == (bool, False)
    assert (changed.body.count.dtype, int(changed.body.count)) == (jnp.int32, 7)
    assert changed.body.mass.dtype == jnp.bfloat16
    assert changed.body.mass.tolist() == [1.0, 2.5, float("inf")]
    assert with_params(WORLD, {"gravity": "inf"}).params.gravity == float("inf")  # as JSON has it
    assert with_params(WORLD, {"body.count": 7}).params.body.mass is WORLD.params.body.mass
    assert with_params(WORLD, {}).params is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"gravty": 1},
            r"no parameter 'gravty': did you mean gravity\? there are body.mass, body.count, ",
        ),
        ({"qqqq": 1}, "no parameter 'qqqq': there are body.mass"),
        ({"gravity": "low"}, "gravity = 'low': it takes a number"),
        ({"gravity": [1]}, r"gravity = \[1\]: it takes a number"),
        ({"gravity": float("nan")}, "gravity = nan: it takes a number"),
        ({"gravity": None}, "gravity = None: it takes a number"),
        ({"body.mass": 1.0}, r"body.mass = 1.0: it takes numbers in shape \[3\]"),
        ({"body.mass": [[1], 2]}, r"it takes numbers in shape \[3\]"),
        ({"body.count": 0.5}, "body.count = 0.5: it takes what int32 can hold"),
        ({"body.count": 2**40}, "it takes what int32 can hold"),
        ({"body.rigid": 2}, "it takes what bool can hold"),
    ],
)
def test_parameters_that_do_not_exist_or_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        with_params(WORLD, values)
    with pytest.raises(ValueError, match="there are none"):
        with_params(Env(Counter(), None), {"gravity": 1})


def test_parameters_of_suites_change_by_dotted_names():
    cartpole, key = envs.make("CartPole-v1"), jax.random.key(0)
    changed = with_params(cartpole, {"gravity": 3, "max_steps_in_episode": 7})
    assert changed.params == cartpole.params.replace(gravity=3.0, max_steps_in_episode=7)
    step = jax.jit(lambda env: env.advance(key, env.reset(key), 1)[0].obs)
    assert (step(changed) != step(cartpole)).any()
    assert step._cache_size() == 1
    pendulum = envs.make("brax/inverted_pendulum", backend="spring")
    mass = with_params(pendulum, {"link.inertia.mass": [5, 1]}).params.link.inertia.mass
    assert (mass.dtype, mass.tolist()) == (jnp.float32, [5.0, 1.0])
