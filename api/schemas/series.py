"""Series: step-by-step telemetry on a common grid."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from api.schemas.wire import Answer, EpochMs, Question

X = Literal["step", "tokens", "time", "flops"]
"""`time` is seconds of training since the trial's first step; `flops` are training FLOPs."""


class SeriesRequest(Question):
    """Which metrics of which trials or runs, over what."""

    trials: list[str] = Field(default_factory=list, max_length=100)
    """A trial's series joins its runs: for steps in several of them the later run counts."""
    runs: list[str] = Field(default_factory=list, max_length=100)
    keys: list[Annotated[str, Field(max_length=200)]] = Field(min_length=1, max_length=20)
    """Metric names of the catalogue. A metric with a layer axis: `layers` says what becomes of it. An evaluation metric
    gives one item per domain."""
    x: X = "step"
    points: int = Field(default=500, ge=2, le=5000)
    """Most points of the common grid; where no more x were recorded, they are answered as they are."""
    x_range: tuple[float, float] | None = None
    """Only this part of x, both ends included."""
    layers: Literal["worst", "mean", "each"] = "worst"
    """`worst`: at each step the layer where the metric is worst."""

    @model_validator(mode="after")
    def _something_asked(self) -> "SeriesRequest":
        if not self.trials and not self.runs:
            raise ValueError("trials and runs are both empty; name at least one trial or run")
        if self.x_range is not None and self.x_range[0] > self.x_range[1]:
            raise ValueError(f"x_range {list(self.x_range)} is empty; write the lower bound first")
        return self


class SeriesItem(Answer):
    """One curve; null where a bucket holds no value of it."""

    trial_id: str
    run_id: str | None
    """Set if the run was asked for by itself."""
    key: str
    layer: int | None
    """Layer index in the whole model; null for metrics without layers and for `worst` and `mean`."""
    domain: str | None
    min: list[float | None]
    last: list[float | None]
    max: list[float | None]
    num_rows: int
    """Recorded values in the range."""
    num_nonfinite: int
    """Those of them that are NaN or infinite and therefore in no bucket."""


class Series(Answer):
    """Curves on one common grid."""

    x: X
    x_unit: str
    grid: list[float]
    """Ascending: every recorded x if `raw`, else the upper end of each bucket."""
    raw: bool
    """Nothing was put into buckets: min, last and max are the same recorded values."""
    items: list[SeriesItem]


class LayerHealth(Answer):
    """The state of one MoE layer's router around a spike."""

    layer: int
    max_violation: float | None
    token_entropy: float | None


class SamplePreview(Answer):
    """How a training sample begins."""

    sample_index: int
    document_ids: list[str]
    text: str


class Moved(Answer):
    """A metric that lay more than 6 standard deviations from where it was."""

    metric: str
    layer: int | None
    step: int
    steps_before: int
    z: float | None


class Spike(Answer):
    """A sudden rise of the loss or of the gradient norm."""

    trial_id: str
    run_id: str
    step: int
    tokens: int
    time_ms: EpochMs
    metric: str
    value: float | None
    baseline: float | None
    """Mean of the window before it."""
    z: float | None
    """How many standard deviations of that window above the baseline."""
    size: float | None
    lr: float | None
    grad_norm: float | None
    sample_indices: tuple[int, int]
    """First and last sample of the step's global batch."""
    document_ids: list[str]
    previews: list[SamplePreview] = Field(default_factory=list)
    """How the first of those samples begin."""
    grad_norms: dict[str, float | None] | None = None
    """Gradient norm of each role's parameters."""
    checkpoint_step: int | None = None
    """Newest checkpoint before it."""
    moved: list[Moved] = Field(default_factory=list)
    """What left its usual range up to 20 steps before the spike, earliest first: an order in time, not a cause."""
    order: list[str] = Field(default_factory=list)
    """The same in words."""
    peak_step: int | None = None
    peak_value: float | None = None
    router_peak: list[LayerHealth] | None = None
    recovery_steps: int | None = None
    rewound_to: int | None = None
    """The step that the run went back to for it."""
    router_before: list[LayerHealth]
    router_at: list[LayerHealth]
    router_after: list[LayerHealth] | None
    recovered_step: int | None


class SpikeList(Answer):
    """Spikes of a trial in order of their step."""

    items: list[Spike]


class Alarm(Answer):
    """A rule about a metric that began to hold, or ceased to."""

    trial_id: str
    run_id: str
    step: int
    tokens: int
    time_ms: EpochMs
    rule: str
    """Kind of the rule, or its metric."""
    severity: Literal["warn", "stop"]
    """`stop`: the run ended for it."""
    change: Literal["raised", "cleared"]
    metric: str
    comparison: Literal["at_least", "at_most"]
    threshold: float
    for_steps: int
    layer: int | None
    """Index in the whole model; null where it is about no single layer."""
    value: float | None
    first_step: int
    """From which on the rule held (or, of a cleared alarm, did not) without a break."""
    message: str


class AlarmList(Answer):
    """Alarms in order of their step; of an experiment, trial by trial."""

    items: list[Alarm]


class Evaluation(Answer):
    """Held-out figures of one corpus, or of `all`, at one step; step 0 is before training."""

    step: int
    tokens: int
    time_ms: EpochMs
    domain: str
    bits_per_byte: float | None
    loss: float | None


class EvaluationList(Answer):
    """Every evaluation of a trial in order of step, then of domain."""

    trial_id: str
    domains: list[str]
    items: list[Evaluation]
