"""DPPO: the chain that acts, its loss against numpy, its gradients, one step as PPO, steps that are not trained."""

import dataclasses
import itertools
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
from rlx import replace
from rlx.algos import dppo
from rlx.diffusion import cosine_betas, ddpm, step_clips

K, TRAINED, N = 5, 3, 64


@pytest.fixture(scope="module")
def env():
    return rlx.envs.make("rlx/MultiGoal", max_steps=12)


@pytest.fixture(scope="module")
def config():
    sizes = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "hidden_sizes": (8,)}
    return dppo.Config(total_steps=64, denoising_steps=K, trained_steps=TRAINED, **sizes)


@pytest.fixture(scope="module")
def state(config, env):
    """Weights far from where they start, so that every step predicts something else; a pretrained actor of its own."""
    state = jax.jit(dppo.init)(config, env, jax.random.key(0))
    rng = np.random.default_rng(0)
    move = lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32)
    return replace(state, params=jax.tree.map(move, state.params), pretrained=jax.tree.map(move, state.pretrained))


@pytest.fixture(scope="module")
def acted(config, env, state):
    """Observations, actions and what was recorded of them."""
    obs = jnp.asarray(np.random.default_rng(1).normal(size=(N, 4)), jnp.float32)
    action, recorded = jax.jit(partial(dppo.act, config, env))(state, obs, jax.random.key(0))
    return obs, action, recorded


@pytest.fixture(scope="module")
def batch(acted):
    """A minibatch with every trained step of every observation, and which step it is."""
    obs, _, recorded = acted
    rng = np.random.default_rng(2)
    value, advantage, target = rng.normal(size=(3, N)).astype(np.float32)
    whole = dppo.Batch(obs, recorded, value, advantage, target)
    element, i = np.divmod(np.arange(N * TRAINED), TRAINED)
    return jax.tree.map(lambda x: jnp.asarray(x)[element], whole), jnp.asarray(i)


def means(config, env, params, obs, chain):
    """Means of the trained steps `[N, K', A]`, with numpy but for the network."""
    actor, _ = dppo.networks(config, env)
    beta = cosine_betas(config.denoising_steps)
    abar = np.cumprod(1 - beta)
    found = []
    for i in range(config.trained_steps):
        t = config.trained_steps - 1 - i
        x, before = np.asarray(chain[:, i], np.float64), abar[t - 1] if t else 1.0
        eps = np.asarray(actor.apply(params, obs, chain[:, i], jnp.full(len(obs), t)), np.float64)
        clean = np.clip(np.sqrt(1 / abar[t]) * x - np.sqrt(1 / abar[t] - 1) * eps, -1, 1)
        c1 = beta[t] * np.sqrt(before) / (1 - abar[t])
        c2 = (1 - before) * np.sqrt(1 - beta[t]) / (1 - abar[t])
        found.append(c1 * clean + c2 * x)
    return np.stack(found, axis=1)


def stds(config):
    """Of the trained steps, `[K']`."""
    return np.maximum(np.asarray(ddpm(config.denoising_steps).std)[-config.trained_steps :], config.least_std)


def log_prob(mean, chain, std):
    each = -0.5 * ((chain[:, 1:] - mean) / std[:, None]) ** 2 - np.log(std)[:, None] - 0.5 * np.log(2 * np.pi)
    return np.clip(each, -5, 2).mean(-1)


