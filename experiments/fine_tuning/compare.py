"""From middling demonstrations to a clone, and from the clone by reinforcement learning to more than was shown.

    python experiments/fine_tuning/compare.py
    python experiments/fine_tuning/compare.py --task cartpole --method dppo

For each task an expert is trained, and shown as it was when it returned half as much: one file for all methods. Each
method clones it on several seeds, trains on from each clone for the same steps, and is measured at both. The first
updates after cloning are the critic's alone. What has no result yet is measured, one file a task and a method; then the
figure and the table of README.md are made.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import rlx
from rlx.algos import dppo, fpo, policyflow, ppo
from rlx.data import Demonstrations, clone, collect, load, save, started_from
from rlx.devices.sharding import use_devices
from rlx.devices.spread import spread
from rlx.env import with_params
from rlx.envs.tasks.multigoal import coverage, goal_entropy, goal_shares, goals_reached
from rlx.presets import preset
from rlx.report import experiment, interval
from rlx.rollout import reset, rollout

matplotlib.use("Agg")
import itertools

import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter

HERE = Path(__file__).resolve().parent
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "mujoco-mjx")
NUM_EPISODES, NUM_CURVE = 200, 20
WARMUP = 5  # updates


@dataclass(frozen=True)
class Method:
    label: str
    algorithm: ModuleType
    changes: dict[str, dict[str, Any]]  # of the tuned settings, by task
    cloned: bool = True


DPPO = {"trained_steps": 5}
METHODS = {
    "ppo": Method("Gaussian, PPO", ppo, {}),
    "dppo": Method("diffusion, DPPO", dppo, {"MultiGoal": DPPO | {"action_bound": 5.0}, "cartpole": DPPO}),
    "dppo-cloning": Method(
        "diffusion, DPPO with a cloning term",
        dppo,
        {"MultiGoal": DPPO | {"action_bound": 5.0, "imitation_coef": 0.2}},
    ),
    "fpo": Method("flow, FPO++", fpo, {"MultiGoal": {"learning_rate": 1e-3}}),
    "ppo-scratch": Method("Gaussian, PPO from scratch", ppo, {}, cloned=False),
}


@dataclass(frozen=True)
class Task:
    env: str
    expert: ModuleType
    expert_steps: int
    total_steps: int  # of training on
    sampled: bool  # whether actions are sampled where they are scored, as they are where they are shown
    methods: tuple[str, ...] = tuple(METHODS)
    env_params: dict[str, Any] = field(default_factory=dict)
    episodes: int = 100  # shown
    gradient_steps: int = 10_000  # of cloning
    seeds: int = 5


TASKS = {
    "MultiGoal": Task("rlx/MultiGoal", policyflow, 1_500_000, 500_000, True, env_params={"start": 0.0}),
    "cartpole": Task("mjx/cartpole", ppo, 1_500_000, 800_000, False, ("ppo", "dppo", "fpo", "ppo-scratch")),
}


def modes(algorithm, config, env, state, key):
    """Of MultiGoal: the goals that episodes from the middle come to, acting as in training."""
    reset_key, key = jax.random.split(key)
    start = reset(env, reset_key, 1000)
    _, traj = rollout(env, partial(algorithm.act, config, env, state), start, key, 51)
    last = jnp.argmax(traj.done, axis=0)
    shares = goal_shares(goals_reached(traj.next_obs[last, jnp.arange(1000), :2]))
    return {"coverage": coverage(shares), "entropy": goal_entropy(shares), "shares": shares}


def score(task, algorithm, config, env, state, key):
    """Mean return of whole episodes, and modes where there are some."""
    found = {"return": rlx.evaluate(algorithm, config, env, state, key, NUM_EPISODES, not task.sampled).returns.mean()}
    return found | modes(algorithm, config, env, state, key) if task.env == "rlx/MultiGoal" else found


def demonstrate(task: Task, path: Path) -> Demonstrations:
    """Episodes of an expert from the moment in its training when it returned half as much as in the end.

    What is there already is read.
    """
    if path.exists():
        return load(path)
    env, algorithm = rlx.envs.make(task.env), task.expert
    here = with_params(env, task.env_params)
    config = preset(algorithm, task.env, total_steps=task.expert_steps)
    train_key, score_key, show_key = jax.random.split(jax.random.key(0), 3)
    state = jax.jit(partial(algorithm.init, config, env))(train_key)
    done = np.linspace(0, rlx.total_updates(config), 61).round().astype(int)
    play = partial(rlx.evaluate, algorithm, config, here, key=score_key, num_episodes=NUM_EPISODES)
    value = lambda state, sampled: float(play(state=state, deterministic=not sampled).returns.mean())
    states, values = [], []
    for num in np.diff(done).tolist():
        state, _ = rlx.resume(algorithm, config, env, state, num_updates=num)
        states.append(state)
        values.append(value(state, sampled=True))
    half = int(np.argmin(np.abs(np.array(values) - values[-1] / 2)))
    shown = collect(algorithm, config, here, states[half], show_key, task.episodes, deterministic=False)
    name, step = algorithm.__name__.removeprefix("rlx.algos."), int(done[half + 1]) * config.steps_per_update
    expert, mean = value(state, task.sampled), float(shown.returns.mean())
    policy = {"algorithm": name, "step": step, "expert_return": expert, "mean_return": mean}
    about = {"env": task.env, "env_options": {}, "env_params": task.env_params, "policies": [policy], "seed": 0}
    save(path, rlx.replace(shown, about=about))
    return load(path)


def measure(task_name: str, task: Task, method: Method, shown: Demonstrations, **more: Any) -> dict[str, Any]:
    """Clones, trains on and measures all seeds; the result as it is written to its file."""
    algorithm = method.algorithm
    changes = method.changes.get(task_name, {}) | more
    config = preset(algorithm, task.env, **changes | {"total_steps": task.total_steps})
    env = with_params(rlx.envs.make(task.env), task.env_params)
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(np.arange(task.seeds))
    fresh = jax.jit(jax.vmap(partial(algorithm.init, config, env)))(keys[:, 0])
    if method.cloned:
        states = [clone(algorithm, config, env, shown, key, task.gradient_steps)[0] for key in keys[:, 1]]
        fresh = started_from(fresh, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))

    def warm(state, _):
        new, metrics = algorithm.update(config, env, state)
        return rlx.replace(new, params=new.params | {"actor": state.params["actor"]}), metrics

    def returns(metrics):
        return jnp.where(metrics["num_episodes"] > 0, metrics["episode_return"], jnp.nan)

    def lane(one):
        key, state = one
        before_key, after_key = jax.random.split(key)
        before = score(task, algorithm, config, env, state, before_key)
        curves = []
        if method.cloned:
            state, metrics = jax.lax.scan(warm, state, length=WARMUP)
            curves.append(returns(metrics))
        num_updates = rlx.total_updates(config) - WARMUP * method.cloned
        state, metrics = rlx.resume(algorithm, config, env, state, num_updates=num_updates)
        curve = jnp.concatenate([*curves, returns(metrics)])
        return before, score(task, algorithm, config, env, state, after_key), curve

    before, after, curve = jax.device_get(spread(lane)((keys[:, 2], fresh)))
    points = np.linspace(0, curve.shape[1], NUM_CURVE + 1).astype(int)
    return {
        "env": task.env,
        "env_params": task.env_params,
        "steps": rlx.total_updates(config) * config.steps_per_update,
        "seeds": list(range(task.seeds)),
        "shown": shown.about | {"num_steps": len(shown.reward)},
        "cloned": {k: np.round(np.asarray(v, float), 4).tolist() for k, v in before.items()},
        "trained": {k: np.round(np.asarray(v, float), 4).tolist() for k, v in after.items()},
        "curve": [[float(f"{np.nanmean(row[a:b]):.4g}") for a, b in itertools.pairwise(points)] for row in curve],
        "config": asdict(config),
        "versions": {package: version(package) for package in PACKAGES},
    }


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """Training on from the clone: a panel a task, a line a method; dashed, what was shown and what the expert got."""
    tasks = list(dict.fromkeys(task for task, _ in results))
    figure, panels = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4.4), layout="constrained", squeeze=False)
    for axes, task in zip(panels.flat, tasks, strict=True):
        for color, (name, method) in zip(plt.cm.tab10.colors, METHODS.items(), strict=False):
            if (task, name) not in results:
                continue
            result = results[task, name]
            curve = np.array(result["curve"], float)
            bands = [interval([seeds]) for seeds in curve.T]
            value, low, high = ([band[key] for band in bands] for key in ("value", "low", "high"))
            steps = result["steps"] * (np.arange(curve.shape[1]) + 1) / curve.shape[1]
            axes.plot(steps, value, color=color, label=method.label, lw=1.5)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
        policy = result["shown"]["policies"][0]
        for key, text in (("mean_return", "shown"), ("expert_return", "the expert at its end")):
            axes.axhline(policy[key], color="0.4", ls="--", lw=1)
            axes.text(0, policy[key], f" {text}", va="bottom", fontsize=8, color="0.3")
        axes.set(title=task, xlabel="environment steps after cloning", ylabel="return in training")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines() if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(results: dict[tuple[str, str], dict]) -> str:
    """Returns and modes in Markdown, a row a task and a method: means over seeds with their intervals."""
    lines = [["task", "method", "cloned", "trained on", "goals, cloned", "goals, trained on", "entropy / log 6"]]
    lines += [["---", "---", "--:", "--:", "--:", "--:", "--:"]]
    for (task, name), result in results.items():
        before, after = result["cloned"], result["trained"]
        row = [task, METHODS[name].label, cell(before["return"]) if METHODS[name].cloned else "", cell(after["return"])]
        if "coverage" in after:
            row += [cell(before["coverage"]) if METHODS[name].cloned else "", cell(after["coverage"])]
            row += [cell(after["entropy"], 2)]
        lines.append([*row, *[""] * (7 - len(row))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(values: list[float], digits: int = 1) -> str:
    found = interval([np.array(values)])
    return "{value:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(**found, d=digits)


def main(
    task: Literal[*TASKS] | None = None,
    method: Literal[*METHODS] | None = None,
    short: bool = False,
    runs: Path = Path("runs/fine_tuning"),
) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        method: only this one.
        short: a hundredth of the steps on two seeds, to see that everything works; all of it stays below `runs`.
        runs: folder of the demonstrations.
    """
    use_devices()
    jax.config.update("jax_default_matmul_precision", "float32")
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)

    def run(case):
        chosen = TASKS[case[0]]
        if short:
            fewer = {key: getattr(chosen, key) // 100 for key in ("expert_steps", "total_steps", "gradient_steps")}
            chosen = Task(**vars(chosen) | fewer | {"seeds": 2})
        shown = demonstrate(chosen, runs / f"{case[0]}.npz")
        return {"task": case[0], "method": case[1]} | measure(case[0], chosen, METHODS[case[1]], shown)

    cases = {(t, m): f"{t}-{m}" for t in TASKS for m in TASKS[t].methods}
    only = lambda case: task in (None, case[0]) and method in (None, case[1])
    experiment(folder, cases, run, draw, table, only)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
