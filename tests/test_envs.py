"""Environments by name, the adapters, and the contract on every bundled environment."""

import subprocess
import sys
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx.envs
from rlx.envs import check, registry
from rlx.envs.suites import (
    from_brax,
    from_craftax,
    from_gymnax,
    from_jaxmarl,
    from_jumanji,
    from_pgx,
    from_playground,
    from_xminigrid,
)
from rlx.envs.tasks import mjx_tasks, own, probes
from rlx.pytree import stack

FIXED_STARTS = {
    *("gymnax/Asterix-MinAtar", "gymnax/Seaquest-MinAtar", "gymnax/SpaceInvaders-MinAtar", "gymnax/DeepSea-bsuite"),
    *("gymnax/DiscountingChain-bsuite", "gymnax/FourRooms-misc", "gymnax/Pong-misc", "gymnax/FrozenLake-misc"),
    *("brax/fast", "probe/Constant", "probe/Discount", "probe/Action", "probe/Endless"),
}
SUITES = {
    "craftax": from_craftax,
    "xminigrid": from_xminigrid,
    "jumanji": from_jumanji,
    "pgx": from_pgx,
    "jaxmarl": from_jaxmarl,
}
NEEDS_DOWNLOAD = "MNISTBandit-bsuite"


@pytest.fixture
def own_names(monkeypatch):
    """A registry whose registrations end with the test."""
    monkeypatch.setattr(registry, "_registered", {})


def first_steps(env, num_steps, key=0, action=None):
    """The transitions `[T]` of one episode, not restarted; a fixed action, or random ones."""
    reset_key, *keys = jax.random.split(jax.random.key(key), 1 + num_steps)

    def step(env_state, key):
        chosen = env.action_space.sample(key) if action is None else jnp.asarray(action)
        return env.advance(key, env_state, chosen)

    return jax.lax.scan(step, env.reset(reset_key), jnp.stack(keys))[1]


def first(flags):
    """Number of the first step that is marked, or None."""
    return int(np.argmax(flags)) + 1 if np.any(flags) else None


def test_a_full_and_a_bare_name_are_the_same_environment():
    assert registry.full_name("CartPole-v1") == registry.full_name("gymnax/CartPole-v1") == "gymnax/CartPole-v1"
    bare, full = rlx.envs.make("CartPole-v1"), rlx.envs.make("gymnax/CartPole-v1")
    assert type(bare.environment.environment) is type(full.environment.environment)


def test_nothing_is_compiled_again_for_an_environment_that_is_made_again():
    num_traces = 0

    @jax.jit
    def start(env, key):
        nonlocal num_traces
        num_traces += 1
        return env.reset(key).obs

    @jax.jit
    def within(key):
        return rlx.envs.make("rlx/MultiGoal").reset(key).obs

    expected = within(jax.random.key(0))  # nothing of what is made within a trace is of that trace
    for max_steps in (None, 7, 9):
        found = start(rlx.envs.make("rlx/MultiGoal", max_steps=max_steps), jax.random.key(0))
        np.testing.assert_array_equal(found, expected)
    assert num_traces == 1


def test_an_ambiguous_bare_name_asks_for_a_full_one(own_names):
    rlx.envs.register("mine/CartPole-v1", lambda: rlx.envs.make("probe/Constant"))
    with pytest.raises(ValueError, match=r"'CartPole-v1' is ambiguous: use gymnax/CartPole-v1 or mine/CartPole-v1"):
        rlx.envs.make("CartPole-v1")
    assert rlx.envs.make("gymnax/CartPole-v1").observation_space.shape == (4,)


def test_an_environment_that_is_not_offered_says_why(monkeypatch):
    from rlx.envs.suites import from_gymnax

    monkeypatch.setattr(from_gymnax, "REFUSED", {"Moon-misc": "it is too far"}, raising=False)
    with pytest.raises(ValueError, match="gymnax/Moon-misc is not offered: it is too far"):
        rlx.envs.make("gymnax/Moon-misc")


