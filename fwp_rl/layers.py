"""What fast-weight memories share: everything around the update rule, and how its gates start."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.memory import MemoryConfig
from fwp_rl.ops import BlockWeights, block_step, fast_rnn_scan, fast_weight_heads, fast_weight_scan, unit
from fwp_rl.ops.fast_weight_heads import READ_EPSILON, head_arguments
from fwp_rl.ops.fast_weight_scan import Rule
from fwp_rl.state import State


def linear(input_size: int, output_size: int, *, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer with orthogonal weights and zero bias."""
    layer = nn.Linear(input_size, output_size, bias=bias)
    nn.init.orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True, kw_only=True)
class FastWeightConfig(MemoryConfig):
    """The sizes that every fast-weight memory has. Abstract: the memories add their own choices."""

    width: int = 128
    """Width of the residual stream, and size of the output."""
    n_heads: int = 4
    """Separate fast-weight matrices; each starts with its own time constant."""
    key_size: int = 32
    """Size of keys and queries: about as many things as one head can hold apart."""
    value_size: int = 32
    """Size of what is stored under a key."""
    expansion: int = 2
    """Width of the feed-forward layer, as a multiple of `width`."""


@dataclass(frozen=True, kw_only=True)
class DelayHeadsConfig(FastWeightConfig):
    """A fast-weight memory whose first heads may be delay heads. Abstract."""

    absent = MappingProxyType({"delay_heads": 0})

    delay_heads: int = 0
    """Heads whose fast weights move down one row before every step, so that they know how long ago they wrote: up to
    key_size - 1 steps. The other heads find what they wrote by its key alone."""


class HeadInputs(NamedTuple):
    """What the heads of a fast-weight memory are given: the arguments of `fast_weight_scan` but the episode starts."""

    q: Float[Tensor, "T B H K"]
    """queries"""
    k: Float[Tensor, "T B H K"]
    """keys"""
    v: Float[Tensor, "T B H V"]
    """values"""
    beta: Float[Tensor, "T B H"]
    """write strengths"""
    log_decay: Float[Tensor, "T B H"] | Float[Tensor, "T B H K"] | None
    """at most 0, of heads or of the channels of their keys; None: nothing fades"""
    state: Float[Tensor, "B H K V"]
    """the fast weights before the first step"""
    rule: Rule
    delay_heads: int = 0
    """The first heads, whose fast weights move down one row before every step."""


class AttentionInputs(NamedTuple):
    """Arguments of the heads of an attention memory; S rows: those of the state, then the T steps."""

    q: Float[Tensor, "T B H K"]
    """queries"""
    k: Float[Tensor, "S B H K"]
    """keys"""
    v: Float[Tensor, "S B H V"]
    """values"""
    allowed: Bool[Tensor, "T B S"]
    """which rows each step attends to"""


def run_heads(
    heads: HeadInputs, episode_starts: Bool[Tensor, "T B"], *, n_inner: int = 1
) -> tuple[Float[Tensor, "T B H V"], Float[Tensor, "B H K V"]]:
    """What the heads read, and the final fast weights."""
    return fast_weight_scan(
        heads.q,
        heads.k,
        heads.v,
        heads.beta,
        heads.state,
        episode_starts,
        log_decay=heads.log_decay,
        rule=heads.rule,
        delay_heads=heads.delay_heads,
        n_inner=n_inner,
    )


