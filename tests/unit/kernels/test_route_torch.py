"""The torch path of `route` against the float64 reference: equal decisions, values to float32 rounding."""

from typing import Any

import pytest
import torch

from kernels import Backend, route
from kernels.route import Score
from tests.support.routing import (
    ROUTING_CASES,
    RoutingCase,
    assert_same_routing,
    random_gradients,
    random_logits,
    route_with_gradient,
)

# Sums of up to E=33 float32 products of order one.
GRADIENT_TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}


@pytest.mark.parametrize("case", ROUTING_CASES, ids=str)
def test_equals_the_float64_reference(case: RoutingCase) -> None:
    logits_TE = random_logits(50, 12)
    gradients = random_gradients(50, 12, case.top_k)
    expected, expected_dlogits_TE = route_with_gradient(logits_TE.double(), case, gradients, backend="reference")
    actual, actual_dlogits_TE = route_with_gradient(logits_TE, case, gradients, backend="torch")
    assert_same_routing(actual, expected)
    torch.testing.assert_close(actual_dlogits_TE, expected_dlogits_TE.float(), **GRADIENT_TOLERANCE)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(1, 1, 1), (1, 7, 3), (5, 1, 1), (9, 4, 4), (40, 33, 8)]
)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_edges_of_the_shape(num_tokens: int, num_experts: int, top_k: int, score: str) -> None:
    case = RoutingCase(top_k=top_k, score=score, normalize=True)
    logits_TE = random_logits(num_tokens, num_experts)
    gradients = random_gradients(num_tokens, num_experts, top_k)
    expected, expected_dlogits_TE = route_with_gradient(logits_TE.double(), case, gradients, backend="reference")
    actual, actual_dlogits_TE = route_with_gradient(logits_TE, case, gradients, backend="torch")
    assert_same_routing(actual, expected)
    torch.testing.assert_close(actual_dlogits_TE, expected_dlogits_TE.float(), **GRADIENT_TOLERANCE)
    if top_k == num_experts:
        assert actual.stats.slot("margin_sum").item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    case = RoutingCase(top_k=2, normalize=True)
    logits_TE = random_logits(30, 8).to(dtype)
    gradients = random_gradients(30, 8, 2)
    expected, expected_dlogits_TE = route_with_gradient(logits_TE.float(), case, gradients, backend="reference")
    actual, actual_dlogits_TE = route_with_gradient(logits_TE, case, gradients, backend="torch")
    assert_same_routing(actual, expected)
    assert actual_dlogits_TE.dtype == dtype
    torch.testing.assert_close(actual_dlogits_TE, expected_dlogits_TE.to(dtype))


def test_ties_go_to_the_lower_id() -> None:
    logits_TE = torch.tensor([[0.0, -0.0, 0.0, -1.0], [-2.0, 3.0, 3.0, 3.0], [-5.0, -5.0, -5.0, -5.0]])
    routing = route(logits_TE, top_k=2, normalize=True, backend="torch")
    assert routing.expert_ids_TK.tolist() == [[0, 1], [1, 2], [0, 1]]


def test_all_tokens_equal_chooses_the_same_experts_for_all() -> None:
    routing = route(torch.zeros(100, 16), top_k=4, normalize=True, backend="torch")
    assert routing.expert_ids_TK.tolist() == [[0, 1, 2, 3]] * 100


def test_choice_survives_saturated_scores() -> None:
    # softmax underflows to 0 for experts 1 to 3 in float32; their logits still order them.
    logits_TE = torch.tensor([[200.0, -2.0, -1.0, -3.0]])
    routing = route(logits_TE, top_k=3, normalize=False, backend="torch")
    assert routing.expert_ids_TK.tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_normalised_weights_sum_to_scale_even_for_vanishing_scores(backend: str) -> None:
    logits_TE = torch.full((4, 8), -80.0)
    routing = route(logits_TE, top_k=2, score="sigmoid", normalize=True, scale=2.5, backend=backend)
    torch.testing.assert_close(routing.weights_TK.sum(dim=-1), torch.full((4,), 2.5))
    torch.testing.assert_close(routing.prob_sum_E.sum(), torch.tensor(4.0))


def test_distribution_keeps_its_mass_where_scores_underflow() -> None:
    # sigmoid(-200) is 0 in float32: a quotient would be 0/0, an epsilon would let p vanish.
    routing = route(torch.full((4, 8), -200.0), top_k=2, score="sigmoid", normalize=True, backend="torch")
    torch.testing.assert_close(routing.prob_sum_E, torch.full((8,), 0.5))
    torch.testing.assert_close(routing.weights_TK, torch.full((4, 2), 0.5))


