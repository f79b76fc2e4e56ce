"""`python -m api.openapi`: writes docs/openapi.json from the routes; `--check` fails if the file is stale."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.schemas.problems import Problem
from api.schemas.router import LoadHistoryMeta
from orchestrator.spec import ExperimentSpec
from trainer.config import TrainConfig

REF = "#/components/schemas/{model}"
FILE = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"

Json = dict[str, Any]


def build(app: FastAPI) -> Json:
    """The OpenAPI 3.1 document of `app`, with the components that stored documents refer to."""
    document = get_openapi(
        title=app.title,
        version="1",  # of the API, as in its paths; not that of the installation
        openapi_version="3.1.0",
        summary="Experiments on small mixture-of-experts language models.",
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    components = document["components"]
    schemas = cast(Json, components["schemas"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= _components(Problem, LoadHistoryMeta)
    schemas |= {name: _all_required(schema) for name, schema in _components(ExperimentSpec, TrainConfig).items()}
    schemas |= _inputs(ExperimentSpec)
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": "evenload_session"},
    }
    document["security"] = [{"token": []}, {"session": []}]
    for path, item in document["paths"].items():
        for operation in item.values():
            operation["responses"].pop("422", None) if _is_default_422(operation) else None
            operation["responses"]["default"] = {
                "description": "Any other problem",
                "content": {"application/problem+json": {"schema": {"$ref": REF.format(model="Problem")}}},
            }
            if not path.startswith("/v1/") or operation["operationId"] == "open_session":
                operation["security"] = []
    return cast(Json, _linked(document))


def _components(*models: type[BaseModel]) -> dict[str, Json]:
    _, together = models_json_schema([(model, "serialization") for model in models], ref_template=REF)
    return cast(dict[str, Json], together["$defs"])


def _inputs(model: type[BaseModel]) -> dict[str, Json]:
    """The components of `model` as it may be sent, defaults optional, each under its name + `Input`."""
    _, together = models_json_schema([(model, "validation")], ref_template="#/components/schemas/{model}Input")
    return {name + "Input": schema for name, schema in together["$defs"].items()}


def _all_required(schema: Json) -> Json:
    """`schema` of a stored document: normalising filled in every default."""
    if "properties" in schema:
        return {**schema, "required": list(schema["properties"])}
    return schema


def _is_default_422(operation: Json) -> bool:
    content = operation["responses"].get("422", {}).get("content", {})
    return "application/json" in content


def _linked(node: Any) -> Any:
    """`node` with every `x-component` replaced by a reference to that component."""
    if isinstance(node, list):
        return [_linked(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    if "x-component" not in node:
        return {key: _linked(value) for key, value in node.items()}
    reference = {"$ref": REF.format(model=node["x-component"])}
    nullable = any(option.get("type") == "null" for option in node.get("anyOf", ()))
    described = {"description": node["description"]} if "description" in node else {}
    return {"anyOf": [reference, {"type": "null"}], **described} if nullable else {**reference, **described}


def text() -> str:
    """The document as committed: two spaces, one newline at the end."""
    from api.app import create_app
    from api.settings import Settings

    app = create_app(Settings(home=Path(), database_url="sqlite:///unused.db", token=None))
    return json.dumps(build(app), indent=2, ensure_ascii=True) + "\n"


def main() -> None:
    """Writes or checks the file."""
    parser = argparse.ArgumentParser(prog="python -m api.openapi", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed file differs")
    fresh = text()
    if parser.parse_args().check:
        if not FILE.exists() or FILE.read_text() != fresh:
            sys.exit(f"{FILE} is stale; run `python -m api.openapi` and commit it")
        return
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(fresh)


if __name__ == "__main__":
    main()
