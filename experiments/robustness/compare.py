"""Does a policy that was trained with varied masses and friction stand what it was not made for? A heat map.

    python experiments/robustness/compare.py
    python experiments/robustness/compare.py --short

Trains PPO on the hopper as it is and on hoppers whose masses and friction every episode draws anew, for as many steps,
and evaluates both over a grid of both factors. What is interrupted is gone on with by the same command.
"""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console

import rlx
from rlx.algos import ppo
from rlx.devices.sharding import use_devices
from rlx.presets import preset
from rlx.report import experiment, interval, iqm
from rlx.wrappers import randomized

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
PACKAGES = ("rlx", "jax", "jaxlib", "mujoco", "mujoco-mjx")
MASS, FRICTION = "physics.body_mass physics.body_inertia", "physics.geom_friction"


@dataclass(frozen=True)
class Task:
    env: str
    total_steps: int
    mass: tuple[float, ...]  # factors of the grid
    friction: tuple[float, ...]
    trained: dict[str, dict[str, tuple[float, float]]]  # by the name of the training, between which factors it draws
    seeds: int = 5
    episodes: int = 8  # of each seed at each point of the grid


TASKS = {
    "hopper": Task(
        "mjx/hopper",
        total_steps=1_000_000,
        mass=(0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.75),
        friction=(0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5),
        trained={
            "as it is": {MASS: (1.0, 1.0), FRICTION: (1.0, 1.0)},
            "varied": {MASS: (0.6, 1.5), FRICTION: (0.4, 1.25)},
        },
    )
}


def measure(task: Task, name: str, directory: Path) -> dict[str, Any]:
    """Returns `[seed, mass, friction]` of policies of one training, each a mean over episodes."""
    plain = rlx.envs.make(task.env)
    config = rlx.replace(preset(ppo, task.env), total_steps=task.total_steps)
    env = randomized(plain, task.trained[name])
    sweep = rlx.sweep(ppo, config, env, num_seeds=task.seeds, directory=directory, console=Console())
    points = jnp.stack(jnp.meshgrid(jnp.array(task.mass), jnp.array(task.friction), indexing="ij"), axis=-1)

    @jax.jit
    def over_the_grid(state, key):
        def at(factors, key):
            fixed = rlx.replace(env, params=rlx.replace(env.params, low=factors, high=factors))
            return rlx.evaluate(ppo, config, fixed, state, key, task.episodes).returns.mean()

        keys = jax.random.split(key, points.shape[:2])
        return jax.vmap(jax.vmap(at))(points, keys)

    found = [over_the_grid(sweep.state(i), jax.random.key(1000 + i)) for i in range(task.seeds)]
    return {
        "mass": list(task.mass),
        "friction": list(task.friction),
        "between": {key: list(bounds) for key, bounds in task.trained[name].items()},
        "returns": np.round(np.asarray(found), 1).tolist(),
        "steps": sweep.lanes[0]["planned_steps"],
        "config": asdict(config),
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def regions(result: dict[str, Any]) -> dict[str, np.ndarray]:
    """Mean returns of each seed `[S]` at the robot as it is, within what was varied, and on the grid outside of it."""
    returns, task = np.array(result["returns"]), TASKS[result["task"]]
    (mass_low, mass_high), (friction_low, friction_high) = task.trained["varied"].values()
    mass, friction = np.array(task.mass)[:, None], np.array(task.friction)[None]
    within = (mass_low <= mass) & (mass <= mass_high) & (friction_low <= friction) & (friction <= friction_high)
    own = (mass == 1.0) & (friction == 1.0)
    return {
        "as it is": returns[:, own].mean(1),
        "within": returns[:, within].mean(1),
        "outside": returns[:, ~within].mean(1),
    }


def table(results: dict[tuple[str, str], dict]) -> str:
    """Returns in Markdown, a row a training."""
    lines = [["task", "trained", "seeds", "the robot as it is", "within what was varied", "outside of it"]]
    lines += [["---", "---", "--:", "--:", "--:", "--:"]]
    for (task, name), result in results.items():
        scores = [interval([values], iqm) for values in regions(result).values()]
        cells = ["{value:.0f} [{low:.0f}, {high:.0f}]".format(**score) for score in scores]
        lines.append([task, name, str(len(result["returns"])), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """A heat map a training: mean return over seeds, with a frame around what was varied."""
    size = {"figsize": (4.6 * len(results), 4.2), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(1, len(results), **size)
    most = max(np.mean(result["returns"], axis=0).max() for result in results.values())
    for axes, ((task, name), result) in zip(panels.flat, results.items(), strict=True):
        image = axes.imshow(np.mean(result["returns"], axis=0), origin="lower", cmap="viridis", vmin=0, vmax=most)
        for i, row in enumerate(np.mean(result["returns"], axis=0)):
            for j, value in enumerate(row):
                axes.text(
                    j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="w" if value < most / 2 else "k"
                )
        for axis, key in ((axes.yaxis, "mass"), (axes.xaxis, "friction")):
            axis.set_ticks(range(len(result[key])), [f"{value:g}" for value in result[key]])
        (low, high), (left, right) = TASKS[task].trained["varied"].values()
        rows = [i for i, value in enumerate(result["mass"]) if low <= value <= high]
        columns = [i for i, value in enumerate(result["friction"]) if left <= value <= right]
        corner = (columns[0] - 0.5, rows[0] - 0.5)
        extent = (len(columns), len(rows))
        axes.add_patch(plt.Rectangle(corner, *extent, fill=False, edgecolor="r", lw=1.5))
        axes.set(
            title=f"{task}, trained {name}", xlabel="friction, times the model's", ylabel="mass, times the model's"
        )
    figure.colorbar(image, ax=panels, label="return")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(task: Literal[*TASKS] | None = None, short: bool = False, runs: Path = Path("runs/robustness")) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        short: two updates of two seeds, to see that everything works; all of it stays below `runs`.
        runs: folder of what training leaves behind; to have a case measured again, remove its result and its folder.
    """
    use_devices()
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)
    cases = {(t, name): f"{t}-{name.replace(' ', '_')}" for t in TASKS for name in TASKS[t].trained}

    def run(case):
        chosen = TASKS[case[0]]
        if short:
            few = {"total_steps": 2 * preset(ppo, chosen.env).steps_per_update, "seeds": 2, "episodes": 1}
            chosen = Task(**vars(chosen) | few)
        return {"task": case[0], "trained": case[1]} | measure(chosen, case[1], runs / cases[case])

    experiment(folder, cases, run, draw, table, lambda case: task in (None, case[0]))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
