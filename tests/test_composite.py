"""Spaces made of spaces, actions of several parts and legal actions, against enumeration of all that can be done."""

from dataclasses import fields
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import rlx
from rlx import masks
from rlx.algos import mdpo, ppo, sac_discrete
from rlx.distributions import Beta, Categorical, Joint, Normal, TanhNormal
from rlx.networks import Actor, Critic, Torso, initialize
from rlx.normalize import normalize, statistics, update_statistics
from rlx.spaces import Box, Dict, Discrete, Tuple, named, rescale, seen, size, unit, visible, zeros

NESTED = Dict(
    pixels=Box(0, 255, (6, 6, 3), jnp.uint8),
    tool=Discrete(4),
    arm=Tuple(Box(-1.0, 1.0, (2,)), Box(-np.inf, np.inf, (3,))),
    action_mask=Box(0, 1, (3,), jnp.bool_),
    privileged=("arm",),
)


def test_elements_of_nested_spaces_are_pytrees_within_them():
    element = NESTED.sample(jax.random.key(0))
    assert NESTED.contains(element)
    assert {name: x.shape for name, x in zip(named(NESTED), jax.tree.leaves(element), strict=True)} == {
        "action_mask": (3,),
        "arm.0": (2,),
        "arm.1": (3,),
        "pixels": (6, 6, 3),
        "tool": (),
    }
    assert NESTED.contains(zeros(NESTED))
    assert not NESTED.contains(element | {"tool": jnp.int32(4)})
    assert not NESTED.contains({"tool": jnp.int32(0)})
    assert size(NESTED) == 6 * 6 * 3 + 4 + 5 + 3
    assert jax.tree.structure(element) == jax.tree.structure(zeros(NESTED))


def test_samples_of_the_parts_are_independent_of_each_other():
    space = Tuple(Box(-1.0, 1.0, ()), Box(-1.0, 1.0, ()))
    a, b = jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 2000))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1  # standard error 0.022


def test_actors_see_what_is_not_privileged_and_critics_all_but_the_mask():
    assert set(visible(NESTED).spaces) == {"pixels", "tool"}
    assert set(visible(NESTED, privileged=True).spaces) == {"pixels", "tool", "arm"}
    assert set(visible(NESTED, ("arm", "action_mask")).spaces) == {"arm", "action_mask"}
    element = zeros(NESTED)
    assert set(seen(visible(NESTED), element)) == {"pixels", "tool"}
    with pytest.raises(ValueError, match="no entry 'speed': there are pixels, tool, arm, action_mask"):
        visible(NESTED, ("speed",))
    with pytest.raises(ValueError, match="entries speed are of a Dict: the observation space is Discrete"):
        visible(Discrete(3), ("speed",))
    with pytest.raises(ValueError, match="leaves nothing to see"):
        visible(Dict(action_mask=Box(0, 1, (3,), jnp.bool_)))
    with pytest.raises(ValueError, match="privileged = 'speed' is no entry: there are tool"):
        Dict(tool=Discrete(2), privileged=("speed",))


def test_rescale_and_unit_treat_each_part_by_itself():
    space = Tuple(Discrete(3), Box(0.0, 4.0, (2,)))
    action = (jnp.int32(2), jnp.array([-1.0, 0.5]))
    np.testing.assert_allclose(rescale(space, action)[1], [0.0, 3.0])
    assert rescale(space, action)[0] == 2
    back = unit(space, rescale(space, action))
    np.testing.assert_allclose(back[1], action[1])


def test_floats_are_normalised_and_categories_booleans_and_bytes_of_images_are_not():
    batch = jax.vmap(NESTED.sample)(jax.random.split(jax.random.key(0), 50))
    stats = update_statistics(statistics(NESTED), batch)
    assert stats["pixels"] is stats["tool"] is stats["action_mask"] is None
    found = normalize(stats, batch)
    arm = np.asarray(batch["arm"][1])
    expected = (arm - arm.mean(0)) / np.sqrt(arm.var(0) + 1e-8)
    np.testing.assert_allclose(found["arm"][1], expected, atol=1e-5)
    for name in ("pixels", "tool", "action_mask"):
        assert found[name].dtype == batch[name].dtype
        np.testing.assert_array_equal(found[name], batch[name])


