"""Steps of optimisers against numpy loops and closed forms, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rlx
from rlx.algorithm import kind_of, load_algorithm, short_name
from rlx.transforms import evaluated, polyak, repositioned, transported

A = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def walked(optimizer, start, num, gradient=lambda x: A @ x):
    """The parameters after each of `num` steps, split in two leaves, and the last state."""
    split = lambda x: {"a": jnp.asarray(x[:1]), "b": jnp.asarray(x[1:])}
    joined = lambda tree: np.concatenate([tree["a"], tree["b"]])
    params, path = split(start), []
    state = optimizer.init(params)
    for _ in range(num):
        updates, state = optimizer.update(split(gradient(joined(params))), state, params)
        params = optax.apply_updates(params, updates)
        path.append(joined(params))
    return path, state, params


def test_a_cycle_of_slow_and_fast_steps_is_the_formula_of_the_paper():
    start, eta, alpha, num_fast = np.array([1.0, -2.0, 0.5]), 0.1, 0.7, 3
    path, _, _ = walked(repositioned(optax.sgd(eta), num_fast, alpha), start, 2 * (num_fast + 1))
    x = start
    for cycle in range(2):
        fast, total = x, 0
        for _ in range(num_fast):
            total = total + A @ fast
            fast = fast - eta * A @ fast
        back = x + alpha * (fast - x)
        np.testing.assert_allclose(path[4 * cycle + 2], back, rtol=1e-14)
        x = x - eta * (alpha * total + A @ back)
        np.testing.assert_allclose(path[4 * cycle + 3], x, rtol=1e-14)


def test_all_of_the_way_is_the_inner_optimiser_and_none_of_it_only_the_slow_step():
    start = np.array([1.0, -2.0, 0.5])
    plain, _, _ = walked(optax.adam(0.1), start, 8)
    same, _, _ = walked(repositioned(optax.adam(0.1), 3, 1.0), start, 8)
    np.testing.assert_allclose(same, plain, rtol=1e-13)
    slow, _, _ = walked(repositioned(optax.sgd(0.1), 3, 0.0), start, 4)
    np.testing.assert_allclose(slow[-1], walked(optax.sgd(0.1), start, 1)[0][0], rtol=1e-14)


def test_repositioned_steps_say_what_they_need():
    with pytest.raises(ValueError, match="at least 1"):
        repositioned(optax.sgd(0.1), 0, 0.5)
    optimizer = repositioned(optax.sgd(0.1), 1, 0.5)
    with pytest.raises(ValueError, match="update\\(grads, state, params\\)"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_transported_momentum_is_that_of_the_two_sequences():
    rate, eta, start = 0.05, 0.2, np.array([1.0, -2.0, 0.5])
    path, state, params = walked(transported(rate, eta), start, 6)
    ahead = (1 - eta) / eta
    theta = before = start
    d = None
    for i in range(6):
        y = theta + ahead * (theta - before)
        np.testing.assert_allclose(y, start if i == 0 else path[i - 1], rtol=1e-13)
        d = A @ y if d is None else (1 - eta) * d + eta * A @ y
        np.testing.assert_allclose(d, A @ theta, rtol=1e-12)  # of a quadratic the exact gradient at theta
        before, theta = theta, theta - rate * d / np.linalg.norm(d)
    found = evaluated(params, state, eta)
    np.testing.assert_allclose(np.concatenate([found["a"], found["b"]]), theta, rtol=1e-12)


def test_without_momentum_steps_are_normalised_gradients():
    start = np.array([1.0, -2.0, 0.5])
    path, _, _ = walked(transported(0.05, 1.0), start, 1)
    np.testing.assert_allclose(path[0], start - 0.05 * A @ start / np.linalg.norm(A @ start), rtol=1e-14)
    still, _, _ = walked(transported(0.05, 0.5), start, 3, gradient=lambda x: 0 * x)
    np.testing.assert_array_equal(still, [start] * 3)


def test_polyaks_step_needs_no_rate_and_stops_at_the_best():
    x = np.array([1.0, -2.0, 0.5])
    value = lambda x: -0.5 * x @ A @ x
    for _ in range(400):
        x = x + np.asarray(polyak(jnp.asarray(-A @ x), value(x), 0.0, np.inf, scale=0.5))
    assert np.abs(x).max() < 1e-6
    for at in (x, np.array([1.0, 0.0, 0.0])):
        np.testing.assert_array_equal(polyak(jnp.asarray(-A @ at), 3.0, 3.0, 1.0), np.zeros(3))
    np.testing.assert_array_equal(polyak(jnp.zeros(3), 0.0, 5.0, 1.0), np.zeros(3))
    capped = polyak(jnp.array([1e-3, 0.0, 0.0]), 0.0, 5.0, 2.0)
    np.testing.assert_allclose(capped, [2e-3, 0, 0])


# Given to algorithms.

SMALL = {
    "total_steps": 256,
    "num_envs": 4,
    "num_steps": 16,
    "num_epochs": 2,
    "num_minibatches": 2,
    "hidden_sizes": (8,),
}


@pytest.fixture
def float32():
    with jax.enable_x64(False):
        yield


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", ["ppo", "mdpo"])
def test_algorithms_take_steps_by_a_transform(name, cartpole):
    algorithm = load_algorithm(name)
    slow = load_algorithm(f"{name}+SFPO")
    assert slow.__name__ == f"rlx.algos.{name}+SFPO"
    key = jax.random.key(0)
    plain, _ = rlx.train(algorithm, algorithm.Config(**SMALL), cartpole, key)
    ends = {
        reposition: rlx.train(slow, slow.Config(**SMALL, reposition=reposition), cartpole, key)[0]
        for reposition in (1.0, 0.5)
    }
    close = lambda a, b: all(
        np.allclose(x, y, rtol=1e-3, atol=1e-5) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    assert close(ends[1.0].params, plain.params)
    assert not close(ends[0.5].params, plain.params)


@pytest.mark.usefixtures("float32")
def test_a_transform_in_place_of_the_optimizer_takes_steps_of_the_rate(cartpole):
    algorithm = load_algorithm("ppo+IGT")
    one = SMALL | {"num_epochs": 1, "num_minibatches": 1, "total_steps": 64, "anneal_learning_rate": False}
    config = algorithm.Config(**one, eta=1.0, learning_rate=0.01)
    before = algorithm.init(config, cartpole, jax.random.key(0))
    after, metrics = jax.jit(algorithm.update)(config, cartpole, before)
    moved = jax.tree.map(lambda a, b: a - b, after.params, before.params)
    np.testing.assert_allclose(optax.tree.norm(moved), 0.01, rtol=1e-3)
    assert metrics["grad_norm"] > 0


def test_cycles_that_do_not_divide_an_update_are_refused(cartpole):
    algorithm = load_algorithm("ppo+SFPO")
    with pytest.raises(ValueError, match="num_fast = 2: a cycle of 3 steps does not divide the 4 gradient steps"):
        rlx.train(algorithm, algorithm.Config(**SMALL, num_fast=2), cartpole, jax.random.key(0))
    with pytest.raises(ValueError, match="es takes no transform of its steps"):
        load_algorithm("es+SFPO")


def test_names_keep_a_transform_beside_the_others():
    whole = load_algorithm("ppo+SPO+RND+SFPO")
    assert short_name(whole.__name__) == "ppo+SPO+RND+SFPO"
    assert {"epsilon", "bonus_coef", "reposition"} <= set(vars(whole.Config()))
    assert [kind_of(name) for name in ("SPO", "RND", "SFPO", "a/b.npz")] == [
        "objective",
        "bonus",
        "transform",
        "objective",
    ]
