"""What is in a memory: what its fast weights hold, what a read consists of, and how far back its gradient reaches.

    trace = inspect_memory(memory, inputs)         # a memory of fast weights, or attention
    trace.retrieval[t, b, h]                       # how much of each value written before is in the read of step t
    print(audit_gradients(memory, inputs))         # any memory

A fast-weight memory of first order has an exact retrieval map: what is read is linear in what was written,

    y_t = S_t^T q_t = sum_s a_ts v_s + c_t
    a_ts = beta_s k_s^T A_{s+1} ... A_t q_t,     A_s = P^T alpha_s (I - beta_s k_s k_s^T)

(A_s = P^T alpha_s for the additive rule; alpha_s is a diagonal matrix where each channel of the keys fades at its own
rate; P moves the rows of a delay head down by one and is 1 for other heads; c_t is what is left of the initial state).
It is to a memory of fixed size what the attention map is to a transformer; that of the memory `attention`,
a_ts = softmax_s(q_t . k_s / sqrt(K)), is read in the same way. Nothing like it exists for an LSTM.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fwp_rl.layers import AttentionInputs, FastWeightBlock, HeadInputs, ResidualBlock, inner_starts
from fwp_rl.memory import Memory
from fwp_rl.ops import fast_weight_scan
from fwp_rl.ops._delay import in_moving_frame, moved
from fwp_rl.ops.fast_weight_heads import READ_EPSILON
from fwp_rl.ops.fast_weight_scan import Rule
from fwp_rl.stack import MemoryStack
from fwp_rl.state import State, map_state


@runtime_checkable
class Inspectable(Protocol):
    """A memory that can be looked into: it tells what its heads are given.

    For a memory whose heads hear what was read before, these are what they were given when it ran over the sequence;
    a memory with several matrices for each head lays them side by side on the axis of heads, and one with n writes for
    each input has n T steps.
    """

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """Queries, keys, values and gates at every step; for the arguments see `Memory.scan`."""


@runtime_checkable
class Attentive(Protocol):
    """A memory that keeps steps and attends to them, which can be looked into."""

    def attention_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> AttentionInputs:
        """Queries, keys, values and what is allowed; for the arguments see `Memory.scan`."""


@dataclass(frozen=True, kw_only=True)
class MemoryTrace:
    """A fast-weight memory over a sequence; everything in the dtype of the memory, without gradient.

    T is the number of writes: `n_inner` for each input. What costs time is computed when it is asked for. The retrieval
    map is exact:

        reads[t, b, h] = sum_s retrieval[t, b, h, s] v[s, b, h] + from_state[t, b, h]
    """

    q: Float[Tensor, "T B H K"]
    """Queries, as the memory computed them; of length 1 for most."""
    k: Float[Tensor, "T B H K"]
    """Keys, as the memory computed them; of length 1 for most."""
    v: Float[Tensor, "T B H V"]
    """Values, as the memory computed them."""
    beta: Float[Tensor, "T B H"]
    """Write strength: with the delta rule, the fraction of what its key recalls that a write replaces."""
    decay: Float[Tensor, "T B H"] | Float[Tensor, "T B H K"]
    """The fraction of the fast weights, or of each of their K rows, that is left before the write; 1 where the memory
    does not fade."""
    rule: Rule
    """Of the writes: "delta" or "additive"."""
    state: Float[Tensor, "B H K V"]
    """The fast weights before the first step."""
    episode_starts: Bool[Tensor, "T B"]
    """Where the fast weights were emptied before the step."""
    n_inner: int
    """Steps of the trace for each input of the memory."""
    delay_heads: int
    """The first heads, whose fast weights move down one row before each input: what was written under row 0 i inputs
    ago lies in row i."""
    recalled: Float[Tensor, "T B H V"]
    """S'_t^T k_t: what the key recalls before the write."""
    reads: Float[Tensor, "T B H V"]
    """S_t^T q_t, before any normalisation."""

    @cached_property
    def written(self) -> Float[Tensor, "T B H V"]:
        """What is added under the key: S_t = S'_t + k_t written_t^T."""
        correction = self.v - self.recalled if self.rule == "delta" else self.v
        return self.beta[..., None] * correction

    @cached_property
    def fast_weights(self) -> Float[Tensor, "T B H K V"]:
        """S_t, after the write of the step."""
        state, states, any_start = self.state, [], self.episode_starts.any(1).tolist()
        fades = bool((self.decay != 1).any())
        for t in range(len(self.k)):
            if any_start[t]:
                state = state.masked_fill(self.episode_starts[t, :, None, None, None], 0.0)
            if self._moves(t):
                state = moved(state, self.delay_heads, 1)
            if fades:
                state = state * self._row_decay[t, ..., None]
            state = state + self.k[t, ..., None] * self.written[t, ..., None, :]
            states.append(state)
        return torch.stack(states)

    @cached_property
    def norms(self) -> Float[Tensor, "T B H"]:
        """Frobenius norm of S_t."""
        return torch.linalg.matrix_norm(self.fast_weights)

    @cached_property
    def singular_values(self) -> Float[Tensor, "T B H R"]:
        """Singular values of S_t, largest first; R = min(K, V)."""
        broken = ~self.fast_weights.isfinite().all(-1).all(-1, keepdim=True)  # of which nothing is known
        values = torch.linalg.svdvals(self.fast_weights.masked_fill(broken[..., None], 0.0))
        return values.masked_fill(broken, torch.nan)

    @cached_property
    def key_overlap(self) -> Float[Tensor, "T B H T"]:
        """k_t . k_s at `[t, b, h, s]`, the cosine of unit keys; 0 for later steps and across a start.

        Of a delay head k_t . P^n k_s, with the row to which n moves brought what was written under k_s.
        """
        k = in_moving_frame(self.k, self.delay_heads, self.n_inner)
        return torch.einsum("tbhk,sbhk->tbhs", k, k).masked_fill(self._other, 0.0)

    @cached_property
    def surprise(self) -> Float[Tensor, "T B H"]:
        """|v_t - S'_t^T k_t|: how far what the key recalls, before the write, is from what is to be stored."""
        return (self.v - self.recalled).norm(dim=-1)

    @cached_property
    def erased(self) -> Float[Tensor, "T B H"]:
        """The part of S_{t-1} that the step takes away, by decay and by the write: the norm of what it takes, divided
        by the norm of S_{t-1}; 0 where that was empty. More than 1 is possible only with beta > 1.
        """
        before = torch.cat([self.state[None], self.fast_weights[:-1]])
        if self.delay_heads:
            before = torch.stack([moved(x, self.delay_heads, 1) if self._moves(t) else x for t, x in enumerate(before)])
        before = before.masked_fill(self.episode_starts[..., None, None, None], 0.0)
        taken = before - before * self._row_decay[..., None]
        if self.rule == "delta":
            taken = taken + self.k[..., None] * (self.beta[..., None] * self.recalled)[..., None, :]
        norm = torch.linalg.matrix_norm(before)
        return (torch.linalg.matrix_norm(taken) / norm).masked_fill(norm == 0, 0.0)

    @cached_property
    def retrieval(self) -> Float[Tensor, "T B H T"]:
        """The weight of value s in read t at `[t, b, h, s]`; exactly 0 for later steps and across a start."""
        return self._sent_back[0].masked_fill(self._other, 0.0)

    @cached_property
    def from_state(self) -> Float[Tensor, "T B H V"]:
        """What is left of the initial state in read t; exactly 0 after a start."""
        unread = torch.einsum("tbhk,bhkv->tbhv", self._sent_back[1], self.state)
        return unread.masked_fill((self.episode_starts.cumsum(0) != 0)[:, :, None, None], 0.0)

    def largest(self, values: Float[Tensor, "T B H"]) -> Float[Tensor, "N B H"]:
        """The largest of the `n_inner` steps of each input."""
        return values.unflatten(0, (-1, self.n_inner)).amax(1)

    @cached_property
    def contributions(self) -> Float[Tensor, "N B H N"]:
        """How much of the reads for input t was written at input s, at `[t, b, h, s]`; N = T / n_inner inputs.

        The norm of sum_j retrieval[t, b, h, j] v[j, b, h] over the writes j of input s, in the units of the values; if
        several inner steps read, the root of the sum of squares.
        """
        retrieval = self.retrieval.unflatten(-1, (-1, self.n_inner))  # [T, B, H, N, n]
        v = self.v.unflatten(0, (-1, self.n_inner))  # [N, n, B, H, V]
        gram = torch.einsum("sibhv,sjbhv->bhsij", v, v)
        squares = torch.einsum("tbhsi,tbhsj,bhsij->tbhs", retrieval, retrieval, gram)
        return squares.unflatten(0, (-1, self.n_inner)).sum(1).clamp(min=0).sqrt()

    @property
    def _row_decay(self) -> Float[Tensor, "T B H K"] | Float[Tensor, "T B H 1"]:
        """The decay of each row of S, or of all of them."""
        return self.decay if self.decay.ndim == 4 else self.decay[..., None]

    @cached_property
    def _other(self) -> Bool[Tensor, "T B 1 T"]:
        """Steps that are later, or in another episode."""
        episode = self.episode_starts.cumsum(0)  # [T, B], 0 before the first start
        earlier = torch.ones(len(episode), len(episode), dtype=torch.bool, device=episode.device).tril()
        return ~((episode[:, :, None] == episode.T) & earlier[:, None])[:, :, None]

    @cached_property
    def _sent_back(self) -> tuple[Float[Tensor, "T B H T"], Float[Tensor, "T B H K"]]:
        """The weights of all values in all reads, and what is left to ask of the initial state: every query is sent
        back through the steps, as if there were no starts.

        S_t^T q = S'^T (q - a k) + a v with a = beta k . q, or S'^T q + a v for the additive rule.
        """
        query = self.q.clone()  # [T, B, H, K]
        weights = query.new_zeros(*query.shape[:3], len(query))
        for s in reversed(range(len(query))):
            later = query[s:]
            weight = self.beta[s] * (self.k[s] * later).sum(-1)
            weights[s:, :, :, s] = weight
            if self.rule == "delta":
                later = later - weight[..., None] * self.k[s]
            later = self._row_decay[s] * later
            if self._moves(s):
                later = moved(later.flatten(0, 1)[..., None], self.delay_heads, -1)[..., 0].view_as(later)
            query[s:] = later
        return weights, query

    def _moves(self, t: int) -> bool:
        """Whether delay heads move before step t."""
        return self.delay_heads > 0 and t % self.n_inner == 0