@pytest.mark.parametrize(
    ("wrong", "closest"),
    [
        ("CartPole-v2", "CartPole-v1"),
        ("gymnax/Cartpole-v1", "gymnax/CartPole-v1"),
        ("brax/half_cheetah", "brax/halfcheetah"),
        ("gymnax/ant", "ant"),
    ],
)
def test_a_wrong_name_gets_the_closest_ones(wrong, closest):
    with pytest.raises(ValueError, match=f"unknown environment '{wrong}': did you mean .*{closest}"):
        rlx.envs.make(wrong)


def test_a_name_like_none_is_told_where_all_names_are():
    with pytest.raises(ValueError, match="unknown environment 'qqqq': rlx envs lists all"):
        rlx.envs.make("qqqq")


def test_a_registered_environment_has_a_name_and_options(own_names):
    rlx.envs.register("mine/Probe", lambda which="Constant": rlx.envs.make(f"probe/{which}"))
    assert "mine/Probe" in rlx.envs.names()
    assert rlx.envs.names("mine") == ["mine/Probe"]
    assert type(rlx.envs.make("Probe").environment) is probes.Constant
    assert type(rlx.envs.make("mine/Probe", which="Action", num_starts=3).environment) is probes.Action


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Probe", "not of the form namespace/Name"),
        ("/Probe", "not of the form namespace/Name"),
        ("mine/", "not of the form namespace/Name"),
        ("gymnax/Mine", "the namespace 'gymnax' is taken"),
        ("mine/Taken", "'mine/Taken' is taken"),
    ],
)
def test_register_refuses_bad_and_taken_names(own_names, name, message):
    rlx.envs.register("mine/Taken", lambda: None)
    with pytest.raises(ValueError, match=message):
        rlx.envs.register(name, lambda: None)


def test_names_lists_namespaces():
    assert rlx.envs.names() == [
        f"{space}/{name}"
        for space in ("gymnax", "brax", "mjx", "playground", *SUITES, "rlx", "probe")
        for name in suite(space).NAMES
    ]
    assert rlx.envs.names("probe") == [f"probe/{name}" for name in probes.PROBES]
    assert rlx.envs.names("nothing") == []


def suite(namespace):
    suites = {"gymnax": from_gymnax, "brax": from_brax, "mjx": mjx_tasks, "playground": from_playground}
    return (suites | SUITES | {"rlx": own, "probe": probes})[namespace]


def test_listed_names_are_those_of_the_installed_suites():
    rlx.envs.make("brax/fast")  # imports the suite without its warnings
    import brax.envs
    import gymnax

    assert sorted(from_gymnax.NAMES) == sorted(gymnax.registered_envs)
    assert sorted(from_brax.NAMES) == sorted(brax.envs._envs)


