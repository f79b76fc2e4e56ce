"""What of a trial goes to MLflow: params, tags, data, metric points and the model, as plain values.

Everything is a function of rows and of telemetry that is final, timestamps included, so that sending it again sends
the same bytes, which MLflow drops. MLflow itself is not imported here.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from orchestrator.states import TrialState
from orchestrator.store.records import CheckpointRecord, ExperimentRecord, TrialRecord
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.series import Source, evaluations, machine_use
from trainer.config import TrainConfig
from trainer.metrics.catalog import QUANTIZATION_SCALARS, ROUTER_SCALARS, SCALARS, UPDATE_SCALARS

MAX_SCALAR_POINTS = 500
MAX_ROUTER_POINTS = 100
"""Per metric. Every step is in the telemetry; MLflow gets an even sample, for it keeps each point as a row."""
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
        "mlflow.note.content": trial.reason or None,
        "evenload.experiment_id": experiment.id,
        "evenload.trial_id": trial.id,
        "evenload.number": str(trial.number),
        "evenload.kind": trial.kind.value,
        "evenload.label": trial.label,
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


def parent_tags(experiment: ExperimentRecord) -> dict[str, str]:
    """What an experiment is, for the run above those of its trials."""
    found = {
        "evenload.experiment_id": experiment.id,
        "evenload.kind": "experiment",
        "evenload.state": experiment.state.value,
        "evenload.reason": experiment.reason,
        "mlflow.note.content": str(experiment.spec.get("description", "")),
    } | {f"evenload.trials.{state.value}": str(count) for state, count in sorted(experiment.trial_counts.items())}
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


def step_points(source: Source, config: TrainConfig, *, after: int, until: int | None) -> Iterator[Point]:
    """The sampled training points of the steps `after < step <= until`; all to the end if `until` is None.

    A step is in the sample or not whatever was sent before, but for the last step of a trial, which always is.
    """
    for points, at_most in ((scalar_points, MAX_SCALAR_POINTS), (router_points, MAX_ROUTER_POINTS)):
        yield from points(source, after=after, until=until, stride=max(1, math.ceil(config.num_steps / at_most)))


def scalar_points(source: Source, *, after: int, until: int | None, stride: int = 1) -> Iterator[Point]:
    """Every `stride`-th step of the scalars, and every update-to-parameter ratio; most steps measure none."""
    table = columns(source.folders, "scalars", ["time_ms", *SCALARS, *UPDATE_SCALARS], steps=_range(after, until))
    wanted = _sampled(table["step"], stride, after, until)
    inside = (table["step"] > after) & (table["step"] <= (math.inf if until is None else until))
    measured = np.any([np.isfinite(table[key]) for key in UPDATE_SCALARS], axis=0)
    for row in np.flatnonzero(wanted | (inside & measured)):
        keys = (*(SCALARS if wanted[row] else ()), *(UPDATE_SCALARS if measured[row] else ()))
        for key in keys:
            yield Point(key, float(table[key][row]), int(table["time_ms"][row]), int(table["step"][row]))


def router_points(source: Source, *, after: int, until: int | None, stride: int = 1) -> Iterator[Point]:
    """Every `stride`-th step of the router's metrics: least, mean and greatest of the layers."""
    names = (*ROUTER_SCALARS, *QUANTIZATION_SCALARS)
    table = columns(source.folders, "router", ["time_ms", *names], steps=_range(after, until))
    if not len(table["step"]):
        return
    # Rows of a step lie together, layer after layer.
    starts = np.flatnonzero(np.diff(table["step"], prepend=-1))
    counts = np.diff(starts, append=len(table["step"]))
    # A run records what it has: no casts without a narrow format, and not what came to the catalogue after it.
    recorded = [key for key in names if not np.isnan(table[key]).all()]
    over_layers = {
        (key, word): reduced
        for key in recorded
        for word, reduced in (
            ("min", np.fmin.reduceat(table[key].astype(np.float64), starts)),
            ("mean", np.add.reduceat(table[key].astype(np.float64), starts) / counts),
            ("max", np.fmax.reduceat(table[key].astype(np.float64), starts)),
        )
    }
    router_steps, times = table["step"][starts], table["time_ms"][starts]
    for row in np.flatnonzero(_sampled(router_steps, stride, after, until)):
        for (key, word), values in over_layers.items():
            yield Point(f"{key}/{word}", float(values[row]), int(times[row]), int(router_steps[row]))


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
    """The ended trial's figures, at the time it ended."""
    assert trial.finished_at_ms is not None
    if trial.objective is not None:
        yield Point("objective", trial.objective, trial.finished_at_ms, 0)
    for path, value in _flatten("", trial.summary):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Point(f"summary/{path.replace('.', '/')}", float(value), trial.finished_at_ms, 0)


def status(state: TrialState) -> str:
    """MLflow's word for a state of an ended trial; the exact one is in the tags."""
    if state in (TrialState.COMPLETED, TrialState.PRUNED):
        return "FINISHED"
    return "KILLED" if state is TrialState.CANCELLED else "FAILED"


def _range(after: int, until: int | None) -> tuple[int, int]:
    return after + 1, 2**62 if until is None else until


def _sampled(steps: np.ndarray, stride: int, after: int, until: int | None) -> np.ndarray:
    """Which rows are of every `stride`-th step, of the first, or of the last if the trial has ended."""
    wanted = (steps % stride == 0) | (steps == 1)
    if until is None and len(steps):
        wanted |= steps == steps.max()
    return wanted & (steps > after) & (steps <= (math.inf if until is None else until))


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _flatten(f"{path}.{key}" if path else str(key), value[key])
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _flatten(f"{path}.{index}", item)
    else:
        yield path, value
