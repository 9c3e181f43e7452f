"""Workers change no result, and none of them is left behind."""

import contextlib
import functools
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from fwp_rl.sb3 import MemoryPPO, PreviousInputs, WorkerError, WorkerVecEnv

# Most tests fork, since a fork is there at once. Python warns of it from 3.12 on: other threads might hold a lock. Here
# there are no others but those of the numerical libraries, which the workers do not use.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.skipif(os.name == "nt", reason="signals of POSIX"),
]
N = 5


class Walk(gymnasium.Env):
    """A random walk that ends by termination and truncation, with everything that a VecEnv has to carry."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    observation_space = spaces.Dict(
        {"place": spaces.Box(-np.inf, np.inf, (3,), np.float64), "kind": spaces.Discrete(4), "n": spaces.MultiBinary(2)}
    )

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode, self.actions, self.note = render_mode, [], "none"

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.normal(size=3), 0
        return self._observation(), {"options": options, "seeded": seed is not None}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.actions.append(action)
        self.steps += 1
        self.place = self.place + self.np_random.normal(size=3)
        ends = bool(self.place[0] > 2)
        return self._observation(), float(action.sum()), ends, self.steps >= 7, {"steps": self.steps}

    def _observation(self) -> dict:
        return {"place": self.place, "kind": int(self.np_random.integers(4)), "n": self.np_random.integers(2, size=2)}

    def render(self) -> np.ndarray:
        return np.full((4, 6, 3), self.steps, np.uint8)

    def pid(self, add: int = 0) -> int:
        return os.getpid() + add

    def misbehave(self, how: str) -> Any:
        return {
            "raise": self._raise,
            "travel": self._raise_what_cannot_travel,
            "local": lambda: lambda: 0,
            "hang": functools.partial(time.sleep, 1000),
            "exit": functools.partial(os._exit, 3),
        }[how]()

    def _raise(self) -> None:
        raise ZeroDivisionError("no such floor")

    def _raise_what_cannot_travel(self) -> None:
        class Local(Exception):
            pass

        raise Local("from far away")


def monitored() -> gymnasium.Env:
    return Monitor(Walk())


@contextlib.contextmanager
def workers(
    n: int = 2, make: Callable[[], gymnasium.Env] = monitored, n_envs: int = N, **options: Any
) -> Iterator[WorkerVecEnv]:
    with contextlib.closing(WorkerVecEnv([make] * n_envs, n, **{"start_method": "fork", **options})) as venv:
        yield venv


def pids(venv: VecEnv) -> list[int]:
    return venv.env_method("pid")


def tape(venv: VecEnv, n_steps: int = 30) -> list[Any]:
    """All that can be seen of `n_steps` steps but the time, as bytes."""
    venv.seed(7)
    venv.set_options([{"number": row} for row in range(venv.num_envs)])
    rng = np.random.default_rng(3)
    seen: list[Any] = [venv.reset(), venv.reset_infos]
    for _ in range(n_steps):
        observations, rewards, dones, infos = venv.step(rng.uniform(-1, 1, (venv.num_envs, 2)).astype(np.float32))
        for info in infos:
            info.get("episode", {}).pop("t", None)
        seen += [observations, rewards, rewards.dtype, dones, dones.dtype, infos, list(venv.reset_infos)]
    return seen


def assert_same(left: Any, right: Any) -> None:
    """Equal values, types and dtypes, however deep."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert type(left) is type(right)
        assert left == right


@pytest.mark.parametrize("n_workers", [1, 2, 4])
@pytest.mark.parametrize(
    ("make", "wrap"),
    [
        (monitored, lambda venv: venv),
        (Walk, VecMonitor),
        (monitored, functools.partial(VecNormalize, norm_obs_keys=["place"])),
        (monitored, PreviousInputs),
    ],
    ids=["bare", "VecMonitor", "VecNormalize", "PreviousInputs"],
)
def test_any_number_of_workers_gives_the_results_of_one_process(
    n_workers: int, make: Callable[[], gymnasium.Env], wrap: Callable[[VecEnv], VecEnv]
) -> None:
    """Red if a row gets another's seed, options or action, or if anything is lost on the way."""
    expected = tape(wrap(DummyVecEnv([make] * N)))
    ends = [info for infos in expected[7::7] for info in infos if "terminal_observation" in info]
    assert {info["TimeLimit.truncated"] for info in ends} == {True, False}
    with workers(n_workers, make) as venv:
        assert_same(tape(wrap(venv)), expected)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_workers_can_be_started_in_other_ways(start_method: str) -> None:
    """Red if something that a worker needs is inherited instead of sent."""
    make = functools.partial(gymnasium.make, "CartPole-v1")
    with workers(1, make, 2, start_method=start_method) as venv:
        plain = DummyVecEnv([make] * 2)
        for each in (venv, plain):
            each.seed(3)
        assert_same(venv.reset(), plain.reset())
        for action in (np.array([0, 1]), np.array([1, 1])):
            assert_same(venv.step(action), plain.step(action))


