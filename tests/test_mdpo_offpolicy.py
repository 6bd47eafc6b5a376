"""Off-policy MDPO: its equation and limits, where it is SAC, and what it learns on probes."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import Env, replace, stack
from rlx.algos import mdpo_offpolicy, sac
from rlx.envs.tasks.probes import ContinuousAction, Endless, Mixed
from rlx.replay import take
from rlx.spaces import Box

EXACT = True  # the bars of what is learned were set with the optimisations that users have

ENDLESS, ACTION = 0, 1
mixed = Mixed((Endless, ContinuousAction), Box(-2.0, 2.0, (1,)))
env = Env(mixed, mixed.default_params, max_steps=3)
SIZES = {"num_envs": 4, "num_steps": 8, "batch_size": 16, "capacity": 64, "hidden_sizes": (16,)}
SMALL = {"total_steps": 128, "warmup_steps": 32, "utd_ratio": 0.25, "learning_rate": 1e-2, "tau": 0.1, **SIZES}


@pytest.fixture(scope="module")
def small():
    """Three updates of eight gradient steps."""
    return mdpo_offpolicy.Config(num_sgd_steps=5, **SMALL)


def moved(params, phase=0.0):
    return jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size) + phase).reshape(x.shape), params)


@pytest.fixture(scope="module")
def problem(small):
    """Parameters, those of targets and pi_k, a batch, and noise for it."""
    state = jax.jit(mdpo_offpolicy.init)(small, env, jax.random.key(0))
    params = moved(state.params) | {"log_alpha": jnp.log(0.4)}
    batch = take(state.replay, jnp.arange(32))
    return params, moved(state.target_params, 1.0), batch, jax.random.normal(jax.random.key(1), (2, 32, 1))


def loss_and_gradient(algorithm):
    """Of an actor, the gradient for all parameters as a vector."""
    loss = lambda params, *args: algorithm.actor_loss(params, *args)[0]
    return jax.jit(lambda *args: (loss(*args), ravel_pytree(jax.grad(loss)(*args))[0]))


actor_loss = {algorithm: loss_and_gradient(algorithm) for algorithm in (sac, mdpo_offpolicy)}


def equation(config, params, target_params, batch, noise):
    """The loss of the actor in float64, from what the networks say."""
    actor, critic = mdpo_offpolicy.networks(config, env)
    alpha = np.exp(float(params["log_alpha"]))

    def parts(params):
        pi = actor.apply(params, batch.obs)
        return (np.asarray(x, np.float64)[:, 0] for x in (pi.mean, pi.log_std))

    (mean, log_std), (old_mean, old_log_std), xi = parts(params["actor"]), parts(target_params["actor"]), noise[:, 0]
    u = mean + np.exp(log_std) * xi
    log_normal = lambda mean, log_std: -0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    squash = np.log(1 - np.tanh(u) ** 2)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    q = np.asarray(q(params["critic"], batch.obs, jnp.float32(np.tanh(u))[:, None]), np.float64).min(0)
    log_pi, log_old = log_normal(mean, log_std) - squash, log_normal(old_mean, old_log_std) - squash
    return ((log_pi - log_old) / config.step_size + alpha * log_old - q).mean()


@pytest.mark.more
@pytest.mark.parametrize("step_size", [0.1, 1.0, 2.5])
def test_the_actors_loss_is_its_equation(small, problem, step_size):
    params, target_params, batch, noise = problem
    config = replace(small, step_size=step_size)
    expected = equation(config, params, target_params, batch, np.asarray(noise[1], np.float64))
    value, (log_prob, kl) = mdpo_offpolicy.actor_loss(params, params, target_params, config, env, batch, noise[1])
    # Means of 32 float32 numbers of order 1 to 10, over a step size of 0.1.
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
    actor, _ = mdpo_offpolicy.networks(config, env)
    pi, old = (actor.apply(p["actor"], batch.obs) for p in (params, target_params))
    np.testing.assert_allclose(kl, pi.kl(old).mean(), rtol=1e-5)
    assert kl > 0.01
    assert log_prob.shape == (32,)


def test_the_loss_is_a_penalised_divergence_with_a_linear_entropy(small, problem):
    """Over many samples it is `KL / t + alpha E[log pi_k] - E[Q]`, with the KL in closed form."""
    params, target_params, batch, _ = problem
    one = jax.tree.map(lambda x: x[:1].repeat(100_000, 0), batch)
    noise = jax.random.normal(jax.random.key(2), (100_000, 1))
    loss = lambda step_size: mdpo_offpolicy.actor_loss(
        params, params, target_params, replace(small, step_size=step_size), env, one, noise
    )
    (short, (_, kl)), (long, _) = loss(0.2), loss(2.5)
    # The rest cancels, but for noise in log pi - log pi_k of order 1, times the difference of the inverses.
    np.testing.assert_allclose(short - long, (1 / 0.2 - 1 / 2.5) * kl, atol=4 * 4.6 / np.sqrt(100_000))


@pytest.mark.parametrize("step_size", [1 / 0.4, 10.0, np.inf])
def test_where_the_step_size_is_the_inverse_temperature_or_more_the_loss_is_that_of_sac(small, problem, step_size):
    params, target_params, batch, noise = problem
    config = replace(small, step_size=float(step_size))
    theirs, expected = actor_loss[sac](params, params, sac.Config(**SMALL), env, batch, noise[1])
    for old in (target_params, moved(target_params, 2.0)):  # whatever pi_k is
        value, gradient = actor_loss[mdpo_offpolicy](params, params, old, config, env, batch, noise[1])
        # The same operations in another program.
        np.testing.assert_allclose(value, theirs, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)
    short, elsewhere = (
        actor_loss[mdpo_offpolicy](params, params, old, replace(small, step_size=1.0), env, batch, noise[1])[1]
        for old in (target_params, moved(target_params, 2.0))
    )
    assert np.abs(short - expected).max() > 0.1
    assert np.abs(short - elsewhere).max() > 0.1


def test_the_loss_has_a_gradient_for_the_actor_only(small, problem):
    params, target_params, batch, noise = problem
    loss = lambda moved: mdpo_offpolicy.actor_loss(moved, params, target_params, small, env, batch, noise[1])[0]
    norms = {name: jnp.linalg.norm(ravel_pytree(g)[0]) for name, g in jax.grad(loss)(params).items()}
    assert norms.pop("actor") > 0.1
    assert norms == dict.fromkeys(norms, 0.0)


def test_the_divergence_does_not_pull_at_pi_k_and_does_away_from_it(small, problem):
    """Without an entropy and with critics that say 0, the loss is the divergence over the step size alone."""
    params, target_params, batch, _ = problem
    params = params | {"critic": jax.tree.map(jnp.zeros_like, params["critic"]), "log_alpha": -jnp.inf}
    states = jax.tree.map(lambda x: x[:8].repeat(8_000, 0), batch)
    noise = jax.random.normal(jax.random.key(3), (64_000, 1))
    pull = lambda old: actor_loss[mdpo_offpolicy](params, params, {"actor": old}, small, env, states, noise)[1]
    # The mean of scores, which are of order 1 to 10, over samples.
    assert np.abs(pull(params["actor"])).max() < 0.05
    assert np.abs(pull(jax.tree.map(lambda x: -x, target_params["actor"]))).max() > 0.5


def test_pi_k_is_renewed_every_num_sgd_steps_and_kept_between(small):
    """An update has 8 gradient steps."""
    init, update = jax.jit(mdpo_offpolicy.init), jax.jit(mdpo_offpolicy.update)
    for num_sgd_steps, renewed in ((8, (True, True, True)), (16, (False, True, False)), (1_000, (False,) * 3)):
        config = replace(small, num_sgd_steps=num_sgd_steps)
        state = init(config, env, jax.random.key(0))
        first = before = ravel_pytree(state.target_params["actor"])[0]
        for k in range(3):
            state, metrics = update(config, env, state)
            after, actor = (ravel_pytree(p["actor"])[0] for p in (state.target_params, state.params))
            np.testing.assert_array_equal(after, actor if renewed[k] else before)
            assert np.abs(actor - first).max() > 1e-3
            assert metrics["kl"] > 0
            before = after
    config = replace(small, num_sgd_steps=5)
    state, metrics = update(config, env, init(config, env, jax.random.key(0)))
    renewed, actor = (ravel_pytree(p["actor"])[0] for p in (state.target_params, state.params))
    assert np.abs(renewed - first).max() > 1e-3
    assert np.abs(renewed - actor).max() > 1e-3


@pytest.mark.more
def test_with_an_infinite_step_size_a_run_is_one_of_sac(small):
    config = replace(small, step_size=float("inf"))
    state, metrics = rlx.train(mdpo_offpolicy, config, env, jax.random.key(0))
    expected, theirs = rlx.train(sac, sac.Config(**SMALL), env, jax.random.key(0))
    # Two programs with the same operations, over 24 gradient steps of Adam.
    close = partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3)
    jax.tree.map(close, state.params, expected.params)
    jax.tree.map(close, state.target_params["critic"], expected.target_params)
    jax.tree.map(close, {name: metrics[name] for name in theirs}, theirs)
    short, _ = rlx.train(mdpo_offpolicy, replace(small, step_size=0.01), env, jax.random.key(0))
    assert np.abs(ravel_pytree(short.params["actor"])[0] - ravel_pytree(state.params["actor"])[0]).max() > 1e-2


RESUME = """
import jax, numpy as np, rlx
from rlx.algos import mdpo_offpolicy
from rlx.envs.tasks.probes import ContinuousAction, Endless, Mixed
from rlx.spaces import Box
mixed = Mixed((Endless, ContinuousAction), Box(-2.0, 2.0, (1,)))
env = rlx.Env(mixed, mixed.default_params, max_steps=3)
config = mdpo_offpolicy.Config(num_sgd_steps=5, gamma=0.98, **SMALL)
with jax.debug_key_reuse(True):
    whole, _ = rlx.train(mdpo_offpolicy, config, env, jax.random.key(0))