class FastWeightBlock(nn.Module):
    """All of a fast-weight memory but its update rule.

    A pre-norm residual block:

        x = encode(inputs)
        y = heads(project(norm(x)))
        x = x + readout(y)
        x = x + down(relu(up(norm(x))))

    A single step without gradient, which is what a rollout makes, is one compiled call on the CPU.

    :param gate_biases: `[G, H]`: where the logits of the gates start: write strength and, if there is one, decay, or
        (G = 1 + K) the decays of all channels of the keys. Their weights are small, so that the biases rule.
    """

    def __init__(self, input_size: int, config: DelayHeadsConfig, gate_biases: Float[Tensor, "G H"]) -> None:
        super().__init__()
        c = self.config = config
        require_positive(
            input_size=input_size,
            width=c.width,
            n_heads=c.n_heads,
            key_size=c.key_size,
            value_size=c.value_size,
            expansion=c.expansion,
        )
        require_delay_heads(c)
        self.encode = nn.Identity() if input_size == c.width else linear(input_size, c.width)
        self.gated = len(gate_biases) > 1
        self.norm = nn.LayerNorm(c.width)
        # One layer for queries, keys, values and gates: fewer and larger matrix products.
        keys, values = c.n_heads * c.key_size, c.n_heads * c.value_size
        self.project = linear(c.width, 2 * keys + values + gate_biases.numel())
        with torch.no_grad():
            gates = slice(2 * keys + values, None)
            nn.init.orthogonal_(self.project.weight[gates], gain=0.1)
            self.project.bias[gates] = torch.cat([gate_biases[0], gate_biases[1:].T.flatten()])
            write_to_first_row(self.project.bias[keys : 2 * keys], c)
        self.skip = nn.Parameter(present_values(c.n_heads))
        # Small, not zero: else the memory would get no gradient in the first update.
        self.readout = linear(values, c.width, gain=0.5, bias=False)
        self.feed_forward_norm = nn.LayerNorm(c.width)
        self.up = linear(c.width, c.expansion * c.width)
        self.down = linear(c.expansion * c.width, c.width, gain=0.5)

    def empty_matrices(self, batch_size: int) -> Float[Tensor, "B H K V"]:
        """Fast weights that hold nothing."""
        c = self.config
        return self.norm.weight.new_zeros(batch_size, c.n_heads, c.key_size, c.value_size)

    def forward(
        self,
        inputs: Float[Tensor, "T B D"],
        state: Float[Tensor, "B H K V"],
        episode_starts: Bool[Tensor, "T B"],
        *,
        rule: Rule = "delta",
        largest_strength: float = 1.0,
    ) -> tuple[Float[Tensor, "T B W"], Float[Tensor, "B H K V"]]:
        """What the block puts out, and the final fast weights; for the arguments see `fast_weight_heads`."""
        x = self.encode(inputs)
        if len(x) == 1 and not torch.is_grad_enabled():
            weights = self._step_weights()
            step = block_step(
                x[0],
                weights,
                state,
                episode_starts[0],
                rule=rule,
                largest_strength=largest_strength,
                delay_heads=self.config.delay_heads,
            )
            if step is not None:
                return step[0][None], step[1]
        y, state = fast_weight_heads(
            self.project(self.norm(x)),
            self.skip,
            state,
            episode_starts,
            rule=rule,
            gated=self.gated,
            largest_strength=largest_strength,
            delay_heads=self.config.delay_heads,
        )
        x = x + self.readout(y)
        return x + self.down(self.up(self.feed_forward_norm(x)).relu()), state

    def head_inputs(
        self,
        inputs: Float[Tensor, "T B D"],
        state: Float[Tensor, "B H K V"],
        *,
        rule: Rule = "delta",
        largest_strength: float = 1.0,
    ) -> HeadInputs:
        """What `forward`, given the same, computes with inside its compiled heads; for those who look inside."""
        c = self.config
        projected = self.project(self.norm(self.encode(inputs)))
        arguments = head_arguments(projected, c.n_heads, c.key_size, c.value_size, largest_strength)
        return HeadInputs(*arguments, state, rule, c.delay_heads)

    def _step_weights(self) -> BlockWeights:
        # `self.norm.weight` and so on, without the search of `nn.Module` for each name, which takes longer at every
        # step of a rollout than the heads do.
        modules: Any = self._modules
        norm, project, readout, feed_forward_norm, up, down = (
            modules[name]._parameters for name in ("norm", "project", "readout", "feed_forward_norm", "up", "down")
        )
        return BlockWeights(
            norm["weight"],
            norm["bias"],
            project["weight"],
            project["bias"],
            self.skip,
            readout["weight"],
            feed_forward_norm["weight"],
            feed_forward_norm["bias"],
            up["weight"],
            up["bias"],
            down["weight"],
            down["bias"],
        )


class SlowNet(nn.Module):
    """What programs the heads at every step: so many slots for each, from the residual stream.

    :param strength_bias: Where the last slot of each head starts, which is then the logit of its write strength. Its
        weights are small, so that the bias rules.
    """

    def __init__(
        self, config: FastWeightConfig, n_slots: int, strength_bias: Float[Tensor, " H"] | None = None
    ) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.norm = nn.LayerNorm(config.width)
        self.project = linear(config.width, config.n_heads * n_slots)
        if strength_bias is not None:
            with torch.no_grad():
                nn.init.orthogonal_(self.project.weight[n_slots - 1 :: n_slots], gain=0.1)
                self.project.bias[n_slots - 1 :: n_slots] = strength_bias

    def forward(self, x: Float[Tensor, "T B W"]) -> Float[Tensor, "T B H S"]:
        """The slots of each head."""
        return self.project(self.norm(x)).unflatten(-1, (self.n_heads, -1))


