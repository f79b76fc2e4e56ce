"""Inputs for routing and what two implementations of it must agree on."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import Backend, Routing, route
from kernels.route import Score


class RoutingCase(NamedTuple):
    """The arguments of one call of `route`, apart from its tensors."""

    top_k: int
    score: Score = "softmax"
    normalize: bool = False
    scale: float = 1.0
    bias: bool = False


# Every combination of score, normalisation and bias; the scale alternates between none and DeepSeek's 2.446.
ROUTING_CASES = [
    RoutingCase(top_k=3, score=score, normalize=normalize, scale=scale, bias=bias)
    for score in ("softmax", "sigmoid")
    for normalize, scale in ((False, 1.0), (False, 2.446), (True, 1.0), (True, 2.446))
    for bias in (False, True)
]


class RoutingGradients(NamedTuple):
    """Random weights of the three differentiable outputs in a scalar loss."""

    dweights_TK: Tensor
    dprob_sum_E: Tensor
    dz_sum: float


def random_logits(num_tokens: int, num_experts: int, *, seed: int = 0, spread: float = 1.5) -> Tensor:
    """Returns float32 logits without ties."""
    return torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed)) * spread


def random_bias(num_experts: int, *, seed: int = 1) -> Tensor:
    """Returns selection biases large enough to change choices."""
    return torch.randn(num_experts, generator=torch.Generator().manual_seed(seed)) * 0.3


def random_gradients(num_tokens: int, num_experts: int, top_k: int, *, seed: int = 2) -> RoutingGradients:
    """Returns loss weights of order one."""
    generator = torch.Generator().manual_seed(seed)
    return RoutingGradients(
        dweights_TK=torch.randn(num_tokens, top_k, generator=generator),
        dprob_sum_E=torch.randn(num_experts, generator=generator),
        dz_sum=0.05,
    )


def route_with_gradient(
    logits_TE: Tensor, case: RoutingCase, gradients: RoutingGradients, *, backend: Backend
) -> tuple[Routing, Tensor]:
    """Returns the routing and the gradient of a loss over all three of its differentiable outputs."""
    logits_TE = logits_TE.detach().requires_grad_()
    device = logits_TE.device
    routing = route(
        logits_TE,
        top_k=case.top_k,
        score=case.score,
        normalize=case.normalize,
        scale=case.scale,
        selection_bias_E=random_bias(logits_TE.shape[1]).to(device) if case.bias else None,
        backend=backend,
    )
    loss = (
        (routing.weights_TK * gradients.dweights_TK.to(device)).sum()
        + (routing.prob_sum_E * gradients.dprob_sum_E.to(device)).sum()
        + gradients.dz_sum * routing.z_sum
    )
    (dlogits_TE,) = torch.autograd.grad(loss, logits_TE)
    return routing, dlogits_TE


def assert_same_routing(actual: Routing, expected: Routing, *, atol: float = 2e-6) -> None:
    """Asserts equal decisions and dtypes, and values equal to float32 rounding over sums of a few hundred terms."""
    names = ("expert_ids_N", "counts_E", "offsets_E", "permutation_N", "inverse_N", "token_ids_N", "token_starts_T")
    assert actual.is_partial == expected.is_partial
    for name in names:
        got, want = getattr(actual, name), getattr(expected, name)
        if want is None:
            assert got is None, name
            continue
        assert got.dtype == want.dtype, name
        assert torch.equal(got.cpu(), want.cpu()), name
    assert torch.equal(actual.stats.counts_E.cpu(), expected.stats.counts_E.cpu())
    coverage = [
        None if each.stats.coverage_4 is None else each.stats.coverage_4.tolist() for each in (actual, expected)
    ]
    assert coverage[0] == coverage[1]
    pairs = {name: (getattr(actual, name), getattr(expected, name)) for name in ("weights_N", "prob_sum_E", "z_sum")}
    pairs |= {
        f"stats.{name}": (getattr(actual.stats, name), getattr(expected.stats, name))
        for name in ("stats_S", "prob_sum_E", "gate_mass_E")
    }
    for name, (got, want) in pairs.items():
        dtype = torch.float64 if name == "stats.stats_S" else torch.float32
        assert got.dtype == dtype, name
        torch.testing.assert_close(
            got.cpu(), want.cpu().to(dtype), rtol=2e-5, atol=atol, msg=lambda message, name=name: f"{name}: {message}"
        )
