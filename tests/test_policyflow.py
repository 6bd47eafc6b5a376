"""PolicyFlow: its loss by the equations and in the cases with a closed form. See also test_flow_policies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace
from rlx.algos import policyflow
from rlx.distributions import Normal
from rlx.flow import interpolate, midpoint
from rlx.rollout import flatten, rollout

SIZES = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "num_epochs": 3, "hidden_sizes": (8,)}
CONFIG = policyflow.Config(flow_steps=3, num_features=8, total_steps=3 * 64, learning_rate=1e-2, **SIZES)
OBJECTIVE = jax.tree_util.Partial(policyflow.objective)
T = jnp.arange(64) % 7 / 6.0


@pytest.fixture(scope="module")
def env():
    return rlx.envs.make("rlx/MultiGoal", max_steps=12)


@pytest.fixture(scope="module")
def update(env):
    return jax.jit(lambda config, state: policyflow.update(config, env, state))


@pytest.fixture(scope="module")
def state(env, update):
    return update(CONFIG, policyflow.init(CONFIG, env, jax.random.key(0)))[0]


@pytest.fixture(scope="module")
def batch(env, state):
    """What the state makes of its rollout, `[64]`."""

    @jax.jit
    def batch():
        _, key, _, _ = jax.random.split(state.key, 4)
        _, traj = rollout(env, partial(policyflow.act, CONFIG, env, state), state.env_state, key, CONFIG.num_steps)
        return flatten(policyflow.advantages(CONFIG, env, state, traj)[0])

    return batch()


@pytest.fixture(scope="module")
def loss(env):
    """Loss, parts and gradient."""

    @jax.jit
    def loss(params, reference, config, batch, t, objective=OBJECTIVE):
        function = jax.value_and_grad(policyflow.loss, has_aux=True)
        return function(params, reference, config, env, batch, t, 0.0, objective)

    return loss


def moved(params, size=0.05):
    return jax.tree.map(lambda x: x + size * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


def velocity(env, params, batch, x, t):
    return policyflow.networks(CONFIG, env)[0].apply(params["actor"], batch.obs, x, t)


@pytest.mark.more
def test_the_loss_is_its_equation(env, state, batch, loss):
    config = replace(CONFIG, clip=0.05, value_coef=0.7, entropy_coef=0.3, brownian_coef=0.4)
    reference, params = state.params, moved(state.params)
    path, t = batch.recorded, np.asarray(T)[:, None]
    start, end, noise = (np.asarray(x, np.float64) for x in (path.start, path.end, path.noise))
    x = (1 - t) * start + t * end
    new, old = (np.float64(velocity(env, p, batch, jnp.float32(x), T)) for p in (params, reference))
    std, old_std = np.exp(np.float64(params["log_std"])), np.exp(np.float64(reference["log_std"]))
    delta = new - old
    log_ratio = (-((noise - delta) ** 2) / (2 * std**2) + noise**2 / (2 * old_std**2) - np.log(std / old_std)).sum(-1)
    ratio, advantage = np.exp(log_ratio), np.asarray(batch.advantage, np.float64)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    value = np.float64(policyflow.networks(config, env)[1].apply(params["critic"], batch.obs))
    before, target = np.float64(batch.value), np.float64(batch.target)
    inside = before + np.clip(value - before, -0.2, 0.2)
    expected = {
        "policy_loss": -np.minimum(ratio * advantage, np.clip(ratio, 0.95, 1.05) * advantage).mean(),
        "brownian": np.square((1 - t) * new - (x - t * old)).mean(),
        "value_loss": 0.5 * np.maximum((value - target) ** 2, (inside - target) ** 2).mean(),
        "entropy": 0.5 * np.log(2 * np.pi * np.e * std**2).sum(),
        "kl": (np.log(std / old_std) + (old_std**2 + delta**2) / (2 * std**2) - 0.5).sum(-1).mean(),
        "clip_fraction": (np.abs(ratio - 1) > 0.05).mean(),
    }
    (total, parts), _ = loss(params, reference, config, batch, T)
    assert 0 < expected["clip_fraction"] < 1
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        # Means of 64 or 128 float32 numbers of order 1 to 10.
        np.testing.assert_allclose(part, expected[name], rtol=2e-3, atol=1e-5, err_msg=name)
    weights = {"policy_loss": 1.0, "value_loss": 0.7, "brownian": 0.4, "entropy": -0.3}
    np.testing.assert_allclose(total, sum(w * expected[name] for name, w in weights.items()), rtol=1e-3)


@pytest.mark.parametrize("clip", [0.01, 0.2])
def test_the_first_gradient_moves_velocities_along_the_noise_of_good_actions(env, state, batch, loss, clip):
    config = replace(CONFIG, clip=clip, value_coef=0.0, entropy_coef=0.0, brownian_coef=0.0)
    advantage = np.asarray(batch.advantage)
    advantage = jnp.asarray((advantage - advantage.mean()) / advantage.std())
    path, std = batch.recorded, jnp.exp(state.params["log_std"])
    x = interpolate(path.start, path.end, T)
    score = lambda params: -jnp.mean(advantage * jnp.sum(path.noise / std**2 * velocity(env, params, batch, x, T), -1))
    expected = ravel_pytree(jax.grad(score)(state.params)["actor"])[0]
    _, grads = loss(state.params, state.params, config, batch, T)
    assert jnp.linalg.norm(expected) > 0.01
    np.testing.assert_allclose(ravel_pytree(grads["actor"])[0], expected, rtol=1e-3, atol=1e-5)
    expected = -jnp.mean(advantage[:, None] * (path.noise**2 / std**2 - 1), axis=0)
    np.testing.assert_allclose(grads["log_std"], expected, rtol=1e-3, atol=1e-5)


def test_regularisers_have_their_own_gradients(env, state, batch, loss):
    config = replace(CONFIG, entropy_coef=0.3, brownian_coef=0.4)
    equal = replace(batch, advantage=jnp.ones(64))  # no policy gradient
    _, grads = loss(state.params, state.params, config, equal, T)
    np.testing.assert_allclose(grads["log_std"], -0.3, rtol=1e-6)
    path = batch.recorded
    x = interpolate(path.start, path.end, T)
    error = (1 - T[:, None]) * (velocity(env, state.params, batch, x, T) - x)
    spread = lambda params: 2 * 0.4 * jnp.sum(error * velocity(env, params, batch, x, T), -1).mean() / 2
    expected = ravel_pytree(jax.grad(spread)(state.params)["actor"])[0]
    np.testing.assert_allclose(ravel_pytree(grads["actor"])[0], expected, rtol=1e-3, atol=1e-5)
    _, alone = loss(state.params, state.params, replace(config, brownian_coef=0.0), equal, T)
    np.testing.assert_array_equal(ravel_pytree(alone["actor"])[0], 0)


@pytest.fixture(scope="module")
def large(batch, state):
    """A batch of 16384, the noise drawn anew."""
    large = jax.tree.map(lambda x: jnp.tile(x, (256, *[1] * (x.ndim - 1))), batch)
    noise = jnp.exp(state.params["log_std"]) * jax.random.normal(jax.random.key(5), (16_384, 2))
    return replace(large, recorded=replace(large.recorded, noise=noise))


def test_ratios_have_mean_one_and_log_ratios_minus_the_divergence(state, large, loss):
    ratio = jax.tree_util.Partial(lambda config, elements, progress: jnp.exp(elements.log_ratio))
    logarithm = jax.tree_util.Partial(lambda config, elements, progress: elements.log_ratio)
    params, t = moved(state.params, 0.1), jnp.tile(T, 256)
    (_, parts), _ = loss(params, state.params, CONFIG, large, t, ratio)
    assert parts["kl"] > 0.01
    # The standard deviation of the ratio is about sqrt(2 KL): four standard errors.
    error = 4 * np.sqrt(2 * parts["kl"] / 16_384)
    np.testing.assert_allclose(parts["policy_loss"], 1.0, atol=1.5 * error)
    (_, parts), _ = loss(params, state.params, CONFIG, large, t, logarithm)
    np.testing.assert_allclose(parts["policy_loss"], -parts["kl"], atol=1.5 * error)


def test_start_and_noise_of_an_action_belong_together(state, batch, loss):
    params, order = moved(state.params), jnp.arange(64)[::-1]
    (total, _), _ = loss(params, state.params, CONFIG, batch, T)
    (same, _), _ = loss(params, state.params, CONFIG, jax.tree.map(lambda x: x[order], batch), T[order])
    np.testing.assert_allclose(same, total, rtol=1e-5)
    mixed = replace(batch, recorded=replace(batch.recorded, noise=batch.recorded.noise[order]))
    (other, _), _ = loss(params, state.params, CONFIG, mixed, T)
    assert abs(other - total) > 1e-3


def test_where_velocity_does_not_depend_on_the_place_the_ratio_is_that_of_ppo(env, state, batch, loss):
    """A velocity of c(s), moved by a constant: the action given its noise is normal, and ratios are exact."""
    blind = jax.tree.map(jnp.zeros_like, state.params["actor"])
    drift = lambda c: jax.tree_util.tree_map_with_path(
        lambda path, x: x + jnp.array(c) if [k.key for k in path[-2:]] == ["head", "bias"] else x, blind
    )
    reference = state.params | {"actor": drift([0.3, -0.2]), "log_std": jnp.array([-0.5, 0.1])}
    params = state.params | {"actor": drift([0.5, -0.1]), "log_std": jnp.array([-0.6, 0.2])}
    recorded = policyflow.act(CONFIG, env, replace(state, params=reference), batch.obs, jax.random.key(2))[1]
    np.testing.assert_allclose(recorded.end, recorded.start + np.array([0.3, -0.2]), rtol=1e-5, atol=1e-6)
    action = recorded.end + recorded.noise
    end = midpoint(lambda x, t: velocity(env, params, batch, x, t), recorded.start, 3)
    expected = Normal(end, params["log_std"]).log_prob(action)
    expected -= Normal(recorded.end, reference["log_std"]).log_prob(action)
    found = []
    spy = jax.tree_util.Partial(
        lambda config, elements, progress: found.append(elements.log_ratio) or elements.log_ratio
    )
    policyflow.loss(params, reference, CONFIG, env, replace(batch, recorded=recorded), T, 0.0, spy)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
    # The entropy and the divergence are those of these normals as well.
    (_, parts), _ = loss(params, reference, CONFIG, replace(batch, recorded=recorded), T)
    np.testing.assert_allclose(parts["entropy"], Normal(end, params["log_std"]).entropy()[0], rtol=1e-5)
    kl = Normal(recorded.end, reference["log_std"]).kl(Normal(end, params["log_std"])).mean()
    np.testing.assert_allclose(parts["kl"], kl, rtol=1e-4)


def test_a_flow_that_stands_still_samples_its_noise(env, state, batch, loss):
    still = state.params | {"actor": jax.tree.map(jnp.zeros_like, state.params["actor"])}
    still["log_std"] = jnp.log(jnp.array([0.5, 2.0]))
    obs = jnp.ones((4000, 4))
    action, recorded = policyflow.act(CONFIG, env, replace(state, params=still), obs, jax.random.key(3))
    np.testing.assert_array_equal(recorded.start, recorded.end)
    assert scipy.stats.kstest(np.ravel(recorded.start), "norm").pvalue > 1e-3
    for i, std in enumerate((0.5, 2.0)):
        assert scipy.stats.kstest(recorded.noise[:, i], scipy.stats.norm(0, std).cdf).pvalue > 1e-3
        assert scipy.stats.kstest(action[:, i], scipy.stats.norm(0, np.sqrt(1 + std**2)).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(np.ravel(recorded.start), np.ravel(recorded.noise))[0, 1]) < 4 / np.sqrt(8000)
    resting = replace(batch, recorded=replace(batch.recorded, end=batch.recorded.start))
    (_, parts), _ = loss(still, still, CONFIG, resting, T)
    np.testing.assert_allclose(parts["brownian"], np.square(batch.recorded.start).mean(), rtol=1e-5)


def test_deterministic_actions_are_the_flow_of_noise_zero(env, state):
    obs = jnp.tile(jnp.arange(4.0), (3, 1))
    action, recorded = policyflow.act(CONFIG, env, state, obs, jax.random.key(3), deterministic=True)
    np.testing.assert_array_equal(recorded.start, 0)
    np.testing.assert_array_equal(recorded.noise, 0)
    flow = partial(policyflow.networks(CONFIG, env)[0].apply, state.params["actor"], obs)
    np.testing.assert_allclose(action, midpoint(flow, jnp.zeros((3, 2)), 3), rtol=1e-5, atol=1e-6)


def test_actions_are_played_within_bounds_and_recorded_whole():
    env = rlx.envs.make("probe/ContinuousAction")
    state = policyflow.init(CONFIG, env, jax.random.key(0))
    action, recorded = policyflow.act(CONFIG, env, state, jnp.ones((200, 1)), jax.random.key(1))
    whole = recorded.end + recorded.noise
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(action, 2 * np.clip(whole, -1, 1), rtol=1e-5, atol=1e-6)


def test_solver_steps_matter_to_acting_and_not_to_the_loss(state, batch, loss):
    one = loss(moved(state.params), state.params, CONFIG, batch, T)
    other = loss(moved(state.params), state.params, replace(CONFIG, flow_steps=9), batch, T)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_times_are_the_nodes_of_the_solver_and_new_in_every_epoch(env, state, monkeypatch):
    function = policyflow.loss

    def spy(params, reference, config, env, batch, t, progress, objective):
        total, parts = function(params, reference, config, env, batch, t, progress, objective)
        off = jnp.abs(6 * t - jnp.round(6 * t)).max()
        return total, parts | {
            "off": off,
            "low": t.min(),
            "high": t.max(),
            "mean": t.mean(),
            "size": jnp.float32(len(t)),
        }

    monkeypatch.setattr(policyflow, "loss", spy)
    _, metrics = jax.jit(lambda state: policyflow.update(CONFIG, env, state))(state)
    # 3 epochs of 2 minibatches with 32 times each, of 7 values: nearly each minibatch has both ends.
    assert metrics["off"] < 1e-6
    assert metrics["low"] < 0.06
    assert metrics["high"] > 0.94
    assert metrics["size"] == 32
    np.testing.assert_allclose(metrics["mean"], 0.5, atol=4 * np.sqrt(1 / 9 / 192))


def adapted(update, state, num=4, **changes):
    rates = [float(state.learning_rate)]
    for _ in range(num):
        state, metrics = update(replace(CONFIG, **{"anneal_learning_rate": False, **changes}), state)
        rates.append(float(state.learning_rate))
    return np.array(rates), metrics


def test_the_learning_rate_follows_the_divergence_where_asked_to(update, state):
    falling, metrics = adapted(update, state, 3, adapt_learning_rate=True, target_kl=1e-7)
    np.testing.assert_allclose(falling, 1e-2 / 1.5 ** (3 * np.arange(4)), rtol=1e-4)  # once an epoch
    np.testing.assert_allclose(metrics["learning_rate"], falling[-1], rtol=1e-6)
    rising, _ = adapted(update, replace(state, learning_rate=jnp.float32(1e-4)), adapt_learning_rate=True, target_kl=10)
    np.testing.assert_allclose(rising, np.minimum(1e-2, 1e-4 * 1.5 ** (3 * np.arange(5))), rtol=1e-4)
    steady, metrics = adapted(update, state)
    np.testing.assert_allclose(steady, 1e-2)
    assert metrics["kl"] > 1e-4


def test_annealing_multiplies_the_learning_rate(env):
    _, metrics = rlx.train(policyflow, CONFIG, env, jax.random.key(0))
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2 * np.array([1, 2 / 3, 1 / 3]), rtol=1e-5)
