"""TQC, REDQ, DroQ and CrossQ, and the settings of SAC: their equations, and the limits in which they are SAC."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import Env, replace, stack
from rlx.algos import crossq, redq, sac, tqc
from rlx.envs.tasks.probes import ContinuousAction, Endless, Mixed
from rlx.replay import take
from rlx.spaces import Box
from rlx.train import advance

ENDLESS, ACTION = 0, 1
mixed = Mixed((Endless, ContinuousAction), Box(-2.0, 2.0, (1,)))
env = Env(mixed, mixed.default_params, max_steps=3)
SIZES = {"num_envs": 4, "num_steps": 8, "batch_size": 16, "capacity": 64, "hidden_sizes": (16,)}
SMALL = {
    "total_steps": 128,
    "warmup_steps": 32,
    "utd_ratio": 0.25,
    "learning_rate": 1e-2,
    "alpha_learning_rate": 1e-2,
    **SIZES,
}
configs = {
    "sac": sac.Config(**SMALL, tau=0.1),
    "tqc": tqc.Config(**SMALL, tau=0.1, num_quantiles=5, num_dropped=2),
    "redq": redq.Config(**SMALL, tau=0.1, num_critics=3, policy_delay=4),
    "droq": redq.Config(**SMALL, tau=0.1, policy_delay=4, **redq.VARIANTS["droq"] | {"dropout": 0.2}),
    "crossq": crossq.Config(**SMALL, policy_delay=2, critic_hidden_sizes=(16,)),
}
modules = {"sac": sac, "tqc": tqc, "redq": redq, "droq": redq, "crossq": crossq}
KEY = jax.random.key(7)


def moved(params, phase=0.0):
    return jax.tree.map(
        lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size) + phase).reshape(x.shape).astype(x.dtype), params
    )


@pytest.fixture(scope="module")
def states():
    """Of each its first state, and with disturbed parameters."""
    first = {name: jax.jit(modules[name].init)(config, env, jax.random.key(0)) for name, config in configs.items()}
    return {name: replace(state, params=moved(state.params)) for name, state in first.items()}


@pytest.fixture(scope="module")
def batch(states):
    found = take(states["sac"].replay, jnp.arange(32))
    assert 0 < found.terminated.sum() < 32
    return found


noise = jax.random.normal(jax.random.key(5), (32, 1))


def next_action(module, config, params, obs):
    """The next action and its log-probability in float64."""
    pi = module.networks(config, env)[0].apply(params["actor"], obs)
    mean, log_std, xi = (np.asarray(x, np.float64)[:, 0] for x in (pi.mean, pi.log_std, noise))
    action = np.tanh(mean + np.exp(log_std) * xi)
    log_normal = -0.5 * xi**2 - log_std - 0.5 * np.log(2 * np.pi)
    return jnp.float32(action[:, None]), log_normal - np.log(1 - action**2)


def values(module, config, params, obs, action):
    critic = module.networks(config, env)[1]
    return np.asarray(jax.vmap(critic.apply, in_axes=(0, None, None))(params, obs, action), np.float64)


def test_the_loss_of_tqc_is_its_equation(states, batch):
    config, state = configs["tqc"], states["tqc"]
    target_params = moved(state.target_params, 1.0)
    action, log_prob = next_action(tqc, config, state.params, batch.next_obs)
    alpha = np.exp(float(state.params["log_alpha"]))
    all_q = values(tqc, config, target_params, batch.next_obs, action)  # [E, B, K]
    theta = values(tqc, config, state.params["critic"], batch.obs, batch.action)
    total = 0.0
    for b in range(32):
        kept = np.sort(all_q[:, b].ravel())[:6]
        going_on = 0.0 if batch.terminated[b] else config.gamma
        y = float(batch.reward[b]) + going_on * (kept - alpha * log_prob[b])
        for e in range(2):
            for i in range(5):
                u = y - theta[e, b, i]
                huber = np.where(np.abs(u) <= 1, 0.5 * u**2, np.abs(u) - 0.5)
                total += (np.abs((i + 0.5) / 5 - (u < 0)) * huber).mean() / 32
    found, _ = tqc.critic_loss(state.params, state.params, target_params, config, env, batch, noise)
    np.testing.assert_allclose(found, total, rtol=1e-4)
    action, log_prob = next_action(tqc, config, state.params, batch.obs)
    q = values(tqc, config, state.params["critic"], batch.obs, action).mean((0, 2))
    found, _ = tqc.actor_loss(state.params, state.params, config, env, batch, noise)
    np.testing.assert_allclose(found, (alpha * log_prob - q).mean(), rtol=1e-4)


def test_with_one_quantile_and_none_dropped_the_gradient_of_tqc_is_that_of_sac_with_the_mean(states, batch):
    """Half of it: the weight of a median is 1/2. As long as no error is above 1, where Huber's loss is linear."""
    config = replace(configs["tqc"], num_quantiles=1, num_dropped=0, reward_scale=0.05, gamma=0.1)
    state = jax.jit(tqc.init)(config, env, jax.random.key(0))
    near = lambda critics: jax.tree.map(lambda x: 0.3 * x, critics)
    params = state.params | {"critic": near(state.params["critic"])}
    target_params, fixed = near(moved(state.target_params)), params
    loss = lambda p: tqc.critic_loss(params | {"critic": p}, fixed, target_params, config, env, batch, noise)[0]

    def mean_of_critics(critics):
        actor, critic = sac.networks(configs["sac"], env)
        q = jax.vmap(critic.apply, in_axes=(0, None, None))
        pi = actor.apply(params["actor"], batch.next_obs)
        u = pi.mean + jnp.exp(pi.log_std) * noise
        value = q(target_params, batch.next_obs, jnp.tanh(u)).mean(0) - jnp.exp(params["log_alpha"]) * pi.log_prob(u)
        y = 0.05 * batch.reward + 0.1 * jnp.where(batch.terminated, 0.0, value)
        error = q(critics, batch.obs, batch.action) - y
        return 0.5 * (error**2).sum(0).mean(), jnp.abs(error).max()

    found = ravel_pytree(jax.grad(loss)(params["critic"]))[0]
    # SAC's head has one number, TQC's an axis of one: the same kernel.
    expected, largest = jax.grad(mean_of_critics, has_aux=True)(params["critic"])
    expected = ravel_pytree(expected)[0]
    assert largest < 0.9
    np.testing.assert_allclose(found, 0.5 * expected, rtol=1e-3, atol=1e-6)


