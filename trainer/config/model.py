"""The model: a decoder-only transformer, dense or with mixture-of-experts layers."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.attention import AttentionConfig
from trainer.config.balancing import BalancerConfig
from trainer.config.routers import RouterConfig, TopKRouterConfig
from trainer.config.section import Section

Activation = Literal["swiglu", "geglu", "clamped_swiglu"]
"""How gate and up projection of an MLP become its hidden features (`kernels.gated_activation`): silu(gate) * up,
gelu(gate) * up as in T5 1.1, or gpt-oss' clamped form."""


class OutputScaleConfig(Section):
    """One scalar per MoE layer on the sum of its routed experts' outputs; shared experts stay as they are.

    Known as "bungee" from Character.AI's training in low precision, where it starts at 2.
    """

    init: float = Field(gt=0, le=1000)
    learned: bool = True
    """Train it, as a parameter that is not decayed; otherwise it stays at `init`."""


class CapacityConfig(Section):
    """The most tokens an expert takes of a micro-batch in training: C = ceil(factor * T * top_k / num_experts) of T.

    What exceeds C is dropped: the token goes without that expert, and the weights of its others stay as they are. Which
    pairs are dropped depends on the other tokens of the micro-batch. Evaluation drops nothing, so that its figures
    depend on a sequence alone.

    Source: Fedus et al. 2021, arXiv:2101.03961, section 2.2 (factor 1 to 1.25); ST-MoE, arXiv:2202.08906 (1.25).
    """

    factor: float = Field(ge=0.1, le=64)
    """Slots per expert, in units of an even load."""
    drop: Literal["probability", "position"] = "probability"
    """Which pairs an expert keeps: those of largest weight (Megatron-Core's default), or the first, a token's first
    choice before any second choice and then by position in the micro-batch (GShard, arXiv:2006.16668, algorithm 1)."""

    def slots(self, num_tokens: int, *, num_experts: int, top_k: int) -> int:
        """Returns C of a micro-batch of `num_tokens`, at least 1."""
        # 0.1 * 30 is 3.0000000000000004, which is no reason for a fourth slot.
        return max(math.ceil(self.factor * num_tokens * top_k / num_experts - 1e-9), 1)


