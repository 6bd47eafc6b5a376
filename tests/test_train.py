"""Whole runs: how long they are, that they can be cut, stacked and differentiated, and what evaluation returns."""

import dataclasses
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import Env, networks, pytree, replace, stack
from rlx.objectives import SPO, clipped_surrogate, with_objective
from rlx.replay import Replay, insert, replay, sample, take
from rlx.spaces import Box, Discrete
from rlx.train import EVALUATION, Current, advance

EXACT = True  # bits are compared


def assert_equal(a, b):
    """Bitwise, leaf by leaf; keys by their bits."""
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


@pytest.fixture(scope="module")
def trained(ppo, small, cartpole):
    return rlx.train(ppo, small, cartpole, jax.random.key(0))


@pytest.mark.parametrize(("total_steps", "updates"), [(1, 1), (63, 1), (64, 1), (65, 2), (192, 3), (193, 4)])
def test_runs_are_rounded_up_to_whole_updates(small, total_steps, updates):
    assert small.steps_per_update == 64
    assert rlx.total_updates(replace(small, total_steps=total_steps)) == updates


def test_steps_that_init_takes_belong_to_the_run():
    config = SimpleNamespace(total_steps=1000, steps_per_update=64, init_steps=104)
    assert rlx.total_updates(config) == 14
    assert rlx.steps_taken(config, 14) == 1000
    config.total_steps += 1
    assert rlx.steps_taken(config, rlx.total_updates(config)) == 1064


def test_train_returns_the_final_state_and_metrics_of_every_update(trained):
    state, metrics = trained
    assert state.num_updates == 3
    assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {(3,)}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))


def test_train_is_deterministic_given_a_key(ppo, small, cartpole, trained):
    assert_equal(rlx.train(ppo, small, cartpole, jax.random.key(0)), trained)
    _, other = rlx.train(ppo, small, cartpole, jax.random.key(1))
    assert not np.array_equal(other["policy_loss"], trained[1]["policy_loss"])


@pytest.mark.more
def test_resume_is_bitwise(ppo, small, cartpole, init, trained):
    state, first = rlx.resume(ppo, small, cartpole, init(small, cartpole, jax.random.key(0)), num_updates=2)
    assert state.num_updates == 2
    state, rest = rlx.resume(ppo, small, cartpole, state)
    assert rest["policy_loss"].shape == (1,)
    assert_equal((state, jax.tree.map(lambda *x: jnp.concatenate(x), first, rest)), trained)


