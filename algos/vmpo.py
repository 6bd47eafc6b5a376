"""V-MPO: maximum a posteriori policy optimization on fresh data, for discrete and continuous actions.

    python algos/vmpo.py --env CartPole-v1

Reference: Song et al. 2019, V-MPO: On-Policy Maximum a Posteriori Policy Optimization for Discrete and Continuous
Control, arXiv:1909.12238; advantages by GAE, arXiv:1506.02438; time limits as in Pardo et al. 2018, arXiv:1712.00378.

Axes: T time, N environments, B minibatch, O observation, A action.

Nothing is maximised by a ratio: the likelihood of the better half of each minibatch goes up, weighted by
`w = softmax(A / eta)`, and the policy stays within `max_kl` of the target policy, which is the one that acted:

    -sum_i w_i log pi(a_i | s_i) + eta (weight_kl + log mean_i exp(A_i / eta)) + alpha (max_kl - KL) + alpha KL

In each product of the last two one factor is taken as given. The temperature `eta` and the multiplier `alpha` are
learned; they are positive as softplus of a parameter.

Deviations from the paper:
- The target policy acts for one rollout, and the gradient steps until the next are on minibatches of it, in several
  epochs. With one epoch these are the steps of the paper's algorithm 1, on shuffled steps in place of trajectories.
- The KL of continuous policies has one bound and one multiplier; the paper has those of mean and covariance apart.
- `eta` and `alpha` have a learning rate of their own; the paper keeps them positive by projection.
- Actor and critic are separate networks under one optimiser, which clips the global norm of their joint gradient.
- Advantages are GAE, standardised in each minibatch; the paper has n-step advantages, with PopArt for several tasks.
- The value loss is clipped around the old value (`value_clip`; infinity turns it off).
- The learning rates fall linearly to 0 over the run (`anneal_learning_rate`).
- Observations and rewards may be normalised by running statistics, which change after the gradient steps only.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae, standardize
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.networks import BOUNDED, POLICIES, TORSOS, Actor, Critic, Torso, initialize
from rlx.normalize import RewardScale, Statistics, normalize, reward_scale, scale_rewards, statistics, update_statistics
from rlx.objectives import clipped_value_loss, explained_variance
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import check_spaces, rescale, visible, zeros
from rlx.train import training_progress
from rlx.weighting import better_half, boltzmann_weights, multiplier_loss, temperature_loss

LEAST = 1e-6  # of eta and alpha


@pytree
class Config:
    total_steps: int = static(500_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(4)  # N
    num_steps: int = static(128)  # T, steps of each environment between updates
    num_epochs: int = static(4)
    num_minibatches: int = static(4)
    learning_rate: float = traced(2.5e-4, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(0.99, at_least=0, at_most=1)
    gae_lambda: float = traced(0.95, at_least=0, at_most=1)
    weight_kl: float = traced(0.1, above=0)  # of the weights from uniform ones, which eta keeps
    max_kl: float = traced(0.01, above=0)  # of the policy from the target policy, which alpha keeps
    initial_eta: float = traced(1.0, above=0)
    initial_alpha: float = traced(5.0, above=0)
    dual_learning_rate: float = traced(1e-2, at_least=0)  # of eta and alpha
    value_clip: float = traced(0.2, above=0)
    value_coef: float = traced(0.5, at_least=0)
    max_grad_norm: float = traced(0.5, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    normalize_advantage: bool = True
    normalize_obs: bool = static(False)
    normalize_reward: bool = static(False)
    hidden_sizes: tuple[int, ...] = static((64, 64))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("tanh")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all
    policy: str = static("normal", one_of=POLICIES)  # density of continuous actions

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic, and the duals eta and alpha
    opt_state: dict  # of the networks and the duals
    env_state: EnvState  # [N]
    obs_stats: Statistics
    reward_scale: RewardScale
    num_updates: jax.Array
    key: jax.Array


@pytree
class Recorded:
    """What the loss needs of the moment of acting."""

    action: jax.Array  # in unit coordinates, before clipping
    pi: object  # the distribution it is from


@pytree
class Batch:
    obs: jax.Array  # normalised
    action: jax.Array
    pi: object
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


def networks(config, env):
    """Actor and critic, separate and of the same shape."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True))
    return Actor(env.action_space, actor, policy=config.policy), Critic(critic)


