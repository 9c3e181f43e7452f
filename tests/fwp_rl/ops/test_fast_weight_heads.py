"""`fast_weight_heads`: compiled and put together, against the formula written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fwp_rl.ops import fast_weight_heads, fast_weight_scan

HEADS = 3


@pytest.fixture(params=["numba", "reference", "chunked"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FWP_RL_BACKEND", request.param)
    return request.param


def make_inputs(
    steps: int, key_size: int, value_size: int, gated: bool | str, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projection, skip, state and starts for 5 rows; gated may be "channels"."""
    generator = torch.Generator().manual_seed(0)
    width = HEADS * (2 * key_size + value_size + 1 + (key_size if gated == "channels" else bool(gated)))
    projected = torch.randn(steps, 5, width, generator=generator, dtype=dtype)
    state = torch.randn(5, HEADS, key_size, value_size, generator=generator, dtype=dtype)
    starts = torch.rand(steps, 5, generator=generator) < 0.2
    return projected, torch.randn(HEADS, generator=generator, dtype=dtype), state, starts


def formula(
    projected: Tensor,
    skip: Tensor,
    state: Tensor,
    starts: Tensor,
    rule: str,
    gated: bool | str,
    largest: float,
    delay_heads: int = 0,
    n_inner: int = 1,
) -> tuple[Tensor, Tensor]:
    """From the definition, one head at a time."""
    _, heads, K, V = state.shape
    reads, finals = [], []
    values, gates = 2 * heads * K, heads * (2 * K + V)
    for h in range(heads):
        q = projected[..., h * K : (h + 1) * K]
        k = projected[..., (heads + h) * K : (heads + h + 1) * K]
        v = projected[..., values + h * V : values + (h + 1) * V]
        log_decay = None
        if gated:
            log_decay = -F.softplus(projected[..., gates + heads :].unflatten(-1, (heads, -1))[:, :, [h]])
        if log_decay is not None and gated != "channels":
            log_decay = log_decay[..., 0]
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
        y, final = fast_weight_scan(
            q[:, :, None],
            k[:, :, None],
            v[:, :, None],
            largest * torch.sigmoid(projected[..., gates + h, None]),
            state[:, h, None],
            starts,
            log_decay=log_decay,
            rule=rule,  # type: ignore[arg-type]  # a string of the parametrisation
            delay_heads=int(h < delay_heads),
            n_inner=n_inner,
            backend="reference",
        )
        y = y[:, :, 0] + skip[h] * v
        reads.append(y / (y.square().mean(-1, keepdim=True) + 1e-3).sqrt())
        finals.append(final[:, 0])
    return torch.cat(reads, -1), torch.stack(finals, 1)


@pytest.mark.parametrize(("key_size", "value_size"), [(16, 32), (32, 32), (32, 16), (5, 3)])
@pytest.mark.parametrize("steps", [1, 13])
@pytest.mark.parametrize("gated", [False, True, "channels"])
@pytest.mark.parametrize("rule", ["delta", "additive"])
def test_it_is_the_formula(
    backend: str, rule: str, gated: bool | str, steps: int, key_size: int, value_size: int
) -> None:
    """Catches columns that are mixed up, a gate without its factor, and each wrong gradient."""
    projected, skip, state, starts = make_inputs(steps, key_size, value_size, gated)
    projected.requires_grad_()
    skip.requires_grad_()
    state.requires_grad_()
    ours = fast_weight_heads(projected, skip, state, starts, rule=rule, gated=bool(gated), largest_strength=2.0)  # type: ignore[arg-type]  # a string of the parametrisation
    theirs = formula(projected, skip, state, starts, rule, gated, 2.0)
    grads = [torch.randn_like(x) for x in ours]
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
    actual_grads = torch.autograd.grad(ours, (projected, skip, state), grads)
    expected_grads = torch.autograd.grad(theirs, (projected, skip, state), grads)
    for actual, expected in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("key_size", "value_size"), [(16, 32), (32, 16), (5, 3)])
@pytest.mark.parametrize(("steps", "n_inner"), [(1, 1), (13, 1), (70, 1), (12, 3)])
@pytest.mark.parametrize("gated", [False, True, "channels"])
@pytest.mark.parametrize("delay_heads", [1, 2, HEADS])
def test_delay_heads_are_the_formula(
    backend: str, delay_heads: int, gated: bool | str, steps: int, n_inner: int, key_size: int, value_size: int
) -> None:
    """Catches a turn without its sign, the wrong way, of the wrong head, or by the number of inner steps; a final state
    or a gradient that stays in the moving frame. 70 steps are more than 2 K: a head comes round and starts again."""
    projected, skip, state, starts = make_inputs(steps, key_size, value_size, gated)
    leaves = [x.requires_grad_() for x in (projected, skip, state)]
    delay = {"delay_heads": delay_heads, "n_inner": n_inner}
    ours = fast_weight_heads(projected, skip, state, starts, gated=bool(gated), largest_strength=2.0, **delay)
    theirs = formula(projected, skip, state, starts, "delta", gated, 2.0, **delay)
    grads = [torch.randn_like(x) for x in ours]
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
    actual_grads = torch.autograd.grad(ours, leaves, grads)
    expected_grads = torch.autograd.grad(theirs, leaves, grads)
    for actual, expected in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("delay_heads", [0, 1])
