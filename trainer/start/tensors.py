"""Puts a state dict into a model."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.interop.errors import StartInvalid, some_of


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Replace every parameter of the model, and the buffers that are given; other buffers stay.

    Args:
        model: whose.
        tensors: by name, as in its state dict.
        origin: where they come from, for the message.

    Raises:
        StartInvalid: a parameter is missing, a tensor unknown, or of another shape. The model is as it was then.
    """
    expected = model.state_dict(keep_vars=True)
    missing = sorted(name for name, _ in model.named_parameters() if name not in tensors)
    unknown = sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        biases = any(name.endswith("selection_bias_E") for name in unknown)
        hint = "; a selection bias needs a balancing method that has one, say loss_free_bias" if biases else ""
        raise StartInvalid(
            f"{origin} is of another model: missing {some_of(missing)}; unknown {some_of(unknown)}{hint}"
        )
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != expected[name].shape:
            raise StartInvalid(
                f"{origin}: {name} has shape {tuple(tensor.shape)}, the model {tuple(expected[name].shape)}; "
                "make the config's sizes those of the weights"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)
