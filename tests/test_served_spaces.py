"""Every algorithm serves a space exactly, in dtype, bounds and shape, or refuses it in words before it is compiled."""

import sys
from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import (
    avg,
    crossq,
    ddpg,
    dppo,
    dqn,
    es,
    fast_td3,
    fpo,
    grpo,
    grpo_tokens,
    lpg,
    mdpo,
    mdpo_offpolicy,
    pairs_tokens,
    policyflow,
    ppo,
    ppo_tokens,
    pqn,
    redq,
    reinforce,
    reppo,
    sac,
    sac_discrete,
    stream_ac,
    stream_q,
    tqc,
    trpo,
    vmpo,
)
from rlx.env import Env
from rlx.spaces import Box, Dict, Discrete, Space, Tuple, parts, zeros
from rlx.train import check, state_shapes
from rlx.wrappers import bounded, chunked

WRITERS = (grpo_tokens, pairs_tokens, ppo_tokens)
ANY = (ppo, mdpo, trpo, grpo, vmpo, es, stream_ac, reinforce)
CONTINUOUS = (fpo, dppo, policyflow)
ENTROPY = (sac, mdpo_offpolicy, tqc, redq, crossq)
TANH = (*ENTROPY, ddpg, fast_td3, reppo, avg)
DISCRETE = (sac_discrete, lpg, dqn, pqn, stream_q)
NAMES = {"ids": lambda x: getattr(x, "__name__", "").rpartition(".")[2] or None}
SMALL = {"num_envs": 2, "num_steps": 4, "hidden_sizes": (8,), "num_groups": 2, "group_size": 2, "warmup_steps": 8}
SMALL |= {"num_minibatches": 4, "batch_size": 4, "capacity": 64, "utd_ratio": 0.25, "total_steps": 64}
SMALL |= {"critic_hidden_sizes": (8,), "policy_delay": 1}


def small(algorithm, **changes):
    has = {field.name for field in fields(algorithm.Config)}
    return algorithm.Config(**{name: x for name, x in (SMALL | changes).items() if name in has})


class Game:
    """Anything is seen, and every action is checked to be of the space's shape and dtype."""

    default_params = None

    def __init__(self, seen, taken):
        self.seen, self.taken = seen, taken

    def observation_space(self, params):
        return self.seen

    def action_space(self, params):
        return self.taken

    def reset(self, key, params):
        if not isinstance(self.seen, Space):
            return {"x": jnp.zeros(1)}, jnp.float32(0)
        return self.seen.sample(key), jnp.float32(0)

    def step(self, key, state, action, params):
        kinds = lambda tree: jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)
        assert kinds(action) == kinds(parts(self.taken))
        obs, _ = self.reset(key, params)
        inside = self.taken.contains(action)
        return obs, state, jnp.where(inside, 1.0, -1.0), jnp.array(False), jnp.array(False), {}


def game(seen=None, taken=None):
    seen = Box(-1.0, 1.0, (3,)) if seen is None else seen
    return Env(Game(seen, Box(-1.0, 1.0, (2,)) if taken is None else taken), None, max_steps=4)


def refused(algorithm, env, message, **changes):
    config = small(algorithm, **changes)
    for program in (rlx.train, lambda *args: state_shapes(*args[:3]), lambda algorithm, *args: algorithm.init(*args)):
        with pytest.raises(ValueError, match=message) as caught:
            program(algorithm, config, env, jax.random.key(0))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", [*ANY, *CONTINUOUS, *TANH, *DISCRETE, *WRITERS], **NAMES)
def test_what_cannot_be_served_is_refused_before_anything_is_compiled(algorithm, monkeypatch):
    monkeypatch.setattr(sys.modules["rlx.train"], "_train", None)  # the program that is compiled
    choices = Discrete(3) if algorithm in DISCRETE else Box(-1.0, 1.0, (2,))
    tokens = "the environment is not one of tokens|" if algorithm in WRITERS else ""
    refused(algorithm, game({"x": Box(0.0, 1.0, (1,))}, choices), tokens + "observation space of type dict")
    refused(algorithm, game(Box(0.0, 1.0, (0,)), choices), tokens + r"observation space Box of shape \(0,\)")
    refused(algorithm, game(None, (Discrete(2), Discrete(2))), tokens + "action space of type tuple")
    if algorithm not in ANY:
        refused(algorithm, game(None, Discrete(3, shape=(2,))), tokens + r"action space Discrete\(3, shape=\(2,\)\)")
        refused(algorithm, game(None, Tuple(Discrete(2), Discrete(3))), tokens + "action space Tuple")
    refused(algorithm, game(None, Box(0, 3, (2,), jnp.int32)), tokens + "action space Box of shape")
    refused(algorithm, game(None, Box(1.0, 0.0, (2,))), tokens + "action space Box of shape .* put the bounds in order")
    if algorithm in (*CONTINUOUS, *TANH):
        refused(algorithm, game(None, Discrete(3)), "needs continuous actions")
    if algorithm in DISCRETE:
        refused(algorithm, game(None, Box(-1.0, 1.0, (2,))), "needs discrete actions")
    if algorithm in TANH:
        refused(algorithm, game(None, Box(-np.inf, np.inf, (2,))), "from -inf to inf in dimension 0 .*wrappers.bounded")
        refused(algorithm, game(None, Box([-1.0, 0.0], [1.0, np.inf], (2,))), "from 0 to inf in dimension 1")
    if "normalize_obs" in {field.name for field in fields(algorithm.Config)}:
        refused(algorithm, game(Discrete(4), choices), "leave normalize_obs off", normalize_obs=True)


