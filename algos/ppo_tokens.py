"""Proximal Policy Optimization of a transformer that writes answers, with another one that values them.

    python algos/ppo_tokens.py --env Reverse

Reference: Schulman et al. 2017, arXiv:1707.06347, for sequences: Stiennon et al. 2020, arXiv:2009.01325.

Axes: T tokens of an answer, P of a prompt, L of both, N groups, G members of a group, B minibatch of answers.

grpo_tokens.py with a critic: a token is compared with what was expected before it, not with other answers. The critic
is a transformer of its own, and reads what the actor reads. A group, answers to one prompt, is only a way to draw them.

| variant | what it adds |
|---|---|
| vapo | the critic first, with whole returns as targets; traces of the actor that grow with the answer |
| ppo_max | rewards over their spread, clipped; the KL from the first policy as a reward of tokens; the critic first |
| t_ppo | answers are cut, and what is missing is what the critic expects; the critic learns from finished ones only |

Deviations from the papers:
- T-PPO goes on with a cut answer in the next update; here it is dropped.
- Of VAPO the likelihood of right answers is left out. Of PPO-max, what it does about the gradients' norm and the model.
- The numbers of the variants are ours, but for the clip of 1.28.
- A minibatch is of whole answers. Learning rates fall linearly to 0, and the norm of the gradient is clipped.

The step count includes padding after an answer's end; `alive_steps` excludes it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx import groups
from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm
from rlx.descent import descend
from rlx.normalize import Statistics, statistics, update_statistics
from rlx.objectives import Elements, approx_kl, clipped_surrogate, clipped_value_loss, explained_variance
from rlx.pytree import pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, minibatches, reset
from rlx.tokens import Transformer, Written, check_tokens, read, read_last, warm_start, write
from rlx.train import total_updates, training_progress

VARIANTS = {
    "vapo": {"critic_warmup": 5, "critic_lambda": 1.0, "adaptive_lambda": 0.5, "clip_high": 0.28},
    "ppo_max": {"critic_warmup": 5, "normalize_reward": True, "reward_clip": 5.0, "reward_kl_coef": 0.05},
    "t_ppo": {"num_steps": 4, "value_finished": True},
}


@pytree
class Config:
    total_steps: int = static(500_000)  # tokens of the whole run, rounded up to whole updates
    num_groups: int = static(128)  # N
    group_size: int = static(1, at_least=1)  # G
    num_steps: int = static(8)  # T; what is not finished then is cut
    num_epochs: int = static(2)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2e-4, at_least=0)
    critic_learning_rate: float = traced(1e-3, at_least=0)
    anneal_learning_rate: bool = True
    critic_warmup: int = traced(0, at_least=0)  # updates at the beginning that leave the actor's weights as they are
    gamma: float = traced(1.0, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    critic_lambda: float = traced(0.95, at_least=0, at_most=1)  # of the critic's targets
    adaptive_lambda: float = traced(0.0, at_least=0)  # alpha of a lambda of 1 - 1 / (alpha L); 0: gae_lambda
    normalize_advantage: bool = True
    clip: float = traced(0.2, above=0)
    clip_high: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
    value_clip: float = traced(jnp.inf, above=0)
    value_finished: bool = static(False)  # the critic learns from finished answers only
    entropy_coef: float = traced(0.0, at_least=0)
    kl_coef: float = traced(0.0, at_least=0)  # of the KL from the first policy, in the loss
    reward_kl_coef: float = traced(0.0, at_least=0)  # of its log-ratio, as a reward of each token
    normalize_reward: bool = static(False)  # over the spread of returns
    reward_clip: float = traced(jnp.inf, above=0)
    max_grad_norm: float = traced(1.0, above=0)
    adam_epsilon: float = traced(1e-8, above=0)
    warm_start_examples: int = static(4096, at_least=0)  # solved problems to be taught on
    warm_start_batch: int = static(128, at_least=1)  # of them, for a gradient step
    warm_start_steps: int = static(1000, at_least=0)  # gradient steps, at most, rounded up to tens
    warm_start_accuracy: float = traced(0.25, at_least=0, at_most=1)  # ends it
    warm_start_learning_rate: float = traced(1e-3, at_least=0)
    width: int = static(64, at_least=1)
    num_layers: int = static(2, at_least=1)
    num_heads: int = static(4, at_least=1)

    @property
    def num_episodes(self) -> int:
        return self.num_groups * self.group_size

    @property
    def steps_per_update(self) -> int:
        return self.num_episodes * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    reference: dict  # the first actor's
    opt_state: optax.OptState
    return_stats: Statistics | None  # of returns, where rewards are divided by their spread
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    tokens: jax.Array  # prompts and answers, [B, L]
    action: jax.Array
    log_prob: jax.Array
    reference: object  # the distribution that the first policy has there
    value: jax.Array
    advantage: jax.Array
    target: jax.Array  # of the critic
    alive: jax.Array
    taught: jax.Array  # what the critic learns from


def networks(config, env):
    """The actor."""
    space = env.observation_space
    return Transformer(space.n, *space.shape, env.action_space.n, config.width, config.num_layers, config.num_heads)


def critic(config, env):
    """A transformer of the same size with one number for each token."""
    return networks(config, env).clone(num_outputs=1)


def optimizer(config, learning_rate):
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip_by_global_norm(config.max_grad_norm), adam))  # one vector: few operations


def optimizer_of_both(config, learning_rate, critic_learning_rate):
    """Actor and critic have a rate and a clip each."""
    of = {"actor": optimizer(config, learning_rate), "critic": optimizer(config, critic_learning_rate)}
    return optax.partition(of, {name: name for name in of})


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_tokens(env, config.num_steps, taught=config.warm_start_examples and config.warm_start_steps)
    check_divides(config.num_episodes, config.num_minibatches, "num_groups * group_size")
    if isinstance(config.critic_warmup, int) and config.critic_warmup >= total_updates(config):
        raise ValueError(f"critic_warmup = {config.critic_warmup}: the run is as short, the actor would never learn")


def init(config, env, key):
    check(config, env)
    key, params_key, teach_key, env_key = jax.random.split(key, 4)
    key, critic_key = jax.random.split(key)
    tokens, actor = env.reset(env_key).obs[None], networks(config, env)
    teacher = optimizer(config, config.warm_start_learning_rate)
    params = {
        "actor": warm_start(actor, actor.init(params_key, tokens), env, teach_key, teacher, config),
        "critic": critic(config, env).init(critic_key, tokens),
    }
    return State(
        params=params,
        reference={"actor": params["actor"]},
        opt_state=optimizer_of_both(config, config.learning_rate, config.critic_learning_rate).init(params),
        return_stats=statistics() if config.normalize_reward else None,
        num_updates=jnp.int32(0),
        key=key,
    )


def answers(config, env, params, tokens, copies=1):
    """The policy at every token of the answers, `[B, T]`, of whole sequences `[B, L]`; `copies` share a prompt."""
    return read(networks(config, env), params["actor"], env, tokens, config.num_steps, copies)


def expected(config, env, params, tokens):
    """What is expected before every token of the answers, and after the last, `[B, T + 1]`."""
    return read(critic(config, env), params["critic"], env, tokens, config.num_steps + 1).logits[..., 0]


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N * G, L]`, all of which is read, and what the loss will need of it."""
    pi = read_last(networks(config, env), state.params["actor"], env, obs)
    action = pi.mode() if deterministic else pi.sample(key)
    return action.astype(env.action_space.dtype), Written(action, pi.log_prob(action))


