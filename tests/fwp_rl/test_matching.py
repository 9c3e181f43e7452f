"""Memories of equal size: found, kept as they are where that is near enough, or refused with what is nearest."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fwp_rl import AttentionConfig, DeltaConfig, GatedDeltaConfig, LSTMConfig, matched, memory_size
from fwp_rl.layers import FastWeightConfig
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.registry import memory_configs

MEMORIES = ["none", "rnn", "gru", "lstm", "additive", "delta", "gated_delta", "attention"]


def test_size_counts_what_is_built() -> None:
    """Catches a size of the default config instead of the given one, and a state that counts rows."""
    sizes = {"width": 24, "n_heads": 3, "key_size": 16, "value_size": 32}
    channels = GatedDeltaConfig(**sizes, channel_decay=True)  # type: ignore[arg-type]  # a bool is an int
    for config in (DeltaConfig(**sizes), channels, LSTMConfig(hidden_size=11)):
        memory = config.build(9)
        size = memory_size(config, 9)
        assert size.parameters == sum(parameter.numel() for parameter in memory.parameters())
    assert memory_size(DeltaConfig(n_heads=3, key_size=16, value_size=32), 9).state == 3 * 16 * 32
    assert memory_size(LSTMConfig(hidden_size=11), 9).state == 22
    assert memory_size("none", 9).state == 0


@pytest.mark.parametrize("input_size", [9, 128])
@pytest.mark.parametrize("other", ["lstm", DeltaConfig(n_heads=2), 21_000, 140_000], ids=str)
@pytest.mark.parametrize("name", MEMORIES)
def test_parameters_are_matched(name: str, other: Any, input_size: int) -> None:
    """Catches heads that the kernels do not take, and a config of another memory."""
    config = matched(name, parameters=other, input_size=input_size)
    wanted = other if isinstance(other, int) else memory_size(other, input_size).parameters
    assert memory_size(config, input_size).parameters == pytest.approx(wanted, rel=0.02)
    assert type(config) is memory_configs()[name]
    if isinstance(config, FastWeightConfig):
        assert config.key_size % 16 == config.value_size % 16 == 0
        assert config.n_heads == memory_configs()[name]().n_heads  # type: ignore[attr-defined]  # as above


def test_an_option_is_kept() -> None:
    """Catches a search among the defaults: 15 996 parameters more than with a decay for each head."""
    config = matched(GatedDeltaConfig(channel_decay=True), parameters="lstm", input_size=9)
    assert isinstance(config, GatedDeltaConfig)
    assert config.channel_decay
    assert memory_size(config, 9).parameters == pytest.approx(memory_size("lstm", 9).parameters, rel=0.02)


@pytest.mark.parametrize("parameters", [43_000, 53_000, 56_000])
def test_the_search_is_not_led_astray_where_the_count_falls(parameters: int) -> None:
    """Catches a bisection that meets the width of the input: there is no encoder there, so 128 has fewer parameters
    than 120.
    """
    small = DeltaConfig(n_heads=1, key_size=16, value_size=16, expansion=1)
    sizes = [memory_size(replace(small, width=width), 128).parameters for width in (120, 128, 136)]
    assert sizes[1] < 43_000 < sizes[0] < 53_000 < 56_000 < sizes[2]
    found = matched(small, parameters=parameters, input_size=128)
    assert memory_size(found, 128).parameters == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize("name", MEMORIES[1:])
def test_states_are_matched(name: str) -> None:
    """Catches an LSTM whose cells are forgotten, and a state that is off by a head."""
    for other, wanted in ((DeltaConfig(n_heads=3, key_size=16, value_size=64), 3072), ("lstm", 256), (32_768, 32_768)):
        config = matched(name, state=other, input_size=9)
        assert memory_size(config, 9).state == pytest.approx(wanted, rel=0.02)


def test_attention_matches_a_state_by_its_window() -> None:
    """Catches heads that are reshaped where the window does, a window that counts the present step, which is not kept,
    and a state of few numbers that only other heads reach."""
    assert memory_size("attention", 9).state == 63 * (4 * (32 + 32) + 1)
    assert matched("attention", state="delta", input_size=9) == AttentionConfig(window=17)  # 16 x 257 for 4096
    config = AttentionConfig(n_heads=3, window=9, expansion=3)
    assert matched(config, state=40_000, input_size=9) == replace(config, window=208)
    for few in (100, 1000):
        found = matched(config, state=few, input_size=9)
        assert isinstance(found, AttentionConfig)
        assert (found.width, found.expansion) == (128, 3)
        assert memory_size(found, 9).state == pytest.approx(few, rel=0.02)
    assert matched(config, parameters=50_000, input_size=9).window == 9  # type: ignore[attr-defined]  # as above


def test_what_is_near_enough_stays_as_it_is() -> None:
    """Catches a comparison in which the default config of a paper is quietly reshaped for half a percent."""
    assert matched("delta", parameters="lstm", input_size=128) == DeltaConfig()
    config = GatedDeltaConfig(width=72, n_heads=3, key_size=24, value_size=40)
    parameters = memory_size(config, 9).parameters
    for wanted in (parameters, round(1.018 * parameters), round(0.982 * parameters)):
        assert matched(config, parameters=wanted, input_size=9) == config


def test_what_is_not_scaled_is_kept() -> None:
    """Catches a search that begins with the default config."""
    config = DeltaConfig(n_heads=2, expansion=3, negative_eigenvalues=True)
    found = matched(config, parameters=50_000, input_size=9)
    assert isinstance(found, DeltaConfig)
    assert found == replace(config, width=found.width, key_size=found.key_size, value_size=found.value_size)
    found = matched(config, state=4096, input_size=9)
    assert isinstance(found, DeltaConfig)
    assert (found.width, found.expansion, found.negative_eigenvalues) == (128, 3, True)


def test_widths_that_the_kernels_take_are_preferred() -> None:
    """Catches the nearest width of all, where a multiple of 8 is near enough."""
    found = matched("delta", parameters=101_000, input_size=9)
    assert isinstance(found, DeltaConfig)
    assert found.width % 8 == 0


def test_searching_leaves_the_random_numbers_alone() -> None:
    """Catches memories that are really initialised: a comparison would depend on whether its sizes were searched."""
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    matched("delta", parameters=20_000, input_size=9)
    assert torch.equal(torch.rand(5), expected)


@dataclass(frozen=True, kw_only=True)
class NotebookConfig(MemoryConfig):
    pages: int = 7

    def build(self, input_size: int) -> Memory:
        return LSTMConfig(hidden_size=self.pages).build(input_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": "lstm"}, "give one of parameters and state, got neither"),
        ({"memory": "lstm", "parameters": 1, "state": 1}, "give one of parameters and state, got both"),
        ({"memory": "lstm", "parameters": 0}, "parameters must be at least 1, or a memory that has some, got 0"),
        ({"memory": "lstm", "state": "none"}, "state must be at least 1, or a memory that has some, got 0"),
        ({"memory": "none", "state": 9}, "NoneConfig carries no state that could be matched; match its parameters"),
        ({"memory": "lstm", "state": 3}, r"state=3 cannot be reached with 9 inputs: .*=[12]\) is nearest, with [24]"),
        ({"memory": "delta", "state": 1000}, r"n_heads=2, key_size=16, value_size=32.* is nearest, with 1024"),
        ({"memory": "delta", "parameters": 900}, r"DeltaConfig\(width=2, .* is nearest, with 770$"),
        (
            {"memory": NotebookConfig(), "parameters": 900},
            "NotebookConfig cannot be scaled: it has neither hidden_size nor width",
        ),
        ({"memory": "lstn", "parameters": 900}, "unknown memory 'lstn': did you mean 'lstm'"),
    ],
    ids=str,
)
def test_what_cannot_be_matched_says_why_and_what_is_nearest(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matched(**arguments, input_size=9)
