"""Training runs side by side, each in a process of its own with one thread for computing."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path

from agents.config import TrainConfig
from agents.errors import InterruptedRunError
from agents.interrupts import Interrupts

_POLL_SECONDS = 0.5
ONE_THREAD = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that keep the numerical libraries to one thread."""


@dataclass(frozen=True)
class Job:
    """One training run: what `train.py --resume DIRECTORY` does, where a run with this config waits or was cut off."""

    name: str
    config: TrainConfig
    directory: Path


def train_side_by_side(
    jobs: Sequence[Job], n_processes: int, show: Callable[[Job, bool], object], *, again: str
) -> dict[str, int]:
    """Train all, never more than `n_processes` at once, and return the exit code of each by name.

    `show(job, has_ended)` is called now and then for each that runs, and once when it has ended. After Ctrl-C or
    SIGTERM all that run are asked to save and leave, and InterruptedRunError tells how to go on: `again`.
    """
    context = multiprocessing.get_context("spawn")
    waiting, running, codes = list(jobs), dict[str, tuple[Job, SpawnProcess]](), dict[str, int]()
    with Interrupts() as interrupts, _one_thread_for_children():
        try:
            while (waiting or running) and interrupts.received is None:
                while waiting and len(running) < n_processes:
                    job = waiting.pop(0)
                    process = context.Process(target=_train, args=(str(job.directory),), name=job.name)
                    process.start()
                    running[job.name] = job, process
                for name, (job, process) in list(running.items()):
                    has_ended = not process.is_alive()
                    show(job, has_ended)
                    if has_ended:
                        codes[name] = process.exitcode or 0
                        del running[name]
                time.sleep(_POLL_SECONDS if running else 0.0)
        finally:
            for _, process in running.values():
                process.terminate()  # it saves, then leaves
            for _, process in running.values():
                process.join()
        if interrupts.received is not None:
            raise InterruptedRunError(again, interrupts.exit_code)
    return codes


def _train(directory: str) -> None:
    """Body of a process. Ctrl-C on the terminal is for the parent, who then asks us to stop."""
    from agents.command_line import run
    from agents.training import resume

    if hasattr(os, "setpgrp"):
        os.setpgrp()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sys.exit(run(lambda: resume(Path(directory), quiet=True)))


def _leave_with_parent() -> None:
    """A parent that was killed cannot ask; a run that goes on would be in the way of its successor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _one_thread_for_children:
    """One thread for the numerical libraries of every process started in the `with` block."""

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))

    def __exit__(self, *error: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
