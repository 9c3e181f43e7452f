"""`python -m agents doctor`."""

from pathlib import Path

import pytest
import torch

from agents import doctor
from agents.__main__ import main
from agents.command_line import run


def test_it_says_what_is_installed_and_that_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a check that fails on a healthy machine, and one that is left out."""
    assert run(lambda: main(["doctor"])) == 0
    out = capsys.readouterr().out
    for text in (f"torch {' ' * 20}{torch.__version__}", "numba, off by", "works, ", "writing to runs"):
        assert text in out
    assert "FAILED" not in out


def test_it_finds_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that cannot fail, and one whose failure hides the others."""

    def wrong(*, q: torch.Tensor, state: torch.Tensor, backend: str, **_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        factor = 1.0 if backend == "reference" else 1.1
        return factor * q * state.sum(), state + 0 * sum(x.sum() for x in _.values() if x.is_floating_point())

    monkeypatch.setattr(doctor, "fast_weight_scan", wrong)
    file = tmp_path / "file"
    file.touch()
    report, healthy = doctor.examine(file / "runs")
    assert not healthy
    assert "fast weights on the CPU   FAILED: RuntimeError: the numba backend is off by 2" in report
    assert "FAILED: NotADirectoryError" in report
    assert "a step in MiniGrid, drawn works" in report
