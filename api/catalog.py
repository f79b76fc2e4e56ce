"""The catalogue: what a spec can name and what is measured, read off the config classes."""

from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from api.schemas.catalog import Catalog, ComponentFamily, ComponentRead, CorpusRead, MetricRead, TokenizerRead
from orchestrator.samplers import SamplerConfig
from orchestrator.schedulers import SchedulerConfig
from orchestrator.spec import ExperimentSpec
from trainer.config.attention import AttentionConfig
from trainer.config.balancing import BalancerConfig
from trainer.config.data import CORPORA, TOKENIZER_VOCAB_SIZES
from trainer.config.optimizers import OptimizerConfig
from trainer.config.precision import PrecisionConfig
from trainer.config.routers import RouterConfig
from trainer.config.schedules import ScheduleConfig
from trainer.config.start import StartConfig
from trainer.metrics.catalog import METRICS

FAMILIES: tuple[tuple[str, str, Any], ...] = (
    ("attention", "base.model.attention", AttentionConfig),
    ("router", "base.model.moe.router", RouterConfig),
    ("balancing", "base.model.moe.balancing", BalancerConfig),
    ("optimizer", "base.optimizer", OptimizerConfig),
    ("schedule", "base.schedule", ScheduleConfig),
    ("precision", "base.precision", PrecisionConfig),
    ("start", "base.start", StartConfig),
    ("sampler", "sampler", SamplerConfig),
    ("scheduler", "scheduler", SchedulerConfig),
)
"""Family, place in an ExperimentSpec, and the union of its config classes."""


@cache
def version() -> str:
    """The installed version of evenload; "0" in a checkout that is not installed."""
    try:
        return installed_version("evenload")
    except PackageNotFoundError:
        return "0"


@cache
def spec_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of ExperimentSpec."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "/v1/schema/experiment-spec.json",
        **ExperimentSpec.model_json_schema(),
    }


@cache
def catalog() -> Catalog:
    """The whole catalogue."""
    return Catalog(
        version=version(),
        metrics=[MetricRead.model_validate(asdict(metric)) for metric in METRICS.values()],
        corpora=[CorpusRead(name=name) for name in CORPORA],
        tokenizers=[TokenizerRead(name=name, vocab_size=size) for name, size in TOKENIZER_VOCAB_SIZES.items()],
        families=[
            ComponentFamily(family=family, path=path, components=[_component(cls) for cls in _members(union)])
            for family, path, union in FAMILIES
        ],
    )


def _members(union: Any) -> tuple[type[BaseModel], ...]:
    """The classes of `Annotated[A | B, ...]`, of `A | B`, or of a single class."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    members = get_args(union) if get_origin(union) in (Union, type(int | str)) else (union,)
    return members


def _component(cls: type[BaseModel]) -> ComponentRead:
    return ComponentRead(
        kind=cls.model_fields["kind"].default,
        description=(cls.__doc__ or "").strip(),
        json_schema=cls.model_json_schema(),
    )
