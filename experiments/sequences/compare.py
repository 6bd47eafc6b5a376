"""What GRPO's relatives make of a policy that solves some of its problems.

    python experiments/sequences/compare.py
    python experiments/sequences/compare.py --task Sort --variant dapo

Trains every variant on every task with the same number of tokens, from the same first policies; then draws the figure
and writes the table of README.md. What has a result is left alone.
"""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import matplotlib
import numpy as np

import rlx
from rlx.algos import grpo_tokens
from rlx.algos.grpo_tokens import VARIANTS
from rlx.devices.sharding import use_devices
from rlx.devices.spread import spread
from rlx.groups import clone, pass_at_k
from rlx.presets import preset
from rlx.report import experiment, interval
from rlx.rollout import reset
from rlx.tokens import write

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter, NullLocator

HERE = Path(__file__).resolve().parent
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax")
SAMPLES, PROBLEMS = 16, 256
KS = (1, 4, 16)
POINTS = 40  # of a curve


@dataclass(frozen=True)
class Task:
    env: str
    total_steps: int
    seeds: int = 5


TASKS = {
    "Reverse": Task("rlx/Reverse", 150_000),
    "Sort": Task("rlx/Sort", 300_000),
    "ModularAddition": Task("rlx/ModularAddition", 500_000),
    "Countdown": Task("rlx/Countdown", 300_000),
}


def accuracy(config, env, state, key) -> dict[str, jax.Array]:
    """Share of problems that the most likely answer solves, and at least one of k samples."""
    greedy_key, reset_key, write_key = jax.random.split(key, 3)
    greedy = rlx.evaluate(grpo_tokens, config, env, state, greedy_key, num_episodes=PROBLEMS).returns
    start = clone(reset(env, reset_key, PROBLEMS), SAMPLES)
    network = grpo_tokens.networks(config, env)
    _, traj, _ = write(network, state.params["actor"], env, start, write_key, config.num_steps)
    correct = (traj.reward == 1.0).any(axis=0).reshape(PROBLEMS, SAMPLES)
    return {"greedy": (greedy == 1.0).mean()} | {f"pass_{k}": pass_at_k(correct, k).mean() for k in KS}


def lane(key, config, env):
    """One seed: how good the policy is at first and in the end, and its rewards on the way."""
    init_key, first_key, last_key = jax.random.split(key, 3)
    first = grpo_tokens.init(config, env, init_key)
    last, metrics = rlx.resume(grpo_tokens, config, env, first, num_updates=rlx.total_updates(config))
    ends = {"first": (first, first_key), "last": (last, last_key)}
    found = {name: accuracy(config, env, state, key) for name, (state, key) in ends.items()}
    return found, {name: metrics[name] for name in ("episode_return", "degenerate_fraction", "clip_fraction")}


def measure(task: Task, changes: dict[str, Any]) -> dict[str, Any]:
    """All seeds of a variant on a task; the result as it is written to its file."""
    env = rlx.envs.make(task.env)
    config = preset(grpo_tokens, task.env, total_steps=task.total_steps, **changes)
    grpo_tokens.check(config, env)
    keys = jax.vmap(jax.random.key)(np.arange(task.seeds))
    found, metrics = jax.device_get(spread(lane)(keys, config, env))
    num_updates = rlx.total_updates(config)
    edges = np.linspace(0, num_updates, min(POINTS, num_updates) + 1).astype(int)
    stretches = lambda x: np.add.reduceat(x, edges[:-1], axis=1) / np.diff(edges)
    return {
        "env": task.env,
        "steps": rlx.steps_taken(config, num_updates),
        "seeds": list(range(task.seeds)),
        "first": {name: x.tolist() for name, x in found["first"].items()},
        "last": {name: x.tolist() for name, x in found["last"].items()},
        "curve": {
            "steps": [rlx.steps_taken(config, int(edge)) for edge in edges[1:]],
            **{name: np.round(stretches(x).mean(axis=0), 4).tolist() for name, x in metrics.items()},
        },
        "config": asdict(config),
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """A row a task: rewards on the way, and what shares of problems k samples solve at first and in the end."""
    tasks = list(dict.fromkeys(task for task, _ in results))
    size = {"figsize": (10, 3 * len(tasks) + 0.8), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(len(tasks), 2, **size)
    for (curves, ends), task in zip(panels, tasks, strict=True):
        found = {name: result for (of, name), result in results.items() if of == task}
        first = next(iter(found.values()))["first"]
        ends.plot(KS, [np.mean(first[f"pass_{k}"]) for k in KS], "o--", color="black", lw=1.5, label="at first")
        for color, name in zip(plt.cm.tab10.colors, VARIANTS, strict=False):
            if name in found:
                curve, last = found[name]["curve"], found[name]["last"]
                curves.plot(curve["steps"], curve["episode_return"], color=color, lw=1.5, label=name)
                ends.plot(KS, [np.mean(last[f"pass_{k}"]) for k in KS], "o-", color=color, lw=1.5)
        curves.set(title=task, xlabel="tokens written", ylabel="share solved in training", ylim=(0, 1.02))
        ends.set(title=task, xlabel="answers k", ylabel="pass@k", xscale="log", ylim=(0, 1.02))
        ends.set_xticks(KS, KS)
        ends.xaxis.set_minor_locator(NullLocator())
        curves.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axes in (curves, ends):
            axes.grid(alpha=0.3)
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines() if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def table(results: dict[tuple[str, str], dict]) -> str:
    """Shares solved in Markdown: a row a task and a variant, and one for the first policies of each task."""
    lines = [["task", "variant", "tokens", "gradient steps", "greedy [95 %]", *(f"pass@{k}" for k in KS)]]
    lines.append(["---", "---", *["--:"] * (3 + len(KS))])

    def gradient_steps(result):
        config = result["config"]
        per_update = config["num_groups"] * config["group_size"] * config["num_steps"]
        return result["steps"] // per_update * config["num_epochs"] * config["num_minibatches"]

    def row(task, name, steps, num_gradients, found):
        estimate = "{value:.1%} [{low:.1%}, {high:.1%}]".format(**interval([np.array(found["greedy"])]))
        return [
            task,
            name,
            f"{steps:,}",
            f"{num_gradients:,}",
            estimate,
            *(f"{np.mean(found[f'pass_{k}']):.1%}" for k in KS),
        ]

    told = set()
    for (task, name), result in results.items():
        if task not in told:
            lines.append(row(task, "*first policy*", 0, 0, result["first"]))
            told.add(task)
        lines.append(row(task, f"`{name}`", result["steps"], gradient_steps(result), result["last"]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(
    task: Literal[*TASKS] | None = None,
    variant: Literal[*VARIANTS] | None = None,
    short: bool = False,
    runs: Path = Path("runs/sequences"),
) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        variant: only this one.
        short: an update of two seeds, hardly taught, to see that everything works; all of it stays below `runs`.
        runs: where a short try writes.
    """
    use_devices()

    def run(case):
        chosen, changes = TASKS[case[0]], VARIANTS[case[1]]
        if short:
            chosen, changes = Task(chosen.env, 1, seeds=2), changes | {"warm_start_steps": 10}
        return {"task": case[0], "variant": case[1]} | measure(chosen, changes)

    cases = {(t, v): f"{t}-{v}" for t in TASKS for v in VARIANTS}
    only = lambda case: task in (None, case[0]) and variant in (None, case[1])
    experiment(runs if short else HERE, cases, run, draw, table, only)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
