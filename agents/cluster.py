"""Training runs on a Ray cluster: the same jobs as `agents.side_by_side`, one core each, on as many machines as it has.

The unit of work is `train.py --resume DIRECTORY`. So the project and the runs must lie on a file system that all
machines of the cluster see under the same path. Ray starts a job anew whose worker or machine has died; it goes on from
its checkpoint. Needs the extra `cluster`.
"""

import importlib.util
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agents.errors import InterruptedRunError, UsageError
from agents.interrupts import Interrupts
from agents.side_by_side import ONE_THREAD, Job

RETRIES = 20
"""How often a job whose worker died is started again."""
_ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 1.0
_LEAVE_SECONDS = 60.0
_CONNECT_SECONDS = 4.0
_ANSWER_SECONDS = 9.0  # both together: less than the 15 s after which a user gives up


class RayCluster:
    """A Ray cluster that has answered.

    :param address: `host:port` of its head. None: the one that `RAY_ADDRESS` or `ray start` on this machine tell of, or
        else a new one on this machine.
    :raises UsageError: it does not answer, or Ray is not installed.
    """

    def __init__(self, address: str | None) -> None:
        if address is not None:
            _knock(address)
        if importlib.util.find_spec("ray") is None:
            raise UsageError("--cluster ray needs the extra 'cluster': pip install -c constraints.txt -e '.[cluster]'")
        if address is not None:
            _ask(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send them away over the network
        import ray

        variables = {"PYTHONPATH": str(_ROOT), **dict.fromkeys(ONE_THREAD, "1")}
        try:
            ray.init(address, runtime_env={"env_vars": variables}, logging_level=logging.ERROR, include_dashboard=False)
        except Exception as error:  # other versions, no session of this user, ...
            raise UsageError(f"cannot join the Ray cluster: {' '.join(str(error).split())}") from None
        self._ray = ray

    def train(self, jobs: Sequence[Job], show: Callable[[Job, bool], object], *, again: str) -> dict[str, int]:
        """As `train_side_by_side`."""
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_train)
        running: dict[Any, Job] = {
            task.options(name=job.name).remote(str(job.directory.resolve())): job for job in jobs
        }
        codes: dict[str, int] = {}
        with Interrupts() as interrupts:
            try:
                while running and interrupts.received is None:
                    ended, _ = ray.wait(list(running), num_returns=len(running), timeout=_POLL_SECONDS)
                    for reference in ended:
                        job = running.pop(reference)
                        codes[job.name] = self._exit_code(job, reference)
                        show(job, True)
                    for job in running.values():
                        show(job, False)
            finally:
                for reference in running:
                    ray.cancel(reference)  # as Ctrl-C: it saves, then leaves
                if running:
                    ray.wait(list(running), num_returns=len(running), timeout=_LEAVE_SECONDS)
            if interrupts.received is not None:
                raise InterruptedRunError(again, interrupts.exit_code)
        return codes

    def _exit_code(self, job: Job, reference: Any) -> int:
        try:
            return int(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            print(f"error: {job.name}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
            return 1


def _train(directory: str) -> int:
    """Body of a job, in a process of a worker, which may have trained before."""
    from agents.command_line import run
    from agents.training import resume

    return run(lambda: resume(Path(directory), quiet=True))


def _knock(address: str) -> None:
    """UsageError in one line if nobody listens there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"address={address!r} must read host:port, such as 10.0.0.7:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"no Ray cluster answers at {address} ({reason}); is the head running there?") from None


def _ask(address: str) -> None:
    """UsageError in one line if what listens there is not a Ray cluster."""
    # In a process of its own, which can be ended.
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        healthy = subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise UsageError(f"something listens at {address}, but it does not answer as a Ray cluster does")
