"""From a plain document to an ExperimentSpec, or to the list of everything that is wrong with it.

Parsing is strict: text is not taken for a number, nor a number for a truth value. Whole numbers may be written as
floats (`2e6`), as YAML and JavaScript do.
"""

import difflib
import json
import re
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError

from orchestrator.errors import SpecProblem
from orchestrator.screening import MAX_PROBLEMS, pointer, shown
from orchestrator.spec import DOMAIN_KINDS, Domain, ExperimentSpec
from trainer.presets import UnknownPreset, preset_names, with_preset

M = TypeVar("M")

_BOUNDS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "multiple_of": "a multiple of {}",
}
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
    "list_type": "a list",
}
_NAMED_FIELD = re.compile(r"([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)(?:=|: | is | lists )")


def strict_json(value: Any) -> str:
    """`value` as JSON text with floats that are whole numbers written as such."""
    return json.dumps(_with_whole_numbers(value), allow_nan=False)


_SPEC = TypeAdapter(ExperimentSpec)
_DOMAIN: TypeAdapter[Any] = TypeAdapter(Domain)


def parse_spec(document: Any) -> tuple[ExperimentSpec | None, list[SpecProblem]]:
    """The spec that a document describes, or None and what is wrong with it.

    A `preset` that `base` names is filled in first, so that the spec has the complete configuration whatever becomes
    of the preset later.

    Args:
        document: plain and finite (see `screening.screen`).
    """
    base = document.get("base") if isinstance(document, dict) else None
    if isinstance(base, dict):
        try:
            document = document | {"base": with_preset(base)}
        except UnknownPreset as error:
            return None, [
                SpecProblem(
                    pointer="/base/preset",
                    code="unknown_preset",
                    message=str(error),
                    given=shown(base["preset"]),
                    allowed=f"presets: {', '.join(preset_names())}",
                )
            ]
    return _parse(_SPEC, ExperimentSpec, document, ())


def parse_domain(document: Any, place: tuple[str | int, ...]) -> tuple[Any, list[SpecProblem]]:
    """The domain that a value inside an option describes, or None and what is wrong with it.

    Args:
        document: the value.
        place: where it stands in the user's document.
    """
    return _parse(_DOMAIN, Domain, document, place)


def _parse(
    adapter: TypeAdapter[M], root: Any, value: Any, place: tuple[str | int, ...]
) -> tuple[M | None, list[SpecProblem]]:
    try:
        return adapter.validate_json(strict_json(value), strict=True), []
    except ValidationError as error:
        found: list[SpecProblem] = []
        for details in error.errors(include_url=False)[:MAX_PROBLEMS]:
            # An option's domain is seen as if it stood in the space itself, where the names of its members are known.
            loc = details["loc"] if root is ExperimentSpec else ("space", "", *details["loc"])
            document = value if root is ExperimentSpec else {"space": {"": value}}
            inner, node = follow(document, loc, is_missing=details["type"] == "missing")
            skipped = 0 if root is ExperimentSpec else 2
            found.append(_problem(dict(details), document, (*place, *inner[skipped:]), inner, node))
        return None, found


def near(word: str, names: Iterable[str]) -> list[str]:
    """The names most like `word`, best first; at most three."""
    return difflib.get_close_matches(word[:80], list(names), n=3, cutoff=0.6)


def suggestion(word: str, names: Sequence[str]) -> str:
    """`; did you mean ...?` or nothing."""
    matches = near(word, names)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _problem(
    details: dict[str, Any],
    document: Any,
    place: tuple[str | int, ...],
    inner: tuple[str | int, ...],
    node: Any,
) -> SpecProblem:
    kind, context = details["type"], details.get("ctx", {})
    last = str(place[-1]) if place else "the document"
    where = ".".join(str(part) for part in inner[:-1]) or "the document"
    given = shown(node)
    at = pointer(place)
    if kind == "extra_forbidden":
        names = _fields_at(document, inner[:-1])
        return SpecProblem(
            pointer=at,
            code="unknown_field",
            message=f"there is no field {last[:80]!r} in {where}{suggestion(last, names)}",
            given=shown(last),
            allowed=f"fields: {', '.join(names)}",
        )
    if kind == "missing":
        return SpecProblem(
            pointer=at,
            code="missing_field",
            message=f"{last!r} is missing in {where}; it has no default",
            allowed="required",
        )
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _kind_problem(details, node, place)
    if kind in ("literal_error", "enum"):
        expected = str(context.get("expected", ""))
        words = re.findall(r"'([^']*)'", expected)
        return SpecProblem(
            pointer=at,
            code="not_allowed",
            message=f"{given!r} is not allowed for {last!r}{suggestion(str(given), words)}",
            given=given,
            allowed=expected,
        )
    if kind in _WANTED:
        hint = ""
        if isinstance(node, str) and _WANTED[kind] in ("a number", "a whole number") and _is_number(node):
            hint = f"; write {node} without quotes"
        return SpecProblem(
            pointer=at,
            code="wrong_type",
            message=f"{last!r} has to be {_WANTED[kind]}, not {_type_word(node)}{hint}",
            given=given,
            allowed=_WANTED[kind],
        )
    if bound := next((word for word in _BOUNDS if word in context), None):
        limit = _BOUNDS[bound].format(context[bound])
        return SpecProblem(
            pointer=at, code="out_of_range", message=f"{last}={given} has to be {limit}", given=given, allowed=limit
        )
    message = str(context["error"]) if isinstance(context.get("error"), ValueError) else str(details["msg"])
    place, node = _named(message, place, node)
    return SpecProblem(pointer=pointer(place), code="invalid", message=message, given=shown(node))


