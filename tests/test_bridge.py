"""Environments of rlx as those of Gymnasium: its checker, seeds, spaces, ends of episodes, pictures, bad input."""

import warnings
from importlib.util import find_spec

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import rlx
from rlx.envs.bridge import GymnasiumEnv, GymnasiumVectorEnv, programs
from rlx.envs.gymnasium_spaces import to_gymnasium
from rlx.envs.packed import Layout
from rlx.spaces import Box, Dict, Discrete, Tuple

# What the checker has against spaces that are as they are: open bounds, actions in units of their own.
OPINIONS = ("space (minimum|maximum) value is -?infinity", "recommend using a symmetric and normalized space")
CHECKED = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "Breakout-MinAtar", "FrozenLake-misc", "GridWorld", "Sort"]
CHECKED += ["Recall-8", "HiddenPendulum", "Levels", "probe/Legal", "probe/Composite", "mjx/pendulum"]
CHECKED += [pytest.param("brax/inverted_pendulum", marks=pytest.mark.more)]
# Episodes that end by themselves and by the time limit, actions and observations of all kinds, and a report.
TOGETHER = [
    ("CartPole-v1", {"max_steps": 12}),
    ("probe/Legal", {}),
    ("probe/Composite", {}),
    ("Recall-8", {}),
    ("pair", {}),
]


class Pair:
    """A tuple is seen and given; an episode takes three steps of its own, and a step may diverge."""

    default_params = jnp.float32(0.5)

    def reset(self, key, params):
        return (jnp.int32(0), jnp.zeros(2, jnp.float16)), jnp.int32(0)

    def step(self, key, state, action, params):
        obs = (state % 3, jnp.full(2, params, jnp.float16))
        reward = jnp.where(action[0] == 2, jnp.nan, action[1].sum())
        return obs, state + 1, reward, state == 2, False, {"noise": jax.random.normal(key), "deep": {"up": state > 0}}

    def observation_space(self, params):
        return Tuple(Discrete(3), Box(-1.0, 1.0, (2,), jnp.float16))

    def action_space(self, params):
        return Tuple(Discrete(3), Box(-1.0, 1.0, (2,)))


@pytest.fixture(scope="module")
def pair():
    return rlx.Env(Pair(), Pair.default_params)


@pytest.mark.parametrize("name", CHECKED)
def test_gymnasiums_own_checker_finds_nothing(name):
    with warnings.catch_warnings():
        for opinion in OPINIONS:
            warnings.filterwarnings("ignore", f".*{opinion}")
        check_env(GymnasiumEnv(name), skip_render_check=True)


def test_gymnasiums_own_checker_draws():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{OPINIONS[0]}")
        check_env(GymnasiumEnv("CartPole-v1", width=64, height=48))


def test_a_tuple_of_an_environment_without_a_name_passes_too(pair):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*environment not having a spec")
        check_env(GymnasiumEnv(pair))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (Box(-1.0, 2.0, (3,)), spaces.Box(-1.0, 2.0, (3,), np.float32)),
        (Box(-np.finfo(np.float32).max, 1.0, (1,)), spaces.Box(-np.inf, 1.0, (1,), np.float32)),
        (Box(0, 255, (4, 4, 3), jnp.uint8), spaces.Box(0, 255, (4, 4, 3), np.uint8)),
        (Box(-np.inf, np.inf, (2,), jnp.int32), spaces.Box(-(2**31), 2**31 - 1, (2,), np.int32)),
        (Box(0, 1, (4,), jnp.bool_), spaces.MultiBinary((4,))),
        (Discrete(3), spaces.Discrete(3)),
        (Discrete(3, shape=(2, 2)), spaces.MultiDiscrete([[3, 3], [3, 3]])),
        (Dict(a=Discrete(2), b=Box(0.0, 1.0, ())), spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0.0, 1.0, ()))),
        (Tuple(Discrete(2), Discrete(5)), spaces.Tuple([spaces.Discrete(2), spaces.Discrete(5)])),
    ],
    ids=repr,
)
def test_a_space_has_its_kind_bounds_and_dtype(space, expected):
    assert to_gymnasium(space) == expected


