"""What choosing levels is worth: curricula over mazes beside uniform levels, judged on mazes that nobody drew.

    python experiments/curricula/compare.py
    python experiments/curricula/compare.py --method accel

Trains what has no result yet, one file a method, then draws the figure and writes the table of README.md. What is
interrupted is gone on with by the same command.
"""

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console

import rlx
from rlx.algos import ppo_levels
from rlx.devices.sharding import use_devices
from rlx.envs.tasks import maze
from rlx.levels import Level, at_level
from rlx.presets import configure, settings
from rlx.report import curve, experiment, interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
SEEDS = range(5)
EPISODES = 32  # on each maze; eight times as many on levels that are drawn
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax")
LABYRINTHS = tuple(f"{maze.LABYRINTH}{i}" for i in range(20))
HELD_OUT = (*maze.MAZES, *LABYRINTHS)


@dataclass(frozen=True)
class Method:
    label: str
    settings: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "uniform": Method("uniform levels"),
    "plr": Method("PLR"),
    "robust_plr": Method("robust PLR"),
    "accel": Method("ACCEL"),
    "sfl": Method("SFL", {"buffer_size": 32, "num_copies": 4, "scoring_updates": 20, "round_updates": 80}),
}
TASKS = {"Maze": "rlx/Maze"}


def measure(name: str, env_name: str, directory: Path, short: bool) -> dict[str, Any]:
    """Trains all seeds and plays the mazes; the result as it is written to its file."""
    config = configure(ppo_levels.Config, settings(ppo_levels, env_name) | {"method": name} | METHODS[name].settings)
    if short:
        config = rlx.replace(config, total_steps=config.total_steps // 50)
    env = rlx.envs.make(env_name)
    where = {"num_seeds": len(SEEDS), "directory": directory, "console": Console(), "env_name": env_name}
    lanes = rlx.sweep(ppo_levels, config, env, **where).lanes
    states = [rlx.load(directory, lane=i).state for i in range(len(lanes))]
    solved, drawn = played(config, env, jax.tree.map(lambda *xs: jnp.stack(xs), *states))
    names = ("step", "episode_return", "num_episodes")
    line = curve(*([np.array(lane["curve"][name], np.float64) for lane in lanes] for name in names))
    return {
        "env": env_name,
        "steps": lanes[0]["planned_steps"],
        "seeds": list(SEEDS),
        "episodes": EPISODES,
        "solved": dict(zip(HELD_OUT, solved.T.tolist(), strict=True)),
        "drawn": drawn.tolist(),
        "curve": {key: np.round(x, 3).tolist() for key, x in line._asdict().items()},
        "config": asdict(config),
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def played(config: Any, env: Any, states: Any) -> tuple[np.ndarray, np.ndarray]:
    """Shares of episodes that reach the goal: on each maze `[S, H]`, and on levels that are drawn `[S]`."""
    levels = [maze.named(name) for name in HELD_OUT]
    params = jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *levels)
    held_out = Level(params, jax.random.split(jax.random.key(0), len(levels)))

    def share(env, state, num):
        return rlx.evaluate(ppo_levels, config, env, state, jax.random.key(1), num, False).reported["success"].mean()

    on_each = lambda state: jax.vmap(lambda level: share(at_level(env, level), state, EPISODES))(held_out)
    on_drawn = lambda state: share(env, state, 8 * EPISODES)
    both = jax.jit(jax.vmap(lambda state: (on_each(state), on_drawn(state))))
    solved, drawn = both(states)
    return np.asarray(solved, np.float64), np.asarray(drawn, np.float64)


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """Returns in training, and the share of episodes that reach the goal of each maze."""
    size = {"figsize": (12, 4.6), "layout": "constrained", "width_ratios": (1, 2)}
    figure, (left, right) = plt.subplots(1, 2, **size)
    names = [*maze.MAZES, "Labyrinths"]
    width = 0.8 / len(results)
    for i, ((_, name), result) in enumerate(results.items()):
        color, label = plt.cm.tab10.colors[i], METHODS[name].label
        points = {key: np.asarray(value) for key, value in result["curve"].items()}
        left.plot(points["steps"], points["value"], color=color, label=label, lw=1.5)
        left.fill_between(points["steps"], points["low"], points["high"], color=color, alpha=0.12, lw=0)
        bars = [interval([by_seed(result, of)], np.mean) for of in (*((name,) for name in maze.MAZES), LABYRINTHS)]
        value, low, high = (np.array([bar[key] for bar in bars]) for key in ("value", "low", "high"))
        place = np.arange(len(names)) + (i - (len(results) - 1) / 2) * width
        right.bar(place, value, width, yerr=(value - low, high - value), color=color, ecolor="#555", error_kw={"lw": 1})
    left.set(xlabel="environment steps", ylabel="return in training, on the levels of the method")
    right.set_xticks(np.arange(len(names)), names)
    right.set(ylabel="share of episodes that reach the goal", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(results))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def by_seed(result: dict, names: tuple[str, ...]) -> np.ndarray:
    """The share of episodes that reach the goal, of each seed, over these mazes."""
    return np.mean([result["solved"][name] for name in names], axis=0)


def table(results: dict[tuple[str, str], dict]) -> str:
    """Shares of episodes that reach the goal in Markdown, a row a method."""
    head = ["levels", "steps", "seeds", "five mazes", f"{len(LABYRINTHS)} labyrinths", "levels that are drawn"]
    lines = [head, ["---", *["--:"] * 5]]
    for (_, name), result in results.items():
        found = by_seed(result, maze.MAZES), by_seed(result, LABYRINTHS), np.array(result["drawn"])
        cells = ("{value:.2f} [{low:.2f}, {high:.2f}]".format(**interval([x], np.mean)) for x in found)
        lines.append([METHODS[name].label, f"{result['steps']:,}", str(len(result["seeds"])), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(
    method: Literal[*METHODS] | None = None,
    short: bool = False,
    runs: Path = Path("runs/curricula"),
) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        method: only this one.
        short: a fiftieth of the steps, to see that everything works; all of it stays below `runs`.
        runs: folder of what training leaves behind; to have a case measured again, remove its result and its folder.
    """
    use_devices()
    jax.config.update("jax_default_matmul_precision", "float32")
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)
    cases = {(task, name): f"{task}-{name}" for task in TASKS for name in METHODS}

    def run(case):
        measured = measure(case[1], TASKS[case[0]], runs / cases[case], short)
        return {"task": case[0], "method": case[1]} | measured

    experiment(folder, cases, run, draw, table, lambda case: method in (None, case[1]))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
