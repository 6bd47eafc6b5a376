"""Memory: cells against numpy, sequences against steps, ratios of 1, and nothing that crosses an episode's end."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import grpo_recurrent, ppo, ppo_recurrent, pqn_recurrent
from rlx.env import Env
from rlx.networks import CELLS, Memory, Torso, empty_memory, initialize
from rlx.networks.recurrent import gru, lstm, mingru
from rlx.policy import acting
from rlx.pytree import replace
from rlx.rollout import reset, restarts, rollout, sequences
from rlx.spaces import Box

EXACT = True  # resumed runs are compared to the bit
SIZE, SEEN = 8, 3
SMALL = {"num_envs": 4, "num_steps": 32, "hidden_sizes": (8,), "memory_size": SIZE, "num_minibatches": 2}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_gru_is_that_of_flax():
    rng = np.random.default_rng(0)
    cell = nn.GRUCell(SIZE)
    h, obs = rng.normal(size=(5, SIZE)).astype(np.float32), rng.normal(size=(5, SEEN)).astype(np.float32)
    params = cell.init(jax.random.key(0), h, obs)["params"]
    params["hn"]["bias"] = jnp.zeros(SIZE)  # ours has one bias for input and memory
    expected, _ = cell.apply({"params": params}, h, obs)
    x = jnp.concatenate([obs @ params[f"i{gate}"]["kernel"] + params[f"i{gate}"]["bias"] for gate in "rzn"], axis=-1)
    kernel = jnp.concatenate([params[f"h{gate}"]["kernel"] for gate in "rzn"], axis=-1)
    np.testing.assert_allclose(gru(kernel, x, h), expected, atol=1e-6)


def test_an_lstm_is_its_equations():
    rng = np.random.default_rng(0)
    x, h, c = rng.normal(size=4 * SIZE), rng.normal(size=SIZE), rng.normal(size=SIZE)
    kernel = rng.normal(size=(SIZE, 4 * SIZE))
    i, f, o, g = np.split(x + h @ kernel, 4)
    expected = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    found = lstm(jnp.asarray(kernel), jnp.asarray(x), {"cell": jnp.asarray(c), "hidden": jnp.asarray(h)})
    np.testing.assert_allclose(found["cell"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["hidden"], sigmoid(o) * np.tanh(expected), rtol=1e-4, atol=1e-5)


def test_a_mingru_is_a_weighted_mean_of_its_inputs():
    x = np.random.default_rng(0).normal(size=2 * SIZE)
    keep, add = mingru(jnp.asarray(x))
    np.testing.assert_allclose(keep, sigmoid(x[:SIZE]), rtol=1e-5)
    np.testing.assert_allclose(add, (1 - sigmoid(x[:SIZE])) * x[SIZE:], rtol=1e-4, atol=1e-6)


@pytest.fixture(params=CELLS)
def core(request):
    module = Memory(Torso(Box(-1.0, 1.0, (SEEN,)), (SIZE,)), request.param, SIZE, span=16)
    one = jax.tree.map(lambda x: x[0], empty_memory(request.param, SIZE, 1))
    params = initialize(jax.random.key(0), jnp.zeros(SEEN), memory=(module, 1.0, one))["memory"]
    return module, params


def test_a_sequence_is_its_steps_one_after_another_emptied_where_episodes_begin(core):
    module, params = core
    obs = jax.random.normal(jax.random.key(1), (4, 12, SEEN))
    begins = jax.random.bernoulli(jax.random.key(2), 0.2, (4, 12))
    before = jax.tree.map(lambda x: x + 0.5, empty_memory(module.cell, SIZE, 4))
    outputs, last = module.apply(params, obs, before, begins)
    memory, empty = before, empty_memory(module.cell, SIZE, 4)
    for t in range(12):
        memory = jax.tree.map(lambda a, b, t=t: jnp.where(begins[:, t, None], a, b), empty, memory)
        output, memory = module.apply(params, obs[:, t], memory)
        np.testing.assert_allclose(outputs[:, t], output, atol=2e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-6), last, memory)


def test_nothing_of_an_episode_is_remembered_in_the_next(core):
    module, params = core
    begins = jnp.zeros((1, 10), bool).at[0, 6].set(True)
    empty = empty_memory(module.cell, SIZE, 1)
    output = lambda obs: module.apply(params, obs[None], empty, begins)[0][0]
    gradient = np.abs(jax.jacobian(output)(jax.random.normal(jax.random.key(1), (10, SEEN)))).sum((1, 3))  # [L, L]
    assert (gradient[6:, :6] == 0).all()
    assert (gradient[9, 6:] > 0).all()
    assert (gradient[5, :6] > 0).all()
    assert (np.triu(gradient, 1) == 0).all()  # and nothing of what is to come


def test_gates_that_keep_start_at_all_paces_up_to_the_span(core):
    module, params = core
    start = 0 if module.cell == "mingru" else SIZE
    bias = np.asarray(params["params"]["inputs"]["bias"])
    times = np.exp(bias[start : start + SIZE])
    assert (times >= 1).all()
    assert (times <= 16).all()
    assert np.ptp(times) > 4
    assert (np.delete(bias, np.arange(start, start + SIZE)) == 0).all()


class Countdown:
    """An episode of a random length; every step is seen alike."""

    default_params = None

    def observation_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def reset(self, key, params):
        return jnp.zeros(1), jax.random.randint(key, (), 1, 7)

    def step(self, key, state, action, params):
        return jnp.zeros(1), state - 1, jnp.float32(0), state <= 1, jnp.array(False), {}


def test_memories_begin_anew_with_every_episode_and_live_on_from_one_rollout_to_the_next():
    env, empty = Env(Countdown(), None), {"count": jnp.zeros(5, jnp.int32)}

    def policy(obs, key, memory):
        return jnp.zeros((5, 1)), memory["count"], {"count": memory["count"] + 1}

    env_state, memory = reset(env, jax.random.key(0), 5), empty
    for i in range(3):
        env_state, traj, memory = rollout(env, policy, env_state, jax.random.key(i), 10, memory, empty)
        np.testing.assert_array_equal(traj.recorded, traj.episode_length - 1)
    np.testing.assert_array_equal(memory["count"], env_state.time)
    np.testing.assert_array_equal(restarts(traj.done)[1:], traj.done[:-1])
    assert not restarts(traj.done)[0].any()


def test_sequences_hold_what_follows_one_another_in_an_environment():
    data = jnp.arange(12)[:, None] + 100 * jnp.arange(2)[None]  # [T, N]
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], *([100 + i, 101 + i, 102 + i, 103 + i] for i in (0, 4, 8))]
    np.testing.assert_array_equal(sequences(data, 4), expected)


def test_acting_is_the_same_for_policies_with_a_memory_and_without_one():
    env, obs, key = rlx.envs.make("CartPole-v1"), jnp.ones((2, 4)), jax.random.key(0)
    config = ppo.Config(**{name: x for name, x in SMALL.items() if name != "memory_size"})
    policy, start = acting(ppo, config, env, ppo.init(config, env, key))
    assert start(2) is None
    assert policy(obs, key, None)[2] is None
    config = ppo_recurrent.Config(**SMALL)
    policy, start = acting(ppo_recurrent, config, env, ppo_recurrent.init(config, env, key))
    assert start(2).shape == (2, SIZE)
    after = policy(obs, key, start(2))[2]
    assert (after != start(2)).any()
    assert not jnp.array_equal(policy(obs, key, after)[2], after)


@pytest.fixture(scope="module")
def env():
    return rlx.envs.make("CartPole-v1")


SLOW = pytest.mark.more
RESUMED = [*((cell, ppo_recurrent) for cell in CELLS), pytest.param("gru", pqn_recurrent, marks=SLOW)]


@cache
def trained(cell, algorithm=ppo_recurrent):
    changes = {"normalize_obs": True, "learning_rate": 1e-2, "anneal_learning_rate": False}
    config = algorithm.Config(total_steps=4 * 128, cell=cell, sequence_length=16, **SMALL, **changes)
    return config, rlx.train(algorithm, config, rlx.envs.make("CartPole-v1"), jax.random.key(0))[0]


@pytest.mark.parametrize("cell", CELLS)
def test_the_ratio_is_1_on_the_first_minibatch_across_ends_of_episodes_and_rollouts(cell, env):
    """Of a trained policy, whose memories at the beginning of the rollout are those of the one before."""
    config, state = trained(cell)

    @jax.jit
    def deviation(state):
        key, empty = jax.random.key(1), ppo_recurrent.memory(config, env, 4)
        policy = partial(ppo_recurrent.act, config, env, state)
        _, traj, _ = rollout(env, policy, state.env_state, key, config.num_steps, state.memory, empty)
        data, _ = ppo_recurrent.advantages(config, env, state, traj)
        batch = sequences(data, config.sequence_length)
        core, actor, critic = ppo_recurrent.networks(config, env)
        first = jax.tree.map(lambda x: x[:, 0], batch.memory)
        h, _ = core.apply(state.params["memory"], batch.obs, first, batch.reset)
        ratio = jnp.exp(actor.apply(state.params["actor"], batch.obs, h).log_prob(batch.action) - batch.log_prob)
        value = critic.apply(state.params["critic"], batch.obs, h)
        return (
            jnp.abs(ratio - 1).max(),
            jnp.abs(value - batch.value).max(),
            traj.done.sum(),
            jnp.abs(first_of(first)).max(),
        )

    ratio, value, ends, begun = deviation(state)
    assert ends > 1
    assert begun > 0.01
    assert ratio < 1e-5
    assert value < 1e-4  # of values of about 1


@pytest.mark.parametrize("cell", ["gru", *(pytest.param(cell, marks=SLOW) for cell in CELLS if cell != "gru")])
def test_values_of_sequences_are_those_of_acting(cell, env):
    """Of pqn_recurrent, across ends of episodes and rollouts: the targets and the loss see the memories of acting."""
    config, state = trained(cell, pqn_recurrent)
    empty, core = pqn_recurrent.memory(config, env, 4), pqn_recurrent.networks(config, env)[0]
    values = lambda obs, h: pqn_recurrent.networks(config, env)[1].apply(state.params["values"], obs, h)

    @jax.jit
    def compared(state):
        policy = partial(pqn_recurrent.act, config, env, state)
        _, traj, _ = rollout(env, policy, state.env_state, jax.random.key(1), 32, state.memory, empty)
        data = pqn_recurrent.targets(config, env, state, traj)
        batch = sequences(data, 16)
        first = jax.tree.map(lambda x: x[:, 0], batch.memory)
        h, _ = core.apply(state.params["memory"], batch.obs, first, batch.reset)
        obs = pqn_recurrent.normalized(config, state, traj.obs)
        one, _ = core.apply(state.params["memory"], obs, traj.recorded.memory)
        q = values(obs, one)
        onwards = jnp.roll(q.max(-1), -1, axis=0)  # of the next step, which at ends is of another episode
        one_step = pqn_recurrent.targets(replace(config, td_lambda=0.0), env, state, traj).target
        plain = traj.reward + config.gamma * jnp.where(traj.terminated, 0.0, onwards)
        same = jnp.where(traj.done, 0.0, jnp.abs(one_step - plain))[:-1].max()
        return jnp.abs(values(batch.obs, h) - sequences(q, 16)).max(), same, traj.done.sum()

    sequence, target, ends = compared(state)
    assert ends > 1
    assert sequence < 1e-4
    assert target < 1e-4


def first_of(tree):
    return jax.tree.leaves(tree)[0]


@pytest.mark.parametrize(("cell", "algorithm"), RESUMED)
def test_a_resumed_run_and_a_lane_of_a_sweep_are_the_single_run(cell, algorithm, env):
    config, state = trained(cell, algorithm)
    if algorithm is pqn_recurrent:  # whose epsilon falls with the length of the run
        config = replace(config, epsilon_start=0.2, epsilon_end=0.2)
        state, _ = rlx.train(algorithm, config, env, jax.random.key(0))
    first, _ = rlx.train(algorithm, replace(config, total_steps=2 * 128), env, jax.random.key(0))
    second, _ = rlx.resume(algorithm, config, env, first)
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    equal = lambda a, b: np.asarray(raw(a)).tobytes() == np.asarray(raw(b)).tobytes()
    assert all(map(equal, jax.tree.leaves(state), jax.tree.leaves(second)))
    keys = jnp.stack([jax.random.key(5), jax.random.key(0)])
    lanes, _ = jax.vmap(partial(rlx.train, algorithm), in_axes=(None, None, 0))(config, env, keys)
    for one, lane in zip(jax.tree.leaves(state.params), jax.tree.leaves(lanes.params), strict=True):
        np.testing.assert_allclose(lane[1], one, atol=1e-4)  # a batch of matrices is summed in another order


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 12}, "sequence_length = 12 does not divide num_steps = 32; use 8|use 16"),
        (
            {"sequence_length": 16, "num_minibatches": 3},
            "num_envs \\* num_steps / sequence_length = 8 is not a multiple",
        ),
    ],
)
def test_sequences_that_do_not_fit_are_refused(changes, message, env):
    with pytest.raises(ValueError, match=message):
        rlx.train(ppo_recurrent, ppo_recurrent.Config(**(SMALL | changes)), env, jax.random.key(0))


def test_a_recurrent_group_policy_gives_its_own_log_probs_back(env):
    """The whole episodes of GRPO, recomputed as sequences."""
    env = replace(env, max_steps=24)
    config = grpo_recurrent.Config(
        total_steps=1, num_groups=2, group_size=2, num_steps=24, hidden_sizes=(8,), memory_size=SIZE, num_minibatches=2
    )
    state, _ = rlx.train(grpo_recurrent, config, env, jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (3, 24, 4))
    pi = grpo_recurrent.played(config, env, state.params, obs)
    memory = grpo_recurrent.memory(config, env, 3)
    for t in range(24):
        _, recorded, memory = grpo_recurrent.act(config, env, state, obs[:, t], jax.random.key(t), memory)
        found = pi.log_prob(jnp.broadcast_to(recorded.action[:, None], (3, 24)))[:, t]
        np.testing.assert_allclose(found, recorded.log_prob, atol=1e-5)
    assert rlx.evaluate(grpo_recurrent, config, env, state, jax.random.key(0), 2).finished.all()


@pytest.mark.parametrize(("algorithm", "sizes"), [
    (ppo_recurrent, {"num_envs": 32, "num_steps": 16, "sequence_length": 16}),
    (grpo_recurrent, {"num_groups": 16, "group_size": 8, "num_steps": 4}),
    (pqn_recurrent, {"num_envs": 32, "num_steps": 16, "sequence_length": 16, "num_minibatches": 4}),
], ids=["ppo", "grpo", "pqn"])  # fmt: skip
def test_a_cue_of_three_steps_ago_is_recalled(algorithm, sizes):
    """The best return without a memory is 0, and with one 1."""
    env = rlx.envs.make("rlx/Recall-8", delay=3)
    config = algorithm.Config(total_steps=60_000, learning_rate=3e-3, hidden_sizes=(), memory_size=16, **sizes)
    states, _ = jax.vmap(partial(rlx.train, algorithm, config, env))(jax.random.split(jax.random.key(0), 3))
    returns = jax.vmap(lambda s: rlx.evaluate(algorithm, config, env, s, jax.random.key(1), 64).returns.mean())(states)
    assert (returns > 0.9).all()