@pytest.mark.parametrize("used", [0, 1])
def test_gradient_of_one_output(backend: str, used: int, delay_heads: int) -> None:
    """A loss on the outputs alone, or on the final state alone."""
    projected, skip, state, starts = make_inputs(7, 16, 16, gated=True)
    projected.requires_grad_()
    ours = fast_weight_heads(projected, skip, state, starts, gated=True, delay_heads=delay_heads)[used]
    theirs = formula(projected, skip, state, starts, "delta", True, 1.0, delay_heads)[used]
    grad = torch.randn_like(ours)
    actual, expected = (torch.autograd.grad(x, projected, grad)[0] for x in (ours, theirs))
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_gradient_of_a_very_long_memory(backend: str) -> None:
    """Catches 1 - decay in single precision, of which nothing is left where a head remembers for 100 000 steps."""
    projected, skip, state, starts = make_inputs(9, 16, 16, gated=True, dtype=torch.float32)
    with torch.no_grad():
        projected[..., -HEADS:] = -11.5
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = projected.to(dtype).requires_grad_()
        y, _ = fast_weight_heads(x, skip.to(dtype), state.to(dtype), starts, gated=True)
        gradients.append(torch.autograd.grad(y.sum(), x)[0][..., -HEADS:])
    single, double = gradients
    assert double.abs().max() > 0
    torch.testing.assert_close(single.double(), double, rtol=1e-2, atol=1e-3 * double.abs().max().item())


@pytest.mark.parametrize("layout", ["dense", "columns of a wider tensor", "batch first", "in the middle of a storage"])
def test_any_strides(backend: str, layout: str) -> None:
    """Catches strides or an offset that are taken for granted."""
    projected, skip, state, starts = make_inputs(6, 16, 32, gated=True)
    expected = fast_weight_heads(projected, skip, state, starts, gated=True)
    width = projected.shape[-1]
    laid_out = {
        "dense": projected,
        "columns of a wider tensor": torch.cat([projected, projected], -1)[..., width:],
        "batch first": projected.transpose(0, 1).contiguous().transpose(0, 1),
        "in the middle of a storage": torch.cat([projected, projected])[6:],
    }[layout]
    for actual, wanted in zip(fast_weight_heads(laid_out, skip, state, starts, gated=True), expected, strict=True):
        # torch may add up in another order for other strides
        torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("gated", [False, True, "channels"])
def test_the_same_with_and_without_gradient(backend: str, gated: bool | str) -> None:
    """Rollout and update must agree to the last bit; and nothing that was handed in changes."""
    projected, skip, state, starts = make_inputs(8, 32, 32, gated, torch.float32)
    before = projected.clone(), state.clone()
    with torch.no_grad():
        plain = fast_weight_heads(projected, skip, state, starts, gated=bool(gated))
    tracked = fast_weight_heads(projected.clone().requires_grad_(), skip, state, starts, gated=bool(gated))
    assert all(torch.equal(x, y) for x, y in zip(plain, tracked, strict=True))
    assert torch.equal(projected, before[0])
    assert torch.equal(state, before[1])


def test_extreme_gates_saturate(backend: str) -> None:
    """A gate far out is 0 or 1, not NaN, and its gradient is finite."""
    projected, skip, state, starts = make_inputs(4, 16, 16, gated=True, dtype=torch.float32)
    with torch.no_grad():
        projected[..., -2 * HEADS :] *= 1e4
    projected.requires_grad_()
    y, final = fast_weight_heads(projected, skip, state, starts, gated=True)
    (y.sum() + final.sum()).backward()
    assert projected.grad is not None
    assert all(torch.isfinite(x).all() for x in (y, final, projected.grad))


def test_half_precision_and_no_steps(backend: str) -> None:
    projected, skip, state, starts = make_inputs(3, 16, 16, gated=False, dtype=torch.float32)
    y, final = fast_weight_heads(projected.bfloat16(), skip, state, starts)
    assert y.dtype == final.dtype == torch.float32
    y, final = fast_weight_heads(projected[:0], skip, state, starts[:0])
    assert y.shape == (0, 5, HEADS * 16)
    assert torch.equal(final, state)


@pytest.mark.parametrize("delay_heads", [-1, HEADS + 1])
def test_wrong_number_of_delay_heads_is_explained(backend: str, delay_heads: int) -> None:
    """Red if a compiled backend turns heads that are not there."""
    projected, skip, state, starts = make_inputs(3, 16, 32, gated=False)
    with pytest.raises(ValueError, match=f"between 0 and the number of heads, 3, got {delay_heads}"):
        fast_weight_heads(projected, skip, state, starts, delay_heads=delay_heads)
    with pytest.raises(ValueError, match="divide the number of steps, 3, got 2"):
        fast_weight_heads(projected, skip, state, starts, n_inner=2)


def test_wrong_width_is_explained() -> None:
    projected, skip, state, starts = make_inputs(3, 16, 32, gated=False)
    with pytest.raises(ValueError, match=r"last axis of projected must be 48 \+ 48 \+ 96 \+ 3 \+ 3, got 195"):
        fast_weight_heads(projected, skip, state, starts, gated=True)
