"""Domain randomisation: what is multiplied, by what, and for how long. Chunks of actions: what is done and paid."""

from dataclasses import replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.envs.contract.clauses import CLAUSES
from rlx.meta import detached
from rlx.pytree import pytree
from rlx.rollout import check_horizon, rollout
from rlx.spaces import Box
from rlx.wrappers import bounded, carried_out, chunked, randomized


@pytree
class Params:
    mass: float = 2.0
    drag: jax.Array = None
    levels: int = 3


class Meter:
    """Observes its own parameters."""

    default_params = Params(drag=jnp.array([1.0, 10.0]))

    def _obs(self, params):
        return jnp.concatenate([jnp.asarray(params.mass)[None], params.drag])

    def reset(self, key, params):
        return self._obs(params), jnp.float32(0)

    def step(self, key, state, action, params):
        return self._obs(params), state + 1, params.mass, False, False, {}

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (3,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))


@pytest.fixture
def meter():
    return rlx.Env(Meter(), Meter.default_params, max_steps=5)


def starts(env, num):
    return jax.vmap(env.reset)(jax.random.split(jax.random.key(0), num))


def test_factors_are_uniform_between_the_bounds(meter):
    obs = starts(randomized(meter, {"mass": (0.5, 1.5)}), 4096).obs
    mass = obs[:, 0] / 2.0
    assert 0.5 <= mass.min() < 0.51
    assert 1.49 < mass.max() <= 1.5
    # Mean and variance of a uniform variable, within four standard errors.
    np.testing.assert_allclose(mass.mean(), 1.0, atol=4 * 12**-0.5 / 64)
    np.testing.assert_allclose(mass.var(), 1 / 12, atol=4 * 0.075 / 64)
    np.testing.assert_array_equal(obs[:, 1:], np.tile([1.0, 10.0], (4096, 1)))


def test_names_with_a_space_between_share_a_factor_and_others_do_not(meter):
    obs = starts(randomized(meter, {"mass drag": (0.1, 2.0)}), 16).obs
    np.testing.assert_allclose(obs[:, 0] / 2.0, obs[:, 1], rtol=1e-6)
    np.testing.assert_allclose(obs[:, 1], obs[:, 2] / 10.0, rtol=1e-6)
    apart = starts(randomized(meter, {"mass": (0.1, 2.0), "drag": (0.1, 2.0)}), 16).obs
    assert np.all(np.abs(apart[:, 0] / 2.0 - apart[:, 1]) > 1e-6)


def test_an_episode_keeps_its_factors_and_the_next_has_others(meter):
    env = randomized(meter, {"mass": (0.1, 2.0)})
    policy = lambda obs, key: (jnp.zeros((4, 1)), None)
    _, traj = rollout(env, policy, starts(env, 4), jax.random.key(1), 10)
    mass = np.asarray(traj.obs[..., 0])
    np.testing.assert_array_equal(mass[:5], np.tile(mass[0], (5, 1)))
    np.testing.assert_array_equal(mass[5:], np.tile(mass[5], (5, 1)))
    assert np.all(mass[0] != mass[5])
    np.testing.assert_array_equal(traj.reward, mass)  # what steps are computed with is what was drawn at the start
    np.testing.assert_array_equal(traj.next_obs, traj.obs)


def test_factors_of_one_change_nothing():
    plain = rlx.envs.make("CartPole-v1")
    env = randomized(plain, {"masspole": (1.0, 1.0)})
    env_state = env.reset(jax.random.key(0))
    inner = plain.reset(jax.random.key(0))
    state = jax.tree.map(lambda x: x, env_state.state.state)
    inner = replace(inner, state=state, obs=env_state.obs)
    for action in (0, 1, 1):
        env_state, a = env.advance(jax.random.key(1), env_state, jnp.int32(action))
        inner, b = plain.advance(jax.random.key(1), inner, jnp.int32(action))
        np.testing.assert_array_equal(a.next_obs, b.next_obs)


def test_bounds_are_traced(meter):
    env = randomized(meter, {"mass": (1.0, 1.0)})

    def mass(high):
        return replace(env, params=replace(env.params, low=high[None], high=high[None])).reset(jax.random.key(0)).obs[0]

    np.testing.assert_allclose(jax.vmap(mass)(jnp.array([0.5, 3.0])), [1.0, 6.0])


@pytest.mark.more
def test_it_keeps_the_contract(meter):
    assert len(rlx.envs.check(randomized(rlx.envs.make("Pendulum-v1"), {"g m": (0.5, 2.0)}))) == len(CLAUSES)


