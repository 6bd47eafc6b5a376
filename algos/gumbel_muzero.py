"""AlphaZero with the Gumbel policy: search over true positions, for games of two players that both see.

    python algos/gumbel_muzero.py --env pgx/connect_four

Reference: Danihelka et al. 2022, Policy improvement by planning with Gumbel, ICLR 2022; Silver et al. 2017, Mastering
Chess and Shogi by Self-Play with a General Reinforcement Learning Algorithm, arXiv:1712.01815. It needs the extra
`rlx[search]`.

Axes: T time, N games, B minibatch, O observation, A moves.

One network moves for both players, each time after a search, and learns the improved policy of the search and the
lambda-return of the game. The value is of the player to move; the sign of the other's stands in `targets`, as in the
search. `act`, as in evaluations against the opponent of the environment, is the policy without a search:
`rlx.planning.player` searches.

Deviations from the papers:
- Nothing is replayed: each update learns from the moves that it has made. No model is learned, as in AlphaZero.
- Games begin after a few random moves, so that the policy also knows positions that good play does not come to; in
  place of the noise and the temperature of AlphaZero.
- Policy and value are separate networks, without batch norm and without residuals.
- Games that an update leaves unfinished bootstrap from the value; lambda 1 is the outcome elsewhere.
- The advantage of the lambda-return is not used: the policy learns from the search alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlx.advantages import gae
from rlx.clipping import clip_by_global_norm, global_norm
from rlx.env import Env, EnvState
from rlx.games import Mirror, versus
from rlx.networks import TORSOS, Actor, Critic, Torso, initialize
from rlx.objectives import explained_variance
from rlx.planning import search, turn_sign
from rlx.pytree import num_rows, pytree, static, traced
from rlx.rollout import check_divides, episode_metrics, flatten, gather, minibatches, reset, rollout
from rlx.spaces import check_spaces, visible, zeros
from rlx.train import training_progress


@pytree
class Config:
    total_steps: int = static(500_000)  # moves of the whole run, rounded up to whole updates
    num_envs: int = static(64)  # N
    num_steps: int = static(16)  # T, moves of each game between updates
    num_epochs: int = static(2)
    num_minibatches: int = static(4)
    num_simulations: int = static(32)  # of the search before each move
    num_considered: int = static(16)  # moves that sequential halving begins with
    num_random: int = static(4, at_least=0)  # most random moves before those of a game that is learned from
    learning_rate: float = traced(2e-3, at_least=0)
    anneal_learning_rate: bool = True
    gamma: float = traced(1.0, at_least=0, at_most=1)
    gae_lambda: float = traced(1.0, at_least=0, at_most=1)
    value_coef: float = traced(1.0, at_least=0)
    max_grad_norm: float = traced(1.0, above=0)
    adam_epsilon: float = traced(1e-5, above=0)
    hidden_sizes: tuple[int, ...] = static((128,))
    torso: str = static("mlp", one_of=TORSOS)  # convolutions before them, for image observations
    conv_features: tuple[int, ...] = static(())  # their filters; with mlp of 3 x 3 convolutions
    activation: str = static("relu")

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps


@pytree
class State:
    params: dict  # of policy and value
    opt_state: optax.OptState
    env_state: EnvState  # [N], of games that both sides of the policy play
    num_updates: jax.Array
    key: jax.Array


@pytree
class Batch:
    obs: jax.Array
    weights: jax.Array  # [B, A], the improved policy
    target: jax.Array


def networks(config, env):
    """Actor and critic, separate and of the same shape."""
    torso = lambda x: Torso(x, config.hidden_sizes, config.activation, config.conv_features, kind=config.torso)
    actor = torso(visible(env.observation_space))
    critic = torso(visible(env.observation_space, privileged=True))
    return Actor(env.action_space, actor), Critic(critic)


def optimizer(config, learning_rate):
    clip = clip_by_global_norm(config.max_grad_norm)
    adam = optax.adam(learning_rate, eps=config.adam_epsilon, eps_root=1e-20)  # to be differentiable at gradients of 0
    return optax.flatten(optax.chain(clip, adam))  # all parameters as one vector: a few large operations


def check(config, env):
    """Raises ValueError for settings that do not fit each other or the environment."""
    check_spaces(env)
    if versus(env).game.hidden:
        raise ValueError("a search looks at what the other hides in this game: use ppo_selfplay")
    check_divides(config.steps_per_update, config.num_minibatches)


def mirrored(config, env):
    """The game as the environment in which each step is a move."""
    return Env(Mirror(versus(env).game, config.num_random), (), num_starts=config.num_envs)


def init(config, env, key):
    check(config, env)
    key, params_key, env_key = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    params = initialize(params_key, zeros(env.observation_space), actor=(actor, 0.01), critic=(critic, 1.0))
    return State(
        params=params,
        opt_state=optimizer(config, config.learning_rate).init(params),
        env_state=reset(mirrored(config, env), env_key, config.num_envs),
        num_updates=jnp.int32(0),
        key=key,
    )


def act(config, env, state, obs, key, deterministic=False):
    """The move for obs `[N, O]`, without a search."""
    actor, _ = networks(config, env)
    pi = actor.apply(state.params["actor"], obs)
    return pi.mode() if deterministic else pi.sample(key), None


def judge(config, env, params, obs):
    """The logits of all moves and the value of observations, both for the player to move: what a search needs."""
    actor, critic = networks(config, env)
    return actor.apply(params["actor"], obs).logits, critic.apply(params["critic"], obs)


def cloning_loss(config, env, params, obs, action, key):
    """Loss `[B]` of demonstrated actions: how unlikely they are."""
    actor, _ = networks(config, env)
    return -actor.apply(params["actor"], obs).log_prob(action)


def searched(config, env, state, position, key):
    """The moves that a search finds in positions `[N, ...]`, and the plan."""
    judged = partial(judge, config, env, state.params)
    kept = {"gamma": config.gamma, "num_considered": config.num_considered}
    plan = search(versus(env).game, judged, position, key, config.num_simulations, **kept)
    return plan.action, plan


def loss(params, config, env, batch):
    """Loss of one minibatch `[B]`, and its metrics."""
    actor, critic = networks(config, env)
    pi, value = actor.apply(params["actor"], batch.obs), critic.apply(params["critic"], batch.obs)
    log_weights = jnp.log(jnp.where(batch.weights > 0, batch.weights, 1.0))
    policy_loss = jnp.sum(batch.weights * (log_weights - jax.nn.log_softmax(pi.logits)), axis=-1).mean()
    value_loss = 0.5 * jnp.mean((value - batch.target) ** 2)
    return policy_loss + config.value_coef * value_loss, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": pi.entropy().mean(),
    }


def targets(config, env, state, traj):
    """What there is to learn from the moves `[T, N]`, and the values before."""
    game = versus(env).game
    obs, next_obs = (jax.vmap(jax.vmap(game.observe))(x) for x in (traj.obs, traj.next_obs))
    value, next_value = (judge(config, env, state.params, x)[1] for x in (obs, next_obs))
    discount = config.gamma * turn_sign(traj.info["turn"], jax.vmap(jax.vmap(game.turn))(traj.next_obs))
    advantage = gae(traj.reward, value, next_value, traj.terminated, traj.done, discount, config.gae_lambda)
    return Batch(obs, traj.recorded.weights, advantage + value), value


def update(config, env, state):
    """The moves of N games, each after a search, and the epochs of gradient steps on them."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    policy = partial(searched, config, env, state)
    env_state, traj = rollout(mirrored(config, env), policy, state.env_state, rollout_key, config.num_steps)
    data, value = targets(config, env, state, traj)
    elements = flatten(data)
    progress = training_progress(config, state)
    learning_rate = config.learning_rate * jnp.where(config.anneal_learning_rate, 1.0 - progress, 1.0)

    def step(carry, batch):
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, config, env, batch)
        metrics["grad_norm"] = global_norm(grads)
        updates, opt_state = optimizer(config, learning_rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def epoch(carry, index):
        return jax.lax.scan(step, carry, gather(elements, index))

    indices = minibatches(shuffle_key, num_rows(elements), config.num_minibatches, config.num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), indices)
    metrics = {
        **episode_metrics(traj),
        **jax.tree.map(jnp.mean, metrics),
        "search_value": jnp.abs(traj.recorded.value).mean(),
        "explained_variance": explained_variance(value, data.target),
        "learning_rate": learning_rate,
    }
    return State(params, opt_state, env_state, state.num_updates + 1, key), metrics


if __name__ == "__main__":
    from rlx.cli import run_file

    run_file(__file__)