@dataclass(frozen=True, kw_only=True)
class AttentionTrace:
    """An attention memory over a sequence; everything in the dtype of the memory, without gradient.

    Its retrieval map is its attention map, without the steps that came with the state; exact, as that of `MemoryTrace`:

        reads[t, b, h] = sum_s retrieval[t, b, h, s] v[s, b, h] + from_state[t, b, h]
    """

    v: Float[Tensor, "T B H V"]
    """Values."""
    retrieval: Float[Tensor, "T B H T"]
    """The weight of value s in read t at `[t, b, h, s]`; exactly 0 for later steps, across a start, and for steps that
    have left the window."""
    from_state: Float[Tensor, "T B H V"]
    """The part of the reads that comes from steps in the state."""
    reads: Float[Tensor, "T B H V"]
    """sum_s a_ts v_s over all steps."""

    @cached_property
    def contributions(self) -> Float[Tensor, "T B H T"]:
        """How much of read t was kept from step s, at `[t, b, h, s]`: the norm of retrieval[t, b, h, s] v[s, b, h]."""
        return (self.retrieval * self.v.norm(dim=-1).permute(1, 2, 0)).masked_fill(self.retrieval == 0, 0.0)


def inspect_memory(
    memory: Memory,
    inputs: Float[Tensor, "T B D"],
    state: State | None = None,
    episode_starts: Bool[Tensor, "T B"] | None = None,
    *,
    block: int = 0,
) -> MemoryTrace | AttentionTrace:
    """Run a memory of fast weights, or of attention, over a sequence and keep everything that its heads did.

    :param memory: A memory with the method of `Inspectable` or that of `Attentive`, or a stack of them.
    :param state: As for `Memory.scan`; None: the initial state.
    :param episode_starts: As for `Memory.scan`; None: no starts.
    :param block: Of a stack, the memory to look into, counted from the inputs.
    """
    state, episode_starts = _complete(memory, inputs, state, episode_starts)
    blocks = memory_blocks(memory)
    if not 0 <= block < len(blocks):
        raise ValueError(f"block must be a number from 0 to {len(blocks) - 1}, got {block}")
    inspected = blocks[block]
    if not isinstance(inspected, Inspectable | Attentive):
        raise TypeError(
            "memory must be one of fast weights, with a method head_inputs, or of attention, with attention_inputs, "
            f"got {type(inspected).__qualname__}; audit_gradients takes any memory"
        )
    with torch.no_grad():
        if isinstance(memory, MemoryStack):
            for below, below_state in zip(blocks[:block], state, strict=False):
                inputs, _ = below.scan(inputs, below_state, episode_starts)
            state = state[block]
        if isinstance(inspected, Attentive):
            return trace_attention(inspected.attention_inputs(inputs, state, episode_starts))
        heads = inspected.head_inputs(inputs, state, episode_starts)
        n_inner = len(heads.q) // len(inputs)
        return trace_heads(heads, inner_starts(episode_starts, n_inner), n_inner=n_inner)


