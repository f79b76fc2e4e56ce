"""The weights of a model as it is: fine-tuning and continued training."""

from pathlib import Path

from trainer.config import TrainConfig
from trainer.config.run import StartReport
from trainer.config.start import CheckpointStartConfig, HuggingFaceStartConfig
from trainer.model.transformer import Transformer
from trainer.start.base import Start
from trainer.start.source import check_model, check_tokenizer, model_fields, read_source
from trainer.start.tensors import put_tensors


class SameModel(Start):
    """Takes every weight, and the selection biases if there are any, from one of our checkpoints or from a Hugging Face
    folder."""

    def __init__(self, config: CheckpointStartConfig | HuggingFaceStartConfig) -> None:
        self.config = config

    def apply(self, config: TrainConfig, model: Transformer, *, root: Path | None) -> StartReport:
        source = read_source(self.config, self.config.kind, root=root)
        check_model(self.config, model_fields(source.model), model_fields(config))
        check_tokenizer(self.config, source, config.data.tokenizer)
        put_tensors(model, source.tensors, origin=f"start.path={self.config.path}")
        return source.report
