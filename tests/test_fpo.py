"""FPO: its loss by the equations, what its clamps do, and where its actions come from. See also test_flow_policies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace
from rlx.algos import fpo
from rlx.flow import euler, noise_and_time
from rlx.rollout import flatten, rollout

PUBLISHED = fpo.Config(
    num_envs=4, num_steps=16, num_minibatches=2, hidden_sizes=(8,), flow_steps=4, samples_per_action=6
)
PLUS_PLUS = replace(
    PUBLISHED,
    sample_ratios=True,
    asymmetric=True,
    predict_noise=False,
    loss_scale=2**0.5,
    loss_clamp=20.0,
    eval_noise=0.0,
)
OBJECTIVE = jax.tree_util.Partial(fpo.objective)
CONFIGS = {"published": PUBLISHED, "plus_plus": PLUS_PLUS}


@pytest.fixture(scope="module")
def env():
    return rlx.envs.make("rlx/MultiGoal", max_steps=12)


@pytest.fixture(scope="module")
def state(env):
    """After one update, with observation statistics."""
    config = replace(PUBLISHED, learning_rate=1e-2)
    return jax.jit(fpo.update)(config, env, fpo.init(config, env, jax.random.key(0)))[0]


@pytest.fixture(scope="module")
def batches(env, state):
    """The batch `[64]` that each config makes of its rollout."""

    @jax.jit
    def batch(config):
        _, key, _ = jax.random.split(state.key, 3)
        _, traj = rollout(env, partial(fpo.act, config, env, state), state.env_state, key, config.num_steps)
        return flatten(fpo.advantages(config, env, state, traj)[0])

    return {name: batch(config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def gradient(env):
    """Gradient of the loss, as the tree of the parameters."""

    @jax.jit
    def gradient(config, params, batch, objective=OBJECTIVE):
        return jax.grad(fpo.loss, has_aux=True)(params, config, env, batch, 0.0, objective)[0]

    return gradient


def moved(params, size=0.1):
    return jax.tree.map(lambda x: x + size * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


def numpy_losses(config, env, params, batch):
    """Flow-matching losses `[B, S]` from the definitions."""
    noise, t = noise_and_time(batch.recorded.draws, 6, 2, 4)
    noise, t, action = (np.asarray(x, np.float64) for x in (noise, t[..., None], batch.recorded.action[:, None]))
    x = (1 - t) * noise + t * action
    actor, _ = fpo.networks(config, env)
    v = np.asarray(actor.apply(params["actor"], batch.obs[:, None], jnp.float32(x), jnp.float32(t[..., 0])), np.float64)
    error = (x - t * v - noise) if config.predict_noise else (v - (action - noise))
    return np.minimum(config.loss_scale * np.square(error).mean(-1), config.loss_clamp)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_its_equation(env, state, batches, name):
    config, batch, params = replace(CONFIGS[name], clip=0.02), batches[name], moved(state.params)
    log_ratio = numpy_losses(config, env, state.params, batch) - numpy_losses(config, env, params, batch)
    if not config.sample_ratios:
        log_ratio = np.repeat(log_ratio.mean(1, keepdims=True), 6, axis=1)
    assert log_ratio.max() < config.log_ratio_clamp
    ratio, advantage = np.exp(log_ratio), np.asarray(batch.advantage, np.float64)
    advantage = ((advantage - advantage.mean()) / (advantage.std() + 1e-8))[:, None]
    clipped = np.minimum(ratio * advantage, np.clip(ratio, 0.98, 1.02) * advantage)
    if config.asymmetric:
        clipped = np.where(advantage > 0, clipped, ratio * advantage - np.abs(advantage) * (ratio - 1) ** 2 / 0.04)
    value = np.asarray(fpo.networks(config, env)[1].apply(params["critic"], batch.obs), np.float64)
    old, target = np.asarray(batch.value, np.float64), np.asarray(batch.target, np.float64)
    inside = old + np.clip(value - old, -0.2, 0.2)
    expected = {
        "policy_loss": -clipped.mean(),
        "value_loss": 0.5 * np.maximum((value - target) ** 2, (inside - target) ** 2).mean(),
        "flow_loss": numpy_losses(config, env, params, batch).mean(),
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "clip_fraction": (np.abs(ratio - 1) > 0.02).mean(),
    }
    total, parts = fpo.loss(params, config, env, batch, 0.0)
    assert 0 < expected["clip_fraction"] < 1
    assert parts.keys() == expected.keys()
    for key, part in parts.items():
        # Means of 384 float32 numbers; ratios come from differences of losses of order 1 to 10.
        np.testing.assert_allclose(part, expected[key], rtol=2e-3, atol=2e-5, err_msg=key)
    np.testing.assert_allclose(total, parts["policy_loss"] + 0.5 * parts["value_loss"], rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"clip": 0.5}, {"sample_ratios": True}, {"sample_ratios": True, "asymmetric": True}],
    ids=["mean ratio", "wide clip", "sample ratios", "asymmetric"],
)
def test_the_first_gradient_lowers_the_flow_loss_of_good_actions(env, state, batches, gradient, changes):
    batch, advantage = batches["published"], np.asarray(batches["published"].advantage)
    advantage = jnp.asarray((advantage - advantage.mean()) / advantage.std())
    actor, _ = fpo.networks(PUBLISHED, env)

    def score(params):
        velocity = partial(actor.apply, params["actor"])
        losses = fpo.flow_loss(PUBLISHED, velocity, batch.obs, batch.recorded.action, batch.recorded.draws)
        return jnp.mean(advantage[:, None] * losses)

    expected = ravel_pytree(jax.grad(score)(state.params)["actor"])[0]
    found = gradient(replace(PUBLISHED, **changes), state.params, batch)["actor"]
    assert jnp.linalg.norm(expected) > 0.01
    np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_advantages_leave_the_actor_alone(state, batches, gradient, name):
    batch = replace(batches[name], advantage=jnp.full(64, 3.0))
    grads = gradient(CONFIGS[name], moved(state.params), batch)
    np.testing.assert_array_equal(ravel_pytree(grads["actor"])[0], 0)
    assert jnp.linalg.norm(ravel_pytree(grads["critic"])[0]) > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_above_the_clamp_have_no_gradient_and_ratio_one(env, state, batches, gradient, name):
    config = replace(CONFIGS[name], loss_clamp=1e-4)
    batch = batches[name]
    recorded = replace(batch.recorded, flow_loss=jnp.minimum(batch.recorded.flow_loss, 1e-4))  # as it would be recorded
    batch = replace(batch, recorded=recorded)
    _, parts = fpo.loss(moved(state.params), config, env, batch, 0.0)
    # Of the noise there is no loss at time 0, and so none to clamp.
    at_zero = (np.asarray(noise_and_time(recorded.draws, 6, 2, 4)[1]) == 0) if config.predict_noise else 0.0
    np.testing.assert_allclose(parts["flow_loss"], 1e-4 * np.mean(1.0 - at_zero), rtol=1e-4)
    assert parts["approx_kl"] == 0
    grads = gradient(config, moved(state.params), batch)
    np.testing.assert_array_equal(ravel_pytree(grads["actor"])[0], 0)


def ratio_objective():
    """The mean ratio itself."""
    return jax.tree_util.Partial(lambda config, elements, progress: jnp.exp(elements.log_ratio))


def test_the_clamp_of_the_ratio_leaves_its_gradient(env, state, batches, gradient):
    batch = batches["published"]
    far = replace(batch, recorded=replace(batch.recorded, flow_loss=batch.recorded.flow_loss + 5.0))
    config = replace(PUBLISHED, log_ratio_clamp=1.5, value_coef=0.0)
    _, parts = fpo.loss(state.params, config, env, far, 0.0, ratio_objective())
    np.testing.assert_allclose(parts["policy_loss"], np.exp(1.5), rtol=1e-5)
    # Every ratio is exp(1.5), and the slope of each in its loss -exp(1.5).
    near = gradient(replace(config, log_ratio_clamp=100.0), state.params, batch, ratio_objective())["actor"]
    clamped = gradient(config, state.params, far, ratio_objective())["actor"]
    assert jnp.linalg.norm(ravel_pytree(near)[0]) > 1e-3
    expected = np.exp(1.5) * ravel_pytree(near)[0]
    np.testing.assert_allclose(ravel_pytree(clamped)[0], expected, rtol=1e-3, atol=1e-5)


def test_ratios_are_at_most_the_exponential_of_the_old_loss_and_their_mean_is_at_least_that_of_the_mean(
    env, state, batches
):
    """Flow-matching losses are never negative; the exponential is convex."""
    batch, params = batches["published"], moved(state.params)
    apart, together = (
        fpo.loss(params, replace(PUBLISHED, sample_ratios=x), env, batch, 0.0, ratio_objective())[1]["policy_loss"]
        for x in (True, False)
    )
    assert np.exp(batch.recorded.flow_loss).mean() > apart > together > 0


def test_samples_that_are_equal_count_as_one(env, state, batches, monkeypatch):
    draw, params = fpo.noise_and_time, moved(state.params)
    one = replace(PUBLISHED, samples_per_action=1, sample_ratios=True)
    losses = lambda params: fpo.flow_loss(
        one, partial(fpo.networks(one, env)[0].apply, params["actor"]), batch.obs, batch.recorded.action, draws
    )
    batch, draws = batches["published"], batches["published"].recorded.draws
    batch = replace(batch, recorded=replace(batch.recorded, flow_loss=losses(state.params)))
    expected, parts = fpo.loss(params, one, env, batch, 0.0)
    assert parts["approx_kl"] > 1e-4
    monkeypatch.setattr(
        fpo,
        "noise_and_time",
        lambda draws, num, *sizes: jax.tree.map(lambda x: jnp.repeat(x, num, axis=1), draw(draws, 1, *sizes)),
    )
    for sample_ratios in (True, False):
        six = replace(one, samples_per_action=6, sample_ratios=sample_ratios)
        np.testing.assert_allclose(fpo.loss(params, six, env, batch, 0.0)[0], expected, rtol=1e-5)


def test_the_ratio_is_not_clamped_from_below(env, state, batches):
    batch = batches["published"]
    far = replace(batch, recorded=replace(batch.recorded, flow_loss=batch.recorded.flow_loss - 5.0))
    config = replace(PUBLISHED, log_ratio_clamp=1.5)
    _, parts = fpo.loss(state.params, config, env, far, 0.0, ratio_objective())
    np.testing.assert_allclose(parts["policy_loss"], np.exp(-5.0), rtol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shift", [1e6, -1e6])
def test_extreme_differences_of_flow_losses_stay_finite(state, batches, gradient, name, shift):
    batch = batches[name]
    old = jnp.where(jnp.arange(64)[:, None] % 2 == 0, batch.recorded.flow_loss + shift, batch.recorded.flow_loss)
    grads = gradient(CONFIGS[name], state.params, replace(batch, recorded=replace(batch.recorded, flow_loss=old)))
    assert np.isfinite(ravel_pytree(grads)[0]).all()
    far = replace(batch, recorded=replace(batch.recorded, action=1e6 * batch.recorded.action))
    assert np.isfinite(ravel_pytree(gradient(CONFIGS[name], state.params, far))[0]).all()


@pytest.fixture(scope="module")
def act(env):
    return jax.jit(
        lambda config, state, obs, key, deterministic=False: fpo.act(config, env, state, obs, key, deterministic),
        static_argnames="deterministic",
    )


OBS = jnp.broadcast_to(jnp.array([1.0, -2.0, 0.5, 0.0]), (4000, 4))


def test_a_flow_that_stands_still_samples_a_standard_normal_and_action_noise_adds_to_it(state, act):
    still = replace(state, params=state.params | {"actor": jax.tree.map(jnp.zeros_like, state.params["actor"])})
    for std in (0.0, 0.5):
        config = replace(PUBLISHED, action_noise=std)
        action, _ = act(config, still, OBS, jax.random.key(1))
        assert scipy.stats.kstest(np.ravel(action), scipy.stats.norm(0, np.sqrt(1 + std**2)).cdf).pvalue > 1e-3
    quiet, _ = act(config, still, OBS, jax.random.key(1), deterministic=True)
    assert scipy.stats.kstest(np.ravel(quiet), "norm").pvalue > 1e-3


def test_deterministic_actions_begin_in_as_much_noise_as_is_asked_for(env, state, act):
    velocity = partial(fpo.networks(PUBLISHED, env)[0].apply, state.params["actor"], OBS)
    zero, _ = act(replace(PUBLISHED, eval_noise=0.0, action_noise=0.5), state, OBS, jax.random.key(1), True)
    np.testing.assert_allclose(zero, euler(velocity, jnp.zeros((4000, 2)), 4), rtol=1e-4, atol=1e-5)
    half, _ = act(replace(PUBLISHED, eval_noise=0.5), state, OBS, jax.random.key(1), True)
    noise, _ = jax.random.normal(jax.random.split(jax.random.key(1))[0], (2, 4000, 2))
    np.testing.assert_allclose(half, euler(velocity, 0.5 * noise, 4), rtol=1e-4, atol=1e-5)


def test_what_is_recorded_is_the_unclipped_action_with_its_noise_and_its_losses(env, state, act):
    config = replace(PUBLISHED, action_noise=0.5)
    bounded = rlx.envs.make("probe/ContinuousAction")
    params = fpo.init(config, bounded, jax.random.key(0))
    action, recorded = fpo.act(config, bounded, params, jnp.ones((200, 1)), jax.random.key(1))
    assert np.abs(recorded.action).max() > 1
    np.testing.assert_allclose(action, 2 * np.clip(recorded.action, -1, 1), rtol=1e-5)
    # Losses are those of what was done, noise included, and of draws that have nothing to do with what was done.
    velocity = partial(fpo.networks(config, env)[0].apply, state.params["actor"])
    action, recorded = act(config, state, OBS, jax.random.key(1))
    losses = fpo.flow_loss(config, velocity, OBS, action, recorded.draws)
    np.testing.assert_allclose(recorded.flow_loss, losses, rtol=1e-4, atol=1e-5)
    noise, _ = noise_and_time(recorded.draws, 6, 2, 4)
    # Four standard errors of a zero correlation.
    assert abs(np.corrcoef(np.ravel(noise[:, 0]), np.ravel(action))[0, 1]) < 4 / np.sqrt(8000)
    assert len(np.unique(recorded.draws, axis=0)) == 4000


def test_fpo_plus_plus_is_a_variant_and_fpo_another(env, batches, gradient, state):
    """The flow-matching loss is the sum over A divided by sqrt(A), whatever the A; for MultiGoal that is sqrt(2)."""
    small = {"flow_steps": PUBLISHED.flow_steps, "samples_per_action": PUBLISHED.samples_per_action}
    plus = replace(PUBLISHED, **fpo.VARIANTS["fpo_plus_plus"] | small)
    same = replace(PLUS_PLUS, value_clip=float("inf"), max_grad_norm=1.0, action_noise=0.02)
    batch = batches["plus_plus"]
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        gradient(plus, state.params, batch),
        gradient(same, state.params, batch),
    )
    assert fpo.VARIANTS["fpo_plus_plus"]["eval_noise"] == PLUS_PLUS.eval_noise
    for action_dims in (1, 3):
        action, obs = jnp.ones((4, action_dims)), jnp.ones((4, 2))
        draws = jax.random.key_data(jax.random.split(jax.random.key(0), 4))
        velocity = lambda obs, x, t: 0.0 * x
        found, mean = (
            fpo.flow_loss(replace(plus, loss_clamp=float("inf"), root_scale=root), velocity, obs, action, draws)
            for root in (True, False)
        )
        np.testing.assert_allclose(found, mean * action_dims**0.5, rtol=1e-6)
    assert replace(plus, **fpo.VARIANTS["fpo"] | small, value_clip=0.2, max_grad_norm=0.5) == PUBLISHED