def memory_blocks(memory: Memory) -> list[Memory]:
    """The memories of a stack, from the inputs to the outputs; of any other memory, itself."""
    if isinstance(memory, MemoryStack):
        return [block for block in memory.blocks if isinstance(block, Memory)]
    return [memory]


def read_out(block: FastWeightBlock | ResidualBlock, trace: MemoryTrace | AttentionTrace) -> Float[Tensor, "T B T"]:
    """How much of what this block gets from its heads at step t was written at step s.

    The norm of sum_h R_h retrieval[t, b, h, s] v[s, b, h] / rms(y_h), where R_h are the columns of the readout for head
    h, and y_h is what the head puts out; attention does not divide. Unlike `MemoryTrace.contributions` it does not
    count what a head reads and the block ignores. The share of the present value that goes past the fast weights is not
    in it.

    :param block: The one that the trace is of: a `FastWeightBlock`, or the block of attention.
    """
    with torch.no_grad():
        weights = trace.retrieval
        if isinstance(block, FastWeightBlock):
            outputs = trace.reads + block.skip[:, None] * trace.v
            weights = (outputs.square().mean(-1) + READ_EPSILON).rsqrt()[..., None] * weights
        columns = block.readout.weight.unflatten(1, trace.v.shape[2:])
        given = torch.einsum("whv,sbhv->bshw", columns, trace.v)
        gram = torch.einsum("bshw,bsgw->bshg", given, given)
        return torch.einsum("tbhs,tbgs,bshg->tbs", weights, weights, gram).clamp(min=0).sqrt()


