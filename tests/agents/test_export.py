"""A folder that the Hub can show and that every command here can read."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from agents.__main__ import main
from agents.command_line import run
from agents.evaluation import load_run


def test_the_folder_is_a_model_card_and_a_run(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Red if a part is missing, if it is another agent, or if anything in it is pickled."""
    out = tmp_path / "a b" / "card"
    main(["export", str(run_directory), "--out", str(out), "--episodes", "4"])
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "episode.gif", "model.safetensors", "model.zip", "run.json",
    ]  # fmt: skip
    with zipfile.ZipFile(out / "model.zip") as archive:
        assert all(name.startswith("portable/") for name in archive.namelist())
    config, policy = load_run(run_directory)
    exported_config, exported = load_run(out)
    assert exported_config == config
    for name, tensor in policy.state_dict().items():
        assert tensor.equal(exported.state_dict()[name]), name
    weights = safetensors.numpy.load_file(out / "model.safetensors")
    assert sum(array.size for array in weights.values()) >= sum(p.numel() for p in policy.parameters())
    main(["evaluate", str(out), "--episodes", "4", "--json"])
    evaluation = json.loads(capsys.readouterr().out)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f"return     {evaluation['return_mean']:.3f}" in text
    fields = metadata(text)
    assert {"fwp/RepeatPrevious-v0", "delta", "reinforcement-learning"} <= set(fields["tags"])
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"]["name"] == "fwp/RepeatPrevious-v0"
    assert [metric["type"] for metric in result["metrics"]] == ["mean_reward", "success_rate"]


def metadata(text: str) -> dict[str, Any]:
    """The block between the two lines of hyphens: one `name: JSON` in each line."""
    _, block, _ = text.split("---\n", 2)
    pairs = (line.split(": ", 1) for line in block.splitlines())
    return {name: json.loads(value if value[0] in '"[{' else json.dumps(value)) for name, value in pairs}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{run}", "--out", "{run}"], 2, "exists already; give another --out"),
        (["{run}", "--out", "{tmp}/x", "--episodes", "0"], 2, "episodes=0 must be at least 1"),
        (["{tmp}/nowhere", "--out", "{tmp}/x"], 4, "is not a directory"),
        (["{run}"], 2, "--out"),
    ],
)
def test_bad_input_is_one_line(
    run_directory: Path, tmp_path: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    argv = [argument.format(run=run_directory, tmp=tmp_path) for argument in arguments]
    assert run(lambda: main(["export", *argv])) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_half_a_folder_is_taken_back(run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a folder without its picture stays after a failure."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agents.export.render_run", fail)
    assert run(lambda: main(["export", str(run_directory), "--out", str(tmp_path / "x"), "--episodes", "1"])) == 2
    assert not (tmp_path / "x").exists()
