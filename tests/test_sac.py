"""SAC: analytic values of the probes, its equations, what goes into the buffer, one program for all traced settings."""

import dataclasses
import json
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import Env, cli, replace, stack
from rlx.algorithm import saved_config
from rlx.algos import sac as module
from rlx.envs.tasks.probes import ContinuousAction, Discount, Endless, Mixed, Observation
from rlx.files import read_config
from rlx.pytree import is_static
from rlx.replay import take, with_replay, without_replay
from rlx.run.checkpoint import restore
from rlx.spaces import Box, Discrete
from rlx.train import advance

# The more often a probe is there, the more of its steps are in the buffer.
OBSERVATION, DISCOUNT, ENDLESS, ACTION = range(4)
mixed = Mixed((Observation, Discount, Endless, *[ContinuousAction] * 3), Box(-2.0, 2.0, (1,)))
env = Env(mixed, mixed.default_params, max_steps=3)


@pytest.fixture(scope="module")
def sac():
    return module


@pytest.fixture(scope="module")
def small(sac):
    """A config of three updates, in which the buffer comes round: 32 random transitions, 32 an update, room for 64."""
    sizes = {"num_envs": 4, "num_steps": 8, "batch_size": 16, "capacity": 64, "hidden_sizes": (16,)}
    return sac.Config(total_steps=128, warmup_steps=32, utd_ratio=0.25, learning_rate=1e-2, tau=0.1, **sizes)


@pytest.fixture(scope="module")
def init(sac):
    return jax.jit(sac.init)


TRACES = []


@pytest.fixture(scope="module")
def update(sac):
    @jax.jit
    def update(config, env, state):
        TRACES.append((config, env))
        return sac.update(config, env, state)

    return update


@pytest.fixture(scope="module")
def trained(sac, small):
    return rlx.train(sac, small, env, jax.random.key(0))


LONG = {"total_steps": 200 * 64 + 256, "warmup_steps": 256, "num_envs": 16, "num_steps": 4, "utd_ratio": 0.5}


@pytest.fixture(scope="module")
def learned(sac):
    """Runs on the probes with another number for the temperature, one of them tuned: their states and metrics."""
    config = sac.Config(
        **LONG, batch_size=128, capacity=2048, learning_rate=1e-2, tau=0.05, gamma=0.9, hidden_sizes=(32, 32)
    )
    fixed = [replace(config, initial_alpha=alpha, alpha_learning_rate=0.0) for alpha in (0.0, 0.2)]
    configs = [*fixed, replace(config, alpha_learning_rate=1e-2, target_entropy=0.0)]
    train = jax.vmap(partial(rlx.train, sac), in_axes=(0, None, None))
    states, metrics = train(stack(configs), env, jax.random.key(0))
    return config, [jax.tree.map(lambda x, i=i: x[i], (states, metrics)) for i in range(3)]


def values(config, state, kind, obs, action=0.0):
    """Values of the critics `[E, ...]` where a probe shows `obs` and the action, in unit coordinates, is `action`."""
    _, critic = module.networks(config, env)
    obs, action = jnp.broadcast_arrays(jnp.float32(obs), jnp.float32(action))
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    return q(
        state.params["critic"], jnp.vectorize(partial(mixed.obs, kind), signature="()->(n)")(obs), action[..., None]
    )


def entropy(config, state, kind, obs=0.0):
    """Of the policy in nats, where a probe shows `obs`."""
    pi = module.networks(config, env)[0].apply(state.params["actor"], mixed.obs(kind, obs)[None].repeat(10_000, 0))
    return -pi.log_prob(pi.sample(jax.random.key(0))).mean()


# Of values of order 1, after 6400 gradient steps at a constant rate of 0.01.
CONVERGED = 0.1
UNIT = np.linspace(-0.8, 0.8, 5)  # actions that a policy with a temperature of 0.2 takes often


@pytest.mark.more
def test_critics_discount_what_comes_later_and_its_entropy(learned):
    config, (_, (state, _), _) = learned
    np.testing.assert_allclose(values(config, state, DISCOUNT, 1.0, UNIT), 1.0, atol=CONVERGED)
    later = 0.9 * (1 + 0.2 * entropy(config, state, DISCOUNT, 1.0))
    np.testing.assert_allclose(values(config, state, DISCOUNT, 0.0, UNIT), later, atol=CONVERGED)


