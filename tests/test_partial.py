"""Less to see and more to keep: entries that are hidden, a memory that is written, observations that are stacked."""

import copy
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlx
from rlx import cli
from rlx.envs.contract.clauses import CLAUSES
from rlx.partial import hidden, remembering, stacked, timed
from rlx.pytree import pytree
from rlx.rollout import check_horizon, rollout
from rlx.spaces import Box, Dict, Discrete
from rlx.wrappers import carried_out, chunked, randomized


@pytree
class Params:
    length: int = 4  # steps until it terminates
    size: float = 9.0  # bound of the last entry


class Ramp:
    """Observes a number of its episode, the step and what the two actions add up to; pays the first action."""

    default_params = Params()
    differentiable = True
    dt = 0.02

    def reset(self, key, params):
        state = jnp.append(jax.random.uniform(key), jnp.zeros(2))
        return state, state

    def step(self, key, state, action, params):
        state = state + jnp.append(jnp.array([0.0, 1.0]), action.sum())
        return state, state, action[0], state[1] >= params.length, False, {}

    def observation_space(self, params):
        return Box(jnp.append(jnp.zeros(2), -params.size), jnp.append(jnp.array([1.0, 50.0]), params.size), (3,))

    def action_space(self, params):
        return Box(-2.0, np.array([2.0, 3.0]), (2,))

    def horizon(self, params):
        return params.length

    def frames(self, env_states, params, *size):
        return [(s.state, s.obs) for s in env_states]

    def html(self, env_states, params):
        return [(s.state, s.obs) for s in env_states]

    def cameras(self, params):
        return ["side"]


NUM = 3


def ramp(max_steps=None, **params):
    return rlx.Env(Ramp(), Params(**params), max_steps=max_steps)


def starts(env):
    return jax.vmap(env.reset)(jax.random.split(jax.random.key(0), NUM))


def played(env, num_steps=11):
    """A rollout of actions that are the same whatever is observed; the first of a longer one are those of a shorter."""
    actions = lambda key: 1.5 * jax.random.normal(key, (NUM, 16))[:, : env.action_space.shape[0]]
    return rollout(env, lambda obs, key: (actions(key), None), starts(env), jax.random.key(1), num_steps)[1]


def shown(plain, first, following):
    """What is seen of a rollout of the environment inside, by a plain loop: obs and next_obs `[T, N, ...]`.

    `first(obs)` is the list of arrays that are joined at a start, `following(joined, obs, t, n)` after step t.
    """
    done, obs, next_obs, joined = plain.terminated | plain.truncated, [], [], [None] * NUM
    for t in range(len(done)):
        for n in range(NUM):
            if t == 0 or done[t - 1, n]:
                joined[n] = first(np.asarray(plain.obs[t, n]))
            obs.append(np.concatenate(joined[n], axis=-1))
            joined[n] = following(joined[n], np.asarray(plain.next_obs[t, n]), t, n)
            next_obs.append(np.concatenate(joined[n], axis=-1))
    return (np.array(x).reshape(len(done), NUM, *x[0].shape) for x in (obs, next_obs))


def window(plain, num):
    return shown(plain, lambda obs: [np.atleast_1d(obs)] * num, lambda seen, obs, t, n: [*seen[1:], np.atleast_1d(obs)])


def assert_shown(traj, plain, obs, next_obs):
    np.testing.assert_array_equal(traj.obs, obs)
    np.testing.assert_array_equal(traj.next_obs, next_obs)
    assert traj.obs.dtype == plain.obs.dtype
    for name in ("reward", "terminated", "truncated", "episode_return", "episode_length"):
        np.testing.assert_array_equal(getattr(traj, name), getattr(plain, name), err_msg=name)


@pytest.mark.parametrize(
    ("indices", "seen"),
    [((1,), [0, 2]), (0, [1, 2]), ([0, 2], [1]), ((-1,), [0, 1]), (np.array([2, 0]), [1]), (range(2), [2])],
)
def test_hidden_entries_are_dropped_and_the_others_keep_order_and_bounds(indices, seen):
    env, plain = hidden(ramp(), indices), played(ramp())
    assert_shown(played(env), plain, plain.obs[..., seen], plain.next_obs[..., seen])
    space = env.observation_space
    assert space.shape == (len(seen),)
    np.testing.assert_array_equal(space.low, np.array([0.0, 0.0, -9.0])[seen])
    np.testing.assert_array_equal(space.high, np.array([1.0, 50.0, 9.0])[seen])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("max_steps", [None, 3])