def test_advance_is_the_same_run(ppo, small, cartpole, init, trained):
    chunk = jax.jit(advance, static_argnames=("algorithm", "length"))
    state, first = chunk(ppo, small, cartpole, init(small, cartpole, jax.random.key(0)), 0, 1, 5)
    state, rest = chunk(ppo, small, cartpole, state, 1, 2, 5)
    # Another program of the same operations: they may be fused differently.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), state.params, trained[0].params)
    np.testing.assert_allclose(first["policy_loss"][0], trained[1]["policy_loss"][0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(first["policy_loss"][1:], 0)
    np.testing.assert_array_equal(first["num_episodes"][1:], 0)
    np.testing.assert_allclose(rest["entropy"][:2], trained[1]["entropy"][1:], rtol=1e-4)


class Explodes:
    """An algorithm whose state becomes NaN in its third update; one number of it is infinite from the start."""

    @pytree
    class State:
        value: jax.Array
        bound: jax.Array
        num_updates: jax.Array
        key: jax.Array

    @staticmethod
    def update(config, env, state):
        value = jnp.where(state.num_updates == 2, jnp.nan, state.value + 1)
        new = Explodes.State(value, state.bound, state.num_updates + 1, jax.random.split(state.key)[0])
        return new, {"value": value, "num_episodes": jnp.int32(1)}


@pytest.mark.parametrize("cuts", [[5], [1, 1, 1, 1, 1], [3, 2]])
def test_advance_freezes_a_run_at_its_last_finite_state(cuts):
    state = Explodes.State(jnp.float32(0), jnp.float32(jnp.inf), jnp.int32(0), jax.random.key(0))
    done, values, episodes = 0, [], []
    for num in cuts:
        state, metrics = advance(Explodes, None, None, state, done, num, 5)
        done += num
        values += metrics["value"][:num].tolist()
        episodes += metrics["num_episodes"][:num].tolist()
    assert (int(state.num_updates), float(state.value)) == (2, 2.0)
    np.testing.assert_array_equal(values, [1, 2, 0, 0, 0])
    assert episodes == [1, 1, 0, 0, 0]
    twice = jax.random.split(jax.random.split(jax.random.key(0))[0])[0]
    assert (jax.random.key_data(state.key) == jax.random.key_data(twice)).all()


class Remembers:
    """Puts the numbers of its updates into a replay buffer that holds 5 of them, 2 an update; NaN in its sixth."""

    @pytree
    class State:
        value: jax.Array
        replay: Replay
        num_updates: jax.Array

    @staticmethod
    def init(capacity):
        buffer = replay(jax.ShapeDtypeStruct((), jnp.float32), capacity, spare=2)
        return Remembers.State(jnp.float32(0), buffer, jnp.int32(0))

    @staticmethod
    def update(config, env, state):
        number = state.num_updates + 1
        value = jnp.where(number == 6, jnp.nan, state.value + 1)
        buffer = insert(state.replay, jnp.array([number, number + 0.5], jnp.float32))
        return Remembers.State(value, buffer, number), {"value": value}


def test_advance_takes_back_what_the_last_update_put_into_a_replay_buffer():
    state, _ = advance(Remembers, None, None, Remembers.init(5), 0, 8, 8)
    assert (state.num_updates, state.value) == (5, 5.0)
    found = take(state.replay, sample(state.replay, jax.random.key(0), (1000,)))
    assert set(np.asarray(found).tolist()) == {3.5, 4.0, 4.5, 5.0, 5.5}


def test_advance_does_not_copy_a_replay_buffer():
    state = Remembers.init(1_000_000)
    program = jax.jit(lambda state, num: advance(Remembers, None, None, state, 0, num, 8), donate_argnums=0)
    memory = program.lower(state, jnp.int32(8)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 4_000_000  # the result takes the place of the argument
    assert memory.temp_size_in_bytes < 10_000


def test_the_memory_of_a_state_is_known_before_it_is_allocated(ppo, small, cartpole, init):
    found = rlx.state_bytes(ppo, small, cartpole)
    state = init(small, cartpole, jax.random.key(0))
    assert list(found) == [field.name for field in dataclasses.fields(state)]
    for name, num_bytes in found.items():
        assert num_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(getattr(state, name))), name
    assert found["obs_stats"] == 4 * (4 + 4 + 1)
    huge = rlx.state_bytes(ppo, replace(small, num_envs=2**40), cartpole)
    assert huge["reward_scale"] == 4 * (2**40 + 3)


def test_resume_refuses_a_run_that_is_done(ppo, small, cartpole, trained):
    with pytest.raises(ValueError, match="has done 3 updates and total_steps = 192 asks for 3: raise total_steps"):
        rlx.resume(ppo, small, cartpole, trained[0])
    state, _ = rlx.resume(ppo, small, cartpole, trained[0], num_updates=1)
    assert state.num_updates == 4


CONFIGS = {"learning_rate": [1e-3, 1e-2, 1e30], "gamma": [0.9, 0.99, 0.99], "clip": [0.1, 0.3, 0.2]}


@pytest.fixture(scope="module")
def sweep(ppo, small, cartpole):
    """Three configs, the last of which diverges, and their runs in one program."""
    configs = [replace(small, **dict(zip(CONFIGS, v, strict=True))) for v in zip(*CONFIGS.values(), strict=True)]
    keys = jax.random.split(jax.random.key(7), 3)
    states, metrics = jax.vmap(partial(rlx.train, ppo), in_axes=(0, None, 0))(stack(configs), cartpole, keys)
    return configs, keys, states, metrics


@pytest.mark.parametrize("i", [0, 1])
def test_a_sweep_equals_its_single_runs(ppo, cartpole, sweep, i):
    configs, keys, states, metrics = sweep
    state, single = rlx.train(ppo, configs[i], cartpole, keys[i])
    lane = jax.tree.map(lambda x: x[i], (states.params, states.env_state, metrics))
    # A batched matrix product sums in another order: 1e-7 an operation, which 12 steps of Adam enlarge.
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, lane, (state.params, state.env_state, single))


def test_a_diverging_lane_shows_and_does_not_touch_the_others(sweep):
    _, _, states, metrics = sweep
    finite = [all(np.isfinite(leaf[i]).all() for leaf in jax.tree.leaves(states.params)) for i in range(3)]
    assert finite[:2] == [True, True]
    assert np.isfinite(np.asarray(metrics["policy_loss"])[:2]).all()
    # A step of 1e30 leaves weights that no network survives.
    assert not finite[2] or max(np.abs(leaf[2]).max() for leaf in jax.tree.leaves(states.params)) > 1e20


def test_a_sweep_can_be_continued(ppo, cartpole, sweep):
    configs, _, states, _ = sweep
    going_on = jax.vmap(lambda c, s: rlx.resume(ppo, c, cartpole, s, num_updates=1))
    states, metrics = going_on(stack(configs), states)
    np.testing.assert_array_equal(states.num_updates, [4, 4, 4])
    assert metrics["policy_loss"].shape == (3, 1)


def test_resume_of_stacked_or_traced_states_needs_a_number(ppo, cartpole, sweep):
    configs, _, states, _ = sweep
    with pytest.raises(ValueError, match="give num_updates="):
        rlx.resume(ppo, stack(configs), cartpole, states)
    with pytest.raises(ValueError, match="give num_updates="):
        jax.vmap(lambda c, s: rlx.resume(ppo, c, cartpole, s))(stack(configs), states)


@pytest.mark.more
def test_jit_changes_nothing(ppo, init, update):
    config = ppo.Config(total_steps=2, num_envs=2, num_steps=1, num_epochs=1, num_minibatches=1, hidden_sizes=(2,))
    env = replace(rlx.envs.make("probe/ObservationAction"), num_starts=1)
    state = init(config, env, jax.random.key(0))
    compiled = update(config, env, state)
    with jax.disable_jit():
        plain = ppo.update(config, env, state)
    # Fused operations round differently: 1e-7 each, and Adam's first step divides gradients by their size.
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (compiled[0].params, compiled[1]), (plain[0].params, plain[1]))


