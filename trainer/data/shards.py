"""Token shards: a corpus split, tokenised once and memory-mapped from then on.

A shard is two files, written under temporary names and renamed, tokens first:

    <corpus>-<split>-<tokenizer>-<key>.npy    uint16 tokens: end-of-text, document, end-of-text, ..., end-of-text
    <corpus>-<split>-<tokenizer>-<key>.json   where documents start, how many bytes they have, what it was made from

`key` hashes what the tokens are a function of, so shards of different corpora or tokenizers never meet. Several
processes may build the same shard at once: they write identical bytes, and the last rename wins.
"""

import hashlib
import io
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.corpora import SplitName, read_documents
from trainer.data.manifest import corpus_manifest
from trainer.data.tokenizer import Tokenizer, load_tokenizer
from trainer.durable import write_durably
from trainer.errors import DataInvalid

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class TokenShard:
    """The tokens of one corpus split; `tokens` is a read-only memory map of shape [num_tokens], uint16."""

    corpus: str
    split: SplitName
    tokenizer_name: str
    tokenizer_fingerprint: str
    corpus_sha256: str
    tokens: NDArray[np.uint16]
    document_ids: tuple[str, ...]
    document_offsets: NDArray[np.int64]
    """Position of each document's first token, ascending."""
    document_num_bytes: NDArray[np.int64]
    """UTF-8 bytes of each document's text."""

    @property
    def num_tokens(self) -> int:
        """All tokens, the end-of-text tokens included."""
        return len(self.tokens)

    def num_windows(self, seq_len: int) -> int:
        """Return how many windows of `seq_len` targets there are; up to `seq_len - 1` tokens at the end are left over.

        Window w is `tokens[w * seq_len : (w + 1) * seq_len + 1]`: neighbours share one token, which is the last target
        of one and only context in the next, so every token but the first is a target exactly once.

        Raises:
            ValueError: there is not even one.
        """
        if self.num_tokens <= seq_len:
            raise ValueError(
                f"{self.corpus}/{self.split} has {self.num_tokens} {self.tokenizer_name} tokens; "
                f"seq_len={seq_len} needs at least {seq_len + 1}, choose a shorter one"
            )
        return (self.num_tokens - 1) // seq_len

    def documents_between(self, start: int, stop: int) -> tuple[str, ...]:
        """Return the ids of the documents that `tokens[start:stop]` touches; end-of-text belongs to the one before."""
        first = max(0, int(np.searchsorted(self.document_offsets, start, side="right")) - 1)
        last = int(np.searchsorted(self.document_offsets, stop, side="left"))
        return self.document_ids[first:last]

    def num_windows_touching(self, document_id: str, seq_len: int) -> int:
        """Return how many of the windows of `seq_len` targets touch a document, as `documents_between` counts it.

        Raises:
            ValueError: the shard has no such document.
        """
        number = self.document_ids.index(document_id)
        start = int(self.document_offsets[number])
        is_last = number + 1 == len(self.document_ids)
        end = self.num_tokens if is_last else int(self.document_offsets[number + 1])
        first, last = max(0, (start - 1) // seq_len), min(self.num_windows(seq_len) - 1, (end - 1) // seq_len)
        return max(0, last - first + 1)


def default_cache_dir() -> Path:
    """Return `cache/tokens` under $EVENLOAD_HOME, or under ~/.evenload where that is not set."""
    home = os.environ.get("EVENLOAD_HOME")
    return (Path(home) if home else Path.home() / ".evenload") / "cache" / "tokens"


def ensure_shard(corpus: str, split: SplitName, tokenizer_name: str, cache_dir: Path) -> TokenShard:
    """Return the shard, from `cache_dir` if a sound one is there, else built (a second or so per corpus) and put there.

    A cached shard whose files do not fit together, or whose tokens do not have the recorded SHA-256, is built anew.

    Raises:
        DataInvalid: the corpus or the tokenizer is unknown, missing or altered.
    """
    tokenizer = load_tokenizer(tokenizer_name)
    corpus_sha256 = corpus_manifest(corpus).sha256
    key = hashlib.sha256(f"{_FORMAT}/{corpus_sha256}/{tokenizer.fingerprint}".encode()).hexdigest()[:16]
    stem = cache_dir / f"{corpus}-{split}-{tokenizer_name}-{key}"
    paths = (stem.with_name(f"{stem.name}.npy"), stem.with_name(f"{stem.name}.json"))
    if paths[1].exists():
        try:
            return _open(*paths, tokenizer=tokenizer, corpus_sha256=corpus_sha256)
        except DataInvalid as error:
            logger.warning("rebuilding a token shard: %s", error)
    _build(corpus, split, tokenizer, corpus_sha256, *paths)
    return _open(*paths, tokenizer=tokenizer, corpus_sha256=corpus_sha256)


def _build(
    corpus: str, split: SplitName, tokenizer: Tokenizer, corpus_sha256: str, tokens_path: Path, index_path: Path
) -> None:
    documents = list(read_documents(corpus, split))
    end_of_text = np.array([tokenizer.end_of_text_id], dtype=np.uint16)
    encoded = tokenizer.encode_batch([document.text for document in documents])
    parts = [end_of_text]
    for ids in encoded:
        parts += [np.array(ids, dtype=np.uint16), end_of_text]
    tokens = np.concatenate(parts)
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    offsets = 1 + np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
    index = {
        "format": _FORMAT,
        "corpus": corpus,
        "split": split,
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "corpus_sha256": corpus_sha256,
        "num_tokens": len(tokens),
        "tokens_sha256": hashlib.sha256(tokens.data).hexdigest(),
        "document_ids": [document.id for document in documents],
        "document_offsets": offsets.tolist(),
        "document_num_bytes": [len(document.text.encode()) for document in documents],
    }
    tokens_path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, tokens)
    write_durably(tokens_path, content.getvalue())
    write_durably(index_path, json.dumps(index).encode())
    logger.info("tokenised %s/%s with %s: %d tokens", corpus, split, tokenizer.name, len(tokens))


def _open(tokens_path: Path, index_path: Path, *, tokenizer: Tokenizer, corpus_sha256: str) -> TokenShard:
    try:
        index: dict[str, Any] = json.loads(index_path.read_bytes())
        tokens = np.load(tokens_path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataInvalid(f"{tokens_path.name} or its index cannot be read: {error}") from error
    for field, expected in (
        ("format", _FORMAT),
        ("tokenizer_fingerprint", tokenizer.fingerprint),
        ("corpus_sha256", corpus_sha256),
        ("num_tokens", len(tokens)),
        ("tokens_sha256", hashlib.sha256(tokens).hexdigest()),
    ):
        if index.get(field) != expected:
            raise DataInvalid(f"{tokens_path.name}: {field} is {expected!r}, its index says {index.get(field)!r}")
    return TokenShard(
        corpus=index["corpus"],
        split=index["split"],
        tokenizer_name=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        corpus_sha256=corpus_sha256,
        tokens=tokens,
        document_ids=tuple(index["document_ids"]),
        document_offsets=np.array(index["document_offsets"], dtype=np.int64),
        document_num_bytes=np.array(index["document_num_bytes"], dtype=np.int64),
    )
