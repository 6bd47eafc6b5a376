"""Group Relative Policy Optimization of a transformer that writes answers, token by token.

    python algos/grpo_tokens.py --env Reverse

Reference: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300; its relatives are settings of Config, see rlx.relatives.

Axes: T tokens of an answer, P of a prompt, L of both, N groups, G members of a group, B minibatch of answers.

grpo.py with another policy: a step is a token, a group has the same prompt, and the policy reads all tokens before the
one that it writes. Writing keeps what has been read in a cache; the loss reads whole answers at once.

The first policy is taught on solved problems, `warm_start_examples` of them, until the probability that it gives to the
solutions of fresh problems is `warm_start_accuracy` on average, for `warm_start_steps` gradient steps at most (0 for
none). It belongs to `init`, and its tokens are not counted as steps; how good it got is the return of the first update.

Deviations from the paper:
- The default has the advantage of Dr. GRPO and the mean over all tokens of DAPO. Ratios are clipped at 0.8 and 1.28, as
  in DAPO, in all `VARIANTS` but those that name their own; otherwise `VARIANTS["grpo"]` is the paper's.
- Rewards come with the last token. "process", which is for rewards of every step, gives later tokens more then.
- The KL from the reference is in closed form. The reference is the first policy, or, with a `reference_interval`, the
  policy of some updates ago.
- Groups may, to compare, have a prompt a member (`same_start`).
- Minibatches are of whole answers. The learning rate falls linearly to 0 over the run (`anneal_learning_rate`), and the
  norm of the gradient is clipped.

The step count includes padding after an answer's end; `alive_steps` excludes it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx import groups
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.distributions import Categorical
from rlx.objectives import Elements, approx_kl, clipped_surrogate, kl_adapted
from rlx.pytree import pytree, static, traced
from rlx.relatives import BASELINES, CREDITS, RATIOS, SCALES, WEIGHTS
from rlx.relatives import VARIANTS as VARIANTS
from rlx.rollout import check_divides, check_horizon, episode_metrics, episodes, gather, minibatches, reset
from rlx.tokens import Transformer, check_tokens, examples, teach
from rlx.train import training_progress


@pytree
class Config:
    total_steps: int = static(500_000)  # tokens of the whole run, rounded up to whole updates
    num_groups: int = static(16)  # N
    group_size: int = static(8, at_least=2)  # G
    num_steps: int = static(8)  # T, has to hold a whole answer
    num_epochs: int = static(2)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2e-4, at_least=0)
    anneal_learning_rate: bool = True
    adapt_learning_rate: bool = static(False)  # by the KL of an update's last epoch, towards its target
    target_kl: float = traced(0.01, above=0)
    gamma: float = traced(1.0, at_least=0, at_most=1)
    clip: float = traced(0.2, above=0)
    clip_high: float = traced(0.28, above=0)
    kl_coef: float = traced(0.0, at_least=0)
    entropy_coef: float = traced(0.0, at_least=0)
    max_grad_norm: float = traced(1.0, above=0)
    adam_epsilon: float = traced(1e-8, above=0)
    reference_interval: int = traced(1_000_000, at_least=1)  # updates
    credit: str = static("outcome", one_of=CREDITS)  # what a token has to do with
    baseline: str = static("mean", one_of=BASELINES)  # what is taken off it
    scale: str = static("none", one_of=SCALES)  # what it is divided by, the spread of the outcomes
    weights: str = static("step", one_of=WEIGHTS)  # what counts the same in the mean
    ratio: str = static("step", one_of=RATIOS)  # what the ratio of probabilities is of
    drop_degenerate: bool = static(False)  # leave groups out that have nothing to tell, and count the others for them
    same_start: bool = static(True)
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
    params: dict  # of the actor
    reference: dict  # its params at first, or some updates ago
    opt_state: optax.OptState
    learning_rate: jax.Array | None  # before annealing, where it is adapted
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    action: jax.Array
    log_prob: jax.Array


@pytree
class Batch:
    tokens: jax.Array  # prompts and answers, [B, L]
    action: jax.Array
    log_prob: jax.Array
    reference: object  # the distribution that the reference policy has there
    advantage: jax.Array
    weight: jax.Array  # of the token in the mean over all answers
    alive: jax.Array


def networks(config, env):
    """The actor."""
    space = env.observation_space
    return Transformer(space.n, *space.shape, env.action_space.n, config.width, config.num_layers, config.num_heads)


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_tokens(env, config.num_steps, taught=config.warm_start_examples and config.warm_start_steps)
    check_horizon(env, config.num_steps)
    check_divides(config.num_episodes, config.num_minibatches, "num_groups * group_size")


def init(config, env, key):
    check(config, env)
    key, params_key, teach_key, env_key = jax.random.split(key, 4)
    tokens, network = env.reset(env_key).obs[None], networks(config, env)
    params = taught(config, env, {"actor": network.init(params_key, tokens, network.cache(1), 0)}, teach_key)
    return State(
        params=params,
        reference=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        learning_rate=jnp.float32(config.learning_rate) if config.adapt_learning_rate else None,
        num_updates=jnp.int32(0),
        key=key,
    )


def taught(config, env, params, key):
    """The params after the warm start."""
    if not (config.warm_start_examples and config.warm_start_steps):
        return params
    pool_key, fresh_key, teach_key = jax.random.split(key, 3)
    pool, fresh = (examples(env, key, num) for key, num in ((pool_key, config.warm_start_examples), (fresh_key, 512)))

    def log_prob(params, tokens, answer):
        answer = answer[:, : config.num_steps]
        return jnp.where(answer > 0, answers(config, env, params, tokens).log_prob(answer - 1), 0.0).sum(axis=-1)

    loss = lambda params, *batch: -log_prob(params, *batch).mean()
    learned = lambda params: jnp.exp(log_prob(params, *fresh)).mean() >= config.warm_start_accuracy
    sizes = {"batch_size": config.warm_start_batch, "max_steps": config.warm_start_steps}
    optimize = optimizer(config, config.warm_start_learning_rate)
    return teach(loss, learned, params, optimize, pool, teach_key, **sizes)


def answers(config, env, params, tokens):
    """The policy at every token of the answers, `[B, T]`, of whole sequences `[B, L]`."""
    network, first = networks(config, env), env.environment.prompt_size - 1
    logits, _ = network.apply(params["actor"], tokens[:, : first + config.num_steps], network.cache(len(tokens)), 0)
    return Categorical(logits[:, first:])


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N * G, L]`, all of which is read, and what the loss will need of it."""
    num_written = (obs[:, env.environment.prompt_size :] > 0).sum(axis=-1)
    logits = answers(config, env, state.params, obs).logits
    pi = Categorical(jnp.take_along_axis(logits, num_written[:, None, None], axis=1, mode="clip")[:, 0])
    action = pi.mode() if deterministic else pi.sample(key)
    return action.astype(env.action_space.dtype), Recorded(action, pi.log_prob(action))