TRACES = []


@pytree
class Drift:
    """A clipped surrogate whose clip and bend are parameters to be learned."""

    clip: float = 0.2
    bend: float = 0.0

    def __call__(self, config, elements, progress):
        TRACES.append(self)
        surrogate = clipped_surrogate(elements.log_ratio, elements.advantage, self.clip)
        return surrogate + self.bend * elements.log_ratio * (1 + progress)


@pytest.fixture(scope="module")
def one_update(small):
    return replace(small, total_steps=64)


@pytest.mark.more
def test_an_objective_is_an_argument_whose_parameters_are_traced(ppo, small, cartpole, trained):
    TRACES.clear()
    same, _ = rlx.train(ppo, small, cartpole, jax.random.key(0), objective=Drift())
    assert_equal(same.params, trained[0].params)
    traces = len(TRACES)
    assert traces > 0
    other, _ = rlx.train(ppo, small, cartpole, jax.random.key(0), objective=Drift(clip=0.01, bend=3.0))
    rlx.train(ppo, replace(small, learning_rate=0.5, gamma=0.3), cartpole, jax.random.key(5), objective=Drift())
    assert len(TRACES) == traces
    assert not np.array_equal(*(jax.tree.leaves(s.params)[0] for s in (same, other)))


@pytest.mark.more
def test_training_can_be_differentiated_through_its_objective(ppo, one_update, cartpole):
    def size_after(bend):
        config = replace(one_update, learning_rate=1.0, adam_epsilon=1.0)  # an Adam that is smooth around 0
        state, _ = rlx.train(ppo, config, cartpole, jax.random.key(0), objective=Drift(clip=1e6, bend=bend))
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(state.params["actor"]))

    loss = jax.jit(jax.value_and_grad(size_after))
    (_, slope), (above, _), (below, _) = loss(1.0), loss(1.1), loss(0.9)
    assert abs(slope) > 0.01
    # Central differences of a sum of order 10 in float32: 1e-6 over a step of 0.2, and the curvature.
    np.testing.assert_allclose(slope, (above - below) / 0.2, rtol=0.05)


