"""What an architecture of Hugging Face's has to say, and how a model finds the one that computes the same.

A model can be written as an architecture if describing it in that architecture's fields and reading them back gives the
same model. So whatever the fields cannot say, options that come later included, stands in the way by itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ValidationError
from torch import Tensor

from trainer.config.attention import AttentionConfig
from trainer.config.model import ModelConfig
from trainer.interop import ARCHITECTURES
from trainer.interop.decoder import QWEN_NAMES, ExpertNames
from trainer.interop.errors import NotExportable
from trainer.interop.fields import HuggingFaceFields
from trainer.interop.layout import Rule
from trainer.interop.pattern import expert_pattern
from trainer.interop.weights import per_expert

TRAINING_ONLY = (
    "init",
    "init_std",
    "moe.balancing",
    "moe.capacity",
    "moe.router.input_jitter",
    "moe.router.logit_noise",
)
"""Fields of a model that say how it is trained, not what it computes."""

CONSEQUENCES = ("model.hidden_dim", "model.activation", "model.attention.qk_norm_over")
"""Fields that mean something only by others, whose difference is told anyway."""

F = TypeVar("F", bound=HuggingFaceFields)


class Architecture(ABC, Generic[F]):
    """One architecture: its fields, its tensors, and which of our models it is."""

    model_type: ClassVar[str]
    """Their name of it in `config.json`."""
    class_name: ClassVar[str]
    """Their class of it, which `AutoModelForCausalLM` chooses."""
    fields_class: type[F]
    attention_kind: ClassVar[str]
    router_kinds: ClassVar[tuple[str, ...]]
    """Kinds of routers that it may have; empty for a dense model."""
    expert_names: ClassVar[ExpertNames] = QWEN_NAMES
    has_local_layers: ClassVar[bool] = False
    """Whether some layers may have a window and others none."""

    @abstractmethod
    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> F:
        """Returns the fields of the model as far as they can describe it.

        Args:
            config: a model that `obstacles` found nothing against in its structure.
            common: the fields that all architectures have.
        """

    @abstractmethod
    def to_model(self, fields: F) -> dict[str, Any]:
        """Returns what a `ModelConfig` has besides `common_model`: attention, moe and hidden_dim."""

    @abstractmethod
    def rules(self, fields: F) -> Iterator[Rule]:
        """Yields where each of our tensors is in a checkpoint."""

    def unpacked(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weights of a checkpoint, or gradients of theirs, by the names that `rules` uses."""
        return per_expert(weights, self.expert_names)

    def packed(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of a checkpoint, from those that `rules` names in its order; the inverse of `unpacked`."""
        yield from tensors

    def fields_of(self, config: ModelConfig, *, max_position_embeddings: int) -> F:
        """Returns the fields of a model without obstacles."""
        common = {
            "architectures": (self.class_name,),
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            "hidden_size": config.dim,
            "num_hidden_layers": config.num_layers,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "initializer_range": config.init_std,
            "max_position_embeddings": max_position_embeddings,
        }
        return self.to_fields(config, common)

    def model_of(self, fields: F) -> ModelConfig:
        """Returns the model that the fields describe.

        Raises:
            ValidationError: our models cannot have these sizes.
        """
        common = {
            "vocab_size": fields.vocab_size,
            "dim": fields.hidden_size,
            "num_layers": fields.num_hidden_layers,
            "norm_eps": fields.rms_norm_eps,
            "tie_embeddings": fields.tie_word_embeddings,
            "init_std": fields.initializer_range,
        }
        return ModelConfig.model_validate(common | self.to_model(fields))

    def obstacles(self, config: ModelConfig) -> list[str]:
        """Returns why this architecture does not compute what the model computes; empty if it does."""
        structural = list(self._structural_obstacles(config))
        if structural:
            return structural
        try:
            fields = self.fields_of(config, max_position_embeddings=1)
            written, read = computed_by(config), computed_by(self.model_of(fields))
        except ValidationError as error:
            return [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        absent = "absent"
        return [
            f"{name} is {written.get(name, absent)}, here it is {read.get(name, absent)}"
            for name in sorted(written.keys() | read.keys())
            if written.get(name, absent) != read.get(name, absent)
            and not (name in CONSEQUENCES and (name in written) != (name in read))
        ]

    def is_of_another_structure(self, config: ModelConfig) -> bool:
        """Returns whether the model has other parts, so that the fields could not even describe it."""
        return any(True for _ in self._structural_obstacles(config))

    def _structural_obstacles(self, config: ModelConfig) -> Iterator[str]:
        if config.global_attention is not None and not self.has_local_layers:
            yield "model.global_attention is set, here all layers have the same attention"
        for kind in sorted({attention.kind for attention in config.layer_attentions()} - {self.attention_kind}):
            yield f"model.attention.kind is {kind}, here it is {self.attention_kind}"
        if config.moe is None and self.router_kinds:
            yield "model.moe is null, here there are experts"
        elif config.moe is not None and not self.router_kinds:
            yield "model.moe is set, here there are no experts"
        elif config.moe is not None and config.moe.router.kind not in self.router_kinds:
            kinds = " or ".join(self.router_kinds)
            yield f"model.moe.router.kind is {config.moe.router.kind}, here it is {kinds}"


def computed_by(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields that decide what a model computes, by dotted path; equal for models that compute the same."""
    document = config.model_dump(mode="json", exclude={"attention", "global_attention"})
    leaves = dict(_leaves(document, "model"))
    attentions = config.layer_attentions()
    if len(set(attentions)) == 1:
        leaves |= _attention_leaves(attentions[0], "model.attention")
    else:
        for layer, attention in enumerate(attentions):
            leaves |= _attention_leaves(attention, f"model.layers.{layer}.attention")
    is_dense = [kind == "dense" for kind in config.layer_kinds()]
    if not any(is_dense):
        for name in ("model.hidden_dim", "model.activation"):
            leaves.pop(name, None)
    if (pattern := expert_pattern(is_dense)) is not None:
        leaves["model.moe.num_dense_layers"], leaves["model.moe.every"] = pattern
    router = config.moe and config.moe.router
    if router is not None and router.kind == "group_limited" and router.groups_per_token == router.num_groups:
        # All groups are open to every token: token choice.
        leaves["model.moe.router.kind"] = "top_k"
        for name in ("num_groups", "groups_per_token", "group_score"):
            leaves.pop(f"model.moe.router.{name}")
    dropped = tuple(f"model.{name}" for name in TRAINING_ONLY)
    return {
        path: leaf
        for path, leaf in leaves.items()
        if not any(path == name or path.startswith(f"{name}.") for name in dropped)
    }


def architecture_of(config: ModelConfig, wanted: str | None = None) -> Architecture[Any]:
    """Returns the architecture that computes what the model computes, the `wanted` one if there is a choice.

    Raises:
        NotExportable: there is none, or it is not the wanted one; says what stands in the way.
    """
    candidates = {name: ARCHITECTURES[name]() for name in ([wanted] if wanted else ARCHITECTURES)}
    obstacles = {name: architecture.obstacles(config) for name, architecture in candidates.items()}
    for name, found in obstacles.items():
        if not found:
            return candidates[name]
    closest_first = sorted(
        obstacles.items(), key=lambda item: (candidates[item[0]].is_of_another_structure(config), len(item[1]))
    )
    lines = [f"  {name}: {'; '.join(found)}" for name, found in closest_first]
    raise NotExportable(
        "no architecture of Hugging Face's that can be written computes what this model computes. What stands in the "
        "way of each:\n" + "\n".join(lines)
    )


def _attention_leaves(attention: AttentionConfig, path: str) -> dict[str, Any]:
    leaves = dict(_leaves(attention.model_dump(mode="json"), path))
    if not leaves.get(f"{path}.qk_norm", True):
        leaves.pop(f"{path}.qk_norm_over")
    return leaves


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}")
    else:
        yield path, value
