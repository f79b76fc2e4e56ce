"""Blocks and their scales: known answers from the specifications, and what a cast may cost."""

import pytest
import torch

from kernels.quantize import E2M1, E4M3, E5M2, Cast, quantize

MX_FLOOR = Cast(number_format=E4M3, rule="e8m0_floor", block_size=32)
MX_UP = Cast(number_format=E4M3, rule="e8m0_up", block_size=32)
NVFP4 = Cast(number_format=E2M1, rule="two_level", block_size=16)
TENSOR = Cast(number_format=E4M3, rule="float32", block_size=None)
BLOCK = Cast(number_format=E4M3, rule="float32", block_size=128)


def block_of(largest: float, size: int) -> torch.Tensor:
    x = torch.zeros(1, size)
    x[0, 3] = -largest
    return x


@pytest.mark.parametrize(
    ("largest", "floor", "up"),
    [
        (448.0, 0, 0),
        (449.0, 0, 1),  # up to 512 the specification's scale clips
        (511.9, 0, 1),
        (512.0, 1, 1),
        (256.0, 0, 0),
        (255.9, -1, 0),  # 448 / 2 = 224 < 255.9
        (224.0, -1, -1),
        (1.0, -8, -8),
        (1.76, -8, -7),  # 1.75 * 2**-8 * 256 = 1.75
        (2.0**-119, -127, -127),
        (2.0**-130, -127, -127),  # smaller scales do not exist
        (3e38, 119, 120),
    ],
)
def test_power_of_two_scales(largest: float, floor: int, up: int) -> None:
    for cast, exponent in ((MX_FLOOR, floor), (MX_UP, up)):
        scale = quantize(block_of(largest, 32), cast, contracts=-1).scales
        assert scale.item() == 2.0**exponent
        # What e8m0 holds, by torch's own dtype.
        assert scale.to(torch.float8_e8m0fnu).float().item() == scale.item()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_block_with_a_number_that_is_none_has_no_scale(bad: float) -> None:
    x = torch.ones(1, 64)
    x[0, 40] = bad
    quantized = quantize(x, MX_FLOOR, contracts=-1)
    assert quantized.scales.flatten()[0] == 2.0**-8
    assert quantized.scales.flatten()[1].isnan()
    assert quantized.values()[0, 32:].isnan().all()
    assert torch.equal(quantized.values()[0, :32], x[0, :32])


@pytest.mark.parametrize("cast", [MX_FLOOR, MX_UP, NVFP4, TENSOR, BLOCK], ids=str)
def test_zeros_stay_zeros(cast: Cast) -> None:
    counts = torch.zeros(3, dtype=torch.int64)
    quantized = quantize(torch.zeros(128, 128), cast, contracts=-1, counts=counts)
    assert torch.equal(quantized.values(), torch.zeros(128, 128))
    assert counts.tolist() == [0, 0, 0]


def test_nvfp4_known_answer() -> None:
    # Two blocks, largest 12 and 1. The matrix's scale makes the first block's scale, 12 / 6, the largest e4m3 number:
    # encode = 6 * 448 / 12 = 224. The second's is 1 / 6 * 224 = 37.33, of which e4m3 has 36 and 40: 36, times 1 / 224.
    x = torch.zeros(1, 32)
    x[0, :4] = torch.tensor([12.0, 5.0, -1.1, 0.4])
    x[0, 16:20] = torch.tensor([1.0, 0.4, -0.04, 0.02])
    counts = torch.zeros(3, dtype=torch.int64)
    quantized = quantize(x, NVFP4, contracts=-1, counts=counts)
    torch.testing.assert_close(quantized.scales.flatten(), torch.tensor([448 / 224, 36 / 224]), rtol=1e-6, atol=0)
    # 12 / 2 = 6, 2.5 (a tie, to 2), -0.55, 0.2; and over 36 / 224: 6.22 (clipped), 2.49, -0.249, 0.12.
    assert quantized.elements_RC[0, :4].tolist() == [6.0, 2.0, -0.5, 0.0]
    assert quantized.elements_RC[0, 16:20].tolist() == [6.0, 2.0, -0.0, 0.0]
    assert counts.tolist() == [8, 3, 1]


