"""Token shards made of given documents, without files."""

from collections.abc import Sequence

import numpy as np

from trainer.data.shards import TokenShard
from trainer.data.tokenizer import load_tokenizer

TOKENIZER = "bpe-1024"


def token_shard(corpus: str, texts: Sequence[str]) -> TokenShard:
    """Return a training shard of `texts`, laid out as `ensure_shard` does; document n has the id "<corpus>-<n>"."""
    tokenizer = load_tokenizer(TOKENIZER)
    encoded = [tokenizer.encode(text) for text in texts]
    tokens, offsets = [tokenizer.end_of_text_id], []
    for ids in encoded:
        offsets.append(len(tokens))
        tokens += [*ids, tokenizer.end_of_text_id]
    return TokenShard(
        corpus=corpus,
        split="train",
        tokenizer_name=TOKENIZER,
        tokenizer_fingerprint=tokenizer.fingerprint,
        corpus_sha256="0" * 64,
        tokens=np.array(tokens, dtype=np.uint16),
        document_ids=tuple(f"{corpus}-{number}" for number in range(len(texts))),
        document_offsets=np.array(offsets, dtype=np.int64),
        document_num_bytes=np.array([len(text.encode()) for text in texts], dtype=np.int64),
    )


def counting_shard(corpus: str, num_tokens: int) -> TokenShard:
    """Return a shard of one document whose token at position i is i, so that a window shows where it was cut."""
    tokenizer = load_tokenizer(TOKENIZER)
    return TokenShard(
        corpus=corpus,
        split="train",
        tokenizer_name=TOKENIZER,
        tokenizer_fingerprint=tokenizer.fingerprint,
        corpus_sha256="0" * 64,
        tokens=np.arange(num_tokens, dtype=np.uint16),
        document_ids=(f"{corpus}-0",),
        document_offsets=np.array([0], dtype=np.int64),
        document_num_bytes=np.array([num_tokens], dtype=np.int64),
    )
