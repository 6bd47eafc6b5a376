"""Demonstrations and cloning: the file, the noise, the losses against numpy, chunks, what is learned, the commands."""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rlx
from rlx import cli
from rlx.algorithm import saved_config
from rlx.algos import dppo, fpo, mdpo, ppo, sac
from rlx.data import COLUMNS, Demonstrations, clone, collect, disturbed, examples, load, mixture, save, started_from
from rlx.diffusion import cosine_betas
from rlx.objectives import ClipHigher
from rlx.run.checkpoint import restore
from rlx.run.saved import environment
from rlx.spaces import Box, Discrete, rescale, unit
from rlx.train import state_shapes

SIZES = {"total_steps": 64, "num_envs": 4, "num_steps": 16, "num_minibatches": 2, "hidden_sizes": (16,)}
CONFIGS = {
    ppo: ppo.Config(**SIZES),
    fpo: fpo.Config(**SIZES, samples_per_action=4, flow_steps=4),
    dppo: dppo.Config(**SIZES, denoising_steps=4, trained_steps=4),
}


@pytest.fixture(scope="module")
def pendulum():
    return rlx.envs.make("Pendulum-v1", max_steps=9)


def expert(obs):
    """A torque `[N, 1]` in the units of the environment, which the networks can learn."""
    return 1.5 * jnp.tanh(obs[:, :1] + 0.5 * obs[:, 1:2])


def policy(function):
    act = lambda config, env, state, obs, key, deterministic=False: (function(obs), None)
    return type("Policy", (), {"act": staticmethod(act)})


@pytest.fixture(scope="module")
def shown(pendulum):
    found = collect(policy(expert), None, pendulum, None, jax.random.key(0), 40)
    return replace(found, about={"env": "gymnax/Pendulum-v1", "env_options": {"max_steps": 9}, "env_params": {}})


def test_episodes_are_whole_and_one_after_another(pendulum, shown):
    assert shown.obs.shape == shown.next_obs.shape == (360, 3)
    assert shown.action.shape == (360, 1)
    np.testing.assert_array_equal(shown.ends, np.arange(8, 360, 9))
    assert shown.truncated.sum() == 40
    assert not shown.terminated.any()
    inner = np.setdiff1d(np.arange(360), shown.ends)
    np.testing.assert_array_equal(shown.next_obs[inner], shown.obs[inner + 1])
    assert (shown.next_obs[shown.ends[:-1]] != shown.obs[shown.ends[:-1] + 1]).any(-1).all()
    np.testing.assert_allclose(shown.action, expert(shown.obs), rtol=1e-5)
    np.testing.assert_allclose(shown.returns, shown.reward.reshape(40, 9).sum(1), rtol=1e-5)


def test_episodes_that_end_early_end_there(cartpole):
    right = policy(lambda obs: jnp.ones(len(obs), jnp.int32))
    found = collect(right, None, cartpole, None, jax.random.key(0), 16)
    lengths = np.diff(found.ends, prepend=-1)
    assert found.terminated[found.ends].all()
    assert not found.truncated.any()
    assert 8 <= lengths.min() < lengths.max() <= 12
    np.testing.assert_array_equal(found.returns, lengths)


class Endless:
    """Counts for ever."""

    default_params = None

    def reset(self, key, params):
        return jnp.zeros(1), jnp.float32(0)

    def step(self, key, state, action, params):
        return state[None] + 1, state + 1, 1.0, False, False, {}

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))


def test_an_episode_without_an_end_is_cut(monkeypatch):
    monkeypatch.setattr("rlx.data.demonstrations.LIMIT", 6)
    found = collect(policy(lambda obs: obs), None, rlx.Env(Endless(), None), None, jax.random.key(0), 3)
    np.testing.assert_array_equal(np.flatnonzero(found.truncated), [5, 11, 17])


