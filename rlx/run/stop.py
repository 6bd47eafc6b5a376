"""Signals that end a run or a sweep at the next border between chunks."""

import signal
import threading


class Stop:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into `asked`, its number; the second one has its usual effect.

    Python has signals in the main thread only: in another one nothing is ever asked.
    """

    def __enter__(self):
        self.asked, self.previous = 0, {}
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self.previous[number] = signal.signal(number, self._ask) or signal.SIG_DFL
        return self

    def _ask(self, number, frame):
        self.asked = number
        signal.signal(number, self.previous[number])

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
