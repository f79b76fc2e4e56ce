"""The Triton kernels of `route`, run by Triton's interpreter, against the reference: forward, gradients, statistics.

The interpreter shows that the arithmetic is right; tests/gpu shows the same of the compiled kernels.
"""

import pytest
import torch

from kernels import route
from tests.support.routing import (
    ROUTING_CASES,
    RoutingCase,
    assert_same_routing,
    random_gradients,
    random_logits,
    route_with_gradient,
)

pytest.importorskip("triton", reason="needs triton (pip install triton)")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="tests/gpu runs the compiled kernels on a CUDA device"
)

# As for the torch path: sums of up to E=70 float32 products of order one.
GRADIENT_TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}


def assert_fused_equals_reference(logits_TE: torch.Tensor, case: RoutingCase) -> None:
    gradients = random_gradients(logits_TE.shape[0], logits_TE.shape[1], case.top_k)
    expected, expected_dlogits_TE = route_with_gradient(logits_TE.double(), case, gradients, backend="reference")
    actual, actual_dlogits_TE = route_with_gradient(logits_TE, case, gradients, backend="triton")
    assert_same_routing(actual, expected)
    assert actual_dlogits_TE.dtype == logits_TE.dtype
    if logits_TE.dtype == torch.float32:
        torch.testing.assert_close(actual_dlogits_TE, expected_dlogits_TE.float(), **GRADIENT_TOLERANCE)
    else:
        torch.testing.assert_close(actual_dlogits_TE, expected_dlogits_TE.to(logits_TE.dtype))


@pytest.mark.parametrize("case", ROUTING_CASES, ids=str)
def test_equals_the_float64_reference(case: RoutingCase) -> None:
    # 70 tokens: one full tile of 64 and a part of one; 12 experts: not a power of two.
    assert_fused_equals_reference(random_logits(70, 12), case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype, score: str) -> None:
    case = RoutingCase(top_k=2, score=score, normalize=True, bias=True)
    assert_fused_equals_reference(random_logits(20, 8).to(dtype), case)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(1, 1, 1), (1, 7, 3), (5, 1, 1), (9, 4, 4), (131, 5, 2), (20, 70, 9)]
)
def test_edges_of_the_shape(num_tokens: int, num_experts: int, top_k: int) -> None:
    assert_fused_equals_reference(
        random_logits(num_tokens, num_experts), RoutingCase(top_k=top_k, score="sigmoid", normalize=True)
    )


def test_large_logits_of_both_signs_stay_finite() -> None:
    logits_TE = random_logits(10, 8, spread=60.0)
    for score in ("softmax", "sigmoid"):
        case = RoutingCase(top_k=3, score=score, normalize=True)
        gradients = random_gradients(10, 8, 3)
        actual, dlogits_TE = route_with_gradient(logits_TE, case, gradients, backend="triton")
        expected, _ = route_with_gradient(logits_TE.double(), case, gradients, backend="reference")
        # A log-probability that is the difference of values near 150 carries their rounding, about 1e-5.
        assert_same_routing(actual, expected, atol=1e-4)
        assert bool(dlogits_TE.isfinite().all())


def test_spread_of_nearly_equal_entropies_is_in_the_sums() -> None:
    typical_TE = random_logits(1, 16).expand(300, 16)
    logits_TE = typical_TE + random_logits(300, 16, seed=1, spread=1e-3)
    stats = route(logits_TE, top_k=2, normalize=True, backend="triton").stats
    mean = stats.slot("token_entropy_sum") / 300
    variance = stats.slot("token_entropy_sq_sum") / 300 - mean**2
    expected = torch.special.entr(logits_TE.double().softmax(-1)).sum(-1).std(unbiased=False)
    torch.testing.assert_close(variance.sqrt(), expected, rtol=1e-3, atol=1e-7)


def test_ties_go_to_the_lower_id() -> None:
    logits_TE = torch.tensor([[0.0, -0.0, 0.0, -1.0, 0.0], [-2.0, 3.0, 3.0, 3.0, 3.0]])
    assert route(logits_TE, top_k=2, normalize=True, backend="triton").expert_ids_TK.tolist() == [[0, 1], [1, 2]]


# The interpreter computes with numpy, which warns where a GPU stays silent.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_not_a_number_chooses_real_experts() -> None:
    # A run that diverged must end with an error about its loss, not with reads outside of memory.
    logits_TE = torch.tensor([[float("nan")] * 5, [float("-inf")] * 5])
    for backend in ("torch", "triton"):
        ids_TK = route(logits_TE, top_k=3, normalize=True, backend=backend).expert_ids_TK
        assert all(len(set(row)) == 3 and set(row) <= set(range(5)) for row in ids_TK.tolist())


def test_one_differentiable_output_alone_has_its_own_gradient() -> None:
    logits_TE = random_logits(6, 5)
    for name in ("weights_TK", "prob_sum_E", "z_sum"):
        gradients = []
        for backend in ("reference", "triton"):
            leaf_TE = logits_TE.clone().requires_grad_()
            routing = route(leaf_TE, top_k=2, normalize=True, backend=backend)
            getattr(routing, name).square().sum().backward()
            gradients.append(leaf_TE.grad)
        torch.testing.assert_close(gradients[1], gradients[0], **GRADIENT_TOLERANCE)


def test_statistics_are_detached() -> None:
    routing = route(random_logits(10, 6).requires_grad_(), top_k=2, normalize=True, backend="triton")
    assert routing.weights_TK.requires_grad
    assert not any(tensor is not None and tensor.requires_grad for tensor in routing.stats)