def objective(config, elements, progress):
    """Policy loss of each step; `progress` through the run is in [0, 1]."""
    return clipped_surrogate(elements.log_ratio, elements.advantage, config.clip, config.clip_high)


def loss(params, config, env, batch, progress, objective=objective):
    """Loss of one minibatch of answers `[B, T]`, and its metrics."""
    pi, value = answers(config, env, params, batch.tokens), expected(config, env, params, batch.tokens)[:, :-1]
    log_prob = pi.log_prob(batch.action)
    log_ratio = jnp.where(batch.alive, log_prob - batch.log_prob, 0.0)
    mean = lambda x, where=batch.alive: jnp.where(where, x, 0.0).sum() / jnp.maximum(where.sum(), 1)
    standardized = standardize(batch.advantage, where=batch.alive)
    advantage = jnp.where(config.normalize_advantage, standardized, batch.advantage)
    policy_loss = mean(objective(config, Elements(log_ratio, advantage, log_prob, batch.alive), progress))
    value_loss = mean(clipped_value_loss(value, batch.value, batch.target, config.value_clip), batch.taught)
    entropy, kl = mean(pi.entropy()), mean(pi.kl(batch.reference))
    total = policy_loss + config.value_coef * value_loss + config.kl_coef * kl - config.entropy_coef * entropy
    return total, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl_reference": kl,
        "approx_kl": mean(approx_kl(log_ratio)),
        "clip_fraction": mean((jnp.expm1(log_ratio) < -config.clip) | (jnp.expm1(log_ratio) > config.clip_high)),
    }