def test_the_chain_recorded_is_the_one_that_acted(config, env, state, acted):
    """Each link is the mean of its step and noise of its std, at most three times that; its end is the action."""
    obs, action, recorded = acted
    assert recorded.chain.shape == (N, TRAINED + 1, 2)
    np.testing.assert_array_equal(action, recorded.chain[:, -1])  # the bounds of MultiGoal are infinite
    mean, std = means(config, env, state.params["actor"], obs, recorded.chain), stds(config)
    noise = (recorded.chain[:, 1:] - mean) / std[:, None]
    assert np.abs(noise).max() < 3.001
    np.testing.assert_allclose(noise.mean(), 0, atol=4 / noise.size**0.5)
    np.testing.assert_allclose(noise.std(), 0.987, atol=4 / (2 * noise.size) ** 0.5)  # cut at three
    expected = log_prob(mean, np.asarray(recorded.chain, np.float64), std)
    np.testing.assert_allclose(recorded.log_prob, expected, rtol=1e-4, atol=2e-4)
    assert np.abs(action).max() <= 1 + 3 * config.least_std + 1e-5


def test_noise_is_cut_where_it_is_asked_to(config, env, state, acted):
    obs, _, _ = acted
    tight = replace(config, noise_bound=0.5)
    recorded = dppo.act(tight, env, state, obs, jax.random.key(0))[1]
    noise = (recorded.chain[:, 1:] - means(tight, env, state.params["actor"], obs, recorded.chain)) / stds(tight)[
        :, None
    ]
    assert 0.499 < np.abs(noise).max() < 0.501


def test_deterministic_actions_are_the_clean_ones_and_begin_at_noise(config, env, state, acted):
    obs, _, _ = acted
    act = partial(dppo.act, config, env, state, obs, deterministic=True)
    action, recorded = act(jax.random.key(0))
    mean = means(config, env, state.params["actor"], obs, recorded.chain)
    np.testing.assert_allclose(action, mean[:, -1], rtol=1e-4, atol=1e-5)
    assert np.abs(action).max() <= 1
    assert np.abs(action - act(jax.random.key(1))[0]).max() > 0.01
    # Steps with noise of their own keep it: it is the least std that is not for them.
    own = np.asarray(ddpm(K).std)[-TRAINED:-1]
    noise = (recorded.chain[:, 1:-1] - mean[:, :-1]) / own[:, None]
    np.testing.assert_allclose(noise.std(), 0.987, atol=4 / (2 * noise.size) ** 0.5)


