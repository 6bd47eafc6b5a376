"""Returns of Rejax's PPO and SAC over many seeds, for peer_returns.py: trained in one program, acting at the mode."""

import json
import sys

import jax
import jax.numpy as jnp
from peers import rejax_ppo, rejax_sac
from peers.measure import PACKAGES
from provenance import versions
from rejax.evaluate import evaluate
from rejax.networks import DiscretePolicy, SquashedGaussianPolicy


def mode(policy, obs):
    """The action that a policy of Rejax would take without noise; it has none of its own."""
    action = policy._action_dist(obs).mode()
    if isinstance(policy, DiscretePolicy):
        return action
    if isinstance(policy, SquashedGaussianPolicy):
        return policy.action_loc + policy.action_scale * jnp.tanh(action)
    return jnp.clip(action, *policy.action_range)


def main(name: str, settings: dict, num_seeds: int, num_episodes: int) -> None:
    """Prints, as its last line, mean returns of every seed, deterministic and as in training, and the versions."""
    algorithm = {"ppo": rejax_ppo, "sac": rejax_sac}[name].agent(settings)
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: jnp.zeros(()))

    def lane(key):
        train_key, mode_key, sample_key = jax.random.split(key, 3)
        state, _ = algorithm.train(train_key)
        sampled = algorithm.make_act(state)

        def best(obs, key):
            if algorithm.normalize_observations:
                obs = algorithm.normalize_obs(state.obs_rms_state, obs)
            return jnp.squeeze(algorithm.actor.apply(state.actor_ts.params, obs[None], method=mode))

        played = lambda act, key: evaluate(act, key, algorithm.env, algorithm.env_params, num_episodes)[1].mean()
        return state.global_step, played(best, mode_key), played(sampled, sample_key)

    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    steps, returns, sampled = jax.device_get(jax.jit(jax.vmap(lane))(keys))
    found = {"steps": int(steps[0]), "returns": returns.tolist(), "sampled_returns": sampled.tolist()}
    print(json.dumps(found | {"versions": versions(*PACKAGES)}))


if __name__ == "__main__":
    main(sys.argv[1], *map(json.loads, sys.argv[2:]))
