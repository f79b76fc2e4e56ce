"""The experts: one gated feed-forward network per expert, over rows grouped by expert."""

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend, refuse_float64
from kernels.experts.activation import Activation, gated_activation
from kernels.experts.bias import ExpertBiases
from kernels.experts.matmul import GroupedMatmul
from kernels.experts.reference import grouped_swiglu_reference
from kernels.experts.torch_path import grouped_swiglu_torch, refuse_misaligned

__all__ = ["Activation", "ExpertBiases", "GroupedMatmul", "gated_activation", "grouped_swiglu"]


def grouped_swiglu(
    x_ND: Tensor,
    gate_up_weight_E2FD: Tensor,
    down_weight_EFD: Tensor,
    offsets_E: Tensor,
    *,
    activation: Activation = "swiglu",
    biases: ExpertBiases | None = None,
    matmul: GroupedMatmul | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Returns y_ND = (silu(x gate_e^T) * (x up_e^T)) down_e for the rows of each expert e.

    With biases (x gate_e^T + b) and so on; another `activation` replaces silu(gate) * up (`gated_activation`).

    Expert e owns the rows offsets_E[e-1] to offsets_E[e]; an expert without rows has a gradient of exactly zero.
    Rows beyond offsets_E[-1] are owned by no expert: they change nothing, and come back uninitialised, as do their
    gradients; `kernels.unpermute` and the gradient of `kernels.permute` do not read them in a partial routing. Checking
    the last offset here would stop the device, so the routing's `offsets_E` is trusted. Under autocast the operands are
    cast like those of a linear layer (`grouped_mm` itself ignores autocast).

    Gate and up lie behind each other in one tensor, with the input dimension last: one matmul of 2F columns reads the
    rows once, forward and backward, and needs no sum of two gradients; and each of the two is a matrix of its own to
    optimizers that look at a matrix as a whole.
    Source: Shazeer 2020, arXiv:2002.05202, eq. 6 (SwiGLU).

    Args:
        x_ND: rows in expert order (`kernels.permute`).
        gate_up_weight_E2FD: gate [:, 0] and up [:, 1] projections, dtype of `x_ND`.
        down_weight_EFD: down projections, input dimension first, dtype of `x_ND`.
        offsets_E: int32 ends of the experts' rows (`Routing.offsets_E`).
        activation: how gate and up projection become the hidden features.
        biases: of the three projections, dtype of `x_ND`; None for none.
        matmul: multiplies in place of `grouped_mm` (`kernels.quantize`); it is given the weights as they are, whatever
            their dtype, under autocast too. The backend is then "torch".
        backend: see `kernels.dispatch.choose_backend`; "auto" is the reference for float64, and for widths that
            are no multiple of 16 bytes, which `grouped_mm` refuses.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
    """
    if _autocasts(x_ND):
        dtype = torch.get_autocast_dtype(x_ND.device.type)
        x_ND = x_ND.to(dtype)
        if matmul is None:
            gate_up_weight_E2FD, down_weight_EFD = gate_up_weight_E2FD.to(dtype), down_weight_EFD.to(dtype)
        biases = None if biases is None else ExpertBiases(*(bias.to(dtype) for bias in biases))
    weight_dtype = x_ND.dtype if matmul is None else gate_up_weight_E2FD.dtype
    _check(x_ND, gate_up_weight_E2FD, down_weight_EFD, offsets_E, biases, weight_dtype)
    if matmul is not None:
        return grouped_swiglu_torch(
            x_ND,
            gate_up_weight_E2FD,
            down_weight_EFD,
            offsets_E,
            activation=activation,
            biases=biases,
            matmul=matmul,
        )
    chosen = choose_backend(
        backend,
        op="grouped_swiglu",
        device=x_ND.device,
        implemented=("reference", "torch"),
        fast_refuses=refuse_float64(x_ND.dtype) or refuse_misaligned(down_weight_EFD),
    )
    implementation = grouped_swiglu_torch if chosen == "torch" else grouped_swiglu_reference
    return implementation(x_ND, gate_up_weight_E2FD, down_weight_EFD, offsets_E, activation=activation, biases=biases)


def _autocasts(x_ND: Tensor) -> bool:
    device_type = x_ND.device.type
    available = torch.amp.is_autocast_available(device_type)  # not on "meta"; asking whether it is enabled would raise
    return available and torch.is_autocast_enabled(device_type) and x_ND.dtype != torch.float64


def _check(
    x_ND: Tensor,
    gate_up_weight_E2FD: Tensor,
    down_weight_EFD: Tensor,
    offsets_E: Tensor,
    biases: ExpertBiases | None,
    weight_dtype: torch.dtype,
) -> None:
    if x_ND.dim() != 2:
        raise ValueError(f"x_ND has shape {tuple(x_ND.shape)}; expected (rows, dim)")
    shape, dim = gate_up_weight_E2FD.shape, x_ND.shape[1]
    if len(shape) != 4 or shape[1] != 2 or shape[3] != dim:
        raise ValueError(f"gate_up_weight_E2FD has shape {tuple(shape)}; expected (experts, 2, hidden, dim={dim})")
    num_experts, _, hidden_dim, _ = shape
    expected = {
        "down_weight_EFD": (down_weight_EFD, (num_experts, hidden_dim, dim)),
        "offsets_E": (offsets_E, (num_experts,)),
    }
    if biases is not None:
        expected |= {
            "biases.gate_EF": (biases.gate_EF, (num_experts, hidden_dim)),
            "biases.up_EF": (biases.up_EF, (num_experts, hidden_dim)),
            "biases.down_ED": (biases.down_ED, (num_experts, dim)),
        }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
    if offsets_E.dtype != torch.int32:
        raise ValueError(f"offsets_E has dtype {offsets_E.dtype}; expected int32")
    weights = {"gate_up_weight_E2FD": gate_up_weight_E2FD, "down_weight_EFD": down_weight_EFD}
    if biases is not None:
        weights |= {f"biases.{name}": bias for name, bias in biases._asdict().items()}
    for name, weight in weights.items():
        wanted = x_ND.dtype if name.startswith("biases") else weight_dtype
        if weight.dtype != wanted:
            raise ValueError(
                f"{name} has dtype {weight.dtype}; expected {wanted} as the rest; cast one or use autocast"
            )
    for name, tensor in {**weights, "offsets_E": offsets_E}.items():
        if tensor.device != x_ND.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {x_ND.device} as x_ND")
