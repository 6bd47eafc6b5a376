#!/usr/bin/env bash
# scipy 1.18.1 (numpy 2.5.5, Python 3.13): `kstest(x, "norm", args=(mean, std))` raises a TypeError.
#
# `args` is in the signature of kstest and documented as the distribution's parameters, used where the distribution is
# given by its name. With scipy 1.17.1 the call below gives the statistic 0.0331. With 1.18.1 it ends in
#     TypeError: ndtr() takes from 1 to 2 positional arguments but 3 were given
# while the same test with `stats.norm.cdf` in place of the name "norm" takes the same args and gives 0.0331, and so does
# a frozen distribution, `stats.norm(mean, std).cdf`. The name "expon" with args works as before: "norm" alone is affected.
#
# Exits with 0 while that is so. Needs Python 3.12 or later, for which scipy 1.18.1 is made (PYTHON=...).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet scipy==1.18.1 numpy==2.5.5
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import scipy
from scipy import stats

assert scipy.__version__ == "1.18.1"
x = np.random.default_rng(0).normal(2.0, 3.0, 500)
frozen = stats.kstest(x, stats.norm(2.0, 3.0).cdf).statistic
function = stats.kstest(x, stats.norm.cdf, args=(2.0, 3.0)).statistic
assert abs(frozen - 0.0331) < 1e-4 and function == frozen, (frozen, function)
stats.kstest(np.abs(x), "expon", args=(0.0, 3.0))
try:
    stats.kstest(x, "norm", args=(2.0, 3.0))
except TypeError as error:
    print("still so:", error)
    assert "ndtr() takes from 1 to 2 positional arguments" in str(error)
else:
    raise SystemExit("changed: kstest takes args with the name norm")
PY
