"""Ctrl-C and SIGTERM as a polite request: finish this step, save, leave. A second one leaves at once."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While the `with` block runs, `received` tells which signal asked to stop (None: none so far).

    The handlers only take note, so no signal can tear a file or an update apart. Outside the main thread, where Python
    allows no handlers, the block changes nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        print("\nstopping and saving; once more to leave at once", file=sys.stderr, flush=True)