def test_training_gives_the_same_weights_with_any_number_of_workers() -> None:
    """Red if workers change the order of anything that the learner draws or sums up."""
    weights = []
    for n_workers in (0, 1, 2):
        venv = (
            DummyVecEnv([monitored] * 4)
            if n_workers == 0
            else WorkerVecEnv([monitored] * 4, n_workers, start_method="fork")
        )
        model = MemoryPPO("MultiInputPolicy", venv, n_steps=16, n_epochs=1, seed=0, device="cpu")
        model.learn(128)
        venv.close()
        weights.append([parameter.detach().numpy().copy() for parameter in model.policy.parameters()])
    assert_same(weights[1], weights[0])
    assert_same(weights[2], weights[0])


def test_the_whole_interface() -> None:
    """Red if a row is not the one that was asked for, in the order that was asked for."""
    with workers(2) as venv:
        venv.seed(1)
        venv.reset()
        processes = pids(venv)
        assert processes[:2] == [os.getpid()] * 2
        assert len(set(processes)) == 3
        assert venv.env_method("pid", 1, indices=[4, 0, -1]) == [processes[i] + 1 for i in (4, 0, 4)]
        assert venv.env_method("pid", add=2, indices=3) == [processes[3] + 2]
        venv.set_attr("note", "changed", indices=[1, 3])
        assert venv.get_attr("note", indices=range(N)) == ["none", "changed", "none", "changed", "none"]
        assert venv.env_is_wrapped(Monitor) == [True] * N
        assert venv.env_is_wrapped(gymnasium.wrappers.TimeLimit, indices=[0, 4]) == [False, False]
        assert venv.has_attr("note")
        assert not venv.has_attr("nonsense")
        venv.step(np.zeros((N, 2), np.float32))
        assert [picture.max() for picture in venv.get_images()] == [1] * N
        assert venv.render().shape == (12, 12, 3)
        with pytest.raises(IndexError):
            venv.get_attr("note", indices=N)
        with pytest.raises(RuntimeError, match="without step_async"):
            venv.step_wait()


def test_environments_without_pictures_say_so() -> None:
    with (
        workers(1, functools.partial(Walk, None), 2) as venv,
        pytest.warns(UserWarning, match="render_mode=None gives no"),
    ):
        assert venv.get_images() == [None, None]


def test_an_environment_may_keep_its_actions_and_the_caller_what_it_got() -> None:
    """Red if somebody is handed the shared memory itself."""
    with workers(1, n_envs=2) as venv:
        venv.seed(1)
        first = venv.reset()
        before = pickle.dumps(first)
        for value in (0.25, 0.5):
            venv.step(np.full((2, 2), value, np.float32))
        assert [[float(action[0]) for action in kept] for kept in venv.get_attr("actions")] == [[0.25, 0.5]] * 2
        assert pickle.dumps(first) == before


def test_a_step_that_nobody_waited_for_is_dropped() -> None:
    """Red if its answer is taken for that of the next call."""
    with workers(2) as venv:
        venv.seed(1)
        expected = venv.reset()
        venv.step_async(np.zeros((N, 2), np.float32))
        venv.seed(1)
        assert_same(venv.reset(), expected)


