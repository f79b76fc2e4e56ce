"""Where a trial's telemetry lies: from rows of the store to what `orchestrator.tracking.series` reads."""

from collections.abc import Sequence
from pathlib import Path

from api.problems import INVALID_REQUEST, RequestRefused, shortened
from api.schemas.problems import ProblemError
from orchestrator.store.records import RunRecord, TrialRecord
from orchestrator.store.work import Work
from orchestrator.tracking.series import EVALUATION_METRICS, RunFolder, Source
from trainer.config import TrainConfig
from trainer.metrics.catalog import PROBE_SCALARS, QUANTIZATION_SCALARS, ROUTER_SCALARS, SCALARS, UPDATE_SCALARS
from trainer.model.size import flops_per_token

X_UNITS = {"step": "steps", "tokens": "tokens", "time": "s", "flops": "FLOPs"}


def config_of(trial: TrialRecord) -> TrainConfig | None:
    """The trial's configuration; None if its point makes none."""
    return None if trial.config is None else TrainConfig.model_validate(trial.config)


def trial_source(work: Work, trial: TrialRecord, root: Path) -> Source:
    """The trial's runs, oldest first."""
    return _source(trial, trial.id, work.runs.of_trial(trial.id), root)


def run_source(work: Work, run: RunRecord, root: Path) -> Source:
    """One run by itself."""
    return _source(work.trials.get(run.trial_id), run.id, [run], root)


def check_keys(keys: Sequence[str], known: Sequence[str], *, place: str) -> None:
    """Raises RequestRefused for every one of `keys` that is not `known`; `place` is their JSON pointer."""
    errors = [
        ProblemError(
            pointer=f"{place}/{index}",
            code="unknown_metric",
            message=f"there is no series {shortened(key)!r}; there are: {', '.join(known)}",
            given=shortened(key),
            allowed=", ".join(known),
        )
        for index, key in enumerate(keys)
        if key not in known
    ]
    if errors:
        raise RequestRefused(INVALID_REQUEST, f"{errors[0].pointer}: {errors[0].message}", errors=errors)


LAYER_SERIES = (*ROUTER_SCALARS, *QUANTIZATION_SCALARS)
"""Names of series with one value per MoE layer; the latter only runs with quantised experts have."""

SERIES = (*SCALARS, *UPDATE_SCALARS, *LAYER_SERIES, *PROBE_SCALARS, *EVALUATION_METRICS)
"""Names that a series can be asked for."""


def _source(trial: TrialRecord, source_id: str, runs: Sequence[RunRecord], root: Path) -> Source:
    config = config_of(trial)
    return Source(
        id=source_id,
        runs=tuple(RunFolder(run.id, root / run.folder) for run in runs),
        flops_per_token=None if config is None else flops_per_token(config.model, seq_len=config.data.seq_len),
    )
