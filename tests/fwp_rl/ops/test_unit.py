"""`unit`: both implementations against the formula, on every layout that the memories hand in."""

import pytest
import torch
from torch import Tensor

from fwp_rl.ops import unit


def formula(x: Tensor, size: int, epsilon: float, length: float) -> Tensor:
    vectors = x.unflatten(-1, (-1, size))
    return (length * vectors / (vectors.square().sum(-1, keepdim=True) + epsilon).sqrt()).flatten(-2)


@pytest.fixture(params=["numba", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FWP_RL_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("size", [1, 3, 8, 13, 32])  # below, at, above and off the width of a tile
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_the_formula(backend: str, size: int, groups: int) -> None:
    """Catches groups that mix, a tail that is left out, and a wrong scale, forward and backward."""
    x = torch.randn(5, 2, groups * size, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    y, expected = unit(x, size, epsilon=0.1, length=3.0), formula(x, size, 0.1, 3.0)
    assert torch.allclose(y, expected, atol=1e-12)
    ours, theirs = (torch.autograd.grad(z, x, grad)[0] for z in (y, expected))
    assert torch.allclose(ours, theirs, atol=1e-12)


def layouts() -> dict[str, Tensor]:
    base = torch.randn(4, 3, 48)
    return {
        "slice of a projection": base[..., 8:24],
        "one step": base[:1, :, 16:32],
        "one row": base[:, :1, :16],
        "transposed": base.transpose(0, 1)[..., :16],
        "not dense": base[..., ::3],
        "expanded": base[:1, :1, :16].expand(4, 3, 16),
        "vector": base[0, 0, :16],
        "empty": base[:0, :, :16],
    }


@pytest.mark.parametrize("layout", layouts())
def test_any_layout(backend: str, layout: str) -> None:
    """Catches strides that are taken for granted, of the input and of the gradient."""
    x = layouts()[layout].requires_grad_()
    grad = layouts()[layout].detach()
    y, expected = unit(x, 8), formula(x, 8, 1e-6, 1.0)
    assert torch.allclose(y, expected, atol=1e-6)
    ours, theirs = (torch.autograd.grad(z, x, grad)[0] for z in (y, expected))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_same_with_and_without_gradient(backend: str) -> None:
    """Rollout and update must agree to the last bit."""
    x = torch.randn(7, 64)
    assert torch.equal(unit(x, 32), unit(x.clone().requires_grad_(), 32))


def test_zero_and_not_a_number(backend: str) -> None:
    """Zero has a finite gradient; what is not a number stays visible, in its own vector only."""
    x = torch.zeros(2, 16, requires_grad=True)
    unit(x, 8).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    x = torch.ones(1, 16)
    x[0, 3] = float("nan")
    assert unit(x, 8).isnan().tolist() == [[True] * 8 + [False] * 8]


def test_half_precision_is_widened(backend: str) -> None:
    assert unit(torch.ones(1, 8, dtype=torch.bfloat16), 8).dtype == torch.float32


def test_sizes_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of size=5"):
        unit(torch.ones(2, 8), 5)
