"""How far back the gradient of a policy reaches."""

import torch
from gymnasium import spaces
from torch import Tensor, nn

from fwp_rl.inspection import GradientAudit, gradient_audit
from fwp_rl.sb3.buffers import SequenceBatch
from fwp_rl.sb3.policies import MemoryActorCriticPolicy


def audit_policy(
    policy: MemoryActorCriticPolicy, batch: SequenceBatch, actions: Tensor, *, threshold: float = 1e-3
) -> GradientAudit:
    """Measure how far back the gradient of the last step's log-probability reaches, n = 0 ... L - 1 steps.

    The norm is that of d log pi(a_L | ...) / d x_{L - n}, where x is what memory and heads read: the encoded
    observation. With a minibatch of a trained model:

        samples = next(model.rollout_buffer.get(model.batch_size))
        print(audit_policy(model.policy, samples.observations, samples.actions))

    :param batch: The sequences, as in training. Where an episode starts within one, its gradient ends there.
    :param actions: `[L * B, ...]`, time-major, as in the buffer.
    :param threshold: Relative to the largest norm; decides what `reach` counts.
    """
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()  # as SB3's PPO does
    encoded: list[Tensor] = []

    def begin_here(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        sequences = output.detach().unflatten(0, batch.episode_starts.shape).requires_grad_()
        encoded.append(sequences)
        return sequences.flatten(0, 1)

    # The encoder runs once for all steps: behind it begins the graph.
    with torch.enable_grad(), policy.encoder.register_forward_hook(begin_here):
        _, log_prob, _ = policy.evaluate_actions(batch, actions)
        last = log_prob.unflatten(0, batch.episode_starts.shape)[-1]
        what = f"the log-probability of the last of {len(batch.episode_starts)} actions"
        return gradient_audit(what, last[:, None], encoded[0], threshold)
