"""Losses of whole answers of a transformer: the loss of what was written, whole groups, judges, variants, resuming."""

import dataclasses
import inspect
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import groups, pairs, replace, stack
from rlx.algos import grpo_tokens, pairs_tokens
from rlx.env import with_params
from rlx.pairs import LOSSES
from rlx.presets import configure
from rlx.pytree import is_static
from rlx.tokens import write

EXACT = True  # bits are compared

T, N, G = 4, 4, 3
SIZES = {"num_groups": N, "group_size": G, "num_steps": T, "num_minibatches": 2}
SIZES |= {"width": 8, "num_heads": 2, "num_layers": 1}
TEACH = {"warm_start_examples": 256, "warm_start_batch": 32, "warm_start_steps": 100, "warm_start_learning_rate": 1e-2}
NUMBERS = {"loss": "inpo", "temperature": 0.3, "amount": 0.7, "kl_coef": 10.0}  # all that a loss may have
WHOLE = ("gvpo", "a_star_po", "trpa", "disco_ratio", "drpo", "dpo", "inpo", "f_dpg_reverse_kl")


@pytest.fixture(scope="module")
def reverse():
    """Four of three symbols, with a reward for a part of the answer."""
    return with_params(rlx.envs.make("Reverse", max_length=4, max_symbols=3), {"partial": 0.5})


@pytest.fixture(scope="module")
def countdown():
    """Answers that end where the policy says so."""
    return with_params(rlx.envs.make("Countdown", max_count=2), {"count": 2, "largest": 3})


@pytest.fixture(scope="module")
def small():
    """A config of three updates that compiles fast."""
    run = {"total_steps": 3 * N * G * T, "learning_rate": 1e-2, "reference_interval": 1_000_000}
    return pairs_tokens.Config(**run, **SIZES, **TEACH, **NUMBERS)


@pytest.fixture(scope="module")
def init():
    return jax.jit(pairs_tokens.init)


@pytest.fixture(scope="module")
def first(small, reverse, init):
    with jax.debug_key_reuse(True):  # raises where a key is used twice
        return init(small, reverse, jax.random.key(0))


@pytest.fixture(scope="module")
def trained(small, reverse, first):
    with jax.debug_key_reuse(True):
        return rlx.resume(pairs_tokens, small, reverse, first)


@pytest.fixture(scope="module")
def written(small, countdown):
    """Answers to problems of Countdown, some of which end early, in groups; and two other policies."""
    state = jax.jit(pairs_tokens.init)(replace(small, warm_start_steps=0), countdown, jax.random.key(0))
    rng = np.random.default_rng(0)
    moved = lambda params, size: jax.tree.map(lambda x: x + rng.normal(0, size, x.shape).astype(np.float32), params)
    params = moved(state.params, 0.3)
    head = params["actor"]["params"]["head"]  # of the 104 tokens, those that these problems need are written often
    head["bias"] = head["bias"].at[jnp.array([1, 2, 3, 100, 101, 102, 103])].add(8.0)
    state = replace(state, params=params, reference=moved(params, 0.05))
    return state, moved(params, 0.05), play(small, countdown, state)


def play(config, env, state):
    """A batch of all groups, with outcomes of our own: the policy solves nothing."""

    @jax.jit
    def played(key):
        start_key, write_key = jax.random.split(key)
        start = pairs_tokens.starts(config, env, state, start_key)
        network = pairs_tokens.networks(config, env)
        end, traj, alive = write(network, state.params["actor"], env, start, write_key, T)
        reference = pairs_tokens.answers(config, env, state.reference, end.obs).log_prob(traj.recorded.action.T).T
        grouped = (traj.recorded.action, traj.recorded.log_prob, reference, alive)
        return end.obs.reshape(N, G, -1), [groups.by_group(x, G) for x in grouped]

    tokens, grouped = played(jax.random.key(3))
    outcome = np.array([[1, 0, 0.25], [1, 1, 1], [0, 1, 1], [0, 0, 0.25]], np.float32)
    preference = np.random.default_rng(1).random((N, G, G)).astype(np.float32)
    preference = (preference + 1 - preference.swapaxes(1, 2)) / 2
    value = np.array([0.1, 0.9, 0.5, 0.2], np.float32)
    return pairs_tokens.Batch(tokens, *grouped, {"outcome": outcome, "preference": preference, "value": value})