@pytest.mark.parametrize(
    ("how", "kind", "message", "trace"),
    [
        ("raise", ZeroDivisionError, "no such floor", "in _raise"),
        ("travel", RuntimeError, "Local: from far away", "in _raise_what_cannot_travel"),
        ("local", AttributeError, "Can't pickle", "in _send"),
    ],
)
@pytest.mark.parametrize("row", [0, 4])
def test_what_an_environment_raises_is_raised_here(
    how: str, kind: type[Exception], message: str, trace: str, row: int
) -> None:
    """Red if the exception, its place or the number of the worker is lost, or if the next call suffers."""
    if row == 0 and how != "raise":
        return  # nothing has to travel
    with workers(2) as venv:
        venv.reset()
        with pytest.raises(kind, match=message) as caught:
            venv.env_method("misbehave", how, indices=[row, 1])
        if row == 4:
            assert trace in str(caught.value.__cause__)
            assert caught.value.__notes__ == ["in worker 1 (environment 4)"]
        assert len(set(pids(venv))) == 3


def test_an_environment_that_cannot_be_made_is_raised_here() -> None:
    """Red if the parent waits for workers that never began, or leaves the others behind."""
    parent = os.getpid()

    def make() -> gymnasium.Env:
        if os.getpid() != parent:
            raise ImportError("no module named nowhere")
        return Walk()

    with pytest.raises(ImportError, match="nowhere") as caught, workers(2, make):
        pass
    assert caught.value.__notes__ == ["in worker 0 (environments 2 to 3)"]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("n_workers", [0, 5, -1])
def test_a_wrong_number_of_workers_is_refused(n_workers: int) -> None:
    with pytest.raises(ValueError, match=f"n_workers={n_workers}: expected 1 to 4"):
        WorkerVecEnv([monitored] * N, n_workers)


def test_a_worker_that_dies_is_named_with_its_signal() -> None:
    """Red if the parent waits for the dead, or cannot say who died of what."""
    with workers(2) as venv:
        venv.reset()
        os.kill(pids(venv)[-1], signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(WorkerError, match=r"^worker 1 \(environment 4\) was killed by SIGKILL$"):
                venv.step(np.zeros((N, 2), np.float32))
    with workers(2) as venv, pytest.raises(WorkerError, match=r"^worker 0 \(environments 2 to 3\) exited with code 3$"):
        venv.env_method("misbehave", "exit", indices=2)


def test_a_worker_that_hangs_is_named_with_the_place() -> None:
    """Red if the parent hangs too, or if the one who looks for the reason gets no hint."""
    with workers(1, timeout=0.5) as venv:
        venv.reset()
        with pytest.raises(WorkerError, match=r"has not answered for 0\.5 seconds; it is in misbehave") as caught:
            venv.env_method("misbehave", "hang", indices=4)
    assert re.search(r"\(test_workers.py:\d+\), called by ", str(caught.value))
    assert not multiprocessing.active_children()


def test_ctrl_c_is_left_to_the_parent() -> None:
    """Red if a signal to the whole group ends the workers before the parent could save."""
    with workers(2) as venv:
        venv.reset()
        for number in (signal.SIGINT, signal.SIGTERM):
            for pid in pids(venv)[2:]:
                os.kill(pid, number)
        time.sleep(0.05)
        venv.step(np.zeros((N, 2), np.float32))


def test_closing_ends_everything() -> None:
    """Red if a worker or a file descriptor stays."""
    before = sorted(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    with workers(2) as venv, workers(1, n_envs=2):  # its process inherits our ends of the connections
        venv.reset()
        processes = pids(venv)[2:]
        started = time.monotonic()
        venv.close()
        assert time.monotonic() - started < 4.0
    venv.close()
    assert not multiprocessing.active_children()
    for pid in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(WorkerError, match="closed"):
        venv.reset()
    del venv
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1  # the heap of multiprocessing keeps an arena


ORPHANS = """
from workers_of_this_test import *

with workers(2) as venv:
    venv.reset()
    print(*sorted(set(pids(venv)[2:])), flush=True)
    venv.env_method("misbehave", "hang", indices=2)
"""


def test_workers_leave_when_the_parent_is_killed(tmp_path: Path) -> None:
    """Red if a process, idle or busy forever, or shared memory outlives a parent that could not clean up."""
    (tmp_path / "workers_of_this_test.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert process.stdout is not None
    orphans = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(orphans) == 2
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in orphans):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not [path for path in Path("/dev/shm").glob("*") if str(process.pid) in path.name]


def is_running(pid: int) -> bool:
    """Zombies do not count: it is for the init process to fetch them."""
    status = Path(f"/proc/{pid}/status")
    if Path("/proc/self/status").exists():
        return status.exists() and "State:\tZ" not in status.read_text(encoding="utf-8")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