class Countdown:
    """Starts at a random number from 1 to 10 and counts down past 0, its terminal state; pays number * action."""

    default_params: ClassVar = None

    def observation_space(self, params):
        return Box(-np.inf, np.inf, (1,))

    def action_space(self, params):
        return Discrete(3)

    def reset(self, key, params):
        number = jax.random.randint(key, (), 1, 11).astype(jnp.float32)
        return number[None], number

    def step(self, key, state, action, params):
        number = state - 1
        return number[None], number, state * action, number <= 0, jnp.array(False), {}


class Counting:
    """An algorithm with nothing to learn: acts by the parity of the number, or by chance."""

    @staticmethod
    def act(config, env, state, obs, key, deterministic=False):
        random = jax.random.randint(key, obs.shape[:1], 0, 3)
        return jnp.where(deterministic, 1 + obs[:, 0].astype(jnp.int32) % 2, random), None


countdown = Env(Countdown(), None)
play = partial(rlx.evaluate, Counting, None)


def loop(start):
    """The return of the episode that begins with this number."""
    return sum(number * (1 + number % 2) for number in range(start, 0, -1))


def test_evaluate_returns_the_first_whole_episode_of_every_environment():
    episodes = play(countdown, None, jax.random.key(0))
    assert episodes.returns.shape == episodes.lengths.shape == (32,)
    assert episodes.finished.all()
    assert len(np.unique(episodes.lengths)) > 5  # so most environments were stepped on after their end
    np.testing.assert_array_equal(episodes.returns, [loop(int(length)) for length in episodes.lengths])


def test_evaluate_draws_starts_without_a_preference_for_short_episodes():
    lengths = np.asarray(play(countdown, None, jax.random.key(1), num_episodes=2000).lengths)
    # Starts are uniform on 1, ..., 10: mean 5.5, standard deviation 2.87; four standard errors.
    assert abs(lengths.mean() - 5.5) < 4 * 2.87 / np.sqrt(2000)


def test_evaluate_says_which_episodes_were_cut():
    whole, cut = play(countdown, None, jax.random.key(0)), play(countdown, None, jax.random.key(0), max_steps=5)
    np.testing.assert_array_equal(cut.finished, whole.lengths <= 5)
    assert set(np.asarray(cut.finished).tolist()) == {True, False}
    np.testing.assert_array_equal(cut.lengths, np.minimum(whole.lengths, 5))
    np.testing.assert_array_equal(cut.returns[cut.finished], whole.returns[cut.finished])
    assert (cut.returns[~cut.finished] < whole.returns[~cut.finished]).all()


def test_evaluate_finishes_episodes_at_a_time_limit():
    episodes = play(replace(countdown, max_steps=3), None, jax.random.key(0))
    assert episodes.finished.all()
    assert episodes.lengths.max() == 3


def test_evaluate_acts_deterministically_unless_told_otherwise():
    key = jax.random.key(0)
    by_parity, by_chance = play(countdown, None, key), play(countdown, None, key, deterministic=False)
    np.testing.assert_array_equal(by_chance.lengths, by_parity.lengths)
    assert not np.array_equal(by_chance.returns, by_parity.returns)
    assert not np.array_equal(play(countdown, None, jax.random.key(1), deterministic=False).returns, by_chance.returns)
    # Actions 0, 1, 2 with equal probability: the mean reward is the number itself; 2000 episodes, four standard errors.
    many = play(countdown, None, key, num_episodes=2000, deterministic=False)
    surplus = np.asarray(many.returns - many.lengths * (many.lengths + 1) / 2)
    assert abs(surplus.mean()) < 4 * surplus.std() / np.sqrt(2000)


def test_evaluate_matches_a_loop_over_single_steps(ppo, small, cartpole, trained):
    """A policy and an environment without chance: an episode is a function of its start."""
    state, key = trained[0], jax.random.key(3)
    env = replace(cartpole, max_steps=30)
    episodes = rlx.evaluate(ppo, small, env, state, key, num_episodes=4)
    reset_key, _ = jax.random.split(jax.random.fold_in(key, EVALUATION))
    starts = rlx.rollout.reset(env, reset_key, 4)
    act = lambda obs: ppo.act(small, env, state, obs[None], key, deterministic=True)[0][0]
    step = jax.jit(lambda env_state: env.advance(key, env_state, act(env_state.obs)))
    for i in range(4):
        env_state, total, length, done = jax.tree.map(lambda x, i=i: x[i], starts), 0.0, 0, False
        while not done:
            env_state, transition = step(env_state)
            total, length, done = total + float(transition.reward), length + 1, bool(transition.done)
        assert (episodes.returns[i], episodes.lengths[i]) == (total, length)


