"""`rnn`, `gru`, `lstm` are torch's recurrent layers, plus episode starts."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from fwp_rl.memories.gru import GRUConfig
from fwp_rl.memories.lstm import LSTMConfig
from fwp_rl.memories.rnn import RNNConfig
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.state import State, map_state, state_leaves

T, B, D, H = 17, 5, 7, 13
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
KINDS = [(RNNConfig, nn.RNN), (GRUConfig, nn.GRU), (LSTMConfig, nn.LSTM)]
CONFIGS = [config for config, _ in KINDS]


def build(config: type[MemoryConfig], dtype: torch.dtype = torch.float64) -> Memory:
    memory = config(hidden_size=H).build(D).to(dtype)
    for bias in (memory.bias_ih, memory.bias_hh):
        nn.init.normal_(bias)  # zeros would hide a bias that is added to the wrong gate, or not at all
    return memory


def random_state(memory: Memory, batch_size: int = B) -> State:
    return map_state(torch.randn_like, memory.initial_state(batch_size))


def torch_layer(memory: Memory, layer: type[nn.Module]) -> nn.Module:
    parameters = {f"{name}_l0": parameter for name, parameter in memory.state_dict().items()}
    twin = layer(D, H).to(memory.weight_hh.dtype)
    twin.load_state_dict(parameters)
    return twin


def assert_same(actual: State, expected: State, tolerance: float) -> None:
    for mine, other in zip(state_leaves(actual), state_leaves(expected), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def unsqueeze(state: State) -> State:
    return map_state(lambda leaf: leaf[None], state)


def squeeze(state: State) -> State:
    return map_state(lambda leaf: leaf[0], state)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("config", "layer"), KINDS)
def test_equals_torch_without_starts(config: type[MemoryConfig], layer: type[nn.Module], dtype: torch.dtype) -> None:
    # Catches: gates in another order, a reset gate applied before the product, a missing or doubled bias.
    memory = build(config, dtype)
    inputs, state = torch.randn(T, B, D, dtype=dtype), random_state(memory)
    expected, expected_state = torch_layer(memory, layer)(inputs, unsqueeze(state))
    outputs, final = memory.scan(inputs, state, torch.zeros(T, B, dtype=torch.bool))
    assert_same((outputs, final), (expected, squeeze(expected_state)), TOLERANCE[dtype])


@pytest.mark.parametrize(("config", "layer"), KINDS)
def test_equals_torch_on_each_episode(config: type[MemoryConfig], layer: type[nn.Module]) -> None:
    # Catches: a start that acts one step early or late, on the wrong row, or on h but not on c.
    memory, twin_inputs = build(config), torch.randn(T, B, D, dtype=torch.float64)
    starts = torch.rand(T, B) < 0.3
    state = random_state(memory)
    outputs, final = memory.scan(twin_inputs, state, starts)
    twin = torch_layer(memory, layer)
    for row in range(B):
        cuts = sorted({0, T, *starts[:, row].nonzero().flatten().tolist()})
        row_state = map_state(lambda leaf, row=row: leaf[None, row : row + 1], state)
        for begin, end in itertools.pairwise(cuts):
            if starts[begin, row]:
                row_state = map_state(torch.zeros_like, row_state)
            episode, row_state = twin(twin_inputs[begin:end, row : row + 1], row_state)
            assert_same(outputs[begin:end, row : row + 1], episode, 1e-10)
        assert_same(map_state(lambda leaf, row=row: leaf[row : row + 1], final), squeeze(row_state), 1e-10)


@pytest.mark.parametrize("config", CONFIGS)
def test_steps_equal_scan(config: type[MemoryConfig]) -> None:
    # Catches: a step that forgets a start, or to hand the new state on.
    memory = build(config)
    inputs, starts = torch.randn(T, B, D, dtype=torch.float64), torch.rand(T, B) < 0.3
    state = random_state(memory)
    outputs, final = memory.scan(inputs, state, starts)
    for t in range(T):
        output, state = memory.step(inputs[t], state, starts[t])
        assert_same(output, outputs[t], 1e-10)
    assert_same(state, final, 1e-10)


@pytest.mark.parametrize("config", CONFIGS)
def test_step_forgets_a_state_that_is_not_a_number(config: type[MemoryConfig]) -> None:
    # Catches: a step that clears by multiplying with zero.
    memory = build(config)
    state = map_state(lambda leaf: leaf.fill_(float("nan")), random_state(memory))
    inputs = torch.randn(B, D, dtype=torch.float64)
    fresh = memory.step(inputs, memory.initial_state(B), torch.zeros(B, dtype=torch.bool))
    assert_same(memory.step(inputs, state, torch.ones(B, dtype=torch.bool)), fresh, 0.0)


@pytest.mark.parametrize("run", ["scan", "step"])
@pytest.mark.parametrize("config", CONFIGS)
def test_autocast_and_half_inputs_compute_in_float32(config: type[MemoryConfig], run: str) -> None:
    # Catches: a recurrence that is rounded to bfloat16 at every step.
    memory = build(config, torch.float32)
    inputs = torch.randn(T, B, D).bfloat16()
    starts = torch.zeros(T, B, dtype=torch.bool)
    if run == "step":
        inputs, starts = inputs[0], starts[0]

    def outputs_and_gradients(enabled: bool) -> tuple[Tensor, ...]:
        memory.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs, _ = getattr(memory, run)(inputs if enabled else inputs.float(), memory.initial_state(B), starts)
        outputs.square().sum().backward()
        return outputs, memory.weight_hh.grad, memory.weight_ih.grad

    results = outputs_and_gradients(enabled=True)
    assert all(result.dtype == torch.float32 for result in results)
    assert_same(results, outputs_and_gradients(enabled=False), 0.0)


@pytest.mark.parametrize(("config", "num_gates"), [(RNNConfig, 1), (GRUConfig, 3)])
def test_initialisation(config: type[MemoryConfig], num_gates: int) -> None:
    # Catches: one orthogonal matrix over all gates, whose blocks are not orthogonal.
    memory = config(hidden_size=H).build(D)
    for gate in memory.weight_hh.detach().chunk(num_gates):
        torch.testing.assert_close(gate @ gate.T, torch.eye(H), rtol=0, atol=1e-5)
    for gate in memory.weight_ih.detach().chunk(num_gates):
        torch.testing.assert_close(gate.T @ gate, torch.eye(D), rtol=0, atol=1e-5)
    assert not (memory.bias_ih + memory.bias_hh).any()


@pytest.mark.parametrize("size", [1, 2, 128])
def test_initialisation_of_the_lstm(size: int) -> None:
    # Catches: long time constants on another gate, or of all cells; weights of another size than those of torch.
    memory = LSTMConfig(hidden_size=size).build(D)
    forget, others = memory.bias_ih.detach().chunk(4)[1], [p.detach().clone() for p in memory.parameters()]
    long = -(-size // 4)
    assert ((forget[-long:] > math.log(39.0) - 1e-4) & (forget[-long:] < math.log(99.0) + 1e-4)).all()
    others[2].chunk(4)[1][-long:] = 0.0
    assert max(float(x.abs().max()) for x in others) <= size**-0.5
    assert max(float(x.abs().max()) for x in others) > 0.5 * size**-0.5


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dtype_follows_the_module(config: type[MemoryConfig]) -> None:
    # Catches: a state in bfloat16, which changes dtype after the first step.
    memory = config(hidden_size=H).build(D)
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        leaves = list(state_leaves(memory.to(dtype).initial_state(B)))
        assert all(leaf.dtype == expected and leaf.shape == (B, H) and not leaf.any() for leaf in leaves)


@pytest.mark.parametrize("config", CONFIGS)
def test_sizes_are_checked(config: type[MemoryConfig]) -> None:
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        config(hidden_size=0)
    with pytest.raises(ValueError, match="input_size must be at least 1, got 0"):
        config().build(0)
