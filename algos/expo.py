"""EXPO: a policy that imitates, one that edits its actions, and the best of both by value, for continuous actions.

    python algos/expo.py --env Pendulum-v1 --data demonstrations.npz

Reference: Dong et al. 2025, EXPO: Stable Reinforcement Learning with Expressive Policies, arXiv:2507.07986, and a fork
of its code. The critics are those of RLPD, see rlpd.py.

Axes: T time, N environments, G gradient steps, P critic steps to one of the actors, B minibatch, E critics, K
candidates, O observation, A action.

At a state the base policy, a flow, gives `num_base` actions, and a normal policy edits the first `num_edits` of them by
at most `edit_size`. Whichever of these K the target critics value most is done, and is what values bootstrap from. The
base policy learns by imitation only, of the data and of what was done; the edits follow the critics' gradient.

Deviations from the paper:
- The base policy is a flow of Euler steps, not a diffusion of 10 denoising steps.
- N environments take T steps each, then the gradient steps for all of these follow.
- The target entropy is that of an edit in units of `edit_size`, so that it means the same for any.
- Kernels start orthogonal, and observations are as they are.
- Steps cut by a time limit bootstrap from the value of their true successor.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.env import EnvState
from rlx.flow import euler, interpolate, velocity_loss
from rlx.networks import Critic, TanhActor, Torso, Velocity, initialize
from rlx.pytree import num_rows, pytree, static, traced
from rlx.replay import Replay, check_ratio, check_replay, insert, replay, sample, take
from rlx.rollout import episode_metrics, flatten, reset, rollout
from rlx.spaces import Box, check_spaces, num_free, rescale, size, visible, zeros


@pytree
class Config:
    total_steps: int = static(1_000_000)  # environment steps of the whole run, rounded up to whole updates
    warmup_steps: int = static(5_000, at_least=0)  # of these, the first, with random actions and nothing learned
    num_envs: int = static(1)  # N
    num_steps: int = static(1)  # T, steps of each environment between updates
    utd_ratio: float = static(4.0, above=0)  # updates to data: gradient steps per environment step
    capacity: int = static(1_000_000)  # transitions that the buffer keeps
    actor_period: int = static(4, at_least=1)  # P
    batch_size: int = static(256)  # B
    data_share: float = static(0.5, at_least=0)  # of each minibatch, that is of the data
    num_critics: int = static(10)  # E
    num_targets: int = static(2, at_least=1)  # of them, drawn anew each time, whose minimum is in the target
    num_base: int = static(8, at_least=1)  # actions of the base policy among the candidates
    num_edits: int = static(8, at_least=0)  # of them, that are edited as well
    edit_size: float = traced(0.3, above=0)  # largest edit, in unit coordinates
    flow_steps: int = static(8, at_least=1)  # of the base policy
    base_rate: float = traced(0.003, at_least=0, at_most=1)  # of the average of its weights that acts
    learning_rate: float = traced(3e-4, at_least=0)
    alpha_learning_rate: float = traced(3e-4, at_least=0)  # 0 keeps the temperature at its initial value
    initial_alpha: float = traced(1.0, at_least=0)
    target_entropy: float = -0.5  # nats per action dimension, in unit coordinates; log 2 = 0.69 is uniform
    gamma: float = traced(0.99, at_least=0, at_most=1)
    tau: float = traced(0.005, at_least=0, at_most=1)  # part of the way to the critics that their targets go each time
    reward_scale: float = traced(1.0, above=0)
    layer_norm: bool = static(True)  # in the critics
    hidden_sizes: tuple[int, ...] = static((256, 256))
    activation: str = static("relu")

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
    params: dict  # of the base policy ("actor"), edits, critics [E] and log_alpha
    target_params: dict  # of critics [E]
    average: dict  # of the base policy, which acts
    opt_state: dict
    env_state: EnvState  # [N]
    replay: Replay
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array
    action: jax.Array  # in unit coordinates
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array


def networks(config, env):
    """Base policy, edits and critic; all critics apply one module, to parameters of their own."""
    torso = lambda norm=False: Torso(visible(env.observation_space), config.hidden_sizes, config.activation, (), norm)
    return Velocity(torso(), 1.0), TanhActor(env.action_space, torso()), Critic(torso(config.layer_norm))


def optimizer(config):
    """The optimizers of policies, critics and temperature, by name."""
    # The root's epsilon makes it differentiable at gradients of 0.
    adam = lambda learning_rate: optax.flatten(optax.adam(learning_rate, eps_root=1e-20))
    learned = {name: adam(config.learning_rate) for name in ("actor", "edit", "critic")}
    return learned | {"log_alpha": adam(config.alpha_learning_rate)}


def check(config, env):
    """Raises ValueError for settings that cannot work."""
    check_spaces(env, actions=Box, bounded=True)
    check_replay(config.total_steps, config.init_steps, config.batch_size, config.capacity)
    check_ratio(config.utd_ratio, config.steps_per_update)
    if config.data_share > 1:
        raise ValueError(f"data_share = {config.data_share}: give at most 1")
    if config.num_edits > config.num_base:
        raise ValueError(f"num_edits = {config.num_edits} of num_base = {config.num_base} actions: give at most that")
    if config.num_targets > config.num_critics:
        raise ValueError(f"num_targets = {config.num_targets} of num_critics = {config.num_critics}: give at most that")
    if config.gradient_steps % config.actor_period:
        raise ValueError(
            f"utd_ratio * num_envs * num_steps = {config.gradient_steps} is not a multiple of actor_period = "
            f"{config.actor_period}"
        )


def init(config, env, key):
    check(config, env)
    key, actor_key, edit_key, critic_key, env_key, warmup_key = jax.random.split(key, 6)
    num_steps = config.init_steps // config.num_envs
    env_state, traj = rollout(env, partial(explore, env), reset(env, env_key, config.num_envs), warmup_key, num_steps)
    elements = flatten(kept(traj))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)
    base, edit, critic = networks(config, env)
    obs, action = zeros(env.observation_space), zeros(env.action_space)
    params = initialize(actor_key, obs, actor=(base, 0.01, action, jnp.zeros(())))
    params |= initialize(edit_key, obs, edit=(edit, 0.01, action))
    params |= jax.vmap(lambda key: initialize(key, obs, critic=(critic, 1.0, action)))(
        jax.random.split(critic_key, config.num_critics)
    )
    params["log_alpha"] = jnp.log(jnp.float32(config.initial_alpha))
    return State(
        params=params,
        target_params=params["critic"],
        average=params["actor"],
        opt_state={name: adam.init(params[name]) for name, adam in optimizer(config).items()},
        env_state=env_state,
        replay=insert(replay(example, config.capacity, spare=config.steps_per_update * env.num_agents), elements),
        num_updates=jnp.int32(0),
        key=key,
    )


def explore(env, obs, key):
    """Uniformly random actions, as `act` gives them."""
    action = jax.random.uniform(key, (num_rows(obs), *env.action_space.shape), minval=-1.0, maxval=1.0)
    return rescale(env.action_space, action), action


def candidates(config, env, actor, edit, obs, key):
    """Actions to choose among, in unit coordinates `[K, B, A]`: those of the base policy, and edits of the first."""
    base, editor, _ = networks(config, env)
    noise_key, edit_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (config.num_base, num_rows(obs), size(env.action_space)))
    actions = jnp.clip(euler(partial(base.apply, actor, obs), noise, config.flow_steps), -1.0, 1.0)
    if not config.num_edits:
        return actions
    first = actions[: config.num_edits]
    keys = jax.random.split(edit_key, config.num_edits)
    moves = jax.vmap(lambda a, key: jnp.tanh(editor.apply(edit, obs, a).sample(key)))(first, keys)
    return jnp.concatenate([actions, jnp.clip(first + config.edit_size * moves, -1.0, 1.0)])


def best_of(config, env, target_params, obs, actions, key):
    """The action `[B, A]` of those `[K, B, A]` that some of the target critics value most, and that value `[B]`."""
    critic = networks(config, env)[2]
    chosen = jax.random.permutation(key, config.num_critics)[: config.num_targets]
    some = jax.tree.map(lambda x: x[chosen], target_params)
    q = jax.vmap(lambda a: jax.vmap(critic.apply, (0, None, None))(some, obs, a).min(axis=0))(actions)
    best = q.argmax(axis=0)
    return jnp.take_along_axis(actions, best[None, :, None], axis=0)[0], q.max(axis=0)


def act(config, env, state, obs, key, deterministic=False):
    """The environment's action for obs `[N, O]`, and the same in unit coordinates; both ways it is the best of K."""
    keys = jax.random.split(key)
    actions = candidates(config, env, state.average, state.params["edit"], obs, keys[0])
    action, _ = best_of(config, env, state.target_params, obs, actions, keys[1])
    return rescale(env.action_space, action), action


