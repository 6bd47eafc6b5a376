"""Pictures of environments of JaxMARL."""

import numpy as np

from rlx.envs.frames import COOL, GREY, INK, WARM, drawn_by

# What is in a cell of Overcooked, by the number of its object: onions, plates, goal, pot.
OVERCOOKED = {2: GREY, 3: "#e3b23c", 4: "#e3b23c", 5: "#f4f4f4", 6: "#f4f4f4", 7: "#6a994e", 8: INK, 9: "#bc6c25"}
LETTERS = {3: "o", 4: "O", 5: "p", 6: "P", 7: "S", 8: "pot", 9: "soup"}


def mpe(axes, env_state, params, self):
    """The particles: agents in the colours of their teams, landmarks dark."""
    from matplotlib.patches import Circle

    inner, places = self.inner, np.asarray(env_state.state.p_pos)
    for place, radius, colour in zip(places, np.asarray(inner.rad), inner.colour, strict=True):
        axes.add_patch(Circle(place, float(radius), color=np.array(colour) / 255, alpha=0.9, lw=0))
    reach = max(1.5, float(np.abs(places).max()) + 0.2)
    _framed(axes, -reach, -reach, 2 * reach, 2 * reach)


def smax(axes, env_state, params, self):
    """The units by their team, the fuller the healthier; the dead are crosses."""
    from matplotlib.patches import Circle

    inner = self.inner
    state = getattr(env_state.state, "state", env_state.state)
    most = np.asarray(inner.unit_type_health)[np.asarray(state.unit_types)]
    health = np.clip(np.asarray(state.unit_health) / most, 0, 1)
    for i, place in enumerate(np.asarray(state.unit_positions)):
        colour = COOL if i < inner.num_allies else WARM
        if not state.unit_alive[i]:
            axes.plot(*place, "x", color=colour, ms=6, alpha=0.6)
            continue
        radius = 1.6 * float(inner.unit_type_radiuses[state.unit_types[i]])
        axes.add_patch(Circle(place, radius, color=colour, alpha=0.2 + 0.8 * float(health[i]), lw=0))
        axes.add_patch(Circle(place, radius, fill=False, edgecolor=colour, lw=1.2))
    _framed(axes, 0, 0, inner.map_width, inner.map_height)


def overcooked(axes, env_state, params, self):
    """The kitchen from above: counters, piles, pots, where soup is served, and the two cooks with what they carry."""
    from matplotlib.patches import Rectangle

    state, inner = env_state.state, self.inner
    pad = (state.maze_map.shape[0] - inner.height) // 2
    grid = np.asarray(state.maze_map)[pad : pad + inner.height, pad : pad + inner.width, 0]
    for (y, x), thing in np.ndenumerate(grid):
        axes.add_patch(Rectangle((x, y), 1, 1, color=OVERCOOKED.get(int(thing), "white"), ec=GREY, lw=0.6))
        if int(thing) in LETTERS:
            dark = int(thing) != 8
            axes.text(x + 0.5, y + 0.5, LETTERS[int(thing)], ha="center", va="center", color=INK if dark else "white")
    for (x, y), facing, held, colour in zip(
        np.asarray(state.agent_pos), np.asarray(state.agent_dir), np.asarray(state.agent_inv), (COOL, WARM), strict=True
    ):
        axes.plot(x + 0.5, y + 0.5, "o", color=colour, ms=16)
        axes.plot([x + 0.5, x + 0.5 + 0.4 * facing[0]], [y + 0.5, y + 0.5 + 0.4 * facing[1]], color=INK, lw=2)
        if int(held) in LETTERS:
            axes.text(x + 0.5, y + 0.5, LETTERS[int(held)], ha="center", va="center", color="white", fontsize=8)
    axes.set_xlim(0, inner.width)
    axes.set_ylim(inner.height, 0)


def _framed(axes, x, y, width, height):
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=GREY, lw=1.5))
    axes.set_xlim(x, x + width)
    axes.set_ylim(y, y + height)


def _of_environment(draw):
    def frames(self, env_states, params, width, height, camera):
        drawn = drawn_by(lambda axes, env_state, params: draw(axes, env_state, params, self))
        return drawn(self, env_states, params, width, height, camera)

    return frames


DRAWINGS = {
    "MPE": _of_environment(mpe),
    "SMAX": _of_environment(smax),
    "HeuristicEnemySMAX": _of_environment(smax),
    "overcooked": _of_environment(overcooked),
}
