"""MuJoCo tasks: physics against MuJoCo in C, what is observed and rewarded, a user's own model, bad input."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import rlx
from rlx.devices.batch_last import SMALLEST
from rlx.env import with_params
from rlx.envs import mjcf
from rlx.envs.contract.clauses import CLAUSES
from rlx.envs.tasks import mjx_tasks

SLIDER = """
<mujoco>
  <option timestep="0.01"><flag contact="disable"/></option>
  <worldbody>
    <body name="block">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom type="box" size=".1 .1 .1" mass="2"/>
      <site name="front" pos=".1 0 0"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" gear="4" ctrlrange="-1 1"/></actuator>
</mujoco>"""


def slider(**options):
    functions = {
        "observe": lambda data, params: jnp.concatenate([data.qpos, data.qvel]),
        "reward": lambda data, action, params: data.site_xpos[0, 0],
    }
    return mjcf.task(**{"model": SLIDER} | functions | options)


@pytest.fixture(scope="module")
def tasks():
    """All tasks, each made once."""
    return {name: rlx.envs.make(f"mjx/{name}") for name in mjx_tasks.NAMES}


@pytest.mark.more
@pytest.mark.parametrize(
    "name",
    ["pendulum", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cartpole", "reacher", "hopper", "ant"))],
)
def test_a_task_keeps_the_contract(tasks, name):
    assert len(rlx.envs.check(tasks[name])) == len(CLAUSES)


@pytest.mark.more
@pytest.mark.parametrize("num", [1, 2 * SMALLEST])
@pytest.mark.parametrize("name", mjx_tasks.NAMES)
def test_positions_are_those_of_mujoco_in_c(tasks, name, num):
    """20 control steps from a start, with contacts; both are given the same positions, velocities and actions.

    It is the last one of `num` that are stepped at once, the others from other starts and with other actions.
    """
    env = tasks[name]
    model, environment = env.environment.model, env.environment
    data = mujoco.MjData(model)
    env_states = jax.vmap(env.reset)(jax.random.split(jax.random.key(1), num))
    data.qpos, data.qvel = np.asarray(env_states.state.qpos[-1]), np.asarray(env_states.state.qvel[-1])
    actions = np.random.default_rng(0).uniform(-1, 1, (num, 20, model.nu)).astype(np.float32)

    def steps(env_state, actions):
        return jax.lax.scan(lambda s, a: (env.advance(jax.random.key(0), s, a)[0],) * 2, env_state, actions)[1].state

    ours = jax.tree.map(lambda x: x[-1], jax.jit(jax.vmap(steps))(env_states, actions))
    for t, action in enumerate(actions[-1]):
        data.ctrl = action
        mujoco.mj_step(model, data, environment.substeps)
        # float32 against float64, a few iterations of a solver, and 80 steps for that to grow.
        np.testing.assert_allclose(ours.qpos[t], data.qpos, atol=2e-3, err_msg=f"step {t}")
        np.testing.assert_allclose(ours.qvel[t], data.qvel, atol=5e-2, err_msg=f"step {t}")


@pytest.mark.more
@pytest.mark.parametrize("name", ["hopper", "ant"])
def test_feet_rest_on_the_ground(tasks, name):
    """Left alone, a robot settles: its lowest point neither floats nor sinks by more than a centimetre."""
    env = tasks[name]
    still = jnp.zeros(env.action_space.shape)
    advance = lambda s, _: (env.advance(jax.random.key(0), s, still)[0],) * 2
    _, states = jax.jit(lambda s: jax.lax.scan(advance, s, None, length=25))(env.reset(jax.random.key(0)))
    data, model = mujoco.MjData(env.environment.model), env.environment.model
    lowest = []
    for t in range(25):
        data.qpos = np.asarray(states.state.qpos[t])
        mujoco.mj_kinematics(model, data)
        touching = model.geom_contype > 0
        lowest.append((data.geom_xpos[touching, 2] - model.geom_size[touching, 0]).min())
    assert min(lowest) > -0.02
    assert min(np.abs(lowest)) < 0.01


def test_bodies_are_where_the_positions_of_the_same_moment_put_them():
    """MuJoCo's step leaves bodies a substep behind; the reward of the slider is where its site is."""
    env = slider()
    env_state = env.reset(jax.random.key(0))
    for _ in range(3):
        env_state, transition = env.advance(jax.random.key(0), env_state, jnp.ones(1))
        np.testing.assert_allclose(transition.reward, transition.next_obs[0] + 0.1, atol=1e-6)


