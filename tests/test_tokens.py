"""Tokens: the transformer against numpy and its cache, examples, teaching, environments that are none of tokens."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rlx
from rlx.networks.transformer import attended
from rlx.spaces import Discrete
from rlx.tokens import Transformer, check_tokens, examples, teach

B, L, V = 3, 9, 7


@pytest.fixture(scope="module")
def network():
    return Transformer(V, L, V - 1, width=8, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def params(network):
    params = network.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), network.cache(1), 0)
    # Far from where weights start, so that every part of it matters.
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.5, x.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def read(network, params):
    return jax.jit(lambda tokens, cache, start: network.apply(params, tokens, cache, start))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (B, L), 0, V)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):  # the tanh form
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def forward(params, tokens):
    """Logits of one sequence, a place and a head at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    x = np.array([p["tokens"]["embedding"][token] + p["places"]["embedding"][i] for i, token in enumerate(tokens)])
    for layer in range(2):
        query, key, value = np.split(dense(norm(x, p[f"LayerNorm_{2 * layer}"]), p[f"heads_{layer}"]), 3, axis=-1)
        seen = np.zeros_like(x)
        for place in range(len(tokens)):
            for head in (slice(0, 4), slice(4, 8)):
                score = np.array([query[place, head] @ key[j, head] / 2.0 for j in range(place + 1)])
                weight = np.exp(score - score.max())
                seen[place, head] = (weight / weight.sum()) @ value[: place + 1, head]
        x = x + dense(seen, p[f"seen_{layer}"])
        hidden = gelu(dense(norm(x, p[f"LayerNorm_{2 * layer + 1}"]), p[f"hidden_{layer}"]))
        x = x + dense(hidden, p[f"out_{layer}"])
    return dense(norm(x, p["LayerNorm_4"]), p["head"])


def test_the_transformer_is_its_equations(network, params, read, tokens):
    logits, _ = read(tokens, network.cache(B), 0)
    assert logits.shape == (B, L, V - 1)
    for row, found in zip(np.asarray(tokens), logits, strict=True):
        np.testing.assert_allclose(found, forward(params, row), rtol=1e-4, atol=1e-4)


def test_without_a_cache_the_tokens_are_the_whole_sequence_and_the_first_may_have_no_logits(network, params, tokens):
    apply = jax.jit(network.apply, static_argnames="first")
    logits, _ = apply(params, tokens, network.cache(B), 0)
    alone, nothing = apply(params, tokens)
    assert nothing is None
    np.testing.assert_allclose(alone, logits, rtol=1e-5, atol=1e-6)
    some, _ = apply(params, tokens, first=3)
    np.testing.assert_allclose(some, logits[:, 3:], rtol=1e-5, atol=1e-6)


def test_a_prompt_that_copies_share_is_read_once_for_the_same_logits_and_gradients(network, params):
    prompt, answer = np.random.default_rng(0).integers(0, V, (2, 6, 4))
    tokens = np.concatenate([np.repeat(prompt[:2], 3, axis=0), answer], axis=1)
    weight = np.random.default_rng(1).normal(size=(6, 5, V - 1))

    def loss(params, copies):
        logits, _ = network.apply(params, tokens, first=3, copies=copies)
        return (weight * logits).sum(), logits

    both = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (grads, logits), (grads_once, once) = both(params, 1), both(params, 3)
    np.testing.assert_allclose(once, logits, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max()), grads, grads_once
    )
    other = tokens.copy()
    other[1, 0] = (other[1, 0] + 1) % V  # nobody looks at the prompts of the second and third copy
    changed, _ = network.apply(params, other, first=3, copies=3)
    np.testing.assert_allclose(changed, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("begin", "size"), [(0, 3), (2, 4), (5, 32)])
