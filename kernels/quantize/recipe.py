"""Which cast each operand of the experts' matmuls gets: the published recipes."""

from dataclasses import dataclass
from typing import Literal

from kernels.quantize.cast import Cast
from kernels.quantize.number_format import E2M1, E4M3, E5M2

_FP8 = {"e4m3": E4M3, "e5m2": E5M2}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The casts of a matmul y = x w and of the two of its backward pass.

    Attributes:
        activation: of x, which contracts its features in y and its rows in the gradient of w.
        weight: of w, which contracts its first dimension in y and its second in the gradient of x.
        gradient: of the gradient of y, which contracts its features and its rows.
        hadamard: whether the operands of the gradient of w are rotated before their cast (`kernels.quantize.hadamard`).
    """

    activation: Cast
    weight: Cast
    gradient: Cast
    hadamard: bool = False

    @property
    def row_multiple(self) -> int:
        """Rows of an expert that are padded to a multiple of this, so that no block holds rows of two experts."""
        return self.activation.block_size or 1


def fp8_tensor(*, gradient_format: Literal["e4m3", "e5m2"]) -> Recipe:
    """Returns one float32 scale per tensor, an expert's matrix being one, from its present largest magnitude.

    Source: Micikevicius et al. 2022, arXiv:2209.05433, section 3: e4m3 forward, e5m2 for gradients.
    """
    forward = Cast(number_format=E4M3, rule="float32", block_size=None)
    backward = Cast(number_format=_FP8[gradient_format], rule="float32", block_size=None)
    return Recipe(activation=forward, weight=forward, gradient=backward)


def fp8_block(*, gradient_format: Literal["e4m3", "e5m2"]) -> Recipe:
    """Returns a float32 scale per 128 features or rows, and per 128 x 128 block of a weight.

    Source: DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2, with e4m3 throughout. The gradient of the weights is made
    from the activations themselves, cast along their rows; there, from their first cast.
    """
    return Recipe(
        activation=Cast(number_format=E4M3, rule="float32", block_size=128),
        weight=Cast(number_format=E4M3, rule="float32", block_size=128, square=True),
        gradient=Cast(number_format=_FP8[gradient_format], rule="float32", block_size=128),
    )


def mxfp8(*, scale_rounding: Literal["floor", "up"]) -> Recipe:
    """Returns e4m3 throughout, a power-of-two scale per 32 elements, weights cast along each dimension they contract.

    Source: OCP Microscaling Formats (MX) v1.0; e4m3 for gradients and rounding up: Mishra et al. 2025,
    arXiv:2506.08027.
    """
    block = Cast(number_format=E4M3, rule="e8m0_floor" if scale_rounding == "floor" else "e8m0_up", block_size=32)
    return Recipe(activation=block, weight=block, gradient=block)


def nvfp4(*, stochastic_gradients: bool, square_weights: bool, hadamard: bool) -> Recipe:
    """Returns e2m1 throughout, an e4m3 scale per 16 elements and a float32 one per tensor.

    Source: NVIDIA 2025, arXiv:2509.25149, section 4: stochastic rounding of gradients, 16 x 16 blocks for weights, a
    random Hadamard transform of the weight gradient's operands.
    """
    return Recipe(
        activation=Cast(number_format=E2M1, rule="two_level", block_size=16),
        weight=Cast(number_format=E2M1, rule="two_level", block_size=16, square=square_weights),
        gradient=Cast(number_format=E2M1, rule="two_level", block_size=16, stochastic=stochastic_gradients),
        hadamard=hadamard,
    )
