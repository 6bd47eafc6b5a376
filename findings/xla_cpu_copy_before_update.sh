#!/usr/bin/env bash
# jax 0.10.2 and 0.11.2 (CPU): a loop that reads a few elements of an array and then changes a few copies the whole array,
# twice a step, although it is donated. With 0.10.2 `jax.lax.optimization_barrier` does not prevent it.
#
# The step of a `scan` reads `array[index]` and then sets `array.at[index]`. Nothing says that what is read is needed
# before the writing, so that XLA keeps the old array for it: the compiled loop has 2 copies of all of its million numbers,
# with both versions. With a barrier over the index and what was read, the index for writing comes after it; still there
# are 2 copies with 0.10.2, and none with 0.11.2. With the same order made of data, `where(weight >= 0, index, 0)` with
# weights that are never negative, there is none with either. A draw by priorities from a replay buffer has this form.
#
# Exits with 0 while that is so. Needs Python 3.12 or later, for both versions (PYTHON=...).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/copies.py" <<'PY'
import re, jax
import jax.numpy as jnp

SIZE, BATCH, STEPS = 1_000_000, 64, 10


def copies(order):
    """Copies of the whole array within the loop of a program that reads some elements and then changes them in place."""

    def step(array, key):
        index = jax.random.randint(key, (BATCH,), 0, SIZE)
        weight = array[index] ** -0.5  # read ...
        index, weight = order(index, weight)
        array = array.at[index].set(jax.random.uniform(key, (BATCH,)))  # ... before it is changed
        return array, weight.sum()

    run = jax.jit(lambda array, keys: jax.lax.scan(step, array, keys), donate_argnums=0)
    text = run.lower(jnp.ones(SIZE), jax.random.split(jax.random.key(0), STEPS)).compile().as_text()
    return len(re.findall(rf"f32\[{SIZE}\]\S* copy\(", text))


found = {
    "nothing": copies(lambda index, weight: (index, weight)),
    "optimization_barrier": copies(lambda index, weight: jax.lax.optimization_barrier((index, weight))),
    "where": copies(lambda index, weight: (jnp.where(weight >= 0, index, 0), weight)),
}
print(jax.__version__, found)
barrier = {"0.10.2": 2, "0.11.2": 0}[jax.__version__]
assert found == {"nothing": 2, "optimization_barrier": barrier, "where": 0}, "changed: other copies"
PY
for version in 0.10.2 0.11.2; do
    "${PYTHON:-python3}" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet "jax==$version" "jaxlib==$version"
    JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/copies.py"
done
echo still so