def test_attention_in_pieces_is_that_of_all(begin, size):
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 9, 4, 5)).astype(np.float32)
    found = np.asarray(attended(query[:, begin:], key, value, begin, size))
    for b, s, h in np.ndindex(2, 9 - begin, 4):
        score = key[b, : begin + s + 1, h] @ query[b, begin + s, h] / 5**0.5
        weight = np.exp(score - score.max())
        expected = weight @ value[b, : begin + s + 1, h] / weight.sum()
        np.testing.assert_allclose(found[b, s, h], expected, rtol=1e-4, atol=1e-5)


def test_later_tokens_change_nothing_before_them(network, read, tokens):
    logits, _ = read(tokens, network.cache(B), 0)
    changed, _ = read(tokens.at[:, 5].set((tokens[:, 5] + 1) % V), network.cache(B), 0)
    np.testing.assert_array_equal(changed[:, :5], logits[:, :5])
    assert (np.abs(changed[:, 5:] - logits[:, 5:]).max(axis=-1) > 1e-2).all()


@pytest.mark.parametrize("pieces", [[1] * L, [4, 1, 1, 1, 1, 1], [3, 4, 2]])
def test_reading_piece_by_piece_gives_the_logits_of_reading_all_at_once(network, read, tokens, pieces):
    logits, whole = read(tokens, network.cache(B), 0)
    cache, start, found = network.cache(B), 0, []
    for num in pieces:
        some, cache = read(tokens[:, start : start + num], cache, start)
        found.append(some)
        start += num
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), cache, whole)


def test_a_prompt_that_a_group_shares_is_looked_up_as_if_each_had_read_it(network, read, tokens):
    """A cache of its own for the prompt gives the logits of a cache in which it stands for every sequence."""
    prompt, own = jnp.repeat(tokens[:1, :4], B, axis=0), tokens[:, 4:]
    whole, _ = read(jnp.concatenate([prompt, own], axis=1), network.cache(B), 0)
    _, shared = read(prompt[:1], network.cache(1, 4), 0)
    cache, found = network.cache(B, L - 4, shared), []
    for at in range(L - 4):
        some, cache = read(own[:, at : at + 1], cache, 4 + at)
        found.append(some)
    assert cache.keys[0].shape[0] == L - 4
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole[:, 4:], rtol=1e-4, atol=1e-5)


def test_groups_look_up_their_own_prompts(network, read, tokens):
    """Two prompts, one for each two sequences next to each other."""
    prompts, own = tokens[:2, :4], jnp.concatenate([tokens, tokens])[:4, 4:6]
    whole, _ = read(jnp.concatenate([jnp.repeat(prompts, 2, axis=0), own], axis=1), network.cache(4), 0)
    _, shared = read(prompts, network.cache(2, 4), 0)
    found, _ = read(own, network.cache(4, L - 4, shared), 4)
    np.testing.assert_allclose(found, whole[:, 4:], rtol=1e-4, atol=1e-5)


def test_weights_start_small_and_smaller_where_they_write_into_the_residual_stream():
    network = Transformer(V, L, V - 1, width=64, num_layers=3, num_heads=4)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), network.cache(1), 0)["params"]
    for name, std in (("heads_0", 0.02), ("hidden_2", 0.02), ("seen_1", 0.02 / 6**0.5), ("out_2", 0.02 / 6**0.5)):
        np.testing.assert_allclose(params[name]["kernel"].std(), std, rtol=0.05, err_msg=name)


def test_a_width_that_heads_do_not_divide_is_refused():
    network = Transformer(V, L, V - 1, width=10, num_heads=4)
    with pytest.raises(ValueError, match="width = 10 is not a multiple of num_heads = 4"):
        network.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), network.cache(1), 0)