class Echo(Countdown):
    """One step, which pays what the episode started with."""

    def reset(self, key, params):
        x = jax.random.uniform(key)
        return x[None], x

    def step(self, key, state, action, params):
        return state[None], state, state, jnp.array(True), jnp.array(False), {}


def test_evaluation_does_not_replay_the_starts_of_training(ppo, small, init):
    env, key = Env(Echo(), None), jax.random.key(0)
    state = init(small, env, key)
    later, metrics = rlx.resume(ppo, small, env, state, num_updates=1)
    trained_on = np.concatenate([state.env_state.obs[:, 0], later.env_state.obs[:, 0]])
    for reused in (key, state.key, later.key):
        starts = rlx.evaluate(ppo, small, env, state, reused, num_episodes=64).returns
        assert not np.isin(starts, trained_on).any()
    assert metrics["num_episodes"] == 64


def test_evaluation_leaves_the_training_state_as_it_was(ppo, small, cartpole, trained):
    before = jax.tree.map(jnp.copy, trained[0])
    episodes = rlx.evaluate(ppo, small, cartpole, trained[0], jax.random.key(1), num_episodes=4)
    assert episodes.finished.all()
    assert_equal(trained[0], before)


def test_rewards_scaled_for_learning_reach_neither_metrics_nor_evaluation(ppo, small):
    env = rlx.envs.make("probe/Endless")
    env = replace(env, params=replace(env.params, reward=100.0))
    state, metrics = rlx.train(ppo, replace(small, normalize_reward=True), env, jax.random.key(0))
    np.testing.assert_array_equal(metrics["episode_return"], 500.0)
    episodes = rlx.evaluate(ppo, replace(small, normalize_reward=True), env, state, jax.random.key(1))
    np.testing.assert_array_equal(episodes.returns, 500.0)
    assert state.reward_scale.stats.variance > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_envs": 8}, r"state\.\w.* is .*\[4.*\] and .*\[8.*\]: .*num_envs; give those"),
        ({"hidden_sizes": (8,)}, r"state\.params.*hidden_sizes"),
        ({"hidden_sizes": (16, 16)}, "nothing"),
    ],
)
def test_resume_refuses_a_state_of_other_shapes(ppo, small, cartpole, trained, change, message):
    with pytest.raises(ValueError, match=message):
        rlx.resume(ppo, replace(small, **change), cartpole, trained[0], num_updates=1)


def test_resume_refuses_a_state_of_another_environment(ppo, small, trained):
    with pytest.raises(ValueError, match="these settings and this environment make it"):
        rlx.resume(ppo, small, rlx.envs.make("Acrobot-v1"), trained[0], num_updates=1)


TRACED = []


@pytest.fixture
def constant():
    """An algorithm that counts by `step`, a function of its module, and notes when that is traced."""
    algorithm = ModuleType("constant")
    source = """
import jax.numpy as jnp
def step():
    TRACED.append(1)
    return 1
def init(config, env, key):
    return State(jnp.int32(0), jnp.int32(0))
def update(config, env, state):
    return State(state.total + step(), state.num_updates + 1), {}
"""
    vars(algorithm).update(TRACED=TRACED, State=Total)
    exec(source, vars(algorithm))
    return algorithm


@pytree
class Total:
    total: jax.Array
    num_updates: jax.Array


@pytree
class Length:
    total_steps: int = rlx.static(3)
    steps_per_update: int = rlx.static(1)


def test_a_function_that_is_replaced_is_the_one_that_trains(constant, cartpole):
    key, total = jax.random.key(0), lambda *args: int(rlx.train(constant, Length(), cartpole, *args)[0].total)
    own = constant.step
    assert total(key) == 3
    constant.step = lambda: 10
    assert total(key) == 30
    lanes = jax.vmap(lambda key: rlx.train(constant, Length(), cartpole, key)[0].total)(jax.random.split(key, 2))
    assert lanes.tolist() == [30, 30]
    state, _ = rlx.resume(constant, Length(), cartpole, Total(jnp.int32(0), jnp.int32(0)), num_updates=2)
    assert state.total == 20
    program = jax.jit(advance, static_argnames=("algorithm", "length"))
    moved = lambda: int(program(Current(constant), None, cartpole, Total(jnp.int32(0), jnp.int32(0)), 0, 1, 1)[0].total)
    assert moved() == 10
    constant.step = lambda: 5
    assert (total(key), moved()) == (15, 5)
    constant.step = own
    assert (total(key), moved()) == (3, 1)


