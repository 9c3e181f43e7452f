"""Where numba and Triton cannot be had, everything works, only slower."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

EVERY_MEMORY = """
import sys, warnings

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numba", "triton"):
            raise ModuleNotFoundError(f"{name} is blocked in this test", name=name)

sys.meta_path.insert(0, Blocker())
import torch
import fwp_rl

torch.manual_seed(0)
torch.set_num_threads(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name, config in fwp_rl.memory_configs().items():
        memory = config().build(5)
        inputs, state = torch.randn(6, 2, 5, requires_grad=True), memory.initial_state(2)
        starts = torch.zeros(6, 2, dtype=torch.bool)
        starts[3, 0] = True
        outputs, _ = memory.scan(inputs, state, starts)
        outputs.square().mean().backward()
        with torch.no_grad():
            for t in range(6):
                output, state = memory.step(inputs[t], state, starts[t])
                torch.testing.assert_close(output, outputs[t], atol=1e-5, rtol=1e-4, msg=name)
print(*sorted({str(warning.message).partition(",")[0] for warning in caught}), sep="\\n")
assert not {"numba", "triton"} & set(sys.modules)
"""


def test_every_memory_runs_in_torch_alone() -> None:
    """Red for a memory that reaches for a compiler without asking, or a warning for each call."""
    command = [sys.executable, "-c", EVERY_MEMORY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run several times slower" in done.stdout
    assert len(done.stdout.splitlines()) <= 2, done.stdout  # one for each operator that is compiled
