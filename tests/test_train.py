"""The front door: what a run leaves behind, what stops it, and what it refuses."""

import functools
import importlib.util
import json
import multiprocessing
import os
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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from agents.command_line import run
from agents.config import train_config_from_json
from agents.evaluation import evaluate_run, load_run
from agents.runs import read_metrics, read_run
from fwp_rl.sb3 import MemoryPPO, WorkerVecEnv

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--preset", "debug", "--quiet", "--total-timesteps", "256", "--eval-every", "0"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = run(lambda: train.main([str(argument) for argument in arguments]))
        return (code, *capsys.readouterr())

    return call


def test_a_run_leaves_everything_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "debug", "--root", str(tmp_path / "rüns here"), "--seed", "3", "--ppo.gamma", "0.9"]
    directory = train.main([*arguments, "memory:gated_delta", "--memory.n-heads", "2", "--env-options", "k=3"])
    assert directory == tmp_path / "rüns here" / "fwp-RepeatPrevious-v0" / "gated_delta" / "seed_3"
    assert {path.name.split(".")[0] for path in directory.glob("[!.]*")} == {"run", "metrics", "model", "events"}

    description = read_run(directory)
    config = train_config_from_json(description["config"])
    assert (config.seed, config.ppo.gamma, config.memory.n_heads) == (3, 0.9, 2)  # type: ignore[attr-defined]  # of delta
    assert config.env_options == {"k": 3, "episode_length": 8}
    assert (description["status"], description["steps"]) == ("finished", 512)
    assert description["parameters"]["memory"] < description["parameters"]["policy"]
    assert {"torch", "numpy", "gymnasium"} < set(description["versions"])

    lines = read_metrics(directory / "metrics.jsonl")
    steps = {kind: [line["step"] for line in lines if line["kind"] == kind] for kind in ("iteration", "evaluation")}
    assert steps == {"iteration": [128, 256, 384, 512, 512], "evaluation": [256, 512]}
    assert all("eval/success_rate" in line for line in lines if line["kind"] == "evaluation")
    assert sum("train/loss" in line for line in lines) == 4  # the last update too

    events = EventAccumulator(str(directory))
    events.Reload()
    assert {"rollout/ep_rew_mean", "rollout/success_rate", "train/loss", "eval/success_rate"} <= set(
        events.Tags()["scalars"]
    )
    assert len(events.Scalars("train/loss")) == 4
    assert {"memory/state_norm", "memory/erased", "memory/gradient_reach"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"memory/state", "memory/retrieval_map"}
    assert len(events.Images("memory/state")) == 2  # one for each evaluation

    out = capsys.readouterr().out
    for text in ("fwp/RepeatPrevious-v0", "gated_delta", "parameters", "sequence_length=32", "minibatches"):
        assert text in out
    assert f"python -m agents evaluate '{directory}'" in out


def test_the_model_is_an_sb3_zip_and_a_portable_one(tmp_path: Path) -> None:
    directory = train.main([*TINY, "--run-dir", str(tmp_path / "run"), "memory:gru"])
    config, policy = load_run(directory)
    model = MemoryPPO.load(directory / "model.zip", device="cpu")
    observations = np.eye(4, dtype=np.float32)
    ours, _ = policy.predict(observations, deterministic=True)
    theirs, _ = model.predict(observations, deterministic=True)
    assert ours.tolist() == theirs.tolist()
    assert config.total_timesteps == 256


def test_wrappers_are_part_of_the_run(tmp_path: Path) -> None:
    """Red if an evaluation rebuilds the task without the wrappers that the agent was trained with."""
    wrappers = ["frame_stack:size=2", "flicker:probability=0.5", "time"]
    directory = train.main([*TINY, "--run-dir", str(tmp_path / "run"), "--wrappers", *wrappers, "memory:none"])
    config, episodes = evaluate_run(directory, episodes=2, deterministic=True)
    assert config.wrappers == tuple(wrappers)
    assert len(episodes) == 2
    _, policy = load_run(directory)
    assert policy.observation_space["observation"].shape == (2 * 4,)  # type: ignore[index]  # a Dict, with the time


def test_tags_are_the_same_for_every_memory(tmp_path: Path) -> None:
    tags = []
    for memory in ("delta", "none"):
        directory = train.main([*TINY, "--root", str(tmp_path), f"memory:{memory}"])
        tags.append(sorted({key for line in read_metrics(directory / "metrics.jsonl") for key in line}))
    delta, none = ({tag for tag in of if not tag.startswith("memory/")} for of in tags)
    assert delta == none
    assert set(tags[1]) < set(tags[0])  # the agent without memory has no state to tell of


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    runs = [train.main([*TINY, "--run-dir", str(tmp_path / name)]) for name in ("a", "b")]

    def numbers(directory: Path) -> list[dict[str, Any]]:
        clocks = ("seconds", "time/fps")
        lines = read_metrics(directory / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key not in clocks} for line in lines]

    assert numbers(runs[0]) == numbers(runs[1])


