"""Pictures of Craftax: the map around the player in colours, and what the player has beside it."""

from typing import Any

import numpy as np

# By the suite's number of a block; Classic has the first 17.
BLOCKS = (
    *("#000000", "#20242e", "#7cb45a", "#4a90c8", "#8f949c", "#3f7a3a", "#a9763f", "#cbb994", "#4a4a4a"),  # to coal
    *("#c98f68", "#8fe3e8", "#8a5a2b", "#5f5f66", "#e6d69a", "#e2552a", "#9ccc65", "#d3d84b"),  # iron to a ripe plant
    *("#5b6070", "#0d0f14", "#55705a", "#787068", "#3355cc", "#c42847", "#b8862f", "#74b8e0"),  # wall to fountain
    *("#b5613c", "#d7ecf2", "#9d958a", "#d0632c", "#a9d3dc", "#a04ac0", "#6a7fe8"),  # burnt grass to enchantment tables
    *("#3d1450", "#6b6f78", "#6b6f78", "#6b6f78", "#7d3aa0"),  # the last enemy and its graves
)
# Marks on blocks: what one would not tell by the colour.
ORES = {8: "#111111", 9: "#e9b48c", 10: "#ffffff", 21: "#99b0ff", 22: "#ff90a4"}
ITEMS = {1: "#ffb43b", 2: "#20242e", 3: "#f4f4f4", 4: "#8c2f2f"}  # torch, ladders down and up, a closed way down
# Creatures: attribute of the state, mark, colour.
CLASSIC = (
    *(("zombies", "s", "#2f8f4e"), ("cows", "o", "#f2e3d5"), ("skeletons", "D", "#e8e8ee"), ("arrows", "x", "#2b2b2b")),
)
FULL = (
    *(("melee_mobs", "s", "#2f8f4e"), ("passive_mobs", "o", "#f2e3d5"), ("ranged_mobs", "D", "#e8e8ee")),
    *(("mob_projectiles", "x", "#b02020"), ("player_projectiles", "x", "#2b2b2b")),
)
BARS = (("health", "#d64550"), ("food", "#d4843e"), ("drink", "#3e7cb1"), ("energy", "#5a9e6f"), ("mana", "#7d5ba6"))
TURNS = {1: (0, -1), 2: (0, 1), 3: (-1, 0), 4: (1, 0)}  # [row, column]
PANEL = 6.0  # width, in cells, of what stands beside the map
DARKEST = 0.35


def draw(axes, env_state, params):
    """A game of Craftax: as much of the map as the player observes."""
    state, full = env_state.state, hasattr(env_state.state, "player_level")
    level = int(state.player_level) if full else None
    at = lambda x: np.asarray(x) if level is None else np.asarray(x)[level]
    rows, columns = (9, 11) if full else (7, 9)
    place = np.asarray(state.player_position)
    corner = place - np.array([rows, columns]) // 2
    blocks = view(at(state.map), corner, (rows, columns), 1)
    light = view(at(state.light_map), corner, (rows, columns), 0.0) if full else 1.0
    light = np.minimum(np.asarray(light, float) * (1.0 if level else float(state.light_level)), 1.0)
    axes.imshow(colours(blocks, light), extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), interpolation="nearest")
    axes.set(xlim=(-0.7, columns + PANEL), ylim=(rows - 0.3, -0.7))
    unit = cell_points(axes, columns + PANEL + 0.7, rows + 0.4)

    mark = lambda y, x, shape, color, size: axes.plot(
        x, y, shape, color=color, ms=size * unit, mec="#20242e", mew=0.04 * unit
    )
    for (y, x), block in np.ndenumerate(blocks):
        if block in ORES:
            mark(y, x, "D", ORES[int(block)], 0.28)
    if full:
        for (y, x), item in np.ndenumerate(view(at(state.item_map), corner, (rows, columns), 0)):
            if item:
                mark(y, x, "^" if item == 1 else "v" if item in (2, 4) else "^", ITEMS[int(item)], 0.4)
    for name, shape, color in FULL if full else CLASSIC:
        mobs = getattr(state, name)
        for (y, x), alive in zip(at(mobs.position) - corner, at(mobs.mask), strict=True):
            if alive and 0 <= y < rows and 0 <= x < columns:
                mark(y, x, shape, color, 0.55)
    player(axes, place - corner, int(state.player_direction), bool(state.is_sleeping), unit)
    panel(axes, columns, state, level, unit)


