"""What of a trial goes to MLflow: params, tags, data, metric points and the model, as plain values.

Everything is a function of rows and of telemetry that is final, timestamps included, so that sending it again sends
the same bytes, which MLflow drops. MLflow itself is not imported here.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orchestrator.spec import Tracking
from orchestrator.states import TrialState
from orchestrator.store.records import CheckpointRecord, ExperimentRecord, TrialRecord
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.series import Source, evaluations, machine_use
from trainer.config import TrainConfig
from trainer.metrics.catalog import PROBE_SCALARS, QUANTIZATION_SCALARS, ROUTER_SCALARS, SCALARS, UPDATE_SCALARS

ROUTER_SHARE = 5
"""The router's metrics are sent at one in so many of the steps at which the scalars are."""
_MAX_PARAM_LENGTH = 6000
_MAX_TAG_LENGTH = 5000
_MAX_DIGEST_LENGTH = 36
_MAX_NAMED_PARAMS = 3


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    timestamp_ms: int
    step: int


class LoggedData(NamedTuple):
    """A data set that a run read.

    Attributes:
        name: for people.
        digest: equal digests promise equal samples in equal order.
        source, profile: JSON: what it is made of, and how it is cut.
        context: `training` or `evaluation`.
    """

    name: str
    digest: str
    source: str
    profile: str
    context: str


class TrainedModel(NamedTuple):
    """The model that a trial ended with.

    Attributes:
        name: valid as a name of a logged model.
        step: of its checkpoint.
        tags: where the checkpoint is and what identifies it.
        params: the `model` section of the config, flattened.
    """

    name: str
    step: int
    tags: dict[str, str]
    params: dict[str, str]


def params(trial: TrialRecord) -> dict[str, str]:
    """The trial's complete configuration, flattened to dotted paths."""
    return {path: str(value)[:_MAX_PARAM_LENGTH] for path, value in _flatten("", trial.config)}


def tags(
    experiment: ExperimentRecord, trial: TrialRecord, environment: Mapping[str, Any] | None, *, num_runs: int
) -> dict[str, str]:
    """What a trial is and how it stands. `environment` is that of its newest run, `num_runs` how often it was begun."""
    found = {
        "mlflow.source.name": experiment.name,
        "mlflow.source.type": "JOB",
        "mlflow.note.content": description(experiment, trial),
        "evenload.experiment_id": experiment.id,
        "evenload.trial_id": trial.id,
        "evenload.number": str(trial.number),
        "evenload.kind": trial.kind.value,
        "evenload.label": trial.label,
        # To group the seeds of a configuration, and to follow a copy within a population.
        "evenload.point": trial.point,
        "evenload.replica": trial.replica,
        "evenload.parent_trial_id": trial.parent_trial_id,
        "evenload.state": trial.state.value,
        "evenload.cause": None if trial.cause is None else trial.cause.value,
        "evenload.reason": trial.reason or None,
        "evenload.config_fingerprint": trial.config_fingerprint,
        "evenload.num_runs": num_runs,
    }
    # What was searched, again and alone: a column each, among the hundred params that are the same in every trial.
    found |= {f"search.{path}": value for path, value in trial.params.items()}
    if environment is not None:
        found |= {
            "evenload.data_fingerprint": environment.get("data_fingerprint"),
            "evenload.device": environment.get("device_name"),
            "evenload.precision": environment.get("precision"),
            "evenload.world_size": environment.get("world_size"),
            "evenload.torch_version": environment.get("torch_version"),
            "evenload.git_dirty": environment.get("git_dirty"),
            "evenload.git_diff_sha256": environment.get("git_diff_sha256"),
            "mlflow.source.git.commit": environment.get("git_commit"),
        }
    return {key: str(value)[:_MAX_TAG_LENGTH] for key, value in found.items() if value is not None}


def description(experiment: ExperimentRecord, trial: TrialRecord) -> str:
    """What a trial was and what came of it, in Markdown: what a reader of its page in MLflow sees first."""
    lines = [f"{trial.kind.value.capitalize()} trial {trial.number} of *{experiment.name}*: {trial.state.value}"]
    if trial.objective is not None:
        lines[0] += f", objective {trial.objective:.5g}"
    if trial.reason:
        lines[0] += f" ({trial.reason})"
    lines += [f"- `{path}` = {value}" for path, value in trial.params.items()]
    return "\n".join([lines[0], "", *lines[1:]] if lines[1:] else lines)


def parent_tags(experiment: ExperimentRecord) -> dict[str, str]:
    """What an experiment is, for the run above those of its trials."""
    found = {
        "evenload.experiment_id": experiment.id,
        "evenload.kind": "experiment",
        "evenload.state": experiment.state.value,
        "evenload.reason": experiment.reason,
        "mlflow.note.content": str(experiment.spec.get("description", "")),
        # One tag: of one for each state, that of a state in which no trial is any more would stay as it was.
        "evenload.trials": ", ".join(f"{count} {state}" for state, count in sorted(experiment.trial_counts.items())),
    }
    return {key: value[:_MAX_TAG_LENGTH] for key, value in found.items() if value}


