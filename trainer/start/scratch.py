"""New weights."""

from pathlib import Path

from trainer.config import TrainConfig
from trainer.config.run import StartReport
from trainer.config.start import ScratchStartConfig
from trainer.model.transformer import Transformer
from trainer.start.base import Start


class Scratch(Start):
    """Leaves the weights that the model was built with."""

    def __init__(self, config: ScratchStartConfig) -> None:
        del config

    def apply(self, config: TrainConfig, model: Transformer, *, root: Path | None) -> StartReport | None:
        del config, model, root
        return None
