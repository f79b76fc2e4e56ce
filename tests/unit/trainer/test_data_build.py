"""Cutting, deduplicating and splitting, as the build of the embedded corpora does it."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.build import selection
from trainer.data.build.cutting import LINE, PARAGRAPH, clean, cut
from trainer.data.build.deduplicate import SimilarityIndex, jaccard, shingles
from trainer.data.build.rdata import string_vectors
from trainer.data.build.readers import SourceDocument
from trainer.data.build.selection import Cutting, select
from trainer.errors import DataInvalid

CUTTING = Cutting((PARAGRAPH, LINE), max_piece_bytes=2_000, max_pieces=3)


@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=40), min_size=1, max_size=60)
)
def test_cutting_loses_nothing_and_keeps_to_the_size(lines: list[str]):
    text = "\n".join(lines)
    pieces = cut(text, (PARAGRAPH, LINE), 200)
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= 200 for piece in pieces)


def test_text_is_cut_between_paragraphs_where_it_can_be():
    text = "\n\n".join(["word " * 30] * 6)
    assert all(piece.startswith("word") for piece in cut(text, (PARAGRAPH, LINE), 400))


def test_text_without_a_boundary_is_refused():
    with pytest.raises(ValueError, match="no boundary within 10 bytes"):
        cut("x" * 11, (PARAGRAPH, LINE), 10)


def test_cleaning_leaves_unix_lines_without_trailing_space():
    assert clean("\ufeffone  \r\ntwo\t\r\r\n\n\n\n\nthree\n\n") == "one\ntwo\n\n\nthree\n"


def test_similarity_of_a_text_with_one_word_changed_is_high_and_exact():
    words = [f"word{number}" for number in range(200)]
    changed = [*words[:100], "other", *words[101:]]
    # Of 196 runs of five words, five hold the changed one.
    expected = 191 / (196 + 196 - 191)
    assert jaccard(shingles(" ".join(words)), shingles(" ".join(changed))) == pytest.approx(expected)
    index = SimilarityIndex()
    index.add("first", " ".join(words))
    assert index.similar(" ".join(changed)) == {"first": pytest.approx(expected)}


def document(number: int, *, variant: int = 0) -> SourceDocument:
    """Return a document unlike those of other numbers; variants of one number differ in a word."""
    words = [f"w{number}x{position}" for position in range(300)]
    words[150] = f"variant{variant}"
    return SourceDocument(f"{number:03d}-{variant}", " ".join(words), "test")


def sized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "TRAIN_BYTES", 1_000_000)
    monkeypatch.setattr(selection, "VALIDATION_BYTES", 10_000)


CUT_AT_SPACES = Cutting((PARAGRAPH,), max_piece_bytes=10_000, max_pieces=1)


def test_near_duplicates_are_dropped(monkeypatch: pytest.MonkeyPatch):
    sized(monkeypatch)
    documents = [document(number, variant=variant) for number in range(20) for variant in range(3)]
    chosen = select("test", documents, CUT_AT_SPACES)
    assert len({piece.id.split("-")[0] for piece in (*chosen.train, *chosen.validation)}) == 20
    assert len(chosen.train) + len(chosen.validation) == 20
    assert chosen.num_near_duplicates == 40


def test_exact_duplicates_are_dropped(monkeypatch: pytest.MonkeyPatch):
    sized(monkeypatch)
    copies = [document(number)._replace(id=f"{number}-copy{copy}") for number in range(20) for copy in range(2)]
    assert select("test", copies, CUT_AT_SPACES).num_exact_duplicates == 20


def test_selection_does_not_depend_on_the_order_of_the_documents(monkeypatch: pytest.MonkeyPatch):
    sized(monkeypatch)
    documents = [document(number, variant=variant) for number in range(20) for variant in range(2)]
    assert select("test", documents, CUT_AT_SPACES) == select("test", documents[::-1], CUT_AT_SPACES)


def test_pieces_of_a_document_stay_in_one_split(monkeypatch: pytest.MonkeyPatch):
    sized(monkeypatch)
    long = [
        SourceDocument(str(number), "\n\n".join(f"p{number}x{part} " * 150 for part in range(5)), "test")
        for number in range(40)
    ]
    chosen = select("test", long, CUTTING)
    assert len(chosen.validation) >= 3
    assert {piece.origin for piece in chosen.train}.isdisjoint({piece.origin for piece in chosen.validation})


def test_related_documents_stay_in_one_split(monkeypatch: pytest.MonkeyPatch):
    """Documents that share 60% of their text are kept, and kept together."""
    sized(monkeypatch)

    def related(number: int, variant: int) -> SourceDocument:
        shared = [f"w{number}x{position}" for position in range(300)]
        own = [f"v{number}x{variant}x{position}" for position in range(75)]
        return SourceDocument(f"{number:03d}-{variant}", " ".join(shared + own), "test")

    chosen = select("test", [related(number, variant) for number in range(20) for variant in range(2)], CUT_AT_SPACES)
    assert len(chosen.train) + len(chosen.validation) == 40
    assert {piece.id[:3] for piece in chosen.validation}.isdisjoint({piece.id[:3] for piece in chosen.train})
    assert chosen.validation


def r_string_vector(strings: list[str]) -> bytes:
    """Return a chunk of an R database: size, zlib stream of XDR serialisation version 3."""
    body = b"X\n" + struct.pack(">iii", 3, 0x040201, 0x030500) + struct.pack(">i", 5) + b"UTF-8"
    body += struct.pack(">ii", 16, len(strings))
    for string in strings:
        data = string.encode()
        body += struct.pack(">ii", 0x00040009, len(data)) + data
    return struct.pack(">i", len(body)) + zlib.compress(body)


@given(vectors=st.lists(st.lists(st.text(max_size=20), max_size=5), max_size=3))
def test_strings_of_an_r_database_are_read(vectors: list[list[str]]):
    database = b"".join(r_string_vector(strings) for strings in vectors)
    assert list(string_vectors(database)) == vectors


def test_truncated_r_database_is_refused():
    with pytest.raises(DataInvalid, match="header says"):
        list(string_vectors(r_string_vector(["Emma"] * 50)[:-20]))
