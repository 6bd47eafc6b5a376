"""Training on environments that step on the host."""

import json
import os
import sys
import time

import cloudpickle
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console

import rlx
from rlx.algos import grpo, ppo, ppo_recurrent, sac_discrete
from rlx.cli import main
from rlx.env import Env
from rlx.envs.gymnasium_spaces import acted, acted_together, observed, observed_together
from rlx.envs.vectors import GymnasiumVector, Maker
from rlx.hosted import Fault, Host
from rlx.rollout import rollout
from rlx.run.collecting import Collector
from rlx.run.job import keys
from rlx.spaces import Box, Discrete

SMALL = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (8,)}
PPO = ppo.Config(total_steps=96, num_epochs=2, num_minibatches=2, learning_rate=1e-2, **SMALL)
LIMIT, EDGE = 9, 3
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes of workers do not find this file


class Line(gymnasium.Env):
    """A walk that begins at 0, ends at an edge or after some steps, and does something bad where it is asked to."""

    observation_space = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, bad: str = "", number: int = 0, at: int = 4):
        self.bad, self.number, self.at, self.steps = bad, number, at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = 0, 0
        return self._obs(), {}

    def _obs(self):
        return np.array([self.place, self.time / 8], np.float32)

    def step(self, action):
        self.place += 2 * int(action) - 1
        self.time, self.steps = self.time + 1, self.steps + 1
        ended, reward = abs(self.place) >= EDGE, self.place / 4
        if self.bad and self.steps >= self.at:
            if self.bad == "raise":
                raise RuntimeError("the motor is hot")
            if self.bad == "hang":
                time.sleep(3)
            if self.bad == "die":
                os._exit(7)
            reward = np.nan if self.bad == "reward" else reward
            if self.bad == "observation":
                return np.full(2, np.nan, np.float32), reward, ended, False, {}
        info = {"place": float(self.place), "edge": ended, "steps": self.time}
        return self._obs(), reward, ended, self.time >= LIMIT, info


class Twin:
    """The same walk in JAX."""

    default_params = None

    def reset(self, key, params):
        place = time = jnp.int32(0)
        return self._obs(place, time), (place, time)

    def _obs(self, place, time):
        return jnp.stack([place.astype(jnp.float32), time / 8])

    def step(self, key, state, action, params):
        place, time = state[0] + 2 * action - 1, state[1] + 1
        ended = abs(place) >= EDGE
        info = {"place": place.astype(jnp.float32), "edge": ended, "steps": time}
        return self._obs(place, time), (place, time), place / 4, ended, time >= LIMIT, info

    def observation_space(self, params):
        return Box(-10.0, 10.0, (2,))

    def action_space(self, params):
        return Discrete(2)


gymnasium.register("Line-v0", Line)


def line(**options):
    return rlx.envs.make("gymnasium/Line-v0", **options)


