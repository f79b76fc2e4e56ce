"""What people read in the terminal: tables of experiments and trials, and the comparison."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from api.schemas.comparison import Comparison, ComparisonRow, PairedDifference
from api.schemas.control import QueueRead
from api.schemas.experiments import Estimated, ExperimentDetail, ExperimentSummary, Validation
from api.schemas.problems import ProblemError
from api.schemas.trials import TrialRead
from orchestrator.states import TrialState, is_terminal

STATE_STYLES = {
    "queued": "dim",
    "running": "cyan",
    "retrying": "yellow",
    "completed": "green",
    "pruned": "magenta",
    "failed": "bold red",
    "infeasible": "red",
    "pausing": "yellow",
    "paused": "blue",
    "cancelling": "yellow",
    "cancelled": "dim",
}
MISSING = "-"


def number(value: float | None, digits: int = 3) -> str:
    """A measured value with a fixed number of decimals."""
    return MISSING if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A large count with its power of a thousand: 1.23M."""
    if value is None:
        return MISSING
    if 0 < abs(value) < 1:
        return f"{value:.2g}"
    for power, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g}{letter}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 2 min 05 s."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def parameter(value: Any) -> str:
    """A parameter's value, numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def event_line(kind: str, data: dict[str, Any]) -> str:
    """What happened, on one line: a sentence for a spike and an alarm, for anything else its data."""
    if kind == "spike":
        recovery = data.get("recovery_steps")
        parts = [
            f"{data['metric']} {number(data['value'], 4)} at step {data['step']}, z {data['z']:.1f}",
            "not recovered" if recovery is None else f"recovered after {recovery} step{'s' * (recovery != 1)}",
            *data.get("order", ()),
        ]
        return "; ".join(parts)
    if kind == "alarm":
        return f"{data['severity']}, {data['change']} at step {data['step']}: {data['message']}"
    return " ".join(event_text(data).split())


def event_text(data: Any) -> str:
    """An event's data on one line: `to=running number=1`; what is empty is left out."""
    if isinstance(data, dict):
        parts = (f"{key}={event_text(value)}" for key, value in data.items() if value not in (None, "", {}))
        return " ".join(parts)
    if isinstance(data, list):
        return "[" + ", ".join(event_text(item) for item in data) + "]"
    return parameter(data)


def params_text(params: dict[str, Any]) -> str:
    """Parameters on one line, by the last part of their paths."""
    return ", ".join(f"{short_path(path)}={parameter(value)}" for path, value in params.items()) or MISSING


def short_path(path: str) -> str:
    """The last part of a dotted path, with the one before it where that alone says too little."""
    # A number is a place in a list, which says nothing: balancing.switch_loss.0.coefficient.
    parts = [part for part in path.split(".") if not part.isdigit()]
    return ".".join(parts[-2:]) if parts[-1] in {"kind", "lr_scale"} else parts[-1]


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=STATE_STYLES.get(state, ""))


def experiments_table(rows: Iterable[ExperimentSummary]) -> Table:
    """The list of experiments."""
    table = Table("id", "name", "state", "trials", "best", "spikes", "ETA", "why", box=None, header_style="bold")
    for row in rows:
        counts = row.trial_counts
        over = counts.completed + counts.pruned + counts.failed + counts.infeasible + counts.cancelled
        table.add_row(
            row.id,
            row.name,
            state_text(row.state),
            f"{over}/{row.num_trials}",
            number(row.best.objective, 4) if row.best else MISSING,
            str(row.num_spikes),
            duration(row.eta_s),
            MISSING if is_terminal(row.state) or not row.reason else row.reason,
        )
    return table


def queue_table(queue: QueueRead) -> RenderableType:
    """Who waits for places, first in line first, and who holds some."""
    table = Table("id", "name", "owner", "priority", "running", "waits", box=None, header_style="bold")
    for entry in queue.items:
        waits = entry.reason or ("starts next" if entry.num_starts else MISSING)
        running = str(entry.num_running)
        table.add_row(entry.experiment_id, entry.name, entry.owner, str(entry.priority), running, waits)
    parts: list[RenderableType] = [table]
    if queue.total is not None:
        used, total = queue.used, queue.total
        kinds = [f"{used.cpus:g} of {total.cpus:g} CPUs", f"{used.gpus:g} of {total.gpus:g} GPUs"]
        kinds.append(f"{used.memory_gib:.3g} of {total.memory_gib:.3g} GiB of memory")
        parts.append(Text(f"in use: {', '.join(kinds)}", style="dim"))
    if not queue.is_served:
        parts.append(Text("The orchestrator does not report; `evenload up` starts it.", style="yellow"))
    return Group(*parts)


