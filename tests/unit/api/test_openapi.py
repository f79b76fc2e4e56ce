"""The committed OpenAPI document is the one of the code, and complete."""

import json
import re
from typing import Any

import pytest

from api.openapi import FILE, text


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(text())


def test_the_committed_document_is_fresh() -> None:
    assert FILE.read_text() == text(), "run `python -m api.openapi` and commit docs/openapi.json"


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for item in document["paths"].values() for operation in item.values()]


def test_operations_have_readable_ids_of_their_own(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(name.isidentifier() and "v1" not in name for name in ids)


def test_one_path_has_one_template(document: dict[str, Any]) -> None:
    # OpenAPI 3.1, "Paths Object": templates that differ only in the names of their parameters are the same path.
    paths = [re.sub(r"{\w+}", "{}", path) for path in document["paths"]]
    assert len(set(paths)) == len(paths)


def test_every_answer_has_a_type(document: dict[str, Any]) -> None:
    for operation in operations(document):
        success = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
        for kind, content in success.get("content", {}).items():
            assert content["schema"] not in ({}, None), (operation["operationId"], kind)
        assert operation["responses"]["default"]["content"].keys() == {"application/problem+json"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    known = set(document["components"]["schemas"])

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"].rpartition("/")[2]} if "$ref" in node else set[str]()
            return own.union(*(references(value) for value in node.values()))
        if isinstance(node, list):
            return set[str]().union(*(references(value) for value in node))
        return set()

    assert references(document) <= known
    assert "x-component" not in json.dumps(document)


def test_a_stored_spec_has_every_field_and_a_sent_one_needs_few(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert set(schemas["ExperimentSpec"]["required"]) == set(schemas["ExperimentSpec"]["properties"])
    assert set(schemas["ExperimentSpecInput"]["required"]) == {"name", "base"}
