"""Trains the tokenizers: `python -m trainer.data.build.tokenizers [--out DIR]`.

Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909, over bytes as in GPT-2) on the training split of the embedded
corpora, one file per vocabulary size. Byte-level means that every text can be encoded and comes back exactly. Training
has no random part: the same corpora and the same version of `tokenizers` give the same file.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from trainer.config.data import CORPORA, TOKENIZER_VOCAB_SIZES
from trainer.data.corpora import read_documents
from trainer.data.tokenizer import END_OF_TEXT, tokenizer_path

logger = logging.getLogger(__name__)


def train(vocab_size: int) -> tokenizers.Tokenizer:
    """Return a byte-level BPE tokenizer with `vocab_size` entries: end-of-text (id 0), 256 bytes, merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(), trainer)
    return tokenizer


def _training_texts() -> Iterator[str]:
    for corpus in CORPORA:
        for document in read_documents(corpus, "train"):
            yield document.text


def main() -> None:
    """Parse the command line, train and write."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: trainer/data/tokenizers")
    arguments = parser.parse_args()
    for name, vocab_size in TOKENIZER_VOCAB_SIZES.items():
        path: Path = tokenizer_path(name)
        if arguments.out:
            path = arguments.out / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(train(vocab_size).to_str(pretty=False) + "\n", encoding="utf-8")
        logger.info("wrote %s: %d entries", path.name, vocab_size)


if __name__ == "__main__":
    main()
