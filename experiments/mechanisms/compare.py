"""Mechanisms of the literature, each beside what it changes: what the paper claims, and what was seen.

    python experiments/mechanisms/compare.py
    python experiments/mechanisms/compare.py --task kl-cov
    python experiments/mechanisms/compare.py --task restarts --short

Every arm of a trial trains all its seeds in one program, and plays whole episodes of the trial's environment after.
A claim holds where the interval of the difference that it names is on its side of 0. A result that is there is not
measured again. No rate or coefficient was chosen for any arm: they are the defaults, and what the trial says; but for
the rates of n-vr-pg, which were seen to matter before (`occupancies.py`), and RND's default, which found nothing.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.flatten_util import ravel_pytree

import rlx
from rlx.action_tokens import tokenized
from rlx.algorithm import load_algorithm
from rlx.algos import dppo, fpo, grpo_tokens, pathwise, ppo
from rlx.algos.ddpg import VARIANTS
from rlx.algos.reinforce import VARIANTS as VARIANTS_OF_STEPS
from rlx.around import chosen, decoded, restarted
from rlx.attractor import movement
from rlx.curvature import captured, lanczos, products
from rlx.data import clone, collect, columns
from rlx.devices.sharding import use_devices
from rlx.devices.spread import spread
from rlx.diffusion import ddpm, denoise, shifted
from rlx.envs.tasks import inventory
from rlx.flow import composed, euler
from rlx.guidance import guided
from rlx.networks import action_size
from rlx.objectives import ClipHigher
from rlx.partial import hidden, remembering
from rlx.presets import configure, settings
from rlx.relatives import VARIANTS as OF_GROUPS
from rlx.report import experiment, interval
from rlx.risk import risk_averse
from rlx.rollout import flatten, reset, rollout
from rlx.spaces import Box, Discrete, rescale
from rlx.steering import steered
from rlx.wrappers import chunked

matplotlib.use("Agg")
sys.path.append(str(Path(__file__).resolve().parent))  # tests load this file by its place
import cooper
import matplotlib.pyplot as plt
import occupancies
import pmoe
from cooper import answered
from pmoe import from_the_middle

HERE = Path(__file__).resolve().parent
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "gymnax")
NUM_SEEDS = 5
KEPT = ("episode_return", "num_episodes", "entropy")  # metrics of training
QUANTITIES = {
    "return": "return of the final policy",
    "tail": "mean of the worst tenth of its returns",
    "share": "share of the gradient",
    "curve": "mean return in training",
    "entropy": "entropy at the end",
    "goals": "goals reached, of six",
    "coverage": "entropy of the states visited, in nats",
}


@dataclass(frozen=True)
class Arm:
    """A way to train: an algorithm by name, its settings, and what it makes of the environment."""

    algorithm: str = "ppo"
    settings: dict[str, Any] = field(default_factory=dict)
    env: Callable = lambda env: env
    inside: bool = False  # whether episodes are played in what it makes of it, too
    play: Callable | None = None  # what it makes of the environment that they are played in, where that is another
    data: Callable | None = None  # columns that it learns from, of an environment
    start: Callable | None = None  # a State whose networks and statistics training begins with
    chunk: int = 1  # steps of the environment in one of the agent, of which it takes fewer
    measured: Callable | None = None  # in place of all: quantities of an environment and a key


@dataclass(frozen=True)
class Trial:
    claim: str
    source: str
    env: str
    total_steps: int
    arms: dict[str, Arm]
    expected: tuple[str, str, str]  # arm, arm, and the quantity that is larger in the first
    settings: dict[str, Any] = field(default_factory=dict)  # of all arms
    tuned: bool = False  # each algorithm begins with the settings that ship for the environment
    num_episodes: int = 32  # that each seed plays at the end


def downhill(obs, key):
    """MountainCar is pushed the way that it moves, which swings it out in about 120 steps."""
    return jnp.where(obs[1] < 0, 0, 2).astype(jnp.int32)


def on_the_way(env, num_envs=16, num_steps=64):
    """The environment with half of its episodes begun from states of `downhill`."""
    key = jax.random.key(77)
    act = lambda obs, key: (jax.vmap(downhill, (0, None))(obs, key), None)
    piece = lambda state, key: (rollout(env, act, state, key, 1)[0],) * 2
    states = jax.jit(lambda key: jax.lax.scan(piece, reset(env, key, num_envs), jax.random.split(key, num_steps))[1])(
        key
    )
    return restarted(env, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states), 0.5)


def swinging(obs, key):
    """Pendulum is pushed the way that it moves, and held where it stands: with much noise, which makes it middling."""
    near = obs[0] > 0.7
    push = jnp.where(near, -8.0 * obs[1] - 2.0 * obs[2], 2.0 * jnp.sign(obs[2] + 1e-3))
    return jnp.clip(push + 1.0 * jax.random.normal(key), -2.0, 2.0)[None]


def actor(**functions):
    """What acts, in place of an algorithm."""
    return type("Actor", (), {name: staticmethod(function) for name, function in functions.items()})


def swings(config, env, state, obs, key, deterministic=False):
    return jax.vmap(swinging)(obs, jax.random.split(key, len(obs))), None


SWINGING = actor(act=swings)


@cache
def shown(env_name):
    """Episodes of `swinging`."""
    return collect(SWINGING, None, rlx.envs.make(env_name), None, jax.random.key(5), 100, deterministic=False)


def demonstrated(env):
    """The same as columns."""
    return columns(env, shown("gymnax/Pendulum-v1"))


def cloned(algorithm, config, env, **how):
    """A State whose policy imitates `swinging`."""
    return clone(algorithm, config, env, shown("gymnax/Pendulum-v1"), jax.random.key(6), 5_000, **how)[0]


@cache
def by_noise(env):
    """The environment whose actions are the noise that FPO's clone of `swinging` begins with."""
    return steered(env, fpo, FLOW, cloned(fpo, FLOW, env))