state = jax.jit(mdpo_offpolicy.init)(config, env, jax.random.key(0))
for _ in range(3):
    state, _ = rlx.resume(mdpo_offpolicy, config, env, state, num_updates=1)
bits = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), whole, state)
print("the same bits after", state.num_updates)
"""


@pytest.mark.more
def test_resume_is_bitwise_and_no_key_is_used_twice():
    """In a process with the optimisations of XLA that users have; with the few of the tests a sum rounds otherwise."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    code = RESUME.replace("**SMALL", f"**{SMALL}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain, check=False)
    assert done.stdout == "the same bits after 3\n", done.stderr


@pytest.fixture(scope="module")
def learned():
    """Runs on the probes with three step sizes and a temperature of 0.2, the last with the step size of SAC."""
    config = mdpo_offpolicy.Config(
        total_steps=200 * 64 + 256,
        warmup_steps=256,
        num_envs=16,
        num_steps=4,
        utd_ratio=0.5,
        batch_size=128,
        capacity=2048,
        learning_rate=1e-2,
        tau=0.05,
        gamma=0.9,
        hidden_sizes=(32, 32),
        initial_alpha=0.2,
        alpha_learning_rate=0.0,
        num_sgd_steps=100,
    )
    configs = [replace(config, step_size=step_size) for step_size in (0.5, 2.0, 5.0)]
    train = jax.vmap(partial(rlx.train, mdpo_offpolicy), in_axes=(0, None, None))
    states, metrics = train(stack(configs), env, jax.random.key(0))
    return config, [jax.tree.map(lambda x, i=i: x[i], (states, metrics)) for i in range(3)]