def same(a, b, rtol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = (jax.random.key_data(z) if jnp.issubdtype(z.dtype, jax.dtypes.prng_key) else z for z in (x, y))
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


MEMORY = ppo_recurrent.Config(total_steps=96, num_epochs=1, memory_size=4, sequence_length=4, **SMALL)
OFF_POLICY = sac_discrete.Config(total_steps=128, warmup_steps=32, batch_size=16, capacity=128, **SMALL)


def trained(algorithm, config, env, seed=0, **how):
    """The State and the metrics of a run without a directory."""
    collector, key, metrics = Collector(algorithm, config, env, seed, **how), keys(seed)[0], []
    try:
        collector.open(0)
        state = jax.jit(lambda *args: algorithm.init(*args))(config, collector.begin(config, key), key)
        update = jax.jit(lambda *args: algorithm.update(*args))
        for _ in range(rlx.total_updates(config)):
            state, row = update(config, collector.experience(config, state), state)
            metrics.append(row)
    finally:
        collector.close()
    return state, rlx.stack(metrics)


@pytest.mark.parametrize(
    ("algorithm", "config"),
    [(ppo, PPO), (ppo_recurrent, MEMORY), (sac_discrete, OFF_POLICY)],
    ids=["on-policy", "with a memory", "off-policy, with random actions first"],
)
def test_training_on_the_host_is_that_of_the_same_environment_in_jax(algorithm, config):
    state, metrics = trained(algorithm, config, line())
    expected, wanted = rlx.train(algorithm, config, Env(Twin(), None), keys(0)[0])
    assert wanted["num_episodes"].sum() >= 10
    np.testing.assert_array_equal(metrics["num_episodes"], wanted["num_episodes"])
    same(metrics, wanted)
    same(rlx.replace(state, env_state=state.env_state.obs), rlx.replace(expected, env_state=expected.env_state.obs))
    same(vars(state.env_state) | {"state": ()}, vars(expected.env_state) | {"state": ()})


def single(number, mode):
    makers = [Maker(gymnasium.spec("Line-v0"), {}, i) for i in range(number)]
    return GymnasiumVector(SyncVectorEnv(makers, autoreset_mode=mode), ("place", "edge"))


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_every_autoreset_mode_gives_whole_episodes_with_their_true_last_observations(mode):
    spaces_of = line().environment
    opened = lambda num, first: single(num, mode)
    host = Host("test/Line", spaces_of.observations, spaces_of.actions, opened, opened, ("place", "edge"), ("edge",))
    config = rlx.replace(PPO, num_steps=40)
    collector = Collector(ppo, config, Env(host, None), seed=0)
    collector.open(0)
    state = ppo.init(config, collector.begin(config, keys(0)[0]), keys(0)[0])
    held = collector.experience(config, state).params
    collector.close()
    traj, done = held.traj, held.traj.done
    assert done.sum() > 15
    before = traj.obs[..., 0] + 2 * traj.action - 1
    np.testing.assert_array_equal(traj.next_obs[..., 0], before)  # each action was taken where it was chosen
    np.testing.assert_array_equal(traj.terminated, abs(before) >= EDGE)
    np.testing.assert_array_equal(traj.reward, before / 4)
    np.testing.assert_array_equal(traj.obs[1:][~done[:-1]], traj.next_obs[:-1][~done[:-1]])
    assert (traj.obs[1:][done[:-1]] == 0).all()
    for end in np.argwhere(done):
        length = traj.episode_length[tuple(end)]
        if end[0] + 1 >= length:
            rows = slice(end[0] + 1 - length, end[0] + 1)
            assert traj.episode_return[tuple(end)] == traj.reward[rows, end[1]].sum()
            assert traj.reported["place"][tuple(end)] == traj.next_obs[rows, end[1], 0].sum()
            assert traj.reported["edge"][tuple(end)] == traj.terminated[tuple(end)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return rlx.fit(ppo, PPO, "gymnasium/Line-v0", directory=tmp_path_factory.mktemp("line") / "run", eval_episodes=5)


def test_a_run_leaves_what_every_run_does(run):
    found = json.loads((run.directory / "evaluation.json").read_text())
    assert (run.complete, len(run.metrics), found["num_episodes"], found["unfinished"]) == (True, 3, 5, 0)
    assert 0 <= float(found["reported"]["edge"]) <= 1
    assert (run.directory / "curve.png").exists()
    agent = rlx.load(run.directory)
    assert agent.act(np.zeros(2)) in (0, 1)
    episodes = agent.evaluate(3)
    assert episodes.finished.all()
    assert (abs(episodes.reported["edge"]) <= 1).all()
    np.testing.assert_array_equal(episodes.returns, agent.evaluate(3).returns)


def test_the_same_seed_is_the_same_run_to_the_bit():
    config = ppo.Config(total_steps=64, num_minibatches=2, num_epochs=1, **SMALL)
    cartpole = rlx.envs.make("gymnasium/CartPole-v1")
    first, again, other = (trained(ppo, config, cartpole, seed)[0] for seed in (0, 0, 1))
    leaves = lambda state: [np.asarray(x) for x in jax.tree.leaves(rlx.replace(state, key=None))]
    assert all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(again), strict=True))
    assert not np.array_equal(first.env_state.obs, other.env_state.obs)


