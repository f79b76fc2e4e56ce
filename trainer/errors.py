"""Errors of the trainer.

EvenloadError
+-- TrainingDiverged      the loss or the gradient stopped being finite: deterministic, not retried
+-- OutOfMemory           the device's memory did not suffice: deterministic, not retried
+-- CheckpointInvalid     a checkpoint is truncated, altered or of another configuration
+-- DataInvalid           a corpus, shard or tokenizer does not match its manifest
+-- ResumeMismatch        a resume would continue something else than what was checkpointed
"""


class EvenloadError(Exception):
    """Root of every error that evenload raises on purpose."""


class TrainingDiverged(EvenloadError):
    """The loss or the gradient norm is not finite."""


class OutOfMemory(EvenloadError):
    """The device ran out of memory."""


class CheckpointInvalid(EvenloadError):
    """A checkpoint failed its checks before any tensor of it was used."""


class DataInvalid(EvenloadError):
    """A corpus, shard or tokenizer does not match its manifest."""


class ResumeMismatch(EvenloadError):
    """Data, tokenizer or config differ from those that wrote the checkpoint."""