def pumping(obs, key):
    """MountainCarContinuous is pushed the way that it moves."""
    return jnp.where(obs[1] < 0, -1.0, 1.0)[None]


def near_pumping(share):
    """The environment with such a share of its episodes in a range around `pumping`."""
    return lambda env: guided(env, pumping, width=0.5, share=share)


def leaning(weights):
    """A controller of CartPole: it is pushed the way that a sum of its observation points."""
    return lambda obs, key: (obs @ jnp.array(weights) > 0).astype(jnp.int32)


BY_ANGLE, BY_SPEED = leaning((0.0, 0.0, 1.0, 0.0)), leaning((0.0, 0.0, 0.0, 1.0))


def as_movement(env, size=5, num_pushes=3, dt=0.01):
    """MultiGoal with goals, up to 6 m away, and pushes on the way, that a spring makes a path of, `size` steps each."""
    period = float(env.params.dt)

    def decode(obs, action, key):
        start, velocity, goal = obs[:2], obs[2:], obs[:2] + 6.0 * action[:2]
        weights = 50.0 * action[2:].reshape(2, num_pushes)
        path = movement(start, goal, weights, size + 1, dt, velocity * period / dt)
        velocities = jnp.diff(path, axis=0, prepend=start[None]) / period
        return (jnp.diff(velocities, axis=0) / period).reshape(-1)

    return decoded(chunked(env, size), decode, Box(-1.0, 1.0, (2 + 2 * num_pushes,)))


def risky(lam):
    """Steps in eight directions past a deadly block, a fifth of them astray, in which the worst tenth counts by lam."""
    ways = jnp.array([(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0) if x or y])

    def astray(obs, action, key):
        slips, other = jax.random.split(key)
        return ways[jnp.where(jax.random.bernoulli(slips, 0.2), jax.random.randint(other, (), 0, 8), action)]

    grid = rlx.envs.make("rlx/GridWorld", layout="tree_in_the_middle")
    return risk_averse(decoded(grid, astray, Discrete(8)), lam, 0.1, 0.99, (-20.0, 0.0, 10.0))


def deep(env):
    """DeepSea of 16 rows, whose goal random moves come to in one of 65,536 episodes."""
    return rlx.envs.make("gymnax/DeepSea-bsuite", size=16)


FLOW = fpo.Config(num_envs=16, num_steps=64, normalize_obs=True, hidden_sizes=(64, 64))


def played(actor, config, env, state, key, num_episodes=128):
    """The return of a policy as it is."""
    return {"return": rlx.evaluate(actor, config, env, state, key, num_episodes).returns.mean()}


@cache
def halves(seed):
    """Two clones of `swinging`, each of a few episodes of its own."""
    env = rlx.envs.make("gymnax/Pendulum-v1")
    seen = [collect(SWINGING, None, env, None, jax.random.key(100 * seed + i), 10, deterministic=False) for i in (1, 2)]
    return [clone(fpo, FLOW, env, one, jax.random.key(seed), 3_000)[0] for one in seen]


def both(weight):
    """Plays what two clones of `halves` do together."""

    def act(config, env, states, obs, key, deterministic=False):
        network = fpo.networks(config, env)[0]
        first, second = (
            partial(network.apply, state.params["actor"], fpo.normalized(config, state, obs)) for state in states
        )
        noise = jnp.zeros((len(obs), action_size(env.action_space)))
        return rescale(env.action_space, euler(composed(first, second, weight), noise, config.flow_steps)), None

    return lambda env, seed: played(actor(act=act), FLOW, env, halves(seed), jax.random.key(seed))


@cache
def chunks(seed):
    """A clone of `swinging` by diffusion, of chunks of four actions of which one is done, and its environment."""
    env = chunked(rlx.envs.make("gymnax/Pendulum-v1"), 4, 1)
    config = dppo.Config(num_envs=16, normalize_obs=True, hidden_sizes=(64, 64))
    return env, config, clone(dppo, config, env, shown("gymnax/Pendulum-v1"), jax.random.key(seed), 5_000)[0]


def denoising(num, last):
    """Plays a clone of `chunks` by the last steps of its schedule only, from the chunk before or from noise."""

    def memory(config, env, num):
        return jnp.zeros((num, action_size(env.action_space))), jnp.zeros(num, bool)

    def act(config, env, state, obs, key, memory, deterministic=False):
        before, begun = memory
        network, seen = dppo.networks(config, env)[0], dppo.normalized(config, state, obs)
        predict = partial(network.apply, state.params["actor"], seen)
        noise = jax.random.normal(key, (config.denoising_steps + 1, *before.shape))
        steps = ddpm(config.denoising_steps), noise[1:], jnp.full(config.denoising_steps, 1e-3).at[-1].set(0.0)

        def run(x, num):
            schedule, noise, least = jax.tree.map(lambda y: y[-num:], steps)
            return denoise(schedule, predict, x, noise, least, config.action_bound)[0]

        later = shifted(before.reshape(len(obs), 4, -1), 1).reshape(before.shape)
        whole = run(noise[0], config.denoising_steps)
        action = jnp.where((begun | (not last))[:, None], run(later if last else noise[0], num), whole)
        return rescale(env.action_space, action), None, (action, jnp.ones_like(begun))

    def measured(_, seed):
        env, config, state = chunks(seed)
        return played(actor(act=act, memory=memory), config, env, state, jax.random.key(seed))

    return measured


