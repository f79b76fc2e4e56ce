"""Writes docs/components.md from the registries and their configs: `python -m trainer.components_page`.

With `--check` it compares only.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from trainer.attention import ATTENTIONS
from trainer.balancing import BALANCERS
from trainer.clipping import CLIPPERS
from trainer.config.attention import AttentionConfig
from trainer.config.balancing import BalancerConfig
from trainer.config.clipping import ClippingConfig
from trainer.config.optimizers import OptimizerConfig
from trainer.config.precision import PrecisionConfig
from trainer.config.routers import RouterConfig
from trainer.config.schedules import ScheduleConfig
from trainer.config.start import StartConfig
from trainer.optimizers import OPTIMIZERS
from trainer.precision import PRECISIONS
from trainer.registry import Registry
from trainer.routers import ROUTERS
from trainer.schedules import SCHEDULES
from trainer.start import STARTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "components.md"


class Family(NamedTuple):
    """Components that take each other's place at one path of a spec."""

    title: str
    path: str
    registry: Registry[Any]
    union: Any


FAMILIES = (
    Family("Attention", "model.attention, model.global_attention.attention", ATTENTIONS, AttentionConfig),
    Family("Routers", "model.moe.router", ROUTERS, RouterConfig),
    Family("Balancing", "model.moe.balancing, a list", BALANCERS, BalancerConfig),
    Family("Optimizers", "optimizer", OPTIMIZERS, OptimizerConfig),
    Family("Gradient clipping", "loop.clipping", CLIPPERS, ClippingConfig),
    Family("Learning-rate schedules", "schedule", SCHEDULES, ScheduleConfig),
    Family("Precisions", "precision", PRECISIONS, PrecisionConfig),
    Family("Starts", "start", STARTS, StartConfig),
)

_HEAD = """# Components

What a spec can swap by changing one line, with every option and its default. Generated from the registries and the
config classes by `python -m trainer.components_page`. An option without a default is required. How to add one:
[adding-a-component.md](adding-a-component.md).
"""


def render() -> str:
    """The text of docs/components.md."""
    return _HEAD + "".join(_section(family) for family in FAMILIES)


def main() -> None:
    """Writes the page; with `--check`, exits 1 if it is not what would be written."""
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text() != render():
            sys.exit(f"{PAGE.name} is stale; run: python -m trainer.components_page")
        return
    PAGE.write_text(render())


def configs_by_kind(union: Any) -> dict[str, type[BaseModel]]:
    """Returns the config class of each `kind` of a discriminated union."""
    return {config.model_fields["kind"].default: config for config in _members(union)}


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for member in get_args(annotation):
            yield from _members(member)


def _section(family: Family) -> str:
    configs = configs_by_kind(family.union)
    rows = "".join(_row(kind, configs[kind]) for kind in sorted(family.registry))
    return f"\n## {family.title}\n\nAt `{family.path}`.\n\n| kind | what it is | options |\n|---|---|---|\n{rows}"


def _row(kind: str, config: type[BaseModel]) -> str:
    summary = re.sub(r"\s+", " ", (config.__doc__ or "").strip())
    options = "<br>".join(_option(name, config) for name in config.model_fields if name != "kind")
    return f"| `{kind}` | {_cell(summary)} | {options or 'none'} |\n"


def _option(name: str, config: type[BaseModel]) -> str:
    field = config.model_fields[name]
    required = field.default is PydanticUndefined and field.default_factory is None
    default = "" if required else f" = {_cell(_value(field.get_default(call_default_factory=True)))}"
    return f"`{name}`: {_cell(_type(field.annotation))}{default}"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(str(value) for value in arguments)
    if annotation is type(None):
        return "null"
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return str(kind.default) if kind is not None else "options"
    return {"str": "text", "bool": "true or false"}.get(annotation.__name__, annotation.__name__)


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return str(getattr(value, "kind", "")) or "its defaults"
    return str(value) if value != () else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
