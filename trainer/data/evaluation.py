"""Held-out windows of a domain, with the exact number of bytes they stand for.

Losses in nats per token cannot be compared between tokenizers; bits per byte can. In a byte-level vocabulary every
token stands for a known number of bytes, also where a window starts or ends inside a character, so the denominator is
exact.
"""

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from trainer.data.documents import documents_of_window
from trainer.data.shards import TokenShard
from trainer.data.tokenizer import load_tokenizer


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Windows to evaluate on; shapes: N windows, L positions."""

    domain: str
    tokens: NDArray[np.int64]
    """Shape [N, L + 1]. Every target (all but the first of a row) counts; none is in two windows."""
    num_bytes: int
    """UTF-8 bytes the targets stand for. End-of-text tokens stand for none, but predicting them costs nats: a model
    has to say where a document ends."""
    documents_NL: NDArray[np.int64] | None = None
    """Number of each input's document within its window (`trainer.data.documents`); None without document masking."""

    @property
    def inputs_NL(self) -> NDArray[np.int64]:
        """What the model reads."""
        return self.tokens[:, :-1]

    @property
    def targets_NL(self) -> NDArray[np.int64]:
        """What it is to predict at each position."""
        return self.tokens[:, 1:]

    @property
    def num_tokens(self) -> int:
        """Number of targets."""
        return self.targets_NL.size

    def bits_per_byte(self, total_nats: float) -> float:
        """Return bits per byte, given the sum of the cross entropy over all targets in nats."""
        return total_nats / log(2) / self.num_bytes


def evaluation_windows(
    shard: TokenShard, seq_len: int, max_tokens: int, *, document_masking: bool = False
) -> EvaluationSet:
    """Return up to `max_tokens` targets (at least one window, at most all) in windows spread evenly over the shard.

    The choice depends on nothing but the arguments: every run with the same data section is evaluated on the same text,
    with `document_masking` or without.

    Raises:
        ValueError: the shard is shorter than one window.
    """
    num_available = shard.num_windows(seq_len)
    num_windows = min(num_available, max(1, max_tokens // seq_len))
    starts_N = (2 * np.arange(num_windows) + 1) * num_available // (2 * num_windows) * seq_len
    positions = starts_N[:, None] + np.arange(seq_len + 1)
    tokens = shard.tokens[positions].astype(np.int64)
    token_byte_lengths_V = load_tokenizer(shard.tokenizer_name).token_byte_lengths_V
    documents_NL = None
    if document_masking:
        documents_NL = np.stack([documents_of_window(shard, start, seq_len) for start in starts_N.tolist()])
    return EvaluationSet(
        domain=shard.corpus,
        tokens=tokens,
        num_bytes=int(token_byte_lengths_V[tokens[:, 1:]].sum()),
        documents_NL=documents_NL,
    )