def log_softmax(x):
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def mean_of_pairs(term):
    return np.mean([term(i, j) for i in range(G) for j in range(G) if i != j])


def of_group(name, x, b, a):
    """The loss of a group from the log-probabilities of its answers' tokens, lists `[G][L_i]`."""
    lp, old, ref = (np.array([sum(tokens) for tokens in x[key]]) for key in ("log_prob", "old", "reference"))
    length, outcome, p = np.array([len(tokens) for tokens in x["old"]]), x["outcome"], x["preference"]
    ratio = [np.mean(np.exp(np.subtract(new, was))) for new, was in zip(x["log_prob"], x["old"], strict=True)]
    lr, right = lp - ref, outcome > 0.5
    if name == "gvpo":
        u = b * lr - outcome
        return ((u - u.mean()) ** 2).sum() / (2 * (G - 1))
    if name == "a_star_po":
        return ((b * lr + x["value"] - outcome) ** 2).mean()
    if name == "dpo":
        return mean_of_pairs(lambda i, j: 2 * p[i, j] * np.log1p(np.exp(-b * (lr[i] - lr[j]))))
    if name == "inpo":
        to = lp - a * ref - (1 - a) * old
        return mean_of_pairs(lambda i, j: (to[i] - to[j] - (p[i, j] - 0.5) / b) ** 2)
    if name == "f_dpg_reverse_kl":
        z = np.mean(np.exp(ref + outcome / b - old))
        w = np.exp(lp - old)
        slope = w * (lp - ref - outcome / b + np.log(z) + 1)
        return np.mean([(slope[i] - w[i] * (slope.sum() - slope[i]) / (G - 1)) * lp[i] for i in range(G)])
    if right.all() or not right.any():
        return 0.0
    score = np.array(ratio) if name == "disco_ratio" else lp / length
    weight = right * (np.exp(-length / T / a) if name == "drpo" else 1.0)
    return b * np.log(np.mean(np.exp(score[~right] / b))) - (weight * score).sum() / weight.sum()


def trpa(found, b, a):
    """The mean over all pairs of all groups."""
    terms = []
    for x in found:
        m = [np.mean(np.subtract(new, ref)) for new, ref in zip(x["log_prob"], x["reference"], strict=True)]
        for i in range(G):
            scale = b * (a if x["outcome"][i] > 0.5 else 1)
            worse = [j for j in range(G) if x["outcome"][i] > x["outcome"][j]]
            terms += [np.log1p(np.exp(-scale * (m[i] - m[j]))) for j in worse]
    return np.mean(terms)


