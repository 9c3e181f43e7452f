"""The pages in docs/ know every memory, and link only to what exists."""

import re
from pathlib import Path

import pytest

from fwp_rl import memory_configs

DOCS = Path(__file__).parent.parent / "docs"
MEMORIES = (DOCS / "memories.md").read_text()


@pytest.mark.parametrize("name", list(memory_configs()))
def test_every_memory_has_its_row_its_section_and_its_picture(name: str) -> None:
    """Red if a memory was added and not described; `docs/make_pictures.py` draws the picture."""
    assert f"\n| `{name}` |" in MEMORIES
    assert f"\n## `{name}`\n" in MEMORIES
    assert f"](memories/{name}.png)" in MEMORIES
    assert (DOCS / "memories" / f"{name}.png").stat().st_size < 60_000


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Red if a file was renamed that a page links to."""
    for target in re.findall(r"\]\(([^)h#][^)#]*)\)", page.read_text()):
        assert (page.parent / target).exists(), target
