"""The experts' matmuls in e4m3 on the device against their emulation."""

import pytest
import torch

from kernels.quantize import QuantizedMatmul
from tests.support.quantized import RECIPES, operands

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

COUNTS = (40, 0, 3, 150, 128, 0, 1)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
@pytest.mark.parametrize("unowned", [0, 5])
def test_device_and_emulation_agree(unowned: int) -> None:
    given = operands(COUNTS, unowned=unowned)
    results = []
    for device in (torch.device("cuda"), torch.device("cpu")):
        multiply = QuantizedMatmul(RECIPES["fp8_tensor"], device=device)
        assert multiply.is_emulated == (device.type == "cpu")
        x_ND, weight_EDF = (tensor.detach().to(device).requires_grad_() for tensor in given[:2])
        y_NF = multiply(x_ND, weight_EDF, given.offsets_E.to(device))
        y_NF.backward(given.gradient_NF.to(device))
        results.append((y_NF.detach().cpu(), x_ND.grad.cpu(), weight_EDF.grad.cpu()))
    for actual, expected in zip(*results, strict=True):
        # The device writes bfloat16, and adds up in registers of 14 bits on Hopper (arXiv:2412.19437, section 3.5.2).
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize("name", RECIPES)
def test_emulation_gives_the_same_numbers_on_the_device(name: str) -> None:
    if name == "nvfp4":
        pytest.skip("draws from another generator on each device")
    given = operands(COUNTS)
    results = []
    for device in ("cuda", "cpu"):
        multiply = QuantizedMatmul(RECIPES[name], device=torch.device(device))
        if not multiply.is_emulated:
            pytest.skip("the device multiplies in this format itself")
        x_ND, weight_EDF = (tensor.detach().to(device).requires_grad_() for tensor in given[:2])
        y_NF = multiply(x_ND, weight_EDF, given.offsets_E.to(device))
        y_NF.backward(given.gradient_NF.to(device))
        results.append((y_NF.detach().cpu(), x_ND.grad.cpu(), weight_EDF.grad.cpu(), multiply.take_counts().cpu()))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
