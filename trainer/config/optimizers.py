"""Optimizers and their parameter groups."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section

ParameterRole = Literal["dense", "router", "expert", "embedding"]
"""Every parameter has one role. `dense` is what is none of the others: attention, dense MLPs, shared experts, norms."""

LearningRate = Annotated[float, Field(gt=0, le=10)]


class GroupOverrides(Section):
    """What a parameter group does differently; a missing value is the optimizer's own."""

    lr_scale: float = Field(default=1.0, gt=0, le=1000)
    """Factor on the optimizer's learning rate."""
    weight_decay: float | None = Field(default=None, ge=0, le=10)
    beta1: float | None = Field(default=None, ge=0, lt=1)
    beta2: float | None = Field(default=None, ge=0, lt=1)


class RouterOverrides(GroupOverrides):
    """As the others, but routers are not decayed unless asked for: decay pulls their logits towards uniform routing."""

    weight_decay: float | None = Field(default=0.0, ge=0, le=10)


class AdamWConfig(Section):
    """AdamW with one group per parameter role.

    Norm gains are never decayed. Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    kind: Literal["adamw"] = "adamw"
    lr: LearningRate
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    dense: GroupOverrides = GroupOverrides()
    router: RouterOverrides = RouterOverrides()
    expert: GroupOverrides = GroupOverrides()
    embedding: GroupOverrides = GroupOverrides()


OptimizerConfig = AdamWConfig
"""The union of optimizers, discriminated by `kind` once there is more than one."""
