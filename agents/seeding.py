"""Random numbers of one's own."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """While the block runs, torch draws from this seed; then, on every device, from where the caller was."""
    # A GPU that was never used has no generator yet, and asking for it would start it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield
