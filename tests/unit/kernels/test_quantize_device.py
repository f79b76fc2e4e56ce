"""The device's matmuls: their arguments are what torch documents, checked by its own shape function.

The kernel itself runs in tests/gpu only. Here `scaled_grouped_mm` is replaced by the layout checks of torch's
registration for the meta device, and by its definition in float32.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quantize import E4M3, Cast, quantize
from kernels.quantize.device import ScaledGroupedMM
from kernels.quantize.matmul import Emulated
from tests.support.quantized import RECIPES

CAST = Cast(number_format=E4M3, rule="float32", block_size=None)


def defined(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    recipe_a: Any,
    scale_b: Tensor,
    recipe_b: Any,
    *,
    offs: Tensor,
    output_dtype: torch.dtype,
) -> Tensor:
    """Returns what `scaled_grouped_mm` is documented to, for scales by row."""
    assert (recipe_a, recipe_b) == (F.ScalingType.RowWise, F.ScalingType.RowWise)
    on_meta = (tensor.to("meta") for tensor in (a, b, scale_a, scale_b, offs))
    meta_a, meta_b, meta_scale_a, meta_scale_b, meta_offs = on_meta
    checked = torch._scaled_grouped_mm(meta_a, meta_b, meta_scale_a, meta_scale_b, meta_offs, out_dtype=output_dtype)
    starts, ends = [0, *offs.tolist()[:-1]], offs.tolist()
    groups = []
    for group, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if b.dim() == 3:
            rows = slice(start, end)
            groups.append((a[rows].float() @ b[group].float()) * scale_a[rows, None] * scale_b[group])
        else:
            by_row, by_column = scale_a.view(len(ends), -1)[group], scale_b.view(len(ends), -1)[group]
            groups.append((a[:, start:end].float() @ b[start:end].float()) * by_row[:, None] * by_column)
    out = torch.cat(groups) if b.dim() == 3 else torch.stack(groups)
    assert out.shape == checked.shape
    return out.to(output_dtype)


@pytest.fixture(autouse=True)
def _defined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_grouped_mm", defined)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rows_are_those_of_the_emulation() -> None:
    offsets_E = torch.tensor([5, 5, 48], dtype=torch.int32)
    x_NC = quantize(normal(48, 32, seed=0), CAST, contracts=-1)
    weight_ECF = quantize(normal(3, 32, 16, seed=1), CAST, contracts=-2)
    actual_NF = ScaledGroupedMM().rows(x_NC, weight_ECF, offsets_E)
    torch.testing.assert_close(actual_NF, Emulated().rows(x_NC, weight_ECF, offsets_E).bfloat16())


def test_columns_are_those_of_the_emulation() -> None:
    offsets_E = torch.tensor([16, 16, 48], dtype=torch.int32)
    x_PD = quantize(normal(48, 32, seed=0), CAST, contracts=-2)
    gradient_PF = quantize(normal(48, 16, seed=1), CAST, contracts=-2)
    actual_EDF = ScaledGroupedMM().columns(x_PD, gradient_PF, offsets_E)
    torch.testing.assert_close(actual_EDF, Emulated().columns(x_PD, gradient_PF, offsets_E).bfloat16())


def test_transposed_weights_are_laid_out_anew() -> None:
    offsets_E = torch.tensor([16, 48], dtype=torch.int32)
    gradient_NF = quantize(normal(48, 16, seed=0), CAST, contracts=-1)
    weight_EFD = quantize(normal(2, 32, 16, seed=1).mT, CAST, contracts=-2)
    actual_ND = ScaledGroupedMM().rows(gradient_NF, weight_EFD, offsets_E)
    torch.testing.assert_close(actual_ND, Emulated().rows(gradient_NF, weight_EFD, offsets_E).bfloat16())


def test_a_cpu_multiplies_nothing_itself() -> None:
    assert all(ScaledGroupedMM.for_device(recipe, torch.device("cpu")) is None for recipe in RECIPES.values())


@pytest.mark.parametrize(("capability", "fits"), [((8, 0), False), ((9, 0), True), ((10, 0), False)])
def test_device_and_recipe_decide(capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    chosen = {
        name for name, recipe in RECIPES.items() if ScaledGroupedMM.for_device(recipe, torch.device("cuda")) is not None
    }
    assert chosen == ({"fp8_tensor"} if fits else set())
