"""The relatives of GRPO as a table: names of the stages of one pipeline, and `VARIANTS`, settings that have a name.

What an episode gets is its credit, less a baseline, over a scale; steps have weights in the mean, and ratios are of a
step or of a whole sequence. Every entry is a function of `rlx.groups`, which has its equation and source.
"""

from rlx import groups

CREDITS = {"to_go": groups.returns_to_go, "outcome": groups.outcomes, "process": groups.standardized_to_go}
BASELINES = {
    "mean": groups.group_mean,
    "others": groups.leave_one_out,
    "length": groups.length_weighted,
    "none": groups.no_baseline,
}
SCALES = {"group": groups.group_std, "batch": groups.batch_std, "none": groups.no_scale}
WEIGHTS = {"trajectory": groups.per_trajectory, "step": groups.per_step, "constant": groups.constant}
RATIOS = {"step": groups.of_step, "sequence": groups.geometric_mean, "product": groups.product}
WHOLE = {"credit": "outcome", "baseline": "mean", "scale": "none", "weights": "trajectory"}
ON_POLICY = {"num_epochs": 1, "num_minibatches": 1}
VARIANTS = {
    "grpo": WHOLE | {"scale": "group"},
    "process": WHOLE | {"credit": "process", "baseline": "none"},
    "dr_grpo": WHOLE | {"weights": "constant"},
    "dapo": WHOLE | {"scale": "group", "weights": "step", "clip_high": 0.28, "drop_degenerate": True},
    "rloo": WHOLE | {"baseline": "others", "ratio": "product"},
    "opo": WHOLE | {"baseline": "length", "weights": "step"} | ON_POLICY,
    "gpg": WHOLE | {"weights": "step", "drop_degenerate": True} | ON_POLICY,
    "gspo": WHOLE | {"scale": "group", "ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4},
    "rtg": {"credit": "to_go", "baseline": "others", "scale": "batch", "weights": "step"},
}
