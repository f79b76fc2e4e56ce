"""Reads a TrainConfig from a YAML or JSON file or by a preset's name, and says field by field what is wrong with one.

Torch-free.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from trainer.config import TrainConfig
from trainer.errors import EvenloadError
from trainer.presets import UnknownPreset, preset_document, preset_names, with_preset

MAX_SHOWN_INPUT = 60


class ConfigRejected(EvenloadError):
    """A config file cannot be read or is not a valid config; the message has one line per problem."""


def read_config(path: Path) -> TrainConfig:
    """Return the config in a file: a bare TrainConfig document, or the `base` of an experiment spec.

    Either may name a `preset`, over which its other fields are merged (`trainer.presets`).

    Raises:
        ConfigRejected: with every problem: the field, what was given, what is allowed.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigRejected(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigRejected(f"{path} holds {type(document).__name__}; expected fields: {_names(TrainConfig)}")
    prefix, fields = ("base.", document["base"]) if "base" in document else ("", document)
    if isinstance(fields, dict):
        try:
            fields = with_preset(fields)
        except UnknownPreset as error:
            raise ConfigRejected(f"{path} is not a valid config:\n  {prefix}preset: {error}") from error
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        lines = [_problem(prefix, each["loc"], each["type"], each["msg"], each["input"]) for each in error.errors()]
        raise ConfigRejected(f"{path} is not a valid config:\n" + "\n".join(f"  {line}" for line in lines)) from error


def find_config(name: str) -> TrainConfig:
    """Return the config of the file `name`, or, where there is no such file, of the preset of that name.

    Raises:
        ConfigRejected: neither is there, or what is there is no valid config.
    """
    path = Path(name)
    if path.is_file():
        return read_config(path)
    if path.is_dir():
        raise ConfigRejected(f"{name} is a folder; name a YAML or JSON file, or one of: {', '.join(preset_names())}")
    try:
        return TrainConfig.model_validate(preset_document(name))
    except UnknownPreset as error:
        raise ConfigRejected(f"there is no file {name!r}, and {error}") from error


def _problem(prefix: str, location: Sequence[int | str], kind: str, message: str, given: object) -> str:
    *parents, last = location or ("(document)",)
    models = list(_models_at(parents))
    place = prefix + ".".join(str(part) for part in _without_tags(location)) if location else "(document)"
    if kind == "extra_forbidden" and models:
        known = sorted({name for model in models for name in model.model_fields})
        near = difflib.get_close_matches(str(last), known, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        return f"{place}: there is no such field; {advice}there are: {', '.join(known)}"
    if kind == "missing":
        return f"{place}: required, but not given"
    shown = repr(given)
    shown = shown if len(shown) <= MAX_SHOWN_INPUT else f"{shown[: MAX_SHOWN_INPUT - 3]}..."
    return f"{place}: given {shown}; {message.removeprefix('Value error, ')}"


def _models_at(location: Sequence[int | str]) -> Iterator[type[BaseModel]]:
    """Yield the config classes that the value at `location` may be of."""
    models: list[type[BaseModel]] = [TrainConfig]
    for part in location:
        inside = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if inside:
            models = [found for annotation in inside for found in _models_in(annotation)]
        elif isinstance(part, str):
            models = [model for model in models if part in _tags(model)]
    yield from models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _tags(model: type[BaseModel]) -> tuple[object, ...]:
    """Return the values of a config's `kind`, which pydantic puts into the location of an error."""
    annotation = model.model_fields["kind"].annotation if "kind" in model.model_fields else None
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _without_tags(location: Sequence[int | str]) -> Iterator[int | str]:
    for index, part in enumerate(location):
        tags = {tag for model in _models_at(location[:index]) for tag in _tags(model)}
        fields = {name for model in _models_at(location[:index]) for name in model.model_fields}
        if part not in tags or part in fields:
            yield part


def _names(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)
