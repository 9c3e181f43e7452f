"""Memories of equal size, because a comparison of unequal ones compares their sizes.

    matched("lstm", parameters="delta", input_size=128)     # LSTMConfig(hidden_size=128)
    matched("delta", state=1024, input_size=128)

Two things can be equal: the parameters, which are what is learned, and the numbers in the state of one row, which are
what can be remembered. Not both: the state of a fast-weight memory is many times that of an LSTM with as many
parameters. A comparison should say which it is.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from fwp_rl.memory import MemoryConfig
from fwp_rl.registry import memory_config
from fwp_rl.state import state_leaves

TOLERANCE = 0.02
"""Relative difference that still counts as equal."""

WIDTH_STEP, HEAD_STEP = 8, 16
"""Multiples that the compiled kernels want; the heads get them always, the width where that is close."""
MOST_HEADS, LARGEST_HEAD, LARGEST_SIZE = 64, 256, 2**20


_HEADS = ("n_heads", "key_size", "value_size")
_SIZES = [
    (n_heads, key_size, value_size)
    for n_heads in range(1, MOST_HEADS + 1)
    for key_size in range(HEAD_STEP, LARGEST_HEAD + 1, HEAD_STEP)
    for value_size in range(HEAD_STEP, LARGEST_HEAD + 1, HEAD_STEP)
]
_Count = Callable[[MemoryConfig], int]


class MemorySize(NamedTuple):
    """How large a memory is."""

    parameters: int
    """Numbers that are learned."""
    state: int
    """Numbers carried from step to step, for one row."""


def memory_size(memory: str | MemoryConfig, input_size: int) -> MemorySize:
    """The size of the named or configured memory for inputs `[T, B, input_size]`; allocates nothing."""
    with torch.device("meta"):
        module = memory_config(memory).build(input_size)
        return MemorySize(
            sum(parameter.numel() for parameter in module.parameters()),
            sum(leaf.numel() for leaf in state_leaves(module.initial_state(1))),
        )


def matched(
    memory: str | MemoryConfig,
    *,
    input_size: int,
    parameters: int | str | MemoryConfig | None = None,
    state: int | str | MemoryConfig | None = None,
) -> MemoryConfig:
    """The config of a memory with a given number of parameters, or of numbers in its state, to within 2 %.

    What is scaled:

    -   `hidden_size` of a memory that has one;
    -   of a fast-weight memory, to match parameters, `width`, and with it `key_size` and `value_size` in multiples of
        16; the width, too, is a multiple of 8 where that is close enough (else a single step of a rollout is not
        compiled, and slower). The number of heads stays;
    -   of a fast-weight memory, to match a state, `n_heads`, `key_size` and `value_size`, as near to those of `memory`
        as possible. The width stays, unless the keys have no size of their own;
    -   of attention, to match parameters, the same as of a fast-weight memory; to match a state, `window`, and the
        heads only where that is too coarse.

    Everything else stays as it is in `memory`, and all of it if that is near enough.

    :param memory: A registered name or a config, whose other choices and proportions are kept.
    :param input_size: Size D of the inputs `[T, B, D]`; with the `encoder_size` of a policy it is that number.
    :param parameters: A number, or another memory (name or config) that should be equalled at this input size.
    :param state: The same for the size of the state. Give one of the two.
    """
    if (parameters is None) == (state is None):
        raise ValueError(f"give one of parameters and state, got {'neither' if state is None else 'both'}")
    config = memory_config(memory)
    what = "parameters" if state is None else "state"
    target = _target(what, parameters if state is None else state, input_size)

    @functools.cache
    def count(candidate: MemoryConfig) -> int:
        size: int = getattr(memory_size(candidate, input_size), what)
        return size

    if what == "state" and not count(config):
        raise ValueError(f"{type(config).__name__} carries no state that could be matched; match its parameters")

    def off(candidate: MemoryConfig) -> float:
        return abs(count(candidate) / target - 1)

    if off(config) <= TOLERANCE:
        return config
    best = config
    for candidates in _candidates(config, count, target, what, input_size):
        best = min([best, *candidates], key=off)
        if off(best) <= TOLERANCE:
            return best
    raise ValueError(
        f"{what}={target} cannot be reached with {input_size} inputs: {best} is nearest, with {count(best)}"
    )


def _target(what: str, wanted: int | str | MemoryConfig | None, input_size: int) -> int:
    if isinstance(wanted, str | MemoryConfig):
        wanted = int(getattr(memory_size(wanted, input_size), what))
    if not isinstance(wanted, int) or wanted < 1:
        raise ValueError(f"{what} must be at least 1, or a memory that has some, got {wanted!r}")
    return wanted


def _candidates(
    config: MemoryConfig, count: _Count, target: int, what: str, input_size: int
) -> Iterator[list[MemoryConfig]]:
    """Configs to try, in groups: the preferred ones first."""
    fields = {field.name for field in dataclasses.fields(config)}
    if "hidden_size" in fields:
        yield [
            _sized(config, hidden_size=size)
            for size in _around(lambda size: count(_sized(config, hidden_size=size)), target, 1)
        ]
    elif what == "state" and "window" in fields:
        yield from _windows(config, count, target)
    elif what == "state" and fields.issuperset(_HEADS):
        yield _heads(config, count(config), target)
    elif "width" in fields:
        yield from _widths(config, count, target, input_size)
    else:
        raise ValueError(f"{type(config).__name__} cannot be scaled: it has neither hidden_size nor width")


def _sized(config: MemoryConfig, **sizes: int) -> MemoryConfig:
    return dataclasses.replace(config, **sizes)


def _around(count: Callable[[int], int], target: int, step: int) -> list[int]:
    """The two multiples of `step` between which a count that grows passes the target."""
    high = 1
    while high * step < LARGEST_SIZE and count(high * step) < target:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle * step) < target else (low, middle)
    return [size * step for size in (low, high) if size]


def _widths(config: MemoryConfig, count: _Count, target: int, input_size: int) -> Iterator[list[MemoryConfig]]:
    """Widths for heads that grow in proportion: in steps of 8 for the three nearest sizes of heads, then any width."""
    # What is counted grows with the square of width and heads together.
    scale = math.sqrt(target / count(config))
    wanted = {name: scale * getattr(config, name) for name in ("key_size", "value_size") if hasattr(config, name)}
    proportional: list[dict[str, int]] = []
    for shift in (0, -HEAD_STEP, HEAD_STEP):
        heads = {n: max(HEAD_STEP, HEAD_STEP * round((size + shift) / HEAD_STEP)) for n, size in wanted.items()}
        if heads not in proportional:
            proportional.append(heads)

    def best_widths(step: int, heads: dict[str, int]) -> list[MemoryConfig]:
        def grows(width: int) -> int:
            # As wide as the input there is no encoder, and so there are fewer parameters than a little below.
            return count(_sized(config, width=width + step * (width == input_size), **heads))

        widths = _around(grows, target, step)
        if input_size % step == 0:
            widths.append(input_size)
        return [_sized(config, width=width, **heads) for width in widths]

    # Where the keys have no size of their own, the heads share the width.
    least = 1 if "key_size" in wanted else getattr(config, "n_heads", 1)
    for step in (math.lcm(WIDTH_STEP, least), least):
        yield [candidate for heads in proportional for candidate in best_widths(step, heads)]


def _heads(config: MemoryConfig, state: int, target: int) -> list[MemoryConfig]:
    """Numbers and sizes of heads with about the wanted state, beginning with those nearest to the given ones."""
    given = [getattr(config, name) for name in _HEADS]

    def off(candidate: tuple[int, ...]) -> float:
        return abs(math.log(math.prod(candidate) / math.prod(given) * state / target))

    # What is not in the matrices, such as an output that is fed back, is a small part of a state.
    return _nearest(config, [size for size in _SIZES if off(size) < 0.04] or [min(_SIZES, key=off)])


def _windows(config: MemoryConfig, count: _Count, target: int) -> Iterator[list[MemoryConfig]]:
    """Windows of about the wanted state for the given heads, then for others, the nearest first."""

    def around(heads: MemoryConfig) -> list[MemoryConfig]:
        windows = _around(lambda window: count(_sized(heads, window=window)), target, 1)
        return [_sized(heads, window=window) for window in windows]

    yield around(config)
    small = [size for size in _SIZES if size[0] * (size[1] + size[2]) < target]
    yield [candidate for heads in _nearest(config, small) for candidate in around(heads)]


def _nearest(config: MemoryConfig, heads: Iterable[tuple[int, ...]]) -> list[MemoryConfig]:
    """The given config with these heads, of which those come first that are nearest to its own."""
    given = [getattr(config, name) for name in _HEADS]

    def distance(candidate: tuple[int, ...]) -> float:
        return sum(math.log(size / wanted) ** 2 for size, wanted in zip(candidate, given, strict=True))

    return [
        _sized(config, **dict(zip(_HEADS, candidate, strict=True))) for candidate in sorted(heads, key=distance)[:50]
    ]
