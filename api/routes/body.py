"""A submitted spec as it arrived: bytes, so that admission answers for everything that can be wrong with it."""

from typing import Annotated, Any

from fastapi import Depends, Request

from orchestrator.screening import parse_json


async def _read(request: Request) -> bytes:
    return await request.body()


def _parse(body: Annotated[bytes, Depends(_read)]) -> Any:
    return parse_json(body)


SpecDocument = Annotated[Any, Depends(_parse)]
"""The JSON value in the body. Raises SpecRejected if it is none, gives a key twice, or is nested too deeply."""

SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ExperimentSpecInput"}}},
    }
}
"""`openapi_extra` of a route that takes a SpecDocument."""
