"""What happens to a gradient before the update: clipping."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section

MaxNorm = Annotated[float, Field(gt=0, le=1e6)]


class NoClippingConfig(Section):
    """The gradient as it is."""

    kind: Literal["none"] = "none"


class GlobalNormConfig(Section):
    """The whole gradient scaled down to a fixed L2 norm (Pascanu et al. 2013, arXiv:1211.5063, algorithm 1)."""

    kind: Literal["global_norm"] = "global_norm"
    max_norm: MaxNorm = 1.0


class ZClipConfig(Section):
    """ZClip: the whole gradient scaled down where its norm lies far above the running mean of the norms before it.

    Source: Kumar et al. 2025, arXiv:2504.02507, in its reciprocal form; the defaults are those of the authors' code.
    """

    kind: Literal["zclip"] = "zclip"
    decay: float = Field(default=0.97, ge=0, lt=1)
    """Share of the old mean and variance of the norm in the new ones."""
    threshold: float = Field(default=2.5, gt=0, le=100)
    """Standard deviations above the mean from which on the gradient is clipped."""
    warmup_steps: int = Field(default=25, ge=2, le=1_000_000)
    """First steps, that are not clipped by their deviation: mean and variance start as theirs."""
    max_norm: MaxNorm | None = None
    """Norm that the gradient is clipped to besides, in the warm-up too; null does not."""


class AdaGCConfig(Section):
    """AdaGC: each tensor's gradient, of a stack each expert's, clipped to a running mean of its own clipped norms.

    Source: Wang et al. 2025, arXiv:2502.11034; the defaults are those of `pytorch_optimizer.AdaGC`.
    """

    kind: Literal["adagc"] = "adagc"
    decay: float = Field(default=0.98, ge=0, lt=1)
    """Share of the old mean of a tensor's norm in the new one."""
    max_ratio: float = Field(default=1.05, ge=1, le=100)
    """Largest norm of a tensor's gradient, relative to the mean of those before."""
    warmup_steps: int = Field(default=100, ge=1, le=1_000_000)
    """First steps, in which the whole gradient is clipped to `max_norm` and a tensor's mean is its least norm."""
    max_norm: MaxNorm = 1.0
    """Norm of the whole gradient in the warm-up."""


ClippingConfig = Annotated[NoClippingConfig | GlobalNormConfig | ZClipConfig | AdaGCConfig, Field(discriminator="kind")]
