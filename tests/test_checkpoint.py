"""States on disk come back bit for bit, whatever they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.checkpoint import KEEP, restore, save
from rlx.pytree import pytree


@pytree
class State:
    weights: dict
    empty: jax.Array
    key: jax.Array
    flag: jax.Array
    count: jax.Array


STATE = State(
    weights={"a": jnp.array([jnp.nan, -0.0, 1e-40]), "b": [jnp.ones((2, 3), jnp.bfloat16), jnp.uint8(7)]},
    empty=jnp.zeros((3, 0)),
    key=jax.random.split(jax.random.key(3), 2),
    flag=jnp.array(True),
    count=jnp.int32(5),
)


def bits(leaf):
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return leaf.shape, leaf.dtype, np.asarray(leaf).tobytes()


def test_restore_is_bitwise(tmp_path):
    save(tmp_path, 5, STATE)
    found = restore(tmp_path, jax.eval_shape(lambda: STATE))
    assert jax.tree.structure(found) == jax.tree.structure(STATE)
    assert jax.tree.map(bits, found) == jax.tree.map(bits, STATE)


def test_the_newest_is_restored_and_the_oldest_are_dropped(tmp_path):
    for count in range(KEEP + 2):
        save(tmp_path, count, {"count": jnp.int32(count)})
    assert restore(tmp_path, {"count": jnp.int32(0)}) == {"count": KEEP + 1}
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(2, KEEP + 2))


def test_a_state_of_another_structure_is_refused(tmp_path):
    save(tmp_path, 1, {"a": jnp.ones(3)})
    for other in ({"a": jnp.ones(4)}, {"b": jnp.ones(3)}, {"a": jnp.ones(3), "b": jnp.ones(3)}):
        with pytest.raises(ValueError, match="does not fit this algorithm"):
            restore(tmp_path, other)


def test_an_empty_directory_holds_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        restore(tmp_path, {"a": jnp.ones(3)})
