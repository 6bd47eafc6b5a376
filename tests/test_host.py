"""Policies in environments of Gymnasium: whole episodes, spaces that fit, and tasks of one name in two suites."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import rlx
from rlx.envs.bridge import GymnasiumEnv, GymnasiumVectorEnv
from rlx.envs.gymnasium_spaces import acted, check_fit, from_gymnasium, observed
from rlx.envs.host import evaluate, make, play, spaces_of
from rlx.spaces import Box, Dict, Discrete, Tuple, named


class Push:
    """Always pushes to one side, and counts its episodes."""

    def __init__(self, action=1):
        self.action, self.num_resets, self.seen = action, 0, []

    def reset(self):
        self.num_resets += 1

    def act(self, obs):
        self.seen.append(obs)
        return self.action


class Balance:
    """Holds the pole upright, with the action of before as its memory."""

    def reset(self):
        self.before = None

    def act(self, obs):
        assert self.before is None or self.before in (0, 1)
        self.before = int(obs[2] + 0.5 * obs[3] + 0.05 * obs[1] > 0)
        return self.before


class Reporting(gymnasium.Env):
    """Four steps; a text, numbers and truth values in `info`."""

    observation_space, action_space = spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 3], start=[0, 5])
    closed = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.given = 0, []
        return np.int64(-1), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        self.given.append(action.tolist())
        info = {"text": "a", "num": 3, "cost": 0.5, "deep": {"up": np.float32(self.time)}, "won": self.time in (2, 3)}
        info |= {"return": 1.0} if self.time == 1 else {}
        return np.int64(1), 1.0, self.time == 4, False, info

    def close(self):
        self.closed = True


def test_episodes_are_whole_and_of_their_own_starts():
    env, policy = gymnasium.make("CartPole-v1"), Push()
    episodes = play(policy, env, num_episodes=5, seed=3)
    assert isinstance(episodes, rlx.Episodes)
    assert policy.num_resets == 5
    assert episodes.returns.tolist() == episodes.lengths.tolist()
    assert 7 < episodes.lengths.min() <= episodes.lengths.max() < 12  # a pole that is pushed falls in about 10 steps
    assert sum(episodes.lengths) == len(policy.seen)
    assert episodes.finished.all()
    assert not episodes.diverged.any()
    starts = np.array(policy.seen)[np.cumsum([0, *episodes.lengths[:-1]])]
    assert np.abs(starts).max() <= 0.05
    assert len(np.unique(starts, axis=0)) == 5


def test_a_seed_chooses_the_starts_whatever_the_policy():
    first, same, other = (Push() for _ in range(3))
    play(first, lambda: gymnasium.make("CartPole-v1"), 3, seed=1)
    play(Balance(), lambda: gymnasium.make("CartPole-v1"), 1, seed=1)
    play(same, lambda: gymnasium.make("CartPole-v1"), 3, seed=1)
    play(other, lambda: gymnasium.make("CartPole-v1"), 3, seed=2)
    np.testing.assert_array_equal(first.seen, same.seen)
    assert (first.seen[0] != other.seen[0]).all()


def test_a_policy_with_a_memory_balances_until_the_time_limit():
    episodes = play(Balance(), lambda: gymnasium.make("CartPole-v1"), 2)
    assert episodes.returns.tolist() == [500.0, 500.0]
    assert episodes.finished.all()
    cut = play(Balance(), lambda: gymnasium.make("CartPole-v1"), 2, max_steps=20)
    assert cut.lengths.tolist() == [20, 20]
    assert not cut.finished.any()


def test_what_is_made_here_is_closed_here():
    given, made = Reporting(), Reporting()
    policy = Push((1, 2))
    play(policy, given, 1)
    play(policy, lambda: made, 1)
    assert (given.closed, made.closed) == (False, True)
    failing = Reporting()
    with pytest.raises(ValueError, match="give a tuple of 2"):
        play(Push(1), lambda: failing, 1)
    assert failing.closed


def test_what_is_reported_is_counted_as_in_rlx():
    env, policy = Reporting(), Push((1, 2))
    episodes = play(policy, env, 2)
    assert {name: x.tolist() for name, x in episodes.reported.items()} == {
        "cost": [2.0, 2.0],
        "deep.up": [10.0, 10.0],
        "won": [1.0, 1.0],
        "info.return": [1.0, 1.0],
    }
    assert env.given == [[1, 7]] * 4  # of three choices that begin at 5
    assert policy.seen[:2] == [0, 2]  # of three that begin at -1


def test_through_the_bridge_returns_and_reports_are_those_of_rlx():
    """The best legal action, on the host and within `rlx.evaluate`'s rules: a reward of 0 and nothing illegal."""

    class Legal(Push):
        def act(self, obs):
            order = (obs["target"] + np.arange(10)) % 10
            return order[np.argmax(obs["action_mask"][order])]

    best = play(Legal(), GymnasiumEnv("probe/Legal"), 8)
    assert best.returns.tolist() == [0.0] * 8
    assert best.reported["illegal"].tolist() == [0.0] * 8
    worst = play(Push(0), GymnasiumEnv("probe/Legal"), 32)
    assert (worst.returns[worst.reported["illegal"] == 1.0] == -1.0).all()
    assert 0 < worst.reported["illegal"].sum() < 32


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(-1.0, 2.0, (3,)), {"": (Box, (3,), np.float32)}),
        (spaces.Box(0, 255, (4, 4), np.uint8), {"": (Box, (4, 4), np.uint8)}),
        (spaces.MultiBinary(3), {"": (Box, (3,), np.bool_)}),
        (spaces.Discrete(4, start=2), {"": (Discrete, 4, ())}),
        (spaces.MultiDiscrete([3, 3]), {"": (Discrete, 3, (2,))}),
        (spaces.MultiDiscrete([[2, 3]], start=[[1, 0]]), {"0": (Discrete, 2, ()), "1": (Discrete, 3, ())}),
        (
            spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.Box(0.0, 1.0, (1,), np.float64)])),
            {"a": (Discrete, 2, ()), "b.0": (Box, (1,), np.float64)},
        ),
    ],
    ids=str,
)
def test_a_space_and_its_elements_come_over_and_go_back(space, expected):
    found = from_gymnasium(space)
    described = lambda s: (Box, s.shape, s.dtype) if isinstance(s, Box) else (Discrete, s.n, s.shape)
    assert {name: described(leaf) for name, leaf in named(found).items()} == expected
    space.seed(0)
    for _ in range(10):
        element = space.sample()
        ours = observed(space, element)
        assert bool(found.contains(jax.tree.map(jnp.asarray, ours)))
        back = acted(space, ours)
        assert space.contains(back)
        assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), back, element))


