"""Steps a second of training on environments that step on the host, beside the same vectors with random actions.

    pip install "rlx[envpool]" box2d
    python benchmarks/hosts.py
    python -m venv sb3; sb3/bin/pip install stable-baselines3; python benchmarks/hosts.py --sb3 sb3/bin/python

The sides of a case take turns, a rollout's number of steps each, so that what else the machine does meets all of them:
`bare` is the library's own vector with actions that were drawn before, `collecting` what is left of that where a policy
acts and its records are kept, and `training` the same with the updates of PPO. In `overlapping` the environments step
while the device learns, for some rollouts at a time. Ratios are to `bare`, of the seconds of all turns, and of those of
processor time (`cpu`), which other programs on the machine change less.

With `--sb3`, PPO of Stable-Baselines3 beside whole runs of `rlx.fit` on Gymnasium's CartPole, with the same settings.
The interpreter is that of an environment which has it.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import jax
import numpy as np
from gymnasium.vector import SyncVectorEnv
from provenance import RESULTS, commit, machine, versions
from rich.console import Console

import rlx
from rlx.algos import ppo
from rlx.env import Env
from rlx.run.collecting import Collector
from rlx.run.job import keys

TURNS, REPEATS, IN_ROW = 12, 5, 4  # of the sides of a case, of CartPole, and rollouts that overlap
SIDES = ("bare", "collecting", "training", "overlapping")
PPO = {"num_epochs": 4, "num_minibatches": 4, "entropy_coef": 0.0, "normalize_obs": True}
CASES = {
    "gymnasium/HalfCheetah-v5": {"num_envs": 32, "num_steps": 128},
    "gymnasium/LunarLander-v3": {"num_envs": 32, "num_steps": 128},
    "envpool/HalfCheetah-v4": {"num_envs": 128, "num_steps": 64},
    "envpool/HalfCheetah-v4 blocks=1": {"num_envs": 128, "num_steps": 64},
    "envpool/LunarLander-v3 blocks=1": {"num_envs": 128, "num_steps": 64},
}
CARTPOLE = {"num_envs": 8, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4, "learning_rate": 2.5e-4}
SB3 = """
import sys, time, torch
torch.set_num_threads(1)  # networks this small are faster so, above all where cores are shared
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
envs = make_vec_env("CartPole-v1", 8, seed=0)
agent = PPO("MlpPolicy", envs, n_steps=128, batch_size=256, n_epochs=4, learning_rate=2.5e-4, ent_coef=0.01,
            clip_range_vf=0.2, device="cpu", seed=0)
agent.learn(2048)
start = time.perf_counter()
before = agent.num_timesteps
agent.learn(int(sys.argv[1]), reset_num_timesteps=False)
print((agent.num_timesteps - before) / (time.perf_counter() - start))
"""


def bare(name: str, num_envs: int) -> Callable[[int], None]:
    """Takes so many steps in each environment of the library's own vector, with actions that were drawn before."""
    library, _, own = name.partition("/")
    if library == "gymnasium":
        envs = SyncVectorEnv([lambda: gymnasium.make(own)] * num_envs)
        envs.reset(seed=0)
        actions = [envs.action_space.sample() for _ in range(64)]
    else:
        import envpool

        envs = envpool.make(own, env_type="gymnasium", num_envs=num_envs, seed=0)
        envs.reset()
        space = envs.action_space
        actions = [np.stack([space.sample() for _ in range(num_envs)]) for _ in range(64)]
        actions = [x.astype(np.int32) if x.dtype == np.int64 else x for x in actions]

    def steps(num):
        for i in range(num):
            envs.step(actions[i % len(actions)])

    return steps