def test_a_resumed_run_goes_on_with_new_episodes_and_says_so(run, tmp_path, capsys):
    main(["train", "ppo", "--env", "gymnasium/Line-v0", "--out", f"{tmp_path}/run", *as_options(PPO)])
    assert "new episodes" not in capsys.readouterr().out
    main(["train", "--resume", f"{tmp_path}/run", "--total-steps", "192", "--no-compile-cache"])
    assert "gymnasium/Line-v0 begins new episodes" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3, 4, 5, 6]
    main(["eval", f"{tmp_path}/run", "--num-episodes", "3", "--no-compile-cache"])
    assert "evaluation after 192 steps" in capsys.readouterr().out


def as_options(config, **more):
    chosen = ("total_steps", "num_envs", "num_steps", "num_epochs", "num_minibatches", "hidden_sizes")
    values = {name: getattr(config, name) for name in chosen} | more
    texts = {name: " ".join(map(str, x)) if isinstance(x, tuple) else str(x) for name, x in values.items()}
    flags = [[f"--{name.replace('_', '-')}", *text.split()] for name, text in texts.items()]
    return ["--no-preset", "--no-compile-cache", *(word for flag in flags for word in flag)]


FAULTS = {
    "raise": r"environment 2 raised RuntimeError: the motor is hot in step \d of its episode",
    "observation": "environment 2 gave an observation that is not finite in step",
    "reward": "environment 2 gave a reward that is not finite in step",
    "hang": "environment 2 did not answer for 0.5 seconds",
}


class Third(gymnasium.Wrapper):
    """Only the third environment that is made is bad."""

    made = 0

    def __init__(self, env):
        super().__init__(env)
        Third.made += 1
        if Third.made % 5 != 4:  # the first is made to see the spaces
            env.unwrapped.bad = ""


gymnasium.register("Third-v0", lambda **how: Third(Line(**how)), disable_env_checker=True)


@pytest.mark.parametrize("bad", FAULTS)
def test_a_fault_ends_a_run_that_is_saved_and_says_which_environment(bad, tmp_path):
    Third.made = 0
    env = rlx.envs.make("gymnasium/Third-v0", bad=bad, at=20)  # in the third of three updates
    with pytest.raises(Fault, match=FAULTS[bad]) as fault:
        rlx.fit(ppo, PPO, env, directory=tmp_path / "run", host_timeout=0.5)
    assert "gymnasium/Third-v0: " in str(fault.value)
    assert "after 76 steps of the run" in str(fault.value)
    assert rlx.load(tmp_path / "run", env=env).num_updates == 2
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["update"] for row in rows] == [1, 2]


def test_a_fault_is_one_line_on_stderr_and_status_1(tmp_path, capsys):
    options = ["--env-options", "bad=raise", "at=12", "--out", f"{tmp_path}/run", *as_options(PPO)]
    with pytest.raises(SystemExit) as stop:
        main(["train", "ppo", "--env", "gymnasium/Line-v0", *options])
    out, err = capsys.readouterr()
    assert (stop.value.code, len(err.splitlines())) == (1, 1)
    assert "environment 0 raised RuntimeError: the motor is hot" in err
    assert f"the checkpoint of update 1 is saved, and everything else is in {tmp_path}/run" in out


def test_workers_that_raise_or_die_are_named():
    env = line(workers="async", bad="raise", at=2)
    vector = env.environment.opened(2, 4)
    try:
        vector.reset(0)
        vector.send(np.array([1, 1]))
        first = vector.receive()
        np.testing.assert_array_equal(first.next_obs, [[1, 0.125], [1, 0.125]])
        vector.send(np.array([1, 1]))
        with pytest.raises(Fault, match="environment 4 raised RuntimeError: the motor is hot in step 2"):
            vector.receive()
        vector.envs.processes[1].kill()
        vector.envs.processes[1].join()
        with pytest.raises(Fault, match="environment 5 ended its process by signal 9"):
            (vector.send(np.array([1, 1])), vector.receive())
    finally:
        vector.close()
    assert not any(process.is_alive() for process in vector.envs.processes)