def trials_table(trials: Sequence[TrialRead]) -> Table:
    """The table of trials while they run and after."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("#", "trial", "state", "tokens", "loss", "MaxVio", "entropy", "bits/byte", "why"):
        table.add_column(
            name, justify="left" if name in ("trial", "state", "why") else "right", no_wrap=name not in ("trial", "why")
        )
    for trial in trials:
        progress, summary = trial.progress, trial.summary
        shown = [MISSING] * 5
        if summary is not None:
            shown[1:4] = [
                number(summary.final_loss),
                number(summary.worst_max_violation, 2),
                number(summary.min_token_entropy, 2),
            ]
            shown[4] = number(summary.bits_per_byte.get("all"))
        if progress is not None:
            shown[0] = f"{count(progress.tokens)}/{count(progress.budget_tokens)}"
            if summary is None:
                shown[1:] = [
                    number(progress.loss),
                    number(progress.max_violation, 2),
                    number(progress.token_entropy, 2),
                    number(progress.bits_per_byte),
                ]
        table.add_row(
            str(trial.number), trial.label or params_text(trial.params), state_text(trial.state), *shown, _why(trial)
        )
    return table


def _why(trial: TrialRead) -> str:
    if trial.state is TrialState.COMPLETED or (trial.state is TrialState.RUNNING and not trial.reason):
        return ""
    return trial.reason or (trial.cause.value if trial.cause else "")


def progress_line(experiment: ExperimentSummary) -> str:
    """One line on where an experiment is."""
    counts = experiment.trial_counts
    over = counts.completed + counts.pruned + counts.failed + counts.infeasible + counts.cancelled
    parts = [
        f"{experiment.name}: {experiment.state}",
        f"{over} of {experiment.num_trials} trials over",
    ]
    if experiment.best:
        parts.append(f"best {experiment.objective.metric} {experiment.best.objective:.4f} (#{experiment.best.number})")
    if not is_terminal(experiment.state):
        parts.append(f"ETA {duration(experiment.eta_s)}")
        parts += [experiment.reason] if experiment.reason else []
    return " | ".join(parts)


def follow_view(experiment: ExperimentDetail, trials: Sequence[TrialRead]) -> RenderableType:
    """What `--follow` and `demo` draw anew each second."""
    return Group(Text(progress_line(experiment), style="bold"), trials_table(trials))


def problems_table(errors: Iterable[ProblemError]) -> Table:
    """Every field that is wrong in a refused spec."""
    table = Table("where", "what", box=None, header_style="bold red")
    for error in errors:
        table.add_row(error.pointer or "the document", error.message)
    return table


def validation_view(validation: Validation) -> RenderableType:
    """What a spec would mean."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    parameters = validation.parameters
    trials = f"{validation.num_trials} of the search, {validation.num_baselines} baselines"
    table.add_row("trials", f"{trials}; {_estimated(validation.trial_range)}  ({validation.trial_range.basis})")
    for found in validation.baseline_matches:
        residual = f"{100 * found.residual:+.2f} %"
        table.add_row("", f"{found.baseline}: {residual} {found.match} at hidden_dim={found.hidden_dim}")
    for dimension in validation.space:
        table.add_row("", f"{dimension.path}: {dimension.domain}")
    table.add_row("parameters", f"{count(parameters.total)}, {count(parameters.active)} active")
    table.add_row("FLOPs per token", count(validation.flops_per_token))
    table.add_row("memory per worker", f"{validation.memory.total_gib:.3g} GiB")
    for name, estimated in (
        ("training tokens", validation.tokens),
        ("training FLOPs", validation.training_flops),
        ("time", validation.duration),
        ("device hours", validation.device_hours),
        ("disk", validation.disk),
        ("trials at a time", validation.max_parallel_trials),
    ):
        table.add_row(name, f"{_estimated(estimated)}  ({estimated.basis})")
    for device in validation.devices:
        each = "" if device.gpu_memory_gib is None else f" of {device.gpu_memory_gib:.3g} GiB"
        name = f"{device.num_nodes} x {device.cpus:g} CPUs, {device.gpus:g} GPUs{each}, {device.memory_gib:.3g} GiB"
        table.add_row("fits on", f"{name}: {device.num_fitting} of {device.num_tried} points tried")
    for phase in validation.phases:
        table.add_row("search", f"{phase.num_points} {phase.what}")
    for rung in validation.rungs:
        counts = "as the values say"
        if rung.arriving is not None and rung.passing is not None:
            counts = f"about {rung.arriving:g} arrive, {rung.passing:g} go on"
        table.add_row("rung", f"{rung.tokens:,} tokens: {counts}")
    for index, point in enumerate(validation.sample):
        values = ", ".join(f"{path}={value}" for path, value in point.params.items()) or "the base"
        takes = point.problem or f"{count(point.active_parameters)} active parameters, {point.memory_gib:.3g} GiB"
        table.add_row(f"e.g. {index + 1}", f"{values}: {takes}")
    if validation.warm_start is not None:
        table.add_row("warm start", f"{validation.warm_start.num_used} trials of other experiments")
        for skipped in validation.warm_start.skipped:
            table.add_row("", f"{skipped.num_trials} of {skipped.experiment_id} not: {skipped.reason}")
    for warning in validation.warnings:
        table.add_row("warning", Text(warning, style="yellow"))
    return table