def test_the_loss_is_its_equation(config, env, state, batch):
    elements, i = batch
    config = replace(config, clip=0.02, first_clip=0.005, denoising_gamma=0.8, value_clip=0.1)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.02, x.shape).astype(np.float32), state.params)
    found, parts = jax.jit(dppo.loss)(params, config, env, elements, i, 0.0)
    one = jax.tree.map(lambda x: np.asarray(x)[::TRAINED], elements)
    chain = np.asarray(one.recorded.chain, np.float64)
    new = log_prob(means(config, env, params["actor"], one.obs, chain.astype(np.float32)), chain, stds(config))
    log_ratio = new - one.recorded.log_prob
    every = np.repeat(np.asarray(one.advantage, np.float64), TRAINED)
    advantage = ((one.advantage - every.mean()) / (every.std() + 1e-8))[:, None] * 0.8 ** np.array([2, 1, 0])
    clips, ratio = np.asarray(step_clips(TRAINED, 0.005, 0.02, 3.0)), np.exp(log_ratio)
    policy = -np.minimum(ratio * advantage, np.clip(ratio, 1 - clips, 1 + clips) * advantage).mean()
    value = np.asarray(dppo.networks(config, env)[1].apply(params["critic"], one.obs), np.float64)
    clipped = one.value + np.clip(value - one.value, -0.1, 0.1)
    squares = 0.5 * np.maximum((value - one.target) ** 2, (clipped - one.target) ** 2).mean()
    np.testing.assert_allclose(parts["policy_loss"], policy, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(parts["value_loss"], squares, rtol=1e-4)
    np.testing.assert_allclose(found, policy + 0.5 * squares, rtol=1e-4)
    np.testing.assert_allclose(parts["clip_fraction"], (np.abs(ratio - 1) > clips).mean(), atol=0.02)
    np.testing.assert_allclose(parts["approx_kl"], (ratio - 1 - log_ratio).mean(), rtol=2e-2, atol=1e-6)
    assert 0.2 < parts["clip_fraction"] < 0.95  # the clip is at work


def gradient(config, env, params, batch, i):
    whole = jax.grad(lambda params: dppo.loss(params, config, env, batch, i, 0.0)[1]["policy_loss"])
    return ravel_pytree(whole(params)["actor"])[0]


def test_at_the_policy_that_acted_the_gradient_is_that_of_the_weighted_log_probs(config, env, state, batch):
    elements, i = batch
    actor, _ = dppo.networks(config, env)

    def weighted(params):
        schedule = jax.tree.map(lambda x: x[-TRAINED:][i][:, None], ddpm(K))
        rows = jnp.arange(len(i))
        x, after = elements.recorded.chain[rows, i], elements.recorded.chain[rows, i + 1]
        eps = actor.apply(params, elements.obs, x, schedule.time[:, 0])
        clean = jnp.clip(schedule.scale * x - schedule.noise * eps, -1, 1)
        mean = schedule.from_clean * clean + schedule.from_noisy * x
        each = jax.scipy.stats.norm.logpdf(after, mean, jnp.maximum(schedule.std, config.least_std))
        a = (elements.advantage - elements.advantage.mean()) / elements.advantage.std()
        return -(a * jnp.clip(each, -5, 2).mean(-1)).mean()

    expected = ravel_pytree(jax.grad(weighted)(state.params["actor"]))[0]
    found = gradient(config, env, state.params, elements, i)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_without_a_discount_of_steps_all_count_and_with_none_of_it_the_last_alone(config, env, state, batch):
    elements, i = batch
    last = replace(config, denoising_gamma=0.0)
    mask = lambda keep: replace(elements, advantage=jnp.where(keep, elements.advantage, 0.0))
    plain = replace(config, normalize_advantage=False)
    found = gradient(replace(last, normalize_advantage=False), env, state.params, elements, i)
    np.testing.assert_allclose(
        found, gradient(plain, env, state.params, mask(i == TRAINED - 1), i), rtol=1e-4, atol=1e-7
    )
    each = [gradient(plain, env, state.params, mask(i == j), i) for j in range(TRAINED)]
    np.testing.assert_allclose(gradient(plain, env, state.params, elements, i), sum(each), rtol=1e-3, atol=1e-6)
    assert all(np.abs(part).max() > 1e-5 for part in each)


def test_the_order_within_a_minibatch_does_not_matter(config, env, state, batch):
    elements, i = batch
    order = np.random.default_rng(0).permutation(len(i))
    shuffled = jax.tree.map(lambda x: x[order], elements)
    a, b = (dppo.loss(state.params, config, env, *x, 0.0)[0] for x in ((elements, i), (shuffled, i[order])))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_steps_that_are_not_trained_shape_the_chain_and_nothing_else(config, env, state, acted):
    obs, _, recorded = acted
    other = replace(state, pretrained=jax.tree.map(lambda x: x + 0.1, state.pretrained))
    moved = dppo.act(config, env, other, obs, jax.random.key(0))[1]
    assert np.abs(moved.chain[:, 0] - recorded.chain[:, 0]).max() > 0.01
    np.testing.assert_array_equal(moved.log_prob, recorded.log_prob)  # that of noise, which is the same
    whole = replace(config, trained_steps=K)
    everything = jax.eval_shape(dppo.init, whole, env, jax.random.key(0))
    assert everything.pretrained is None


def test_updates_leave_the_pretrained_actor_alone_and_move_the_other(config, env):
    state = jax.jit(dppo.init)(config, env, jax.random.key(0))
    after, _ = jax.jit(dppo.update)(config, env, state)
    jax.tree.map(np.testing.assert_array_equal, after.pretrained, state.pretrained)
    assert np.abs(ravel_pytree(after.params["actor"])[0] - ravel_pytree(state.params["actor"])[0]).max() > 1e-5


def test_actor_and_critic_learn_at_their_own_rates(config, env):
    state = jax.jit(dppo.init)(config, env, jax.random.key(0))
    update = jax.jit(dppo.update)
    moved = lambda name, **rates: np.abs(
        ravel_pytree(update(replace(config, **rates), env, state)[0].params[name])[0]
        - ravel_pytree(state.params[name])[0]
    ).max()
    assert moved("actor", learning_rate=0.0) == 0 < moved("critic", learning_rate=0.0)
    assert moved("critic", critic_learning_rate=0.0) == 0 < moved("actor", critic_learning_rate=0.0)


def test_the_actor_waits_while_the_critic_warms_up(config, env):
    state = jax.jit(dppo.init)(config, env, jax.random.key(0))
    update = jax.jit(dppo.update)
    states = [state]
    for _ in range(3):
        states.append(update(replace(config, critic_warmup=2, total_steps=5 * 64), env, states[-1])[0])
    actors, critics = ([ravel_pytree(s.params[name])[0] for s in states] for name in ("actor", "critic"))
    assert [bool((a != b).any()) for a, b in itertools.pairwise(actors)] == [False, False, True]
    assert all((a != b).any() for a, b in itertools.pairwise(critics))


@pytest.mark.more
def test_cloning_adds_the_likelihood_of_what_the_pretrained_policy_does(config, env, state, batch):
    """The chains are those of the pretrained actor, and the term is their mean log-probability under the other."""
    elements, i = batch
    cloning = dataclasses.replace(config, imitation_coef=0.7)
    obs = elements.obs[::TRAINED].reshape(8, 8, 4)
    chains = jax.jit(partial(dppo.imitation_chain, cloning, env))(state, obs, jax.random.key(3))
    assert chains.shape == (8, 8, TRAINED + 1, 2)
    chains, flat = chains.reshape(N, TRAINED + 1, 2), obs.reshape(N, 4)
    noise = (chains[:, 1:] - means(config, env, state.pretrained, flat, chains)) / stds(config)[:, None]
    assert np.abs(noise).max() < 3.001
    np.testing.assert_allclose(noise.std(), 0.987, atol=4 / (2 * noise.size) ** 0.5)
    expected = log_prob(means(config, env, state.params["actor"], flat, chains), np.asarray(chains), stds(config))
    elements = replace(elements, imitation_chain=jnp.repeat(chains, TRAINED, axis=0))
    found = dppo.loss(state.params, cloning, env, elements, i, 0.0)[0]
    without = dppo.loss(state.params, config, env, elements, i, 0.0)[0]
    np.testing.assert_allclose(found - without, -0.7 * expected.mean(), rtol=1e-3)
    trained, _ = rlx.train(dppo, cloning, env, jax.random.key(0))
    assert np.isfinite(ravel_pytree(trained.params)[0]).all()


def test_clean_actions_go_as_far_as_their_bound(config, env, state, acted):
    obs, _, _ = acted
    reach = lambda bound: np.abs(
        dppo.act(replace(config, action_bound=bound), env, state, obs, jax.random.key(0), deterministic=True)[0]
    ).max()
    np.testing.assert_allclose([reach(1.0), reach(3.0)], [1.0, 3.0], rtol=1e-5)


def test_actions_that_are_not_carried_out_have_no_part_in_the_likelihood():
    env = rlx.envs.make("Pendulum-v1", chunk=(3, 2), max_steps=12)
    config = dppo.Config(denoising_steps=2, trained_steps=2, hidden_sizes=(8,), num_envs=4, num_steps=8)
    state = jax.jit(partial(dppo.init, config, env))(jax.random.key(0))
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(N, 3)), jnp.float32)
    _, recorded = dppo.act(config, env, state, obs, jax.random.key(0))
    std = np.maximum(np.asarray(ddpm(2).std), config.least_std)
    assert recorded.chain.shape == (N, 3, 3)
    actor, _ = dppo.networks(config, env)
    x, after, last = recorded.chain[:, 1], recorded.chain[:, 2], jax.tree.map(lambda x: x[-1], ddpm(2))
    noise = actor.apply(state.params["actor"], obs, x, jnp.zeros(N, jnp.int32))
    mean = last.from_clean * jnp.clip(last.scale * x - last.noise * noise, -1, 1) + last.from_noisy * x
    expected = jax.scipy.stats.norm.logpdf(after, mean, std[-1])[:, :2].mean(-1)
    np.testing.assert_allclose(recorded.log_prob[:, -1], expected, rtol=1e-3, atol=1e-3)
    batch = dppo.Batch(obs, recorded, jnp.zeros(N), jnp.ones(N), jnp.zeros(N))
    plain = replace(config, normalize_advantage=False)
    chain = lambda i: replace(batch, recorded=replace(recorded, chain=recorded.chain.at[:, -1, i].add(0.1)))
    loss = lambda batch: dppo.loss(state.params, plain, env, batch, jnp.ones(N, jnp.int32), 0.0)[0]
    assert loss(chain(2)) == loss(batch)
    assert loss(chain(1)) != loss(batch)