def objective(config, elements, progress):
    """Policy loss of each step; `progress` through the run is in [0, 1]."""
    return clipped_surrogate(elements.log_ratio, elements.advantage, config.clip, config.clip_high)


def loss(params, config, env, batch, progress, objective=objective):
    """Loss of one minibatch of answers `[B, T]`, and its metrics."""
    pi = answers(config, env, params, batch.tokens)
    log_prob = pi.log_prob(batch.action)
    log_ratio_step = jnp.where(batch.alive, log_prob - batch.log_prob, 0.0)
    log_ratio = RATIOS[config.ratio](log_ratio_step, batch.alive)
    mean = lambda x: config.num_minibatches * (batch.weight * jnp.where(batch.alive, x, 0.0)).sum()
    elements = Elements(log_ratio, batch.advantage, log_prob, batch.alive)
    policy_loss = mean(objective(config, elements, progress))
    entropy, kl = mean(pi.entropy()), mean(pi.kl(batch.reference))
    return policy_loss + config.kl_coef * kl - config.entropy_coef * entropy, {
        "policy_loss": policy_loss,
        "entropy": entropy,
        "kl_reference": kl,
        "approx_kl": mean(approx_kl(log_ratio_step)),
        "clip_fraction": mean((jnp.expm1(log_ratio) < -config.clip) | (jnp.expm1(log_ratio) > config.clip_high)),
    }


