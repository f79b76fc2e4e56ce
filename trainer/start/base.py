"""What a start has to be."""

from abc import ABC, abstractmethod
from pathlib import Path

from trainer.config import TrainConfig
from trainer.config.run import StartReport
from trainer.config.start import StartConfig
from trainer.model.transformer import Transformer


class Start(ABC):
    """Puts weights into a model before the first step of a run. A run that is resumed does not ask for them again."""

    @abstractmethod
    def __init__(self, config: StartConfig) -> None:
        """Takes the start's own config."""

    @abstractmethod
    def apply(self, config: TrainConfig, model: Transformer, *, root: Path | None) -> StartReport | None:
        """Replace the weights of a model that was just built, and return what they were; None for those it has.

        Args:
            config: of the run.
            model: the bare model, with the new weights of the run's seed.
            root: what a path is relative and confined to; None takes any.

        Raises:
            StartInvalid, NotImportable, CheckpointInvalid: the weights are missing, damaged, or others than the config
                means.
        """