def within(chance):
    """Which part of PPO's gradient lies in ten directions: those of most curvature, or any."""

    def measured(env, seed):
        config = ppo.Config(total_steps=50_000, num_envs=32, num_steps=128, anneal_learning_rate=False)
        state = rlx.train(ppo, config, env, jax.random.key(seed))[0]
        traj = rollout(env, partial(ppo.act, config, env, state), state.env_state, jax.random.key(seed), 512)[1]
        batch = flatten(ppo.advantages(config, env, state, traj)[0])
        params, unravel = ravel_pytree(state.params)
        loss = lambda params, batch: ppo.loss(unravel(params), config, env, batch, 0.5)[0]
        few = jax.tree.map(lambda x: x[:128], batch)  # of another minibatch than the curvature
        rest = jax.tree.map(lambda x: x[128:], batch)
        keys = jax.random.split(jax.random.key(seed))
        if chance:
            vectors = jnp.linalg.qr(jax.random.normal(keys[0], (params.size, 10)))[0].T
        else:
            vectors = lanczos(products(partial(loss, batch=rest), params), params.size, 10, keys[1])[1]
        return {"share": captured(vectors, jax.grad(loss)(params, few))}

    return measured


def by_rule(level, cap):
    """Orders up to a level, within a cap: of a grid the best pair for the store."""
    act = lambda config, env, state, obs, key, deterministic=False: (inventory.up_to(obs, level, cap), None)
    return lambda env, seed: played(actor(act=act), None, env, None, jax.random.key(seed), 512)


