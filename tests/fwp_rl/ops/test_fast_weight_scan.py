"""Every backend of the fast weight scan against the reference, and the reference against what the rule means."""

import functools
import importlib
import itertools
import logging
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fwp_rl.ops import fast_weight_scan, resolve_backend
from fwp_rl.ops.fast_weight_scan import _check, _choose, _kernel_problem, _numba_problem, _resolve, _triton_problem

# The kernels for GPUs take tensors on the CPU where Triton interprets them; `test_triton` runs this file once more so.
INTERPRETED = ("triton",) if os.environ.get("TRITON_INTERPRET") == "1" else ()
BACKENDS = ("reference", "chunked", "numba", *INTERPRETED)
FAST_BACKENDS = ("chunked", "numba", *INTERPRETED)
GATED = (True, "channels")  # one decay for each head, or for each channel of its keys, which "triton" does not have
RULES = tuple(itertools.product(("delta", "additive"), (False, *GATED)))  # rule, is there a decay
scan_module = sys.modules["fwp_rl.ops.fast_weight_scan"]  # the package shows the function under this name
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
B, H, K, V = 3, 2, 5, 7
SCALE = 0.7
CPU = torch.device("cpu")


def make_inputs(
    steps: int, *, key_size: int = K, value_size: int = V, dtype: torch.dtype = torch.float64, gated: bool | str = True
) -> dict[str, Tensor]:
    """Random arguments: unit keys, strengths in (0, 1), a state that is not zero."""
    inputs = {
        "q": torch.randn(steps, B, H, key_size, dtype=dtype),
        "k": F.normalize(torch.randn(steps, B, H, key_size, dtype=dtype), dim=-1),
        "v": torch.randn(steps, B, H, value_size, dtype=dtype),
        "beta": torch.rand(steps, B, H, dtype=dtype),
        "state": torch.randn(B, H, key_size, value_size, dtype=dtype),
    }
    if gated:
        channels = (key_size,) if gated == "channels" else ()
        inputs["log_decay"] = -0.5 * torch.rand(steps, B, H, *channels, dtype=dtype)
    return inputs


def make_starts(pattern: str, steps: int) -> Tensor:
    starts = torch.zeros(steps, B, dtype=torch.bool)
    match pattern:
        case "all":
            starts[:] = True
        case "random":
            starts = torch.rand(steps, B) < 0.2
        case "first":
            starts[0, 1:] = True
        case "last":
            starts[-1, :2] = True
        case "back to back":
            starts[1:4, 0], starts[2:4, 2] = True, True
        case "chunk borders":
            for step, row in ((15, 0), (16, 1), (17, 2), (31, 0), (32, 1), (33, 2), (64, 0)):
                starts[step : step + 1, row] = True
    return starts


