"""PPO in Rejax over many seeds, for sweeps.py: a vmap of its training over keys, as its documentation has it."""

from peers import rejax_ppo
from peers.measure import main


def program(settings):
    import jax

    num_lanes = settings.pop("num_lanes")
    function, _, _ = rejax_ppo.program(settings)
    steps = lambda result: result[0].global_step.sum()
    return jax.jit(jax.vmap(function)), lambda key: (jax.random.split(key, num_lanes),), steps


if __name__ == "__main__":
    main(program)
