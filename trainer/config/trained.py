"""Which parameters of a model a run trains."""

from typing import Literal

from trainer.config.model import ModelConfig
from trainer.config.parameters import ParameterShape, model_parameters

TrainedPart = Literal["all", "non_moe", "moe", "attention", "ffn"]
"""Which parameters a run trains; the others stay as they started, to the last bit.

- `all`: every parameter.
- `moe`: those of the mixture-of-experts layers: router, routed and shared experts, gates and scales.
- `non_moe`: all but those: embeddings, output projection, norms, attention and the dense layers' MLPs.
- `attention`: those of the attention modules, their inner norms included; no norm of the residual stream.
- `ffn`: the MLPs of the dense layers.

Source: the five ways to fine-tune of Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, section 4.2 and figure 5; they have
neither shared experts nor gates.
"""


def trained_parameters(model: ModelConfig, part: TrainedPart) -> dict[str, ParameterShape]:
    """Returns the parameters of this part of the model by name."""
    kinds = model.layer_kinds()

    def is_trained(name: str) -> bool:
        if part == "all":
            return True
        _, layer, module = name.split(".")[:3] if name.startswith("blocks.") else ("", "", "")
        is_moe = module == "feed_forward" and kinds[int(layer)] == "moe"
        if part in ("moe", "non_moe"):
            return is_moe == (part == "moe")
        return module == "attention" if part == "attention" else module == "feed_forward" and not is_moe

    return {name: parameter for name, parameter in model_parameters(model).items() if is_trained(name)}


def check_trained(part: TrainedPart, model: ModelConfig) -> None:
    """Raises ValueError, naming the field, if the model has no such parameters."""
    if part == "all" or trained_parameters(model, part):
        return
    if part == "moe":
        raise ValueError("trained=moe leaves nothing to train: model.moe is null; choose another part")
    raise ValueError(
        f"trained={part} leaves nothing to train: every layer is a mixture of experts; raise "
        "model.moe.num_dense_layers or model.moe.every, or choose another part"
    )
