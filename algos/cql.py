"""Conservative Q-Learning from data alone, for discrete and continuous actions; SAC-N, EDAC and Cal-QL as settings.

    python algos/cql.py --env Pendulum-v1 --data demonstrations.npz

Reference: Kumar et al. 2020, Conservative Q-Learning for Offline Reinforcement Learning, arXiv:2006.04779; SAC-N and
EDAC: An et al. 2021, Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble, arXiv:2110.01548;
Cal-QL: Nakamoto et al. 2023, arXiv:2303.05479.

Axes: M steps of data, G gradient steps, B minibatch, E critics, K actions of which a mean is taken, O observation, A
action.

Nothing is stepped: `total_steps` are gradient steps. The rest is SAC, see sac.py: without the penalty
(`num_actions = 0`) its losses are those of SAC, with all critics in the minimum, which is SAC-N.

Deviations from the papers:
- Squared errors are halved, as in the equations; published code takes them whole, with half the weight of the penalty.
- The penalty is that of equation 4 with a fixed weight, without the Lagrange form.
- Of discrete actions sums over all of them take the place of samples, and they are given to the critics as one-hot
  vectors. Their policy is that of discrete SAC, where the paper has none.
- The returns of Cal-QL are sums of the rewards that are stored: a truncated episode ends with its last one.
- Kernels start orthogonal, and observations may be normalised by the statistics of the data.
- Steps cut by a time limit are kept, and bootstrap from the value of their true successor.
"""

import jax
import jax.numpy as jnp
import optax

from rlx.masks import mask_of
from rlx.networks import TORSOS, Actor, Critic, TanhActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.rollout import no_episodes
from rlx.spaces import Box, Discrete, check_spaces, num_free, rescale, size, visible, zeros
from rlx.values import legal_values, returns_to_go

SAC_N = {"num_actions": 0, "num_critics": 10, "actor_learning_rate": 3e-4}
VARIANTS = {"sac_n": SAC_N, "edac": SAC_N | {"diversity_coef": 1.0}, "cal_ql": {"calibrated": True}}


@pytree
class Config:
    total_steps: int = static(1_000_000)  # gradient steps of the whole run, rounded up to whole updates
    gradient_steps: int = static(1_000, at_least=1)  # G
    batch_size: int = static(256, at_least=1)  # B
    num_critics: int = static(2, at_least=1)  # E
    learning_rate: float = traced(3e-4, at_least=0)
    actor_learning_rate: float = traced(3e-5, at_least=0)
    alpha_learning_rate: float = traced(3e-4, at_least=0)  # 0 keeps the temperature at its initial value
    initial_alpha: float = traced(1.0, at_least=0)
    target_entropy: float = -1.0  # nats per action dimension, in unit coordinates; log 2 = 0.69 is uniform
    target_share: float = 0.3  # target entropy as a share of log A, where actions are discrete
    cql_coef: float = traced(5.0, at_least=0)  # of the penalty
    num_actions: int = static(10, at_least=0)  # of each of its three kinds in the penalty; 0 leaves it out
    calibrated: bool = static(False)  # values of the policy in the penalty are at least the returns of the data
    diversity_coef: float = static(0.0, at_least=0)  # of how alike the critics' gradients by the action are
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way to the critics that their targets go each time
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)  # by the statistics of the data
    layer_norm: bool = static(False)  # in the critics
    hidden_sizes: tuple[int, ...] = static((256, 256, 256))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")
    actor_obs: tuple[str, ...] = static(())  # entries of a Dict that the actor sees; none: all that are not privileged
    critic_obs: tuple[str, ...] = static(())  # entries of a Dict that the critic sees; none: all

    @property
    def steps_per_update(self) -> int:
        return self.gradient_steps


@pytree
class State:
    params: dict  # of actor, critics [E] and log_alpha
    target_params: dict  # of critics [E]
    opt_state: optax.OptState
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array  # in unit coordinates, or one-hot
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    to_go: jax.Array | None = None  # the return of the data from here on, where it is calibrated


