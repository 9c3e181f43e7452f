"""A run that was cut off and resumed is the run that was not; what cannot be resumed from says so in one line."""

import dataclasses
import errno
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train as front_door
from agents import checkpoints, training
from agents.checkpoints import stretch_seed
from agents.command_line import run
from agents.config import PPOConfig, TrainConfig
from agents.errors import DivergedRunError, RunFileError, UsageError
from agents.evaluation import load_run
from agents.model import build_model
from agents.run_callback import RunCallback
from agents.runs import RunPaths, claimed, read_metrics, read_run, write_json
from agents.training import prepare, resume, train
from fwp_rl.files import PART
from fwp_rl.registry import memory_config
from fwp_rl.sb3 import MemoryPPO

STEPS, CUT_AT = 448, 350  # a rollout has 64 steps, and there are checkpoints at 128 and 256 (and 384)
TINY = TrainConfig(
    env_id="fwp/RepeatPrevious-v0",
    memory=memory_config("gated_delta"),
    ppo=PPOConfig(n_steps=16, n_epochs=1, learning_rate_schedule="linear", clip_range_schedule="linear"),
    n_envs=4,
    total_timesteps=STEPS,
    save_every=128,
)
# What each of these adds is something that a checkpoint has to know.
CONFIGS = {
    "evaluations and entropy": dataclasses.replace(
        TINY,
        eval_every=64,
        eval_episodes=2,
        ppo=dataclasses.replace(TINY.ppo, ent_coef=0.1, ent_coef_final=0.0),
    ),
    "rewards, observations and inputs": dataclasses.replace(
        TINY,
        env_id="CartPoleNoVel-v1",
        memory=memory_config("lstm"),
        normalize_observations=True,
        previous_action=True,
        ppo=dataclasses.replace(TINY.ppo, normalize_reward=True),
    ),
    "exploration": dataclasses.replace(
        TINY, env_id="PendulumNoVel-v1", memory=memory_config("gru"), ppo=dataclasses.replace(TINY.ppo, use_sde=True)
    ),
    "a critic with a memory of its own": dataclasses.replace(TINY, critic="separate"),
    "a grid": dataclasses.replace(TINY, env_id="MiniGrid-MemoryS7-v0", memory=memory_config("rnn")),
}


class PowerCut(Exception):
    pass


@pytest.fixture
def cut_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next run end at this step, as if the process were gone."""

    def cut_at(step: int) -> None:
        def _on_step(self: Any) -> bool:
            if self.num_timesteps >= step:
                monkeypatch.undo()
                raise PowerCut
            return on_step(self)

        on_step = RunCallback._on_step
        monkeypatch.setattr(RunCallback, "_on_step", _on_step)

    return cut_at


def weights(directory: Path) -> bytes:
    with zipfile.ZipFile(directory / "model.zip") as archive:
        return archive.read("portable/policy.safetensors")


def moments(directory: Path) -> dict[Any, Any]:
    with zipfile.ZipFile(directory / "model.zip") as archive:
        state: dict[Any, Any] = torch.load(io.BytesIO(archive.read("policy.optimizer.pth")), weights_only=True)["state"]
    return state


def numbers(directory: Path) -> list[dict[str, Any]]:
    lines = read_metrics(directory / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in ("seconds", "time/fps")} for line in lines]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_resumed_run_is_the_one_without_a_break(config: TrainConfig, tmp_path: Path, cut_at: Any) -> None:
    """Catches whatever a checkpoint forgets: weights, moments, statistics, schedules, random numbers, metrics that wait
    for the next rollout, evaluations that are made twice or never."""
    whole = train(config, tmp_path / "whole", quiet=True)
    cut_at(CUT_AT)
    with pytest.raises(PowerCut):
        train(config, tmp_path / "cut", quiet=True)
    assert weights(tmp_path / "cut") != weights(whole)
    cut = resume(tmp_path / "cut", quiet=True)
    assert weights(cut) == weights(whole)
    for index, values in moments(whole).items():
        assert all(torch.equal(value, moments(cut)[index][name]) for name, value in values.items())
    assert numbers(cut) == numbers(whole)
    assert read_run(cut)["resumed_at"] == [256]
    assert read_run(cut)["steps"] == STEPS
    assert not (cut / "checkpoint.zip").exists()


def test_a_run_that_waits_or_has_no_checkpoint_begins_at_its_beginning(tmp_path: Path, cut_at: Any) -> None:
    """Catches the remains of a first try in the metrics of the second, and a run that is begun but not counted."""
    whole = train(TINY, tmp_path / "whole", quiet=True)
    prepare(TINY, tmp_path / "cut")
    assert read_run(tmp_path / "cut")["status"] == "waiting"
    for resumed_at in ([], [0]):
        cut_at(100)
        with pytest.raises(PowerCut):
            resume(tmp_path / "cut", quiet=True)
        assert read_run(tmp_path / "cut")["resumed_at"] == resumed_at
    resume(tmp_path / "cut", quiet=True)
    assert weights(tmp_path / "cut") == weights(whole)
    assert numbers(tmp_path / "cut") == numbers(whole)


def test_a_run_goes_on_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an agent that was begun on a GPU and is lost to whoever has none, and an unknown device that is taken."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    prepare(dataclasses.replace(TINY, device="cuda:1"), tmp_path / "run")
    command = ["--resume", str(tmp_path / "run")]
    assert run(lambda: front_door.main(command)) != 0
    assert "device='cuda:1' must be there, PyTorch finds no GPU" in capsys.readouterr().err
    assert run(lambda: front_door.main([*command, "--device", "gpu"])) != 0
    assert "device='gpu' must be cpu, cuda, cuda:N or auto" in capsys.readouterr().err
    front_door.main([*command, "--device", "cpu", "--quiet"])
    assert read_run(tmp_path / "run")["status"] == "finished"
    assert read_run(tmp_path / "run")["config"]["device"] == "cpu"


def test_a_finished_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a job that is started again by its scheduler and trains twice."""
    directory = train(TINY, tmp_path / "run", quiet=True)
    before = (directory / "model.zip").stat().st_mtime_ns
    assert front_door.main(["--resume", str(directory)]) == directory
    assert "is finished already" in capsys.readouterr().out
    assert (directory / "model.zip").stat().st_mtime_ns == before


