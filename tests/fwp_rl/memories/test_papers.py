"""The fast-weight memories of the literature against plain versions of their papers' equations.

Written as in the papers: one row, one head and one step at a time, weight matrices `[value, key]` times vectors.
"""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fwp_rl import build_memory
from fwp_rl.feature_maps import feature_map, feature_size, require_feature_map
from fwp_rl.inspection import audit_gradients
from fwp_rl.memories.continuous_delta import ContinuousDeltaConfig, exact_strength
from fwp_rl.memories.delta import DeltaConfig
from fwp_rl.memories.delta_lstm import DeltaLSTMConfig
from fwp_rl.memories.delta_mlp import DeltaMLPConfig
from fwp_rl.memories.delta_product import DeltaProductConfig
from fwp_rl.memories.delta_rnn import DeltaRNNConfig
from fwp_rl.memories.fast_weight_memory import FastWeightMemoryConfig
from fwp_rl.memories.gated_delta import GatedDeltaConfig
from fwp_rl.memories.hebb import HebbConfig
from fwp_rl.memories.linear_attention import LinearAttentionConfig
from fwp_rl.memories.oja import OjaConfig
from fwp_rl.memories.paper_delta import Irie2021Config, Schlag2021Config
from fwp_rl.memories.recurrent_delta import RecurrentDeltaConfig
from fwp_rl.memories.srwm import SRWM, SRWMConfig
from fwp_rl.memory import Memory, MemoryConfig
from fwp_rl.ops import oja_keys
from fwp_rl.state import State, map_state, state_leaves

T, B, D = 23, 3, 11
SIZES = {"width": 10, "n_heads": 2, "key_size": 5, "value_size": 7}
CONFIGS: dict[str, MemoryConfig] = {
    "recurrent_delta": RecurrentDeltaConfig(**SIZES),
    "delta_rnn": DeltaRNNConfig(**SIZES),
    "delta_lstm": DeltaLSTMConfig(**SIZES),
    "delta_mlp": DeltaMLPConfig(**SIZES, n_layers=3),
    "srwm": SRWMConfig(width=10, n_heads=2, value_size=7),
    "fast_weight_memory": FastWeightMemoryConfig(hidden_size=9, entity_size=4, relation_size=6, n_reads=2),
    "gated_delta of channels": GatedDeltaConfig(**SIZES, channel_decay=True, negative_eigenvalues=True),
    "delta_product": DeltaProductConfig(**SIZES, n_writes=3),
    "linear_attention": LinearAttentionConfig(**SIZES),
    "linear_attention without denominator": LinearAttentionConfig(
        **SIZES, feature_map="dpfp", normalization="sum", attention_normalization=False
    ),
    "hebb": HebbConfig(**SIZES),
    "oja": OjaConfig(**SIZES),
    "continuous_delta": ContinuousDeltaConfig(**SIZES, elapsed_time=-1),
    "schlag2021": Schlag2021Config(**SIZES),
    "irie2021": Irie2021Config(**SIZES),
}

SPARSE = ("linear_attention without denominator", "schlag2021")

memories = pytest.mark.parametrize("name", CONFIGS)


def make(name: str) -> tuple[Memory, Tensor, State, Tensor]:
    """A memory with no parameter at 0 or 1, inputs, a used state and starts."""
    memory = CONFIGS[name].build(D).double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    inputs = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    state = map_state(lambda x: (0.3 * torch.randn_like(x)).requires_grad_(), memory.initial_state(B))
    starts = torch.rand(T, B) < 0.15
    starts[16, 0] = True
    return memory, inputs, state, starts


# ---------------------------------------------------------------------------------------------- the papers' equations