def data(config: TrainConfig, environment: Mapping[str, Any]) -> list[LoggedData]:
    """The mixture that a run trains on and the held-out text that it is evaluated on."""
    mixture = config.data.mixture
    total = sum(mixture.values())
    source = json.dumps({"corpora": {name: weight / total for name, weight in mixture.items()}})
    cut = {"tokenizer": config.data.tokenizer, "seq_len": config.data.seq_len}
    digest = str(environment["data_fingerprint"])[:_MAX_DIGEST_LENGTH]
    name = " + ".join(mixture)
    return [
        LoggedData(name, digest, source, json.dumps(cut | {"budget_tokens": config.loop.budget_tokens}), "training"),
        LoggedData(
            f"held-out {name}",
            digest,
            source,
            json.dumps(cut | {"tokens_per_corpus": config.data.evaluation_tokens}),
            "evaluation",
        ),
    ]


def trained_model(trial: TrialRecord, checkpoint: CheckpointRecord) -> TrainedModel:
    """The model in a checkpoint of a trial."""
    assert trial.config is not None, "a trial with a checkpoint has a config"
    return TrainedModel(
        name=f"trial-{trial.number}-step-{checkpoint.step}",
        step=checkpoint.step,
        tags={
            "evenload.trial_id": trial.id,
            "evenload.checkpoint_id": checkpoint.id,
            "evenload.checkpoint_folder": checkpoint.folder,
            "evenload.manifest_sha256": checkpoint.manifest_sha256,
            "evenload.tokens": str(checkpoint.tokens),
        },
        params={path: str(value)[:_MAX_PARAM_LENGTH] for path, value in _flatten("", trial.config["model"])},
    )


def run_name(trial: TrialRecord) -> str:
    """The name a trial has in MLflow's lists and legends: its label or number, and the first values searched."""
    name = trial.label or f"trial {trial.number}"
    values = [
        f"{path.rpartition('.')[2]}={f'{value:.3g}' if isinstance(value, float) else value}"
        for path, value in list(trial.params.items())[:_MAX_NAMED_PARAMS]
    ]
    return f"{name} ({', '.join(values)})" if values else name


