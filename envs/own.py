"""rlx's own environments, by name."""

from typing import Any

from rlx.env import Env

NAMES = ("MultiGoal", "GridWorld", "PointMaze-medium", "PointMaze-large")


def make(name: str, **options: Any) -> Env:
    """`options`: for GridWorld `layout=`."""
    from rlx.envs import gridworld, multigoal, pointmaze

    if name == "MultiGoal":
        return multigoal.make(**options)
    if name == "GridWorld":
        return gridworld.make(**options)
    return pointmaze.make(name.removeprefix("PointMaze-"), **options)
