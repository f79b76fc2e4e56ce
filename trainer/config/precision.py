"""Numeric precision of the forward and backward pass.

`fp32` and `bf16_autocast` are precisions of the whole model. The others cast the operands of the routed experts'
matmuls, forward and backward, to 8 or 4 bits, and leave the rest of the model in the precision of their field `rest`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.section import Section


class Float32Config(Section):
    """Everything in float32. The default: on the CPU it is also the fastest at research sizes."""

    kind: Literal["fp32"] = "fp32"


class BFloat16AutocastConfig(Section):
    """bfloat16 autocast over float32 master weights; router, norms and loss stay in float32."""

    kind: Literal["bf16_autocast"] = "bf16_autocast"


class QuantizedExpertsSection(Section):
    """The experts' matmuls in a narrow format; weights, gradients and optimizer states stay in float32."""

    rest: Literal["fp32", "bf16_autocast"] = "fp32"
    """Precision of everything but the routed experts' matmuls, and of what flows between these."""

    default_dim_multiple: ClassVar[int]

    @property
    def dim_multiple(self) -> int:
        """What model.dim and model.moe.hidden_dim must be multiples of."""
        return self.default_dim_multiple


class FP8Config(QuantizedExpertsSection):
    """8-bit floats with float32 scales, from each tensor's present largest magnitude.

    `tensor`: one scale per tensor (Micikevicius et al. 2022, arXiv:2209.05433). `block`: one per 128 features of a row
    and per 128 x 128 weights (DeepSeek-AI 2024, arXiv:2412.19437, section 3.3).
    """

    kind: Literal["fp8"] = "fp8"
    scaling: Literal["tensor", "block"] = "tensor"
    gradient_format: Literal["e4m3", "e5m2"] = "e4m3"
    """Of the gradients; activations and weights are e4m3. e5m2 has the range that gradients with a single scale may
    need; DeepSeek-V3 trained with e4m3, and so does torch's kernel for Hopper GPUs."""

    default_dim_multiple = 16

    @property
    def dim_multiple(self) -> int:
        """16 bytes of a row, or a whole block."""
        return 128 if self.scaling == "block" else self.default_dim_multiple


class MXFP8Config(QuantizedExpertsSection):
    """e4m3 in blocks of 32 with a power-of-two scale each (OCP Microscaling Formats v1.0)."""

    kind: Literal["mxfp8"] = "mxfp8"
    scale_rounding: Literal["floor", "up"] = "floor"
    """`floor`, the specification's (section 6.3), clips up to an eighth of a block's largest value; `up` clips nothing
    (Mishra et al. 2025, arXiv:2506.08027)."""

    default_dim_multiple = 32


class NVFP4Config(QuantizedExpertsSection):
    """e2m1 in blocks of 16 with an e4m3 scale each and a float32 one per tensor (NVIDIA 2025, arXiv:2509.25149).

    The defaults are the paper's recipe for the layers it has in 4 bits.
    """

    kind: Literal["nvfp4"] = "nvfp4"
    stochastic_gradients: bool = True
    """Round gradients to a neighbour at random, so that they are right on average."""
    square_weight_blocks: bool = True
    """Blocks of 16 x 16 weights, so that forward and backward pass see the same weights; else 1 x 16 along what each
    pass sums over."""
    hadamard: bool = True
    """Rotate the operands of the weights' gradient, 16 rows at a time, which spreads outliers."""

    default_dim_multiple = 16


QuantizedExpertsConfig = FP8Config | MXFP8Config | NVFP4Config

PrecisionConfig = Annotated[
    Float32Config | BFloat16AutocastConfig | FP8Config | MXFP8Config | NVFP4Config, Field(discriminator="kind")
]