def test_the_target_of_redq_is_the_minimum_over_those_that_are_drawn(states, batch):
    config, state = configs["redq"], states["redq"]
    # Critics of which none is the lowest everywhere: head and all are of random signs.
    target_params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size + 1), x.shape), state.target_params)
    action, log_prob = next_action(redq, config, state.params, batch.next_obs)
    alpha = np.exp(float(state.params["log_alpha"]))
    q = values(redq, config, target_params, batch.next_obs, action)
    value = values(redq, config, state.params["critic"], batch.obs, batch.action)

    def loss(which):
        going_on = config.gamma * (1.0 - np.asarray(batch.terminated))
        y = np.asarray(batch.reward) + going_on * (q[list(which)].min(0) - alpha * log_prob)
        return 0.5 * ((value - y) ** 2).sum(0).mean()

    expected = [loss(which) for which in ((0, 1), (0, 2), (1, 2))]
    critic_loss = jax.jit(
        lambda key: redq.critic_loss(*of_redq(state, target_params), config, env, batch, noise, key)[0]
    )
    found = [float(critic_loss(jax.random.key(i))) for i in range(24)]
    nearest = [int(np.argmin([abs(x - y) for y in expected])) for x in found]
    np.testing.assert_allclose(found, [expected[i] for i in nearest], rtol=1e-4)
    assert set(nearest) == {0, 1, 2}
    action, log_prob = next_action(redq, config, state.params, batch.obs)
    q = values(redq, config, state.params["critic"], batch.obs, action).mean(0)
    of_actor, _ = redq.actor_loss(state.params["actor"], state.params, config, env, batch, noise, KEY)
    np.testing.assert_allclose(of_actor, (alpha * log_prob - q).mean(), rtol=1e-4)