def test_what_is_written_is_observed_after_the_step_and_0_after_a_reset(size, max_steps):
    env, plain = remembering(ramp(max_steps), size), played(ramp(max_steps))
    traj = played(env)
    np.testing.assert_array_equal(traj.action[..., :2], plain.action)
    assert (np.abs(traj.action[..., 2:]) > 1).any()
    written = np.clip(traj.action[..., 2:], -1, 1)
    seen = shown(plain, lambda obs: [obs, np.zeros(size)], lambda seen, obs, t, n: [obs, written[t, n]])
    assert_shown(traj, plain, *seen)
    assert plain.truncated.any() == (max_steps is not None)
    assert plain.terminated.any() == (max_steps is None)


def test_the_memory_has_bounds_of_its_own_and_the_others_keep_theirs():
    env = remembering(ramp(), 2)
    for space, low, high in (
        (env.action_space, [-2, -2, -1, -1], [2, 3, 1, 1]),
        (env.observation_space, [0, 0, -9, -1, -1], [1, 50, 9, 1, 1]),
    ):
        np.testing.assert_array_equal(space.low, low)
        np.testing.assert_array_equal(space.high, high)
        assert space.shape == (len(low),)
        assert space.dtype == jnp.float32
    unbounded = remembering(rlx.envs.make("MultiGoal"), 1).action_space
    np.testing.assert_array_equal([unbounded.low, unbounded.high], [[-np.inf, -np.inf, -1], [np.inf, np.inf, 1]])


@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize("max_steps", [None, 3])
def test_stacks_are_the_last_observations_oldest_first_and_start_with_the_first_repeated(num, max_steps):
    plain = played(ramp(max_steps))
    assert_shown(played(stacked(ramp(max_steps), num)), plain, *window(plain, num))
    space = stacked(ramp(), num).observation_space
    assert space.shape == (3 * num,)
    np.testing.assert_array_equal(space.low, [0, 0, -9] * num)
    np.testing.assert_array_equal(space.high, [1, 50, 9] * num)


@pytest.mark.parametrize(("max_steps", "limit"), [(None, 4), (3, 3)])
def test_the_share_of_the_episode_that_is_over_is_shown_last(max_steps, limit):
    env, plain = timed(ramp(max_steps)), played(ramp(max_steps))
    first = lambda obs: [obs, np.zeros(1, np.float32)]
    after = lambda seen, obs, t, n: [obs, seen[1] + np.float32(1) / np.float32(limit)]
    traj, (obs, next_obs) = played(env), shown(plain, first, after)
    np.testing.assert_allclose(traj.obs, obs, rtol=1e-6)
    np.testing.assert_allclose(traj.next_obs, next_obs, rtol=1e-6)
    assert traj.next_obs[..., 3].max() == 1.0
    for name in ("reward", "terminated", "truncated", "episode_return"):
        np.testing.assert_array_equal(getattr(traj, name), getattr(plain, name), err_msg=name)
    np.testing.assert_array_equal(env.observation_space.low, [0, 0, -9, 0])
    np.testing.assert_array_equal(env.observation_space.high, [1, 50, 9, 1])
    assert played(timed(ramp(), limit=2)).next_obs[..., 3].max() == 1.0  # it stays 1


class Screen(Ramp):
    """Images of which one channel counts the steps and the other has a number for each pixel."""

    def reset(self, key, params):
        _, state = super().reset(key, params)
        return self.image(state), state

    def step(self, key, state, action, params):
        _, state, *rest = super().step(key, state, action, params)
        return self.image(state), state, *rest

    def image(self, state):
        return jnp.stack([jnp.full((2, 3), state[1]), jnp.arange(6).reshape(2, 3) + 10 * state[1]], -1).astype(
            jnp.uint8
        )

    def observation_space(self, params):
        return Box(0, 255, (2, 3, 2), jnp.uint8)


def test_images_are_stacked_along_their_channels_and_stay_bytes():
    env = rlx.Env(Screen(), Params())
    plain, traj = played(env), played(stacked(env, 3))
    assert_shown(traj, plain, *window(plain, 3))
    space = stacked(env, 3).observation_space
    assert (space.shape, space.dtype, space.low, space.high) == ((2, 3, 6), jnp.uint8, 0, 255)
    assert traj.obs.dtype == jnp.uint8
    assert traj.obs.shape[2:] == (2, 3, 6)


