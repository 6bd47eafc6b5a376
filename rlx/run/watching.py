"""A thread in which environments step on the host, and a limit to how long one of their calls may take."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from rlx.hosted import Fault

LIMIT = 60.0  # seconds that a call of an environment may take
LOOKS = 50  # at the clock within the limit


class Watched:
    """Calls functions one after another in a thread of its own, in which environments are made, stepped and closed.

    Whoever waits for a result looks at the clock: a call of an environment that lasts longer than the limit is given
    up, with its thread. So it does not matter in which code it hangs, and a step costs no more for being watched.
    """

    def __init__(self, limit: float = LIMIT):
        self.limit, self.calls = limit, SimpleQueue()
        self.since: tuple[float, Callable[[], str]] | None = None  # of a call of an environment under way
        self.gone = False  # given up
        threading.Thread(target=self._work, daemon=True, name="rlx-host").start()

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            future, function, args = call
            try:
                future.set_result(function(*args))
            except BaseException as error:  # is raised where the result is waited for
                future.set_exception(error)
            del call, future, function, args

    def begin(self, function: Callable, *args: Any) -> Future:
        """Calls the function when those before it have ended; `result` waits for what it returns."""
        future: Future = Future()
        self.calls.put((future, function, args))
        return future

    def result(self, future: Future) -> Any:
        """What a call returns.

        Raises:
            Fault: where an environment does not answer within the limit.
        """
        while True:
            try:
                return future.result(timeout=max(self.limit / LOOKS, 0.01))
            except TimeoutError:
                if future.done():  # in the meantime; or the call itself has raised this
                    return future.result()
            if (since := self.since) is not None and time.monotonic() - since[0] > self.limit:
                self.gone = True
                raise Fault(f"{since[1]()} did not answer for {self.limit:g} seconds")

    def call(self, function: Callable, *args: Any) -> Any:
        """`result` of `begin`."""
        return self.result(self.begin(function, *args))

    @contextmanager
    def waiting(self, whom: Callable[[], str]) -> Iterator[None]:
        """Around a call of environments; `whom` says in words for which of them it waits."""
        self.since = (time.monotonic(), whom)
        try:
            yield
        finally:
            self.since = None

    def close(self) -> None:
        """Lets the thread end, after what was begun."""
        self.calls.put(None)


__all__ = ["LIMIT", "Watched"]
