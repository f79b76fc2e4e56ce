"""Builds the clipping method."""

import torch
from torch import nn

from trainer.clipping import CLIPPERS
from trainer.clipping.base import Clipper
from trainer.config.clipping import ClippingConfig


def build_clipper(config: ClippingConfig, model: nn.Module, *, device: torch.device) -> Clipper:
    """Returns the method for the trained parameters of `model`, its buffers on `device`."""
    return CLIPPERS[config.kind](config, model).to(device)