class MoEConfig(Section):
    """The mixture-of-experts layers. Experts are gated MLPs of width `hidden_dim`."""

    num_experts: int = Field(ge=2, le=4096)
    top_k: int = Field(ge=1, le=256)
    hidden_dim: int = Field(ge=8, le=65_536, multiple_of=8)
    num_shared_experts: int = Field(default=0, ge=0, le=16)
    """Experts every token passes through, built as one MLP of `num_shared_experts * hidden_dim`."""
    num_dense_layers: int = Field(default=0, ge=0)
    """The first layers that stay dense, of width `model.hidden_dim`."""
    every: int = Field(default=1, ge=1, le=512)
    """Of the layers after those, every so many is a mixture of experts, the last of each `every`; the others are dense
    (Switch Transformer, arXiv:2101.03961: 2)."""
    activation: Activation = "swiglu"
    """Of routed and shared experts."""
    expert_bias: bool = False
    """Biases on the routed experts' three projections (gpt-oss, arXiv:2508.10925)."""
    shared_gate: bool = False
    """Multiply the shared experts' output by sigmoid(x w), one gate per token (Qwen1.5-MoE and Qwen2-MoE)."""
    output_scale: OutputScaleConfig | None = None
    router: RouterConfig = TopKRouterConfig()
    capacity: CapacityConfig | None = None
    """null is dropless: every expert computes all its tokens."""
    num_null_experts: int = Field(default=0, ge=0, le=4096)
    """Experts without parameters that the router may choose like the others, so that a token can do with fewer than
    `top_k` real ones. They come on top of `num_experts`; balancing methods see each with their mean load, and so steer
    towards K * num_experts / (num_experts + num_null_experts) real experts per token. Where the router normalises, the
    weights of all chosen sum to its scale, null experts among them.

    Source: MoE++, arXiv:2410.07348, section 3.1; AdaMoE, arXiv:2406.13233 (load of null experts); LongCat-Flash,
    arXiv:2509.01322, section 2.1 (identity)."""
    null_expert: Literal["zero", "identity"] = "zero"
    """What they return: nothing, or the token as the layer sees it, which the weight then multiplies."""
    balancing: Annotated[tuple[BalancerConfig, ...], Field(max_length=8)] = ()

    @model_validator(mode="after")
    def _check(self) -> "MoEConfig":
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} exceeds num_experts={self.num_experts}; lower it or add experts")
        if self.shared_gate and not self.num_shared_experts:
            raise ValueError(
                "shared_gate=true with num_shared_experts=0 gates nothing; add shared experts or set it false"
            )
        if self.capacity is not None and (reason := self.router.refuses_capacity) is not None:
            raise ValueError(f"capacity cannot be given with router.kind={self.router.kind}: {reason}; set it to null")
        if self.num_null_experts and (reason := self.router.refuses_null_experts) is not None:
            raise ValueError(
                f"num_null_experts={self.num_null_experts} is not possible with router.kind={self.router.kind}: "
                f"{reason}; set it to 0"
            )
        if self.null_expert == "identity" and not self.num_null_experts:
            raise ValueError(
                "null_expert=identity with num_null_experts=0 does nothing; add null experts or leave it out"
            )
        kinds = [balancer.kind for balancer in self.balancing]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"balancing lists {', '.join(twice)} more than once; each kind may appear once")
        for index, balancer in enumerate(self.balancing):
            if balancer.kind == "group_balancing_loss" and self.num_null_experts:
                raise ValueError(
                    f"balancing.{index}.kind=group_balancing_loss is not possible with num_null_experts="
                    f"{self.num_null_experts}: a null expert stands in no group; take one of them out"
                )
            if balancer.kind == "group_balancing_loss" and self.num_experts % balancer.num_groups:
                raise ValueError(
                    f"balancing.{index}.num_groups={balancer.num_groups} does not divide num_experts="
                    f"{self.num_experts}; choose a divisor"
                )
        if "quantile_balancing" in kinds and "loss_free_bias" in kinds:
            raise ValueError("balancing lists quantile_balancing and loss_free_bias, which set the same bias; keep one")
        if "quantile_balancing" in kinds and self.top_k == self.num_router_outputs:
            raise ValueError(
                f"balancing lists quantile_balancing at top_k=num_experts={self.top_k}, where every token takes every "
                "expert; take it out or lower top_k"
            )
        self.router.check_fit(num_experts=self.num_experts, top_k=self.top_k)
        if kinds and not self.router.is_learned:
            raise ValueError(
                f"balancing lists {', '.join(kinds)}, which cannot act on router.kind={self.router.kind}: nothing of "
                "it is learned; leave balancing empty"
            )
        for index, kind in enumerate(kinds):
            if (reason := self.router.refuses_balancing(kind)) is not None:
                raise ValueError(
                    f"balancing.{index}.kind={kind} cannot act on router.kind={self.router.kind}: {reason}; take it out"
                )
        return self

    @property
    def num_router_outputs(self) -> int:
        """What the router chooses among: the experts and, after them, the null experts."""
        return self.num_experts + self.num_null_experts


class GlobalAttentionConfig(Section):
    """A second attention for some layers: with `every: 4`, layers 4, 8, 12, ... counted from 1, and always the last.

    Local attention (a window, or a linear kind) in most layers and global attention in a few is the pattern of
    gpt-oss (arXiv:2508.10925, every 2) and Kimi Linear (arXiv:2510.26692, every 4).
    """

    every: int = Field(ge=1, le=512)
    attention: AttentionConfig