def test_tensorboard_shows_no_step_twice(tmp_path: Path, cut_at: Any) -> None:
    """Catches what the process that was cut off wrote after its checkpoint."""
    cut_at(CUT_AT)
    with pytest.raises(PowerCut):
        train(TINY, tmp_path / "run", quiet=True)
    events = EventAccumulator(str(resume(tmp_path / "run", quiet=True)), size_guidance={"scalars": 0})
    events.Reload()
    # That of the last update is written at the end, too.
    assert [event.step for event in events.Scalars("train/loss")] == [*range(128, STEPS + 1, 64), STEPS]


def test_a_disk_that_is_full_at_a_checkpoint_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run that ends there, or whose random numbers depend on what could be saved."""
    whole = train(TINY, tmp_path / "whole", quiet=True)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "replace_file", full)
    assert weights(train(TINY, tmp_path / "full", quiet=True)) == weights(whole)


def test_a_disk_that_is_full_at_the_end_leaves_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run that counts as finished without its model, and has no checkpoint any more."""
    whole = train(TINY, tmp_path / "whole", quiet=True)
    save = MemoryPPO.save

    def full_at_the_end(model: MemoryPPO, path: Path) -> None:
        if model.num_timesteps == STEPS:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(model, path)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryPPO, "save", full_at_the_end)
        with pytest.raises(
            RunFileError, match=r"could not save the model \(No space left on device\); .* --resume .* from step 384"
        ):
            train(TINY, tmp_path / "run", quiet=True)
    assert read_run(tmp_path / "run")["status"] == "failed"
    assert weights(resume(tmp_path / "run", quiet=True)) == weights(whole)


def test_a_run_that_diverged_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches NaN in the place of the last good agent, and a traceback."""
    update, breaks_after = PPO.train, 128

    def broken_update(model: MemoryPPO) -> None:
        update(model)
        if model.num_timesteps > breaks_after:
            next(model.policy.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(PPO, "train", broken_update)
    with pytest.raises(DivergedRunError, match=r"diverged: the update after step 192 .*; .* is left as it was;"):
        train(TINY, tmp_path / "run", quiet=True)
    assert read_run(tmp_path / "run")["status"] == "failed"
    load_run(tmp_path / "run")
    breaks_after = 0
    with pytest.raises(DivergedRunError, match="no model was saved yet"):
        train(TINY, tmp_path / "at once", quiet=True)


@pytest.mark.parametrize(("save_every", "is_told"), [(192, True), (320, False)])
def test_checkpoints_that_cut_too_many_episodes_are_told(
    save_every: int, is_told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an agent that hardly ever sees how an episode ends, and nobody knows why."""
    config = dataclasses.replace(TINY, env_options={"k": 2, "episode_length": 8}, save_every=save_every)
    train(config, tmp_path / "run")
    text = f"episodes start anew every save_every={save_every} steps of 4 environments, but are about 8 steps long"
    assert (text in capsys.readouterr().err) == is_told


