"""Which parameters are trained."""

from trainer.config.start import TrainedPart
from trainer.model.block import Block
from trainer.model.moe_layer import MoELayer
from trainer.model.transformer import Transformer


def freeze(model: Transformer, trained: TrainedPart) -> None:
    """Let the parameters of this part of the model be trained and no others; see `TrainedPart`.

    To be called before the optimizer is built: whatever asks which parameters are trained asks for `requires_grad`.
    """
    kept = _names(model, trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)


def trains_experts(trained: TrainedPart) -> bool:
    """Return whether the mixture-of-experts layers are trained; where they are not, their selection biases rest too."""
    return trained in ("all", "moe")


def _names(model: Transformer, part: TrainedPart) -> set[str]:
    everything = {name for name, _ in model.named_parameters()}
    if part == "all":
        return everything
    if part == "non_moe":
        return everything - _names(model, "moe")
    names: set[str] = set()
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        kind = "moe" if isinstance(block.feed_forward, MoELayer) else "ffn"
        module, path = (block.attention, "attention") if part == "attention" else (block.feed_forward, "feed_forward")
        if part in ("attention", kind):
            names |= {f"blocks.{index}.{path}.{name}" for name, _ in module.named_parameters()}
    return names
