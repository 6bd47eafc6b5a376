"""Diffusion Policy Policy Optimization: PPO whose policy is a chain of denoising steps, each an action of its own.

    python algos/dppo.py --env Pendulum-v1
    rlx clone dppo demonstrations.npz --out runs/clone; rlx train dppo --start-from runs/clone --trained-steps 5

Reference: Ren et al. 2024, Diffusion Policy Policy Optimization, arXiv:2409.00588; the rest is PPO, arXiv:1707.06347.

Axes: T time, N environments, B minibatch, O observation, A action, K denoising steps, of which the last K' are trained.

Every element of a minibatch is one denoising step of one step of the environment. Deterministic actions have no noise
in the last denoising step and almost none before it, but begin at noise: they differ from one key to the next.

Deviations from the paper and its code, beside those of ppo.py from its own:
- Time limits bootstrap from the true successor. The code: ends in Gym tasks, else the observation after the reset.
- Observations and rewards may be normalised by running statistics, not those of a dataset. They keep changing under the
  pretrained actor too, and so do Adam's moments of the actor during the critic's warm-up.
- The trunk is plain layers, the last kernel of gain 0.01, where the code has a residual block.
- The behaviour-cloning term draws a pretrained chain for each step of a rollout; the code for each minibatch element.
- There is no early stop by the KL, and a single trained step has the clip of the last one, where the code has NaN.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.diffusion import add_noise, ddpm, denoise, denoised_mean, mean_log_prob, step_clips
from rlx.env import EnvState
from rlx.networks import TORSOS, Critic, Denoiser, Torso, action_size, initialize
from rlx.normalize import RewardScale, Statistics, normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.objectives import Elements, approx_kl, clipped_surrogate, clipped_value_loss, explained_variance, kl_adapted
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import Box, check_spaces, rescale, visible, zeros
from rlx.train import total_updates, training_progress
from rlx.wrappers import carried_out


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(4)  # N
    num_steps: int = static(128)  # T, steps of each environment between updates
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    learning_rate: float = traced(1e-4, at_least=0)  # of the actor
    critic_learning_rate: float = traced(1e-3, at_least=0)
    anneal_learning_rate: bool = True
    adapt_learning_rate: bool = static(False)  # by the KL of an update's last epoch, towards its target
    target_kl: float = traced(0.01, above=0)
    gamma: float = traced(0.99, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    denoising_steps: int = static(10)  # K
    trained_steps: int = static(10)  # K', the last ones; those before are as they were at the beginning
    denoising_gamma: float = traced(1.0, at_least=0, at_most=1)  # discounts steps by how many follow
    action_bound: float = traced(1.0, above=0)  # of what a denoising step takes for the clean action
    least_std: float = traced(0.1, above=0)  # of a denoising step, in acting and in its likelihood
    noise_bound: float = traced(3.0, above=0)  # of the noise, in standard deviations
    clip: float = traced(0.1, above=0)  # of the last denoising step
    first_clip: float = traced(0.1, above=0)  # of the first that is trained; between them it grows exponentially
    clip_rate: float = traced(3.0, above=0)
    value_clip: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
    imitation_coef: float = static(0.0, at_least=0)  # of the likelihood of what the policy did that training began with
    critic_warmup: int = traced(0, at_least=0)  # updates at the beginning that leave the actor's weights as they are
    max_grad_norm: float = traced(0.5, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    normalize_advantage: bool = True
    normalize_obs: bool = static(False)
    normalize_reward: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((64, 64))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic
    pretrained: dict | None  # actor at the beginning, where it is needed: it makes the steps that are not trained
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    obs_stats: Statistics
    reward_scale: RewardScale
    learning_rate: jax.Array | None  # before annealing, where it is adapted
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    chain: jax.Array  # [K' + 1, A], what goes into the trained steps and comes out; its end is the action
    log_prob: jax.Array  # [K'], of each, a mean over what of the action is carried out


@pytree
class Batch:
    obs: jax.Array  # normalised
    recorded: Recorded
    value: jax.Array
    advantage: jax.Array
    target: jax.Array
    imitation_chain: jax.Array | None = None  # [K' + 1, A], a chain of the pretrained policy, where it is imitated


def networks(config, env):
    """Denoising actor and critic, separate and of the same shape."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    return Denoiser(torso(visible(env.observation_space, config.actor_obs))), Critic(critic)


