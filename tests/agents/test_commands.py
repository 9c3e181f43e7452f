"""`python -m agents`: what it prints, its exit codes, and that it runs no code from a file."""

import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch

import envs
from agents.__main__ import main
from agents.command_line import run
from agents.runs import RunPaths
from agents.suites import suites

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = run(lambda: main([str(argument) for argument in arguments]))
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def copied_run(run_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_directory, tmp_path / "copy"))


def test_evaluate_prints_success_return_and_length(call: Any, run_directory: Path) -> None:
    code, out, err = call("evaluate", run_directory, "--episodes", 5)
    assert (code, err) == (0, "")
    assert re.search(
        r"episodes   5\nsuccess    \d\.\d{3}   \(95 % interval .*\)\nreturn     .*\nlength     8\.0 steps", out
    )


def test_evaluate_prints_nothing_but_json_when_asked(call: Any, run_directory: Path) -> None:
    code, out, err = call("evaluate", run_directory, "--episodes", 5, "--json", "--stochastic")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert (answer["memory"], answer["deterministic"], answer["episodes"]) == ("delta", False, 5)
    assert [row["seed"] for row in answer["rows"]] == list(range(1_000_000, 1_000_005))


def test_evaluation_is_the_same_every_time(call: Any, run_directory: Path) -> None:
    first, second = (call("evaluate", run_directory, "--episodes", 20, "--json", "--stochastic") for _ in range(2))
    assert first == second


def test_list_names_memories_tasks_and_presets(call: Any) -> None:
    code, out, _ = call("list")
    assert code == 0
    for text in (
        "memory:delta",
        "memory:lstm",
        "132,096",
        "fwp/MiniGrid-TMaze-v0",
        "MiniGrid-MemoryS9-v0",
        "flicker:",
        "debug",
    ):
        assert text in out


def test_list_tells_of_every_task_what_it_isolates_its_anchors_and_its_speed(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a task or a suite is missing, or a task that is not installed ends the list."""
    monkeypatch.setattr("agents.listing._SECONDS", 0.01)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    code, out, err = call("list", "--tasks")
    assert (code, err) == (0, "")
    for env_id, task in envs.TASKS.items():
        first, second, *_ = out.partition(f"  {env_id} ")[2].splitlines()
        assert f"isolates {task.isolates}" in first
        assert ("cannot run here" if "Lander" in env_id else "steps/s") in second
    assert "steps/s; optimal 3, memoryless 0.8662, random 0.183, clock 2.985, order blind 2.245\n" in out
    assert "steps/s; optimal 1, memoryless 0.5, random " in out.split("fwp/MiniGrid-TMaze-v0")[1]
    for name, tasks in suites().items():
        assert re.search(rf"  suite:{name} +{', '.join(tasks) or 'not installed'}\n", out + "\n")


def test_an_agent_is_evaluated_on_another_length(call: Any, run_directory: Path) -> None:
    """Red if the length of its training is used, or if an option that changes what it sees is not refused."""
    code, out, _ = call("evaluate", run_directory, "--episodes", 3, "--json", "--env-options", "episode_length=30")
    answer = json.loads(out)
    assert (code, answer["length_mean"], answer["env_options"]["episode_length"]) == (0, 30.0, 30)
    code, _, err = call("evaluate", run_directory, "--env-options", "n_symbols=9")
    assert code == 4
    assert "do not belong together" in err
    code, _, err = call("evaluate", run_directory, "--env-options", "lenght=9")
    assert code == 2
    assert "has no option 'lenght'" in err


def test_commands_run_as_a_module(run_directory: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "agents", "evaluate", str(run_directory), "--episodes", "3"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "episodes   3" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evalute"], 2, "unknown argument 'evalute'; did you mean evaluate?"),
        (["evaluate"], 2, "python -m agents evaluate needs PATH: directory of a run"),
        (["evaluate", "RUN", "--episode", "3"], 2, "unknown option --episode; did you mean --episodes?"),
        (["evaluate", "RUN", "--episodes", "many"], 2, "--episodes takes a whole number, got 'many'"),
        (["evaluate", "RUN", "--episodes", "0"], 2, "episodes=0 must be at least 1"),
        (["render", "RUN", "--out", "a.avi"], 2, "cannot write 'a.avi': the name must end in"),
        (["render", "RUN", "--seed", "-1"], 2, "seed=-1 must be at least 0"),
        (["evaluate", "nowhere"], 4, "nowhere is not a directory"),
        (["evaluate", "."], 4, "holds no run.json"),
    ],
)
def test_mistakes_are_one_line(call: Any, run_directory: Path, arguments: list[str], code: int, message: str) -> None:
    filled = [str(run_directory) if argument == "RUN" else argument for argument in arguments]
    answer = call(*filled)
    assert (answer[0], answer[1]) == (code, "")
    assert answer[2].startswith("error: ")
    assert message in answer[2]
    assert answer[2].count("\n") == 1


def forget_the_model(directory: Path) -> None:
    RunPaths(directory).model.unlink()


def cut_the_model(directory: Path) -> None:
    model = RunPaths(directory).model
    model.write_bytes(model.read_bytes()[:-1000])


def take_a_foreign_model(directory: Path) -> None:
    with zipfile.ZipFile(RunPaths(directory).model, "w") as archive:
        archive.writestr("data", "{}")


def take_no_zip(directory: Path) -> None:
    RunPaths(directory).model.write_text("not a model")


def edit_run(directory: Path, key: str, value: object) -> None:
    path = RunPaths(directory).description
    data = json.loads(path.read_text())
    data["config"][key] = value
    path.write_text(json.dumps(data))


DAMAGES = {
    "holds no model.zip": forget_the_model,
    "truncated or not a model file": cut_the_model,
    "model.zip: no ": take_a_foreign_model,
    "not a model file": take_no_zip,
    "names a module to import": lambda directory: edit_run(directory, "env_id", "os:path"),
    "unknown key 'extra'": lambda directory: edit_run(directory, "extra", 1),
    "do not belong together": lambda directory: edit_run(directory, "env_options", {"n_symbols": 6}),
}


@pytest.mark.parametrize("message", DAMAGES)
@pytest.mark.parametrize("command", ["evaluate", "render"])
def test_a_damaged_or_foreign_run_is_one_line_and_exit_4(
    call: Any, copied_run: Path, command: str, message: str
) -> None:
    DAMAGES[message](copied_run)
    code, out, err = call(command, copied_run)
    assert (code, out) == (4, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_run_of_a_task_that_is_not_here_is_one_line(call: Any, copied_run: Path) -> None:
    edit_run(copied_run, "env_id", "NoSuchTask-v0")
    code, _, err = call("evaluate", copied_run)
    assert code == 2
    assert "unknown environment 'NoSuchTask-v0'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["evaluate", "render"])
def test_commands_never_unpickle(call: Any, copied_run: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for module, names in (
        (pickle, ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads")),
        (cloudpickle, ("load", "loads")),
        (torch, ("load",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    assert call(command, copied_run)[0] == 0


def test_no_file_of_ours_unpickles_or_evaluates_text() -> None:
    forbidden = re.compile(r"\b(pickle\.|cloudpickle|yaml|torch\.load|exec\(|eval\(|shell=True|extractall)")
    for path in [ROOT / "train.py", *sorted((ROOT / "agents").rglob("*.py"))]:
        assert not forbidden.search(path.read_text(encoding="utf-8")), path