def trace_heads(heads: HeadInputs, episode_starts: Bool[Tensor, "T B"], *, n_inner: int = 1) -> MemoryTrace:
    """The same for given inputs of the heads: what would the fast weights do with these keys and values?"""
    if heads.rule not in ("delta", "additive"):
        raise ValueError(f"rule must be 'delta' or 'additive' to have a retrieval map, got {heads.rule!r}")
    with torch.no_grad():
        heads = HeadInputs(*(x.detach() if isinstance(x, Tensor) else x for x in heads))  # type: ignore[arg-type]  # in order
        recalled, reads = _run(heads, episode_starts, n_inner)
        return MemoryTrace(
            q=heads.q,
            k=heads.k,
            v=heads.v,
            beta=heads.beta,
            decay=torch.ones_like(heads.beta) if heads.log_decay is None else heads.log_decay.exp(),
            rule=heads.rule,
            state=heads.state,
            episode_starts=episode_starts,
            n_inner=n_inner,
            delay_heads=heads.delay_heads,
            recalled=recalled,
            reads=reads,
        )


def trace_attention(heads: AttentionInputs) -> AttentionTrace:
    """The same of attention: what would be read with these queries, keys and values?"""
    with torch.no_grad():
        q, k, v, allowed = (x.detach() for x in heads)
        allowed = allowed[:, :, None]
        logits = torch.einsum("tbhk,sbhk->tbhs", q, k) / math.sqrt(q.shape[-1])
        weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1).masked_fill(~allowed, 0.0)
        n_past = len(k) - len(q)
        from_state = _weighted(weights[..., :n_past], v[:n_past])
        return AttentionTrace(
            v=v[n_past:],
            retrieval=weights[..., n_past:],
            from_state=from_state,
            reads=from_state + _weighted(weights[..., n_past:], v[n_past:]),
        )


def _weighted(weights: Float[Tensor, "T B H S"], v: Float[Tensor, "S B H V"]) -> Float[Tensor, "T B H V"]:
    """Sums of values, to which those with weight 0 add nothing even if they are no numbers."""
    broken = ~v.isfinite().all(-1)
    sums = torch.einsum("tbhs,sbhv->tbhv", weights, v.masked_fill(broken[..., None], 0.0))
    hit = ((weights != 0) & broken.permute(1, 2, 0)).any(-1)
    return sums.masked_fill(hit[..., None], torch.nan)


