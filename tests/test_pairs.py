"""Losses of whole answers: their equations, and what they come to where all groups of a small bandit are enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import groups, pairs
from rlx.pairs import DIVERGENCES, LOSSES

N, G = 8, 4
OUTCOME = np.array([2.5, 2.0, 1.0])  # of the arms of a bandit
SKEWED = np.array([0.1, 0.2, 0.7]), np.array([0.05, 0.05, 0.9])  # who else may write answers
UNIFORM = np.full(3, 1 / 3)
ACTING = np.array([0.5, 0.2, 0.3])
# A game of three kinds in which each beats one: no outcome of theirs explains it, and nobody beats (.5, .2, .3).
GAME = np.array([[0.5, 0.8, 0.3], [0.2, 0.5, 1.0], [0.7, 0.0, 0.5]])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def softmax(x):
    p = np.exp(x - x.max())
    return p / p.sum()


def all_groups(size, num=3):
    """Every group of so many arms, `[num^size, size]`."""
    return np.stack(np.meshgrid(*[np.arange(num)] * size, indexing="ij"), axis=-1).reshape(-1, size)


def expected(loss, *laws):
    """The mean of `loss(log_prob [M, G], arm [M, G])` over all groups whose members are drawn by these laws.

    It is a function of the logits of a policy.
    """
    arm = all_groups(len(laws), len(laws[0]))
    weight = np.prod([law[arm[:, g]] for g, law in enumerate(laws)], axis=0)
    return lambda logits: (weight * loss(jax.nn.log_softmax(logits)[arm], arm)).sum()


def lowest(function, num=3, steps=1):
    """The policy where a function of logits is lowest, by Newton's method: of a quadratic one in a step."""
    slopes = jax.jit(lambda x: (jax.grad(function)(x), jax.hessian(function)(x)))
    logits = np.zeros(num)
    for _ in range(steps):
        gradient, curvature = slopes(logits)
        logits = logits - np.linalg.pinv(curvature, rcond=1e-9) @ gradient
    np.testing.assert_allclose(slopes(logits)[0], 0, atol=1e-9)
    return softmax(logits)


def gradient(function, policy):
    return np.asarray(jax.jit(jax.grad(function))(np.log(policy)))


def true_gradient(policy, outcome):
    """Of `E R` in the logits."""
    return policy * (outcome - policy @ outcome)


