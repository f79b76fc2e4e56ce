"""Every metric evenload records, declared once: name, unit, axes, bounds and source. Torch-free.

The telemetry writes columns of these names, the API serves this table, the dashboard takes units and labels from it.
"""

from dataclasses import dataclass
from typing import Literal

Axis = Literal["layer", "domain", "expert"]


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: `group/name` in lower snake case.
        unit: the unit as shown to people; "1" for a bare ratio.
        axes: what there is one value per, besides the step.
        better: the direction a researcher wants, or None where there is none.
        lower, upper: the bounds in words or formula, or None.
        description: one sentence with the definition.
        source: the paper and equation, or None for common knowledge.
    """

    name: str
    unit: str
    description: str
    axes: tuple[Axis, ...] = ()
    better: Literal["lower", "higher"] | None = None
    lower: str | None = None
    upper: str | None = None
    source: str | None = None


_DECLARED = (
    MetricSpec(
        name="train/loss",
        unit="nats/token",
        better="lower",
        lower="0",
        description="Cross entropy of the step's global batch, before its update, without balancing losses.",
    ),
    MetricSpec(
        name="train/balancing_loss",
        unit="nats/token",
        description="Sum of the balancing losses times their coefficients, as added to the training loss.",
    ),
    MetricSpec(
        name="train/skipped_step",
        unit="1",
        lower="0",
        upper="1",
        description="1 where the step made no update because it spiked (`loop.skip_spikes`), else 0.",
        source="OLMo-core, optim/skip_step_optimizer.py",
    ),
    MetricSpec(
        name="optimizer/lr",
        unit="1",
        lower="0",
        description="Learning rate of the dense group in this step's update.",
    ),
    MetricSpec(
        name="optimizer/grad_norm",
        unit="1",
        lower="0",
        description="Global L2 norm of the gradient before clipping.",
    ),
    MetricSpec(
        name="throughput/step_duration_s",
        unit="s",
        better="lower",
        lower="0",
        description="Wall time of the step, averaged over the logging interval.",
    ),
    MetricSpec(
        name="throughput/tokens_per_s",
        unit="tokens/s",
        better="higher",
        lower="0",
        description="Training tokens of all workers per second, over the logging interval.",
    ),
    MetricSpec(
        name="eval/bits_per_byte",
        unit="bits/byte",
        axes=("domain",),
        better="lower",
        lower="0",
        description="Held-out nats over ln 2 over the UTF-8 bytes predicted. `all` is the mean over domains.",
    ),
    MetricSpec(
        name="eval/loss",
        unit="nats/token",
        axes=("domain",),
        better="lower",
        lower="0",
        description="Held-out cross entropy. `all` is the mean over domains.",
    ),
    MetricSpec(
        name="router/token_entropy",
        unit="nats",
        axes=("layer",),
        lower="0",
        upper="ln(num_experts + num_null_experts)",
        description="Mean over tokens of the entropy of the router's distribution: how decided the router is.",
    ),
    MetricSpec(
        name="router/load_entropy",
        unit="nats",
        axes=("layer",),
        better="higher",
        lower="ln(max(top_k - num_null_experts, 1))",
        upper="ln(num_experts)",
        description="Entropy of the load fractions f_e = n_e / sum n: how even the load is. Not the token entropy.",
    ),
    MetricSpec(
        name="router/mutual_information",
        unit="nats",
        axes=("layer",),
        lower="0",
        upper="ln(num_experts + num_null_experts)",
        description="Entropy of the mean router distribution minus the token entropy: how much the token decides.",
    ),
    MetricSpec(
        name="router/max_violation",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="num_experts / max(top_k - num_null_experts, 1) - 1",
        description="MaxVio: the busiest expert's load over the mean load, minus 1.",
        source="Wang et al. 2024, arXiv:2408.15664, eq. 4",
    ),
    MetricSpec(
        name="router/load_cv",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="sqrt(num_experts / max(top_k - num_null_experts, 1) - 1)",
        description="Population standard deviation of the experts' loads over their mean.",
    ),
    MetricSpec(
        name="router/max_load",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1 / max(top_k - num_null_experts, 1)",
        description="Load fraction of the busiest expert: 1 / num_experts at balance, 1 / top_k at total collapse.",
    ),
    MetricSpec(
        name="router/dead_fraction",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1 - max(top_k - num_null_experts, 0) / num_experts",
        description="Fraction of experts that no token chose in the step.",
    ),
    MetricSpec(
        name="router/drop_rate",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="Share of the pairs of tokens and experts dropped because they exceeded the expert's capacity.",
        source="Fedus et al. 2021, arXiv:2101.03961, section 2.2",
    ),
    MetricSpec(
        name="router/uncovered_rate",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="Share of tokens that no routed expert computed: all dropped, sent to null experts, or not chosen.",
        source="Zhou et al. 2022, arXiv:2202.09368",
    ),
    MetricSpec(
        name="router/null_share",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Share of the choices that went to null experts, which compute nothing.",
        source="Jin et al. 2024 (MoE++), arXiv:2410.07348, section 3.1",
    ),
    MetricSpec(
        name="router/experts_per_token",
        unit="experts",
        axes=("layer",),
        lower="0",
        upper="num_experts",
        description="Mean over tokens of the number of experts that compute them; top_k if nothing is dropped or null.",
    ),
    MetricSpec(
        name="router/experts_per_token_std",
        unit="experts",
        axes=("layer",),
        lower="0",
        upper="num_experts / 2",
        description="Standard deviation over tokens of the number of experts that compute them; 0 if all have top_k.",
        source="Zhou et al. 2022, arXiv:2202.09368",
    ),
    MetricSpec(
        name="router/z",
        unit="1",
        axes=("layer",),
        lower="0",
        description="Mean over tokens of the squared logsumexp of the router logits (the z-loss without coefficient).",
        source="Zoph et al. 2022, arXiv:2202.08906, eq. 5",
    ),
    MetricSpec(
        name="router/top_k_mass",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Mean over tokens of the router probability on the chosen experts; top_k / num_experts if uniform.",
    ),
    MetricSpec(
        name="router/margin",
        unit="1",
        axes=("layer",),
        lower="0",
        description="Mean over tokens of the k-th minus (k+1)-th selection score: how near the choice is to a flip.",
    ),
    MetricSpec(
        name="router/max_logit",
        unit="1",
        axes=("layer",),
        description="Largest router logit of the step.",
    ),
    MetricSpec(
        name="router/bias_range",
        unit="1",
        axes=("layer",),
        lower="0",
        description="Largest minus smallest selection bias of the experts (loss-free balancing).",
    ),
    MetricSpec(
        name="router/load",
        unit="tokens",
        axes=("layer", "expert"),
        description="Tokens sent to each expert in the step, over workers and micro-batches, before any is dropped.",
    ),
    MetricSpec(
        name="quantization/activation_zero_fraction",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="Of the activations other than 0 cast for the experts' matmuls, those that became 0.",
    ),
    MetricSpec(
        name="quantization/activation_saturated_fraction",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="Of the activations other than 0 cast for the experts' matmuls, those clipped.",
    ),
    MetricSpec(
        name="quantization/weight_zero_fraction",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="Of the weights other than 0 cast for the experts' matmuls, those that became 0.",
    ),
    MetricSpec(
        name="quantization/weight_saturated_fraction",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="Of the weights other than 0 cast for the experts' matmuls, those clipped.",
    ),
    MetricSpec(
        name="quantization/gradient_zero_fraction",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="Of the activations' gradients other than 0 cast for the experts' matmuls, those that became 0.",
    ),
    MetricSpec(
        name="quantization/gradient_saturated_fraction",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="Of the activations' gradients other than 0 cast for the experts' matmuls, those clipped.",
    ),
    MetricSpec(
        name="specialization/mutual_information",
        unit="bits",
        axes=("layer",),
        lower="0",
        description="Mutual information of a held-out token's domain and its expert, at equal tokens per domain.",
    ),
)

METRICS: dict[str, MetricSpec] = {spec.name: spec for spec in _DECLARED}
"""Metric name -> its declaration."""

SCALARS = tuple(name for name in METRICS if name.split("/")[0] in {"train", "optimizer", "throughput"})
"""Columns of the scalar telemetry: one value per step."""

ROUTER_SCALARS = tuple(name for name in METRICS if name.startswith("router/") and name != "router/load")
"""Columns of the router telemetry besides `router/load`: one value per (step, layer)."""

QUANTIZATION_SCALARS = tuple(name for name in METRICS if name.startswith("quantization/"))
"""Further columns of the router telemetry, one value per (step, layer): of runs whose experts are quantised."""