def test_it_is_an_option_of_make():
    env = rlx.envs.make("CartPole-v1", randomize={"gravity": [0.5, 2.0]}, max_steps=9)
    assert env.max_steps == 9
    np.testing.assert_array_equal([env.params.low, env.params.high], [[0.5], [2.0]])


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"mas": (0.5, 1)}, "no parameter 'mas': did you mean mass"),
        ({"mass": (2, 1)}, "factors of mass"),
        ({"mass": 2}, "factors of mass"),
        ({"mass": (1, float("nan"))}, "factors of mass"),
        ({"mass": ("low", "high")}, "factors of mass"),
        ({"mass": (1, 2), "drag mass": (1, 2)}, "mass has two factors"),
        ({"levels": (1, 2)}, "levels is not of floating-point numbers"),
    ],
)
def test_bad_factors_are_refused(meter, factors, message):
    with pytest.raises(ValueError, match=message):
        randomized(meter, factors)


@pytree
class Countdown:
    length: int = 5  # steps until it terminates


class Counter:
    """Observes how many steps were made; pays the action times ten to the power of the step."""

    default_params = Countdown()

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        reward = action[0] * 10.0**state
        state = state + 1
        return state[None].astype(jnp.float32), state, reward, state >= params.length, False, {"step": state}

    def observation_space(self, params):
        return Box(0.0, 100.0, (1,))

    def action_space(self, params):
        return Box(-1.0, jnp.array([2.0, 3.0]), (2,))


def counter(length=5, max_steps=None):
    return rlx.Env(Counter(), Countdown(length), max_steps=max_steps)


def test_a_chunk_is_its_actions_one_after_another():
    env = chunked(counter(), 3)
    env_state, transition = env.advance(
        jax.random.key(0), env.reset(jax.random.key(0)), jnp.array([1.0, 0, 2.0, 0, 0.5, 0])
    )
    assert transition.reward == 1 + 20 + 50
    assert transition.next_obs == 3
    assert not transition.done
    np.testing.assert_array_equal(transition.info["step"], [1, 2, 3])
    assert env_state.time == 1
    assert env_state.state.time == 3


def test_of_a_chunk_only_the_first_actions_are_done_when_asked():
    env = chunked(counter(), 3, executed=2)
    actions = jnp.array([1.0, 0, 2.0, 0, 0.5, 0])
    env_state, transition = env.advance(jax.random.key(0), env.reset(jax.random.key(0)), actions)
    assert transition.reward == 1 + 20
    assert transition.next_obs == 2
    np.testing.assert_array_equal(transition.info["step"], [1, 2])
    assert env.action_space.shape == (6,)
    np.testing.assert_array_equal(carried_out(env, actions[None]), [[1.0, 0, 2.0, 0]])
    np.testing.assert_array_equal(carried_out(counter(), actions[:2]), actions[:2])
    assert env_state.state.time == 2
    assert (
        rlx.envs.make("mjx/pendulum", chunk=(4, 3)).environment.dt == 3 * rlx.envs.make("mjx/pendulum").environment.dt
    )


def test_an_end_within_a_chunk_ends_it():
    env = chunked(counter(length=5), 3)
    env_state = env.reset(jax.random.key(0))
    env_state, _ = env.advance(jax.random.key(0), env_state, jnp.ones(6))
    env_state, transition = env.advance(jax.random.key(0), env_state, jnp.ones(6))
    assert transition.terminated
    assert not transition.truncated
    assert transition.reward == 1000 + 10000
    assert transition.next_obs == 5
    assert transition.episode_return == 11111


def test_the_time_limit_counts_the_steps_of_the_environment():
    env = chunked(counter(length=5, max_steps=4), 3)  # it would terminate later in the same chunk
    env_state = env.reset(jax.random.key(0))
    env_state, first = env.advance(jax.random.key(0), env_state, jnp.ones(6))
    _, second = env.advance(jax.random.key(0), env_state, jnp.ones(6))
    assert not first.done
    assert second.truncated
    assert not second.terminated
    assert second.reward == 1000
    assert second.next_obs == 4  # the true successor


def test_rewards_within_a_chunk_are_discounted_when_asked():
    env = chunked(counter(), 3, discount=0.5)
    _, transition = env.advance(jax.random.key(0), env.reset(jax.random.key(0)), jnp.ones(6))
    assert transition.reward == 1 + 0.5 * 10 + 0.25 * 100


def test_bounds_of_actions_are_repeated():
    space = chunked(counter(), 3).action_space
    assert space.shape == (6,)
    np.testing.assert_array_equal(space.low, [-1] * 6)
    np.testing.assert_array_equal(space.high, [2, 3] * 3)


def test_chunks_have_the_dtype_of_their_actions():
    class Half(Counter):
        def action_space(self, params):
            return Box([-1.0, -1.0], 1.0, (2,), jnp.float16)

    assert chunked(rlx.Env(Half(), Countdown()), 3).action_space.dtype == jnp.float16


