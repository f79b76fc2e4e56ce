"""The base of every config class: frozen, no unknown fields, finite numbers only."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A part of a config. Unknown fields and NaN or infinite numbers are refused, values cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )


def kind_defaults_to(kind: str) -> BeforeValidator:
    """Returns what makes a discriminated union take an object without `kind` for one of this kind.

    It stands after the discriminator: `Annotated[A | B, Field(discriminator="kind"), kind_defaults_to("a")]`.
    """

    def named(value: Any) -> Any:
        return {"kind": kind, **value} if isinstance(value, dict) and "kind" not in value else value

    return BeforeValidator(named)
