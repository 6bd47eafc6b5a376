"""The adapter for MuJoCo Playground; most of it needs the package, `pip install 'rlx[playground]'`."""

from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import ppo
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.contract.evidence import ContractError
from rlx.envs.suites import from_playground

# Of Playground's own: tasks whose episodes all begin in one state, and tasks that use the key of a start twice.
FIXED_STARTS = {"BallInCup", "HumanoidStand", "HumanoidWalk", "HumanoidRun"}
REUSED_KEYS = {
    *(f"Cartpole{task}" for task in ("Balance", "BalanceSparse", "Swingup", "SwingupSparse")),
    *(f"Finger{task}" for task in ("Spin", "TurnEasy", "TurnHard")),
}
pytestmark = pytest.mark.more
installed = pytest.mark.skipif(find_spec("mujoco_playground") is None, reason="needs rlx[playground]")


@pytest.fixture(scope="module")
def cartpole():
    return rlx.envs.make("playground/CartpoleBalance")


def test_without_the_package_it_says_what_to_install(without):
    without("mujoco_playground")
    with pytest.raises(
        ValueError, match=r"playground/CheetahRun needs another package: pip install 'rlx\[playground\]'"
    ):
        rlx.envs.make("playground/CheetahRun")


@installed
def test_listed_names_are_those_of_the_installed_suite():
    from mujoco_playground import dm_control_suite, locomotion, manipulation

    assert sorted(from_playground.CONTROL) == sorted(dm_control_suite.ALL_ENVS)
    assert sorted(from_playground.LOCOMOTION) == sorted(locomotion.ALL_ENVS)
    assert sorted(from_playground.MANIPULATION) == sorted(manipulation.ALL_ENVS)


@installed
@pytest.mark.slow
@pytest.mark.parametrize("name", from_playground.CONTROL)
def test_the_control_suite_keeps_the_contract(name, monkeypatch):
    env = rlx.envs.make(f"playground/{name}")
    check = partial(rlx.envs.check, env, num_steps=8, random_starts=name not in FIXED_STARTS)
    if name in REUSED_KEYS:
        with pytest.raises(ContractError, match=r"keys: .* is already consumed"):
            check()
        reset = from_playground.Playground.reset  # numbers in place of keys: they may be used twice
        raw = lambda self, key, params: reset(self, jax.random.key_data(key), params)
        monkeypatch.setattr(from_playground.Playground, "reset", raw)
    assert len(check()) == len(CLAUSES)


@installed
def test_a_step_is_playgrounds_own(cartpole):
    env, task = cartpole, cartpole.environment.environment
    assert task.mjx_model.impl.value == "jax"
    assert (env.max_steps, env.environment.dt) == (1000, 0.01)
    env_state = env.reset(jax.random.key(0))
    state = task.reset(jax.random.key(0))
    np.testing.assert_array_equal(env_state.obs, state.obs)
    for action in (jnp.array([0.5]), jnp.array([-1.0])):
        env_state, transition = jax.jit(env.advance)(jax.random.key(1), env_state, action)
        state = jax.jit(task.step)(state, action)
        np.testing.assert_allclose(transition.next_obs, state.obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(transition.reward, state.reward, rtol=1e-5)


@installed
def test_repeated_actions_add_their_rewards_up(cartpole):
    env = rlx.envs.make("playground/CartpoleBalance", action_repeat=3)
    assert (env.max_steps, env.environment.dt) == (333, 0.03)
    once = many = env.reset(jax.random.key(0))
    total, action = 0.0, jnp.array([0.3])
    for _ in range(3):
        once, transition = jax.jit(cartpole.advance)(jax.random.key(0), once, action)
        total += float(transition.reward)
    many, transition = jax.jit(env.advance)(jax.random.key(0), many, action)
    np.testing.assert_allclose(transition.reward, total, rtol=1e-5)
    np.testing.assert_allclose(transition.next_obs, once.obs, rtol=1e-4, atol=1e-6)


@installed
def test_masses_are_parameters(cartpole):
    def speed(mass):
        from dataclasses import replace

        env = replace(cartpole, params=cartpole.params.replace(body_mass=mass * cartpole.params.body_mass))
        return env.advance(jax.random.key(0), env.reset(jax.random.key(0)), jnp.ones(1))[1].next_obs[-2]

    light, heavy = jax.jit(jax.vmap(speed))(jnp.array([1.0, 10.0]))
    assert heavy < 0.5 * light


@installed
def test_options_that_the_task_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"playground/CartpoleBalance has no option speed: there are action_repeat, "):
        rlx.envs.make("playground/CartpoleBalance", speed=3)


