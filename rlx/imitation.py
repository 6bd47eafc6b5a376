"""Right answers that a policy is shown: where too few of its own are right (HPT), or beside them all along (CHORD).

Every policy gradient has four slots:

    mask * 1 / denominator * advantage * grad pi

The denominator is the policy itself in imitation and REINFORCE, the one that acted in PPO, another that acted off
policy. So imitation is a policy loss of elements with the advantage 1 whose log-probability of before is that of now.

Axes: N groups, G members, T tokens of an answer, L of prompt and answer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx.distributions import Categorical
from rlx.env import Env, EnvState
from rlx.groups import Facts, per_trajectory
from rlx.pool import answered_right
from rlx.pytree import replace
from rlx.tokens import examples, stride, written

TOKEN_WEIGHTS = {  # of a token that is shown, by its probability
    "none": jnp.zeros_like,
    "even": jnp.ones_like,
    "uncertain": lambda p: p * (1.0 - p),
}


def check_gate(config: Any, env: Env) -> None:
    """Raises ValueError where right answers are to be imitated and the environment cannot give them whole."""
    if config.shown != "none" and not hasattr(env.environment, "solved"):
        raise ValueError('the environment has no solved(key, params) to be shown: set shown = "none"')
    if config.gate < 0:
        return
    if not hasattr(env.environment, "right_answer"):
        raise ValueError("the environment has no right_answer(state, params) to imitate: set gate = -1")
    if stride(env) > 1:
        raise ValueError("the environment replies to what is written, so no answer is right by itself: set gate = -1")


def gated(config: Any, facts: Facts) -> jax.Array:
    """Which groups imitate, bool `[N]`: those with at most `config.gate` members that answered right.

    Source: Unify-Post-Training (HPT), TsinghuaC3I 2025, whose gate is 0 or 2 of 8 answers.
    """
    return answered_right(facts).sum(axis=1) <= config.gate


def demonstrated(config: Any, env: Env, start: EnvState, facts: Facts, data: Any) -> Any:
    """What there is to learn from answers `[N * G]`, of which those of gated groups are right ones.

    All members of such a group are the same answer. They have the advantage `imitation_coef` and, together, the weight
    of a group among N. A loss takes their ratio to be 1, since `data.imitated`, bool `[N * G]`, names them. With a gate
    of -1 nothing changes.

    Args:
        config: with `gate`, `imitation_coef`, `group_size` and `num_steps`.
        env: an environment of tokens with `right_answer(state, params) -> tokens [A]`.
        start: states `[N * G]` in which nothing is written yet.
        facts: what was written.
        data: with `tokens` `[N * G, L]`, `action`, `advantage`, `weight`, `even` and `alive`, each `[N * G, T]`.
    """
    if config.gate < 0:
        return data
    environment: Any = env.environment
    imitated = jnp.repeat(gated(config, facts), config.group_size)
    answer = jax.vmap(environment.right_answer, (0, None))(start.state, env.params)[:, : config.num_steps]
    answer = jnp.pad(answer, ((0, 0), (0, config.num_steps - answer.shape[1])))
    begin = environment.prompt_size
    tokens = start.obs.at[:, begin : begin + config.num_steps].set(answer)
    alive = answer > 0
    weight = per_trajectory(alive.reshape(facts.alive.shape)).reshape(alive.shape)
    shown = {
        "tokens": tokens,
        "action": jnp.maximum(answer - 1, 0).astype(data.action.dtype),
        "advantage": jnp.full_like(data.advantage, config.imitation_coef),
        "weight": weight,
        "even": weight,
        "alive": alive,
    }
    chosen = lambda new, old: jnp.where(imitated[:, None], new, old)
    return replace(data, imitated=imitated, **{name: chosen(x, getattr(data, name)) for name, x in shown.items()})


def before(log_prob: jax.Array, recorded: jax.Array, imitated: jax.Array | None) -> jax.Array:
    """Log-probabilities `[B, T]` of the denominator: as recorded; of what is imitated those of now, as constants."""
    if imitated is None:
        return recorded
    return jnp.where(imitated[:, None], jax.lax.stop_gradient(log_prob), recorded)


def with_shown(config: Any, env: Env, key: jax.Array, data: Any) -> Any:
    """What there is to learn from answers `[N * G]`, and beside each a solved problem, `shown` `[N * G, L]`."""
    if config.shown == "none":
        return data
    return replace(data, shown=examples(env, key, len(data.tokens))[0])


def mixed(
    config: Any, env: Env, loss: jax.Array, tokens: jax.Array | None, policy: Callable, progress: jax.Array
) -> jax.Array:
    """`(1 - m) loss + m imitation`, with the share m of `mixed_share` at this `progress` through a run.

        imitation = -mean_t sg(w(p_t)) log p_t

    p_t is the probability of a token of the solved problems. The weight w is `p (1 - p)` where `config.shown` is
    "uncertain": tokens that are certain, or that the policy would never write, hardly count. It is 1 where that is
    "even", which is cloning, and with "none" the loss is returned as it is.

    Args:
        config: with `shown`, `mix`, `mix_end`, `mix_warmup` and `num_steps`.
        env: an environment of tokens.
        loss: of the policy's own answers.
        tokens: solved problems, `[B, L]`.
        policy: `policy(tokens)`, the distribution at every token of their answers, `[B, T]`.
        progress: in [0, 1].

    Source: CHORD, 2025, arXiv:2508.11408, and its code. Its demonstrations are a fixed set, here they are drawn anew.
    """
    if config.shown == "none" or tokens is None:
        return loss
    token = written(env, tokens, config.num_steps)
    pi: Categorical = policy(tokens)
    log_prob = pi.log_prob(jnp.maximum(token - 1, 0))
    weight = TOKEN_WEIGHTS[config.shown](jax.lax.stop_gradient(jnp.exp(log_prob)))
    imitation = -jnp.mean(weight * log_prob, where=token > 0)
    share = mixed_share(progress, config.mix, config.mix_end, config.mix_warmup)
    return (1.0 - share) * loss + share * imitation


def mixed_share(
    progress: jax.Array, peak: float | jax.Array, end: float | jax.Array, warmup: float | jax.Array
) -> jax.Array:
    """The share of imitation: from 0 linearly to `peak` in the first `warmup` of a run, then by a cosine to `end`.

    Source: CHORD, 2025, arXiv:2508.11408, of whose code the defaults are 0.1 for both.
    """
    rising = progress / jnp.maximum(warmup, 1e-8)
    done = jnp.clip((progress - warmup) / jnp.maximum(1.0 - warmup, 1e-8), 0.0, 1.0)
    falling = end + (peak - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    return jnp.where(progress < warmup, peak * rising, falling)


__all__ = ["TOKEN_WEIGHTS", "before", "check_gate", "demonstrated", "gated", "mixed", "mixed_share", "with_shown"]
