"""The manifest of the embedded corpora, and the fingerprint of everything that determines what a run reads."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from trainer.errors import DataInvalid

EMBEDDED = Path(__file__).resolve().parent / "embedded"


class Split(StrEnum):
    """A part of a corpus; no document is in both."""

    TRAIN = "train"
    VALIDATION = "validation"


@dataclass(frozen=True)
class SplitSize:
    """How much text a split holds; `num_bytes` counts UTF-8 bytes."""

    num_documents: int
    num_bytes: int


@dataclass(frozen=True)
class CorpusManifest:
    """What the manifest says about one corpus; `sha256` is that of its compressed file."""

    name: str
    sha256: str
    splits: Mapping[Split, SplitSize]
    sources: tuple[str, ...]
    licence: str
    cleaning: str
    splitting: str

    @property
    def path(self) -> Path:
        """The compressed file, one JSON document per line."""
        return EMBEDDED / f"{self.name}.jsonl.xz"


@cache
def read_manifest() -> Mapping[str, CorpusManifest]:
    """Return the embedded corpora by name."""
    corpora = json.loads((EMBEDDED / "manifest.json").read_text(encoding="utf-8"))["corpora"]
    return {
        name: CorpusManifest(
            name=name,
            sha256=entry["sha256"],
            splits={
                Split(split): SplitSize(num_documents=size["documents"], num_bytes=size["bytes"])
                for split, size in entry["splits"].items()
            },
            sources=tuple(entry["sources"]),
            licence=entry["licence"],
            cleaning=entry["cleaning"],
            splitting=entry["splitting"],
        )
        for name, entry in corpora.items()
    }


def corpus_manifest(name: str) -> CorpusManifest:
    """Return the manifest entry of the corpus `name`.

    Raises:
        DataInvalid: there is no corpus of that name.
    """
    corpora = read_manifest()
    if name not in corpora:
        raise DataInvalid(f"there is no corpus named {name!r}; there are: {', '.join(sorted(corpora))}")
    return corpora[name]


def data_fingerprint(*, weights: Mapping[str, float], tokenizer_fingerprint: str, seq_len: int, seed: int) -> str:
    """Return the SHA-256 (hex) of everything that decides which tokens sample i of a run holds.

    That is: the bytes of each corpus and its weight in the mixture, the tokenizer, the sequence length and the seed. A
    checkpoint stores it; a resume with another one would silently train on other data. Only ratios of weights matter to
    a mixture, but the weights enter as given: equal fingerprints promise equal data, different ones do not promise
    different data.
    """
    facts = {
        "corpora": {name: {"sha256": corpus_manifest(name).sha256, "weight": float(weights[name])} for name in weights},
        "tokenizer": tokenizer_fingerprint,
        "seq_len": seq_len,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
