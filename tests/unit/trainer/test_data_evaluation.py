"""Bits per byte have an exact denominator: the bytes of exactly the text that was predicted."""

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.token_shards import counting_shard, token_shard
from trainer.data.corpora import CORPORA
from trainer.data.evaluation import evaluation_windows
from trainer.data.shards import ensure_shard
from trainer.data.tokenizer import tokenizer_path

# Two to four bytes a character, so that tokens and windows end inside characters.
NON_ASCII = "na\u00efve \u4e16\u754c \U0001f600 "


@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_every_byte_of_the_documents_is_counted_once(texts: list[str]):
    shard = token_shard("books", texts)
    everything = evaluation_windows(shard, 1, shard.num_tokens)
    assert everything.num_bytes == sum(len(text.encode()) for text in texts)
    assert everything.num_tokens == shard.num_tokens - 1


@pytest.mark.parametrize("seq_len", [1, 2, 3, 5, 7, 16])
def test_bytes_of_a_window_are_those_of_its_text(seq_len: int):
    text = NON_ASCII * 20
    shard = token_shard("books", [text])
    windows = evaluation_windows(shard, seq_len, shard.num_tokens)
    covered = windows.num_tokens
    # What the windows leave over at the end is end-of-text and the last few tokens.
    rest = evaluation_windows(token_shard("books", [text]), 1, shard.num_tokens).targets_NL[covered:]
    lengths = _byte_lengths()
    assert windows.num_bytes == len(text.encode()) - sum(lengths[int(token)] for token in rest.ravel())


def _byte_lengths() -> list[int]:
    """Return the bytes of each token of bpe-1024 from its spelling, in which each character is one byte."""
    vocabulary = json.loads(tokenizer_path("bpe-1024").read_text(encoding="utf-8"))["model"]["vocab"]
    spellings = sorted(vocabulary, key=vocabulary.__getitem__)
    return [0, *(len(spelling) for spelling in spellings[1:])]


@given(num_tokens=st.integers(2, 400), seq_len=st.integers(1, 40), max_tokens=st.integers(1, 500))
def test_windows_do_not_share_targets_and_keep_to_the_budget(num_tokens: int, seq_len: int, max_tokens: int):
    if num_tokens <= seq_len:
        seq_len = num_tokens - 1
    windows = evaluation_windows(counting_shard("books", num_tokens), seq_len, max_tokens)
    targets = windows.targets_NL.ravel()
    assert len(np.unique(targets)) == len(targets) == windows.num_tokens
    assert windows.num_tokens <= max(max_tokens, seq_len)
    assert np.array_equal(windows.inputs_NL + 1, windows.targets_NL)
    if max_tokens >= num_tokens:
        assert windows.num_tokens == (num_tokens - 1) // seq_len * seq_len


def test_few_windows_are_spread_over_the_whole_shard():
    windows = evaluation_windows(counting_shard("books", 1001), 10, 40)
    assert windows.inputs_NL[:, 0].tolist() == [120, 370, 620, 870]


def test_uniform_prediction_of_single_bytes_is_eight_bits_per_byte():
    """A model that gives each of 256 bytes probability 1/256 must get 8 bits per byte."""
    shard = token_shard("books", ["\x00\x01\x02\x03" * 8])
    windows = evaluation_windows(shard, 32, 32)
    assert windows.num_tokens == windows.num_bytes == 32
    assert windows.bits_per_byte(32 * log(256)) == pytest.approx(8.0, rel=1e-12)


def test_end_of_text_costs_nats_but_has_no_bytes():
    windows = evaluation_windows(token_shard("books", ["\x00", "\x01"]), 4, 4)
    assert windows.num_tokens == 4
    assert windows.num_bytes == 2
    assert windows.bits_per_byte(4 * log(2)) == pytest.approx(2.0, rel=1e-12)


def test_documents_are_numbered_window_by_window_on_the_same_text():
    # Tokens: end-of-text at 0, 4, 8 and 12, a null byte everywhere else.
    shard = token_shard("books", ["\x00" * 3] * 3)
    plain, masked = (evaluation_windows(shard, 6, 12, document_masking=masking) for masking in (False, True))
    assert plain.documents_NL is None
    assert np.array_equal(plain.tokens, masked.tokens)
    assert masked.documents_NL.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]]


def test_shard_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="seq_len=64"):
        evaluation_windows(counting_shard("books", 64), 64, 1000)


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_corpus_holds_enough_to_measure_on(corpus: str, tmp_path: Path):
    shard = ensure_shard(corpus, "validation", "bpe-4096", tmp_path)
    windows = evaluation_windows(shard, 256, 16_384)
    assert windows.domain == corpus
    assert windows.num_tokens == 16_384
    assert 2 < windows.num_bytes / windows.num_tokens < 5
