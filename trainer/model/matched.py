"""The twin of a mixture of experts that costs as much in one respect: dense, or with experts of another size.

Which comparison is fair depends on what is held equal, so a twin is derived by name of that quantity and says how far
off it is. Torch-free.
"""

from dataclasses import dataclass
from typing import Literal

from trainer.config.model import ModelConfig, MoEConfig
from trainer.config.precision import QuantizedExpertsSection
from trainer.config.train import TrainConfig
from trainer.model.size import flops_per_token, model_size

Match = Literal["active_params", "total_params", "flops"]

QUANTITIES: dict[Match, str] = {
    "active_params": "active parameters",
    "total_params": "parameters",
    "flops": "training FLOPs per token",
}

_WIDTH_MULTIPLE = 8  # of every hidden_dim
_MAX_DENSE_WIDTH, _MAX_EXPERT_WIDTH = 262_144, 65_536  # as in trainer.config.model


@dataclass(frozen=True, kw_only=True)
class MatchedTwin:
    """A twin and how well it matches.

    Attributes:
        model: the twin's model.
        match: what was held equal.
        target: the quantity of the model it is compared with.
        value: that of the twin.
        hidden_dim: the width that was derived, of the dense MLPs or of one expert.
    """

    model: ModelConfig
    match: Match
    target: float
    value: float
    hidden_dim: int

    @property
    def residual(self) -> float:
        """How much more the twin has, as a share of the target."""
        return self.value / self.target - 1.0


def matched_twin(
    base: TrainConfig,
    *,
    match: Match,
    granularity: float | None = None,
    num_experts: int | None = None,
    start: TrainConfig | None = None,
) -> MatchedTwin:
    """Returns the twin of `base` with the width, a multiple of 8, at which the two differ least in what `match` names.

    Without granularity and number of experts the twin is dense: all its layers have an MLP of the derived width and
    of the experts' activation. With them it stays a mixture of experts, and the width is that of an expert.

    Args:
        base: a mixture of experts.
        match: `active_params` counts as `ModelSize.active`, both embeddings included (the difference is the same in
            every convention), `total_params` all of them, `flops` those of a training token at the sequence length.
        granularity: experts so many times as fine: their number, the number a token takes, and the number of shared
            ones are multiplied by it (Krajewski et al. 2024, arXiv:2402.07871, relative to `base`).
        num_experts: so many experts, of which a token takes as many as in `base`.
        start: what else the twin is; `base` unless given.

    Raises:
        ValueError: the base has no experts, or there is no such twin; the message names the field.
    """
    start = start or base
    moe = base.model.moe if start.model.moe is None else start.model.moe
    if base.model.moe is None or moe is None:
        raise ValueError("match needs a mixture of experts to derive a twin from, but model.moe is null")
    if granularity is not None and num_experts is not None:
        raise ValueError(f"granularity={granularity} and num_experts={num_experts} are both given; leave one out")
    step = _WIDTH_MULTIPLE
    if granularity is None and num_experts is None:
        twin_moe, limit = None, _MAX_DENSE_WIDTH
    else:
        twin_moe, limit = _regrouped(moe, granularity, num_experts), _MAX_EXPERT_WIDTH
        if isinstance(start.precision, QuantizedExpertsSection):
            step = max(step, start.precision.dim_multiple)

    def twin_of(width: int) -> ModelConfig:
        if twin_moe is None:
            return start.model.model_copy(update={"moe": None, "hidden_dim": width, "activation": moe.activation})
        return start.model.model_copy(update={"moe": twin_moe.model_copy(update={"hidden_dim": width})})

    def value_of(width: int) -> float:
        return _quantity(twin_of(width), match, seq_len=start.data.seq_len)

    target = _quantity(base.model, match, seq_len=base.data.seq_len)
    # Every quantity is linear in the width (but for rounding): two points are the line.
    at_one, at_two = value_of(step), value_of(2 * step)
    nearest = round(1 + (target - at_one) / (at_two - at_one))
    if not 1 <= nearest <= limit // step:
        bound, width = ("more", step) if nearest < 1 else ("less", limit // step * step)
        raise ValueError(
            f"match={match}: the base has {target:,.0f} {QUANTITIES[match]}, and the twin has {bound} at every "
            f"hidden_dim, {value_of(width):,.0f} at {width}; match something else or change what else differs"
        )
    candidates = [step * units for units in (nearest - 1, nearest, nearest + 1) if 1 <= units <= limit // step]
    width = min(candidates, key=lambda candidate: abs(value_of(candidate) - target))
    model = ModelConfig.model_validate(twin_of(width).model_dump())
    return MatchedTwin(model=model, match=match, target=target, value=value_of(width), hidden_dim=width)


def _quantity(model: ModelConfig, match: Match, *, seq_len: int) -> float:
    if match == "flops":
        return flops_per_token(model, seq_len=seq_len)
    size = model_size(model)
    return float(size.active if match == "active_params" else size.total)


def _regrouped(moe: MoEConfig, granularity: float | None, num_experts: int | None) -> MoEConfig:
    """Returns the mixture with other numbers of experts, not validated; its width is still the old one."""
    if granularity is None:
        return moe.model_copy(update={"num_experts": num_experts})
    numbers = {name: getattr(moe, name) for name in ("num_experts", "top_k", "num_shared_experts")}
    for name, number in numbers.items():
        if not float(number * granularity).is_integer():
            raise ValueError(
                f"granularity={granularity:g} makes {name}={number} into {number * granularity:g}; choose a factor "
                "that leaves whole numbers"
            )
    return moe.model_copy(update={name: int(number * granularity) for name, number in numbers.items()})
