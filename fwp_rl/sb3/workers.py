"""Environments in a few worker processes, for tasks whose steps take longer than a message between processes."""

import contextlib
import faulthandler
import functools
import math
import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]  # typeshed leaves it out
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import CloudpickleWrapper, DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

_SECONDS_TO_LEAVE = 5.0
_CACHE_LINE = 64  # bytes

_Layout: TypeAlias = list[tuple[tuple[int, ...], np.dtype[Any]]]


class WorkerError(RuntimeError):
    """A worker process died, or did not answer in time; or the environments have been closed."""


class WorkerVecEnv(VecEnv):
    """Environments of which `n_workers` processes and the calling one step a share each, side by side.

    The results are those of `DummyVecEnv`, whatever the number of workers: each process has a DummyVecEnv for its
    share, every environment has the seed that it would have in one process, and a step is over when all have answered.
    Observations, actions, rewards and dones lie in memory that the processes share; a step costs one message to each
    worker, and one back with the infos. (`SubprocVecEnv` has a process and two messages with pickled arrays for each
    environment.) Only an environment that draws from the global random generators instead of its own differs.

    What an environment raises is raised here, with the number of its worker as a note and its traceback as the cause.
    One that crashes or hangs in the share of this process takes this process with it, as with DummyVecEnv.
    Workers leave Ctrl-C and SIGTERM to the parent, and are gone when the parent is, even if it was killed. The shared
    memory has no name, so none can be left behind.

    :param env_fns: Functions that make the environments.
    :param n_workers: Number of processes besides this one, at least 1 and less than the number of environments.
    :param start_method: "fork", "forkserver" or "spawn". None: "forkserver" where there is one, as it is safe with
        threads. All but "fork" import the main module anew, so it needs `if __name__ == "__main__":`.
    :param timeout: Seconds that a worker may take for its answer, such as one step of all its environments.
    :raises ValueError: `n_workers` is out of range.
    :raises WorkerError: (any method) a worker died or did not answer in time.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
        n_workers: int,
        *,
        start_method: str | None = None,
        timeout: float = 300.0,
    ) -> None:
        n_envs = len(env_fns)
        if not 1 <= n_workers < n_envs:
            raise ValueError(f"n_workers={n_workers}: expected 1 to {n_envs - 1}, one less than the environments")
        if start_method is None:
            start_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(start_method)
        parts = [slice(int(rows[0]), int(rows[-1]) + 1) for rows in np.array_split(np.arange(n_envs), n_workers + 1)]
        venv = DummyVecEnv(list(env_fns[parts[0]]))
        self._keys, layout = _layout(n_envs, venv.observation_space, venv.action_space)
        block = context.RawArray("b", sum(_n_bytes(shape, dtype) for shape, dtype in layout))
        views = _views(block, layout)
        *self._observations, self._actions, self._rewards, self._dones = views
        self._is_stepping = False
        workers: list[_Worker] = []
        # With an exit priority it runs before multiprocessing waits for processes that wait for us.
        self._end = Finalize(self, _end, (venv, workers), exitpriority=10)
        try:
            for part in parts[1:]:
                workers.append(_start(context, workers, part, env_fns[part], block, layout, timeout))
            for worker in workers:
                worker.finish()  # it has made its environments
            self._shares: list[_Own | _Worker] = [_Own(parts[0], _Rows(venv, parts[0], views)), *workers]
            super().__init__(n_envs, venv.observation_space, venv.action_space)
        except BaseException:
            self.close()
            raise
        self.metadata = venv.metadata

    def reset(self) -> VecEnvObs:
        """Reset all environments. A step that was not waited for is dropped."""
        self._begin()
        for share in self._shares:
            share.begin("reset", self._seeds[share.part], self._options[share.part])
        self.reset_infos = [info for share in self._shares for info in share.finish()]
        self._reset_seeds()
        self._reset_options()
        return self._observation()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Let the workers begin a step; the share of this process is stepped in `step_wait`."""
        self._begin()
        self._actions[:] = actions
        for share in self._shares:
            share.begin("step")
        self._is_stepping = True

    def step_wait(self) -> VecEnvStepReturn:
        """The step that `step_async` began."""
        if not self._is_stepping:
            raise RuntimeError("step_wait without step_async")
        self._is_stepping = False
        infos: list[dict[str, Any]] = []
        for share in self._shares:
            infos_of_share, reset_infos = share.finish()
            infos += infos_of_share
            if reset_infos is not None:
                self.reset_infos[share.part] = reset_infos
        return self._observation(), self._rewards.copy(), self._dones.copy(), infos

    def close(self) -> None:
        """Close all environments. A worker that is still busy after 5 seconds is killed."""
        self._end()

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """A picture of each environment; None for each where the render mode gives none."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"render_mode={self.render_mode!r} gives no pictures, 'rgb_array' does", stacklevel=2)
            return [None] * self.num_envs
        return self.env_method("render")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each environment."""
        return self._ask_rows("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute of each environment; those of a worker share one copy of the value."""
        self._ask_rows("set_attr", indices, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """What the method of each environment returns."""
        return self._ask_rows("env_method", indices, method_name, *method_args, **method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each environment has such a wrapper."""
        return self._ask_rows("env_is_wrapped", indices, wrapper_class)

    def _observation(self) -> VecEnvObs:
        copies = {key: array.copy() for key, array in zip(self._keys, self._observations, strict=True)}
        return dict_to_obs(self.observation_space, copies)

    def _ask_rows(self, name: str, indices: VecEnvIndices, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method of the DummyVecEnvs that have these rows; the answers come in the order of the rows."""
        self._begin()
        rows = [range(self.num_envs)[row] for row in self._get_indices(indices)]  # -1 is the last one, as in a list
        owners = [next(share for share in self._shares if row < share.part.stop) for row in rows]
        for share in dict.fromkeys(owners):
            own = [row - share.part.start for row, owner in zip(rows, owners, strict=True) if owner is share]
            share.begin(name, *args, **kwargs, indices=own)
        answers = {share: iter(share.finish()) for share in dict.fromkeys(owners)}
        return [next(answers[owner]) for owner in owners]

    def _begin(self) -> None:
        """A new call: a step that nobody waited for is forgotten."""
        if not self._end.still_active():
            raise WorkerError("the environments are closed")
        self._is_stepping = False


class _Own:
    """The share of this process."""

    def __init__(self, part: slice, rows: "_Rows") -> None:
        self.part = part
        self._rows = rows

    def begin(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Note what to call."""
        self._call = functools.partial(self._rows.call, name, *args, **kwargs)

    def finish(self) -> Any:
        """Call it: the workers have begun meanwhile."""
        return self._call()


@dataclass(eq=False)
class _Worker:
    """The share of a worker, as the parent sees it."""

    number: int
    part: slice
    process: BaseProcess
    connection: "Connection[Any, Any]"
    stack: "Connection[Any, Any]"
    """Where it writes its stack when it gets SIGUSR1."""
    timeout: float
    asked: float | None = field(default_factory=time.monotonic)
    """Since when it owes an answer. Unasked, it tells that its environments are made."""

    def __str__(self) -> str:
        first, last = self.part.start, self.part.stop - 1
        return f"worker {self.number} (environment{f's {first} to' if last > first else ''} {last})"

    def begin(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Tell the worker what to call."""
        if self.asked is not None:
            self._receive()  # nobody waited for it: an exception came first, or Ctrl-C
        self.asked = time.monotonic()
        with contextlib.suppress(OSError):  # it is dead: `finish` will say so
            self.connection.send((name, args, kwargs))

    def finish(self) -> Any:
        """Its answer."""
        is_good, answer = self._receive()
        if not is_good:
            answer.add_note(f"in {self}")
            raise answer
        return answer

    def _receive(self) -> tuple[bool, Any]:
        try:
            if not self.connection.poll(max((self.asked or 0.0) + self.timeout - time.monotonic(), 0.0)):
                problem = f"has not answered for {self.timeout:g} seconds{self._place()}"
                self.process.kill()
                raise WorkerError(f"{self} {problem}")
            outcome: tuple[bool, Any] = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerError(f"{self} {self._how_it_ended()}") from None
        self.asked = None
        return outcome

    def _how_it_ended(self) -> str:
        self.process.join(_SECONDS_TO_LEAVE)
        code = self.process.exitcode
        if code is None:
            return "closed its connection"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def _place(self) -> str:
        """Where a process that hangs does so, as far as it can be known."""
        if self.process.pid is None or not hasattr(signal, "SIGUSR1"):
            return ""
        os.kill(self.process.pid, signal.SIGUSR1)
        if not self.stack.poll(1.0):
            return ""
        text = os.read(self.stack.fileno(), 1 << 16).decode(errors="replace")
        frames = re.findall(r'File "(.+?)", line (\d+) in (\S+)', text)
        places = [f"{where} ({Path(file).name}:{line})" for file, line, where in frames[:3]]
        return "; it is in " + ", called by ".join(places) if places else ""


def _start(
    context: Any,
    others: list[_Worker],
    part: slice,
    env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
    block: Any,
    layout: _Layout,
    timeout: float,
) -> _Worker:
    connection, its_connection = context.Pipe()
    stack, its_stack = context.Pipe(duplex=False)
    is_fork = context.get_start_method() == "fork"
    inherited = [connection, *(other.connection for other in others)] if is_fork else []
    process = context.Process(
        target=_serve,
        args=(its_connection, its_stack, inherited, CloudpickleWrapper(list(env_fns)), part, block, layout),
        name=f"worker-{len(others)}",
        daemon=True,
    )
    process.start()
    its_connection.close()  # so that reading fails once the process is dead
    its_stack.close()
    return _Worker(len(others), part, process, connection, stack, timeout)


def _end(own: VecEnv, workers: list[_Worker]) -> None:
    """Tell the workers to leave, and see them off."""
    for worker in workers:
        with contextlib.suppress(OSError):  # it is dead
            worker.connection.send(None)
        worker.connection.close()
    own.close()
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    for worker in workers:
        worker.process.join(max(deadline - time.monotonic(), 0.0))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.stack.close()


def _serve(
    connection: "Connection[Any, Any]",
    stack: "Connection[Any, Any]",
    inherited: list["Connection[Any, Any]"],
    env_fns: CloudpickleWrapper,
    part: slice,
    block: Any,
    layout: _Layout,
) -> None:
    """Body of a worker: do what it is told until it is told to leave, or the parent has hung up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for end_of_parent in inherited:
        end_of_parent.close()  # else nobody would see the parent hang up
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, stack.fileno(), all_threads=False)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        venv = DummyVecEnv(env_fns.var)
        rows = _Rows(venv, part, _views(block, layout))
    except Exception as error:
        connection.send((False, _picklable(error)))
        return
    outcome: tuple[bool, Any] = True, None
    with contextlib.suppress(EOFError, OSError), contextlib.closing(venv):
        while True:
            _send(connection, outcome)
            request = connection.recv()
            if request is None:
                break
            name, args, kwargs = request
            try:
                outcome = True, rows.call(name, *args, **kwargs)
            except Exception as error:
                outcome = False, _picklable(error)


def _send(connection: "Connection[Any, Any]", outcome: tuple[bool, Any]) -> None:
    try:
        connection.send(outcome)
    except OSError:
        raise
    except Exception as error:  # the answer cannot be pickled
        connection.send((False, _picklable(error)))


class _Rows:
    """The environments of one process: a DummyVecEnv whose buffers are the rows `part` of the shared arrays."""

    def __init__(self, venv: DummyVecEnv, part: slice, views: list[NDArray[Any]]) -> None:
        self._venv = venv
        *observations, self._actions, venv.buf_rews, venv.buf_dones = [view[part] for view in views]
        venv.buf_obs.update(zip(venv.keys, observations, strict=True))

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """One of the methods below, or else of the DummyVecEnv."""
        return (getattr(self, name, None) or getattr(self._venv, name))(*args, **kwargs)

    def step(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Infos of the step, and those of the resets if there were any."""
        _, _, dones, infos = self._venv.step(self._actions.copy())  # an environment may keep its action
        return infos, self._venv.reset_infos if dones.any() else None

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Infos of the resets."""
        self._venv._seeds, self._venv._options = seeds, options
        self._venv.reset()
        return self._venv.reset_infos

    def set_attr(self, attr_name: str, value: Any, indices: list[int]) -> list[None]:
        """One answer for each row, as the other methods have."""
        self._venv.set_attr(attr_name, value, indices)
        return [None] * len(indices)


def _picklable(error: Exception) -> Any:
    """What arrives at the parent as the exception with its traceback; as a RuntimeError if it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
        travels = error
    except Exception:
        travels = RuntimeError(f"{type(error).__name__}: {error}")
    return ExceptionWithTraceback(travels.with_traceback(error.__traceback__), error.__traceback__)


def _leave_with_parent() -> None:
    """A worker that is busy, perhaps forever, does not notice that nobody waits for its answer any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _layout(
    n_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> tuple[list[Any], _Layout]:
    """Keys of the observation (None if it has none), and what is shared: observations, actions, rewards, dones."""
    keys, shapes, dtypes = obs_space_info(observation_space)
    each = [(shapes[key], np.dtype(dtypes[key])) for key in keys]
    each.append((action_space.shape or (), np.dtype(action_space.dtype)))
    each += [((), np.dtype(np.float32)), ((), np.dtype(bool))]
    return list(keys), [((n_envs, *shape), dtype) for shape, dtype in each]


def _n_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Whole cache lines, so that arrays are aligned and do not share any."""
    return -(-math.prod(shape) * dtype.itemsize // _CACHE_LINE) * _CACHE_LINE


def _views(block: Any, layout: _Layout) -> list[NDArray[Any]]:
    views, offset = [], 0
    for shape, dtype in layout:
        views.append(np.frombuffer(block, dtype, math.prod(shape), offset).reshape(shape))
        offset += _n_bytes(shape, dtype)
    return views
