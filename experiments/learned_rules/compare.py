"""Update rules that evolution finds on levels, and whether a curriculum by regret (GROOVE) makes better ones.

    python experiments/learned_rules/compare.py
    python experiments/learned_rules/compare.py --short

A rule is the recurrent network of LPG. A generation of candidates trains agents on the same few levels from beginning
to end; which levels, is drawn uniformly or chosen by regret. What is found trains agents on levels that none has seen.
Rules of the last two kinds are evolved on lives of several lengths, and one kind is told how long a life is and how far
it has gone (TA-LPG); they are tried on each length.
What is interrupted is gone on with by the same command.
"""

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import rlx
from rlx import meta
from rlx.algos import lpg, ppo
from rlx.devices.sharding import use_devices
from rlx.devices.spread import spread
from rlx.envs.tasks.levels import bound, level
from rlx.files import read_rows, write_rows
from rlx.pytree import uncommitted
from rlx.report import experiment, interval
from rlx.run import checkpoint

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
PACKAGES = ("rlx", "jax", "jaxlib", "evosax", "flax", "optax")
SIZES = {"num_envs": 32, "num_steps": 20}
AGENT = lpg.Config(total_steps=19_200, learning_rate=3e-2, **SIZES)
# The ordinary agent of regret: actor and critic with one pass over every rollout, A2C.
A2C = ppo.Config(total_steps=19_200, learning_rate=3e-2, hidden_sizes=(), num_epochs=1, num_minibatches=1, **SIZES)
UNITS = 32  # of the rule's network
EVOLVED = {"uniform": "evolved on uniform levels", "groove": "evolved on levels of high regret"}
OF_LIVES = {"lives": "evolved on lives of 10, 30 and 90 updates", "ta_lpg": "the same, told the time (TA-LPG)"}
LIVES = (10, 30, 90)  # updates
TASKS = {"random": "random weights", "reinforce": "REINFORCE", "a2c": "A2C"} | EVOLVED | OF_LIVES
HELD_OUT = 10_000  # what keys of held-out levels begin with


@dataclass(frozen=True)
class Budget:
    generations: int = 60
    population: int = 16
    levels: int = 4  # of each generation
    buffer: int = 200  # levels that are remembered
    seeds: int = 3  # of evolution
    held_out: int = 64  # levels


def learned(each, config, env):
    """Return at the end of the life of an agent: `each` is its rule, its level and its key."""
    rule, drawn, key = each
    _, metrics = rlx.train(lpg, config, bound(env, drawn), key, rule=rule)
    return meta.last_return(metrics, 0.2)


def ordinary(algorithm, each, config, env):
    """The same of an agent without a rule."""
    drawn, key = each
    _, metrics = rlx.train(algorithm, config, bound(env, drawn), key)
    return meta.last_return(metrics, 0.2)


LIFE, ORDINARY = spread(learned), {a: spread(partial(ordinary, a)) for a in (lpg, ppo)}


def lives(rules: Any, drawn: Any, keys: jax.Array, num_updates: int = 30) -> np.ndarray:
    """Returns `[P, M]` of agents with each of P rules on each of M levels, with the level's key."""
    config = rlx.replace(AGENT, total_steps=num_updates * AGENT.steps_per_update)
    env = rlx.envs.make("rlx/Levels")
    num, of = len(jax.tree.leaves(rules)[0]), len(keys)
    each = jax.tree.map(lambda x: jnp.repeat(x, of, axis=0), rules)
    places = jax.tree.map(lambda x: jnp.tile(x, (num, *[1] * (x.ndim - 1))), drawn)
    return np.asarray(LIFE((each, places, jnp.tile(keys, num)), config, env)).reshape(num, of)


