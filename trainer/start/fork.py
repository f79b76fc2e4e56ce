"""A run that goes on from a checkpoint of another one, under values of its own."""

from pathlib import Path

from trainer.config import TrainConfig
from trainer.config.run import StartReport
from trainer.config.start import ForkStartConfig
from trainer.fork import open_fork
from trainer.model.transformer import Transformer
from trainer.start.base import Start


class Fork(Start):
    """Checks the checkpoint; all that it holds, the weights too, is put back by `trainer.training`, as at a resume."""

    def __init__(self, config: ForkStartConfig) -> None:
        self.config = config

    def apply(self, config: TrainConfig, model: Transformer, *, root: Path | None) -> StartReport:
        del model
        source = open_fork(config, root=root)
        return StartReport(
            kind=self.config.kind,
            path=self.config.path,
            sha256=self.config.sha256,
            origin=f"run {source.path.parent.parent.name}, step {self.config.step}",
        )