def test_block_far_below_the_largest_vanishes_in_nvfp4() -> None:
    # Its scale is 2**-20 of the largest one; e4m3 ends at 2**-9 / 448, 2**-18 of it.
    x = torch.ones(1, 32)
    x[0, 16:] = 2.0**-20
    counts = torch.zeros(3, dtype=torch.int64)
    values = quantize(x, NVFP4, contracts=-1, counts=counts).values()
    assert torch.equal(values[0, 16:], torch.zeros(16))
    assert counts.tolist() == [32, 16, 0]


def test_tensor_scale_brings_the_largest_to_the_largest() -> None:
    x = torch.tensor([[0.001, -7.0, 3.5, 1e-5]])
    counts = torch.zeros(3, dtype=torch.int64)
    quantized = quantize(x, TENSOR, contracts=-1, counts=counts)
    assert quantized.elements_RC[0, 1] == -448.0
    assert quantized.elements_RC[0, 2] == 224.0
    torch.testing.assert_close(quantized.values()[0, 1:3], x[0, 1:3])
    assert counts.tolist() == [4, 1, 0]  # 1e-5 * 64 is less than half of 2**-9, the smallest e4m3 number


def test_every_matrix_of_a_stack_has_its_own_scale() -> None:
    x = torch.stack([torch.full((4, 4), 2.0), torch.full((4, 4), 1e-3)])
    assert quantize(x, TENSOR, contracts=-1).scales.flatten().tolist() == pytest.approx([2 / 448, 1e-3 / 448])
    # With one scale for both the second, 2000 times smaller, would lose its second matrix's precision in NVFP4.
    torch.testing.assert_close(quantize(x.repeat(1, 4, 4), NVFP4, contracts=-1).values(), x.repeat(1, 4, 4))


def test_blocks_lie_along_what_is_summed_over() -> None:
    x = torch.ones(64, 64)
    x[:, :32] *= 100.0
    scales = quantize(x, MX_FLOOR, contracts=-1).scales
    assert scales.shape == (64, 1, 2, 1)
    scales = quantize(x, MX_FLOOR, contracts=-2).scales
    assert scales.shape == (2, 1, 64, 1)
    assert (scales[:, :, :32] > scales[:, :, 32:]).all()


@pytest.mark.parametrize("rule", ["float32", "two_level"])
def test_square_blocks_give_a_matrix_and_its_transpose_the_same_values(rule: str) -> None:
    cast = Cast(number_format=E4M3 if rule == "float32" else E2M1, rule=rule, block_size=16, square=True)
    x = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(0))
    forward = quantize(x, cast, contracts=-2).values()
    backward = quantize(x.transpose(-2, -1), cast, contracts=-2).values()
    assert torch.equal(forward, backward.transpose(-2, -1))


@pytest.mark.parametrize("contracts", [-1, -2])
@pytest.mark.parametrize(
    ("cast", "relative"),
    [
        # Half a step of the mantissa: 2**-4 of a number with 3 stored bits, 2**-2 of one with 1.
        (MX_UP, 2.0**-4),
        (TENSOR, 2.0**-4),
        (BLOCK, 2.0**-4),
        (Cast(number_format=E5M2, rule="float32", block_size=None), 2.0**-3),
        # Clipped from below 512 to 448: an eighth.
        (MX_FLOOR, 2.0**-3),
        (NVFP4, 2.0**-2),
    ],
    ids=str,
)
def test_error_is_bounded(cast: Cast, relative: float, contracts: int) -> None:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    quantized = quantize(x, cast, contracts=contracts)
    scales = quantized._replace(elements_RC=torch.ones_like(x)).values()
    # Among the subnormal numbers, half the distance that no longer shrinks.
    smallest_step = 2.0 ** (cast.number_format.min_exponent - cast.number_format.mantissa_bits)
    bound = torch.maximum(relative * x.abs(), scales * smallest_step / 2)
    assert ((quantized.values() - x).abs() <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("cast", [MX_FLOOR, MX_UP, NVFP4, TENSOR, BLOCK], ids=str)
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e30, 3e38])
def test_numbers_of_any_size_stay_numbers(cast: Cast, size: float) -> None:
    x = torch.linspace(-1, 1, 128).expand(128, 128) * size
    values = quantize(x, cast, contracts=-1).values()
    assert values.isfinite().all()
    if size >= 1e-30:
        torch.testing.assert_close(values, x, rtol=0.5, atol=0.1 * size)
