"""TrainConfig: everything that determines one run, as plain values."""

import hashlib
import json
import math
from typing import Annotated, Any

from pydantic import Field, model_validator

from trainer.config.alarms import DEFAULT_WARNINGS, AlarmRule
from trainer.config.clipping import ClippingConfig, GlobalNormConfig, NoClippingConfig
from trainer.config.data import TOKENIZER_VOCAB_SIZES, DataConfig
from trainer.config.model import ModelConfig
from trainer.config.optimizers import ByPatternConfig, OptimizerConfig
from trainer.config.patterns import check_patterns
from trainer.config.precision import Float32Config, PrecisionConfig, QuantizedExpertsSection
from trainer.config.schedules import CosineScheduleConfig, ScheduleConfig
from trainer.config.section import Section
from trainer.config.spike_policies import RecordSpikesConfig, RewindConfig, SkipSpikesConfig, SpikePolicyConfig
from trainer.config.start import ScratchStartConfig, StartConfig, check_start
from trainer.config.trained import TrainedPart, check_trained


class LoopConfig(Section):
    """Batches, length and cadence of the one training loop."""

    budget_tokens: int = Field(ge=1, le=10**15)
    """Training tokens of the whole run; rounded up to a whole number of steps."""
    global_batch_size: int = Field(ge=1, le=1_000_000)
    """Sequences per optimizer step, over all workers."""
    micro_batch_size: int = Field(ge=1, le=1_000_000)
    """Sequences per forward pass of one worker."""
    max_grad_norm: float | None = Field(default=1.0, gt=0, le=1e6)
    """Global L2 norm to clip the gradient to; null does not clip. Short for a `clipping` of kind `global_norm`."""
    clipping: ClippingConfig | None = None
    """How the gradient is clipped; null clips to `max_grad_norm`, which has to be left out or null with it."""
    skip_spikes: SkipSpikesConfig | None = None
    """Which steps make no update because their loss or gradient norm spikes. Short for an `on_spike` of kind `skip`."""
    on_spike: SpikePolicyConfig = RecordSpikesConfig()
    """What is done about a spike besides recording it: nothing (`record`), no update (`skip`), back to the checkpoint
    before it and on with later batches (`rewind`), or a lower learning rate for a while (`lower_lr`)."""
    log_every_steps: int = Field(default=10, ge=1, le=1_000_000)
    """Steps between copies of the accumulated telemetry from the device; every step is recorded all the same."""
    measure_updates_every_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    """Steps between measurements of how much an update changes the parameters, relative to their size, by role
    (`optimizer/*_update_ratio`); each takes a copy of the parameters while it lasts. Null measures none."""
    evaluate_every_tokens: int | None = Field(default=None, ge=1)
    """Training tokens between evaluations; null evaluates before the first and after the last step only."""
    probe_tokens: int = Field(default=1024, ge=0, le=1_000_000)
    """Held-out tokens that every evaluation routes anew, to see what changed (`probe/` metrics); 0 probes nothing."""
    checkpoint_every_tokens: int | None = Field(default=None, ge=1)
    """Training tokens between checkpoints; null writes one at the end and wherever the orchestrator asks for one."""

    @model_validator(mode="before")
    @classmethod
    def _short_form_is_off(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("clipping") is not None and "max_grad_norm" not in values:
            return values | {"max_grad_norm": None}
        return values

    @model_validator(mode="after")
    def _clips_one_way(self) -> "LoopConfig":
        if self.clipping is not None and self.max_grad_norm is not None:
            raise ValueError(
                f"max_grad_norm={self.max_grad_norm} and clipping of kind {self.clipping.kind!r} are both given; set "
                "max_grad_norm to null, some kinds of clipping have a max_norm of their own"
            )
        return self

    @model_validator(mode="after")
    def _acts_one_way(self) -> "LoopConfig":
        if self.skip_spikes is not None and self.on_spike.kind != "record":
            raise ValueError(
                f"skip_spikes and on_spike of kind {self.on_spike.kind!r} are both given; leave skip_spikes out, it is "
                "short for an on_spike of kind 'skip'"
            )
        if isinstance(self.on_spike, RewindConfig) and self.checkpoint_every_tokens is None:
            raise ValueError(
                "on_spike of kind 'rewind' goes back to a checkpoint, and checkpoint_every_tokens is null: there would "
                "be none; set it"
            )
        return self

    @property
    def spike_policy(self) -> SpikePolicyConfig:
        """The policy that `on_spike` or its short form `skip_spikes` ask for."""
        return self.on_spike if self.skip_spikes is None else self.skip_spikes

    @property
    def gradient_clipping(self) -> ClippingConfig:
        """The clipping that `clipping` or its short form `max_grad_norm` ask for."""
        if self.clipping is not None:
            return self.clipping
        return NoClippingConfig() if self.max_grad_norm is None else GlobalNormConfig(max_norm=self.max_grad_norm)

    @model_validator(mode="after")
    def _divides(self) -> "LoopConfig":
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size}; choose a divisor of {self.global_batch_size}"
            )
        return self