def starts(config, env, state, key):
    """The states `[N * G]` that the answers of an update start from, group by group."""
    return groups.clone(reset(env, key, config.num_groups), config.group_size)


def advantages(config, env, state, end, traj, alive, reference):
    """What there is to learn from answers, `[N * G, T]`, and the statistics of returns after it."""
    value = expected(config, env, state.params, end.obs).T
    log_ratio = traj.recorded.log_prob - reference.log_prob(traj.recorded.action.T).T
    stats, reward = state.return_stats, traj.reward
    if config.normalize_reward:
        returns = groups.returns_to_go(reward.T, alive.T, config.gamma).T
        stats = update_statistics(stats, returns, alive)
        reward = reward * jax.lax.rsqrt(stats.variance + 1e-8)
    reward = jnp.clip(reward, -config.reward_clip, config.reward_clip)
    reward = jnp.where(alive, reward - config.reward_kl_coef * log_ratio, 0.0)
    done = traj.done | ~alive
    length = jnp.maximum(alive.sum(axis=0), 1)
    adaptive = jnp.clip(1.0 - 1.0 / jnp.maximum(config.adaptive_lambda * length, 1e-6), 0.0, 1.0)
    trace = jnp.where(config.adaptive_lambda > 0, adaptive, config.gae_lambda)
    of = partial(gae, reward, value[:-1], value[1:], traj.terminated, done, config.gamma)
    finished = traj.done.any(axis=0) if config.value_finished else jnp.ones(alive.shape[1], bool)
    found = (value[:-1], of(trace), of(config.critic_lambda) + value[:-1], alive, alive & finished)
    return jax.tree.map(jnp.transpose, found), stats


def update(config, env, state, *, objective: Callable = objective):
    """Answers and the epochs of gradient steps on them; `objective` may be any callable pytree of its signature."""
    key, start_key, write_key, shuffle_key = jax.random.split(state.key, 4)
    actor, start, same = networks(config, env), starts(config, env, state, start_key), {"copies": config.group_size}
    end, traj, alive = write(actor, state.params["actor"], env, start, write_key, config.num_steps, **same)
    reference = answers(config, env, state.reference, end.obs, config.group_size)
    found, stats = advantages(config, env, state, end, traj, alive, reference)
    data = Batch(end.obs, traj.recorded.action.T, traj.recorded.log_prob.T, reference, *found)
    progress = training_progress(config, state)
    anneal = jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    learning_rate = anneal * config.learning_rate
    of_batch = lambda params, batch: loss(params, config, env, batch, progress, objective)
    indices = minibatches(shuffle_key, config.num_episodes, config.num_minibatches, config.num_epochs)
    actor_rate = jnp.where(state.num_updates < config.critic_warmup, 0.0, learning_rate)
    optimize = optimizer_of_both(config, actor_rate, anneal * config.critic_learning_rate)
    params, opt_state, metrics = descend(of_batch, optimize, state.params, state.opt_state, data, indices)
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "explained_variance": explained_variance(data.value, data.target),
        "alive_steps": alive.sum(),
        "learning_rate": learning_rate,
    }
    return State(params, state.reference, opt_state, stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
