"""Where a run's weights come from."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainer.config.model import ModelConfig
from trainer.config.section import Section


class ScratchStartConfig(Section):
    """New weights, drawn by the run's seed."""

    kind: Literal["scratch"] = "scratch"


class PathSection(Section):
    """A start from something on disk."""

    path: str = Field(min_length=1, max_length=4096)
    """Of a folder that every worker sees. In a spec that is submitted, relative to the home of the service: the folder
    of a run, say `experiments/ID/trials/00003/ID`, or whatever was put there. In a run of its own also absolute, or
    relative to the working directory."""

    @field_validator("path")
    @classmethod
    def _goes_down(cls, path: str) -> str:
        if ".." in PurePosixPath(path).parts:
            raise ValueError(f"{path!r} goes up by '..'; give the path without it")
        return path

    @property
    def is_absolute(self) -> bool:
        """Whether `path` says where it is by itself."""
        return PurePosixPath(self.path).is_absolute()


class SourceSection(PathSection):
    """Weights on disk, read before the first step and never again: a resumed run has them in its checkpoint.

    The model must be that of the weights in everything that decides what is computed, and `data.tokenizer` the one of
    its tokens. Where a run means to differ it says so in `changed`; tensors must be of the same names and shapes in any
    case. Selection biases that the weights lack start at 0.
    """

    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """What the weights must hash to: as `sha256sum` says of their file, or, of several files, of the lines that
    `sha256sum` prints for them in the order of their names. Null takes what is there; either way the run records it."""
    changed: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Dotted paths in which this run differs from what the weights were trained as, say `model.moe.top_k` or
    `data.tokenizer`."""


class CheckpointStartConfig(SourceSection):
    """Our own weights: a checkpoint of a run, a run's folder (its newest sound one), or what `python -m trainer import`
    wrote. Only weights and selection biases are taken: optimizer, schedule and data begin anew."""

    kind: Literal["checkpoint"] = "checkpoint"


class HuggingFaceStartConfig(SourceSection):
    """The weights of a folder with config.json and safetensors, of an architecture that `trainer.interop` reads."""

    kind: Literal["hugging_face"] = "hugging_face"


class CopyMethodConfig(Section):
    """Every expert is the whole MLP (Komatsuzaki et al. 2022, arXiv:2212.05055)."""

    kind: Literal["copy"] = "copy"


class NoiseMethodConfig(Section):
    """Every expert is the whole MLP, Gaussian noise on a share of its weights."""

    kind: Literal["noise"] = "noise"
    std: float = Field(default=0.01, gt=0, le=10)
    """Standard deviation, in units of that of the matrix."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Of each expert's weights, drawn for each expert."""


class DropMethodConfig(Section):
    """Every expert is the whole MLP, a share of its hidden features drawn anew.

    The weights of such a feature, in all three matrices, come from a normal with the mean and the standard deviation of
    the matrix.

    Source: Drop-Upcycling, Nakamura et al. 2025, arXiv:2502.19261, section 3.
    """

    kind: Literal["drop"] = "drop"
    share: float = Field(default=0.5, gt=0, le=1)
    """Of the hidden features, drawn for each expert."""


class GranularMethodConfig(Section):
    """Experts are shards of the MLP (He et al. 2024, arXiv:2410.07524)."""

    kind: Literal["granular"] = "granular"


UpcycleMethodConfig = Annotated[
    CopyMethodConfig | NoiseMethodConfig | DropMethodConfig | GranularMethodConfig, Field(discriminator="kind")
]


class UpcycleStartConfig(SourceSection):
    """A mixture of experts made of a dense model: its MLPs become experts, all else is taken as it is.

    By `granular` the MLP of a layer is cut along its hidden dimension into G = (dense hidden_dim) / moe.hidden_dim
    shards; by the other methods G is 1. The first `num_shared_experts` shards become the shared experts; of the other R
    the routed experts are copies, expert e of shard e mod R. Routers start new, with equal rows for the R experts of a
    set e // R, so that a token takes whole sets: `top_k` and `num_experts` must be multiples of R. The down-projections
    are scaled by R over `router.scale` and `output_scale`. With normalised weights, `copy` and `granular` thus compute
    at the start what the dense model did, as long as no pair is dropped or sent to a null expert.
    """

    kind: Literal["upcycle"] = "upcycle"
    source: Literal["checkpoint", "hugging_face"] = "checkpoint"
    """What is at `path`, as in the start of this kind."""
    method: UpcycleMethodConfig = CopyMethodConfig()


class ForkStartConfig(PathSection):
    """A checkpoint of another run, with all it holds: the run goes on from its step under values of its own.

    Weights, optimizer states, the place in the data, random states and telemetry are those of the checkpoint; what may
    differ from its run is in `trainer.config.fork`. Without a difference the steps are the other run's, bit for bit.
    """

    kind: Literal["fork"] = "fork"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the checkpoint's manifest.json."""
    step: int = Field(ge=0)
    """Of the checkpoint: updates done."""


StartConfig = Annotated[
    ScratchStartConfig | CheckpointStartConfig | HuggingFaceStartConfig | UpcycleStartConfig | ForkStartConfig,
    Field(discriminator="kind"),
]


def check_start(start: StartConfig, model: ModelConfig) -> None:
    """Raises ValueError, naming the field, if this model cannot start so."""
    if start.kind != "upcycle":
        return
    if model.moe is None:
        raise ValueError(
            "start.kind=upcycle makes a mixture of experts of a dense model, and model.moe is null; set it, or use "
            "start.kind=checkpoint"
        )
    router = model.moe.router
    if start.method.kind == "granular" and not (router.kind == "top_k" and router.normalize):
        raise ValueError(
            "start.method.kind=granular puts shards together by normalised weights of token choice; set "
            "model.moe.router.kind to top_k and model.moe.router.normalize to true"
        )
    if start.method.kind != "granular" and model.moe.num_shared_experts:
        raise ValueError(
            f"start.method.kind={start.method.kind} has no part of the dense MLP for model.moe.num_shared_experts="
            f"{model.moe.num_shared_experts}; use granular, or no shared experts"
        )