def test_nothing_is_traced_again_while_nothing_is_replaced(constant, cartpole):
    rlx.train(constant, Length(), cartpole, jax.random.key(0))
    traces = len(TRACED)
    rlx.train(constant, Length(), cartpole, jax.random.key(1))
    assert len(TRACED) == traces
    assert Current(constant) == Current(Current(constant))
    before = Current(constant)
    constant.step = lambda: 1
    assert before != Current(constant)


def test_a_method_that_is_replaced_on_a_class_is_noticed(ppo, monkeypatch):
    before = Current(ppo)
    assert before == Current(ppo)
    monkeypatch.setattr(networks.Torso, "__call__", lambda self, obs: obs)
    assert before != Current(ppo)


def test_evaluation_of_the_weights_of_other_networks_is_refused_by_name(ppo, cartpole, small, init):
    state = init(replace(small, hidden_sizes=(8,)), cartpole, jax.random.key(0))
    with pytest.raises(ValueError, match=r"state.params\['actor'\].*probably with another .*hidden_sizes"):
        rlx.evaluate(ppo, small, cartpole, state, jax.random.key(0), num_episodes=2)


def test_what_an_algorithm_with_another_objective_calls_is_compared_too(ppo, monkeypatch):
    spo = with_objective(ppo, SPO)
    before = Current(spo)
    assert before == Current(spo)
    monkeypatch.setattr(ppo, "networks", lambda config, env: None)
    assert before != Current(spo)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithm": "ppo"}, "algorithm = 'ppo' has no init and no update: give a module such as rlx.algos.ppo"),
        ({"config": SimpleNamespace()}, "config is of another algorithm: it has no"),
        ({"env": "CartPole-v1"}, "env = 'CartPole-v1' is no environment: give rlx.envs.make"),
        ({"key": 0}, "key = 0 is no random key: give jax.random.key"),
        ({"objective": "SPO"}, "objective = 'SPO' is no pytree of arrays: give an object of its class"),
        ({"objective": lambda *_: 0.0}, "is no pytree of arrays: wrap a function in jax.tree_util.Partial"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_words(ppo, small, cartpole, changed, said):
    given = {"algorithm": ppo, "config": small, "env": cartpole, "key": jax.random.key(0)} | changed
    with pytest.raises(ValueError, match=said):
        rlx.train(**given)


def test_classes_vectors_and_numbers_that_do_not_fit_are_refused_in_words(ppo, small, cartpole):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"config is the class Config: give one of its objects, Config\(\)"):
        rlx.train(ppo, ppo.Config, cartpole, key)
    with pytest.raises(ValueError, match=r"Config.learning_rate has shape \[3\]: for several values vmap"):
        rlx.train(ppo, replace(small, learning_rate=jnp.ones(3)), cartpole, key)
    for number in (0, 2.5):
        with pytest.raises(ValueError, match=f"num_episodes = {number}: give a whole number of at least 1"):
            rlx.evaluate(ppo, small, cartpole, None, key, number)
    with pytest.raises(ValueError, match="num_updates = -1: give a whole number"):
        rlx.resume(ppo, small, cartpole, None, -1)
    with pytest.raises(ValueError, match=r"cannot stack .* and .*: give trees of one class"):
        stack([small, Length()])


def test_a_method_or_an_attribute_of_an_environment_that_is_replaced_is_noticed(ppo, monkeypatch):
    env = rlx.envs.make("rlx/MultiGoal")
    before = Current(ppo, env)
    assert before == Current(ppo, env)
    monkeypatch.setattr(type(env.environment), "step", lambda *_: None)
    assert before != Current(ppo, env)
    monkeypatch.undo()
    assert before == Current(ppo, env)
    monkeypatch.setattr(env.environment, "length", 5, raising=False)
    assert before != Current(ppo, env)