class ScalesConfig(Section):
    """Fixed multipliers by which hyper-parameters carry over from one width or depth to another.

    Sources: Yang et al. 2022 (muP), arXiv:2203.03466, appendix B.1 (output multiplier); Cerebras-GPT,
    arXiv:2304.03208, appendix G (embedding and logits); Yang et al. 2023, arXiv:2310.02244 (residual branches).
    """

    embedding: float = Field(default=1.0, gt=0, le=1000)
    """On the embedding's output, before the first layer."""
    logits: float = Field(default=1.0, gt=0, le=1000)
    """On the logits. muP: base width over width."""
    residual: float = Field(default=1.0, gt=0, le=1000)
    """On what attention and feed-forward network add to the residual stream, in every layer."""


class InitConfig(Section):
    """How the matrices' initial standard deviations differ from `init_std`; all are normals cut at 3 of them."""

    fan_in_scale: float | None = Field(default=None, gt=0, le=100)
    """If given, a matrix with n inputs starts at sqrt(fan_in_scale / n) instead, embedding and output projection
    excepted (Switch Transformer, arXiv:2101.03961, section 2.4: 0.1)."""
    expert_factor: float = Field(default=1.0, gt=0, le=100)
    """On the routed experts' standard deviation."""
    router_factor: float = Field(default=1.0, gt=0, le=100)
    """On the routers'."""
    scale_residual: bool = True
    """Scale matrices that write into the residual stream by 1/sqrt(2 * num_layers) (GPT-2)."""


class ModelConfig(Section):
    """A decoder-only transformer: RMSNorm before each sub-layer, rotary positions, gated MLPs."""

    vocab_size: int = Field(ge=2, le=1_000_000)
    dim: int = Field(ge=8, le=65_536, multiple_of=8)
    num_layers: int = Field(ge=1, le=512)
    hidden_dim: int = Field(ge=8, le=262_144, multiple_of=8)
    """Width of the dense MLPs: all of them when `moe` is null, else those of the layers that stay dense."""
    activation: Activation = "swiglu"
    """Of the dense MLPs."""
    attention: AttentionConfig
    """The attention of every layer, or of those that `global_attention` leaves."""
    global_attention: GlobalAttentionConfig | None = None
    moe: MoEConfig | None = None
    tie_embeddings: bool = True
    norm_eps: float = Field(default=1e-5, gt=0, le=1e-2)
    init_std: float = Field(default=0.02, gt=0, le=1)
    """Truncated normal (3 sigma); projections back into the residual stream are scaled by 1/sqrt(2 * num_layers)."""
    init: InitConfig = InitConfig()
    scales: ScalesConfig = ScalesConfig()

    @model_validator(mode="after")
    def _dense_layers_fit(self) -> "ModelConfig":
        if self.moe is not None and self.moe.num_dense_layers >= self.num_layers:
            raise ValueError(
                f"moe.num_dense_layers={self.moe.num_dense_layers} leaves no MoE layer of num_layers="
                f"{self.num_layers}; lower it, or set moe to null for a dense model"
            )
        if self.moe is not None and self.moe.num_dense_layers + self.moe.every > self.num_layers:
            raise ValueError(
                f"moe.every={self.moe.every} leaves no MoE layer of the {self.num_layers - self.moe.num_dense_layers} "
                "after the first dense ones; lower it, or set moe to null for a dense model"
            )
        return self

    def layer_kinds(self) -> tuple[Literal["dense", "moe"], ...]:
        """The kind of each layer, first to last."""
        moe = self.moe
        return tuple(
            "moe"
            if moe is not None and layer >= moe.num_dense_layers and (layer - moe.num_dense_layers + 1) % moe.every == 0
            else "dense"
            for layer in range(self.num_layers)
        )

    def layer_attentions(self) -> tuple[AttentionConfig, ...]:
        """The attention of each layer, first to last."""
        chosen = self.global_attention
        return tuple(
            chosen.attention
            if chosen is not None and (layer % chosen.every == 0 or layer == self.num_layers)
            else self.attention
            for layer in range(1, self.num_layers + 1)
        )
