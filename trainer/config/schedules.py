"""Learning-rate schedules: a factor on the learning rate as a function of the step."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Section


class CosineScheduleConfig(Section):
    """Linear warm-up, then half a cosine down to `final_fraction` at the last step.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """

    kind: Literal["cosine"] = "cosine"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of all steps spent warming up."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)


class WarmupStableDecayScheduleConfig(Section):
    """Linear warm-up, constant, then a linear decay to `final_fraction` over the last steps.

    Source: Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4; the decay is linear as in Hagele et al. 2024,
    arXiv:2405.18392.
    """

    kind: Literal["wsd"] = "wsd"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    final_fraction: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> "WarmupStableDecayScheduleConfig":
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction={self.warmup_fraction} and decay_fraction={self.decay_fraction} exceed 1 together; "
                "lower one of them"
            )
        return self


class ConstantScheduleConfig(Section):
    """Linear warm-up, then the whole learning rate to the end."""

    kind: Literal["constant"] = "constant"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)


class InverseSqrtScheduleConfig(Section):
    """Linear warm-up, then a decay with the inverse square root of the step, continuous at the warm-up's end.

    The warm-up sets the pace of the decay: a run four times as long as its warm-up ends at half the learning rate.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 3, scaled to a peak of 1.
    """

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)


ScheduleConfig = Annotated[
    CosineScheduleConfig | WarmupStableDecayScheduleConfig | ConstantScheduleConfig | InverseSqrtScheduleConfig,
    Field(discriminator="kind"),
]
