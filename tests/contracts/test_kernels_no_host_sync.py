"""A routed layer never makes the host wait for the device, and no shape in it depends on data."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import Activation, Drop, ExpertBiases, admit, grouped_swiglu, permute, route, route_pairs, unpermute

# Operators that copy a value to the host, or need one there to know the size of their result.
SYNCHRONISING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::repeat_interleave",
}


class RefuseSynchronisation(TorchDispatchMode):
    """Raises on the first operator that would synchronise; remembers what ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().split(".")[0]
        self.seen.add(name)
        if name in SYNCHRONISING:
            raise AssertionError(f"{name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


def forward_and_backward(
    *, device: str, dtype: torch.dtype, score: str, bias: bool, normalize: bool, drop: Drop | None = None
) -> torch.Tensor:
    """Runs one MoE layer with both auxiliary losses; returns the gradient of its input.

    With `drop` two of the router's outputs are null experts, and the others have a capacity.
    """
    x_TD = torch.randn(24, 16, device=device, dtype=dtype, requires_grad=True)
    num_outputs = 6 if drop is None else 8
    router_DE = torch.randn(16, num_outputs, device=device, dtype=dtype, requires_grad=True)
    gate_up_E2FD = torch.randn(6, 2, 8, 16, device=device, dtype=dtype, requires_grad=True)
    down_EFD = torch.randn(6, 8, 16, device=device, dtype=dtype, requires_grad=True)
    routing = route(
        x_TD @ router_DE,
        top_k=2,
        score=score,
        normalize=normalize,
        selection_bias_E=torch.zeros(num_outputs, device=device) if bias else None,
    )
    if drop is not None:
        routing = admit(routing, num_null_experts=2, capacity=5, drop=drop)
    y_ND = grouped_swiglu(permute(x_TD, routing), gate_up_E2FD, down_EFD, routing.offsets_E)
    out_TD = unpermute(y_ND, routing, routing.weights_TK)
    total = routing.stats.combine(routing.stats)
    assert total.stats_S.shape == routing.stats.stats_S.shape
    loss = out_TD.float().square().sum() + routing.prob_sum_E.square().sum() + routing.z_sum
    (dx_TD, *_) = torch.autograd.grad(loss, (x_TD, router_DE, gate_up_E2FD, down_EFD))
    return dx_TD


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_no_operator_synchronises(score: str, bias: bool, normalize: bool) -> None:
    with RefuseSynchronisation() as mode:
        forward_and_backward(device="cpu", dtype=torch.float32, score=score, bias=bias, normalize=normalize)
    assert "aten::_grouped_mm" in mode.seen  # the mode saw the layer, forward and backward
    assert "aten::_embedding_bag_per_sample_weights_backward" in mode.seen


@pytest.mark.parametrize("drop", ["probability", "position"])
def test_no_operator_synchronises_when_experts_have_a_capacity(drop: Drop) -> None:
    with RefuseSynchronisation() as mode:
        forward_and_backward(device="cpu", dtype=torch.float32, score="softmax", bias=True, normalize=True, drop=drop)
    assert "aten::_grouped_mm" in mode.seen


@pytest.mark.parametrize("drop", ["probability", "position"])
def test_capacity_runs_on_tensors_without_data(drop: Drop) -> None:
    options: dict[str, Any] = {"dtype": torch.bfloat16, "score": "sigmoid", "bias": False, "normalize": True}
    with FakeTensorMode():
        assert forward_and_backward(device="cpu", drop=drop, **options).shape == (24, 16)
    assert forward_and_backward(device="meta", drop=drop, **options).device.type == "meta"


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "clamped_swiglu"])
def test_no_operator_synchronises_in_biased_experts(activation: Activation) -> None:
    x_ND = torch.randn(24, 16, requires_grad=True)
    gate_up_E2FD, down_EFD = (torch.randn(6, *shape, requires_grad=True) for shape in ((2, 8, 16), (8, 16)))
    biases = ExpertBiases(*(torch.randn(6, width, requires_grad=True) for width in (8, 8, 16)))
    offsets_E = torch.tensor([4, 4, 9, 15, 16, 22], dtype=torch.int32)
    with RefuseSynchronisation() as mode:
        y_ND = grouped_swiglu(x_ND, gate_up_E2FD, down_EFD, offsets_E, activation=activation, biases=biases)
        y_ND[:22].square().sum().backward()
    assert "aten::_grouped_mm" in mode.seen
    assert all(bias.grad is not None and bool(bias.grad.isfinite().all()) for bias in biases)
    assert all(not bias.grad[1].any() for bias in biases)  # the second expert has no rows


def ragged_forward_and_backward(*, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Runs a layer whose experts chose 4 of 24 tokens each; returns the gradient of its input."""
    x_TD = torch.randn(24, 16, device=device, dtype=dtype, requires_grad=True)
    router_DE = torch.randn(16, 6, device=device, dtype=dtype, requires_grad=True)
    gate_up_E2FD = torch.randn(6, 2, 8, 16, device=device, dtype=dtype)
    down_EFD = torch.randn(6, 8, 16, device=device, dtype=dtype)
    logits_TE = x_TD @ router_DE
    choice_EC = logits_TE.detach().t().topk(4, dim=-1).indices
    routing = route_pairs(logits_TE, choice_EC.flatten(), torch.arange(6, device=device).repeat_interleave(4))
    y_ND = grouped_swiglu(permute(x_TD, routing), gate_up_E2FD, down_EFD, routing.offsets_E)
    out_TD = unpermute(y_ND, routing, routing.weights_N)
    loss = out_TD.float().square().sum() + routing.prob_sum_E.square().sum() + routing.z_sum
    (dx_TD, _) = torch.autograd.grad(loss, (x_TD, router_DE))
    return dx_TD


def test_no_operator_synchronises_when_experts_choose() -> None:
    with RefuseSynchronisation() as mode:
        ragged_forward_and_backward(device="cpu", dtype=torch.float32)
    assert "aten::_grouped_mm" in mode.seen


def test_experts_choose_on_tensors_without_data() -> None:
    with FakeTensorMode():
        assert ragged_forward_and_backward(device="cpu", dtype=torch.bfloat16).shape == (24, 16)
    assert ragged_forward_and_backward(device="meta", dtype=torch.bfloat16).device.type == "meta"


def test_the_guard_notices_the_reference() -> None:
    with pytest.raises(AssertionError, match="makes the host wait"), RefuseSynchronisation():
        route(torch.zeros(4, 3), top_k=1, normalize=True, backend="reference").counts_E[0].item()


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_runs_on_tensors_without_data(score: str) -> None:
    with FakeTensorMode():
        dx_TD = forward_and_backward(device="cpu", dtype=torch.bfloat16, score=score, bias=True, normalize=True)
    assert dx_TD.shape == (24, 16)


def test_everything_stays_on_the_device_of_the_logits() -> None:
    # Tensors on "meta" refuse to meet tensors on the CPU, so one forgotten device argument fails here without a GPU.
    dx_TD = forward_and_backward(device="meta", dtype=torch.bfloat16, score="sigmoid", bias=True, normalize=True)
    assert dx_TD.device.type == "meta"
