"""The bases of every wire type."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Scalar = bool | int | float | str | None

EpochMs = Annotated[int, Field(description="UTC milliseconds since 1970.")]


class Answer(BaseModel):
    """What the API sends: every field is always there, numbers that are not finite arrive as null.

    Fields a newer server adds are ignored, so that an older client goes on working.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class Question(BaseModel):
    """What the API takes: unknown fields and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def shown_as(name: str) -> dict[str, Any]:
    """`json_schema_extra` of a field that holds a stored document: OpenAPI shows it as component `name`.

    Such a document was validated when it was stored; validating it again at every read would only cost time, and would
    fail for documents that an older version wrote.
    """
    return {"x-component": name}
