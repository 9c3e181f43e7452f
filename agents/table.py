"""Rows of text as a table for the terminal, or for Markdown."""

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Columns as wide as they need to be, right-aligned; the keys of the first row are the head."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = ["  ".join(f"{key:>{width}}" for key, width in widths.items())]
    lines.append("  ".join("-" * width for width in widths.values()))
    lines += ["  ".join(f"{row[key]:>{width}}" for key, width in widths.items()) for row in rows]
    return "\n".join(lines)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The same for Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