class Steps(Ramp):
    """Observes which step it is."""

    def reset(self, key, params):
        _, state = super().reset(key, params)
        return jnp.int32(0), state

    def step(self, key, state, action, params):
        _, state, *rest = super().step(key, state, action, params)
        return state[1].astype(jnp.int32), state, *rest

    def observation_space(self, params):
        return Discrete(7)


def test_categories_are_stacked_as_several_of_them():
    env = rlx.Env(Steps(), Params())
    plain = played(env)
    assert_shown(played(stacked(env, 3)), plain, *window(plain, 3))
    assert stacked(env, 3).observation_space == Discrete(7, shape=(3,))
    assert stacked(stacked(env, 3), 2).observation_space == Discrete(7, shape=(6,))


def test_wrappers_go_around_one_another():
    plain = played(ramp())
    traj = played(stacked(remembering(hidden(ramp(), (1,)), 2), 3))
    written = np.clip(traj.action[..., 2:], -1, 1)
    one = lambda obs, memory: np.append(obs[[0, 2]], memory)
    first = lambda obs: [one(obs, np.zeros(2))] * 3
    assert_shown(traj, plain, *shown(plain, first, lambda seen, obs, t, n: [*seen[1:], one(obs, written[t, n])]))
    twice = played(stacked(stacked(ramp(), 2), 2))  # [o(t-2), o(t-1), o(t-1), o(t)]
    three = [np.asarray(x) for x in window(plain, 3)]
    assert_shown(twice, plain, *(np.concatenate([x[..., :6], x[..., 3:]], axis=-1) for x in three))
    both = hidden(hidden(ramp(), (0,)), (0,))
    assert_shown(played(both), plain, plain.obs[..., 2:], plain.next_obs[..., 2:])
    apart = remembering(remembering(ramp(), 1), 2)
    np.testing.assert_array_equal(apart.action_space.high, [2, 3, 1, 1, 1])


def test_with_nothing_to_do_it_is_the_environment_itself():
    for env in (ramp(), rlx.envs.make("CartPole-v1"), rlx.Env(Steps(), Params())):
        assert hidden(env, ()) is env
        assert remembering(env, 0) is env
        assert stacked(env, 1) is env
    assert rlx.envs.make("CartPole-v1", hide=(), remember=0, stack=1) is rlx.envs.make("CartPole-v1")


WRAPPED = {
    "hidden": lambda env: hidden(env, (1,)),
    "timed": timed,
    "remembering": lambda env: remembering(env, 2),
    "stacked": lambda env: stacked(env, 3),
    "all": lambda env: stacked(remembering(hidden(env, (1,)), 2), 3),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_they_keep_what_the_environment_says_of_itself(wrap):
    env = wrap(ramp())
    assert env.environment.dt == 0.02
    assert env.environment.differentiable
    assert env.environment.cameras(env.params) == ["side"]
    assert (env.horizon, wrap(ramp(max_steps=3)).horizon, chunked(env, 3).horizon) == (4, 3, 2)
    assert wrap(rlx.envs.make("Pendulum-v1", max_steps=30)).horizon == 30
    assert wrap(rlx.envs.make("Pendulum-v1")).horizon == 200
    assert randomized(env, {"size": (0.5, 2.0)}).horizon == 4
    assert not hasattr(wrap(rlx.envs.make("Pendulum-v1")).environment, "html")
    assert not hasattr(wrap(rlx.envs.make("Pendulum-v1")).environment, "dt")
    assert copy.copy(env.environment).dt == 0.02


@pytest.mark.parametrize(
    ("name", "entries"), [("hidden", [0, 2]), ("timed", [0, 1, 2]), ("remembering", [0, 1, 2]), ("stacked", [0, 1, 2])]
)
def test_what_is_drawn_is_what_is_inside(name, entries):
    env, inner = WRAPPED[name](ramp()), ramp()
    s, plain = env.reset(jax.random.key(0)), inner.reset(jax.random.key(0))
    for key in jax.random.split(jax.random.key(1), 2):
        action = env.action_space.sample(key)
        s, plain = env.advance(key, s, action)[0], inner.advance(key, plain, action[:2])[0]
    for drawn in (
        env.environment.frames([s], env.params, 64, 48, None),
        env.environment.html([s], env.params),
    ):
        ((state, obs),) = drawn
        np.testing.assert_array_equal(state, plain.state)
        np.testing.assert_array_equal(obs, plain.obs[jnp.array(entries)])


def test_bounds_of_params_that_are_traced_are_those_of_the_params():
    env = WRAPPED["all"](ramp())

    def high(size):
        return replace(env, params=replace(env.params, size=size)).observation_space.high

    np.testing.assert_array_equal(jax.vmap(high)(jnp.array([3.0, 5.0])), [[1, 3, 1, 1] * 3, [1, 5, 1, 1] * 3])


def test_a_step_that_diverges_ends_its_episode_with_what_was_seen_before():
    class Broken(Ramp):
        def step(self, key, state, action, params):
            obs, *rest = super().step(key, state, action, params)
            return obs.at[0].set(jnp.nan), *rest

    env = stacked(rlx.Env(Broken(), Params()), 2)
    start = env.reset(jax.random.key(0))
    _, transition = env.advance(jax.random.key(0), start, jnp.ones(2))
    assert transition.terminated
    assert transition.diverged
    np.testing.assert_array_equal(transition.next_obs, start.obs)


def test_gradients_pass_through_what_is_written():
    env = remembering(ramp(), 1)

    def observed(action):
        return env.advance(jax.random.key(0), env.reset(jax.random.key(0)), action)[1].next_obs

    found = jax.jacobian(observed)(jnp.array([0.3, 0.2, 0.5]))
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]])


