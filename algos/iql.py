"""Implicit Q-Learning from data alone, for discrete and continuous actions; AWAC and XQL as settings.

    python algos/iql.py --env Pendulum-v1 --data demonstrations.npz

Reference: Kostrikov et al. 2022, Offline Reinforcement Learning with Implicit Q-Learning, arXiv:2110.06169; AWAC: Nair
et al. 2020, arXiv:2006.09359; XQL: Garg et al. 2023, Extreme Q-Learning, arXiv:2301.02328.

Axes: M steps of data, G gradient steps, B minibatch, E critics, O observation, A action.

Nothing is stepped: `total_steps` are gradient steps.

Deviations from the paper:
- The actor's learning rate is constant; `--learning-rate cosine:3e-4:0` lets those of all networks fall.
- Actor, critics and value change together: each gradient is taken before any of them has moved.
- Discrete actions are given to the critics as one-hot vectors.
- The policy is a normal in unit coordinates, with a mean within [-1, 1] and a standard deviation that is free.
- Kernels start orthogonal, and observations may be normalised by the statistics of the data.
- Steps cut by a time limit are kept, and bootstrap from the value of their true successor.
- AWAC here learns from data alone; the value of a state is that of one action of the policy.
- XQL's weights are those of IQL with a `beta` of their own; its variant has 1 / `gumbel_scale`.
"""

import jax
import jax.numpy as jnp
import optax

from rlx.networks import TORSOS, Actor, Critic, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.rollout import no_episodes
from rlx.spaces import Box, Discrete, check_spaces, rescale, visible, zeros
from rlx.values import expectile_loss, gumbel_loss

VARIANTS = {
    "awac": {"method": "awac", "beta": 1.0},
    "xql": {"method": "xql", "beta": 0.5, "gumbel_scale": 2.0},
    "bc": {"beta": 0.0},
}


@pytree
class Config:
    total_steps: int = static(1_000_000)  # gradient steps of the whole run, rounded up to whole updates
    gradient_steps: int = static(1_000, at_least=1)  # G
    batch_size: int = static(256, at_least=1)  # B
    num_critics: int = static(2, at_least=1)  # E
    method: str = static("iql", one_of=("iql", "xql", "awac"))
    learning_rate: float = traced(3e-4, at_least=0)
    expectile: float = traced(0.7, at_least=0, at_most=1)  # of the values of actions that the value of a state is
    gumbel_scale: float = traced(2.0, above=0)  # b of XQL: near 0 the value of a state is that of its best action
    beta: float = traced(3.0, at_least=0)  # inverse temperature of the weights; 0 is behaviour cloning
    largest_weight: float = traced(100.0, at_least=0)
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way to the critics that their targets go each time
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(False)  # by the statistics of the data
    layer_norm: bool = static(False)  # in the critics
    hidden_sizes: tuple[int, ...] = static((256, 256))
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
    params: dict  # of actor, critics [E] and value
    target_params: dict  # of critics [E]
    opt_state: optax.OptState
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


def networks(config, env):
    """Actor, critic and value of the same shape; all critics apply one module, to parameters of their own."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False: Torso(space, *layers, layer_norm, config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True), config.layer_norm)
    return Actor(env.action_space, actor), Critic(critic)


def optimizer(config):
    # The root's epsilon makes it differentiable at gradients of 0.
    return optax.flatten(optax.adam(config.learning_rate, eps_root=1e-20))


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box | Discrete, bounded=True, normalized=config.normalize_obs)


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key, value_key = jax.random.split(key, 4)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), encoded(env, zeros(env.action_space))
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    params |= initialize(value_key, obs, value=(critic, 1.0)) if config.method != "awac" else {}
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


def policy(config, env, params, obs):
    """The distribution of actions in unit coordinates."""
    pi = networks(config, env)[0].apply(params, obs)
    if isinstance(env.action_space, Discrete):
        return pi
    return replace(pi, mean=jnp.tanh(pi.mean), log_std=jnp.clip(pi.log_std, -20.0, 2.0))


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`; nothing else is recorded."""
    pi = policy(config, env, state.params["actor"], normalized(config, state, obs))
    return rescale(env.action_space, pi.mode() if deterministic else pi.sample(key)), None


