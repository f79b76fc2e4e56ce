"""ExperimentSpec: one submitted document.

A spec is plain values: a complete base `TrainConfig`, a search space beside it keyed by dotted path, and what to
optimise, how to search, when to stop, with which resources. No URIs, environment or code, and no path but that of
weights to start from, which is relative to the home and confined to it: everything is chosen by name.
"""

from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Discriminator, Field, GetJsonSchemaHandler, Tag, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from orchestrator.objective import FurtherObjective, Objective
from orchestrator.samplers import RandomSampler, SamplerConfig
from orchestrator.schedulers import NoScheduler, SchedulerConfig
from trainer.config import TrainConfig
from trainer.config.section import Section
from trainer.model.matched import Match
from trainer.presets import preset_names

Scalar = bool | int | float | str | None

# Inside the classes below `int` and `float` are fields.
_Whole: TypeAlias = int
_Real: TypeAlias = float


class IntDomain(Section):
    """Whole numbers from low to high, both included."""

    int: tuple[int, int]
    step: Annotated[_Whole, Field(ge=1)] = 1
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> "IntDomain":
        low, high = self.int
        if low > high:
            raise ValueError(f"int: [{low}, {high}] is empty; write the lower bound first")
        if self.log and low < 1:
            raise ValueError(f"log: true needs a lower bound of at least 1, got {low}")
        if self.log and self.step != 1:
            raise ValueError(f"log: true does not go with step={self.step}; leave step out")
        return self


class FloatDomain(Section):
    """Real numbers from low to high, both included; `step` makes it a lattice."""

    float: tuple[float, float]
    step: Annotated[_Real, Field(gt=0)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> "FloatDomain":
        low, high = self.float
        if low > high:
            raise ValueError(f"float: [{low}, {high}] is empty; write the lower bound first")
        if self.log and low <= 0:
            raise ValueError(f"log: true needs a lower bound above 0, got {low}")
        if self.log and self.step is not None:
            raise ValueError(f"log: true does not go with step={self.step}; leave one of them out")
        return self


class ChoiceDomain(Section):
    """One of the listed plain values."""

    choice: Annotated[tuple[Scalar, ...], Field(min_length=1, max_length=1000)]


class OptionsDomain(Section):
    """One of the named options; an option is any value and may hold further domains inside (a conditional space).

    A domain inside option `o` of path `p` becomes the parameter `p.o.<its place>` and exists only in trials that chose
    `o`.
    """

    options: Annotated[dict[str, Any], Field(min_length=1, max_length=100)]


Constraint = Annotated[str, Field(min_length=1, max_length=500)]
"""A comparison, e.g. `a.b <= 2 * c`; `orchestrator.search.constraints` reads it."""

DOMAIN_KINDS = ("int", "float", "choice", "options")
"""A domain is known by which of these fields it has."""


def domain_kind(value: object) -> str | None:
    """Which kind of domain `value` (parsed JSON, or a domain) is; None if it is none."""
    if isinstance(value, dict):
        return next((kind for kind in DOMAIN_KINDS if kind in value), None)
    if isinstance(value, IntDomain | FloatDomain | ChoiceDomain | OptionsDomain):
        return next(kind for kind in DOMAIN_KINDS if hasattr(value, kind))
    return None


Domain = Annotated[
    Annotated[IntDomain, Tag("int")]
    | Annotated[FloatDomain, Tag("float")]
    | Annotated[ChoiceDomain, Tag("choice")]
    | Annotated[OptionsDomain, Tag("options")],
    Discriminator(domain_kind),
]


class _OrPreset:
    """Lets the JSON schema of what may be sent name a preset, with what differs from it, for a whole configuration.

    Parsing puts the preset's fields in before anything is validated (`orchestrator.parsing`).
    """

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        complete = handler(schema)
        if handler.mode == "serialization":
            return complete
        fields = {"preset": {"enum": list(preset_names()), "type": "string"}}
        return {"anyOf": [complete, {"type": "object", "required": ["preset"], "properties": fields}]}


class Baseline(Section):
    """A fixed configuration to compare with: the base with some values set. Never pruned, never told to the sampler.

    With `match` it is a twin of the base's mixture of experts, whose width is derived: a dense model, or, with
    `granularity` or `num_experts`, another mixture.
    """

    name: Annotated[str, Field(min_length=1, max_length=80)]
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> value, e.g. `model.moe: null`."""
    match: Match | None = None
    """What the twin has as much of as the base, as nearly as widths in multiples of 8 allow: active parameters, all
    parameters, or training FLOPs per token. What `set` changes is the twin's and counts."""
    granularity: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Experts of the twin so many times as fine: as many times more of them, of shared ones, and per token."""
    num_experts: Annotated[int, Field(ge=2, le=4096)] | None = None
    """Experts of the twin; a token takes as many as in the base."""

    @model_validator(mode="after")
    def _match_is_said(self) -> "Baseline":
        for name in ("granularity", "num_experts"):
            if getattr(self, name) is not None and self.match is None:
                raise ValueError(
                    f"{name}={getattr(self, name)} describes the twin that match derives, and there is no match; say "
                    f"which quantity is held equal: {', '.join(get_args(Match))}"
                )
        if self.granularity is not None and self.num_experts is not None:
            raise ValueError(
                f"granularity={self.granularity} and num_experts={self.num_experts} are both given; leave one out"
            )
        return self


class Resources(Section):
    """What one trial needs."""

    num_workers: int = Field(default=1, ge=1, le=1024)
    """Data-parallel workers (ranks) of one trial."""
    cpus_per_worker: float = Field(default=1.0, gt=0, le=1024)
    gpus_per_worker: float = Field(default=0.0, ge=0, le=16)
    memory_gib_per_worker: float | None = Field(default=None, gt=0, le=65536)
    """Of the host. Null: what the base takes in closed form; nothing for workers with a GPU."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "Resources":
        if self.num_workers > 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker} with num_workers={self.num_workers}: "
                "distributed workers take 0 or 1 GPU each"
            )
        return self


