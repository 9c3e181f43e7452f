"""What there is: memories, tasks, suites and presets, as text."""

import inspect
import sys
import time

import numpy as np

import envs
from agents.presets import presets
from agents.suites import PREFIX, suites
from fwp_rl.registry import memory_configs

_INPUT_SIZE = 128  # parameters are counted for so many inputs
_N_ENVS, _SECONDS = 16, 0.3  # of a measurement of speed


def listing() -> str:
    """Memories with their sizes, tasks, wrappers and presets, one line each."""
    sections = [
        (
            f"memories (parameters at default sizes and {_INPUT_SIZE} inputs)",
            [(f"memory:{name}", f"{count:>9,}  {text}") for name, count, text in _memories()],
        ),
        ("tasks of this project (and every MiniGrid-*, BabyAI-* and Gymnasium id)", _tasks()),
        ("wrappers (--wrappers NAME:OPTION=VALUE, for any task)", _wrappers()),
        ("presets", [(name, preset.description) for name, preset in presets().items()]),
    ]
    return "\n\n".join(f"{title}\n{_table(rows)}" for title, rows in sections)


def task_listing() -> str:
    """Every task with what it isolates, its anchors and its speed here, measured for a moment; then the suites."""
    from rich.console import Console
    from rich.progress import track

    tasks = track(
        envs.TASKS.values(),
        description="measuring",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    rows = [line for task in tasks for line in ((task.id, f"isolates {task.isolates}"), ("", _measured(task.id)))]
    members = [(f"{PREFIX}{name}", ", ".join(tasks) or "not installed") for name, tasks in suites().items()]
    return (
        f"tasks (steps per second of {_N_ENVS} environments in one process, random actions)\n{_table(rows)}\n\n"
        f"suites (for python -m agents compare --env-id)\n{_table(members)}"
    )


def _measured(env_id: str) -> str:
    """Speed, and the expected returns of the reference policies where they are known."""
    from agents.episodes import make_env
    from agents.errors import AgentsError

    try:
        speed = f"{_steps_per_second(env_id):,.0f} steps/s"
        anchors = getattr(make_env(env_id, {}).unwrapped, "anchors", None)
    except AgentsError as error:  # what it needs is not installed
        return str(error)
    if anchors is None:
        return speed
    return f"{speed}; " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in anchors().items())


def _steps_per_second(env_id: str) -> float:
    from agents.vec_env import make_vec_env

    venv = make_vec_env(env_id, _N_ENVS)
    venv.reset()
    actions = [np.array([venv.action_space.sample() for _ in range(_N_ENVS)]) for _ in range(32)]
    n_steps, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < _SECONDS:
        venv.step(actions[n_steps % len(actions)])
        n_steps += 1
    venv.close()
    return _N_ENVS * n_steps / elapsed


def _memories() -> list[tuple[str, int, str]]:
    return [
        (name, _parameters(config().build(_INPUT_SIZE)), (inspect.getdoc(config) or "").split("\n")[0])
        for name, config in memory_configs().items()
    ]


def _parameters(memory: object) -> int:
    return sum(parameter.numel() for parameter in memory.parameters())  # type: ignore[attr-defined]  # a Memory is a module


def _tasks() -> list[tuple[str, str]]:
    return [(task.id, f"{task.description}; isolates {task.isolates}{_options(task)}") for task in envs.TASKS.values()]


def _wrappers() -> list[tuple[str, str]]:
    return [
        (f"{name}:{option}", (inspect.getdoc(wrapper) or "").split("\n")[0])
        for name, wrapper in envs.WRAPPERS.items()
        for option in list(inspect.signature(wrapper).parameters)[1:]
    ]


def _options(task: envs.Task) -> str:
    text = " ".join(f"{name}={value}" for name, value in task.options.items())
    return f"; options: {text}" if text else ""


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)
