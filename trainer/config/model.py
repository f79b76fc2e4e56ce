"""The model: a decoder-only transformer, dense or with mixture-of-experts layers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.attention import AttentionConfig
from trainer.config.balancing import BalancerConfig
from trainer.config.routers import RouterConfig, TopKRouterConfig
from trainer.config.section import Section


class MoEConfig(Section):
    """The mixture-of-experts layers. Experts are SwiGLU MLPs of width `hidden_dim`."""

    num_experts: int = Field(ge=2, le=4096)
    top_k: int = Field(ge=1, le=256)
    hidden_dim: int = Field(ge=8, le=65_536, multiple_of=8)
    num_shared_experts: int = Field(default=0, ge=0, le=16)
    """Experts every token passes through, built as one MLP of `num_shared_experts * hidden_dim`."""
    num_dense_layers: int = Field(default=0, ge=0)
    """The first layers that stay dense, of width `model.hidden_dim`."""
    router: RouterConfig = TopKRouterConfig()
    balancing: Annotated[tuple[BalancerConfig, ...], Field(max_length=8)] = ()

    @model_validator(mode="after")
    def _check(self) -> "MoEConfig":
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} exceeds num_experts={self.num_experts}; lower it or add experts")
        kinds = [balancer.kind for balancer in self.balancing]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"balancing lists {', '.join(twice)} more than once; each kind may appear once")
        for index, balancer in enumerate(self.balancing):
            if balancer.kind == "group_balancing_loss" and self.num_experts % balancer.num_groups:
                raise ValueError(
                    f"balancing.{index}.num_groups={balancer.num_groups} does not divide num_experts="
                    f"{self.num_experts}; choose a divisor"
                )
        self.router.check_fit(num_experts=self.num_experts, top_k=self.top_k)
        if kinds and not self.router.is_learned:
            raise ValueError(
                f"balancing lists {', '.join(kinds)}, which cannot act on router.kind={self.router.kind}: nothing of "
                "it is learned; leave balancing empty"
            )
        return self


class GlobalAttentionConfig(Section):
    """A second attention for some layers: with `every: 4`, layers 4, 8, 12, ... counted from 1, and always the last.

    Local attention (a window, or a linear kind) in most layers and global attention in a few is the pattern of
    gpt-oss (arXiv:2508.10925, every 2) and Kimi Linear (arXiv:2510.26692, every 4).
    """

    every: int = Field(ge=1, le=512)
    attention: AttentionConfig


class ModelConfig(Section):
    """A decoder-only transformer: RMSNorm before each sub-layer, rotary positions, SwiGLU MLPs."""

    vocab_size: int = Field(ge=2, le=1_000_000)
    dim: int = Field(ge=8, le=65_536, multiple_of=8)
    num_layers: int = Field(ge=1, le=512)
    hidden_dim: int = Field(ge=8, le=262_144, multiple_of=8)
    """Width of the dense MLPs: all of them when `moe` is null, else the first `moe.num_dense_layers`."""
    attention: AttentionConfig
    """The attention of every layer, or of those that `global_attention` leaves."""
    global_attention: GlobalAttentionConfig | None = None
    moe: MoEConfig | None = None
    tie_embeddings: bool = True
    norm_eps: float = Field(default=1e-5, gt=0, le=1e-2)
    init_std: float = Field(default=0.02, gt=0, le=1)
    """Truncated normal (3 sigma); projections back into the residual stream are scaled by 1/sqrt(2 * num_layers)."""

    @model_validator(mode="after")
    def _dense_layers_fit(self) -> "ModelConfig":
        if self.moe is not None and self.moe.num_dense_layers >= self.num_layers:
            raise ValueError(
                f"moe.num_dense_layers={self.moe.num_dense_layers} leaves no MoE layer of num_layers="
                f"{self.num_layers}; lower it, or set moe to null for a dense model"
            )
        return self

    def layer_kinds(self) -> tuple[Literal["dense", "moe"], ...]:
        """The kind of each layer, first to last."""
        num_dense = self.num_layers if self.moe is None else self.moe.num_dense_layers
        return ("dense",) * num_dense + ("moe",) * (self.num_layers - num_dense)

    def layer_attentions(self) -> tuple[AttentionConfig, ...]:
        """The attention of each layer, first to last."""
        chosen = self.global_attention
        return tuple(
            chosen.attention
            if chosen is not None and (layer % chosen.every == 0 or layer == self.num_layers)
            else self.attention
            for layer in range(1, self.num_layers + 1)
        )
