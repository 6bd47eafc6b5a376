"""Losses of whole answers for a transformer that writes them: regressions on rewards, contrasts, preferences.

    python algos/pairs_tokens.py --env Reverse --variant gvpo

Reference: Gao et al. 2024, REBEL, arXiv:2404.16767; its relatives are losses of rlx.pairs, with their sources there.

Axes: T tokens of an answer, P of a prompt, L of both, N groups, G members of a group, B minibatch of groups.

grpo_tokens.py with another loss. There a token has an advantage, and a minibatch any answers; here a group has a loss,
of the log-probabilities of its whole answers, and a minibatch whole groups. `loss` names it, `temperature` and `amount`
are its numbers. The reference is the policy of at most `reference_interval` updates ago; 1 is for the one that acts.

| variant | temperature | amount | reference |
|---|---|---|---|
| rebel, gvpo | beta | - | acting |
| copg, dpo, ipo, f_dpg_forward_kl and five more | beta | - | first |
| a_star_po | beta2 | beta1 | first |
| reg_grpo | - | epsilon | acting |
| trpa | beta | c | first |
| inpo | eta | tau / eta | first, and the acting one |
| sppo; p3o, p3o_separate | 1 / eta; - | -; clip | the acting one, whatever the interval |
| disco, disco_ratio and their basic forms; drpo | tau | -; lambda | none |

Preferences come from `judge`, an argument of `update`: by default from outcomes, by the model of Bradley and Terry with
`judge_temperature`. Losses take its probabilities where papers draw labels by them.

Deviations from the papers, beside those that the losses name:
- All take groups of any size and fresh answers in each update; DPO and IPO, which are offline, too.
- Outcomes are sums of rewards. DisCO, DRPO and TRPA call an answer right that has more than 1/2.
- V* of A*-PO is estimated in each update, by `num_reference` answers of the reference to each prompt, which count as
  steps; the paper does so once, for a pool. It is above the mean outcome: a second step on the same answers pushes
  most of them down once more, and the policy is lost. Its variant takes one step an update.
- DisCO's penalty of the KL from the acting policy (`kl_coef`, `kl_limit`) may go with any loss. Other KL terms of the
  papers are left out. The numbers of CoPG, DPO, IPO, INPO and f-DPG are ours.
- The learning rate falls linearly to 0, and the norm of the gradient is clipped.

The step count includes padding after an answer's end; `alive_steps` excludes it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx import groups, pairs
from rlx.clipping import clip_by_global_norm
from rlx.descent import descend
from rlx.objectives import approx_kl
from rlx.pytree import pytree, static, traced
from rlx.rollout import check_divides, check_horizon, episode_metrics, minibatches, reset
from rlx.tokens import Transformer, Written, check_tokens, read, read_last, warm_start, write
from rlx.train import training_progress

PAIRS = {"group_size": 2, "num_groups": 64}  # an update has 128 answers in all variants
SINGLE = {"group_size": 1, "num_groups": 128, "num_epochs": 1, "num_minibatches": 1}
ACTING = {"reference_interval": 1}
FIRST = {"reference_interval": 1_000_000}
HELD = {"num_epochs": 1, "kl_coef": 1e3, "kl_limit": 1e-4}  # DisCO and DRPO
VARIANTS = {
    "rebel": ACTING | PAIRS | {"temperature": 1.0},
    "gvpo": ACTING | {"temperature": 0.1, "group_size": 4, "num_groups": 32},
    "copg": FIRST | PAIRS | {"temperature": 0.1},
    "reg_grpo": ACTING | {"amount": 0.01},
    "a_star_po": FIRST | SINGLE | {"temperature": 1e-3, "amount": 0.5, "num_reference": 8},
    "p3o": PAIRS | {"amount": 0.2},
    "p3o_separate": PAIRS | {"amount": 0.2},
    "trpa": FIRST | {"temperature": 0.1, "amount": 2.5},
    "disco": HELD | {"temperature": 10.0},
    "disco_ratio": HELD | {"temperature": 1.0},
    "disco_basic": HELD,
    "disco_ratio_basic": HELD,
    "drpo": HELD | {"temperature": 10.0, "amount": 0.1},
    "dpo": FIRST | {"temperature": 0.1},
    "ipo": FIRST | {"temperature": 0.1},
    "sppo": {"temperature": 1e-3},
    "inpo": FIRST | {"temperature": 0.1, "amount": 1 / 3},
    "f_dpg_forward_kl": FIRST | {"temperature": 0.5},
    "f_dpg_reverse_kl": FIRST | {"temperature": 0.5},
    "f_dpg_jensen_shannon": FIRST | {"temperature": 0.5},
    "f_dpg_total_variation": FIRST | {"temperature": 0.5},
    "f_dpg_chi2": FIRST | {"temperature": 0.5},
    "f_dpg_reverse_chi2": FIRST | {"temperature": 0.5},
}
VARIANTS = {name: {"loss": name} | settings for name, settings in VARIANTS.items()}


@pytree
class Config:
    total_steps: int = static(500_000)  # tokens of the whole run, rounded up to whole updates
    num_groups: int = static(16)  # N
    group_size: int = static(8)  # G
    num_reference: int = static(0, at_least=0)  # answers of the reference to each prompt, of a_star_po
    num_steps: int = static(8)  # T, has to hold a whole answer
    num_epochs: int = static(2)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2e-4, at_least=0)
    anneal_learning_rate: bool = True
    loss: str = static("rebel", one_of=pairs.LOSSES)
    temperature: float = traced(1.0, above=0)  # of the loss: its beta or tau
    amount: float = traced(1.0, above=0)  # the second number of a loss
    judge_temperature: float = traced(0.25, above=0)  # of preferences by outcomes
    kl_coef: float = traced(0.0, at_least=0)  # of the KL from the acting policy, as far as it is above its limit
    kl_limit: float = traced(1e-4, at_least=0)
    entropy_coef: float = traced(0.0, at_least=0)
    max_grad_norm: float = traced(1.0, above=0)
    adam_epsilon: float = traced(1e-8, above=0)
    reference_interval: int = traced(1, at_least=1)  # updates
    warm_start_examples: int = static(4096, at_least=0)  # solved problems to be taught on
    warm_start_batch: int = static(128, at_least=1)  # of them, for a gradient step
    warm_start_steps: int = static(1000, at_least=0)  # gradient steps, at most, rounded up to tens
    warm_start_accuracy: float = traced(0.25, at_least=0, at_most=1)  # ends it
    warm_start_learning_rate: float = traced(1e-3, at_least=0)
    width: int = static(64, at_least=1)
    num_layers: int = static(2, at_least=1)
    num_heads: int = static(4, at_least=1)

    @property
    def steps_per_update(self) -> int:
        return self.num_groups * (self.group_size + self.num_reference) * self.num_steps


@pytree
class State:
    params: dict  # of the actor
    reference: dict  # its params at first, or some updates ago
    opt_state: optax.OptState
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    tokens: jax.Array  # prompts and answers, [B, G, L]
    action: jax.Array  # [B, G, T], as are the next three
    old: jax.Array  # its log-probability when it was written
    reference: jax.Array  # and by the reference
    alive: jax.Array
    whole: dict  # of whole answers and groups: outcome [B, G], preference [B, G, G], value [B]


def networks(config, env):
    """The actor."""
    space = env.observation_space
    return Transformer(space.n, *space.shape, env.action_space.n, config.width, config.num_layers, config.num_heads)


def optimizer(config, learning_rate):
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip_by_global_norm(config.max_grad_norm), adam))  # one vector: few operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_tokens(env, config.num_steps, taught=config.warm_start_examples and config.warm_start_steps)
    check_horizon(env, config.num_steps)
    check_divides(config.num_groups, config.num_minibatches, "num_groups")
    if config.loss == "a_star_po" and not config.num_reference:
        raise ValueError("num_reference = 0: a_star_po needs answers of the reference; use num_reference = 8")
    if config.loss != "a_star_po" and (config.num_reference or config.group_size < 2):
        raise ValueError(f"{config.loss} takes the answers of a group: use num_reference = 0, group_size of at least 2")


def init(config, env, key):
    check(config, env)
    key, params_key, teach_key, env_key = jax.random.split(key, 4)
    tokens, network = env.reset(env_key).obs[None], networks(config, env)
    params = network.init(params_key, tokens, network.cache(1), 0)
    teacher = optimizer(config, config.warm_start_learning_rate)
    params = {"actor": warm_start(network, params, env, teach_key, teacher, config)}
    return State(params, params, optimizer(config, config.learning_rate).init(params), jnp.int32(0), key)


def answers(config, env, params, tokens, copies=1):
    """The policy at every token of the answers, `[B, T]`, of whole sequences `[B, L]`; `copies` share a prompt."""
    return read(networks(config, env), params["actor"], env, tokens, config.num_steps, copies)


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N * G, L]`, all of which is read, and what the loss will need of it."""
    pi = read_last(networks(config, env), state.params["actor"], env, obs)
    action = pi.mode() if deterministic else pi.sample(key)
    return action.astype(env.action_space.dtype), Written(action, pi.log_prob(action))


