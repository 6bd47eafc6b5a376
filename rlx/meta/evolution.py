"""Evolution of any pytree by the strategies of evosax: ask for candidates, measure them, tell their fitness.

What a generation does follows from its number and the state before it: a run that is stopped and resumed from a
checkpoint is bitwise the uninterrupted one.

`antithetic`, `centered_ranks` and `ascent` are the parts of OpenAI's strategy as pure functions, for programs in which
a generation is written out, such as `algos/es.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rlx.pytree import pytree, replace


class Strategy(NamedTuple):
    """One of evosax with its numbers."""

    algorithm: Any
    params: Any


@pytree
class Generation:
    """Where evolution has come to."""

    strategy: Any  # the strategy's own state
    number: jax.Array  # int32, generations done
    key: jax.Array  # that all of them begin with


def open_es(
    solution: Any, population: int = 32, sigma: float = 0.04, learning_rate: float = 0.01, decay: float = 0.999
) -> Strategy:
    """OpenAI's evolution strategy: antithetic pairs, centred ranks, Adam.

    Every generation the learning rate and the deviation `sigma` decay, to a tenth and to a quarter at most.

    Args:
        solution: a pytree like what is evolved.

    Source: Salimans et al. 2017, arXiv:1703.03864; the constants are of the code of Lu et al. 2022, arXiv:2210.05639.

    Raises:
        ValueError: for an odd population, which is not one of pairs.
    """
    check_pairs(population)
    from evosax.algorithms import Open_ES  # here: importing it uses jax, which then has the devices that it has

    rate = optax.exponential_decay(learning_rate, 1, decay, end_value=0.1 * learning_rate)
    deviation = optax.exponential_decay(sigma, 1, decay, end_value=0.25 * sigma)
    algorithm = Open_ES(population, solution, optimizer=optax.adam(rate, b1=0.99), std_schedule=deviation)
    return Strategy(algorithm, algorithm.default_params)


def snes(solution: Any, population: int = 32, sigma: float = 0.04, learning_rate: float = 1.0) -> Strategy:
    """Separable natural evolution strategy: ranks weigh the candidates, and each number has a deviation that adapts.

    Source: Schaul, Glasmachers, Schmidhuber 2011, High Dimensions and Heavy Tails for Natural Evolution Strategies.
    """
    if population < 2:
        raise ValueError(f"population = {population}: give at least 2")
    from evosax.algorithms import SNES  # here, as above

    algorithm = SNES(population, solution, optimizer=optax.sgd(learning_rate))
    return Strategy(algorithm, algorithm.default_params.replace(std_init=jnp.float32(sigma)))


STRATEGIES = {"open_es": open_es, "snes": snes}


def antithetic(key: jax.Array, mean: Any, population: int, sigma: jax.Array) -> Any:
    """Pairs around a solution: `mean + sigma z_i` and, half a population later, `mean - sigma z_i`, z standard normal.

    Leaves are `[P, ...]`. Source: Salimans et al. 2017, arXiv:1703.03864, section 2.1.

    Raises:
        ValueError: for an odd population.
    """
    check_pairs(population)
    flat, unravel = ravel_pytree(mean)
    noise = jax.random.normal(key, (population // 2, flat.shape[0]))
    return jax.vmap(unravel)(flat + sigma * jnp.concatenate([noise, -noise]))


def centered_ranks(fitness: jax.Array) -> jax.Array:
    """Ranks of fitnesses `[P]` from -1/2 for the least to 1/2; equal ones share the middle of theirs.

    What is not finite ranks as the least. Source: Salimans et al. 2017, arXiv:1703.03864, section 2.1, on fitness
    shaping.
    """
    known = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)
    below, upto = (jnp.searchsorted(jnp.sort(known), known, side=side) for side in ("left", "right"))
    return (below + upto - 1) / (2.0 * (fitness.shape[0] - 1)) - 0.5


def ascent(mean: Any, candidates: Any, weights: jax.Array, sigma: jax.Array) -> Any:
    """`sum_i w_i (x_i - mean) / (P sigma^2)` of candidates x with leaves `[P, ...]`, like `mean`: the way up.

    With `w` the fitness itself it estimates the gradient of the mean fitness of a normal population around `mean`.

    Source: Salimans et al. 2017, arXiv:1703.03864, algorithm 1, with noise `(x_i - mean) / sigma`.
    """
    scale = weights / (weights.shape[0] * sigma**2)
    return jax.tree.map(lambda x, m: jnp.tensordot(scale, x - m, axes=1), candidates, mean)


def check_pairs(population: int) -> None:
    """Raises ValueError for a population that is not one of pairs."""
    if population < 2 or population % 2:
        raise ValueError(f"population = {population}: candidates are in pairs, give an even number")


def first(strategy: Strategy, mean: Any, key: jax.Array) -> Generation:
    """Generation 0, around the solution `mean`."""
    init_key, key = jax.random.split(key)
    state = strategy.algorithm.init(init_key, mean, strategy.params)
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)  # counters of Python become arrays
    return Generation(state, jnp.int32(0), key)


def mean(strategy: Strategy, generation: Generation) -> Any:
    """What evolution proposes: the middle of the population, with the structure of the solution."""
    return strategy.algorithm.get_mean(generation.strategy)


def evolve(
    strategy: Strategy,
    generation: Generation,
    fitness: Callable[[Any, jax.Array], Any],
    until: int,
    after: Callable[[Generation, Any], None] = lambda generation, scores: None,
) -> Generation:
    """Goes on to generation `until`.

    Args:
        fitness: `(candidates, key) -> [P]` of candidates with leaves `[P, ...]`, higher is better; NaN and infinities
            count as worst.
        after: called with each generation and the fitness of its candidates.
    """
    algorithm, params = strategy
    for number in range(int(generation.number), until):
        ask_key, fitness_key, tell_key = jax.random.split(jax.random.fold_in(generation.key, number), 3)
        candidates, state = algorithm.ask(ask_key, generation.strategy, params)
        scores = fitness(candidates, fitness_key)
        known = jnp.where(jnp.isfinite(jnp.asarray(scores)), scores, -jnp.inf)
        state, _ = algorithm.tell(tell_key, candidates, -known, state, params)
        generation = replace(generation, strategy=state, number=jnp.int32(number + 1))
        after(generation, scores)
    return generation


__all__ = ["STRATEGIES", "Generation", "Strategy", "antithetic", "ascent", "centered_ranks", "check_pairs", "evolve"]
__all__ += ["first", "mean", "open_es", "snes"]
