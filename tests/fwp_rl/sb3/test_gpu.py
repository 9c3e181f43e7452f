"""On a GPU the same comes out as on the CPU, for every memory, from the scan to the trained policy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from fwp_rl.memory import Memory
from fwp_rl.sb3 import MemoryPPO
from fwp_rl.state import State, map_state, state_leaves
from fwp_rl.testing import Trial
from tests.fwp_rl.sb3.gpu_memories import MEMORIES

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
TOLERANCE = 1e-4
"""Relative to the largest entry: float32 against float64, over a sequence and its gradients."""


def values_and_gradients(memory: Memory, inputs: Tensor, state: State, starts: Tensor) -> dict[str, Tensor]:
    leaves = {f"gradient of {name}": parameter for name, parameter in memory.named_parameters()}
    leaves["gradient of the inputs"] = inputs = inputs.detach().requires_grad_()
    outputs, final = memory.scan(inputs, state, starts)
    found = {"outputs": outputs} | {f"state {i}": leaf for i, leaf in enumerate(state_leaves(final))}
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype, device=outputs.device).cos()
    loss = (outputs.flatten() * weights).sum() + sum(leaf.square().sum() for leaf in state_leaves(final))
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return found | {name: x for name, x in zip(leaves, gradients, strict=True) if x is not None}


# Red if a kernel for GPUs, or what surrounds it, computes something else than the CPU.
@pytest.mark.parametrize("name", list(MEMORIES))
def test_scan_and_gradients_are_those_of_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    trial = Trial(MEMORIES[name].build, 9)
    expected = values_and_gradients(trial.memory, trial.inputs, trial.state, trial.episode_starts)
    memory, inputs, state = trial.in_dtype(torch.float32)
    state, starts = map_state(lambda leaf: leaf.to(GPU), state), trial.episode_starts.to(GPU)
    found = values_and_gradients(memory.to(GPU), inputs.to(GPU), state, starts)
    assert found.keys() == expected.keys()
    for what, value in expected.items():
        assert found[what].is_cuda
        error = (found[what].cpu() - value).abs().max() / value.abs().max().clamp(min=1e-3)
        assert error < TOLERANCE, f"{what}: {error:.1e}"


# Red if the one step of a rollout takes another way than the sequence, without gradients and with them.
@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("name", list(MEMORIES))
def test_steps_are_the_scan(name: str, with_grad: bool) -> None:
    torch.manual_seed(0)
    memory, inputs, state = Trial(MEMORIES[name].build, 9).in_dtype(torch.float32)
    memory, inputs, state = memory.to(GPU), inputs.to(GPU), map_state(lambda leaf: leaf.to(GPU), state)
    starts = torch.rand(inputs.shape[:2], device=GPU) < 0.2
    with torch.set_grad_enabled(with_grad):
        outputs, _ = memory.scan(inputs, state, starts)
        for t, expected in enumerate(outputs):
            output, state = memory.step(inputs[t], state, starts[t])
            torch.testing.assert_close(output, expected, rtol=TOLERANCE, atol=TOLERANCE)


# Red if training leaves a tensor on the wrong device, or an agent trained on a GPU acts otherwise on a CPU.
@pytest.mark.parametrize("name", list(MEMORIES))
def test_an_agent_trained_on_a_gpu_acts_the_same_on_a_cpu(name: str, random_envs: Callable, tmp_path: Path) -> None:
    env: DummyVecEnv = random_envs(spaces.Box(-1, 1, (5,)), spaces.Discrete(4))
    kwargs = {"memory": MEMORIES[name]}
    model = MemoryPPO("MlpPolicy", env, n_steps=32, seed=0, device=GPU, policy_kwargs=kwargs).learn(192)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    model.save(tmp_path / "model.zip")
    with_cpu = MemoryPPO.load(tmp_path / "model.zip", device="cpu")
    states, rng = [None, None], np.random.default_rng(0)
    for t in range(9):
        observation = rng.normal(size=(3, 5)).astype(np.float32)
        starts = np.array([t == 0, t == 4, False])
        logits = []
        for i, agent in enumerate((model, with_cpu)):
            tensor, _ = agent.policy.obs_to_tensor(observation)
            state = states[i] if states[i] is not None else agent.policy.initial_state(3)
            flags = torch.as_tensor(starts, device=agent.device)
            with torch.no_grad():
                distribution, states[i] = agent.policy.get_distribution(tensor, state, flags)
            logits.append(distribution.distribution.logits.cpu())
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)
