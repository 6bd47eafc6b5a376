"""Relative entropy pathwise policy optimization: the gradient of a critic that was learned on fresh data alone.

    python algos/reppo.py --env Pendulum-v1

Reference: Voelcker et al. 2025, Relative Entropy Pathwise Policy Optimization, arXiv:2507.11019; time limits as in
Pardo et al. 2018, arXiv:1712.00378. Parts of it can be left out, see `VARIANTS`:

    mse       the critic is a number, learned by squared errors
    no_aux    the critic guesses nothing of what follows
    no_kl     the actor is never pulled back to the policy that acted

Axes: T time, N environments, B minibatch, O observation, A action, K bins, F features.

Returns are soft, from the values of actions that the policy which acted draws at the true successors:

    G_t = r_t + gamma (1 - terminated_t) ((1 - lambda) Q(s'_t, a'_t) + lambda G_{t+1} - alpha log pi(a'_t | s'_t))

Each state of a minibatch either improves the actor or pulls it back, whichever its divergence asks for:

    alpha log pi(a | s) - Q(s, a)    where KL(pi_old || pi) < kl_bound,    else    beta KL(pi_old || pi)

Deviations from the paper:
- The divergence is that of the two normals, exact, in place of an estimate by 16 actions.
- Critic, actor and both multipliers change together: each gradient is taken before any of them has moved.
- No entropy is paid for beyond a terminal step.
- No transition is left out: those at a time limit have their true successors.
- The critic's first distribution is a constant that is added to its logits; published code learns it.
- Torsos have layer norm, and the actor has as many layers as the critic's. Kernels start orthogonal.
- Observations may be normalised by running statistics, which change after the gradient steps only.
- Entropies are those of actions in unit coordinates, where the bounds of every environment are -1 and 1.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import EnvState
from rlx.networks import TORSOS, PredictiveCritic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.objectives import explained_variance
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import Box, check_spaces, num_free, rescale, size, visible, zeros
from rlx.train import training_progress
from rlx.values import bins, hl_gauss, lambda_returns

VARIANTS = {
    "reppo": {},
    "mse": {"num_bins": 0},
    "no_aux": {"prediction_coef": 0.0},
    "no_kl": {"kl_bound": float("inf")},
}
SHARPNESS = 40.0  # of the logits that put the first values at 0


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    num_envs: int = static(64)  # N
    num_steps: int = static(32)  # T, steps of each environment between updates
    num_epochs: int = static(8)
    num_minibatches: int = static(8)
    learning_rate: float = traced(3e-4, at_least=0)
    multiplier_learning_rate: float = traced(3e-4, at_least=0)  # of alpha and beta; 0 keeps them
    anneal_learning_rate: bool = False
    gamma: float = traced(0.99, at_least=0, at_most=1)
    td_lambda: float = traced(0.95, at_least=0, at_most=1)
    kl_bound: float = traced(0.1, above=0)
    initial_alpha: float = traced(0.01, above=0)
    initial_beta: float = traced(0.01, above=0)
    target_entropy: float = -0.5  # nats per action dimension, in unit coordinates; log 2 = 0.69 is uniform
    num_bins: int = static(151, at_least=0)  # K, of the distribution that the critic learns; 0: a number
    lowest_return: float = traced(-10.0)  # centre of the first bin, of soft returns times reward_scale
    highest_return: float = traced(10.0)  # centre of the last
    prediction_coef: float = traced(1.0, at_least=0)
    reward_scale: float = traced(1.0, above=0)
    max_grad_norm: float = traced(0.5, above=0)
    normalize_obs: bool = static(False)
    layer_norm: bool = static(True)
    hidden_sizes: tuple[int, ...] = static((128, 128))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("swish")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of actor and critic, log_alpha and log_beta
    opt_state: optax.OptState
    env_state: EnvState  # [N]
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array  # normalised
    action: jax.Array  # in unit coordinates
    target: jax.Array
    following: jax.Array  # [..., F + 1], features and reward of the next step
    known: jax.Array  # whether they are of the same episode


def networks(config, env):
    """Actor and critic, on torsos of the same shape."""
    layers = config.hidden_sizes, config.activation, config.conv_features, config.layer_norm, config.torso
    actor = Torso(visible(env.observation_space, config.actor_obs), *layers)
    critic = Torso(visible(env.observation_space, config.critic_obs, privileged=True), *layers)
    return TanhActor(env.action_space, actor), PredictiveCritic(critic, config.num_bins or 1)


def optimizer(config, learning_rate):
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.adam(learning_rate, eps_root=1e-20)
    clipped = optax.flatten(optax.chain(clip_by_global_norm(config.max_grad_norm), adam(learning_rate)))
    kinds = {"actor": "actor", "critic": "critic", "log_alpha": "multiplier", "log_beta": "multiplier"}
    rates = {"actor": clipped, "critic": clipped, "multiplier": adam(config.multiplier_learning_rate)}
    return optax.partition(rates, kinds)


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    check_divides(config.steps_per_update * env.num_agents, config.num_minibatches)
    if config.num_bins == 1:
        raise ValueError("num_bins = 1 is a distribution of one value: give 2 or more, or 0 for a number")
    low, high = config.lowest_return, config.highest_return
    if (
        config.num_bins
        and all(isinstance(bound, float) for bound in (low, high))
        and not -jnp.inf < low < high < jnp.inf
    ):
        raise ValueError(f"lowest_return = {low} has to be below highest_return = {high}, both finite")


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    action = zeros(env.action_space)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 0.01, action))
    params["log_alpha"] = jnp.log(jnp.float32(config.initial_alpha))
    params["log_beta"] = jnp.log(jnp.float32(config.initial_beta))
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=reset(env, env_key, config.num_envs),
        obs_stats=statistics(env.observation_space),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same in unit coordinates."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    action = jnp.tanh(pi.mode() if deterministic else pi.sample(key))
    return rescale(env.action_space, action), action


def centres(config):
    """The centres of the bins, `[K]`."""
    return bins(config.lowest_return, config.highest_return, config.num_bins)


def evaluated(params, config, env, obs, action):
    """`Q(s, a)` `[...]`, with the logits of its distribution `[..., K]`, features and a guess at what follows."""
    _, critic = networks(config, env)
    returns, features, guess = critic.apply(params["critic"], obs, action)
    if not config.num_bins:
        return returns[..., 0], returns, features, guess
    logits = returns + SHARPNESS * hl_gauss(jnp.float32(0.0), centres(config))
    return jax.nn.softmax(logits) @ centres(config), logits, features, guess


def targets(config, env, state, traj, noise):
    """What there is to learn from a rollout `[T, N]`, with a normal `[T, N, A]` for the actions that follow."""
    obs, next_obs = normalized(config, state, traj.obs), normalized(config, state, traj.next_obs)
    pi = networks(config, env)[0].apply(state.params["actor"], next_obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    next_value, _, features, _ = evaluated(state.params, config, env, next_obs, jnp.tanh(u))
    entropy = -jnp.exp(state.params["log_alpha"]) * pi.log_prob(u)
    scaled = config.reward_scale * traj.reward
    reward = scaled + config.gamma * jnp.where(traj.terminated, 0.0, entropy)
    target = lambda_returns(reward, next_value, traj.terminated, traj.done, config.gamma, config.td_lambda)
    following = jnp.concatenate([features, scaled[..., None]], axis=-1)
    return Batch(obs, traj.recorded, target, following, ~traj.done)


def critic_loss(params, config, env, batch):
    """Loss of the critic for one minibatch `[B]`, its values, and that of what it guesses."""
    value, logits, _, guess = evaluated(params, config, env, batch.obs, batch.action)
    if config.num_bins:
        loss = optax.softmax_cross_entropy(logits, hl_gauss(batch.target, centres(config)))
    else:
        loss = optax.l2_loss(value, batch.target)
    error = jnp.where(batch.known, jnp.square(guess - batch.following).mean(axis=-1), 0.0)
    return loss.mean(), value, error.mean()


def actor_loss(params, fixed, old, config, env, batch, noise):
    """Loss of the actor, its entropy and its divergence from the policy that acted, `[B]`."""
    actor, _ = networks(config, env)
    pi = actor.apply(params["actor"], batch.obs)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    log_prob = pi.log_prob(u)
    kl = actor.apply(old["actor"], batch.obs).kl(pi)
    better = jnp.exp(fixed["log_alpha"]) * log_prob - evaluated(fixed, config, env, batch.obs, jnp.tanh(u))[0]
    near = kl < config.kl_bound
    return jnp.where(near, better, jnp.exp(fixed["log_beta"]) * kl).mean(), (-log_prob, kl)


def multiplier_loss(params, config, env, entropy, kl):
    """Loss of the multipliers: alpha rises where entropy is too low, beta where the divergence is too large."""
    free = num_free(env.action_space)  # a dimension that is constant may as well be uniform
    wanted = config.target_entropy * free + (size(env.action_space) - free) * jnp.log(2.0)
    excess = jnp.where(jnp.isinf(config.kl_bound), 0.0, kl.mean() - config.kl_bound)
    return jnp.exp(params["log_alpha"]) * (entropy.mean() - wanted) - jnp.exp(params["log_beta"]) * excess


def loss(params, fixed, old, config, env, batch, noise):
    """All losses of one minibatch `[B]`, each with a gradient for its own parameters alone.

    `fixed` are the same parameters where a loss takes them as given, and `old` those that acted.
    """
    q_loss, value, guess_loss = critic_loss(params, config, env, batch)
    pi_loss, (entropy, kl) = actor_loss(params, fixed, old, config, env, batch, noise)
    metrics = {
        "critic_loss": q_loss,
        "prediction_loss": guess_loss,
        "actor_loss": pi_loss,
        "value": value.mean(),
        "explained_variance": explained_variance(value, batch.target),
        "entropy": entropy.mean(),
        "kl": kl.mean(),
        "share_pulled_back": (kl >= config.kl_bound).mean(),
        "alpha": jnp.exp(params["log_alpha"]),
        "beta": jnp.exp(params["log_beta"]),
    }
    return q_loss + config.prediction_coef * guess_loss + pi_loss, (entropy, kl, metrics)


def update(config, env, state):
    """One rollout and the epochs of gradient steps on it."""
    key, rollout_key, noise_key, shuffle_key = jax.random.split(state.key, 4)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    # One more draw than there are epochs, for the actions that follow: all of them are one row for the compiler.
    noise = jax.random.normal(noise_key, (config.num_epochs + 1, *traj.recorded.shape))
    data = targets(config, env, state, traj, noise[0])
    elements = flatten(data)
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, x):
        params, opt_state = carry
        batch, noise = x
        inputs = params, params, state.params, config, env, batch, noise
        grads, (entropy, kl, metrics) = jax.grad(loss, has_aux=True)(*inputs)
        multipliers = {name: params[name] for name in ("log_alpha", "log_beta")}
        grads |= jax.grad(multiplier_loss)(multipliers, config, env, entropy, kl)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, x):
        index, noise = x
        return jax.lax.scan(step, carry, gather((elements, flatten(noise)), index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), (indices, noise[1:]))
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics), "learning_rate": learning_rate}
    if config.num_bins:
        outside = (data.target < config.lowest_return) | (data.target > config.highest_return)
        metrics["share_outside"] = outside.mean()  # of the bins: returns that they cannot hold
    obs_stats = update_statistics(state.obs_stats, traj.obs) if config.normalize_obs else state.obs_stats
    return State(params, opt_state, env_state, obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
