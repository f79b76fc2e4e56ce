"""The grouped experts against a loop, with uninitialised memory filled with NaN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from kernels import Backend, grouped_swiglu


class Operands(NamedTuple):
    """x_ND and the weights."""

    x_ND: torch.Tensor
    gate_up_E2FD: torch.Tensor
    down_EFD: torch.Tensor


def operands(
    num_rows: int, num_experts: int, dim: int = 16, hidden_dim: int = 8, dtype: torch.dtype = torch.float32
) -> Operands:
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_rows, dim), (num_experts, 2, hidden_dim, dim), (num_experts, hidden_dim, dim))
    return Operands(*((torch.randn(shape, generator=generator) * 0.5).to(dtype).requires_grad_() for shape in shapes))


def offsets(*counts: int) -> torch.Tensor:
    return torch.tensor(counts).cumsum(0).int()


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Torch fills new memory with NaN in deterministic mode, inside its operators too."""
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(torch.empty(3).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counts", [(3, 5, 1, 7), (0, 16, 0, 0), (0, 0, 0, 16), (16, 0, 0, 0), (4, 0, 12, 0)])
def test_torch_path_equals_the_loop_with_gradients(dtype: torch.dtype, counts: tuple[int, ...]) -> None:
    inputs = operands(16, 4, dtype=dtype)
    dy_ND = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = {}
    for backend in ("reference", "torch"):
        with uninitialised_memory_is_nan():
            y_ND = grouped_swiglu(*inputs, offsets(*counts), backend=backend)
            results[backend] = (y_ND, *torch.autograd.grad(y_ND, inputs, dy_ND))
    for actual, expected in zip(results["torch"], results["reference"], strict=True):
        assert bool(actual.isfinite().all())
        # Half precision: the loop rounds the gradients by gate and by up before it adds them, one matmul does not.
        tolerance = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
        torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_unowned_rows_come_back_as_anything(backend: Backend) -> None:
    """Why `unpermute` may not read them; should a torch release change this, that rule can be relaxed."""
    inputs = operands(16, 4)
    with uninitialised_memory_is_nan(), torch.no_grad():
        y_ND = grouped_swiglu(*inputs, offsets(3, 5, 1, 6), backend=backend)
    assert bool(y_ND[:15].isfinite().all())
    assert bool(y_ND[15].isnan().all())


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_unowned_rows_change_nothing(backend: Backend) -> None:
    inputs = operands(16, 4)
    owned = Operands(inputs.x_ND.detach()[:9].requires_grad_(), *inputs[1:])
    poisoned = Operands(inputs.x_ND.detach().index_fill(0, torch.arange(9, 16), float("nan")), *inputs[1:])
    dy_ND = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    with uninitialised_memory_is_nan():
        y_ND = grouped_swiglu(*poisoned, offsets(3, 5, 1, 0), backend=backend)
        actual = torch.autograd.grad(y_ND, poisoned[1:], dy_ND.index_fill(0, torch.arange(9, 16), float("nan")))
        expected_ND = grouped_swiglu(*owned, offsets(3, 5, 1, 0), backend=backend)
        expected = torch.autograd.grad(expected_ND, owned[1:], dy_ND[:9])
    assert torch.equal(y_ND[:9], expected_ND)
    for got, want in zip(actual, expected, strict=True):
        assert torch.equal(got, want)


def test_reference_refuses_offsets_beyond_the_rows() -> None:
    with pytest.raises(
        ValueError, match=r"offsets_E=\[3, 8, 9, 17\] must rise from 0 and end within the number of rows, 16"
    ):
        grouped_swiglu(*operands(16, 4), offsets(3, 5, 1, 8), backend="reference")


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_experts_without_rows_have_exactly_zero_gradient(backend: str) -> None:
    inputs = operands(16, 4)
    with uninitialised_memory_is_nan():
        grouped_swiglu(*inputs, offsets(4, 0, 12, 0), backend=backend).square().sum().backward()
    for weight in inputs[1:]:
        assert weight.grad is not None
        assert weight.grad[[1, 3]].count_nonzero().item() == 0
        assert weight.grad[[0, 2]].count_nonzero().item() > 0


def test_expanded_gradients_are_accepted() -> None:
    # sum() hands back one number seen as a matrix with strides of 0.
    inputs = operands(16, 4)
    grouped_swiglu(*inputs, offsets(4, 4, 4, 4), backend="torch").sum().backward()
    assert inputs.x_ND.grad is not None


def test_float64_goes_to_the_reference_and_passes_finite_differences() -> None:
    inputs = [tensor.detach().double().requires_grad_() for tensor in operands(5, 3, dim=3, hidden_dim=2)]
    assert torch.autograd.gradcheck(lambda *tensors: grouped_swiglu(*tensors, offsets(2, 0, 3)), inputs)


def test_widths_off_the_16_byte_grid_go_to_the_reference() -> None:
    inputs = operands(6, 2, dim=5, hidden_dim=3)
    expected_ND = grouped_swiglu(*inputs, offsets(2, 4), backend="reference")
    assert torch.equal(grouped_swiglu(*inputs, offsets(2, 4)), expected_ND)
    with pytest.raises(ValueError, match=r"backend='torch'.*dim=5 and hidden_dim=3 must be multiples of 4"):
        grouped_swiglu(*inputs, offsets(2, 4), backend="torch")


def test_autocast_casts_the_operands() -> None:
    inputs = operands(16, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_ND = grouped_swiglu(*inputs, offsets(3, 5, 1, 7))
    assert y_ND.dtype == torch.bfloat16
    halves = [tensor.detach().bfloat16() for tensor in inputs]
    assert torch.equal(y_ND, grouped_swiglu(*halves, offsets(3, 5, 1, 7)))
    y_ND.float().sum().backward()
    assert inputs.gate_up_E2FD.grad is not None
    assert inputs.gate_up_E2FD.grad.dtype == torch.float32


def test_rows_that_are_part_of_a_wider_matrix_are_accepted() -> None:
    # Rows 17 numbers apart do not start on multiples of 16 bytes.
    inputs = operands(16, 4)
    wider = torch.cat((inputs.x_ND.detach(), torch.zeros(16, 1)), dim=1)
    actual_ND = grouped_swiglu(wider[:, :16], *inputs[1:], offsets(3, 5, 1, 7), backend="torch")
    torch.testing.assert_close(actual_ND, grouped_swiglu(*inputs, offsets(3, 5, 1, 7), backend="torch"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_ND": torch.zeros(16)}, r"x_ND has shape \(16,\); expected \(rows, dim\)"),
        (
            {"x_ND": torch.zeros(16, 8)},
            r"gate_up_weight_E2FD has shape \(4, 2, 8, 16\); expected \(experts, 2, hidden, dim=8\)",
        ),
        (
            {"gate_up_E2FD": torch.zeros(4, 8, 16)},
            r"gate_up_weight_E2FD has shape \(4, 8, 16\); expected \(experts, 2, hidden, dim=16\)",
        ),
        ({"down_EFD": torch.zeros(4, 16, 8)}, r"down_weight_EFD has shape \(4, 16, 8\); expected \(4, 8, 16\)"),
        (
            {"gate_up_E2FD": torch.zeros(4, 2, 8, 16).half()},
            r"gate_up_weight_E2FD has dtype torch.float16; expected torch.float32",
        ),
        ({"down_EFD": torch.zeros(4, 8, 16, device="meta")}, r"down_weight_EFD is on meta; expected cpu"),
    ],
)
def test_operands_that_do_not_fit_are_named(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grouped_swiglu(*operands(16, 4)._replace(**change), offsets(3, 5, 1, 7))


def test_offsets_must_be_int32_one_per_expert() -> None:
    with pytest.raises(ValueError, match=r"offsets_E has dtype torch.int64; expected int32"):
        grouped_swiglu(*operands(16, 4), offsets(3, 5, 1, 7).long())
    with pytest.raises(ValueError, match=r"offsets_E has shape \(3,\); expected \(4,\)"):
        grouped_swiglu(*operands(16, 4), offsets(3, 5, 8))


def test_a_second_backward_pass_is_refused_as_the_first_one_wrote_over_what_it_needs() -> None:
    x_ND, gate_up, down = (torch.randn(shape, requires_grad=True) for shape in ((16, 8), (2, 2, 4, 8), (2, 4, 8)))
    y_ND = grouped_swiglu(x_ND, gate_up, down, torch.tensor([7, 16], dtype=torch.int32))
    y_ND.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y_ND.sum().backward()