def test_the_policy_takes_the_best_action(learned):
    config, lanes = learned
    obs = jnp.stack([mixed.obs(ACTION, -1.0), mixed.obs(ACTION, 1.0)])
    for state, _ in lanes:
        action, _ = module.act(config, env, state, obs, jax.random.key(0), deterministic=True)
        np.testing.assert_allclose(action[:, 0], [-0.5, 0.5], atol=2 * CONVERGED)


def test_critics_bootstrap_from_the_true_successor_where_a_time_limit_cuts(learned):
    """Endless pays 1 whatever the action, so a policy of entropy H has Q = (1 + gamma alpha H) / (1 - gamma)."""
    config, ((hard, _), (soft, _), _) = learned
    bonus = 0.9 * 0.2 * entropy(config, soft, ENDLESS)
    assert 0.1 < bonus < 0.9 * 0.2 * np.log(2)  # free to choose, the policy is nearly uniform
    np.testing.assert_allclose(values(config, soft, ENDLESS, 0.0, UNIT), (1 + bonus) / (1 - 0.9), rtol=0.05)
    _, chosen = module.act(config, env, hard, mixed.obs(ENDLESS, 0.0)[None], jax.random.key(0), deterministic=True)
    np.testing.assert_allclose(values(config, hard, ENDLESS, 0.0, chosen[0]), 1 / (1 - 0.9), rtol=0.05)


def test_a_fixed_temperature_stays_and_a_tuned_one_finds_the_target_entropy(learned):
    _, ((_, zero), (_, fixed), (_, tuned)) = learned
    np.testing.assert_array_equal(zero["alpha"], 0)
    np.testing.assert_allclose(fixed["alpha"], 0.2, rtol=1e-6)
    # Averages over the last 50 updates, of batches that mix the probes.
    np.testing.assert_allclose(np.mean(tuned["entropy"][-50:]), 0.0, atol=0.1)
    assert np.mean(fixed["entropy"][-50:]) > 0.2


@pytest.fixture(scope="module")
def problem(sac, small, trained):
    """A state with weights of order 1, a batch of its buffer with terminal steps in it, and noise for both."""
    state = trained[0]
    state = replace(state, params=moved(state.params), target_params=moved(state.target_params))
    buffer = state.replay
    batch = take(buffer, (buffer.position - 1 - jnp.arange(64)) % 96)
    assert 0 < batch.terminated.sum() < 64
    noise = jax.random.normal(jax.random.key(5), (2, 64, 1))
    return state, batch, noise


def moved(params):
    return jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


def numbers(config, state, batch, noise):
    """The losses and the target in float64, from what the networks say."""
    actor, critic = module.networks(config, env)
    q = lambda params, *args: np.asarray(jax.vmap(critic.apply, in_axes=(0, None, None))(params, *args), np.float64)
    alpha = np.exp(float(state.params["log_alpha"]))

    def act(obs, noise):
        pi = actor.apply(state.params["actor"], obs)
        mean, log_std, xi = (np.asarray(x, np.float64)[:, 0] for x in (pi.mean, pi.log_std, noise))
        action = np.tanh(mean + np.exp(log_std) * xi)
        log_normal = -0.5 * xi**2 - log_std - 0.5 * np.log(2 * np.pi)
        return jnp.float32(action[:, None]), log_normal - np.log(1 - action**2)

    next_action, next_log_prob = act(batch.next_obs, noise[0])
    next_value = q(state.target_params, batch.next_obs, next_action).min(0) - alpha * next_log_prob
    going_on = 1.0 - np.asarray(batch.terminated)
    target = config.reward_scale * np.asarray(batch.reward) + config.gamma * going_on * next_value
    action, log_prob = act(batch.obs, noise[1])
    return {
        "critic_loss": 0.5 * ((q(state.params["critic"], batch.obs, batch.action) - target) ** 2).sum(0).mean(),
        "actor_loss": (alpha * log_prob - q(state.params["critic"], batch.obs, action).min(0)).mean(),
        "alpha_loss": alpha * (-log_prob - config.target_entropy).mean(),
        "entropy": -log_prob.mean(),
        "alpha": alpha,
        "value": q(state.params["critic"], batch.obs, batch.action).mean(),
    }