@pytest.mark.more
def test_every_step_size_ends_at_the_best_action_and_the_policy_of_sac(learned):
    """64 steps of mirror descent, of which each leaves 1 - alpha t of the way to the fixed point: 0.9^64 < 0.002."""
    config, lanes = learned
    obs = jnp.stack([mixed.obs(ACTION, -1.0), mixed.obs(ACTION, 1.0), mixed.obs(ENDLESS, 0.0)])
    actor, _ = mdpo_offpolicy.networks(config, env)
    entropies = []
    for state, _ in lanes:
        action, _ = mdpo_offpolicy.act(config, env, state, obs[:2], jax.random.key(0), deterministic=True)
        np.testing.assert_allclose(action[:, 0], [-0.5, 0.5], atol=0.2)
        pi = actor.apply(state.params["actor"], obs[:, None].repeat(10_000, 1))
        entropies.append(-pi.log_prob(pi.sample(jax.random.key(0))).mean(1))
    # Of networks after 6400 gradient steps at a constant rate; the entropies of the two probes differ by much more.
    np.testing.assert_allclose(entropies[0], entropies[2], atol=0.15)
    np.testing.assert_allclose(entropies[1], entropies[2], atol=0.15)
    assert entropies[2][2] > 0.5 > entropies[2][:2].max()


def test_critics_value_the_entropy_of_the_policy(learned):
    """Endless pays 1 whatever the action, so a policy of entropy H has Q = (1 + gamma alpha H) / (1 - gamma)."""
    config, lanes = learned
    actor, critic = mdpo_offpolicy.networks(config, env)
    obs = mixed.obs(ENDLESS, 0.0)
    for state, _ in lanes:
        pi = actor.apply(state.params["actor"], obs[None].repeat(10_000, 0))
        bonus = -0.9 * 0.2 * pi.log_prob(pi.sample(jax.random.key(0))).mean()
        value = jax.vmap(critic.apply, in_axes=(0, None, None))(state.params["critic"], obs, jnp.zeros(1))
        np.testing.assert_allclose(value, (1 + bonus) / (1 - 0.9), rtol=0.05)


def test_the_shorter_the_step_the_nearer_the_policy_stays_to_the_last(learned):
    _, lanes = learned
    kls = [metrics["kl"][:50].mean() for _, metrics in lanes]
    assert 0 < kls[0] < kls[1]
