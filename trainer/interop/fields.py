"""The fields of a Hugging Face `config.json` that decide what a model computes, with what they may be here. Torch-free.

Each architecture has a class of them: written on export, read on import. A field that is missing from a file has the
value that `transformers` gives it; one of no consequence is ignored; a value that we cannot compute is refused.
"""

from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from trainer.interop.pattern import expert_pattern


class RotaryFields(BaseModel):
    """Plain rotary positions over whole heads; scaled ones (linear, yarn, llama3, ...) are refused by their type."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rope_theta: float = Field(gt=1)
    rope_type: Literal["default"] = "default"
    partial_rotary_factor: Literal[1] | None = Field(default=None, exclude=True)


NUM_EXPERTS = AliasChoices("num_experts", "num_local_experts", "n_routed_experts")
"""The count of routed experts goes by several names, and which is written has changed between versions."""


class HuggingFaceFields(BaseModel):
    """What all architectures have."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=(), validate_by_name=True)

    default_rope_theta: ClassVar[float] = 10_000.0
    default_rope_type: ClassVar[str] = "default"
    default_partial_rotary_factor: ClassVar[float | None] = None

    architectures: tuple[str, ...] | None = None
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: Literal["silu", "swish"] = "silu"
    rms_norm_eps: float
    tie_word_embeddings: bool = False
    max_position_embeddings: int
    """Positions the model was trained on; our models have no bound of their own."""
    initializer_range: float = 0.02
    rope_parameters: RotaryFields
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    """Exported as null: the row of a padding token has no gradient in their models."""
    quantization_config: None = Field(default=None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _one_form_of_positions(cls, document: Any) -> Any:
        """Files before transformers 5 have `rope_theta` and `rope_scaling` beside one another."""
        if not isinstance(document, dict):
            return document
        inner = document.get("rope_parameters") or document.get("rope_scaling") or {}
        if not isinstance(inner, dict):
            return document
        theta = document.get("rope_theta", cls.default_rope_theta)
        kind = {"rope_type": inner["type"]} if "type" in inner and "rope_type" not in inner else {}
        if not inner:
            kind = {"rope_type": cls.default_rope_type}
        partial = {"partial_rotary_factor": document.get("partial_rotary_factor", cls.default_partial_rotary_factor)}
        return {**document, "rope_parameters": {"rope_theta": theta, **partial, **kind, **inner}}

    def document(self) -> dict[str, Any]:
        """Returns what goes into `config.json`; `rope_theta` also where readers before transformers 5 look for it."""
        return {**self.model_dump(mode="json"), "rope_theta": self.rope_parameters.rope_theta}


class GroupedQueryFields(HuggingFaceFields):
    """What architectures with grouped queries have."""

    num_key_value_heads: int | None = None
    """Null is one per query head."""
    head_dim: int | None = None
    """Null is `hidden_size / num_attention_heads`."""

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Features of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class BiasedAttentionFields(GroupedQueryFields):
    """What those have whose attention may have biases, on all of its projections or on none."""

    attention_bias: bool = False

    @property
    def bias(self) -> Literal["none", "all"]:
        """The projections with a bias, as our config says it."""
        return "all" if self.attention_bias else "none"


class SparseLayersFields(GroupedQueryFields):
    """What Qwen's models with experts have: dense are the layers of `mlp_only_layers`, and all but every
    `decoder_sparse_step`-th."""

    intermediate_size: int
    """Width of a dense layer."""
    moe_intermediate_size: int
    num_experts: int = Field(validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _layers_have_a_pattern(self) -> "SparseLayersFields":
        if expert_pattern(self.layer_is_dense) is None:
            dense = [layer for layer, is_dense in enumerate(self.layer_is_dense) if is_dense]
            raise ValueError(
                f"mlp_only_layers={self.mlp_only_layers} and decoder_sparse_step={self.decoder_sparse_step} make the "
                f"layers {dense} dense; they can be the first ones, and then all but every n-th"
            )
        return self

    @property
    def layer_is_dense(self) -> list[bool]:
        """For each layer whether it has no experts."""
        dense = self.mlp_only_layers or ()
        return [
            layer in dense or (layer + 1) % self.decoder_sparse_step != 0 for layer in range(self.num_hidden_layers)
        ]