@pytest.mark.more
@pytest.mark.parametrize("initial_alpha", [None, 0.0])
def test_the_losses_are_their_equations(sac, small, problem, initial_alpha):
    state, batch, noise = problem
    if initial_alpha is not None:  # then these are the losses of a deterministic policy gradient, with twin critics
        state = replace(state, params=state.params | {"log_alpha": jnp.log(initial_alpha)})
    config = replace(small, reward_scale=3.0, gamma=0.8, target_entropy=-0.3)
    expected = numbers(config, state, batch, noise)
    inputs = state.params, state.params, state.target_params, config, env, batch, noise
    total, (log_prob, parts) = sac.loss(*inputs)
    # Means of 64 float32 numbers of order 1 to 10.
    np.testing.assert_allclose(total, expected["critic_loss"] + expected["actor_loss"], rtol=1e-4)
    alpha_loss = sac.alpha_loss(state.params["log_alpha"], config, env, log_prob)
    np.testing.assert_allclose(alpha_loss, expected["alpha_loss"], rtol=1e-4, atol=1e-5)
    for name, part in parts.items():
        np.testing.assert_allclose(part, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert parts.keys() == expected.keys() - {"alpha_loss"}


def gradient_of(loss):
    """The norm of the gradient of a loss for each group of parameters."""
    return lambda params: {k: jnp.linalg.norm(ravel_pytree(v)[0]) for k, v in jax.grad(loss)(params).items()}


def test_no_loss_has_a_gradient_for_the_parameters_of_another(sac, small, problem):
    state, batch, noise = problem
    critic = lambda params: sac.critic_loss(params, state.params, state.target_params, small, env, batch, noise[0])[0]
    actor = lambda params: sac.actor_loss(params, state.params, small, env, batch, noise[1])[0]
    for name, loss in {"critic": critic, "actor": actor}.items():
        norms = gradient_of(loss)(state.params)
        assert norms.pop(name) > 1e-3
        assert norms == dict.fromkeys(norms, 0.0)


def test_the_temperature_falls_where_the_entropy_is_above_its_target(sac, small, problem):
    log_alpha = problem[0].params["log_alpha"]
    slope = lambda log_prob: jax.grad(sac.alpha_loss)(log_alpha, small, env, jnp.full(8, log_prob))
    assert slope(0.9) > 0 > slope(1.1)  # an entropy of -0.9 is above the target of -1
    assert slope(1.0) == 0


def test_the_target_entropy_counts_every_action_dimension(sac, small, problem):
    wide = Env(Wide(3), 1.0)
    alpha = jnp.exp(problem[0].params["log_alpha"])
    found = sac.alpha_loss(problem[0].params["log_alpha"], replace(small, target_entropy=-0.5), wide, jnp.zeros(4))
    np.testing.assert_allclose(found, alpha * 1.5, rtol=1e-6)


def test_terminal_steps_are_worth_their_reward_and_truncated_ones_more(sac, small, problem):
    state, batch, noise = problem
    params, target_params = state.params, state.target_params
    loss = lambda batch: sac.critic_loss(params, params, target_params, small, env, batch, noise[0])[0]
    elsewhere = lambda where: replace(batch, next_obs=jnp.where(where[:, None], 7.0, batch.next_obs))
    assert loss(elsewhere(batch.terminated)) == loss(batch)
    assert loss(elsewhere(~batch.terminated)) != loss(batch)


def test_losses_do_not_depend_on_the_order_of_the_batch(sac, small, problem):
    state, batch, noise = problem
    one = sac.loss(state.params, state.params, state.target_params, small, env, batch, noise)[0]
    shuffled = jax.tree.map(lambda x: x[::-1], batch)
    # The same 64 terms summed in another order.
    other = sac.loss(state.params, state.params, state.target_params, small, env, shuffled, noise[:, ::-1])[0]
    np.testing.assert_allclose(one, other, rtol=1e-5)


class Wide:
    """A step that says what it was given; actions of several dimensions, each with bounds of its own."""

    default_params: ClassVar = 1.0  # the bounds

    def __init__(self, num_actions):
        self.num_actions = num_actions

    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params):
        return Box(-params, params, (self.num_actions,))

    def reset(self, key, params):
        obs = jax.random.uniform(key, (2,), minval=-1.0)
        return obs, obs

    def step(self, key, state, action, params):
        reward = -jnp.abs(action / params - state.mean()).sum()
        obs = jax.random.uniform(key, (2,), minval=-1.0)
        return obs, obs, reward, obs[0] > 0.8, jnp.array(False), {}