def test_with_one_step_it_is_ppo_with_a_gaussian_of_fixed_std(config, env):
    """K = K' = 1: the mean is the clean action of noise that the environment might as well have drawn."""
    config = replace(config, denoising_steps=1, trained_steps=1, clip=0.05, first_clip=0.001)
    state = jax.jit(dppo.init)(config, env, jax.random.key(0))
    rng = np.random.default_rng(0)
    move = lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32)
    state = replace(state, params=jax.tree.map(move, state.params))
    obs = jnp.asarray(rng.normal(size=(N, 4)), jnp.float32)
    action, recorded = dppo.act(config, env, state, obs, jax.random.key(0))
    actor, _ = dppo.networks(config, env)

    def mean(params):
        noise = actor.apply(params, obs, recorded.chain[:, 0], jnp.zeros(N, jnp.int32))
        return jnp.clip(31.622777 * recorded.chain[:, 0] - 31.606961 * noise, -1, 1)

    np.testing.assert_allclose(recorded.chain[:, 1], action)
    gaussian = lambda params: jax.scipy.stats.norm.logpdf(action, mean(params), 0.1).mean(-1)
    np.testing.assert_allclose(recorded.log_prob[:, 0], gaussian(state.params["actor"]), rtol=1e-3, atol=1e-3)
    advantage = jnp.asarray(rng.normal(size=N), jnp.float32)
    batch = dppo.Batch(obs, recorded, jnp.zeros(N), advantage, jnp.zeros(N))
    plain = replace(config, normalize_advantage=False)

    def ppo(params):
        ratio = jnp.exp(gaussian(params) - recorded.log_prob[:, 0])
        return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.95, 1.05) * advantage).mean()

    params = jax.tree.map(lambda x: x + rng.normal(0, 1e-4, x.shape).astype(np.float32), state.params)
    found = dppo.loss(params, plain, env, batch, jnp.zeros(N, jnp.int32), 0.0)[1]["policy_loss"]
    np.testing.assert_allclose(found, ppo(params["actor"]), rtol=1e-3, atol=1e-4)


