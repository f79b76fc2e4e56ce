"""Routings whose tokens have any number of pairs."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import Backend, Routing, assignments, grouped_swiglu, permute, route, route_pairs, unpermute
from kernels.route import Score
from tests.support.routing import assert_same_routing, random_logits


def chosen_cells(num_tokens: int, num_experts: int, *, seed: int = 0, share: float = 0.4) -> Tensor:
    """Returns bool [T, E], each cell chosen by chance."""
    return torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed)) < share


def pairs_of(chosen_TE: Tensor, *, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Returns tokens and experts of the chosen cells, in no order."""
    token_ids_N, expert_ids_N = chosen_TE.nonzero(as_tuple=True)
    order_N = torch.randperm(len(token_ids_N), generator=torch.Generator().manual_seed(seed))
    return token_ids_N[order_N], expert_ids_N[order_N]


def random_rows(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    num_tokens=st.integers(1, 30),
    num_experts=st.integers(1, 9),
    share=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    score=st.sampled_from(("softmax", "sigmoid")),
    scale=st.sampled_from((1.0, 2.446)),
    seed=st.integers(0, 999),
)
def test_torch_path_equals_the_reference(
    num_tokens: int, num_experts: int, share: float, score: Score, scale: float, seed: int
) -> None:
    logits_TE = random_logits(num_tokens, num_experts, seed=seed)
    pairs = pairs_of(chosen_cells(num_tokens, num_experts, seed=seed, share=share))
    actual, expected = (
        route_pairs(logits_TE, *pairs, score=score, scale=scale, backend=backend) for backend in ("torch", "reference")
    )
    assert_same_routing(actual, expected)


@settings(max_examples=40, deadline=None)
@given(num_tokens=st.integers(1, 20), num_experts=st.integers(1, 8), seed=st.integers(0, 999))
def test_pairs_stand_by_token_and_every_one_is_kept(num_tokens: int, num_experts: int, seed: int) -> None:
    chosen_TE = chosen_cells(num_tokens, num_experts, seed=seed)
    routing = route_pairs(random_logits(num_tokens, num_experts), *pairs_of(chosen_TE))
    assert not routing.is_uniform
    assert routing.token_ids_N is not None
    assert routing.token_starts_T is not None
    cells_N = routing.token_ids_N * num_experts + routing.expert_ids_N
    assert cells_N.tolist() == chosen_TE.flatten().nonzero().flatten().tolist()
    for token in range(num_tokens):
        assert routing.token_starts_T[token] == (routing.token_ids_N < token).sum()
    assert torch.equal(routing.counts_E, chosen_TE.sum(dim=0))
    assert torch.equal(routing.permutation_N[routing.inverse_N], torch.arange(routing.num_pairs))
    experts_in_order_N = routing.expert_ids_N[routing.permutation_N]
    assert torch.equal(experts_in_order_N, experts_in_order_N.sort().values)
    assert torch.equal(
        assignments(routing.expert_ids_N, routing.token_ids_N, num_tokens=num_tokens, num_experts=num_experts),
        chosen_TE,
    )
    assert routing.stats.coverage_4 is not None
    experts_T = chosen_TE.sum(dim=1)
    assert routing.stats.coverage_4.tolist() == [0, 0, (experts_T == 0).sum(), experts_T.square().sum()]


def test_all_pairs_of_a_token_choice_give_that_routing() -> None:
    logits_TE = random_logits(25, 6)
    chosen = route(logits_TE, top_k=3, score="sigmoid", normalize=False)
    token_ids_N = torch.arange(25).repeat_interleave(3)
    ragged = route_pairs(logits_TE, token_ids_N, chosen.expert_ids_N, score="sigmoid")
    for name in ("counts_E", "offsets_E", "prob_sum_E", "z_sum"):
        assert torch.equal(getattr(ragged, name), getattr(chosen, name)), name
    assert torch.equal(ragged.row_tokens_N, chosen.row_tokens_N)
    torch.testing.assert_close(ragged.stats.gate_mass_E, chosen.stats.gate_mass_E)
    x_TD = random_rows(25, 8)
    assert torch.equal(permute(x_TD, ragged), permute(x_TD, chosen))
    torch.testing.assert_close(
        unpermute(permute(x_TD, ragged), ragged, ragged.weights_N),
        unpermute(permute(x_TD, chosen), chosen, chosen.weights_N),
    )


class Layer(NamedTuple):
    """The leaves of one layer."""

    x_TD: Tensor
    logits_TE: Tensor
    gate_up_E2FD: Tensor
    down_EFD: Tensor


def layer_leaves(num_tokens: int, num_experts: int, *, dtype: torch.dtype, dim: int = 8, hidden_dim: int = 8) -> Layer:
    shapes = (
        (num_tokens, dim),
        (num_tokens, num_experts),
        (num_experts, 2, hidden_dim, dim),
        (num_experts, hidden_dim, dim),
    )
    return Layer(*(random_rows(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)))


def layer_output(leaves: Layer, chosen_TE: Tensor, *, backend: Backend) -> Tensor:
    routing = route_pairs(leaves.logits_TE, *pairs_of(chosen_TE), score="sigmoid", backend=backend)
    x_ND = permute(leaves.x_TD, routing, backend=backend)
    y_ND = grouped_swiglu(x_ND, leaves.gate_up_E2FD, leaves.down_EFD, routing.offsets_E, backend=backend)
    return unpermute(y_ND, routing, routing.weights_N, backend=backend)