def kept(traj):
    """What the buffer keeps of transitions."""
    return Batch(traj.obs, traj.recorded, traj.reward, traj.next_obs, traj.terminated)


def critic_loss(params, fixed, average, target_params, config, env, batch, key):
    """Loss of the critics, and their values `[E, B]`; the target is the value of what would be done next."""
    critic = networks(config, env)[2]
    draw_key, subset_key = jax.random.split(key)
    actions = candidates(config, env, average, fixed["edit"], batch.next_obs, draw_key)
    _, next_value = best_of(config, env, target_params, batch.next_obs, actions, subset_key)
    target = config.reward_scale * batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)
    value = jax.vmap(critic.apply, in_axes=(0, None, None))(params, batch.obs, batch.action)
    return jax.vmap(optax.l2_loss, in_axes=(0, None))(value, target).sum(axis=0).mean(), value


def cloning_loss(config, env, params, obs, action, key):
    """Loss `[B]` of demonstrated actions in unit coordinates: flow matching, at one noise and time each."""
    noise_key, time_key = jax.random.split(key)
    noise, t = jax.random.normal(noise_key, action.shape), jax.random.uniform(time_key, (len(action),))
    x = interpolate(noise, action, t)
    return velocity_loss(networks(config, env)[0].apply(params["actor"], obs, x, t), noise, action)