def test_schedules_inputs_and_saving_on_the_way(tmp_path: Path) -> None:
    extra = ["--ppo.learning-rate-schedule", "linear", "--ppo.clip-range-schedule", "linear"]
    extra += ["--ppo.ent-coef", "0.1", "--ppo.ent-coef-final", "0.0"]
    inputs = ["--previous-action", "--previous-reward", "--save-every", "128", "--n-blocks", "2", "--threads", "1"]
    inputs += ["--encoder-size", "None"]
    directory = train.main([*TINY, *extra, *inputs, "--run-dir", str(tmp_path / "run")])
    lines = list(read_metrics(directory / "metrics.jsonl"))
    assert [line.get("train/learning_rate") for line in lines] == [None, pytest.approx(1.5e-4), 0.0]
    assert [line.get("train/clip_range") for line in lines] == [None, pytest.approx(0.1), 0.0]
    _, policy = load_run(directory)
    assert (policy.n_blocks, policy.encoder_size) == (2, None)
    assert set(policy.observation_space.spaces) == {"observation", "previous_action", "previous_reward"}  # type: ignore[attr-defined]  # a Dict


def test_words_for_true_and_false_reach_the_task(tmp_path: Path, call: Any) -> None:
    """Red if a switch of a task comes from the command line as text, which is true whatever it says."""
    copy = [*TINY, "--env-id", "fwp/Copy-v0", "--overwrite", "--run-dir", tmp_path / "run", "--env-options"]
    for text, value in (("True", True), ("false", False)):
        assert call(*copy, f"reverse={text}", "length=3")[0] == 0
        assert read_run(tmp_path / "run")["config"]["env_options"] == {"reverse": value, "length": 3}


