"""Moving rows to expert order and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import Backend, Routing, permute, route, unpermute
from tests.support.routing import random_logits


def some_routing(num_tokens: int = 9, num_experts: int = 5, top_k: int = 3) -> Routing:
    return route(random_logits(num_tokens, num_experts), top_k=top_k, normalize=True)


def random_rows(num_rows: int, dim: int, *, seed: int = 3) -> torch.Tensor:
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))


def test_rows_are_copies_of_their_tokens_grouped_by_expert() -> None:
    routing = some_routing()
    x_TD = torch.arange(9.0)[:, None].expand(9, 4).contiguous()
    x_ND = permute(x_TD, routing)
    start = 0
    for expert, end in enumerate(routing.offsets_E.tolist()):
        tokens = [token for token in range(9) if expert in routing.expert_ids_TK[token].tolist()]
        assert x_ND[start:end, 0].tolist() == tokens
        start = end
    assert start == x_ND.shape[0] == 27


@settings(max_examples=40)
@given(num_tokens=st.integers(1, 30), num_experts=st.integers(1, 9), data=st.data())
def test_normalised_unpermute_undoes_permute(num_tokens: int, num_experts: int, data: st.DataObject) -> None:
    routing = some_routing(num_tokens, num_experts, data.draw(st.integers(1, num_experts)))
    x_TD = random_rows(num_tokens, 6)
    torch.testing.assert_close(unpermute(permute(x_TD, routing), routing, routing.weights_TK), x_TD)


def forward_and_backward(dtype: torch.dtype, backend: Backend, *, compute: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Returns results and gradients of both operations on values of `dtype`, computed in `compute`."""
    routing = some_routing(40, 7, 3)
    x_TD = random_rows(40, 16).to(dtype).to(compute).requires_grad_()
    dx_ND = random_rows(120, 16, seed=4).to(dtype).to(compute)
    x_ND = permute(x_TD, routing, backend=backend)
    (dx_TD,) = torch.autograd.grad(x_ND, x_TD, dx_ND)
    y_ND = random_rows(120, 16, seed=5).to(dtype).to(compute).requires_grad_()
    weights_TK = routing.weights_TK.detach().requires_grad_()
    out_TD = unpermute(y_ND, routing, weights_TK, backend=backend)
    dy_ND, dweights_TK = torch.autograd.grad(
        out_TD, (y_ND, weights_TK), random_rows(40, 16, seed=6).to(dtype).to(compute)
    )
    return x_ND, dx_TD, out_TD, dy_ND, dweights_TK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_path_equals_the_float64_reference_with_gradients(dtype: torch.dtype) -> None:
    actual = forward_and_backward(dtype, "torch", compute=dtype)
    expected = forward_and_backward(dtype, "reference", compute=torch.float64)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, dtype, dtype, torch.float32]
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want.to(got.dtype))


def test_bfloat16_copies_are_summed_in_float32() -> None:
    # 256 + 1 is 256 in bfloat16: summing eight gradients of a token one by one in it would lose all ones.
    routing = some_routing(4, 8, 8)
    dx_ND = torch.ones(32, 8, dtype=torch.bfloat16)
    dx_ND[routing.inverse_N.view(4, 8)[:, 0]] = 256
    x_TD = torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True)
    permute(x_TD, routing, backend="torch").backward(dx_ND)
    assert x_TD.grad is not None
    assert torch.equal(x_TD.grad, torch.full((4, 8), 263.0).to(torch.bfloat16))  # 263 rounds to 264, not to 256


def test_gradients_pass_finite_differences() -> None:
    routing = some_routing(4, 5, 2)
    x_TD = random_rows(4, 3).double().requires_grad_()
    weights_TK = routing.weights_TK.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x_TD, weights_TK: unpermute(permute(x_TD, routing).sin(), routing, weights_TK), (x_TD, weights_TK)
    )


def test_frozen_rows_or_weights_get_no_gradient() -> None:
    routing = some_routing()
    y_ND, weights_TK = random_rows(27, 4), routing.weights_TK
    trained_ND = y_ND.clone().requires_grad_()
    unpermute(trained_ND, routing, weights_TK).sum().backward()
    assert trained_ND.grad is not None
    trained_TK = weights_TK.clone().requires_grad_()
    unpermute(y_ND, routing, trained_TK).sum().backward()
    assert trained_TK.grad is not None


def test_bad_shapes_are_named() -> None:
    routing = some_routing()
    with pytest.raises(ValueError, match=r"x_TD has shape \(8, 4\); expected \(9, dim\)"):
        permute(torch.zeros(8, 4), routing)
    with pytest.raises(ValueError, match=r"y_ND has shape \(9, 4\); expected \(27, dim\)"):
        unpermute(torch.zeros(9, 4), routing, routing.weights_TK)
    with pytest.raises(ValueError, match=r"weights_TK has shape \(9, 2\); expected \(9, 3\)"):
        unpermute(torch.zeros(27, 4), routing, routing.weights_TK[:, :2])
    with pytest.raises(ValueError, match=r"x_TD is on meta; expected cpu"):
        permute(torch.zeros(9, 4, device="meta"), routing)
