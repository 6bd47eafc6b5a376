"""MDPO, TRPO and PPO under other objectives: their equations, their limits, and whole runs."""

import ast
import dataclasses
import difflib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace, stack
from rlx.algos import mdpo, ppo, trpo
from rlx.distributions import Categorical, Normal
from rlx.objectives import (
    DPO,
    SPO,
    Clip,
    ClipHigher,
    ForwardKL,
    ImportanceWeighted,
    ReverseKL,
    Rollback,
    with_objective,
)
from rlx.pytree import is_static
from rlx.rollout import flatten, rollout
from rlx.trust_region import line_search, longest_step, natural_gradient

EXACT = True  # bits are compared

both = pytest.mark.parametrize("algorithm", [mdpo, trpo], ids=lambda module: module.__name__.rpartition(".")[2])
OBJECTIVES = [ImportanceWeighted(), Clip(), ClipHigher(), Rollback(), SPO(), DPO(), ForwardKL(), ReverseKL()]
OBJECTIVES += [ForwardKL(kl_target=0.01), ReverseKL(kl_target=0.01)]


def config_of(algorithm, small, **changes):
    """What an algorithm's Config has in common with `small`, and the changes."""
    names = {field.name for field in dataclasses.fields(algorithm.Config)}
    values = {f.name: getattr(small, f.name) for f in dataclasses.fields(small) if f.name in names}
    return algorithm.Config(**values | changes)


def code(algorithm):
    """The lines of an algorithm's file after its docstring."""
    text = Path(algorithm.__file__).read_text()
    return text.splitlines()[ast.parse(text).body[0].end_lineno :]


def test_mdpo_is_ppo_with_16_other_lines():
    changed = [line for line in difflib.ndiff(code(ppo), code(mdpo)) if line.startswith("+ ")]
    assert 0 < len(changed) <= 16


@pytest.fixture(scope="module")
def problem(small, cartpole, init, update):
    """PPO's state after one update, and the batches that the three algorithms make of its next rollout."""
    state, _ = update(small, cartpole, init(small, cartpole, jax.random.key(0)))

    def batch(algorithm):
        config = config_of(algorithm, small)
        _, rollout_key, _ = jax.random.split(state.key, 3)
        act = partial(algorithm.act, config, cartpole, state)
        _, traj = rollout(cartpole, act, state.env_state, rollout_key, config.num_steps)
        return flatten(algorithm.advantages(config, cartpole, state, traj)[0])

    return state, {algorithm: jax.jit(partial(batch, algorithm))() for algorithm in (ppo, mdpo, trpo)}


def moved(params):
    return jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


@pytest.fixture(scope="module")
def actor_gradients(small, cartpole, problem):
    """The gradients in the actor's parameters of PPO under every objective, of MDPO and of TRPO, in one program."""
    _, batches = problem
    free = {"value_coef": 0.0, "entropy_coef": 0.0}

    @jax.jit
    def gradients(params, step_size):
        of_ppo = partial(ppo.loss, config=replace(small, **free), env=cartpole, batch=batches[ppo], progress=0.5)
        config = config_of(mdpo, small, **free, step_size=step_size)
        losses = {str(objective): partial(of_ppo, objective=objective) for objective in OBJECTIVES}
        losses["ppo"] = of_ppo
        losses["mdpo"] = partial(mdpo.loss, config=config, env=cartpole, batch=batches[mdpo], progress=0.5)
        grads = {name: jax.grad(loss, has_aux=True)(params)[0]["actor"] for name, loss in losses.items()}
        of_trpo = partial(
            trpo.loss, config=config_of(trpo, small, entropy_coef=0.0), env=cartpole, batch=batches[trpo], progress=0.5
        )
        grads["trpo"] = jax.grad(of_trpo, has_aux=True)(params["actor"])[0]
        return {name: ravel_pytree(g)[0] for name, g in grads.items()}

    return gradients


