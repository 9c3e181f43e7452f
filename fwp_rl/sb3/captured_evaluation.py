"""The policy's evaluation of a minibatch; on a GPU forward and backward are one launch each."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fwp_rl.sb3.buffers import SequenceBatch
from fwp_rl.sb3.cuda_graphs import refuse_waiting, require_equal, unchecked, warn_of
from fwp_rl.sb3.policies import MemoryActorCriticPolicy


class CapturedEvaluation:
    """`policy.evaluate_actions` as two CUDA graphs, captured with the first minibatch, for others of the same shape.

    It computes with the weights as they are when it is called: optimisers and `load_state_dict` change them in place.
    What it returns is overwritten by the next call. Where nothing can be captured, everything is launched.

    :param policy: On a GPU.
    """

    def __init__(self, policy: MemoryActorCriticPolicy) -> None:
        self.policy = policy
        self._shape: torch.Size | None = None  # of the minibatches
        self._replay: Callable[..., Any] | None = None

    def __call__(self, obs: SequenceBatch, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `MemoryActorCriticPolicy.evaluate_actions`."""
        if self._shape is None:
            self._shape = obs.episode_starts.shape
            self._capture(obs, actions)
        if self._replay is not None and obs.episode_starts.shape == self._shape:
            values, log_probs, entropy = self._replay(obs, actions)
            # The entropy, too: of a logit of minus infinity the other actions know nothing.
            if math.isfinite((log_probs.sum() + entropy.sum()).item()):
                return values, log_probs, entropy
        return _launch(self.policy, obs, actions)  # also to say what is not finite

    def _capture(self, obs: SequenceBatch, actions: Tensor) -> None:
        module = _Evaluation(self.policy)
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        sample = pytree.tree_map(torch.clone, (obs, actions))  # the graph's own, which later minibatches overwrite

        others = pytree.tree_map(lambda x: x.roll(1, 0), sample)

        def outputs_and_gradients(evaluate: Callable[..., Any]) -> list[Tensor]:
            found: list[Tensor] = []
            for arguments in (sample, others):
                outputs = evaluate(*arguments)
                loss = sum(
                    (output * torch.linspace(-1, 1, len(output)).to(output).view_as(output)).sum() for output in outputs
                )
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                found += [output.detach().clone() for output in outputs]  # the next call overwrites them
                found += [x.clone() for x in gradients if x is not None]
            return found

        def forward_and_backward() -> None:
            total = sum(output.sum() for output in module(*sample))
            torch.autograd.grad(total, parameters, allow_unused=True)

        _forget_distribution(self.policy)
        try:
            expected = outputs_and_gradients(module)
            device = torch.cuda.device(self.policy.device)  # on a stream of the current one it is captured
            with device, unchecked(self.policy), warnings.catch_warnings():
                refuse_waiting(forward_and_backward)
                # PyTorch warms up on another stream than it captures on, and warns of it.
                warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
                replay = torch.cuda.make_graphed_callables(module, sample, allow_unused_input=True)
            require_equal(outputs_and_gradients(replay), expected)
        except RuntimeError as error:
            warn_of(error, "the update")
        else:
            self._replay = replay


class _Evaluation(nn.Module):
    def __init__(self, policy: MemoryActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: SequenceBatch, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        outputs = _launch(self.policy, obs, actions)
        _forget_distribution(self.policy)
        return outputs


def _launch(
    policy: MemoryActorCriticPolicy, obs: SequenceBatch, actions: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    # Not `policy.evaluate_actions`, in whose place PPO.train finds the captured one.
    return type(policy).evaluate_actions(policy, obs, actions)


def _forget_distribution(policy: MemoryActorCriticPolicy) -> None:
    # The policy keeps its last distribution, and so the autograd graph of the stream that it was made on, which makes
    # a capture on another stream fail.
    policy.action_dist.distribution = None  # type: ignore[assignment]  # until the next one
