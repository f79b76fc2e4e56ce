"""Specs as people write them: numbers are numbers, and nothing is guessed."""

from pathlib import Path

import pytest

from api.documents import DocumentUnreadable, read_document


def document(tmp_path: Path, text: str, name: str = "spec.yaml") -> object:
    file = tmp_path / name
    file.write_text(text)
    return read_document(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e5", 1e5), (".5e-1", 0.05), ("-2E+3", -2000.0), ("1.5e3", 1500.0), ("10", 10), ("0.1", 0.1)],
)
def test_numbers_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    assert document(tmp_path, f"lr: {text}") == {"lr": value}


@pytest.mark.parametrize("text", ["2026-11-22", "e5", "1e", "bpe-1024"])
def test_other_text_stays_text(tmp_path: Path, text: str) -> None:
    assert document(tmp_path, f"name: {text}") == {"name": text}


def test_json_is_read_too(tmp_path: Path) -> None:
    assert document(tmp_path, '{"lr": 3e-4, "moe": null, "choice": [1, "a", true]}', "spec.json") == {
        "lr": 3e-4,
        "moe": None,
        "choice": [1, "a", True],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "given twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: [1, 2", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DocumentUnreadable, match=message):
        document(tmp_path, text)


def test_a_missing_or_huge_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DocumentUnreadable, match="No such file"):
        read_document(tmp_path / "nothing.yaml")
    with pytest.raises(DocumentUnreadable, match="bytes"):
        document(tmp_path, "x" * 3_000_000)