UNBOUNDED = {"actor_kappa": 0.0, "critic_kappa": 0.0}
STALE = {"num_envs": 8, "num_epochs": 20, "learning_rate": 1e-3, "entropy_coef": 0.0}
TASKS = {
    "kl-cov": Trial(
        "Few elements take the entropy away; a penalty on them keeps it.",
        "Cui et al. 2025, arXiv:2505.22617",
        "gymnax/CartPole-v1",
        200_000,
        {"Clip": Arm(), "KL-Cov": Arm("ppo+KLCov"), "Clip-Cov": Arm("ppo+ClipCov")},
        ("KL-Cov", "Clip", "entropy"),
        STALE | {"num_epochs": 10},
    ),
    "clip-cov": Trial(
        "Leaving out the elements of the largest covariance keeps entropy.",
        "Cui et al. 2025, arXiv:2505.22617",
        "gymnax/Acrobot-v1",
        200_000,
        {"Clip": Arm(), "Clip-Cov": Arm("ppo+ClipCov"), "KL-Cov": Arm("ppo+KLCov")},
        ("Clip-Cov", "Clip", "entropy"),
        STALE | {"num_epochs": 10},
    ),
    "bapo": Trial(
        "On stale data, bounds that balance good and bad actions learn better than one clip.",
        "Xi et al. 2025, arXiv:2510.18927",
        "gymnax/CartPole-v1",
        200_000,
        {"Clip": Arm(), "two bounds": Arm("ppo+ClipHigher"), "BAPO": Arm("ppo+BAPO")},
        ("BAPO", "Clip", "curve"),
        STALE,
    ),
    "dual-clip": Trial(
        "Bounding the loss of bad actions of large ratios helps where data are stale.",
        "Ye et al. 2020, arXiv:1912.09729",
        "gymnax/CartPole-v1",
        200_000,
        {"two bounds": Arm("ppo+ClipHigher"), "dual clip": Arm("ppo+DualClip")},
        ("dual clip", "two bounds", "curve"),
        STALE,
    ),
    "log-ratio": Trial(
        "The linear loss is for one step: with many epochs it goes astray where a clip does not.",
        "Xue et al. 2025, arXiv:2509.25050",
        "gymnax/CartPole-v1",
        200_000,
        {"log-ratio": Arm("ppo+LogRatio"), "Clip": Arm()},
        ("Clip", "log-ratio", "curve"),
        STALE,
    ),
    "rpg": Trial(
        "A return with a KL in it learns at least as well as a clip.",
        "Zhang et al. 2025, arXiv:2505.17508",
        "gymnax/CartPole-v1",
        200_000,
        {
            "Clip": Arm(),
            "reverse": Arm("ppo+KLRegularized"),
            "forward": Arm("ppo+KLRegularized", {"divergence": "forward"}),
            "reverse, score": Arm("ppo+KLRegularized", {"score": True}),
        },
        ("reverse", "Clip", "curve"),
        STALE | {"num_epochs": 10},
    ),
    "d-ppo": Trial(
        "Leaving out what varies most makes learning faster.",
        "Xie et al. 2023, arXiv:2310.20380",
        "gymnax/CartPole-v1",
        200_000,
        {"Clip": Arm(), "dropout": Arm("ppo+DropoutClip")},
        ("dropout", "Clip", "curve"),
        {"num_envs": 8, "learning_rate": 1e-3},
    ),
    "clip-higher": Trial(
        "A higher upper bound keeps entropy, since what is unlikely may grow.",
        "Yu et al. 2025, arXiv:2503.14476",
        "gymnax/CartPole-v1",
        200_000,
        {
            "Clip": Arm(),
            "0.2 and 0.28": Arm("ppo+ClipHigher"),
            "0.2 and 0.5": Arm("ppo+ClipHigher", {"clip_high": 0.5}),
        },
        ("0.2 and 0.5", "Clip", "entropy"),
        STALE | {"num_epochs": 10},
    ),
    "rollback": Trial(
        "A slope beyond the clip keeps ratios near 1 and learns better.",
        "Wang, He, Tan 2019, arXiv:1903.07940",
        "gymnax/CartPole-v1",
        200_000,
        {"Clip": Arm(), "rollback": Arm("ppo+Rollback")},
        ("rollback", "Clip", "curve"),
        STALE,
    ),
    "spo-simple": Trial(
        "A square in place of the clip bounds ratios, and learns better where there are many epochs.",
        "Xie et al. 2024, arXiv:2401.16025",
        "gymnax/CartPole-v1",
        200_000,
        {"Clip": Arm(), "SPO": Arm("ppo+SPO")},
        ("SPO", "Clip", "curve"),
        STALE,
    ),
    "kl-forward": Trial(
        "A clip learns better than a fixed penalty on the KL.",
        "Schulman et al. 2017, arXiv:1707.06347",
        "gymnax/CartPole-v1",
        200_000,
        {"Clip": Arm(), "forward KL": Arm("ppo+ForwardKL"), "reverse KL": Arm("ppo+ReverseKL")},
        ("Clip", "forward KL", "curve"),
        STALE | {"num_epochs": 10},
    ),
    "dpo-discovered": Trial(
        "The drift that was discovered learns faster than the clip.",
        "Lu et al. 2022, arXiv:2210.05639",
        "gymnax/Pendulum-v1",
        300_000,
        {"Clip": Arm(), "DPO": Arm("ppo+DPO")},
        ("DPO", "Clip", "curve"),
        tuned=True,
    ),
    "awr": Trial(
        "Weighted likelihoods learn off the policy, so also with many epochs on one rollout.",
        "Peng et al. 2019, arXiv:1910.00177",
        "gymnax/CartPole-v1",
        200_000,
        {"Clip": Arm(), "AWR": Arm("ppo+AWR")},
        ("AWR", "Clip", "curve"),
        STALE,
    ),
    "sfpo": Trial(
        "Stepping back after fast steps, and one slow step, make many steps on a batch stable.",
        "arXiv:2510.04072, 2025",
        "gymnax/CartPole-v1",
        200_000,
        {"Adam": Arm(), "0.8 kept": Arm("ppo+SFPO"), "0.5 kept": Arm("ppo+SFPO", {"reposition": 0.5})},
        ("0.5 kept", "Adam", "curve"),
        STALE,
    ),
    "n-pg-igt": Trial(
        "Momentum of gradients that are taken ahead learns faster than normalised gradients alone.",
        "Fatkhullin et al. 2023, arXiv:2302.01734",
        "gymnax/CartPole-v1",
        200_000,
        {
            "eta 1, no momentum": Arm("ppo+IGT", {"eta": 1.0}),
            "eta 0.5": Arm("ppo+IGT", {"eta": 0.5}),
            "eta 0.2": Arm("ppo+IGT", {"eta": 0.2}),
        },
        ("eta 0.5", "eta 1, no momentum", "curve"),
        {"num_envs": 8, "num_steps": 64, "num_epochs": 1, "num_minibatches": 1, "learning_rate": 0.1},
    ),
    "pg-rainbow": Trial(
        "A critic of the distribution of returns makes PPO learn faster.",
        "arXiv:2407.13146, 2024",
        "gymnax/Acrobot-v1",
        200_000,
        {"a value": Arm(), "8 quantiles": Arm(settings={"num_quantiles": 8})},
        ("8 quantiles", "a value", "curve"),
        {"num_envs": 8, "learning_rate": 1e-3, "normalize_reward": True},
    ),
    "td3": Trial(
        "Two critics, delayed actors and noise in targets learn better than DDPG.",
        "Fujimoto et al. 2018, arXiv:1802.09477",
        "gymnax/Pendulum-v1",
        20_000,
        {"DDPG": Arm("ddpg", VARIANTS["ddpg"]), "TD3": Arm("ddpg", VARIANTS["td3"])},
        ("TD3", "DDPG", "return"),
        {"warmup_steps": 1_000, "capacity": 20_000, "hidden_sizes": (64, 64)},
    ),
    "a2c": Trial(
        "Several epochs of small steps learn more from a rollout than one step.",
        "Schulman et al. 2017, arXiv:1707.06347",
        "gymnax/CartPole-v1",
        200_000,
        {"A2C": Arm(settings=ppo.VARIANTS["a2c"]), "PPO": Arm(settings={"num_envs": 8})},
        ("PPO", "A2C", "curve"),
        {"learning_rate": 1e-3},
    ),
    "v-mpo": Trial(
        "Weighted likelihoods of the better half, within a bound on the KL, learn as well as PPO or better.",
        "Song et al. 2019, arXiv:1909.12238",
        "gymnax/Pendulum-v1",
        300_000,
        {"PPO": Arm(), "V-MPO": Arm("vmpo")},
        ("V-MPO", "PPO", "curve"),
        tuned=True,
    ),
    "shac": Trial(
        "The gradient through a known simulator learns from fewer steps than a policy gradient.",
        "Xu et al. 2022, arXiv:2204.07137",
        "gymnax/Pendulum-v1",
        200_000,
        {"PPO": Arm(), "SHAC": Arm("pathwise")},
        ("SHAC", "PPO", "return"),
        tuned=True,
    ),
    "stream-ac": Trial(
        "A bound on each step makes learning from single steps stable at a rate that needs no tuning.",
        "Elsayed et al. 2024, arXiv:2410.14606",
        "gymnax/CartPole-v1",
        200_000,
        {
            "bounded, rate 1": Arm("stream_ac"),
            "not bounded, rate 0.001": Arm("stream_ac", UNBOUNDED | {"learning_rate": 1e-3}),
            "not bounded, rate 0.0001": Arm("stream_ac", UNBOUNDED | {"learning_rate": 1e-4}),
        },
        ("bounded, rate 1", "not bounded, rate 0.001", "return"),
        tuned=True,
    ),
    "s2pg": Trial(
        "Numbers that the policy writes and reads are memory enough, without a recurrent network.",
        "Al-Hafez et al. 2024",
        "gymnax/Pendulum-v1",
        1_000_000,
        {
            "without velocities": Arm(env=lambda env: hidden(env, 2), inside=True),
            "with 8 numbers": Arm(env=lambda env: remembering(hidden(env, 2), 8), inside=True),
            "all seen": Arm(),
        },
        ("with 8 numbers", "without velocities", "return"),
        {"num_envs": 32, "num_steps": 64, "num_epochs": 8, "num_minibatches": 8, "learning_rate": 1e-3}
        | {"gamma": 0.95, "entropy_coef": 0.0, "normalize_reward": True},
    ),
    "subpo": Trial(
        "Learning from what is new at each step covers more than learning from all that is seen.",
        "Prajapat et al. 2023",
        "rlx/Coverage",
        300_000,
        {
            "what is new": Arm(),
            "what is seen": Arm(env=lambda env: rlx.envs.make("rlx/Coverage", additive=True)),
        },
        ("what is new", "what is seen", "return"),
        {"num_envs": 16, "learning_rate": 1e-3},
    ),
    "dsrl": Trial(
        "The noise of a frozen policy is enough to make it better.",
        "Wagenmaker et al. 2025, arXiv:2506.15799",
        "gymnax/Pendulum-v1",
        20_000,
        {
            "no noise": Arm("sac", {"learning_rate": 0.0}, by_noise, inside=True),
            "steered by SAC": Arm("sac", {"learning_rate": 1e-3, "alpha_learning_rate": 1e-3}, by_noise, inside=True),
        },
        ("steered by SAC", "no noise", "return"),
        {"warmup_steps": 1_000, "capacity": 20_000, "hidden_sizes": (64, 64), "num_envs": 4, "num_steps": 16},
    ),
    "dsrl-na": Trial(
        "Values of actions, distilled to values of noise, learn faster than values of noise.",
        "Wagenmaker et al. 2025, arXiv:2506.15799",
        "gymnax/Pendulum-v1",
        20_000,
        {
            "values of noise": Arm("sac", env=by_noise, inside=True),
            "values of actions": Arm("dsrl", env=by_noise, inside=True),
        },
        ("values of actions", "values of noise", "curve"),
        {"warmup_steps": 1_000, "capacity": 20_000, "hidden_sizes": (64, 64), "num_envs": 4, "num_steps": 16}
        | {"learning_rate": 1e-3, "alpha_learning_rate": 1e-3},
    ),
    "camel": Trial(
        "Episodes near a policy that was written by hand find a reward that noise does not.",
        "CAMEL, of which an abstract was read",
        "gymnax/MountainCarContinuous-v0",
        200_000,
        {
            "PPO": Arm(),
            "half of the episodes guided": Arm(env=near_pumping(0.5), play=near_pumping(0.0)),
        },
        ("half of the episodes guided", "PPO", "return"),
        {"num_envs": 16, "learning_rate": 1e-3, "normalize_obs": True},
    ),
    "bad": Trial(
        "Choosing dimension after dimension, undiscounted, learns at least as well as a Gaussian.",
        "Wen et al. 2024",
        "gymnax/Reacher-misc",
        300_000,
        {"Gaussian": Arm(), "11 values a dimension": Arm(env=lambda env: tokenized(env, 11), inside=True)},
        ("11 values a dimension", "Gaussian", "return"),
        {"num_envs": 32, "num_steps": 128, "learning_rate": 1e-3, "normalize_obs": True},
    ),
    "expo": Trial(
        "Small edits of a policy that imitates, chosen by value, make it better from few steps.",
        "Dong et al. 2025, arXiv:2507.07986",
        "gymnax/Pendulum-v1",
        8_000,
        {
            "imitation alone": Arm("expo", {"num_base": 1, "num_edits": 0}, data=demonstrated),
            "RLPD": Arm("rlpd", {"actor_period": 4}, data=demonstrated),
            "EXPO": Arm("expo", data=demonstrated),
        },
        ("EXPO", "imitation alone", "return"),
        {"warmup_steps": 512, "capacity": 8_000, "batch_size": 64, "hidden_sizes": (64, 64), "num_critics": 4}
        | {"learning_rate": 1e-3, "alpha_learning_rate": 1e-3, "utd_ratio": 1.0, "num_envs": 4, "num_steps": 4},
    ),
    "psft": Trial(
        "A clone within a trust region has entropy left, and is trained on better.",
        "Zhu et al. 2025, arXiv:2508.17784",
        "gymnax/Pendulum-v1",
        200_000,
        {
            "likelihood": Arm(start=cloned),
            "within 0.28": Arm(start=partial(cloned, objective=ClipHigher())),
        },
        ("within 0.28", "likelihood", "curve"),
        {"num_envs": 16, "num_steps": 256, "num_epochs": 10, "num_minibatches": 32, "gamma": 0.95, "entropy_coef": 0.0}
        | {"normalize_obs": True, "normalize_reward": True},
    ),
    "restarts": Trial(
        "Starting from states on the way finds a reward that the start never does.",
        "Chang et al. 2024, arXiv:2404.08495",
        "gymnax/MountainCar-v0",
        500_000,
        {"PPO": Arm(), "half from states on the way": Arm(env=on_the_way)},
        ("half from states on the way", "PPO", "return"),
        {"num_envs": 16, "learning_rate": 1e-3, "normalize_obs": True},
    ),
    "improper": Trial(
        "Choosing among controllers that fail is a policy that does not.",
        "Zaki et al. 2022",
        "gymnax/CartPole-v1",
        100_000,
        {
            "by angle": Arm(settings={"learning_rate": 0.0}, env=lambda env: chosen(env, [BY_ANGLE] * 2), inside=True),
            "by speed": Arm(settings={"learning_rate": 0.0}, env=lambda env: chosen(env, [BY_SPEED] * 2), inside=True),
            "chosen by PPO": Arm(env=lambda env: chosen(env, [BY_ANGLE, BY_SPEED]), inside=True),
        },
        ("chosen by PPO", "by speed", "return"),
        {"learning_rate": 1e-3},
    ),
    "harpg": Trial(
        "Momentum that the Hessian corrects learns faster than normalised gradients alone.",
        "Fatkhullin et al. 2023, arXiv:2302.01734",
        "gymnax/CartPole-v1",
        1_600_000,
        {
            "gradient": Arm("reinforce"),
            "taken ahead": Arm("reinforce", VARIANTS_OF_STEPS["igt"]),
            "by the Hessian": Arm("reinforce", VARIANTS_OF_STEPS["harpg"]),
        },
        ("by the Hessian", "gradient", "curve"),
        {"num_envs": 8, "hidden_sizes": (32,), "eta": 0.5, "learning_rate": 0.05},
    ),
    "polyak": Trial(
        "Where the return that can be had is known, a step needs no rate that is tuned.",
        "Li et al. 2024",
        "gymnax/CartPole-v1",
        800_000,
        {
            "Polyak's step": Arm("reinforce", VARIANTS_OF_STEPS["polyak"] | {"target_return": 99.34}),
            "0.03": Arm("reinforce", {"learning_rate": 0.03}),
            "0.1": Arm("reinforce", {"learning_rate": 0.1}),
            "0.3": Arm("reinforce", {"learning_rate": 0.3}),
        },
        ("Polyak's step", "0.1", "curve"),
        {"num_envs": 8, "hidden_sizes": (32,)},
    ),
    "hpt": Trial(
        "Where no answer is right, imitation of one that is gets learning started.",
        "Unify-Post-Training, TsinghuaC3I 2025",
        "rlx/ModularAddition",
        102_400,
        {
            "its own answers alone": Arm("grpo_tokens"),
            "imitation where none is right": Arm("grpo_tokens", {"gate": 0}),
            "imitation alone": Arm("grpo_tokens", {"gate": 8}),
        },
        ("imitation where none is right", "its own answers alone", "return"),
        {"warm_start_steps": 0, "group_size": 8},
        tuned=True,
        num_episodes=512,
    ),
    "riskpo": Trial(
        "Where the lower outcomes count more, the worst episodes are better.",
        "RiskPO, 2025",
        "gymnax/CartPole-v1",
        200_000,
        {
            "the mean": Arm("grpo", OF_GROUPS["grpo"]),
            "risk-averse": Arm("grpo", OF_GROUPS["grpo"] | {"shape": "risk_averse", "amount": 1.5}),
        },
        ("risk-averse", "the mean", "tail"),
        tuned=True,
        num_episodes=128,
    ),
    "spo-self-play": Trial(
        "Wins among a policy's own episodes teach it no worse than their returns.",
        "Swamy et al. 2024, arXiv:2401.04056",
        "gymnax/CartPole-v1",
        200_000,
        {
            "returns": Arm("grpo", OF_GROUPS["grpo"]),
            "wins": Arm("grpo", OF_GROUPS["grpo"] | {"shape": "wins", "amount": 10.0}),
        },
        ("wins", "returns", "curve"),
        tuned=True,
    ),
    "pmoe": Trial(
        "A gate that learns by values keeps more components of a mixture in use than likelihoods do.",
        "Ren et al. 2021, arXiv:2104.09122",
        "rlx/MultiGoal",
        600_000,
        {
            "likelihood": Arm(measured=from_the_middle(ppo, ppo, 600_000, num_components=5)),
            "and a gate by values": Arm(measured=from_the_middle(pmoe, ppo, 600_000)),
            "FPO": Arm(measured=from_the_middle(fpo, fpo, 600_000)),
        },
        ("and a gate by values", "likelihood", "goals"),
    ),
    "cooper": Trial(
        "A policy finds the faults of a judge that stays as it is; one that goes on learning has none that last.",
        "arXiv:2508.05613, 2025",
        "rlx/Sort",
        60_000,
        {
            "frozen": Arm(measured=answered(cooper, 60_000, judge_steps=0)),
            "co-trained": Arm(measured=answered(cooper, 60_000)),
            "co-trained on its wrong answers": Arm(measured=answered(cooper, 60_000, own_wrong=True)),
            "graded by rule": Arm(measured=answered(grpo_tokens, 60_000)),
        },
        ("co-trained", "frozen", "return"),
        num_episodes=1024,
    ),
    "n-vr-pg": Trial(
        "Momentum that importance weights correct covers states better than steps from single batches.",
        "Barakat, Fatkhullin, He 2023",
        "rlx/GridWorld",
        occupancies.STEPS,
        {
            "with correction": Arm(measured=occupancies.covering(0.2, 0.3)),
            "eta 1": Arm(measured=occupancies.covering(1.0, 0.3)),
            "corrected, rate 1": Arm(measured=occupancies.covering(0.2, 1.0)),
            "eta 1, rate 1": Arm(measured=occupancies.covering(1.0, 1.0)),
            "random moves": Arm(measured=occupancies.by_chance),
            "the optimum": Arm(measured=occupancies.at_most),
        },
        ("with correction", "eta 1", "coverage"),
    ),
    "hdpo": Trial(
        "Going through the simulator of a store finds better orders than a policy gradient.",
        "Alvo, Russo, Kanoria 2023, arXiv:2306.11246",
        "rlx/Inventory",
        1_000_000,
        {
            "through the simulator": Arm("pathwise", settings(pathwise, "rlx/Inventory")),
            "PPO": Arm(
                settings={"num_envs": 64, "num_steps": 50, "num_epochs": 8, "num_minibatches": 8, "learning_rate": 1e-3}
                | {"normalize_obs": True, "normalize_reward": True, "entropy_coef": 0.0}
            ),
            "up to 29, at most 5": Arm(measured=by_rule(29.0, 5.0)),
        },
        ("through the simulator", "PPO", "return"),
        num_episodes=512,
    ),
    "ndp": Trial(
        "Goals of movements are explored better than single actions.",
        "Bahl et al. 2020, arXiv:2012.02788",
        "rlx/MultiGoal",
        300_000,
        {
            "actions": Arm(),
            "chunks of 5": Arm(env=lambda env: chunked(env, 5), inside=True, chunk=5),
            "movements of 5": Arm(env=as_movement, inside=True, chunk=5),
        },
        ("movements of 5", "actions", "return"),
        {"num_envs": 16, "num_steps": 64, "learning_rate": 1e-3, "normalize_obs": True},
        num_episodes=256,
    ),
    "ecrm": Trial(
        "Where the worst tenth of each stage counts, the worst episodes are better.",
        "Yu, Shen 2023, arXiv:2301.10932",
        "rlx/GridWorld",
        400_000,
        {
            "the mean alone": Arm(env=lambda env: risky(0.0), inside=True),
            "half by the worst tenth": Arm(env=lambda env: risky(0.5), play=lambda env: risky(0.0)),
        },
        ("half by the worst tenth", "the mean alone", "tail"),
        {"num_envs": 16, "num_steps": 128, "learning_rate": 1e-3},
        num_episodes=512,
    ),
    "gpc": Trial(
        "Two policies, composed in every step of their flow, do better than either.",
        "Cao et al. 2025, arXiv:2510.01068",
        "gymnax/Pendulum-v1",
        0,
        {"first": Arm(measured=both(0.0)), "second": Arm(measured=both(1.0)), "half of each": Arm(measured=both(0.5))},
        ("half of each", "first", "return"),
    ),
    "rti-dp": Trial(
        "From the chunk before, a few steps of denoising are enough.",
        "Duan et al. 2025, arXiv:2508.05396",
        "gymnax/Pendulum-v1",
        0,
        {
            "2 steps, from the last": Arm(measured=denoising(2, True)),
            "2 steps, from noise": Arm(measured=denoising(2, False)),
            "all steps, from noise": Arm(measured=denoising(dppo.Config().denoising_steps, False)),
        },
        ("2 steps, from the last", "2 steps, from noise", "return"),
    ),
    "subspaces": Trial(
        "Most of a gradient lies in the few directions in which the loss is curved most.",
        "Schneider et al. 2024",
        "gymnax/CartPole-v1",
        50_000,
        {"10 of most curvature": Arm(measured=within(False)), "any 10": Arm(measured=within(True))},
        ("10 of most curvature", "any 10", "share"),
    ),
    "counts": Trial(
        "A bonus for cells that were seen rarely finds what noise does not.",
        "Tang et al. 2017, arXiv:1611.04717",
        "gymnax/DeepSea-bsuite",
        200_000,
        {"PPO": Arm(env=deep, inside=True), "counts": Arm("ppo+Counts", env=deep, inside=True)},
        ("counts", "PPO", "return"),
    ),
    "rnd": Trial(
        "A bonus for what a network cannot predict yet finds what noise does not.",
        "Burda et al. 2018, arXiv:1810.12894",
        "gymnax/DeepSea-bsuite",
        200_000,
        {"PPO": Arm(env=deep, inside=True), "RND": Arm("ppo+RND", env=deep, inside=True)},
        ("RND", "PPO", "return"),
    ),
}


