"""Builds the precision of a run."""

import torch

from trainer.config.precision import PrecisionConfig
from trainer.precision import PRECISIONS
from trainer.precision.base import Precision


def build_precision(config: PrecisionConfig, device: torch.device) -> Precision:
    """Returns the precision for a model on `device`."""
    return PRECISIONS[config.kind](config, device)
