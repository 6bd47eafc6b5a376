"""Evolution and the lifetimes that it measures: directions, pairs, luck, NaN, resuming, and finding a known drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import meta
from rlx.algos import ppo
from rlx.meta.lifetimes import EPISODES, last_return
from rlx.objectives import SPO, Clip, Elements

pytestmark = pytest.mark.more

SOLUTION = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
TARGET = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.3, 1.0], [-1.0, 2.0]])}
NAMES = tuple(meta.STRATEGIES)


def distance(tree):
    return sum(jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (tree, TARGET)), strict=True))


def near(candidates, key):
    return -jax.vmap(distance)(candidates)


def strategy(name, **options):
    return meta.STRATEGIES[name](SOLUTION, population=16, sigma=0.1, learning_rate=0.1, **options)


@pytest.mark.parametrize("name", NAMES)
def test_fitness_is_what_goes_up(name):
    chosen = strategy(name) if name == "open_es" else meta.snes(SOLUTION, 16, 0.1)
    start = meta.first(chosen, SOLUTION, jax.random.key(0))
    assert distance(meta.mean(chosen, start)) == distance(SOLUTION)
    end = meta.evolve(chosen, start, near, 100)
    assert distance(meta.mean(chosen, end)) < 0.1 * distance(SOLUTION)
    assert int(end.number) == 100


def test_candidates_of_openai_are_antithetic_pairs():
    chosen = strategy("open_es")
    start = meta.first(chosen, TARGET, jax.random.key(0))
    candidates, _ = chosen.algorithm.ask(jax.random.key(1), start.strategy, chosen.params)
    for x, middle in zip(jax.tree.leaves(candidates), jax.tree.leaves(TARGET), strict=True):
        np.testing.assert_allclose(x[:8] + x[8:], 2 * np.broadcast_to(middle, x[:8].shape), atol=1e-5)
        assert float(jnp.abs(x[:8] - middle).max()) > 0.05


def test_openai_goes_the_way_of_a_slope():
    """A large population's step has the direction of the gradient; Adam's first step has its signs."""
    chosen = meta.open_es(SOLUTION, population=4096, sigma=0.1, learning_rate=0.1)
    slope = jax.tree.map(lambda x: jnp.sign(x) * (1 + jnp.abs(x)), TARGET)
    linear = lambda candidates, key: sum(
        jnp.sum((x * y).reshape(len(x), -1), 1) for x, y in zip(*map(jax.tree.leaves, (candidates, slope)), strict=True)
    )
    end = meta.evolve(chosen, meta.first(chosen, SOLUTION, jax.random.key(0)), linear, 1)
    for x, y in zip(*map(jax.tree.leaves, (meta.mean(chosen, end), slope)), strict=True):
        np.testing.assert_allclose(x, 0.1 * jnp.sign(y), atol=1e-3)


def test_equal_fitness_leaves_the_mean_where_it_is():
    chosen = strategy("open_es")
    start = meta.first(chosen, TARGET, jax.random.key(0))
    end = meta.evolve(chosen, start, lambda candidates, key: np.full(16, 3.0), 3)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), meta.mean(chosen, end), TARGET)


@pytest.mark.parametrize("name", NAMES)
def test_a_candidate_without_fitness_counts_as_the_worst(name):
    chosen = strategy(name)

    def scores(bad):
        return lambda candidates, key: np.where(np.arange(16) == 5, bad, np.arange(16.0))

    ends = [
        meta.evolve(chosen, meta.first(chosen, SOLUTION, jax.random.key(0)), scores(bad), 2) for bad in (np.nan, -100.0)
    ]
    jax.tree.map(np.testing.assert_array_equal, *(meta.mean(chosen, end) for end in ends))
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(meta.mean(chosen, ends[0])))


@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_a_generation_is_bitwise_not_having_stopped(name):
    chosen, seen = strategy(name), []
    start = meta.first(chosen, SOLUTION, jax.random.key(0))
    noisy = lambda candidates, key: near(candidates, key) + jax.random.normal(key, (16,))
    whole = meta.evolve(chosen, start, noisy, 6, lambda generation, scores: seen.append(int(generation.number)))
    half = meta.evolve(chosen, start, noisy, 3)
    again = strategy(name)  # as another process makes it
    rest = meta.evolve(again, half, noisy, 6)
    leaves = [jax.tree.leaves((g.strategy, jax.random.key_data(g.key))) for g in (whole, rest)]
    jax.tree.map(np.testing.assert_array_equal, *leaves)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_openai_needs_pairs():
    with pytest.raises(ValueError, match="population = 7: candidates are in pairs, give an even number"):
        meta.open_es(SOLUTION, population=7)


# --- a known drift is found again


REWARDS = jnp.array([10.0, 0.0, 1.0, 0.0, 5.0])  # of a bandit's arms


def improved(objective, logits, num_steps=40):
    """The policy `[5]` after steps up `E[rho A - f(rho, A)]`, exact, from that of the `logits`."""
    old = jax.nn.log_softmax(logits)
    advantage = REWARDS - jnp.exp(old) @ REWARDS
    advantage /= jnp.sqrt(jnp.exp(old) @ advantage**2)

    def loss(logits):
        return jnp.exp(old) @ objective(None, Elements(jax.nn.log_softmax(logits) - old, advantage), 0.0)

    step = lambda logits, _: (logits - 1.0 * jax.grad(loss)(logits), None)
    return jax.nn.log_softmax(jax.lax.scan(step, logits, length=num_steps)[0])


def signs(objective):
    """Of the slope of `rho A - f` in the ratio, over ratios and advantages: where a policy is sent on, and back."""
    ratio, advantage = (x.ravel() for x in jnp.meshgrid(jnp.linspace(0.55, 1.6, 22), jnp.linspace(-1.5, 1.5, 8)))
    slope = jax.vmap(jax.grad(lambda x, a: -objective(None, Elements(jnp.log(x), a), 0.0)))(ratio, advantage)
    return jnp.sign(slope)


def test_evolution_finds_the_sign_pattern_of_a_drift_that_is_known_to_be_best():
    """Fitness is how near a candidate's policies come to those that SPO makes of the same ones on a bandit."""
    starts = 0.7 * jax.random.normal(jax.random.key(0), (16, 5))
    best = jax.vmap(lambda logits: improved(SPO(0.2), logits))(starts)

    def unlike(objective):
        found = jax.vmap(lambda logits: improved(objective, logits))(starts)
        return (jnp.exp(best) * (best - found)).sum(-1).mean()

    fitness = jax.jit(lambda candidates, key: -jax.vmap(unlike)(candidates))
    start = meta.lpo(jax.random.key(1), num_hidden=16)
    chosen = meta.open_es(start, population=64, sigma=0.05, learning_rate=0.03)
    end = meta.evolve(chosen, meta.first(chosen, start, jax.random.key(2)), fitness, 250)
    found = meta.mean(chosen, end)
    assert unlike(found) < 0.01 * unlike(start)
    agree = [float((signs(objective) == signs(SPO(0.2))).mean()) for objective in (start, found)]
    assert agree[0] < 0.7 < 0.88 < agree[1]