def edit_loss(params, fixed, config, env, batch, key):
    """Loss of the edits of actions that were done, and their log-probabilities in units of `edit_size`, `[B]`."""
    _, editor, critic = networks(config, env)
    pi = editor.apply(params, batch.obs, batch.action)
    u = pi.sample(key)
    log_prob = pi.log_prob(u)
    action = jnp.clip(batch.action + config.edit_size * jnp.tanh(u), -1.0, 1.0)
    q = jax.vmap(critic.apply, in_axes=(0, None, None))(fixed["critic"], batch.obs, action).mean(axis=0)
    return (jnp.exp(fixed["log_alpha"]) * log_prob - q).mean(), log_prob


def alpha_loss(log_alpha, config, env, log_prob):
    """Loss of the temperature, SAC's equation 18."""
    free = num_free(env.action_space)  # a dimension that is constant may as well be uniform
    target_entropy = config.target_entropy * free + (size(env.action_space) - free) * jnp.log(2.0)
    return (jnp.exp(log_alpha) * (-log_prob - target_entropy)).mean()


def update(config, env, state, data):
    """One rollout and the gradient steps that belong to it, on the buffer and on `data`, columns `[M, ...]`."""
    key, rollout_key, sample_key, data_key, noise_key = jax.random.split(state.key, 5)
    env_state, traj = rollout(env, partial(act, config, env, state), state.env_state, rollout_key, config.num_steps)
    buffer, adams = insert(state.replay, flatten(kept(traj))), optimizer(config)
    shape = config.gradient_steps // config.actor_period, config.actor_period
    num = round(config.data_share * config.batch_size)
    own = sample(buffer, sample_key, (*shape, config.batch_size - num))
    shown = jax.random.randint(data_key, (*shape, num), 0, num_rows(data))
    columns = Batch(data.obs, data.action, data.reward, data.next_obs, data.terminated)

    def batch_of(own, shown):
        both = take(buffer, own), jax.tree.map(lambda x: x[shown], columns)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), *both)

    def critic_step(carry, x):
        critic, target_params, opt_state, fixed, average = carry
        *index, key = x
        inputs = critic, fixed, average, target_params, config, env, batch_of(*index), key
        (q_loss, value), grads = jax.value_and_grad(critic_loss, has_aux=True)(*inputs)
        updates, opt_state = adams["critic"].update(grads, opt_state)
        critic = optax.apply_updates(critic, updates)
        target_params = optax.incremental_update(critic, target_params, config.tau)
        return (critic, target_params, opt_state, fixed, average), (q_loss, value.mean())

    def step(carry, x):
        params, target_params, average, opt_state = carry
        own, shown, keys = x
        inner = params["critic"], target_params, opt_state["critic"], params, average
        (critic, target_params, critic_opt, *_), (q_loss, value) = jax.lax.scan(
            critic_step, inner, (own, shown, keys[:-2])
        )
        params, opt_state = params | {"critic": critic}, opt_state | {"critic": critic_opt}
        batch = batch_of(own[-1], shown[-1])
        inputs = params["edit"], params, config, env, batch, keys[-1]
        (pi_loss, log_prob), edit_grad = jax.value_and_grad(edit_loss, has_aux=True)(*inputs)
        imitated = lambda actor: cloning_loss(config, env, {"actor": actor}, batch.obs, batch.action, keys[-2]).mean()
        base_loss, base_grad = jax.value_and_grad(imitated)(params["actor"])
        alpha_grad = jax.grad(alpha_loss)(params["log_alpha"], config, env, log_prob)
        for name, grad in (("actor", base_grad), ("edit", edit_grad), ("log_alpha", alpha_grad)):
            updates, opt = adams[name].update(grad, opt_state[name])
            params = params | {name: optax.apply_updates(params[name], updates)}
            opt_state = opt_state | {name: opt}
        average = optax.incremental_update(params["actor"], average, config.base_rate)
        metrics = {"critic_loss": q_loss.mean(), "edit_loss": pi_loss, "base_loss": base_loss, "value": value.mean()}
        metrics |= {"entropy": -log_prob.mean(), "alpha": jnp.exp(params["log_alpha"])}
        return (params, target_params, average, opt_state), metrics

    keys = jax.random.split(noise_key, (shape[0], shape[1] + 2))
    carry = state.params, state.target_params, state.average, state.opt_state
    (*learned, opt_state), metrics = jax.lax.scan(step, carry, (own, shown, keys))
    metrics = {**episode_metrics(traj), **jax.tree.map(jnp.mean, metrics)}
    return State(*learned, opt_state, env_state, buffer, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
