"""The first look at a document from outside: is it plain, finite and small enough to be looked at closely at all?

Everything here is bounded by the limits, not by the document: a body of 10^5 keys is left after MAX_NODES of them.
"""

import json
import math
from typing import Any

from orchestrator.errors import SpecProblem, SpecRejected

MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_TEXT = 10_000
"""Characters of a text, and of a key."""
MAX_PROBLEMS = 50
MAX_WHOLE_NUMBER = 2**53
"""Beyond it JSON readers disagree about whole numbers."""


def parse_json(text: str | bytes) -> Any:
    """The value in a JSON text.

    Raises:
        SpecRejected: it is not JSON, is nested too deeply, or gives a key twice. NaN is left to `screen`, which knows
            its place.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise SpecRejected([_too_deep("")]) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise SpecRejected(
            [SpecProblem(pointer="", code="not_json", message=f"the document is not JSON: {str(error)[:200]}")]
        ) from error


def screen(document: Any) -> None:
    """Raises SpecRejected for what no spec may hold anywhere: NaN, infinities, NUL, huge or deeply nested values."""
    problems: list[SpecProblem] = []
    num_nodes = 0
    pending: list[tuple[Any, tuple[str, ...]]] = [(document, ())]
    while pending and len(problems) < MAX_PROBLEMS:
        value, place = pending.pop()
        num_nodes += 1
        if isinstance(value, dict | list | tuple):
            if num_nodes + len(pending) + len(value) > MAX_NODES:
                problems.append(_too_large(place, len(value)))
                break
            if len(place) >= MAX_DEPTH:
                problems.append(_too_deep(pointer(place)))
                continue
            items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
            for key, _ in items:
                if isinstance(value, dict) and (problem := _key_problem(key, place)):
                    problems.append(problem)
            pending.extend((item, (*place, str(key)[:MAX_TEXT])) for key, item in reversed(items))
        elif problem := _value_problem(value, pointer(place)):
            problems.append(problem)
    if problems:
        raise SpecRejected(problems)


def pointer(place: tuple[str | int, ...]) -> str:
    """The JSON pointer (RFC 6901) of a place."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in place)


def shown(value: Any) -> Any:
    """`value` if it is short and plain, else its first characters as text: what an answer may repeat of it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_WHOLE_NUMBER else f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode()
        return text if len(text) <= 200 else text[:200] + "..."
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list | tuple):
        is_short = len(value) <= 8 and not any(isinstance(item, dict | list | tuple) for item in value)
        return [shown(item) for item in value] if is_short else f"a list of {len(value)}"
    return type(value).__name__


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} is given twice in one object")
            seen.add(key)
    return found


def _key_problem(key: object, place: tuple[str, ...]) -> SpecProblem | None:
    if not isinstance(key, str):
        return SpecProblem(
            pointer=pointer(place),
            code="key_not_text",
            message=f"keys are text, not {type(key).__name__}; put quotes around {str(key)[:80]}",
            given=shown(key),
        )
    if len(key) > 1000 or not key.isprintable():
        return SpecProblem(
            pointer=pointer(place),
            code="key_not_allowed",
            message="a key has at most 1000 characters, all of them printable",
            given=shown(key),
        )
    return None


def _value_problem(value: Any, at: str) -> SpecProblem | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, float):
        if math.isfinite(value):
            return None
        return SpecProblem(
            pointer=at,
            code="not_finite",
            message=f"{value} is not a number to compute with; give a finite one",
            given=str(value),
            allowed="finite numbers",
        )
    if isinstance(value, int):
        if abs(value) <= MAX_WHOLE_NUMBER:
            return None
        return SpecProblem(
            pointer=at,
            code="out_of_range",
            message=f"{shown(value)} is too large",
            given=shown(value),
            allowed="whole numbers between -2^53 and 2^53",
        )
    if isinstance(value, str):
        if len(value) <= MAX_TEXT and not _has_unstorable(value):
            return None
        return SpecProblem(
            pointer=at,
            code="text_not_allowed",
            message=f"a text of {len(value)} characters that is too long, or holds NUL or half a surrogate pair",
            given=shown(value),
            allowed=f"at most {MAX_TEXT} characters",
        )
    return SpecProblem(
        pointer=at,
        code="not_plain",
        message=f"a spec holds plain values, not {type(value).__name__}; write it as text or number",
        given=shown(value),
        allowed="objects, lists, text, numbers, true, false, null",
    )


def _has_unstorable(text: str) -> bool:
    return (not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)) or "\x00" in text


def _too_deep(at: str) -> SpecProblem:
    return SpecProblem(
        pointer=at, code="too_deep", message=f"nested more than {MAX_DEPTH} deep", allowed=f"at most {MAX_DEPTH} levels"
    )


def _too_large(place: tuple[str, ...], num_items: int) -> SpecProblem:
    return SpecProblem(
        pointer=pointer(place),
        code="too_large",
        message=f"with the {num_items} entries here the document has more than {MAX_NODES} values; make it smaller",
        given=num_items,
        allowed=f"at most {MAX_NODES} values in a document",
    )