# --- lifetimes


@pytest.fixture(scope="module")
def cartpole():
    config = ppo.Config(total_steps=2048, num_envs=8, num_steps=32, num_epochs=2, learning_rate=1e-2)
    return meta.Lifetime(config, rlx.envs.make("CartPole-v1"))


@pytest.fixture(scope="module")
def stacked():
    return jax.tree.map(lambda *x: jnp.stack(x), *(meta.lpo(jax.random.key(i), num_hidden=8) for i in range(3)))


def test_the_last_return_is_that_of_the_episodes_at_the_end():
    metrics = {"num_episodes": jnp.array([9, 1, 0, 3]), "episode_return": jnp.array([1.0, 5.0, jnp.nan, 9.0])}
    assert float(last_return(metrics, 0.75)) == (5.0 + 27.0) / 4
    assert float(last_return(metrics)) == 9.0
    assert -np.inf == float(last_return({"num_episodes": jnp.zeros(4, int), "episode_return": jnp.full(4, jnp.nan)}))


def test_a_lane_is_the_lifetime_on_its_own_and_chunks_change_nothing(cartpole, stacked):
    key = jax.random.key(4)
    found = meta.trial(ppo, [cartpole], num_seeds=2)(stacked, key)
    assert found.shape == (1, 3, 2)
    # A program of another width rounds otherwise, and one action that differs makes another episode.
    np.testing.assert_allclose(meta.trial(ppo, [cartpole], num_seeds=2, chunk=2)(stacked, key), found, rtol=0.2)
    keys = jax.random.split(jax.random.fold_in(key, 0), 2)
    one = jax.tree.map(lambda x: x[1], stacked)
    train_key, play_key = jax.random.split(keys[1])
    state, _ = rlx.train(ppo, cartpole.config, cartpole.env, train_key, objective=one)
    played = rlx.evaluate(ppo, cartpole.config, cartpole.env, state, play_key, EPISODES, deterministic=False)
    np.testing.assert_allclose(played.returns.mean(), found[0, 1, 1], rtol=0.2)


def test_equal_objectives_have_equal_luck(cartpole):
    same = jax.tree.map(lambda x: jnp.stack([x, x]), meta.lpo(jax.random.key(0), num_hidden=8))
    found = meta.trial(ppo, [cartpole], num_seeds=3)(same, jax.random.key(0))
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    assert len(np.unique(found[0, 0])) == 3


def test_fitness_is_scaled_and_has_no_holes(cartpole):
    lifetimes = [rlx.replace(cartpole, low=0.0, high=10.0), rlx.replace(cartpole, low=-100.0, high=100.0)]
    returns = np.array([[[10.0, 20.0], [0.0, 0.0]], [[0.0, 100.0], [np.nan, 0.0]]])
    np.testing.assert_allclose(meta.fitness(lifetimes, returns), [(1.0 + 2.0 + 0.5 + 1.0) / 4, np.nan])


def test_a_lifetime_is_scaled_by_what_learns_and_by_what_does_not(cartpole):
    found = meta.scaled(ppo, cartpole, Clip(0.2), jax.random.key(0), num_seeds=3)
    assert 15 < found.low < 30 < found.high
    backwards = jax.tree_util.Partial(
        lambda config, elements, progress: jnp.exp(elements.log_ratio) * elements.advantage
    )
    with pytest.raises(ValueError, match="does not learn"):
        meta.scaled(ppo, cartpole, backwards, jax.random.key(0), num_seeds=3)
