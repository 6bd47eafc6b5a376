#!/usr/bin/env bash
# jax 0.10.2 and 0.11.2 (CPU): an executable that JAX found in its persistent compilation cache is serialized and loaded by
# `jax.experimental.serialize_executable` without a complaint, and raises when it is called.
#
# The first process compiles a function, puts it into the cache, and serializes it: what is loaded from that computes. The
# second process lowers and compiles the same function, which is a hit of the cache, and serializes that. Loaded again, it
# is called and ends with "NOT_FOUND: Function ... not found". With the cache turned off for the second process it computes.
#
# Exits with 0 while that is so. Needs Python 3.12 or later, for both versions (PYTHON=...).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/kept.py" <<'PY'
import sys
import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_enable_compilation_cache", sys.argv[2] == "on")
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)

x = jnp.arange(6.0)
hits.clear()
compiled = jax.jit(lambda x: jnp.sort(jnp.sin(x) + jnp.arange(6)).sum()).lower(x).compile()
found = "hit" if hits else "compiled"
loaded = serialize_executable.deserialize_and_load(*serialize_executable.serialize(compiled))
expected = compiled(x)
try:
    result = "computes" if loaded(x) == expected else "is wrong"
except jax.errors.JaxRuntimeError as error:
    result = "raises NOT_FOUND" if str(error).startswith("NOT_FOUND: Function") else str(error)
print(found, result)
PY
for version in 0.10.2 0.11.2; do
    "${PYTHON:-python3}" -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet "jax==$version" "jaxlib==$version"
    run() { JAX_PLATFORMS=cpu "$folder/$version/bin/python" "$folder/kept.py" "$folder/cache-$version" "$1"; }
    first=$(run on)
    second=$(run on)
    third=$(run off)
    echo "jax $version: $first, then $second, without the cache $third"
    test "$first" = "compiled computes"
    test "$second" = "hit raises NOT_FOUND"
    test "$third" = "compiled computes"
done
echo still so