def test_selection_bias_gets_no_gradient() -> None:
    bias_E = torch.zeros(6, requires_grad=True)
    logits_TE = random_logits(10, 6).requires_grad_()
    routing = route(logits_TE, top_k=2, normalize=True, score="sigmoid", selection_bias_E=bias_E)
    (routing.weights_TK.square().sum() + routing.prob_sum_E.square().sum()).backward()
    assert logits_TE.grad is not None
    assert bias_E.grad is None


def test_statistics_are_detached() -> None:
    routing = route(random_logits(10, 6).requires_grad_(), top_k=2, normalize=True)
    assert routing.weights_TK.requires_grad
    assert not any(tensor is not None and tensor.requires_grad for tensor in routing.stats)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits_TE": torch.zeros(4, 8), "top_k": 9}, r"top_k=9 is out of range; expected 1 to num_experts=8"),
        ({"logits_TE": torch.zeros(4, 8), "top_k": 0}, r"top_k=0 is out of range"),
        ({"logits_TE": torch.zeros(8), "top_k": 1}, r"logits_TE has shape \(8,\); expected \(tokens, experts\)"),
        ({"logits_TE": torch.zeros(0, 8), "top_k": 1}, r"logits_TE has shape \(0, 8\)"),
        ({"logits_TE": torch.zeros(4, 8, dtype=torch.int64), "top_k": 1}, r"dtype torch.int64; expected a floating"),
        ({"logits_TE": torch.zeros(4, 8), "top_k": 1, "score": "relu"}, r"score='relu' is unknown.*softmax.*sigmoid"),
        ({"logits_TE": torch.zeros(4, 8), "top_k": 1, "scale": float("nan")}, r"scale=nan is not allowed"),
        ({"logits_TE": torch.zeros(4, 8), "top_k": 1, "scale": 0.0}, r"scale=0.0 is not allowed"),
        (
            {"logits_TE": torch.zeros(4, 8), "top_k": 1, "selection_bias_E": torch.zeros(7)},
            r"selection_bias_E has shape \(7,\); expected \(8,\)",
        ),
        (
            {"logits_TE": torch.zeros(4, 8), "top_k": 1, "selection_bias_E": torch.zeros(8, dtype=torch.int32)},
            r"selection_bias_E has dtype torch.int32",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        route(**{"normalize": True, **arguments})


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_choice_by_given_values_equals_the_reference_and_keeps_weights_and_statistics_of_the_logits(
    score: Score,
) -> None:
    logits_TE = random_logits(40, 9).requires_grad_()
    selection_TE = random_logits(40, 9, seed=5)
    selection_TE[:, 6:] = float("-inf")  # not allowed
    actual = route(logits_TE, top_k=3, score=score, normalize=True, selection_TE=selection_TE)
    expected = route(
        logits_TE.double(),
        top_k=3,
        score=score,
        normalize=True,
        selection_TE=selection_TE.double(),
        backend="reference",
    )
    assert_same_routing(actual, expected)
    assert torch.equal(actual.expert_ids_TK, selection_TE.topk(3).indices)
    plain = route(logits_TE, top_k=3, score=score, normalize=True)
    torch.testing.assert_close(actual.prob_sum_E, plain.prob_sum_E)
    torch.testing.assert_close(actual.z_sum, plain.z_sum)
    (dlogits_TE,) = torch.autograd.grad(actual.weights_TK.square().sum(), logits_TE)
    (expected_dlogits_TE,) = torch.autograd.grad(expected.weights_TK.square().sum(), logits_TE)
    torch.testing.assert_close(dlogits_TE, expected_dlogits_TE, **GRADIENT_TOLERANCE)


def test_choice_by_the_scores_given_is_the_choice_by_the_scores() -> None:
    logits_TE = random_logits(40, 9)
    given = route(logits_TE, top_k=3, normalize=True, selection_TE=logits_TE.softmax(-1))
    assert_same_routing(given, route(logits_TE, top_k=3, normalize=True))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_margin_to_an_expert_that_is_not_allowed_is_zero(backend: Backend) -> None:
    logits_TE = random_logits(20, 6)
    selection_TE = logits_TE.clone()
    selection_TE[:, 3:] = float("-inf")
    routing = route(logits_TE, top_k=3, normalize=True, selection_TE=selection_TE, backend=backend)
    assert routing.stats.slot("margin_sum") == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"selection_TE": torch.zeros(4, 5)}, r"selection_TE has shape \(4, 5\); expected \(4, 6\)"),
        ({"selection_TE": torch.zeros(4, 6, dtype=torch.int64)}, "selection_TE has dtype torch.int64"),
        ({"selection_TE": torch.zeros(4, 6), "selection_bias_E": torch.zeros(6)}, "were both given"),
        ({"selection_TE": torch.zeros(4, 6), "backend": "triton"}, "backend='triton' is not available for route"),
    ],
)
def test_values_to_choose_by_that_do_not_fit_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        route(random_logits(4, 6), top_k=2, normalize=True, **fields)