def networks(config, env):
    """Actor and critic of the same shape; all critics apply one module, to parameters of their own."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False: Torso(space, *layers, layer_norm, config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True), config.layer_norm)
    kind = Actor if isinstance(env.action_space, Discrete) else TanhActor
    return kind(env.action_space, actor), Critic(critic)


def optimizer(config):
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, eps_root=1e-20))
    rates = {"actor": config.actor_learning_rate, "critic": config.learning_rate}
    rates |= {"log_alpha": config.alpha_learning_rate}
    return optax.partition({name: adam(rate) for name, rate in rates.items()}, {name: name for name in rates})


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box | Discrete, bounded=True, normalized=config.normalize_obs)
    if isinstance(env.action_space, Discrete) and (config.calibrated or config.diversity_coef):
        raise ValueError("calibrated and diversity_coef are for continuous actions: leave them off")
    if config.diversity_coef and config.num_critics < 2:
        raise ValueError("diversity_coef compares critics: it needs a num_critics of at least 2")


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), encoded(env, zeros(env.action_space))
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    params["log_alpha"] = jnp.log(jnp.float32(config.initial_alpha))
    return State(
        params=params,
        target_params=params["critic"],
        opt_state=optimizer(config).init(params),
        obs_stats=statistics(env.observation_space),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def encoded(env, action):
    """Actions as the critics see them."""
    return jax.nn.one_hot(action, env.action_space.n) if isinstance(env.action_space, Discrete) else action


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`; nothing else is recorded."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], normalized(config, state, obs))
    return rescale(env.action_space, pi.squash(pi.mode() if deterministic else pi.sample(key))), None


def weighed(config, env, params, obs, noise):
    """Actions of the policy `[K, B, A]`, their log-probabilities and weights `[K, B]`: a mean over it is their sum.

    They are samples by noise `[K, B, A]`, and of discrete actions all.
    """
    pi = networks(config, env)[0].apply(params, obs)
    if isinstance(env.action_space, Discrete):
        log_p = jnp.moveaxis(jax.nn.log_softmax(pi.logits), -1, 0)
        every = jnp.broadcast_to(jnp.eye(len(log_p))[:, None], (*log_p.shape, len(log_p)))
        return every, log_p, jnp.exp(log_p)
    u = pi.mean + jnp.exp(pi.log_std) * noise
    log_p = pi.log_prob(u)
    return jnp.tanh(u), log_p, jnp.full(log_p.shape, 1.0 / len(noise))


def penalty(params, fixed, config, env, batch, key):
    """`log sum_a exp Q(s, a)` of each critic over legal actions, `[E, B]`; of continuous ones by importance weights.

    These are uniform ones and those of the policy at this state and at the next, all of them valued at this state.
    """
    q = jax.vmap(networks(config, env)[1].apply, in_axes=(0, None, None))
    if isinstance(env.action_space, Discrete):
        every = weighed(config, env, fixed["actor"], batch.obs, None)[0]
        value = jnp.moveaxis(q(params["critic"], batch.obs, every), 1, -1)
        return jax.nn.logsumexp(legal_values(value, mask_of(batch.obs)), axis=-1)
    any_key, here_key, next_key = jax.random.split(key, 3)
    shape = config.num_actions, *batch.action.shape
    uniform = jax.random.uniform(any_key, shape, minval=-1.0, maxval=1.0)
    here = weighed(config, env, fixed["actor"], batch.obs, jax.random.normal(here_key, shape))
    there = weighed(config, env, fixed["actor"], batch.next_obs, jax.random.normal(next_key, shape))
    log_density = jnp.full(shape[:2], -shape[-1] * jnp.log(2.0))
    value = q(params["critic"], batch.obs, jnp.concatenate([uniform, here[0], there[0]]))
    if config.calibrated:
        value = value.at[:, config.num_actions :].max(batch.to_go)
    value -= jnp.concatenate([log_density, here[1], there[1]])
    return jax.nn.logsumexp(value, axis=1) - jnp.log(value.shape[1])


def likeness(params, config, env, batch):
    """How alike the gradients of the critics by the action are, the mean cosine times E; EDAC's equation 4."""
    _, critic = networks(config, env)
    value = lambda action, params: critic.apply(params, batch.obs, action).sum()
    g = jax.vmap(jax.grad(value), in_axes=(None, 0))(batch.action, params["critic"])
    g /= jnp.sqrt(jnp.sum(g**2, axis=-1, keepdims=True) + 1e-20)
    cosines = jnp.einsum("iba,jba->bij", g, g)
    return (cosines.sum((1, 2)) - jnp.trace(cosines, axis1=1, axis2=2)).mean() / (config.num_critics - 1)


