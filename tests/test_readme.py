"""README's code is executed: a block that no longer works turns a test red."""

import re
import shlex
from pathlib import Path

import pytest

import agents.__main__
import train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_commands_run(tmp_path: Path) -> None:
    # As written, but shorter, and in another directory of runs.
    runs = tmp_path / "runs"
    for line in blocks("bash")[0].splitlines():
        _, *arguments = shlex.split(line.replace("runs/", f"{runs}/"))
        if arguments[0] == "train.py":
            shorter = ["--total-timesteps", "512", "--ppo.n-steps", "32", "--n-envs", "4", "--eval-episodes", "2"]
            arguments[1:1] = [*shorter, "--root", str(runs)]
        elif "evaluate" in arguments:
            arguments += ["--episodes", "4"]
        elif "probe" in arguments:
            arguments += ["--episodes", "4", "--steps", "1", "5"]
        # Not in processes of their own: importing everything takes longer than most of the commands.
        if arguments[0] == "train.py":
            train.main(arguments[1:])
        else:
            assert arguments[:2] == ["-m", "agents"], line
            agents.__main__.main(arguments[2:])


def test_every_memory_is_in_the_table() -> None:
    from fwp_rl import memory_configs

    assert set(re.findall(r"`(\w+)`", README.split("## Memories")[1].split("##")[0])) >= set(memory_configs())


def test_pictures_and_links_exist() -> None:
    """Red if a file was moved, or a section of one was renamed."""
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        file, _, section = target.partition("#")
        assert (ROOT / file).exists(), target
        titles = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(encoding="utf-8"), re.M) if section else []
        names = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        assert not section or section in names, target
