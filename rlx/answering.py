"""What groups of answers need, before any is written: settings that fit each other and the environment of tokens."""

from typing import Any

from rlx.branching import check_branches
from rlx.env import Env
from rlx.groups import check_together
from rlx.imitation import check_gate
from rlx.pool import check_pool
from rlx.rollout import check_horizon
from rlx.successes import check_replay
from rlx.tokens import check_tokens


def check_answering(config: Any, env: Env) -> None:
    """Raises ValueError where the Config of an algorithm like grpo_tokens does not fit itself or the environment."""
    check_tokens(env, config.num_steps, config.warm_start_examples and config.warm_start_steps, config.given)
    check_horizon(env, config.num_steps)
    check_together(config)
    check_pool(config)
    check_gate(config, env)
    check_branches(config)
    check_replay(config, env)


__all__ = ["check_answering"]