def test_what_overlaps_acts_with_the_policy_of_one_update_before():
    (_, plain), (state, overlapped) = (trained(ppo, PPO, line(), overlap=overlap) for overlap in (False, True))
    first = lambda metrics: jax.tree.map(lambda x: x[0], metrics)
    same(first(plain), first(overlapped))
    assert plain["episode_return"][1] != overlapped["episode_return"][1]
    assert abs(overlapped["approx_kl"][1]) > abs(plain["approx_kl"][1])  # of a policy that is further away
    assert state.num_updates == 3


def test_what_cannot_be_trained_on_the_host_is_refused_with_the_reason(tmp_path):
    env = line()
    with pytest.raises(ValueError, match="steps on the host, which no compiled program does: rlx train"):
        rlx.train(ppo, PPO, env, jax.random.key(0))
    with pytest.raises(ValueError, match="chooses the states from which episodes begin"):
        rlx.fit(grpo, grpo.Config(), env, directory=tmp_path / "a")
    with pytest.raises(ValueError, match="gymnasium/Line-v0 steps on the host, and a sweep compiles its lanes"):
        rlx.sweep(ppo, PPO, env, {"learning_rate": [1e-3, 1e-2]}, directory=tmp_path / "a")
    with pytest.raises(ValueError, match="for a run on one device"):
        rlx.fit(ppo, PPO, env, directory=tmp_path / "a", devices=2)
    with pytest.raises(ValueError, match="overlap is for environments that step on the host"):
        rlx.fit(ppo, PPO, "CartPole-v1", directory=tmp_path / "a", overlap=True)
    assert not (tmp_path / "a").exists()

    class Twice:
        Config, init, act = ppo.Config, staticmethod(ppo.init), staticmethod(ppo.act)

        @staticmethod
        def update(config, env, state):
            policy = lambda obs, key: ppo.act(config, env, state, obs, key)
            rollout(env, policy, state.env_state, state.key, 4)
            return ppo.update(config, env, state)

    with pytest.raises(ValueError, match="two rollouts in one update"):
        Collector(Twice, rlx.replace(PPO, num_steps=4), env, seed=0)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("gymnasium/CartPole-v9", {}, "gymnasium/CartPole-v9 cannot be made"),
        ("gymnasium/Line-v0", {"workers": "many"}, "workers = 'many': choose among sync, async, vector"),
        ("gymnasium/Line-v0", {"workers": "vector"}, "gymnasium/Line-v0 has no vector class"),
        ("gymnasium/Line-v0", {"speed": 2}, "gymnasium/Line-v0 cannot be made"),
        ("gymnasium/Line-v0", {"stack": 2}, "is wrapped by its own library"),
    ],
)
def test_environments_that_cannot_be_made_are_refused(name, options, text):
    with pytest.raises(ValueError, match=text):
        rlx.envs.make(name, **options)


def test_max_steps_is_the_time_limit_and_names_stay_as_they_were():
    assert line(max_steps=5).horizon == 5
    assert rlx.envs.registry.full_name("CartPole-v1") == "gymnax/CartPole-v1"
    assert line() is line()