def test_an_existing_run_is_refused_with_the_way_out(tmp_path: Path, call: Any) -> None:
    assert call(*TINY, "--run-dir", tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "model.zip").read_bytes()
    code, _, err = call(*TINY, "--run-dir", tmp_path / "run")
    assert code == 2
    ways = "--resume goes on with it, --overwrite replaces it; or give another --seed or --run-dir"
    assert err == f"error: {tmp_path / 'run'} exists already: {ways}\n"
    assert (tmp_path / "run" / "model.zip").read_bytes() == before
    assert call(*TINY, "--run-dir", tmp_path / "run", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "MiniGrid-MemoryS12-v0"], "unknown environment 'MiniGrid-MemoryS12-v0'; did you mean"),
        (["--memory", "delta"], "the memory is chosen with memory:NAME, such as memory:delta"),
        (["memory:detla"], "unknown memory 'detla'; did you mean delta or delta_rnn or delta_mlp? registered are "),
        (["--preset", "debgu"], "unknown preset 'debgu': nearest are debug"),
        (["--total-timestep", "3"], "unknown option --total-timestep; did you mean --total-timesteps"),
        (["memory:lstm", "--memory.n-heads", "2"], "memory:lstm has no option --memory.n-heads; it has --memory."),
        (["--seed", "x"], "--seed takes a whole number, got 'x'"),
        (["--seed", "-1"], "seed=-1 must be at least 0"),
        (["--encoder-size", "-3"], "encoder_size=-3 must be at least 1"),
        (["--seed"], "Missing value for argument '--seed'"),
        (["--ppo.learning-rate-schedule", "cosine"], "invalid choice 'cosine'"),
        (["--env-options", "view_size"], "environment option 'view_size' must read name=value"),
        (["--env-options", "lenght=3"], "length"),
        (["--env-id", "fwp/Copy-v0", "--env-options", "reverse=yes"], "reverse must be True or False, got 'yes'"),
        (["--wrappers", "flickr"], "unknown wrapper 'flickr'; did you mean flicker?; there are "),
        (["--wrappers", "flicker:p=0.5"], "wrapper 'flicker' has no option 'p'"),
        (["--ppo.sequence-length", "48"], "sequence_length=48 does not divide n_steps=32; try 32"),
        (["--ppo.batch-size", "33"], "batch_size=33"),
        (["--device", "abacus"], "device='abacus' must be cpu, cuda, cuda:N or auto"),
        (["nonsense"], "unknown argument 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path: Path, call: Any, arguments: list[str], message: str) -> None:
    code, out, err = call("--preset", "debug", "--run-dir", tmp_path / "run", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bad_settings_are_told_all_at_once(tmp_path: Path, call: Any) -> None:
    bad = ["--ppo.batch-size", "0", "--ppo.n-epochs", "0", "--ppo.gamma", "2", "--ppo.learning-rate", "-1"]
    code, _, err = call(*TINY, "--run-dir", tmp_path / "run", *bad, "--eval-episodes", "0")
    assert code == 2
    for text in ("batch_size=0", "n_epochs=0", "gamma=2", "learning_rate=-1", "eval_episodes=0"):
        assert text in err
    assert err.count("\n") == 5


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert not caught.value.code
    out = capsys.readouterr().out
    for text in ("examples:", "--env-id", "memory:gated-delta", "python -m agents evaluate"):
        assert text in out


class _Poisoned(gymnasium.Env):
    """Sends one value that is no number at its 45th step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, kind: str = "reward", render_mode: str | None = None) -> None:
        self.kind, self.steps, self.render_mode = kind, 0, render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        is_bad = self.steps == 45
        in_worker = multiprocessing.parent_process() is not None
        if is_bad and (self.kind == "raise" or (self.kind == "raise in worker" and in_worker)):
            raise OSError("the cable came off")
        if is_bad and self.kind == "kill" and in_worker:
            os.kill(os.getpid(), signal.SIGKILL)
        observation = np.full(3, np.nan if is_bad and self.kind == "observation" else 0.0, np.float32)
        return observation, np.inf if is_bad and self.kind == "reward" else 0.0, self.steps % 10 == 0, False, {}


@pytest.fixture
def poisoned() -> Iterator[str]:
    gymnasium.register("PoisonedForTest-v0", entry_point=_Poisoned, disable_env_checker=True)
    yield "PoisonedForTest-v0"
    del gymnasium.registry["PoisonedForTest-v0"]


def test_a_package_that_is_not_installed_is_named_with_its_cure(
    call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if the user gets a traceback, or is told that the environment is unknown."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, error = call("--env-id", "popgym-NoSuchTask-v0")
    assert code == 3
    assert error == ('error: popgym-NoSuchTask-v0: popgym is not installed: pip install -e ".[popgym]"\n')


@pytest.mark.parametrize(("kind", "word"), [("reward", "inf"), ("observation", "nan"), ("raise", "the cable came off")])
def test_a_broken_task_stops_the_run_before_the_weights(
    tmp_path: Path, call: Any, poisoned: str, kind: str, word: str
) -> None:
    arguments = [
        "--env-id",
        poisoned,
        "--env-options",
        f"kind={kind}",
        "--n-envs",
        4,
        "--ppo.n-steps",
        32,
        "--total-timesteps",
        2000,
    ]
    code, _, err = call(*arguments, "--run-dir", tmp_path / "run", "--quiet")
    assert code == 3
    assert word in err
    assert err.count("\n") == 1
    if kind != "raise":
        assert kind in err
        assert "environment 0" in err
        assert re.search(r"step 4[45]\b", err)
    assert read_run(tmp_path / "run")["status"] == "failed"
    _, policy = load_run(tmp_path / "run")
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters())


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "raise in worker",
            r"step raised OSError: the cable came off \(\w+.py:\d+\); in worker 0 \(environments 2 to 3\)",
        ),
        ("kill", r"worker 0 \(environments 2 to 3\) was killed by SIGKILL"),
    ],
)
def test_a_fault_in_a_worker_names_it_and_what_is_saved(
    tmp_path: Path, call: Any, poisoned: str, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
) -> None:
    monkeypatch.setattr("agents.vec_env.WorkerVecEnv", functools.partial(WorkerVecEnv, start_method="fork"))
    directory = tmp_path / "run"
    sizes = ["--n-envs", 4, "--ppo.n-steps", 32, "--total-timesteps", 2000, "--workers", 1]
    code, _, err = call(
        "--env-id", poisoned, "--env-options", f"kind={kind}", *sizes, "--run-dir", directory, "--quiet"
    )
    assert code == 3
    assert re.fullmatch(rf"error: .*{message}; the agent is saved in {directory / 'model.zip'}\n", err)
    load_run(directory)
    assert read_run(directory)["status"] == "failed"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    directory = tmp_path / "run"
    endless = ["--preset", "debug", "--total-timesteps", "100000000", "--eval-every", "0"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *endless, "--run-dir", str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(read_metrics(directory / "metrics.jsonl")) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    assert re.search(r"stopped after .* steps in .*, model saved; evaluate it: python -m agents evaluate ", err)
    assert re.search(r"go on from its last checkpoint, step [\d,]+: python train.py --resume ", err)
    assert read_run(directory)["status"] == "interrupted"
    load_run(directory)
    assert json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])["step"] > 0