def test_bounds_of_the_actions_change_nothing_but_the_actions(sac, small):
    """A scale that is a power of 2 is exact: the runs are the same bit for bit, so a target entropy means the same."""
    wide = Env(Wide(2), 1.0, max_steps=5)
    run = lambda scale: rlx.train(sac, small, replace(wide, params=scale), jax.random.key(0))
    (state, metrics), (scaled, scaled_metrics) = run(1.0), run(8.0)
    jax.tree.map(np.testing.assert_array_equal, (state.params, metrics), (scaled.params, scaled_metrics))


def test_actions_are_squashed_into_their_bounds(sac, small):
    low, high = np.array([-1.0, 0.0]), np.array([1.0, 10.0])
    wide = Wide(2)
    wide.action_space = lambda params: Box(low, high, (2,))
    bounded = Env(wide, 1.0)
    state = sac.init(small, bounded, jax.random.key(0))
    state = replace(state, params=state.params | {"actor": jax.tree.map(lambda x: 3 * x + 0.5, state.params["actor"])})
    obs = jax.random.normal(jax.random.key(1), (500, 2))
    pi = sac.networks(small, bounded)[0].apply(state.params["actor"], obs)
    for deterministic, u in ((True, pi.mean), (False, pi.sample(jax.random.key(2)))):
        action, unit = sac.act(small, bounded, state, obs, jax.random.key(2), deterministic)
        np.testing.assert_allclose(unit, np.tanh(u), rtol=1e-6)
        np.testing.assert_allclose(action, low + (high - low) * (np.tanh(u) + 1) / 2, rtol=1e-5, atol=1e-5)
    random, unit = sac.explore(bounded, obs, jax.random.key(3))
    assert (random >= low).all() and (random <= high).all()  # noqa: PT018
    # Four standard errors of the mean of 500 uniform numbers.
    np.testing.assert_allclose((random.mean(0) - low) / (high - low), 0.5, atol=4 / np.sqrt(12 * 500))
    np.testing.assert_allclose(unit.std(0), 1 / np.sqrt(3), rtol=0.1)


def rows(state, num):
    """The newest elements of the buffer, in the order they came."""
    buffer = state.replay
    return jax.tree.map(np.asarray, take(buffer, (buffer.position - num + np.arange(num)) % len(buffer.data.reward)))


def test_init_fills_the_buffer_with_random_actions_and_learns_nothing(sac, small, init):
    state = init(small, env, jax.random.key(0))
    assert state.replay.size == small.init_steps == 32
    assert small.init_steps == replace(small, warmup_steps=29).init_steps  # of 4 environments
    assert optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")[0][1] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params["critic"], state.target_params)
    action = rows(state, 32).action
    assert np.abs(action).max() <= 1
    assert action.std() > 0.4
    first = jax.tree.leaves(state.params["critic"])[1]
    assert np.abs(first[0] - first[1]).max() > 0.1  # critics that start different


def test_an_update_does_all_it_does_under_every_vmap(sac, small):
    """Nothing is skipped by a condition, which a vmap would compute all the same."""
    state = jax.eval_shape(sac.init, small, Env(Wide(1), 1.0), jax.random.key(0))
    program = str(jax.make_jaxpr(lambda state: sac.update(small, Env(Wide(1), 1.0), state))(state))
    assert "scan[" in program
    assert "cond[" not in program


@pytest.fixture(scope="module")
def counted(small, init):
    """A config that normalises observations, an environment that counts, and a state."""
    config, counting = replace(small, normalize_obs=True), Env(Counting(), 1.0, max_steps=3)
    return config, counting, init(config, counting, jax.random.key(0))


