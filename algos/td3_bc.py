"""TD3+BC and ReBRAC from data alone: a deterministic policy held near the actions of the data, for continuous actions.

    python algos/td3_bc.py --env Pendulum-v1 --data demonstrations.npz

Reference: Fujimoto & Gu 2021, A Minimalist Approach to Offline Reinforcement Learning, arXiv:2106.06860; ReBRAC:
Tarasov et al. 2023, Revisiting the Minimalist Approach to Offline Reinforcement Learning, arXiv:2305.09836.

Axes: M steps of data, G gradient steps, P critic steps to one of the actor, B minibatch, E critics, O observation, A
action.

Nothing is stepped: `total_steps` are gradient steps of the critics.

Deviations from the papers:
- Squared distances between actions are means over their dimensions, as TD3+BC has them; the coefficients of ReBRAC,
  whose distances are sums, are larger here by a factor A.
- The distance to the data's next action counts where an episode goes on: after its last step there is none.
- The gradient of the actor is that at the last of its P minibatches.
- Kernels start orthogonal.
- Steps cut by a time limit are kept, and bootstrap from the value of their true successor.
"""

import jax
import jax.numpy as jnp
import optax

from rlx.networks import TORSOS, Critic, DeterministicActor, Torso, initialize
from rlx.normalize import Statistics, normalize, statistics, update_statistics
from rlx.pytree import num_rows, pytree, replace, static, traced
from rlx.rollout import no_episodes
from rlx.spaces import Box, check_spaces, rescale, visible, zeros

VARIANTS = {
    "rebrac": {
        "q_coef": 1.0,
        "actor_coef": 0.01,
        "critic_coef": 0.01,
        "actor_value": "min",
        "learning_rate": 1e-3,
        "batch_size": 1024,
        "hidden_sizes": (256, 256, 256),
        "normalize_obs": False,
        "layer_norm": True,
    }
}


@pytree
class Config:
    total_steps: int = static(1_000_000)  # gradient steps of the critics, rounded up to whole updates
    gradient_steps: int = static(1_000, at_least=1)  # G
    actor_period: int = static(2, at_least=1)  # P
    batch_size: int = static(256, at_least=1)  # B
    num_critics: int = static(2, at_least=1)  # E
    learning_rate: float = traced(3e-4, at_least=0)
    q_coef: float = traced(2.5, at_least=0)  # of the value, whose mean size is 1, in the actor's loss
    actor_coef: float = traced(1.0, at_least=0)  # of the squared distance to the data's action there
    critic_coef: float = traced(0.0, at_least=0)  # of that to the data's next action in the target
    actor_value: str = static("first", one_of=("first", "min"))  # of the critics
    target_noise: float = traced(0.2, at_least=0)  # standard deviation of that of actions in the target
    noise_bound: float = traced(0.5, at_least=0)
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way that the targets go with each actor step
    reward_scale: float = traced(1.0, above=0)
    normalize_obs: bool = static(True)  # by the statistics of the data
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
    params: dict  # of actor and critics [E]
    target_params: dict  # likewise
    opt_state: dict  # likewise
    obs_stats: Statistics
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array  # in unit coordinates
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    next_action: jax.Array  # of the data
    continued: jax.Array  # whether there is one


def networks(config, env):
    """Actor and critic of the same shape; all critics apply one module, to parameters of their own."""
    layers = config.hidden_sizes, config.activation, config.conv_features
    torso = lambda space, layer_norm=False: Torso(space, *layers, layer_norm, config.torso)
    actor = torso(visible(env.observation_space, config.actor_obs))
    critic = torso(visible(env.observation_space, config.critic_obs, privileged=True), config.layer_norm)
    return DeterministicActor(env.action_space, actor), Critic(critic)


def optimizer(config):
    # The root's epsilon makes it differentiable at gradients of 0.
    return optax.flatten(optax.adam(config.learning_rate, eps_root=1e-20))


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True, normalized=config.normalize_obs)
    if config.gradient_steps % config.actor_period:
        raise ValueError(
            f"gradient_steps = {config.gradient_steps} is not a multiple of actor_period = {config.actor_period}"
        )


def init(config, env, key):
    check(config, env)
    key, actor_key, critic_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.action_space)
    params = initialize(actor_key, obs, actor=(actor, 0.01))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    return State(
        params=params,
        target_params=params,
        opt_state={name: optimizer(config).init(x) for name, x in params.items()},
        obs_stats=statistics(env.observation_space),
        num_updates=jnp.int32(0),
        key=key,
    )