def dense_output(leaves: Layer, chosen_TE: Tensor) -> Tensor:
    """Every expert on every token, masked: no routing at all."""
    gate_TEF, up_TEF = torch.einsum("td,exfd->xtef", leaves.x_TD, leaves.gate_up_E2FD)
    y_TED = torch.einsum("tef,efd->ted", torch.nn.functional.silu(gate_TEF) * up_TEF, leaves.down_EFD)
    return ((leaves.logits_TE.sigmoid() * chosen_TE)[:, :, None] * y_TED).sum(dim=1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_reference_layer_equals_every_expert_on_every_token_masked(share: float) -> None:
    leaves = layer_leaves(12, 5, dtype=torch.float64)
    chosen_TE = chosen_cells(12, 5, share=share)
    dout_TD = random_rows(12, 8, seed=9).double()
    actual = layer_output(leaves, chosen_TE, backend="reference")
    expected = dense_output(leaves, chosen_TE)
    torch.testing.assert_close(actual, expected)
    for got, want in zip(
        torch.autograd.grad(actual, leaves, dout_TD), torch.autograd.grad(expected, leaves, dout_TD), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_torch_layer_equals_the_float64_reference_with_gradients(share: float) -> None:
    leaves = layer_leaves(40, 5, dtype=torch.float32)
    exact = Layer(*(leaf.detach().double().requires_grad_() for leaf in leaves))
    chosen_TE = chosen_cells(40, 5, share=share)
    dout_TD = random_rows(40, 8, seed=9)
    actual = layer_output(leaves, chosen_TE, backend="torch")
    expected = layer_output(exact, chosen_TE, backend="reference")
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-4)
    for got, want in zip(
        torch.autograd.grad(actual, leaves, dout_TD),
        torch.autograd.grad(expected, exact, dout_TD.double()),
        strict=True,
    ):
        torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-4)


def test_gradients_pass_finite_differences() -> None:
    leaves = layer_leaves(5, 3, dtype=torch.float64, dim=2, hidden_dim=2)
    chosen_TE = chosen_cells(5, 3)
    assert torch.autograd.gradcheck(
        lambda *each: layer_output(Layer(*each), chosen_TE, backend="reference"), tuple(leaves)
    )


def test_tokens_without_pairs_get_zeros_and_no_gradient() -> None:
    leaves = layer_leaves(6, 4, dtype=torch.float32)
    chosen_TE = torch.zeros(6, 4, dtype=torch.bool)
    chosen_TE[1, 2] = chosen_TE[4, 0] = chosen_TE[4, 3] = True
    out_TD = layer_output(leaves, chosen_TE, backend="torch")
    out_TD.square().sum().backward()
    assert leaves.x_TD.grad is not None
    lonely = [0, 2, 3, 5]
    assert not out_TD[lonely].any()
    assert not leaves.x_TD.grad[lonely].any()
    assert bool(leaves.x_TD.grad[[1, 4]].any(dim=1).all())


def test_repeated_passes_give_the_same_bits() -> None:
    chosen_TE = chosen_cells(64, 8)
    dout_TD = random_rows(64, 8, seed=9)

    def gradients() -> tuple[Tensor, ...]:
        leaves = layer_leaves(64, 8, dtype=torch.float32)
        return torch.autograd.grad(layer_output(leaves, chosen_TE, backend="torch"), leaves, dout_TD)

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


def ragged() -> Routing:
    return route_pairs(random_logits(9, 5), *pairs_of(chosen_cells(9, 5)))


def test_a_ragged_routing_has_no_matrix_of_choices() -> None:
    with pytest.raises(ValueError, match="a ragged routing has no top_k"):
        _ = ragged().expert_ids_TK
    with pytest.raises(ValueError, match="a ragged routing has no top_k"):
        _ = ragged().weights_TK


def test_bad_arguments_are_named() -> None:
    logits_TE, ids_N = torch.zeros(4, 3), torch.arange(3)
    with pytest.raises(ValueError, match=r"logits_TE has shape \(4,\)"):
        route_pairs(torch.zeros(4), ids_N, ids_N)
    with pytest.raises(ValueError, match=r"expert_ids_N has shape \(2,\); expected one id per pair"):
        route_pairs(logits_TE, ids_N, ids_N[:2])
    with pytest.raises(ValueError, match=r"token_ids_N has dtype torch.int32; expected int64"):
        route_pairs(logits_TE, ids_N.int(), ids_N)
    with pytest.raises(ValueError, match=r"expert_ids_N is on meta; expected cpu"):
        route_pairs(logits_TE, ids_N, ids_N.to("meta"))
    with pytest.raises(ValueError, match=r"score='tanh' is unknown"):
        route_pairs(logits_TE, ids_N, ids_N, score="tanh")  # pyright: ignore[reportArgumentType]
    routing = ragged()
    with pytest.raises(ValueError, match=r"weights_N has shape \(2,\); expected \(\d+,\) as the ragged routing"):
        unpermute(torch.zeros(routing.num_pairs, 4), routing, torch.ones(2))
