"""REPPO: its returns and losses against loops of numpy, limits, the probes, and what is refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import Env, replace
from rlx.algos import reppo as module
from rlx.env import Transition
from rlx.envs.tasks.probes import Discount, Endless, Mixed, Observation
from rlx.networks import PredictiveCritic, Torso
from rlx.spaces import Box
from rlx.train import advance

pendulum = rlx.envs.make("Pendulum-v1")
SMALL = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "num_epochs": 2, "hidden_sizes": (16,), "num_bins": 21}
small = module.Config(total_steps=128, learning_rate=1e-3, **SMALL)


@pytest.fixture(scope="module")
def state():
    return jax.jit(module.init)(small, pendulum, jax.random.key(0))


@pytest.fixture(scope="module")
def played():
    """A rollout `[9, 5]` of Pendulum's shapes with ends of both kinds."""
    rng = np.random.default_rng(0)
    x = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    terminated = rng.random((9, 5)) < 0.2
    truncated = (rng.random((9, 5)) < 0.2) & ~terminated
    zeros = jnp.zeros((9, 5))
    ends = jnp.asarray(terminated), jnp.asarray(truncated)
    traj = Transition(x(9, 5, 3), zeros, x(9, 5), x(9, 5, 3), *ends, zeros, zeros, {}, zeros > 0)
    return replace(traj, recorded=jnp.tanh(x(9, 5, 1)))


def moved(state, seed=5, scale=0.3):
    """A state whose parameters are all somewhere else, so that nothing is 0 by its start."""
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return replace(state, params=jax.tree.unflatten(structure, leaves))


