"""Can a run find its own learning rate and entropy coefficient while it trains? PPO beside PPO with meta-gradients.

    python experiments/meta_gradient/compare.py
    python experiments/meta_gradient/compare.py --short

Both begin with PPO's default settings, and both take the same number of environment steps, up to a rest of four
rollouts; of those with meta-gradients a fifth is looked at by the rule only.
"""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import rlx
from rlx import meta
from rlx.algos import ppo
from rlx.devices.sharding import use_devices
from rlx.devices.spread import spread
from rlx.report import experiment, interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
PACKAGES = ("rlx", "jax", "jaxlib", "optax", "gymnax")
FIRST_SEED = 100  # settings of the rule were looked for on seeds 0 to 15
RATE, NUM_UPDATES = 0.1, 4  # of the rule's Adam; updates between its steps


@dataclass(frozen=True)
class Task:
    env: str
    total_steps: int
    seeds: int = 10
    episodes: int = 32


TASKS = {f"CartPole-v1, {n}k": Task("gymnax/CartPole-v1", 1000 * n) for n in (25, 50, 100)}
METHODS = {"default": "PPO, default settings", "meta": "PPO, rates by meta-gradient"}


def rates(rule, config):
    """Learning rate and entropy coefficient by their logarithms."""
    return rlx.replace(config, learning_rate=jnp.exp(rule[0]), entropy_coef=jnp.exp(rule[1])), {}


def measure(task: Task, method: str) -> dict[str, Any]:
    """Returns of all seeds, evaluated and in the last quarter of training, and how their rates went."""
    env, config = rlx.envs.make(task.env), ppo.Config(total_steps=task.total_steps)
    rule = jnp.log(jnp.array([config.learning_rate, config.entropy_coef]))
    num_rollouts = rlx.total_updates(config)
    if method == "meta":  # in whole steps of the rule
        num_rollouts = -(-num_rollouts // (NUM_UPDATES + 1)) * (NUM_UPDATES + 1)

    def lane(key):
        train_key, evaluate_key = jax.random.split(key)
        if method == "meta":
            learned, (metrics, rules, _) = meta.meta_train(
                ppo, rates, config, env, rule, train_key, NUM_UPDATES, optax.adam(RATE)
            )
            state = learned.state
            metrics = {name: metrics[name].reshape(-1) for name in ("num_episodes", "episode_return")}
        else:
            state, metrics = rlx.train(ppo, config, env, train_key)
            rules = rule[None]
        episodes = rlx.evaluate(ppo, config, env, state, evaluate_key, num_episodes=task.episodes)
        return episodes.returns.mean(), meta.last_return(metrics), jnp.exp(rules)

    keys = jax.vmap(jax.random.key)(np.arange(FIRST_SEED, FIRST_SEED + task.seeds))
    returns, trained, rules = spread(lane)(keys)
    return {
        "returns": np.round(np.asarray(returns, float), 1).tolist(),
        "trained": np.round(np.asarray(trained, float), 1).tolist(),
        "rates": [[[float(f"{x:.4g}") for x in step] for step in seed] for seed in np.asarray(rules)],
        "steps": num_rollouts * config.steps_per_update,
        "config": asdict(config),
        "versions": {package: version(package) for package in PACKAGES},
    }


def table(results: dict[tuple[str, str], dict]) -> str:
    """Returns in Markdown, and the rates at the end."""
    lines = [["task", "method", "steps", "seeds", "return, evaluated", "in the last quarter of training"]]
    lines[0] += ["learning rate, not annealed, at the end", "entropy coefficient"]
    lines += [["---", "---", *["--:"] * 6]]
    for (task, method), result in results.items():
        scores = [interval([np.array(result[name])]) for name in ("returns", "trained")]
        scores = ["{value:.0f} [{low:.0f}, {high:.0f}]".format(**score) for score in scores]
        last = np.array(result["rates"])[:, -1]
        spans = [f"{np.median(x):.2g} ({x.min():.2g} to {x.max():.2g})" for x in last.T]
        lines.append([task, METHODS[method], f"{result['steps']:,}", str(len(result["returns"])), *scores, *spans])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """A row a task: returns of each seed, and the rates of each by the steps of the rule."""
    tasks = list(dict.fromkeys(task for task, _ in results))
    size = {"figsize": (10, 2.7 * len(tasks)), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(len(tasks), 3, **size)
    for (left, *others), task in zip(panels, tasks, strict=True):
        found = {method: result for (t, method), result in results.items() if t == task}
        for i, result in enumerate(found.values()):
            returns = np.array(result["returns"])
            left.plot(np.full(len(returns), i) + np.linspace(-0.1, 0.1, len(returns)), returns, "o", ms=4, alpha=0.7)
            for axis, values in zip(others, np.array(result["rates"]).transpose(2, 0, 1), strict=True):
                for seed in values:
                    style = {"color": f"C{i}", "lw": 1, "alpha": 0.6}
                    axis.plot(seed, **style) if len(seed) > 1 else axis.axhline(seed[0], ls="--", **style)
        left.set_xticks(range(len(found)), found)
        left.set(ylabel=f"{task}\nreturn, evaluated", xlim=(-0.5, len(METHODS) - 0.5))
        for axis, title in zip(others, ("learning rate", "entropy coefficient"), strict=True):
            axis.set(xlabel="steps of the rule", title=title, yscale="log")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(task: Literal[*TASKS] | None = None, short: bool = False, runs: Path = Path("runs/meta_gradient")) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        short: a few updates of two seeds, to see that everything works; all of it stays below `runs`.
        runs: where that is.
    """
    use_devices()
    cases = {(t, method): f"{t.replace(', ', '-')}-{method}" for t in TASKS for method in METHODS}

    def run(case):
        chosen = TASKS[case[0]]
        if short:
            chosen = Task(chosen.env, 5_120, seeds=2, episodes=2)
        return {"task": case[0], "method": case[1]} | measure(chosen, case[1])

    experiment(runs / "short" if short else HERE, cases, run, draw, table, lambda case: task in (None, case[0]))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
