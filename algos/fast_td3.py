"""FastTD3: TD3 with critics of distributions, many environments at once and large minibatches.

    python algos/fast_td3.py --env Pendulum-v1

Reference: Seo et al. 2025, FastTD3, arXiv:2505.22642; the distributions: Barth-Maron et al. 2018, arXiv:1804.08617
(D4PG, which with uniform sampling is the second of `VARIANTS`); time limits: Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, G gradient steps, B minibatch, E critics, O observation, A action, K atoms.

Critics are distributions of returns on fixed atoms. All learn that one of their projected targets whose mean is lowest.
Each environment explores with noise of a size of its own, which is drawn anew for each of its episodes.

Deviations from the papers:
- N environments take T steps each, then the gradient steps for all of these follow. Kernels start orthogonal.
- Observations may be normalised by running statistics, when they are used.
- Noises are of actions in unit coordinates. Episodes that begin in one environment and rollout have those of one size.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.env import EnvState
from rlx.networks import TORSOS, Critic, DeterministicActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, per_env, pytree, replace, static, traced
from rlx.replay import Replay, check_delay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Box, check_spaces, rescale, visible, zeros
from rlx.values import bins, check_n_step, n_step, projection

VARIANTS = {
    "fast_td3": {},
    "d4pg": {
        **{"num_critics": 1, "policy_delay": 1, "target_noise": 0.0, "target_actor": True, "n_step": 5, "num_steps": 8},
        **{"lowest_noise": 0.3, "highest_noise": 0.3, "tau": 0.005, "num_atoms": 51, "weight_decay": 0.0},
    },
}


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(5_000, at_least=0)  # of these, the first, with random actions and nothing learned
    num_envs: int = static(128)  # N
    num_steps: int = static(1)  # T, steps of each environment between updates
    utd_ratio: float = static(0.015625, above=0)  # updates to data: gradient steps per environment step
    capacity: int = static(1_000_000)  # transitions that the buffer keeps
    batch_size: int = static(8_192)  # B
    num_critics: int = static(2)  # E
    learning_rate: float = traced(3e-4, at_least=0)  # of the actor
    critic_learning_rate: float = traced(3e-4, at_least=0)
    weight_decay: float = traced(0.1, at_least=0)  # of all weights, for each gradient step and unit of learning rate
    policy_delay: int = static(2)  # gradient steps of the critics to one of the actor and the targets
    target_noise: float = traced(0.001, at_least=0)  # of the actions in targets
    target_noise_clip: float = traced(0.5, at_least=0)
    target_actor: bool = static(False)  # whether actions of targets are those of a slow actor
    lowest_noise: float = traced(0.001, at_least=0)  # between this and the next each environment has its own
    highest_noise: float = traced(0.4, at_least=0)
    num_atoms: int = static(101, at_least=2)  # K
    lowest_return: float = traced(-10.0)  # of the atoms, times reward_scale
    highest_return: float = traced(10.0)
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.1, at_least=0, at_most=1)  # part of the way to the networks that their targets go each time
    n_step: int = static(1)  # rewards of a target before its value, no more than num_steps
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(False)  # in the critics
    hidden_sizes: tuple[int, ...] = static((256, 256))  # of the actor
    critic_hidden_sizes: tuple[int, ...] = static((256, 256))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def init_steps(self) -> int:
        return -(-self.warmup_steps // self.num_envs) * self.num_envs

    @property
    def gradient_steps(self) -> int:
        return round(self.utd_ratio * self.steps_per_update)  # G


@pytree
class State:
    params: dict  # of actor and critics [E]
    target_params: dict  # of actor and critics [E]
    opt_state: dict  # likewise of params
    env_state: EnvState  # [N]
    noise: jax.Array = per_env()  # [N], its size in this episode
    replay: Replay
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array  # in unit coordinates
    reward: jax.Array  # of `num` steps, the discounted sum
    next_obs: jax.Array  # after them
    terminated: jax.Array
    num: jax.Array


def networks(config, env):
    """Actor and critic; all critics apply one module, to parameters of their own."""
    layers = config.activation, config.conv_features
    torso = lambda space, sizes, layer_norm=False: Torso(space, sizes, *layers, layer_norm, config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs), config.hidden_sizes)
    seen = visible(env.observation_space, config.critic_obs, privileged=True)
    critic = torso(seen, config.critic_hidden_sizes, config.layer_norm)
    return DeterministicActor(env.action_space, actor), Critic(critic, config.num_atoms)


def optimizer(config):
    """One for each group of parameters."""
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda rate: optax.flatten(optax.adamw(rate, eps_root=1e-20, weight_decay=config.weight_decay))
    return {"actor": adam(config.learning_rate), "critic": adam(config.critic_learning_rate)}


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    check_delay(config.policy_delay, config.gradient_steps)
    check_n_step(config.n_step, config.num_steps)
    low, high = config.lowest_return, config.highest_return
    if all(isinstance(bound, float) for bound in (low, high)) and not -jnp.inf < low < high < jnp.inf:
        raise ValueError(f"lowest_return = {low} has to be below highest_return = {high}, both finite")


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key, env_key, warmup_key, noise_key = jax.random.split(key, 6)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    elements = flatten(kept(config, traj))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    obs_stats = statistics(env.observation_space)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.action_space)
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    return State(
        params=params,
        target_params=dict(params),
        opt_state={name: optimizer(config)[name].init(params[name]) for name in params},
        env_state=env_state,
        noise=sizes(config, noise_key, config.num_envs * env.num_agents),
        replay=insert(replay(example, config.capacity, spare=config.steps_per_update * env.num_agents), elements),
        obs_stats=update_statistics(obs_stats, traj.obs) if config.normalize_obs and num_steps else obs_stats,
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def explore(env, obs, key):
    """Uniformly random actions, as `act` gives them."""
    action = jax.random.uniform(key, (num_rows(obs), *env.action_space.shape), minval=-1.0, maxval=1.0)
    return rescale(env.action_space, action), action


def sizes(config, key, num):
    """How much so many episodes explore, `[num]`."""
    return config.lowest_noise + (config.highest_noise - config.lowest_noise) * jax.random.uniform(key, (num,))


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same in unit coordinates; else with noise of a middle size."""
    size = 0.0 if deterministic else (config.lowest_noise + config.highest_noise) / 2
    return act_with(config, env, state, obs, key, jnp.full(num_rows(obs), size))[:2]


