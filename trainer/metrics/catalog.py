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
        name="train/loss_rise",
        unit="nats/token",
        better="lower",
        lower="0",
        description="Running mean of the loss (decay 0.98 a step) minus the least it ever was: 0 while the loss falls.",
    ),
    MetricSpec(
        name="train/skipped_step",
        unit="1",
        lower="0",
        upper="1",
        description="1 where the step made no update because it spiked (`loop.on_spike`), else 0.",
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
        name="optimizer/router_grad_norm",
        unit="1",
        lower="0",
        description="L2 norm of the gradient of the routers, before clipping.",
    ),
    MetricSpec(
        name="optimizer/expert_grad_norm",
        unit="1",
        lower="0",
        description="L2 norm of the gradient of the experts, before clipping.",
    ),
    MetricSpec(
        name="optimizer/dense_grad_norm",
        unit="1",
        lower="0",
        description="L2 norm of the gradient of the other matrices, before clipping.",
    ),
    MetricSpec(
        name="optimizer/embedding_grad_norm",
        unit="1",
        lower="0",
        description="L2 norm of the gradient of the embeddings, before clipping.",
    ),
    MetricSpec(
        name="optimizer/router_update_ratio",
        unit="1",
        lower="0",
        description="Norm of the step's change of the routers over their own; at steps that measure it.",
    ),
    MetricSpec(
        name="optimizer/expert_update_ratio",
        unit="1",
        lower="0",
        description="Norm of the step's change of the experts over their own; at steps that measure it.",
    ),
    MetricSpec(
        name="optimizer/dense_update_ratio",
        unit="1",
        lower="0",
        description="Norm of the step's change of the other matrices over their own; at steps that measure it.",
    ),
    MetricSpec(
        name="optimizer/embedding_update_ratio",
        unit="1",
        lower="0",
        description="Norm of the step's change of the embeddings over their own; at steps that measure it.",
    ),
    MetricSpec(
        name="optimizer/router_grad_ratio",
        unit="1",
        lower="0",
        description="L2 norm of the gradient of the routers over their own; at steps that measure it.",
    ),
    MetricSpec(
        name="optimizer/expert_grad_ratio",
        unit="1",
        lower="0",
        description="L2 norm of the gradient of the experts over their own; at steps that measure it.",
    ),
    MetricSpec(
        name="optimizer/dense_grad_ratio",
        unit="1",
        lower="0",
        description="L2 norm of the gradient of the other matrices over their own; at steps that measure it.",
    ),
    MetricSpec(
        name="optimizer/embedding_grad_ratio",
        unit="1",
        lower="0",
        description="L2 norm of the gradient of the embeddings over their own; at steps that measure it.",
    ),
    MetricSpec(
        name="optimizer/expert_grad_zero_fraction",
        unit="1",
        better="lower",
        lower="0",
        upper="1",
        description="Share of zeros in the gradient of the experts, that is of what no token reached, or a narrow "
        "format lost; at steps that measure updates.",
        source="nmoe (Noumena 2026), page 0008",
    ),
    MetricSpec(
        name="optimizer/expert_grad_abs_mean",
        unit="1",
        lower="0",
        description="Mean magnitude of the gradient of the experts, before clipping; at steps that measure updates.",
        source="nmoe (Noumena 2026), page 0008",
    ),
    MetricSpec(
        name="optimizer/expert_grad_abs_max",
        unit="1",
        lower="0",
        description="Largest magnitude in the gradient of the experts, before clipping; at steps that measure updates.",
        source="nmoe (Noumena 2026), page 0008",
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
        name="router/token_entropy_std",
        unit="nats",
        axes=("layer",),
        lower="0",
        upper="ln(num_experts + num_null_experts) / 2",
        description="Standard deviation over tokens of the entropy of the router's distribution.",
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
        name="router/effective_experts",
        unit="experts",
        axes=("layer",),
        better="higher",
        lower="max(top_k - num_null_experts, 1)",
        upper="num_experts",
        description="Exponential of the load entropy: the number of evenly loaded experts with the same entropy.",
    ),
    MetricSpec(
        name="router/importance_entropy",
        unit="nats",
        axes=("layer",),
        lower="0",
        upper="ln(num_experts + num_null_experts)",
        description="Entropy of the mean router distribution.",
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
        name="router/micro_max_violation",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="num_experts / max(top_k - num_null_experts, 1) - 1",
        description="Mean over the micro-batches of the step of the MaxVio of each.",
        source="Wang et al. 2024, arXiv:2408.15664, eq. 4, of one computation batch",
    ),
    MetricSpec(
        name="router/min_violation",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1",
        description="MinVio: 1 minus the idlest expert's load over the mean load.",
    ),
    MetricSpec(
        name="router/average_violation",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="2 - 2 max(top_k - num_null_experts, 1) / num_experts",
        description="AvgVio: mean over experts of the distance of the load from the mean load, over the mean load.",
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
        name="router/persistent_dead_fraction",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="1 - max(top_k - num_null_experts, 0) / num_experts",
        description="Fraction of experts that no token chose in the last 100 steps; 0 before.",
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
        name="router/logsumexp",
        unit="1",
        axes=("layer",),
        description="Mean over tokens of the logsumexp of the router logits.",
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
        name="router/max_abs_logit",
        unit="1",
        axes=("layer",),
        lower="0",
        description="Largest magnitude of a router logit of the step: what rounding errors grow with.",
        source="Zoph et al. 2022, arXiv:2202.08906, section 3.4",
    ),
    MetricSpec(
        name="router/logit_rms",
        unit="1",
        axes=("layer",),
        lower="0",
        description="Root mean square of the router logits.",
        source="Zoph et al. 2022, arXiv:2202.08906, section 3.4",
    ),
    MetricSpec(
        name="router/bias_range",
        unit="1",
        axes=("layer",),
        lower="0",
        description="Largest minus smallest selection bias of the experts (loss-free balancing).",
    ),
    MetricSpec(
        name="router/mean_load",
        unit="tokens",
        axes=("layer",),
        lower="0",
        description="Tokens per expert in the step: mu = tokens * top_k / num_experts where none are null.",
    ),
    MetricSpec(
        name="router/load_balancing_loss",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="num_experts / max(top_k - num_null_experts, 1)",
        description="num_experts * sum f_e P_e over the whole step, whether trained on or not: 1 at balance.",
        source="Fedus et al. 2021, arXiv:2101.03961, eq. 4-6, over all top_k choices",
    ),
    MetricSpec(
        name="router/tokens_seen",
        unit="tokens",
        axes=("layer",),
        lower="0",
        description="Tokens sent to an expert since the start of the run, mean over experts.",
    ),
    MetricSpec(
        name="router/least_tokens_seen",
        unit="tokens",
        axes=("layer",),
        better="higher",
        lower="0",
        description="Tokens sent since the start of the run to the expert that got the fewest.",
    ),
    MetricSpec(
        name="router/grad_norm",
        unit="1",
        axes=("layer",),
        lower="0",
        description="L2 norm of the gradient of the layer's router, before clipping.",
    ),
    MetricSpec(
        name="router/expert_grad_norm",
        unit="1",
        axes=("layer",),
        lower="0",
        description="L2 norm of the gradient of the layer's experts, before clipping.",
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
        name="probe/churn",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Share of the probe set's choices that differ from the evaluation before; NaN at the first.",
        source="Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, eq. 5, subtracted from 1",
    ),
    MetricSpec(
        name="probe/churn_uniform",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Control: the churn of two routings drawn evenly at random, 1 - top_k / num_experts.",
    ),
    MetricSpec(
        name="probe/top1_churn",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Share of the probe set's tokens whose first expert is another than at the evaluation before; NaN "
        "at the first.",
        source="Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, eq. 5 with k = 1, subtracted from 1",
    ),
    MetricSpec(
        name="probe/top1_churn_uniform",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Control: the same of two routings drawn evenly at random, 1 - 1 / num_experts.",
    ),
    MetricSpec(
        name="probe/max_violation",
        unit="1",
        axes=("layer",),
        better="lower",
        lower="0",
        upper="num_experts / top_k - 1",
        description="MaxVio over the whole probe set, held-out text of all domains alike.",
        source="Wang et al. 2024, arXiv:2408.15664, eq. 4, MaxVio_global",
    ),
    MetricSpec(
        name="probe/domain_information",
        unit="bits",
        axes=("layer",),
        lower="0",
        upper="ln(num_domains) / ln(2)",
        description="Mutual information of a probe token's domain and its expert; biased upwards on few tokens.",
    ),
    MetricSpec(
        name="probe/domain_specialization",
        unit="1",
        axes=("layer",),
        lower="top_k / num_experts",
        upper="1",
        description="Mean over domains of the largest share of a domain's tokens that an expert takes.",
        source="Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, eq. 7",
    ),
    MetricSpec(
        name="probe/domain_specialization_shuffled",
        unit="1",
        axes=("layer",),
        lower="top_k / num_experts",
        upper="1",
        description="Control: the same with the domains permuted over the windows of the probe set.",
    ),
    MetricSpec(
        name="probe/vocabulary_specialization",
        unit="1",
        axes=("layer",),
        lower="top_k / num_experts",
        upper="1",
        description="Mean over input tokens seen 4 times or more of the largest share that an expert takes.",
        source="Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, eq. 8",
    ),
    MetricSpec(
        name="probe/vocabulary_specialization_shuffled",
        unit="1",
        axes=("layer",),
        lower="top_k / num_experts",
        upper="1",
        description="Control: the same with the input tokens permuted over the positions of the probe set.",
    ),
    MetricSpec(
        name="probe/specialization_uniform",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Control of both: the share of any tokens that experts take evenly, top_k / num_experts.",
    ),
    MetricSpec(
        name="probe/coactivation",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Largest share of an expert's tokens that one other expert takes too.",
        source="Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, eq. 6, over all pairs",
    ),
    MetricSpec(
        name="probe/coactivation_uniform",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Control: that share where experts are drawn evenly at random, (top_k - 1) / (num_experts - 1).",
    ),
    MetricSpec(
        name="saturation/overlap",
        unit="1",
        axes=("layer",),
        lower="0",
        upper="1",
        description="Share of the probe set's choices at an evaluation that are those of the last one; known at the "
        "end (`router_saturation` of the summary). Evenly at random it is top_k / num_experts.",
        source="Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, eq. 5",
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

_MEASURED = ("_update_ratio", "_grad_ratio", "_grad_zero_fraction", "_grad_abs_mean", "_grad_abs_max")

UPDATE_SCALARS = tuple(name for name in METRICS if name.endswith(_MEASURED))
"""Further columns of the scalar telemetry, of runs with `loop.measure_updates_every_steps`: NaN at steps between."""

SCALARS = tuple(
    name
    for name in METRICS
    if name.split("/")[0] in {"train", "optimizer", "throughput"} and name not in UPDATE_SCALARS
)
"""Columns of the scalar telemetry: one value per step."""

ROUTER_SCALARS = tuple(name for name in METRICS if name.startswith("router/") and name != "router/load")
"""Columns of the router telemetry besides `router/load`: one value per (step, layer)."""

QUANTIZATION_SCALARS = tuple(name for name in METRICS if name.startswith("quantization/"))
"""Further columns of the router telemetry, one value per (step, layer): of runs whose experts are quantised."""

PROBE_SCALARS = tuple(name for name in METRICS if name.startswith("probe/"))
"""Columns of the probe telemetry: one value per (evaluation, layer)."""

WATCHED_SCALARS = tuple(name for name in (*SCALARS, *ROUTER_SCALARS) if not name.startswith("throughput/"))
"""What alarms may watch: a function of config and step, so that a resumed run raises the same ones."""
