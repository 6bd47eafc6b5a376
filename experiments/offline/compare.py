"""What methods make of data: three datasets of two tasks, and what choosing among the policies costs in episodes.

    python experiments/offline/compare.py
    python experiments/offline/compare.py --task Pendulum-v1 --method iql

SAC trains, and its policies make the data: some noise around a policy of the middle of training, around the last one,
and a mixture of these with an untrained one. Every method then learns from each dataset with two settings and five
seeds, which leaves ten policies. Files hold one method on one dataset; the figure and the table of README.md are made
from them. What is interrupted is gone on with by the same command.
"""

from dataclasses import dataclass, field
from functools import cache, partial
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
from rlx.algos import cql, iql, sac, td3_bc
from rlx.data import Demonstrations, best, collect, mixture
from rlx.devices.sharding import use_devices
from rlx.presets import configure, settings
from rlx.report import chosen_online, experiment, interval
from rlx.train import advance, evaluate, total_updates

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
SEEDS = 5
EPISODES = 100  # of each policy
PARTS = 10  # of the training of SAC, between which a policy of the middle is looked for
PULLS = (0, 1, 5, 20, 100)  # episodes that choosing may take
PACKAGES = ("rlx", "jax", "jaxlib", "flax", "optax", "gymnax", "brax")


@dataclass(frozen=True)
class Method:
    label: str
    algorithm: ModuleType
    own: dict[str, Any]  # settings that both points have
    grid: tuple[dict[str, float], ...]
    share: float = 1.0  # of the episodes, the best ones


def variant(algorithm: ModuleType, name: str, **own: Any) -> dict[str, Any]:
    return algorithm.VARIANTS[name] | own


RATES = ({"learning_rate": 3e-4}, {"learning_rate": 1e-3})
METHODS = {
    "bc": Method("BC", iql, variant(iql, "bc"), RATES),
    "bc10": Method("10 % BC", iql, variant(iql, "bc"), RATES, share=0.1),
    "iql": Method("IQL", iql, {}, ({"expectile": 0.7}, {"expectile": 0.9})),
    "xql": Method(
        "XQL", iql, variant(iql, "xql"), ({"gumbel_scale": 2.0, "beta": 0.5}, {"gumbel_scale": 10.0, "beta": 0.1})
    ),
    "awac": Method("AWAC", iql, variant(iql, "awac"), ({"beta": 1.0}, {"beta": 0.1})),
    "td3_bc": Method("TD3+BC", td3_bc, {}, ({"q_coef": 1.0}, {"q_coef": 2.5})),
    "rebrac": Method(
        "ReBRAC",
        td3_bc,
        {name: x for name, x in td3_bc.VARIANTS["rebrac"].items() if name not in ("hidden_sizes", "batch_size")},
        ({"actor_coef": 0.01, "critic_coef": 0.01}, {"actor_coef": 0.1, "critic_coef": 0.1}),
    ),
    "cql": Method("CQL", cql, {"actor_learning_rate": 3e-4, "num_actions": 4}, ({"cql_coef": 1.0}, {"cql_coef": 5.0})),
    "edac": Method("EDAC", cql, variant(cql, "edac"), ({"num_critics": 5}, {"num_critics": 10})),
}


@dataclass(frozen=True, eq=False)
class World:
    env: str
    data_steps: int  # of each dataset
    gradient_steps: int
    shared: dict[str, Any]  # settings of all methods
    options: dict[str, Any] = field(default_factory=dict)  # of the environment


@dataclass(frozen=True)
class Task:
    world: World
    data: str


NETWORK = {"batch_size": 128, "normalize_obs": True}
WORLDS = {
    "Pendulum-v1": World("gymnax/Pendulum-v1", 20_000, 10_000, NETWORK | {"hidden_sizes": (64, 64)}),
    "hopper": World("brax/hopper", 40_000, 15_000, NETWORK | {"hidden_sizes": (128, 128)}, {"backend": "spring"}),
}
DATASETS = ("medium", "mixed", "expert")
TASKS = {f"{name}-{data}": Task(world, data) for name, world in WORLDS.items() for data in DATASETS}


