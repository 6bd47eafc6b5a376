"""What is done to advantages when they are there: adjustments, masks and weights of steps, and one scale before them.

An adjustment is `adjust(advantage, facts, amount) -> [N, G, T]` of advantages `[N, G, T]`, with `rlx.groups.Facts` and
one number, which may be traced. A mask is `mask(advantage, credit, facts) -> [N, G, T]`: bool, or a float by which a
step counts. What it leaves out either lends its share of the mean to the others, or leaves it empty; each mask says
what its source does. Nothing is read from behind the end of an episode, and what is returned for there is of no
meaning.

Axes: N groups, G members, T time.
"""

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import betaln

from rlx.advantages import std
from rlx.groups import Facts, agree, geometric_mean
from rlx.objectives import clipped_surrogate
from rlx.shapes import kind_shares, known, right

Number = float | jax.Array


def outcome_of(facts: Facts) -> jax.Array:
    """The sum of an episode's rewards, `[N, G]`."""
    return jnp.where(facts.alive, facts.reward, 0.0).sum(axis=-1)


def mapo(advantage: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """A mixture of two advantages of the outcome, `[N, G, T]`, in place of the one given.

        A = (1 - l) (R - mu) / sigma + l (R - mu) / mu,    l = 1 - 4 p (1 - p)

    `mu`, `sigma` are mean and population deviation of the group's outcomes, which may not be negative, and `p` is its
    share of right ones. Both denominators have 1e-6 added. Of hard groups the second part grows as `1 / p`.

    Source: MAPO, 2025, arXiv:2509.18849; its code has Bessel's correction.
    """
    outcome = outcome_of(facts)
    mean = outcome.mean(axis=1, keepdims=True)
    p = right(outcome).mean(axis=1, keepdims=True)
    mixed = 1.0 - 4.0 * p * (1.0 - p)
    spread = std(outcome, axis=1, keepdims=True) + 1e-6
    adjusted = (outcome - mean) * ((1.0 - mixed) / spread + mixed / (mean + 1e-6))
    return jnp.broadcast_to(adjusted[..., None], advantage.shape)


def copo(
    advantage: jax.Array, facts: Facts, amount: Number, middle: Number = 1.5, sharpness: Number = 20.0
) -> jax.Array:
    """The advantage given where a group's answers differ, and that of the task among all tasks where they agree.

        w A + (1 - w) (mu - mean mu) / std mu,    w = sigmoid(20 (H - 1.5)),    H = -sum_k p_k log p_k

    `mu` `[N]` is the mean outcome of a group, and `p_k` are the shares of its kinds of answers. A group whose answers
    are all one wrong one has something to learn from it: the answer is worse than those to other tasks. It is a
    baseline that no task has to itself, so that answers to easy tasks are pushed up, whatever they are. The source has
    groups of 6, of which H is at most 1.79.

    Source: COPO, 2025, arXiv:2508.04138, from an account of the paper. That `mu` is the group's mean, the population
    deviation, kinds and nats in H, and 0 in place of the second part where tasks agree up to rounding are ours.
    """
    mean = outcome_of(facts).mean(axis=1)
    spread = std(mean)
    alike = spread < 1e-5  # rounding
    across = jnp.where(alike, 0.0, (mean - mean.mean()) / jnp.where(alike, 1.0, spread))
    entropy = -jnp.log(kind_shares(known(facts, "kind"))).mean(axis=1)
    local = jax.nn.sigmoid(sharpness * (entropy - middle))[:, None, None]
    return local * advantage + (1.0 - local) * across[:, None, None]


def semantic_entropy(advantage: jax.Array, facts: Facts, amount: Number) -> jax.Array:
    """`A (1 - amount SE / log G)`, `[N, G, T]`: groups whose answers differ count less.

        SE = -1/K sum_k log p_k    over the K kinds of answers in the group, and p_k their shares

    It is 0 for one kind and `log G` for G of them, and not the entropy of the shares. The source has an amount of 0.02.

    Source: SEED-GRPO, 2025, arXiv:2505.12346.
    """
    share, num = kind_shares(known(facts, "kind")), advantage.shape[1]
    members = jnp.round(share * num)  # each counts as the part of its kind that it is
    entropy = -(jnp.log(share) / members).sum(axis=1) / (1.0 / members).sum(axis=1)
    return advantage * (1.0 - amount * entropy / jnp.log(max(num, 2)))[:, None, None]


def hicra(advantage: jax.Array, facts: Facts, amount: Number, planning: jax.Array | None = None) -> jax.Array:
    """`A + amount |A|` on planning tokens, `A` elsewhere, `[N, G, T]`: good plans count more, bad ones less.

    Args:
        advantage: A.
        facts: with entropies, where `planning` is not given.
        amount: the source has 0.2.
        planning: which tokens are, bool `[N, G, T]`; the fifth of all tokens that had the most entropy where it is not
            given, which is ours.

    Source: HICRA, 2025, arXiv:2509.03646.
    """
    if planning is None:
        planning = highest(known(facts, "entropy"), facts.alive, 0.2)
    return advantage + jnp.where(planning, amount * jnp.abs(advantage), 0.0)


def highest(score: jax.Array, alive: jax.Array, share: Number) -> jax.Array:
    """Which steps have the highest scores, bool of the shape of the scores: this share of those alive, rounded.

    Steps that tie with the last one are in, too.
    """
    score = jnp.where(alive, score, -jnp.inf)
    num = jnp.round(share * alive.sum()).astype(jnp.int32)
    least = jnp.sort(score, axis=None)[score.size - jnp.maximum(num, 1)]
    return alive & (score >= least) & (num > 0)


def gtpo(advantage: jax.Array, facts: Facts, amount: Number, largest: Number = 0.7) -> jax.Array:
    """`A - amount H` with the mean entropy H of an episode's steps, and 0 where H is above 0.7 nats, `[N, G, T]`.

    The source has an amount of 0.1. It goes with `conflict`.

    Source: GTPO, 2025, arXiv:2508.03772, and its code.
    """
    total = jnp.where(facts.alive, known(facts, "entropy"), 0.0).sum(axis=-1, keepdims=True)
    entropy = total / jnp.maximum(facts.length[..., None], 1)
    return jnp.where(entropy > largest, 0.0, advantage - amount * entropy)


def beta_scale(outcome: jax.Array) -> jax.Array:
    """The density of a group's mean outcome under a law that fits those of the batch, `[N, 1]` of outcomes 0 to 1.

        p = mean of the group,    m, v = mean and variance of p over the batch, with Bessel's correction
        c = m (1 - m) / v - 1,    alpha = max(1 + c m / 3, 1),    beta = max(1 + c (1 - m) / 3, 1)
        scale = max(Beta(p; alpha, beta), 1e-6)

    Alpha and beta 1 are no scale, 3/2 are `8 / pi sqrt(p (1 - p))`. Groups with p of 0 or 1 have no advantages, and a
    scale of 1. Ours is what the code leaves undefined: c is 0 where there is no variance, and at most 1e4, so that
    float32 can tell the density.

    Source: BNPO, 2025, arXiv:2506.02864, and its code.
    """
    p = outcome.mean(axis=1)
    mean, variance = p.mean(), jnp.var(p, ddof=1) if len(p) > 1 else jnp.zeros(())
    alike = variance < 1e-8  # rounding
    c = jnp.where(alike, 0.0, jnp.minimum(mean * (1.0 - mean) / jnp.where(alike, 1.0, variance) - 1.0, 1e4))
    alpha, beta = jnp.maximum(1.0 + c * mean / 3.0, 1.0), jnp.maximum(1.0 + c * (1.0 - mean) / 3.0, 1.0)
    inside = (p > 1e-6) & (p < 1.0 - 1e-6)
    q = jnp.where(inside, p, 0.5)
    density = jnp.exp((alpha - 1.0) * jnp.log(q) + (beta - 1.0) * jnp.log1p(-q) - betaln(alpha, beta))
    return jnp.where(inside, jnp.maximum(density, 1e-6), 1.0)[:, None]


def degenerate(advantage: jax.Array, credit: jax.Array, facts: Facts) -> jax.Array:
    """Keeps groups whose members differ in their credit, bool `[N, G, T]`; the others lend their share.

    Source: Yu et al. 2025, DAPO, arXiv:2503.14476, which samples more groups in their place.
    """
    return jnp.broadcast_to(~agree(credit)[:, None, None], advantage.shape)


def uncertain(advantage: jax.Array, credit: jax.Array, facts: Facts, below: Number = 0.9) -> jax.Array:
    """Keeps steps to which the acting policy gave a probability under `below`, bool `[N, G, T]`; shares stay empty.

    Source: SPO, 2025, arXiv:2505.23564, and its code.
    """
    return facts.alive & (known(facts, "log_prob") < jnp.log(below))


def best_and_worst(advantage: jax.Array, credit: jax.Array, facts: Facts) -> jax.Array:
    """Keeps the best and the worst episode of each group, the first of those that tie, bool `[N, G, T]`.

    Shares stay empty. It is the rule `max-min` of the resampling by rewards; of a group that agrees one is kept.

    Source: PF-PPO, 2024, arXiv:2409.06957, and its code.
    """
    outcome = outcome_of(facts)
    member = jnp.arange(outcome.shape[1])
    keep = (member == outcome.argmax(axis=1)[:, None]) | (member == outcome.argmin(axis=1)[:, None])
    return jnp.broadcast_to(keep[..., None], advantage.shape)


def short_right_long_wrong(advantage: jax.Array, credit: jax.Array, facts: Facts, share: Number) -> jax.Array:
    """Keeps the shortest right answers of the batch, and the longest wrong ones, bool `[N, G, T]`; shares stay empty.

    Of each kind there are `share`, rounded up. Of answers that are equally long those of the first groups are kept. So
    a policy learns that right answers are short, and that thinking long did not help. Where problems differ in the
    length of their answers it prefers those with short ones.

    Source: RoRecomp, 2025, arXiv:2509.25958, from an account of the paper, which gives no numbers. There the other
    answers are stored, and learned from in an update of their own once the store is full; here they are dropped.
    """
    is_right, length = right(outcome_of(facts)).ravel(), facts.length.ravel()
    cost = jnp.where(is_right, length, -length)
    index = jnp.arange(cost.size)
    ahead = (cost[:, None] < cost) | ((cost[:, None] == cost) & (index[:, None] < index))  # of one before another
    same = is_right[:, None] == is_right
    rank, num = (ahead & same).sum(axis=0), same.sum(axis=0)
    keep = rank < jnp.ceil(share * num)
    return jnp.broadcast_to(keep.reshape(facts.length.shape)[..., None], advantage.shape)


def spread_subset(advantage: jax.Array, credit: jax.Array, facts: Facts, share: Number) -> jax.Array:
    """Keeps the episodes of the batch whose advantages have the largest variance, bool `[N, G, T]`; shares stay empty.

    There are `share` of all, rounded, and at least 1. An episode's advantage is the mean of its steps'. Of the sorted
    ones the best subset is some from the low end and the others from the high end: all such splits are tried. The kept
    ones are more extreme than all, so that their gradient is not unbiased.

    Source: D3S, 2025, arXiv:2509.22115, from an account of the paper. Advantages are to be normalised in their groups.
    """
    total = jnp.where(facts.alive, advantage, 0.0).sum(axis=-1)
    episode = (total / jnp.maximum(facts.length, 1)).ravel()
    num = episode.size
    kept = jnp.clip(jnp.round(share * num), 1, num).astype(jnp.int32)
    order = jnp.argsort(episode)
    x = (episode - episode.mean())[order]
    low = jnp.arange(num + 1)  # how many from the low end
    high = jnp.minimum(num - kept + low, num)  # the first one from the high end
    sums, squares = (jnp.append(0.0, jnp.cumsum(y)) for y in (x, x**2))
    of_split = lambda y: (y[low] + y[num] - y[high]) / kept
    variance = jnp.where(low <= kept, of_split(squares) - of_split(sums) ** 2, -jnp.inf)
    best = jnp.argmax(variance)
    rank = jnp.argsort(order)
    keep = (rank < best) | (rank >= num - kept + best)
    return jnp.broadcast_to(keep.reshape(total.shape)[..., None], advantage.shape)


def informative_tokens(advantage: jax.Array, credit: jax.Array, facts: Facts, share: Number) -> jax.Array:
    """Keeps this share of all steps, those with the largest `|A_t| H_t`, bool `[N, G, T]`; shares stay empty.

    Source: D3S, 2025, arXiv:2509.22115, from an account of the paper.
    """
    return highest(jnp.abs(advantage) * known(facts, "entropy"), facts.alive, share)


def conflict(advantage: jax.Array, credit: jax.Array, facts: Facts) -> jax.Array:
    """Weights of tokens that both good and bad answers of a group begin or end with, `[N, G, T]`: 2, 0, or 1.

    A token is one such if it stands at the same place in an answer above the group's mean and in one below it, and so
    do all before it, from the first token on, or all after it, counted from the last. Good answers count it twice, bad
    ones not at all; all other tokens count 1. Nothing is lent. The published code counts 4 for a token that is both in
    a first and in a last run, and divides by the number of such tokens; here that is left out.

    Good and bad are told by the credit at the first step: give the credit of outcomes.

    Source: GTPO, 2025, arXiv:2508.03772, and its code.
    """
    gain = (credit - credit.mean(axis=1, keepdims=True))[..., 0]
    good, bad = gain > 1e-6, gain < -1e-6
    num, token = facts.alive.shape[-1], known(facts, "token")
    from_end = jnp.clip(facts.length[..., None] - 1 - jnp.arange(num), 0, num - 1)
    backwards = lambda x: jnp.take_along_axis(x, from_end, axis=-1)
    first = _common_run(token, facts.alive, good, bad)
    last = backwards(_common_run(backwards(token), facts.alive, good, bad))
    return jnp.where(first | last, jnp.where(good, 2.0, jnp.where(bad, 0.0, 1.0))[..., None], 1.0)


def _common_run(token: jax.Array, alive: jax.Array, good: jax.Array, bad: jax.Array) -> jax.Array:
    """Whether all tokens of a member up to here stand at their place in a good and in a bad answer, `[N, G, T]`."""
    alike = (token[:, :, None] == token[:, None, :]) & alive[:, :, None] & alive[:, None, :]  # [N, G, G, T]
    met = [(alike & some[:, None, :, None]).any(axis=2) for some in (good, bad)]
    return jnp.cumsum(~(met[0] & met[1]), axis=-1) == 0


def summed(alive: jax.Array) -> jax.Array:
    """Weights `1 / E` of the steps `[N, G, T]`: an episode counts as its length.

    E is the number of episodes with steps, N G, less those of groups that are left out. Of a ratio of whole sequences,
    which has the gradient of their mean step, it makes that of their sum.

    Source: LUSPO, 2026, arXiv:2602.05261, in the form of TRL.
    """
    return alive / jnp.maximum(alive.any(axis=-1).sum(), 1)


def mixed_surrogate(
    log_ratio: jax.Array,
    alive: jax.Array,
    advantage: jax.Array,
    share: Number,
    clip: Number,
    clip_high: Number,
    sequence_clip: Number,
    sequence_clip_high: Number,
) -> jax.Array:
    """`share` of the clipped surrogate of the step's ratio, and the rest of that of the sequence's, `[..., T]`.

        -(w min(rho A, clip(rho) A) + (1 - w) min(s A, clip(s) A)),    s = exp(1/L sum_t log rho_t)

    Each ratio is clipped in its own range. 1 is GRPO, 0 is GSPO. The share is one number or `[..., T]`, such as one
    that depends on the entropy of a step, and is not differentiated. It is 0 behind the end.

    Source: DHPO, 2026, arXiv:2601.05607, from an account of the paper: that surrogates are mixed, and not the clipped
    ratios, is ours. They differ where one of the two is clipped.
    """
    chex.assert_equal_shape([log_ratio, alive, advantage])
    share = jax.lax.stop_gradient(share)
    log_ratio, advantage = jnp.where(alive, log_ratio, 0.0), jnp.where(alive, advantage, 0.0)
    step = clipped_surrogate(log_ratio, advantage, clip, clip_high)
    sequence = clipped_surrogate(geometric_mean(log_ratio, alive), advantage, sequence_clip, sequence_clip_high)
    return share * step + (1.0 - share) * sequence