def test_the_spaces_of_an_environment_are_had_and_text_is_refused():
    observation, action = spaces_of(gymnasium.make("CartPole-v1"))
    assert (observation.shape, action) == ((4,), Discrete(2))
    with pytest.raises(ValueError, match=r"Text.* is no space that rlx has: choose an environment of Box, Discrete"):
        from_gymnasium(spaces.Dict(a=spaces.Text(3)))


@pytest.mark.parametrize(
    ("role", "trained", "found", "message"),
    [
        ("observation", Box(-1.0, 1.0, (4,)), Box(-1.0, 1.0, (3,)), r"shape \[3\] and .* real numbers of shape \[4\]"),
        ("observation", Box(0, 255, (4,), jnp.uint8), Box(0.0, 255.0, (4,)), "is real numbers .* with integers"),
        ("observation", Dict(a=Discrete(2)), Dict(b=Discrete(2)), "observation a is not there and .* a choice of 2"),
        ("observation", Discrete(2), Dict(b=Discrete(2)), "observation is not there and .* a choice of 2"),
        ("action", Discrete(2), Discrete(3), "action is a choice of 3 and the policy was trained with a choice of 2"),
        ("action", Discrete(2), Box(-1.0, 1.0, (1,)), r"real numbers of shape \[1\] from -1 to 1 and .* a choice of 2"),
        ("action", Box(-1.0, 1.0, (2,)), Box(-2.0, 2.0, (2,)), "from -2 to 2 and .* from -1 to 1"),
        ("action", Tuple(Discrete(2)), Tuple(Discrete(2), Discrete(2)), "action 1 is a choice of 2 and .* none of it"),
        ("action", Discrete(2, shape=(2,)), Discrete(2), r"a choice of 2 and .* \[2\] choices of 2"),
    ],
)
def test_spaces_that_do_not_fit_are_told_by_their_part(role, trained, found, message):
    with pytest.raises(ValueError, match=f"gymnasium/Other does not fit: .*{message}"):
        check_fit(trained, found, role, "gymnasium/Other")


