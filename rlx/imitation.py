"""Right answers in the place of those that a policy wrote, where too few of these were right (HPT).

Every policy gradient has four slots:

    mask * 1 / denominator * advantage * grad pi

The denominator is the policy itself in imitation and REINFORCE, the one that acted in PPO, another that acted off
policy. So imitation is a policy loss of elements with the advantage 1 whose log-probability of before is that of now.

Axes: N groups, G members, T tokens of an answer, L of prompt and answer.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rlx.env import Env, EnvState
from rlx.groups import Facts, per_trajectory
from rlx.pool import answered_right
from rlx.pytree import replace
from rlx.tokens import stride


def check_gate(config: Any, env: Env) -> None:
    """Raises ValueError where right answers are to be imitated and the environment cannot give them whole."""
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


__all__ = ["before", "check_gate", "demonstrated", "gated"]
