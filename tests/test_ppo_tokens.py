"""PPO of a transformer with a critic: its advantages and targets, cut answers, its loss, the critic first, resuming."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import replace, stack
from rlx.algos import grpo_tokens, ppo_tokens
from rlx.distributions import Categorical
from rlx.env import with_params
from rlx.normalize import statistics
from rlx.pytree import is_static
from rlx.tokens import write

EXACT = True  # bits are compared

T = 4
SIZES = {"num_groups": 6, "group_size": 2, "num_steps": T, "num_minibatches": 2}
SIZES |= {"width": 8, "num_heads": 2, "num_layers": 1}
TEACH = {"warm_start_examples": 16, "warm_start_batch": 8, "warm_start_steps": 20}


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
    return ppo_tokens.Config(total_steps=3 * 12 * T, learning_rate=1e-2, critic_learning_rate=1e-2, **SIZES, **TEACH)


@pytest.fixture(scope="module")
def init():
    return jax.jit(ppo_tokens.init)


@pytest.fixture(scope="module")
def trained(small, reverse):
    with jax.debug_key_reuse(True):  # raises where a key is used twice
        return rlx.train(ppo_tokens, small, reverse, jax.random.key(0))


@pytest.fixture(scope="module")
def written(small, countdown):
    """Answers to problems of Countdown, some of which end early, and weights far from where they start."""
    state = ppo_tokens.init(replace(small, warm_start_steps=0), countdown, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), state.params)
    head = params["actor"]["params"]["head"]
    head["bias"] = head["bias"].at[jnp.array([1, 2, 3, 100, 101, 102, 103])].add(8.0)
    state = replace(state, params=params)
    start = ppo_tokens.starts(small, countdown, state, jax.random.key(1))
    network = ppo_tokens.networks(small, countdown)
    played = jax.jit(lambda key: write(network, params["actor"], countdown, start, key, T))(jax.random.key(2))
    return state, *played


def value_at(params, config, env, tokens, num):
    """What the critic says after the prompt and after every token, by reading no more than that."""
    critic, first = ppo_tokens.critic(config, env), env.environment.prompt_size
    return np.stack(
        [np.asarray(critic.apply(params["critic"], tokens[:, : first + t])[0][:, -1, 0]) for t in range(num)]
    )


ADVANTAGES = {
    "default": {},
    "decoupled": {"critic_lambda": 1.0, "gae_lambda": 0.3},
    "adaptive": {"adaptive_lambda": 0.7},
    "kl": {"reward_kl_coef": 0.2},
    "clipped": {"reward_clip": 0.1},
    "discounted": {"gamma": 0.9},
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_and_targets_are_their_equations(small, countdown, written, name):
    state, end, traj, alive = written
    config = replace(small, **ADVANTAGES[name])
    rng = np.random.default_rng(1)
    reward = jnp.asarray(np.where(alive, rng.normal(size=alive.shape), 0.0), jnp.float32)
    traj = replace(traj, reward=reward)
    reference = Categorical(jnp.asarray(rng.normal(size=(12, T, 104)), jnp.float32))
    found, _ = ppo_tokens.advantages(config, countdown, state, end, traj, alive, reference)
    value, advantage, target, counted, taught = map(np.asarray, found)
    seen = value_at(state.params, config, countdown, end.obs, T + 1)
    log_q = np.asarray(jax.nn.log_softmax(reference.logits))
    for i in range(12):
        length = int(alive[:, i].sum())
        action = np.asarray(traj.recorded.action[:, i])
        r = np.clip(np.asarray(reward[:length, i]), -config.reward_clip, config.reward_clip)
        log_ratio = np.array([traj.recorded.log_prob[t, i] - log_q[i, t, action[t]] for t in range(length)])
        r = r - config.reward_kl_coef * log_ratio
        v = [float(seen[t, i]) for t in range(length)] + [0.0 if traj.terminated[length - 1, i] else seen[length, i]]
        lam = max(0.0, 1 - 1 / (0.7 * length)) if name == "adaptive" else config.gae_lambda

        def estimate(lam, t, r=r, v=v, length=length):
            delta = [r[k] + config.gamma * v[k + 1] - v[k] for k in range(length)]
            return sum((config.gamma * lam) ** (k - t) * delta[k] for k in range(t, length))

        for t in range(length):
            np.testing.assert_allclose(value[i, t], v[t], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(advantage[i, t], estimate(lam, t), rtol=1e-3, atol=1e-3)
            wanted = estimate(config.critic_lambda, t) + v[t]
            np.testing.assert_allclose(target[i, t], wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(counted, alive.T)
    np.testing.assert_array_equal(taught, alive.T)


def test_answers_that_are_cut_are_worth_what_the_critic_expects(small, reverse, init):
    config = replace(small, num_steps=2, warm_start_steps=0)
    state = init(config, reverse, jax.random.key(0))
    start = ppo_tokens.starts(config, reverse, state, jax.random.key(1))
    network = ppo_tokens.networks(config, reverse)
    end, traj, alive = write(network, state.params["actor"], reverse, start, jax.random.key(2), 2)
    assert alive.all()
    assert not traj.done.any()
    reference = ppo_tokens.answers(config, reverse, state.reference, end.obs)
    of = lambda config: ppo_tokens.advantages(config, reverse, state, end, traj, alive, reference)[0]
    seen = value_at(state.params, config, reverse, end.obs, 3)
    np.testing.assert_allclose(of(config)[2][:, 1], seen[2], rtol=1e-3, atol=1e-4)  # nothing is paid before the end
    assert of(config)[4].all()
    assert not of(replace(config, value_finished=True))[4].any()


def test_rewards_are_divided_by_the_spread_of_returns_so_far(small, countdown, written):
    state, end, traj, alive = written
    config = replace(small, normalize_reward=True, gamma=0.9)
    reward = jnp.where(alive, jnp.arange(1.0, 13.0), 0.0)
    state = replace(state, return_stats=statistics())
    reference = ppo_tokens.answers(config, countdown, state.reference, end.obs)
    call = lambda traj, stats: ppo_tokens.advantages(
        config, countdown, replace(state, return_stats=stats), end, traj, alive, reference
    )
    found, stats = call(replace(traj, reward=reward), statistics())
    to_go = [[sum(0.9 ** (k - t) * reward[k, i] for k in range(t, T)) for i in range(12)] for t in range(T)]
    spread = np.asarray(to_go)[np.asarray(alive)].std()
    np.testing.assert_allclose(stats.variance**0.5, spread, rtol=1e-3)
    plain = ppo_tokens.advantages(
        replace(config, normalize_reward=False),
        countdown,
        state,
        end,
        replace(traj, reward=reward / spread),
        alive,
        reference,
    )[0]
    np.testing.assert_allclose(found[1], plain[1], rtol=1e-3, atol=1e-3)


def softmax(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_the_loss_is_its_equation(small, countdown, written):
    state, end, traj, alive = written
    config = replace(small, clip=0.02, clip_high=0.03, kl_coef=0.7, entropy_coef=0.3, value_coef=0.4, value_clip=0.05)
    rng = np.random.default_rng(1)
    value, advantage, target = rng.normal(size=(3, 12, T)).astype(np.float32)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.02, x.shape).astype(np.float32), state.params)
    reference = Categorical(jnp.asarray(rng.normal(size=(12, T, 104)), jnp.float32))
    recorded = jax.tree.map(jnp.transpose, traj.recorded)
    taught = np.asarray(alive.T) & (np.arange(12) % 2 == 0)[:, None]
    batch = ppo_tokens.Batch(
        end.obs, recorded.action, recorded.log_prob, reference, value, advantage, target, alive.T, taught
    )
    found, parts = jax.jit(ppo_tokens.loss)(params, config, countdown, batch, 0.0)
    p = softmax(np.asarray(ppo_tokens.answers(config, countdown, params, end.obs).logits, np.float64))
    q = softmax(np.asarray(reference.logits, np.float64))
    new_value = value_at(params, config, countdown, end.obs, T).T
    counted = [(i, t) for i in range(12) for t in range(T) if alive[t, i]]
    a = np.array([advantage[i, t] for i, t in counted])
    a = (a - a.mean()) / (a.std() + 1e-8)
    total = {"policy_loss": 0.0, "entropy": 0.0, "kl_reference": 0.0}
    for (i, t), own in zip(counted, a, strict=True):
        rho = np.exp(np.log(p[i, t, recorded.action[i, t]]) - float(recorded.log_prob[i, t]))
        total["policy_loss"] -= min(rho * own, np.clip(rho, 0.98, 1.03) * own) / len(counted)
        total["entropy"] -= (p[i, t] * np.log(p[i, t])).sum() / len(counted)
        total["kl_reference"] += (p[i, t] * np.log(p[i, t] / q[i, t])).sum() / len(counted)
    errors = []
    for i, t in (place for place in counted if taught[place]):
        clipped = value[i, t] + np.clip(new_value[i, t] - value[i, t], -0.05, 0.05)
        errors.append(0.5 * max((new_value[i, t] - target[i, t]) ** 2, (clipped - target[i, t]) ** 2))
    total["value_loss"] = np.mean(errors)
    for name, wanted in total.items():
        np.testing.assert_allclose(parts[name], wanted, rtol=1e-3, atol=1e-4, err_msg=name)
    expected = total["policy_loss"] + 0.4 * total["value_loss"] + 0.7 * total["kl_reference"] - 0.3 * total["entropy"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_what_it_shares_with_grpo_tokens_is_the_same():
    import inspect

    for name in ("networks", "optimizer", "answers", "act", "objective"):
        assert inspect.getsource(getattr(ppo_tokens, name)) == inspect.getsource(getattr(grpo_tokens, name)), name


def test_the_first_policy_is_that_of_grpo_tokens(small, reverse, init):
    names = {f.name for f in dataclasses.fields(grpo_tokens.Config)}
    values = {f.name: getattr(small, f.name) for f in FIELDS if f.name in names}
    other = jax.jit(grpo_tokens.init)(grpo_tokens.Config(**values), reverse, jax.random.key(0))
    first = init(small, reverse, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first.params["actor"], other.params["actor"])


def test_the_critic_learns_first(small, reverse, init):
    config = replace(small, critic_warmup=1)
    first = init(config, reverse, jax.random.key(0))
    update = jax.jit(ppo_tokens.update)
    second, _ = update(config, reverse, first)
    jax.tree.map(np.testing.assert_array_equal, second.params["actor"], first.params["actor"])
    assert np.abs(ravel_pytree(second.params["critic"])[0] - ravel_pytree(first.params["critic"])[0]).max() > 1e-3
    third, _ = update(config, reverse, second)
    assert np.abs(ravel_pytree(third.params["actor"])[0] - ravel_pytree(first.params["actor"])[0]).max() > 1e-3


@pytest.mark.more
def test_it_learns_what_the_warm_start_did_not_teach():
    env = rlx.envs.make("ModularAddition", max_modulus=5)
    config = ppo_tokens.Config(
        total_steps=320 * 256,
        num_groups=256,
        num_steps=1,
        width=16,
        learning_rate=1e-3,
        entropy_coef=0.1,
        warm_start_examples=4,
        warm_start_steps=50,
    )
    state, metrics = rlx.train(ppo_tokens, config, env, jax.random.key(0))
    assert metrics["episode_return"][0] < 0.5
    # There are 25 problems: one whose answer is never tried is 4 % of them.
    assert rlx.evaluate(ppo_tokens, config, env, state, jax.random.key(1), num_episodes=200).returns.mean() > 0.9


def bits(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.more
def test_resume_is_bitwise(small, reverse, init, trained):
    state, first = rlx.resume(ppo_tokens, small, reverse, init(small, reverse, jax.random.key(0)), num_updates=2)
    state, rest = rlx.resume(ppo_tokens, small, reverse, state)
    whole = (state, jax.tree.map(lambda *x: jnp.concatenate(x), first, rest))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), whole, trained)


# Another value for every field of the config: a new field needs one too.
CHANGED = {
    "total_steps": 48,
    "num_groups": 12,
    "group_size": 1,
    "num_steps": 2,
    "num_epochs": 1,
    "num_minibatches": 4,
    "learning_rate": 3e-2,
    "critic_learning_rate": 3e-2,
    "anneal_learning_rate": False,
    "critic_warmup": 1,
    "gamma": 0.5,
    "gae_lambda": 0.2,
    "critic_lambda": 0.2,
    "adaptive_lambda": 0.5,
    "normalize_advantage": False,
    "clip": 0.001,
    "clip_high": 0.001,
    "value_coef": 5.0,
    "value_clip": 1e-3,
    "value_finished": True,
    "entropy_coef": 0.5,
    "kl_coef": 1.0,
    "reward_kl_coef": 1.0,
    "normalize_reward": True,
    "reward_clip": 0.1,
    "max_grad_norm": 0.01,
    "adam_epsilon": 1e-2,
    "warm_start_examples": 8,
    "warm_start_batch": 4,
    "warm_start_steps": 10,
    "warm_start_accuracy": 0.01,
    "warm_start_learning_rate": 3e-2,
    "width": 16,
    "num_layers": 2,
    "num_heads": 4,
}
FIELDS = dataclasses.fields(ppo_tokens.Config)


@pytest.mark.more
def test_every_traced_config_field_changes_the_weights(small, reverse, trained):
    base = replace(small, warm_start_steps=100, warm_start_examples=256, warm_start_batch=32)
    names = [f.name for f in FIELDS if not is_static(f)]
    configs = stack([base, *(replace(base, **{name: CHANGED[name]}) for name in names)])
    states, _ = jax.vmap(partial(rlx.train, ppo_tokens), (0, None, None))(configs, reverse, jax.random.key(0))
    lanes = jax.vmap(lambda params: ravel_pytree(params)[0])(states.params)
    for name, lane in zip(names, lanes[1:], strict=True):
        assert np.abs(lane - lanes[0]).max() > 1e-4, name


@pytest.fixture(scope="module")
def program(reverse):
    """What a config becomes before it is compiled."""

    @cache
    def text(config):
        start = partial(ppo_tokens.init, config, reverse)
        run = lambda state, key: (ppo_tokens.update(config, reverse, state), start(key))
        key = jax.random.key(0)
        return jax.jit(run).lower(jax.eval_shape(start, key), key).as_text()

    return text


@pytest.mark.more
@pytest.mark.parametrize("name", [f.name for f in FIELDS if is_static(f)])
def test_every_static_config_field_changes_the_program(small, program, name):
    assert getattr(small, name) != CHANGED[name]
    assert program(replace(small, **{name: CHANGED[name]})) != program(small)


BAD = {
    "num_steps = 5: there is room for 4 tokens; use at most num_steps = 4": {"num_steps": 5},
    "num_groups \\* group_size = 12 is not a multiple of num_minibatches = 5": {"num_minibatches": 5},
    "critic_warmup = 3: the run is as short": {"critic_warmup": 3},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_settings_are_refused_before_anything_is_compiled(small, reverse, message):
    with pytest.raises(ValueError, match=message):
        rlx.train(ppo_tokens, replace(small, **BAD[message]), reverse, jax.random.key(0))


@pytest.mark.parametrize("variant", ppo_tokens.VARIANTS)
def test_variants_are_updates(small, reverse, variant):
    config = replace(small, **ppo_tokens.VARIANTS[variant] | {"critic_warmup": 1, "num_steps": 2})
    state = jax.eval_shape(ppo_tokens.init, config, reverse, jax.random.key(0))
    new, metrics = jax.eval_shape(ppo_tokens.update, config, reverse, state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert metrics["explained_variance"].shape == ()
