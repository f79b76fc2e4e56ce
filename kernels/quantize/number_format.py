"""The numbers a narrow floating-point format can hold, and rounding to them.

Rounding is arithmetic in float32 rather than torch's casts: one rule serves all three formats, of which torch casts to
two, and both ways of rounding; and it takes a third of the time of a cast to float8 and back on a CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_EXPONENT_BITS = 0x7F800000  # of a float32


@dataclass(frozen=True)
class NumberFormat:
    """A format of one sign bit, an exponent and a mantissa, with subnormals and without infinities in use.

    Attributes:
        name: as the specifications write it.
        mantissa_bits: stored ones; a normal number has one more.
        min_exponent: of the smallest normal number; below it the numbers keep its distance.
        largest: the largest finite number.
    """

    name: str
    mantissa_bits: int
    min_exponent: int
    largest: float


E4M3 = NumberFormat("e4m3", mantissa_bits=3, min_exponent=-6, largest=448.0)
"""Source: Micikevicius et al. 2022, arXiv:2209.05433, table 1; torch.float8_e4m3fn."""
E5M2 = NumberFormat("e5m2", mantissa_bits=2, min_exponent=-14, largest=57344.0)
"""Source: as E4M3; torch.float8_e5m2."""
E2M1 = NumberFormat("e2m1", mantissa_bits=1, min_exponent=0, largest=6.0)
"""0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. Source: OCP Microscaling Formats (MX) v1.0, table 5."""


def round_to(x: Tensor, number_format: NumberFormat, *, stochastic: bool = False) -> Tensor:
    """Returns x rounded to the numbers of the format, float32, shape of `x`.

    To the nearest, ties to the even mantissa; or, stochastic, to one of the two neighbours with the probability that
    makes the mean equal x, drawn from torch's global generator. What lies beyond the largest number becomes it; NaN
    stays NaN.
    """
    clipped = x.clamp(-number_format.largest, number_format.largest)
    # 2 ** floor(log2 |x|), but for subnormals of float32, which are below every min_exponent.
    binade = (clipped.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)
    # A power of two: dividing and multiplying by it rounds nothing.
    step = binade.clamp_(min=2.0**number_format.min_exponent).mul_(2.0**-number_format.mantissa_bits)
    steps = clipped.div_(step)
    if not stochastic:
        return steps.round_().mul_(step)
    lower = steps.floor()
    # Compared, not added: a sum with the draw could round up to a number that x is not next to.
    goes_up = torch.rand_like(steps).lt_(steps.sub_(lower))  # 1 or 0
    return lower.add_(goes_up).mul_(step)