def delta(W: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """W + beta (v - W k) k^T, with a column for each key."""
    return W + beta * torch.outer(v - W @ k, k)


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def recurrent_delta(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    W, y = state
    R = memory.recurrent[head].T  # type: ignore[index, union-attr]  # a parameter
    q, k, v, b = (slots + R @ y.tanh()).split([5, 5, 7, 1])
    W = delta(W.T, softmax(k), v, sigmoid(b)).T
    y = W.T @ softmax(q)
    return y, [W, y]


def delta_rnn(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    W, R, y = state
    q, k, v, b, own_k, own_v, own_b = slots.split([5, 5, 7, 1, 7, 7, 1])
    W = delta(W[0].T, softmax(k), v, sigmoid(b)).T[None]
    R = delta(R[0].T, softmax(own_k), own_v, sigmoid(own_b)).T[None]
    y = W[0].T @ softmax(q) + R[0].T @ softmax(y)
    return y, [W, R, y]


def delta_lstm(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    W, R, y, c = state
    q, keys, values, b, own_keys, own_values, own_b = slots.split([5, 15, 21, 3, 21, 21, 3])
    gates, new_W, new_R = [], [], []
    for g in range(3):
        new_W.append(delta(W[g].T, softmax(keys[5 * g : 5 * g + 5]), values[7 * g : 7 * g + 7], sigmoid(b[g])))
        own_key, own_value = own_keys[7 * g : 7 * g + 7], own_values[7 * g : 7 * g + 7]
        new_R.append(delta(R[g].T, softmax(own_key), own_value, sigmoid(own_b[g])))
        gates.append(new_W[g] @ softmax(q) + new_R[g] @ softmax(y))
    i, u, o = sigmoid(gates[0]), gates[1], sigmoid(gates[2])
    c = i * u + (1 - i) * c
    y = o * c
    return y, [torch.stack([x.T for x in new_W]), torch.stack([x.T for x in new_R]), y, c]


def delta_mlp(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    h, *layers = slots.split([5, 5, 7, 1, 7, 7, 1, 7, 7, 1])
    new = []
    for layer, W in enumerate(state):
        k, v, b = layers[3 * layer : 3 * layer + 3]
        new.append(delta(W.T, softmax(k), v, sigmoid(b)).T)
        h = new[-1].T @ softmax(h)
    return h, new


def srwm(memory: Memory, x: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    W_0 = memory.initial_matrix[head]  # type: ignore[index, union-attr]  # a parameter
    W = (W_0 + state[0]).T
    y, k, q, b = (W @ softmax(x)).split([7, 5, 5, 4])
    k, q, b = softmax(k), softmax(q), sigmoid(b)
    new = []
    for rate, block in zip(b, W.split([7, 5, 5, 4]), strict=True):  # the four learning rates
        new.append(block + rate * torch.outer(block @ q - block @ k, k))
    return y, [torch.cat(new).T - W_0]


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum() + 1e-6).sqrt()


def elu_plus_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def dpfp(x: Tensor) -> Tensor:
    r = torch.cat([x, -x]).clamp(min=0)
    return torch.stack([r[i] * r[i - 1] for i in range(len(r))])


def share(x: Tensor) -> Tensor:
    return x / (x.sum() + 1e-6)


def delta_product(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    (W,) = state
    q, *writes = slots.split([5, *[5, 7, 1] * 3])
    for k, v, b in zip(writes[::3], writes[1::3], writes[2::3], strict=True):
        W = delta(W.T, unit(k), v, 2 * sigmoid(b)).T
    return W.T @ unit(q) + memory.skip[head] * writes[-2], [W]  # type: ignore[index]  # a parameter


def channel_gated_delta(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    q, k, v, b, a = slots.split([5, 5, 7, 1, 5])
    alpha = (-(1 + a.exp()).log()).exp()  # of log alpha = -softplus(a), a column of W for each channel
    W = delta(state[0].T @ torch.diag(alpha), unit(k), v, 2 * sigmoid(b))
    return W @ unit(q) + memory.block.skip[head] * v, [W.T]  # type: ignore[index, union-attr]  # a parameter


def linear_attention(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    S, z = state[0][:, :-1], state[0][:, -1]
    q, k, v = slots.split([5, 5, 7])
    q, k = elu_plus_one(q), elu_plus_one(k)
    S, z = S + torch.outer(k, v), z + k
    return S.T @ q / (z @ q + 1e-5), [torch.cat([S, z[:, None]], 1)]


def sum_update(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    q, k, v = slots.split([5, 5, 7])
    W = state[0] + torch.outer(share(dpfp(k)), v)
    return W.T @ share(dpfp(q)), [W]


def hebb(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    q, k, v, b = slots.split([5, 5, 7, 1])
    W = state[0].T + sigmoid(b) * torch.outer(v.tanh(), softmax(k))
    return W @ softmax(q), [W.T]


def oja(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    q, k, v, b = slots.split([5, 5, 7, 1])
    W, k, v = state[0].T, unit(k), unit(v)
    W = W + sigmoid(b) * torch.outer(v, k - W.T @ v)
    return W @ unit(q), [W.T]


def continuous_delta(memory: Memory, slots: Tensor, head: int, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    *parts, dt = slots.split([5, 5, 7, 1, 1])
    q, k, v, b = parts
    length = k @ k
    W = delta(state[0].T, k, v, (1 - (-sigmoid(b) * dt.clamp(min=0) * length).exp()) / length)
    return W @ unit(q), [W.T]


HEADS: dict[str, Callable[..., tuple[Tensor, list[Tensor]]]] = {
    "recurrent_delta": recurrent_delta,
    "delta_rnn": delta_rnn,
    "delta_lstm": delta_lstm,
    "delta_mlp": delta_mlp,
    "srwm": srwm,
    "gated_delta of channels": channel_gated_delta,
    "delta_product": delta_product,
    "linear_attention": linear_attention,
    "linear_attention without denominator": sum_update,
    "hebb": hebb,
    "oja": oja,
    "continuous_delta": continuous_delta,
}


def own_slots(name: str, memory: Memory, x: Tensor, inputs: Tensor) -> Tensor:
    """What the slow net tells each head, `[T, B, H, S]`."""
    p, H = dict(memory.named_parameters()), 2
    if name == "srwm":
        return x.unflatten(-1, (H, -1))
    prefix = {"delta_product": "", "gated_delta of channels": "block."}.get(name, "slow_net.")
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    normed = normed * p[f"{prefix}norm.weight"] + p[f"{prefix}norm.bias"]
    slots = normed @ p[f"{prefix}project.weight"].T + p[f"{prefix}project.bias"]
    if name == "gated_delta of channels":  # all queries, all keys, all values, all strengths and all decays
        parts = slots.split([H * 5, H * 5, H * 7, H, H * 5], dim=-1)
        return torch.cat([part.unflatten(-1, (H, -1)) for part in parts], dim=-1)
    if name == "delta_product":  # all queries, then for each write all keys, all values and all strengths
        parts = slots.split([H * 5, *[H * 5, H * 7, H] * 3], dim=-1)
        return torch.cat([part.unflatten(-1, (H, -1)) for part in parts], dim=-1)
    slots = slots.unflatten(-1, (H, -1))
    if name == "continuous_delta":
        slots = torch.cat([slots, inputs[..., None, -1:].expand(T, B, H, 1)], dim=-1)
    return slots


def plain_block(name: str, memory: Memory, inputs: Tensor, state: State, starts: Tensor) -> tuple[Tensor, State]:
    """The residual block around the heads, and one head after the other."""
    p, H = dict(memory.named_parameters()), 2
    x = inputs @ p["block.encode.weight"].T + p["block.encode.bias"]
    slots = own_slots(name, memory, x, inputs)
    leaves = [state] if isinstance(state, Tensor) else list(state)
    outputs, finals = torch.zeros(T, B, H, 7, dtype=torch.float64), [torch.zeros_like(leaf) for leaf in leaves]  # type: ignore[arg-type]  # tensors
    for b in range(B):
        for head in range(H):
            own = [leaf[b, head] for leaf in leaves]  # type: ignore[index]  # tensors
            for t in range(T):
                if starts[t, b]:
                    own = [torch.zeros_like(leaf) for leaf in own]
                y, own = HEADS[name](memory, slots[t, b, head], head, own)
                outputs[t, b, head] = y
            for final, mine in zip(finals, own, strict=True):
                final[b, head] = mine
    reads = outputs
    if name != "linear_attention":
        reads = outputs / (outputs.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    x = x + reads.flatten(-2) @ p["block.readout.weight"].T
    normed = functional.layer_norm(
        x, x.shape[-1:], p["block.feed_forward_norm.weight"], p["block.feed_forward_norm.bias"]
    )
    hidden = (normed @ p["block.up.weight"].T + p["block.up.bias"]).clamp(min=0)
    x = x + hidden @ p["block.down.weight"].T + p["block.down.bias"]
    return x, finals[0] if isinstance(state, Tensor) else tuple(finals)


def plain_fast_weight_memory(memory: Memory, inputs: Tensor, state: State, starts: Tensor) -> tuple[Tensor, State]:
    """F as the tensor `[entity, relation, entity]` of the paper."""
    p = dict(memory.named_parameters())
    matrix, h_all, c_all = state  # type: ignore[misc]  # three tensors
    rows, finals = [], []
    for b in range(B):
        F, h, c, outputs = matrix[b].reshape(4, 6, 4), h_all[b], c_all[b], []  # type: ignore[union-attr]  # tensors
        for t in range(T):
            if starts[t, b]:
                F, h, c = torch.zeros_like(F), torch.zeros_like(h), torch.zeros_like(c)
            gates = p["controller.weight_ih"] @ inputs[t, b] + p["controller.bias_ih"]
            gates = gates + p["controller.weight_hh"] @ h + p["controller.bias_hh"]
            i, f, g, o = gates.chunk(4)
            c = sigmoid(f) * c + sigmoid(i) * g.tanh()
            h = sigmoid(o) * c.tanh()
            s, r, v, beta = (p["writes.weight"] @ h + p["writes.bias"]).split([4, 6, 4, 1])
            s, r, v, beta = s.tanh(), r.tanh(), v.tanh(), sigmoid(beta)
            old = torch.einsum("srv,s,r->v", F, s, r)
            F = F + torch.einsum("s,r,v->srv", s, r, beta * (v - old) / 4)
            norm = F.square().sum().sqrt()
            if norm > 1:
                F = F / norm
            n, *chain = (p["reads.weight"] @ h + p["reads.bias"]).split([4, 6, 6])
            for relation in chain:
                n = torch.einsum("srv,s,r->v", F, n, relation)
                n = (n - n.mean()) / (n.var(correction=0) + 1e-5).sqrt()
            outputs.append(h + p["readout.weight"] @ n + p["readout.bias"])
        rows.append(torch.stack(outputs))
        finals.append((F.reshape(24, 4), h, c))
    F, h, c = (torch.stack(parts) for parts in zip(*finals, strict=True))
    return torch.stack(rows, 1), (F, h, c)


def plain_paper_delta(
    name: str, memory: Memory, inputs: Tensor, state: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """The block of the papers, with keys of 10 features for DPFP."""
    p, phi = dict(memory.named_parameters()), dpfp if name == "schlag2021" else elu_plus_one
    rows, finals = [], []
    for b in range(B):
        W, outputs = state[b].mT, []
        for t in range(T):
            if starts[t, b]:
                W = torch.zeros_like(W)
            x = p["encode.weight"] @ inputs[t, b] + p["encode.bias"]
            z = functional.layer_norm(x, x.shape, p["norm.weight"], p["norm.bias"])
            q, k, v = (part.reshape(2, -1) for part in (p["qkv.weight"] @ z).split([10, 10, 14]))
            strengths = p["strength.weight"] @ z
            if name == "schlag2021":
                strengths = strengths + p["strength.bias"]
            new, reads = [], []
            for head in range(2):
                new.append(delta(W[head], share(phi(k[head])), v[head], sigmoid(strengths[head])))
                reads.append(new[-1] @ share(phi(q[head])))
            W = torch.stack(new)
            x = x + p["readout.weight"] @ torch.cat(reads)
            z = functional.layer_norm(x, x.shape, p["feed_forward_norm.weight"], p["feed_forward_norm.bias"])
            hidden = (p["up.weight"] @ z + p["up.bias"]).clamp(min=0)
            outputs.append(x + p["down.weight"] @ hidden + p["down.bias"])
        rows.append(torch.stack(outputs))
        finals.append(W.mT)
    return torch.stack(rows, 1), torch.stack(finals)


@memories
def test_it_is_what_the_paper_says(name: str) -> None:
    """Catches a transposed matrix, a swapped slot, a read before (or after) the write, a wrong activation or norm, a
    start that is late, and any gradient that is cut: of inputs, of the incoming state and of every parameter."""
    memory, inputs, state, starts = make(name)

    def everything(outputs: Tensor, final: State) -> list[Tensor]:
        results = [outputs, *state_leaves(final)]
        generator = torch.Generator().manual_seed(2)
        loss = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in results)
        leaves = [inputs, *state_leaves(state), *memory.parameters()]
        return results + list(torch.autograd.grad(loss, leaves))

    actual = everything(*memory.scan(inputs, state, starts))
    if name == "fast_weight_memory":
        expected = everything(*plain_fast_weight_memory(memory, inputs, state, starts))
    elif name in ("schlag2021", "irie2021"):
        expected = everything(*plain_paper_delta(name, memory, inputs, state, starts))  # type: ignore[arg-type]  # a tensor, a name
    else:
        expected = everything(*plain_block(name, memory, inputs, state, starts))
    for mine, other in zip(actual, expected, strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=1e-10)


@memories
def test_gradient_reaches_back_beyond_a_chunk(name: str) -> None:
    """Catches a gradient that is cut at the seam of two chunks of 16 steps, or after a single step."""
    memory, *_ = make(name)
    inputs = torch.randn(40, B, D, dtype=torch.float64)
    inputs[..., -1].abs_()  # where it is the elapsed time: a step that takes none writes nothing
    inputs.requires_grad_()
    outputs, _ = memory.scan(inputs, memory.initial_state(B), torch.zeros(40, B, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(outputs[-1].sin().sum(), inputs)
    reached = gradient.any(-1)
    # Keys of few features that are not 0 miss some queries altogether.
    assert (reached.any(1) if name in SPARSE else reached).all()


@memories
def test_learned_matrices_learn_from_one_step(name: str) -> None:
    """Catches parameters that get no gradient, for which an optimiser would not move them. What the self-referential
    matrix writes is read at the next step: two steps."""
    memory, inputs, _, _ = make(name)
    inputs = inputs.abs()
    outputs, _ = memory.scan(inputs[:2], memory.initial_state(B), torch.zeros(2, B, dtype=torch.bool))
    outputs.sin().sum().backward()
    for parameter, value in memory.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.any(), parameter


def test_a_product_of_one_step_is_the_delta_rule() -> None:
    """Catches a query or a strength of the product that is treated in another way than those of `delta`."""
    product = DeltaProductConfig(**SIZES, n_writes=1, expansion=2).build(D)
    delta = DeltaConfig(**SIZES, negative_eigenvalues=True).build(D)
    mine = dict(product.named_parameters())
    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            name = name.removeprefix("block.")
            parameter += 0.3 * torch.randn_like(parameter)
            mine[name if name in mine else f"block.{name}"].copy_(parameter)
    inputs, starts = torch.randn(T, B, D), torch.rand(T, B) < 0.15
    outputs, state = product.scan(inputs, product.initial_state(B), starts)
    expected, final = delta.scan(inputs, delta.initial_state(B), starts)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("length", [1e-4, 1.0, 30.0])
def test_the_exact_step_is_many_small_steps(length: float) -> None:
    """Catches a strength that is not the solution of the flow, or that loses its digits for small keys."""
    k = length * unit(torch.randn(5, dtype=torch.float64))
    beta, S, v = 0.7, torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    strength = exact_strength(torch.full((1, 1, 1), beta, dtype=torch.float64), k[None, None, None])[0, 0, 0]
    exact, euler, n = delta(S, k, v, strength), S, 20_000
    for _ in range(n):
        euler = delta(euler, k, v, torch.tensor(beta / n))
    torch.testing.assert_close((exact - S) / length, (euler - S) / length, atol=1e-4, rtol=1e-3)


def test_a_step_of_three_is_three_steps_of_one() -> None:
    """Catches an elapsed time that is read from another input, or that scales the value as well."""
    memory = ContinuousDeltaConfig(**SIZES, elapsed_time=-1).build(D).double()
    inputs = torch.randn(1, B, D, dtype=torch.float64)
    inputs[..., -1] = 0.0  # so that the slow net sees the same in both
    with torch.no_grad():
        memory.block.encode.weight[:, -1] = 0.0  # type: ignore[index, union-attr]  # a linear layer
    one, three = inputs.clone(), inputs.clone()
    one[..., -1], three[..., -1] = 1.0, 3.0
    _, state = memory.scan(one.expand(3, B, D), memory.initial_state(B), torch.zeros(3, B, dtype=torch.bool))
    _, at_once = memory.scan(three, memory.initial_state(B), torch.zeros(1, B, dtype=torch.bool))
    torch.testing.assert_close(at_once, state)


def test_ojas_rule_moves_a_value_to_its_new_key() -> None:
    """Catches an erasure along keys: under the old key nothing is left of a value that comes again."""
    k, v = torch.eye(4, dtype=torch.float64)[:2, None, None], torch.ones(2, 1, 1, 1, dtype=torch.float64)
    starts, state = torch.zeros(2, 1, dtype=torch.bool), torch.zeros(1, 1, 4, 1, dtype=torch.float64)
    u = oja_keys(k, v, torch.ones(2, 1, 1, dtype=torch.float64), state, starts)
    assert torch.equal(u[0], k[0])
    assert torch.equal(u[1], k[1] - k[0])


@pytest.mark.parametrize("normalization", ["none", "sum", "l2"])
@pytest.mark.parametrize("name", ["identity", "silu", "elu", "dpfp", "softmax"])
def test_feature_maps(name: str, normalization: str) -> None:
    """Catches a norm over the wrong axis, and DPFP that pairs a feature with itself."""
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    features = feature_map(x, name, normalization)  # type: ignore[arg-type]  # a tensor, a name
    assert features.shape == (3, 4, feature_size(6, name))  # type: ignore[arg-type]  # a tensor, a name
    if normalization == "l2":
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(3, 4, dtype=torch.float64), atol=1e-3, rtol=0)
    if name in ("elu", "dpfp", "softmax"):
        assert (features >= 0).all()
        if normalization == "sum":
            torch.testing.assert_close(features.sum(-1), torch.ones(3, 4, dtype=torch.float64), atol=1e-3, rtol=0)
    if name == "dpfp":
        assert (features == 0).sum() > features.numel() / 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LinearAttentionConfig(feature_map="silu"), "attention_normalization=True needs features that are not neg"),
        (Irie2021Config(feature_map="identity"), "normalization='sum' needs features that are not negative"),
        (ContinuousDeltaConfig(elapsed_time=D), f"elapsed_time={D} is no index of {D} inputs"),
    ],
)
def test_choices_that_cannot_be_are_refused(config: MemoryConfig, message: str) -> None:
    """Catches a choice that is taken and then ignored, or a division by a sum that may be 0."""
    with pytest.raises(ValueError, match=message):
        config.build(D)


def test_unknown_feature_maps_are_named() -> None:
    """Catches a misspelt name that would leave the features as they are."""
    with pytest.raises(ValueError, match="feature_map='relu': expected one of identity, silu, elu, dpfp, softmax"):
        require_feature_map("relu", "none")
    with pytest.raises(ValueError, match="normalization='max': expected one of none, sum, l2"):
        require_feature_map("elu", "max")


def test_self_referential_state_is_the_difference_to_what_is_learned() -> None:
    """Catches a state that holds W: after an update of W_0 it would mean something else, and zero would be no fresh
    state."""
    memory, inputs, state, starts = make("srwm")
    assert isinstance(memory, SRWM)
    assert isinstance(state, Tensor)
    inputs, difference, no_starts = inputs[:, :1], state[:1], torch.zeros_like(starts[:, :1])
    outputs, final = memory.scan(inputs, difference, no_starts)
    with torch.no_grad():
        memory.matrix += difference[0] / 10  # W_0 is 2 K times the parameter
    moved_outputs, moved_final = memory.scan(inputs, memory.initial_state(1), no_starts)
    torch.testing.assert_close(moved_outputs, outputs)
    torch.testing.assert_close(moved_final + difference, final)


def test_self_referential_memory_starts_with_a_gradient_into_the_past() -> None:
    """Catches a W_0 whose keys and queries start all alike: the memory then learns nothing from the past."""
    audit = audit_gradients(SRWMConfig().build(64), torch.randn(6, 8, 64))
    assert bool((audit.norms[1:] > 0.01 * audit.norms[0]).all()), audit


def test_without_self_modification_nothing_is_remembered() -> None:
    """Catches an ablation that still writes, or that still has the rows for keys, queries and rates."""
    memory = SRWMConfig(width=10, n_heads=2, value_size=7, self_modifying=False).build(D).double()
    inputs, starts = torch.randn(T, B, D, dtype=torch.float64), torch.zeros(T, B, dtype=torch.bool)
    outputs, state = memory.scan(inputs, memory.initial_state(B), starts)
    backwards, _ = memory.scan(inputs.flip(0), memory.initial_state(B), starts)
    torch.testing.assert_close(outputs, backwards.flip(0))
    assert state == ()
    assert memory.initial_matrix.shape == (2, 5, 7)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("recurrent_delta", 145_284),
        ("delta_rnn", 133_512),
        ("srwm", 128_256),
        ("delta_lstm", 137_932),
        ("delta_mlp", 133_512),
        ("fast_weight_memory", 135_713),
        ("delta_product", 133_516),
        ("linear_attention", 132_352),
        ("hebb", 132_868),
        ("oja", 132_868),
        ("continuous_delta", 132_868),
    ],
)
def test_default_sizes_are_near_those_of_the_lstm(name: str, parameters: int) -> None:
    """Catches a default that would make comparisons unfair, or a parameter that nobody meant."""
    count = sum(p.numel() for p in build_memory(name, 128).parameters())
    lstm = sum(p.numel() for p in build_memory("lstm", 128).parameters())
    assert count == parameters
    assert abs(count / lstm - 1) < 0.12


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_checked(name: str) -> None:
    config = CONFIGS[name]
    for field in inspect.signature(type(config)).parameters:
        if type(getattr(config, field)) is int and field not in ("elapsed_time", "delay_heads"):  # which may be 0
            wrong = type(config)(**{**vars(config), field: 0})
            with pytest.raises(ValueError, match=f"{field} ?(=|must be at least 1, got) ?0"):
                wrong.build(D)