def test_resuming_unpickles_nothing(tmp_path: Path, cut_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a checkpoint through which a stranger's run directory runs code."""
    cut_at(CUT_AT)
    with pytest.raises(PowerCut):
        train(TINY, tmp_path / "run", quiet=True)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    resume(tmp_path / "run", quiet=True)
    description = read_run(tmp_path / "run")
    description["config"]["env_id"] = "os:Evil-v0"
    write_json(tmp_path / "run" / "run.json", {**description, "status": "running"})
    with pytest.raises(RunFileError, match="names a module to import"):
        resume(tmp_path / "run", quiet=True)


@pytest.mark.parametrize("damage", ["half of it", "one byte", "another policy", "a newer version"])
def test_a_damaged_checkpoint_is_one_line(damage: str, tmp_path: Path, cut_at: Any, capsys: Any) -> None:
    """Catches a run that silently starts from scratch, weights with a flipped bit, and a traceback."""
    cut_at(CUT_AT)
    with pytest.raises(PowerCut):
        train(TINY, tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "checkpoint.zip"
    content = bytearray(path.read_bytes())
    match damage:
        case "half of it":
            path.write_bytes(content[: len(content) // 2])
        case "one byte":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "another policy":
            description = read_run(tmp_path / "run")
            description["config"]["net_arch"] = [32]
            write_json(tmp_path / "run" / "run.json", description)
        case "a newer version":
            path.write_bytes(content.replace(b'"version": 1', b'"version": 9'))
            with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
                for name in old.namelist():
                    new.writestr(name, old.read(name).replace(b'"version": 1', b'"version": 9'))
    code = run(lambda: front_door.main(["--resume", str(tmp_path / "run"), "--quiet"]))
    err = capsys.readouterr().err
    assert code == 4
    assert err.startswith(f"error: {path} cannot be resumed from: ")
    assert err.endswith("; --overwrite starts the run anew\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--resume", "nowhere"], 4, "nowhere is not a directory"),
        (
            ["--resume", "nowhere", "--seed", "3"],
            2,
            "unknown option --seed; train.py --help lists them (beside --resume",
        ),
        (["--resume"], 2, "Missing value for argument '--resume'"),
    ],
)
def test_what_cannot_be_resumed(arguments: list[str], code: int, message: str, capsys: Any) -> None:
    """Catches options that are read and then ignored."""
    assert run(lambda: front_door.main(arguments)) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    """Catches a scheduler that takes a slow worker for a dead one."""
    with (
        claimed(RunPaths(tmp_path)),
        pytest.raises(UsageError, match=f"another process is training in {tmp_path}"),
        claimed(RunPaths(tmp_path), patience=0.0),
    ):
        pass
    with claimed(RunPaths(tmp_path), patience=0.0):
        pass


def test_a_run_that_was_finished_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second process that waits for the first to leave, and then trains it all again from its beginning."""
    prepare(TINY, tmp_path)

    def meanwhile(other: Callable[[], object]) -> None:
        def build(*arguments: Any) -> Any:
            monkeypatch.undo()
            other()
            return build_model(*arguments)

        monkeypatch.setattr(training, "build_model", build)

    meanwhile(lambda: resume(tmp_path, quiet=True))
    resume(tmp_path, quiet=True)
    assert read_run(tmp_path)["resumed_at"] == []
    meanwhile(lambda: train(TINY, tmp_path / "new", quiet=True))
    with pytest.raises(UsageError, match="exists already"):
        train(TINY, tmp_path / "new", quiet=True)


def test_a_run_that_was_killed_at_its_start_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a directory that nothing can resume and nothing overwrite, and files that stay for ever."""

    def killed(*_: Any, **__: Any) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_open_metrics", killed)
        with pytest.raises(PowerCut):
            train(TINY, tmp_path / "run", quiet=True)
    (tmp_path / "run" / f"{PART}model").write_bytes(b"half a model")
    assert read_run(resume(tmp_path / "run", quiet=True))["status"] == "finished"
    assert not list((tmp_path / "run").glob(f"{PART}*"))


def test_stretches_of_all_runs_have_seeds_of_their_own() -> None:
    """Catches a seed that is that of the run, or of its neighbour, once more."""
    seeds = {stretch_seed(seed, step) for seed in range(20) for step in range(0, 2_000_000, 100_352)}
    assert len(seeds) == 400
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    assert stretch_seed(np.int64(3), 7) == stretch_seed(3, 7)  # type: ignore[arg-type]  # as NumPy gives it