@pytest.mark.more
def test_at_the_policy_that_acted_all_have_the_policy_gradient(small, cartpole, problem, actor_gradients):
    state, batches = problem
    advantage = np.asarray(batches[ppo].advantage)
    advantage = jnp.asarray((advantage - advantage.mean()) / advantage.std())

    def score(params):
        actor, _ = ppo.networks(small, cartpole)
        return -jnp.mean(advantage * actor.apply(params, batches[ppo].obs).log_prob(batches[ppo].action))

    expected = ravel_pytree(jax.grad(score)(state.params["actor"]))[0]
    assert jnp.linalg.norm(expected) > 0.01
    for step_size in (0.01, 1.0, jnp.inf):
        for name, gradient in actor_gradients(state.params, step_size).items():
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_away_from_it_no_two_are_the_same_but_those_without_a_drift(problem, actor_gradients):
    gradients = actor_gradients(moved(problem[0].params), jnp.inf)
    alike = {"mdpo", "trpo", str(ImportanceWeighted())}, {"ppo", str(Clip())}
    for a in gradients:
        for b in gradients:
            same = np.allclose(gradients[a], gradients[b], rtol=1e-3, atol=1e-5)
            assert same == (a == b or any({a, b} <= group for group in alike)), (a, b)
    finite = actor_gradients(moved(problem[0].params), 1.0)["mdpo"]
    assert not np.allclose(finite, gradients["mdpo"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tsallis", [1.0, 1.5])
@pytest.mark.parametrize("progress", [0.0, 0.75, 1.0])
def test_the_loss_of_mdpo_is_its_equation(small, cartpole, problem, tsallis, progress):
    state, batches = problem
    batch, params = batches[mdpo], moved(state.params)
    changes = {"step_size": 0.3, "value_coef": 0.7, "entropy_coef": 0.3, "value_clip": 1e9, "tsallis": tsallis}
    config = config_of(mdpo, small, **changes)
    actor, critic = mdpo.networks(config, cartpole)
    to_numpy = lambda x: np.asarray(x, np.float64)
    log_softmax = lambda logits: logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_p = log_softmax(to_numpy(actor.apply(params["actor"], batch.obs).logits))
    log_old = log_softmax(to_numpy(batch.pi.logits))
    log_ratio = (log_p - log_old)[np.arange(64), batch.action]
    advantage = to_numpy(batch.advantage)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy_loss = -(np.exp(log_ratio) * advantage).mean()
    p, old = np.exp(log_p), np.exp(log_old)
    if tsallis == 1.0:
        divergence = (p * (log_p - log_old)).sum(-1).mean()  # of the new policy from the old
        assert not np.isclose(divergence, (old * (log_old - log_p)).sum(-1).mean(), rtol=0.01)
    else:
        divergence = ((p**1.5 - 1.5 * p * old**0.5 + 0.5 * old**1.5) / 0.5).sum(-1).mean()
    value_loss = 0.5 * ((to_numpy(critic.apply(params["critic"], batch.obs)) - batch.target) ** 2).mean()
    entropy = -(p * log_p).sum(-1).mean()
    step_size = 0.3 * max(1 - progress, 1 / 3)  # three updates
    total, parts = mdpo.loss(params, config, cartpole, batch, progress)
    # Means of 64 float32 numbers of order 1 to 10.
    np.testing.assert_allclose(parts["divergence"], divergence, rtol=1e-4)
    np.testing.assert_allclose(parts["policy_loss"], policy_loss, rtol=1e-3, atol=1e-5)
    expected = policy_loss + divergence / step_size + 0.7 * value_loss - 0.3 * entropy
    np.testing.assert_allclose(total, expected, rtol=1e-4)


@pytest.mark.parametrize("step_size", [0.1, 1.0, 10.0])
def test_the_optimum_of_a_mirror_descent_step_is_the_exponentiated_advantage(step_size):
    logits, advantage = jax.random.normal(jax.random.key(0), (2, 5))
    loss = lambda x: -jax.nn.softmax(x) @ advantage + Categorical(x).tsallis(Categorical(logits), 1.0) / step_size
    best = logits + step_size * advantage
    # A difference of numbers of order 1 to 10.
    np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-5)
    gain = (jax.nn.softmax(best) - jax.nn.softmax(logits)) @ advantage
    old, new = Categorical(logits), Categorical(best)
    np.testing.assert_allclose(new.kl(old) + old.kl(new), step_size * gain, rtol=1e-4)


def close(a, b):
    """The same operations in two programs, over one update: 1e-7 each, which steps of Adam enlarge."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b)


def test_mdpo_with_an_infinite_step_size_is_plain_policy_gradient(small, cartpole, init):
    state = init(small, cartpole, jax.random.key(0))
    config = config_of(mdpo, small, step_size=float("inf"))
    free, _ = jax.jit(mdpo.update)(config, cartpole, state)
    same, _ = jax.jit(ppo.update)(small, cartpole, state, objective=ImportanceWeighted())
    close(free.params, same.params)


# Another value for every field of the configs: a new field needs one too.
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
    "step_size": 0.01,
    "step_size_decay": 5.0,
    "tsallis": 3.0,  # at 2 it is the KL to second order where two actions are equally probable
    "max_kl": 1e-3,
    "damping": 10.0,
    "cg_iterations": 3,
    "line_search_trials": 3,
    "line_search_shrink": 0.1,
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
    "num_quantiles": 3,
}


def fields(algorithm, static):
    seams = ("torso", "actor_obs", "critic_obs", "policy")  # which tests/test_served_spaces.py changes
    return [f.name for f in dataclasses.fields(algorithm.Config) if is_static(f) == static and f.name not in seams]


# A penalty and a target that matter in so short a run; steps that overshoot, so that the line search has work to do.
TELLING = {mdpo: {"step_size": 0.1, "adapt_learning_rate": True}, trpo: {"damping": 1e-4}}


@both
def test_every_traced_config_field_changes_the_weights_and_one_trace_serves_all(algorithm, small, cartpole):
    traces = []

    @jax.jit
    def train(config, env, key):
        traces.append(1)
        return ravel_pytree(rlx.train(algorithm, config, env, key)[0].params)[0]

    config = config_of(algorithm, small, **TELLING[algorithm])
    before = train(config, cartpole, jax.random.key(0))
    for name in fields(algorithm, static=False):
        assert getattr(config, name) != CHANGED[name]
        after = train(replace(config, **{name: CHANGED[name]}), cartpole, jax.random.key(0))
        assert np.isfinite(after).all()
        # Well above rounding: a field that only reorders a sum changes nothing.
        assert np.abs(after - before).max() > 1e-4, name
    train(replace(config, gamma=1, value_clip=float("inf")), replace(cartpole, max_steps=7), jax.random.key(1))
    assert len(traces) == 1


@pytest.mark.more
@both
def test_every_static_config_field_changes_the_program(algorithm, small):
    env = rlx.envs.make("Breakout-MinAtar")

    def program(**changes):
        config = config_of(algorithm, small, **changes)
        state = jax.eval_shape(algorithm.init, config, env, jax.random.key(0))
        return jax.jit(lambda state: algorithm.update(config, env, state)).lower(state).as_text()

    before = program()
    for name in fields(algorithm, static=True):
        assert getattr(config_of(algorithm, small), name) != CHANGED[name]
        assert program(**{name: CHANGED[name]}) != before, name


@pytest.fixture(scope="module")
def trained(small, cartpole):
    run = lambda algorithm: rlx.train(algorithm, config_of(algorithm, small), cartpole, jax.random.key(0))
    with jax.debug_key_reuse(True):  # raises where a key is used twice
        return {algorithm: run(algorithm) for algorithm in (mdpo, trpo)}


@pytest.mark.more
@both
def test_resume_is_bitwise_and_stays_finite_past_the_end(algorithm, small, cartpole, trained):
    config = config_of(algorithm, small)
    state, rows = jax.jit(algorithm.init)(config, cartpole, jax.random.key(0)), []
    for _ in range(5):
        state, metrics = rlx.resume(algorithm, config, cartpole, state, num_updates=1)
        rows.append((state, metrics))
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    equal = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *(metrics for _, metrics in rows[:3]))
    equal((rows[2][0], joined), trained[algorithm])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, metrics["policy_loss"])))


def sweep(algorithm, configs, env, objectives=None):
    """One update of each as lanes of one program, of which the first and the last are those that run alone."""
    key = jax.random.key(7)
    kwargs = {} if objectives is None else {"objective": stack(objectives)}
    run = lambda config, state, kwargs: algorithm.update(config, env, state, **kwargs)[0].params
    state = jax.jit(algorithm.init)(configs[0], env, key)
    lanes = jax.jit(jax.vmap(run, (0, None, 0)))(stack(configs), state, kwargs)
    single = jax.jit(run)
    for i in (0, len(configs) - 1):
        alone = {} if objectives is None else {"objective": objectives[i]}
        close(jax.tree.map(lambda x, i=i: x[i], lanes), single(configs[i], state, alone))
    assert np.abs(np.diff(jax.tree.leaves(lanes["actor"])[0], axis=0)).max() > 1e-3


@pytest.mark.more
def test_a_sweep_over_the_size_of_the_trust_region_equals_its_single_runs(small, cartpole):
    for algorithm, name, values in ((mdpo, "step_size", [0.01, 1.0, 10.0]), (trpo, "max_kl", [0.001, 0.01, 0.1])):
        config = config_of(algorithm, small)
        sweep(algorithm, [replace(config, **{name: value}) for value in values], cartpole)


@pytest.mark.more
def test_a_sweep_over_the_coefficient_of_an_objective_equals_its_single_runs(small, cartpole):
    sweep(ppo, [small] * 3, cartpole, [SPO(epsilon) for epsilon in (0.001, 0.2, 0.8)])


@pytest.mark.more
def test_with_objective_makes_its_coefficients_fields_of_the_config(small, cartpole, init):
    spo, rollback = with_objective(ppo, SPO), with_objective(ppo, Rollback)
    assert (spo.__name__, spo.Config().epsilon, spo.__file__) == ("rlx.algos.ppo+SPO", 0.2, ppo.__file__)
    assert {f.name for f in dataclasses.fields(rollback.Config)} - {f.name for f in dataclasses.fields(small)} == {
        "slope"
    }
    with pytest.raises(ValueError, match=r"epsilon = 0: it has to be above 0"):
        spo.Config(epsilon=0)
    with pytest.raises(ValueError, match=r"gamma = 2: it has to be at least 0"):
        spo.Config(gamma=2)
    with pytest.raises(ValueError, match=r"ppo\+SPO has no policy objective"):
        with_objective(spo, DPO)
    state = init(small, cartpole, jax.random.key(0))
    config = spo.Config(**{f.name: getattr(small, f.name) for f in dataclasses.fields(small)}, epsilon=0.05)
    theirs, _ = jax.jit(spo.update)(config, cartpole, state)
    ours, _ = jax.jit(ppo.update)(small, cartpole, state, objective=SPO(0.05))
    close(theirs.params, ours.params)


@pytest.fixture(scope="module")
def probe(small):
    """Trains on a probe; returns the critic and the policy over observations."""

    def train(algorithm, name):
        config = config_of(
            algorithm,
            small,
            total_steps=200 * 128,
            num_envs=16,
            num_steps=8,
            gamma=0.9,
            entropy_coef=0.0,
            value_clip=float("inf"),
        )
        env = rlx.envs.make(f"probe/{name}")
        state, _ = rlx.train(algorithm, config, env, jax.random.key(0))
        actor, critic = algorithm.networks(config, env)
        value = lambda *obs: critic.apply(state.params["critic"], jnp.array(obs)[:, None])
        policy = lambda *obs: actor.apply(state.params["actor"], jnp.array(obs)[:, None])
        return value, policy

    return train


# Of values of order 1: what is left after 200 updates with a learning rate that fell to 0.
CONVERGED = 0.03


@pytest.mark.more
@both
def test_the_policy_sees_the_observation(algorithm, probe):
    value, policy = probe(algorithm, "ObservationAction")
    assert (jnp.exp(policy(-1.0, 1.0).log_prob(jnp.array([0, 1]))) > 0.97).all()
    np.testing.assert_allclose(value(-1.0, 1.0), [1.0, 1.0], atol=2 * CONVERGED)


@pytest.mark.more
@both
def test_continuous_actions_reach_their_optimum(algorithm, probe):
    _, policy = probe(algorithm, "ContinuousAction")
    # The optimum is obs / 2 in a space of [-2, 2], which is obs / 4 in unit coordinates.
    np.testing.assert_allclose(policy(-1.0, 1.0).mode()[:, 0], [-0.25, 0.25], atol=CONVERGED)


def test_the_critic_of_trpo_bootstraps_where_a_time_limit_cuts(probe):
    value, _ = probe(trpo, "Endless")
    np.testing.assert_allclose(value(0.0), [1 / (1 - 0.9)], atol=10 * CONVERGED)


def dense(tree_function, params):
    """The Hessian of a function of a pytree as a matrix, in float64."""
    vector, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda v: tree_function(unravel(v))))(vector), np.float64)


def test_the_natural_gradient_is_a_dense_solve(cartpole, problem):
    _, batches = problem
    config = trpo.Config(num_envs=4, num_steps=16, num_minibatches=2, hidden_sizes=(3,), cg_iterations=100)
    key = jax.random.key(0)
    params = jax.jit(trpo.init)(config, cartpole, key).params["actor"]
    params = jax.tree.map(lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size) + 1.0).reshape(x.shape), params)
    pi = trpo.networks(config, cartpole)[0].apply(params, batches[trpo].obs)
    batch = replace(batches[trpo], pi=pi)
    loss = lambda params: trpo.loss(params, config, cartpole, batch, 0.0)
    kl = lambda params: loss(params)[1]["kl"]
    gradient = jax.grad(loss, has_aux=True)(params)[0]
    hessian = dense(kl, params)
    # The Fisher information, mean over states of sum_a pi(a) score score^T, is that Hessian.
    vector, unravel = ravel_pytree(params)
    log_pi = lambda v: jax.nn.log_softmax(trpo.networks(config, cartpole)[0].apply(unravel(v), batch.obs).logits)
    score = np.asarray(jax.jacobian(log_pi)(vector), np.float64)  # [B, A, P]
    fisher = np.einsum("ba,bap,baq->pq", np.exp(log_pi(vector)), score, score) / len(score)
    np.testing.assert_allclose(hessian, fisher, atol=1e-5)
    flat = np.asarray(ravel_pytree(gradient)[0], np.float64)
    for damping in (0.1, 1.0):
        x, product = jax.jit(natural_gradient, static_argnums=(0, 4))(kl, params, gradient, damping, 100)
        expected = np.linalg.solve(fisher + damping * np.eye(len(flat)), flat)
        # Conjugate gradients stop at a residual of 1e-5 of the gradient.
        np.testing.assert_allclose(ravel_pytree(x)[0], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(ravel_pytree(product)[0], flat, rtol=1e-3, atol=1e-4 * np.abs(flat).max())
        step = np.asarray(ravel_pytree(longest_step(x, product, 0.01))[0])
        np.testing.assert_allclose(0.5 * step @ (fisher + damping * np.eye(len(flat))) @ step, 0.01, rtol=1e-3)
        assert step @ flat < 0


def test_few_iterations_of_conjugate_gradients_are_enough_and_one_is_not():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 20))
    matrix = jnp.float32(matrix @ matrix.T / 20 + np.eye(20))
    gradient = jnp.float32(rng.normal(size=20))
    kl = lambda x: 0.5 * x @ matrix @ x
    error = lambda n: np.linalg.norm(natural_gradient(kl, jnp.zeros(20), gradient, 0.0, n)[1] - gradient)
    assert error(1) > 0.1 * np.linalg.norm(gradient)
    assert error(20) < 1e-3 * np.linalg.norm(gradient)


def test_the_line_search_takes_the_first_step_that_is_accepted():
    search = lambda bound, trials: line_search(
        lambda x: jnp.abs(x) <= bound, jnp.float32(0), jnp.float32(8), 0.5, trials
    )
    assert search(10.0, 4) == (8.0, 1.0)
    assert search(2.5, 4) == (2.0, 0.25)
    assert search(1.0, 4) == (1.0, 0.125)
    assert search(0.9, 4) == (0.0, 0.0)
    assert search(0.9, 5) == (0.5, 0.0625)
    assert line_search(lambda x: x < jnp.nan, jnp.float32(3), jnp.float32(jnp.nan), 0.5, 4) == (3.0, 0.0)


def test_there_is_no_step_along_a_zero_gradient():
    zero = {"w": jnp.zeros(3)}
    step = longest_step(*natural_gradient(lambda p: jnp.sum(p["w"] ** 2), {"w": jnp.ones(3)}, zero, 0.1, 10), 0.01)
    np.testing.assert_array_equal(step["w"], 0)


@pytest.mark.parametrize("env_name", ["cartpole", "probe/ContinuousAction"])
def test_the_step_of_trpo_stays_within_its_bound_and_lowers_the_loss(small, cartpole, env_name):
    env = cartpole if env_name == "cartpole" else rlx.envs.make(env_name)
    kls, fractions = [], []

    @jax.jit
    def step(config, key):
        state = trpo.init(config, env, key)
        state = replace(state, params=replace_actor(state.params, moved(state.params["actor"])))
        _, rollout_key, _ = jax.random.split(state.key, 3)
        act = partial(trpo.act, config, env, state)
        _, traj = rollout(env, act, state.env_state, rollout_key, config.num_steps)
        batch = flatten(trpo.advantages(config, env, state, traj)[0])
        params, parts = trpo.policy_step(state.params["actor"], config, env, batch, 0.0)
        before, _ = trpo.loss(state.params["actor"], config, env, batch, 0.0)
        after, _ = trpo.loss(params, config, env, batch, 0.0)
        old, new = (trpo.networks(config, env)[0].apply(p, batch.obs) for p in (state.params["actor"], params))
        return before, after, old, new, parts

    for max_kl in (1e-3, 1e-2, 0.5):
        config = config_of(trpo, small, max_kl=max_kl, damping=1e-4)
        for seed in range(4):
            before, after, old, new, parts = step(config, jax.random.key(seed))
            kl = exact_kl(old, new)
            np.testing.assert_allclose(parts["kl"], kl, rtol=1e-2, atol=1e-6)
            assert kl <= max_kl * 1.01
            assert (after < before) == (parts["step_fraction"] > 0)
            kls.append(kl / max_kl)
            fractions.append(float(parts["step_fraction"]))
    # The bound is used up to a backtracking or two: without damping, the quadratic model alone oversteps it.
    assert np.mean(kls) > 0.2
    assert min(fractions) < 1


def replace_actor(params, actor):
    return {**params, "actor": actor}


def exact_kl(old, new):
    """KL(old || new), mean over states, in float64."""
    leaves = lambda pi: [np.asarray(x, np.float64) for x in jax.tree.leaves(pi)]
    if isinstance(old, Normal):
        (m, s), (n, t) = leaves(old), leaves(new)
        return (t - s + (np.exp(2 * s) + (m - n) ** 2) / (2 * np.exp(2 * t)) - 0.5).sum(-1).mean()
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for (x,) in (leaves(old), leaves(new)))
    return (p * np.log(p / q)).sum(-1).mean()
