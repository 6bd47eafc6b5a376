"""Deep Deterministic Policy Gradient and TD3, for continuous actions, discounted or by the average reward.

    python algos/ddpg.py --env Pendulum-v1
    rlx train ddpg --env Pendulum-v1 --variant ddpg

Reference: Lillicrap et al. 2016, Continuous control with deep reinforcement learning, arXiv:1509.02971; TD3: Fujimoto
et al. 2018, Addressing Function Approximation Error in Actor-Critic Methods, arXiv:1802.09477; the average reward:
Saxena et al. 2023, Off-Policy Average Reward Actor-Critic with Deterministic Policy Search, arXiv:2305.12239; time
limits as in Pardo et al. 2018, arXiv:1712.00378. All are settings of Config, see `VARIANTS`.

Axes: T time, N environments, G gradient steps, B minibatch, E critics, O observation, A action.

Deviations from the papers:
- N environments take T steps each, then the gradient steps for all of these follow.
- Actor and critics have two layers of one size, whose kernels start orthogonal. The critics see the action from the
  first layer on, and may have layer norm. Observations may be normalised by running statistics, when they are used.
- Noises are of actions in unit coordinates, where the bounds of every environment are -1 and 1.
- Targets may be over several steps (`n_step`), which is biased off-policy.
- Steps cut by a time limit bootstrap from the value of their true successor, those of the average reward too, whose
  published code ends there. An average reward goes on where an episode terminates: the start of the next follows.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.env import EnvState
from rlx.multiagent import folded
from rlx.networks import TORSOS, Critic, DeterministicActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, per_env, pytree, replace, static, traced
from rlx.replay import Replay, check_delay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Box, check_spaces, rescale, visible, zeros
from rlx.values import check_n_step, n_step

VARIANTS = {
    "td3": {
        **{"num_critics": 2, "policy_delay": 2, "target_noise": 0.2, "exploration_noise": 0.1, "noise_decay": 1.0},
        **{"learning_rate": 3e-4, "critic_learning_rate": 3e-4, "weight_decay": 0.0, "tau": 0.005, "batch_size": 256},
    },
    "ddpg": {
        **{"num_critics": 1, "policy_delay": 1, "target_noise": 0.0, "exploration_noise": 0.2, "noise_decay": 0.15},
        **{"learning_rate": 1e-4, "critic_learning_rate": 1e-3, "weight_decay": 1e-2, "tau": 0.001, "batch_size": 64},
    },
    "aro_ddpg": {
        **{"num_critics": 2, "policy_delay": 2, "target_noise": 0.0, "exploration_noise": 0.2, "noise_decay": 0.15},
        **{"average_reward": True, "hidden_sizes": (128, 128), "capacity": 100_000},
    },
}


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(5_000, at_least=0)  # of these, the first, with random actions and nothing learned
    num_envs: int = static(1)  # N
    num_steps: int = static(64)  # T, steps of each environment between updates
    utd_ratio: float = static(1.0, above=0)  # updates to data: gradient steps per environment step
    capacity: int = static(1_000_000)  # transitions that the buffer keeps
    batch_size: int = static(256)  # B
    num_critics: int = static(2)  # E
    learning_rate: float = traced(3e-4, at_least=0)  # of the actor
    critic_learning_rate: float = traced(3e-4, at_least=0)
    weight_decay: float = traced(0.0, at_least=0)  # of the critics, half its square in their loss
    policy_delay: int = static(2)  # gradient steps of the critics to one of the actor and the targets
    target_noise: float = traced(0.2, at_least=0)  # of the actions in targets
    target_noise_clip: float = traced(0.5, at_least=0)
    exploration_noise: float = traced(0.1, at_least=0)
    noise_decay: float = traced(1.0, at_least=0, at_most=1)  # of the noise a step; 1 is white, less Ornstein-Uhlenbeck
    average_reward: bool = static(False)  # maximise it, and learn it, in place of the discounted return
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way to the networks that their targets go each time
    n_step: int = static(1)  # rewards of a target before its value, no more than num_steps
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(False)  # in the critics
    hidden_sizes: tuple[int, ...] = static((256, 256))
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
    params: dict  # of actor, critics [E] and, where it is learned, the average reward
    target_params: dict  # of actor and critics [E]
    opt_state: dict  # likewise of params
    env_state: EnvState  # [N]
    noise: jax.Array = per_env()  # [N, A], of the last actions
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
    """Actor and critic of the same shape; all critics apply one module, to parameters of their own."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False: Torso(space, *layers, layer_norm, config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True), config.layer_norm)
    return DeterministicActor(env.action_space, actor), Critic(critic)