def run(inputs: dict[str, Tensor], starts: Tensor, **options) -> dict[str, Tensor]:
    """Outputs, final state and, for a random linear loss on both, all gradients."""
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outputs, state = fast_weight_scan(**inputs, episode_starts=starts, scale=SCALE, **options)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in (outputs, state))
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"outputs": outputs.detach(), "final state": state.detach()} | {
        f"gradient of {name}": x for name, x in zip(inputs, gradients, strict=True)
    }


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Largest difference relative to the largest entry."""
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert actual[name].shape == x.shape, name
        error = (actual[name].to(x.dtype) - x).abs().max() / x.abs().max().clamp_min(1e-3)
        assert error < tolerance, f"{name}: {error:.1e}"


@functools.cache
def reference_case(
    steps: int, pattern: str, rule: str, gated: bool | str
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    torch.manual_seed(steps)
    inputs, starts = make_inputs(steps, gated=gated), make_starts(pattern, steps)
    return inputs, starts, run(inputs, starts, rule=rule, backend="reference")


# ------------------------------------------------------------------------------------- backends against the reference


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize(("rule", "gated"), RULES)
@pytest.mark.parametrize(
    ("steps", "pattern"),
    [
        (1, "none"),
        (1, "all"),
        (4, "back to back"),
        (16, "last"),
        (31, "first"),
        (33, "none"),
        (33, "chunk borders"),  # catches masks or resets one step early or late
        (70, "chunk borders"),
        (70, "random"),
        (70, "all"),
    ],
)
def test_backend_is_the_reference(backend: str, rule: str, gated: bool | str, steps: int, pattern: str) -> None:
    inputs, starts, expected = reference_case(steps, pattern, rule, gated)
    assert_close(run(inputs, starts, rule=rule, backend=backend), expected, TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize(("rule", "gated"), RULES)
@pytest.mark.parametrize("steps", [5, 70])
def test_float32(backend: str, rule: str, gated: bool | str, steps: int) -> None:
    inputs, starts, expected = reference_case(steps, "random", rule, gated)
    inputs = {name: x.float() for name, x in inputs.items()}
    actual = run(inputs, starts, rule=rule, backend=backend)
    assert all(x.dtype == torch.float32 for x in actual.values())
    assert_close(actual, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("key_size", "value_size"), [(32, 64), (16, 48), (64, 32), (17, 33), (1, 2)])
@pytest.mark.parametrize("gated", GATED)
def test_sizes(backend: str, dtype: torch.dtype, key_size: int, value_size: int, gated: bool | str) -> None:
    """Catches tiles that overlap or are left out, padding that leaks, K taken for V."""
    inputs, starts = make_inputs(6, key_size=key_size, value_size=value_size, gated=gated), make_starts("random", 6)
    expected = run(inputs, starts, backend="reference")
    inputs = {name: x.to(dtype) for name, x in inputs.items()}
    assert_close(run(inputs, starts, backend=backend), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", ["reference", "chunked", "numba"])
@pytest.mark.parametrize("rule", ["delta", "additive"])
def test_channels_that_fade_alike_are_a_head_that_fades(backend: str, rule: str) -> None:
    """Red if decays of channels mean something else than those of heads, or their gradients do not add up to them."""
    inputs, starts = make_inputs(37, gated=True), make_starts("random", 37)
    expected = run(inputs, starts, rule=rule, backend=backend)
    inputs["log_decay"] = inputs["log_decay"][..., None].expand(37, B, H, K)
    actual = run(inputs, starts, rule=rule, backend=backend)
    actual["gradient of log_decay"] = actual["gradient of log_decay"].sum(-1)
    assert_close(actual, expected, TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", ["chunked", "numba"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_channels_may_fade_at_once(backend: str, dtype: torch.dtype) -> None:
    """Red if a decay between two steps is a product of exp(b_i) and exp(-b_j): the second overflows."""
    inputs, starts = make_inputs(40, gated="channels"), make_starts("random", 40)
    inputs["log_decay"][..., 1::2] *= 400
    expected = run(inputs, starts, backend="reference")
    inputs = {name: x.to(dtype) for name, x in inputs.items()}
    assert_close(run(inputs, starts, backend=backend), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("rule", "gated"), RULES)
def test_reference_has_two_derivatives(rule: str, gated: bool | str) -> None:
    steps = 4
    starts = make_starts("random", steps)
    names = list(make_inputs(steps, key_size=2, value_size=3, gated=gated))

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        arguments = dict(zip(names, tensors, strict=True))
        return fast_weight_scan(**arguments, episode_starts=starts, rule=rule, scale=SCALE, backend="reference")

    inputs = make_inputs(steps, key_size=2, value_size=3, gated=gated)
    tensors = [x[:, :1].contiguous() if x.shape[0] == steps else x[:1] for x in inputs.values()]
    starts = starts[:, :1].clone()
    starts[2] = True
    tensors = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_kernel_refuses_a_second_derivative() -> None:
    """Rather than return a wrong one."""
    inputs = {name: x.requires_grad_() for name, x in make_inputs(3).items()}
    outputs, _ = fast_weight_scan(**inputs, episode_starts=make_starts("none", 3), backend="numba")
    (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs["k"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --------------------------------------------------------------------------------------------------------- delay heads


def loop_with_matrix(
    inputs: dict[str, Tensor], starts: Tensor, rule: str, delay_heads: int, n_inner: int
) -> tuple[Tensor, Tensor]:
    """S_t = (1 - beta k k^T) alpha P S_{t-1} + beta k v^T in plain loops, with P as a matrix."""
    steps, batch, heads, key_size = inputs["q"].shape
    shift = torch.zeros(key_size, key_size, dtype=torch.float64)
    for i in range(key_size - 1):
        shift[i + 1, i] = 1.0
    shift[0, key_size - 1] = -1.0
    one = torch.eye(key_size, dtype=torch.float64)
    outputs, finals = [], []
    for b, h in itertools.product(range(batch), range(heads)):
        matrix = inputs["state"][b, h]
        for t in range(steps):
            q, k, v, beta = (inputs[name][t, b, h] for name in ("q", "k", "v", "beta"))
            if starts[t, b]:
                matrix = torch.zeros_like(matrix)
            if h < delay_heads and t % n_inner == 0:
                matrix = shift @ matrix
            if "log_decay" in inputs:
                matrix = torch.diag(inputs["log_decay"][t, b, h].exp().expand(key_size)) @ matrix
            if rule == "delta":
                matrix = (one - beta * torch.outer(k, k)) @ matrix
            matrix = matrix + beta * torch.outer(k, v)
            outputs.append(SCALE * matrix.T @ q)
        finals.append(matrix)
    y = torch.stack(outputs).unflatten(0, (batch, heads, steps)).permute(2, 0, 1, 3)
    return y, torch.stack(finals).unflatten(0, (batch, heads))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rule", "gated"), RULES)
@pytest.mark.parametrize(
    ("steps", "n_inner", "delay_heads", "key_size"),
    [(1, 1, 1, 5), (33, 1, 1, 16), (33, 1, 2, 5), (12, 3, 1, 5)],  # 33 steps are more than 2 K, and three chunks
)
def test_delay_heads_are_the_definition(
    backend: str, rule: str, gated: bool | str, steps: int, n_inner: int, delay_heads: int, key_size: int
) -> None:
    """Red if rows move the other way, without the sign, at every inner step, or in another head; if a start moves the
    count of steps; if keys move modulo a padded size; or if the final state or a gradient stays in the moving frame."""
    inputs, starts = make_inputs(steps, key_size=key_size, gated=gated), make_starts("random", steps)
    delay = {"delay_heads": delay_heads, "n_inner": n_inner}
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    outputs, final = loop_with_matrix(leaves, starts, rule, **delay)
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in (outputs, final))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    expected = {"outputs": outputs.detach(), "final state": final.detach()}
    expected |= {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}
    assert_close(run(inputs, starts, rule=rule, backend=backend, **delay), expected, TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_i_of_a_delay_head_holds_the_last_write_but_i(backend: str) -> None:
    """What the heads are for; and after K steps it comes back with its sign turned."""
    values = torch.randn(K + 3, V, dtype=torch.float64)
    for i in range(K):
        outputs = one_hot_scan([0] * (K + 3), values, [1.0] * (K + 3), [i] * (K + 3), delay_heads=1, backend=backend)
        torch.testing.assert_close(outputs[i:], values[: K + 3 - i])
    outputs = one_hot_scan(
        [1] + [0] * K, values[: K + 1], [1.0] + [0.0] * K, [1] * (K + 1), delay_heads=1, backend=backend
    )
    torch.testing.assert_close(outputs[-1], -values[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_inner", [1, 2])
def test_delay_heads_step_by_step_are_one_scan(backend: str, n_inner: int) -> None:
    """Red if the state carries a phase: a scan that begins later must go on where the one before ended."""
    inputs, starts = make_inputs(24, gated=True), make_starts("random", 24)
    delay = {"delay_heads": 1, "n_inner": n_inner, "backend": backend}
    outputs, final = fast_weight_scan(**inputs, episode_starts=starts, **delay)
    state, pieces = inputs.pop("state"), []
    for begin, end in ((0, 2), (2, 4), (4, 14), (14, 24)):
        piece, state = fast_weight_scan(
            **{name: x[begin:end] for name, x in inputs.items()}, state=state, episode_starts=starts[begin:end], **delay
        )
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces), outputs, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(state, final, atol=1e-10, rtol=1e-10)


def test_wrong_delay_heads_are_explained() -> None:
    inputs = make_inputs(5) | {"episode_starts": make_starts("none", 5)}
    for wrong in (-1, H + 1):
        with pytest.raises(ValueError, match=f"delay_heads must lie between 0 and the number of heads, 2, got {wrong}"):
            fast_weight_scan(**inputs, delay_heads=wrong)
    with pytest.raises(ValueError, match="n_inner must be at least 1 and divide the number of steps, 5, got 2"):
        fast_weight_scan(**inputs, n_inner=2)


# ------------------------------------------------------------------------------------------------ what the rule means


def one_hot_scan(keys: list[int], values: Tensor, beta: list[float], queries: list[int], **options) -> Tensor:
    """Scan of one row and head from a zero state, with one-hot keys; returns outputs [T, V]."""
    steps, value_size = values.shape
    k = F.one_hot(torch.tensor(keys), K).double()[:, None, None]
    q = F.one_hot(torch.tensor(queries), K).double()[:, None, None]
    strengths = torch.tensor(beta, dtype=torch.float64)[:, None, None]
    state = torch.zeros(1, 1, K, value_size, dtype=torch.float64)
    starts = torch.zeros(steps, 1, dtype=torch.bool)
    outputs, _ = fast_weight_scan(q, k, values[:, None, None], strengths, state, starts, **options)
    return outputs[:, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
class TestMeaning:
    def test_read_comes_after_write(self, backend: str) -> None:
        values = torch.randn(1, V, dtype=torch.float64)
        torch.testing.assert_close(one_hot_scan([2], values, [1.0], [2], backend=backend), values)

    def test_scale_multiplies_what_is_read(self, backend: str) -> None:
        values = torch.randn(1, V, dtype=torch.float64)
        torch.testing.assert_close(one_hot_scan([2], values, [1.0], [2], scale=3.0, backend=backend), 3 * values)

    def test_delta_rule_overwrites_and_additive_rule_adds(self, backend: str) -> None:
        values = torch.randn(2, V, dtype=torch.float64)
        delta = one_hot_scan([1, 1], values, [1.0, 1.0], [1, 1], backend=backend)
        torch.testing.assert_close(delta[1], values[1])
        additive = one_hot_scan([1, 1], values, [1.0, 1.0], [1, 1], rule="additive", backend=backend)
        torch.testing.assert_close(additive[1], values[0] + values[1])

    def test_partial_write_moves_part_of_the_way(self, backend: str) -> None:
        values = torch.randn(2, V, dtype=torch.float64)
        outputs = one_hot_scan([1, 1], values, [1.0, 0.25], [1, 1], backend=backend)
        torch.testing.assert_close(outputs[1], 0.75 * values[0] + 0.25 * values[1])

    def test_orthogonal_keys_do_not_interfere(self, backend: str) -> None:
        values = torch.randn(4, V, dtype=torch.float64)
        outputs = one_hot_scan([0, 1, 2, 1], values, [1.0] * 4, [0, 0, 0, 2], backend=backend)
        torch.testing.assert_close(outputs, values[[0, 0, 0, 2]])

    def test_beta_zero_leaves_the_state_alone(self, backend: str) -> None:
        inputs = make_inputs(6, gated=False)
        inputs["beta"].zero_()
        _, state = fast_weight_scan(**inputs, episode_starts=make_starts("none", 6), backend=backend)
        assert torch.equal(state, inputs["state"])

    @pytest.mark.parametrize("gated", GATED)
    def test_state_fades_by_the_decay(self, backend: str, gated: bool | str) -> None:
        """Red if channels of values fade in the place of those of keys."""
        inputs = make_inputs(6, gated=gated)
        inputs["beta"].zero_()
        _, state = fast_weight_scan(**inputs, episode_starts=make_starts("none", 6), backend=backend)
        left = inputs["log_decay"].sum(0).exp().reshape(B, H, -1, 1)
        torch.testing.assert_close(state, left * inputs["state"])

    def test_no_steps(self, backend: str) -> None:
        inputs = make_inputs(0)
        outputs, state = fast_weight_scan(**inputs, episode_starts=make_starts("none", 0), backend=backend)
        assert outputs.shape == (0, B, H, V)
        assert torch.equal(state, inputs["state"])

    def test_inputs_are_left_alone(self, backend: str) -> None:
        inputs, starts = make_inputs(6), make_starts("random", 6)
        before = {name: x.clone() for name, x in inputs.items()}
        run(inputs, starts, backend=backend)
        assert all(torch.equal(x, before[name]) for name, x in inputs.items())

    def test_long_sequences_stay_bounded(self, backend: str) -> None:
        """With unit keys and beta in (0, 2) the erase only rotates and shrinks; catches error that builds up."""
        steps = 3000
        inputs = make_inputs(steps, dtype=torch.float32, gated=False)
        inputs["beta"] *= 2
        inputs["v"] *= inputs["beta"][..., None] < 0.1
        outputs, state = fast_weight_scan(**inputs, episode_starts=make_starts("none", steps), backend=backend)
        assert outputs.isfinite().all()
        assert state.norm() < 10 * inputs["state"].norm()

    def test_repeated_keys(self, backend: str) -> None:
        """An agent that stands still writes the same key over and over; catches an inverse by a series."""
        inputs, starts = make_inputs(64, gated=False), make_starts("none", 64)
        inputs["k"] = F.normalize(inputs["k"][:1] + 1e-3 * inputs["k"], dim=-1)
        inputs["beta"] = 1.8 + 0.1 * inputs["beta"]
        expected = run(inputs, starts, backend="reference")
        actual = run({name: x.float() for name, x in inputs.items()}, starts, backend=backend)
        assert_close(actual, expected, TOLERANCE[torch.float32])


# ------------------------------------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rule", "gated"), RULES)
class TestStarts:
    def test_start_is_a_fresh_state_bit_for_bit(self, backend: str, rule: str, gated: bool | str) -> None:
        inputs, starts = make_inputs(6, dtype=torch.float32, gated=gated), make_starts("none", 6)
        fresh = fast_weight_scan(
            **inputs | {"state": torch.zeros_like(inputs["state"])}, episode_starts=starts, rule=rule, backend=backend
        )
        starts[0] = True
        started = fast_weight_scan(**inputs, episode_starts=starts, rule=rule, backend=backend)
        if backend in ("chunked", "triton"):  # the decay of the first step is no part of its sums if it is a start
            torch.testing.assert_close(started, fresh)
        else:
            assert all(torch.equal(x, y) for x, y in zip(started, fresh, strict=True))
        inputs["state"] += 1
        other_past = fast_weight_scan(**inputs, episode_starts=starts, rule=rule, backend=backend)
        assert all(torch.equal(x, y) for x, y in zip(started, other_past, strict=True))

    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    def test_start_clears_what_is_not_a_number(self, backend: str, rule: str, gated: bool | str, poison: float) -> None:
        """Catches a reset that multiplies by zero."""
        inputs, starts = make_inputs(6, gated=gated), make_starts("none", 6)
        starts[0] = True
        expected = run(inputs, starts, rule=rule, backend=backend)
        inputs["state"][:] = poison
        assert_close(run(inputs, starts, rule=rule, backend=backend), expected, TOLERANCE[torch.float64])

    def test_start_clears_in_the_middle(self, backend: str, rule: str, gated: bool | str) -> None:
        inputs, starts = make_inputs(6, gated=gated), make_starts("none", 6)
        starts[3] = True
        expected, expected_state = fast_weight_scan(**inputs, episode_starts=starts, rule=rule, backend=backend)
        inputs["state"][:] = torch.nan
        outputs, state = fast_weight_scan(**inputs, episode_starts=starts, rule=rule, backend=backend)
        assert outputs[:3].isnan().all()
        torch.testing.assert_close(outputs[3:], expected[3:])
        torch.testing.assert_close(state, expected_state)

    def test_no_gradient_crosses_a_start(self, backend: str, rule: str, gated: bool | str) -> None:
        """Exactly zero, not small."""
        steps, start = 40, 21
        inputs = {name: x.requires_grad_() for name, x in make_inputs(steps, gated=gated).items()}
        starts = make_starts("none", steps)
        starts[start] = True
        outputs, state = fast_weight_scan(**inputs, episode_starts=starts, rule=rule, backend=backend)
        loss = outputs[start:].square().sum() + state.square().sum()
        names = list(inputs)
        gradients = dict(zip(names, torch.autograd.grad(loss, list(inputs.values())), strict=True))
        for name, gradient in gradients.items():
            before = gradient if name == "state" else gradient[: start + (name == "log_decay")]
            assert not before.any(), name
        assert all(gradient[start + 1 :].any() for name, gradient in gradients.items() if name != "state")


# ------------------------------------------------------------------------------------------------------ how it is used


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_are_the_scan(backend: str) -> None:
    """Rollout and update must agree; the kernels agree to the last bit."""
    for gated in (False, *GATED):
        inputs, starts = make_inputs(37, dtype=torch.float32, gated=gated), make_starts("random", 37)
        outputs, final = fast_weight_scan(**inputs, episode_starts=starts, backend=backend)
        state = inputs.pop("state")
        for t in range(len(starts)):
            step = {name: x[t : t + 1] for name, x in inputs.items()}
            output, state = fast_weight_scan(**step, state=state, episode_starts=starts[t : t + 1], backend=backend)
            if backend == "numba":
                assert torch.equal(output[0], outputs[t])
            torch.testing.assert_close(output[0], outputs[t])
        torch.testing.assert_close(state, final)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_grad_changes_nothing(backend: str) -> None:
    inputs, starts = make_inputs(33, dtype=torch.float32), make_starts("random", 33)
    expected = fast_weight_scan(
        **{name: x.clone().requires_grad_() for name, x in inputs.items()}, episode_starts=starts, backend=backend
    )
    with torch.no_grad():
        actual = fast_weight_scan(**inputs, episode_starts=starts, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))
    assert not any(x.requires_grad for x in actual)


def test_threads_change_nothing() -> None:
    """Catches programs that share memory; follows torch.set_num_threads at run time."""
    inputs = make_inputs(700, key_size=16, value_size=32, dtype=torch.float32)
    starts = make_starts("random", 700)
    one_thread = run(inputs, starts, backend="numba")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two_threads = run(inputs, starts, backend="numba")
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, one_thread[name]) for name, x in two_threads.items())


@pytest.mark.parametrize(("rule", "gated"), RULES)
def test_blocks_of_steps_change_nothing(rule: str, gated: bool | str, monkeypatch) -> None:
    """Red if a state or its gradient gets lost between two blocks, or a start on the first step of one."""
    kernels = importlib.import_module("fwp_rl.ops._numba")
    inputs, starts, expected = reference_case(70, "chunk borders", rule, gated)
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 0)
    assert len(kernels.block_borders(inputs["q"], inputs["v"])) == 5
    assert_close(run(inputs, starts, rule=rule, backend="numba"), expected, TOLERANCE[torch.float64])


def test_memory_of_large_results_is_used_again_but_never_twice() -> None:
    """Red if the kernels hand out memory that a living tensor, or a view of one, still has."""
    empty = importlib.import_module("fwp_rl.ops._numba").empty
    first = empty((1 << 20,), torch.float32).fill_(1.0)
    address, view = first.data_ptr(), first[:8].view(2, 4)
    del first
    second = empty((1 << 20,), torch.float32).fill_(2.0)
    assert second.data_ptr() != address
    assert view.eq(1.0).all()
    del view
    assert empty((1 << 20,), torch.float32).data_ptr() == address


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("layout", ["batch first", "every other", "expanded", "reversed strides"])
@pytest.mark.parametrize("gated", GATED)
def test_any_strides(backend: str, layout: str, gated: bool | str) -> None:
    """Catches a kernel that trusts its inputs to be contiguous."""
    inputs, starts = make_inputs(5, key_size=16, value_size=32, gated=gated), make_starts("random", 5)

    def lay_out(x: Tensor) -> Tensor:
        match layout:
            case "batch first":
                return x.transpose(0, 1).contiguous().transpose(0, 1)
            case "every other":
                return torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
            case "expanded":
                return x[:1].expand(x.shape)
            case _:
                order = tuple(reversed(range(x.ndim)))
                return x.permute(order).contiguous().permute(order)

    inputs, starts = {name: lay_out(x) for name, x in inputs.items()}, lay_out(starts.float()).bool()
    dense = {name: x.contiguous() for name, x in inputs.items()}
    assert_close(
        run(inputs, starts, backend=backend),
        run(dense, starts.contiguous(), backend="reference"),
        TOLERANCE[torch.float64],
    )


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("wanted", ["q", "k", "v", "beta", "state", "log_decay"])
@pytest.mark.parametrize("gated", GATED)
def test_gradient_of_one_input(backend: str, wanted: str, gated: bool | str) -> None:
    inputs, starts = make_inputs(6, gated=gated), make_starts("random", 6)
    expected = {}
    for name in ("reference", backend):
        leaf = inputs[wanted].clone().requires_grad_()
        outputs, state = fast_weight_scan(**inputs | {wanted: leaf}, episode_starts=starts, backend=name)
        expected[name] = torch.autograd.grad(outputs.square().sum() + state.square().sum(), leaf)[0]
    torch.testing.assert_close(expected[backend], expected["reference"])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("used", ["outputs", "state"])
@pytest.mark.parametrize("gated", GATED)
def test_gradient_of_one_output(backend: str, used: str, gated: bool | str) -> None:
    """Catches a backward that expects both; the gradient of a sum is an expanded tensor."""
    inputs, starts = make_inputs(6, key_size=16, value_size=32, gated=gated), make_starts("random", 6)
    inputs["state"] = inputs["state"].mT.contiguous().mT
    gradients = {}
    for name in ("reference", backend):
        leaves = {key: x.detach().requires_grad_() for key, x in inputs.items()}
        outputs, state = fast_weight_scan(**leaves, episode_starts=starts, backend=name)
        result = outputs if used == "outputs" else state
        gradients[name] = torch.autograd.grad(
            result.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    for actual, expected in zip(gradients[backend], gradients["reference"], strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_widened(backend: str) -> None:
    inputs, starts = make_inputs(6, dtype=torch.float32), make_starts("random", 6)
    half = {name: x if name == "state" else x.bfloat16() for name, x in inputs.items()}
    leaves = [x.requires_grad_() for x in half.values()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = fast_weight_scan(**half, episode_starts=starts, backend=backend)
    actual = (outputs, state, *torch.autograd.grad(outputs.sum() + state.sum(), leaves))
    wide = {name: x.detach().float().requires_grad_() for name, x in half.items()}
    outputs, state = fast_weight_scan(**wide, episode_starts=starts, backend=backend)
    expected = (outputs, state, *torch.autograd.grad(outputs.sum() + state.sum(), list(wide.values())))
    assert actual[0].dtype == actual[1].dtype == torch.float32
    assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(actual, expected, strict=True))


# ------------------------------------------------------------------------------------------------- which backend runs


@pytest.fixture
def forget_choices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FWP_RL_BACKEND", raising=False)
    for function in (_choose, _numba_problem, _triton_problem, _kernel_problem):
        function.cache_clear()
    yield
    for function in (_choose, _numba_problem, _triton_problem, _kernel_problem):
        function.cache_clear()


@pytest.mark.usefixtures("forget_choices")
class TestResolveBackend:
    def test_auto(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scan_module, "_triton_problem", lambda device: None)
        with caplog.at_level(logging.INFO, logger="fwp_rl"):
            assert resolve_backend("auto", CPU) == "numba"
            assert resolve_backend("auto", CPU) == "numba"
            assert resolve_backend("auto", torch.device("cuda")) == "triton"
            assert resolve_backend("auto", torch.device("meta")) == "chunked"
        assert [record.getMessage() for record in caplog.records] == [
            "fast_weight_scan runs on cpu with the numba backend",
            "fast_weight_scan runs on cuda with the triton backend",
            "fast_weight_scan runs on meta with the chunked backend",
        ]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_explicit_is_obeyed(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FWP_RL_BACKEND", "reference")
        assert resolve_backend(backend, CPU) == backend

    def test_environment_decides_for_auto(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FWP_RL_BACKEND", "reference")
        assert resolve_backend("auto", CPU) == "reference"
        monkeypatch.setenv("FWP_RL_BACKEND", "fastest")
        with pytest.raises(ValueError, match="FWP_RL_BACKEND='fastest' is no backend: expected auto, reference"):
            resolve_backend("auto", CPU)

    def test_impossible_raises_with_the_reason(self) -> None:
        with pytest.raises(RuntimeError, match="backend='numba' cannot run: it runs on the CPU, the state is on cuda"):
            resolve_backend("numba", torch.device("cuda"))
        with pytest.raises(ValueError, match="backend='fast' is no backend"):
            resolve_backend("fast", CPU)

    def test_auto_falls_back_with_one_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(name: str) -> None:
            raise ImportError("numba needs an older numpy")

        monkeypatch.setattr("importlib.import_module", broken)
        with pytest.warns(UserWarning, match="numba needs an older numpy") as caught:
            chosen = [resolve_backend("auto", CPU) for _ in range(2)]
        assert chosen == ["chunked", "chunked"]
        assert len(caught) == 1
        with pytest.raises(RuntimeError, match="numba needs an older numpy"):
            resolve_backend("numba", CPU)

    @pytest.mark.skipif(bool(INTERPRETED), reason="interpreted kernels take tensors on the CPU")
    def test_kernels_for_gpus_refuse_the_cpu(self) -> None:
        with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: it runs on GPUs .*, the state is on cpu"):
            resolve_backend("triton", CPU)

    def test_auto_without_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One warning, and torch operations."""

        def missing(name: str) -> None:
            raise ModuleNotFoundError("No module named 'triton'")

        monkeypatch.setattr("importlib.import_module", missing)
        with pytest.warns(UserWarning, match="triton kernels failed .*No module named 'triton'") as caught:
            chosen = [resolve_backend("auto", torch.device("cuda")) for _ in range(2)]
        assert chosen == ["chunked", "chunked"]
        assert len(caught) == 1
        with pytest.raises(RuntimeError, match="backend='triton' cannot run: ModuleNotFoundError"):
            resolve_backend("triton", torch.device("cuda"))

    def test_kernels_that_fail_are_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches an "auto" that fails, or goes on with, kernels that compute something else here."""
        kernels = SimpleNamespace(unsupported=lambda *_: None, is_interpreted=lambda: False, scan=None)

        def wrong(*_) -> None:
            raise RuntimeError("triton kernels are off by 1.0e+00 in the outputs")

        kernels.check_against_reference = wrong
        monkeypatch.setattr("importlib.import_module", lambda name: kernels)
        monkeypatch.setattr(scan_module, "_SCANS", {"chunked": None})
        arguments = (torch.device("cuda", 0), "delta", True, 5, 7, torch.float32, 1.0)
        with pytest.warns(UserWarning, match=r"off by 1.0e\+00 in the outputs") as caught:
            assert [_resolve("auto", *arguments) for _ in range(2)] == ["chunked", "chunked"]
        assert len(caught) == 1
        with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: .*off by"):
            _resolve("triton", *arguments)

    def test_sizes_that_kernels_do_not_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """ "auto" takes another backend; an explicit one names the nearest size."""
        arguments = ("delta", True, 16, 80, torch.float32, 1.0)
        assert _resolve("auto", torch.device("cuda", 0), *arguments) == "chunked"
        with pytest.raises(RuntimeError, match="up to V = 64, the nearest supported size; got V = 80"):
            _resolve("triton", torch.device("cuda", 0), *arguments)

    def test_decays_that_kernels_do_not_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Red if kernels with one decay for each head run, or are looked at, where there is one for each channel."""
        monkeypatch.setattr(scan_module, "_triton_problem", lambda device: None)
        monkeypatch.setattr(scan_module, "_kernel_problem", lambda *_: pytest.fail("looked at the kernels"))
        arguments = (torch.device("cuda", 0), "delta", True, 16, 32, torch.float32, 1.0, True)
        assert _resolve("auto", *arguments) == "chunked"
        with pytest.raises(RuntimeError, match=r"'triton' cannot run: .* one decay for each head, log_decay has one"):
            _resolve("triton", *arguments)
        monkeypatch.setenv("FWP_RL_BACKEND", "triton")
        with pytest.raises(RuntimeError, match=r"'triton' cannot run: .* one decay for each head"):
            _resolve("auto", *arguments)


