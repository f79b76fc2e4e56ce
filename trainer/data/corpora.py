"""Reads the documents of the embedded corpora."""

import hashlib
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trainer.config.data import CORPORA
from trainer.data.manifest import CorpusManifest, Split, corpus_manifest
from trainer.errors import DataInvalid

__all__ = ["CORPORA", "Document", "SplitName", "read_documents"]

SplitName = Literal["train", "validation"]


@dataclass(frozen=True)
class Document:
    """One document; `id` is unique within its corpus, `source` names the package and version it was cut from."""

    id: str
    text: str
    source: str


def read_documents(name: str, split: SplitName) -> Iterator[Document]:
    """Return the documents of one split of the corpus `name`, in the order of the file (by id).

    The whole file is checked against the manifest before the first document is returned.

    Raises:
        DataInvalid: there is no such corpus, or its file is missing or altered.
        ValueError: there is no such split.
    """
    data = _verified_bytes(corpus_manifest(name))
    wanted = Split(split)
    return _documents(data, wanted)


def _documents(data: bytes, wanted: Split) -> Iterator[Document]:
    for line in lzma.decompress(data).splitlines():
        row = json.loads(line)
        if row["split"] == wanted:
            yield Document(id=row["id"], text=row["text"], source=row["source"])


def _verified_bytes(corpus: CorpusManifest) -> bytes:
    try:
        data = corpus.path.read_bytes()
    except FileNotFoundError as error:
        raise DataInvalid(f"corpus {corpus.name}: {corpus.path} is missing; restore it from the repository") from error
    found = hashlib.sha256(data).hexdigest()
    if found != corpus.sha256:
        raise DataInvalid(
            f"corpus {corpus.name}: {corpus.path.name} has sha256 {found[:12]}, its manifest has {corpus.sha256[:12]}; "
            "the file was altered or cut short: restore it from the repository"
        )
    return data