@pytest.mark.more
def test_the_sum_over_steps_of_the_score_is_the_gradient_of_what_is_expected(env):
    """All steps trained, exact advantages: against finite differences of the expected pay under common noise."""
    config = dppo.Config(denoising_steps=2, trained_steps=2, hidden_sizes=(4,), noise_bound=8.0, least_std=0.3)
    config = replace(config, normalize_advantage=False, total_steps=64, num_minibatches=1)
    space = rlx.Env(Line(), None, max_steps=1)
    state = jax.jit(dppo.init)(config, space, jax.random.key(0))
    rng = np.random.default_rng(0)
    state = replace(
        state, params=jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32), state.params)
    )
    flat, unflatten = ravel_pytree(state.params["actor"])
    obs, key = jnp.zeros((400_000, 1)), jax.random.key(1)
    pay = lambda action: jnp.exp(-((action[:, 0] - 0.5) ** 2))

    @jax.jit
    def expected(flat):
        actor = replace(state, params=state.params | {"actor": unflatten(flat)})
        return pay(dppo.act(config, space, actor, obs, key)[1].chain[:, -1])

    @jax.jit
    def estimate(flat):
        """Minus the policy's gradient; a sum over steps is their number times the mean, one action has one element."""
        actor = replace(state, params=state.params | {"actor": unflatten(flat)})
        _, recorded = dppo.act(config, space, actor, obs, key)
        paid = pay(recorded.chain[:, -1])
        batch = dppo.Batch(obs, recorded, paid, paid - paid.mean(), paid)
        each = [
            jax.grad(lambda p, i=i: dppo.loss(p, config, space, batch, jnp.full(len(obs), i), 0.0)[1]["policy_loss"])(
                actor.params
            )["actor"]
            for i in range(2)
        ]
        return -sum(ravel_pytree(part)[0] for part in each)

    found = estimate(flat)
    direction, h = found / jnp.linalg.norm(found), 0.02
    differences = (expected(flat + h * direction) - expected(flat - h * direction)) / (2 * h)
    assert differences.mean() > 0.02
    # Noise is common to both sides; what is left is the error of the score, below sd(n / std) / sqrt(400,000) = 0.005.
    np.testing.assert_allclose(found @ direction, differences.mean(), atol=0.005, rtol=0.05)


