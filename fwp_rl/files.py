"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

PART = ".part-"
"""How the names of files begin that are being written; what a killed process leaves of them belongs to nobody."""


def replace_file(path: Path, content: bytes) -> None:
    """Make `content` that of `path`: the old file or the new one, never a part, however the process ends."""
    handle, temporary = tempfile.mkstemp(prefix=PART, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