def optimizer(config):
    """Of steps of size 1, to be scaled for actor and critic."""
    clip, adam = clip_by_global_norm(config.max_grad_norm), optax.adam(1.0, eps=config.adam_epsilon, eps_root=1e-20)
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, actions=Box, normalized=config.normalize_obs)
    if config.trained_steps > config.denoising_steps:
        raise ValueError(f"trained_steps = {config.trained_steps}: there are {config.denoising_steps} denoising_steps")
    if isinstance(config.critic_warmup, int) and config.critic_warmup >= total_updates(config):
        raise ValueError(f"critic_warmup = {config.critic_warmup}: the run is as short, the actor would never learn")
    what = "num_envs * num_steps * trained_steps"
    check_divides(config.steps_per_update * config.trained_steps, config.num_minibatches, what)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    env_state = reset(env, env_key, config.num_envs)
    action = jnp.zeros(action_size(env.action_space))
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01, action, 0), critic=(critic, 1.0))
    return State(
        params=params,
        pretrained=params["actor"] if config.imitation_coef or config.trained_steps < config.denoising_steps else None,
        opt_state=optimizer(config).init(params),
        env_state=env_state,
        obs_stats=statistics(env.observation_space),
        reward_scale=reward_scale(config.num_envs * env.num_agents),
        learning_rate=jnp.float32(config.learning_rate) if config.adapt_learning_rate else None,
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def sample(config, env, params, pretrained, obs, key, min_std):
    """The chain of the trained steps `[K' + 1, N, A]` at normalised obs `[N, O]`, and their noise `[K', N, A]`."""
    actor, _ = networks(config, env)
    start_key, noise_key = jax.random.split(key)
    shape, num_frozen = (num_rows(obs), action_size(env.action_space)), config.denoising_steps - config.trained_steps
    x, noise = jax.random.normal(start_key, shape), jax.random.normal(noise_key, (config.denoising_steps, *shape))
    noise, bound = jnp.clip(noise, -config.noise_bound, config.noise_bound), config.action_bound
    steps = ddpm(config.denoising_steps), noise, min_std
    early, late = jax.tree.map(lambda x: x[:num_frozen], steps), jax.tree.map(lambda x: x[num_frozen:], steps)
    if num_frozen:
        x, _ = denoise(early[0], partial(actor.apply, pretrained, obs), x, *early[1:], bound)
    _, chain = denoise(late[0], partial(actor.apply, params, obs), x, *late[1:], bound)
    return chain, late[1]


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and what the loss will need of it."""
    full = partial(jnp.full, config.denoising_steps)
    min_std = full(1e-3).at[-1].set(0.0) if deterministic else full(config.least_std)
    obs = normalized(config, state, obs)
    chain, noise = sample(config, env, state.params["actor"], state.pretrained, obs, key, min_std)
    std = jnp.maximum(ddpm(config.denoising_steps).std[-config.trained_steps :], config.least_std)[:, None]
    log_prob = mean_log_prob(carried_out(env, std[..., None] * noise), std)
    return rescale(env.action_space, chain[-1]), Recorded(chain.swapaxes(0, 1), log_prob.T)


def cloning_loss(config, env, params, obs, action, key):
    """Loss `[B]` of demonstrated actions `[B, A]` in unit coordinates: the error in predicting their noise."""
    actor, _ = networks(config, env)
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, num_rows(obs), 0, config.denoising_steps)
    noise = jax.random.normal(noise_key, action.shape)
    predicted = actor.apply(params["actor"], obs, add_noise(config.denoising_steps, action, noise, t), t)
    return jnp.square(predicted - noise).mean(-1)


def objective(config, elements, progress):
    """Policy loss of each element `[B]`; `progress` through the run is in [0, 1]."""
    return clipped_surrogate(elements.log_ratio, elements.advantage, config.clip)


def loss(params, config, env, batch, i, progress, objective=objective):
    """Loss of one minibatch `[B]` of the trained denoising steps `i [B]`, the first being 0, and its metrics."""
    actor, critic = networks(config, env)
    value = critic.apply(params["critic"], batch.obs)
    schedule = jax.tree.map(lambda x: x[-config.trained_steps :][i][:, None], ddpm(config.denoising_steps))
    at = lambda x, i: jax.vmap(jnp.take, (0, 0, None))(x, i, 0)

    def log_prob(chain):
        before, after = at(chain, i), at(chain, i + 1)
        noise = actor.apply(params["actor"], batch.obs, before, schedule.time[:, 0])
        deviation = after - denoised_mean(schedule, before, noise, config.action_bound)
        return mean_log_prob(carried_out(env, deviation), jnp.maximum(schedule.std[:, 0], config.least_std))

    new = log_prob(batch.recorded.chain)
    log_ratio = new - at(batch.recorded.log_prob, i)
    advantage = jnp.where(config.normalize_advantage, standardize(batch.advantage), batch.advantage)
    advantage *= config.denoising_gamma ** (config.trained_steps - 1.0 - i)
    clip = step_clips(config.trained_steps, config.first_clip, config.clip, config.clip_rate)[i]
    policy_loss = objective(replace(config, clip=clip), Elements(log_ratio, advantage, new), progress).mean()
    value_loss = clipped_value_loss(value, batch.value, batch.target, config.value_clip).mean()
    imitation_loss = -log_prob(batch.imitation_chain).mean() if config.imitation_coef else 0.0
    return policy_loss + config.value_coef * value_loss + config.imitation_coef * imitation_loss, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "imitation_loss": imitation_loss,
        "approx_kl": approx_kl(log_ratio).mean(),
        "clip_fraction": (jnp.abs(jnp.expm1(log_ratio)) > clip).mean(),
    }


def imitation_chain(config, env, state, obs, key):
    """Chains `[T, N, K' + 1, A]` of the policy that training began with, at normalised obs, for the loss to imitate."""
    actor, flat = state.pretrained, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), obs)
    chain, _ = sample(config, env, actor, actor, flat, key, jnp.full(config.denoising_steps, config.least_std))
    return chain.swapaxes(0, 1).reshape(*jax.tree.leaves(obs)[0].shape[:2], *chain.shape[::2])


def advantages(config, env, state, traj):
    """What there is to learn from a rollout, `[T, N]`, and the reward scale after it."""
    _, critic = networks(config, env)
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    value, next_value = (critic.apply(state.params["critic"], x) for x in (obs, next_obs))
    scale, reward = state.reward_scale, traj.reward
    if config.normalize_reward:
        scale, reward = scale_rewards(scale, reward, traj.done, config.gamma)
    advantage = gae(reward, value, next_value, traj.terminated, traj.done, config.gamma, config.gae_lambda)
    return Batch(obs, traj.recorded, value, advantage, advantage + value), scale


def update(config, env, state, *, objective: Callable = objective):
    """One rollout and the epochs of gradient steps on it; `objective` may be any callable pytree of its signature."""
    key, rollout_key, shuffle_key, imitation_key = jax.random.split(state.key, 4)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    data, scale = advantages(config, env, state, traj)
    if config.imitation_coef:
        data = replace(data, imitation_chain=imitation_chain(config, env, state, data.obs, imitation_key))
    elements = flatten(data)
    progress = training_progress(config, state)
    anneal = jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)
    rate = state.learning_rate if config.adapt_learning_rate else config.learning_rate
    actor_rate = jnp.where(state.num_updates < config.critic_warmup, 0.0, rate)
    rates = {"actor": anneal * actor_rate, "critic": anneal * config.critic_learning_rate}

    def step(carry, index):
        (params, opt_state), (element, i) = carry, jnp.divmod(index, config.trained_steps)
        batch = gather(elements, element)
        grads, metrics = jax.grad(loss, has_aux=True)(params, config, env, batch, i, progress, objective)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config).update(grads, opt_state)
        updates = {name: jax.tree.map(lambda x, name=name: rates[name] * x, updates[name]) for name in rates}
        return (optax.apply_updates(params, updates), opt_state), metrics

    epoch = lambda carry, indices: jax.lax.scan(step, carry, indices)
    num_elements = num_rows(elements) * config.trained_steps
    indices = minibatches(shuffle_key, num_elements, config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    rate = kl_adapted(rate, metrics["approx_kl"][-1].mean(), config.target_kl) if config.adapt_learning_rate else None
    rate = jax.tree.map(lambda new, old: jnp.where(actor_rate > 0, new, old), rate, state.learning_rate)
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "explained_variance": explained_variance(data.value, data.target),
        "learning_rate": rates["actor"],
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    state = replace(state, params=params, opt_state=opt_state, env_state=env_state, learning_rate=rate, key=key)
    return replace(state, obs_stats=obs_stats, reward_scale=scale, num_updates=state.num_updates + 1), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