def test_the_buffer_holds_the_true_successors_of_raw_observations(counted, update):
    config, counting, state = counted
    state, _ = update(config, counting, state)
    kept = rows(state, 64)
    np.testing.assert_array_equal(kept.next_obs, kept.obs + 1)
    assert not kept.terminated.any()
    assert set(kept.obs[:, 0].tolist()) == {0.0, 1.0, 2.0}
    np.testing.assert_array_equal(kept.reward, 10 * kept.obs[:, 0])
    # The statistics are of all that was acted on.
    assert state.obs_stats.count == 64
    np.testing.assert_allclose(state.obs_stats.mean, kept.obs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.obs_stats.variance, kept.obs.var(0), rtol=1e-5)


class Counting(Wide):
    """The observation counts the steps, and the reward is ten times it."""

    def __init__(self):
        super().__init__(1)

    def reset(self, key, params):
        return jnp.zeros(2), jnp.zeros(2)

    def step(self, key, state, action, params):
        return state + 1, state + 1, 10 * state[0], jnp.array(False), jnp.array(False), {}


def test_the_networks_see_normalised_observations(sac, counted, update):
    config, counting, state = counted
    obs = jnp.array([[0.0, 1.0], [2.0, 3.0]])
    seen = (obs - state.obs_stats.mean) / jnp.sqrt(state.obs_stats.variance)
    expected = jnp.tanh(sac.networks(config, counting)[0].apply(state.params["actor"], seen).mean)
    _, action = sac.act(config, counting, state, obs, jax.random.key(0), deterministic=True)
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-6)
    # Statistics that make every observation the same, for sampled ones too: critics have nothing to tell apart.
    blind = replace(state, obs_stats=replace(state.obs_stats, variance=jnp.full(2, jnp.inf)))
    after, _ = update(config, counting, blind)
    kernels = after.params["critic"]["params"]["torso"]["Dense_0"]["kernel"]
    before = blind.params["critic"]["params"]["torso"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernels[:, :2], before[:, :2])
    assert np.abs(kernels[:, 2:] - before[:, 2:]).max() > 0  # of the action


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_targets_stay_or_follow(small, init, update, tau):
    config = replace(small, tau=tau)
    state = init(config, env, jax.random.key(0))
    after, _ = update(config, env, state)
    follows = after.params["critic"] if tau else state.target_params
    # new * 1 + old * 0 is exact, and so is the other way round.
    jax.tree.map(np.testing.assert_array_equal, after.target_params, follows)
    leaf = lambda state: jax.tree.leaves(state.params["critic"])[1]
    assert np.abs(leaf(after) - leaf(state)).max() > 1e-3


def test_gradient_steps_are_the_ratio_times_the_data(sac, small, init, update):
    assert small.gradient_steps == 8
    assert replace(small, utd_ratio=2).gradient_steps == 64
    state, _ = update(small, env, init(small, env, jax.random.key(0)))
    counts = [count for _, count in optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")]
    np.testing.assert_array_equal(counts, 8)


def test_rewards_scaled_for_learning_do_not_reach_metrics(counted, update):
    config, counting, state = counted
    _, metrics = update(replace(config, reward_scale=0.01), counting, state)
    np.testing.assert_array_equal(metrics["episode_return"], 30.0)
    np.testing.assert_array_equal(metrics["episode_length"], 3.0)
    assert metrics["num_episodes"] > 0


def test_a_run_has_the_steps_it_was_asked_for(sac, small, trained):
    state, metrics = trained
    assert rlx.total_updates(small) == state.num_updates == len(metrics["alpha"]) == 3
    assert rlx.steps_taken(small, 3) == 128


def test_a_run_in_pieces_is_bitwise_the_same(sac, small, init):
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    start = init(small, env, jax.random.key(0))
    whole, _ = chunk(sac, small, env, start, 0, 3, 3)
    state, _ = chunk(sac, small, env, start, 0, 1, 3)
    assert (state.num_updates, state.replay.size) == (1, 64)
    state, _ = chunk(sac, small, env, state, 1, 2, 3)
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), state, whole)