@cache
def environment(world: World) -> Any:
    return rlx.envs.make(world.env, **world.options)


@cache
def policies(world: World, short: bool) -> dict[str, Any]:
    """States of SAC: untrained, in the middle of what it learns, and at the end; and their returns."""
    env = environment(world)
    config = configure(sac.Config, settings(sac, world.env))
    if short:
        config = rlx.replace(config, total_steps=config.total_steps // 4)  # less would learn nothing
    updates = total_updates(config)
    length = -(-updates // PARTS)
    step = jax.jit(partial(advance, sac), static_argnames="length")
    played = jax.jit(partial(evaluate, sac, num_episodes=EPISODES))
    train_key, play_key = jax.random.split(jax.random.key(0))
    states = [jax.jit(partial(sac.init, config, env))(train_key)]
    for done in range(0, updates, length):
        num = min(length, updates - done)
        states.append(step(config, env, states[-1], jnp.int32(done), jnp.int32(num), length=length)[0])
        states[-2] = rlx.replace(states[-2], replay=states[0].replay)  # one buffer is enough
    returns = [float(np.mean(played(config, env, state, play_key).returns)) for state in states]
    top = max(range(len(states)), key=returns.__getitem__)
    third = returns[0] + (returns[top] - returns[0]) / 3
    middle = next(i for i, value in enumerate(returns) if value >= third)
    chosen = {"random": 0, "medium": middle, "expert": top}
    return {
        "config": config,
        "states": {name: states[i] for name, i in chosen.items()},
        "returns": {name: returns[i] for name, i in chosen.items()},
    }


def played_by(world: World, who: str, noise: float, num_steps: int, short: bool) -> Demonstrations:
    """Whole episodes of a policy of SAC, of about so many steps."""
    found, env = policies(world, short), environment(world)
    key = jax.random.key(DATASETS.index(who) + 1 if who in DATASETS else 0)
    num = max(1, num_steps // (env.max_steps or 1000))
    while True:
        part = collect(sac, found["config"], env, found["states"][who], key, num, noise, deterministic=who != "random")
        if part.ends[-1] + 1 >= num_steps:
            break
        num *= 2
    last = part.ends[np.searchsorted(part.ends, num_steps - 1)] + 1
    return Demonstrations(
        **{name: jax.tree.map(lambda x: x[:last], getattr(part, name)) for name in vars(part) if name != "about"},
        about={},
    )


@cache
def dataset(world: World, name: str, short: bool) -> Demonstrations:
    """`medium` and `expert` are a policy with noise, `mixed` is of three policies in equal parts."""
    steps = world.data_steps // (20 if short else 1)
    if name == "mixed":
        parts = [("random", 0.0), ("medium", 0.3), ("expert", 0.1)]
        return mixture([played_by(world, *part, steps // 3, short) for part in parts], {"env": world.env})
    return mixture([played_by(world, name, {"medium": 0.3, "expert": 0.1}[name], steps, short)], {"env": world.env})


def measure(method: Method, task: Task, directory: Path, short: bool) -> dict[str, Any]:
    """All policies of a method on a dataset, and what is chosen of them; as it is written to its file."""
    world = task.world
    data, env = dataset(world, task.data, short), environment(world)
    config = configure(method.algorithm.Config, world.shared | method.own)
    steps = world.gradient_steps // (20 if short else 1)
    config = rlx.replace(config, total_steps=steps)
    where = {"num_seeds": SEEDS, "directory": directory, "console": Console(), "eval_episodes": EPISODES}
    given = best(data, method.share) if method.share < 1 else data
    lanes = rlx.sweep(method.algorithm, config, env, method.grid, data=given, **where).lanes
    returns = [np.array(lane["evaluation"]["returns"], np.float64) for lane in lanes]
    scale = policies(world, short)["returns"]
    died = sum(lane["died_at"] is not None for lane in lanes)
    curve = chosen_online(
        [np.nan_to_num(x, nan=scale["random"]) for x in returns], scale["random"], scale["expert"], max(PULLS)
    )
    return {
        "env": world.env,
        "gradient_steps": steps,
        "scale": scale,
        "data": {
            "episodes": len(data.returns),
            "steps": len(data.reward),
            "mean_return": float(data.returns.mean()),
            "score": float((data.returns.mean() - scale["random"]) / (scale["expert"] - scale["random"])),
        },
        "died": died,
        "policies": [
            lane["varied"] | {"seed": lane["seed"], "return": round(float(x.mean()), 2)}
            for lane, x in zip(lanes, returns, strict=True)
        ],
        "chosen": {
            str(pulls): [round(float(x[pulls]), 4) for x in (curve.value, curve.low, curve.high)] for pulls in PULLS
        },
        "versions": {package: version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def scores(result: dict[str, Any]) -> np.ndarray:
    """Of each policy: 0 is an untrained one, 1 the best of SAC."""
    low, high = (result["scale"][name] for name in ("random", "expert"))
    return np.array([(policy["return"] - low) / (high - low) for policy in result["policies"]])


def best_setting(result: dict[str, Any]) -> list[float]:
    """Scores of the seeds of the setting whose mean is greatest."""
    found = scores(result)
    return max((found[i : i + SEEDS].tolist() for i in range(0, len(found), SEEDS)), key=np.mean)


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """A panel a dataset: score of the chosen policy by episodes played, a line a method; the data's own is dotted."""
    worlds = [name for name in WORLDS if any(case[0].startswith(name) for case in results)]
    size = {"figsize": (11, 3.2 * len(worlds) + 0.9), "layout": "constrained", "squeeze": False}
    figure, panels = plt.subplots(len(worlds), len(DATASETS), **size)
    for row, world in zip(panels, worlds, strict=True):
        for axes, data in zip(row, DATASETS, strict=True):
            for color, (name, method) in zip(plt.cm.tab10.colors, METHODS.items(), strict=False):
                if result := results.get((f"{world}-{data}", name)):
                    values = [result["chosen"][str(pulls)][0] for pulls in PULLS]
                    axes.plot(range(len(PULLS)), values, color=color, marker=".", label=method.label, lw=1.3)
                    axes.axhline(result["data"]["score"], color="gray", lw=0.8, ls=":")
            axes.set_xticks(range(len(PULLS)), map(str, PULLS))
            axes.set(title=f"{world}, {data}", xlabel="episodes to choose by")
            axes.grid(alpha=0.3)
        row[0].set_ylabel("score")
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines() if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(METHODS))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(results: dict[tuple[str, str], dict]) -> str:
    """Scores in Markdown, a row a dataset and a method."""
    lines = [["data", "its score", "method", *(f"{pulls} episodes" for pulls in PULLS), "better setting [95 %]"]]
    lines.append(["---", "--:", "---", *["--:"] * len(PULLS), "--:"])
    for (task, name), result in results.items():
        chosen = [f"{result['chosen'][str(pulls)][0]:.2f}" for pulls in PULLS]
        estimate = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**interval([np.array(best_setting(result))]))
        lines.append([task, f"{result['data']['score']:.2f}", METHODS[name].label, *chosen, estimate])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(
    task: Literal[*TASKS] | None = None,
    method: Literal[*METHODS] | None = None,
    short: bool = False,
    runs: Path = Path("runs/offline"),
) -> None:
    """Measures what has no result yet, then draws the figure and writes the table.

    Args:
        task: only this one.
        method: only this one.
        short: a twentieth of the steps, to see that everything works; all of it stays below `runs`.
        runs: folder of what training leaves behind; to have a case measured again, remove its result and its folder.
    """
    use_devices()
    jax.config.update("jax_default_matmul_precision", "float32")
    folder, runs = (runs / "short", runs / "short") if short else (HERE, runs)
    cases = {(t, m): f"{t}-{m}" for t in TASKS for m in METHODS}

    def run(case):
        return {"task": case[0], "method": case[1]} | measure(
            METHODS[case[1]], TASKS[case[0]], runs / cases[case], short
        )

    only = lambda case: task in (None, case[0]) and method in (None, case[1])
    experiment(folder, cases, run, draw, table, only)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
