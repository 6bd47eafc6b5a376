"""The algorithms, one file each; every file also runs as a script."""

if __name__ != "rlx.algos":
    raise ImportError(
        f"imported as {__name__!r}: this folder is the package rlx.algos; run pip install -e . and import that"
    )
