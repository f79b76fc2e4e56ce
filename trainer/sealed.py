"""JSON that carries its own checksum, and checksums of files. Torch-free."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sealed(content: Mapping[str, Any]) -> bytes:
    """Return the content as canonical JSON with its checksum under `sha256`."""
    return _canonical({**content, "sha256": hashlib.sha256(_canonical(content)).hexdigest()})


def unsealed(raw: bytes) -> dict[str, Any] | None:
    """Return the content of what `sealed` wrote, without the checksum; None if any byte is another.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is no JSON object with a checksum.
    """
    content = json.loads(raw)
    del content["sha256"]
    # Byte for byte what we would write: so no changed byte goes unnoticed, not even white space.
    return content if sealed(content) == raw else None


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1).encode()
