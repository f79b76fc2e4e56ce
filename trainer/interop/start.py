"""Start checkpoints: weights that a training can begin from, with the model they are of. No optimizer, no step.

    model.safetensors       our state dict: parameters and persistent buffers, tied weights once
    model.json              the model's config, where the weights come from, sha256 and size of the file, its own sha256

`load_start` reads these, and also the checkpoints of our own runs: whatever has a model is something to start from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoint import written_by
from trainer.checkpoint_manifest import MANIFEST_FILE, newest_valid_checkpoint, verify_checkpoint
from trainer.checkpoint_tensors import MODEL
from trainer.config.model import ModelConfig
from trainer.durable import write_durably
from trainer.interop.errors import StartInvalid
from trainer.sealed import file_sha256, sealed, unsealed

START_FILE = "model.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Start:
    """What a start checkpoint says besides its weights.

    Attributes:
        model: the model's config.
        tokenizer: which of our tokenizers its tokens are of; None for a foreign or unknown one.
        max_position_embeddings: positions it was trained on; None if unknown.
        origin: where the weights come from, for people.
    """

    model: ModelConfig
    tokenizer: str | None
    max_position_embeddings: int | None
    origin: str


def save_start(folder: Path, start: Start, tensors: Mapping[str, Tensor]) -> None:
    """Write a start checkpoint; `model.json` comes last, so that a folder with it is whole.

    Raises:
        OSError: the disk failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / START_FILE).unlink(missing_ok=True)
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / MODEL)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"could not write {folder / MODEL}: {error}") from error
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": start.model.model_dump(mode="json"),
        "tokenizer": start.tokenizer,
        "max_position_embeddings": start.max_position_embeddings,
        "origin": start.origin,
        "files": {MODEL: {"sha256": file_sha256(folder / MODEL), "size": (folder / MODEL).stat().st_size}},
    }
    write_durably(folder / START_FILE, sealed(content))


def load_start(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the model at `path` and its state dict, on the CPU, after checking every byte.

    Args:
        path: a start checkpoint, a checkpoint of a run, or a run's folder (its newest sound checkpoint).

    Raises:
        StartInvalid: it is none of these, or does not have its checksums.
        CheckpointInvalid: the checkpoint of a run does not have its checksums.
    """
    start, weights = open_start(path)
    return start.model, load_file(weights)


def open_start(path: Path) -> tuple[Start, Path]:
    """Return what `load_start` would, without loading: the facts and the checked file of weights."""
    if (path / START_FILE).is_file():
        return _read(path / START_FILE), path / MODEL
    checkpoint = path if (path / MANIFEST_FILE).is_file() else newest_valid_checkpoint(path)
    if checkpoint is None:
        raise StartInvalid(
            f"{path} is nothing to start from: no start checkpoint ({START_FILE}), no checkpoint of a run "
            f"({MANIFEST_FILE}), and no run with one (checkpoints/)"
        )
    manifest = verify_checkpoint(checkpoint)
    config = written_by(checkpoint)
    start = Start(
        model=config.model,
        tokenizer=config.data.tokenizer,
        max_position_embeddings=config.data.seq_len,
        origin=f"run {checkpoint.parent.parent.name}, step {manifest.step}",
    )
    return start, checkpoint / MODEL


def _read(path: Path) -> Start:
    """Return the facts of a start checkpoint after reading and checking every byte of it."""
    try:
        content = unsealed(path.read_bytes())
        if content is None:
            raise StartInvalid(f"{path} does not have its own checksum; it was altered")
        if content["format_version"] != FORMAT_VERSION:
            raise StartInvalid(
                f"{path} has format version {content['format_version']}, this code reads {FORMAT_VERSION}"
            )
        weights = path.parent / MODEL
        file = content["files"][MODEL]
        if weights.stat().st_size != file["size"] or file_sha256(weights) != file["sha256"]:
            raise StartInvalid(f"{weights} is truncated or altered: it does not have the size and checksum of {path}")
        return Start(
            model=ModelConfig.model_validate(content["model"]),
            tokenizer=content["tokenizer"],
            max_position_embeddings=content["max_position_embeddings"],
            origin=content["origin"],
        )
    except FileNotFoundError as error:
        raise StartInvalid(f"{error.filename} is missing; write the start checkpoint again") from error
    except ValidationError as error:
        raise StartInvalid(f"{path} has a model that this code does not know: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartInvalid(f"{path} is no description of a start checkpoint: {error}") from error