def view(array: np.ndarray, corner: np.ndarray, shape: tuple[int, int], outside: Any) -> np.ndarray:
    """The part of a map that begins at `corner`; where it leaves the map it is `outside`."""
    ys, xs = (np.arange(size) + start for size, start in zip(shape, corner, strict=True))
    part = array[np.clip(ys, 0, array.shape[0] - 1)][:, np.clip(xs, 0, array.shape[1] - 1)]
    inside = ((ys >= 0) & (ys < array.shape[0]))[:, None] & ((xs >= 0) & (xs < array.shape[1]))
    return np.where(inside, part, outside)


def colours(blocks: np.ndarray, light: Any) -> np.ndarray:
    """Colours `[H, W, 3]` of blocks under a light between 0 and 1."""
    from matplotlib.colors import to_rgb

    table = np.array([to_rgb(color) for color in BLOCKS])
    return table[blocks] * (DARKEST + (1 - DARKEST) * np.broadcast_to(light, blocks.shape)[..., None])


def cell_points(axes: Any, width: float, height: float) -> float:
    """The side of a cell in points, where so many cells fill the figure."""
    inches = axes.figure.get_size_inches()
    return 72.0 * min(inches[0] / width, inches[1] / height)


def player(axes, place, direction, asleep, unit):
    """A disc that shows where it faces; closed eyes would be too small: one that sleeps is pale."""
    y, x = place
    axes.plot(x, y, "o", color="#b8c4dd" if asleep else "#ffffff", ms=0.75 * unit, mec="#20242e", mew=0.08 * unit)
    dy, dx = TURNS.get(direction, (0, 0))
    axes.plot([x, x + 0.42 * dx], [y, y + 0.42 * dy], color="#d64550", lw=0.14 * unit, solid_capstyle="round")


def panel(axes, columns, state, level, unit):
    """Bars of what the player needs, and what it carries."""
    write = lambda x, y, text, **more: axes.text(
        x, y, text, fontsize=0.36 * unit, color="#33415c", va="center", clip_on=True, **more
    )
    left, y = columns + 0.1, 0.0
    for name, color in BARS:
        if not hasattr(state, f"player_{name}"):
            continue
        value = float(getattr(state, f"player_{name}"))
        write(left, y, name)
        axes.barh(y, 2.4, 0.5, left + 2.0, color="#e4e7ee")
        axes.barh(y, 2.4 * min(max(value, 0.0), 9.0) / 9.0, 0.5, left + 2.0, color=color)
        write(left + 4.6, y, f"{value:.0f}")
        y += 0.65
    where = "" if level is None else f"floor {level}, "
    write(left, y + 0.1, f"{where}step {int(state.timestep)}, {int(np.sum(np.asarray(state.achievements)))} achieved")
    held = carried(state.inventory)
    for i, text in enumerate(held):
        write(left + 2.95 * (i % 2), y + 0.85 + 0.55 * (i // 2), text)


def carried(inventory: Any) -> list[str]:
    """What the player has, a line for each kind, such as `3 wood` or `stone sword`; as many as there is room for."""
    found = []
    for name, value in vars(inventory).items():
        number = int(np.sum(np.asarray(value)))
        if number:
            found.append(
                name.replace("_", " ") if number == 1 and "_" in name else f"{number} {name.replace('_', ' ')}"
            )
    return found[:12]
