"""What the memory of an agent does while it learns, in a few numbers.

    sample = RolloutSample.of(model)            # when a rollout is complete
    numbers = diagnose(model.policy, sample)    # after the update that learned from it

Small on purpose: `N_ROWS` environments of the last sequence of a rollout, of which the fast weights are followed for
`N_STEPS` steps. Draws no random numbers and changes nothing, so that training with it is training without it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fwp_rl.inspection import Inspectable, MemoryTrace, inspect_memory, memory_blocks
from fwp_rl.sb3.audit import audit_policy
from fwp_rl.sb3.buffers import SequenceBatch, SequenceRolloutBuffer
from fwp_rl.sb3.policies import MemoryActorCriticPolicy
from fwp_rl.sb3.ppo import MemoryPPO
from fwp_rl.state import State, select_rows, state_leaves

N_ROWS = 4
N_STEPS = 8


@dataclass(frozen=True)
class RolloutSample:
    """The last sequences of the first environments, and where the memory was after them."""

    batch: SequenceBatch
    actions: Tensor
    final: State

    @staticmethod
    def of(model: MemoryPPO) -> "RolloutSample":
        """From the rollout that is in the buffer, complete."""
        buffer = model.rollout_buffer
        assert isinstance(buffer, SequenceRolloutBuffer)
        assert model._last_state is not None
        rows = torch.arange(min(N_ROWS, model.n_envs), device=model.device)
        last = model.n_envs * (buffer.buffer_size // buffer.sequence_length - 1)
        samples = buffer.columns(last + rows)
        assert isinstance(samples.observations, SequenceBatch)
        return RolloutSample(samples.observations, samples.actions, select_rows(model._last_state, rows))


def diagnose(policy: MemoryActorCriticPolicy, sample: RolloutSample) -> dict[str, float]:
    """Numbers of the memory, as far as it has them; of a stack, the first block for those of fast weights.

    state_norm       norm of the state at the end of the sequences (all leaves)
    state_drift      how far the update has moved that state, relative to its norm: what stored states are off by
    gradient_reach   steps over which the gradient of the last log-probability reaches (`audit_policy`)
    write_strength   beta of fast weights; this and the next two are means over heads, steps and environments
    erased           the part of the fast weights that a step takes away
    surprise         |v - S^T k|
    """
    batch, memory = sample.batch, policy.memory
    before, after = policy.actor_state(batch.state), policy.actor_state(sample.final)
    numbers = {"gradient_reach": float(audit_policy(policy, batch, sample.actions).reach)}
    if not any(True for _ in state_leaves(after)):
        return numbers
    with torch.no_grad():
        inputs = policy.encode(batch.observations).unflatten(0, batch.episode_starts.shape)
        _, final = memory.scan(inputs, before, batch.episode_starts)
        stored = _flat(after)
        norm = stored.norm(dim=1)
        numbers["state_norm"] = float(norm.mean())
        numbers["state_drift"] = float(((_flat(final) - stored).norm(dim=1) / norm.clamp(min=1e-12)).mean())
        if isinstance(memory_blocks(memory)[0], Inspectable):
            trace = inspect_memory(memory, inputs[:N_STEPS], before, batch.episode_starts[:N_STEPS])
            assert isinstance(trace, MemoryTrace)
            for name, values in (
                ("write_strength", trace.beta),
                ("erased", trace.erased),
                ("surprise", trace.surprise),
            ):
                numbers[name] = float(trace.largest(values).mean())
    return numbers


def _flat(state: State) -> Tensor:
    """All leaves side by side, `[B, N]`."""
    return torch.cat([leaf.flatten(1) for leaf in state_leaves(state)], dim=1)
