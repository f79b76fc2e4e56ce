"""Patterns that choose parameters by their names."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from trainer.config.model import ModelConfig
from trainer.config.optimizers import ByPatternConfig
from trainer.config.trained import TrainedPart, trained_parameters

_MAX_NAMES = 40


def first_match(name: str, patterns: Sequence[str]) -> int | None:
    """Returns the index of the first pattern that the parameter's name matches; None if none does."""
    return next((index for index, pattern in enumerate(patterns) if fnmatchcase(name, pattern)), None)


def check_patterns(config: ByPatternConfig, model: ModelConfig, trained: TrainedPart) -> None:
    """Checks that every pattern decides about a parameter that is trained.

    Raises:
        ValueError: one does not; the message names it, and the parameters there are.
    """
    patterns = [group.pattern for group in config.groups]
    names = list(trained_parameters(model, trained))
    deciding = {first_match(name, patterns) for name in names}
    for index, pattern in enumerate(patterns):
        if index in deciding:
            continue
        taken = [name for name in names if fnmatchcase(name, pattern)]
        if taken:
            earlier = patterns[first_match(taken[0], patterns) or 0]
            problem = f"matches only what earlier patterns take, {taken[0]} by {earlier!r}; move it up or drop it"
        else:
            problem = f"matches no parameter that is trained; there are {_shown(names)}"
        raise ValueError(f"optimizer.groups.{index}.pattern={pattern!r} {problem}")


def _shown(names: Iterable[str]) -> str:
    """Returns the names with one entry for those that differ in the number of the layer only."""
    shown = sorted({re.sub(r"^blocks\.\d+\.", "blocks.*.", name) for name in names})
    rest = f" and {len(shown) - _MAX_NAMES} more" if len(shown) > _MAX_NAMES else ""
    return ", ".join(shown[:_MAX_NAMES]) + rest