def test_noise_has_the_size_asked_for_and_keeps_the_bounds():
    space = Box(jnp.array([-1.0, 0.0, -jnp.inf]), jnp.array([1.0, 10.0, jnp.inf]), (3,))
    action = jnp.tile(jnp.array([0.0, 5.0, 7.0]), (20_000, 1))
    found = np.asarray(disturbed(space, None, action, 0.2, jax.random.key(0)))
    np.testing.assert_allclose(found.mean(0), [0, 5, 7], atol=0.04)
    np.testing.assert_allclose(found.std(0), [0.2, 1.0, 0.2], rtol=0.02)
    edge = np.asarray(disturbed(space, None, action.at[:, 0].set(1.0), 0.2, jax.random.key(0)))[:, 0]
    assert edge.max() == 1.0
    np.testing.assert_allclose((edge == 1.0).mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(disturbed(space, None, action, 0.0, jax.random.key(0)), action, rtol=1e-6)


def test_a_share_of_discrete_actions_is_replaced_by_any():
    found = np.asarray(disturbed(Discrete(4), None, jnp.zeros(40_000, jnp.int32), 0.4, jax.random.key(0)))
    np.testing.assert_allclose(np.bincount(found) / 40_000, [0.7, 0.1, 0.1, 0.1], atol=0.01)


def test_unit_coordinates_are_the_inverse_of_rescaling():
    space = Box(jnp.array([-2.0, 0.0, -jnp.inf]), jnp.array([2.0, 10.0, jnp.inf]), (3,))
    actions = jnp.array([[-0.5, 0.25, 3.0], [1.0, -1.0, -8.0]])
    np.testing.assert_allclose(unit(space, rescale(space, actions)), actions, rtol=1e-6)
    assert unit(Discrete(3), 2) == 2


def test_a_mixture_says_who_acted_and_a_file_keeps_every_bit(shown, tmp_path):
    about = {"env": "gymnax/Pendulum-v1", "env_options": {}, "env_params": {}}
    both = mixture([shown, shown], about | {"policies": [{"run": "a"}, {"run": "b"}]})
    np.testing.assert_array_equal(both.source, np.repeat([0, 1], 360))
    save(tmp_path / "new" / "d.npz", both)
    found = load(tmp_path / "new" / "d.npz")
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(both, name))
        assert getattr(found, name).dtype == getattr(both, name).dtype
    assert found.about == both.about | {"format": 1}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["d.npz"]
    plain = np.load(tmp_path / "new" / "d.npz")  # without rlx
    assert json.loads(str(plain["about"]))["env"] == "gymnax/Pendulum-v1"


def broken(shown, tmp_path, change):
    about = np.array(json.dumps({"format": 1, "env": "a/b", "env_options": {}, "env_params": {}}))
    columns = {name: getattr(shown, name) for name in COLUMNS} | {"about": about}
    change(columns)
    np.savez(tmp_path / "d.npz", **columns)
    return tmp_path / "d.npz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("action"), "has no action"),
        (lambda c: c.update(about=np.array('{"format": 7}')), "has format 7"),
        (lambda c: c.update(about=np.array('{"format": 1, "env": "a/b"}')), "does not say its env_options, env_params"),
        (lambda c: c.update(reward=c["reward"][:-1]), "columns of .* rows"),
        (lambda c: c.update(obs=np.full_like(c["obs"], np.nan)), "column obs that are not finite"),
        (lambda c: c.update(truncated=np.zeros_like(c["truncated"])), "has no end"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(shown, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(broken(shown, tmp_path, change))


def test_numbers_that_a_file_cannot_hold_are_kept_in_a_wider_dtype(shown, tmp_path):
    narrow = jnp.asarray(shown.action, jnp.bfloat16)
    save(tmp_path / "shown.npz", replace(shown, action=np.asarray(narrow)))
    np.testing.assert_array_equal(load(tmp_path / "shown.npz").action, narrow.astype(jnp.float32))


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "d.npz").write_text("no archive")
    with pytest.raises(ValueError, match="is no file of demonstrations"):
        load(tmp_path / "d.npz")
    with pytest.raises(ValueError, match=r"nothing.npz is not there: rlx collect"):
        load(tmp_path / "nothing.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is no file of demonstrations"):
        load(tmp_path / "one.npy")


def test_a_file_that_was_cut_short_or_changed_is_refused(shown, tmp_path):
    path = broken(shown, tmp_path, lambda columns: None)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:2000] + b"x" * 50 + whole[2050:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cut short|cannot be read as demonstrations"):
            load(path)


def losses(algorithm, env, num=6):
    """State, observations, actions, and the loss of each under a key."""
    config = CONFIGS[algorithm]
    state = jax.jit(partial(algorithm.init, config, env))(jax.random.key(0))
    rng = np.random.default_rng(0)
    state = replace(
        state, params=jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), state.params)
    )
    obs, action = (jnp.asarray(rng.normal(size=(num, n)), jnp.float32) for n in (3, 1))
    loss = jax.jit(partial(algorithm.cloning_loss, config, env))
    return config, state, obs, action, lambda key: np.asarray(loss(state.params, obs, action, key))


