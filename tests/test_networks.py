"""Networks: their kernels at the start, their forward pass against numpy, and what they refuse."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rlx.distributions import Categorical, Normal, NormalMixture, TanhNormal
from rlx.networks import (
    Actor,
    Critic,
    FourierVelocity,
    TanhActor,
    Torso,
    Velocity,
    action_size,
    activation,
    initialize,
    join,
    orthogonal,
)
from rlx.spaces import Box, Discrete

SHAPES = [(64, 8), (8, 64), (16, 16), (3, 3, 4, 8), (3, 3, 1, 16), (5, 1), (1, 7), (1, 1)]
VECTOR, IMAGE = Box(-1.0, 1.0, (3,)), Box(0.0, 1.0, (5, 6, 2))


def gram(kernel):
    """The matrix that is the identity for an orthogonal kernel: of its columns, or of its rows if these are fewer."""
    matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    return matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T


@pytest.fixture(scope="module")
def kernels():
    return jax.jit(lambda key: orthogonal(key, SHAPES))(jax.random.key(0))


@pytest.mark.parametrize("i", range(len(SHAPES)), ids=map(str, SHAPES))
def test_orthogonal_kernels_are_orthonormal(kernels, i):
    assert kernels[i].shape == SHAPES[i]
    np.testing.assert_allclose(gram(kernels[i]), np.eye(len(gram(kernels[i]))), atol=1e-5)


def test_orthogonal_kernels_are_orthonormal_at_the_size_of_a_policy_network():
    for kernel in jax.jit(lambda key: orthogonal(key, [(256, 256), (376, 256)]))(jax.random.key(1)):
        np.testing.assert_allclose(gram(kernel), np.eye(256), atol=1e-5)


def test_orthogonal_kernels_are_uniformly_distributed():
    draw = jax.jit(jax.vmap(lambda key: orthogonal(key, [(4, 4), (6, 4), (4, 6)])))
    for matrices in draw(jax.random.split(jax.random.key(0), 2000)):
        n = max(matrices.shape[1:])
        # An entry of a uniformly random n x n orthogonal matrix has mean 0 and variance 1 / n, its square is
        # Beta(1/2, (n - 1)/2); four standard errors of 2000 draws, and a fixed key.
        assert np.abs(np.asarray(matrices).mean(axis=0)).max() < 4 / np.sqrt(2000 * n)
        np.testing.assert_allclose(np.square(matrices).mean(axis=0), 1 / n, atol=4 * np.sqrt(2 / 2000) / n)
        for entry in (matrices[:, 0, 0], matrices[:, -1, -1], matrices[:, 0, -1]):
            assert scipy.stats.kstest(np.square(entry), scipy.stats.beta(0.5, (n - 1) / 2).cdf).pvalue > 1e-3
            assert scipy.stats.binomtest(int((entry > 0).sum()), 2000).pvalue > 1e-3


def test_orthogonal_kernels_of_one_shape_and_of_different_keys_differ():
    draw = jax.jit(lambda key: orthogonal(key, [(4, 4), (4, 4)]))
    (a, b), (c, _) = draw(jax.random.key(0)), draw(jax.random.key(1))
    assert np.abs(a - b).max() > 0.1
    assert np.abs(a - c).max() > 0.1


def actor_critic(observation_space, action_space, obs, **options):
    torso = lambda: Torso(observation_space, (16, 8), **options)
    actor, critic = Actor(action_space, torso()), Critic(torso())
    key = jax.random.key(0)
    return actor, critic, jax.jit(lambda: initialize(key, obs, actor=(actor, 0.01), critic=(critic, 1.0)))()


@pytest.fixture(scope="module")
def gaussian():
    return actor_critic(VECTOR, Box(-1.0, 1.0, (2,)), jnp.zeros(3))


def test_initial_kernels_have_the_gains_of_their_layers(gaussian):
    _, _, params = gaussian
    for name, gain in (("actor", 0.01), ("critic", 1.0)):
        layers = params[name]["params"]
        for layer in layers["torso"].values():
            np.testing.assert_allclose(np.linalg.svd(layer["kernel"])[1], np.sqrt(2), rtol=1e-5)
        np.testing.assert_allclose(np.linalg.svd(layers["head"]["kernel"])[1], gain, rtol=1e-5)


def test_initial_biases_and_log_stds_are_zero(gaussian):
    _, _, params = gaussian
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    rest = {name: leaf for name, leaf in leaves.items() if "kernel" not in name}
    assert len(rest) == 7  # three biases in each network, and one log_std
    assert not any(np.any(leaf) for leaf in rest.values())


def test_actor_and_critic_start_from_different_kernels(gaussian):
    _, _, params = gaussian
    kernels = [params[name]["params"]["torso"]["Dense_0"]["kernel"] for name in ("actor", "critic")]
    assert not np.allclose(*kernels)


def forward(params, x):
    for layer in ("Dense_0", "Dense_1"):
        x = np.tanh(x @ params["torso"][layer]["kernel"] + params["torso"][layer]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def test_networks_are_the_perceptron_of_their_parameters(gaussian):
    actor, critic, params = gaussian
    params = jax.tree.map(lambda x: x + 0.1, params)  # with biases that count
    obs = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    pi, value = actor.apply(params["actor"], obs), critic.apply(params["critic"], obs)
    assert isinstance(pi, Normal)
    # Three matrix products in float32.
    np.testing.assert_allclose(pi.mean, forward(params["actor"]["params"], obs), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pi.log_std, np.full((4, 2, 2), 0.1), rtol=1e-6)  # one an observation, like the means
    np.testing.assert_allclose(value, forward(params["critic"]["params"], obs)[..., 0], rtol=1e-4, atol=1e-5)
    assert value.shape == pi.log_prob(pi.mode()).shape == (4, 2)


def test_critics_of_actions_are_the_perceptron_of_both():
    critic = Critic(Torso(VECTOR, (8, 8), "tanh"))
    obs, action = np.random.default_rng(1).normal(size=(2, 6, 3)).astype(np.float32)
    params = initialize(jax.random.key(0), obs[0], critic=(critic, 1.0, action[0, :2]))["critic"]
    x = forward(params["params"], np.concatenate([obs, action[:, :2]], axis=-1))
    np.testing.assert_allclose(critic.apply(params, obs, action[:, :2]), x[:, 0], rtol=1e-5, atol=1e-6)


def test_layer_norm_stands_before_the_activation():
    torso = Torso(VECTOR, (8,), "relu", layer_norm=True)
    obs = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    params = torso.init(jax.random.key(0), obs)
    x = obs @ np.asarray(params["params"]["Dense_0"]["kernel"])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(torso.apply(params, obs), np.maximum(x, 0), rtol=1e-4, atol=1e-5)


def test_tanh_actors_have_a_spread_for_every_observation_within_limits():
    actor = TanhActor(Box(-1.0, 1.0, (2,)), Torso(VECTOR, (8, 8), "tanh"))
    obs = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    params = initialize(jax.random.key(0), obs[0], actor=(actor, 0.01))["actor"]
    pi = actor.apply(params, obs)
    assert isinstance(pi, TanhNormal)
    x = forward(params["params"], obs)
    np.testing.assert_allclose(pi.mean, x[:, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pi.log_std, x[:, 2:], rtol=1e-5, atol=1e-6)
    far = actor.apply(jax.tree.map(lambda x: 1e4 * x, params), obs).log_std
    assert set(np.asarray(far).ravel().tolist()) == {-10.0, 2.0}


def test_activations_come_from_jax_nn():
    assert activation("relu") is jax.nn.relu
    with pytest.raises(ValueError, match=r"'rely' is not a function of jax\.nn that keeps shapes; use tanh"):
        activation("rely")


@pytest.mark.parametrize("name", ["one_hot", "glu", "logsumexp", "initializers", "__name__"])
def test_functions_that_are_no_activation_are_refused(name):
    with pytest.raises(ValueError, match="that keeps shapes"):
        activation(name)


def test_discrete_observations_are_one_hot():
    actor, _, params = actor_critic(Discrete(5), Discrete(3), jnp.int32(0))
    logits = actor.apply(params["actor"], jnp.arange(5).reshape(5, 1))
    assert logits.logits.shape == (5, 1, 3)
    expected = forward(params["actor"]["params"], np.eye(5)[:, None])
    np.testing.assert_allclose(logits.logits, expected, rtol=1e-4, atol=1e-6)


def test_sequences_of_categories_are_one_hot_each():
    actor, _, params = actor_critic(Discrete(5, shape=(2,)), Discrete(3), jnp.zeros(2, jnp.int32))
    tokens = np.array([[[0, 4]], [[3, 3]]])
    expected = forward(params["actor"]["params"], np.eye(5)[tokens].reshape(2, 1, 10))
    np.testing.assert_allclose(actor.apply(params["actor"], tokens).logits, expected, rtol=1e-4, atol=1e-6)


def test_discrete_actions_get_a_categorical_that_starts_nearly_uniform():
    actor, _, params = actor_critic(VECTOR, Discrete(4), jnp.zeros(3))
    pi = actor.apply(params["actor"], jnp.ones((6, 3)))
    assert isinstance(pi, Categorical)
    assert pi.logits.shape == (6, 4)
    # The head's gain of 0.01 times features within [-1, 1].
    np.testing.assert_allclose(pi.entropy(), np.log(4), atol=1e-3)


def test_a_mixture_head_gives_a_mixture_whose_components_start_apart():
    actor = Actor(Box(-1.0, 1.0, (2,)), Torso(VECTOR, (16,)), num_components=3)
    params = jax.jit(lambda: initialize(jax.random.key(0), jnp.zeros(3), actor=(actor, 0.01)))()["actor"]
    pi = actor.apply(params, jnp.ones((4, 5, 3)))
    assert isinstance(pi, NormalMixture)
    assert pi.log_prob(pi.mode()).shape == pi.entropy().shape == (4, 5)
    centers = np.asarray(params["params"]["centers"])
    # The head adds its gain of 0.01 times features within [-1, 1].
    np.testing.assert_allclose(pi.mean, np.broadcast_to(centers, (4, 5, 3, 2)), atol=0.1)
    np.testing.assert_allclose(pi.logits, 0, atol=0.1)
    assert np.linalg.norm(centers[:, None] - centers, axis=-1)[~np.eye(3, dtype=bool)].min() > 0.3


def test_a_mixture_over_categories_is_refused():
    actor = Actor(Discrete(3), Torso(VECTOR), num_components=2)
    with pytest.raises(ValueError, match="num_components = 2 needs continuous actions"):
        actor.init(jax.random.key(0), jnp.zeros(3))


def test_normalised_categories_are_refused():
    with pytest.raises(ValueError, match="leave normalize_obs off"):
        Torso(Discrete(3)).init(jax.random.key(0), jnp.float32(1.0))


def test_actions_with_more_than_one_axis_are_refused():
    actor = Actor(Box(-1.0, 1.0, (2, 3)), Torso(Box(-1.0, 1.0, (4,))))
    with pytest.raises(ValueError, match="give the Box one axis"):
        actor.init(jax.random.key(0), jnp.zeros(4))


def test_images_go_through_convolutions():
    actor, critic, params = actor_critic(IMAGE, Discrete(2), jnp.zeros((5, 6, 2)), conv_features=(4, 8))
    torso = params["critic"]["params"]["torso"]
    assert torso["Conv_0"]["kernel"].shape == (3, 3, 2, 4)
    assert torso["Conv_1"]["kernel"].shape == (3, 3, 4, 8)
    assert torso["Dense_0"]["kernel"].shape == (1 * 2 * 8, 16)  # two convolutions take four rows and columns
    np.testing.assert_allclose(gram(torso["Conv_0"]["kernel"]), 2 * np.eye(4), atol=1e-5)
    images = jnp.zeros((3, 2, 5, 6, 2), jnp.uint8)
    assert critic.apply(params["critic"], images).shape == (3, 2)
    assert actor.apply(params["actor"], images).logits.shape == (3, 2, 2)


def test_a_convolution_sees_its_neighbourhood_only():
    _, critic, params = actor_critic(IMAGE, Discrete(2), jnp.zeros((5, 6, 2)), conv_features=(4,))
    torso = Torso(IMAGE, (), "tanh", (4,))
    conv = {"params": {"Conv_0": params["critic"]["params"]["torso"]["Conv_0"]}}
    reach = jax.jacobian(lambda image: torso.apply(conv, image))(jnp.ones((5, 6, 2))).reshape(3, 4, 4, 5, 6, 2)
    expected = np.zeros((3, 4, 5, 6), bool)
    for i in range(3):
        for j in range(4):
            expected[i, j, i : i + 3, j : j + 3] = True
    np.testing.assert_array_equal((reach != 0).any(axis=(2, 5)), expected)
    assert critic.apply(params["critic"], jnp.ones((5, 6, 2))).shape == ()


def test_images_without_convolutions_are_flattened():
    _, critic, params = actor_critic(IMAGE, Discrete(2), jnp.zeros((5, 6, 2)))
    assert params["critic"]["params"]["torso"]["Dense_0"]["kernel"].shape == (60, 16)
    assert critic.apply(params["critic"], jnp.zeros((7, 5, 6, 2))).shape == (7,)


@pytest.mark.parametrize(("space", "obs"), [(VECTOR, jnp.zeros(3)), (Discrete(5), jnp.int32(0))])
def test_convolutions_of_observations_that_are_no_images_are_refused(space, obs):
    with pytest.raises(ValueError, match=r"conv_features = \(4,\) needs observations \[height, width, channels\]"):
        actor_critic(space, Discrete(2), obs, conv_features=(4,))


def test_join_broadcasts_leading_axes():
    joined = join(jnp.ones((5, 1, 3)), jnp.zeros((4, 2)), jnp.full((1,), 2.0))
    assert joined.shape == (5, 4, 6)
    np.testing.assert_array_equal(joined[3, 2], [1, 1, 1, 0, 0, 2])


def test_the_torso_sees_what_else_is_given():
    torso = Torso(VECTOR, (), "tanh")
    np.testing.assert_array_equal(torso.apply({}, jnp.ones((4, 3)), jnp.zeros((4, 2))), [[1, 1, 1, 0, 0]] * 4)
    images = Torso(IMAGE, (), "tanh")
    assert images.apply({}, jnp.ones((4, 1, 5, 6, 2)), jnp.zeros((4, 3, 7))).shape == (4, 3, 67)


def test_continuous_policies_say_what_they_need_of_the_action_space():
    assert action_size(Box(-1.0, 1.0, (3,))) == 3
    with pytest.raises(ValueError, match="needs continuous actions"):
        action_size(Discrete(4))
    with pytest.raises(ValueError, match="give the Box one axis"):
        action_size(Box(-1.0, 1.0, ()))


@pytest.fixture(scope="module", params=[Velocity, FourierVelocity])
def velocity(request):
    net = request.param(Torso(VECTOR, (16, 8), "tanh"))
    inputs = jnp.zeros(2), 0.0
    params = jax.jit(lambda: initialize(jax.random.key(0), jnp.zeros(3), flow=(net, 0.01, *inputs)))()["flow"]
    return net, params


def numpy_velocity(net, params, obs, x, t):
    """One velocity, from the definitions."""
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
    if isinstance(net, Velocity):
        waves = t * np.array([1, 2, 4, 8])
        return 0.25 * forward(params, np.concatenate([obs, x, np.cos(waves), np.sin(waves)]))
    waves = 2 * np.pi * t * params["frequencies"]
    hidden = dense("time_0", np.concatenate([np.cos(waves), np.sin(waves)]))
    hidden = hidden * np.tanh(np.log1p(np.exp(hidden)))  # mish
    embedding = dense("time_1", hidden) + dense("condition", obs)
    return forward(params | {"torso": params["layers"]}, np.concatenate([x, embedding]))


def test_velocities_are_those_of_their_parameters(velocity):
    net, params = velocity
    params = jax.tree.map(lambda x: np.asarray(x + 0.1, np.float64), params)
    rng = np.random.default_rng(0)
    obs, x, t = rng.normal(size=(4, 3)), rng.normal(size=(4, 5, 2)), rng.uniform(size=(4, 5))
    found = net.apply(params, jnp.float32(obs)[:, None], jnp.float32(x), jnp.float32(t))
    assert found.shape == (4, 5, 2)
    for i, j in np.ndindex(4, 5):
        expected = numpy_velocity(net, params["params"], obs[i], x[i, j], t[i, j])
        # Four matrix products in float32, and phases up to 2 pi 40 which it knows to 1e-5.
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-3, atol=1e-4)


def test_a_time_for_all_is_that_time_for_each(velocity):
    net, params = velocity
    obs, x = jnp.ones((4, 3)), jnp.arange(8.0).reshape(4, 2)
    one, each = net.apply(params, obs, x, 0.3), net.apply(params, obs, x, jnp.full(4, 0.3))
    assert one.shape == (4, 2)
    np.testing.assert_allclose(one, each, rtol=1e-5, atol=1e-7)
    assert np.abs(one - net.apply(params, obs, x, 0.7)).max() > 1e-4


def test_time_features_of_the_concatenated_network_at_time_zero():
    seen = []

    class Spy(Torso):
        def __call__(self, obs, *others):
            seen.extend(others[1:])
            return obs

    net = Velocity(Spy(VECTOR))
    net.init(jax.random.key(0), jnp.zeros(3), jnp.zeros(2), 0.0)
    np.testing.assert_array_equal(jnp.concatenate(seen), [1, 1, 1, 1, 0, 0, 0, 0])


def test_frequencies_are_drawn_wide_and_never_trained():
    net = FourierVelocity(Torso(VECTOR, (4,)), num_features=1024)
    frequencies = net.init(jax.random.key(0), jnp.zeros(3), jnp.zeros(2), 0.0)["params"]["frequencies"]
    assert frequencies.shape == (128,)
    assert scipy.stats.kstest(frequencies, scipy.stats.norm(0, 16).cdf).pvalue > 1e-3
    small = FourierVelocity(Torso(VECTOR, (4,)), num_features=16)
    params = small.init(jax.random.key(0), jnp.zeros(3), jnp.zeros(2), 0.0)
    grads = jax.grad(lambda params: small.apply(params, jnp.ones(3), jnp.ones(2), 0.3).sum())(params)["params"]
    np.testing.assert_array_equal(grads["frequencies"], 0)
    assert np.abs(grads["time_0"]["kernel"]).max() > 0


INITIALIZE_MANY = """
import jax
import rlx.envs
from rlx.algos import ppo

env, config = rlx.envs.make("probe/ContinuousAction"), ppo.Config()
init = jax.jit(jax.vmap(ppo.init, in_axes=(None, None, 0)))
for i in range(20):
    state = jax.block_until_ready(init(config, env, jax.random.split(jax.random.key(i), 256)))
print(state.num_updates.shape)
"""


@pytest.mark.more
def test_initialisation_vmapped_over_many_seeds_does_not_deadlock():
    # A subprocess, because a deadlock in XLA's thread pool cannot be interrupted; it needs seconds, not minutes.
    result = subprocess.run(
        [sys.executable, "-c", INITIALIZE_MANY], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.stdout == "(256,)\n", result.stderr
