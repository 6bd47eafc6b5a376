"""What self-play comes to: against random play, against exact play and against earlier selves, with and without search.

    python experiments/games/compare.py
    python experiments/games/compare.py --task tic_tac_toe --method pool

Trains what has no result yet, one file a method and a task, then draws the figure and writes the table of README.md.
What is interrupted is gone on with by the same command. It needs the extras `pgx` and `search`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console

import rlx
from rlx.algos import gumbel_muzero, ppo_selfplay
from rlx.devices.sharding import use_devices
from rlx.envs.yardsticks import connect_four_move, perfect_moves, prove, table_move
from rlx.games import OUTCOMES, match, random_move
from rlx.planning import player
from rlx.presets import configure, settings
from rlx.report import experiment, interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
SEEDS = range(5)
GAMES = 200  # of a match, in about half of which each player begins
SIMULATIONS = 64
DEPTH = 4  # of alpha-beta
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "pgx", "mctx")


@dataclass(frozen=True)
class Method:
    label: str
    algorithm: ModuleType


METHODS = {"pool": Method("PPO, pool of selves", ppo_selfplay), "search": Method("AlphaZero, Gumbel", gumbel_muzero)}


@dataclass(frozen=True)
class Task:
    env: str
    exact: str  # what the exact opponent is


TASKS = {
    "tic_tac_toe": Task("pgx/tic_tac_toe", "perfect play"),
    "connect_four": Task("pgx/connect_four", f"alpha-beta, depth {DEPTH}"),
}
ACTING = {"policy": 0, "with search": SIMULATIONS}


def measure(method: Method, task: Task, directory: Path, short: bool) -> dict[str, Any]:
    """Trains all seeds and plays their matches; the result as it is written to its file."""
    algorithm = method.algorithm
    config = configure(algorithm.Config, settings(algorithm, task.env))
    if short:
        config = rlx.replace(config, total_steps=config.total_steps // 50)
    env = rlx.envs.make(task.env)
    where = {"num_seeds": len(SEEDS), "directory": directory, "console": Console(), "env_name": task.env}
    lanes = rlx.sweep(algorithm, config, env, **where).lanes
    agents = [rlx.load(directory, lane=i) for i in range(len(lanes))]
    results = [matches(agent, task) for agent in agents]
    played = {
        acting: {
            other: {name: [result[acting][other][name] for result in results] for name in OUTCOMES}
            for other in results[0][acting]
        }
        for acting in ACTING
    }
    return {
        "env": task.env,
        "exact": task.exact,
        "steps": lanes[0]["planned_steps"],
        "seeds": list(SEEDS),
        "games": GAMES,
        "simulations": SIMULATIONS,
        "played": played,
        "lost_boards": [len(proof(agent).lost) for agent in agents] if task.env == "pgx/tic_tac_toe" else None,
        "config": asdict(config),
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def proof(agent: Any) -> Any:
    """All plays of tic-tac-toe against the likeliest moves of an agent."""
    return prove(lambda obs: agent.act(obs))


def matches(agent: Any, task: Task) -> dict[str, dict[str, dict[str, float]]]:
    """The rates of an agent, by how it acts and by whom it plays against.

    It draws its moves, and its search has noise: else all games against one opponent would be much the same.
    """
    game = agent.env.environment.game
    others = {"random": by(game, random_move), "exact": exact(game, task.env)}
    if hasattr(agent.state, "pool"):
        others["pool"] = earlier(agent)
    found = {}
    for acting, simulations in ACTING.items():
        own = player(agent.algorithm, agent.config, agent.env, agent.state, simulations, greedy=False)
        key = jax.random.key(agent.seed)
        found[acting] = {name: match(game, own, other, key, GAMES).rates for name, other in others.items()}
    return found


def by(game: Any, policy: Callable, params: Any = None) -> Callable:
    """A player that moves by `policy(params, obs, key)`, with one of the parameters for each game, or without them."""

    @jax.jit
    def act(position, key):
        obs, keys = jax.vmap(game.observe)(position), jax.random.split(key, GAMES)
        return jax.vmap(policy, (None if params is None else 0, 0, 0))(params, obs, keys)

    return act


def earlier(agent: Any) -> Callable:
    """The pool of an agent: each of its actors in as many games as the others."""
    actor, _ = agent.algorithm.networks(agent.config, agent.env)
    turn = jnp.arange(GAMES) % min(int(agent.state.num_snapshots), agent.config.pool_size)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[turn], agent.state.pool)
    return by(agent.env.environment.game, lambda own, obs, key: actor.apply(own, obs).sample(key), params)


def exact(game: Any, env_name: str) -> Callable:
    """Perfect play of tic-tac-toe, alpha-beta in connect four; among equally good moves it draws."""
    if env_name == "pgx/tic_tac_toe":
        table = jnp.asarray(perfect_moves())
        return by(game, lambda _, obs, key: table_move(table, obs, key))
    rng = np.random.default_rng(0)

    def act(position, key):
        planes, over = np.asarray(position.observation), np.asarray(position.terminated)
        mine = np.asarray(position.current_player) == 1
        asked = zip(planes, mine & ~over, strict=True)
        return np.array([connect_four_move(board, DEPTH, rng) if own else 0 for board, own in asked])

    return act


def score(rates: dict[str, list[float]]) -> list[float]:
    """Wins and half of the draws, of each seed."""
    return [win + draw / 2 for win, draw in zip(rates["win"], rates["draw"], strict=True)]


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """Bars of wins, draws and losses: a panel a task and a method, a bar for how it acts and against whom."""
    size = {"figsize": (4.6 * len(results), 3.4), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(1, len(results), **size)
    for axes, ((task, name), result) in zip(panels.flat, results.items(), strict=True):
        bars = [(acting, other, rates) for acting, all_ in result["played"].items() for other, rates in all_.items()]
        left = np.zeros(len(bars))
        for outcome, color in zip(OUTCOMES, ("#2a8a7f", "#c9ced8", "#c0392b"), strict=True):
            width = np.array([np.mean(rates[outcome]) for *_, rates in bars])
            axes.barh(np.arange(len(bars)), width, left=left, color=color, label=outcome)
            left += width
        axes.set_yticks(np.arange(len(bars)), [f"{other}, {acting}" for acting, other, _ in bars])
        axes.invert_yaxis()
        axes.set(title=f"{task}: {METHODS[name].label}", xlim=(0, 1), xlabel="share of games")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(results: dict[tuple[str, str], dict]) -> str:
    """Scores in Markdown, a row a task, a method and a way to act."""
    head = ["task", "method", "steps", "acts by", "random", "exact", "own pool", "lost boards"]
    lines = [head, ["---", "---", "--:", "---", "--:", "--:", "--:", "--:"]]
    for (task, name), result in results.items():
        for acting, others in result["played"].items():
            cells = []
            for other in ("random", "exact", "pool"):
                if other in others:
                    estimate = interval([np.array(score(others[other]))], np.mean)
                    cells.append("{value:.2f} [{low:.2f}, {high:.2f}]".format(**estimate))
                else:
                    cells.append("")
            lost = result["lost_boards"] if acting == "policy" and result["lost_boards"] is not None else []
            steps, label = f"{result['steps']:,}", METHODS[name].label
            lines.append([task, label, steps, acting, *cells, ", ".join(map(str, lost))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(
    task: Literal[*TASKS] | None = None,
    method: Literal[*METHODS] | None = None,
    short: bool = False,
    runs: Path = Path("runs/games"),
) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        method: only this one.
        short: a fiftieth of the steps, to see that everything works; all of it stays below `runs`.
        runs: folder of what training leaves behind; to have a case measured again, remove its result and its folder.
    """
    use_devices()
    jax.config.update("jax_default_matmul_precision", "float32")
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)
    cases = {(t, m): f"{t}-{m}" for t in TASKS for m in METHODS}

    def run(case):
        measured = measure(METHODS[case[1]], TASKS[case[0]], runs / cases[case], short)
        return {"task": case[0], "method": case[1]} | measured

    only = lambda case: task in (None, case[0]) and method in (None, case[1])
    experiment(folder, cases, run, draw, table, only)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