def test_around_chunks_what_chunks_say_is_passed_on():
    chunks = chunked(ramp(max_steps=20, length=20), 3, executed=2)
    x = jnp.arange(6)
    np.testing.assert_array_equal(carried_out(hidden(chunks, (0,)), x), x[:4])
    np.testing.assert_array_equal(carried_out(stacked(chunks, 2), x), x[:4])
    with pytest.raises(ValueError, match="max_steps=8"):
        check_horizon(hidden(chunks, (0,)), 4)
    whole = remembering(chunked(ramp(), 3), 2)
    assert whole.action_space.shape == (8,)
    np.testing.assert_array_equal(carried_out(whole, jnp.arange(8)), jnp.arange(8))
    with pytest.raises(ValueError, match="give the environment its memory first"):
        remembering(chunks, 2)


def test_chunks_of_what_remembers_write_with_every_action():
    env = chunked(remembering(ramp(), 1), 2)
    assert env.action_space.shape == (6,)
    start = env.reset(jax.random.key(0))
    _, transition = env.advance(jax.random.key(0), start, jnp.array([1, 0, 0.25, 1, 0, 0.75]))
    np.testing.assert_allclose(transition.next_obs, [start.obs[0], 2, 2, 0.75])


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda: hidden(ramp(), (3,)), r"hidden entry 3: the observation has 3, give integers from 0 to 2"),
        (lambda: hidden(ramp(), (-4,)), "hidden entry -4"),
        (lambda: hidden(ramp(), (1.0,)), "hidden entry 1.0"),
        (lambda: hidden(ramp(), (True,)), "hidden entry True"),
        (lambda: hidden(ramp(), "velocity"), "hidden entry 'velocity'"),
        (lambda: hidden(ramp(), (1, -2)), "give each of them once"),
        (lambda: hidden(ramp(), (0, 1, 2)), "all 3 entries of the observation would be hidden"),
        (lambda: hidden(rlx.Env(Screen(), Params()), (0,)), "an observation that is one vector"),
        (lambda: hidden(rlx.Env(Steps(), Params()), (0,)), "an observation that is one vector"),
        (lambda: remembering(ramp(), -1), "a memory of -1 numbers: give an integer of at least 0"),
        (lambda: remembering(ramp(), 2.0), "a memory of 2.0 numbers"),
        (lambda: remembering(rlx.envs.make("CartPole-v1"), 2), "a memory is of actions that are a vector of real"),
        (lambda: remembering(rlx.Env(Screen(), Params()), 2), "a memory is of observations that are a vector of real"),
        (lambda: remembering(rlx.Env(Steps(), Params()), 2), "a memory is of observations that are a vector of real"),
        (lambda: timed(ramp(), 0), "an episode of 0 steps: give an integer of at least 1"),
        (lambda: timed(rlx.Env(Steps(), Params())), "time stands beside a vector of real numbers"),
        (lambda: timed(rlx.envs.make("probe/Constant")), "not known: give max_steps, or a limit"),
        (lambda: stacked(ramp(), 0), "0 observations in one: give an integer of at least 1"),
        (lambda: stacked(ramp(), 1.5), "1.5 observations in one"),
    ],
)
def test_what_cannot_be_hidden_remembered_or_stacked_is_refused(wrap, message):
    with pytest.raises(ValueError, match=message):
        wrap()


