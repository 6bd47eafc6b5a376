#!/usr/bin/env bash
# jaxmarl 0.2.0 (jax 0.10.2, Python 3.11): importing it puts `sys.__stdout__` and `sys.__stderr__` in the place of what
# `sys.stdout` and `sys.stderr` were.
#
# It silences an import of Brax by swapping both streams, and puts the original ones of the process back rather than
# those it found; it does so also where Brax is not installed. Whatever had replaced them is gone: within
# contextlib.redirect_stdout the lines "Importing submoduled environments..." and "Submoduled environments not found.
# Skipping import." reach the terminal, and so does what the program prints afterwards, as the buffer stays empty. The
# output of a notebook or of a test runner that captures is replaced in the same way.
#
# Exits with 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet jaxmarl==0.2.0 jax==0.10.2
"$folder/venv/bin/python" - > "$folder/out" <<'PY'
import contextlib
import io
import sys

held = io.StringIO()
with contextlib.redirect_stdout(held):
    print("before")
    import jaxmarl

    assert sys.stdout is sys.__stdout__ is not held, "changed: the stream that was there stays"
    print("after")
assert jaxmarl.__version__ == "0.2.0"
assert held.getvalue() == "before\n", held.getvalue()
PY
grep -q "^Importing submoduled environments" "$folder/out"
grep -q "^after$" "$folder/out"
echo "still so: what was redirected reached the original stream"