def act_with(config, env, state, obs, key, size):
    """`act` with noise of sizes `[N]`, which are returned too."""
    action = networks(config, env)[0].apply(state.params["actor"], normalized(config, state, obs))
    noise = size.reshape(-1, *[1] * (action.ndim - 1)) * jax.random.normal(key, action.shape)
    action = jnp.clip(action + noise, -1.0, 1.0)
    return rescale(env.action_space, action), action, size


def kept(config, traj):
    """What the buffer keeps of transitions, each with the n - 1 after it."""
    ends = traj.next_obs, traj.terminated
    ahead = n_step(traj.reward, traj.terminated, traj.done, ends, config.n_step, config.gamma)
    return Batch(traj.obs, traj.recorded, ahead.reward, *ahead.next_obs, ahead.num)


def support(config):
    """The atoms `[K]`."""
    return bins(config.lowest_return, config.highest_return, config.num_atoms)


def target(target_params, actor_params, config, env, batch, noise):
    """The distribution that all critics learn, `[B, K]`: of the projected ones that with the lowest mean."""
    actor, critic = networks(config, env)
    noise = jnp.clip(config.target_noise * noise, -config.target_noise_clip, config.target_noise_clip)
    next_action = jnp.clip(actor.apply(actor_params, batch.next_obs) + noise, -1.0, 1.0)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    probs = jax.nn.softmax(q(target_params["critic"], batch.next_obs, next_action))
    discount = jnp.where(batch.terminated, 0.0, config.gamma**batch.num)
    atoms = config.reward_scale * batch.reward[:, None] + discount[:, None] * support(config)
    projected = projection(probs, atoms, support(config))
    lowest = jnp.argmin(projected @ support(config), axis=0)
    return jnp.take_along_axis(projected, lowest[None, :, None], axis=0)[0]