def judgement(config, tokens, outcome):
    """How probably each answer of a group is preferred to each other, `[N, G, G]`, of tokens `[N, G, T]`."""
    return pairs.bradley_terry(outcome, config.judge_temperature)


def loss(params, config, env, batch):
    """Loss of one minibatch of groups `[B, G]`, and its metrics."""
    pi = answers(config, env, params, batch.tokens.reshape(-1, batch.tokens.shape[-1]), config.group_size)
    log_prob = pi.log_prob(batch.action.reshape(-1, config.num_steps)).reshape(batch.alive.shape)
    found = pairs.whole(log_prob, batch.old, batch.reference, batch.alive, **batch.whole)
    policy_loss = pairs.LOSSES[config.loss](found, config.temperature, config.amount).mean()
    mean = partial(jnp.mean, where=batch.alive)
    entropy, kl = mean(pi.entropy().reshape(batch.alive.shape)), mean(batch.old - log_prob)
    penalty = pairs.hinged(kl, config.kl_coef, config.kl_limit)
    return policy_loss + penalty - config.entropy_coef * entropy, {
        "policy_loss": policy_loss,
        "entropy": entropy,
        "kl_reference": mean(approx_kl(batch.reference - log_prob)),
        "approx_kl": mean(approx_kl(log_prob - batch.old)),
    }


