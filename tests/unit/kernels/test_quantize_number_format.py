"""Rounding to narrow formats against their tables of codes and torch's own casts, bit for bit."""

import pytest
import torch

from kernels.quantize import E2M1, E4M3, E5M2, NumberFormat, round_to

E2M1_CODES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of the codes 0 to 7; 8 to 15 are their negatives. Source: OCP Microscaling Formats (MX) v1.0, table 5."""

TORCH_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}

every_format = pytest.mark.parametrize(
    "number_format", [E4M3, E5M2, E2M1], ids=lambda number_format: number_format.name
)
torch_formats = pytest.mark.parametrize("number_format", [E4M3, E5M2], ids=lambda number_format: number_format.name)


def numbers(number_format: NumberFormat) -> torch.Tensor:
    """Returns every finite number of the format in ascending order, 0 once."""
    if number_format == E2M1:
        positive = torch.tensor(E2M1_CODES)
        return torch.cat([-positive.flip(0), positive[1:]])
    codes = torch.arange(256, dtype=torch.uint8).view(TORCH_DTYPES[number_format.name]).float()
    return codes[codes.isfinite()].unique()


@every_format
def test_every_code_is_kept(number_format: NumberFormat) -> None:
    codes = numbers(number_format)
    # 256 codes of 8 bits, less the NaNs (and infinities of e5m2) and one of the two zeros; 16 of 4 bits, less a zero.
    assert len(codes) == {"e4m3": 253, "e5m2": 247, "e2m1": 15}[number_format.name]
    assert codes[-1] == number_format.largest
    assert torch.equal(round_to(codes, number_format), codes)


@every_format
def test_what_is_rounded_is_a_code(number_format: NumberFormat) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * number_format.largest / 4
    for stochastic in (False, True):
        assert torch.isin(round_to(x, number_format, stochastic=stochastic), numbers(number_format)).all()


@torch_formats
def test_rounds_as_torch_casts(number_format: NumberFormat) -> None:
    codes = numbers(number_format).double()
    midpoints = ((codes[1:] + codes[:-1]) / 2).float()
    assert torch.equal(midpoints.double(), (codes[1:] + codes[:-1]) / 2)  # so these are ties, to be broken to even
    scales = 10.0 ** torch.arange(-10, 6).unsqueeze(1)
    x = torch.cat(
        [
            midpoints,
            midpoints.nextafter(torch.tensor(torch.inf)),
            midpoints.nextafter(torch.tensor(-torch.inf)),
            (torch.randn(16, 4096, generator=torch.Generator().manual_seed(0)) * scales).flatten(),
        ]
    )
    expected = x.clamp(-number_format.largest, number_format.largest).to(TORCH_DTYPES[number_format.name]).float()
    assert torch.equal(round_to(x, number_format), expected)


def test_ties_of_e2m1_go_to_the_even_code() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert round_to(ties, E2M1).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert round_to(-ties, E2M1).tolist() == [-0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0]
    above = ties.nextafter(torch.tensor(torch.inf))
    assert round_to(above, E2M1).tolist() == [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@every_format
def test_what_is_too_large_is_clipped_and_nan_stays(number_format: NumberFormat) -> None:
    x = torch.tensor([1e30, torch.inf, -torch.inf, torch.nan])
    for stochastic in (False, True):
        rounded = round_to(x, number_format, stochastic=stochastic)
        assert rounded[:3].tolist() == [number_format.largest, number_format.largest, -number_format.largest]
        assert rounded[3].isnan()


@every_format
def test_stochastic_rounding_keeps_the_mean(number_format: NumberFormat) -> None:
    torch.manual_seed(0)
    codes = numbers(number_format)
    lower, upper = codes[-3], codes[-2]
    for share in (0.1, 0.5, 0.8):
        x = torch.full((100_000,), float(lower + share * (upper - lower)))
        rounded = round_to(x, number_format, stochastic=True)
        assert rounded.unique().tolist() == [lower, upper]
        # 5 standard errors of a share over 100,000 draws.
        assert (rounded == upper).float().mean().item() == pytest.approx(share, abs=5 * (0.25 / 100_000) ** 0.5)


@every_format
def test_stochastic_rounding_moves_no_code(number_format: NumberFormat) -> None:
    torch.manual_seed(0)
    codes = numbers(number_format).repeat(2000)  # half a million draws, some within 2**-18 of 1
    assert torch.equal(round_to(codes, number_format, stochastic=True), codes)


def test_stochastic_rounding_draws_from_the_global_generator() -> None:
    x = torch.rand(1000) * 6
    torch.manual_seed(1)
    first = round_to(x, E2M1, stochastic=True)
    second = round_to(x, E2M1, stochastic=True)
    torch.manual_seed(1)
    assert torch.equal(round_to(x, E2M1, stochastic=True), first)
    assert not torch.equal(first, second)