def test_bounds_of_observations_and_widths_of_numbers_may_differ():
    check_fit(Box(-1.0, 1.0, (2,)), Box(-np.inf, np.inf, (2,), np.float64), "observation", "other")
    check_fit(Box(-0.1, 3.4e38, (1,)), Box(-0.1, np.inf, (1,), np.float64), "action", "other")


def test_a_policy_is_evaluated_by_name_with_observations_of_its_dtype():
    env, policy = rlx.envs.make("CartPole-v1"), Push()
    episodes = evaluate(policy, env.observation_space, env.action_space, "gymnasium/CartPole-v1", 2, seed=0)
    assert episodes.lengths.shape == (2,)
    assert policy.seen[0].dtype == np.float32
    half = Box(-1.0, 1.0, (4,), np.float16)
    evaluate(policy, half, env.action_space, "gymnasium/CartPole-v1", 1)
    assert policy.seen[-1].dtype == np.float16
    with pytest.raises(ValueError, match="gymnasium/Pendulum-v1 does not fit: observation is real numbers of shape"):
        evaluate(policy, env.observation_space, env.action_space, "gymnasium/Pendulum-v1")
    assert make("gymnasium/CartPole-v1", max_episode_steps=7).spec.max_episode_steps == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPole-v1", "'CartPole-v1' is no name of Gymnasium's: write gymnasium/CartPole-v1"),
        ("gymnasium/NoSuchTask-v0", "gymnasium/NoSuchTask-v0 cannot be made: .*NoSuchTask"),
    ],
)
def test_a_name_that_nothing_has_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Push(), Discrete(2), Discrete(2), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_episodes": 0}, "num_episodes = 0: give a whole number of at least 1"),
        ({"seed": -1}, "seed = -1: give a whole number of at least 0"),
        ({"policy": object()}, "has no reset and no act: give an object with both"),
        ({"env": "CartPole-v1"}, "env = 'CartPole-v1' is no gymnasium.Env"),
        ({"env": lambda: GymnasiumVectorEnv("CartPole-v1", 2)}, "is no gymnasium.Env: give one that is not a vector"),
        ({"policy": Push(2)}, "action = 2: give an integer from 0 to 1"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"policy": Push(), "env": lambda: gymnasium.make("CartPole-v1"), "num_episodes": 1} | change
    with pytest.raises(ValueError, match=message):
        play(**arguments)


def gymnax_state(name, env_state, values):
    """gymnax's state with the numbers of Gymnasium's."""
    fields = ("x", "x_dot", "theta", "theta_dot") if name == "CartPole-v1" else ("theta", "theta_dot")
    numbers = {field: jnp.float32(value) for field, value in zip(fields, values, strict=True)}
    return rlx.replace(env_state, state=env_state.state.replace(**numbers))


@pytest.mark.parametrize(("name", "wide"), [("CartPole-v1", (3.0, 2.0, 0.3, 2.0)), ("Pendulum-v1", (np.pi, 8.0))])
def test_gymnax_has_the_dynamics_and_time_limits_of_gymnasium(name, wide):
    rng, env, other = np.random.default_rng(0), rlx.envs.make(name), gymnasium.make(name)
    begin, step = env.reset(jax.random.key(0)), jax.jit(env.advance)
    ended = []
    for _ in range(50):
        values = rng.uniform(-np.array(wide), wide)
        other.reset(seed=0)
        other.unwrapped.state = values
        discrete = name == "CartPole-v1"
        action = rng.integers(2) if discrete else rng.uniform(-3, 3, 1).astype(np.float32)
        _, ours = step(jax.random.key(0), gymnax_state(name, begin, values), action)
        obs, reward, terminated, _, _ = other.step(action)
        np.testing.assert_allclose(ours.next_obs, obs, rtol=1e-5, atol=1e-5)
        inside = not discrete or (abs(values[0]) < 2.4 and abs(values[2]) < 0.2095)
        if inside:
            np.testing.assert_allclose(ours.reward, reward, rtol=1e-5, atol=1e-5)
        assert bool(ours.terminated) == terminated
        ended.append(terminated)
    assert env.horizon == other.spec.max_episode_steps
    assert any(ended) == (name == "CartPole-v1")
