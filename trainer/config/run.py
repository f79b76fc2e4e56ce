"""What the orchestrator and a run say to each other: one request in, a stream of reports out. Torch-free."""

from typing import Literal

from pydantic import Field

from trainer.config.section import Section
from trainer.config.train import TrainConfig


class RunRequest(Section):
    """One execution of a trial."""

    run_id: str
    config: TrainConfig
    folder: str
    """Absolute path of the run's folder; the run writes nowhere else (besides the token cache)."""
    resume_from: str | None = None
    """Absolute path of a committed checkpoint folder to continue from."""
    any_code: bool = False
    """Continue from it even if other code wrote it."""
    rung_tokens: tuple[int, ...] = ()
    """Ascending training tokens at which to evaluate, checkpoint and report a rung."""
    stop_at_tokens: int | None = None
    """End this run, with a checkpoint, once it has seen so many tokens: at a rung where its trial waits."""
    rung_seconds: tuple[float, ...] = ()
    """Ascending seconds of training at which to do so instead: at the first step after them."""
    first_timed_rung: int = Field(default=0, ge=0)
    """The first of `rung_seconds` that the trial has not reported."""
    stop_at_timed_rung: int | None = Field(default=None, ge=0)
    """End this run, with a checkpoint, at this one of `rung_seconds`."""
    cache_folder: str
    """Absolute path of the token cache."""
    start_root: str | None = None
    """Absolute path that `config.start.path` is relative to and confined to; null takes any path of this machine."""
    num_workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    num_threads: int = Field(default=1, ge=1)
    """Torch threads per worker on the CPU."""


class CheckpointReport(Section):
    """A checkpoint whose files are complete on disk."""

    step: int
    tokens: int
    folder: str
    """Absolute path."""
    manifest_sha256: str
    duration_s: float


class DomainEvaluation(Section):
    """Held-out figures of one corpus, or of `all` (the mean over corpora)."""

    bits_per_byte: float
    loss: float


class RoutedLoss(Section):
    """Held-out loss of a model when so many consecutive tokens compete for the experts."""

    chunk_size: int | None
    """Tokens that compete; null lets each token be routed on its own, as in generating text."""
    loss: float
    """Nats per token, mean over corpora."""
    experts_per_token: float
    """Mean over tokens and MoE layers."""


class LookaheadProbe(Section):
    """How much of what a model can do hangs on a router that sees later tokens, see `trainer.lookahead`."""

    trained_chunk_size: int
    """Tokens that competed in training."""
    by_chunk_size: tuple[RoutedLoss, ...]
    """Largest chunks first."""
    causal: RoutedLoss | None
    """Routed without a view of other tokens, as the run's evaluations are. None: this router cannot."""
    predictor_accuracy: list[float] | None
    """Per MoE layer, the fraction of pairs of a token and an expert about which the predictor is right. A predictor
    that never says yes has 1 - experts_per_token / num_experts. None: without predictor."""

    @property
    def as_trained(self) -> RoutedLoss:
        """The loss routed as in training; over the largest chunks where training had larger ones than the probe."""
        same = [routed for routed in self.by_chunk_size if routed.chunk_size == self.trained_chunk_size]
        return same[0] if same else self.by_chunk_size[0]


class StartReport(Section):
    """The weights that a run started from, see `TrainConfig.start`."""

    kind: str
    path: str
    sha256: str
    """Of the weights on disk, as `start.sha256` means it."""
    origin: str
    """What they are, for people."""


class SaturationPoint(Section):
    """How much of the routing of an earlier evaluation is that of the last one."""

    step: int
    tokens: int
    by_layer: list[float]
    """Per MoE layer, the share of the probe set's choices; top_k / num_experts at random, 1 at the end."""


class RunSummary(Section):
    """What a finished run leaves for the tables; the series are in the telemetry."""

    final_loss: float | None
    """Mean training loss of the last 5 % of the steps, nats/token."""
    initial_bits_per_byte: dict[str, float]
    """Corpus -> held-out bits per byte before the first step."""
    bits_per_byte: dict[str, float]
    """Corpus, and `all`, -> held-out bits per byte at the end."""
    worst_max_violation: float | None
    """Largest router/max_violation of any layer, each layer averaged over the last 10 % of the steps. None: dense."""
    worst_max_violation_layer: int | None
    min_token_entropy: float | None
    """Smallest router/token_entropy of any layer, averaged likewise."""
    min_load_entropy: float | None
    max_dead_fraction: float | None
    num_spikes: int
    num_skipped_steps: int = 0
    """Steps without an update, see `loop.on_spike`."""
    precision: str | None = None
    """What the run computed in, and whether the device does or float32 emulates it. None: not noted by an older run."""
    tokens_per_s: float
    training_duration_s: float
    total_parameters: int
    active_parameters: int
    flops_per_token: float
    """Training FLOPs per token, forward and backward."""
    domain_information: dict[str, list[float]] | None
    """Mutual information of domain and expert per MoE layer in bits: keys `trained`, `untrained` (new weights of
    the run's seed) and `shuffled` (trained router, domain labels shuffled). None: dense."""
    lookahead: LookaheadProbe | None = None
    """None: nothing in the model looks ahead."""
    router_saturation: tuple[SaturationPoint, ...] | None = None
    """Of up to 8 evaluations over the run, oldest first. None: dense, or not probed."""
    start: StartReport | None = None
    """None: new weights."""


class RunReport(Section):
    """One message from a run. `rung`, `evaluation`, `checkpoint` may come together in one report."""

    kind: Literal["started", "progress", "finished", "stopped", "failed"]
    """`progress`: evaluated or checkpointed. `finished`: the whole budget is trained. `stopped`: ended early on request
    or at `stop_at_tokens`, with a checkpoint. `failed`: deterministic, see `cause`."""
    step: int
    tokens: int
    rung: int | None = None
    """Index into `rung_tokens`, or `rung_seconds`, that was reached."""
    evaluation: dict[str, DomainEvaluation] | None = None
    checkpoint: CheckpointReport | None = None
    summary: RunSummary | None = None
    cause: Literal["diverged", "out_of_memory", "data_invalid", "error", "stop_rule"] | None = None
    """Of `failed`, why. `stop_rule` comes with `stopped`: a rule of the config's `stop_when` ended the run."""
    message: str | None = None
    """One or a few lines for people; for `error` the exception and the innermost frames."""