def normalized(config, state, obs):
    """What the networks see of an observation."""
    return normalize(state.obs_stats, obs) if config.normalize_obs else obs


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, always the same; nothing else is recorded."""
    actor, _ = networks(config, env)
    return rescale(env.action_space, actor.apply(state.params["actor"], normalized(config, state, obs))), None


def cloning_loss(config, env, params, obs, action, key):
    """Squared distance to demonstrated actions, in unit coordinates, a mean over their dimensions `[B]`."""
    actor, _ = networks(config, env)
    return jnp.mean((actor.apply(params["actor"], obs) - action) ** 2, axis=-1)


def rows(data, index):
    """The steps of data at `index` `[B]`, each with the action after it."""
    after = jnp.minimum(index + 1, num_rows(data) - 1)
    found, done = jax.tree.map(lambda x: x[index], data), (data.terminated | data.truncated)[index]
    return Batch(found.obs, found.action, found.reward, found.next_obs, found.terminated, data.action[after], ~done)


def critic_loss(params, target_params, config, env, batch, noise):
    """Loss of the critics, and their values `[E, B]`; ReBRAC's equation 5, which is TD3's without a coefficient."""
    actor, critic = networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    noise = jnp.clip(config.target_noise * noise, -config.noise_bound, config.noise_bound)
    action = jnp.clip(actor.apply(target_params["actor"], batch.next_obs) + noise, -1.0, 1.0)
    distance = jnp.where(batch.continued, jnp.mean((action - batch.next_action) ** 2, axis=-1), 0.0)
    next_value = q(target_params["critic"], batch.next_obs, action).min(axis=0) - config.critic_coef * distance
    target = config.reward_scale * batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = q(params, batch.obs, batch.action)
    return jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean(), value


def actor_loss(params, fixed, config, env, batch):
    """Loss of the actor, TD3+BC's equation 3, and the mean squared distance of its actions to those of the data.

    `fixed` are actor and critics as they are: the size of the values has no gradient.
    """
    actor, critic = networks(config, env)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))
    chosen = lambda q: q[0] if config.actor_value == "first" else q.min(axis=0)
    value = lambda params: chosen(q(fixed["critic"], batch.obs, actor.apply(params, batch.obs)))
    size = jnp.abs(value(fixed["actor"])).mean()
    distance = cloning_loss(config, env, {"actor": params}, batch.obs, batch.action, None).mean()
    return config.actor_coef * distance - config.q_coef * value(params).mean() / (size + 1e-8), distance


def update(config, env, state, data):
    """Gradient steps on random minibatches of `data`, columns `[M, ...]`; the environment is not stepped."""
    key, sample_key, noise_key = jax.random.split(state.key, 3)
    shape = config.gradient_steps // config.actor_period, config.actor_period, config.batch_size
    indices = jax.random.randint(sample_key, shape, 0, num_rows(data))
    seen = update_statistics(statistics(env.observation_space), data.obs) if config.normalize_obs else state.obs_stats
    state, adam = replace(state, obs_stats=seen), optimizer(config)

    def batch_of(index):
        batch = rows(data, index)
        obs, next_obs = normalized(config, state, batch.obs), normalized(config, state, batch.next_obs)
        return replace(batch, obs=obs, next_obs=next_obs)

    def critic_step(carry, x):
        params, opt_state, target_params = carry
        index, key = x
        batch, noise = batch_of(index), jax.random.normal(key, (config.batch_size, *env.action_space.shape))
        inputs = params, target_params, config, env, batch, noise
        (q_loss, value), grads = jax.value_and_grad(critic_loss, has_aux=True)(*inputs)
        updates, opt_state = adam.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state, target_params), (q_loss, value.mean())

    def step(carry, x):
        params, target_params, opt_state = carry
        inner = params["critic"], opt_state["critic"], target_params
        (critic, critic_opt, _), (q_loss, value) = jax.lax.scan(critic_step, inner, x)
        params = params | {"critic": critic}
        inputs = params["actor"], params, config, env, batch_of(x[0][-1])
        (pi_loss, distance), grads = jax.value_and_grad(actor_loss, has_aux=True)(*inputs)
        updates, actor_opt = adam.update(grads, opt_state["actor"])
        params = params | {"actor": optax.apply_updates(params["actor"], updates)}
        target_params = optax.incremental_update(params, target_params, config.tau)
        metrics = {"critic_loss": q_loss.mean(), "actor_loss": pi_loss, "value": value.mean(), "distance": distance}
        return (params, target_params, {"actor": actor_opt, "critic": critic_opt}), metrics

    carry = state.params, state.target_params, state.opt_state
    keys = jax.random.split(noise_key, shape[:2])
    (params, target_params, opt_state), metrics = jax.lax.scan(step, carry, (indices, keys))
    metrics = {**no_episodes(), **jax.tree.map(jnp.mean, metrics)}
    return State(params, target_params, opt_state, state.obs_stats, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
