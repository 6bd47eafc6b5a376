"""Pictures of Jumanji's environments, each a `draw(axes, env_state, params)`."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from rlx.envs.frames import COOL, GREY, INK, WARM

PAPER, DARK = "#f7f7f5", "#26303f"


def hosted(draw: Callable[[Any, Any], None]) -> Callable:
    """The same of a state of Jumanji, with its numbers on the host."""

    def drawn(axes, env_state, params):
        draw(axes, env_state.state.state)

    return drawn


def colors(num: int) -> np.ndarray:
    """Colors `[num, 3]` that are easily told apart, repeated from the twentieth on."""
    import matplotlib

    wheel = matplotlib.colormaps["tab20"](np.arange(20))[:, :3]
    return wheel[np.arange(num) % 20]


def rgb(color: Any) -> Any:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def cells(axes: Any, image: Any, line: str = "white") -> None:
    """A grid of cells with a line between them; `image` `[H, W, 3]`."""
    height, width = np.shape(image)[:2]
    axes.imshow(image, interpolation="nearest")
    edges = np.arange(1, max(height, width)) - 0.5
    axes.hlines(edges[: height - 1], -0.5, width - 0.5, color=line, lw=1)
    axes.vlines(edges[: width - 1], -0.5, height - 0.5, color=line, lw=1)


def write(axes: Any, texts: dict[tuple[int, int], str], height: int, color: Any = INK) -> None:
    """Words in cells, by row and column, of a size for a grid of this many rows."""
    for (row, column), text in texts.items():
        size = 130 / height / max(1.0, len(text) / 2)
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color, weight="bold")


def dots(axes: Any, rows: Any, columns: Any, height: int, **look: Any) -> None:
    """Discs in cells of a grid with this many rows."""
    axes.plot(np.atleast_1d(columns), np.atleast_1d(rows), "o", ms=140 / height, mec="white", **look)


def painted(values: Any, palette: Any) -> np.ndarray:
    """The colors `[H, W, 3]` of a grid of numbers from 0 on."""
    return np.asarray([rgb(color) for color in palette])[np.asarray(values, int)]


def tiles(axes: Any, board: Any) -> None:
    """A board of 2048, given by exponents `[N, N]`."""
    import matplotlib

    board = np.asarray(board)
    image = matplotlib.colormaps["YlOrBr"](np.minimum(board, 12) / 14)[..., :3]
    image[board == 0] = rgb(PAPER)
    cells(axes, image, GREY)
    for (row, column), power in np.ndenumerate(board):
        if power:
            write(axes, {(row, column): str(2**power)}, len(board), INK if power < 7 else "white")


def game_2048(axes, state):
    tiles(axes, state.board)


def snake(axes, state):
    import matplotlib

    order, length = np.asarray(state.body_state), int(state.length)
    image = np.full((*order.shape, 3), rgb(PAPER))
    body = order > 0
    image[body] = matplotlib.colormaps["Blues"](0.35 + 0.6 * order[body] / max(length, 1))[:, :3]
    head = int(state.head_position.row), int(state.head_position.col)
    if all(0 <= x < n for x, n in zip(head, order.shape, strict=True)):
        image[head] = rgb(DARK)
    cells(axes, image)
    dots(axes, int(state.fruit_position.row), int(state.fruit_position.col), len(order), color=WARM)


def maze(axes, state):
    cells(axes, painted(state.walls, (PAPER, INK)), GREY)
    for place, color in ((state.target_position, WARM), (state.agent_position, COOL)):
        dots(axes, int(place.row), int(place.col), len(state.walls), color=color)


def tetris(axes, state):
    grid = np.asarray(state.grid_padded)[:-3, :-3]
    height, width = grid.shape
    image = np.full((height + 5, width, 3), rgb("white"))
    image[5:] = np.where((grid > 0)[..., None], colors(21)[grid % 21], rgb(PAPER))
    piece = np.asarray(state.new_tetromino) > 0
    left = (width - 4) // 2
    image[:4, left : left + 4][piece] = rgb(WARM)
    cells(axes, image)


def connector(axes, state):
    grid = np.asarray(state.grid)
    cells(axes, np.full((*grid.shape, 3), rgb(PAPER)), GREY)
    palette = colors(len(state.agents.id))
    for (row, column), value in np.ndenumerate(grid):
        if value:  # 1 a path, 2 where an agent is, 3 its target, then those of the next one
            agent, kind = divmod(int(value) - 1, 3)
            marker, size = (("s", 120), ("o", 130), ("D", 80))[kind]
            face = "white" if kind == 2 else palette[agent]
            alpha = 0.45 if kind == 0 else 1.0
            look = {"ms": size / len(grid), "mew": 2, "mfc": face, "alpha": alpha}
            axes.plot(column, row, marker, color=palette[agent], **look)


def cleaner(axes, state):
    cells(axes, painted(state.grid, ("#e3cfa8", PAPER, INK)), GREY)
    rows, columns = np.asarray(state.agents_locations).T
    dots(axes, rows, columns, len(state.grid), color=COOL)


def minesweeper(axes, state):
    board = np.asarray(state.board)
    image = np.where((board < 0)[..., None], rgb(GREY), rgb(PAPER))
    mines = np.unravel_index(np.asarray(state.flat_mine_locations), board.shape)
    cells(axes, image)
    known = zip(*np.nonzero(board > 0), strict=True)
    write(axes, {(r, c): str(board[r, c]) for r, c in known}, len(board))
    found = board[mines] >= 0
    axes.plot(mines[1][found], mines[0][found], "X", color=WARM, ms=140 / len(board))


def sudoku(axes, state):
    board = np.asarray(state.board)
    cells(axes, np.full((9, 9, 3), rgb(PAPER)), GREY)
    for edge in (2.5, 5.5):
        axes.axhline(edge, color=INK, lw=2)
        axes.axvline(edge, color=INK, lw=2)
    write(axes, {(r, c): str(board[r, c] + 1) for r, c in zip(*np.nonzero(board >= 0), strict=True)}, 9)


def sliding_tiles(axes, state):
    puzzle = np.asarray(state.puzzle)
    goal = (1 + np.arange(puzzle.size)).reshape(puzzle.shape)
    image = np.where((puzzle == goal)[..., None], rgb("#a9c7de"), rgb("#e9c9a7"))
    image[puzzle == 0] = rgb("white")
    cells(axes, image)
    write(axes, {(r, c): str(puzzle[r, c]) for r, c in zip(*np.nonzero(puzzle), strict=True)}, len(puzzle))


def flat_pack(axes, state):
    grid = np.asarray(state.grid)
    cells(axes, np.where((grid > 0)[..., None], colors(grid.max() + 1)[grid], rgb(PAPER)))


def rubiks_cube(axes, state):
    cube = np.asarray(state.cube)
    size = cube.shape[-1]
    palette = painted(cube.reshape(6, -1), ("white", "#2f9e57", "#c8372d", "#2d5fb8", "#e8842a", "#f2cf3f"))
    image = np.full((3 * size, 4 * size, 3), rgb(DARK))
    # Up, front, right, back, left, down: as a cross.
    for face, (row, column) in enumerate(((0, 1), (1, 1), (1, 2), (1, 3), (1, 0), (2, 1))):
        image[row * size : (row + 1) * size, column * size : (column + 1) * size] = palette[face].reshape(size, size, 3)
    cells(axes, image, DARK)


def route(axes: Any, coordinates: np.ndarray, order: Any, color: Any) -> None:
    """A way through places `[N, 2]`, in this order."""
    way = coordinates[np.asarray(order, int)]
    axes.plot(way[:, 0], way[:, 1], color=color, lw=2, zorder=1)


def places(axes: Any, coordinates: Any, filled: Any, size: float = 1.0) -> None:
    coordinates, filled = np.asarray(coordinates), np.asarray(filled, bool)
    axes.set(xlim=(-0.06 * size, 1.06 * size), ylim=(-0.06 * size, 1.06 * size))
    for where, face in ((filled, INK), (~filled, "white")):
        axes.plot(coordinates[where, 0], coordinates[where, 1], "o", color=INK, mfc=face, ms=9, mew=1.5, zorder=2)


def tsp(axes, state):
    coordinates, num = np.asarray(state.coordinates), int(state.num_visited)
    places(axes, coordinates, state.visited_mask)
    order = np.asarray(state.trajectory)[:num]
    if num:
        route(axes, coordinates, [*order, order[0]] if num == len(coordinates) else order, COOL)


def cvrp(axes, state):
    coordinates, visited = np.asarray(state.coordinates), np.asarray(state.visited_mask)
    places(axes, coordinates, visited)
    axes.plot(*coordinates[0], "s", color=WARM, ms=14, zorder=3)
    order = np.asarray(state.trajectory)[: int(state.num_total_visits)]
    stops = [0, *np.nonzero(order == 0)[0], len(order)]
    for tour, (start, end) in enumerate(pairwise(stops)):
        route(axes, coordinates, order[start : end + 1], colors(tour + 1)[-1])


def multi_cvrp(axes, state):
    coordinates, num = np.asarray(state.nodes.coordinates), int(state.step_count)
    places(axes, coordinates, np.asarray(state.nodes.demands) == 0, size=float(coordinates.max()))
    axes.plot(*coordinates[0], "s", color=WARM, ms=14, zorder=3)
    for order, color in zip(np.asarray(state.order), colors(len(state.order)), strict=True):
        route(axes, coordinates, order[: num + 1], color)


def knapsack(axes, state):
    weights, values, packed = (np.asarray(x) for x in (state.weights, state.values, state.packed_items))
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.25, 1.05))
    axes.plot([0, 1, 1], [0, 0, 1], color=GREY, lw=1)
    for where, color in ((packed, WARM), (~packed, GREY)):
        axes.scatter(weights[where], values[where], s=60, color=color, edgecolors=INK, zorder=2)
    used = float(weights[packed].sum())
    full = max(used + float(state.remaining_budget), 1e-9)
    axes.barh([-0.15, -0.15], [1, used / full], height=0.08, color=[PAPER, COOL], edgecolor=INK)


def circle(num: int) -> np.ndarray:
    """Places `[num, 2]` on a circle in the middle of 0 to 1."""
    angles = 2 * np.pi * np.arange(num) / num
    return 0.5 + 0.47 * np.stack([np.sin(angles), np.cos(angles)], axis=1)


def graph(axes: Any, adjacency: Any, faces: Any, current: Any = ()) -> None:
    """Nodes on a circle, with these colors, and the edges between them."""
    adjacency = np.asarray(adjacency)
    nodes = circle(len(adjacency))
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    for a, b in np.argwhere(np.triu(adjacency)):
        axes.plot(*nodes[[a, b]].T, color=GREY, lw=0.7, zorder=0)
    axes.scatter(*nodes.T, s=220, c=faces, edgecolors=INK, zorder=2)
    axes.scatter(*nodes[np.atleast_1d(np.asarray(current, int))].T, s=420, facecolors="none", edgecolors=WARM, lw=2.5)


def graph_coloring(axes, state):
    chosen = np.asarray(state.colors)
    faces = np.where((chosen >= 0)[:, None], colors(len(chosen))[chosen], rgb("white"))
    graph(axes, state.adj_matrix, faces, state.current_node_index)


def mmst(axes, state):
    types, palette = np.asarray(state.node_types), colors(len(state.positions))
    faces = np.where((types >= 0)[:, None], palette[np.maximum(types, 0) % len(palette)], rgb("white"))
    graph(axes, state.adj_matrix, faces, state.positions)


def pac_man(axes, state):
    cells(axes, painted(state.grid, (INK, DARK)), DARK)
    for spots, size in ((state.pellet_locations, 2), (state.power_up_locations, 7)):
        spots = np.asarray(spots)
        spots = spots[spots.any(axis=1)]
        axes.plot(spots[:, 0], spots[:, 1], "o", color="#f2dfb5", ms=size)
    frightened = int(state.frightened_state_time) > 0
    for spot, color in zip(np.asarray(state.ghost_locations), colors(8)[::2], strict=False):
        axes.plot(*spot, "^", color=COOL if frightened else color, ms=13, mec="white")
    axes.plot(int(state.player_locations.y), int(state.player_locations.x), "o", color="#f2cf3f", ms=13)


def foraging(axes, state):
    size = int(max(np.max(state.agents.position), np.max(state.food_items.position), 7)) + 1
    cells(axes, np.full((size, size, 3), rgb(PAPER)), GREY)
    eaten = np.asarray(state.food_items.eaten)
    for things, shown, color in ((state.food_items, ~eaten, WARM), (state.agents, slice(None), COOL)):
        spots, levels = np.asarray(things.position)[shown], np.asarray(things.level)[shown]
        dots(axes, spots[:, 0], spots[:, 1], size, color=color)
        write(axes, {(r, c): str(n) for (r, c), n in zip(spots, levels, strict=True)}, 2 * size, "white")


def warehouse(axes, state):
    shelves, wanted = state.shelves.position, np.asarray(state.shelves.is_requested) > 0
    shape = np.asarray(state.grid).shape[1:]
    image = np.full((*shape, 3), rgb(PAPER))
    image[np.asarray(shelves.x), np.asarray(shelves.y)] = np.where(wanted[:, None], rgb(WARM), rgb(GREY))
    cells(axes, image)
    agents = state.agents
    rows, columns = np.asarray(agents.position.x), np.asarray(agents.position.y)
    dots(axes, rows, columns, shape[0], color=COOL)
    turns = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])[np.asarray(agents.direction)]  # up, right, down, left
    for row, column, (down, right) in zip(rows, columns, turns, strict=True):
        axes.plot([column, column + 0.45 * right], [row, row + 0.45 * down], color=DARK, lw=3)


def job_shop(axes, state):
    times, machines, lengths = (
        np.asarray(x) for x in (state.scheduled_times, state.ops_machine_ids, state.ops_durations)
    )
    num, now = len(state.machines_job_ids), int(state.step_count)
    end = max(now + int(np.max(state.machines_remaining_times)), 40)
    axes.set(xlim=(0, end), ylim=(num - 0.5, -0.5))
    axes.set_aspect("auto")
    for job, op in np.argwhere(times >= 0):
        axes.barh(
            machines[job, op], lengths[job, op], left=times[job, op], color=colors(job + 1)[-1], edgecolor="white"
        )
    axes.axvline(now, color=INK, lw=1.5)


def search(axes, state):
    pos, found = np.asarray(state.targets.pos), np.asarray(state.targets.found)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color=GREY, lw=2)
    for where, color in ((found, WARM), (~found, GREY)):
        axes.plot(pos[where, 0], pos[where, 1], "o", color=color, ms=6)
    own, heading = np.asarray(state.searchers.pos), np.asarray(state.searchers.heading)
    axes.quiver(*own.T, np.cos(heading), np.sin(heading), color=COOL, scale=18, width=0.012, pivot="mid")


JUMANJI = {
    name: hosted(draw)
    for name, draw in {
        "CVRP": cvrp,
        "Cleaner": cleaner,
        "Connector": connector,
        "FlatPack": flat_pack,
        "Game2048": game_2048,
        "GraphColoring": graph_coloring,
        "JobShop": job_shop,
        "Knapsack": knapsack,
        "LevelBasedForaging": foraging,
        "MMST": mmst,
        "Maze": maze,
        "Minesweeper": minesweeper,
        "MultiCVRP": multi_cvrp,
        "PacMan": pac_man,
        "RobotWarehouse": warehouse,
        "RubiksCube": rubiks_cube,
        "SearchAndRescue": search,
        "SlidingTilePuzzle": sliding_tiles,
        "Snake": snake,
        "Sudoku": sudoku,
        "TSP": tsp,
        "Tetris": tetris,
    }.items()
}