def sampled_steps(config: TrainConfig, tracking: Tracking) -> tuple[int, int]:
    """Of which steps MLflow gets the scalars, and of which the router's metrics: every so many.

    Of the router's there are three for each metric, and as many metrics again: a fifth of the steps is as many points.
    """
    if tracking.mlflow_points == "all":
        return 1, 1
    of_router = max(1, tracking.mlflow_points // ROUTER_SHARE)
    return max(1, math.ceil(config.num_steps / tracking.mlflow_points)), max(1, math.ceil(config.num_steps / of_router))


def points(
    source: Source, config: TrainConfig, tracking: Tracking, *, after: int, until: int | None
) -> Iterator[Point]:
    """Everything that MLflow gets of the steps `after < step <= until`; to the end if `until` is None.

    Whether a step is in the sample does not depend on what was sent before, but for the last step of a trial, which
    always is. Key by key: MLflow writes the newest value of each key of a batch beside the points themselves, and the
    fewer keys a batch has, the less that is.
    """
    scalar_stride, router_stride = sampled_steps(config, tracking)
    yield from scalar_points(source, after=after, until=until, stride=scalar_stride)
    yield from router_points(source, after=after, until=until, stride=router_stride)
    for of in (evaluation_points, probe_points, machine_points):
        yield from of(source, after=after, until=until)


def scalar_points(source: Source, *, after: int, until: int | None, stride: int = 1) -> Iterator[Point]:
    """Every `stride`-th step of the scalars, and every update-to-parameter ratio; most steps measure none."""
    table = columns(source.folders, "scalars", ["time_ms", *SCALARS, *UPDATE_SCALARS], steps=_range(after, until))
    measured = np.any([np.isfinite(table[key]) for key in UPDATE_SCALARS], axis=0)
    for keys, rows in (
        (SCALARS, _sampled(table["step"], stride, after, until)),
        (UPDATE_SCALARS, measured & _inside(table["step"], after, until)),
    ):
        for key in keys:
            yield from _curve(key, table[key][rows], table["time_ms"][rows], table["step"][rows])


def router_points(source: Source, *, after: int, until: int | None, stride: int = 1) -> Iterator[Point]:
    """Every `stride`-th step of the router's metrics: least, mean and greatest of the layers."""
    names = (*ROUTER_SCALARS, *QUANTIZATION_SCALARS)
    table = columns(source.folders, "router", ["time_ms", *names], steps=_range(after, until))
    yield from _layer_points(table, names, lambda steps: _sampled(steps, stride, after, until))


def probe_points(source: Source, *, after: int, until: int | None) -> Iterator[Point]:
    """What every evaluation found on the probe set: least, mean and greatest of the layers. The first has no churn."""
    table = columns(source.folders, "probes", ["time_ms", *PROBE_SCALARS], steps=_range(after, until))
    # A run that was lost before its first checkpoint leaves a probe of step 0, and the one after it takes another.
    taken = list(zip(table["step"].tolist(), table["time_ms"].tolist(), strict=True))
    newest = dict(taken)
    kept = np.array([newest[step] == time_ms for step, time_ms in taken], dtype=bool)
    table = {name: array[kept] for name, array in table.items()}
    found = _layer_points(table, PROBE_SCALARS, lambda steps: _inside(steps, after, until))
    yield from (point for point in found if not math.isnan(point.value))


def machine_points(source: Source, *, after: int, until: int | None) -> Iterator[Point]:
    """What the machine did in the steps `after < step <= until`, under the names that MLflow has for it."""
    for sample in machine_use(source):
        if after < sample["step"] and (until is None or sample["step"] <= until):
            for key, value in sample["values"].items():
                yield Point(f"system/{key}", float(value), int(sample["time_ms"]), int(sample["step"]))


def evaluation_points(source: Source, *, after: int, until: int | None) -> Iterator[Point]:
    """Every evaluation of the steps `after < step <= until`, a key per domain."""
    for row in evaluations(source):
        if after < row.step and (until is None or row.step <= until):
            yield Point(f"eval/bits_per_byte/{row.domain}", row.bits_per_byte, row.time_ms, row.step)
            yield Point(f"eval/loss/{row.domain}", row.loss, row.time_ms, row.step)


def summary_points(trial: TrialRecord) -> Iterator[Point]:
    """The ended trial's figures, at the time it ended; of those that every layer has the mean.

    How much of the routing of earlier evaluations is that of the last one (saturation) is known only now; it is a curve
    over their steps.
    """
    assert trial.finished_at_ms is not None
    if trial.objective is not None:
        yield Point("objective", trial.objective, trial.finished_at_ms, 0)
    summary = dict(trial.summary or {})
    for at in summary.pop("router_saturation", None) or ():
        shares = at["by_layer"]
        for word, share in (("min", min(shares)), ("mean", sum(shares) / len(shares)), ("max", max(shares))):
            yield Point(f"probe/saturation/{word}", share, trial.finished_at_ms, at["step"])
    for path, value in _flatten("", summary, mean=True):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Point(f"summary/{path.replace('.', '/')}", float(value), trial.finished_at_ms, 0)


def status(state: TrialState) -> str:
    """MLflow's word for a state of an ended trial; the exact one is in the tags."""
    if state in (TrialState.COMPLETED, TrialState.PRUNED):
        return "FINISHED"
    return "KILLED" if state is TrialState.CANCELLED else "FAILED"


def _range(after: int, until: int | None) -> tuple[int, int]:
    return (after, 2**62) if until is None else (after + 1, until)


def _inside(steps: np.ndarray, after: int, until: int | None) -> np.ndarray:
    return (steps > after) & (steps <= (math.inf if until is None else until))


def _sampled(steps: np.ndarray, stride: int, after: int, until: int | None) -> np.ndarray:
    """Which rows are of every `stride`-th step, of the first, or of the last if the trial has ended.

    The last may be the step `after`: that it is the last was not known when the steps up to it were sent.
    """
    regular = (steps % stride == 0) | (steps == 1)
    wanted = regular & _inside(steps, after, until)
    if until is None and len(steps):
        wanted |= (steps == steps.max()) & ~regular
    return wanted


def _curve(key: str, values: np.ndarray, times: np.ndarray, steps: np.ndarray) -> Iterator[Point]:
    columns_of = (values.astype(np.float64).tolist(), times.astype(int).tolist(), steps.astype(int).tolist())
    return map(Point, itertools.repeat(key), *columns_of)


def _layer_points(
    table: Mapping[str, np.ndarray], names: Sequence[str], wanted: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Point]:
    """Three curves for each metric of a table with a row per step and layer, at the steps that `wanted` chooses."""
    if not len(table["step"]):
        return
    # Rows of a step lie together, layer after layer.
    starts = np.flatnonzero(np.diff(table["step"], prepend=-1))
    counts = np.diff(starts, append=len(table["step"]))
    rows = wanted(table["step"][starts])
    steps, times = table["step"][starts][rows], table["time_ms"][starts][rows]
    for name in names:
        # A run records what it has: no casts without a narrow format, and not what came to the catalogue after it.
        if np.isnan(table[name]).all():
            continue
        values = table[name].astype(np.float64)
        for word, reduced in (
            ("min", np.fmin.reduceat(values, starts)),
            ("mean", np.add.reduceat(values, starts) / counts),
            ("max", np.fmax.reduceat(values, starts)),
        ):
            yield from _curve(f"{name}/{word}", reduced[rows], times, steps)


def _flatten(path: str, value: Any, *, mean: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a document; with `mean`, a list of numbers is one value."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _flatten(f"{path}.{key}" if path else str(key), value[key], mean=mean)
    elif isinstance(value, list | tuple) and value:
        if mean and all(isinstance(item, int | float) for item in value):
            yield path, sum(value) / len(value)
        else:
            for index, item in enumerate(value):
                yield from _flatten(f"{path}.{index}", item, mean=mean)
    else:
        yield path, value