def starts(config, env, state, key):
    """The states `[N * G]` that the answers of an update start from, group by group."""
    if not config.same_start:
        return reset(env, key, config.num_episodes)
    return groups.clone(reset(env, key, config.num_groups), config.group_size)


def write(config, env, state, start, key):
    """Plays answers from the start states; the policy keeps what it has read in a cache. Returns as `episodes` does."""
    network, last = networks(config, env), env.environment.prompt_size - 1
    cache = network.cache(len(start.obs))
    if last:  # all of the prompt but its last token, which is read when the first of the answer is written
        _, cache = network.apply(state.params["actor"], start.obs[:, :last], cache, 0)

    def policy(obs, key, memory):
        cache, place = memory
        token = jax.lax.dynamic_slice_in_dim(obs, place, 1, axis=1)
        logits, cache = network.apply(state.params["actor"], token, cache, place)
        pi = Categorical(logits[:, 0])
        action = pi.sample(key)
        return action, Recorded(action, pi.log_prob(action)), (cache, place + 1)

    return episodes(env, policy, start, key, config.num_steps, memory=(cache, last))


def advantages(config, reward, alive):
    """Of every step, `[N, G, T]`, whether a group has nothing to tell, `[N]`, and the weight of every step."""
    credit = CREDITS[config.credit](reward, alive, config.gamma)
    scale = SCALES[config.scale](groups.outcomes(reward, alive, config.gamma)[..., 0])
    advantage = (credit - BASELINES[config.baseline](credit, alive.sum(axis=-1))) / scale[..., None]
    degenerate = groups.agree(credit)
    counted = alive & ~degenerate[:, None, None] if config.drop_degenerate else alive
    return jnp.where(alive, advantage, 0.0), degenerate, WEIGHTS[config.weights](counted)


def update(config, env, state, *, objective: Callable = objective):
    """Groups of episodes and the epochs of gradient steps on them; `objective` may be any callable pytree like it."""
    key, start_key, write_key, shuffle_key = jax.random.split(state.key, 4)
    end, traj, alive = write(config, env, state, starts(config, env, state, start_key), write_key)
    grouped = partial(groups.by_group, group_size=config.group_size)
    advantage, degenerate, weight = advantages(config, grouped(traj.reward), grouped(alive))

    recorded, alive_by_episode = jax.tree.map(jnp.transpose, (traj.recorded, alive))  # [T, N * G] as [N * G, T]
    reference = answers(config, env, state.reference, end.obs)
    flat = lambda x: x.reshape(config.num_episodes, -1)
    data = Batch(
        end.obs, recorded.action, recorded.log_prob, reference, flat(advantage), flat(weight), alive_by_episode
    )
    progress = training_progress(config, state)
    rate = state.learning_rate if config.adapt_learning_rate else config.learning_rate
    learning_rate = rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, batch):
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, config, env, batch, progress, objective)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(data, index))

    indices = minibatches(shuffle_key, config.num_episodes, config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    rate = kl_adapted(rate, metrics["approx_kl"][-1].mean(), config.target_kl) if config.adapt_learning_rate else None
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "degenerate_fraction": degenerate.mean(),
        "alive_steps": alive.sum(),
        "learning_rate": learning_rate,
    }
    fresh = (state.num_updates + 1) % config.reference_interval == 0
    reference = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), params, state.reference)
    return State(params, reference, opt_state, rate, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