@pytest.mark.parametrize("td_lambda", [0.0, 0.7, 1.0])
def test_targets_are_soft_returns_of_a_loop(played, state, td_lambda):
    config = replace(small, td_lambda=td_lambda, gamma=0.9, reward_scale=0.5)
    state = moved(state)
    noise = jax.random.normal(jax.random.key(1), (9, 5, 1))
    found = module.targets(config, pendulum, state, played, noise)
    pi = module.networks(config, pendulum)[0].apply(state.params["actor"], played.next_obs)
    u = np.asarray(pi.mean + jnp.exp(pi.log_std) * noise, np.float64)
    mean, std = np.asarray(pi.mean, np.float64), np.exp(np.asarray(pi.log_std, np.float64))
    density = -0.5 * ((u - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi) - np.log1p(-(np.tanh(u) ** 2))
    after = np.asarray(module.evaluated(state.params, config, pendulum, played.next_obs, jnp.tanh(jnp.asarray(u)))[0])
    alpha, goal = float(jnp.exp(state.params["log_alpha"])), None
    ends, done = np.asarray(played.terminated), np.asarray(played.done)
    for t in reversed(range(9)):
        goes_on = (
            after[t] if goal is None else np.where(done[t], after[t], (1 - td_lambda) * after[t] + td_lambda * goal)
        )
        goal = 0.5 * np.asarray(played.reward[t]) + 0.9 * ~ends[t] * (goes_on - alpha * density[t, :, 0])
        np.testing.assert_allclose(found.target[t], goal, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.known, ~done)
    np.testing.assert_array_equal(found.following[..., -1], 0.5 * played.reward)


def test_first_values_are_near_zero(state):
    obs, action = jax.random.normal(jax.random.key(0), (200, 3)), jnp.zeros((200, 1))
    value = module.evaluated(state.params, small, pendulum, obs, action)[0]
    assert jnp.abs(value).max() < 0.2  # a fifth of a bin


def batch_of(state, config=small, rows=64):
    key = jax.random.key(7)
    obs = jax.random.normal(key, (rows, 3))
    action = jnp.tanh(jax.random.normal(jax.random.fold_in(key, 1), (rows, 1)))
    target = 3 * jax.random.normal(jax.random.fold_in(key, 2), (rows,))
    following = jax.random.normal(jax.random.fold_in(key, 3), (rows, config.hidden_sizes[-1] + 1))
    return module.Batch(obs, action, target, following, jax.random.bernoulli(key, 0.7, (rows,)))


def test_the_critics_loss_is_the_cross_entropy_of_a_cut_normal(state):
    state, batch = moved(state), batch_of(state)
    loss, value, error = module.critic_loss(state.params, small, pendulum, batch)
    returns, _, guess = module.networks(small, pendulum)[1].apply(state.params["critic"], batch.obs, batch.action)
    centres = np.linspace(-10, 10, 21)
    cdf = lambda x: 0.5 * (1 + np.vectorize(__import__("math").erf)(x / 2**0.5))
    mass = lambda y: np.diff(cdf((np.append(centres - 0.5, 10.5) - y) / 0.75))
    normal = lambda y: mass(y) / mass(y).sum()
    logits = np.asarray(returns, np.float64) + 40 * normal(0.0)
    log_p = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    wanted = [
        -(normal(np.clip(y, -10, 10)) * row).sum() for y, row in zip(np.asarray(batch.target), log_p, strict=True)
    ]
    np.testing.assert_allclose(loss, np.mean(wanted), rtol=1e-4)
    np.testing.assert_allclose(value, np.exp(log_p) @ centres, rtol=1e-3, atol=1e-3)
    gap = np.square(np.asarray(guess) - np.asarray(batch.following)).mean(-1)
    np.testing.assert_allclose(error, np.where(batch.known, gap, 0).mean(), rtol=1e-5)


def test_without_bins_it_is_half_the_squared_error(state):
    config = replace(small, num_bins=0)
    params = jax.jit(module.init)(config, pendulum, jax.random.key(0)).params
    batch = batch_of(None)
    loss, value, _ = module.critic_loss(params, config, pendulum, batch)
    np.testing.assert_allclose(loss, 0.5 * np.square(np.asarray(value) - np.asarray(batch.target)).mean(), rtol=1e-5)


def actor_grad(config, params, fixed, old, batch, noise):
    return jax.grad(lambda p: module.actor_loss(p, fixed, old, config, pendulum, batch, noise)[0])(params)["actor"]


def test_without_a_bound_the_actors_gradient_is_that_of_sac(state):
    """`alpha log pi - Q` of one critic; with alpha 0 the deterministic policy gradient of the critic."""
    config, state, batch = replace(small, kl_bound=jnp.inf), moved(state), batch_of(state)
    noise = jax.random.normal(jax.random.key(9), (64, 1))
    params = state.params

    def sac(actor, alpha):
        pi = module.networks(config, pendulum)[0].apply(actor, batch.obs)
        u = pi.mean + jnp.exp(pi.log_std) * noise
        return (alpha * pi.log_prob(u) - module.evaluated(params, config, pendulum, batch.obs, jnp.tanh(u))[0]).mean()

    old = moved(state, seed=8).params
    found = actor_grad(config, params, params, old, batch, noise)
    wanted = jax.grad(sac)(params["actor"], jnp.exp(params["log_alpha"]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, wanted)
    none = params | {"log_alpha": jnp.float32(-jnp.inf)}
    found = actor_grad(config, params, none, old, batch, noise)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, jax.grad(sac)(params["actor"], 0.0))


def test_each_state_is_improved_or_pulled_back(state):
    state, batch = moved(state), batch_of(state)
    noise = jax.random.normal(jax.random.key(9), (64, 1))
    old = moved(state, seed=3, scale=0.02).params
    params = state.params
    (entropy, kl) = module.actor_loss(params, params, old, small, pendulum, batch, noise)[1]
    bound = float(jnp.median(kl))
    config = replace(small, kl_bound=bound)
    assert 0 < (kl < bound).mean() < 1
    one = lambda config, i: module.actor_loss(
        params, params, old, config, pendulum, jax.tree.map(lambda x: x[i : i + 1], batch), noise[i : i + 1]
    )[0]
    for i in range(6):
        q = module.evaluated(params, config, pendulum, batch.obs[i], jnp.tanh(sampled(params, batch.obs[i], noise[i])))[
            0
        ]
        wanted = (
            jnp.exp(params["log_beta"]) * kl[i] if kl[i] >= bound else -jnp.exp(params["log_alpha"]) * entropy[i] - q
        )
        np.testing.assert_allclose(one(config, i), wanted, rtol=1e-4, atol=1e-5)


def sampled(params, obs, noise):
    pi = module.networks(small, pendulum)[0].apply(params["actor"], obs)
    return pi.mean + jnp.exp(pi.log_std) * noise


def test_no_loss_has_a_gradient_for_what_is_not_its_own(state):
    state, batch = moved(state), batch_of(state)
    noise = jnp.zeros((64, 1))
    grads = jax.grad(lambda p: module.actor_loss(p, state.params, state.params, small, pendulum, batch, noise)[0])(
        state.params
    )
    assert all(not x.any() for x in jax.tree.leaves((grads["critic"], grads["log_alpha"], grads["log_beta"])))
    grads = jax.grad(lambda p: module.critic_loss(p, small, pendulum, batch)[0])(state.params)
    assert all(not x.any() for x in jax.tree.leaves(grads["actor"]))


def test_multipliers_rise_where_they_are_needed(state):
    multipliers = {"log_alpha": jnp.float32(0.0), "log_beta": jnp.float32(0.0)}
    slope = lambda entropy, kl, config=small: jax.grad(module.multiplier_loss)(
        multipliers, config, pendulum, jnp.float32(entropy), jnp.float32(kl)
    )
    np.testing.assert_allclose(slope(-0.7, 0.3)["log_alpha"], -0.2, rtol=1e-5)  # too little entropy: alpha rises
    np.testing.assert_allclose(slope(0.1, 0.3)["log_alpha"], 0.6, rtol=1e-5)
    np.testing.assert_allclose(slope(0.1, 0.3)["log_beta"], -0.2, rtol=1e-5)
    np.testing.assert_allclose(slope(0.1, 0.0)["log_beta"], 0.1, rtol=1e-5)
    assert slope(0.1, 0.3, replace(small, kl_bound=jnp.inf))["log_beta"] == 0


def test_the_same_policy_has_no_divergence(state):
    batch = batch_of(state)
    kl = module.actor_loss(state.params, state.params, state.params, small, pendulum, batch, jnp.zeros((64, 1)))[1][1]
    np.testing.assert_array_equal(kl, 0.0)


def test_a_guess_is_of_features_and_a_reward():
    network = PredictiveCritic(Torso(Box(-1.0, 1.0, (3,)), (8, 16), "swish", layer_norm=True), 5)
    obs, action = jnp.ones((4, 3)), jnp.ones((4, 2))
    params = network.init(jax.random.key(0), obs, action)
    returns, features, guess = network.apply(params, obs, action)
    assert (returns.shape, features.shape, guess.shape) == ((4, 5), (4, 16), (4, 17))
    plain = PredictiveCritic(Torso(Box(-1.0, 1.0, (3,)), (8, 16), "swish"), 5).init(jax.random.key(0), obs, action)
    assert any("norm" in name.lower() for name in params["params"])
    assert not any("norm" in name.lower() for name in plain["params"])


OBSERVATION, DISCOUNT, ENDLESS = range(3)
mixed = Mixed((Observation, Discount, Endless), Box(-1.0, 1.0, (1,)))
probes = Env(mixed, mixed.default_params, max_steps=3)


@cache
def learned():
    config = module.Config(
        total_steps=60_000, learning_rate=1e-3, gamma=0.9, td_lambda=0.9, hidden_sizes=(32, 32), initial_alpha=1e-4,
        multiplier_learning_rate=0.0, lowest_return=-12.0, highest_return=12.0,
    )  # fmt: skip
    return config, jax.jit(partial(rlx.train, module))(config, probes, jax.random.key(0))[0]


@pytest.mark.parametrize(
    ("kind", "obs", "wanted"),
    [(OBSERVATION, 1.0, 1.0), (OBSERVATION, -1.0, -1.0), (DISCOUNT, 0.0, 0.9), (ENDLESS, 0.0, 10.0)],
)
def test_values_are_those_of_the_probes(kind, obs, wanted):
    config, state = learned()
    found = module.evaluated(state.params, config, probes, mixed.obs(kind, obs), jnp.zeros(1))[0]
    np.testing.assert_allclose(found, wanted, atol=0.6 if kind == ENDLESS else 0.15)


def test_a_run_in_pieces_is_bitwise_the_same(state):
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    whole = chunk(module, small, pendulum, state, 0, 3, 3)[0]
    parts = chunk(module, small, pendulum, state, 0, 1, 3)[0]
    parts = chunk(module, small, pendulum, parts, 1, 2, 3)[0]
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="not a multiple of num_minibatches"):
        module.check(replace(small, num_minibatches=5), pendulum)
    with pytest.raises(ValueError, match="needs continuous actions"):
        module.check(small, rlx.envs.make("CartPole-v1"))
    with pytest.raises(ValueError, match="num_bins = 1"):
        module.check(replace(small, num_bins=1), pendulum)
    with pytest.raises(ValueError, match=r"lowest_return = 3.0 has to be below highest_return = 2.0, both finite"):
        module.check(replace(small, lowest_return=3.0, highest_return=2.0), pendulum)
    with pytest.raises(ValueError, match="both finite"):
        module.check(replace(small, highest_return=jnp.inf), pendulum)
    module.check(replace(small, lowest_return=3.0, highest_return=2.0, num_bins=0), pendulum)  # there are no bins
