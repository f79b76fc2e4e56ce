"""Byte-level BPE tokenizers, trained on the embedded corpora (`trainer/data/build/tokenizers.py`)."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trainer.config.data import TOKENIZER_VOCAB_SIZES
from trainer.errors import DataInvalid

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """Turns text into token ids and back; `decode(encode(text)) == text` for every text.

    Args:
        name: a name of `trainer.config.data.TOKENIZER_VOCAB_SIZES`.
        definition: the tokenizer as JSON.
    """

    def __init__(self, name: str, definition: bytes) -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(definition).hexdigest()
        """SHA-256 (hex) of the definition."""
        self._tokenizer = tokenizers.Tokenizer.from_buffer(definition)
        # Text that happens to spell a special token is text: only we put end-of-text tokens between documents.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        end_of_text_id = self._tokenizer.token_to_id(END_OF_TEXT)
        if end_of_text_id is None:
            raise DataInvalid(f"tokenizer {name} has no {END_OF_TEXT} token; rebuild it")
        self.end_of_text_id: int = end_of_text_id

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without any special token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, as `encode` does, on all cores unless TOKENIZERS_PARALLELISM=false."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text that `ids` stand for; bytes that are not UTF-8 (a cut through a character) become U+FFFD."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    @cached_property
    def token_byte_lengths_V(self) -> NDArray[np.int64]:
        """How many UTF-8 bytes of text each token stands for, shape [V]; end-of-text stands for none."""
        # In a byte-level vocabulary every character of a token's spelling is one byte.
        lengths_V = np.zeros(self.vocab_size, dtype=np.int64)
        for token, token_id in self._tokenizer.get_vocab().items():
            lengths_V[token_id] = len(token)
        lengths_V[self.end_of_text_id] = 0
        return lengths_V


def tokenizer_path(name: str) -> Path:
    """Return the file that defines the tokenizer `name`, e.g. `bpe4096.json` for "bpe-4096"."""
    return Path(__file__).resolve().parent / "tokenizers" / f"{name.replace('-', '')}.json"


@cache
def load_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer `name`, loaded once per process.

    Raises:
        DataInvalid: there is no such tokenizer, or its file is missing or does not have the promised vocabulary.
    """
    if name not in TOKENIZER_VOCAB_SIZES:
        raise DataInvalid(f"there is no tokenizer named {name!r}; there are: {', '.join(TOKENIZER_VOCAB_SIZES)}")
    path = tokenizer_path(name)
    try:
        tokenizer = Tokenizer(name, path.read_bytes())
    except FileNotFoundError as error:
        raise DataInvalid(f"tokenizer {name}: {path} is missing; restore it from the repository") from error
    if tokenizer.vocab_size != TOKENIZER_VOCAB_SIZES[name]:
        raise DataInvalid(f"tokenizer {name} has {tokenizer.vocab_size} tokens, not {TOKENIZER_VOCAB_SIZES[name]}")
    return tokenizer
