"""Config classes of the trainer: pydantic only, so that validating a spec never imports torch."""

from trainer.config.train import TrainConfig

__all__ = ["TrainConfig"]
