"""Numeric precision of the forward and backward pass."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section


class Float32Config(Section):
    """Everything in float32. The default: on the CPU it is also the fastest at research sizes."""

    kind: Literal["fp32"] = "fp32"


class BFloat16AutocastConfig(Section):
    """bfloat16 autocast over float32 master weights; router, norms and loss stay in float32."""

    kind: Literal["bf16_autocast"] = "bf16_autocast"


PrecisionConfig = Annotated[Float32Config | BFloat16AutocastConfig, Field(discriminator="kind")]