# Another value for every field of the config: a new field needs one too.
CHANGED = {
    "total_steps": 96,
    "warmup_steps": 64,
    "num_envs": 2,
    "num_steps": 4,
    "utd_ratio": 0.5,
    "capacity": 48,
    "batch_size": 8,
    "num_critics": 3,
    "learning_rate": 3e-2,
    "alpha_learning_rate": 3e-2,
    "initial_alpha": 0.5,
    "target_entropy": 0.5,
    "gamma": 0.5,
    "tau": 0.5,
    "reward_scale": 3.0,
    "n_step": 2,
    "resets": (96,),
    "residual": "simba",
    "normalize_obs": True,
    "layer_norm": True,
    "hidden_sizes": (16, 8),
    "conv_features": (4,),
    "activation": "tanh",
}
SEAMS = ("torso", "actor_obs", "critic_obs", "policy")  # which tests/test_served_spaces.py changes
STATIC = [f.name for f in dataclasses.fields(module.Config) if is_static(f) and f.name not in SEAMS]
TRACED = [field.name for field in dataclasses.fields(module.Config) if not is_static(field)]


@pytest.fixture(scope="module")
def sweep(sac, small):
    """Every traced field changed in a lane of its own, and nothing in the last; all with the same key."""
    configs = [replace(small, **{name: CHANGED[name]}) for name in TRACED]
    train = jax.vmap(partial(rlx.train, sac), in_axes=(0, None, None))
    return train(stack([*configs, small]), env, jax.random.key(0))


@pytest.mark.parametrize("name", TRACED)
def test_every_traced_config_field_changes_the_weights(small, sweep, name):
    assert getattr(small, name) != CHANGED[name]
    weights = np.concatenate([np.reshape(x, (len(TRACED) + 1, -1)) for x in jax.tree.leaves(sweep[0].params)], axis=1)
    # Well above rounding: a field that only reorders a sum changes nothing.
    assert np.abs(weights[TRACED.index(name)] - weights[-1]).max() > 1e-4


def test_a_sweep_equals_its_single_runs(sac, small, sweep, trained):
    lane = jax.tree.map(lambda x: x[-1], (sweep[0].params, sweep[0].replay.data, sweep[1]))
    # A batched matrix product sums in another order: 1e-7 an operation, which 24 steps of Adam enlarge.
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, lane, (trained[0].params, trained[0].replay.data, trained[1]))


class Images(Wide):
    """Observations that convolutions take."""

    def __init__(self):
        super().__init__(1)

    def observation_space(self, params):
        return Box(0.0, 1.0, (4, 4, 2))

    def reset(self, key, params):
        image = jax.random.uniform(key, (4, 4, 2))
        return image, image

    def step(self, key, state, action, params):
        obs, _ = self.reset(key, params)
        return obs, obs, state.mean() * action[0], state[0, 0, 0] > 0.5, jnp.array(False), {}


@pytest.fixture(scope="module")
def program(sac, small):
    """The text of the program of a run on images."""
    images = Env(Images(), 1.0)

    def lower(**changes):
        run = jax.jit(lambda key: rlx.train(sac, replace(small, **changes), images, key))
        return run.lower(jax.random.key(0)).as_text()

    return lower


@pytest.fixture(scope="module")
def unchanged(program):
    return program()


@pytest.mark.parametrize("name", STATIC)
def test_every_static_config_field_changes_the_program(small, program, unchanged, name):
    assert getattr(small, name) != CHANGED[name]
    assert program(**{name: CHANGED[name]}) != unchanged


def test_one_trace_serves_all_traced_values_and_returned_states(small, init, update):
    state = init(small, env, jax.random.key(0))
    for config in [*(replace(small, **{name: CHANGED[name]}) for name in TRACED), replace(small, gamma=1)]:
        state, _ = update(config, env, state)
    update(small, replace(env, max_steps=7), state)
    assert sum(isinstance(env.environment, Mixed) for _, env in TRACES) == 1


def test_no_key_is_used_twice(sac, small):
    with jax.debug_key_reuse(True):
        state, metrics = rlx.train(sac, replace(small, gamma=0.98), env, jax.random.key(0))
    assert state.num_updates == 3
    assert np.isfinite(metrics["critic_loss"]).all()