@pytest.fixture(scope="module")
def answers():
    """Groups of answers as plain numbers: outcomes that tie, and groups in which all are right or wrong."""
    rng = np.random.default_rng(0)
    found = {name: rng.normal(-3, 1, (N, G)) for name in ("log_prob", "old", "reference")}
    found |= {"mean_ratio": rng.uniform(0.5, 2, (N, G)), "length": rng.integers(1, 9, (N, G))}
    outcome = rng.choice([0.0, 0.25, 1.0], (N, G))
    outcome[0], outcome[1] = 1.0, [0.0, 0.25, 0.25, 0.0]
    preference = rng.random((N, G, G))
    preference = (preference + 1 - preference.swapaxes(1, 2)) / 2
    return found | {"outcome": outcome, "cost": found["length"] / 8, "preference": preference, "value": rng.random(N)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def of_pairs(term):
    """The mean of `term(i, j)` over all i and j that are not the same."""
    return np.mean([term(i, j) for i in range(G) for j in range(G) if i != j])


def clipped(ratio, gain, clip):
    return -min(ratio * gain, min(max(ratio, 1 - clip), 1 + clip) * gain)


def scored(x, epsilon):
    return (x - np.mean(x)) / (np.sqrt(sum((x - np.mean(x)) ** 2) / (G - 1)) + epsilon)


def contrast(x, score, tau=None, weight=None):
    right = [i for i in range(G) if x["outcome"][i] > 0.5]
    wrong = [i for i in range(G) if i not in right]
    if not right or not wrong:
        return 0.0
    weight = np.ones(G) if weight is None else weight
    good = sum(weight[i] * score[i] for i in right) / sum(weight[i] for i in right)
    bad = [score[i] for i in wrong]
    return (np.mean(bad) if tau is None else tau * np.log(np.mean(np.exp(np.array(bad) / tau)))) - good


SLOPES = {
    "forward_kl": lambda t: -1 / t,
    "reverse_kl": lambda t: np.log(t) + 1,
    "jensen_shannon": lambda t: np.log(2 * t / (1 + t)),
    "total_variation": lambda t: np.sign(t - 1) / 2,
    "chi2": lambda t: 1 - t**-2,
    "reverse_chi2": lambda t: 2 * (t - 1),
}


def towards(slope):
    def loss(x, beta, amount):
        pi, q = np.exp(x["log_prob"]), np.exp(x["old"])
        p = np.exp(x["reference"]) * np.exp(x["outcome"] / beta)
        p /= np.mean(p / q)
        weighted = [pi[i] / q[i] * slope(pi[i] / p[i]) for i in range(G)]
        others = [np.mean([weighted[j] for j in range(G) if j != i]) for i in range(G)]
        return np.mean([(weighted[i] - pi[i] / q[i] * others[i]) * x["log_prob"][i] for i in range(G)])

    return loss


def shares(x):
    return [np.mean([x["preference"][i, j] for j in range(G) if j != i]) for i in range(G)]


# Each loss of one group, written from its equation: `lr` is to the reference, `moved` to the policy that wrote.
ORACLES = {
    "rebel": lambda x, b, _: of_pairs(
        lambda i, j: (x["lr"][i] - x["lr"][j] - (x["outcome"][i] - x["outcome"][j]) / b) ** 2
    ),
    "gvpo": lambda x, b, _: sum(
        (b * x["lr"] - np.mean(b * x["lr"]) - (x["outcome"] - np.mean(x["outcome"]))) ** 2 / (2 * (G - 1))
    ),
    "copg": lambda x, b, _: of_pairs(
        lambda i, j: (
            -(x["outcome"][i] - b / 2 * x["lr"][i] - x["outcome"][j] + b / 2 * x["lr"][j]) * (x["lr"][i] - x["lr"][j])
        )
    ),
    "reg_grpo": lambda x, _, e: np.mean((scored(x["outcome"], 1e-4) - scored(x["lr"], e)) ** 2),
    "a_star_po": lambda x, b, _: np.mean((b * x["lr"] + x["value"] - x["outcome"]) ** 2),
    "p3o": lambda x, _, c: of_pairs(
        lambda i, j: 0.5 * clipped(np.exp(x["moved"][i] - x["moved"][j]), x["outcome"][i] - x["outcome"][j], c)
    ),
    "p3o_separate": lambda x, _, c: of_pairs(
        lambda i, j: clipped(np.exp(x["moved"][i]), x["outcome"][i] - x["outcome"][j], c)
    ),
    "disco": lambda x, b, _: contrast(x, x["log_prob"] / x["length"], b),
    "disco_basic": lambda x, b, _: contrast(x, x["log_prob"] / x["length"]),
    "disco_ratio": lambda x, b, _: contrast(x, x["mean_ratio"], b),
    "disco_ratio_basic": lambda x, b, _: contrast(x, x["mean_ratio"]),
    "drpo": lambda x, b, a: contrast(x, x["log_prob"] / x["length"], b, np.exp((1 - x["cost"]) / a)),
    "dpo": lambda x, b, _: of_pairs(
        lambda i, j: (
            -x["preference"][i, j] * np.log(sigmoid(b * (x["lr"][i] - x["lr"][j])))
            - x["preference"][j, i] * np.log(sigmoid(b * (x["lr"][j] - x["lr"][i])))
        )
    ),
    "ipo": lambda x, b, _: of_pairs(lambda i, j: (x["lr"][i] - x["lr"][j] - (x["preference"][i, j] - 0.5) / b) ** 2),
    "sppo": lambda x, b, _: np.mean((x["moved"] - (np.array(shares(x)) - 0.5) / b) ** 2),
    "inpo": lambda x, b, m: of_pairs(
        lambda i, j: (
            (
                (x["log_prob"] - m * x["reference"] - (1 - m) * x["old"])[i]
                - (x["log_prob"] - m * x["reference"] - (1 - m) * x["old"])[j]
                - (x["preference"][i, j] - 0.5) / b
            )
            ** 2
        )
    ),
} | {f"f_dpg_{name}": towards(slope) for name, slope in SLOPES.items()}


def test_every_loss_is_its_equation(answers):
    temperature, amount = 0.7, 0.3
    found = jax.jit(lambda x: {name: loss(x, temperature, amount) for name, loss in LOSSES.items()})(
        pairs.Answers(**answers)
    )
    assert found.keys() == ORACLES.keys() | {"trpa"}
    for name, oracle in ORACLES.items():
        for n in range(N):
            x = {key: value[n] for key, value in answers.items()}
            x |= {"lr": x["log_prob"] - x["reference"], "moved": x["log_prob"] - x["old"]}
            np.testing.assert_allclose(found[name][n], oracle(x, temperature, amount), rtol=1e-9, err_msg=name)


def test_whole_answers_are_the_sums_over_their_tokens():
    rng = np.random.default_rng(1)
    log_prob, old, reference = rng.normal(-1, 0.5, (3, 2, G, 5))
    length = rng.integers(1, 6, (2, G))
    alive = np.arange(5) < length[..., None]
    spoiled = [np.where(alive, x, 1e3) for x in (log_prob, old, reference)]
    found = pairs.whole(*spoiled, alive, outcome=1.0, preference=2.0, value=3.0)
    for n in range(2):
        for i in range(G):
            size = length[n, i]
            for name, x in (("log_prob", log_prob), ("old", old), ("reference", reference)):
                np.testing.assert_allclose(getattr(found, name)[n, i], sum(x[n, i, :size]))
            ratio = np.mean(np.exp(log_prob - old)[n, i, :size])
            np.testing.assert_allclose(found.mean_ratio[n, i], ratio)
            np.testing.assert_allclose((found.length[n, i], found.cost[n, i]), (size, size / 5))
    assert (found.outcome, found.preference, found.value) == (1.0, 2.0, 3.0)
    np.testing.assert_allclose(found.log_ratio, found.log_prob - found.reference)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_numbers_where_a_group_has_nothing_to_tell(name, answers):
    """All members alike, all right, all wrong, no change of the policy yet, and log-ratios that have no exponential."""
    rng = np.random.default_rng(2)
    same = np.zeros((5, G))
    outcome = np.stack([np.ones(G), np.zeros(G), np.full(G, 0.25), np.array([0.0, 0, 0, 1]), np.ones(G)])
    far = np.where(np.arange(5)[:, None] == 4, rng.choice([-1e3, 1e3], (5, G)), 0.0)
    given = {"old": same - 3, "reference": same - 3, "mean_ratio": same + 1, "length": same + 4, "cost": same + 0.5}
    given |= {"outcome": outcome, "preference": pairs.bradley_terry(outcome, 1e-3), "value": np.zeros(5)}
    if name.startswith("f_dpg"):  # which has the exponentials of both signs
        far = far * 0.0
    loss = lambda log_prob: LOSSES[name](pairs.Answers(log_prob, **given), 0.05, 0.2).sum()
    assert np.isfinite(jax.jit(jax.grad(loss))(same - 3 + far)).all()


def test_the_regression_is_the_mean_over_all_pairs_and_gvpo_a_quarter_of_it():
    rng = np.random.default_rng(3)
    lr, outcome = rng.normal(size=(2, N, 5))
    u = 0.3 * lr - outcome
    loop = [np.mean([(row[i] - row[j]) ** 2 for i in range(5) for j in range(i)]) for row in u]
    np.testing.assert_allclose(pairs.regression(lr, outcome, 0.3), loop)
    spread = ((u - u.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    np.testing.assert_allclose(loop, 2 / (5 - 1) * spread)
    np.testing.assert_allclose(pairs.gvpo(lr, outcome, 0.3), spread / (2 * (5 - 1)))
    np.testing.assert_allclose(pairs.rebel(lr, outcome, 0.3), np.array(loop) / 0.3**2)


def test_steps_of_rebel_are_exponentiated_gradients():
    """The lowest point over all pairs of the acting policy is `pi_old exp(eta R) / Z`, again and again."""
    eta, policy = 0.8, ACTING
    for _ in range(3):
        old = np.log(policy)
        loss = lambda log_prob, arm, old=old: pairs.rebel(log_prob - old[arm], OUTCOME[arm], 1 / eta)
        new = lowest(expected(loss, policy, policy))
        np.testing.assert_allclose(new, softmax(old + eta * OUTCOME), atol=1e-9)
        policy = new
    np.testing.assert_allclose(policy, softmax(np.log(ACTING) + 3 * eta * OUTCOME), atol=1e-9)


@pytest.mark.parametrize("laws", [(ACTING,) * 3, (SKEWED[0],) * 3, (UNIFORM, *SKEWED)])
def test_gvpo_is_lowest_at_one_policy_whoever_wrote_the_answers(laws):
    beta = 0.5
    loss = lambda log_prob, arm: pairs.gvpo(log_prob - np.log(ACTING)[arm], OUTCOME[arm], beta)
    target = softmax(np.log(ACTING) + OUTCOME / beta)
    function = expected(loss, *laws)
    np.testing.assert_allclose(lowest(function), target, atol=1e-9)
    np.testing.assert_allclose(function(np.log(target)), 0, atol=1e-12)
    # A policy gradient held to the reference in the same way stays there for answers of the policy alone.
    kept = lambda log_prob, arm: (
        -(jax.lax.stop_gradient(OUTCOME[arm] - beta * (log_prob - np.log(ACTING)[arm]) - 1) * log_prob).mean(axis=-1)
    )
    held, lost = (np.abs(gradient(expected(kept, *by), target)).max() for by in ((target,), (SKEWED[1],)))
    assert held < 1e-9 < 1e-2 < lost


def test_gvpo_has_a_gradient_through_its_means_that_is_nothing_and_three_parts():
    rng = np.random.default_rng(4)
    lr, outcome = rng.normal(size=(2, N, G))
    beta = 0.3

    def detached(lr):
        u = beta * lr - outcome
        u -= jax.lax.stop_gradient(u.mean(axis=-1, keepdims=True))
        return (u**2).sum() / (2 * (G - 1))

    def parts(lr):
        centred = lambda x: x - x.mean(axis=-1, keepdims=True)
        covariance = (centred(lr) * centred(outcome)).sum() / (G - 1)
        return -beta * covariance + beta**2 / 2 * (centred(lr) ** 2).sum() / (G - 1)

    found = jax.grad(lambda lr: pairs.gvpo(lr, outcome, beta).sum())(lr)
    np.testing.assert_allclose(jax.grad(detached)(lr), found, atol=1e-12)
    np.testing.assert_allclose(jax.grad(parts)(lr), found, atol=1e-12)


@pytest.mark.parametrize("laws", [SKEWED, SKEWED[::-1], (UNIFORM, UNIFORM)])
def test_copg_learns_the_bandit_of_its_paper_from_answers_of_others(laws):
    loss = lambda log_prob, arm: pairs.copg(log_prob - np.log(UNIFORM)[arm], OUTCOME[arm], 0.5)
    np.testing.assert_allclose(lowest(expected(loss, *laws)), [0.705, 0.259, 0.035], atol=1e-3)


def test_copg_is_rebel_with_another_reference_and_its_gradient_that_of_the_surrogate():
    rng = np.random.default_rng(5)
    lr, outcome = rng.normal(size=(2, N, 2))
    beta = 0.4
    square = (pairs.regression(lr, outcome, beta) - (outcome[:, 0] - outcome[:, 1]) ** 2) / (2 * beta)
    np.testing.assert_allclose(pairs.copg(lr, outcome, beta), square, atol=1e-12)
    found = jax.grad(lambda lr: pairs.copg(lr, outcome, beta).sum())(lr)
    penalised = outcome - beta * lr
    gain = penalised[:, 0] - penalised[:, 1]
    np.testing.assert_allclose(found, np.stack([-gain, gain], axis=1), atol=1e-12)
    # Which is twice the leave-one-out policy gradient of rewards with the KL in them.
    np.testing.assert_allclose(found, 2 * leave_one_out(penalised), atol=1e-12)


def leave_one_out(outcome):
    """The gradient, in the log-probabilities of a group, of `-mean_i (R_i - mean of the others) l_i`."""
    size = outcome.shape[-1]
    others = (outcome.sum(axis=-1, keepdims=True) - outcome) / (size - 1)
    return -(outcome - others) / size


@pytest.mark.parametrize("size", [2, 4])
def test_at_the_acting_policy_pairs_have_the_leave_one_out_gradient(size):
    rng = np.random.default_rng(6)
    outcome, zero = rng.normal(size=(N, size)), np.zeros((N, size))
    slope = lambda loss, *rest: jax.grad(lambda lr: loss(lr, outcome, *rest).sum())(zero)
    wanted = leave_one_out(outcome)
    np.testing.assert_allclose(slope(pairs.rebel, 1 / 0.7), 4 * 0.7 * wanted, atol=1e-12)
    np.testing.assert_allclose(slope(pairs.gvpo, 0.7), 0.7 * wanted, atol=1e-12)
    np.testing.assert_allclose(slope(pairs.copg, 0.7), 2 * wanted, atol=1e-12)
    np.testing.assert_allclose(slope(pairs.p3o, 0.2), wanted, atol=1e-12)
    np.testing.assert_allclose(slope(pairs.p3o_separate, 0.2), wanted, atol=1e-12)


@pytest.mark.parametrize("name", ["rebel", "gvpo", "copg", "reg_grpo", "p3o", "p3o_separate"])
def test_a_constant_of_a_prompt_changes_nothing(name, answers):
    x, shift = pairs.Answers(**answers), np.arange(1.0, N + 1)[:, None]
    moved = pairs.Answers(**answers | {"outcome": answers["outcome"] + shift})
    np.testing.assert_allclose(LOSSES[name](moved, 0.7, 0.3), LOSSES[name](x, 0.7, 0.3), rtol=1e-9)


def test_reg_grpo_is_lowest_where_log_ratios_are_in_the_order_of_outcomes_however_far_apart():
    rng = np.random.default_rng(7)
    outcome = rng.normal(size=(N, G))
    for slope in (0.1, 1.0, 30.0):
        np.testing.assert_allclose(pairs.reg_grpo(slope * outcome - 2, outcome, 0.0), 0, atol=1e-6)
    lr = rng.normal(size=(N, G))
    assert (pairs.reg_grpo(lr, outcome, 0.0) > 0.01).all()
    np.testing.assert_allclose(pairs.reg_grpo(9 * lr, outcome, 0.0), pairs.reg_grpo(lr, outcome, 0.0))
    found = jax.grad(lambda lr: pairs.reg_grpo(lr, outcome, 0.01).sum())(np.zeros((N, G)))
    z = (outcome - outcome.mean(axis=1, keepdims=True)) / outcome.std(axis=1, ddof=1, keepdims=True)
    np.testing.assert_allclose(found, -2 / (G * 0.01) * z, rtol=1e-3)  # GRPO's


def test_optimal_values_are_between_the_mean_and_the_best():
    rng = np.random.default_rng(8)
    outcome = rng.normal(size=(N, 8))
    np.testing.assert_allclose(pairs.optimal_value(outcome, 1e6), outcome.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(pairs.optimal_value(outcome, 1e-3), outcome.max(axis=1), atol=3e-3)
    np.testing.assert_allclose(pairs.optimal_value(outcome, 0.5), 0.5 * np.log(np.mean(np.exp(outcome / 0.5), axis=1)))
    for num in range(9):
        p, binary = num / 8, (np.arange(8) < num).astype(float)
        wanted = 0.5 * np.log(1 + p * (np.exp(1 / 0.5) - 1))
        np.testing.assert_allclose(pairs.optimal_value(binary, 0.5), wanted, atol=1e-12)


def test_a_star_po_is_zero_at_the_best_policy_and_nowhere_else():
    beta = 0.5
    value = beta * np.log(ACTING @ np.exp(OUTCOME / beta))
    loss = lambda log_prob, arm: pairs.a_star_po(log_prob - np.log(ACTING)[arm], OUTCOME[arm], jnp.full(3, value), beta)
    function = expected(loss, ACTING)
    best = softmax(np.log(ACTING) + OUTCOME / beta)
    np.testing.assert_allclose(function(np.log(best)), 0, atol=1e-12)
    np.testing.assert_allclose(gradient(function, best), 0, atol=1e-9)
    for other in (ACTING, UNIFORM, best[::-1]):
        assert function(np.log(other)) > 0.01
        assert np.abs(gradient(function, other)).max() > 1e-2


def test_p3o_without_a_clip_has_the_gradient_of_the_return_of_another_policy():
    """Each answer with a weight of its own; the ratio of both weights is right at the acting policy alone."""
    other = np.array([0.3, 0.45, 0.25])
    slope = {}
    for name in ("p3o", "p3o_separate"):
        loss = lambda lp, arm, name=name: getattr(pairs, name)(lp - np.log(ACTING)[arm], OUTCOME[arm], jnp.inf)
        function = expected(loss, ACTING, ACTING, ACTING)
        np.testing.assert_allclose(gradient(function, ACTING), -true_gradient(ACTING, OUTCOME), atol=1e-12)
        slope[name] = gradient(function, other)
    np.testing.assert_allclose(slope["p3o_separate"], -true_gradient(other, OUTCOME), atol=1e-12)
    assert np.abs(slope["p3o"] + true_gradient(other, OUTCOME)).max() > 1e-3


def test_p3o_stops_where_a_pair_is_far_enough_apart():
    outcome = np.array([1.0, 0.0])
    for name, apart in (("p3o", np.array([0.15, -0.15])), ("p3o_separate", np.array([0.25, -0.25]))):
        loss = lambda lr, name=name: getattr(pairs, name)(lr, outcome, 0.2)
        assert np.abs(jax.grad(loss)(0.5 * apart)).min() > 0.1
        np.testing.assert_array_equal(jax.grad(loss)(apart), 0)
        assert np.abs(jax.grad(loss)(-apart)).min() > 0.1  # the wrong way


def levels(lr, outcome, beta, factor):
    """TRPA of all groups, pair by pair."""
    terms = []
    for ratios, grades in zip(lr, outcome, strict=True):
        for m, r in zip(ratios, grades, strict=True):
            for other, lower in zip(ratios, grades, strict=True):
                if r > lower:
                    terms.append(-np.log(sigmoid((factor if r > 0.5 else 1.0) * beta * (m - other))))
    if not terms:
        terms = [-np.log(sigmoid(m if r > 0.5 else -m)) for m, r in zip(lr.ravel(), outcome.ravel(), strict=True)]
    return np.mean(terms)


def test_trpa_is_the_mean_over_all_pairs_of_different_levels(answers):
    lr = (answers["log_prob"] - answers["reference"]) / answers["length"]
    found = LOSSES["trpa"](pairs.Answers(**answers), 0.7, 2.5)
    np.testing.assert_allclose(found.mean(), levels(lr, answers["outcome"], 0.7, 2.5))
    assert found[0] == 0  # a group of one level has no pair
    for grade in (0.0, 0.25, 1.0):
        same = np.full((N, G), grade)
        np.testing.assert_allclose(pairs.trpa(lr, same, 0.7, 2.5).mean(), levels(lr, same, 0.7, 2.5))


def test_trpa_of_two_levels_is_dpo():
    rng = np.random.default_rng(9)
    lr = rng.normal(size=(N, 2))
    outcome = np.stack([np.arange(N) % 2, 1.0 - np.arange(N) % 2], axis=1)
    preference = (np.sign(outcome[:, :, None] - outcome[:, None]) + 1) / 2
    np.testing.assert_allclose(pairs.trpa(lr, outcome, 0.3, 1.0), pairs.dpo(lr, preference, 0.3))
    turned = lambda x: x[:, ::-1]
    np.testing.assert_allclose(pairs.trpa(turned(lr), turned(outcome), 0.3, 2.5), pairs.trpa(lr, outcome, 0.3, 2.5))


@pytest.fixture
def contrasted():
    """Scores and which answers are right, of groups that have both."""
    rng = np.random.default_rng(10)
    right = rng.random((N, 6)) < 0.5
    right[:, 0], right[:, 1] = True, False
    return rng.normal(size=(N, 6)), right


def test_disco_pushes_wrong_answers_down_by_a_softmax_of_their_scores(contrasted):
    score, right = contrasted
    found = np.asarray(jax.grad(lambda s: pairs.discriminate(s, right, 0.5).sum())(score))
    for n in range(N):
        wrong = np.exp(score[n][~right[n]] / 0.5)
        np.testing.assert_allclose(found[n][~right[n]], wrong / wrong.sum())
        np.testing.assert_allclose(found[n][right[n]], -1 / right[n].sum())
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-12)


def test_disco_of_a_high_temperature_is_its_basic_form(contrasted):
    score, right = contrasted
    np.testing.assert_allclose(pairs.discriminate(score, right, 1e7), pairs.contrast(score, right), atol=1e-6)
    single = lambda x: jnp.asarray(x, jnp.float32)  # in which the difference of two logarithms would be lost
    near = pairs.discriminate(single(score), right, single(1e5))
    np.testing.assert_allclose(near, pairs.contrast(single(score), right), atol=1e-4)


def test_disco_of_ratios_is_grpo_without_its_weight_of_a_prompt(contrasted):
    score, right = contrasted
    advantage = right - right.mean(axis=1, keepdims=True)
    dr_grpo = np.asarray(jax.grad(lambda s: -(advantage * s).mean(axis=1).sum())(score))
    p = right.mean(axis=1, keepdims=True)
    found = np.asarray(jax.grad(lambda s: pairs.contrast(s, right).sum())(score))
    np.testing.assert_allclose(p * (1 - p) * found, dr_grpo, atol=1e-12)


def test_the_hinge_has_the_gradient_of_a_square():
    kl = np.array([-1.0, 0.0, 0.05, 0.2, 3.0])
    found = jax.grad(lambda kl: pairs.hinged(kl, 7.0, 0.1).sum())(kl)
    square = jax.grad(lambda kl: (7.0 / 2 * jnp.maximum(kl - 0.1, 0.0) ** 2).sum())(kl)
    np.testing.assert_allclose(found, square)
    np.testing.assert_allclose(pairs.hinged(kl, 7.0, 0.1), [0, 0, 0, 7 * 0.1 * 0.2, 7 * 2.9 * 3])


def test_drpo_is_between_disco_and_the_shortest_right_answer(contrasted):
    score, right = contrasted
    cost = np.random.default_rng(11).permuted(np.tile(np.arange(1, 7) / 6, (N, 1)), axis=1)
    weight = np.asarray(pairs.cheaper(cost, right, 0.1))
    np.testing.assert_allclose(weight.sum(axis=1), 1)
    np.testing.assert_array_equal(weight[~right], 0)
    np.testing.assert_allclose(pairs.cheaper(cost, right, 1e9), right / right.sum(axis=1, keepdims=True), atol=1e-8)
    shortest = np.argmin(np.where(right, cost, np.inf), axis=1)
    np.testing.assert_allclose(pairs.cheaper(cost, right, 1e-3), np.eye(6)[shortest], atol=1e-12)
    slope = np.asarray(jax.grad(lambda s: pairs.discriminate(s, right, 10.0, weight).sum())(score))
    assert (slope[right] < 0).all()  # a long one is not pushed down
    plain = np.asarray(jax.grad(lambda s: pairs.discriminate(s, right, 10.0).sum())(score))
    np.testing.assert_allclose(slope[~right], plain[~right])
    np.testing.assert_array_equal(pairs.cheaper(cost, np.zeros_like(right), 0.1), 0)


# The divergences themselves, of probabilities; the generator of Jensen and Shannon's makes it twice.
EXACT_DIVERGENCES = {
    "forward_kl": lambda pi, p: (p * (jnp.log(p) - jnp.log(pi))).sum(),
    "reverse_kl": lambda pi, p: (pi * (jnp.log(pi) - jnp.log(p))).sum(),
    "jensen_shannon": lambda pi, p: (
        2
        * (
            0.5 * (pi * (jnp.log(pi) - jnp.log((pi + p) / 2))).sum()
            + 0.5 * (p * (jnp.log(p) - jnp.log((pi + p) / 2))).sum()
        )
    ),
    "total_variation": lambda pi, p: 0.5 * jnp.abs(pi - p).sum(),
    "chi2": lambda pi, p: (p**2 / pi).sum() - 1,
    "reverse_chi2": lambda pi, p: (pi**2 / p).sum() - 1,
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_dpg_has_the_gradient_of_its_divergence(name):
    """In the mean over all groups of another policy, with the target's normaliser known."""
    target = softmax(np.log(ACTING) + OUTCOME / 0.8)
    law, policy = SKEWED[0], np.array([0.2, 0.45, 0.35])
    loss = lambda log_prob, arm: pairs.f_dpg(log_prob, np.log(law)[arm], np.log(target)[arm], name)
    function = expected(loss, law, law, law)
    exact = lambda logits: EXACT_DIVERGENCES[name](jax.nn.softmax(logits), target)
    np.testing.assert_allclose(gradient(function, policy), gradient(exact, policy), atol=1e-12)
    if name != "total_variation":  # which has a corner there
        np.testing.assert_allclose(gradient(function, target), 0, atol=1e-12)
    assert np.abs(gradient(exact, policy)).max() > 0.02


def test_f_dpg_knows_policy_gradients_and_weighted_likelihood():
    beta, law, policy = 0.8, SKEWED[0], np.array([0.2, 0.45, 0.35])
    target = softmax(np.log(ACTING) + OUTCOME / beta)
    slope = {}
    for name in ("forward_kl", "reverse_kl"):
        loss = lambda lp, arm, name=name: pairs.f_dpg(lp, np.log(law)[arm], np.log(target)[arm], name)
        slope[name] = gradient(expected(loss, law, law), policy)
    penalised = OUTCOME - beta * (np.log(policy) - np.log(ACTING))
    np.testing.assert_allclose(slope["reverse_kl"], -true_gradient(policy, penalised) / beta, atol=1e-12)
    np.testing.assert_allclose(slope["forward_kl"], policy - target, atol=1e-12)  # of -E_p log pi


def test_the_target_of_a_group_of_all_answers_is_normalised():
    beta = 0.8
    law = np.array([0.5, 0.25, 0.25])
    arm = np.array([0, 0, 1, 2])  # as often as the law has it
    found = pairs.boltzmann(np.log(law)[arm], np.log(ACTING)[arm], OUTCOME[arm], beta)
    np.testing.assert_allclose(np.exp(found), softmax(np.log(ACTING) + OUTCOME / beta)[arm])


def test_dpo_is_lowest_at_the_policy_of_the_rewards_behind_the_preferences():
    beta, tau = 0.4, 1.5
    loss = lambda log_prob, arm: pairs.dpo(
        log_prob - np.log(ACTING)[arm], pairs.bradley_terry(jnp.asarray(OUTCOME)[arm], tau), beta
    )
    wanted = softmax(np.log(ACTING) + OUTCOME / (beta * tau))
    for laws in (SKEWED, (ACTING,) * 3):
        np.testing.assert_allclose(lowest(expected(loss, *laws), steps=25), wanted, atol=1e-8)


def test_dpo_in_the_mean_over_labels_is_that_of_probabilities():
    rng = np.random.default_rng(12)
    lr, p = rng.normal(size=2), 0.3
    label = lambda p: np.array([[0.5, p], [1 - p, 0.5]])
    mean = p * pairs.dpo(lr, label(1.0), 0.7) + (1 - p) * pairs.dpo(lr, label(0.0), 0.7)
    np.testing.assert_allclose(pairs.dpo(lr, label(p), 0.7), mean)
    np.testing.assert_allclose(pairs.dpo(lr, label(1.0), 0.7), -np.log(sigmoid(0.7 * (lr[0] - lr[1]))))


def test_ipo_is_copg_with_labels_of_a_quarter():
    rng = np.random.default_rng(13)
    lr, beta = rng.normal(size=(N, 2)), 0.4
    wins = np.broadcast_to([[0.5, 1.0], [0.0, 0.5]], (N, 2, 2))
    label = np.broadcast_to([0.25, -0.25], (N, 2))
    np.testing.assert_allclose(pairs.ipo(lr, wins, beta), (lr[:, 0] - lr[:, 1] - 1 / (2 * beta)) ** 2)
    constant = 0.5**2 / (2 * beta)
    np.testing.assert_allclose(beta / 2 * pairs.ipo(lr, wins, beta) - constant, pairs.copg(lr, label, beta))


def test_ipo_over_all_pairs_is_the_regression_on_shares_of_wins(answers):
    lr, preference = answers["log_prob"] - answers["reference"], answers["preference"]
    share = (G - 1) / G * groups.win_share(preference)
    slope = lambda loss: jax.grad(lambda lr: loss(lr).sum())(lr)
    found = slope(lambda lr: pairs.ipo(lr, preference, 0.3))
    np.testing.assert_allclose(slope(lambda lr: pairs.regression(lr, share, 0.3) / 0.3**2), found, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_inpo_is_lowest_at_a_step_of_mirror_descent_held_to_the_first_policy(size):
    first, old, beta, mix = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1]), 0.6, 0.25
    loss = lambda lp, arm: pairs.inpo(
        lp, np.log(old)[arm], np.log(first)[arm], pairs.of_kinds(jnp.asarray(arm), GAME), beta, mix
    )
    wanted = softmax(mix * np.log(first) + (1 - mix) * np.log(old) + GAME @ old / beta)
    np.testing.assert_allclose(lowest(expected(loss, *[old] * size)), wanted, atol=1e-9)


def test_inpo_comes_to_rest_at_the_equilibrium_with_a_kl():
    """Where `pi = pi_ref exp(P(y > pi) / tau) / Z`, which no answer improves on; without the KL it goes in circles."""
    first, beta, mix = UNIFORM, 1.0, 0.25
    policy = np.array([0.8, 0.1, 0.1])
    for _ in range(200):
        policy = softmax(mix * np.log(first) + (1 - mix) * np.log(policy) + GAME @ policy / beta)
    np.testing.assert_allclose(policy, softmax(np.log(first) + GAME @ policy / (mix * beta)), atol=1e-12)
    loss = lambda lp, arm: pairs.inpo(
        lp, np.log(policy)[arm], np.log(first)[arm], pairs.of_kinds(jnp.asarray(arm), GAME), beta, mix
    )
    np.testing.assert_allclose(gradient(expected(loss, policy, policy, policy), policy), 0, atol=1e-9)


@pytest.mark.parametrize(("table", "winner"), [(GAME, ACTING), (np.array(pairs.CYCLE), UNIFORM)])
def test_sppo_rests_at_the_minimax_winner_and_nowhere_else(table, winner):
    np.testing.assert_allclose(table @ winner, 0.5)
    for policy in (winner, np.array([0.3, 0.3, 0.4])):
        loss = lambda lp, arm, policy=policy: pairs.sppo(
            lp - np.log(policy)[arm], pairs.of_kinds(jnp.asarray(arm), table), 0.5
        )
        # The first step is that of a policy gradient whose reward is how probably an answer wins.
        wanted = -2 / 0.5 * true_gradient(policy, table @ policy)
        np.testing.assert_allclose(gradient(expected(loss, *[policy] * 3), policy), wanted, atol=1e-12)
        assert (np.abs(wanted).max() < 1e-12) == (policy is winner)


def test_no_reward_that_explains_comparisons_rests_at_the_minimax_winner():
    """Unless the winner itself wrote all that was compared: then all rewards are the same."""
    np.testing.assert_allclose(np.ptp(fitted(GAME, ACTING)), 0, atol=1e-9)
    reward = fitted(GAME, UNIFORM)
    judge = lambda arm: pairs.bradley_terry(jnp.asarray(reward)[arm], 1.0)
    for loss in (
        lambda lp, arm: pairs.gvpo(lp - np.log(ACTING)[arm], reward[arm], 0.5),
        lambda lp, arm: pairs.sppo(lp - np.log(ACTING)[arm], judge(arm), 0.5),
    ):
        assert np.abs(gradient(expected(loss, *[ACTING] * 3), ACTING)).max() > 0.01


def fitted(table, law):
    """The rewards of the model of Bradley and Terry that make comparisons of pairs most likely, which `law` draws."""
    weight = np.outer(law, law)
    nll = lambda r: -(weight * table * jax.nn.log_sigmoid(r[:, None] - r[None])).sum()
    return np.log(lowest(nll, steps=25))


def test_judges_are_fair_and_one_is_not_transitive():
    outcome = np.array([[0.0, 1.0, 0.25]])
    found = np.asarray(pairs.bradley_terry(outcome, 0.5))
    np.testing.assert_allclose(found + found.swapaxes(1, 2), 1)
    np.testing.assert_allclose(found[0, 1, 0], sigmoid(1 / 0.5))
    kind = np.array([[2, 0, 1, 0]])
    cycle = np.asarray(pairs.of_kinds(kind, pairs.CYCLE))
    np.testing.assert_allclose(cycle + cycle.swapaxes(1, 2), 1)
    np.testing.assert_array_equal(cycle[0, 0], [0.5, 0.0, 1.0, 0.0])  # scissors: beaten by rock, better than paper
    np.testing.assert_array_equal(cycle[0, 1], [1.0, 0.5, 0.0, 0.5])