def test_a_suite_is_imported_when_one_of_its_environments_is_made():
    program = """
import sys
suites = {"brax", "gymnax", "mujoco", "mujoco.mjx", "craftax", "xminigrid"}
import rlx, rlx.envs, rlx.envs.registry
rlx.envs.names(), rlx.envs.registry.full_name("halfcheetah"), rlx.envs.check
try:
    rlx.envs.make("CartPole-v2")
except ValueError:
    pass
rlx.envs.make("probe/Constant")
print(sorted(suites & set(sys.modules)))
rlx.envs.make("CartPole-v1")
print(sorted(suites & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", "['gymnax']"], done.stderr


@pytest.mark.parametrize("max_steps", [0, -3, 1.5, "10", True])
def test_max_steps_is_a_positive_integer(max_steps):
    with pytest.raises(ValueError, match=f"max_steps = {max_steps!r}: give an integer of at least 1"):
        rlx.envs.make("probe/Endless", max_steps=max_steps)


@pytest.mark.parametrize("num_starts", [0, -1, 1.5])
def test_num_starts_is_a_positive_integer(num_starts):
    with pytest.raises(ValueError, match=f"num_starts = {num_starts}"):
        rlx.envs.make("probe/Endless", num_starts=num_starts)
    assert rlx.envs.make("probe/Endless", num_starts=7).num_starts == 7


@pytest.mark.parametrize("max_steps", [3, 250])
def test_max_steps_replaces_the_limit_of_the_suite(max_steps):
    env = rlx.envs.make("Pendulum-v1", max_steps=max_steps)  # 200 steps by itself, and it never terminates
    traj = first_steps(env, 260)
    assert first(traj.truncated) == max_steps
    assert not traj.terminated.any()


SHIPPED = [name for name in rlx.envs.names("gymnax") if NEEDS_DOWNLOAD not in name]
LARGE = "gymnax/Seaquest-MinAtar"  # compiles for as long as ten others


@pytest.mark.more
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == LARGE else n for n in SHIPPED])
def test_contract_of_gymnax(name):
    check(rlx.envs.make(name), random_starts=name not in FIXED_STARTS)


@pytest.mark.parametrize("name", rlx.envs.names("probe"))
def test_contract_of_probes(name):
    check(rlx.envs.make(name), num_steps=32, random_starts=name not in FIXED_STARTS)


@pytest.mark.more
@pytest.mark.parametrize("backend", ["spring", pytest.param("mjx", marks=pytest.mark.slow)])
def test_contract_of_brax(backend):
    check(brax("inverted_pendulum", backend), num_steps=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", rlx.envs.names("brax"))
def test_contract_of_every_brax_task(name):
    check(rlx.envs.make(name), num_steps=64, random_starts=name not in FIXED_STARTS)


@pytest.mark.slow
@pytest.mark.parametrize("backend", from_brax.BACKENDS)
def test_contract_of_every_brax_backend(backend):
    check(brax("hopper", backend), num_steps=64)


def test_data_that_cannot_be_downloaded_is_a_clear_error(monkeypatch):
    from gymnax.utils import load_mnist

    def fail(*args):
        raise OSError("no route to host")

    monkeypatch.setattr(load_mnist, "load_mnist", fail)
    with pytest.raises(ValueError, match=f"gymnax/{NEEDS_DOWNLOAD} downloads its data .* failed: no route to host"):
        rlx.envs.make(NEEDS_DOWNLOAD)


def test_contract_of_mnist_on_other_data(monkeypatch):
    from gymnax.utils import load_mnist

    images = np.arange(60 * 28 * 28).astype(np.int8).reshape(60, 28, 28)  # negative above 127, as gymnax parses them
    monkeypatch.setattr(load_mnist, "load_mnist", lambda: ((images, np.arange(60) % 10), None))
    check(rlx.envs.make(NEEDS_DOWNLOAD), num_steps=16)


@pytest.mark.parametrize("role", ["observation", "action"])
def test_a_space_that_is_neither_box_nor_discrete_is_refused(role, monkeypatch):
    from gymnax.environments import spaces
    from gymnax.environments.classic_control.cartpole import CartPole

    from rlx.envs.suites import from_gymnax

    both = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])
    monkeypatch.setattr(CartPole, f"{role}_space", lambda self, params=None: both)
    with pytest.raises(ValueError, match=rf"{role} space Tuple.* is not supported; rlx works with Box and Discrete"):
        from_gymnax.make("CartPole-v1")


def test_cartpole_is_truncated_at_500_steps_and_terminated_where_the_pole_falls():
    env = rlx.envs.make("CartPole-v1")
    fallen = first_steps(env, 60, action=1)
    assert first(fallen.terminated) < 20
    assert not fallen.truncated.any()

    # The pole does not fall in a world without weight and force.
    still = replace(
        env, params=replace(env.params, gravity=0.0, force_mag=0.0, x_threshold=1e6, theta_threshold_radians=1e6)
    )
    balanced = first_steps(still, 510)
    assert first(balanced.truncated) == 500
    assert not balanced.terminated.any()


def test_cartpole_ends_with_the_observation_of_the_fall():
    env = rlx.envs.make("CartPole-v1")
    traj = first_steps(env, 60, action=1)
    end = first(traj.terminated) - 1
    x, _, angle, _ = traj.next_obs[end]
    assert abs(float(angle)) > env.params.theta_threshold_radians or abs(float(x)) > env.params.x_threshold
    np.testing.assert_array_equal(traj.next_obs[:end], traj.obs[1 : end + 1])


def test_gymnax_params_can_be_swept_and_are_the_ones_used():
    env = rlx.envs.make("CartPole-v1")
    weak = replace(env, params=replace(env.params, force_mag=0.1))
    both = jax.vmap(lambda env: first_steps(env, 5, action=1))(stack([env, weak]))
    velocity = both.next_obs[:, -1, 1]
    assert velocity[0] > 0.5
    assert abs(velocity[1]) < 0.1


def test_gymnax_observations_and_rewards_are_float32():
    for name in ("Catch-bsuite", "FourRooms-misc", "UmbrellaChain-bsuite"):  # int32 space, observation, reward
        env = rlx.envs.make(name)
        obs, _, reward, *_ = jax.eval_shape(
            lambda key, env=env: env.environment.step(key, env.reset(key).state, jnp.int32(0), env.params),
            jax.random.key(0),
        )
        assert env.observation_space.dtype == obs.dtype == reward.dtype == jnp.float32


@cache
def brax(name, backend):
    return rlx.envs.make(f"brax/{name}", backend=backend)


def test_a_wrong_backend_is_refused_with_the_right_ones():
    with pytest.raises(ValueError, match="backend = 'warp' is not one of generalized, positional, spring, mjx"):
        rlx.envs.make("brax/ant", backend="warp")


def test_a_dictionary_of_observations_is_one_of_spaces():
    env = rlx.envs.make("brax/fast", obs_mode="dict_pixels")
    seen = jax.eval_shape(env.reset, jax.random.key(0)).obs
    assert {name: box.shape for name, box in env.observation_space.spaces.items()} == {
        n: x.shape for n, x in seen.items()
    }
    assert set(seen) == {"pixels/view_0", "pixels/view_1"}


@pytest.mark.more
def test_brax_params_are_the_model_that_is_stepped_and_can_be_swept():
    env = brax("inverted_pendulum", "mjx")

    def fall(env, gravity):
        """Angular velocity of the pole after a few steps from one and the same start."""
        params = env.params.tree_replace({"opt.gravity": gravity})
        return first_steps(replace(env, params=params), 4, action=jnp.zeros(1)).next_obs[-1, 3]

    gravity = jnp.array([[0.0, 0.0, -9.81], [0.0, 0.0, 0.0], [0.0, 0.0, -9.81]])
    earth, space, again = jax.jit(jax.vmap(fall, in_axes=(None, 0)))(env, gravity)
    assert earth == again
    assert abs(earth - space) > 1e-3
    assert not isinstance(env.environment.environment.sys.opt.gravity, jax.core.Tracer)
    np.testing.assert_array_equal(env.environment.environment.sys.opt.gravity, env.params.opt.gravity)


@pytest.mark.parametrize("name", ["mjx/pendulum", "brax/inverted_pendulum"])
def test_parameters_are_bound_to_no_device(name):
    """What is committed to the first device cannot be given to a program over several."""
    assert not [x for x in jax.tree.leaves(rlx.envs.make(name)) if getattr(x, "committed", False)]


@pytest.mark.more
def test_brax_does_not_write_into_the_state_that_it_is_given():
    env = brax("reacher", "spring")
    key = jax.random.key(0)

    def program(key):
        start = env.reset(key).state
        before = dict(start.metrics)
        env.environment.step(key, start, jnp.ones(2), env.params)
        return [start.metrics[name] is value for name, value in before.items()]

    kept = []
    jax.eval_shape(lambda key: kept.extend(program(key)) or 0, key)
    assert kept == [True, True]


def test_brax_episodes_are_truncated_at_1000_steps():
    traj = jax.jit(lambda env: first_steps(env, 1001))(rlx.envs.make("brax/fast"))
    assert first(traj.truncated) == from_brax.EPISODE_STEPS == 1000
    assert not traj.terminated.any()


def play(name, action=None, num_steps=5, **changes):
    return jax.vmap(lambda key: first_steps(rlx.envs.make(f"probe/{name}", **changes), num_steps, key, action))(
        jnp.arange(16)
    )


def test_constant_gives_one_for_one_step():
    traj = play("Constant")
    assert (traj.terminated[:, 0]).all()
    assert (traj.reward[:, 0] == 1.0).all()


def test_observation_gives_what_is_seen():
    traj = play("Observation")
    assert set(traj.obs[:, 0, 0].tolist()) == {-1.0, 1.0}
    np.testing.assert_array_equal(traj.reward[:, 0], traj.obs[:, 0, 0])
    assert traj.terminated[:, 0].all()


def test_discount_gives_one_at_the_second_step():
    traj = play("Discount")
    np.testing.assert_array_equal(traj.obs[:, :2, 0], np.tile([0.0, 1.0], (16, 1)))
    np.testing.assert_array_equal(traj.reward[:, :2], np.tile([0.0, 1.0], (16, 1)))
    np.testing.assert_array_equal(traj.terminated[:, :2], np.tile([False, True], (16, 1)))


@pytest.mark.parametrize(("action", "reward"), [(0, -1.0), (1, 1.0)])
def test_action_pays_for_action_one(action, reward):
    assert (play("Action", action).reward[:, 0] == reward).all()


@pytest.mark.parametrize("action", [0, 1])
def test_observation_action_pays_where_both_fit(action):
    traj = play("ObservationAction", action)
    np.testing.assert_array_equal(traj.reward[:, 0], np.where(traj.obs[:, 0, 0] == 2 * action - 1, 1.0, -1.0))


def test_continuous_action_pays_most_at_half_the_observation():
    traj = play("ContinuousAction", [0.5])
    np.testing.assert_allclose(traj.reward[:, 0], np.where(traj.obs[:, 0, 0] == 1.0, 1.0, 0.0))


def test_endless_is_cut_and_never_terminates():
    traj = play("Endless", num_steps=9)
    assert (traj.reward == 1.0).all()
    assert not traj.terminated.any()
    assert [first(row) for row in traj.truncated] == [5] * 16
    assert [first(row) for row in play("Endless", num_steps=9, max_steps=8).truncated] == [8] * 16


@pytest.mark.parametrize("name", probes.NAMES)
def test_the_reward_parameter_scales_every_reward(name):
    env = rlx.envs.make(f"probe/{name}")
    twice = replace(env, params=replace(env.params, reward=2.0))
    one, two = jax.vmap(lambda env: first_steps(env, 3).reward)(stack([env, twice]))
    np.testing.assert_array_equal(two, 2.0 * one)


DIFFERENTIABLE = ("Pendulum-v1", "MountainCarContinuous-v0", "PointRobot-misc", "Reacher-misc", "Swimmer-misc")


def two_steps(env, params, actions):
    """The return of two steps from one start."""
    env, total = rlx.replace(env, params=params), 0.0
    env_state = env.reset(jax.random.key(0))
    for action in actions:
        env_state, transition = env.advance(jax.random.key(1), env_state, action)
        total += transition.reward
    return total


def test_gymnax_keeps_gradients_where_it_can():
    for name in from_gymnax.NAMES:
        if "MNIST" not in name:  # it downloads its data
            assert rlx.envs.make(f"gymnax/{name}").environment.differentiable == (name in DIFFERENTIABLE)
    env = rlx.envs.make("gymnax/Pendulum-v1")
    grad = jax.grad(lambda first: two_steps(env, env.params, [jnp.full(1, first), jnp.full(1, 0.5)]))
    above, below = (two_steps(env, env.params, [jnp.full(1, x), jnp.full(1, 0.5)]) for x in (0.51, 0.49))
    np.testing.assert_allclose(grad(0.5), (above - below) / 0.02, rtol=1e-2)


def test_gradients_of_gymnax_that_would_be_wrong_are_refused():
    env = rlx.envs.make("gymnax/CartPole-v1")
    swing = lambda gravity: two_steps(env, env.params.replace(gravity=gravity), [0, 1])
    assert np.isfinite(jax.jit(swing)(9.8))
    for of in (jax.grad(swing), jax.jit(jax.grad(swing)), lambda x: jax.jvp(swing, (x,), (1.0,))):
        with pytest.raises(ValueError, match="gymnax/CartPole-v1 has no gradients: gymnax detaches"):
            of(9.8)
    assert jax.grad(lambda x: swing(jax.lax.stop_gradient(x)) + x)(9.8) == 1.0


def test_environments_around_gymnax_say_what_it_says():
    pendulum, cartpole = (
        rlx.envs.make("Pendulum-v1", randomize={"g": (0.5, 2.0)}, chunk=2),
        rlx.envs.make("CartPole-v1"),
    )
    assert pendulum.environment.differentiable
    assert not rlx.wrappers.randomized(cartpole, {"gravity": (0.5, 2.0)}).environment.differentiable
    assert not hasattr(rlx.envs.make("PointMaze-medium", chunk=2).environment, "differentiable")
