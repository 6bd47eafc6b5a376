"""Runs as lanes of one program: groups, equality with single runs, frozen lanes, memory, populations."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import replace
from rlx.devices.spread import spread
from rlx.spaces import Box, Discrete
from rlx.sweeps.lanes import Program, carry, fit, groups, memory_bound
from rlx.sweeps.strategies import Population
from rlx.train import advance, evaluate

RATES = (1e-2, 1e-3, np.inf, 3e-3, 1e-4)


def bits(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


@pytest.fixture(scope="module")
def group(small, cartpole):
    """Five configurations: learning rates, and two masses of the pole."""
    heavier = replace(cartpole, params=replace_mass(cartpole.params, 0.3))
    pairs = [(replace(small, learning_rate=rate), heavier if i % 2 else cartpole) for i, rate in enumerate(RATES)]
    (group,) = groups(pairs)
    return group


def replace_mass(params, mass):
    return params.replace(masspole=mass)


@pytest.fixture(scope="module")
def program(ppo, group):
    return Program(ppo, group, num_lanes=6, num_eval_episodes=2, length=2)


def run(program, group, numbers, cuts=(2, 1)):
    """Trains the configurations of these numbers, seed i on lane i. Returns the last carry and the metrics [L, 3]."""
    keys = program.place(jax.vmap(jax.random.key)(jnp.arange(len(numbers))))
    values = program.place(group.values(numbers))
    state = carry(values, program.init(values, program.shared, keys), keys, interacts=False)
    done, found = 0, []
    for num in cuts:
        state, metrics = program.step(state, program.shared, jnp.int32(done), jnp.int32(num))
        found.append(jax.tree.map(lambda x, num=num: np.asarray(x)[:, :num], metrics))
        done += num
    return state, jax.tree.map(lambda *x: np.concatenate(x, 1), *found)


@pytest.fixture(scope="module")
def trained(program, group):
    return run(program, group, range(5))


def test_static_fields_make_groups_and_nothing_else_does(small, cartpole):
    configs = [
        replace(small, learning_rate=lr, num_envs=n, clip=c) for n in (4, 8) for lr in (1, 2) for c in (0.1, 0.2)
    ]
    found = groups([(config, cartpole) for config in configs])
    assert [group.numbers for group in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found[0].names == ["learning_rate", "clip"]
    np.testing.assert_allclose(found[1].values([6, 4])[0], [2, 1])


def test_what_does_not_differ_is_not_batched(group):
    assert group.names == ["learning_rate", "env.masspole"]
    assert all(np.ndim(leaf) == 0 for leaf in group.shared if leaf is not None)
    config, env = group.join([v[3] for v in group.values(range(5))], group.shared)
    assert (float(config.learning_rate), float(env.params.masspole)) == (np.float32(3e-3), np.float32(0.3))
    assert config.gamma == np.float32(0.99)


@pytest.mark.parametrize("lane", [0, 1, 3])
def test_a_lane_is_the_single_run(ppo, init, group, small, cartpole, trained, lane):
    env = replace(cartpole, params=replace_mass(cartpole.params, 0.3)) if lane % 2 else cartpole
    config = replace(small, learning_rate=RATES[lane])
    state = init(config, env, jax.random.key(lane))
    state, metrics = jax.jit(advance, static_argnums=(0, 6))(ppo, config, env, state, 0, 3, 3)
    # Another program of the same operations: sums are taken in another order. One float32 rounding is 6e-8 of a number,
    # and three updates of 4 gradient steps make of it what is allowed here; over many updates it grows without bound.
    mine = jax.tree.map(lambda x: x[lane], trained[0]["state"].params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), mine, state.params)
    np.testing.assert_allclose(trained[1]["entropy"][lane], metrics["entropy"], rtol=1e-5)
    np.testing.assert_array_equal(trained[1]["num_episodes"][lane], metrics["num_episodes"])


def test_a_lane_that_dies_is_frozen_and_touches_no_other(program, group, trained):
    state, metrics = trained
    assert state["state"].num_updates.tolist()[:5] == [3, 3, 0, 3, 3]
    assert (metrics["entropy"][2] == 0).all()
    assert all(np.isfinite(leaf[2]).all() for leaf in jax.tree.leaves(state["state"].params))
    sound, _ = run(program, group, [0, 1, 1, 3, 4])
    for lane in (0, 1, 3, 4):
        assert_equal(*(jax.tree.map(lambda x, lane=lane: x[lane], s["state"]) for s in (sound, state)))


def test_lanes_do_not_depend_on_the_cuts_or_on_their_place(program, group, trained):
    assert_equal(run(program, group, range(5), cuts=(1, 1, 1))[0]["state"], trained[0]["state"])
    keys = jax.vmap(jax.random.key)(jnp.array([4, 0, 1, 3, 2]))
    values = program.place(group.values([4, 0, 1, 3, 2]))
    state = carry(values, program.init(values, program.shared, program.place(keys)), program.place(keys), False)
    state, _ = program.step(state, program.shared, jnp.int32(0), jnp.int32(2))
    state, _ = program.step(state, program.shared, jnp.int32(2), jnp.int32(1))
    other = jax.tree.map(lambda x: x[jnp.array([1, 2, 4, 3, 0])], state["state"])
    assert_equal(other.params, jax.tree.map(lambda x: x[:5], trained[0]["state"].params))


def test_missing_lanes_repeat_the_last_one(program, trained):
    assert program.place(jnp.arange(4)).tolist() == [0, 1, 2, 3, 3, 3]
    assert_equal(*(jax.tree.map(lambda x, i=i: x[i], trained[0]["values"]) for i in (4, 5)))


def test_lanes_are_spread_over_all_devices(program, trained):
    assert jax.device_count() == 2
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(trained[0]["state"].params)} == {2}


class Hollow:
    """One step of one observation, whose state has an array without elements, as states of physics have."""

    default_params = None

    def observation_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        return jnp.ones(1), {"x": jnp.ones(1), "none": jnp.zeros((0, 3))}

    def step(self, key, state, action, params):
        return jnp.ones(1), state, 1.0, True, False, {}


def test_states_with_arrays_without_elements_are_spread_too(ppo, small):
    env = rlx.Env(Hollow(), None)
    (group,) = groups([(replace(small, learning_rate=rate), env) for rate in RATES[:2]])
    program = Program(ppo, group, num_lanes=2, num_eval_episodes=2, length=2)
    _, metrics = run(program, group, range(2))
    np.testing.assert_array_equal(metrics["episode_return"], 1.0)


def test_evaluation_of_a_lane_is_that_of_the_single_run(ppo, program, group, trained):
    keys = program.place(jax.vmap(jax.random.key)(jnp.arange(5)))
    values = program.place(group.values(range(5)))
    episodes = program.evaluate(values, program.shared, trained[0]["state"], keys)
    config, env = group.join([v[1] for v in values], group.shared)
    state = jax.tree.map(lambda x: x[1], trained[0]["state"])
    expected = evaluate(ppo, config, env, state, jax.random.key(1), 2)
    np.testing.assert_array_equal(episodes.returns[1], expected.returns)


def test_the_memory_of_a_program_covers_its_states(program, trained):
    held = sum(bits(leaf).nbytes for leaf in jax.tree.leaves(trained[0]))
    assert held < program.bytes < 100 * held


@pytest.mark.parametrize(
    ("num_lanes", "memory", "expected"),
    [(8, 800, [8]), (8, 799, [8, 4]), (9, 500, [10, 6, 4]), (7, 200, [8, 2]), (1, 1000, [2])],
)
def test_lanes_are_cut_into_equal_batches_that_fit(num_lanes, memory, expected):
    built = []

    def build(num):
        built.append(num)
        return SimpleNamespace(bytes=100 * num, num_lanes=num)

    assert fit(build, num_lanes, 2, memory).num_lanes == expected[-1]
    assert built[0] == expected[0]
    assert all(num % 2 == 0 for num in built)


def test_memory_that_not_even_one_lane_fits():
    with pytest.raises(ValueError, match=r"needs 200\.0 MiB and the bound is 199\.0 MiB: raise it"):
        fit(lambda num: SimpleNamespace(bytes=100 * 2**20 * num), 32, 2, 199 * 2**20)


def test_memory_bound_is_part_of_what_there_is():
    assert 2**28 < memory_bound() < 2**45


def test_a_population_copies_inside_its_program(ppo, group, small, cartpole):
    """After an interval copied members have their parent's weights, a key of their own, and perturbed settings."""
    pairs = [(replace(small, learning_rate=rate), cartpole) for rate in (1e-3, 2e-3, 4e-3, 8e-3)]
    (group,) = groups(pairs)
    program = Program(ppo, group, 4, num_eval_episodes=1, length=2, strategy=Population(2))
    keys = program.place(jax.vmap(jax.random.key)(jnp.arange(4)))
    values = program.place(group.values(range(4)))
    step = partial(program.step, carry(values, program.init(values, program.shared, keys), keys, interacts=True))
    state, metrics = step(program.shared, jnp.int32(0), jnp.int32(2))
    episodes = np.asarray(metrics["num_episodes"], float)
    scores = (np.asarray(metrics["episode_return"]) * episodes).sum(1) / episodes.sum(1)
    parent = np.asarray(state["parent"])
    worst = scores.argmin()
    assert scores[parent[worst]] == scores.max() > scores[worst]
    assert all(parent[i] == i for i in range(4) if i != worst)
    rate = np.asarray(state["values"][0])
    assert rate[worst] in [np.float32(r) for r in (rate[parent[worst]] * 1.2, rate[parent[worst]] / 1.2, 1e-3, 8e-3)]
    assert rate[worst] != rate[parent[worst]] or rate[worst] in np.float32([1e-3, 8e-3])
    mother, child = (jax.tree.map(lambda x, i=i: x[i], state["state"]) for i in (parent[worst], worst))
    assert_equal(child.params, mother.params)
    assert_equal(child.opt_state, mother.opt_state)
    assert bits(child.key).tolist() != bits(mother.key).tolist()
    assert not np.asarray(state["tally"]).any()


@pytest.mark.parametrize("num", [1, 2, 5])
def test_lanes_spread_over_devices_are_those_of_a_vmap(num):
    @spread
    def lanes(key, scale, shift):
        return jax.random.normal(key, (3,)) * scale["by"] + shift, jax.lax.axis_index("lane")

    keys = jax.random.split(jax.random.key(0), num)
    found, device = lanes(keys, {"by": 2.0}, jnp.ones(3))
    expected = jax.vmap(lambda key: jax.random.normal(key, (3,)) * 2.0 + 1.0)(keys)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # contracted into one operation or not
    half = -(-num // jax.device_count())
    np.testing.assert_array_equal(device, [i // half for i in range(num)])