def optimizer(config):
    """One for each group of parameters."""
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, eps_root=1e-20))
    critic = optax.chain(optax.add_decayed_weights(config.weight_decay), adam(config.critic_learning_rate))
    return {"actor": adam(config.learning_rate), "critic": critic, "average": adam(config.critic_learning_rate)}


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    check_delay(config.policy_delay, config.gradient_steps)
    check_n_step(config.n_step, config.num_steps)


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key, env_key, warmup_key = jax.random.split(key, 5)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    elements = flatten(kept(config, env, traj, env_state))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    obs_stats = statistics(env.observation_space)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.action_space)
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    target_params, average = dict(params), {"average": jnp.float32(0)} if config.average_reward else {}
    params |= average
    return State(
        params=params,
        target_params=target_params,
        opt_state={name: optimizer(config)[name].init(params[name]) for name in params},
        env_state=env_state,
        noise=jnp.zeros((config.num_envs * env.num_agents, *env.action_space.shape)),
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


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same in unit coordinates; else with white noise."""
    actor, _ = networks(config, env)
    action = actor.apply(state.params["actor"], normalized(config, state, obs))
    if not deterministic:
        action = jnp.clip(action + config.exploration_noise * jax.random.normal(key, action.shape), -1.0, 1.0)
    return rescale(env.action_space, action), action


def act_noisily(config, env, state, obs, key, noise):
    """`act` with noise `[N, A]` that remembers: `x' = (1 - decay) x + sigma xi`, which is returned too."""
    _, action = act(config, env, state, obs, key, deterministic=True)
    noise = (1.0 - config.noise_decay) * noise + config.exploration_noise * jax.random.normal(key, noise.shape)
    action = jnp.clip(action + noise, -1.0, 1.0)
    return rescale(env.action_space, action), action, noise


def kept(config, env, traj, env_state):
    """What the buffer keeps of transitions, each with the n - 1 after it; `env_state` is that after the last."""
    next_obs, terminated, gamma = traj.next_obs, traj.terminated, config.gamma
    if config.average_reward:
        last = folded(env, env_state.obs)
        starts = jax.tree.map(lambda x, last: jnp.concatenate([x[1:], last[None]]), traj.obs, last)
        at_ends = jax.vmap(jax.vmap(jnp.where))
        next_obs = jax.tree.map(lambda start, x: at_ends(terminated, start, x), starts, next_obs)
        terminated, gamma = jnp.zeros_like(terminated), 1.0
    ahead = n_step(traj.reward, terminated, traj.done, (next_obs, terminated), config.n_step, gamma)
    return Batch(traj.obs, traj.recorded, ahead.reward, *ahead.next_obs, ahead.num)


def critic_loss(params, target_params, config, env, batch, noise):
    """Loss of the critics, and their values `[E, B]`; the target is that of TD3's algorithm 1."""
    actor, critic = networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    noise = jnp.clip(config.target_noise * noise, -config.target_noise_clip, config.target_noise_clip)
    next_action = jnp.clip(actor.apply(target_params["actor"], batch.next_obs) + noise, -1.0, 1.0)
    next_value = q(target_params["critic"], batch.next_obs, next_action).min(axis=0)
    gamma = 1.0 if config.average_reward else config.gamma
    target = config.reward_scale * batch.reward + gamma**batch.num * jnp.where(batch.terminated, 0.0, next_value)
    value = q(params["critic"], batch.obs, batch.action)
    paid = value + batch.num * params["average"] if config.average_reward else value
    return jax.vmap(optax.l2_loss, in_axes=(0, None))(paid, target).sum(axis=0).mean(), value


def actor_loss(actor_params, params, config, env, batch):
    """Loss of the actor: less the value of its actions, by the first critic."""
    actor, critic = networks(config, env)
    first = jax.tree.map(lambda x: x[0], params["critic"])
    return -critic.apply(first, batch.obs, actor.apply(actor_params, batch.obs)).mean()


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
    key, rollout_key, sample_key, noise_key = jax.random.split(state.key, 4)
    policy, quiet = partial(act_noisily, config, env, state), jnp.zeros_like(state.noise)
    rolled = rollout(env, policy, state.env_state, rollout_key, config.num_steps, state.noise, quiet)
    env_state, traj, exploration = rolled
    buffer = insert(state.replay, flatten(kept(config, env, traj, env_state)))
    shape = config.gradient_steps // config.policy_delay, config.policy_delay, config.batch_size
    indices = sample(buffer, sample_key, shape)
    noise = jax.random.normal(noise_key, (*shape, *env.action_space.shape))

    def critic_step(carry, x):
        params, target_params, opt_state = carry
        index, noise = x
        batch = drawn(config, state, buffer, index)
        learned = {name: params[name] for name in params if name != "actor"}
        inputs = learned, target_params, config, env, batch, noise
        (loss, value), grads = jax.value_and_grad(critic_loss, has_aux=True)(*inputs)
        params, opt_state = stepped(config, params, opt_state, grads)
        return (params, target_params, opt_state), {"critic_loss": loss, "value": value.mean()}

    def step(carry, x):
        (params, target_params, opt_state), metrics = jax.lax.scan(critic_step, carry, x)
        batch = drawn(config, state, buffer, x[0][-1])
        loss, grad = jax.value_and_grad(actor_loss)(params["actor"], params, config, env, batch)
        params, opt_state = stepped(config, params, opt_state, {"actor": grad})
        followed = {name: params[name] for name in target_params}
        target_params = optax.incremental_update(followed, target_params, config.tau)
        average = {"average_reward": params["average"] / config.reward_scale} if config.average_reward else {}
        return (params, target_params, opt_state), {**metrics, "actor_loss": loss, **average}

    carry = state.params, state.target_params, state.opt_state
    (params, target_params, opt_state), metrics = jax.lax.scan(step, carry, (indices, noise))
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    learned, after = (params, target_params, opt_state, env_state), (buffer, obs_stats, state.num_updates + 1, key)
    return State(*learned, exploration, *after), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