def test_a_pushed_block_moves_as_newton_says():
    """Semi-implicit Euler with a constant force F: v_n = n h F / m, x_n = h^2 F / m n (n + 1) / 2."""
    env = slider(substeps=3)
    env_state = env.reset(jax.random.key(0))
    for _ in range(4):
        env_state, transition = env.advance(jax.random.key(0), env_state, jnp.array([0.5]))
    n, h, acceleration = 12, 0.01, 0.5 * 4 / 2
    expected = [h**2 * acceleration * n * (n + 1) / 2, n * h * acceleration]
    np.testing.assert_allclose(transition.next_obs, expected, rtol=1e-4)


def test_masses_are_parameters():
    heavy = with_params(slider(), {"physics.body_mass": [0.0, 8.0]})
    speed = lambda env: env.advance(jax.random.key(0), env.reset(jax.random.key(0)), jnp.ones(1))[1].next_obs[1]
    np.testing.assert_allclose(speed(heavy) / speed(slider()), 2.0 / 8.0, rtol=1e-4)


@pytest.mark.more
def test_a_sweep_over_robots_is_a_vmap():
    env = slider()
    masses = jnp.array([[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]])

    def speed(mass):
        robot = replace(env, params=replace(env.params, physics=env.params.physics.replace(body_mass=mass)))
        return robot.advance(jax.random.key(0), robot.reset(jax.random.key(0)), jnp.ones(1))[1].next_obs[1]

    np.testing.assert_allclose(jax.vmap(speed)(masses), 0.04 / masses[:, 1], rtol=1e-4)


def test_pendulum_pays_for_standing_and_not_for_spinning():
    params = None
    data = lambda angle, speed: mjcf.State(jnp.array([angle]), jnp.array([speed]), *[None] * 5)
    reward = lambda *state: float(mjx_tasks.pendulum_reward(data(*state), None, params))
    assert reward(0.0, 0.0) == 1.0
    np.testing.assert_allclose(reward(np.pi / 2, 0.0), 0.25, rtol=1e-6)
    np.testing.assert_allclose(reward(np.pi, 0.0), 0.0, atol=1e-12)
    np.testing.assert_allclose(reward(0.0, 8.0), np.exp(-1.0), rtol=1e-6)


def test_the_pole_of_the_pendulum_is_up_at_angle_zero_and_is_too_heavy_to_be_lifted(tasks):
    env = tasks["pendulum"]
    model, data = env.environment.model, mujoco.MjData(env.environment.model)
    mujoco.mj_forward(model, data)
    pivot, weight = data.body("pole").xpos[2], data.geom("weight").xpos[2]
    np.testing.assert_allclose(weight - pivot, 0.5)
    data.qpos[0] = np.pi / 2
    mujoco.mj_forward(model, data)
    assert abs(data.qfrc_bias[0]) > 2 * model.actuator_gear[0, 0]


def test_cartpole_starts_hanging_and_pays_for_standing_in_the_middle(tasks):
    env = tasks["cartpole"]
    angles = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 64)).state.qpos[:, 1]
    assert jnp.all(jnp.cos(angles) < -0.9)
    data = lambda *q: mjcf.State(jnp.array(q[:2]), jnp.array([0.0, q[2]]), *[None] * 5)
    reward = lambda *q: float(mjx_tasks.cartpole_reward(data(*q), None, None))
    assert reward(0.0, 0.0, 0.0) == 1.0
    np.testing.assert_allclose(reward(1.0, 0.0, 0.0), 0.5 + 0.5 / np.e, rtol=1e-6)
    np.testing.assert_allclose(reward(0.0, 0.0, 5.0), 0.5 + 0.5 / np.e, rtol=1e-6)
    np.testing.assert_allclose(reward(0.0, np.pi, 0.0), 0.0, atol=1e-7)


def test_the_cart_stays_on_its_rail(tasks):
    env = tasks["cartpole"]
    push = lambda s, _: (env.advance(jax.random.key(0), s, jnp.ones(1))[0],) * 2
    _, states = jax.jit(lambda s: jax.lax.scan(push, s, None, length=200))(env.reset(jax.random.key(0)))
    assert 1.75 < float(states.state.qpos[:, 0].max()) < 1.9