def _estimated(estimated: Estimated) -> str:
    def said(value: float | None) -> str:
        return duration(value) if estimated.unit == "s" else f"{count(value)} {estimated.unit}"

    if estimated.low == estimated.high:
        return said(estimated.value)
    return f"{said(estimated.value)} ({said(estimated.low)} to {said(estimated.high)})"


def comparison_view(comparison: Comparison) -> RenderableType:
    """The whole comparison, ranking first and what it does not show last."""
    parts: list[RenderableType] = [
        Text(f"Ranking by {comparison.objective.metric} ({comparison.objective.domain})", style="bold"),
        Text(comparison.contract, style="dim"),
        *_by_point(comparison),
        _ranking(comparison),
        Text("\nHeld-out bits per byte by domain: at the end (at initialisation)", style="bold"),
        _domains(comparison),
        Text("\nRouter health, worst layer, and loss spikes", style="bold"),
        _health(comparison.rows),
    ]
    if any(row.domain_information for row in comparison.rows):
        parts += [
            Text(
                "\nDomain specialisation: mutual information of domain and expert in bits, by MoE layer", style="bold"
            ),
            Text(
                "untrained: the same model at initialisation; shuffled: the trained router with the labels shuffled",
                style="dim",
            ),
            _specialisation(comparison.rows),
        ]
    parts.append(Text("\nWhat this does not show", style="bold"))
    parts += [Text(f"- {caveat}") for caveat in comparison.caveats]
    return Group(*parts)


def _name(row: ComparisonRow) -> str:
    return f"#{row.number} {row.label or params_text(row.params)}"


def _ranking(comparison: Comparison) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "trial", "state", "objective", "to baseline", "active", "total", "FLOPs/token", "tokens/s"):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right", no_wrap=name != "trial")
    for row in comparison.rows:
        difference = row.difference_to_baseline
        table.add_row(
            MISSING if row.rank is None else str(row.rank),
            _name(row),
            state_text(row.state),
            number(row.objective, 4),
            MISSING if difference is None else f"{difference:+.4f}{_noise_note(row)}",
            count(row.active_parameters),
            count(row.total_parameters),
            count(row.flops_per_token),
            count(row.tokens_per_s),
        )
    return table


def _by_point(comparison: Comparison) -> list[RenderableType]:
    """The points with their means, where there are several seeds of each; the trials follow one by one."""
    if not comparison.points:
        return []
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "point", "seeds", "mean", "95 % interval", "to baseline, seed by seed"):
        table.add_column(name, justify="left" if name == "point" else "right", no_wrap=name != "point")
    for row in comparison.points:
        others = [f"{row.num_failed} failed"] if row.num_failed else []
        others += [f"{row.num_open} open"] if row.num_open else []
        table.add_row(
            MISSING if row.rank is None else str(row.rank),
            row.label or params_text(row.params),
            ", ".join([f"{row.num_completed}/{len(row.trial_ids)}", *others]),
            number(row.mean, 4),
            _interval(row.low, row.high),
            _paired(row.differences[0]) if row.differences else MISSING,
        )
    return [Text("By configuration, mean over seeds", style="bold"), table, Text("\nTrials", style="bold")]


def _paired(difference: PairedDifference) -> str:
    note = " (seed noise)" if difference.within_noise else ""
    if difference.low is None:
        return f"{difference.value:+.4f} (one seed){note}"
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]{note}"


def _interval(low: float | None, high: float | None) -> str:
    return MISSING if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _noise_note(row: ComparisonRow) -> str:
    return " (seed noise)" if row.differences and row.differences[0].within_noise else ""


def _domains(comparison: Comparison) -> Table:
    table = Table("trial", box=None, header_style="bold", pad_edge=False)
    for domain in comparison.domains:
        table.add_column(domain, justify="right")
    for row in comparison.rows:
        scores = {score.domain: score for score in row.domains}
        if scores:
            cells = [_score(scores[domain]) if domain in scores else MISSING for domain in comparison.domains]
            table.add_row(f"#{row.number}", *cells)
    return table


def _score(score: Any) -> str:
    return f"{number(score.final)} ({number(score.initial, 2)})"


def _health(rows: Sequence[ComparisonRow]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("trial", "MaxVio", "in layer", "min token entropy", "min load entropy", "dead", "spikes"):
        table.add_column(name, justify="left" if name == "trial" else "right")
    for row in rows:
        if row.num_spikes is None:
            continue
        table.add_row(
            f"#{row.number}",
            number(row.worst_max_violation, 2),
            MISSING if row.worst_max_violation_layer is None else str(row.worst_max_violation_layer),
            number(row.min_token_entropy, 2),
            number(row.min_load_entropy, 2),
            number(row.max_dead_fraction, 2),
            str(row.num_spikes),
        )
    return table


def _specialisation(rows: Sequence[ComparisonRow]) -> Table:
    table = Table("trial", "trained", "untrained", "shuffled", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        information = row.domain_information
        if information is not None:
            table.add_row(
                f"#{row.number}",
                *(
                    "  ".join(f"{value:.3f}" for value in values)
                    for values in (information.trained, information.untrained, information.shuffled)
                ),
            )
    return table