def starts(config, env, state, key):
    """The states `[N * G]` that the answers of an update start from, group by group."""
    return groups.clone(reset(env, key, config.num_groups), config.group_size)


def start_values(config, env, state, start, key):
    """V* of each prompt, `[N]`, from answers of the reference to it, and how many tokens these have."""
    if not config.num_reference:
        return jnp.zeros(config.num_groups), 0
    prompts = groups.clone(jax.tree.map(lambda x: x[:: config.group_size], start), config.num_reference)
    same = {"copies": config.num_reference}
    _, traj, alive = write(networks(config, env), state.reference["actor"], env, prompts, key, config.num_steps, **same)
    outcome = groups.by_group(traj.reward, config.num_reference).sum(axis=-1)
    return pairs.optimal_value(outcome, config.amount), alive.sum()


def update(config, env, state, *, judge: Callable = judgement):
    """Groups of answers and the epochs of gradient steps on them; `judge` may be any callable pytree like its own."""
    key, start_key, write_key, value_key, shuffle_key = jax.random.split(state.key, 5)
    network, start, same = networks(config, env), starts(config, env, state, start_key), {"copies": config.group_size}
    end, traj, alive = write(network, state.params["actor"], env, start, write_key, config.num_steps, **same)
    value, more_steps = start_values(config, env, state, start, value_key)
    reference = answers(config, env, state.reference, end.obs, config.group_size).log_prob(traj.recorded.action.T).T
    played = (traj.recorded.action, traj.recorded.log_prob, reference, alive, traj.reward)
    *played, reward = (groups.by_group(x, config.group_size) for x in played)  # [T, N * G] as [N, G, T]
    outcome = reward.sum(axis=-1)
    preference = judge(config, played[0] + 1, outcome)
    tokens = end.obs.reshape(config.num_groups, config.group_size, -1)
    data = Batch(tokens, *played, {"outcome": outcome, "preference": preference, "value": value})
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    of_batch = lambda params, batch: loss(params, config, env, batch)
    indices = minibatches(shuffle_key, config.num_groups, config.num_minibatches, config.num_epochs)
    optimize = optimizer(config, learning_rate)
    params, opt_state, metrics = descend(of_batch, optimize, state.params, state.opt_state, data, indices)
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "degenerate_fraction": groups.agree(outcome[..., None]).mean(),
        "alive_steps": alive.sum() + more_steps,
        "learning_rate": learning_rate,
    }
    fresh = (state.num_updates + 1) % config.reference_interval == 0
    reference = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), params, state.reference)
    return State(params, reference, opt_state, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