def of_redq(state, target_params):
    return state.params["critic"], state.params, target_params


def of_sac(state, target_params, batch, config, noise=noise):
    """Loss of SAC's critics and its gradient for them."""
    loss = lambda critics: sac.critic_loss(
        state.params | {"critic": critics}, state.params, target_params, config, env, batch, noise
    )[0]
    return jax.value_and_grad(loss)(state.params["critic"])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_redq_of_two_critics_and_droq_without_dropout_have_the_critics_of_sac(batch, layer_norm):
    changes = {"num_critics": 2, "num_target_critics": 2, "dropout": 0.0, "layer_norm": layer_norm}
    config, ours = replace(configs["redq"], **changes), replace(configs["sac"], layer_norm=layer_norm)
    state = jax.jit(sac.init)(ours, env, jax.random.key(0))
    same = jax.jit(redq.init)(config, env, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state.params, same.params)
    state = replace(state, params=moved(state.params))
    target_params = moved(state.target_params, 1.0)
    loss = lambda critics: redq.critic_loss(critics, state.params, target_params, config, env, batch, noise, KEY)[0]
    found, expected = jax.value_and_grad(loss)(state.params["critic"]), of_sac(state, target_params, batch, ours)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


def test_dropout_is_drawn_anew_for_each_pass_and_critic(states, batch):
    config, state = configs["droq"], states["droq"]
    q = lambda key: redq.q_values(state.params["critic"], config, env, batch.obs, batch.action, key)
    np.testing.assert_array_equal(q(KEY), q(KEY))
    assert np.abs(q(KEY) - q(jax.random.key(8))).max() > 0.01
    twice = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), state.params["critic"])
    first, second = redq.q_values(twice, config, env, batch.obs, batch.action, KEY)
    assert np.abs(first - second).max() > 0.01