SPACES = {
    "numbers": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "pixels": spaces.Box(0, 255, (2, 2), np.uint8),
    "choice": spaces.Discrete(3, start=5),
    "choices": spaces.MultiDiscrete([3, 3]),
    "different choices": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "bits": spaces.MultiBinary(3),
    "some": spaces.Dict(a=spaces.Box(0.0, 1.0, (1,)), b=spaces.Tuple([spaces.Discrete(2), spaces.Discrete(4)])),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_elements_together_are_those_of_each(space):
    space.seed(0)
    elements = [space.sample() for _ in range(3)]
    batch = gymnasium.vector.utils.concatenate(space, elements, gymnasium.vector.utils.create_empty_array(space, n=3))
    together = observed_together(space, batch)
    for i, element in enumerate(elements):
        one = observed(space, element)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i], together), cast(one))
    back = acted_together(space, together)
    for i, action in enumerate(gymnasium.vector.utils.iterate(gymnasium.vector.utils.batch_space(space, 3), back)):
        assert space.contains(action) or space == SPACES["some"]
        jax.tree.map(np.testing.assert_array_equal, action, acted(space, jax.tree.map(lambda x, i=i: x[i], together)))


def cast(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32) if np.asarray(x).dtype == np.float64 else x, tree)


@pytest.mark.more
def test_envpool_trains_with_true_last_observations():
    env = rlx.envs.make("envpool/CartPole-v1", num_threads=1)
    config = ppo.Config(total_steps=1024, num_envs=4, num_steps=64, hidden_sizes=(8,))
    collector = Collector(ppo, config, env, seed=0)
    try:
        collector.open(0)
        state = ppo.init(config, collector.begin(config, keys(0)[0]), keys(0)[0])
        traj = collector.experience(config, state).params.traj
    finally:
        collector.close()
    done = traj.done
    assert done.sum() > 6
    assert (abs(traj.obs[1:][done[:-1]]) < 0.05).all()  # each episode begins near 0
    assert (abs(traj.next_obs[traj.terminated][:, 2]) > 0.209).all()  # and the last angle is that of the fall
    np.testing.assert_array_equal(traj.obs[1:][~done[:-1]], traj.next_obs[:-1][~done[:-1]])
    assert (traj.reward == 1).all()
    assert env.horizon == 500


@pytest.mark.more
def test_envpool_reports_what_its_physics_do_and_plays_evaluations(tmp_path):
    config = ppo.Config(total_steps=64, num_envs=2, num_steps=16, num_minibatches=2, hidden_sizes=(8,))
    env = rlx.envs.make("envpool/HalfCheetah-v4", max_steps=20, num_threads=1)
    assert env.observation_space.shape == (17,)
    run = rlx.fit(ppo, config, env, directory=tmp_path / "run", eval_episodes=3)
    assert run.metrics[-1]["episode_length"] == 20
    assert run.evaluations[-1]["reported"].keys() == {"reward_run", "reward_ctrl", "x_position", "x_velocity"}
    assert run.agent.state.env_state.obs.dtype == np.float32


@pytest.mark.more
def test_envpool_knows_its_names():
    with pytest.raises(ValueError, match="EnvPool has no environment 'CartPole-v9'"):
        rlx.envs.make("envpool/CartPole-v9")


def test_without_envpool_the_extra_is_named(without):
    without("envpool")
    with pytest.raises(ValueError, match=r'pip install "rlx\[envpool\]"'):
        rlx.envs.make("envpool/CartPole-v1")


@pytest.mark.more
def test_a_run_with_workers_is_the_run_without(tmp_path):
    config = rlx.replace(PPO, total_steps=64)
    state, _ = trained(ppo, config, line(workers="async", blocks=1))
    expected, _ = trained(ppo, config, line())
    same(rlx.replace(state, key=None), rlx.replace(expected, key=None), rtol=0)


def test_a_run_that_dies_on_the_host_is_not_sent_to_a_command_that_cannot_look(tmp_path):
    console = Console(record=True, width=300)
    run = rlx.fit(
        ppo,
        rlx.replace(PPO, learning_rate=1e38),
        "gymnasium/Line-v0",
        directory=tmp_path / "run",
        eval_episodes=2,
        console=console,
    )
    assert run.died
    said = console.export_text()
    assert "turned the training state into NaN or infinity" in said
    assert "rlx why" not in said