def cloning_loss(config, env, params, obs, action, key):
    """Negative log-likelihood of demonstrated actions, in unit coordinates `[B]`."""
    return -policy(config, env, params["actor"], obs).log_prob(action)


def values(params, config, env, obs, action):
    """What the critics say of actions, `[E, B]`."""
    return jax.vmap(networks(config, env)[1].apply, in_axes=(0, None, None))(params, obs, encoded(env, action))


def sampled(config, env, params, obs, key):
    """An action of the policy for each observation, within the bounds of the data."""
    action = policy(config, env, params, obs).sample(key)
    return action if isinstance(env.action_space, Discrete) else jnp.clip(action, -1.0, 1.0)


def advantage(params, fixed, target_params, config, env, batch, key):
    """How much better the actions of the data are `[B]`, the values of next states `[B]`, and the loss of the value.

    IQL, equations 4 and 5: values of states are an expectile of those of the data's actions. XQL: a soft maximum of
    them. AWAC: that of an action of the policy.
    """
    if config.method == "awac":
        here_key, next_key = jax.random.split(key)
        mine = [sampled(config, env, fixed["actor"], *x) for x in ((batch.obs, here_key), (batch.next_obs, next_key))]
        q = lambda action: values(fixed["critic"], config, env, batch.obs, action).min(axis=0)
        next_value = values(target_params, config, env, batch.next_obs, mine[1]).min(axis=0)
        return q(batch.action) - q(mine[0]), next_value, jnp.float32(0)
    value = networks(config, env)[1].apply
    u = lambda params: (
        values(target_params, config, env, batch.obs, batch.action).min(axis=0) - value(params["value"], batch.obs)
    )
    if config.method == "xql":
        value_loss = gumbel_loss(u(params), config.gumbel_scale)
    else:
        value_loss = expectile_loss(u(params), config.expectile)
    return u(fixed), value(fixed["value"], batch.next_obs), value_loss.mean()


def loss(params, fixed, target_params, config, env, batch, key):
    """The losses of actor, critics and value for one minibatch `[B]`, none with a gradient for another's parameters.

    `fixed` are the same parameters where a loss takes them as given. Critics: equation 6, actor: equation 7.
    """
    u, next_value, value_loss = advantage(params, fixed, target_params, config, env, batch, key)
    target = config.reward_scale * batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = values(params["critic"], config, env, batch.obs, batch.action)
    critic_loss = jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean()
    # The cap before the exponential as well, where infinity times 0 would be NaN.
    weight = jnp.exp(jnp.minimum(config.beta * u, jnp.log(config.largest_weight)))
    actor_loss = (weight * cloning_loss(config, env, params, batch.obs, batch.action, key)).mean()
    metrics = {
        "critic_loss": critic_loss,
        "value_loss": value_loss,
        "actor_loss": actor_loss,
        "value": value.mean(),
        "weight": weight.mean(),
    }
    return critic_loss + value_loss + actor_loss, metrics


def update(config, env, state, data):
    """Gradient steps on random minibatches of `data`, columns `[M, ...]`; the environment is not stepped."""
    key, sample_key, loss_key = jax.random.split(state.key, 3)
    indices = jax.random.randint(sample_key, (config.gradient_steps, config.batch_size), 0, num_rows(data))
    seen = update_statistics(statistics(env.observation_space), data.obs) if config.normalize_obs else state.obs_stats
    state = replace(state, obs_stats=seen)

    def step(carry, x):
        params, target_params, opt_state = carry
        index, key = x
        batch = jax.tree.map(lambda x: x[index], data)
        obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
        batch = replace(batch, obs=obs, next_obs=next_obs)
        # What a loss takes as given is an argument of its own, no stop_gradient: gradients through training see it.
        grads, metrics = jax.grad(loss, has_aux=True)(params, params, target_params, config, env, batch, key)
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