@pytest.mark.parametrize("algorithm", [*ANY, *CONTINUOUS, *TANH, *DISCRETE], **NAMES)
def test_actions_reach_the_environment_in_the_shape_and_dtype_of_their_space(algorithm):
    mixed = Box([-1.0, 0.0, -np.inf, 0.5], [1.0, np.inf, np.inf, 0.5], (4,), jnp.float16)
    taken = [] if algorithm in DISCRETE else [Box(-0.1, 0.3, (2,), jnp.float16) if algorithm in TANH else mixed]
    taken += [Discrete(5, jnp.uint8)] if algorithm in (*ANY, *DISCRETE) else []
    observed = [Box(0, 255, (4, 4, 2), jnp.uint8), Discrete(3, shape=(2,))]
    for seen, space in zip(observed, [*taken, taken[0]], strict=False):
        env, config = game(seen, space), small(algorithm, normalize_obs=isinstance(seen, Box))
        state = state_shapes(algorithm, config, env)
        jax.eval_shape(partial(algorithm.update, config, env), state)  # `Game` checks what it is given
        obs = jax.ShapeDtypeStruct((7, *seen.shape), seen.dtype)
        action, _ = jax.eval_shape(partial(algorithm.act, config, env), state, obs, jax.random.key(0))
        assert (action.shape, action.dtype) == ((7, *space.shape), space.dtype)


def test_training_keeps_every_kind_of_bound():
    low, high = [-1.0, 0.0, -np.inf, 0.3, -1e37], [3.0, np.inf, 2.0, 0.3, 1e37]
    env = game(Box(False, True, (), jnp.bool_), Box(low, high, (5,)))
    state, metrics = rlx.train(ppo, small(ppo, learning_rate=0.1, normalize_obs=True), env, jax.random.key(0))
    assert (metrics["episode_return"] == 4.0).all()  # `Game` pays 1 for an action in its space, else -1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))


@pytest.mark.parametrize("algorithm", ENTROPY, **NAMES)
def test_a_constant_dimension_asks_for_the_entropy_of_a_uniform_one(algorithm):
    env = game(None, Box([-1.0, 0.3, -2.0], [1.0, 0.3, 5.0], (3,)))
    config, log_alpha = small(algorithm, target_entropy=-0.7), jnp.log(0.5)
    log_prob = jnp.array([0.4, -1.0])
    expected = 0.5 * (0.3 - (2 * -0.7 + np.log(2.0)))
    np.testing.assert_allclose(algorithm.alpha_loss(log_alpha, config, env, log_prob), expected, rtol=1e-6)


def test_bounds_and_chunks_are_the_ways_out_that_messages_name():
    far = game(None, Box(-np.inf, np.inf, (2,)))
    check(sac, small(sac), bounded(far, -5.0, [5.0, 7.0]))
    check(sac, small(sac), bounded(chunked(game(None, Box(0.0, np.inf, (2, 3))), 1), 0.0, 1.0))


def test_an_observation_of_another_shape_than_its_space_is_refused():
    class Longer(Game):
        def reset(self, key, params):
            return jnp.zeros(4), jnp.float32(0)

    env = Env(Longer(Box(-1.0, 1.0, (3,)), Box(-1.0, 1.0, (2,))), None)
    with pytest.raises(ValueError, match=r"observation of shape \(4,\) and observation_space is of shape \(3,\)"):
        rlx.train(ppo, small(ppo), env, jax.random.key(0))


def test_an_image_of_categories_has_their_one_hots_as_channels():
    from rlx.networks import Torso

    torso = Torso(Discrete(3, shape=(4, 4, 2)), (), "tanh", conv_features=(5,))
    params = torso.init(jax.random.key(0), jnp.zeros((4, 4, 2), jnp.int32))
    assert params["params"]["Conv_0"]["kernel"].shape == (3, 3, 2 * 3, 5)
    with pytest.raises(ValueError, match=r"conv_features = \(5, 5\): .* \(4, 4, 2\); give fewer"):
        torso.clone(conv_features=(5, 5)).init(jax.random.key(0), jnp.zeros((4, 4, 2), jnp.int32))


