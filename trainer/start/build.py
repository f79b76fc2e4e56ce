"""Gives a model the weights its run starts from."""

from pathlib import Path

from trainer.config import TrainConfig
from trainer.config.run import StartReport
from trainer.model.transformer import Transformer
from trainer.start import STARTS


def apply_start(config: TrainConfig, model: Transformer, *, root: Path | None) -> StartReport | None:
    """Replace the weights of a model that was just built by those of `config.start`; see `Start.apply`."""
    return STARTS[config.start.kind](config.start).apply(config, model, root=root)