BALL = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <body><joint name="slide" type="slide" axis="1 0 0" damping="1"/><geom size="0.1" mass="1"/></body>
  </worldbody>
  <actuator><motor joint="slide" gear="4"/></actuator>
</mujoco>
"""


def pushed():
    """A ball that is to be at 0: its place is seen, and its speed by critics alone, as tasks of robots have it."""
    import mujoco
    from ml_collections import config_dict
    from mujoco import mjx
    from mujoco_playground._src import mjx_env

    class Pushed(mjx_env.MjxEnv):
        def __init__(self):
            super().__init__(config_dict.create(ctrl_dt=0.04, sim_dt=0.02, episode_length=50, impl="jax"))
            self._mj_model = mujoco.MjModel.from_xml_string(BALL)
            self._mjx_model = mjx.put_model(self._mj_model, impl="jax")

        xml_path, action_size = "", 1
        mj_model = property(lambda self: self._mj_model)
        mjx_model = property(lambda self: self._mjx_model)

        def obs(self, data):
            return {"state": data.qpos, "privileged_state": jnp.concatenate([data.qpos, data.qvel])}

        def reset(self, rng):
            place = jax.random.uniform(rng, (1,), minval=-1.0, maxval=1.0)
            data = mjx_env.make_data(self._mj_model, qpos=place, qvel=jnp.zeros(1), impl="jax")
            data = mjx.forward(self.mjx_model, data)
            return mjx_env.State(
                data, self.obs(data), jnp.zeros(()), jnp.zeros(()), {"reward/place": jnp.zeros(())}, {}
            )

        def step(self, state, action):
            data = mjx_env.step(self.mjx_model, state.data, action, self.n_substeps)
            reward = -jnp.abs(data.qpos[0])
            metrics = {"reward/place": reward}
            return state.replace(data=data, obs=self.obs(data), reward=reward, done=jnp.zeros(()), metrics=metrics)

    environment = from_playground.Playground(Pushed())
    return rlx.Env(environment, environment.default_params, max_steps=50)


@installed
def test_entries_that_are_privileged_are_for_critics_and_reward_terms_are_reported():
    env = pushed()
    assert {name: box.shape for name, box in env.observation_space.spaces.items()} == {
        "state": (1,),
        "privileged_state": (2,),
    }
    config = ppo.Config(
        total_steps=60_000, num_envs=32, num_steps=25, learning_rate=3e-3, num_minibatches=8, entropy_coef=0.0,
        gamma=0.95, normalize_obs=True, hidden_sizes=(32,),
    )  # fmt: skip
    state, metrics = rlx.train(ppo, config, env, jax.random.key(0))
    first = {name: state.params[name]["params"]["torso"]["Dense_0"]["kernel"].shape[0] for name in ("actor", "critic")}
    assert first == {"actor": 1, "critic": 3}
    ended = metrics["num_episodes"] > 0
    np.testing.assert_allclose(metrics["episode_reward/place"][ended], metrics["episode_return"][ended], rtol=1e-4)
    assert metrics["episode_return"][ended][-1] > metrics["episode_return"][ended][0] + 5
    assert rlx.evaluate(ppo, config, env, state, jax.random.key(1)).reported["reward/place"].shape == (32,)
