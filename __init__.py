"""Not part of the package: makes `import rlx` right where the folder that holds this checkout is on the path.

A checkout called `rlx` would else be a namespace package there, found before an editable install: without
`rlx/__init__.py`, and so without `rlx.envs` and the guard against wrong sums.
"""

if __name__ == "rlx":
    from pathlib import Path

    root = Path(__file__).resolve().parent
    __path__ = [str(root / "rlx"), str(root)]  # `rlx.algos` and `rlx.envs` are folders of the checkout
    __file__ = str(root / "rlx" / "__init__.py")
    exec(compile(Path(__file__).read_text(encoding="utf-8"), __file__, "exec"))
