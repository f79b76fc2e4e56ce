"""The base of every config class: frozen, no unknown fields, finite numbers only."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config. Unknown fields and NaN or infinite numbers are refused, values cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )
