"""Errors of exchanging weights.

EvenloadError
+-- NotExportable         no architecture of Hugging Face's computes what the model computes
+-- NotImportable         a folder is no checkpoint of theirs, or of a model that cannot be built here
+-- StartInvalid          a start checkpoint is truncated, altered or none at all
"""

from trainer.errors import EvenloadError


class NotExportable(EvenloadError):
    """The model is none of the architectures that can be written; the message says what stands in the way of each."""


class NotImportable(EvenloadError):
    """The folder cannot be read as a model; the message names each field or tensor."""


class StartInvalid(EvenloadError):
    """A folder to start from failed its checks before any tensor of it was used."""