def test_crossq_without_normalisation_is_sac_whose_target_is_the_online_network(states, batch):
    config = replace(configs["crossq"], batch_norm=False)
    state = jax.jit(crossq.init)(config, env, jax.random.key(0))
    assert state.stats == {"actor": {}, "critic": {}}
    state = replace(state, params=moved(state.params))
    loss = lambda critics: crossq.critic_loss(critics, state.params, state.stats, config, env, batch, noise)[0]
    found = jax.value_and_grad(loss)(state.params["critic"])
    expected = of_sac(state, state.params["critic"], batch, configs["sac"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    ours, _ = crossq.actor_loss(state.params["actor"], state.params, state.stats, config, env, batch, noise)
    theirs, _ = sac.actor_loss(state.params, state.params, configs["sac"], env, batch, noise)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def layers(variables, x, training):
    """A critic of one hidden layer in float64: norm, layer, relu, norm, head, as in the first batches."""
    p, stats = variables["params"]["torso"], variables["stats"]["torso"]
    array = lambda x: np.asarray(x, np.float64)

    def norm(x, name):
        mean, variance = (x.mean(0), x.var(0)) if training else (stats[name]["mean"], stats[name]["variance"])
        y = (x - array(mean)) / np.sqrt(array(variance) + 1e-3)
        return array(p[name]["scale"]) * y + array(p[name]["bias"])

    x = norm(array(x), "BatchRenorm_0") @ array(p["Dense_0"]["kernel"]) + array(p["Dense_0"]["bias"])
    x = norm(np.maximum(x, 0), "BatchRenorm_1")
    head = variables["params"]["head"]
    return (x @ array(head["kernel"]) + array(head["bias"]))[:, 0]


def test_the_critics_of_crossq_see_states_and_successors_as_one_batch(states, batch):
    config, state = configs["crossq"], states["crossq"]
    stats = jax.tree.map(lambda x: x if x.dtype == jnp.int32 else x + 0.2, state.stats)
    variables = crossq.with_stats(state.params, stats, "actor")
    action, log_prob = next_action(crossq, config, {"actor": variables}, batch.next_obs)
    both = np.concatenate([np.concatenate([batch.obs, batch.action], 1), np.concatenate([batch.next_obs, action], 1)])
    of = lambda e: jax.tree.map(lambda x: x[e], crossq.with_stats(state.params, stats, "critic"))
    q = np.stack([layers(of(e), both, training=True) for e in range(2)])
    alpha = np.exp(float(state.params["log_alpha"]))
    going_on = config.gamma * (1.0 - np.asarray(batch.terminated))
    y = np.asarray(batch.reward) + going_on * (q[:, 32:].min(0) - alpha * log_prob)
    inputs = state.params["critic"], state.params, stats, config, env, batch, noise
    found, (value, after) = crossq.critic_loss(*inputs)
    np.testing.assert_allclose(found, 0.5 * ((q[:, :32] - y) ** 2).sum(0).mean(), rtol=1e-3)
    np.testing.assert_allclose(value, q[:, :32], rtol=1e-3, atol=1e-3)
    first = after["torso"]["BatchRenorm_0"]
    np.testing.assert_allclose(first["mean"][0], 0.99 * 0.2 + 0.01 * both.mean(0), rtol=1e-4, atol=1e-6)
    assert (first["count"] == 1).all()
    # The actor's loss sees the critics by their running statistics.
    pi, _ = crossq.networks(config, env)[0].apply(variables, batch.obs, mutable="stats")
    chosen = jnp.tanh(pi.mean + jnp.exp(pi.log_std) * noise)
    q = np.stack([layers(of(e), np.concatenate([batch.obs, chosen], 1), training=False) for e in range(2)])
    inputs = state.params["actor"], state.params, stats, config, env, batch, noise
    found, (log_prob, _) = crossq.actor_loss(*inputs)
    np.testing.assert_allclose(found, (alpha * np.asarray(log_prob) - q.min(0)).mean(), rtol=1e-3)


def test_statistics_follow_in_learning_and_stay_in_acting(states):
    config = configs["crossq"]
    state = jax.jit(crossq.init)(config, env, jax.random.key(0))
    assert not any("stats" in variables for variables in (state.params["actor"], state.params["critic"]))
    after, _ = jax.jit(crossq.update)(config, env, state)
    count = lambda name: np.unique([x for x in jax.tree.leaves(after.stats[name]) if x.dtype == jnp.int32]).tolist()
    assert (count("critic"), count("actor")) == ([8], [4])
    act = lambda state, obs: crossq.act(config, env, state, obs, KEY, deterministic=True)[1]
    obs = jnp.ones((4, *env.observation_space.shape)).at[1:].set(5.0)
    # What else is in the batch changes nothing: by the batch's own statistics it would.
    np.testing.assert_allclose(act(after, obs)[:1], act(after, obs[:1]), rtol=1e-5)


LONG = {"total_steps": 150 * 64 + 256, "warmup_steps": 256, "num_envs": 16, "num_steps": 4, "batch_size": 128}
LONG |= {"capacity": 2048, "gamma": 0.9, "initial_alpha": 0.2, "alpha_learning_rate": 0.0, "learning_rate": 1e-2}
LONG |= {"utd_ratio": 0.5, "hidden_sizes": (32, 32)}
LEARNING = {
    "tqc": {"tau": 0.05, "num_quantiles": 5, "num_dropped": 0},
    "redq": {"tau": 0.05, "num_critics": 3, "policy_delay": 2},
    "droq": {"tau": 0.05, "policy_delay": 2} | redq.VARIANTS["droq"],
    "crossq": {"critic_hidden_sizes": (64, 64), "policy_delay": 2},
}


PROBED = [name if name == "tqc" else pytest.param(name, marks=pytest.mark.more) for name in LEARNING]


@pytest.mark.parametrize("name", PROBED)
def test_the_policy_takes_the_best_action_and_time_limits_bootstrap(name):
    """Endless pays 1 whatever the action: Q = (1 + gamma alpha H) / (1 - gamma), H at most log 2."""
    module = modules[name]
    config = module.Config(**LONG | LEARNING[name])
    state, _ = rlx.train(module, config, env, jax.random.key(0))
    obs = jnp.stack([mixed.obs(ACTION, -1.0), mixed.obs(ACTION, 1.0), mixed.obs(ENDLESS, 0.0)])
    action, unit = module.act(config, env, state, obs, jax.random.key(0), deterministic=True)
    np.testing.assert_allclose(action[:2, 0], [-0.5, 0.5], atol=0.25)
    critics, given = state.params["critic"], {}
    if name == "crossq":
        critics = crossq.with_stats(state.params, state.stats, "critic")
    if name == "droq":
        given = {"rngs": {"dropout": KEY}}
    critic = module.networks(config, env)[1]
    value = jax.vmap(lambda p: critic.apply(p, obs[2], unit[2], **given))(critics).mean()
    assert 9.0 < value < 1.1 * (1 + 0.9 * 0.2 * np.log(2)) / (1 - 0.9)


TRACED = {"learning_rate": 3e-2, "alpha_learning_rate": 3e-2, "initial_alpha": 0.5, "target_entropy": 0.5}
TRACED |= {"gamma": 0.5, "tau": 0.5, "reward_scale": 3.0}


@pytest.mark.parametrize("name", ["tqc", "redq", "droq", "crossq"])
def test_every_traced_setting_changes_the_weights_and_a_sweep_equals_its_single_runs(name):
    module, config = modules[name], configs[name]
    changes = {key: value for key, value in TRACED.items() if hasattr(config, key)}
    lanes = [*(replace(config, **{key: value}) for key, value in changes.items()), config]
    state, _ = jax.vmap(partial(rlx.train, module), in_axes=(0, None, None))(stack(lanes), env, jax.random.key(0))
    weights = np.concatenate([np.reshape(x, (len(lanes), -1)) for x in jax.tree.leaves(state.params)], axis=1)
    for i, key in enumerate(changes):
        assert np.abs(weights[i] - weights[-1]).max() > 1e-4, key
    single, _ = rlx.train(module, config, env, jax.random.key(0))
    # A batched matrix product sums in another order: 1e-7 an operation, which 24 steps of Adam enlarge.
    close = lambda x, y: np.testing.assert_allclose(x[-1], y, rtol=1e-2, atol=1e-3)
    jax.tree.map(close, state.params, single.params)


@pytest.mark.parametrize("name", ["tqc", "droq", "crossq"])
def test_a_run_in_pieces_is_bitwise_the_same_and_uses_no_key_twice(name):
    module, config = modules[name], configs[name]
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    start = jax.jit(module.init)(config, env, jax.random.key(0))
    whole, _ = chunk(module, config, env, start, 0, 3, 3)
    state, _ = chunk(module, config, env, start, 0, 1, 3)
    state, _ = chunk(module, config, env, state, 1, 2, 3)
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), state, whole)
    with jax.debug_key_reuse(True):
        rlx.train(module, replace(config, gamma=0.98), env, jax.random.key(0))


