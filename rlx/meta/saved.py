"""Files of what was learned: a policy objective (LPO, TALPO) or an update rule (LPG), as a NumPy archive.

It holds the weights by their names and `about`, JSON with the `kind` and what else the class needs.
"""

import json
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from rlx.meta.drifts import LPO, TALPO
from rlx.meta.rules import LPG, lpg

FORMAT = 1
KINDS = {"lpo": LPO, "talpo": TALPO, "lpg": LPG}
SIZES = ("num_units", "num_values", "timed")  # of a rule


def save(path: Path, learned: LPO | TALPO | LPG, about: dict[str, Any] | None = None) -> None:
    """Writes an objective or a rule, and what else is known `about` it.

    Raises:
        ValueError: for one of another class, and for a population of them.
    """
    kind = next((name for name, cls in KINDS.items() if type(learned) is cls), None)
    if kind is None:
        raise ValueError(
            f"a file of what was learned holds an LPO, a TALPO or an LPG, not a {type(learned).__name__}: keep the "
            "leaves of another pytree with rlx.run.checkpoint.save"
        )
    if isinstance(learned, LPG):
        weights, sizes = _named(learned.params), {name: getattr(learned, name) for name in SIZES}
        wanted = _named(_like(sizes))
    else:
        weights, sizes = {"hidden": learned.hidden, "out": learned.out}, {"clip": str(learned.clip)}
        wanted = {"hidden": np.empty((1, 1)), "out": np.empty(1)}
    for name, x in weights.items():
        if np.ndim(x) != np.ndim(wanted[name]):
            raise ValueError(f"{name} has shape {list(np.shape(x))}: save one, not a population")
    content = {"format": FORMAT, "rlx": version("rlx"), "kind": kind} | sizes | (about or {})
    partial = Path(path).with_suffix(".partial.npz")
    arrays: dict[str, Any] = {name: np.asarray(x) for name, x in weights.items()}
    np.savez(partial, about=np.array(json.dumps(content)), **arrays)
    partial.replace(path)


def load(path: Path) -> LPO | TALPO | LPG:
    """The objective or the rule of a file that `save` wrote.

    Raises:
        ValueError: when there is none, or it is not one of these files.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            weights = {name: np.asarray(file[name]) for name in file.files if name != "about"}
        if about["format"] == FORMAT:
            if about["kind"] == "lpg":
                sizes = {name: about[name] for name in SIZES}
                like = _like(sizes)
                wanted = {name: x.shape for name, x in _named(like).items()}
                if wanted != {name: x.shape for name, x in weights.items()}:
                    raise ValueError("its weights are not those of a rule of its sizes")
                leaves = [weights[name] for name in wanted]
                return LPG(jax.tree.unflatten(jax.tree.structure(like), leaves), **sizes)
            return KINDS[about["kind"]](weights["hidden"], weights["out"], float(about["clip"]))
    except OSError as error:
        raise ValueError(f"there is no objective or rule {path}: {error}") from error
    except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a learned objective or rule: {error}") from error
    raise ValueError(f"{path} has format {about['format']}; this is rlx {version('rlx')}, which reads {FORMAT}")


def _named(params: Any) -> dict[str, Any]:
    """The weights of a network, by where they are."""
    return {keystr(path, simple=True, separator="."): x for path, x in tree_leaves_with_path(params)}


def _like(sizes: dict[str, Any]) -> Any:
    """Shapes of the weights of a rule."""
    return jax.eval_shape(lambda: lpg(jax.random.key(0), **sizes)).params


__all__ = ["load", "save"]