def measured(name: str, settings: dict[str, int], console: Console) -> dict:
    """All turns of a case."""
    name, _, blocks = name.partition(" blocks=")
    env, config, key = (
        rlx.envs.make(name, **({"blocks": int(blocks)} if blocks else {})),
        ppo.Config(**PPO, **settings),
        keys(0)[0],
    )
    collectors = {overlap: Collector(ppo, config, env, seed=0, overlap=overlap) for overlap in (False, True)}
    update = jax.jit(ppo.update)
    for collector in collectors.values():
        collector.open(0)
    state = ppo.init(config, collectors[False].begin(config, key), key)

    def trained(collector):
        found = collector.experience(config, state)
        jax.block_until_ready(update(config, found, state))

    def overlapped():
        for i in range(IN_ROW):
            collectors[True].overlap = i < IN_ROW - 1  # the next turn is of another side
            trained(collectors[True])

    steps = bare(name, config.num_envs)
    sides = {
        "bare": lambda: steps(config.num_steps),
        "collecting": lambda: collectors[False].experience(config, state),
        "training": lambda: trained(collectors[False]),
        "overlapping": overlapped,
    }
    seconds = {side: [] for side in SIDES}
    for turn in range(TURNS + 1):  # the first one compiles
        for side, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            num = IN_ROW if side == "overlapping" else 1
            row = (time.perf_counter() - wall) / num, (time.process_time() - cpu) / num
            seconds[side] += [row] if turn else []
    for collector in collectors.values():
        collector.close()
    total = {side: np.sum(rows, axis=0) for side, rows in seconds.items()}
    rates = {side: float(TURNS * config.steps_per_update / total[side][0]) for side in SIDES}
    ratio = lambda i: {side: float(total["bare"][i] / total[side][i]) for side in SIDES[1:]}
    found = {"settings": PPO | settings, "steps_per_second": rates, "ratio": {"wall": ratio(0), "cpu": ratio(1)}}
    found["share_of_learning"] = float(1 - total["collecting"][1] / total["training"][1])
    console.print(name, found)
    return found


def training(env: Env, config: ppo.Config) -> float:
    """Steps a second of a run, from its first update to its last one, which is before its evaluation."""
    found: list = []

    def see(pause):
        found.append((pause.step, time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        rlx.fit(ppo, config, env, directory=Path(folder) / "run", eval_episodes=1, after=see)
    (first, began), (last, ended) = found[0], found[-2]
    return (last - first) / (ended - began)


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def beside_sb3(python: str, console: Console) -> dict:
    """Steps a second of both libraries on Gymnasium's CartPole."""
    steps, env, rows = 20_480, rlx.envs.make("gymnasium/CartPole-v1"), []
    config = ppo.Config(**CARTPOLE, total_steps=steps)
    for _ in range(REPEATS):
        told = subprocess.run([python, "-c", SB3, str(steps)], capture_output=True, text=True, check=True)
        rows.append({"rlx": training(env, config), "Stable-Baselines3": float(told.stdout.split()[-1])})
        console.print({side: round(rate) for side, rate in rows[-1].items()})
    ratio = spread([row["rlx"] / row["Stable-Baselines3"] for row in rows])
    listed = "import importlib.metadata as m; print(m.version('stable-baselines3'), m.version('torch'))"
    theirs = subprocess.run([python, "-c", listed], capture_output=True, text=True, check=True).stdout.split()
    return {
        "settings": CARTPOLE,
        "steps_per_second": rows,
        "ratio": ratio,
        "versions": dict(zip(("stable-baselines3", "torch"), theirs, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sb3", help="interpreter of an environment that has Stable-Baselines3")
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES), help="cases to measure")
    options, console, path = parser.parse_args(), Console(), RESULTS / "hosts.json"
    found = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    found |= {"commit": commit(), "machine": machine()}
    found["versions"] = versions("gymnasium", "envpool", "jax", "numpy", "mujoco", "box2d")
    for name in options.case:
        try:
            found["cases"][name] = measured(name, CASES[name], console)
        except ValueError as error:  # its simulator is not installed
            console.print(f"{name}: {error}")
        path.write_text(json.dumps(found, indent=1) + "\n")
    if options.sb3 is not None:
        found["stable-baselines3"] = beside_sb3(options.sb3, console)
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
