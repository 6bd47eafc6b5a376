"""Group Relative Policy Optimization of a transformer that writes answers, token by token.

    python algos/grpo_tokens.py --env Reverse

Reference: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300; its relatives are settings of Config, see rlx.relatives.

Axes: T tokens of an answer, P of a prompt, L of both, N groups, G members of a group, B minibatch of answers.

grpo.py with another policy: a step is a token, a group has the same prompt, and the policy reads all tokens before the
one that it writes. Writing keeps what has been read in a cache; the loss reads whole answers at once.
`init` teaches the first policy on solved problems, see `rlx.tokens.warm_start`; their tokens are not counted as steps.

Deviations from the paper:
- The default has the advantage of Dr. GRPO and the mean over all tokens of DAPO. Ratios are clipped at 0.8 and 1.28, as
  in DAPO, in all `VARIANTS` but those that name their own; otherwise `VARIANTS["grpo"]` is the paper's.
- Rewards come with the last token; "process", which is for rewards of every step, gives later tokens more then.
- The KL from the reference, the first policy or that of some updates ago (`reference_interval`), is in closed form.
- Groups may have a prompt a member (`same_start`), to compare; or stay `together`, so that prompts are read once.
- Problems may be drawn from a pool by how often they were solved (VAS), and bring an earlier success back (`replay`).
- Some groups may be given the first tokens of a right answer (POPE), fewer of problems that are solved more often
  (ours, `graded`), or imitate one (HPT, `gate`). Solved problems may be imitated beside it all (CHORD, `shown`).
- Answers of a group may share their beginnings as a tree (`branches`, with the credit "tree" of SPO).
- Minibatches are of whole answers. The learning rate falls linearly to 0, and the norm of the gradient is clipped.
- Steps include padding after an answer's end; `alive_steps` excludes it, what is given, and what was copied in a tree.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rlx.answering import check_answering
from rlx.clipping import clip_by_global_norm
from rlx.descent import descend
from rlx.facts import gathered
from rlx.imitation import TOKEN_WEIGHTS, before, demonstrated, mixed, with_shown
from rlx.objectives import Elements, approx_kl, clipped_surrogate, kl_adapted
from rlx.pool import SAMPLERS, Pool, chosen, observed, starts, unknown
from rlx.pytree import pytree, replace, static, traced
from rlx.relatives import ADJUSTMENTS, BASELINES, CREDITS, MASKS, RATIOS, SCALES, SHAPES, WEIGHTS, advantages
from rlx.relatives import VARIANTS as VARIANTS
from rlx.rollout import episode_metrics, minibatches
from rlx.successes import none_yet, replayed
from rlx.tokens import Transformer, Written, hints, read, read_last, warm_start, write
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
    shape: str = static("none", one_of=SHAPES)  # what an outcome becomes first, beside the others of its group
    adjust: tuple[str, ...] = static((), one_of=ADJUSTMENTS)  # what an advantage becomes at last
    masks: tuple[str, ...] = static((), one_of=MASKS)  # what is left out of the policy loss
    amount: float = traced(1.0)  # the number of a shape, a credit or an adjustment
    same_start: bool = static(True)
    together: int = static(1, at_least=1)  # answers of a group that minibatches keep together, to read its prompt once
    pool: int = static(0, at_least=0)  # problems that are met again; 0: every problem is a new one
    sampler: str = static("uniform", one_of=SAMPLERS)  # by what problems of the pool are drawn
    sampled_share: float = traced(0.5, at_least=0, at_most=1)  # of the problems; the others are drawn evenly
    pool_memory: float = traced(0.75, at_least=0, at_most=1)  # what earlier answers to a problem count for later
    replay: bool = static(False)  # the last right answer to a problem comes back where a group has none
    given: int = static(0, at_least=0)  # tokens of a right answer that some groups are given, to write what follows
    given_share: float = traced(0.5, at_least=0, at_most=1)  # of the groups
    graded: bool = static(False)  # fewer tokens are given of problems that are solved more often
    gate: int = static(-1, at_least=-1)  # a group with no more answers that are right imitates one that is
    imitation_coef: float = traced(1.0, at_least=0)
    shown: str = static("none", one_of=TOKEN_WEIGHTS)  # what a token of solved problems beside the answers counts
    mix: float = traced(0.1, at_least=0, at_most=1)  # share of these in the loss, after `mix_warmup` of the run
    mix_end: float = traced(0.1, at_least=0, at_most=1)  # and at its end
    mix_warmup: float = traced(0.0, at_least=0, at_most=1)
    branches: tuple[int, ...] = static(())  # of a tree that the answers of a group are, from its root on
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
    pool: Pool | None  # problems that are met again
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    tokens: jax.Array  # prompts and answers, [B, L]
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    weight: jax.Array  # of the token in the policy loss
    even: jax.Array  # in all other means
    alive: jax.Array
    imitated: jax.Array | None = None  # whether it is a right answer in the place of the policy's own, [B]
    shown: jax.Array | None = None  # solved problems beside them, [B, L]
    reference: object = None  # the distribution that the reference policy has there


def networks(config, env):
    """The actor."""
    space = env.observation_space
    return Transformer(space.n, *space.shape, env.action_space.n, config.width, config.num_layers, config.num_heads)


def optimizer(config, learning_rate):
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip_by_global_norm(config.max_grad_norm), adam))  # one vector: few operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_answering(config, env)


def init(config, env, key):
    check(config, env)
    key, params_key, teach_key, env_key = jax.random.split(key, 4)
    tokens, network = env.reset(env_key).obs[None], networks(config, env)
    params = network.init(params_key, tokens, network.cache(1), 0)
    teacher = optimizer(config, config.warm_start_learning_rate)
    params = {"actor": warm_start(network, params, env, teach_key, teacher, config)}
    key, pool_key = jax.random.split(key) if config.pool else (key, None)
    return State(
        params=params,
        reference=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        learning_rate=jnp.float32(config.learning_rate) if config.adapt_learning_rate else None,
        pool=unknown(pool_key, config.pool, none_yet(config, env)) if config.pool else None,
        num_updates=jnp.int32(0),
        key=key,
    )


def answers(config, env, params, tokens, copies=1):
    """The policy at every token of the answers, `[B, T]`, of whole sequences `[B, L]`; `copies` share a prompt."""
    return read(networks(config, env), params["actor"], env, tokens, config.num_steps, copies)


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
    pi = answers(config, env, params, batch.tokens, config.together)
    log_prob = pi.log_prob(batch.action)
    log_ratio_step = jnp.where(batch.alive, log_prob - before(log_prob, batch.log_prob, batch.imitated), 0.0)
    log_ratio = RATIOS[config.ratio](log_ratio_step, batch.alive)
    mean = lambda x, weight=batch.even: config.num_minibatches * (weight * jnp.where(batch.alive, x, 0.0)).sum()
    elements = Elements(log_ratio, batch.advantage, log_prob, batch.alive)
    policy_loss = mean(objective(config, elements, progress), batch.weight)
    entropy, kl = mean(pi.entropy()), mean(pi.kl(batch.reference))
    total = policy_loss + config.kl_coef * kl - config.entropy_coef * entropy
    return mixed(config, env, total, batch.shown, lambda x: answers(config, env, params, x), progress), {
        "policy_loss": policy_loss,
        "entropy": entropy,
        "kl_reference": kl,
        "approx_kl": mean(approx_kl(log_ratio_step)),
        "clip_fraction": mean((jnp.expm1(log_ratio) < -config.clip) | (jnp.expm1(log_ratio) > config.clip_high)),
    }


def update(config, env, state, *, objective: Callable = objective):
    """Groups of episodes and the epochs of gradient steps on them; `objective` may be any callable pytree like it."""
    key, start_key, write_key, shuffle_key = jax.random.split(state.key, 4)
    index = chosen(config, state.pool, start_key) if config.pool else None
    network, start = networks(config, env), starts(config, env, state.pool, start_key, index)
    given = hints(config, env, start, state.pool, index) if config.given else None
    same = config.group_size if config.same_start else 1
    wrote = write(network, state.params["actor"], env, start, write_key, config.num_steps, given, same, config.branches)
    end, traj, alive, right, again = replayed(config, state.pool, index, *wrote)  # a success where there was none
    pi = answers(config, env, state.params, end.obs, same)
    facts = gathered(env, traj, alive, config.group_size, pi, given, config.branches)
    *found, degenerate = advantages(config, facts)
    flat = [x.reshape(config.num_episodes, -1) for x in found]
    data = Batch(end.obs, traj.recorded.action.T, traj.recorded.log_prob.T, *flat, alive.T)
    data = with_shown(config, env, jax.random.fold_in(shuffle_key, 1), demonstrated(config, env, start, facts, data))
    data = replace(data, reference=answers(config, env, state.reference, data.tokens, same))
    progress = training_progress(config, state)
    rate = state.learning_rate if config.adapt_learning_rate else config.learning_rate
    learning_rate = rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    of_batch = lambda params, batch: loss(params, config, env, batch, progress, objective)
    indices = minibatches(shuffle_key, config.num_episodes, config.num_minibatches, config.num_epochs, config.together)
    optimize = optimizer(config, learning_rate)
    params, opt_state, metrics = descend(of_batch, optimize, state.params, state.opt_state, data, indices)
    rate = kl_adapted(rate, metrics["approx_kl"][-1].mean(), config.target_kl) if config.adapt_learning_rate else None
    metrics = {
        **episode_metrics(wrote[1]),
        **jax.tree.map(jnp.mean, metrics),
        "degenerate_fraction": degenerate.mean(),
        "alive_steps": facts.own.sum(),
        "learning_rate": learning_rate,
    }
    fresh = (state.num_updates + 1) % config.reference_interval == 0
    reference = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), params, state.reference)
    pool = observed(state.pool, index, facts, config.pool_memory, right, again) if config.pool else None
    return State(params, reference, opt_state, rate, pool, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