def evolve(kind: str, seed: int, budget: Budget, directory: Path) -> tuple[Any, list[dict[str, Any]]]:
    """What evolution proposes after all of its generations, and a row for each of them."""
    env = rlx.envs.make("rlx/Levels")
    start_key, evolve_key, fill_key, choose_key = jax.random.split(jax.random.key(seed), 4)
    start = meta.lpg(start_key, UNITS, timed=kind == "ta_lpg")
    strategy = meta.open_es(start, budget.population, sigma=0.1, learning_rate=0.02)
    state = {"generation": meta.first(strategy, start, evolve_key), "buffer": meta.fill(fill_key, level, budget.buffer)}
    if checkpoint.numbers(directory / "checkpoints"):
        state = uncommitted(checkpoint.restore(directory / "checkpoints", state))
    rows = read_rows(directory / "generations.jsonl")[: int(state["generation"].number)]

    def fitness(candidates, key):
        chosen_key, fresh_key = jax.random.split(jax.random.fold_in(choose_key, len(rows)))
        chosen = meta.choose(state["buffer"], chosen_key, budget.levels)
        replayed = float((~state["buffer"].new[chosen]).mean()) if kind == "groove" else 0.0
        drawn = jax.tree.map(lambda x: x[chosen], state["buffer"].levels)
        if kind != "groove":
            drawn = jax.vmap(level)(jax.random.split(chosen_key, budget.levels))
        keys = jax.random.split(key, budget.levels)
        num_updates = LIVES[len(rows) % len(LIVES)] if kind in OF_LIVES else 30
        returns = np.asarray(lives(candidates, drawn, keys, num_updates))
        returns = np.where(np.isfinite(returns), returns, np.nan)
        of_a2c = np.nan if kind in OF_LIVES else np.asarray(ORDINARY[ppo]((drawn, keys), A2C, env))
        regret = of_a2c - np.nanmean(returns, axis=0)
        if kind == "groove":
            state["buffer"] = meta.record(state["buffer"], chosen, jnp.asarray(regret), fresh_key, level)
        row = {"generation": len(rows) + 1, "return": float(np.nanmean(returns)), "regret": float(regret.mean())}
        rows.append(row | {"replayed": replayed})
        scale = np.nanstd(returns, axis=0) + 1e-3  # levels count alike, whatever they pay
        return ((returns - np.nanmean(returns, axis=0)) / scale).mean(axis=1)

    def after(generation, scores):
        state["generation"] = generation
        number = int(generation.number)
        if number % 10 == 0 or number == budget.generations:
            directory.mkdir(parents=True, exist_ok=True)
            write_rows(directory / "generations.jsonl", rows)
            checkpoint.save(directory / "checkpoints", number, state)
            print(f"{kind}, seed {seed}, generation {number}: return {rows[-1]['return']:.3f}", flush=True)

    end = meta.evolve(strategy, state["generation"], fitness, budget.generations, after)
    return meta.mean(strategy, end), rows


def measure(kind: str, budget: Budget, directory: Path) -> dict[str, Any]:
    """Returns `[seeds, held-out levels]` of agents with a rule of this kind."""
    env = rlx.envs.make("rlx/Levels")
    level_keys = jax.random.split(jax.random.key(HELD_OUT), budget.held_out)
    drawn, keys = jax.vmap(level)(level_keys), jax.random.split(jax.random.key(HELD_OUT + 1), budget.held_out)
    logs: list[Any] = []
    if kind in ("reinforce", "a2c"):
        algorithm, config = (lpg, AGENT) if kind == "reinforce" else (ppo, A2C)
        returns = np.asarray(ORDINARY[algorithm]((drawn, keys), config, env))[None]
    else:
        rules = []
        for seed in range(budget.seeds):
            if kind == "random":
                rules.append(meta.lpg(jax.random.key(HELD_OUT + seed), UNITS))
                continue
            rule, rows = evolve(kind, seed, budget, directory / f"seed_{seed}")
            meta.save(directory / f"seed_{seed}" / "rule.npz", rule, {"evolved": TASKS[kind]})
            rules.append(rule)
            logs.append([[round(row[name], 4) for name in ("return", "regret", "replayed")] for row in rows])
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *rules)
        lengths = LIVES if kind in OF_LIVES else (30,)
        returns = np.stack([lives(stacked, drawn, keys, num) for num in lengths], axis=1)  # [seeds, lengths, levels]
        returns = returns if kind in OF_LIVES else returns[:, 0]
    return {
        "task": kind,
        "returns": np.round(returns.astype(float), 4).tolist(),
        "generations": logs,
        "budget": vars(budget),
        "versions": {package: version(package) for package in PACKAGES},
    }


