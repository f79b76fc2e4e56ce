"""Tokenizers lose nothing, and know how many bytes each token stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.data import TOKENIZER_VOCAB_SIZES
from trainer.data.corpora import CORPORA, read_documents
from trainer.data.tokenizer import END_OF_TEXT, load_tokenizer
from trainer.errors import DataInvalid

TOKENIZERS = tuple(TOKENIZER_VOCAB_SIZES)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("corpus", CORPORA)
def test_held_out_documents_come_back_exactly(name: str, corpus: str):
    tokenizer = load_tokenizer(name)
    for document in read_documents(corpus, "validation"):
        assert tokenizer.decode(tokenizer.encode(document.text)) == document.text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text())
def test_any_text_comes_back_exactly(name: str, text: str):
    tokenizer = load_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text())
def test_byte_lengths_add_up_to_the_bytes_of_the_text(name: str, text: str):
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode(text)
    assert tokenizer.token_byte_lengths_V[ids].sum() == len(text.encode())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_vocabulary_has_the_promised_size_and_one_special_token(name: str):
    tokenizer = load_tokenizer(name)
    assert tokenizer.vocab_size == TOKENIZER_VOCAB_SIZES[name]
    assert tokenizer.end_of_text_id == 0
    assert tokenizer.token_byte_lengths_V[0] == 0
    assert (tokenizer.token_byte_lengths_V[1:] > 0).all()
    assert tokenizer.decode([0]) == END_OF_TEXT


def test_text_that_spells_the_end_of_text_token_is_text():
    tokenizer = load_tokenizer("bpe-1024")
    ids = tokenizer.encode(f"a{END_OF_TEXT}b")
    assert tokenizer.end_of_text_id not in ids
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


def test_batch_encodes_as_one_by_one():
    tokenizer = load_tokenizer("bpe-1024")
    texts = ["", "def f(x):\n    return x\n", f"one {END_OF_TEXT} two", "\u00e9\u4e16\U0001f600"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_larger_vocabulary_needs_fewer_tokens():
    text = next(iter(read_documents("docs", "validation"))).text
    assert len(load_tokenizer("bpe-4096").encode(text)) < len(load_tokenizer("bpe-1024").encode(text))


def test_fingerprints_differ():
    assert load_tokenizer("bpe-4096").fingerprint != load_tokenizer("bpe-1024").fingerprint


def test_unknown_tokenizer_lists_those_there_are():
    with pytest.raises(DataInvalid, match="bpe-1024, bpe-4096"):
        load_tokenizer("gpt2")