def test_a_torso_joins_its_parts_and_scales_bytes():
    space = Dict(pixels=Box(0, 255, (2, 2, 3), jnp.uint8), tool=Discrete(4), speed=Box(-1.0, 1.0, (2,)))
    obs = {"speed": jnp.array([0.5, -1.0]), "pixels": jnp.full((2, 2, 3), 51, jnp.uint8), "tool": jnp.int32(2)}
    found = Torso(space, ()).apply({}, obs | {"more": jnp.zeros(7)}, jnp.array([9.0]))
    np.testing.assert_allclose(found, [*[0.2] * 12, 0.5, -1.0, 0, 0, 1, 0, 9.0], rtol=1e-6)


@pytest.mark.parametrize(("kind", "side", "features"), [("nature", 36, 64), ("impala", 16, 2 * 2 * 32)])
def test_images_in_a_dictionary_go_through_the_convolutions_of_the_torso(kind, side, features):
    space = Dict(pixels=Box(0, 255, (side, side, 3), jnp.uint8), speed=Box(-1.0, 1.0, (2,)))
    torso = Torso(space, (8,), kind=kind)
    params = initialize(jax.random.key(0), zeros(space), torso=(torso, 1.0))["torso"]
    kernels = {name: layer["kernel"].shape for name, layer in params["params"].items()}
    expected = [(8, 8, 3, 32), (4, 4, 32, 64), (3, 3, 64, 64)]
    if kind == "impala":
        expected = [(3, 3, inputs, f) for before, f in ((3, 16), (16, 32), (32, 32)) for inputs in (before, *[f] * 4)]
    assert [kernels[f"Conv_{i}"] for i in range(len(expected))] == expected
    assert kernels["Dense_0"] == (features + 2, 8)
    out = torso.apply(params, jax.tree.map(lambda x: jnp.zeros((5, *x.shape), x.dtype), zeros(space)))
    assert out.shape == (5, 8)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"kind": "resnet"}, (40, 40, 3), "torso = 'resnet': choose among mlp, nature, impala"),
        ({"kind": "nature"}, (20, 20, 3), "images of 36 x 36 or more"),
        ({"kind": "nature", "conv_features": (8,)}, (40, 40, 3), "three conv_features or none"),
        ({"kind": "impala"}, (3,), "torso = 'impala' needs observations .* leave it at 'mlp'"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(options, shape, message):
    with pytest.raises(ValueError, match=message):
        Torso(Box(0.0, 1.0, shape), (8,), **options).init(jax.random.key(0), jnp.zeros(shape))


# Everything that can be done: a tool of 3, and two fingers of 2 positions each.
ACTIONS = Tuple(Discrete(3), Discrete(2, shape=(2,)))
ALL = [(a, (b, c)) for a, b, c in product(range(3), range(2), range(2))]
LEGAL = (np.array([True, False, True]), np.array([[True, True], [False, True]]))


def table(logits):
    """Probabilities of `ALL`, by numpy, where the logits of a part are `[n]` or `[k, n]`."""
    softmax = lambda x: (
        np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    )
    tool, fingers = softmax(np.asarray(logits[0], np.float64)), softmax(np.asarray(logits[1], np.float64))
    return np.array([tool[a] * fingers[0, b] * fingers[1, c] for a, (b, c) in ALL])


def logits_of(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=3), rng.normal(size=(2, 2))


def joint(logits, legal=None):
    legal = (None, None) if legal is None else legal
    return Joint(
        tuple(Categorical(masks.masked(jnp.asarray(x), m)) for x, m in zip(logits, legal, strict=True)), (0, 1)
    )


def impossible(logits):
    """The logits with minus infinity where actions are illegal: what masking has to be equal to."""
    return tuple(np.where(mask, x, -np.inf) for x, mask in zip(logits, LEGAL, strict=True))


@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
def test_joint_log_probs_entropy_and_divergences_are_those_of_enumeration(masked):
    logits, others = logits_of(0), logits_of(1)
    pi, other = (joint(x, LEGAL if masked else None) for x in (logits, others))
    p, r = (table(impossible(x) if masked else x) for x in (logits, others))
    possible = p > 0
    actions = jax.tree.map(lambda *x: jnp.stack(x), *[(jnp.int32(a), jnp.array(b)) for a, b in ALL])
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(ALL), *x.shape)), pi)
    np.testing.assert_allclose(np.exp(batch.log_prob(actions)), p, atol=1e-7)
    np.testing.assert_allclose(pi.entropy(), -np.sum(p[possible] * np.log(p[possible])), rtol=1e-6)
    np.testing.assert_allclose(pi.kl(other), np.sum(p[possible] * np.log(p[possible] / r[possible])), rtol=1e-5)
    mode = ALL[int(p.argmax())]
    assert (int(pi.mode()[0]), tuple(map(int, pi.mode()[1]))) == mode
    for q in (0.5, 1.0, 2.0):
        if q == 1.0:
            expected = np.sum(p[possible] * np.log(p[possible] / r[possible]))
        else:
            terms = p[possible] ** q - q * p[possible] * r[possible] ** (q - 1) + (q - 1) * r[possible] ** q
            expected = terms.sum() / (q - 1)
        np.testing.assert_allclose(pi.tsallis(other, jnp.float32(q)), expected, rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(pi.tsallis(pi, jnp.float32(q)), 0.0, atol=1e-6)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_tsallis_of_masked_choices_is_that_of_the_legal_ones(q):
    logits, others = logits_of(0)[0], logits_of(1)[0]
    masked = [Categorical(masks.masked(jnp.asarray(x), LEGAL[0])) for x in (logits, others)]
    legal = [Categorical(jnp.asarray(x[LEGAL[0]])) for x in (logits, others)]
    np.testing.assert_allclose(
        masked[0].tsallis(masked[1], jnp.float32(q)), legal[0].tsallis(legal[1], jnp.float32(q)), rtol=1e-5
    )
    grad = jax.grad(lambda x: Categorical(masks.masked(x, LEGAL[0])).tsallis(masked[1], jnp.float32(q)))(
        jnp.asarray(logits)
    )
    assert np.isfinite(grad).all()
    assert grad[1] == 0.0


def test_joint_samples_are_legal_and_have_the_frequencies_of_enumeration():
    pi, p = joint(logits_of(0), LEGAL), table(impossible(logits_of(0)))
    tool, fingers = jax.vmap(pi.sample)(jax.random.split(jax.random.key(0), 4000))
    index = [ALL.index((int(a), tuple(map(int, b)))) for a, b in zip(tool, fingers, strict=True)]
    counts = np.bincount(index, minlength=len(ALL))
    assert counts[p == 0].sum() == 0
    # A fixed key: a correct sampler fails one key of a thousand, and this one passes.
    assert stats.chisquare(counts[p > 0], 4000 * p[p > 0]).pvalue > 1e-3


def test_log_ratios_and_gradients_of_masked_policies_are_those_over_the_legal_actions():
    logits, mask = jnp.array([0.3, -0.2, 1.0]), jnp.array([True, False, True])
    log_prob = lambda x: Categorical(masks.masked(x, mask)).log_prob(jnp.int32(2))
    legal = lambda x: Categorical(x[jnp.array([0, 2])]).log_prob(jnp.int32(1))
    np.testing.assert_allclose(log_prob(logits), legal(logits), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(log_prob)(logits), jax.grad(legal)(logits), atol=1e-7)
    entropy = jax.grad(lambda x: Categorical(masks.masked(x, mask)).entropy())(logits)
    assert np.isfinite(entropy).all()
    assert entropy[1] == 0.0


def test_where_nothing_is_legal_nothing_is_masked_and_it_is_counted():
    logits, nothing = jnp.array([0.3, -0.2]), jnp.array([False, False])
    np.testing.assert_array_equal(masks.masked(logits, nothing), logits)
    obs = {"action_mask": jnp.array([[[True, False], [False, False]], [[False, False], [False, False]]])}
    assert masks.num_unmasked(obs) == 3
    several = {"action_mask": (obs["action_mask"], jnp.ones((2, 2, 3, 2), bool).at[0, 0, 1].set(False))}
    assert masks.num_unmasked(several) == 4
    assert jnp.array_equal(masks.num_legal(Discrete(2), obs), jnp.array([[1, 2], [2, 2]]))


def test_random_actions_are_legal_and_uniform():
    space = Tuple(Discrete(3), Box(0.0, 1.0, (2,)), Discrete(2, shape=(2,)))
    obs = {"action_mask": tuple(map(jnp.asarray, LEGAL))}
    tool, box, fingers = jax.vmap(lambda key: masks.sample(space, obs, key))(jax.random.split(jax.random.key(0), 1000))
    counts = np.bincount(tool, minlength=3)
    assert counts[1] == 0
    assert abs(counts[0] - 500) < 80  # standard deviation 16
    assert (fingers[:, 1] == 1).all()
    assert set(np.asarray(fingers[:, 0]).tolist()) == {0, 1}
    assert ((box >= 0) & (box <= 1)).all()
    batch = {"action_mask": jnp.broadcast_to(obs["action_mask"][0], (1000, 3))}
    assert set(np.asarray(masks.random_choices(Discrete(3), batch, jax.random.key(0))).tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("mask", "actions"),
    [
        (Box(0, 1, (4,), jnp.bool_), Discrete(3)),
        (Box(0.0, 1.0, (3,)), Discrete(3)),
        (Discrete(3, shape=(3,)), Discrete(3)),
        (Box(0, 1, (3,), jnp.bool_), Box(-1.0, 1.0, (3,))),
        (Box(0, 1, (3,), jnp.bool_), Tuple(Discrete(3), Discrete(2))),
        (Box(0, 1, (3,), jnp.bool_), Discrete(3, shape=(2,))),
    ],
)
def test_masks_that_do_not_fit_the_actions_are_refused(mask, actions):
    with pytest.raises(ValueError, match=r"the entry action_mask of the observation is .*; say of each Discrete"):
        masks.check_mask(Dict(x=Discrete(2), action_mask=mask), actions)


def test_masks_that_fit_the_actions_are_accepted():
    boolean = lambda *shape: Box(0, 1, shape, jnp.bool_)
    masks.check_mask(Dict(x=Discrete(2), action_mask=boolean(3)), Discrete(3))
    masks.check_mask(Dict(x=Discrete(2), action_mask=Discrete(2, shape=(2, 3))), Discrete(3, shape=(2,)))
    three = Tuple(Discrete(3), Box(-1.0, 1.0, (2,)), Discrete(2))
    masks.check_mask(Dict(x=Discrete(2), action_mask=Tuple(boolean(3), boolean(2))), three)
    masks.check_mask(Dict(x=Discrete(2)), Box(-1.0, 1.0, (2,)))


def test_the_head_of_a_composite_action_gives_each_part_its_own_outputs_and_mask():
    space = Dict(x=Box(-1.0, 1.0, (3,)), action_mask=Tuple(*(Box(0, 1, m.shape, jnp.bool_) for m in LEGAL)))
    taken = Dict(tool=Discrete(3), fingers=Discrete(2, shape=(2,)), push=Box(-1.0, 1.0, (2,)))
    actor = Actor(taken, Torso(visible(space), (8,)))
    obs = {"x": jnp.ones((5, 3)), "action_mask": tuple(jnp.broadcast_to(m, (5, *m.shape)) for m in LEGAL[::-1])}
    params = initialize(
        jax.random.key(0), zeros(space) | {"action_mask": tuple(map(jnp.asarray, LEGAL[::-1]))}, actor=(actor, 1.0)
    )
    pi = actor.apply(params["actor"], obs)  # the leaves of the action: fingers, push, tool
    assert pi.parts["fingers"].logits.shape == (5, 2, 2)
    assert pi.parts["tool"].logits.shape == (5, 3)
    assert (pi.parts["tool"].logits[:, 1] == masks.ILLEGAL).all()
    assert (pi.parts["fingers"].logits[:, 1, 0] == masks.ILLEGAL).all()
    assert pi.parts["push"].mean.shape == (5, 2)
    outputs = jnp.concatenate(
        [x.reshape(5, -1) for x in (pi.parts["fingers"].logits, pi.parts["push"].mean, pi.parts["tool"].logits)],
        axis=-1,
    )
    hidden = jnp.tanh(obs["x"] @ params["actor"]["params"]["torso"]["Dense_0"]["kernel"])
    expected = hidden @ params["actor"]["params"]["head"]["kernel"]
    legal = np.asarray(outputs != masks.ILLEGAL)
    np.testing.assert_allclose(np.asarray(outputs)[legal], np.asarray(expected)[legal], rtol=1e-5)
    action = pi.sample(jax.random.key(1))
    parts = sum(
        np.asarray(x)
        for x in (
            pi.parts["tool"].log_prob(action["tool"]),
            pi.parts["fingers"].log_prob(action["fingers"]).sum(-1),
            pi.parts["push"].log_prob(action["push"]),
        )
    )
    np.testing.assert_allclose(pi.log_prob(action), parts, rtol=1e-6)
    assert Critic(Torso(visible(space), (8,))).init(jax.random.key(0), obs)  # a mask is no input of a network


def density_integral(log_prob, low, high, num=20001):
    x = np.linspace(low, high, num)
    return x, np.exp(np.asarray(log_prob(jnp.asarray(x, jnp.float32)[:, None]), np.float64))


def test_beta_log_prob_entropy_and_mode_match_scipy():
    alpha, beta = np.array([1.7, 4.0]), np.array([2.5, 1.2])
    pi = Beta(jnp.asarray(alpha), jnp.asarray(beta))
    x = np.array([-0.4, 0.7])
    expected = sum(stats.beta.logpdf((x + 1) / 2, alpha, beta) - np.log(2))
    np.testing.assert_allclose(pi.log_prob(jnp.asarray(x)), expected, atol=1e-5)
    np.testing.assert_allclose(pi.entropy(), sum(stats.beta.entropy(alpha, beta) + np.log(2)), rtol=1e-5)
    grid = np.linspace(-0.999, 0.999, 4001)
    peak = [grid[stats.beta.logpdf((grid + 1) / 2, a, b).argmax()] for a, b in zip(alpha, beta, strict=True)]
    np.testing.assert_allclose(pi.mode(), peak, atol=1e-3)
    np.testing.assert_allclose(Beta(jnp.array([0.5]), jnp.array([1.5])).mode(), [-0.5])


@pytest.mark.parametrize("q", [0.7, 1.0, 2.0])
def test_beta_divergences_match_numerical_integration(q):
    p, r = Beta(jnp.array([2.0]), jnp.array([3.0])), Beta(jnp.array([2.5]), jnp.array([1.8]))
    x, a = density_integral(p.log_prob, -0.9999, 0.9999)
    b = density_integral(r.log_prob, -0.9999, 0.9999)[1]
    expected = a * np.log(a / b) if q == 1 else (a**q - q * a * b ** (q - 1) + (q - 1) * b**q) / (q - 1)
    np.testing.assert_allclose(p.tsallis(r, jnp.float32(q)), np.trapezoid(expected, x), rtol=5e-3)
    if q == 1:
        np.testing.assert_allclose(p.kl(r), np.trapezoid(expected, x), rtol=5e-3)


def test_beta_samples_follow_the_distribution_and_have_finite_log_probs():
    pi = Beta(jnp.full((4000,), 1.4)[:, None], jnp.full((4000,), 2.0)[:, None])
    x = pi.sample(jax.random.key(0))
    assert stats.kstest((np.asarray(x[:, 0]) + 1) / 2, stats.beta(1.4, 2.0).cdf).pvalue > 1e-3
    edge = Beta(jnp.array([1.0]), jnp.array([8.0]))
    assert np.isfinite([edge.log_prob(jnp.array([-1.0])), edge.log_prob(jnp.array([1.0]))]).all()


@pytest.mark.parametrize("log_std", [-2.0, 0.0, 1.0])
def test_tanh_normal_entropy_matches_numerical_integration(log_std):
    pi = TanhNormal(jnp.array([0.4]), jnp.array([log_std]))
    u = np.linspace(-30, 30, 200001)
    normal = stats.norm(0.4, np.exp(log_std))
    expected = normal.entropy() + np.trapezoid(normal.pdf(u) * 2 * (np.log(2) - u - np.logaddexp(0, -2 * u)), u)
    np.testing.assert_allclose(pi.entropy(), expected, atol=2e-3)


def test_squash_and_unsquash_are_inverse_and_identities_elsewhere():
    pi = TanhNormal(jnp.zeros(2), jnp.zeros(2))
    np.testing.assert_allclose(pi.unsquash(pi.squash(jnp.array([0.3, -1.2]))), [0.3, -1.2], rtol=1e-5)
    assert np.isfinite(pi.unsquash(jnp.array([1.0, -1.0]))).all()
    x = jnp.array([5.0, -1.0])
    assert Normal(x, x).squash(x) is x
    both = Joint((Categorical(jnp.zeros(3)), pi), (0, 0))
    action = both.squash((jnp.int32(1), x))
    assert action[0] == 1
    np.testing.assert_allclose(action[1], np.tanh(x))


@pytest.mark.parametrize("policy", ["normal", "state_std", "tanh_normal", "beta"])
def test_densities_of_actors_are_those_of_their_outputs(policy):
    box = Box(-2.0, 2.0, (2,))
    actor = Actor(box, Torso(Box(-1.0, 1.0, (3,)), (8,)), policy=policy)
    params = initialize(jax.random.key(0), jnp.zeros(3), actor=(actor, 1.0))["actor"]
    obs = jax.random.normal(jax.random.key(1), (4, 3))
    pi = actor.apply(params, obs)
    out = np.tanh(obs @ params["params"]["torso"]["Dense_0"]["kernel"]) @ params["params"]["head"]["kernel"]
    if policy == "normal":
        np.testing.assert_allclose(pi.mean, out, rtol=1e-5)
        assert (pi.log_std == 0).all()
    elif policy == "beta":
        np.testing.assert_allclose(pi.alpha, 1 + np.log1p(np.exp(out[:, :2])), rtol=1e-5)
        np.testing.assert_allclose(pi.beta, 1 + np.log1p(np.exp(out[:, 2:])), rtol=1e-5)
    else:
        np.testing.assert_allclose(pi.mean, out[:, :2], rtol=1e-5)
        np.testing.assert_allclose(pi.log_std, np.clip(out[:, 2:], -5, 2), rtol=1e-5)
        assert isinstance(pi, TanhNormal if policy == "tanh_normal" else Normal)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (Discrete(3), {"policy": "beta"}, "policy = 'beta' needs continuous actions"),
        (Box(-1.0, 1.0, (2,)), {"policy": "gamma"}, "choose among normal, state_std, tanh_normal, beta"),
        (Box(-1.0, 1.0, (2,)), {"policy": "beta", "num_components": 2}, "leave policy at 'normal'"),
        (Tuple(Discrete(2), Box(-1.0, 1.0, (2,))), {"num_components": 2}, "needs continuous actions"),
    ],
)
def test_densities_that_the_actions_have_no_use_for_are_refused(space, options, message):
    with pytest.raises(ValueError, match=message):
        Actor(space, Torso(Box(-1.0, 1.0, (3,)), (8,)), **options).init(jax.random.key(0), jnp.zeros(3))


@pytest.mark.parametrize("algorithm", [ppo, mdpo, sac_discrete], ids=["ppo", "mdpo", "sac_discrete"])
def test_no_illegal_action_is_ever_taken(algorithm):
    env = rlx.envs.make("probe/Legal")
    sizes = {"num_envs": 32, "num_steps": 8, "hidden_sizes": (16,), "total_steps": 8192, "learning_rate": 1e-2}
    sizes |= {"warmup_steps": 1024, "utd_ratio": 1 / 32, "batch_size": 32, "capacity": 4096}
    has = {field.name for field in fields(algorithm.Config)}
    config = algorithm.Config(**{name: x for name, x in sizes.items() if name in has})
    state, metrics = rlx.train(algorithm, config, env, jax.random.key(0))
    assert metrics["num_episodes"].sum() >= 7168
    assert (metrics["episode_illegal"] == 0).all()
    assert (metrics["num_unmasked"] == 0).all()
    for deterministic in (True, False):
        found = rlx.evaluate(algorithm, config, env, state, jax.random.key(1), 256, deterministic)
        assert (found.reported["illegal"] == 0).all()
    first, last = metrics["episode_return"][0], metrics["episode_return"][-1]
    assert last > first + 0.05  # -0.3 at random, 0 at best