def test_the_loss_is_its_equation_on_what_was_written(small, countdown, written):
    _, params, batch = written
    assert batch.alive.any(axis=-1).all()
    assert not batch.alive.all()
    config = replace(small, temperature=0.6, amount=0.3, kl_coef=7.0, kl_limit=1e-3, entropy_coef=0.2)
    run = lambda params, batch: {
        name: pairs_tokens.loss(params, replace(config, loss=name), countdown, batch) for name in WHOLE
    }
    found = jax.jit(run)(params, batch)
    logits = pairs_tokens.answers(config, countdown, params, batch.tokens.reshape(N * G, -1)).logits
    log_pi = log_softmax(np.asarray(logits, np.float64)).reshape(N, G, T, -1)
    given, entropy, kl = [], [], []
    for n in range(N):
        x = {key: [[] for _ in range(G)] for key in ("log_prob", "old", "reference")}
        for i, t in ((i, t) for i in range(G) for t in range(T) if batch.alive[n, i, t]):
            pi = log_pi[n, i, t]
            x["log_prob"][i].append(pi[batch.action[n, i, t]])
            x["old"][i].append(float(batch.old[n, i, t]))
            x["reference"][i].append(float(batch.reference[n, i, t]))
            entropy.append(-(np.exp(pi) * pi).sum())
            kl.append(x["old"][i][-1] - x["log_prob"][i][-1])
        given.append(x | {key: value[n] for key, value in batch.whole.items()})
    penalty = max(7.0 * (np.mean(kl) - 1e-3), 0.0) * np.mean(kl)
    assert penalty > 0
    for name, (total, metrics) in found.items():
        wanted = trpa(given, 0.6, 0.3) if name == "trpa" else np.mean([of_group(name, x, 0.6, 0.3) for x in given])
        np.testing.assert_allclose(metrics["policy_loss"], wanted, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(total, wanted + penalty - 0.2 * np.mean(entropy), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(metrics["entropy"], np.mean(entropy), rtol=1e-4)
        np.testing.assert_allclose(metrics["approx_kl"], np.mean(np.expm1(-np.array(kl)) + kl), rtol=1e-2)


def test_what_stands_after_the_end_of_an_answer_changes_nothing(small, countdown, written):
    _, params, batch = written
    size = countdown.environment.prompt_size
    # A token is read when the next one is written.
    read_by = jnp.pad(batch.alive[..., 1:], ((0, 0), (0, 0), (size, 1))).at[..., :size].set(True)
    changed = replace(
        batch,
        tokens=jnp.where(read_by, batch.tokens, 5),
        action=jnp.where(batch.alive, batch.action, 7),
        old=jnp.where(batch.alive, batch.old, -1e4),  # a ratio of infinity
        reference=jnp.where(batch.alive, batch.reference, 1e4),
    )
    assert (changed.tokens != batch.tokens).any()
    config = replace(small, loss="disco_ratio", temperature=1.0)
    loss = jax.jit(jax.value_and_grad(lambda p, b: pairs_tokens.loss(p, config, countdown, b)[0]))
    jax.tree.map(np.testing.assert_array_equal, loss(params, changed), loss(params, batch))


def test_minibatches_hold_whole_groups_and_what_was_written(small, countdown, written, monkeypatch):
    size, seen = countdown.environment.prompt_size, []

    def by_first_token(config, tokens, outcome):
        table = ((0.5, 0.8, 0.3), (0.2, 0.5, 1.0), (0.7, 0.0, 0.5))  # of kinds that are not alike
        return pairs.of_kinds(tokens[..., 0] % 3, table) + 0 * outcome[..., None]

    def look(params, config, env, batch):
        jax.debug.callback(lambda prompt: seen.append(np.asarray(prompt)), batch.tokens[..., :size])
        again = by_first_token(config, batch.action + 1, batch.whole["outcome"])
        log_prob = pairs_tokens.answers(config, env, params, batch.tokens.reshape(-1, batch.tokens.shape[-1]))
        log_prob = log_prob.log_prob(batch.action.reshape(-1, T)).reshape(batch.alive.shape)
        found = {
            "other": jnp.abs(jnp.where(batch.alive, batch.action + 1 - batch.tokens[..., size : size + T], 0)).max(),
            "judged": jnp.abs(batch.whole["preference"] - again).max(),
            "misread": jnp.where(batch.alive, jnp.abs(log_prob - batch.old), 0.0).max(),
            "moved": jnp.where(batch.alive, jnp.abs(batch.reference - batch.old), 0.0).max(),
            "outcome": batch.whole["outcome"].sum(),
            "alive": batch.alive.sum(),
        }
        return 0.0 * ravel_pytree(params)[0].sum(), jax.tree.map(jnp.float32, found)

    monkeypatch.setattr(pairs_tokens, "loss", look)
    config = replace(small, num_groups=2 * N, num_epochs=3)  # another program than those with the true loss
    judge = jax.tree_util.Partial(by_first_token)
    metrics = jax.jit(lambda state: pairs_tokens.update(config, countdown, state, judge=judge)[1])(written[0])
    for name in ("other", "judged", "misread"):
        np.testing.assert_allclose(metrics[name], 0, atol=1e-4, err_msg=name)
    assert metrics["moved"] > 0.1  # the reference is another policy
    assert metrics["alive"] * 2 == metrics["alive_steps"] < 2 * N * G * T
    np.testing.assert_allclose(metrics["outcome"] * 2, metrics["episode_return"] * 2 * N * G, atol=1e-5)
    jax.effects_barrier()
    epochs = [np.concatenate(seen[2 * e : 2 * e + 2]) for e in range(3)]
    for prompts in epochs:  # each has every group once, with all of its members
        np.testing.assert_array_equal(prompts, prompts[:, :1].repeat(G, axis=1))
        one = [sorted(map(tuple, found[:, 0].tolist())) for found in (prompts, epochs[0])]
        assert one[0] == one[1]
    assert any((prompts != epochs[0]).any() for prompts in epochs)  # in other minibatches


def test_values_are_of_answers_of_the_reference_to_the_same_prompt(small, reverse, monkeypatch):
    config = replace(small, loss="a_star_po", num_reference=5, amount=0.4)
    prompts = np.arange(1, N + 1)
    start = groups.clone(jnp.asarray(prompts), G)

    def graded(network, params, env, start, key, num_steps, copies=1):
        """Answers of which the i-th of a group gets `i / 10` of the number of its prompt."""
        assert (params, copies) == ("reference", 5)
        np.testing.assert_array_equal(start, prompts.repeat(5))
        reward = jnp.zeros((T, N * 5)).at[T - 1].set(start * (jnp.arange(N * 5) % 5) / 10)
        return None, SimpleNamespace(reward=reward), jnp.ones((T, N * 5), bool)

    monkeypatch.setattr(pairs_tokens, "write", graded)
    state = pairs_tokens.State({"actor": "acting"}, {"actor": "reference"}, None, None, None)
    value, num = pairs_tokens.start_values(config, reverse, state, start, None)
    wanted = [0.4 * np.log(np.mean([np.exp(prompt * i / 10 / 0.4) for i in range(5)])) for prompt in prompts]
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    assert num == N * 5 * T
    assert config.steps_per_update == N * (G + 5) * T


def test_variants_are_the_losses_with_settings_that_fit(small, reverse):
    assert pairs_tokens.VARIANTS.keys() == LOSSES.keys()
    base = {"num_steps": T} | TEACH
    for name, values in pairs_tokens.VARIANTS.items():
        config = configure(pairs_tokens.Config, base | values)
        pairs_tokens.check(config, reverse)
        assert (config.loss, config.num_groups * config.group_size) == (name, 128)


@pytest.mark.parametrize("name", ["networks", "optimizer", "answers", "act"])
def test_what_is_said_alike_is_that_of_grpo(name):
    assert inspect.getsource(getattr(pairs_tokens, name)) == inspect.getsource(getattr(grpo_tokens, name))


def test_the_reference_is_the_first_policy_or_that_of_some_updates_ago(small, reverse, first):
    for interval, of in ((1_000_000, 0), (2, 2), (1, 3)):
        states = in_steps(replace(small, reference_interval=interval), reverse, first)[0]
        jax.tree.map(np.testing.assert_array_equal, states[3].reference, states[of].params)


def test_a_judge_is_an_argument(small, reverse, first):
    turned = lambda config, tokens, outcome: pairs.bradley_terry(-outcome, config.judge_temperature)
    other = jax.jit(lambda state: pairs_tokens.update(small, reverse, state, judge=turned)[1])(first)
    own = jax.tree.map(lambda x: x[0], in_steps(small, reverse, first, num=1)[1])
    assert own["episode_return"] == other["episode_return"]
    assert abs(own["policy_loss"] / other["policy_loss"] - 1) > 0.01


def bits(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def in_steps(config, env, state, num=3):
    """The states of a run that is stopped after each update, and the metrics of all."""
    states, metrics = [state], []
    for _ in range(num):
        state, new = rlx.resume(pairs_tokens, config, env, states[-1], num_updates=1)
        states.append(state)
        metrics.append(new)
    return states, jax.tree.map(lambda *x: jnp.concatenate(x), *metrics)


def test_resume_is_bitwise(small, reverse, first, trained):
    states, metrics = in_steps(small, reverse, first)
    whole = (states[-1], metrics)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), whole, trained)


def test_it_learns(small, reverse, first):
    """Of 12 answers an update, and who is preferred by the judge."""
    config = replace(small, learning_rate=3e-3, anneal_learning_rate=False, kl_coef=0.0, amount=0.1)
    returns = in_steps(config, reverse, first, num=80)[1]["episode_return"]
    assert returns[:20].mean() < 0.7
    assert returns[-20:].mean() > 0.85


# Another value for every field of the config: a new field needs one too.
CHANGED = {
    "total_steps": 48,
    "num_groups": 8,
    "group_size": 2,
    "num_reference": 2,
    "num_steps": 4,
    "num_epochs": 1,
    "num_minibatches": 4,
    "learning_rate": 3e-2,
    "anneal_learning_rate": False,
    "loss": "rebel",
    "temperature": 0.6,
    "amount": 0.3,
    "judge_temperature": 2.0,
    "kl_coef": 1e3,
    "kl_limit": 1.0,
    "entropy_coef": 0.5,
    "max_grad_norm": 0.01,
    "adam_epsilon": 1e-2,
    "reference_interval": 1,
    "warm_start_examples": 8,
    "warm_start_batch": 4,
    "warm_start_steps": 10,
    "warm_start_accuracy": 0.01,
    "warm_start_learning_rate": 3e-2,
    "width": 16,
    "num_layers": 2,
    "num_heads": 4,
}
FIELDS = dataclasses.fields(pairs_tokens.Config)


@pytest.fixture(scope="module")
def lanes(small, reverse, first):
    """A run, and runs with one of the traced fields changed; the warm start has been before."""
    names = [f.name for f in FIELDS if not is_static(f)]
    configs = stack([small, *(replace(small, **{name: CHANGED[name]}) for name in names)])
    run = lambda config: rlx.resume(pairs_tokens, config, reverse, first, num_updates=3)
    return names, jax.jit(jax.vmap(run))(configs)


@pytest.mark.more
def test_every_traced_config_field_changes_the_weights(small, reverse, init, first, lanes):
    names, (states, _) = lanes
    weights = jax.vmap(lambda params: ravel_pytree(params)[0])(states.params)
    for name, lane in zip(names, weights[1:], strict=True):
        if name.startswith("warm_start"):
            other = init(replace(small, **{name: CHANGED[name]}), reverse, jax.random.key(0))
            found = [ravel_pytree(state.params)[0] for state in (other, first)]
        else:
            found = [lane, weights[0]]
        assert np.abs(found[0] - found[1]).max() > 1e-4, name


@pytest.mark.more
def test_a_sweep_is_its_single_runs(lanes, trained):
    names, (_, metrics) = lanes
    # Matrix products of other shapes, carried on by the warm start and three updates.
    np.testing.assert_allclose(metrics["entropy"][0], trained[1]["entropy"], atol=1e-3)
    changed = metrics["entropy"][1 + names.index("learning_rate")]
    assert np.abs(changed - metrics["entropy"][0]).max() > 1e-2


@pytest.fixture(scope="module")
def program():
    """What a config becomes before it is compiled, on answers that are cut after three tokens."""
    env = rlx.envs.make("Countdown", max_count=2, max_steps=3)

    @cache
    def text(config):
        start = partial(pairs_tokens.init, config, env)
        run = lambda state, key: (pairs_tokens.update(config, env, state), start(key))
        key = jax.random.key(0)
        return jax.jit(run).lower(jax.eval_shape(start, key), key).as_text()

    return text


@pytest.mark.more
@pytest.mark.parametrize("name", [f.name for f in FIELDS if is_static(f)])
def test_every_static_config_field_changes_the_program(small, program, name):
    small = replace(small, num_steps=3, loss="a_star_po", num_reference=3)
    changed = {name: CHANGED[name]} | ({"num_reference": 0} if name == "loss" else {})
    assert getattr(small, name) != CHANGED[name]
    assert program(replace(small, **changed)) != program(small)


BAD = {
    "Config.loss = 'ppo': choose among rebel, gvpo": {"loss": "ppo"},
    "Config.temperature = 0.0: it has to be above 0": {"temperature": 0.0},
    "inpo takes the answers of a group: use num_reference = 0, group_size of at least 2": {"group_size": 1},
    "inpo takes the answers of a group: use num_reference = 0": {"num_reference": 8},
    "num_reference = 0: a_star_po needs answers of the reference": {"loss": "a_star_po"},
    "num_steps = 3: an episode of this environment may take 4 steps": {"num_steps": 3},
    "num_steps = 5: there is room for 4 tokens; use at most num_steps = 4": {"num_steps": 5},
    "num_groups = 4 is not a multiple of num_minibatches = 3; use 2 or 4": {"num_minibatches": 3},
    "width = 8 is not a multiple of num_heads = 3": {"num_heads": 3},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_settings_are_refused_before_anything_is_compiled(small, reverse, message):
    with pytest.raises(ValueError, match=message):
        rlx.train(pairs_tokens, replace(small, **BAD[message]), reverse, jax.random.key(0))


def test_an_environment_that_is_not_one_of_tokens_is_refused(small):
    with pytest.raises(ValueError, match="the environment is not one of tokens"):
        rlx.train(pairs_tokens, small, rlx.envs.make("CartPole-v1"), jax.random.key(0))
