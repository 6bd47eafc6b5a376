"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0


class Display:
    """Shows steps, steps a second, the latest return and the time left. A context manager."""

    def __init__(self, console: Console, total_steps: int, done_steps: int = 0):
        self.console, self.total, self.first, self.start = console, total_steps, done_steps, time.perf_counter()
        self.done, self.last_plain = done_steps, self.start
        self.bar, self.label = None, ""  # the label says of what the return is
        if console.is_terminal:
            self.bar = Progress(
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console,
            )
            self.task = self.bar.add_task("", total=total_steps, completed=done_steps)

    def __enter__(self) -> "Display":
        if self.bar:
            try:
                self.bar.start()
            except Exception as error:
                self._fail(error)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            with suppress(Exception):
                self.bar.stop()

    def add(self, steps: int, episode_return: float | None) -> None:
        """Brings the display on by `steps` environment steps."""
        self.show(self.done + steps, episode_return)

    def skip(self, steps: int) -> None:
        """Counts `steps` environment steps that were done before, and starts the clock here."""
        self.first = self.done = self.done + steps
        self.start = time.perf_counter()

    def expect(self, total_steps: int) -> None:
        """Changes how many environment steps there will be in all."""
        self.total = total_steps
        if self.bar:
            self.bar.update(self.task, total=total_steps)

    def show(self, steps: int, episode_return: float | None) -> None:
        """Brings the display to `steps` environment steps."""
        try:
            self._show(steps, episode_return)
        except Exception as error:  # whatever a terminal makes a library raise, a display is not worth a run
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        bar, self.bar = self.bar, None
        with suppress(Exception):
            if bar is not None:
                bar.stop()
        print(f"rlx: the progress bar failed, plain lines follow: {' '.join(str(error).split())}", file=sys.stderr)

    def _show(self, steps: int, episode_return: float | None) -> None:
        now, self.done = time.perf_counter(), steps
        rate = (steps - self.first) / max(now - self.start, 1e-9)
        result = "return -" if episode_return is None else f"return {episode_return:.1f}"
        text = f"{steps:,} steps  {rate:,.0f} steps/s  {self.label}{result}"
        if self.bar:
            self.bar.update(self.task, completed=steps, description=text)
        elif now - self.last_plain > PLAIN_SECONDS or steps >= self.total:
            self.last_plain = now
            left = (self.total - steps) / max(rate, 1e-9)
            self.console.print(f"{100 * steps / self.total:3.0f} %  {text}  {left:.0f} s left")
