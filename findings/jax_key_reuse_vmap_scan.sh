#!/usr/bin/env bash
# jax 0.10.2 and 0.11.2: `jax.debug_key_reuse` raises for a vmapped `scan` over keys, each of which is used once.
#
# A `scan` that splits a key and draws one number with each part passes the check. The same function under `vmap`, with a
# key a lane, raises KeyReuseError: "In scan, argument 1 is already consumed". So does a `scan` without `vmap` over the
# transposed array of keys, which is what the batching makes of it; a `vmap` in the place of the `scan` passes. And
# `grad` of `checkpoint` raises for a key from outside that is used once, but not within `jit`.
#
# So runs over several seeds in one program, a `vmap` over a training loop, cannot be checked for reuse: a single run can.
#
# Exits with 0 while that is so. Needs Python 3.12 or later, for both versions (PYTHON=...).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/reuse.py" <<'PY'
import jax
import jax.numpy as jnp

normal = jax.random.normal


def draws(keys):
    """The sum of one number a key, in a loop."""
    return jax.lax.scan(lambda total, key: (total + normal(key), None), 0.0, keys)[0]


def columns(keys):
    """Likewise, of a column of keys after another."""
    step = lambda total, column: (total + jax.vmap(normal)(column), None)
    return jax.lax.scan(step, jnp.zeros(len(keys)), keys.T)[0]


split = lambda key: jax.random.split(key, 4)
table = lambda: jax.random.split(jax.random.key(0), (3, 4))
rebuilt = lambda key: jax.grad(jax.checkpoint(lambda x: jnp.sin(x * normal(key))))(1.0)
cases = {
    "one run": lambda: jax.jit(lambda key: draws(split(key)))(jax.random.key(0)),
    "vmap of runs": lambda: jax.jit(jax.vmap(lambda key: draws(split(key))))(jax.random.split(jax.random.key(0), 3)),
    "vmap of draws": lambda: jax.jit(jax.vmap(jax.vmap(normal)))(table()),
    "columns": lambda: jax.jit(columns)(table()),
    "grad of checkpoint": lambda: rebuilt(jax.random.key(0)),
    "grad of checkpoint in jit": lambda: jax.jit(rebuilt)(jax.random.key(0)),
}
found = {}
for name, case in cases.items():
    try:
        with jax.debug_key_reuse(True):
            case()
        found[name] = "passes"
    except jax.errors.KeyReuseError as error:
        found[name] = str(error).splitlines()[0]
for name, what in found.items():
    print(f"{name}: {what}")
in_scan = "In scan, argument 1 is already consumed."
assert found == {
    "one run": "passes",
    "vmap of runs": in_scan,
    "vmap of draws": "passes",
    "columns": in_scan,
    "grad of checkpoint": "Previously-consumed key passed to jit-compiled function at index 0",
    "grad of checkpoint in jit": "passes",
}, found
PY
for version in 0.10.2 0.11.2; do
    "${PYTHON:-python3}" -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "jax==$version" "jaxlib==$version"
    echo "jax $version"
    JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/reuse.py"
done
echo still so
