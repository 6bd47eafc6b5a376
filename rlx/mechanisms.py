"""Mechanisms of the literature that are a small piece here: what each is, where it stands, and a command that runs it.

`rlx mechanisms` prints the table, and `docs/mechanisms.md` has it. A test runs every command and finds every function.
"""

from dataclasses import dataclass

CARTPOLE = "--env CartPole-v1"
OLDER, NEWER = "test_objectives.py", "test_batch_objectives.py"
REINFORCE, IMITATED, GROUPS = "test_reinforce.py", "test_imitation.py", "test_groups.py"
SUCCESSES = "test_successes.py"


@dataclass(frozen=True)
class Mechanism:
    """One row of the table."""

    name: str
    paper: str
    slot: str  # what it stands in the place of
    function: str  # by its dotted name
    command: str
    test: str  # the file of its oracles, below tests/


def _loss(name: str, paper: str, kind: str, room: str = "objectives", test: str = NEWER) -> Mechanism:
    """A policy loss, which goes to any algorithm that takes one."""
    command = f"rlx train ppo {CARTPOLE} --objective {kind}"
    return Mechanism(name, paper, "policy loss", f"rlx.{room}.{kind}", command, test)


def _bonus(name: str, paper: str, kind: str) -> Mechanism:
    """A bonus, likewise."""
    command = f"rlx train dqn {CARTPOLE} --bonus {kind}"
    return Mechanism(name, paper, "reward", f"rlx.bonuses.{kind}", command, "test_bonuses.py")


def _transform(name: str, paper: str, kind: str) -> Mechanism:
    """What takes the steps of the optimizer, likewise."""
    command = f"rlx train ppo {CARTPOLE} --transform {kind}"
    return Mechanism(name, paper, "step", f"rlx.transforms.{kind}", command, "test_transforms.py")


def _file(name: str, paper: str, command: str, test: str, function: str = "update") -> Mechanism:
    """An algorithm, or a variant of one."""
    algorithm = command.split()[0]
    return Mechanism(name, paper, "algorithm", f"rlx.algos.{algorithm}.{function}", f"rlx train {command}", test)


def _variant(
    name: str, paper: str, variant: str, function: str, test: str, slot: str = "", env: str = "Reverse"
) -> Mechanism:
    """A variant of the pipeline of groups, by the function that makes the difference: a stage of `rlx.relatives`."""
    room = {"shapes": "shape", "step_credits": "credit", "adjustments": "advantage", "groups": "advantage"}
    command = f"rlx train grpo_tokens --env {env} --variant {variant}"
    return Mechanism(name, paper, slot or room[function.split(".")[0]], f"rlx.{function}", command, test)


def _answers(name: str, paper: str, function: str, variant: str = "") -> Mechanism:
    """A loss of whole answers."""
    command = f"rlx train pairs_tokens --env Reverse --variant {variant or function}"
    return Mechanism(name, paper, "loss of a group", f"rlx.pairs.{function}", command, "test_pairs.py")


def _beside(name: str, paper: str, slot: str, function: str, options: str, test: str) -> Mechanism:
    """What has options of its own beside the pipeline of groups."""
    command = f"rlx train grpo_tokens --env Reverse {options}"
    return Mechanism(name, paper, slot, f"rlx.{function}", command, test)


def _problems(name: str, paper: str, function: str, options: str, test: str) -> Mechanism:
    """What chooses problems, or begins their answers."""
    return _beside(name, paper, "start", function, options, test)


def _trial(name: str, paper: str, slot: str, function: str, test: str) -> Mechanism:
    """What has no option of its own: a trial of `experiments/mechanisms`."""
    return Mechanism(name, paper, slot, function, f"python experiments/mechanisms/compare.py --task {name}", test)


def _tree(name: str, paper: str, slot: str, function: str, test: str) -> Mechanism:
    """What is tried on trees of choices, where values are exact."""
    task = name.replace("-", "_")
    return Mechanism(name, paper, slot, function, f"python experiments/trees/compare.py --task {task}", test)