def critic_loss(critic_params, fixed, target_params, config, env, batch, noise):
    """Loss of the critics, their values `[E, B]` and the mass of the targets at both ends of the atoms."""
    actor_params = (target_params if config.target_actor else fixed)["actor"]
    wanted = target(target_params, actor_params, config, env, batch, noise)
    logits = jax.vmap(networks(config, env)[1].apply, in_axes=(0, None, None))(critic_params, batch.obs, batch.action)
    loss = jax.vmap(optax.softmax_cross_entropy, in_axes=(0, None))(logits, wanted).sum(axis=0).mean()
    return loss, (jax.nn.softmax(logits) @ support(config), wanted[:, 0].mean() + wanted[:, -1].mean())


def actor_loss(actor_params, params, config, env, batch):
    """Loss of the actor: less the value of its actions, the lowest of all critics."""
    actor, critic = networks(config, env)
    action = actor.apply(actor_params, batch.obs)
    logits = jax.vmap(critic.apply, in_axes=(0, None, None))(params["critic"], batch.obs, action)
    return -(jax.nn.softmax(logits) @ support(config)).min(axis=0).mean()


def stepped(config, params, opt_state, grads):
    """Parameters and optimizers after a step of those that have gradients."""
    for name, grad in grads.items():
        change, after = optimizer(config)[name].update(grad, opt_state[name], params[name])
        params = params | {name: optax.apply_updates(params[name], change)}
        opt_state = opt_state | {name: after}
    return params, opt_state


def drawn(config, state, buffer, index):
    """Elements of the buffer as the networks see them."""
    batch = take(buffer, index)
    obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
    return replace(batch, obs=obs, next_obs=next_obs)


def update(config, env, state):
    """One rollout and the gradient steps that belong to it."""
    key, rollout_key, sample_key, noise_key, size_key = jax.random.split(state.key, 5)
    policy, others = partial(act_with, config, env, state), sizes(config, size_key, len(state.noise))
    rolled = rollout(env, policy, state.env_state, rollout_key, config.num_steps, state.noise, others)
    env_state, traj, exploration = rolled
    buffer = insert(state.replay, flatten(kept(config, traj)))
    shape = config.gradient_steps // config.policy_delay, config.policy_delay, config.batch_size
    indices = sample(buffer, sample_key, shape)
    noise = jax.random.normal(noise_key, (*shape, *env.action_space.shape))

    def critic_step(carry, x):
        params, target_params, opt_state = carry
        index, noise = x
        batch = drawn(config, state, buffer, index)
        inputs = params["critic"], params, target_params, config, env, batch, noise
        (loss, (value, mass)), grad = jax.value_and_grad(critic_loss, has_aux=True)(*inputs)
        params, opt_state = stepped(config, params, opt_state, {"critic": grad})
        return (params, target_params, opt_state), {"critic_loss": loss, "value": value.mean(), "mass_at_ends": mass}

    def step(carry, x):
        (params, target_params, opt_state), metrics = jax.lax.scan(critic_step, carry, x)
        batch = drawn(config, state, buffer, x[0][-1])
        loss, grad = jax.value_and_grad(actor_loss)(params["actor"], params, config, env, batch)
        params, opt_state = stepped(config, params, opt_state, {"actor": grad})
        target_params = optax.incremental_update(params, target_params, config.tau)
        return (params, target_params, opt_state), {**metrics, "actor_loss": loss}

    carry = state.params, state.target_params, state.opt_state
    (params, target_params, opt_state), metrics = jax.lax.scan(step, carry, (indices, noise))
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    learned, after = (params, target_params, opt_state, env_state), (buffer, obs_stats, state.num_updates + 1, key)
    return State(*learned, exploration, *after), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