def test_examples_are_problems_with_answers_that_the_task_rewards():
    env = rlx.envs.make("Countdown")
    tokens, answer = jax.jit(lambda key: examples(env, key, 50))(jax.random.key(0))
    np.testing.assert_array_equal(answer, tokens[:, env.environment.prompt_size :])
    assert len(np.unique(tokens, axis=0)) > 40
    start = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 50))
    np.testing.assert_array_equal(start.obs[:, :5], tokens[:, :5])

    def play(start, answer):  # the same keys give the same problems
        step = lambda state, token: env.advance(jax.random.key(0), state, token - 1)
        return jax.lax.scan(step, start, answer)[1]

    traj = jax.jit(jax.vmap(play))(start, answer)
    first = traj.done.argmax(axis=1)
    np.testing.assert_array_equal(traj.reward[np.arange(50), first], 1)


def test_teaching_is_gradient_steps_on_random_examples_until_it_is_learned():
    data = (jnp.arange(100.0), 2.0 * jnp.arange(100.0))
    seen = lambda params, x, y: ((params["slope"] * x - y) ** 2).mean()
    start = {"slope": jnp.float32(0), "batches": jnp.float32(0)}

    def taught(until, max_steps, batch_size=5):
        # A gradient of -1 counts the steps in what is not used otherwise.
        loss = lambda params, x, y: seen(params, x, y) / 1e5 - params["batches"] + 0.0 * x.sum()
        rate = {"batch_size": batch_size, "max_steps": max_steps}
        learned = lambda params: jnp.abs(params["slope"] - 2.0) < until
        run = jax.jit(lambda key: teach(loss, learned, start, optax.sgd(1.0), data, key, **rate))
        return run(jax.random.key(0))

    early, late = taught(0.5, 1000), taught(1e-4, 1000)
    assert 10 <= early["batches"] < late["batches"] < 1000
    assert early["batches"] % 10 == 0
    assert 1e-4 < abs(early["slope"] - 2) < 0.5
    assert abs(late["slope"] - 2) < 1e-4
    assert taught(0.0, 30)["batches"] == 30  # never learned
    assert taught(3.0, 30)["batches"] == 0  # before the first step


def test_teaching_chooses_examples_anew_at_every_step():
    data, start = (10.0 ** jnp.arange(6.0),), {"sum": jnp.float32(0)}
    loss = lambda params, x: -params["sum"] * x[0]  # every step adds the first of its examples

    def total(max_steps, key):
        sizes = {"batch_size": 3, "max_steps": max_steps}
        return teach(loss, lambda params: False, start, optax.sgd(1.0), data, key, **sizes)["sum"]

    ten, twenty, other = (total(n, jax.random.key(key)) for n, key in ((10, 0), (20, 0), (10, 1)))
    digits = [int(digit) for digit in f"{float(ten):.0f}"]
    assert sum(digits) == 10
    assert sum(digit > 0 for digit in digits) >= 3
    assert twenty - ten not in (0, ten)
    assert ten != other


@pytest.mark.parametrize("name", ["CartPole-v1", "probe/ObservationAction", "rlx/GridWorld"])
def test_an_environment_without_tokens_is_refused(name):
    with pytest.raises(ValueError, match="this policy writes tokens, and the environment is not one of tokens"):
        check_tokens(rlx.envs.make(name), 1)


@pytest.mark.parametrize(("seen", "num_written"), [(Discrete(5, shape=(4,)), 5), (Discrete(5, shape=(2, 2)), 4)])
def test_an_environment_whose_actions_are_not_its_tokens_is_refused(seen, num_written):
    sizes = {"environment": SimpleNamespace(prompt_size=2), "observation_space": seen}
    check_tokens(SimpleNamespace(**sizes | {"observation_space": Discrete(5, shape=(4,))}, action_space=Discrete(4)), 2)
    with pytest.raises(ValueError, match="this policy writes tokens"):
        check_tokens(SimpleNamespace(**sizes, action_space=Discrete(num_written)), 2)


def test_an_answer_that_is_too_long_is_refused():
    check_tokens(rlx.envs.make("Reverse"), 8)
    with pytest.raises(ValueError, match="num_steps = 9: there is room for 8 tokens; use at most num_steps = 8"):
        check_tokens(rlx.envs.make("Reverse"), 9)