@dataclass(frozen=True, kw_only=True)
class GradientAudit:
    """How far back the gradient of the last step reaches; print it."""

    what: str
    """What was differentiated."""
    norms: Float[Tensor, " T"]
    """Norm of the gradient with respect to the input n steps before, at `[n]`; root mean square over the rows."""
    threshold: float
    """Relative to the largest of `norms`; what is smaller counts as nothing."""

    @property
    def reach(self) -> int:
        """The largest n whose gradient is above the threshold; 0 if only the present counts."""
        above = (self.norms > self.threshold * self.norms.max()).nonzero()
        return int(above[-1]) if len(above) else 0

    def __str__(self) -> str:
        """One line for n = 0, 1, 2, 4, 8, ... with a bar on a logarithmic scale, and the reach."""
        steps, largest = len(self.norms), float(self.norms.max())
        lines = [f"gradient of {self.what} with respect to the input n steps before"]
        for n in sorted({0, steps - 1, *(2**power for power in range(steps.bit_length()) if 2**power < steps)}):
            norm = float(self.norms[n])
            # four characters for a factor of ten, down to a millionth
            length = round(4 * (6 + math.log10(norm / largest))) if norm > 0 else 0
            lines.append(f"  n = {n:<5d} {norm:8.1e}  {'#' * max(length, 0)}".rstrip())
        if self.reach == steps - 1:
            lines.append(f"reach: {self.reach} steps, all of the sequence")
        else:
            lines.append(
                f"reach: {self.reach} of {steps - 1} steps; further back less than {self.threshold:g} of the largest"
            )
        return "\n".join(lines)


def audit_gradients(
    memory: Memory,
    inputs: Float[Tensor, "T B D"],
    state: State | None = None,
    episode_starts: Bool[Tensor, "T B"] | None = None,
    *,
    threshold: float = 1e-3,
) -> GradientAudit:
    """Measure how far back the gradient of the last outputs reaches, n = 0 ... T - 1 steps.

    The norm is the Frobenius norm of the Jacobian d outputs[T - 1, b] / d inputs[T - 1 - n, b]: one backward pass for
    each unit of the output. A gradient that is cut on the way, by a detached state or a kernel that returns none, shows
    as zeros; a memory that forgets, as a decay. For a policy see `fwp_rl.sb3.audit_policy`.

    :param memory: Any memory.
    :param state: As for `Memory.scan`; None: the initial state.
    :param episode_starts: As for `Memory.scan`; None: no starts.
    :param threshold: Relative to the largest norm; decides what `reach` counts.
    """
    state, episode_starts = _complete(memory, inputs, state, episode_starts)
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        outputs = memory.scan(inputs, map_state(torch.Tensor.detach, state), episode_starts)[0][-1]
        return gradient_audit(f"the last outputs of {len(inputs)} steps", outputs, inputs, threshold)


def gradient_audit(
    what: str, last: Float[Tensor, "B O"], inputs: Float[Tensor, "T B D"], threshold: float
) -> GradientAudit:
    """The audit of what was computed from `inputs`, row by row, at the last of its steps."""
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    squares = torch.zeros(len(inputs), dtype=torch.float64)
    if last.requires_grad:
        for unit in last.unbind(-1):
            # Rows are strangers, so one pass serves all of them.
            (gradient,) = torch.autograd.grad(unit.sum(), inputs, retain_graph=True, materialize_grads=True)
            squares += gradient.double().square().sum(-1).mean(-1).cpu()
    return GradientAudit(what=what, norms=squares.sqrt().flip(0), threshold=threshold)


def _complete(
    memory: Memory, inputs: Tensor, state: State | None, episode_starts: Tensor | None
) -> tuple[State, Tensor]:
    """The state and the starts to use, after a check of what was given."""
    if inputs.ndim != 3 or inputs.shape[-1] != memory.input_size or not inputs.numel():
        raise ValueError(f"inputs must be [T, B, {memory.input_size}], at least one step, got {list(inputs.shape)}")
    if state is None:
        state = memory.initial_state(inputs.shape[1])
    if episode_starts is None:
        episode_starts = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    if episode_starts.shape != inputs.shape[:2] or episode_starts.dtype != torch.bool:
        raise ValueError(
            f"episode_starts must be bool {list(inputs.shape[:2])}, "
            f"got {episode_starts.dtype} {list(episode_starts.shape)}"
        )
    return state, episode_starts


def _run(heads: HeadInputs, episode_starts: Tensor, n_inner: int) -> tuple[Tensor, Tensor]:
    """S'_t^T k_t and S_t^T q_t, from one run of the operator: before each step, one that only reads with its key."""

    def alternate(before: Tensor, step: Tensor) -> Tensor:
        return torch.stack([before, step], dim=1).flatten(0, 1)

    q, k, v, beta, log_decay, state, rule, delay_heads = heads
    reads, _ = fast_weight_scan(
        alternate(k, q),
        alternate(k, k),
        alternate(v, v),
        alternate(torch.zeros_like(beta), beta),
        state,
        inner_starts(episode_starts, 2),
        log_decay=None if log_decay is None else alternate(log_decay, torch.zeros_like(log_decay)),
        rule=rule,
        delay_heads=delay_heads,
        n_inner=2 * n_inner,
    )
    return reads[::2], reads[1::2]
