"""Domain randomisation: what is multiplied, by what, and for how long."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.pytree import pytree
from rlx.rollout import rollout
from rlx.spaces import Box
from rlx.wrappers import randomized


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


def test_it_keeps_the_contract(meter):
    assert len(rlx.envs.check(randomized(rlx.envs.make("Pendulum-v1"), {"g m": (0.5, 2.0)}))) == 15


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
