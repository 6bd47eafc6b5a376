"""ES as an agent: its estimate and ranks against closed forms and evosax, starts in common, resuming, and CartPole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata

import rlx
from rlx import meta, replace
from rlx.algos import es as module
from rlx.meta.evolution import antithetic, ascent, centered_ranks
from rlx.rollout import reset

EXACT = True  # bits are compared

MEAN = {"a": jnp.asarray([0.5, -1.0, 2.0]), "b": jnp.ones((2, 2))}
SMALL = {"population": 8, "num_episodes": 2, "num_steps": 12, "hidden_sizes": (8,)}


@pytest.fixture(scope="module")
def tiny():
    return module.Config(total_steps=3 * 8 * 2 * 12, **SMALL)


def test_candidates_are_pairs_around_the_mean_of_the_deviation_asked_for():
    found = antithetic(jax.random.key(0), MEAN, 4096, 0.3)
    for x, middle in zip(jax.tree.leaves(found), jax.tree.leaves(MEAN), strict=True):
        np.testing.assert_allclose(x[:2048] + x[2048:], 2 * np.broadcast_to(middle, x[:2048].shape), atol=1e-5)
        np.testing.assert_allclose(np.std(x - middle, axis=0), 0.3, rtol=0.06)


@pytest.mark.parametrize("fitness", [[3.0, 1.0, 2.0, 7.0], [1.0, 1.0, 0.0, 5.0, 1.0], [2.0, 2.0]])
def test_ranks_are_those_of_scipy_centered(fitness):
    wanted = (rankdata(fitness) - 1) / (len(fitness) - 1) - 0.5
    np.testing.assert_allclose(centered_ranks(jnp.asarray(fitness)), wanted, atol=1e-6)


def test_ranks_do_not_change_with_a_monotone_transform_and_put_what_is_not_finite_last():
    fitness = jax.random.normal(jax.random.key(0), (32,))
    np.testing.assert_array_equal(centered_ranks(fitness), centered_ranks(jnp.exp(3.0 * fitness) - 7.0))
    found = centered_ranks(jnp.asarray([jnp.nan, 0.0, -jnp.inf, 1.0]))
    np.testing.assert_allclose(found, [-1 / 3, 1 / 6, -1 / 3, 0.5], atol=1e-6)


def test_on_a_quadratic_the_estimate_has_the_direction_of_the_gradient():
    mean = jnp.linspace(-1.0, 2.0, 10)
    target = jnp.cos(jnp.arange(10.0))
    fitness = lambda x: -jnp.sum((x - target) ** 2, axis=-1)
    candidates = antithetic(jax.random.key(0), mean, 2048, 0.1)
    gradient = jax.grad(fitness)(mean)
    cosine = lambda a, b: a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)
    raw = ascent(mean, candidates, fitness(candidates), 0.1)
    assert cosine(raw, gradient) > 0.95
    np.testing.assert_allclose(jnp.linalg.norm(raw), jnp.linalg.norm(gradient), rtol=0.15)
    assert cosine(ascent(mean, candidates, centered_ranks(fitness(candidates)), 0.1), gradient) > 0.9


def test_a_linear_fitness_has_exactly_the_gradient_of_its_pairs():
    """Of pairs the mean cancels: `sum_i z_i z_i^T g / num`, whatever is added to the fitness."""
    candidates = antithetic(jax.random.key(0), jnp.zeros(3), 16, 0.2)
    slope = jnp.asarray([1.0, -2.0, 0.5])
    noise = np.asarray(candidates[:8], np.float64) / 0.2
    wanted = noise.T @ noise @ np.asarray(slope) / 8
    np.testing.assert_allclose(ascent(jnp.zeros(3), candidates, candidates @ slope + 5.0, 0.2), wanted, rtol=1e-4)


def test_a_step_is_that_of_evosax():
    """Ranks and estimate, by the step that plain descent makes of them, for equal fitnesses too."""
    import optax
    from evosax.algorithms import Open_ES

    strategy = Open_ES(16, MEAN, optimizer=optax.sgd(0.1), std_schedule=lambda _: jnp.float32(0.3))
    start = strategy.init(jax.random.key(0), MEAN, strategy.default_params)
    candidates, asked = strategy.ask(jax.random.key(1), start, strategy.default_params)
    fitness = jnp.round(2.0 * candidates["a"].sum(-1) - candidates["b"][:, 0, 1] ** 2)
    assert len(np.unique(fitness)) < 16
    told, _ = strategy.tell(jax.random.key(2), candidates, -fitness, asked, strategy.default_params)
    upward = ascent(MEAN, candidates, centered_ranks(fitness), 0.3)
    ours = jax.tree.map(lambda m, g: m + 0.1 * g, MEAN, upward)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), ours, strategy.get_mean(told))


def test_an_update_is_the_step_of_adam_on_the_ranks_of_returns(tiny, cartpole):
    state = jax.jit(module.init)(tiny, cartpole, jax.random.key(0))
    _, pairs_key, play_key = jax.random.split(state.key, 3)
    candidates = antithetic(pairs_key, state.params, 8, tiny.sigma)
    traj, alive = jax.jit(module.play)(tiny, cartpole, state, candidates, play_key)
    reward, alive = np.asarray(traj.reward), np.asarray(alive)
    returns = np.array([[(reward[:, 2 * i + e] * alive[:, 2 * i + e]).sum() for e in range(2)] for i in range(8)])
    weights = (rankdata(returns.mean(1)) - 1) / 7 - 0.5
    rows = np.stack(
        [np.asarray(jax.flatten_util.ravel_pytree(jax.tree.map(lambda x, i=i: x[i], candidates))[0]) for i in range(8)]
    )
    flat, _ = jax.flatten_util.ravel_pytree(state.params)
    gradient = -(weights[:, None] * (rows - np.asarray(flat))).sum(0) / (8 * tiny.sigma**2)
    # The first step of Adam has the signs of the gradient.
    wanted = np.asarray(flat) - tiny.learning_rate * gradient / (np.abs(gradient) + tiny.adam_epsilon)
    new, metrics = jax.jit(module.update)(tiny, cartpole, state)
    moved = np.abs(gradient) > 1e-4 * np.abs(gradient).max()
    found = np.asarray(jax.flatten_util.ravel_pytree(new.params)[0])
    np.testing.assert_allclose(found[moved], wanted[moved], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["best_return"], returns.mean(1).max(), rtol=1e-6)
    np.testing.assert_allclose(metrics["episode_return"], returns.mean(), rtol=1e-5)
    assert int(metrics["num_episodes"]) == 16
    assert int(metrics["alive_steps"]) == alive.sum()


def test_candidates_begin_alike_and_act_by_their_own_weights(tiny, cartpole):
    state = jax.jit(module.init)(tiny, cartpole, jax.random.key(0))
    candidates = antithetic(jax.random.key(1), state.params, 8, 1.0)
    traj, _ = jax.jit(module.play)(tiny, cartpole, state, candidates, jax.random.key(2))
    start = np.asarray(traj.obs[0]).reshape(8, 2, 4)
    np.testing.assert_array_equal(start, np.broadcast_to(start[:1], start.shape))
    assert (start[0, 0] != start[0, 1]).any()
    actor = module.networks(tiny, cartpole)
    for i in range(8):
        own = actor.apply(jax.tree.map(lambda x, i=i: x[i], candidates)["actor"], traj.obs[:, 2 * i : 2 * i + 2])
        np.testing.assert_array_equal(traj.action[:, 2 * i : 2 * i + 2], own.mode())
    assert len(np.unique(np.asarray(traj.action[0]))) > 1
    assert jax.tree.leaves(reset(cartpole, jax.random.key(2), 2))[0].shape[0] == 2


def test_resume_is_bitwise_and_a_key_is_used_once(tiny, cartpole):
    config = replace(tiny, normalize_obs=True)
    with jax.debug_key_reuse(True):
        whole, metrics = rlx.train(module, config, cartpole, jax.random.key(0))
    assert metrics["episode_return"].shape == (3,)
    state = jax.jit(module.init)(config, cartpole, jax.random.key(0))
    for _ in range(3):
        state, _ = rlx.resume(module, config, cartpole, state, num_updates=1)
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, state.obs_stats, whole.obs_stats)


def test_a_lane_is_the_single_run_and_one_trace_serves_all(tiny, cartpole):
    traces = []

    @jax.jit
    def train(config, key):
        traces.append(1)
        return rlx.train(module, config, cartpole, key)[0].params

    changes = {"sigma": 0.5, "learning_rate": 0.3, "adam_epsilon": 1.0}
    configs = [tiny, *(replace(tiny, **{name: value}) for name, value in changes.items())]
    keys = jnp.stack([jax.random.key(0)] * len(configs))
    lanes = jax.vmap(lambda config, key: rlx.train(module, config, cartpole, key)[0].params)(rlx.stack(configs), keys)
    alone = [train(config, keys[0]) for config in configs]
    assert len(traces) == 1
    for i, params in enumerate(alone):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-3, atol=1e-4), lanes, params)
        if i:
            assert any(
                np.abs(x - y).max() > 1e-3 for x, y in zip(*map(jax.tree.leaves, (params, alone[0])), strict=True)
            )


def test_settings_that_cannot_work_are_refused(tiny, cartpole):
    with pytest.raises(ValueError, match="population = 7: candidates are in pairs, give an even number"):
        module.check(replace(tiny, population=7), cartpole)
    with pytest.raises(ValueError, match="num_steps = 11: an episode of this environment may take 12 steps"):
        module.check(replace(tiny, num_steps=11), cartpole)
    assert meta.antithetic is antithetic


@pytest.mark.parametrize(("name", "wanted"), [("ObservationAction", [0, 1]), ("ContinuousAction", [-0.25, 0.25])])
def test_the_probes_are_solved(name, wanted):
    env = rlx.envs.make(f"probe/{name}")
    config = module.Config(total_steps=100 * 64 * 8, num_episodes=8, num_steps=1, hidden_sizes=(8,))
    state, _ = rlx.train(module, config, env, jax.random.key(0))
    pi = module.networks(config, env).apply(state.params["actor"], jnp.asarray([[-1.0], [1.0]]))
    np.testing.assert_allclose(np.asarray(pi.mode()).ravel(), wanted, atol=0.06)


@pytest.mark.more
def test_cartpole_is_solved_within_100_generations_of_64():
    env = rlx.envs.make("CartPole-v1")
    config = module.Config()
    run = lambda key: rlx.evaluate(module, config, env, rlx.train(module, config, env, key)[0], key).returns.mean()
    found = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4)))
    assert rlx.total_updates(config) == 100
    assert (found > 475).sum() >= 3, found
