"""Several agents in one environment: rows of agents, separate parameters, and MAPPO."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx.algos import grpo, mappo, mdpo, ppo, ppo_recurrent, sac_discrete, trpo
from rlx.env import Env
from rlx.envs.contract.clauses import CLAUSES
from rlx.multiagent import folded, rows, unfolded
from rlx.networks import ActionReturns, Actor, Critic, Memory, PredictiveCritic, Torso, initialize
from rlx.normalize import Statistics, denormalize, normalize
from rlx.objectives import clipped_huber_loss, clipped_value_loss
from rlx.partial import hidden, remembering, stacked
from rlx.rollout import episode_metrics, reset, rollout
from rlx.spaces import Box, Dict, Discrete
from rlx.wrappers import randomized

A, LENGTH = 3, 4


def wanted(bits):
    """What agents are paid for, by their bits `[..., A]`."""
    return jnp.where(jnp.arange(A) == 0, bits, jnp.arange(A) == 1)


class Team:
    """Each agent is told a bit and its number. Agent 0 is paid for the bit, agent 1 for a one and agent 2 for a zero.

    The world, which critics see, are all bits. Agent 2 is out of the game from the third step on.
    """

    num_agents, default_params = A, None

    def __init__(self, separate=None, told=True, fixed=False):
        self.separate, self.told, self.fixed = separate, told, fixed

    def observation_space(self, params):
        spaces = {"bit": Box(0.0, 1.0, (1,)), "agent": Discrete(A), "world": Box(0.0, 1.0, (A,))}
        return Dict(spaces, privileged=("world",), separate=self.separate)

    def action_space(self, params):
        return Discrete(2)

    def observe(self, state):
        bits = state["bits"].astype(jnp.float32)
        number = jnp.arange(A) if self.told else jnp.zeros(A, jnp.int32)
        return {"bit": bits[:, None], "agent": number, "world": jnp.tile(bits, (A, 1))}

    def reset(self, key, params):
        bits = jnp.array([0, 1, 1]) if self.fixed else jax.random.randint(key, (A,), 0, 2)
        state = {"bits": bits, "time": jnp.int32(0)}
        return self.observe(state), state

    def step(self, key, state, action, params):
        reward = (action == wanted(state["bits"])).astype(jnp.float32)
        info = {"alive": (jnp.arange(A) < 2) | (state["time"] < 2), "return": {"first": reward[0]}}
        bits = state["bits"] if self.fixed else jax.random.randint(key, (A,), 0, 2)
        state = {"bits": bits, "time": state["time"] + 1}
        return self.observe(state), state, reward, state["time"] >= LENGTH, jnp.array(False), info


team = Env(Team(), None, num_starts=8)
SMALL = {"num_envs": 4, "num_steps": 8, "total_steps": 3 * 32, "hidden_sizes": (8,)}


def test_a_team_keeps_the_contract():
    lines = rlx.envs.check(team, num_steps=8)
    assert len(lines) == len(CLAUSES)
    assert not [line for line in lines if line.startswith("not judged: values")]


class WrongAxis(Team):
    def step(self, *args):
        obs, state, reward, *rest = super().step(*args)
        return obs, state, reward.sum(), *rest


def test_one_reward_for_all_agents_is_refused():
    with pytest.raises(AssertionError, match=r"reward has shape \(\) .* make it floats of shape \(3,\)"):
        rlx.envs.check(Env(WrongAxis(), None), num_steps=8)


def test_rows_are_agents_within_environments():
    seen = []

    def policy(obs, key):
        seen.append(obs["agent"].shape)
        return obs["agent"] % 2, obs["agent"]

    state, traj = rollout(team, policy, reset(team, jax.random.key(0), 5), jax.random.key(1), 6)
    assert seen == [(5 * A,)]
    assert state.time.shape == (5,)
    assert traj.reward.shape == traj.done.shape == traj.episode_return.shape == (6, 5 * A)
    np.testing.assert_array_equal(traj.recorded, np.tile(np.arange(A), (6, 5)))
    np.testing.assert_array_equal(traj.obs["agent"], np.tile(np.arange(A), (6, 5)))
    # What an agent is paid is by its own bit and its own action.
    bits = traj.obs["bit"].reshape(6, 5, A)
    np.testing.assert_array_equal(traj.reward, (traj.action.reshape(6, 5, A) == wanted(bits)).reshape(6, -1))
    np.testing.assert_array_equal(traj.done.reshape(6, 5, A), np.repeat(np.asarray(traj.done[:, ::A])[..., None], A, 2))
    np.testing.assert_array_equal(traj.info["alive"].reshape(6, 5, A)[2, :, 2], False)


def test_folding_and_unfolding_are_inverse():
    x = {"a": jnp.arange(24.0).reshape(2, A, 4)}
    np.testing.assert_array_equal(unfolded(team, folded(team, x))["a"], x["a"])
    one = Env(rlx.envs.make("CartPole-v1").environment, None)
    assert folded(one, x) is x
    assert unfolded(one, x) is x


def test_an_episode_of_a_team_counts_once_and_its_return_is_a_mean_over_agents():
    policy = lambda obs, key: (jnp.zeros(len(obs["agent"]), jnp.int32), None)
    _, traj = rollout(team, policy, reset(team, jax.random.key(0), 4), jax.random.key(1), 2 * LENGTH)
    metrics = episode_metrics(traj)
    assert int(metrics["num_episodes"]) == 8
    by_hand = np.asarray(traj.reward).reshape(2, LENGTH, 4, A).sum(1)
    np.testing.assert_allclose(metrics["episode_return"], by_hand.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["episode_return.first"], by_hand[..., 0].mean(), rtol=1e-6)


class OneOfTeam:
    """The agents of a fixed `Team` as environments of their own: which one, the observation says."""

    default_params = None

    def observation_space(self, params):
        return Team().observation_space(params)

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        state = {"bits": jnp.array([0, 1, 1]), "time": jnp.int32(0), "number": jnp.int32(0)}
        return self.observe(state), state

    def observe(self, state):
        return jax.tree.map(lambda x: x[state["number"]], Team().observe(state))

    def step(self, key, state, action, params):
        team = {name: state[name] for name in ("bits", "time")}
        _, after, reward, done, cut, _ = Team(fixed=True).step(key, team, jnp.broadcast_to(action, (A,)), params)
        after |= {"number": state["number"]}
        return self.observe(after), after, reward[state["number"]], done, cut, {}


def test_agents_learn_as_that_many_environments_would():
    together = Env(Team(fixed=True), None, num_starts=1)
    apart = Env(OneOfTeam(), None, num_starts=1)
    config = ppo.Config(**SMALL | {"num_steps": LENGTH})
    state = jax.jit(ppo.init)(config, together, jax.random.key(0))
    updated, metrics = jax.jit(ppo.update)(config, together, state)

    many = replace(config, num_envs=A * 4)
    alone = jax.jit(ppo.init)(many, apart, jax.random.key(0))
    inner = alone.env_state.state | {"number": jnp.tile(jnp.arange(A), 4)}
    obs = jax.vmap(apart.environment.observe)(inner)
    alone = replace(alone, params=state.params, env_state=replace(alone.env_state, state=inner, obs=obs), key=state.key)
    other, others = jax.jit(ppo.update)(many, apart, alone)
    # One update only: episodes begin anew after it as agent 0 in the environments of one agent.
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(same, updated.params, other.params)
    np.testing.assert_allclose(metrics["policy_loss"], others["policy_loss"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        (ppo, {"learning_rate": 0.02}),
        (mdpo, {"learning_rate": 0.02}),
        (trpo, {}),
        (ppo_recurrent, {"learning_rate": 0.02, "sequence_length": 4, "memory_size": 8}),
        (mappo, {"learning_rate": 0.02}),
    ],
    ids=lambda x: getattr(x, "__name__", "").rpartition(".")[2],
)
def test_every_agent_learns_what_is_asked_of_it(algorithm, more):
    config = algorithm.Config(num_envs=8, num_steps=16, total_steps=128 * 25, hidden_sizes=(16,), **more)
    state, metrics = rlx.train(algorithm, config, team, jax.random.key(0))
    assert metrics["episode_return"][-5:].mean() > 0.9 * LENGTH
    found = rlx.evaluate(algorithm, config, team, state, jax.random.key(1), num_episodes=6)
    assert found.returns.shape == (6,)
    assert found.returns.mean() > 0.9 * LENGTH
    np.testing.assert_array_equal(found.lengths, LENGTH)


def test_off_policy_agents_fill_the_buffer_together():
    config = sac_discrete.Config(
        num_envs=2, num_steps=2, total_steps=32, warmup_steps=8, capacity=64, batch_size=4, hidden_sizes=(8,)
    )
    state = jax.jit(sac_discrete.init)(config, team, jax.random.key(0))
    assert int(state.replay.size) == 8 * A
    state, _ = jax.jit(sac_discrete.update)(config, team, state)
    assert int(state.replay.size) == (8 + 4) * A
    assert state.replay.data.reward.shape == (64 + 4 * A,)


def test_separate_networks_have_parameters_of_their_own():
    space = Team(separate="agent").observation_space(None)
    actor = Actor(Discrete(2), Torso(space, (8,)))
    obs = {"bit": jnp.ones((6, 1)), "agent": jnp.array([0, 1, 2, 2, 1, 0]), "world": jnp.zeros((6, A))}
    params = initialize(jax.random.key(0), jax.tree.map(lambda x: x[0], obs), actor=(actor, 1.0))["actor"]
    logits = actor.apply(params, obs).logits
    np.testing.assert_array_equal(logits[:3], logits[5:2:-1])
    assert len(np.unique(np.asarray(logits[:3, 0]))) == 3
    loss = lambda params: actor.apply(params, jax.tree.map(lambda x: x[1:2], obs)).logits[0, 0]
    grads = jax.grad(loss)(params)
    assert all(not np.any(g[0]) and not np.any(g[2]) for g in jax.tree.leaves(grads))
    # Each is the network that it would be alone.
    plain = Actor(Discrete(2), Torso(Dict(space.spaces, privileged=("world",)), (8,)))
    own = {"params": jax.tree.map(lambda x: x[2], params["params"]["separate"])}
    np.testing.assert_allclose(plain.apply(own, obs).logits[2:4], logits[2:4], rtol=1e-6)


def test_separate_networks_of_returns_have_parameters_of_their_own_and_memories_have_not():
    space = Team(separate="agent").observation_space(None)
    obs = {"bit": jnp.ones((6, 1)), "agent": jnp.array([0, 1, 2, 2, 1, 0]), "world": jnp.zeros((6, A))}
    torso, action = Torso(space, (8,)), jnp.ones((6, 2))
    for module, inputs in (
        (ActionReturns(Discrete(2), torso, 3, noise=0.5), ()),
        (PredictiveCritic(torso, 5), (action,)),
    ):
        params = module.init(jax.random.key(0), obs, *inputs)
        assert all(x.shape[0] == 3 for x in jax.tree.leaves(params))
        found = jax.tree.leaves(module.apply(params, obs, *inputs))[0]
        np.testing.assert_allclose(found[:3], found[5:2:-1], rtol=1e-6)
    with pytest.raises(ValueError, match="a memory has one network for all: leave separate out"):
        Memory(torso, size=4).init(jax.random.key(0), obs, jnp.zeros((6, 4)))


def test_kernels_of_separate_networks_are_each_orthogonal():
    space = Team(separate="agent").observation_space(None)
    critic = Critic(Torso(space, (16, 8)))
    obs = {"bit": jnp.ones(1), "agent": jnp.int32(0), "world": jnp.zeros(A)}
    params = initialize(jax.random.key(0), obs, critic=(critic, 1.0))["critic"]["params"]["separate"]["torso"]
    for kernel in params["Dense_1"]["kernel"]:
        np.testing.assert_allclose(kernel.T @ kernel, 2.0 * np.eye(8), atol=1e-5)


@pytest.mark.parametrize("separate", [None, "agent"])
def test_only_agents_that_are_told_apart_or_have_own_parameters_solve_different_tasks(separate):
    env = Env(Team(separate=separate), None, num_starts=8)
    config = ppo.Config(
        num_envs=8, num_steps=16, total_steps=128 * 40, hidden_sizes=(16,), learning_rate=0.02, actor_obs=("bit",)
    )
    _, metrics = rlx.train(ppo, config, env, jax.random.key(0))
    # Two of three agents can be right with one policy that does not know which agent it is for.
    solved = metrics["episode_return"][-5:].mean() > 0.9 * LENGTH
    assert solved == (separate is not None)


def test_separate_takes_an_entry_of_categories():
    with pytest.raises(ValueError, match="separate = 'bit' is no entry of categories"):
        Team(separate="bit").observation_space(None)


def test_groups_from_one_start_have_one_agent_each():
    config = grpo.Config(num_groups=2, group_size=2, num_steps=LENGTH, total_steps=64, num_minibatches=1)
    with pytest.raises(ValueError, match="has one agent, and this environment has 3"):
        rlx.train(grpo, config, team, jax.random.key(0))


@pytest.mark.parametrize("wrapped", [lambda env: stacked(env, 2), lambda env: remembering(env, 2)])
def test_wrappers_of_one_agents_observation_refuse_several(wrapped):
    with pytest.raises(ValueError, match="has one agent, and this environment has 3"):
        wrapped(team)


def test_entries_of_a_dictionary_are_hidden_from_each_agent():
    less = hidden(team, "world")
    state, traj = rollout(
        less, lambda obs, key: (obs["agent"], None), reset(less, jax.random.key(0), 2), jax.random.key(1), 3
    )
    assert sorted(traj.obs) == ["agent", "bit"]
    assert traj.reward.shape == (3, 2 * A)
    assert state.obs["bit"].shape == (2, A, 1)


def test_several_agents_keep_their_axis_when_parameters_are_randomized():
    env = randomized(Env(Scaled(), {"pay": 2.0}, num_starts=4), {"pay": (0.5, 1.0)})
    assert env.num_agents == A
    policy = lambda obs, key: (jnp.zeros(len(obs["agent"]), jnp.int32), None)
    _, traj = rollout(env, policy, reset(env, jax.random.key(0), 2), jax.random.key(1), 3)
    assert traj.reward.shape == (3, 2 * A)
    paid = np.asarray(traj.reward)[np.asarray(traj.reward) > 0]
    assert ((paid >= 1.0) & (paid <= 2.0)).all()


class Scaled(Team):
    def step(self, key, state, action, params):
        obs, state, reward, *rest = super().step(key, state, action, None)
        return obs, state, params["pay"] * reward, *rest


def test_gymnasium_is_given_no_environment_of_several_agents():
    from rlx.envs.bridge import GymnasiumEnv

    with pytest.raises(ValueError, match="an environment of Gymnasium has one agent, and this environment has 3"):
        GymnasiumEnv(team)


def test_an_episode_of_a_team_is_recorded():
    from rlx.run.render import record

    config = ppo.Config(**SMALL)
    states, total = record(ppo, config, team, jax.jit(ppo.init)(config, team, jax.random.key(0)), jax.random.key(0), 20)
    assert len(states) == LENGTH + 1
    assert 0 <= total <= LENGTH


# MAPPO


def batch_of(config, env, key):
    state = jax.jit(mappo.init)(config, env, key)
    policy = partial(mappo.act, config, env, state)
    _, traj = rollout(env, policy, state.env_state, key, config.num_steps)
    data, stats = mappo.advantages(config, env, state, traj)
    return state, traj, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data), stats


def test_with_everyone_alive_and_no_huber_it_is_the_loss_of_ppo():
    config = mappo.Config(huber_delta=1e6, value_coef=0.5, **SMALL)
    state, _, batch, _ = batch_of(config, team, jax.random.key(0))
    batch = replace(batch, alive=jnp.ones_like(batch.alive))
    own, metrics = mappo.loss(state.params, config, team, batch, 0.0)
    other = ppo.Config(value_coef=0.5, **SMALL)
    theirs, others = ppo.loss(state.params, other, team, batch, 0.0)
    np.testing.assert_allclose(own, theirs, rtol=1e-5)
    for name, value in others.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6)


def test_agents_out_of_the_game_have_no_weight_in_the_policys_loss():
    config = mappo.Config(**SMALL)
    state, traj, batch, _ = batch_of(config, team, jax.random.key(0))
    np.testing.assert_array_equal(batch.alive, np.asarray(traj.info["alive"]).reshape(-1))
    assert 0 < int((~batch.alive).sum()) < batch.alive.size
    garbage = jnp.where(batch.alive, batch.advantage, 1e3)
    _, clean = mappo.loss(state.params, config, team, batch, 0.0)
    _, dirty = mappo.loss(state.params, config, team, replace(batch, advantage=garbage), 0.0)
    for name in ("policy_loss", "entropy", "value_loss"):
        np.testing.assert_allclose(clean[name], dirty[name], rtol=1e-6)


def test_targets_are_normalised_and_values_come_back_in_units_of_rewards():
    config = mappo.Config(gae_lambda=1.0, gamma=1.0, **SMALL)
    _, traj, batch, stats = batch_of(config, team, jax.random.key(0))
    target = np.asarray(denormalize(stats, batch.target)).reshape(8, -1)
    np.testing.assert_allclose(np.mean(batch.target), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.std(batch.target), 1.0, rtol=1e-4)
    # With lambda 1 the target of the first step is what the first episode paid.
    np.testing.assert_allclose(target[0], np.asarray(traj.reward[:LENGTH]).sum(0), rtol=1e-4)


def test_denormalize_undoes_normalize():
    stats = Statistics(jnp.float32(3.0), jnp.float32(4.0), jnp.float32(10.0))
    x = jnp.array([-5.0, 0.0, 8.0])
    np.testing.assert_allclose(denormalize(stats, normalize(stats, x)), x, rtol=1e-6)


def test_huber_is_quadratic_near_and_linear_far():
    value, old, target = jnp.array([0.0, 0.0, 5.0]), jnp.array([0.0, 0.0, 4.9]), jnp.array([0.5, 30.0, 4.0])
    found = clipped_huber_loss(value, old, target, 0.2, 10.0)
    np.testing.assert_allclose(found, [0.125, 10.0 * (30.0 - 5.0), 0.5], rtol=1e-6)
    wide = clipped_huber_loss(value, old, target, 0.05, 1e6)
    np.testing.assert_allclose(wide, clipped_value_loss(value, old, target, 0.05), rtol=1e-6)


def test_a_critic_that_sees_no_more_than_the_actor_is_refused():
    config = mappo.Config(critic_obs=("bit",), **SMALL)
    with pytest.raises(ValueError, match=r"the critic sees no more than the actor: .* use ppo"):
        rlx.train(mappo, config, team, jax.random.key(0))
    with pytest.raises(ValueError, match="the critic sees no more than the actor"):
        rlx.train(mappo, mappo.Config(**SMALL), rlx.envs.make("CartPole-v1"), jax.random.key(0))


def test_mappo_goes_on_to_the_bit_and_lanes_are_single_runs():
    config = mappo.Config(**SMALL)
    whole, _ = rlx.train(mappo, config, team, jax.random.key(3))
    state = jax.jit(mappo.init)(config, team, jax.random.key(3))
    for _ in range(3):
        state, _ = rlx.resume(mappo, config, team, state, num_updates=1)
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(data(a), data(b)), whole, state)
    keys = jnp.stack([jax.random.key(3), jax.random.key(4)])
    lanes, _ = jax.vmap(partial(rlx.train, mappo), in_axes=(None, None, 0))(config, team, keys)
    close = lambda a, b: np.testing.assert_allclose(data(a), data(b)[0], rtol=1e-3, atol=1e-5)
    jax.tree.map(close, whole.params, lanes.params)


def test_rows_leave_one_agent_as_it_is():
    env = rlx.envs.make("CartPole-v1")
    assert rows(env, None) is None
    assert env.num_agents == 1
    assert not env.has_agents
