"""Capacity and null experts: which pairs are computed, and that the others leave no trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import Backend, Drop, Routing, admit, grouped_swiglu, permute, route, route_pairs, unpermute
from tests.support.routing import assert_same_routing, random_logits

DIM, HIDDEN_DIM = 8, 8


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(torch.empty(3).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def some_routing(num_tokens: int, num_outputs: int, top_k: int, *, seed: int = 0, normalize: bool = True) -> Routing:
    return route(random_logits(num_tokens, num_outputs, seed=seed), top_k=top_k, normalize=normalize)


def served(routing: Routing) -> Tensor:
    """Returns bool [T, K]: whether an expert computes the pair."""
    return (routing.inverse_N < routing.offsets_E[-1]).view(-1, routing.top_k)


@settings(max_examples=120, deadline=None)
@given(
    num_tokens=st.integers(1, 24),
    num_experts=st.integers(1, 7),
    num_null_experts=st.integers(0, 4),
    capacity=st.one_of(st.none(), st.integers(1, 12)),
    drop=st.sampled_from(("probability", "position")),
    ties=st.booleans(),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_torch_path_equals_the_reference(
    num_tokens: int,
    num_experts: int,
    num_null_experts: int,
    capacity: int | None,
    drop: Drop,
    ties: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    num_outputs = num_experts + num_null_experts
    logits_TE = random_logits(num_tokens, num_outputs, seed=seed)
    routing = route(
        logits_TE.round() if ties else logits_TE,
        top_k=data.draw(st.integers(1, num_outputs)),
        score="sigmoid",
        normalize=False,
    )
    actual, expected = (
        admit(routing, num_null_experts=num_null_experts, capacity=capacity, drop=drop, backend=backend)
        for backend in ("torch", "reference")
    )
    if not actual.is_partial:
        assert actual is routing
        return
    assert_same_routing(actual, expected)
    if num_null_experts:
        torch.testing.assert_close(actual.null_weights_T, expected.null_weights_T)
    else:
        assert actual.null_weights_T is expected.null_weights_T is None


@settings(max_examples=80, deadline=None)
@given(
    num_tokens=st.integers(1, 30),
    num_experts=st.integers(1, 8),
    num_null_experts=st.integers(0, 4),
    capacity=st.integers(1, 9),
    drop=st.sampled_from(("probability", "position")),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_every_pair_is_computed_dropped_or_null(
    num_tokens: int,
    num_experts: int,
    num_null_experts: int,
    capacity: int,
    drop: Drop,
    seed: int,
    data: st.DataObject,
) -> None:
    num_outputs = num_experts + num_null_experts
    before = some_routing(num_tokens, num_outputs, data.draw(st.integers(1, num_outputs)), seed=seed)
    after = admit(before, num_null_experts=num_null_experts, capacity=capacity, drop=drop)
    if not after.is_partial:
        assert capacity >= num_tokens
        return
    demand_E = before.counts_E[:num_experts]
    assert torch.equal(after.stats.counts_E, demand_E)
    assert torch.equal(after.counts_E, demand_E.clamp(max=capacity))
    assert torch.equal(after.offsets_E, after.counts_E.cumsum(0).int())
    assert after.stats.coverage_4 is not None
    num_dropped, num_null, num_uncovered, experts_sq_sum = after.stats.coverage_4.tolist()
    assert num_dropped + num_null + after.counts_E.sum() == before.num_pairs
    assert num_null == before.counts_E[num_experts:].sum()
    served_TK = served(after)
    assert served_TK.sum() == after.counts_E.sum()
    assert num_uncovered == (~served_TK.any(dim=1)).sum()
    assert experts_sq_sum == served_TK.sum(dim=1).square().sum()
    assert torch.equal(after.permutation_N[after.inverse_N], torch.arange(before.num_pairs))
    owned_N = after.permutation_N[: int(after.offsets_E[-1])]
    experts_N = after.expert_ids_N[owned_N]
    assert torch.equal(experts_N, torch.arange(num_experts).repeat_interleave(after.counts_E))
    for expert in range(num_experts):  # pair order within an expert
        assert owned_N[experts_N == expert].diff().gt(0).all()
    assert torch.equal(after.weights_TK, torch.where(served_TK, before.weights_TK, 0.0))


def test_probability_keeps_the_heaviest_pairs_of_each_expert() -> None:
    before = some_routing(40, 4, 2)
    after = admit(before, capacity=6, drop="probability")
    for expert in range(4):
        chosen_TK = before.expert_ids_TK == expert
        kept = before.weights_TK[chosen_TK & served(after)]
        lost = before.weights_TK[chosen_TK & ~served(after)]
        assert len(kept) == 6
        assert kept.min() >= lost.max()


def test_position_keeps_first_choices_before_second_ones() -> None:
    logits_TE = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [2.0, 0.0, 1.0]])
    routing = admit(route(logits_TE, top_k=2, normalize=True), capacity=2, drop="position")
    # Expert 0: tokens 0, 1, 4 want it first and 2, 3 second. Expert 1: 2 and 3 first, 0 and 1 second. Expert 2: 4.
    assert served(routing).tolist() == [[True, False], [True, False], [True, False], [True, False], [False, True]]


def test_tokens_in_front_keep_their_place_whatever_comes_later() -> None:
    logits_TE = random_logits(30, 4)
    whole = admit(route(logits_TE, top_k=1, normalize=False), capacity=5, drop="position")
    front = admit(route(logits_TE[:12], top_k=1, normalize=False), capacity=5, drop="position")
    assert torch.equal(served(whole)[:12], served(front))


def test_what_is_not_asked_for_changes_nothing() -> None:
    routing = some_routing(10, 4, 2)
    assert admit(routing) is routing
    assert admit(routing, capacity=10) is routing  # an expert has a token at most once
    assert admit(routing, capacity=9).is_partial


class Layer(NamedTuple):
    """The leaves of one layer."""

    x_TD: Tensor
    logits_TE: Tensor
    gate_up_E2FD: Tensor
    down_EFD: Tensor


def layer_leaves(num_tokens: int, num_experts: int, num_null_experts: int, *, dtype: torch.dtype) -> Layer:
    shapes = (
        (num_tokens, DIM),
        (num_tokens, num_experts + num_null_experts),
        (num_experts, 2, HIDDEN_DIM, DIM),
        (num_experts, HIDDEN_DIM, DIM),
    )
    draw = torch.Generator().manual_seed(3)
    return Layer(*(torch.randn(shape, generator=draw).to(dtype).requires_grad_() for shape in shapes))


class Case(NamedTuple):
    """What is left out of a layer of 20 tokens, 5 experts and 2 experts per token."""

    num_null_experts: int
    capacity: int | None
    drop: Drop = "probability"


CASES = [
    Case(0, 5, "probability"),
    Case(0, 5, "position"),
    Case(3, None),
    Case(3, 4, "position"),
    Case(40, None),
]


def layer_output(leaves: Layer, case: Case, *, backend: Backend) -> tuple[Tensor, Routing]:
    """Returns the output with identity null experts, and the routing."""
    routing = route(leaves.logits_TE, top_k=2, score="sigmoid", normalize=True, backend=backend)
    routing = admit(
        routing,
        num_null_experts=case.num_null_experts,
        capacity=case.capacity,
        drop=case.drop,
        backend=backend,
    )
    x_ND = permute(leaves.x_TD, routing, backend=backend)
    y_ND = grouped_swiglu(x_ND, leaves.gate_up_E2FD, leaves.down_EFD, routing.offsets_E, backend=backend)
    out_TD = unpermute(y_ND, routing, routing.weights_N, backend=backend)
    if routing.null_weights_T is not None:
        out_TD = out_TD + routing.null_weights_T[:, None] * leaves.x_TD
    return out_TD, routing


def dense_output(leaves: Layer, case: Case, served_TK: Tensor, expert_ids_TK: Tensor) -> Tensor:
    """Every pair in a loop, with the weights written out: score over the sum of the chosen scores."""
    num_experts = leaves.gate_up_E2FD.shape[0]
    scores_TE = leaves.logits_TE.sigmoid()
    rows = []
    for token, (experts, is_served) in enumerate(zip(expert_ids_TK.tolist(), served_TK.tolist(), strict=True)):
        x_D = leaves.x_TD[token]
        total = scores_TE[token, experts].sum()
        out_D = torch.zeros_like(x_D)
        for expert, computes in zip(experts, is_served, strict=True):
            weight = scores_TE[token, expert] / total
            if expert >= num_experts:
                out_D = out_D + weight * x_D
            elif computes:
                gate_F, up_F = leaves.gate_up_E2FD[expert] @ x_D
                hidden_F = torch.nn.functional.silu(gate_F) * up_F
                out_D = out_D + weight * (hidden_F @ leaves.down_EFD[expert])
        rows.append(out_D)
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_layer_equals_a_loop_over_pairs_with_gradients(case: Case) -> None:
    leaves = layer_leaves(20, 5, case.num_null_experts, dtype=torch.float64)
    dout_TD = torch.randn(20, DIM, generator=torch.Generator().manual_seed(9)).double()
    with uninitialised_memory_is_nan():
        actual, routing = layer_output(leaves, case, backend="reference")
        gradients = torch.autograd.grad(actual, leaves, dout_TD)
    assert not served(routing).all()
    expected = dense_output(leaves, case, served(routing), routing.expert_ids_TK)
    torch.testing.assert_close(actual, expected)
    for got, want in zip(gradients, torch.autograd.grad(expected, leaves, dout_TD), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_layer_equals_the_float64_reference_with_gradients(case: Case) -> None:
    leaves = layer_leaves(20, 5, case.num_null_experts, dtype=torch.float32)
    exact = Layer(*(leaf.detach().double().requires_grad_() for leaf in leaves))
    dout_TD = torch.randn(20, DIM, generator=torch.Generator().manual_seed(9))
    with uninitialised_memory_is_nan():
        actual, routing = layer_output(leaves, case, backend="torch")
        gradients = torch.autograd.grad(actual, leaves, dout_TD)
    expected, expected_routing = layer_output(exact, case, backend="reference")
    assert torch.equal(served(routing), served(expected_routing))
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-4)
    for got, want in zip(gradients, torch.autograd.grad(expected, exact, dout_TD.double()), strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_rows_without_an_expert_are_never_read(backend: Backend) -> None:
    leaves = layer_leaves(20, 5, 3, dtype=torch.float32)
    routing = admit(route(leaves.logits_TE, top_k=2, normalize=True), num_null_experts=3, capacity=4, backend=backend)
    end = int(routing.offsets_E[-1])
    assert end < routing.num_pairs
    y_ND = torch.randn(routing.num_pairs, DIM, generator=torch.Generator().manual_seed(1))
    poisoned_ND = y_ND.index_fill(0, torch.arange(end, routing.num_pairs), float("nan"))
    results = []
    for rows_ND in (y_ND, poisoned_ND):
        rows_ND = rows_ND.clone().requires_grad_()
        weights_N = routing.weights_N.detach().requires_grad_()
        x_TD = leaves.x_TD.detach().requires_grad_()
        out_TD = unpermute(rows_ND, routing, weights_N, backend=backend)
        dy_ND, dweights_N = torch.autograd.grad(out_TD, (rows_ND, weights_N), torch.ones_like(out_TD))
        (dx_TD,) = torch.autograd.grad(permute(x_TD, routing, backend=backend), x_TD, rows_ND.detach())
        results.append((out_TD, dy_ND, dweights_N, dx_TD))
    for got, want in zip(*results, strict=True):
        assert bool(got.isfinite().all())
        assert torch.equal(got, want)
    assert not results[0][1][end:].any()


def test_gradients_pass_finite_differences() -> None:
    leaves = layer_leaves(6, 3, 2, dtype=torch.float64)
    case = Case(2, 2, "position")
    small = tuple(leaf.detach()[..., :8].clone().requires_grad_() for leaf in leaves)
    assert torch.autograd.gradcheck(lambda *each: layer_output(Layer(*each), case, backend="reference")[0], small)


def test_bad_arguments_are_named() -> None:
    routing = some_routing(10, 4, 2)
    with pytest.raises(ValueError, match="num_null_experts=4 is out of range; expected 0 to 3"):
        admit(routing, num_null_experts=4)
    with pytest.raises(ValueError, match="capacity=0 is out of range"):
        admit(routing, capacity=0)
    with pytest.raises(ValueError, match="drop='random' is unknown"):
        admit(routing, capacity=2, drop="random")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="the routing is ragged or partial"):
        admit(admit(routing, capacity=2), capacity=1)
    ids_N = torch.arange(3)
    with pytest.raises(ValueError, match="the routing is ragged or partial"):
        admit(route_pairs(random_logits(4, 3), ids_N, ids_N), capacity=1)
