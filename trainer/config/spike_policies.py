"""What a run does about spikes of the loss or the gradient norm, besides recording them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Section

SpikeMetric = Literal["train/loss", "optimizer/grad_norm"]


class RecordSpikesConfig(Section):
    """Spikes are recorded, training goes on."""

    kind: Literal["record"] = "record"


class SkipSpikesConfig(Section):
    """Skips the update of a step whose loss or gradient norm is far above those of the steps before it.

    Source: OLMo-core's SkipStep optimizers (`optim/skip_step_optimizer.py`), whose defaults these are; one-sided, as
    the spike events of the telemetry.
    """

    kind: Literal["skip"] = "skip"
    num_sigmas: float = Field(default=6.0, gt=0, le=1000)
    """Standard deviations above the mean from which on a step is skipped."""
    window: int = Field(default=128, ge=2, le=100_000)
    """Steps that mean and deviation are taken over."""
    min_window: int = Field(default=64, ge=2, le=100_000)
    """Steps before the first that may be skipped."""

    @model_validator(mode="after")
    def _window_fills(self) -> "SkipSpikesConfig":
        if self.min_window > self.window:
            raise ValueError(
                f"min_window={self.min_window} exceeds window={self.window}: no step would ever be skipped; lower it"
            )
        return self


class RewindConfig(Section):
    """Goes back to the newest checkpoint before the spike and on from there with later batches.

    Left out are the batches trained on since that checkpoint, that of the spike, and `num_skipped_steps` after it.

    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, section 5.1, which goes back about 100 steps and leaves out
    200 to 500 batches; the same batches, trained on from another checkpoint, did not spike there.
    """

    kind: Literal["rewind"] = "rewind"
    metric: SpikeMetric = "train/loss"
    """Whose spikes."""
    num_skipped_steps: int = Field(default=16, ge=0, le=1_000_000)
    """Batches after the spike that are left out too."""
    max_rewinds: int = Field(default=10, ge=1, le=10_000)
    """After so many, spikes are recorded only."""


class LowerLearningRateConfig(Section):
    """Multiplies the learning rate by a factor for some steps after a spike.

    They begin where telemetry has come to the host: after the next multiple of `loop.log_every_steps`. Another spike
    meanwhile begins the steps anew, and does not multiply again.
    """

    kind: Literal["lower_lr"] = "lower_lr"
    metric: SpikeMetric = "train/loss"
    """Whose spikes."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    num_steps: int = Field(default=100, ge=1, le=1_000_000)


SpikePolicyConfig = Annotated[
    RecordSpikesConfig | SkipSpikesConfig | RewindConfig | LowerLearningRateConfig, Field(discriminator="kind")
]
