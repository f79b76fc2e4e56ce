"""The compiled Triton kernels of `route` against the float64 reference on a CUDA device."""

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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def assert_equals_reference(logits_TE: torch.Tensor, case: RoutingCase, backend: str) -> None:
    gradients = random_gradients(logits_TE.shape[0], logits_TE.shape[1], case.top_k)
    expected, expected_dlogits_TE = route_with_gradient(logits_TE.cpu().double(), case, gradients, backend="reference")
    actual, actual_dlogits_TE = route_with_gradient(logits_TE, case, gradients, backend=backend)
    assert actual.weights_TK.is_cuda
    assert_same_routing(actual, expected)
    torch.testing.assert_close(
        actual_dlogits_TE.cpu(),
        expected_dlogits_TE.to(logits_TE.dtype),
        rtol=1e-2 if logits_TE.itemsize < 4 else 1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("case", ROUTING_CASES, ids=str)
def test_equals_the_float64_reference(case: RoutingCase, backend: str) -> None:
    assert_equals_reference(random_logits(331, 12).cuda(), case, backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype: torch.dtype, backend: str) -> None:
    assert_equals_reference(random_logits(300, 64).to(dtype).cuda(), RoutingCase(top_k=8, normalize=True), backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(1, 1, 1), (1, 7, 3), (5, 1, 1), (9, 4, 4), (1000, 70, 9), (500, 256, 8)]
)
def test_edges_of_the_shape(num_tokens: int, num_experts: int, top_k: int, backend: str) -> None:
    case = RoutingCase(top_k=top_k, score="sigmoid", normalize=True, bias=True)
    assert_equals_reference(random_logits(num_tokens, num_experts).cuda(), case, backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_ties_go_to_the_lower_id(backend: str) -> None:
    # 40 experts with few distinct logits: the interpreter cannot show this, its argmax knows no other order.
    logits_TE = random_logits(300, 40).round().cuda()
    assert_equals_reference(logits_TE, RoutingCase(top_k=8, normalize=True), backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_repeated_passes_give_the_same_bits(backend: str) -> None:
    logits_TE = random_logits(5000, 64).cuda()
    first, second = (route(logits_TE, top_k=8, normalize=True, backend=backend) for _ in range(2))
    for got, want in zip((*first[:-1], *first.stats), (*second[:-1], *second.stats), strict=True):
        assert torch.equal(got, want)