def over_random(results: dict[str, dict], kind: str) -> np.ndarray:
    """By how much agents with a rule return more than those with random ones, on each level, means over seeds."""
    mean = lambda kind: np.nanmean(np.array(results[kind]["returns"], float), axis=0)
    return mean(kind) - mean("random")


def of_one_length(results: dict[str, dict]) -> dict[str, dict]:
    """The results of lives of 30 updates, all of them alike."""
    return {kind: result for kind, result in results.items() if kind not in OF_LIVES}


def table(results: dict[str, dict]) -> str:
    """Returns on held-out levels in Markdown, a row a rule, and those of lives of several lengths."""
    lines = [["rule", "seeds", "return on held-out levels", "more than with random weights", "better on"]]
    lines += [["---", *["--:"] * 4]]
    estimate = "{value:.3f} [{low:.3f}, {high:.3f}]"
    for kind, result in of_one_length(results).items():
        returns = np.array(result["returns"], float)
        cells = [estimate.format(**interval([np.nanmean(returns, axis=0)]))]
        more = over_random(results, kind) if "random" in results and kind != "random" else None
        cells += ["", ""] if more is None else []
        if more is not None:
            cells += [estimate.format(**interval([more]))]
            cells += [f"{(more > 0).mean():.0%} of the levels"]
        lines.append([TASKS[kind], str(len(returns)), *cells])
    if results.keys() >= OF_LIVES.keys():
        lines += [[], ["rule", "seeds", *(f"return after {num} updates" for num in LIVES)], ["---", *["--:"] * 4]]
        found = {kind: np.array(results[kind]["returns"], float) for kind in OF_LIVES}  # [seeds, lengths, levels]
        found = {kind: (str(len(x)), np.nanmean(x, axis=0)) for kind, x in found.items()}
        for kind, (seeds, means) in found.items():
            lines.append([TASKS[kind], seeds, *(estimate.format(**interval([x])) for x in means)])
        gained = found["ta_lpg"][1] - found["lives"][1]
        lines.append(["by how much more where told", "", *(estimate.format(**interval([x])) for x in gained)])
    return "".join(f"| {' | '.join(line)} |\n" if line else "\n" for line in lines)


def draw(results: dict[str, dict], path: Path) -> None:
    """How far evolution is behind A2C on its levels, and how returns on held-out levels are spread."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    for i, kind in enumerate(kind for kind in EVOLVED if kind in results):
        for seed in np.array(results[kind]["generations"]):
            width = max(1, len(seed) // 10)
            smooth = np.convolve(seed[:, 1], np.ones(width) / width, "valid")
            left.plot(np.arange(len(smooth)) + width, smooth, color=f"C{i}", lw=1.2, alpha=0.8)
        left.plot([], [], color=f"C{i}", label=TASKS[kind])
    left.axhline(0.0, color="k", lw=0.5)
    left.set(xlabel="generation", ylabel="regret: A2C less the population", title="on the levels of evolution")
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    shown = [kind for kind in of_one_length(results) if kind != "random"] if "random" in results else []
    if shown:
        right.violinplot([over_random(results, kind) for kind in shown], showmeans=True)
        right.set_xticks(range(1, len(shown) + 1), shown)
    right.axhline(0.0, color="k", lw=0.5)
    right.set(ylabel="return over that of random weights", title="on held-out levels")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(task: Literal[*TASKS] | None = None, short: bool = False, runs: Path = Path("runs/rules")) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        short: a few small generations, to see that everything works; all of it stays below `runs`.
        runs: folder of what evolution leaves behind; to have a case measured again, remove its result and its folder.
    """
    use_devices()
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)
    budget = Budget(generations=3, population=4, levels=2, buffer=8, seeds=2, held_out=4) if short else Budget()
    run = lambda kind: measure(kind, budget, runs / kind)
    experiment(folder, {kind: kind for kind in TASKS}, run, draw, table, lambda kind: task in (None, kind))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