def test_a_space_of_another_kind_is_refused():
    class Other(Ramp):
        def observation_space(self, params):
            return {"camera": Box(0, 1, (2,))}

    env = rlx.Env(Other(), Params())
    for wrap in WRAPPED.values():
        with pytest.raises(ValueError, match=r"the environment has \{'camera'"):
            wrap(env)


class Senses(Ramp):
    """The same, seen in entries."""

    def reset(self, key, params):
        obs, state = super().reset(key, params)
        return {"number": obs[:1], "rest": obs[1:]}, state

    def step(self, key, state, action, params):
        obs, *rest = super().step(key, state, action, params)
        return {"number": obs[:1], "rest": obs[1:]}, *rest

    def observation_space(self, params):
        box = super().observation_space(params)
        parts = {"number": Box(box.low[:1], box.high[:1], (1,)), "rest": Box(box.low[1:], box.high[1:], (2,))}
        return Dict(parts, privileged=("rest",))


def test_entries_of_a_dictionary_are_hidden_by_name():
    env = hidden(rlx.Env(Senses(), Params()), "number")
    assert list(env.observation_space.spaces) == ["rest"]
    assert env.observation_space.privileged == ("rest",)
    start = env.reset(jax.random.key(0))
    assert list(start.obs) == ["rest"]
    _, transition = env.advance(jax.random.key(1), start, jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(transition.next_obs["rest"], [1.0, 1.5])
    assert hidden(rlx.Env(Senses(), Params()), ["rest"]).observation_space.privileged == ()
    with pytest.raises(ValueError, match="hidden entry 'speed': the observation has number, rest"):
        hidden(rlx.Env(Senses(), Params()), ("speed",))
    with pytest.raises(ValueError, match="all entries number, rest of the observation would be hidden"):
        hidden(rlx.Env(Senses(), Params()), ("number", "rest"))


def test_they_are_options_of_make_one_around_the_other():
    env = rlx.envs.make("Pendulum-v1", hide=[2], remember=2, stack=3, chunk=(2, 1), max_steps=40)
    single = env.params
    assert env.observation_space.shape == (3 * (2 + 2),)
    assert env.action_space.shape == (2 * (1 + 2),)
    assert env.horizon == 40
    np.testing.assert_allclose(single.observation_space.high, [1, 1, 1, 1] * 3)
    np.testing.assert_allclose(single.action_space.high, [2, 1, 1])
    assert rlx.envs.make("Pendulum-v1", hide=2, time=True, remember=1).observation_space.shape == (4,)
    assert rlx.envs.make("CartPole-v1", time=False) is rlx.envs.make("CartPole-v1")
    assert rlx.envs.make("CartPole-v1", hide=1).observation_space.shape == (3,)
    factors = {"g": (0.5, 2.0)}
    assert rlx.envs.make("Pendulum-v1", randomize=factors, hide=2).params.low.shape == (1,)


@pytest.mark.more
@pytest.mark.parametrize(
    "options", [{"hide": 2, "remember": 2, "stack": 3}, {"time": True}, {"remember": 1, "chunk": 2}]
)
def test_they_keep_the_contract(options):
    assert len(rlx.envs.check(rlx.envs.make("Pendulum-v1", max_steps=40, **options))) == len(CLAUSES)


def test_commands_use_the_environment_that_was_trained(tmp_path):
    run = tmp_path / "run"
    sizes = ["--num-envs", "4", "--num-steps", "8", "--num-minibatches", "1", "--hidden-sizes", "4"]
    options = ["--env-options", "hide=(2,)", "remember=1", "stack=2", "max_steps=9"]
    train = ["train", "ppo", "--env", "Pendulum-v1", *options, *sizes, "--eval-episodes", "2", "--no-compile-cache"]
    cli.main([*train, "--total-steps", "32", "--out", str(run)])
    saved = json.loads((run / "config.json").read_text())
    assert saved["env_options"] == {"hide": [2], "remember": 1, "stack": 2, "max_steps": 9}
    cli.main(["train", "--resume", str(run), "--total-steps", "64", "--no-compile-cache"])
    cli.main(["eval", str(run), "--num-episodes", "2", "--no-compile-cache"])
    cli.main(["render", str(run), "--output", str(tmp_path / "strip.png"), "--no-compile-cache"])
    assert (tmp_path / "strip.png").stat().st_size > 0
    assert json.loads((run / "config.json").read_text())["env_options"] == saved["env_options"]