def measure(trial: Trial, arm: Arm) -> dict[str, Any]:
    """What an arm comes to, seed by seed."""
    plain = rlx.envs.make(trial.env)
    if arm.measured is not None:
        seeds = [jax.device_get(arm.measured(plain, seed)) for seed in range(NUM_SEEDS)]
        found = {name: np.array([one[name] for one in seeds]) for name in seeds[0]}
        return described(trial, arm, found, trial.total_steps)
    algorithm, env = load_algorithm(arm.algorithm), arm.env(plain)
    own = trial.settings | arm.settings | {"total_steps": trial.total_steps // arm.chunk}
    played = env if arm.inside else plain if arm.play is None else arm.play(plain)
    config = configure(algorithm.Config, (settings(algorithm, trial.env) if trial.tuned else {}) | own)

    start = None if arm.start is None else arm.start(algorithm, config, env)
    given = {} if arm.data is None else {"data": arm.data(env)}

    def lane(key, config, env, played, start, given):
        train_key, play_key = jax.random.split(key)
        if start is None:
            state, metrics = rlx.train(algorithm, config, env, train_key, **given)
        else:
            state = algorithm.init(config, env, train_key)
            state = rlx.replace(state, params=start.params, obs_stats=start.obs_stats)
            state, metrics = rlx.resume(algorithm, config, env, state, rlx.total_updates(config))
        returns = rlx.evaluate(algorithm, config, played, state, play_key, trial.num_episodes).returns
        worst = jnp.sort(returns)[: max(1, trial.num_episodes // 10)]
        return (returns.mean(), worst.mean()), {name: metrics[name] for name in KEPT if name in metrics}

    keys = jax.vmap(jax.random.key)(np.arange(NUM_SEEDS))
    (returns, tail), metrics = jax.device_get(spread(lane)(keys, config, env, played, start, given))
    num = metrics["num_episodes"]
    weighted = (metrics["episode_return"] * num).sum(1, dtype=np.float64) / np.maximum(num.sum(1), 1)
    last = slice(-max(1, num.shape[1] // 20), None)
    found = {"return": returns, "tail": tail, "curve": weighted}
    found |= {"entropy": metrics["entropy"][:, last].mean(1)} if "entropy" in metrics else {}
    return described(trial, arm, found, arm.chunk * rlx.steps_taken(config, rlx.total_updates(config)))


def described(trial: Trial, arm: Arm, found: dict[str, np.ndarray], steps: int) -> dict[str, Any]:
    """The result of an arm, as it is written."""
    return {
        "env": trial.env,
        "steps": steps,
        "algorithm": arm.algorithm,
        "settings": trial.settings | arm.settings,
        "seeds": list(range(NUM_SEEDS)),
        "episodes": trial.num_episodes,
        **{name: np.asarray(x, np.float64).tolist() for name, x in found.items()},
        "versions": {package: version(package) for package in PACKAGES},
    }


def difference(first: list[float], second: list[float]) -> dict[str, float]:
    """The difference of the means of two arms, the same seeds in each, with its interval."""
    return interval([np.asarray(first) - np.asarray(second)])


def verdict(found: dict[str, float]) -> str:
    """Whether the interval of a difference is on the side that was expected."""
    return "held" if found["low"] > 0 else "the opposite" if found["high"] < 0 else "not shown"


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """A panel a trial: the quantity that it is about, a point a seed, a column an arm."""
    trials = list(dict.fromkeys(task for task, _ in results))
    columns = min(4, len(trials))
    rows = -(-len(trials) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.7 * rows), layout="constrained", squeeze=False
    )
    for axes in panels.flat[len(trials) :]:
        axes.axis("off")
    for axes, name in zip(panels.flat, trials, strict=False):
        quantity = TASKS[name].expected[2]
        arms = [arm for task, arm in results if task == name]
        for i, arm in enumerate(arms):
            values = results[name, arm][quantity]
            axes.plot([i] * len(values), values, "o", alpha=0.5, ms=5)
            axes.plot([i - 0.2, i + 0.2], [np.mean(values)] * 2, "k-", lw=1.5)
        axes.set_xticks(range(len(arms)), [arm.replace(" ", "\n", 1) for arm in arms], fontsize=7)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.set_title(f"{name}: {QUANTITIES[quantity]}", fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
        axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=70 if len(trials) > 8 else 120)
    plt.close(figure)


def table(results: dict[tuple[str, str], dict]) -> str:
    """A row a trial, in Markdown: claim, arms, the difference that was expected above 0, and what came of it."""
    lines = [
        ["mechanism", "claim", "task", "arms", "difference expected above 0", "measured [95 %]", "claim"],
        ["---", "---", "---", "---", "---", "--:", "---"],
    ]
    for name, trial in TASKS.items():
        first, second, quantity = trial.expected
        if not {(name, first), (name, second)} <= results.keys():
            continue
        found = difference(*(results[name, arm][quantity] for arm in (first, second)))
        arms = "; ".join(f"{arm} {np.mean(results[name, arm][quantity]):.3g}" for task, arm in results if task == name)
        estimate = "{value:.3g} [{low:.3g}, {high:.3g}]".format(**found)
        steps = results[name, first]["steps"]
        task = f"`{trial.env}`, {steps:,} steps" if steps else f"`{trial.env}`, clones"
        what = f"{QUANTITIES[quantity]}: {first} over {second}"
        row = [f"{name} ({trial.source})", trial.claim, task, arms, what, estimate]
        lines.append([*row, verdict(found)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(task: Literal[*TASKS] | None = None, short: bool = False, runs: Path = Path("runs/mechanisms")) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this trial.
        short: a fiftieth of the steps, to see that everything works; all of it stays below `runs`.
        runs: folder of the short form.
    """
    use_devices()
    jax.config.update("jax_default_matmul_precision", "float32")
    cases = {(name, arm): f"{name}-{i}" for name, trial in TASKS.items() for i, arm in enumerate(trial.arms)}

    def run(case):
        trial = TASKS[case[0]]
        if short:
            trial = Trial(**vars(trial) | {"total_steps": trial.total_steps // 50})
        return {"task": case[0], "arm": case[1]} | measure(trial, trial.arms[case[1]])

    experiment(runs / "short" if short else HERE, cases, run, draw, table, lambda case: task in (None, case[0]))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
