"""An example config for every kind of a family, made from its schema, so that a new component needs no new test."""

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def config_classes(union: Any) -> dict[str, type[BaseModel]]:
    """Returns `kind -> config class` of a family's config type: one class, or a discriminated union of several."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    members = get_args(union) if get_origin(union) in (Union, types.UnionType) else (union,)
    return {member.model_fields["kind"].default: member for member in members}


def example_config(union: Any, kind: str, **fields: Any) -> Any:
    """Returns a config of this kind with a small allowed value for each required field; `fields` replace them."""
    config_class = config_classes(union)[kind]
    schema = config_class.model_json_schema()
    required = {name: _small_value(schema["properties"][name]) for name in schema.get("required", ())}
    return config_class.model_validate(required | fields)


def _small_value(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "integer":
            return max(schema.get("minimum", 1), schema.get("multipleOf", 1))
        case "number":
            lowest = schema.get("exclusiveMinimum", schema.get("minimum", 0.0))
            highest = schema.get("maximum", schema.get("exclusiveMaximum", lowest + 1.0))
            return lowest + 0.01 * (highest - lowest)
        case "boolean":
            return False
    raise NotImplementedError(f"say here what a small value is for {schema}")
