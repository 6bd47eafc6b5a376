"""rlx's own environments, by name."""

from typing import Any

from rlx.env import Env

SEQUENCES = ("Reverse", "Sort", "ModularAddition", "Countdown")
TURNS = ("Guess", "Calculator")
MEMORY = ("Recall-8", "Recall-32", "Recall-128", "TMaze-10", "HiddenCartPole", "HiddenPendulum", "HiddenHopper")
NAMES = (
    "MultiGoal",
    "GridWorld",
    "Coverage",
    "Inventory",
    "Levels",
    "Maze",
    "PointMaze-medium",
    "PointMaze-large",
    "Nim",
    *SEQUENCES,
    *TURNS,
    "Tree",
    *MEMORY,
)


def make(name: str, **options: Any) -> Env:
    """`options`: for GridWorld `layout=`, for Levels `seed=`, for Maze `maze=`; for others see their modules."""
    from rlx.envs.tasks import (
        coverage,
        gridworld,
        inventory,
        levels,
        maze,
        memory,
        multigoal,
        nim,
        pointmaze,
        sequences,
        tree,
        turns,
    )

    if name == "MultiGoal":
        return multigoal.make(**options)
    if name == "GridWorld":
        return gridworld.make(**options)
    if name == "Coverage":
        return coverage.make(**options)
    if name == "Inventory":
        return inventory.make(**options)
    if name == "Levels":
        return levels.make(**options)
    if name == "Maze":
        return maze.make(**options)
    if name == "Nim":
        return nim.make(**options)
    if name in SEQUENCES:
        return sequences.make(name, **options)
    if name in TURNS:
        return turns.make(name, **options)
    if name == "Tree":
        return tree.make(**options)
    if name in MEMORY:
        return memory.make(name, **options)
    return pointmaze.make(name.removeprefix("PointMaze-"), **options)
