"""DQN and its relatives: analytic values of the probes, targets in numpy, priorities, noise, and what is refused."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import rlx
from rlx import Env, replace
from rlx.algos import dqn as module
from rlx.env import Transition
from rlx.envs.tasks.probes import Action, Discount, Endless, Legal, Mixed, Observation, ObservationAction
from rlx.networks import NOISE, ActionReturns, NoisyDense, Torso
from rlx.pytree import is_static
from rlx.replay import Prioritized, draw, insert, replay, reprioritize, rewind, take
from rlx.spaces import Box, Discrete
from rlx.train import advance

OBSERVATION, DISCOUNT, ENDLESS, ACTION, BOTH = range(5)
mixed = Mixed((Observation, Discount, Endless, Action, ObservationAction), Discrete(2))
env = Env(mixed, mixed.default_params, max_steps=3)
SMALL = {"num_envs": 4, "num_steps": 8, "batch_size": 16, "capacity": 64, "hidden_sizes": (16,), "num_atoms": 5}
small = module.Config(total_steps=128, warmup_steps=32, learning_rate=1e-2, target_period=3, **SMALL)
DISTRIBUTIONS = {"mean": {}, "atoms": {}, "quantiles": {}, "implicit": {}}


def configured(**changed):
    return replace(small, **changed)


# The probes.

LONG = {"total_steps": 20_000, "warmup_steps": 256, "num_envs": 16, "num_steps": 8, "utd_ratio": 0.25, "gamma": 0.9}
LONG |= {"batch_size": 64, "capacity": 4096, "learning_rate": 3e-3, "target_period": 20, "hidden_sizes": (32, 32)}
LEARNERS = {
    "double": {},
    "n_step": {"n_step": 3},
    "dueling, prioritized": {"dueling": True, "prioritized": True},
    "c51": {"distribution": "atoms", "lowest_return": -2.0, "highest_return": 12.0, "num_atoms": 57},
    "qr": {"distribution": "quantiles", "num_atoms": 8},
    "iqn": {"distribution": "implicit", "num_atoms": 8},
    "noisy": {"noise": 0.5, "epsilon_start": 0.3},
}


@cache
def learned(name):
    config = module.Config(**LONG | LEARNERS[name])
    return config, jax.jit(partial(rlx.train, module))(config, env, jax.random.key(0))[0]


def value(config, state, kind, obs):
    """Values of both actions where a probe shows `obs`."""
    levels = (jnp.arange(config.num_atoms) + 0.5) / config.num_atoms
    return module.returns(config, env, state.params, mixed.obs(kind, obs)[None], levels[None])[1][0]


@pytest.mark.more
@pytest.mark.parametrize("name", LEARNERS)
def test_values_are_those_of_the_probes(name):
    config, state = learned(name)
    close = partial(np.testing.assert_allclose, atol=0.35 if name == "noisy" else 0.15)
    for obs in (-1.0, 1.0):
        close(value(config, state, OBSERVATION, obs), [obs, obs])
        close(value(config, state, BOTH, obs), [-obs, obs])
    close(value(config, state, ACTION, 0.0), [-1, 1])
    close(value(config, state, DISCOUNT, 0.0), [0.9, 0.9])
    close(value(config, state, DISCOUNT, 1.0), [1, 1])
    # A time limit does not end the value: it is that of going on for ever.
    np.testing.assert_allclose(value(config, state, ENDLESS, 0.0), [10, 10], atol=0.8)


# Targets and losses.


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    num, x = 6, lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    discount = jnp.asarray(rng.choice([0.0, 0.9, 0.81], num), jnp.float32)
    return module.Batch(x(num, 6), jnp.asarray(rng.integers(2, size=num)), x(num), discount, x(num, 6))


@cache
def networks_of(config):
    """Online and target parameters that differ."""
    keys = jax.random.split(jax.random.key(7))
    init = jax.jit(lambda key: module.init(config, env, key).params)
    return init(keys[0]), init(keys[1])


def outputs(config, params, obs, levels):
    return [np.asarray(x, np.float64) for x in module.returns(config, env, params, obs, levels)]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_targets_are_those_of_numpy(batch, distribution, double):
    config = configured(double=double, distribution=distribution, lowest_return=-2.0, highest_return=3.0)
    params, target_params = networks_of(config)
    key = jax.random.key(3)
    found = module.targets(config, env, params, target_params, batch, key)
    levels = jax.random.uniform(jax.random.split(key, 4)[0], (6, 5))
    after, mean = outputs(config, target_params, batch.next_obs, levels)
    choice = outputs(config, params, batch.next_obs, levels)[1] if double else mean
    for i in range(6):
        best = int(np.argmax(choice[i]))
        reward, discount = float(batch.reward[i]), float(batch.discount[i])
        if distribution == "mean":
            wanted = reward + discount * after[i, best]
        elif distribution == "atoms":
            support = np.linspace(-2, 3, 5)
            p = np.exp(after[i, best] - after[i, best].max())
            wanted = np.zeros(5)
            for mass, atom in zip(p / p.sum(), np.clip(reward + discount * support, -2, 3), strict=True):
                place = (atom + 2) / 1.25
                low = min(int(np.floor(place)), 3)
                wanted[low] += mass * (1 - (place - low))
                wanted[low + 1] += mass * (place - low)
        else:
            wanted = reward + discount * after[i, best]
        np.testing.assert_allclose(found[i], wanted, rtol=1e-4, atol=1e-5)


def test_the_target_of_munchausen_is_that_of_numpy_and_becomes_that_of_dqn(batch):
    config = configured(munchausen_coef=0.9, temperature=0.5, lowest_log_prob=-0.3, double=False)
    params, target_params = networks_of(configured())
    found = module.targets(config, env, params, target_params, batch, jax.random.key(0))
    q, after = (outputs(config, target_params, obs, None)[1] for obs in (batch.obs, batch.next_obs))
    log_pi = q / 0.5 - np.log(np.exp(q / 0.5).sum(-1, keepdims=True))
    taken = log_pi[np.arange(6), np.asarray(batch.action)]
    soft = 0.5 * np.log(np.exp(after / 0.5).sum(-1))
    wanted = np.asarray(batch.reward) + 0.9 * np.clip(0.5 * taken, -0.3, 0) + np.asarray(batch.discount) * soft
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    cold = module.targets(
        replace(config, munchausen_coef=1e-9, temperature=1e-4), env, params, target_params, batch, jax.random.key(0)
    )
    plain = module.targets(replace(config, munchausen_coef=0.0), env, params, target_params, batch, jax.random.key(0))
    np.testing.assert_allclose(cold, plain, atol=1e-3)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_losses_are_those_of_numpy(batch, distribution):
    config = configured(distribution=distribution)
    params, _ = networks_of(config)
    rng, key = np.random.default_rng(1), jax.random.key(5)
    target = rng.normal(size=6 if distribution == "mean" else (6, 5)).astype(np.float32)
    if distribution == "atoms":
        target = rng.dirichlet(np.ones(5), size=6).astype(np.float32)
    weight = rng.random(6).astype(np.float32)
    levels = jax.random.uniform(jax.random.split(key)[0], (6, 5))
    out, mean = outputs(config, params, batch.obs, levels)
    each, values = [], []
    for i in range(6):
        action = int(batch.action[i])
        values.append(mean[i, action])
        if distribution == "mean":
            each.append(0.5 * (out[i, action] - target[i]) ** 2)
        elif distribution == "atoms":
            logits = out[i, action]
            each.append(-np.sum(target[i] * (logits - np.log(np.exp(logits).sum()))))
        else:
            at = np.asarray(levels[i]) if distribution == "implicit" else (np.arange(5) + 0.5) / 5
            u = target[i][None, :] - out[i, action][:, None]
            huber = np.where(np.abs(u) <= 1, 0.5 * u**2, np.abs(u) - 0.5)
            each.append((np.abs(at[:, None] - (u < 0)) * huber).mean(1).sum())
    loss, (priority, value) = module.loss(params, config, env, batch, jnp.asarray(target), jnp.asarray(weight), key)
    np.testing.assert_allclose(loss, np.mean(weight * each), rtol=1e-4)
    np.testing.assert_allclose(value, values, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(priority, np.sqrt(2 * np.array(each)) if distribution == "mean" else each, rtol=1e-4)


def test_the_mean_on_atoms_is_that_of_their_probabilities(batch):
    config = configured(distribution="atoms", lowest_return=-2.0, highest_return=3.0)
    out, mean = outputs(config, networks_of(config)[0], batch.obs, None)
    p = np.exp(out) / np.exp(out).sum(-1, keepdims=True)
    np.testing.assert_allclose(mean, p @ np.linspace(-2, 3, 5), rtol=1e-5, atol=1e-6)


def test_what_is_beyond_the_atoms_is_told():
    narrow = configured(distribution="atoms", lowest_return=-1e-3, highest_return=1e-3)
    wide = configured(distribution="atoms", lowest_return=-100.0, highest_return=100.0)
    share = lambda config: rlx.train(module, config, env, jax.random.key(0))[1]["mass_at_ends"][-1]
    assert share(narrow) > 0.9
    assert share(wide) < 0.6


# Priorities.


def filled(num, capacity, spare=0, blocks_of=None):
    buffer = replay({"x": jax.ShapeDtypeStruct((), jnp.int32)}, capacity, spare, prioritized=True)
    return insert(buffer, {"x": jnp.arange(num)})


def test_elements_are_drawn_as_often_as_their_priorities_say():
    buffer = filled(100, 150)
    p = np.random.default_rng(0).random(100) ** 4
    p[[3, 50, 99]] = 0.0
    buffer = reprioritize(buffer, jnp.arange(100), jnp.asarray(p, jnp.float32))
    index, weight = jax.jit(draw, static_argnums=2)(buffer, jax.random.key(0), 200_000, 0.6)
    counts = np.bincount(take(buffer, index)["x"], minlength=150)
    assert counts[[3, 50, 99]].sum() == counts[100:].sum() == 0
    chance = p / p.sum()
    often = chance > 1e-3
    np.testing.assert_allclose(counts[:100][often] / 200_000, chance[often], atol=5 * np.sqrt(0.05 / 200_000))
    wanted = (100 * chance[np.asarray(index)]) ** -0.6
    np.testing.assert_allclose(weight, wanted / wanted.max(), rtol=1e-4)


def test_without_a_power_samples_are_uniform_and_weights_one():
    buffer = reprioritize(filled(64, 64), jnp.arange(64), (jnp.arange(64.0) + 1e-6) ** 0.0)
    index, weight = draw(buffer, jax.random.key(1), 20_000, 0.4)
    assert stats.chisquare(np.bincount(index, minlength=64)).pvalue > 1e-3
    np.testing.assert_allclose(weight, 1, rtol=1e-5)


def test_at_beta_one_a_weighted_mean_is_the_mean_over_the_buffer():
    rng = np.random.default_rng(0)
    numbers, p = rng.normal(size=50) + 2, rng.random(50) + 0.1
    buffer = reprioritize(filled(50, 50), jnp.arange(50), jnp.asarray(p, jnp.float32))
    index, weight = draw(buffer, jax.random.key(2), 100_000, 1.0)
    found = (np.asarray(weight, np.float64) * numbers[np.asarray(index)]).sum() / np.asarray(weight).sum()
    np.testing.assert_allclose(found, numbers.mean(), rtol=0.02)


def test_new_elements_have_the_highest_priority_and_the_oldest_none():
    buffer = filled(8, 8, spare=3)
    assert isinstance(buffer, Prioritized)
    buffer = reprioritize(buffer, jnp.array([2]), jnp.array([5.0]))
    buffer = insert(buffer, {"x": jnp.array([100, 101])})
    there = np.asarray(buffer.priority)
    assert there[8:10].tolist() == [5.0, 5.0]
    # The two oldest of ten are spare, and one was never there.
    assert there[:11].tolist() == [0, 0, 5, 1, 1, 1, 1, 1, 5, 5, 0]
    assert not there[11:].any()
    index, _ = draw(buffer, jax.random.key(0), 4000, 1.0)
    assert set(take(buffer, index)["x"].tolist()) == {2, 3, 4, 5, 6, 7, 100, 101}
    np.testing.assert_allclose((buffer.priority, *buffer.sums)[-1].sum(), there.sum())


@pytest.mark.parametrize(("capacity", "levels"), [(45, 1), (2000, 2), (40_000, 3)])
def test_sums_are_those_of_their_blocks_after_many_changes(capacity, levels):
    buffer, rng = filled(capacity - 5, capacity), np.random.default_rng(0)
    change, add = jax.jit(reprioritize), jax.jit(insert)
    for _ in range(50):
        index = jnp.asarray(rng.integers(capacity - 5, size=7))
        buffer = change(buffer, index, jnp.asarray(10.0 ** rng.uniform(-6, 6, 7), jnp.float32))
        buffer = add(buffer, {"x": jnp.arange(3)})
    assert len(buffer.sums) == levels
    below = np.asarray(buffer.priority, np.float64)
    for found in buffer.sums:
        below = below.reshape(-1, 32).sum(1)
        np.testing.assert_allclose(found[: len(below)], below, rtol=1e-6)
        assert not found[len(below) :].any()
        below = np.asarray(found, np.float64)


def test_elements_of_a_large_buffer_are_drawn_as_often_as_their_priorities_say():
    buffer, p = filled(3000, 3000), np.random.default_rng(0).random(3000) ** 2
    buffer = reprioritize(buffer, jnp.arange(3000), jnp.asarray(p, jnp.float32))
    index, _ = draw(buffer, jax.random.key(3), 300_000, 1.0)
    counts = np.bincount(index, minlength=3000)
    expected = 300_000 * p / p.sum()
    often = expected > 5  # what the chi-square test asks for
    rest = [counts[~often].sum(), expected[~often].sum()]
    found, wanted = np.append(counts[often], rest[0]), np.append(expected[often], rest[1])
    assert stats.chisquare(found, wanted).pvalue > 1e-3


def test_no_draw_copies_all_priorities():
    """A copy of a million priorities would take ten times as long as all else that a draw does."""
    buffer = filled(4000, 5000)

    def step(buffer, key):
        index, weight = draw(buffer, key, 8, 0.5)
        return reprioritize(buffer, index, jax.random.uniform(key, (8,))), weight.sum()

    run = jax.jit(partial(jax.lax.scan, step), donate_argnums=0)
    text = run.lower(buffer, jax.random.split(jax.random.key(0), 9)).compile().as_text()
    (size,) = buffer.priority.shape
    assert f"f32[{size}]" in text
    assert f"f32[{size}]{{0}} copy(" not in text


def test_an_undone_insertion_gives_the_priorities_back():
    before = reprioritize(filled(8, 8, spare=3), jnp.arange(8), jnp.arange(1.0, 9.0))
    after = reprioritize(insert(before, {"x": jnp.array([100, 101])}), jnp.array([4]), jnp.array([77.0]))
    undone = rewind(after, before, jnp.array(True))
    for name in ("priority", "sums", "highest"):
        jax.tree.map(np.testing.assert_array_equal, getattr(undone, name), getattr(before, name))
    index, _ = draw(undone, jax.random.key(0), 2000, 1.0)
    assert set(take(undone, index)["x"].tolist()) == set(range(8))
    kept = rewind(after, before, jnp.array(False))
    np.testing.assert_array_equal(kept.priority, after.priority)


def test_a_plain_buffer_is_drawn_from_uniformly():
    buffer = insert(replay({"x": jax.ShapeDtypeStruct((), jnp.int32)}, 8), {"x": jnp.arange(8)})
    index, weight = draw(buffer, jax.random.key(0), 8000, 0.7)
    assert stats.chisquare(np.bincount(index, minlength=8)).pvalue > 1e-3
    assert (weight == 1).all()
    assert reprioritize(buffer, index, weight) is buffer


# Networks.


def test_a_constant_in_all_advantages_changes_nothing():
    net = ActionReturns(Discrete(3), Torso(Box(-1.0, 1.0, (2,)), (4,)), dueling=True)
    params, obs = net.init(jax.random.key(0), jnp.ones(2)), jnp.array([[0.3, -0.7]])
    q = net.apply(params, obs)
    params["params"]["head"]["bias"] += 5.0
    np.testing.assert_allclose(net.apply(params, obs), q, atol=1e-6)
    params["params"]["state"]["bias"] += 5.0
    np.testing.assert_allclose(net.apply(params, obs), q + 5.0, atol=1e-5)


@pytest.mark.parametrize("implicit", [False, True])
def test_atoms_are_those_of_each_action(implicit):
    net = ActionReturns(Discrete(3), Torso(Box(-1.0, 1.0, (2,)), (4,)), 5, implicit=implicit, dueling=True)
    levels = jnp.linspace(0, 1, 5)
    params = net.init(jax.random.key(0), jnp.ones(2), levels)
    assert net.apply(params, jnp.ones((7, 2)), jnp.tile(levels, (7, 1))).shape == (7, 3, 5)
    if implicit:  # what a level gives does not depend on the other levels
        one = net.apply(params, jnp.ones((1, 2)), levels[None])
        other = net.apply(params, jnp.ones((1, 2)), levels[None, ::-1])
        np.testing.assert_allclose(one, other[..., ::-1], rtol=1e-5)


def test_a_noisy_layer_without_noise_is_dense():
    layer = NoisyDense(3, 0.5)
    params = layer.init({"params": jax.random.key(0), NOISE: jax.random.key(1)}, jnp.ones(4))
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    weights = params["params"]
    plain = x @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(layer.apply(params, x), plain, rtol=1e-6)
    still = {"params": weights | {name: 0 * weights[name] for name in ("kernel_scale", "bias_scale")}}
    np.testing.assert_allclose(layer.apply(still, x, rngs={NOISE: jax.random.key(2)}), plain, rtol=1e-6)
    draws = jax.vmap(lambda key: layer.apply(params, x, rngs={NOISE: key}))(jax.random.split(jax.random.key(3), 40_000))
    np.testing.assert_allclose(draws.mean(0), plain, atol=0.03)
    # E f(x)^2 = E |x| = sqrt(2 / pi), of a normal x
    size, scale = np.sqrt(2 / np.pi), 0.5 / 2
    wanted = scale**2 * (size**2 * np.sum(np.square(x)) + size)
    np.testing.assert_allclose(draws.var(0), wanted, rtol=0.06)


# Acting.


def test_environments_have_noise_of_their_own_and_evaluation_none():
    config = configured(noise=0.5, epsilon_start=0.0, epsilon_end=0.0)
    state = jax.jit(module.init)(config, env, jax.random.key(0))
    obs = jnp.tile(mixed.obs(ACTION, 0.0), (256, 1))
    act = jax.jit(partial(module.act, config, env, state), static_argnames="deterministic")
    assert len(set(act(obs, jax.random.key(1))[1].tolist())) == 2
    first, second = (act(obs, jax.random.key(i), deterministic=True)[1] for i in (1, 2))
    np.testing.assert_array_equal(first, second)
    assert len(set(first.tolist())) == 1


def test_epsilon_is_followed_while_acting_and_not_when_judged():
    config = configured(epsilon_start=1.0, epsilon_end=0.0, epsilon_share=0.5, total_steps=32 * 11)
    state = jax.jit(module.init)(config, env, jax.random.key(0))
    obs = jnp.tile(mixed.obs(ACTION, 0.0), (4000, 1))
    best = module.act(config, env, state, obs, jax.random.key(1), deterministic=True)[1][0]
    for num, wanted in ((0, 0.5), (5, 1.0), (10, 1.0)):
        now = replace(state, num_updates=jnp.int32(num))
        share = (module.act(config, env, now, obs, jax.random.key(1))[1] == best).mean()
        np.testing.assert_allclose(share, wanted, atol=0.04)


def test_no_illegal_action_is_taken_or_valued():
    task = Env(Legal(), Legal.default_params)
    config = configured(epsilon_start=0.5)
    state, _ = rlx.train(module, config, task, jax.random.key(0))
    played = state.replay.data
    size = int(state.replay.size)
    rows = np.asarray(played.obs["action_mask"])[np.arange(size), np.asarray(played.action)[:size]]
    assert rows.all()
    q = module.returns(config, task, state.params, played.obs, None)[1]
    assert (np.asarray(q)[~np.asarray(played.obs["action_mask"])] < -1e8).all()


# Runs.


def test_the_target_moves_by_periods():
    config = configured(target_period=3, tau=1.0, utd_ratio=1 / 32)  # one gradient step an update
    state = jax.jit(module.init)(config, env, jax.random.key(0))
    update = jax.jit(module.update)
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
    for i in range(1, 7):
        before, (state, _) = state, update(config, env, state)
        assert same(state.target_params, state.params if i % 3 == 0 else before.target_params)
        assert not same(state.params, before.params)


def test_steps_of_several_are_kept_with_their_discounts():
    config = configured(n_step=3, gamma=0.5)
    x = lambda *rows: jnp.array(rows, jnp.float32)[:, None]
    end = jnp.array([False, True, False, False])[:, None]
    zero = jnp.zeros((4, 1), bool)
    traj = Transition(x(0, 1, 2, 3), zero, x(1, 2, 4, 8), x(1, 2, 3, 4), end, zero, zero, zero, {}, zero)
    kept = module.kept(config, replace(traj, recorded=zero.astype(jnp.int32)))
    np.testing.assert_allclose(kept.reward[:, 0], [2, 2, 8, 8])
    np.testing.assert_allclose(kept.discount[:, 0], [0, 0, 0.25, 0.5])
    np.testing.assert_allclose(kept.next_obs[:, 0], [2, 2, 4, 4])


@pytest.mark.parametrize("variant", ["double", "rainbow"])
def test_a_run_in_pieces_is_bitwise_the_same(variant):
    config = configured(**module.VARIANTS[variant])
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    state = jax.jit(module.init)(config, env, jax.random.key(0))
    whole = chunk(module, config, env, state, 0, 3, 3)[0]
    parts = chunk(module, config, env, state, 0, 1, 3)[0]
    parts = chunk(module, config, env, parts, 1, 2, 3)[0]
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        np.testing.assert_array_equal(data(a), data(b))


@pytest.mark.parametrize("variant", ["double", "rainbow"])
def test_a_lane_is_the_single_run(variant):
    config = configured(**module.VARIANTS[variant])
    keys = jax.random.split(jax.random.key(0), 2)
    train = lambda key: rlx.train(module, config, env, key)[0].params
    lanes = jax.jit(jax.vmap(train))(keys)
    one = train(keys[1])
    for a, b in zip(jax.tree.leaves(lanes), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=2e-4, atol=2e-5)


def test_one_program_serves_all_traced_settings():
    numbers = [f.name for f in dataclasses.fields(module.Config) if not is_static(f)]
    count = []

    def program(config, key):
        count.append(1)
        return module.init(config, env, key).num_updates

    run = jax.jit(program)
    run(small, jax.random.key(0))
    run(replace(small, **{name: 0.5 for name in numbers if name != "target_period"}), jax.random.key(0))
    run(replace(small, target_period=7), jax.random.key(0))
    assert len(count) <= 2  # the default of a float may be a whole number


def test_every_variant_has_settings_that_there_are():
    for name, settings in module.VARIANTS.items():
        assert replace(small, **settings) is not None, name


def test_settings_that_cannot_work_are_refused():
    refused = {
        "more than num_steps = 8": configured(n_step=9),
        "leave distribution at 'mean'": configured(munchausen_coef=0.9, distribution="atoms"),
        "must fit the buffer": configured(batch_size=1000),
        "whole number": configured(utd_ratio=0.01),
    }
    for message, config in refused.items():
        with pytest.raises(ValueError, match=message):
            module.check(config, env)
    with pytest.raises(ValueError, match="needs discrete actions"):
        module.check(small, rlx.envs.make("Pendulum-v1"))