class KeptCheckpoints(Section):
    """Which checkpoints of a trial are kept; others are deleted once a newer one is safe on the disk.

    Kept in any case: the newest whole one, while the trial lives those of its rungs, and those that a fork began from.
    """

    last: int = Field(default=1, ge=1, le=1000)
    """So many of the newest."""
    best: bool = False
    """The one with the best objective, too, of those at whose step the run was evaluated."""
    pinned_tokens: Annotated[tuple[Annotated[_Whole, Field(ge=1)], ...], Field(max_length=100)] = ()
    """The first at or after each of these numbers of training tokens, too."""


class Tracking(Section):
    """Where telemetry goes besides the runs' folders, which have all of it."""

    mlflow_points: Annotated[int, Field(ge=1)] | Literal["all"] = 500
    """At how many of a trial's steps, evenly spread, MLflow gets the scalars; the router's metrics at a fifth of them.
    `all`: every step, about 230 bytes of MLflow's database per metric and step. See docs/mlflow.md."""
    tensorboard: bool = False
    """Write TensorBoard event files into the runs' folders: `tensorboard --logdir <home>/experiments/<id>`."""


class ExperimentSpec(Section):
    """One experiment: a base configuration, what to vary, and how to judge and stop trials."""

    name: Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f]+$")]
    description: Annotated[str, Field(max_length=10_000)] = ""
    base: Annotated[TrainConfig, _OrPreset()]
    """The configuration of every trial, but for what is searched. `preset: NAME` stands for that preset's fields, over
    which the others are merged."""
    space: Annotated[dict[str, Domain], Field(max_length=200)] = Field(default_factory=dict)
    """Dotted path into `base` -> domain."""
    constraints: Annotated[tuple[Constraint, ...], Field(max_length=50)] = ()
    """What every point has to satisfy, e.g. `model.moe.top_k <= model.moe.num_experts`: a comparison of numbers and
    dotted paths, see docs/search.md. A proposal that does not is drawn again."""
    enqueue: Annotated[tuple[dict[str, Scalar], ...], Field(max_length=1000)] = ()
    """Points that run before the sampler's own and count as trials of the search: parameter path -> value. What a point
    leaves out is drawn at random."""
    baselines: Annotated[tuple[Baseline, ...], Field(max_length=100)] = ()
    objective: Objective = Objective()
    further_objectives: Annotated[tuple[FurtherObjective, ...], Field(max_length=7)] = ()
    """What else the search optimises: with any, it looks for a Pareto front, see docs/search.md."""
    warm_start: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=32)], ...], Field(max_length=20)] = ()
    """Ids of experiments whose ended trials the sampler learns from, where they lie in this space."""
    sampler: SamplerConfig = RandomSampler()
    scheduler: SchedulerConfig = NoScheduler()
    num_trials: int | None = Field(default=None, ge=1, le=100_000)
    """Trials of the search, baselines not counted. Left out with the grid and brute-force samplers: the
    whole grid, and what is enqueued."""
    max_parallel_trials: int | None = Field(default=None, ge=1, le=10_000)
    """At most so many trials at a time; null uses what the cluster holds."""
    synchronous: bool = False
    """Propose in batches of `batch_size` and decide rungs when the whole batch has arrived: the final table is then a
    function of the spec alone, whatever was killed or how fast each trial ran."""
    batch_size: int = Field(default=4, ge=1, le=1000)
    """Trials per batch of a synchronous experiment."""
    replicas: int = Field(default=1, ge=1, le=100)
    """Trials per point and per baseline, which differ in their seed only: sampler, scheduler and comparison go by the
    point. `num_trials`, `batch_size` and `enqueue` count points then. Every point has the same seeds: `base.seed`, and
    others derived from it."""
    resources: Resources = Resources()
    keep_checkpoints: KeptCheckpoints = KeptCheckpoints()
    max_retries: int = Field(default=3, ge=0, le=100)
    """How often a trial whose process or node was lost is tried again."""
    tracking: Tracking = Tracking()
    priority: int = Field(default=0, ge=-100, le=100)
    """Free places of the cluster go to the experiment with the highest first; it can be changed while it runs."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds the sampler. The trials' own seed is `base.seed`."""