# ---------------------------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(4, B, K)}, ValueError, r"q must be \[T, B, H, K\], got \[4, 3, 5\]"),
        ({"k": torch.zeros(4, B, H, V)}, ValueError, r"k must be \[T, B, H, K\] = \[4, 3, 2, 5\].*got \[4, 3, 2, 7\]"),
        ({"v": torch.zeros(4, B, V)}, ValueError, r"v must be \[T, B, H, V\], got"),
        ({"beta": torch.zeros(4, B)}, ValueError, r"beta must be \[T, B, H\] = \[4, 3, 2\].*got \[4, 3\]"),
        (
            {"log_decay": torch.zeros(4, B)},
            ValueError,
            r"log_decay must be \[T, B, H\] \(or \[T, B, H, K\]\) = \[4, 3, 2\]",
        ),
        (
            {"log_decay": torch.zeros(4, B, H, V)},
            ValueError,
            r"log_decay must be \[T, B, H, K\] = .*got \[4, 3, 2, 7\]",
        ),
        (
            {"state": torch.zeros(B, H, V, K)},
            ValueError,
            r"state must be \[B, H, K, V\] = \[3, 2, 5, 7\].*\[3, 2, 7, 5\]",
        ),
        ({"episode_starts": torch.zeros(B, 4, dtype=torch.bool)}, ValueError, r"episode_starts must be \[T, B\]"),
        ({"episode_starts": torch.zeros(4, B)}, TypeError, r"must be bool, got torch.float32; use episode_starts.bool"),
        ({"state": torch.zeros(B, H, K, V).half()}, TypeError, r"state must be float32.*got torch.float16"),
        ({"beta": torch.zeros(4, B, H).double()}, TypeError, r"beta must have the dtype of state, torch.float32"),
        ({"k": torch.zeros(4, B, H, K, device="meta")}, ValueError, r"k is on meta, state on cpu"),
        ({"rule": "hebb"}, ValueError, r"rule must be 'delta' or 'additive', got 'hebb'"),
    ],
)
def test_errors_name_thing_value_and_cure(change: dict, error: type[Exception], message: str) -> None:
    arguments = make_inputs(4, dtype=torch.float32) | {"episode_starts": make_starts("none", 4), "rule": "delta"}
    with pytest.raises(error, match=message):
        _check(**arguments | change)