@pytest.mark.more
def test_the_streams_of_a_run_have_no_key_in_common(sac, small, monkeypatch):
    used = []

    def recording(owner, name, place):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            if not isinstance(args[place], jax.core.Tracer):
                used.append(np.asarray(jax.random.key_data(args[place])))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for name, place in {"initialize": 0, "reset": 1, "rollout": 3, "sample": 1}.items():
        recording(sac, name, place)
    state = sac.init(small, env, jax.random.key(0))
    recording(jax.random, "normal", 0)
    state, _ = sac.update(small, env, state)
    used.append(np.asarray(jax.random.key_data(state.key)))
    assert len(used) == 7
    parents = np.stack(used)
    # A split is a prefix of a larger one and fold_in is one of its entries, so children are compared as well.
    children = np.concatenate([jax.random.key_data(jax.random.split(jax.random.wrap_key_data(k), 64)) for k in parents])
    everything = np.concatenate([parents, children])
    assert len(np.unique(everything, axis=0)) == len(everything)


class Choices(Wide):
    def action_space(self, params):
        return Discrete(3)


def test_bad_input_is_refused_before_anything_is_compiled(sac, small):
    bad = {
        r"Discrete\(3\): this policy needs continuous actions; use .* or sac_discrete": (small, Env(Choices(1), 1.0)),
        r"batch_size = 65 .* must fit the buffer: raise capacity = 64": (replace(small, batch_size=65), env),
        r"warmup_steps = 68 must fit the buffer": (replace(small, warmup_steps=68, total_steps=500), env),
        r"warmup_steps = 128 leave nothing of total_steps = 128": (replace(small, warmup_steps=128), env),
        r"utd_ratio = 0.01 makes 0.32 gradient steps for num_envs \* num_steps = 32": (
            replace(small, utd_ratio=0.01),
            env,
        ),
        r"utd_ratio = 1000000000.0 makes 3.2e\+10 gradient steps an update": (replace(small, utd_ratio=1e9), env),
    }
    for message, (config, where) in bad.items():
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(rlx.train, sac), config, where, jax.random.key(0))


TRAIN = "train sac --env probe/ContinuousAction --warmup-steps 32 --num-envs 4 --num-steps 8 --utd-ratio 0.25"
TRAIN += " --batch-size 16 --capacity 64 --hidden-sizes 8 --eval-episodes 2 --no-compile-cache --total-steps"


def test_a_dry_run_says_how_large_the_buffer_is_before_there_is_one(tmp_path, capsys):
    cli.main([*TRAIN.split(), "96", "--capacity", "100_000_000", "--dry-run", "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    # Rows of an observation, an action, a reward and a successor in float32, and a flag, and an update's spare ones.
    replay = 100_000_032 * 17 / 2**20
    assert "96 steps in 2 updates" in out
    assert f"replay {replay:,.1f} MiB" in out
    assert "with --no-checkpoint-replay" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.more
def test_a_run_goes_on_with_a_new_buffer_where_checkpoints_leave_it_out(tmp_path, capsys):
    run = tmp_path / "run"
    cli.main([*TRAIN.split(), "96", "--no-checkpoint-replay", "--out", str(run)])
    leaves = json.loads((run / "checkpoints" / "2" / "about.json").read_text())["leaves"]
    assert "params.log_alpha" in leaves
    assert not any(name.startswith("replay") for name in leaves)
    cli.main(["eval", str(run), "--num-episodes", "2", "--no-compile-cache"])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--resume", str(run), "--total-steps", "160", "--checkpoint-replay"])
    assert "checkpoint_replay = False -> True" in capsys.readouterr().err
    cli.main(["train", "--resume", str(run), "--total-steps", "160", "--no-compile-cache"])
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 160
    saved = jax.eval_shape(module.init, *built(run), jax.random.key(0))
    state = restore(run / "checkpoints", without_replay(saved))
    assert state.num_updates == 4
    assert state.replay is None


def built(run):
    saved = read_config(run)
    return saved_config(module, saved), rlx.envs.make(saved["env"])


def test_only_the_buffer_is_left_out_and_put_back(sac, small, trained):
    state, other = trained[0], sac.init(small, env, jax.random.key(1))
    bare = without_replay(state)
    assert bare.replay is None
    back = with_replay(bare, other)
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_array_equal(raw(x), raw(y)), a, b)
    same(back.replay, other.replay)
    same(replace(back, replay=state.replay), state)
