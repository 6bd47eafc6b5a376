"""Pictures of learned drifts, and of how evolution went."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from rlx.objectives import Elements, importance_weighted

RATIOS, ADVANTAGES = np.linspace(0.4, 1.8, 141), np.linspace(-2.0, 2.0, 81)


def surfaces(objective: Callable, progress: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Drift `f`, and the slope of `rho A - f` in the ratio, over `ADVANTAGES` and `RATIOS`: `[81, 141]` each."""
    advantage, ratio = (jnp.asarray(x, jnp.float32) for x in np.meshgrid(ADVANTAGES, RATIOS, indexing="ij"))
    gain = lambda ratio, advantage: -objective(None, Elements(jnp.log(ratio), advantage), progress)
    drift = -importance_weighted(jnp.log(ratio), advantage) - jax.vmap(jax.vmap(gain))(ratio, advantage)
    return np.asarray(drift), np.asarray(jax.vmap(jax.vmap(jax.grad(gain)))(ratio, advantage))


def drifts(objectives: Mapping[str, Callable | tuple[Callable, float]], path: Path) -> None:
    """A column for each objective, or pair of one and the progress it is looked at: its drift, and below it the slope.

    Where the slope has the sign of the advantage it sends the ratio on, where it has the other one it sends it back;
    without a drift it is the advantage itself. White is 0.
    """
    figure = Figure(figsize=(2.5 * len(objectives) + 0.8, 4.8), layout="constrained")
    axes = figure.subplots(2, len(objectives), sharex=True, sharey=True, squeeze=False)
    extent = (RATIOS[0], RATIOS[-1], ADVANTAGES[0], ADVANTAGES[-1])
    bounds = {"drift": 1.0, "slope in the ratio": 2.0}
    images = []
    for column, (name, chosen) in enumerate(objectives.items()):
        found = surfaces(chosen) if callable(chosen) else surfaces(*chosen)
        for row, (values, most) in enumerate(zip(found, bounds.values(), strict=True)):
            style = {"extent": extent, "origin": "lower", "aspect": "auto", "cmap": "RdBu", "vmin": -most, "vmax": most}
            images.append(axes[row, column].imshow(values, **style))
            axes[row, column].axvline(1.0, color="k", lw=0.5)
            axes[row, column].axhline(0.0, color="k", lw=0.5)
        axes[0, column].set_title(name, fontsize=9)
        axes[1, column].set_xlabel("ratio")
    for row, text in enumerate(bounds):
        axes[row, 0].set_ylabel("advantage")
        figure.colorbar(images[row], ax=axes[row], label=text, extend="both")
    figure.savefig(path, dpi=90)


def generations(rows: Sequence[dict[str, Any]], path: Path, others: Mapping[str, float] | None = None) -> None:
    """Fitness against generations: mean and best of the population, what was proposed, and that of `others`."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    number = [row["generation"] for row in rows]
    column = lambda name, rows: [float(row[name]) for row in rows]  # NaN is a text in a log
    axes.plot(number, column("fitness", rows), lw=1.5, label="population, mean")
    axes.plot(number, column("best_fitness", rows), lw=0.8, alpha=0.5, label="population, best")
    looked = [row for row in rows if "proposed" in row]
    axes.plot([row["generation"] for row in looked], column("proposed", looked), "D-", label="proposed")
    for colour, (name, value) in zip(("0.2", "0.5", "0.7", "0.85"), (others or {}).items(), strict=False):
        axes.axhline(value, color=colour, ls="--", lw=1.2, label=name)
    axes.set(xlabel="generation", ylabel="fitness: 0 untrained, 1 PPO")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


__all__ = ["drifts", "generations", "surfaces"]