def test_a_gaussian_is_cloned_by_its_likelihood(pendulum):
    config, state, obs, action, loss = losses(ppo, pendulum)
    found = ppo.networks(config, pendulum)[0].apply(state.params["actor"], obs)
    mean, std = np.asarray(found.mean, np.float64), np.exp(np.asarray(found.log_std, np.float64))
    expected = 0.5 * ((action - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(loss(jax.random.key(0)), expected.sum(-1), rtol=1e-4)


@pytest.mark.more
def test_a_diffusion_policy_is_cloned_by_the_noise_that_it_predicts(pendulum):
    """The mean over many draws is the integral over the noise of each step, here by quadrature."""
    config, state, obs, action, _ = losses(dppo, pendulum)
    actor, abar = dppo.networks(config, pendulum)[0], np.cumprod(1 - cosine_betas(4))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    total = 0.0
    for t in range(4):
        for noise, weight in zip(nodes, weights / weights.sum(), strict=True):
            x = np.sqrt(abar[t]) * action + np.sqrt(1 - abar[t]) * noise
            predicted = actor.apply(state.params["actor"], obs, x, jnp.full(len(obs), t))
            total = total + weight * np.square(np.asarray(predicted, np.float64) - noise).mean(-1) / 4
    many = 20_000
    loss = partial(dppo.cloning_loss, config, pendulum, state.params)
    found = jax.jit(jax.vmap(lambda o, a, k: loss(jnp.tile(o, (many, 1)), jnp.tile(a, (many, 1)), k)))(
        obs, action, jax.random.split(jax.random.key(0), len(obs))
    )
    # Five standard errors.
    error = 5 * np.asarray(found).std(1) / many**0.5
    assert (np.abs(np.asarray(found).mean(1) - total) < error).all()


def test_a_flow_is_cloned_by_flow_matching(pendulum):
    config, state, obs, action, loss = losses(fpo, pendulum)
    velocity = partial(fpo.networks(config, pendulum)[0].apply, state.params["actor"])
    draws = jax.random.key_data(jax.random.split(jax.random.key(3), len(obs)))
    expected = fpo.flow_loss(config, velocity, obs, action, draws).mean(-1)  # tested in test_fpo.py
    np.testing.assert_allclose(loss(jax.random.key(3)), expected, rtol=1e-5)
    assert not np.allclose(loss(jax.random.key(4)), expected, rtol=1e-3)  # drawn anew


@pytest.fixture(scope="module")
def cloned(pendulum, shown):
    config = replace(CONFIGS[ppo], normalize_obs=True)
    return config, *clone(ppo, config, pendulum, shown, jax.random.key(0), 1500, 64, 3e-3, num_rows=5)


def test_the_clone_does_what_was_shown(pendulum, shown, cloned):
    config, state, rows = cloned
    action, _ = ppo.act(config, pendulum, state, jnp.asarray(shown.obs), jax.random.key(0), deterministic=True)
    assert np.abs(np.asarray(action) - shown.action).max() < 0.25  # of torques between -1.5 and 1.5
    assert np.abs(np.asarray(action) - shown.action).mean() < 0.05
    assert [row["gradient_step"] for row in rows] == [300, 600, 900, 1200, 1500]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"] - 0.5
    fresh = jax.jit(partial(ppo.init, config, pendulum))(jax.random.key(0))
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    assert int(state.num_updates) == 0


def test_observations_are_normalised_by_those_that_are_learned_from(shown, cloned):
    _, state, _ = cloned
    assert state.obs_stats.count == 36 * 9  # of 40 episodes 4 are held out
    np.testing.assert_allclose(state.obs_stats.mean, shown.obs.mean(0), atol=0.2)


@pytest.mark.more
def test_what_is_held_out_is_not_learned_from(pendulum, shown):
    """Episodes whose actions are other ones: learned from, they change the weights; held out, nothing but the loss."""
    run = partial(clone, ppo, CONFIGS[ppo], pendulum, num_steps=20, batch_size=16, num_rows=1, key=jax.random.key(5))
    state, rows = run(shown)
    changed = []
    for episode in range(40):
        action = shown.action.copy()
        action[9 * episode : 9 * episode + 9] = 2.0
        state_now, rows_now = run(replace(shown, action=action))
        same = bool((ravel_pytree(state_now.params)[0] == ravel_pytree(state.params)[0]).all())
        assert rows_now[0]["validation_loss"] != rows[0]["validation_loss"]
        changed.append(not same)
        if sum(changed) > 2 and not all(changed):
            break
    assert not all(changed)


def test_the_critic_is_not_touched_and_the_best_look_is_kept(pendulum, shown):
    config = CONFIGS[ppo]
    state, rows = clone(ppo, config, pendulum, shown, jax.random.key(1), 60, 32, 3e-3, num_rows=6)
    _, init_key, _, _ = jax.random.split(jax.random.key(1), 4)
    fresh = jax.jit(partial(ppo.init, config, pendulum))(init_key)
    jax.tree.map(np.testing.assert_array_equal, state.params["critic"], fresh.params["critic"])
    # With steps far too large it soon gets worse: what is kept is not the end.
    run = partial(clone, ppo, config, pendulum, shown, jax.random.key(1), 60, 32, 10.0)
    (wild, rows), (last, _) = run(num_rows=6), run(num_rows=1)
    assert np.argmin([row["validation_loss"] for row in rows]) < 5
    likelihood = lambda state: float(
        ppo.cloning_loss(config, pendulum, state.params, shown.obs, shown.action / 2, jax.random.key(0)).mean()
    )
    assert likelihood(wild) < likelihood(last) - 0.1


@pytest.mark.parametrize("algorithm", [ppo, dppo])
def test_a_clone_within_a_trust_region_stays_near_what_it_was(pendulum, shown, algorithm):
    """With a period of 1 every ratio is 1, and the gradient that of the likelihood; with a long one it ends at 0."""
    learn = partial(clone, algorithm, CONFIGS[algorithm], pendulum, shown, jax.random.key(0), 200, 32, 1e-2, num_rows=2)
    free, rows = learn()
    same, rows_of_one = learn(objective=ClipHigher(clip_high=0.2), period=1)
    close = lambda a, b: np.allclose(ravel_pytree(a.params["actor"])[0], ravel_pytree(b.params["actor"])[0], atol=1e-3)
    np.testing.assert_allclose(rows[-1]["loss"], rows_of_one[-1]["loss"], rtol=1e-3, atol=1e-4)
    assert close(free, same)
    near, rows_near = learn(objective=ClipHigher(clip_high=0.05), period=1000)
    assert not close(free, near)
    start = jax.jit(partial(algorithm.init, CONFIGS[algorithm], pendulum))(jax.random.split(jax.random.key(0), 4)[1])
    moved = lambda state: np.linalg.norm(
        ravel_pytree(state.params["actor"])[0] - ravel_pytree(start.params["actor"])[0]
    )
    assert moved(near) < 0.7 * moved(free)
    assert rows_near[-1]["validation_loss"] > rows[-1]["validation_loss"]


def test_chunks_are_the_actions_that_follow_and_the_last_one_again(shown):
    env = rlx.envs.make("Pendulum-v1", max_steps=9, chunk=(4, 2))
    obs, action = examples(env, shown)
    np.testing.assert_array_equal(obs, shown.obs)
    assert action.shape == (360, 4)
    single = shown.action[:, 0] / 2.0
    np.testing.assert_allclose(action[9], single[9:13], rtol=1e-6)
    np.testing.assert_allclose(action[16], [single[16], single[17], single[17], single[17]], rtol=1e-6)
    np.testing.assert_allclose(action[17], [single[17]] * 4, rtol=1e-6)


def test_a_run_starts_from_what_another_has_learned(pendulum, cloned):
    config, learned, _ = cloned
    fresh = jax.jit(partial(ppo.init, config, pendulum))(jax.random.key(9))
    state = started_from(fresh, learned)
    jax.tree.map(np.testing.assert_array_equal, state.params, learned.params)
    jax.tree.map(np.testing.assert_array_equal, state.obs_stats, learned.obs_stats)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
    np.testing.assert_array_equal(state.env_state.obs, fresh.env_state.obs)
    other = jax.jit(partial(ppo.init, replace(config, hidden_sizes=(8,)), pendulum))(jax.random.key(9))
    with pytest.raises(ValueError, match="networks of other shapes"):
        started_from(other, learned)


@pytest.mark.more
def test_a_diffusion_policy_goes_on_as_the_one_that_it_starts_from(pendulum):
    """It may be of two actors, where the first steps are not trained, or of one, which new runs train in part."""
    in_part, whole = replace(CONFIGS[dppo], trained_steps=2), CONFIGS[dppo]
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    rng = np.random.default_rng(1)
    move = lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32)
    for before, after in ((in_part, in_part), (whole, in_part), (whole, whole)):
        learned = jax.jit(partial(dppo.init, before, pendulum))(jax.random.key(1))
        learned = replace(
            learned, params=jax.tree.map(move, learned.params), pretrained=jax.tree.map(move, learned.pretrained)
        )
        state = started_from(jax.jit(partial(dppo.init, after, pendulum))(jax.random.key(0)), learned)
        found, expected = (
            dppo.act(config, pendulum, s, obs, jax.random.key(2))[0]
            for config, s in ((after, state), (before, learned))
        )
        np.testing.assert_array_equal(found, expected)


def test_copies_of_the_networks_begin_as_copies_of_the_learned_ones(pendulum):
    """Target networks of SAC, which begin as the critics; its log_alpha of 0 and its counter of 0 are no copies."""
    config = sac.Config(num_envs=2, num_steps=1, warmup_steps=8, capacity=16, batch_size=4, hidden_sizes=(4,))
    init = jax.jit(partial(sac.init, config, pendulum))
    fresh, other = init(jax.random.key(0)), init(jax.random.key(1))
    learned = replace(other, params=jax.tree.map(lambda x: x + 1, other.params), num_updates=other.num_updates + 7)
    state = started_from(fresh, learned)
    jax.tree.map(np.testing.assert_array_equal, state.params, learned.params)
    jax.tree.map(np.testing.assert_array_equal, state.target_params, learned.params["critic"])
    assert int(state.num_updates) == 0
    for name in ("replay", "opt_state", "env_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(fresh, name))


@pytest.mark.more
def test_actions_that_the_policy_cannot_make_are_warned_of(shown):
    env = rlx.envs.make("MultiGoal", max_steps=5)
    wide = collect(policy(lambda obs: 4.0 * jnp.ones((len(obs), 2))), None, env, None, jax.random.key(0), 4)
    with pytest.warns(UserWarning, match="actions go up to 4 and action_bound = 1 cuts them"):
        clone(dppo, CONFIGS[dppo], env, wide, jax.random.key(0), num_steps=1, num_rows=1)


@pytest.mark.parametrize(
    ("algorithm", "change", "message"),
    [
        (mdpo, {}, "mdpo cannot be cloned into: it has no cloning_loss; ppo, fpo and dppo have"),
        (ppo, {"validation_share": 1.0}, "validation_share = 1.0"),
        (ppo, {"num_steps": 0}, "at least 1"),
        (ppo, {"learning_rate": float("nan")}, "the loss is not finite"),
    ],
)
def test_bad_cloning_is_refused(pendulum, shown, algorithm, change, message):
    config = CONFIGS[ppo] if algorithm is ppo else algorithm.Config()
    with pytest.raises(ValueError, match=message):
        clone(algorithm, config, pendulum, shown, jax.random.key(0), **{"num_steps": 4, "num_rows": 1} | change)


def test_demonstrations_of_another_environment_or_of_one_episode_are_refused(pendulum, shown, cartpole):
    with pytest.raises(ValueError, match=r"obs of the demonstrations has shape \(3,\), the environment has \(4,\)"):
        clone(ppo, CONFIGS[ppo], cartpole, shown, jax.random.key(0))
    halves = replace(shown, obs=np.zeros((len(shown.reward), 4)), action=np.full(len(shown.reward), 0.5))
    with pytest.raises(ValueError, match="actions of the demonstrations that are not whole numbers"):
        clone(ppo, CONFIGS[ppo], cartpole, halves, jax.random.key(0))
    one = Demonstrations(**{name: getattr(shown, name)[:9] for name in COLUMNS}, about={})
    with pytest.raises(ValueError, match="one episode cannot be split"):
        clone(ppo, CONFIGS[ppo], pendulum, one, jax.random.key(0))
    with pytest.raises(ValueError, match="actions of the demonstrations outside of the environment's"):
        clone(ppo, CONFIGS[ppo], pendulum, replace(shown, action=3 * shown.action), jax.random.key(0))


def command(*arguments):
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


SMALL = ["--num-envs", 4, "--num-steps", 16, "--num-minibatches", 2, "--hidden-sizes", 8, "--eval-episodes", 4]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained run, a file of what it does, a clone of that, and a run that starts from the clone."""
    where = tmp_path_factory.mktemp("runs")
    env = ["--env-options", "max_steps=12", "--no-compile-cache"]
    train = ["train", "dppo", "--total-steps", 128, *SMALL, "--trained-steps", 2, "--denoising-steps", 2]
    assert command(*train, "--env", "Pendulum-v1", *env, "--out", where / "expert") == 0
    collect = ["collect", where / "expert", where / "expert", "--shares", 3, 1, "--episodes", 8, "--no-compile-cache"]
    assert command(*collect, "--noise", 0.1, "--env-params", "g=5", "--output", where / "d.npz") == 0
    sizes = [*SMALL, "--denoising-steps", 2, "--trained-steps", 2, "--gradient-steps", 20, "--total-steps", 128]
    clone = ["clone", "dppo", where / "d.npz", *sizes, "--no-compile-cache", "--env-options", "chunk=(4,2)"]
    assert command(*clone, "--out", where / "clone") == 0
    more = ["train", "dppo", "--start-from", where / "clone", "--trained-steps", 1, "--total-steps", 128]
    more += ["--num-envs", 4, "--num-steps", 16, "--num-minibatches", 2, "--eval-episodes", 4, "--no-compile-cache"]
    more += ["--env-params", "params.m=1.5"]
    assert command(*more, "--learning-rate", 0, "--out", where / "fine") == 0
    return where


@pytest.mark.more
def test_what_is_collected_says_where_it_is_from(runs):
    found = load(runs / "d.npz")
    assert len(found.ends) == 8
    np.testing.assert_array_equal(found.source[found.ends], [0] * 6 + [1] * 2)
    assert found.about["env"] == "gymnax/Pendulum-v1"
    assert found.about["env_options"] == {"max_steps": 12}
    assert found.about["env_params"] == {"g": 5}
    first = found.about["policies"][0]
    assert (first["run"], first["algorithm"], first["update"], first["episodes"]) == ("expert", "dppo", 2, 6)
    assert first["noise"] == 0.1
    assert (found.obs[found.source == 1][:12] != found.obs[found.source == 0][:12]).any()  # starts of its own
    np.testing.assert_allclose(first["mean_return"], found.returns[:6].mean(), rtol=1e-5)


def test_a_clone_is_a_run_directory(runs, capsys):
    saved = json.loads((runs / "clone" / "config.json").read_text())
    assert saved["env_options"] == {"max_steps": 12, "chunk": [4, 2]}
    assert saved["cloned"]["file"] == "d.npz"
    assert len((runs / "clone" / "cloning.jsonl").read_text().splitlines()) == 20
    assert (runs / "clone" / "cloning.png").stat().st_size > 5000
    assert command("eval", runs / "clone", "--num-episodes", 4, "--no-compile-cache") == 0
    assert "evaluation after 0 steps" in capsys.readouterr().out


def test_a_run_that_starts_from_a_clone_has_its_networks_and_environment(runs):
    saved, clone = (json.loads((runs / name / "config.json").read_text()) for name in ("fine", "clone"))
    assert saved["start_from"].endswith("clone")
    for name in ("env", "env_options"):
        assert saved[name] == clone[name]
    assert saved["env_params"] == {"params.g": 5, "params.m": 1.5}  # the clone's, and what was asked for
    assert saved["config"]["hidden_sizes"] == [8]
    assert saved["config"]["denoising_steps"] == 2
    states = []
    for name in ("clone", "fine"):
        saved = json.loads((runs / name / "config.json").read_text())
        env = environment(saved["env"], saved["env_options"], saved["env_params"])
        like = state_shapes(dppo, saved_config(dppo, saved), env)
        states.append(restore(runs / name / "checkpoints", like))
    clone, fine = states
    # The actor learned at a rate of 0.
    jax.tree.map(np.testing.assert_array_equal, fine.params["actor"], clone.params["actor"])
    jax.tree.map(np.testing.assert_array_equal, fine.pretrained, clone.params["actor"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "--output", "d.npz"], "rlx collect needs a run"),
        (["collect", "{}/expert", "--output", "d.txt"], "has to end in .npz"),
        (["collect", "{}/expert", "--output", "d.npz", "--shares", "1", "2"], "a positive number for each of the runs"),
        (["collect", "{}/expert", "--output", "d.npz", "--noise", "-1"], "--noise -1.0: give 0 or more"),
        (["collect", "{0}/expert", "{0}/expert", "--output", "d.npz", "--episodes", "1"], "at least one for each"),
        (["collect", "{0}/expert", "{0}/clone", "--output", "{0}/no.npz", "--episodes", "2"], "another environment"),
        (["collect", "{}/expert", "--output", "{}/d.npz"], "is there already"),
        (["collect", "{}/clone", "--output", "{}/no.npz"], "acts in chunks"),
        (["clone"], "needs an algorithm and a file"),
        (["clone", "dppo", "--eval-episodes", "0", "{}/d.npz"], "--eval-episodes 0: give at least 1"),
        (["train", "--start-from", "{}/fine", "--trained-steps", "2", "--denoising-steps", "2"], "leave out trained"),
        (["sweep", "ppo", "--env", "CartPole-v1", "--start-from", "{}/clone"], "--start-from"),
        (["clone", "dppo", "{}/nothing.npz"], "is not there: rlx collect"),
        (["clone", "dppo", "{}/d.npz", "--out", "{}/clone"], "is not empty"),
        (["train", "ppo", "--start-from", "{}/clone"], "is a run of dppo, not of ppo"),
        (["train", "dppo", "--start-from", "{}/clone", "--hidden-sizes", "16"], "leave out hidden_sizes"),
        (["train", "dppo", "--start-from", "{}/clone", "--resume", "{}/clone"], "give one of them"),
    ],
)
def test_bad_commands_are_one_line(runs, capsys, arguments, message):
    assert command(*[argument.format(runs) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.more
def test_a_resumed_run_still_says_what_it_started_from(runs, tmp_path, capsys):
    for name, key in (("fine", "start_from"), ("clone", "cloned")):
        copy = shutil.copytree(runs / name, tmp_path / name)
        before = json.loads((copy / "config.json").read_text())[key]
        assert command("train", "--resume", copy, "--total-steps", 192, "--no-compile-cache") == 0
        assert json.loads((copy / "config.json").read_text())[key] == before
    # What was a clone has been trained: its steps are not all of one actor any more.
    again = ["train", "--start-from", tmp_path / "clone", "--trained-steps", 1, "--denoising-steps", 2]
    assert command(*again, "--no-compile-cache") == 2
    assert "leave out trained_steps" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "fine" / "checkpoints")
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        (tmp_path / "fine" / log).unlink()
    assert command("train", "--resume", tmp_path / "fine", "--no-compile-cache") == 2
    assert "was stopped before its first checkpoint" in capsys.readouterr().err


def test_a_clone_is_trained_on_with_another_objective(runs, tmp_path, capsys):
    assert command("clone", "--help") == 0
    more = ["train", "dppo", "--objective", "spo", "--start-from", runs / "clone", "--dry-run", "--no-compile-cache"]
    assert command(*more, "--trained-steps", 2) == 0
    assert "dppo+SPO" in capsys.readouterr().out
