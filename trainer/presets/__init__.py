"""Named configurations: published models and starting points of our own, one YAML file of this folder each.

A preset is a TrainConfig document. A config or the base of a spec that says `preset: NAME` is that document with its
other fields merged over it. Torch-free.
"""

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import EvenloadError

__all__ = ["UnknownPreset", "merged", "preset_document", "preset_names", "with_preset"]

PRESET_FIELD = "preset"


class UnknownPreset(EvenloadError):
    """There is no preset of this name; the message lists those there are."""


def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets, in alphabetical order."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.yaml")))


def preset_document(name: object) -> dict[str, Any]:
    """Returns the TrainConfig document of a preset, a new one each time.

    Raises:
        UnknownPreset: nothing is named so.
    """
    names = preset_names()
    if not isinstance(name, str) or name not in names:
        near = difflib.get_close_matches(str(name)[:80], names, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        raise UnknownPreset(f"there is no preset {str(name)[:80]!r}; {advice}there are: {', '.join(names)}")
    return yaml.safe_load(_text(name))


def with_preset(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the document with the fields of the preset it names in `preset`; without one, as it is.

    Raises:
        UnknownPreset: the field names no preset.
    """
    if PRESET_FIELD not in document:
        return dict(document)
    overrides = {name: value for name, value in document.items() if name != PRESET_FIELD}
    return merged(preset_document(document[PRESET_FIELD]), overrides)


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with `overrides` over it: objects field by field, anything else, lists too, as a whole.

    An object of another `kind` replaces the one in `base`, since their fields have nothing to do with each other.
    """
    result = dict(base)
    for name, value in overrides.items():
        known: Any = result.get(name)
        result[name] = merged(known, value) if _may_merge(known, value) else value
    return result


def _may_merge(known: Any, value: Any) -> bool:
    if not isinstance(known, Mapping) or not isinstance(value, Mapping):
        return False
    return "kind" not in value or value["kind"] == known.get("kind")


@functools.cache
def _text(name: str) -> str:
    return Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
