"""PPO: analytic values of the probes, the first minibatch, one program for all traced settings, and its equations."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import Env, pytree, replace
from rlx.advantages import standardize
from rlx.algos import ppo as module
from rlx.envs.tasks.probes import Constant
from rlx.normalize import normalize
from rlx.pytree import is_static
from rlx.rollout import flatten, rollout
from rlx.spaces import Box, Discrete


@pytest.fixture(scope="module")
def probe(ppo):
    """Trains on a probe; returns the critic and the policy over observations, and the metrics."""
    base = ppo.Config(
        total_steps=200 * 128,
        num_envs=16,
        num_steps=8,
        num_minibatches=2,
        learning_rate=1e-2,
        gamma=0.9,
        entropy_coef=0.0,
        value_clip=float("inf"),
        hidden_sizes=(16,),
    )

    def train(name, **changes):
        env, config = rlx.envs.make(f"probe/{name}"), replace(base, **changes)
        state, metrics = rlx.train(ppo, config, env, jax.random.key(0))
        actor, critic = ppo.networks(config, env)
        value = lambda *obs: critic.apply(state.params["critic"], jnp.array(obs)[:, None])
        policy = lambda *obs: actor.apply(state.params["actor"], jnp.array(obs)[:, None])
        return value, policy, metrics

    return train


# Of values of order 1: what is left after 200 updates with a learning rate that fell to 0.
CONVERGED = 0.02


def test_the_critic_learns_a_constant(probe):
    value, _, _ = probe("Constant")
    np.testing.assert_allclose(value(0.0), [1.0], atol=CONVERGED)


def test_the_critic_sees_the_observation(probe):
    value, _, _ = probe("Observation")
    np.testing.assert_allclose(value(-1.0, 1.0), [-1.0, 1.0], atol=CONVERGED)


def test_the_critic_discounts_what_comes_later(probe):
    value, _, _ = probe("Discount")
    np.testing.assert_allclose(value(0.0, 1.0), [0.9, 1.0], atol=CONVERGED)


def test_the_policy_prefers_the_better_action(probe):
    value, policy, metrics = probe("Action")
    assert jnp.exp(policy(0.0).log_prob(jnp.array([1])))[0] > 0.99
    np.testing.assert_allclose(value(0.0), [1.0], atol=CONVERGED)
    assert metrics["episode_return"][-1] > 0.95


def test_the_policy_sees_the_observation(probe):
    value, policy, _ = probe("ObservationAction")
    np.testing.assert_array_equal(policy(-1.0, 1.0).mode(), [0, 1])
    assert (jnp.exp(policy(-1.0, 1.0).log_prob(jnp.array([0, 1]))) > 0.99).all()
    np.testing.assert_allclose(value(-1.0, 1.0), [1.0, 1.0], atol=CONVERGED)


def test_continuous_actions_reach_their_optimum(probe):
    value, policy, _ = probe("ContinuousAction")
    # The optimum is obs / 2 in a space of [-2, 2], which is obs / 4 in unit coordinates.
    np.testing.assert_allclose(policy(-1.0, 1.0).mode()[:, 0], [-0.25, 0.25], atol=CONVERGED)
    np.testing.assert_allclose(value(-1.0, 1.0), [1.0, 1.0], atol=CONVERGED)


def test_a_mixture_reaches_the_optimum_of_continuous_actions(probe):
    value, policy, _ = probe("ContinuousAction", num_components=3)
    np.testing.assert_allclose(policy(-1.0, 1.0).mode()[:, 0], [-0.25, 0.25], atol=CONVERGED)
    np.testing.assert_allclose(value(-1.0, 1.0), [1.0, 1.0], atol=CONVERGED)


def test_the_critic_bootstraps_where_a_time_limit_cuts(probe):
    value, _, metrics = probe("Endless")
    np.testing.assert_allclose(value(0.0), [1 / (1 - 0.9)], atol=10 * CONVERGED)
    np.testing.assert_array_equal(metrics["episode_length"], 5)


class Lottery(Constant):
    """A reward of 4 in one case of four, else of 0."""

    def step(self, key, state, action, params):
        reward = 4.0 * jax.random.bernoulli(key, 0.25)
        return state, state, reward, jnp.array(True), jnp.array(False), {}


def test_a_critic_of_quantiles_learns_the_distribution_of_returns(ppo):
    num = 4
    config = ppo.Config(
        total_steps=400 * 512, num_envs=64, num_steps=8, learning_rate=1e-2, hidden_sizes=(16,), num_quantiles=num
    )
    env = Env(Lottery(), Lottery.default_params)
    state, _ = rlx.train(ppo, config, env, jax.random.key(0))
    found = np.sort(ppo.networks(config, env)[1].apply(state.params["critic"], jnp.zeros((1, 1)))[0])
    u = lambda x, target: target - x
    huber = lambda u: np.where(np.abs(u) <= 1, 0.5 * u**2, np.abs(u) - 0.5)
    risk = lambda x, level: sum(
        p * np.abs(level - (u(x, target) < 0)) * huber(u(x, target)) for p, target in ((0.75, 0.0), (0.25, 4.0))
    )
    grid = np.linspace(-1, 5, 6001)
    expected = [grid[risk(grid, (i + 0.5) / num).argmin()] for i in range(num)]
    np.testing.assert_allclose(found, expected, atol=0.3)  # of a share that is drawn anew in every update
    assert found[-1] - found[0] > 3.0


def test_one_quantile_is_a_quarter_of_a_squared_error(ppo, small, cartpole):
    config = replace(small, num_quantiles=1)
    state = ppo.init(config, cartpole, jax.random.key(0))
    _, traj = rollout(cartpole, partial(ppo.act, config, cartpole, state), state.env_state, jax.random.key(1), 4)
    batch = flatten(ppo.advantages(config, cartpole, state, traj)[0])
    batch = replace(batch, target=batch.value + 0.3)
    _, metrics = ppo.loss(state.params, config, cartpole, batch, 0.0)
    np.testing.assert_allclose(metrics["value_loss"], 0.25 * 0.3**2, rtol=1e-4)


def test_ppo_learns_cartpole(ppo):
    config = ppo.Config(total_steps=40_960, num_envs=8, num_steps=64, learning_rate=2.5e-3, hidden_sizes=(32, 32))
    env = rlx.envs.make("CartPole-v1")
    _, metrics = jax.vmap(lambda key: rlx.train(ppo, config, env, key))(jax.random.split(jax.random.key(0), 4))
    returns = np.asarray(metrics["episode_return"])
    # A random policy gets 20. The worst of 4 seeds has 150 or more by then; it only needs to be far from 20.
    assert np.nanmean(returns[:, :2]) < 30
    assert np.nanmean(returns[:, -20:], axis=1).min() > 100


def every(config):
    """The config with all of the rollout in one minibatch and one epoch: every ratio is that of the acting policy."""
    return replace(config, num_epochs=1, num_minibatches=1)


@pytree
class Spread:
    """An objective that is the largest `|ratio - 1|` of the minibatch."""

    def __call__(self, config, elements, progress):
        return jnp.broadcast_to(jnp.abs(jnp.expm1(elements.log_ratio)).max(), elements.log_ratio.shape)


@pytest.fixture(scope="module")
def normalizing(small):
    return replace(small, normalize_obs=True, normalize_reward=True, learning_rate=0.1)


def test_the_ratio_is_one_on_the_first_minibatch(ppo, normalizing, init, update, cartpole):
    first = jax.jit(lambda state: ppo.update(every(normalizing), cartpole, state, objective=Spread())[1])
    state = init(normalizing, cartpole, jax.random.key(0))
    for _ in range(3):
        metrics = first(state)
        assert metrics["num_episodes"] > 0  # across episode ends
        # The same networks on the same inputs in another batch shape: rounding of log-probabilities of order 1.
        assert metrics["policy_loss"] < 1e-5
        assert metrics["clip_fraction"] == 0
        assert abs(metrics["approx_kl"]) < 1e-6
        state, later = update(normalizing, cartpole, state)
        assert later["approx_kl"] > 1e-4  # the policy does move, so that the next ratio could be wrong


def test_the_normaliser_changes_after_the_gradient_steps_and_pools_environments(normalizing, cartpole, init, update):
    state = init(normalizing, cartpole, jax.random.key(0))
    seen = []
    for _ in range(2):
        _, traj = experience(normalizing, cartpole, state)
        batch = batch_of(normalizing, cartpole, state, traj)
        # One multiplication and its fusion with a subtraction; the first observation is normalised like the others.
        np.testing.assert_allclose(batch.obs, flatten(normalize(state.obs_stats, traj.obs)), rtol=1e-5, atol=1e-6)
        state, _ = update(normalizing, cartpole, state)
        seen.append(np.asarray(traj.obs).reshape(-1, 4))
        assert state.obs_stats.mean.shape == (4,)
        # Sums of 128 numbers in float32.
        np.testing.assert_allclose(state.obs_stats.mean, np.concatenate(seen).mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.obs_stats.variance, np.concatenate(seen).var(axis=0), rtol=1e-3, atol=1e-6)


@jax.jit
def experience(config, env, state):
    """The rollout that `update` will make of this state."""
    _, rollout_key, _ = jax.random.split(state.key, 3)
    return rollout(env, partial(module.act, config, env, state), state.env_state, rollout_key, config.num_steps)


def batch_of(config, env, state, traj):
    return flatten(module.advantages(config, env, state, traj)[0])


@pytest.fixture(scope="module")
def problem(ppo, small, cartpole, init, update):
    """A state after one update, the batch that it makes, and the gradient of a loss on some batch."""
    state, _ = update(small, cartpole, init(small, cartpole, jax.random.key(0)))
    batch = batch_of(small, cartpole, state, experience(small, cartpole, state)[1])

    @jax.jit
    def gradient(config, params, batch):
        grads, _ = jax.grad(ppo.loss, has_aux=True)(params, config, cartpole, batch, 0.0)
        return ravel_pytree(grads)[0]

    return state, batch, gradient


@pytest.mark.parametrize("clip", [0.01, 0.2, 1e6])
def test_the_first_gradient_is_the_policy_gradient_for_every_clip(ppo, small, cartpole, problem, clip):
    state, batch, gradient = problem
    config = replace(small, clip=clip, value_coef=0.0, entropy_coef=0.0)
    advantage = np.asarray(batch.advantage)
    advantage = jnp.asarray((advantage - advantage.mean()) / advantage.std())

    def score(params):
        actor, _ = ppo.networks(config, cartpole)
        return -jnp.mean(advantage * actor.apply(params["actor"], batch.obs).log_prob(batch.action))

    expected = ravel_pytree(jax.grad(score)(state.params))[0]
    assert jnp.linalg.norm(expected) > 0.01
    np.testing.assert_allclose(gradient(config, state.params, batch), expected, rtol=1e-3, atol=1e-5)


def moved(params):
    return jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


def test_the_loss_is_its_equation(ppo, small, cartpole, problem):
    state, batch, _ = problem
    config, params = replace(small, clip=0.05, value_clip=0.03, value_coef=0.7, entropy_coef=0.3), moved(state.params)
    actor, critic = ppo.networks(config, cartpole)
    to_numpy = lambda x: np.asarray(x, np.float64)
    logits = to_numpy(actor.apply(params["actor"], batch.obs).logits)
    value = to_numpy(critic.apply(params["critic"], batch.obs))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_ratio = log_p[np.arange(64), batch.action] - to_numpy(batch.log_prob)
    ratio, old, target = np.exp(log_ratio), to_numpy(batch.value), to_numpy(batch.target)
    advantage = to_numpy(batch.advantage)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy_loss = -np.minimum(ratio * advantage, np.clip(ratio, 0.95, 1.05) * advantage).mean()
    clipped = old + np.clip(value - old, -0.03, 0.03)
    value_loss = 0.5 * np.maximum((value - target) ** 2, (clipped - target) ** 2).mean()
    entropy = -(np.exp(log_p) * log_p).sum(-1).mean()
    expected = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "clip_fraction": (np.abs(ratio - 1) > 0.05).mean(),
    }
    total, parts = ppo.loss(params, config, cartpole, batch, 0.0)
    assert 0 < expected["clip_fraction"] < 1
    # Means of 64 float32 numbers of order 1 to 10.
    np.testing.assert_allclose(total, policy_loss + 0.7 * value_loss - 0.3 * entropy, rtol=1e-4)
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        np.testing.assert_allclose(part, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_advantages_are_gae_of_the_critic(ppo, small, cartpole, problem):
    state, batch, _ = problem
    _, traj = experience(small, cartpole, state)
    assert traj.done.any()
    critic = partial(ppo.networks(small, cartpole)[1].apply, state.params["critic"])
    value, next_value = np.asarray(critic(traj.obs), np.float64), np.asarray(critic(traj.next_obs), np.float64)
    advantage = np.zeros((small.num_steps + 1, small.num_envs))
    for t in reversed(range(small.num_steps)):
        delta = traj.reward[t] + 0.99 * ~np.asarray(traj.terminated[t]) * next_value[t] - value[t]
        advantage[t] = delta + 0.99 * 0.95 * ~np.asarray(traj.done[t]) * advantage[t + 1]
    np.testing.assert_allclose(batch.advantage, advantage[:-1].ravel(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batch.target, (advantage[:-1] + value).ravel(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batch.value, value.ravel(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["a2c", "reinforce"])
def test_variants_with_one_step_have_the_policy_gradient_in_closed_form(ppo, cartpole, variant):
    """Of a linear policy: `-mean_t A_t (1[a_t] - pi(s_t)) s_t^T`, with A returns, or returns less values."""
    sizes = {"num_envs": 4, "num_steps": 16, "hidden_sizes": (), "total_steps": 640, "normalize_advantage": False}
    config = ppo.Config(**ppo.VARIANTS[variant] | sizes, entropy_coef=0.0)
    state = jax.jit(ppo.init)(config, cartpole, jax.random.key(3))
    _, traj = experience(config, cartpole, state)
    batch = batch_of(config, cartpole, state, traj)
    assert traj.done.any()
    to_numpy = lambda x: np.asarray(x, np.float64)
    reward, terminated, done = (np.asarray(x) for x in (traj.reward, traj.terminated, traj.done))
    critic = partial(ppo.networks(config, cartpole)[1].apply, state.params["critic"])
    value, after = (to_numpy(critic(x)) * (variant == "a2c") for x in (traj.obs, traj.next_obs))
    goal = np.zeros((17, 4))
    goal[16] = after[15]  # what a rollout ends before
    for t in reversed(range(16)):
        goal[t] = reward[t] + 0.99 * np.where(terminated[t], 0.0, np.where(done[t], after[t], goal[t + 1]))
    advantage = goal[:16] - value
    np.testing.assert_allclose(batch.advantage, advantage.ravel(), rtol=1e-4, atol=1e-4)
    logits = to_numpy(ppo.networks(config, cartpole)[0].apply(state.params["actor"], traj.obs).logits)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    score = np.eye(2)[np.asarray(traj.recorded.action)] - probs
    wanted = -np.einsum("tn,tno,tna->oa", advantage, to_numpy(traj.obs), score) / 64
    grads, _ = jax.grad(ppo.loss, has_aux=True)(state.params, config, cartpole, batch, 0.0)
    (kernel,) = (x for x in jax.tree.leaves(grads["actor"]) if x.shape == (4, 2))
    np.testing.assert_allclose(kernel, wanted, rtol=1e-3, atol=1e-4)
    critics = max(np.abs(x).max() for x in jax.tree.leaves(grads["critic"]))
    assert (critics > 0) == (variant == "a2c")


@pytest.mark.parametrize("variant", ["a2c", "reinforce"])
def test_variants_with_one_step_do_not_know_the_clip(ppo, small, cartpole, variant):
    config = replace(small, **ppo.VARIANTS[variant])
    state = jax.jit(ppo.init)(config, cartpole, jax.random.key(0))
    run = jax.jit(lambda clip: ppo.update(replace(config, clip=clip), cartpole, state))
    (one, metrics), (other, _) = run(1e-3), run(10.0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), one.params, other.params)
    assert abs(metrics["approx_kl"]) < 1e-6


def test_a_minibatch_of_equal_advantages_has_no_policy_gradient(small, problem):
    state, batch, gradient = problem
    config = replace(small, value_coef=0.0, entropy_coef=0.0)
    equal = replace(batch, advantage=jnp.full_like(batch.advantage, 3.0))
    np.testing.assert_array_equal(gradient(config, moved(state.params), equal), 0)


def test_the_gradient_does_not_depend_on_the_order_of_the_batch(small, problem):
    state, batch, gradient = problem
    shuffled = jax.tree.map(lambda x: x[::-1], batch)
    params = moved(state.params)
    # The same 64 terms summed in another order.
    np.testing.assert_allclose(gradient(small, params, shuffled), gradient(small, params, batch), rtol=1e-4, atol=1e-6)


def test_gradients_of_two_halves_average_to_that_of_the_whole(small, problem):
    state, batch, gradient = problem
    params, config = moved(state.params), replace(small, normalize_advantage=False)
    batch = replace(batch, advantage=standardize(batch.advantage))
    halves = [gradient(config, params, jax.tree.map(lambda x, i=i: x[i::2], batch)) for i in range(2)]
    np.testing.assert_allclose((halves[0] + halves[1]) / 2, gradient(config, params, batch), rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_by_their_global_norm_before_adam(ppo):
    config = ppo.Config(max_grad_norm=0.5, adam_epsilon=1e-5)
    rng = np.random.default_rng(0)
    params = {"a": np.zeros((3, 2), np.float32), "b": np.zeros(4, np.float32)}
    optimizer = ppo.optimizer(config, 0.01)
    opt_state, mean, variance, expected = optimizer.init(params), np.zeros(10), np.zeros(10), np.zeros(10)
    for t, scale in enumerate([0.01, 5.0, 0.2, 1.0], start=1):
        gradient = rng.normal(size=10) * scale
        tree = {"a": jnp.float32(gradient[:6].reshape(3, 2)), "b": jnp.float32(gradient[6:])}
        updates, opt_state = optimizer.update(tree, opt_state, params)
        params = jax.tree.map(np.add, params, updates)
        gradient *= min(1.0, 0.5 / np.linalg.norm(gradient))
        mean, variance = 0.9 * mean + 0.1 * gradient, 0.999 * variance + 0.001 * gradient**2
        expected -= 0.01 * (mean / (1 - 0.9**t)) / (np.sqrt(variance / (1 - 0.999**t)) + 1e-5)
    np.testing.assert_allclose(np.concatenate([params["a"].ravel(), params["b"]]), expected, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_falls_linearly_to_zero_and_stays_there(ppo, small, cartpole):
    state, metrics = rlx.train(ppo, small, cartpole, jax.random.key(0))
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2 * np.array([1, 2 / 3, 1 / 3]), rtol=1e-5)
    after, metrics = rlx.resume(ppo, small, cartpole, state, num_updates=2)
    np.testing.assert_array_equal(metrics["learning_rate"], 0)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_the_learning_rate_is_constant_without_annealing(ppo, small, cartpole):
    _, metrics = rlx.train(ppo, replace(small, anneal_learning_rate=False), cartpole, jax.random.key(0))
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2, rtol=1e-6)


def test_progress_reaches_the_objective(ppo, small, cartpole):
    objective = jax.tree_util.Partial(lambda config, elements, progress: elements.log_ratio * 0 + progress)
    _, metrics = rlx.train(ppo, small, cartpole, jax.random.key(0), objective=objective)
    np.testing.assert_allclose(metrics["policy_loss"], [0, 1 / 3, 2 / 3], rtol=1e-5)


@pytree
class Glimpse:
    image: jax.Array
    paid: jax.Array


class Images:
    """Random images for three steps; pays for the action that the brighter half calls for, in some states tenfold."""

    default_params: ClassVar = None

    def observation_space(self, params):
        return Box(0.0, 1.0, (4, 4, 2))

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        image = jax.random.uniform(key, (4, 4, 2))
        return image, Glimpse(image, jnp.float32(0))

    def step(self, key, state, action, params):
        bright = state.image[:2].mean() > state.image[2:].mean()
        reward = jnp.where(bright == (action == 1), 1.0, -1.0) * jnp.where(state.image[0, 0, 0] > 0.5, 10.0, 1.0)
        image = jax.random.uniform(key, (4, 4, 2))
        return image, Glimpse(image, state.paid + 1), reward, state.paid >= 2, jnp.array(False), {}


images = Env(Images(), None)

# Another value for every field of the config: a new field needs one too.
CHANGED = {
    "total_steps": 64,
    "num_envs": 2,
    "num_steps": 4,
    "num_epochs": 1,
    "num_minibatches": 4,
    "learning_rate": 3e-2,
    "anneal_learning_rate": False,
    "adapt_learning_rate": True,
    "target_kl": 1e-7,
    "gamma": 0.5,
    "gae_lambda": 0.5,
    "baseline": False,
    "clip": 0.01,
    "value_clip": 0.01,
    "value_coef": 2.0,
    "entropy_coef": 0.5,
    "max_grad_norm": 0.05,
    "adam_epsilon": 1e-2,
    "normalize_advantage": False,
    "normalize_obs": True,
    "normalize_reward": True,
    "hidden_sizes": (16, 8),
    "conv_features": (4,),
    "activation": "relu",
    "num_components": 2,
    "num_quantiles": 3,
}


SEAMS = ("torso", "actor_obs", "critic_obs", "policy")  # which tests/test_served_spaces.py changes
STATIC = [f.name for f in dataclasses.fields(module.Config) if is_static(f) and f.name not in SEAMS]
TRACED = [field.name for field in dataclasses.fields(module.Config) if not is_static(field)]


@pytest.fixture(scope="module")
def trained_params(ppo, small):
    """The weights after a run on images, as one vector; the traced fields may differ from `small`."""
    train = lambda config: rlx.train(ppo, config, images, jax.random.key(0))[0].params
    return lambda **changes: ravel_pytree(train(replace(small, **changes)))[0]


@pytest.mark.parametrize("name", TRACED)
def test_every_traced_config_field_changes_the_weights(small, trained_params, name):
    assert getattr(small, name) != CHANGED[name]
    # Well above rounding: a field that only reorders a sum changes nothing.
    base = {"adapt_learning_rate": True} if name == "target_kl" else {}
    assert np.abs(trained_params(**base | {name: CHANGED[name]}) - trained_params(**base)).max() > 1e-4


@pytest.fixture(scope="module")
def program(ppo, small):
    """The text of the program of one update on images, or another environment."""

    def lower(env=images, **changes):
        config = replace(small, **changes)
        state = jax.eval_shape(ppo.init, config, env, jax.random.key(0))
        return jax.jit(lambda state: ppo.update(config, env, state)).lower(state).as_text()

    return lower


@pytest.fixture(scope="module")
def unchanged(program):
    return program()


@pytest.mark.parametrize("name", STATIC)
def test_every_static_config_field_changes_the_program(small, program, unchanged, name):
    assert getattr(small, name) != CHANGED[name]
    if name == "num_components":  # of continuous actions
        env = rlx.envs.make("probe/ContinuousAction")
        assert program(env, num_components=2) != program(env)
        return
    assert program(**{name: CHANGED[name]}) != unchanged


def test_the_text_of_a_program_is_reproducible(program, unchanged):
    assert program() == unchanged


def test_one_trace_serves_all_traced_values_and_returned_states(ppo, small, cartpole, init):
    traces = []

    @jax.jit
    def update(config, env, state):
        traces.append(1)
        return ppo.update(config, env, state)

    configs = [replace(small, **{name: CHANGED[name]}) for name in TRACED]
    state = init(small, cartpole, jax.random.key(0))
    for config in [*configs, replace(small, gamma=1, value_clip=float("inf"))]:
        state, _ = update(config, cartpole, state)
    state, _ = update(small, replace(cartpole, max_steps=7), state)
    assert len(traces) == 1


def test_no_key_is_used_twice(ppo, small, cartpole):
    with jax.debug_key_reuse(True):
        state, metrics = rlx.train(ppo, replace(small, entropy_coef=0.02), cartpole, jax.random.key(0))
    assert state.num_updates == 3
    assert np.isfinite(metrics["policy_loss"]).all()


def test_the_streams_of_a_run_have_no_key_in_common(ppo, small, cartpole, monkeypatch):
    used = []

    def recording(name, place):
        function = getattr(ppo, name)

        def call(*args, **kwargs):
            used.append(np.asarray(jax.random.key_data(args[place])))
            return function(*args, **kwargs)

        monkeypatch.setattr(ppo, name, call)

    for name, place in {"initialize": 0, "reset": 1, "rollout": 3, "minibatches": 0}.items():
        recording(name, place)
    state, _ = ppo.update(small, cartpole, ppo.init(small, cartpole, jax.random.key(0)))
    used.append(np.asarray(jax.random.key_data(state.key)))
    assert len(used) == 5
    parents = np.stack(used)
    # A split is a prefix of a larger one and fold_in is one of its entries, so children are compared as well.
    children = np.concatenate([jax.random.key_data(jax.random.split(jax.random.wrap_key_data(k), 64)) for k in parents])
    everything = np.concatenate([parents, children])
    assert len(np.unique(everything, axis=0)) == len(everything)


def test_actions_are_recorded_unclipped_and_played_within_bounds(ppo, small, init):
    env = rlx.envs.make("probe/ContinuousAction")
    state = init(small, env, jax.random.key(0))
    obs = jnp.ones((200, 1))
    action, recorded = ppo.act(small, env, state, obs, jax.random.key(1))
    unit = np.asarray(recorded.action)
    assert np.abs(unit).max() > 1
    np.testing.assert_allclose(action, 2 * np.clip(unit, -1, 1), rtol=1e-5)
    pi = ppo.networks(small, env)[0].apply(state.params["actor"], obs)
    np.testing.assert_allclose(recorded.log_prob, pi.log_prob(recorded.action), rtol=1e-5)
    modes, _ = ppo.act(small, env, state, obs, jax.random.key(1), deterministic=True)
    np.testing.assert_allclose(modes, 2 * pi.mode(), rtol=1e-5, atol=1e-6)


def test_minibatches_that_do_not_divide_are_refused_at_init(ppo, small, cartpole):
    with pytest.raises(ValueError, match=r"64 is not a multiple of num_minibatches = 5; use 4 or 8"):
        rlx.train(ppo, replace(small, num_minibatches=5), cartpole, jax.random.key(0))
