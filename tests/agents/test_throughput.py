"""The table of `python -m agents bench`."""

import pytest

from agents.__main__ import main
from agents.command_line import run


def test_the_table_has_everybody(capsys: pytest.CaptureFixture) -> None:
    """Red if a contender is left out, or measured against somebody else, or if one is smaller, and so faster."""
    main(["bench", "--env-id", "fwp/RepeatPrevious-v0", "--memory", "gru", "--repeats", "1"])
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["parameters", "steps/s", "from", "to", "x", "RecurrentPPO"]
    width = line.index(" ")
    ratios = {row[:width].strip(): float(row.split()[-1]) for row in rows}
    assert list(ratios) == ["env only", "PPO", "RecurrentPPO", "MemoryPPO gru"]
    assert ratios["RecurrentPPO"] == 1.0
    sizes = {row[:width].strip(): row[width:].split()[0].replace(",", "") for row in rows}
    assert int(sizes["MemoryPPO gru"]) == pytest.approx(int(sizes["RecurrentPPO"]), rel=0.1)
    assert ratios["env only"] > max(ratios["PPO"], ratios["MemoryPPO gru"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "detla"], "unknown memory 'detla'; did you mean delta"),
        (["--env-id", "fwp/TMazz-v0"], "fwp/TMaze-v0"),
        (["--repeats", "0"], "repeats=0 must be at least 1"),
        (["--device", "cuda:99"], "device='cuda:99' must be there, PyTorch finds"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert run(lambda: main(["bench", *arguments])) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
