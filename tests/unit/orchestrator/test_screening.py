"""The first look at a document."""

import pytest

from orchestrator.errors import SpecRejected
from orchestrator.screening import parse_json, pointer, screen, shown


def test_json_text_becomes_its_value() -> None:
    assert parse_json('{"a": [1, 2.5, null, true]}') == {"a": [1, 2.5, None, True]}
    assert parse_json(b'"\xc3\xa4"') == "\u00e4"


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("{", "not_json", "is not JSON"),
        ("", "not_json", "is not JSON"),
        (b"\xff\xfe\x00", "not_json", "is not JSON"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "not_json", "the key 'c' is given twice"),
        ("[" * 200_000, "too_deep", "nested more than 32 deep"),
        ("1" * 5_000, "not_json", "is not JSON"),
    ],
)
def test_what_is_not_json_is_refused(text: str | bytes, code: str, says: str) -> None:
    with pytest.raises(SpecRejected) as rejected:
        parse_json(text)
    (problem,) = rejected.value.problems
    assert problem.code == code
    assert says in problem.message


def test_nan_in_json_is_found_with_its_place() -> None:
    with pytest.raises(SpecRejected) as rejected:
        screen(parse_json('{"a": [0, NaN], "b": -Infinity, "c": 1e999}'))
    assert {problem.pointer for problem in rejected.value.problems} == {"/a/1", "/b", "/c"}
    assert {problem.code for problem in rejected.value.problems} == {"not_finite"}


def test_values_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(SpecRejected, match="plain values, not object"):
        screen({"a": object()})
    with pytest.raises(SpecRejected, match="keys are text, not int"):
        screen({1: "a"})


def test_pointer_escapes_slash_and_tilde() -> None:
    assert pointer(("a/b", "c~d", 0)) == "/a~1b/c~0d/0"


def test_shown_value_is_short_and_plain() -> None:
    assert shown("x" * 300) == "x" * 200 + "..."
    assert shown([1, "a", None]) == [1, "a", None]
    assert shown(list(range(100))) == "a list of 100"
    assert shown({"a": 1}) == "an object of 1 fields"
    assert shown(float("nan")) == "nan"
    assert shown(2**80) == "a whole number of 81 bits"
