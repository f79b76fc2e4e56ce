"""Which parameters are trained."""

from trainer.config.trained import TrainedPart, trained_parameters
from trainer.model.transformer import Transformer


def freeze(model: Transformer, trained: TrainedPart) -> None:
    """Let the parameters of this part of the model be trained and no others.

    To be called before the optimizer is built: whatever asks which parameters are trained asks for `requires_grad`.
    """
    kept = trained_parameters(model.config, trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)


def trains_experts(trained: TrainedPart) -> bool:
    """Return whether the mixture-of-experts layers are trained; where they are not, their selection biases rest too."""
    return trained in ("all", "moe")