def test_bad_settings_are_refused():
    for name, changes, message in (
        ("tqc", {"num_dropped": 5}, "num_dropped = 5 leaves none of num_quantiles = 5"),
        ("redq", {"num_target_critics": 4}, "num_target_critics = 4 are chosen among num_critics = 3"),
        ("redq", {"dropout": 1.0}, r"dropout = 1.0 leaves nothing"),
        ("redq", {"policy_delay": 3}, "policy_delay = 3 does not divide the 8 gradient steps"),
        ("crossq", {"policy_delay": 3}, "policy_delay = 3 does not divide the 8 gradient steps"),
        ("sac", {"n_step": 9}, "n_step = 9 is more than num_steps = 8"),
        ("sac", {"resets": (64, 500)}, r"resets = \(64, 500\) have to be within the steps that are learned in"),
        ("sac", {"residual": "simba", "hidden_sizes": (8, 4)}, r"hidden_sizes = \(8, 4\) of residual blocks"),
        ("sac", {"residual": "bro", "layer_norm": True}, "residual blocks have layer norms of their own"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(rlx.train, modules[name]), replace(configs[name], **changes), env, jax.random.key(0))


def test_a_reset_begins_the_networks_anew_and_keeps_buffer_and_temperature():
    """Updates begin at 32, 64 and 96 steps; a reset at 60 is that before the second of them."""
    config = replace(configs["sac"], resets=(60,), learning_rate=0.0, alpha_learning_rate=0.0, tau=0.0)
    run = jax.jit(sac.update)
    before = jax.jit(sac.init)(config, env, jax.random.key(0))
    before = replace(before, params=before.params | {"log_alpha": jnp.float32(0.3)})
    first, _ = run(config, env, before)
    second, _ = run(config, env, first)
    third, _ = run(config, env, second)
    weights = lambda state: ravel_pytree((state.params["actor"], state.params["critic"]))[0]
    np.testing.assert_array_equal(weights(first), weights(before))  # nothing learns at a rate of 0
    assert np.abs(weights(second) - weights(first)).max() > 0.1
    np.testing.assert_array_equal(weights(third), weights(second))
    jax.tree.map(np.testing.assert_array_equal, second.target_params, second.params["critic"])
    assert second.replay.size == 64
    assert second.params["log_alpha"] == first.params["log_alpha"] == np.float32(0.3)
    with jax.debug_key_reuse(True):
        sac.update(config, env, first)


def test_targets_over_several_steps_discount_by_as_many(states, batch):
    state = states["sac"]
    losses = {
        num: sac.critic_loss(
            *(state.params, state.params, state.target_params, replace(configs["sac"], gamma=gamma), env),
            *(replace(batch, num=None if num is None else jnp.full(32, num)), noise),
        )[0]
        for num, gamma in ((None, 0.9**3), (3, 0.9))
    }
    np.testing.assert_allclose(losses[None], losses[3], rtol=1e-5)
    three = jax.jit(sac.init)(replace(configs["sac"], n_step=3), env, jax.random.key(0)).replay
    kept, one = take(three, jnp.arange(32)), take(states["sac"].replay, jnp.arange(32))
    assert set(np.unique(kept.num)) == {1, 2, 3}
    np.testing.assert_array_equal(kept.obs, one.obs)
    np.testing.assert_array_equal(kept.reward[kept.num == 1], one.reward[kept.num == 1])
    assert (kept.reward[kept.num == 3] > one.reward[kept.num == 3]).any()


def test_residual_blocks_begin_with_a_layer_without_an_activation():
    from rlx.networks import Torso

    x = jax.random.normal(jax.random.key(0), (5, 3))
    torso = Torso(Box(-1.0, 1.0, (3,)), (8,), "relu", residual="simba")
    params = torso.init(jax.random.key(1), x)
    linear = x @ params["params"]["Dense_0"]["kernel"] + params["params"]["Dense_0"]["bias"]
    expected = (linear - linear.mean(-1, keepdims=True)) / jnp.sqrt(linear.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(torso.apply(params, x), expected, rtol=1e-3, atol=1e-4)
    deep = torso.clone(hidden_sizes=(8, 8, 8)).init(jax.random.key(1), x)["params"]
    assert {name for name in deep if name.startswith("Residual")} == {"Residual_0", "Residual_1"}
    assert deep["Residual_0"]["Dense_0"]["kernel"].shape == (8, 32)


def test_runs_from_before_there_were_two_kinds_of_blocks_are_read():
    from rlx.presets import configure

    kinds = [configure(sac.Config, {"residual": before}).residual for before in (True, False)]
    assert kinds == ["simba", ""]


def test_blocks_of_bro_are_their_equation():
    from rlx.networks import Torso

    x = jax.random.normal(jax.random.key(0), (5, 3))
    torso = Torso(Box(-1.0, 1.0, (3,)), (8, 8), "relu", residual="bro")
    params = torso.init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)

    def dense(p, x):
        return x @ np.asarray(p["kernel"]) + np.asarray(p["bias"])

    def norm(p, x):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return y * np.asarray(p["scale"]) + np.asarray(p["bias"])

    p = params["params"]
    block = p["BroBlock_0"]
    first = np.maximum(norm(p["LayerNorm_0"], dense(p["Dense_0"], np.asarray(x))), 0.0)
    hidden = np.maximum(norm(block["LayerNorm_0"], dense(block["Dense_0"], first)), 0.0)
    expected = first + norm(block["LayerNorm_1"], dense(block["Dense_1"], hidden))
    np.testing.assert_allclose(torso.apply(params, x), expected, rtol=1e-4, atol=1e-5)