def test_chunks_of_one_are_the_environment():
    plain = rlx.envs.make("Pendulum-v1", max_steps=7)
    env = chunked(plain, 1)
    policy = lambda obs, key: (jnp.sin(obs[:, :1]), None)
    trajs = [rollout(e, policy, starts(e, 4), jax.random.key(1), 20)[1] for e in (plain, env)]
    # Two programs with the same operations round differently in the last bits, which a pendulum carries on.
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated", "episode_return", "episode_length"):
        np.testing.assert_allclose(*(getattr(traj, name) for traj in trajs), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("env", "horizon"),
    [
        (lambda make: make("Pendulum-v1", randomize={"g": (0.5, 2.0)}), 200),
        (lambda make: make("Pendulum-v1", chunk=(5, 3)), 67),  # ceil(200 / 3)
        (lambda make: make("Pendulum-v1", max_steps=30, randomize={"g": (0.5, 2.0)}, chunk=4), 8),
        (lambda make: randomized(make("Pendulum-v1", chunk=4), {"params.g": (0.5, 2.0)}), 50),
        (lambda make: chunked(make("Pendulum-v1", chunk=4), 3), 17),  # ceil(50 / 3)
        (lambda make: replace(make("Pendulum-v1", chunk=4), max_steps=7), 7),
        (lambda make: make("rlx/PointMaze-medium", chunk=4), 38),
        (lambda make: detached(make("Pendulum-v1", chunk=4)), 50),
        (lambda make: replace(make("Pendulum-v1"), max_steps=jnp.array([30, 70])), 70),
        (lambda make: replace(make("Pendulum-v1"), max_steps=np.int64(30)), 30),
        (lambda make: chunked(counter(), 3), None),
        (lambda make: chunked(replace(counter(), params={"max_steps": 10}), 4), 3),
    ],
)
def test_the_time_limit_is_known_through_environments_around_environments(env, horizon):
    assert env(rlx.envs.make).horizon == horizon


def test_cut_episodes_of_chunks_are_refused_with_a_limit_in_single_actions():
    env = rlx.envs.make("Pendulum-v1", chunk=4)
    with pytest.raises(ValueError, match=r"may take 50 steps and has to fit; .* with max_steps=40$"):
        check_horizon(env, 10)
    check_horizon(rlx.envs.make("Pendulum-v1", max_steps=40, chunk=4), 10)


def test_a_limit_in_params_that_are_a_dictionary_is_moved_too():
    rlx.envs.register("wrapped/Dictionary", lambda: replace(counter(), params={"max_steps": 10}))
    assert rlx.envs.make("wrapped/Dictionary").horizon == 10
    assert rlx.envs.make("wrapped/Dictionary", max_steps=20).horizon == 20


@pytest.mark.more
def test_chunks_keep_the_contract_and_are_an_option_of_make():
    assert len(rlx.envs.check(rlx.envs.make("Pendulum-v1", chunk=4, max_steps=40))) == len(CLAUSES)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("Pendulum-v1", (0,), "chunks of 0 actions"),
        ("Pendulum-v1", (2, 3), "3 of the 2 actions of a chunk executed: give an integer from 1 to 2"),
        ("CartPole-v1", (2,), "chunks are of continuous actions"),
    ],
)
def test_bad_chunks_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        chunked(rlx.envs.make(name), *size)


def test_bounds_are_those_given_within_the_own_ones_and_actions_pass():
    env = bounded(counter(), [0.0, -9.0], 2.5)  # its own are -1 to 2 and -1 to 3
    np.testing.assert_array_equal(env.action_space.low, [0, -1])
    np.testing.assert_array_equal(env.action_space.high, [2, 2.5])
    start = env.reset(jax.random.key(0))
    actions = jnp.array([2.0, 0.5])
    for one, other in zip(*(e.advance(jax.random.key(0), start, actions)[1:] for e in (env, counter())), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert bounded(rlx.envs.make("Pendulum-v1", max_steps=7), -1.0, 1.0).horizon == 7


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (0.0, np.inf), (np.nan, 1.0), (np.zeros(3), 1.0)])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match="give finite numbers of that shape, the lower ones first"):
        bounded(counter(), *bounds)
    with pytest.raises(ValueError, match="bounds are of continuous actions"):
        bounded(rlx.envs.make("CartPole-v1"), -1.0, 1.0)


class OfItsOwn:
    """A point on the line whose episodes end after `length` steps, a parameter, by its own doing."""

    default_params = MappingProxyType({"length": 24})
    differentiable = True

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        time = state + 1
        obs = jnp.full(1, time, jnp.float32)
        return obs, time, jnp.float32(0), jnp.array(False), time >= params["length"], {}

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def horizon(self, params):
        return int(params["length"])


def test_bounds_keep_what_the_environment_says_of_itself():
    env = bounded(rlx.Env(OfItsOwn(), {"length": 24}), -1.0, 1.0)
    assert env.horizon == 24
    assert env.environment.differentiable
    assert chunked(env, 5).horizon == 5  # ceil(24 / 5)
    assert bounded(replace(env, max_steps=7), -0.5, 0.5).horizon == 7


@pytest.mark.parametrize("max_steps", [0, -5, 2.5, np.int64(0)])
def test_a_time_limit_is_a_whole_number_of_at_least_1(max_steps):
    with pytest.raises(ValueError, match="give a whole number of at least 1, or None"):
        rlx.Env(OfItsOwn(), {"length": 24}, max_steps=max_steps)