def test_the_tip_of_the_reacher_is_where_trigonometry_says(tasks):
    env = tasks["reacher"]
    env_state = env.reset(jax.random.key(3))
    env_state, transition = env.advance(jax.random.key(0), env_state, jnp.array([1.0, -1.0]))
    first, second = np.cumsum(env_state.state.qpos)
    tip = 0.12 * np.array([np.cos(first), np.sin(first)]) + 0.1 * np.array([np.cos(second), np.sin(second)])
    target = np.asarray(env_state.state.mocap_pos)[0, :2]
    np.testing.assert_allclose(transition.next_obs[-2:] / 10.0, target - tip, atol=1e-5)
    distance = np.linalg.norm(target - tip)
    expected = 0.7 * np.exp(-0.5 * (distance / 0.02) ** 2) + 0.3 * np.exp(-distance / 0.1) - 0.01
    np.testing.assert_allclose(transition.reward, expected, rtol=1e-4)


def test_targets_of_the_reacher_are_within_reach_and_stay(tasks):
    env = tasks["reacher"]
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 256)).state
    radius = np.linalg.norm(states.mocap_pos[:, 0], axis=-1)
    assert radius.min() >= 0.04
    assert 0.15 < radius.max() <= 0.2
    env_state = env.reset(jax.random.key(0))
    moved, _ = env.advance(jax.random.key(0), env_state, jnp.ones(2))
    np.testing.assert_array_equal(moved.state.mocap_pos, env_state.state.mocap_pos)


def test_walking_pays_for_speed_up_to_what_is_wanted(tasks):
    params = tasks["hopper"].params
    data = lambda speed: mjcf.State(None, jnp.array([speed, 0.0]), *[None] * 5)
    reward = lambda speed, action: float(mjx_tasks.walk_reward(data(speed), jnp.full(3, action), params))
    np.testing.assert_allclose(reward(0.0, 0.0), 0.3, rtol=1e-6)
    np.testing.assert_allclose(reward(0.75, 0.0), 0.65, rtol=1e-6)
    np.testing.assert_allclose(reward(1.5, 1.0), 0.9, rtol=1e-6)
    np.testing.assert_allclose(reward(9.0, 0.0), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        *(("hopper", 1, 0.6), ("hopper", 2, 1.1), ("hopper", 2, -1.1), ("ant", 2, 0.1)),
        ("ant", (3, 4, 5, 6), (0.0, 1.0, 0.0, 0.0)),  # on its back
    ],
)
def test_a_fall_ends_the_episode(tasks, name, index, value):
    env = tasks[name]
    state = env.reset(jax.random.key(0)).state
    fell = jax.jit(lambda state: env.environment.terminated(env.environment.data(state, env.params), env.params))
    assert not fell(state)
    assert fell(replace(state, qpos=state.qpos.at[jnp.array(index)].set(jnp.array(value))))


def test_physics_that_diverges_ends_the_episode_in_its_last_finite_state():
    env = slider(params={"worth": 1.0})
    env_state = env.reset(jax.random.key(0))
    stepped, transition = env.advance(jax.random.key(0), env_state, jnp.array([jnp.nan]))
    assert transition.terminated
    assert transition.info["diverged"]
    assert transition.reward == 0.0
    np.testing.assert_array_equal(transition.next_obs, env_state.obs)
    np.testing.assert_array_equal(stepped.state.qpos, env_state.state.qpos)
    assert not env.advance(jax.random.key(0), env_state, jnp.ones(1))[1].info["diverged"]


def test_a_model_may_be_a_file_a_text_or_compiled(tmp_path):
    path = tmp_path / "slider.xml"
    path.write_text(SLIDER)
    same = [
        slider(),
        slider(model=path),
        slider(model=str(path)),
        slider(model=mujoco.MjModel.from_xml_path(str(path))),
    ]
    for env in same:
        assert env.action_space.shape == (1,)
        np.testing.assert_array_equal(env.params.physics.body_mass, [0.0, 2.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nowhere.xml"}, r"there is no model nowhere\.xml"),
        ({"model": SLIDER.replace('<motor joint="x" gear="4" ctrlrange="-1 1"/>', "")}, "no actuators"),
        ({"model": SLIDER.replace(' ctrlrange="-1 1"', "")}, "actuator 0 has no limits: give it ctrlrange"),
        ({"model": "<mujoco><nonsense/></mujoco>"}, "nonsense"),
        ({"substeps": 0}, "substeps = 0"),
        ({"observe": lambda data, params: data.qpos[0]}, "observe must give one vector"),
        ({"observe": lambda data, params: {"x": data.qpos}}, "observe must give one vector"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        slider(**options)


def test_options_of_a_task_take_the_place_of_its_own():
    env = rlx.envs.make("mjx/pendulum", substeps=1, max_steps=7)
    assert (env.max_steps, env.environment.dt) == (7, 0.02)