SENSES = {
    "pixels": Box(0, 255, (6, 6, 3), jnp.uint8),
    "tool": Discrete(4),
    "arm": Tuple(Box(-1.0, 1.0, (2,)), Box(-np.inf, np.inf, (3,))),
    "truth": Box(-1.0, 1.0, (5,)),
}


def mask(*shape):
    return Box(0, 1, shape, jnp.bool_)


COMPOSITE = {  # the action, and its mask
    "choices": (Discrete(3, shape=(2,)), mask(2, 3)),
    "mixed": (
        Dict(push=Box(-2.0, 2.0, (2,)), tool=Discrete(3), keys=Discrete(2, shape=(4,))),
        Tuple(mask(4, 2), mask(3)),
    ),
    "boxes": (Tuple(Box(-2.0, 2.0, (2,)), Box(0.0, 1.0, (1,))), None),
}


@pytest.mark.parametrize("algorithm", [*ANY, *CONTINUOUS, *TANH, *DISCRETE], **NAMES)
def test_observations_of_several_entries_are_served_by_every_algorithm(algorithm):
    discrete = algorithm in DISCRETE
    legal = {"action_mask": mask(3)} if discrete else {}
    env = game(Dict(**SENSES, **legal, privileged=("truth",)), Discrete(3) if discrete else Box(-2.0, 2.0, (2,)))
    config = small(algorithm, normalize_obs=True, conv_features=(4,))
    state = state_shapes(algorithm, config, env)
    new, metrics = jax.eval_shape(partial(algorithm.update, config, env), state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert ("num_unmasked" in metrics) == discrete
    if hasattr(state, "replay"):
        assert state.replay.data.obs["pixels"].dtype == jnp.uint8
    inputs = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(state.params)}
    first = {name: shape[-2] for name, shape in inputs.items() if name.endswith("['Dense_0']['kernel']")}
    convolved, other = 4 * 4 * 4, 4 + 2 + 3
    actor = next((size for name, size in first.items() if name.startswith(("['actor']", "['values']"))), None)
    if algorithm not in CONTINUOUS:  # whose actors have further inputs
        assert actor == convolved + other
    if algorithm not in (grpo, lpg, dqn, pqn, stream_q, es, reinforce):
        critic = next(size for name, size in first.items() if name.startswith("['critic']"))
        assert critic == convolved + other + 5 + (2 if algorithm in TANH else 0)


@pytest.mark.parametrize("name", COMPOSITE)
@pytest.mark.parametrize("algorithm", ANY, **NAMES)
def test_actions_of_several_parts_reach_the_environment_as_they_are(algorithm, name):
    taken, legal = COMPOSITE[name]
    env = game(Dict(x=Box(-1.0, 1.0, (3,)), **({} if legal is None else {"action_mask": legal})), taken)
    for policy in ("normal",) if name == "choices" else ("normal", "beta"):
        config = small(algorithm, policy=policy)
        state = state_shapes(algorithm, config, env)
        jax.eval_shape(partial(algorithm.update, config, env), state)  # `Game` checks what it is given
        obs = jax.tree.map(lambda x: jnp.zeros((7, *x.shape), x.dtype), zeros(env.observation_space))
        action, _ = jax.eval_shape(partial(algorithm.act, config, env), state, obs, jax.random.key(0))
        assert jax.tree.map(lambda x: x.shape, action) == jax.tree.map(lambda s: (7, *s.shape), parts(taken))


@pytest.mark.parametrize("algorithm", [*ANY, *DISCRETE, *TANH], **NAMES)
def test_masks_that_do_not_fit_are_refused(algorithm):
    choices = Box(-1.0, 1.0, (2,)) if algorithm in TANH else Discrete(3)
    env = game(Dict(x=Box(-1.0, 1.0, (3,)), action_mask=mask(4)), choices)
    with pytest.raises(ValueError, match="the entry action_mask of the observation is"):
        rlx.train(algorithm, small(algorithm), env, jax.random.key(0))


@pytest.mark.parametrize("algorithm", [*ANY, *CONTINUOUS, *TANH, *DISCRETE], **NAMES)
def test_settings_of_what_is_seen_and_how_densities_look_change_the_program(algorithm):
    env = game(Dict(**SENSES, privileged=("truth",)), Discrete(3) if algorithm in DISCRETE else Box(-2.0, 2.0, (2,)))

    def program(**changes):
        config = small(algorithm, **changes)
        return str(jax.make_jaxpr(partial(algorithm.update, config, env))(state_shapes(algorithm, config, env)))

    before, has = program(), {field.name for field in fields(algorithm.Config)}
    changes = {"torso": "impala", "actor_obs": ("arm",), "critic_obs": ("arm",), "policy": "beta"}
    changes |= {"cell": "lstm"} if "cell" in has else {}
    for name in changes.keys() & has:
        if name != "policy" or algorithm not in DISCRETE:
            assert program(**{name: changes[name]}) != before, name
