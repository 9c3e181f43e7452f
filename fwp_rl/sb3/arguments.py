"""What `MemoryPPO` can be made with: ranges, sizes that divide, and the size of a batch if none is given."""

from typing import Any

import numpy as np


def argument_problems(**arguments: Any) -> dict[str, str]:
    """One sentence for each argument that is out of its range; schedules are not looked into."""
    least_sizes = {"n_steps": 2, "sequence_length": 1, "batch_size": 1, "n_epochs": 1}
    largest = {"gamma": 1.0, "gae_lambda": 1.0}  # of the numbers; all are at least 0
    optional = ("sequence_length", "batch_size", "clip_range_vf", "target_kl")
    problems = {}
    for name, value in arguments.items():
        if callable(value) or (value is None and name in optional):
            continue
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if name in least_sizes:
            if not (is_number and isinstance(value, int | np.integer) and value >= least_sizes[name]):
                problems[name] = f"{name}={value}: expected a whole number of at least {least_sizes[name]}"
        elif name in largest:
            if not (is_number and 0 <= value <= largest[name]):
                problems[name] = f"{name}={value}: expected a number between 0 and {largest[name]:g}"
        elif not (is_number and 0 <= value < np.inf):
            problems[name] = f"{name}={value}: expected a number of at least 0"
    return problems


def size_problems(n_steps: int, n_envs: int, sequence_length: int, batch_size: int | None) -> dict[str, str]:
    """Sizes that do not divide, each with the nearest values that do."""
    if n_steps % sequence_length:
        near = _nearest(sequence_length, [d for d in range(1, n_steps + 1) if n_steps % d == 0])
        return {"sequence_length": f"sequence_length={sequence_length} does not divide n_steps={n_steps}; try {near}"}
    n_columns = n_steps // sequence_length * n_envs
    per_batch = (batch_size or 0) // sequence_length
    if batch_size is not None and (per_batch == 0 or batch_size % sequence_length or n_columns % per_batch):
        near = _nearest(batch_size, [d * sequence_length for d in range(1, n_columns + 1) if n_columns % d == 0])
        return {
            "batch_size": f"batch_size={batch_size} does not cut the rollout ({n_envs} environments x {n_steps} steps) "
            f"into equal sets of whole sequences (sequence_length={sequence_length}); try {near}"
        }
    return {}


def _nearest(value: int, valid: list[int]) -> str:
    below = [v for v in valid if v < value][-1:]
    above = [v for v in valid if v > value][:1]
    return " or ".join(str(v) for v in below + above)


def quarter(n_steps: int, n_envs: int, sequence_length: int) -> int:
    """The batch size nearest to a quarter of the rollout, from above, that cuts it into equal sets of sequences."""
    n_columns = n_steps // sequence_length * n_envs
    return min(d for d in range(1, n_columns + 1) if n_columns % d == 0 and 4 * d >= n_columns) * sequence_length