def test_a_mask_of_legal_actions_is_what_gymnasium_samples_with():
    env = GymnasiumEnv("probe/Legal")
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        assert not env.step(env.action_space.sample(mask=obs["action_mask"]))[4]["illegal"]


def whole_episode(env, **reset):
    """What an episode of sampled actions gives, step by step."""
    seen = [env.reset(**reset)]
    env.action_space.seed(0)
    while len(seen) == 1 or not any(seen[-1][2:4]):
        seen.append(env.step(env.action_space.sample()))
    return seen


def test_a_seed_gives_the_same_episodes_again_and_each_is_another():
    first, other = (GymnasiumEnv("CartPole-v1", max_steps=12) for _ in range(2))
    seeded, following = whole_episode(first, seed=7), whole_episode(first)
    assert data_equivalence(seeded, whole_episode(other, seed=7), exact=True)
    assert data_equivalence(following, whole_episode(other), exact=True)
    starts = [seeded[0][0], following[0][0], first.reset()[0], first.reset(seed=8)[0], first.reset(seed=7 + 2**40)[0]]
    assert len({start.tobytes() for start in starts}) == 5
    assert (first.reset(seed=7)[0] == starts[0]).all()


def test_without_a_seed_two_environments_differ():
    assert (GymnasiumEnv("CartPole-v1").reset()[0] != GymnasiumEnv("CartPole-v1").reset()[0]).any()


def test_steps_are_those_of_the_environment_and_info_is_what_it_reports(pair):
    env = GymnasiumEnv(pair)
    env.reset(seed=0)
    noises, states = [], []
    for i in range(3):
        obs, reward, terminated, truncated, info = env.step((i % 2, np.array([0.25, 0.5], np.float32)))
        assert obs[0] == i
        assert type(obs[0]) is np.int64
        assert obs[1].dtype == np.float16
        assert (obs[1] == 0.5).all()
        assert (reward, terminated, truncated) == (0.75, i == 2, False)
        noises, states = [*noises, info["noise"]], [*states, info["deep.up"]]
    assert info.keys() == {"noise", "deep.up", "diverged"}
    assert states == [False, True, True]
    assert type(states[0]) is bool
    assert len(set(noises)) == 3  # each step has a key of its own


def test_observations_can_be_written_to_and_stay_as_they_were():
    env = GymnasiumEnv("CartPole-v1")
    first, _ = env.reset(seed=0)
    kept = first.copy()
    obs = env.step(0)[0]
    assert (first == kept).all()
    obs += 1.0
    assert obs.flags.aligned


def test_a_step_that_diverges_ends_the_episode_and_says_so(pair):
    env = GymnasiumEnv(pair)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step((2, np.zeros(2)))
    assert (reward, terminated, truncated, info["diverged"]) == (0.0, True, False, True)


def test_a_time_limit_truncates_with_the_true_successor():
    env, limit = rlx.envs.make("Pendulum-v1"), 4
    bridge = GymnasiumEnv("Pendulum-v1", max_steps=limit)
    obs, _ = bridge.reset(seed=0)
    for i in range(limit):
        cos, sin, velocity = obs
        obs, _, terminated, truncated, _ = bridge.step(np.array([1.0], np.float32))
        velocity = np.clip(velocity + (15.0 * sin + 3.0) * 0.05, -8.0, 8.0)
        angle = np.arctan2(sin, cos) + velocity * 0.05
        np.testing.assert_allclose(obs, [np.cos(angle), np.sin(angle), velocity], rtol=1e-4, atol=1e-5)
        assert (terminated, truncated) == (False, i == limit - 1)
    assert env.horizon == 200
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"it has ended: call reset\(\)"):
        bridge.step(np.array([1.0], np.float32))


def test_nothing_can_be_stepped_before_a_reset_or_after_closing():
    env, envs = GymnasiumEnv("CartPole-v1"), GymnasiumVectorEnv("CartPole-v1", 2)
    for bridge, action in ((env, 0), (envs, np.zeros(2, int))):
        with pytest.raises(gymnasium.error.ResetNeeded):
            bridge.step(action)
        bridge.reset(seed=0)
        bridge.step(action)
        bridge.close()
        bridge.close()
        with pytest.raises(gymnasium.error.ResetNeeded):
            bridge.step(action)


def equal(a, b):
    """Of whatever Gymnasium's vectors give: trees of arrays with the same names, dtypes and values."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "options"), TOGETHER, ids=lambda x: x if isinstance(x, str) else "")
def test_a_vector_steps_as_single_environments_do(name, options, pair):
    """Through several episodes of each, with what they report, and through resets of some."""
    num, env = 3, pair if name == "pair" else name
    envs = GymnasiumVectorEnv(env, num, **options)
    singles = SyncVectorEnv([lambda: GymnasiumEnv(env, **options)] * num, autoreset_mode=AutoresetMode.NEXT_STEP)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.observation_space == singles.observation_space
    assert envs.action_space == singles.action_space
    envs.action_space.seed(1)

    def both(call):
        ours, theirs = call(envs), call(singles)
        equal(ours, theirs)
        return ours

    obs, _ = both(lambda e: e.reset(seed=5))
    assert envs.observation_space.contains(obs)
    ended = np.zeros(num, int)
    for i in range(40):
        action = envs.action_space.sample()
        _, _, terminated, truncated, _ = both(lambda e, action=action: e.step(action))
        ended += terminated | truncated
        if i == 20:
            both(lambda e: e.reset())
        if i == 24:  # a copy each: Gymnasium takes the mask out
            both(lambda e: e.reset(seed=[3, None, 4], options={"reset_mask": np.array([True, True, False])}))
    assert (ended >= 2).all()


def test_the_step_after_an_end_begins_the_next_episode_whatever_the_action():
    envs = GymnasiumVectorEnv("Pendulum-v1", 2, max_steps=2)
    starts = envs.reset(seed=0)[0]
    envs.step(np.zeros((2, 1)))
    _, _, terminated, truncated, info = envs.step(np.zeros((2, 1)))
    assert truncated.all()
    assert not terminated.any()
    assert info["_diverged"].all()
    obs, reward, terminated, truncated, info = envs.step(np.ones((2, 1)))
    assert (obs != starts).any(axis=1).all()
    assert (reward == 0.0).all()
    assert not (terminated | truncated).any()
    assert info == {}


def test_gymnasium_makes_another_one_of_a_spec_and_its_wrappers_count_episodes():
    env = gymnasium.make(GymnasiumEnv("CartPole-v1", max_steps=5).spec)
    env = gymnasium.wrappers.RecordEpisodeStatistics(env)
    assert whole_episode(env, seed=0)[-1][4]["episode"]["l"] == 5
    envs = gymnasium.make_vec(GymnasiumVectorEnv("CartPole-v1", 2, max_steps=5).spec, num_envs=3)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    envs.reset(seed=0)
    infos = [envs.step(np.array([0, 1, 0]))[4] for _ in range(11)]
    assert [i for i, info in enumerate(infos) if "episode" in info] == [4, 10]
    assert infos[10]["episode"]["l"].tolist() == infos[10]["episode"]["r"].tolist() == [5, 5, 5]
    assert GymnasiumEnv(rlx.envs.make("CartPole-v1")).spec is None


def test_environments_of_one_kind_share_a_program():
    one, two = (GymnasiumEnv(rlx.envs.make("CartPole-v1", max_steps=n)) for n in (30, 40))
    before = programs.cache_info().misses
    three = GymnasiumEnv(rlx.env.with_params(one.rlx_env, {"gravity": 3.7}))
    assert programs.cache_info().misses == before
    after = []
    for env in (one, two, three):
        env.reset(seed=0)
        env.step(1)
        after.append(env.step(1)[0].tobytes())
    assert one._programs is two._programs is three._programs
    assert one._programs.step._cache_size() == 1
    assert after[0] == after[1] != after[2]


def test_a_state_is_drawn_and_an_environment_without_pictures_says_so():
    env = GymnasiumEnv("CartPole-v1", render_mode="rgb_array", width=64, height=48)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    env.reset(seed=0)
    first = env.render()
    for _ in range(8):
        env.step(1)
    assert (env.render() != first).any()
    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 20}
    envs = GymnasiumVectorEnv("CartPole-v1", 2, render_mode="rgb_array", width=64, height=48)
    envs.reset(seed=0)
    images = envs.render()
    np.testing.assert_array_equal(images[0], first)
    assert (images[0] != images[1]).any()
    plain = GymnasiumEnv("CartPole-v1")
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert plain.render() is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GymnasiumEnv("CartPole"), "unknown environment 'CartPole': did you mean"),
        (lambda: GymnasiumEnv(3), "env = 3 is no environment: give a name"),
        (lambda: GymnasiumEnv(rlx.envs.make("CartPole-v1"), max_steps=3), "max_steps is an option of an environment"),
        (lambda: GymnasiumEnv("CartPole-v1", render_mode="human"), "render_mode = 'human': give 'rgb_array'"),
        (lambda: GymnasiumEnv("probe/Legal", render_mode="rgb_array"), "cannot be drawn: leave render_mode out"),
        (lambda: GymnasiumEnv("CartPole-v1", camera="up"), "camera = 'up': there is no such camera"),
        (lambda: GymnasiumVectorEnv("CartPole-v1", 0), "num_envs = 0: give a whole number of at least 1"),
    ],
)
def test_what_cannot_be_made_says_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "action", "message"),
    [
        ("CartPole-v1", 2, "action = 2: give an integer from 0 to 1"),
        ("CartPole-v1", -1, "action = -1: give an integer from 0 to 1"),
        ("CartPole-v1", 0.7, "action = 0.7: give an integer from 0 to 1"),
        ("CartPole-v1", np.zeros(1, int), r"action of shape \[1\]: give one of shape \[\]"),
        ("Pendulum-v1", 0.5, r"action of shape \[\]: give one of shape \[1\]"),
        ("probe/Composite", 1, "give one of the structure of Dict"),
        ("probe/Composite", {"tool": 1, "keys": [0, 1, 2], "push": [0.0, 0.0]}, "action keys = .*from 0 to 1"),
    ],
)
def test_an_action_that_is_none_is_refused(name, action, message):
    env = GymnasiumEnv(name)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_a_reset_that_cannot_be_is_refused():
    env, envs = GymnasiumEnv("CartPole-v1"), GymnasiumVectorEnv("CartPole-v1", 2)
    with pytest.raises(ValueError, match="options low: there are none"):
        env.reset(options={"low": 0.0})
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="the first one is of all"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match=r"a bool array of shape \[2\]"):
        envs.reset(options={"reset_mask": np.array([1, 0])})


def test_a_packed_tree_is_the_same_after_unpacking():
    tree = {
        "key": jax.random.split(jax.random.key(3), 2),
        "flag": jnp.array([True, False, True]),
        "image": jnp.arange(7, dtype=jnp.uint8),
        "half": jnp.array([[1.5], [-2.0]], jnp.bfloat16),
        "number": jnp.float32(-0.1),
        "count": jnp.int32(-5),
        "small": jnp.array(-3, jnp.int8),
        "empty": jnp.zeros((0, 2)),
        "other": jax.random.key(1, impl="rbg"),
    }
    layout = Layout.of(tree)
    data = jax.jit(layout.pack)(tree)
    assert data.shape == (layout.num_words,)
    back, views = jax.jit(layout.unpack)(data), layout.views(np.array(data))
    for name, x in tree.items():
        keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        assert back[name].dtype == x.dtype
        expected, found = (jax.random.key_data(y) if keys else y for y in (x, back[name]))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(views[name], expected)
        assert views[name].flags.aligned
    with pytest.raises(TypeError, match="a leaf is float32 and its place is for int32"):
        layout.pack(tree | {"count": jnp.float32(1)})
    assert Layout.of({}).pack({}).shape == (0,)


@pytest.mark.more
@pytest.mark.skipif(find_spec("stable_baselines3") is None, reason="needs stable-baselines3, which is no extra")
def test_ppo_of_stable_baselines3_learns_cartpole():
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    envs = make_vec_env(lambda: GymnasiumEnv("CartPole-v1"), 8, seed=0)
    settings = {"n_steps": 128, "batch_size": 256, "learning_rate": 1e-3, "gae_lambda": 0.8, "gamma": 0.98}
    agent = PPO("MlpPolicy", envs, seed=0, device="cpu", **settings).learn(30_000)
    assert evaluate_policy(agent, make_vec_env(lambda: GymnasiumEnv("CartPole-v1"), 8, seed=1), 40)[0] > 150
