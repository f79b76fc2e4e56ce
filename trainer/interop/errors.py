"""Errors of exchanging weights.

EvenloadError
+-- NotExportable         no architecture of Hugging Face's computes what the model computes
+-- NotImportable         a folder is no checkpoint of theirs, or of a model that cannot be built here
+-- StartInvalid          a start checkpoint is truncated, altered or none at all
"""

from collections.abc import Sequence

from trainer.errors import EvenloadError

MAX_NAMED = 8
"""Tensors or fields that a message names."""


class NotExportable(EvenloadError):
    """The model is none of the architectures that can be written; the message says what stands in the way of each."""


class NotImportable(EvenloadError):
    """The folder cannot be read as a model; the message names each field or tensor."""


class StartInvalid(EvenloadError):
    """A folder to start from failed its checks before any tensor of it was used."""


def some_of(names: Sequence[str]) -> str:
    """Return the first names for a message, and how many more there are."""
    shown = ", ".join(names[:MAX_NAMED]) or "none"
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