MECHANISMS = (
    _loss("clip-higher", "Yu et al. 2025, arXiv:2503.14476", "ClipHigher", test=OLDER),
    _loss("rollback", "Wang, He, Tan 2019, arXiv:1903.07940", "Rollback", test=OLDER),
    _loss("spo-simple", "Xie et al. 2024, arXiv:2401.16025", "SPO", test=OLDER),
    _loss("dpo-discovered", "Lu et al. 2022, arXiv:2210.05639", "DPO", test=OLDER),
    _loss("kl-forward", "Schulman et al. 2017, arXiv:1707.06347", "ForwardKL", test=OLDER),
    _loss("kl-reverse", "Schulman et al. 2017, arXiv:1707.06347", "ReverseKL", test=OLDER),
    _loss("awr", "Peng et al. 2019, arXiv:1910.00177", "AWR", test=OLDER),
    _loss("dual-clip", "Ye et al. 2020, arXiv:1912.09729", "DualClip"),
    _loss("log-ratio", "Xue et al. 2025, arXiv:2509.25050", "LogRatio"),
    _loss("rpg", "Zhang et al. 2025, arXiv:2505.17508", "KLRegularized", "kl_objectives"),
    _loss("kl-cov", "Cui et al. 2025, arXiv:2505.22617", "KLCov", "batch_objectives"),
    _loss("clip-cov", "Cui et al. 2025, arXiv:2505.22617", "ClipCov", "batch_objectives"),
    _loss("bapo", "Xi et al. 2025, arXiv:2510.18927", "BAPO", "batch_objectives"),
    _loss("d-ppo", "Xie et al. 2023, arXiv:2310.20380", "DropoutClip", "batch_objectives"),
    _bonus("rnd", "Burda et al. 2018, arXiv:1810.12894", "RND"),
    _bonus("counts", "Tang et al. 2017, arXiv:1611.04717", "Counts"),
    _transform("sfpo", "arXiv:2510.04072, 2025", "SFPO"),
    _transform("n-pg-igt", "Fatkhullin et al. 2023, arXiv:2302.01734", "IGT"),
    Mechanism(
        "s2pg",
        "Al-Hafez et al. 2024",
        "action and state",
        "rlx.partial.remembering",
        "rlx train ppo --env Pendulum-v1 --env-options remember=8",
        "test_partial.py",
    ),
    _trial("n-vr-pg", "Barakat, Fatkhullin, He 2023", "utility", "rlx.occupancy.carried", "test_occupancy.py"),
    _trial("subpo", "Prajapat et al. 2023", "environment", "rlx.envs.tasks.coverage.make", "test_own_envs.py"),
    _trial("dsrl", "Wagenmaker et al. 2025, arXiv:2506.15799", "action", "rlx.steering.steered", "test_steering.py"),
    _trial("dsrl-na", "Wagenmaker et al. 2025, arXiv:2506.15799", "algorithm", "rlx.algos.dsrl.update", "test_dsrl.py"),
    _trial("expo", "Dong et al. 2025, arXiv:2507.07986", "algorithm", "rlx.algos.expo.update", "test_expo.py"),
    _trial("camel", "CAMEL, its abstract", "action", "rlx.guidance.guided", "test_guidance.py"),
    _trial("psft", "Zhu et al. 2025, arXiv:2508.17784", "cloning", "rlx.data.cloning.clone", "test_cloning.py"),
    _trial("restarts", "Chang et al. 2024, arXiv:2404.08495", "start", "rlx.around.restarted", "test_around.py"),
    _trial("improper", "Zaki et al. 2022", "action", "rlx.around.chosen", "test_around.py"),
    _trial("ndp", "Bahl et al. 2020, arXiv:2012.02788", "action", "rlx.attractor.movement", "test_attractor.py"),
    _trial("ecrm", "Yu, Shen 2023, arXiv:2301.10932", "reward", "rlx.risk.risk_averse", "test_risk.py"),
    _trial("gpc", "Cao et al. 2025, arXiv:2510.01068", "sampler", "rlx.flow.composed", "test_flow.py"),
    _trial("rti-dp", "Duan et al. 2025, arXiv:2508.05396", "sampler", "rlx.diffusion.shifted", "test_diffusion.py"),
    _trial("subspaces", "Schneider et al. 2024", "diagnostic", "rlx.curvature.lanczos", "test_curvature.py"),
    _trial(
        "hdpo",
        "Alvo, Russo, Kanoria 2023, arXiv:2306.11246",
        "environment",
        "rlx.envs.tasks.inventory.make",
        "test_own_envs.py",
    ),
    _file("lpg", "Oh et al. 2020, arXiv:2007.08794", "lpg --env rlx/Levels --rule evolved", "test_lpg.py"),
    Mechanism(
        "ta-lpg",
        "Jackson et al. 2024, arXiv:2402.05828",
        "update rule",
        "rlx.meta.rules.lpg",
        "python experiments/learned_rules/compare.py --task ta_lpg",
        "test_lpg.py",
    ),
    _file("harpg", "Fatkhullin et al. 2023, arXiv:2302.01734", f"reinforce {CARTPOLE} --variant harpg", REINFORCE),
    _file("polyak", "Li et al. 2024", f"reinforce {CARTPOLE} --variant polyak --target-return 99", REINFORCE),
    _file("ddpg", "Lillicrap et al. 2015, arXiv:1509.02971", "ddpg --env Pendulum-v1 --variant ddpg", "test_ddpg.py"),
    _file("td3", "Fujimoto et al. 2018, arXiv:1802.09477", "ddpg --env Pendulum-v1 --variant td3", "test_ddpg.py"),
    _file("aro-ddpg", "Saxena et al. 2023", "ddpg --env Pendulum-v1 --variant aro_ddpg", "test_ddpg.py"),
    _file("stream-ac", "Elsayed et al. 2024, arXiv:2410.14606", f"stream_ac {CARTPOLE}", "test_streaming.py"),
    _file("stream-q", "Elsayed et al. 2024, arXiv:2410.14606", f"stream_q {CARTPOLE}", "test_streaming.py"),
    _file("avg", "Vasan et al. 2024, arXiv:2411.15370", "avg --env Pendulum-v1", "test_streaming.py"),
    _file("shac", "Xu et al. 2022, arXiv:2204.07137", "pathwise --env mjx/pendulum --variant shac", "test_pathwise.py"),
    _file("a2c", "Mnih et al. 2016, arXiv:1602.01783", f"ppo {CARTPOLE} --variant a2c", "test_ppo.py"),
    _file("pg-rainbow", "arXiv:2407.13146, 2024", f"ppo {CARTPOLE} --num-quantiles 8", "test_ppo.py"),
    _file(
        "sqirl",
        "Laidlaw et al. 2023, arXiv:2312.08369",
        f"sqirl {CARTPOLE} --env-options max_steps=16 time=True --num-steps 16 --num-minibatches 16",
        "test_sqirl.py",
    ),
    Mechanism(
        "bad",
        "Wen et al. 2024",
        "action",
        "rlx.action_tokens.tokenized",
        "rlx train ppo --env Pendulum-v1 --env-options tokens=5",
        "test_action_tokens.py",
    ),
    _file("props", "Corrado, Hanna 2023, arXiv:2311.08290", f"props {CARTPOLE}", "test_props.py"),
    _file("remix", "Squeeze the Soaked Sponge, 2025", f"props {CARTPOLE} --variant remix", "test_props.py"),
    _file(
        "ddpo",
        "Black et al. 2023, arXiv:2305.13301",
        "dppo --env probe/ContinuousAction --gae-lambda 1 --clip 0.02 --first-clip 0.02",
        "test_dppo.py",
    ),
    _variant("loop", "Chen et al. 2025, arXiv:2502.01600", "loop", "groups.leave_one_out", "test_shapes.py"),
    _variant("lite-ppo", "arXiv:2508.08221, 2025", "lite_ppo", "groups.batch_std", "test_groups.py"),
    _variant("2-grpo", "arXiv:2510.00977, 2025", "pairs", "groups.group_std", "test_shapes.py"),
    _variant("max-at-k", "arXiv:2510.23393, 2025", "max_at_k", "shapes.max_at_k", "test_shapes.py"),
    _variant("unlikeliness", "He et al. 2025, arXiv:2506.02355", "unlikely", "shapes.unlikely", "test_shapes.py"),
    _variant("polychromic", "arXiv:2509.25424, 2025", "polychromic", "shapes.polychromic", "test_shapes.py"),
    _variant("g2rpo", "arXiv:2604.08539, 2026", "g2rpo", "shapes.rank_normal", "test_shapes.py"),
    _variant("lens", "arXiv:2510.08696, 2025", "lens", "shapes.lens", "test_shapes.py"),
    _variant("riskpo", "RiskPO, 2025", "riskpo", "groups.risk_averse", GROUPS, "shape"),
    _variant("spo-self-play", "Swamy et al. 2024, arXiv:2401.04056", "spo", "groups.win_share", GROUPS, "shape"),
    _variant("ttrl", "Zuo et al. 2025, arXiv:2504.16084", "ttrl", "shapes.majority", "test_shapes.py"),
    _variant(
        "gigpo", "Feng et al. 2025, arXiv:2505.10978", "gigpo", "step_credits.step_groups", "test_step_credits.py"
    ),
    _variant("salt", "arXiv:2510.20022, 2025", "salt", "step_credits.graph", "test_step_credits.py"),
    _variant("otb", "OPO's token form, verl", "otb", "step_credits.score_norm", "test_step_credits.py", "baseline"),
    _variant("bnpo", "Xiao et al. 2025, arXiv:2506.02864", "bnpo", "adjustments.beta_scale", "test_adjustments.py"),
    _variant("mapo", "arXiv:2509.18849, 2025", "mapo", "adjustments.mapo", "test_adjustments.py"),
    _variant("copo", "arXiv:2508.04138, 2025", "copo", "adjustments.copo", "test_adjustments.py"),
    _variant("seed-grpo", "arXiv:2505.12346, 2025", "seed", "adjustments.semantic_entropy", "test_adjustments.py"),
    _variant("hicra", "arXiv:2509.03646, 2025", "hicra", "adjustments.hicra", "test_adjustments.py"),
    _variant("gtpo", "arXiv:2508.03772, 2025", "gtpo", "adjustments.gtpo", "test_adjustments.py"),
    _variant("d3s", "arXiv:2509.22115, 2025", "d3s", "adjustments.spread_subset", "test_adjustments.py", "weight"),
    _variant("luspo", "arXiv:2602.05261, 2026", "luspo", "adjustments.summed", "test_adjustments.py", "weight"),
    _variant(
        "pf-ppo", "arXiv:2409.06957, 2024", "pf_ppo", "adjustments.best_and_worst", "test_adjustments.py", "weight"
    ),
    Mechanism(
        "dhpo",
        "arXiv:2601.05607, 2026",
        "policy loss",
        "rlx.batch_objectives.DHPO",
        "rlx train grpo_tokens --env Reverse --objective DHPO",
        "test_batch_objectives.py",
    ),
    _problems("vas", "MMR1, arXiv:2509.21268", "pool.variance", "--pool 64 --sampler variance", "test_pool.py"),
    _trial("hpt", "Unify-Post-Training, TsinghuaC3I 2025", "policy loss", "rlx.imitation.demonstrated", IMITATED),
    _trial("pmoe", "Ren et al. 2021, arXiv:2104.09122", "head", "rlx.gating.gate_loss", "test_gating.py"),
    _trial("cooper", "arXiv:2508.05613, 2025", "reward", "rlx.judges.preference_loss", "test_judges.py"),
    _problems("pope", "arXiv:2601.18779, 2026", "tokens.hints", "--given 3", "test_grpo_tokens.py"),
    _problems(
        "graded-hints",
        "after Scaf-GRPO, arXiv:2510.19807",
        "tokens.hints",
        "--pool 64 --given 3 --graded",
        "test_grpo_tokens.py",
    ),
    _problems(
        "replayed-success", "ARPO of screens, arXiv:2505.16282", "successes.replayed", "--pool 64 --replay", SUCCESSES
    ),
    _beside("chord", "arXiv:2508.11408, 2025", "policy loss", "imitation.mixed", "--shown uncertain", IMITATED),
    _beside(
        "spo-tree",
        "SPO, arXiv:2505.23564",
        "credit",
        "branching.tree",
        "--credit tree --baseline none --branches 2 2 2",
        "test_branching.py",
    ),
    _variant(
        "rorecomp",
        "arXiv:2509.25958, 2025",
        "rorecomp",
        "adjustments.short_right_long_wrong",
        "test_adjustments.py",
        "weight",
        "Countdown",  # whose answers differ in length
    ),
    _variant(
        "conciser",
        "ConciseR, 2025, arXiv:2505.21178",
        "conciser",
        "shapes.concise",
        "test_shapes.py",
        env="Countdown",
    ),
    Mechanism(
        "prefix-grouper",
        "Prefix Grouper, 2025",
        "policy loss",
        "rlx.tokens.read",
        "rlx train grpo_tokens --env Reverse --together 8",
        "test_tokens.py",
    ),
    _answers("rebel", "Gao et al. 2024, arXiv:2404.16767", "rebel"),
    _answers("gvpo", "Zhang et al. 2025, arXiv:2504.19599", "gvpo"),
    _answers("copg", "Flet-Berliac et al. 2024, arXiv:2406.19185", "copg"),
    _answers("reg-grpo", "arXiv:2506.07464, 2025", "reg_grpo"),
    _answers("a*-po", "Brantley et al. 2025, arXiv:2505.20686", "a_star_po"),
    _answers("p3o", "Wu et al. 2023, arXiv:2310.00212", "p3o"),
    _answers("trpa", "Su et al. 2025, arXiv:2504.04524", "trpa"),
    _answers("disco", "Li et al. 2025, arXiv:2505.12366", "discriminate", "disco"),
    _answers("drpo", "arXiv:2510.04474, 2025", "cheaper", "drpo"),
    _answers("f-dpg", "Go et al. 2023, arXiv:2302.08215", "f_dpg", "f_dpg_forward_kl"),
    _answers("dpo-pairs", "Rafailov et al. 2023, arXiv:2305.18290", "dpo"),
    _answers("ipo", "Azar et al. 2023, arXiv:2310.12036", "ipo"),
    _answers("sppo", "Wu et al. 2024, arXiv:2405.00675", "sppo"),
    _answers("inpo", "Zhang et al. 2024, arXiv:2407.00617", "inpo"),
    _tree("rover", "arXiv:2509.24981, 2025", "values", "rlx.envs.tasks.tree.exact_values", "test_tree.py"),
    _tree("tree-opo", "arXiv:2509.09284, 2025", "baseline", "rlx.step_credits.start_value", "test_step_credits.py"),
    _tree("branching", "ARPO, arXiv:2507.19849", "start", "rlx.step_credits.branch_shares", "test_step_credits.py"),
    _file("t-ppo", "Truncated PPO, 2025", "ppo_tokens --env Reverse --variant t_ppo", "test_ppo_tokens.py"),
    _file("ppo-max", "Zheng et al. 2023", "ppo_tokens --env Reverse --variant ppo_max", "test_ppo_tokens.py"),
    _file("vapo", "VAPO, 2025", "ppo_tokens --env Reverse --variant vapo", "test_ppo_tokens.py"),
    _file("v-mpo", "Song et al. 2019, arXiv:1909.12238", f"vmpo {CARTPOLE}", "test_vmpo.py"),
)

__all__ = ["MECHANISMS", "Mechanism"]