class ResidualBlock(nn.Module):
    """`FastWeightBlock` without its heads: those, with the slow net that programs them, are handed in.

        x = encode(inputs)
        x = x + readout(heads(x))
        x = x + down(relu(up(norm(x))))

    (`FastWeightBlock` has these layers for itself: saved models know them by their names.)

    :param read_size: Of what the heads put out.
    """

    def __init__(self, input_size: int, width: int, read_size: int, expansion: int) -> None:
        super().__init__()
        self.encode = nn.Identity() if input_size == width else linear(input_size, width)
        # Small, not zero: else the memory would get no gradient in the first update.
        self.readout = linear(read_size, width, gain=0.5, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = linear(width, expansion * width)
        self.down = linear(expansion * width, width, gain=0.5)

    def forward(
        self, inputs: Float[Tensor, "T B D"], heads: Callable[[Tensor], tuple[Tensor, State]]
    ) -> tuple[Float[Tensor, "T B W"], State]:
        """What the block puts out, and the state that `heads` returned with what it read."""
        x = self.encode(inputs)
        y, state = heads(x)
        x = x + self.readout(y)
        return x + self.down(self.up(self.feed_forward_norm(x)).relu()), state


def fast_rnn_heads(
    slots: Float[Tensor, "T B H S"],
    state: tuple[Tensor, ...],
    episode_starts: Bool[Tensor, "T B"],
) -> tuple[Float[Tensor, "T B Y"], State]:
    """What recurrent fast nets put out, side by side and normalised (Y = H V), and the final state.

        [q, k, v, b, k', v', b'] = slots                        for each head; all but q for each of the G gates
        W = delta(W, softmax(k), v, sigmoid(b))                 fast weights from the query to the gates
        R = delta(R, softmax(k'), v', sigmoid(b'))              fast weights from the last output to the gates
        y = cell(W^T softmax(q) + R^T softmax(y))               see `fast_rnn_scan`

    W depends on no output, so that its part is one scan for all steps. S = K + G (K + 3 V + 2). The state is W
    `[B, H, G, K, V]` and that of `fast_rnn_scan`.
    """
    n_gates = state[0].shape[2]
    heads, own = _fast_rnn_program(slots, state)
    z, matrices = run_heads(heads, episode_starts)
    y, carried = fast_rnn_scan(*own, z.unflatten(2, (-1, n_gates)), state[1:], episode_starts)
    return normalised_reads(y), (matrices.unflatten(1, (-1, n_gates)), *carried)


def fast_rnn_head_inputs(
    slots: Float[Tensor, "T B H S"], state: tuple[Tensor, ...], episode_starts: Bool[Tensor, "T B"]
) -> HeadInputs:
    """What the matrices of `fast_rnn_heads` were given when it ran: all W, then all R; one for each head and gate."""
    _, recurrent, y, *_ = state
    heads, own = _fast_rnn_program(slots, state)
    z, _ = run_heads(heads, episode_starts)
    outputs, _ = fast_rnn_scan(*own, z.unflatten(2, (-1, recurrent.shape[2])), state[1:], episode_starts)
    k, v, beta = own
    query = last_outputs(outputs, y, episode_starts).softmax(-1)[..., None, :].expand(k.shape)
    query, k, v = (x.flatten(2, 3) for x in (query, k, v))
    return side_by_side([heads, HeadInputs(query, k, v, beta.flatten(2), None, recurrent.flatten(1, 2), "delta")])


def _fast_rnn_program(slots: Tensor, state: tuple[Tensor, ...]) -> tuple[HeadInputs, tuple[Tensor, Tensor, Tensor]]:
    """What W is given, one matrix for each head and gate; and keys, values and strengths of R."""
    matrices = state[0]
    _, _, n_gates, key_size, value_size = matrices.shape
    gates = [n_gates * size for size in (key_size, value_size, 1, value_size, value_size, 1)]
    q, *rest = slots.to(matrices.dtype).split([key_size, *gates], dim=-1)
    k, v, b, own_k, own_v, own_b = (x.unflatten(-1, (n_gates, -1)) for x in rest)
    q = q.softmax(-1)[..., None, :].expand(k.shape)
    q, k, v = (x.flatten(2, 3) for x in (q, k.softmax(-1), v))
    heads = HeadInputs(q, k, v, torch.sigmoid(b).flatten(2), None, matrices.flatten(1, 2), "delta")
    return heads, (own_k.softmax(-1), own_v, torch.sigmoid(own_b)[..., 0])


def inner_starts(episode_starts: Bool[Tensor, "T B"], n_steps: int) -> Bool[Tensor, "nT B"]:
    """The starts of a sequence in which each step is made of several: before the first of them only."""
    return F.pad(episode_starts[:, None], (0, 0, 0, n_steps - 1)).flatten(0, 1)


def last_outputs(
    outputs: Float[Tensor, "T B H V"], before: Float[Tensor, "B H V"], episode_starts: Bool[Tensor, "T B"]
) -> Float[Tensor, "T B H V"]:
    """What was put out at the step before each step; 0 at a start."""
    return torch.cat([before[None], outputs[:-1]]).masked_fill(episode_starts[..., None, None], 0.0)


def side_by_side(parts: list[HeadInputs]) -> HeadInputs:
    """Matrices with the same rule and values, and without decay, as heads of one memory; shorter keys get zeros."""
    size = max(part.k.shape[-1] for part in parts)

    def padded(name: str) -> Tensor:
        return torch.cat([F.pad(x := getattr(part, name), (0, size - x.shape[-1])) for part in parts], dim=2)

    return HeadInputs(
        q=padded("q"),
        k=padded("k"),
        v=torch.cat([part.v for part in parts], dim=2),
        beta=torch.cat([part.beta for part in parts], dim=2),
        log_decay=None,
        state=torch.cat([F.pad(part.state, (0, 0, 0, size - part.state.shape[2])) for part in parts], dim=1),
        rule=parts[0].rule,
    )


def normalised_reads(y: Float[Tensor, "T B H V"]) -> Float[Tensor, "T B Y"]:
    """What the heads read, side by side, each scaled to a mean square of 1, as in `fast_weight_heads`."""
    value_size = y.shape[-1]
    return unit(y.flatten(-2), value_size, epsilon=READ_EPSILON * value_size, length=value_size**0.5)


def empty_fast_weights(config: FastWeightConfig, like: Tensor, batch_size: int) -> Float[Tensor, "B H K V"]:
    """Fast weights that hold nothing, of the dtype and on the device of `like`."""
    return like.new_zeros(batch_size, config.n_heads, config.key_size, config.value_size)


def spaced_time_constants(n_heads: int, shortest: float, longest: float) -> Float[Tensor, " H"]:
    """One time constant (steps) for each head, spaced logarithmically: some heads start short, some long."""
    if n_heads == 1:
        return torch.tensor([math.sqrt(shortest * longest)])
    return torch.logspace(math.log10(shortest), math.log10(longest), n_heads)


def present_values(n_heads: int) -> Float[Tensor, " H"]:
    """How much of the present value each head adds to what it reads, at the start.

    The half of the heads that forgets first takes the present value away: what is left is change, such as a velocity.
    """
    skip = torch.zeros(n_heads)
    skip[: n_heads // 2] = -1.0
    return skip


def write_to_first_row(key_biases: Float[Tensor, " HK"], config: DelayHeadsConfig) -> None:
    """Let delay heads write under row 0 at the start, for the most part: then row i holds what was written i steps ago.

    Changes the biases of the keys of all heads, side by side, in place.
    """
    key_biases[: config.delay_heads * config.key_size : config.key_size] += 1.0


def write_strength_bias(n_heads: int, key_size: int, largest: float) -> Float[Tensor, " H"]:
    """Bias b such that `largest * sigmoid(b)` gives each head its time constant at the start.

    With random unit keys a write of strength beta erases a stored value by 1 - beta / K per step, so beta = K / tau
    remembers for about tau steps: a forget-gate bias for the delta rule.
    """
    tau = spaced_time_constants(n_heads, 16.0, 1024.0)
    beta = (key_size / tau).clamp(max=largest / 2)
    return torch.logit(beta / largest)


def require_delay_heads(config: DelayHeadsConfig) -> None:
    """Raise a `ValueError` unless so many heads can be delay heads."""
    if not 0 <= config.delay_heads <= config.n_heads:
        raise ValueError(f"delay_heads={config.delay_heads} must lie between 0 and n_heads={config.n_heads}")


def require_positive_sizes(input_size: int, config: MemoryConfig) -> None:
    """Raise one `ValueError` that names the input size and every whole number of the config below 1."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    sizes = {name: value for name, value in values.items() if type(value) is int}
    require_positive(input_size=input_size, **sizes)


def require_positive(**sizes: int) -> None:
    """Raise one `ValueError` that names every size below 1."""
    wrong = [f"{name}={value}" for name, value in sizes.items() if value < 1]
    if wrong:
        raise ValueError(f"sizes must be at least 1, got {', '.join(wrong)}")
