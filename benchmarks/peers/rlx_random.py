"""Environments of rlx with random actions, drawn beforehand, for speed.py: what no training on them is faster than."""

from peers.measure import main_without_cache


def program(settings):
    from functools import cache

    import jax

    import rlx
    from rlx.rollout import reset

    env, num_envs = rlx.envs.make(settings["env"], **settings.get("options", {})), settings["num_envs"]
    length = settings["total_steps"] // num_envs

    @cache
    def start():
        return jax.jit(reset, static_argnums=2)(env, jax.random.key(0), num_envs)

    def run(env, state, key):
        step_key, action_key = jax.random.split(key)
        keys = jax.random.split(step_key, num_envs)
        actions = jax.vmap(env.action_space.sample)(jax.random.split(action_key, settings["num_steps"] * num_envs))
        actions = actions.reshape(settings["num_steps"], num_envs, *actions.shape[1:])

        def chunk(state, _):
            return jax.lax.scan(lambda s, a: (jax.vmap(env.advance)(keys, s, a)[0], None), state, actions)[0], None

        # All of the state: physics that nobody asks for is not computed.
        return jax.lax.scan(chunk, state, length=length // settings["num_steps"])[0]

    return jax.jit(run), lambda key: (env, start(), key), lambda state: state.time.sum()


if __name__ == "__main__":
    main_without_cache(program)