def optimizer(config, annealing):
    """One for the networks and one for the duals."""
    adam = lambda rate: optax.adam(annealing * rate, eps=config.adam_epsilon, eps_root=1e-20)  # differentiable at 0
    clip = clip_by_global_norm(config.max_grad_norm)
    both = optax.flatten(optax.chain(clip, adam(config.learning_rate)))  # as one vector: a few large operations
    return {"networks": both, "duals": adam(config.dual_learning_rate)}


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, bounded=config.policy in BOUNDED, normalized=config.normalize_obs)
    check_divides(config.steps_per_update, config.num_minibatches)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    env_state = reset(env, env_key, config.num_envs)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 1.0))
    inverse = lambda x: jnp.float32(x + jnp.log(-jnp.expm1(-x)))  # of softplus
    params |= {"duals": {"eta": inverse(config.initial_eta), "alpha": inverse(config.initial_alpha)}}
    return State(
        params=params,
        opt_state={name: optimizer(config, 1.0)[name].init(x) for name, x in parts(params).items()},
        env_state=env_state,
        obs_stats=statistics(env.observation_space),
        reward_scale=reward_scale(config.num_envs * env.num_agents),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and what the loss will need of it."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = jax.lax.stop_gradient(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, pi.squash(action)), Recorded(action, pi)


def parts(params):
    """The parameters by what optimises them."""
    return {"networks": {name: params[name] for name in ("actor", "critic")}, "duals": params["duals"]}


def duals(params):
    """The temperature eta and the multiplier alpha."""
    return {name: jax.nn.softplus(x) + LEAST for name, x in params["duals"].items()}


def loss(params, fixed, config, env, batch):
    """Loss of one minibatch `[B]`, of policy, duals and values, and its metrics.

    `fixed` are the same parameters where a term takes them as given.
    """
    actor, critic = networks(config, env)
    pi, value = actor.apply(params["actor"], batch.obs), critic.apply(params["critic"], batch.obs)
    dual, given = duals(params), duals(fixed)
    advantage = jnp.where(config.normalize_advantage, standardize(batch.advantage), batch.advantage)
    best = better_half(advantage)
    weight = boltzmann_weights(advantage[best], given["eta"])
    policy_loss = -(weight * pi.log_prob(batch.action)[best]).sum()
    eta_loss = temperature_loss(dual["eta"], advantage[best], config.weight_kl)
    kl, given_kl = (batch.pi.kl(x).mean() for x in (pi, actor.apply(fixed["actor"], batch.obs)))
    alpha_loss = multiplier_loss(dual["alpha"], given["alpha"], kl, given_kl, config.max_kl)
    value_loss = clipped_value_loss(value, batch.value, batch.target, config.value_clip).mean()
    return policy_loss + eta_loss + alpha_loss + config.value_coef * value_loss, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": pi.entropy().mean(),
        "kl": kl,
        "weight_kl": jnp.sum(weight * jnp.log(jnp.maximum(weight * weight.shape[0], 1e-20))),
        **dual,
    }


def advantages(config, env, state, traj):
    """What there is to learn from a rollout, `[T, N]`, and the reward scale after it."""
    _, critic = networks(config, env)
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    value, next_value = (critic.apply(state.params["critic"], x) for x in (obs, next_obs))
    scale, reward = state.reward_scale, traj.reward
    if config.normalize_reward:
        scale, reward = scale_rewards(scale, reward, traj.done, config.gamma)
    advantage = gae(reward, value, next_value, traj.terminated, traj.done, config.gamma, config.gae_lambda)
    return Batch(obs, traj.recorded.action, traj.recorded.pi, value, advantage, advantage + value), scale


def update(config, env, state):
    """One rollout of the target policy and the epochs of gradient steps on it."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    policy = partial(act, config, env, state)
    env_state, traj = rollout(env, policy, state.env_state, rollout_key, config.num_steps)
    data, scale = advantages(config, env, state, traj)
    elements = flatten(data)
    annealing = jnp.where(config.anneal_learning_rate, 1.0 - training_progress(config, state), 1.0)

    def step(carry, batch):
        params, opt_state = carry
        # What a term takes as given is an argument of its own, no stop_gradient: gradients through training see it.
        grads, metrics = jax.grad(loss, has_aux=True)(params, params, config, env, batch)
        grads, own = parts(grads), parts(params)
        metrics["grad_norm"] = global_norm(grads["networks"])
        for name, rule in optimizer(config, annealing).items():
            change, after = rule.update(grads[name], opt_state[name])
            own, opt_state = own | {name: optax.apply_updates(own[name], change)}, opt_state | {name: after}
        return ({**own["networks"], "duals": own["duals"]}, opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "explained_variance": explained_variance(data.value, data.target),
        "learning_rate": annealing * config.learning_rate,
    }
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, opt_state, env_state, obs_stats, scale, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
