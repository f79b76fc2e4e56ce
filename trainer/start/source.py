"""Weights on disk, checked: whose they are, what they hash to, and whether a run may start from them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from trainer.config import TrainConfig
from trainer.config.model import ModelConfig
from trainer.config.run import StartReport
from trainer.config.start import CheckpointStartConfig, HuggingFaceStartConfig, SourceSection, UpcycleStartConfig
from trainer.interop.architecture import computed_by
from trainer.interop.errors import StartInvalid
from trainer.interop.importing import our_state, our_tokenizer, read_config
from trainer.interop.start import open_start
from trainer.interop.weights import read_weights, weight_files
from trainer.sealed import file_sha256
from trainer.start.place import start_folder

SourceKind = Literal["checkpoint", "hugging_face"]
StartSource = CheckpointStartConfig | HuggingFaceStartConfig | UpcycleStartConfig


class Source(NamedTuple):
    """Weights that were read.

    model: what they are of.
    tokenizer: which of our tokenizers their tokens are of; None for a foreign or unknown one.
    tensors: our state dict, on the CPU.
    report: for the run's record.
    """

    model: ModelConfig
    tokenizer: str | None
    tensors: dict[str, Tensor]
    report: StartReport


def read_source(config: StartSource, kind: SourceKind, *, root: Path | None) -> Source:
    """Return the weights at `config.path`, after checking that they are those of `config.sha256` if it is given.

    Args:
        config: of the start.
        kind: what is at the path.
        root: what the path is relative and confined to; None takes any.

    Raises:
        StartInvalid, CheckpointInvalid: there is nothing to start from, or it is damaged or other than `sha256` says.
        NotImportable: a Hugging Face folder that cannot be read as one of our models.
    """
    return _READERS[kind](config, start_folder(config, root=root))


def check_model(config: SourceSection, source: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Check the fields of the weights' model against those the run wants, by dotted path.

    Raises:
        StartInvalid: they differ in a field that `config.changed` does not name.
    """
    absent = "(absent)"
    differences = [
        f"{path}: weights {source.get(path, absent)}, this run {wanted.get(path, absent)}"
        for path in sorted(source.keys() | wanted.keys())
        if source.get(path, absent) != wanted.get(path, absent) and not _is_under(path, config.changed)
    ]
    if differences:
        raise StartInvalid(
            f"start.path={config.path} holds the weights of another model ({'; '.join(differences)}); make the config "
            "that of the weights, or name in start.changed what is meant to differ"
        )


def check_tokenizer(config: SourceSection, source: Source, tokenizer: str) -> None:
    """Check that the weights were trained on this tokenizer's tokens.

    Raises:
        StartInvalid: they were not, or nobody knows, and `config.changed` does not name `data.tokenizer`.
    """
    if source.tokenizer != tokenizer and not _is_under("data.tokenizer", config.changed):
        theirs = "a tokenizer that is none of ours" if source.tokenizer is None else repr(source.tokenizer)
        raise StartInvalid(
            f"start.path={config.path} was trained on the tokens of {theirs}, this run has data.tokenizer="
            f"{tokenizer!r}: its embeddings stand for other text; name data.tokenizer in start.changed if that is meant"
        )


def model_fields(config: TrainConfig | ModelConfig) -> dict[str, object]:
    """Return the fields that decide what a model computes, by dotted path."""
    return dict(computed_by(config.model if isinstance(config, TrainConfig) else config))


def _checkpoint(config: StartSource, path: Path) -> Source:
    start, weights = open_start(path)
    sha256 = _checked_sha256(config, [weights])
    report = StartReport(kind=config.kind, path=config.path, sha256=sha256, origin=start.origin)
    return Source(start.model, start.tokenizer, load_file(weights), report)


def _hugging_face(config: StartSource, path: Path) -> Source:
    architecture, fields, model = read_config(path)
    sha256 = _checked_sha256(config, weight_files(path))
    tensors, _ = our_state(architecture, fields, model, read_weights(path))
    origin = f"Hugging Face folder {path.resolve().name} ({architecture.model_type})"
    report = StartReport(kind=config.kind, path=config.path, sha256=sha256, origin=origin)
    return Source(model, our_tokenizer(path), tensors, report)


_READERS: dict[SourceKind, Callable[[StartSource, Path], Source]] = {
    "checkpoint": _checkpoint,
    "hugging_face": _hugging_face,
}


def _checked_sha256(config: SourceSection, files: Sequence[Path]) -> str:
    found = files_sha256(files)
    if config.sha256 is not None and found != config.sha256:
        raise StartInvalid(
            f"start.path={config.path} holds other weights: their sha256 is {found}, start.sha256 is {config.sha256}; "
            "find the ones that are meant, or correct start.sha256"
        )
    return found


def files_sha256(files: Sequence[Path]) -> str:
    """Return the sha256 of one file, or that of the lines `sha256sum` prints for several, in the order of their names.

    Raises:
        StartInvalid: a file is missing.
    """
    digests: dict[str, str] = {}
    for path in sorted(files):
        try:
            digests[path.name] = file_sha256(path)
        except FileNotFoundError as error:
            raise StartInvalid(f"{path} is missing; get the whole folder") from error
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()).hexdigest()


def _is_under(path: str, changed: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in changed)
