"""GRPO of answers that a judge pays, who goes on learning beside the policy: Cooper.

Reference: Cooper, arXiv:2508.05613; the authors' code, ZJU-REAL/Cooper at 44679eb.

grpo_tokens.py in an environment whose reward is the judge's. After each update the policy answers half as many
problems, whose grades are known. Its right answers are what the judge is to prefer, to the same with a token changed.

Deviations from the paper:
- The judge is a transformer like the policy's, taught at first on solved problems beside the same with a token changed.
- A wrong answer is a right one with a token changed at random; there a language model rewrites it.
- What is written for the judge alone counts as no step.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rlx
from rlx.algos import grpo_tokens
from rlx.around import rewarded
from rlx.judges import Verdict, one_changed, preference_loss, scores
from rlx.presets import configure, settings
from rlx.pytree import pytree, replace, static, traced
from rlx.relatives import VARIANTS
from rlx.tokens import Transformer, examples, teach, write


@pytree
class Config(grpo_tokens.Config):
    judge_steps: int = static(4, at_least=0)  # gradient steps of the judge after each update; 0: it stays as it was
    judge_examples: int = static(4096, at_least=1)  # solved problems that it is taught on at first
    judge_teaching: int = static(1500, at_least=0)  # gradient steps of that
    judge_learning_rate: float = traced(3e-5, at_least=0)
    teaching_rate: float = traced(3e-4, at_least=0)  # of the judge's first steps
    own_wrong: bool = static(False)  # the policy's own wrong answers in the place of right ones with a token changed


@pytree
class State:
    policy: grpo_tokens.State
    judge: dict
    opt_state: optax.OptState
    num_updates: jax.Array
    key: jax.Array


def network(config, env):
    """The judge's."""
    space = env.observation_space
    return Transformer(space.n, *space.shape, 1, config.width, config.num_layers, config.num_heads)


def optimizer(learning_rate):
    return optax.adam(learning_rate)


def spoiled(env, key, tokens):
    """Whole sequences `[B, L]` whose answers have one token changed."""
    begin, num = env.environment.prompt_size, env.action_space.n
    answers = jax.vmap(one_changed, (0, 0, None))(jax.random.split(key, len(tokens)), tokens[:, begin:], num)
    return jnp.concatenate([tokens[:, :begin], answers], axis=1)


def own_wrong(config, key, tokens, right, otherwise):
    """For each sequence `[B, L]` a wrong one of its group, at random, and `otherwise` where all of it are right."""
    by_group = tokens.reshape(-1, config.group_size, tokens.shape[-1])
    wrong = ~right.reshape(-1, config.group_size)
    shape = config.group_size, len(wrong)
    which = jax.random.categorical(key, jnp.where(wrong, 0.0, -jnp.inf), shape=shape).T  # [N, G]
    found = jnp.take_along_axis(by_group, which[..., None], axis=1).reshape(tokens.shape)
    return jnp.where(jnp.repeat(wrong.any(axis=1), config.group_size)[:, None], found, otherwise)


def judge_loss(config, env, params, right, wrong, weight):
    """The mean over sequences `[B, L]` that count, `weight` `[B]`."""
    score = partial(scores, network(config, env), params)
    return (weight * preference_loss(score(right), score(wrong))).sum() / jnp.maximum(weight.sum(), 1)


def init(config, env, key):
    key, policy_key, params_key, teach_key, example_key, change_key = jax.random.split(key, 6)
    policy = grpo_tokens.init(config, env, policy_key)
    right, _ = examples(env, example_key, config.judge_examples)
    params = network(config, env).init(params_key, right[:1])
    wrong = spoiled(env, change_key, right)
    loss = lambda params, right, wrong: judge_loss(config, env, params, right, wrong, jnp.ones(len(right)))
    how = {"batch_size": config.warm_start_batch, "max_steps": config.judge_teaching}
    teacher, never = optimizer(config.teaching_rate), lambda params: jnp.bool_(False)
    judge = teach(loss, never, params, teacher, (right, wrong), teach_key, **how)
    opt_state = optimizer(config.judge_learning_rate).init(judge)
    return State(policy, judge, opt_state, jnp.int32(0), key)


def act(config, env, state, obs, key, deterministic=False):
    """That of the policy."""
    return grpo_tokens.act(config, env, state.policy, obs, key, deterministic)


def update(config, env, state):
    """An update of the policy in the judge's environment, then the gradient steps of the judge."""
    key, start_key, write_key, change_key = jax.random.split(state.key, 4)
    judged = rewarded(env, Verdict(state.judge, network(config, env)))
    policy, metrics = grpo_tokens.update(config, judged, state.policy)
    fewer = replace(config, num_groups=max(1, config.num_groups // 2))
    start = grpo_tokens.starts(fewer, env, None, start_key)
    actor = grpo_tokens.networks(config, env), policy.params["actor"]
    end, traj, _ = write(*actor, env, start, write_key, config.num_steps, None, config.group_size)
    right = traj.reward.sum(axis=0) == 1.0
    wrong = spoiled(env, change_key, end.obs)
    if config.own_wrong:
        wrong = own_wrong(config, change_key, end.obs, right, wrong)
    told = end.obs, wrong, right.astype(jnp.float32)

    def step(carry, _):
        params, opt_state = carry
        value, grads = jax.value_and_grad(lambda params: judge_loss(config, env, params, *told))(params)
        changes, opt_state = optimizer(config.judge_learning_rate).update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), opt_state), value

    learned = jax.lax.scan(step, (state.judge, state.opt_state), length=config.judge_steps)
    (judge, opt_state), _ = learned
    found = jax.nn.sigmoid(scores(network(config, env), state.judge, end.obs))
    paid_wrong = jnp.where(right, 0.0, found).sum() / jnp.maximum((~right).sum(), 1)
    metrics |= {"right": right.mean(), "paid_wrong": paid_wrong}
    return State(policy, judge, opt_state, state.num_updates + 1, key), metrics


def answered(algorithm, total_steps, **changed):
    """Trains on Sort; measures the share of right answers, and in the end the judge's mean reward of wrong ones."""

    def measured(env, seed):
        own = settings(grpo_tokens, "rlx/Sort") | VARIANTS["grpo"] | {"total_steps": total_steps} | changed
        config = configure(algorithm.Config, own)
        keys = jax.random.split(jax.random.key(seed))
        state, metrics = rlx.train(algorithm, config, env, keys[0])
        returns = rlx.evaluate(algorithm, config, env, state, keys[1], 1024, deterministic=False).returns
        last = metrics.get("paid_wrong", np.zeros(1))[-10:]
        return {"return": (returns == 1.0).mean(), "paid_wrong": np.asarray(last, np.float64).mean()}

    return measured
