"""The pages in docs/ know every memory and every own task, and link only to what exists."""

import re
from pathlib import Path

import pytest

from envs.tasks import VECTOR_TASKS
from fwp_rl import memory_configs

DOCS = Path(__file__).parent.parent / "docs"
MEMORIES = (DOCS / "memories.md").read_text()
TASKS = (DOCS / "tasks.md").read_text()


@pytest.mark.parametrize("name", list(memory_configs()))
def test_every_memory_has_its_row_its_section_and_its_picture(name: str) -> None:
    """Red if a memory was added and not described; `docs/make_pictures.py` draws the picture."""
    assert f"\n| `{name}` |" in MEMORIES
    assert f"\n## `{name}`\n" in MEMORIES
    assert f"](memories/{name}.png)" in MEMORIES
    assert (DOCS / "memories" / f"{name}.png").stat().st_size < 60_000


@pytest.mark.parametrize("env_id", VECTOR_TASKS)
def test_every_numpy_task_has_its_anchors_its_section_and_its_picture(env_id: str) -> None:
    """Red if a task was added or changed and not described; `docs/make_task_pictures.py` draws the picture."""
    row = re.search(rf"^\| `{env_id}` \|(.*)\|$", TASKS, flags=re.MULTILINE)
    assert row is not None
    told = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", row[1])]
    anchors = VECTOR_TASKS[env_id](1).anchors()
    assert told == pytest.approx(list(anchors.values()), rel=3e-3, abs=6e-4)
    assert f"\n## `{env_id}`\n" in TASKS
    name = env_id.removeprefix("fwp/").removesuffix("-v0")
    assert f"](tasks/{name}.gif)" in TASKS
    assert (DOCS / "tasks" / f"{name}.gif").stat().st_size < 100_000


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Red if a file was renamed that a page links to."""
    for target in re.findall(r"\]\(([^)h#][^)#]*)\)", page.read_text()):
        assert (page.parent / target).exists(), target