def critic_loss(params, fixed, target_params, config, env, batch, noise, key):
    """Loss of the critics, equation 4, its penalty, and their values `[E, B]`."""
    _, critic = networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    action, log_prob, weight = weighed(config, env, fixed["actor"], batch.next_obs, noise[None])
    next_q = q(target_params, batch.next_obs, action).min(axis=0)
    next_value = jnp.sum(weight * (next_q - jnp.exp(fixed["log_alpha"]) * log_prob), axis=0)
    target = config.reward_scale * batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = q(params["critic"], batch.obs, batch.action)
    loss = jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean()
    gap = jnp.float32(0)
    if config.num_actions:
        gap = (penalty(params, fixed, config, env, batch, key) - value).sum(axis=0).mean()
    if config.diversity_coef:
        loss += config.diversity_coef * likeness(params, config, env, batch)
    return loss + config.cql_coef * gap, gap, value


def actor_loss(params, fixed, config, env, batch, noise):
    """Loss of the actor, equation 9 of SAC, and its log-probabilities `[B]`."""
    _, critic = networks(config, env)
    action, log_prob, weight = weighed(config, env, params["actor"], batch.obs, noise[None])
    q = jax.vmap(critic.apply, in_axes=(0, None, None))(fixed["critic"], batch.obs, action).min(axis=0)
    loss = jnp.sum(weight * (jnp.exp(fixed["log_alpha"]) * log_prob - q), axis=0)
    return loss.mean(), jnp.sum(weight * log_prob, axis=0)


def alpha_loss(log_alpha, config, env, log_prob):
    """Loss of the temperature, equation 18 of SAC."""
    if isinstance(env.action_space, Discrete):
        target_entropy = config.target_share * jnp.log(env.action_space.n)
    else:
        free = num_free(env.action_space)  # a dimension that is constant may as well be uniform
        target_entropy = config.target_entropy * free + (size(env.action_space) - free) * jnp.log(2.0)
    return (jnp.exp(log_alpha) * (-log_prob - target_entropy)).mean()


def loss(params, fixed, target_params, config, env, batch, key):
    """The losses of critics and actor for one minibatch `[B]`, neither with a gradient for the other's parameters.

    `fixed` are the same parameters where a loss takes them as given.
    """
    noise_key, penalty_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (2, *batch.action.shape))
    q_loss, gap, value = critic_loss(params, fixed, target_params, config, env, batch, noise[0], penalty_key)
    pi_loss, log_prob = actor_loss(params, fixed, config, env, batch, noise[1])
    metrics = {
        "critic_loss": q_loss,
        "penalty": gap,
        "actor_loss": pi_loss,
        "value": value.mean(),
        "entropy": -log_prob.mean(),
        "alpha": jnp.exp(params["log_alpha"]),
    }
    return q_loss + pi_loss, (log_prob, metrics)


def update(config, env, state, data):
    """Gradient steps on random minibatches of `data`, columns `[M, ...]`; the environment is not stepped."""
    key, sample_key, loss_key = jax.random.split(state.key, 3)
    indices = jax.random.randint(sample_key, (config.gradient_steps, config.batch_size), 0, num_rows(data))
    seen = update_statistics(statistics(env.observation_space), data.obs) if config.normalize_obs else state.obs_stats
    state, done = replace(state, obs_stats=seen), data.terminated | data.truncated
    to_go = returns_to_go(config.reward_scale * data.reward, done, config.gamma) if config.calibrated else None
    elements = Batch(data.obs, encoded(env, data.action), data.reward, data.next_obs, data.terminated, to_go)

    def step(carry, x):
        params, target_params, opt_state = carry
        index, key = x
        batch = jax.tree.map(lambda x: x[index], elements)
        obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
        batch = replace(batch, obs=obs, next_obs=next_obs)
        # What a loss takes as given is an argument of its own, no stop_gradient: gradients through training see it.
        inputs = params, params, target_params, config, env, batch, key
        grads, (log_prob, metrics) = jax.grad(loss, has_aux=True)(*inputs)
        grads["log_alpha"] = jax.grad(alpha_loss)(params["log_alpha"], config, env, log_prob)
        updates, opt_state = optimizer(config).update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        target_params = optax.incremental_update(params["critic"], target_params, config.tau)
        return (params, target_params, opt_state), metrics

    carry = state.params, state.target_params, state.opt_state
    (params, target_params, opt_state), metrics = jax.lax.scan(
        step, carry, (indices, jax.random.split(loss_key, config.gradient_steps))
    )
    metrics = {**no_episodes(), **jax.tree.map(jnp.mean, metrics)}
    return State(params, target_params, opt_state, state.obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
