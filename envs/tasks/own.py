"""rlx's own environments, by name."""

from typing import Any

from rlx.env import Env

SEQUENCES = ("Reverse", "Sort", "ModularAddition", "Countdown")
NAMES = ("MultiGoal", "GridWorld", "Levels", "PointMaze-medium", "PointMaze-large", *SEQUENCES)


def make(name: str, **options: Any) -> Env:
    """`options`: for GridWorld `layout=`, for Levels `seed=`, for sequences their sizes, see `sequences.make`."""
    from rlx.envs.tasks import gridworld, levels, multigoal, pointmaze, sequences

    if name == "MultiGoal":
        return multigoal.make(**options)
    if name == "GridWorld":
        return gridworld.make(**options)
    if name == "Levels":
        return levels.make(**options)
    if name in SEQUENCES:
        return sequences.make(name, **options)
    return pointmaze.make(name.removeprefix("PointMaze-"), **options)