class Line:
    """One number, which is what matters of an action."""

    default_params = None

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.zeros(1), state, action[0], True, False, {}

    def observation_space(self, params):
        return rlx.spaces.Box(-1.0, 1.0, (1,))

    def action_space(self, params):
        return rlx.spaces.Box(-jnp.inf, jnp.inf, (1,))


def test_it_learns_with_chunks_of_actions():
    """A pendulum that is told four torques at a time: another environment, the same algorithm."""
    env = rlx.envs.make("Pendulum-v1", chunk=4)
    config = dppo.Config(
        total_steps=64, num_envs=4, num_steps=16, denoising_steps=2, trained_steps=2, hidden_sizes=(8,)
    )
    state, metrics = rlx.train(dppo, config, env, jax.random.key(0))
    assert state.params["actor"]["params"]["head"]["kernel"].shape == (8, 4)
    assert np.isfinite(metrics["policy_loss"]).all()


RESUME = """
import jax, numpy as np, rlx
from rlx.algos import dppo
env = rlx.envs.make("rlx/MultiGoal", max_steps=12)
sizes = {"num_envs": 4, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (8,)}
config = dppo.Config(total_steps=3 * 64, learning_rate=1e-2, denoising_steps=4, trained_steps=3, **sizes)
whole, _ = rlx.train(dppo, config, env, jax.random.key(0))
state = jax.jit(dppo.init)(config, env, jax.random.key(0))
for num_updates in (2, 1):
    state, _ = rlx.resume(dppo, config, env, state, num_updates=num_updates)
bits = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), whole, state)
print("the same bits after", state.num_updates)
"""


@pytest.mark.more
def test_resume_is_bitwise():
    """In a process with the optimisations of XLA that users have; with the few of the tests a sum rounds otherwise."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", RESUME], capture_output=True, text=True, env=plain, check=False)
    assert done.stdout == "the same bits after 3\n", done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_steps": 6}, "trained_steps = 6: there are 5 denoising_steps"),
        ({"num_minibatches": 5}, r"num_envs \* num_steps \* trained_steps = 192 is not a multiple"),
    ],
)
def test_bad_settings_are_refused(config, env, changes, message):
    with pytest.raises(ValueError, match=message):
        rlx.train(dppo, dataclasses.replace(config, **changes), env, jax.random.key(0))
