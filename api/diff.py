"""What differs between configurations, and nothing else."""

from collections.abc import Iterator, Sequence
from typing import Any

from api.schemas.trials import Diff, Difference

_ABSENT = object()


def diff(trials: Sequence[str], configs: Sequence[dict[str, Any]]) -> Diff:
    """Compares the configurations of `trials`, one each.

    Where a part is missing or null in some (a dense model has no `model.moe`), the part itself is one difference; what
    is inside it is listed where those that have it differ from each other.
    """
    differences: list[Difference] = []
    num_equal = 0
    for path, values in _compared("", list(configs)):
        if _all_equal(values):
            num_equal += 1
            continue
        present = [value is not _ABSENT for value in values]
        shown = [value if there else None for value, there in zip(values, present, strict=True)]
        differences.append(Difference(path=path, values=shown, present=present))
    return Diff(trials=list(trials), differences=differences, num_equal=num_equal)


def _compared(path: str, values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Path and values of every place to compare at or below `path`. A value is _ABSENT where there is no such place."""
    present = [value for value in values if value is not _ABSENT]
    branches = [value for value in present if _is_branch(value)]
    if not branches:
        yield path, values
        return
    if len(branches) < len(present):
        yield path, values
        values = [value if _is_branch(value) else _ABSENT for value in values]
    for key in dict.fromkeys(key for value in branches for key, _ in _children(value)):
        inner = [dict(_children(value)).get(key, _ABSENT) if value is not _ABSENT else _ABSENT for value in values]
        for place, found in _compared(f"{path}.{key}" if path else str(key), inner):
            # Of what only some have, only what differs among those is of interest.
            if len(branches) == len(present) or not _all_equal([one for one in found if one is not _ABSENT]):
                yield place, found


def _is_branch(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return [(str(index), item) for index, item in enumerate(value)]


def _all_equal(values: list[Any]) -> bool:
    # 1, 1.0 and True are equal to Python and three different settings.
    return all(value == values[0] and type(value) is type(values[0]) for value in values)