def _kind_problem(details: dict[str, Any], node: Any, place: tuple[str | int, ...]) -> SpecProblem:
    context = details.get("ctx", {})
    if "domain_kind" in str(context.get("discriminator", "")):
        words = list(DOMAIN_KINDS)
        return SpecProblem(
            pointer=pointer(place),
            code="not_a_domain",
            message="a domain is an object with one of the fields int, float, choice, options, e.g. "
            "{float: [1e-4, 1e-2], log: true}"
            + (suggestion(next(iter(node), ""), words) if isinstance(node, dict) else ""),
            given=shown(node),
            allowed="one of: " + ", ".join(words),
        )
    tags = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
    given = node.get("kind") if isinstance(node, dict) else node
    missing = isinstance(node, dict) and "kind" not in node
    return SpecProblem(
        pointer=pointer((*place, "kind") if isinstance(node, dict) else place),
        code="unknown_kind",
        message="`kind` is missing" if missing else f"there is no kind {shown(given)!r}{suggestion(str(given), tags)}",
        given=shown(given),
        allowed=("kinds: " + ", ".join(tags)) if tags else None,
    )


def follow(document: Any, loc: Sequence[str | int], *, is_missing: bool = False) -> tuple[tuple[str | int, ...], Any]:
    """The place in the document, and the value there, that pydantic's `loc` means (it names union members too).

    Args:
        is_missing: the last part of `loc` is a field that the document lacks.
    """
    place: list[str | int] = []
    node = document
    for index, part in enumerate(loc):
        is_last = index == len(loc) - 1
        if part == "[key]":
            continue
        if isinstance(node, dict):
            if isinstance(part, str) and part in node and not _is_tag(node, part, loc, index):
                place.append(part)
                node = node[part]
            elif _is_tag(node, str(part), loc, index):
                continue
            elif is_last and is_missing:
                place.append(part)
                node = None
            # else: the name of a union's member that the document leaves to the default
        elif isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
            place.append(part)
            node = node[part]
        # else: the name of a union's member, which is no place in the document
    return tuple(place), node


def _is_tag(node: dict[str, Any], part: str, loc: Sequence[str | int], index: int) -> bool:
    """True if `part` names the member of a union that `node` was parsed as."""
    if node.get("kind") == part and part not in node:
        return True
    # A domain's member has the name of its field: ("space", "optimizer.lr", "float", "float", 0).
    return index == 2 and loc[0] == "space" and part in DOMAIN_KINDS and part in node


def _named(message: str, place: tuple[str | int, ...], node: Any) -> tuple[tuple[str | int, ...], Any]:
    """The place of the field that a section's message begins with, if it is there."""
    match = _NAMED_FIELD.match(message)
    if match is None:
        return place, node
    inner, value = place, node
    for part in match.group(1).split("."):
        if isinstance(value, dict) and part in value:
            inner, value = (*inner, part), value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            inner, value = (*inner, int(part)), value[int(part)]
        else:
            return place, node
    return inner, value


def _fields_at(document: Any, place: Sequence[str | int]) -> list[str]:
    """The names of the fields that the section at `place` of a spec's document has."""
    kinds: list[Any] = [ExperimentSpec]
    node = document
    for part in place:
        if isinstance(node, dict):
            node = node[part]
        else:
            node = node[part] if isinstance(node, list) and isinstance(part, int) else None
        following: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
                field = kind.model_fields[str(part)]
                following += _sections(field.annotation, _as_read(field.metadata, node))
            elif get_origin(kind) in (dict, tuple, list):
                following += _sections(get_args(kind)[1 if get_origin(kind) is dict else 0], node)
        kinds = following
    return list(dict.fromkeys(name for kind in kinds for name in getattr(kind, "model_fields", ())))


def _sections(annotation: Any, node: Any) -> list[Any]:
    """The members of a type that the value `node` can have been parsed as."""
    if get_origin(annotation) is Annotated:
        return _sections(get_args(annotation)[0], node)
    if get_origin(annotation) in (Union, types.UnionType):
        members = [section for member in get_args(annotation) for section in _sections(member, node)]
        return [member for member in members if _fits(member, node)]
    return [annotation]


def _as_read(metadata: Iterable[Any], node: Any) -> Any:
    """The value that a type with this metadata reads instead of `node`: a default `kind` is filled in."""
    for item in metadata:
        if isinstance(item, BeforeValidator):
            node = cast("Callable[[Any], Any]", item.func)(node)
    return node


def _fits(member: Any, node: Any) -> bool:
    fields = getattr(member, "model_fields", {})
    if not isinstance(node, dict) or not fields:
        return bool(fields) or get_origin(member) is not None
    if "kind" in fields and "kind" in node:
        annotation = fields["kind"].annotation
        return get_origin(annotation) is Literal and node["kind"] in get_args(annotation)
    domain = next((kind for kind in DOMAIN_KINDS if kind in fields), None)
    return domain is None or domain in node


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_whole_numbers(item) for item in value]
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _type_word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: f"{value}", str: "text", dict: "an object", list: "a list"}
    return names.get(type(value), type(value).__name__)