class TrainConfig(Section):
    """One run: model, data, optimizer, schedule, precision, loop and seed."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = CosineScheduleConfig()
    precision: PrecisionConfig = Float32Config()
    loop: LoopConfig
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds the weights and the order of the data."""
    start: StartConfig = ScratchStartConfig()
    """Where the weights come from."""
    trained: TrainedPart = "all"
    """Which parameters are trained; the others are frozen."""
    warn_when: Annotated[tuple[AlarmRule, ...], Field(max_length=50)] = DEFAULT_WARNINGS
    """What of the router, the loss or the gradient to raise an alarm at."""
    stop_when: Annotated[tuple[AlarmRule, ...], Field(max_length=50)] = ()
    """What to end the run at, with a checkpoint; its trial is then pruned with that cause."""

    @model_validator(mode="after")
    def _starts_and_trains_something(self) -> "TrainConfig":
        check_start(self.start, self.model)
        check_trained(self.trained, self.model)
        return self

    @model_validator(mode="after")
    def _vocabulary_fits(self) -> "TrainConfig":
        needed = TOKENIZER_VOCAB_SIZES[self.data.tokenizer]
        if self.model.vocab_size < needed:
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size} is smaller than the {needed} tokens of "
                f"data.tokenizer={self.data.tokenizer!r}; use at least {needed}"
            )
        return self

    @model_validator(mode="after")
    def _precision_fits(self) -> "TrainConfig":
        precision, moe = self.precision, self.model.moe
        if not isinstance(precision, QuantizedExpertsSection):
            return self
        if moe is None:
            raise ValueError(
                f"precision.kind={precision.kind!r} is one of experts' matmuls, and model.moe is null; "
                f"choose {precision.rest!r}"
            )
        for path, width in (("model.dim", self.model.dim), ("model.moe.hidden_dim", moe.hidden_dim)):
            if width % precision.dim_multiple:
                raise ValueError(
                    f"{path}={width} is not a multiple of {precision.dim_multiple}, which precision.kind="
                    f"{precision.kind!r} asks for; change it or the precision"
                )
        return self

    @model_validator(mode="after")
    def _blocks_fit(self) -> "TrainConfig":
        chosen = {"model.attention": self.model.attention}
        if self.model.global_attention is not None:
            chosen["model.global_attention.attention"] = self.model.global_attention.attention
        used = self.model.layer_attentions()
        for path, attention in chosen.items():
            if attention.kind == "nsa" and attention in used and attention.compression_block_size > self.data.seq_len:
                raise ValueError(
                    f"{path}.compression_block_size={attention.compression_block_size} exceeds data.seq_len="
                    f"{self.data.seq_len}: nothing would ever be compressed; lower it"
                )
        return self

    @model_validator(mode="after")
    def _patterns_match(self) -> "TrainConfig":
        if isinstance(self.optimizer, ByPatternConfig):
            check_patterns(self.optimizer, self.model, self.trained)
        return self

    @property
    def step_tokens(self) -> int:
        """Training tokens per optimizer step, over all workers."""
        return self.loop.global_batch_size * self.data.seq_len

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return math.ceil(self.loop.budget_tokens / self.step_tokens)

    def steps_for_tokens(self, tokens: int) -> int:
        """The first step at which at least `tokens` training tokens were seen, at most `num_steps`."""
        return min(math.ceil(tokens / self.step_tokens), self.num_steps)

    def fingerprint(self) -> str:
        """sha256 of the config in canonical JSON: equal for equal runs."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()
