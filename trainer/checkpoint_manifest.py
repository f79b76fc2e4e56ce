"""The manifest of a checkpoint: what it consists of, byte for byte, and how to tell a sound one. Torch-free."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import CheckpointInvalid
from trainer.sealed import file_sha256, sealed, unsealed

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CHECKPOINTS_FOLDER = "checkpoints"
MANIFEST_FILE = "manifest.json"

_STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is and consists of.

    Attributes:
        step, tokens: updates done and tokens trained on.
        config_fingerprint, data_fingerprint: of the run that wrote it.
        code_fingerprint: of the code that wrote it, see `trainer.code_state`; None where it was not noted.
        world_size, num_threads, torch_version: bit-exact resumption holds only where these agree.
        files: name -> (sha256, size in bytes).
        sha256: of the manifest file itself.
    """

    step: int
    tokens: int
    config_fingerprint: str
    data_fingerprint: str
    code_fingerprint: str | None
    world_size: int
    num_threads: int
    torch_version: str
    files: Mapping[str, tuple[str, int]]
    sha256: str


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` is."""
    return run_folder / CHECKPOINTS_FOLDER / f"step-{step:08d}"


def write_manifest(folder: Path, *, files: Sequence[str], facts: Mapping[str, object]) -> None:
    """Write the manifest of a checkpoint whose other files are complete.

    Args:
        folder: where the files are.
        files: their names.
        facts: every other field of `Manifest` but `sha256`.
    """
    content: dict[str, object] = {"format_version": FORMAT_VERSION, **facts}
    content["files"] = {
        name: {"sha256": file_sha256(folder / name), "size": (folder / name).stat().st_size} for name in files
    }
    (folder / MANIFEST_FILE).write_bytes(sealed(content))


def verify_checkpoint(path: Path) -> Manifest:
    """Return the manifest of a checkpoint after reading and checking every byte of it.

    Raises:
        CheckpointInvalid: something is missing, added, truncated or altered; the message names the file.
    """
    manifest = read_manifest(path)
    present = {entry.name for entry in path.iterdir()} - {MANIFEST_FILE}
    if present != manifest.files.keys():
        missing, unknown = sorted(manifest.files.keys() - present), sorted(present - manifest.files.keys())
        raise CheckpointInvalid(f"{path}: missing files {missing}, unknown files {unknown}; use another checkpoint")
    for name, (sha256, size) in manifest.files.items():
        actual = (path / name).stat().st_size
        if actual != size:
            raise CheckpointInvalid(f"{path / name} has {actual} bytes, the manifest says {size}; it is truncated")
        if file_sha256(path / name) != sha256:
            raise CheckpointInvalid(f"{path / name} does not have the checksum of the manifest; it was altered")
    return manifest


def newest_valid_checkpoint(run_folder: Path) -> Path | None:
    """Return the checkpoint with the highest step that passes `verify_checkpoint`; warn about those that do not."""
    for path in checkpoints_of(run_folder):
        try:
            verify_checkpoint(path)
        except CheckpointInvalid as error:
            logger.warning("skipping a checkpoint: %s", error)
        else:
            return path
    return None


def checkpoints_of(run_folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, sound or not, the highest step first."""
    candidates = [
        path for path in (run_folder / CHECKPOINTS_FOLDER).glob("step-*") if _STEP_FOLDER.fullmatch(path.name)
    ]
    return sorted(candidates, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint after checking it against its own checksum, not yet the other files.

    Raises:
        CheckpointInvalid: it is missing, altered or of another format.
    """
    path = folder / MANIFEST_FILE
    try:
        raw = path.read_bytes()
        content = unsealed(raw)
        if content is None:
            raise CheckpointInvalid(f"{path} does not have its own checksum; it was altered")
        if content["format_version"] != FORMAT_VERSION:
            raise CheckpointInvalid(
                f"{path} has format version {content['format_version']}, this code reads {FORMAT_VERSION}"
            )
        return Manifest(
            step=content["step"],
            tokens=content["tokens"],
            config_fingerprint=content["config_fingerprint"],
            data_fingerprint=content["data_fingerprint"],
            code_fingerprint=content.get("code_fingerprint"),
            world_size=content["world_size"],
            num_threads=content["num_threads"],
            torch_version=content["torch_version"],
            files={name: (entry["sha256"], entry["size"]) for name, entry in content["files"].items()},
            sha256=hashlib.sha256(raw).hexdigest(),
        )
    except FileNotFoundError as error:
        raise CheckpointInvalid(f"{path} does not exist; the folder is no complete checkpoint") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointInvalid(f"{path} is no manifest: {error}") from error
