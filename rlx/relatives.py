"""The relatives of GRPO as a table: names of the stages of one pipeline, and `VARIANTS`, settings that have a name.

    outcome -> shape -> credit -> baseline -> scale -> adjust -> the advantage of every step
    alive -> weights x masks -> the weight of every step in the policy loss
    log-ratio -> ratio -> objective(log-ratio, advantage), mean under these weights

Every entry is a function that stands elsewhere with its equation and source: in `rlx.groups`, `rlx.shapes`,
`rlx.step_credits` or `rlx.adjustments`. `amount` is the number that some of them have; variants set it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlx import adjustments, branching, groups, shapes, step_credits
from rlx.env import Env
from rlx.facts import is_number
from rlx.groups import Facts


def _of_rewards(credit):
    """A credit that looks at rewards only."""
    return lambda reward, facts, gamma, amount: credit(reward, facts.alive, gamma)


def _by_score_norm(credit, facts):
    """The baseline of `step_credits.score_norm`."""
    return step_credits.score_norm(credit, facts.log_prob, facts.collision, facts.alive)


SHAPES = {
    "none": shapes.as_it_is,
    "max_at_k": shapes.max_at_k,
    "unlikely": shapes.unlikely,
    "rank_normal": shapes.rank_normal,
    "lens": shapes.lens,
    "consensus": shapes.consensus,
    "majority": shapes.majority,
    "polychromic": shapes.polychromic,
    "risk_averse": shapes.risk_averse,
    "wins": shapes.wins,
    "concise": shapes.concise,
}
CREDITS = {
    "to_go": _of_rewards(groups.returns_to_go),
    "outcome": _of_rewards(groups.outcomes),
    "process": _of_rewards(groups.standardized_to_go),
    "step_groups": step_credits.step_groups,
    "graph": step_credits.graph,
    "tree": branching.tree,
}
BASELINES = {
    "mean": groups.group_mean,
    "others": groups.leave_one_out,
    "length": groups.length_weighted,
    "score_norm": _by_score_norm,
    "none": groups.no_baseline,
}
SCALES = {
    "group": groups.group_std,
    "batch": groups.batch_std,
    "none": groups.no_scale,
    "beta": adjustments.beta_scale,
}
ADJUSTMENTS = {
    "mapo": adjustments.mapo,
    "copo": adjustments.copo,
    "semantic_entropy": adjustments.semantic_entropy,
    "hicra": adjustments.hicra,
    "gtpo": adjustments.gtpo,
}
MASKS = {
    "degenerate": adjustments.degenerate,
    "uncertain": adjustments.uncertain,
    "spread_subset": partial(adjustments.spread_subset, share=0.5),
    "informative_tokens": partial(adjustments.informative_tokens, share=0.5),
    "conflict": adjustments.conflict,
    "best_and_worst": adjustments.best_and_worst,
    "short_right_long_wrong": partial(adjustments.short_right_long_wrong, share=0.5),
}
WEIGHTS = {
    "trajectory": groups.per_trajectory,
    "step": groups.per_step,
    "constant": groups.constant,
    "sum": adjustments.summed,
}
EVEN = WEIGHTS | {"sum": groups.per_step}  # of entropy and KL, whose coefficients would grow with the length
RATIOS = {"step": groups.of_step, "sequence": groups.geometric_mean, "product": groups.product}
# Stages that compare what was done, which has to be numbers then.
COMPARE = ("consensus", "majority", "polychromic", "step_groups", "graph", "score_norm")
COMPARE += ("semantic_entropy", "copo", "conflict")

WHOLE = {"credit": "outcome", "baseline": "mean", "scale": "none", "weights": "trajectory"}
ON_POLICY = {"num_epochs": 1, "num_minibatches": 1}
LEFT_OUT = {"masks": ("degenerate",)}
VARIANTS = {
    "grpo": WHOLE | {"scale": "group"},
    "process": WHOLE | {"credit": "process", "baseline": "none"},
    "dr_grpo": WHOLE | {"weights": "constant"},
    "dapo": WHOLE | {"scale": "group", "weights": "step", "clip_high": 0.28} | LEFT_OUT,
    "rloo": WHOLE | {"baseline": "others", "ratio": "product"},
    "opo": WHOLE | {"baseline": "length", "weights": "step"} | ON_POLICY,
    "gpg": WHOLE | {"weights": "step"} | LEFT_OUT | ON_POLICY,
    "gspo": WHOLE | {"scale": "group", "ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4},
    "rtg": {"credit": "to_go", "baseline": "others", "scale": "batch", "weights": "step"},
    "loop": WHOLE | {"baseline": "others", "clip": 0.1, "clip_high": 0.1} | LEFT_OUT,
    "lite_ppo": WHOLE | {"scale": "batch", "weights": "step"},
    "pairs": WHOLE | {"scale": "group", "group_size": 2},
    "max_at_k": WHOLE | {"shape": "max_at_k", "amount": 4.0, "weights": "constant"},
    "unlikely": WHOLE
    | {"shape": "unlikely", "amount": 0.25, "scale": "group", "num_epochs": 2, "kl_coef": 0.1}
    | LEFT_OUT,
    "gigpo": WHOLE | {"credit": "step_groups", "baseline": "none", "amount": 1.0},
    "salt": WHOLE | {"credit": "graph", "baseline": "none"},
    "polychromic": WHOLE | {"shape": "polychromic", "baseline": "none"},
    "g2rpo": WHOLE | {"shape": "rank_normal", "baseline": "none"},
    "lens": WHOLE | {"shape": "lens", "amount": 1.0},
    "bnpo": WHOLE | {"scale": "beta", "weights": "step"},
    "mapo": WHOLE | {"baseline": "none", "adjust": ("mapo",)},
    "copo": WHOLE | {"adjust": ("copo",), "group_size": 6},
    "seed": WHOLE | {"adjust": ("semantic_entropy",), "amount": 0.02},
    "hicra": WHOLE | {"scale": "group", "adjust": ("hicra",), "amount": 0.2},
    "gtpo": WHOLE | {"scale": "group", "adjust": ("gtpo",), "amount": 0.1, "masks": ("conflict",)},
    "d3s": WHOLE | {"scale": "group", "masks": ("spread_subset", "informative_tokens")},
    "luspo": WHOLE | {"scale": "group", "ratio": "sequence", "weights": "sum", "clip": 2e-3, "clip_high": 2.5e-3},
    "otb": WHOLE | {"baseline": "score_norm", "weights": "step"} | ON_POLICY,
    "pf_ppo": WHOLE | {"masks": ("best_and_worst",)},
    "ttrl": WHOLE | {"shape": "majority", "scale": "group"},
    "riskpo": WHOLE | {"shape": "risk_averse", "amount": 1.5},
    "spo": WHOLE | {"shape": "wins", "amount": 10.0},
    "rorecomp": WHOLE | {"scale": "group", "masks": ("short_right_long_wrong",)},
    "conciser": WHOLE | {"shape": "concise", "amount": 1.0},
}


def advantages(stages: Any, facts: Facts) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What the pipeline makes of an update's episodes.

    Returns for every step, `[N, G, T]`, its advantage, its weight in the policy loss and its weight in all other means,
    and for every group, `[N]`, whether its members have the same credit, so that there is nothing to learn from them.
    Groups that the mask `degenerate` leaves out are counted by nobody, so that the others weigh more; what another mask
    leaves out leaves its share empty. No mask changes the other means. Given steps count nowhere.

    Args:
        stages: a Config, or whatever has `shape`, `credit`, `baseline`, `scale`, `adjust`, `masks`, `weights`, `gamma`
            and `amount`.
        facts: what was played.
    """
    outcome = groups.outcomes(facts.reward, facts.alive, stages.gamma)[..., 0]
    credit = CREDITS[stages.credit](facts.reward, facts, stages.gamma, stages.amount)
    degenerate = groups.agree(credit)
    if stages.shape != "none":
        whole = groups.outcomes(facts.reward, facts.alive, jnp.float32(1.0))[..., 0]
        outcome = SHAPES[stages.shape](whole, facts, stages.amount)
        shaped = groups.at_the_end(outcome, facts.alive)
        credit = CREDITS[stages.credit](shaped, facts, stages.gamma, stages.amount)
    advantage = (credit - BASELINES[stages.baseline](credit, facts)) / SCALES[stages.scale](outcome)[..., None]
    for name in stages.adjust:
        advantage = ADJUSTMENTS[name](advantage, facts, stages.amount)
    left_out = degenerate[:, None, None] & ("degenerate" in stages.masks)
    weight = WEIGHTS[stages.weights](facts.own & ~left_out)
    for name in stages.masks:
        weight *= MASKS[name](advantage, credit, facts)
    return jnp.where(facts.alive, advantage, 0.0), weight, EVEN[stages.weights](facts.own), degenerate


def check(stages: Any, env: Env) -> None:
    """Raises ValueError where a stage does not fit the environment, or the algorithm.

    Some compare actions, which have to be numbers then; the credit "tree" is of answers that are one.
    """
    if stages.credit == "tree" and not getattr(stages, "branches", ()):
        raise ValueError("credit = tree: only grpo_tokens plays a tree, with branches; choose another credit")
    for name in (stages.shape, stages.credit, stages.baseline, *stages.adjust, *stages.masks):
        if name in COMPARE and not is_number(env.action_space):
            raise ValueError(f"{name} compares what was done, and actions are not numbers here: use Discrete actions")


__all__ = ["ADJUSTMENTS", "BASELINES", "CREDITS", "MASKS", "RATIOS", "SCALES", "SHAPES", "VARIANTS", "WEIGHTS"]
__all__ += ["advantages", "check"]
