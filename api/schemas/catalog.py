"""What there is to choose from and what is measured."""

from typing import Any, Literal

from api.schemas.wire import Answer


class MetricRead(Answer):
    """One metric, as declared in the catalogue."""

    name: str
    unit: str
    description: str
    axes: list[Literal["layer", "domain", "expert"]]
    better: Literal["lower", "higher"] | None
    lower: str | None
    upper: str | None
    source: str | None


class ComponentRead(Answer):
    """One component that a spec can name."""

    kind: str
    description: str
    json_schema: dict[str, Any]
    """Of its config section."""


class ComponentFamily(Answer):
    """The components for one place of a config."""

    family: str
    path: str
    """Where in an ExperimentSpec it goes."""
    components: list[ComponentRead]


class CorpusRead(Answer):
    """One corpus that comes with evenload."""

    name: str


class TokenizerRead(Answer):
    """One tokenizer that comes with evenload."""

    name: str
    vocab_size: int


class Catalog(Answer):
    """Metrics, corpora, tokenizers and components of this installation."""

    version: str
    metrics: list[MetricRead]
    corpora: list[CorpusRead]
    tokenizers: list[TokenizerRead]
    families: list[ComponentFamily]
