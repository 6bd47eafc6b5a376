"""DSRL-NA: its losses against loops, the limit in which it is SAC, and a one-step task whose values are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import truncnorm

import rlx
from rlx import Env, cli, replace, stack
from rlx.algos import dsrl, fpo, sac
from rlx.around import decoded, rewarded
from rlx.envs.tasks.probes import ContinuousAction, Endless, Mixed
from rlx.pytree import pytree
from rlx.replay import take
from rlx.spaces import Box, Discrete
from rlx.steering import steered
from rlx.train import advance

SMALL = {"total_steps": 128, "warmup_steps": 32, "num_envs": 4, "num_steps": 8, "batch_size": 16, "capacity": 64}
SMALL |= {"utd_ratio": 0.25, "hidden_sizes": (16,), "learning_rate": 1e-2, "alpha_learning_rate": 1e-2, "tau": 0.1}
BOUND = 1.5
config = dsrl.Config(**SMALL)


@pytree
class Linear:
    """`a = slope w + tilt s + shift`, which is invertible, for the last number s of an observation."""

    slope: float = 0.8
    tilt: float = 0.3
    shift: float = -0.2

    def __call__(self, obs, noise, key=None):
        return self.slope * noise + self.tilt * obs[-1:] + self.shift


mixed = Mixed((Endless, ContinuousAction), Box(-2.0, 2.0, (1,)))
plain = Env(mixed, mixed.default_params, max_steps=3)
noisy = lambda env, policy=None: decoded(env, Linear() if policy is None else policy, Box(-BOUND, BOUND, (1,)))
env = noisy(plain)


def moved(params, scale=0.3):
    """Parameters of random signs, so that of several critics none is the lowest everywhere."""
    numbers = lambda x: x + scale * jax.random.normal(jax.random.key(x.size), x.shape)
    return jax.tree.map(numbers, params)


@pytest.fixture(scope="module")
def state():
    first = jax.jit(partial(dsrl.init, config, env))(jax.random.key(0))
    return replace(first, params=moved(first.params), target_params=moved(first.target_params, -0.3))


@pytest.fixture(scope="module")
def batch(state):
    found = take(state.replay, jnp.arange(32))
    assert 0 < found.terminated.sum() < 32
    next_obs = found.next_obs[::-1]  # of the probes it is the observation itself
    return replace(found, next_obs=next_obs, raw=(0.5 * found.obs + 0.1, 0.7 * next_obs - 0.2))


normal = jax.random.normal(jax.random.key(5), (32, 1))
drawn = jax.random.uniform(jax.random.key(6), (32, 1), minval=-1.0, maxval=1.0)


def drawn_noise(params, obs):
    """The noise of the actor in unit coordinates and its log-probability, float64."""
    pi = dsrl.networks(config, env)[0].apply(params["actor"], obs)
    mean, log_std, xi = (np.asarray(x, np.float64)[:, 0] for x in (pi.mean, pi.log_std, normal))
    noise = np.tanh(mean + np.exp(log_std) * xi)
    return noise[:, None], -0.5 * xi**2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - noise**2)


def values(params, obs, action):
    """Of each critic, one after the other, `[E, B]`."""
    critic = dsrl.networks(config, env)[1]
    each = [critic.apply(jax.tree.map(lambda x, e=e: x[e], params), obs, jnp.float32(action)) for e in range(2)]
    return np.asarray(each, np.float64)


def action_of(obs, noise):
    """What `Linear` makes of noise in unit coordinates, in those of [-2, 2]."""
    return (0.8 * BOUND * np.asarray(noise, np.float64) + 0.3 * np.asarray(obs, np.float64)[:, -1:] - 0.2) / 2.0


def test_the_target_has_the_value_of_the_action_that_is_made_of_the_next_noise(state, batch):
    noise, log_prob = drawn_noise(state.params, batch.next_obs)
    next_q = values(state.target_params, batch.next_obs, action_of(batch.raw[1], noise))
    assert 0 < (next_q[0] < next_q[1]).sum() < 32
    alpha = np.exp(float(state.params["log_alpha"]))
    going_on = 1.0 - np.asarray(batch.terminated, np.float64)
    y = 3.0 * np.asarray(batch.reward) + 0.8 * going_on * (next_q.min(0) - alpha * log_prob)
    value = values(state.params["critic"], batch.obs, batch.action)
    of = replace(config, reward_scale=3.0, gamma=0.8)
    found, q = dsrl.critic_loss(state.params, state.params, state.target_params, of, env, batch, normal)
    np.testing.assert_allclose(found, 0.5 * ((value - y) ** 2).sum(0).mean(), rtol=1e-4)
    np.testing.assert_allclose(q, value, rtol=1e-4, atol=1e-5)


def test_the_critic_of_noise_imitates_the_minimum_of_the_critics(state, batch):
    params = state.params | {"critic": state.target_params}  # none of which is the lower everywhere
    q = values(params["critic"], batch.obs, action_of(batch.raw[0], drawn))
    assert 0 < (q[0] < q[1]).sum() < 32
    own = dsrl.networks(config, env)[1].apply(params["noise_critic"], batch.obs, drawn)
    found = dsrl.noise_critic_loss(params, params, config, env, batch, drawn)
    np.testing.assert_allclose(found, 0.5 * ((np.asarray(own, np.float64) - q.min(0)) ** 2).mean(), rtol=1e-4)


def test_the_actor_maximises_the_critic_of_noise_and_entropy(state, batch):
    noise, log_prob = drawn_noise(state.params, batch.obs)
    q = dsrl.networks(config, env)[1].apply(state.params["noise_critic"], batch.obs, jnp.float32(noise))
    alpha = np.exp(float(state.params["log_alpha"]))
    found, own = dsrl.actor_loss(state.params, state.params, config, env, batch, normal)
    np.testing.assert_allclose(found, (alpha * log_prob - np.asarray(q)).mean(), rtol=1e-4)
    np.testing.assert_allclose(own, log_prob, rtol=1e-4, atol=1e-4)
    rest = {"alpha": alpha, "entropy": -log_prob.mean(), "actor_loss": found}
    _, (_, metrics) = dsrl.loss(
        state.params, state.params, state.target_params, config, env, batch, (normal, normal, drawn)
    )
    for name, number in rest.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-4, err_msg=name)


def test_where_actions_are_the_noise_critics_learn_what_those_of_sac_learn(state, batch):
    same = decoded(plain, lambda obs, noise, key: noise, Box(-2.0, 2.0, (1,)))
    found, _ = dsrl.critic_loss(state.params, state.params, state.target_params, config, same, batch, normal)
    of_sac = sac.Config(**SMALL)
    theirs = sac.Batch(batch.obs, batch.action, batch.reward, batch.next_obs, batch.terminated)
    expected, _ = sac.critic_loss(state.params, state.params, state.target_params, of_sac, plain, theirs, normal)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_noise_is_of_a_normal_distribution_within_the_bounds():
    wide = decoded(plain, Linear(), Box(jnp.array([-1.5, 0.0]), jnp.array([1.5, 3.0]), (2,)))
    noise = np.asarray(dsrl.prior(wide, jax.random.key(0), (40, 500)))
    assert noise.shape == (40, 500, 2)
    assert np.abs(noise).max() <= 1.0
    own = noise.reshape(-1, 2) * 1.5 + np.array([0.0, 1.5])
    for i, (low, high) in enumerate(((-1.5, 1.5), (0.0, 3.0))):
        expected = truncnorm(low, high)
        np.testing.assert_allclose(own[:, i].mean(), expected.mean(), atol=0.02)
        np.testing.assert_allclose(own[:, i].std(), expected.std(), atol=0.02)


def norms(loss, params):
    """The norm of the gradient of a loss for each group of parameters."""
    return {name: float(jnp.linalg.norm(ravel_pytree(x)[0])) for name, x in jax.grad(loss)(params).items()}


def losses(state, batch):
    """Each loss by what it is for, as a function of the parameters that learn and of the environment."""
    fixed, target = state.params, state.target_params
    return {
        "critic": lambda params, env=env: dsrl.critic_loss(params, fixed, target, config, env, batch, normal)[0],
        "noise_critic": lambda params, env=env: dsrl.noise_critic_loss(params, fixed, config, env, batch, drawn),
        "actor": lambda params, env=env: dsrl.actor_loss(params, fixed, config, env, batch, normal)[0],
    }


def test_no_loss_has_a_gradient_for_the_parameters_of_another(state, batch):
    for name, loss in losses(state, batch).items():
        found = norms(loss, state.params)
        assert found.pop(name) > 1e-3
        assert found == dict.fromkeys(found, 0.0), name
    noises = normal, normal, drawn
    whole = lambda params: dsrl.loss(params, state.params, state.target_params, config, env, batch, noises)[0]
    of_each = {name: norms(loss, state.params)[name] for name, loss in losses(state, batch).items()}
    assert norms(whole, state.params) == pytest.approx(of_each | {"log_alpha": 0.0}, rel=1e-4)


def test_no_loss_has_a_gradient_for_the_policy_that_decodes(state, batch):
    with_policy = lambda policy: replace(env, params=replace(env.params, decode=policy))
    for name, loss in losses(state, batch).items():
        slope = jax.grad(lambda policy, loss=loss: loss(state.params, with_policy(policy)))(Linear())
        assert slope == Linear(0.0, 0.0, 0.0), name
        if name != "actor":  # whose loss has no action
            other = loss(state.params, with_policy(Linear(0.5, 0.1, 0.1)))
            assert abs(other - loss(state.params, env)) > 1e-3, name


ONE_STEP = dsrl.Config(
    total_steps=6_000,
    warmup_steps=500,
    num_envs=4,
    num_steps=4,
    capacity=6_000,
    batch_size=64,
    hidden_sizes=(64,),
    learning_rate=3e-3,
    alpha_learning_rate=3e-3,
    initial_alpha=0.05,
    target_entropy=-2.0,
)


def test_the_critic_of_noise_comes_to_the_values_of_the_actions_and_the_actor_to_the_best():
    """One step, of the reward 1 - (a - s / 2)^2 for a = 0.8 w + 0.3 s - 0.2."""
    one_step = noisy(rlx.envs.make("probe/ContinuousAction"))
    learned, metrics = rlx.train(dsrl, ONE_STEP, one_step, jax.random.key(0))
    assert metrics["noise_critic_loss"][-50:].mean() < 0.1 * metrics["noise_critic_loss"][:5].mean()
    obs, noise = (x.reshape(-1, 1) for x in jnp.meshgrid(jnp.array([-1.0, 1.0]), jnp.linspace(-0.95, 0.95, 20)))
    found = dsrl.networks(ONE_STEP, one_step)[1].apply(learned.params["noise_critic"], obs, noise)
    expected = 1.0 - (2.0 * action_of(obs, noise) - np.asarray(obs) / 2.0)[:, 0] ** 2
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, atol=0.12)
    played = rlx.evaluate(dsrl, ONE_STEP, one_step, learned, jax.random.key(1), 64)
    assert played.returns.mean() > 0.98


def test_the_buffer_has_actions_and_the_share_of_saturated_noise_is_theirs():
    start = jax.jit(partial(dsrl.init, config, env))(jax.random.key(0))
    after, metrics = jax.jit(partial(dsrl.update, config, env))(start)
    rows = take(after.replay, jnp.arange(32, 64))  # those of the rollout, behind the first 32
    unit = np.asarray((2.0 * rows.action - 0.3 * rows.obs[:, -1:] + 0.2) / 0.8 / BOUND)[:, 0]
    share = (np.abs(unit) > 0.9).mean()
    assert 0 < share < 0.5
    np.testing.assert_allclose(metrics["saturated"], share, rtol=1e-6)
    pays = np.asarray(rows.terminated)  # of the probes, `ContinuousAction` ends
    expected = 1.0 - (2.0 * np.asarray(rows.action) - np.asarray(rows.obs)[:, -1:] / 2.0)[pays, 0] ** 2
    np.testing.assert_allclose(rows.reward[pays], expected, rtol=1e-4, atol=1e-5)


class Far:
    """One step, seen between 5 and 6."""

    default_params = None

    def observation_space(self, params):
        return Box(5.0, 6.0, (1,))

    def action_space(self, params):
        return Box(-2.0, 2.0, (1,))

    def reset(self, key, params):
        obs = jax.random.uniform(key, (1,), minval=5.0, maxval=6.0)
        return obs, obs

    def step(self, key, state, action, params):
        return state, state, -jnp.sum(action**2), True, False, {}


def test_the_frozen_policy_sees_raw_observations_and_the_networks_normalised_ones(monkeypatch):
    checked = lambda obs, noise, key: jnp.where((obs > 5.0) & (obs < 6.0), noise, jnp.nan)
    far, of = noisy(Env(Far(), None), checked), replace(config, normalize_obs=True)
    plain_loss = dsrl.loss

    def loss(params, fixed, target_params, config, env, batch, noise):
        total, (log_prob, metrics) = plain_loss(params, fixed, target_params, config, env, batch, noise)
        return total, (log_prob, metrics | {"largest": jnp.abs(batch.obs).max()})

    monkeypatch.setattr(dsrl, "loss", loss)
    start = jax.jit(partial(dsrl.init, of, far))(jax.random.key(0))
    after, metrics = jax.jit(partial(dsrl.update, of, far))(start)
    assert np.isfinite(metrics["critic_loss"])
    assert np.isfinite(metrics["noise_critic_loss"])
    assert metrics["largest"] < 3.0
    assert take(after.replay, jnp.arange(64)).obs.min() >= 5.0


def test_a_run_in_pieces_is_bitwise_the_same():
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    start = jax.jit(partial(dsrl.init, config, env))(jax.random.key(0))
    whole, _ = chunk(dsrl, config, env, start, 0, 3, 3)
    half, _ = chunk(dsrl, config, env, start, 0, 1, 3)
    again, _ = chunk(dsrl, config, env, half, 1, 2, 3)
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), again, whole)


CHANGED = {"learning_rate": 3e-2, "alpha_learning_rate": 3e-2, "initial_alpha": 0.5, "target_entropy": 0.5}
CHANGED |= {"gamma": 0.5, "tau": 0.5, "reward_scale": 3.0}


def test_lanes_are_their_single_runs_every_traced_setting_counts_and_no_key_is_used_twice():
    lanes = [*(replace(config, **{name: value}) for name, value in CHANGED.items()), config, config]
    keys = jnp.stack([jax.random.key(0)] * (len(lanes) - 1) + [jax.random.key(1)])
    state, _ = jax.vmap(partial(rlx.train, dsrl), in_axes=(0, None, 0))(stack(lanes), env, keys)
    weights = np.concatenate([np.reshape(x, (len(lanes), -1)) for x in jax.tree.leaves(state.params)], axis=1)
    for i, name in enumerate(CHANGED):
        assert np.abs(weights[i] - weights[-2]).max() > 1e-4, name
    for lane, key in ((-2, 0), (-1, 1)):
        with jax.debug_key_reuse(True):
            single, _ = rlx.train(dsrl, config, env, jax.random.key(key))
        # A batched matrix product sums in another order: 1e-7 an operation, which 24 steps of Adam enlarge.
        close = lambda x, y, lane=lane: np.testing.assert_allclose(x[lane], y, rtol=1e-2, atol=1e-3)
        jax.tree.map(close, state.params, single.params)


def test_a_steered_policy_is_left_as_it_is_and_learns_nothing():
    pendulum = rlx.envs.make("Pendulum-v1", max_steps=20)
    of_fpo = fpo.Config(num_envs=4, num_steps=16, hidden_sizes=(16,), flow_steps=5, normalize_obs=True)
    start = jax.jit(partial(fpo.init, of_fpo, pendulum))(jax.random.key(0))
    where = steered(pendulum, fpo, of_fpo, start)
    learned, metrics = rlx.train(dsrl, config, where, jax.random.key(0))
    assert learned.num_updates == 3
    assert np.isfinite(metrics["critic_loss"]).all()
    policy, size = where.params.decode, dsrl.Config(**SMALL)
    found = take(learned.replay, jnp.arange(32))
    found = replace(found, raw=(found.obs, found.next_obs))
    noises = normal, normal, drawn

    def whole(weights):
        other = replace(where, params=replace(where.params, decode=replace(policy, params=weights)))
        return dsrl.loss(learned.params, learned.params, learned.target_params, size, other, found, noises)[0]

    slopes = jax.grad(whole)(policy.params)
    assert all((slope == 0).all() for slope in jax.tree.leaves(slopes))
    jax.tree.map(np.testing.assert_array_equal, policy.params, start.params["actor"])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (plain, "none makes the actions of this environment: .*rlx.steering.steered"),
        (rewarded(plain, lambda step: 1.0), "none makes the actions of this environment: .*rlx.steering.steered"),
        (decoded(plain, lambda obs, noise, key: noise, Discrete(3)), "needs continuous actions"),
        (decoded(plain, Linear(), Box(-np.inf, np.inf, (1,))), "from -inf to inf in dimension 0"),
        (noisy(plain, lambda obs, noise, key: noise + jax.random.normal(key)), "dsrl gives the decoder no key"),
        (
            noisy(rlx.envs.make("probe/ObservationAction"), lambda obs, noise, key: jnp.int32(noise[0] > 0)),
            "needs continuous actions",
        ),
    ],
)
def test_environments_without_a_frozen_policy_are_refused(where, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(rlx.train, dsrl), config, where, jax.random.key(0))


def test_the_command_says_how_to_make_an_environment(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "dsrl", "--env", "Pendulum-v1", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "rlx.steering.steered(env, fpo, config, state)" in said
    assert not (tmp_path / "run").exists()
