"""Numbers on their way into the database: NaN and the infinities become null, since JSON has no word for them."""

import math
from collections.abc import Mapping
from typing import Any


def finite_number(value: float | None) -> float | None:
    """`value`, or None if it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def finite_json(value: Any) -> Any:
    """`value` (dicts, lists, plain values) with None for every number that is not finite; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return value
