"""Writes an experiment as an Optuna study that optuna-dashboard and Optuna's own plots open.

`python -m orchestrator.search.export URL [--replace] < DOCUMENT` reads what the API says of an experiment and its
trials: `{"experiment": ExperimentDetail, "trials": [TrialRead, ...]}`.

Unlike the study that proposals are asked from it has values as people know them, and everything that happened.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.errors import EvenloadError
from orchestrator.objective import objective_name
from orchestrator.search.grid import AnyDomain, lattice_point, num_lattice_points
from orchestrator.search.outcome import References, directions, excesses, objective_values, references
from orchestrator.search.space import parameters
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, IntDomain, Scalar
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import RungDecision, RungRecord, TrialKind, TrialRecord

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

_FIGURES = (
    "final_loss",
    "worst_max_violation",
    "min_token_entropy",
    "min_load_entropy",
    "max_dead_fraction",
    "num_spikes",
    "tokens_per_s",
    "training_duration_s",
    "total_parameters",
    "active_parameters",
    "flops_per_token",
)
"""Of the summary, what becomes attributes of a trial."""


class NotExported(EvenloadError):
    """The study was not written; the message says why."""


def write_study(document: Mapping[str, Any], url: str, *, replace: bool = False) -> str:
    """Writes the study and returns its name.

    Baselines have no point in the space; their values become an attribute of the study.

    Args:
        document: see the module.
        url: of an Optuna storage, e.g. `sqlite:///study.db`.
        replace: write over a study of the same name.

    Raises:
        NotExported: there is such a study already, or the storage cannot be written.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    experiment = document["experiment"]
    spec = ExperimentSpec.model_validate(experiment["spec"])
    records = [_record(trial) for trial in document["trials"]]
    baselines = [record for record in records if record.kind is TrialKind.BASELINE]
    known = references(spec.objective, records)
    name = f"{experiment['id']} {spec.name}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if replace and name in optuna.get_all_study_names(url):
            optuna.delete_study(study_name=name, storage=url)
        study = optuna.create_study(study_name=name, storage=url, directions=directions(spec))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([objective_name(one) for one in (spec.objective, *spec.further_objectives)])
        study.set_user_attr("experiment_id", experiment["id"])
        study.set_user_attr("sampler", spec.sampler.kind)
        study.set_user_attr("scheduler", spec.scheduler.kind)
        study.set_user_attr("baselines", {str(record.label): record.objective for record in baselines})
        told = _Told(spec, known)
        study.add_trials(told.trial(record) for record in records if record.kind is not TrialKind.BASELINE)
    except optuna.exceptions.DuplicatedStudyError as error:
        raise NotExported(f"{url} has a study {name!r} already; say --replace to write over it") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError) as error:
        raise NotExported(f"cannot write to {url}: {str(error).splitlines()[0]}") from error
    return name


class _Told:
    """Makes trials as Optuna has them."""

    def __init__(self, spec: ExperimentSpec, known: References) -> None:
        self._spec = spec
        self._known = known
        self._domains = {parameter.name: parameter.domain for parameter in parameters(spec)}
        self._distributions = {name: _distribution(domain) for name, domain in self._domains.items()}

    def trial(self, record: TrialRecord) -> "optuna.trial.FrozenTrial":
        """The trial with its point, values, values at rungs, limits, times, and what else is known of it."""
        import optuna

        states = optuna.trial.TrialState
        num_further = len(self._spec.further_objectives)
        values = objective_values(record, num_further)
        state = states.FAIL
        if record.finished_at_ms is None:
            state = states.RUNNING
        elif record.state is TrialState.COMPLETED and values is not None:
            state = states.COMPLETE
        elif record.state is TrialState.PRUNED and record.cause is not Cause.USER:
            state = states.PRUNED
        judged = state in (states.COMPLETE, states.PRUNED)
        params = {name: value for name, value in record.params.items() if name in self._domains}
        rungs = () if num_further else record.rungs
        trial = optuna.trial.create_trial(
            state=state,
            values=list(values) if state is states.COMPLETE and values is not None else None,
            params={name: _shown(self._domains[name], value) for name, value in params.items()},
            distributions={name: self._distributions[name] for name in params},
            intermediate_values={rung.tokens: rung.value for rung in rungs if rung.value is not None},
            user_attrs=_attributes(record),
            constraints=excesses(self._spec.objective, record, self._known) if judged else None,
        )
        trial.datetime_start = _time(record.started_at_ms or record.created_at_ms)
        trial.datetime_complete = None if record.finished_at_ms is None else _time(record.finished_at_ms)
        return trial


def _attributes(record: TrialRecord) -> dict[str, Any]:
    found: dict[str, Any] = {
        "number": record.number,
        "trial_id": record.id,
        "kind": record.kind.value,
        "state": record.state.value,
        "cause": None if record.cause is None else record.cause.value,
        "reason": record.reason or None,
        "label": record.label,
        "objective_tokens": record.objective_tokens,
        "veto": record.veto,
        "spec_version": record.spec_version or None,
    }
    summary = record.summary or {}
    found |= {field: summary.get(field) for field in _FIGURES}
    found |= {f"bits_per_byte/{domain}": value for domain, value in (summary.get("bits_per_byte") or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _distribution(domain: AnyDomain) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, IntDomain):
        low, high = domain.int
        return IntDistribution(low, low + (high - low) // domain.step * domain.step, log=domain.log, step=domain.step)
    if isinstance(domain, FloatDomain):
        low, high = domain.float
        if domain.step is None:
            return FloatDistribution(low, high, log=domain.log)
        last = lattice_point(low, high, domain.step, num_lattice_points(low, high, domain.step) - 1)
        return FloatDistribution(low, last, step=domain.step)
    if isinstance(domain, ChoiceDomain):
        return CategoricalDistribution([_shown(domain, value) for value in domain.choice])
    return CategoricalDistribution(sorted(domain.options))


def _shown(domain: AnyDomain, value: Scalar) -> Scalar:
    """A value as it is; text where the choice has several that Python takes for equal (1, 1.0 and True)."""
    if isinstance(domain, FloatDomain) and isinstance(value, int | float):
        return float(value)
    if isinstance(domain, ChoiceDomain) and len(set(domain.choice)) < len(domain.choice):
        return json.dumps(value)
    return value


def _record(trial: Mapping[str, Any]) -> TrialRecord:
    """What the API says of a trial as a record; what it does not say plays no part here."""
    kind = TrialKind(trial["kind"])
    return TrialRecord(
        id=trial["id"],
        experiment_id=trial["experiment_id"],
        number=trial["number"],
        kind=kind,
        label=trial["label"],
        batch=trial["batch"],
        state=TrialState(trial["state"]),
        cause=None if trial["cause"] is None else Cause(trial["cause"]),
        reason=trial["reason"],
        since_ms=trial["since_ms"],
        epoch=0,
        params=trial["params"],
        config=None,
        config_fingerprint=None,
        asked_sequence=0,
        finished_sequence=None,
        objective=trial["objective"],
        objective_tokens=trial["objective_tokens"],
        summary=trial["summary"],
        num_retries=trial["num_retries"],
        created_at_ms=trial["created_at_ms"],
        started_at_ms=trial["started_at_ms"],
        finished_at_ms=trial["finished_at_ms"],
        rungs=tuple(_rung(trial, kind, rung) for rung in trial["rungs"]),
        further_values=trial["further_values"],
        veto=trial["veto"],
        spec_version=trial["spec_version"],
    )


def _rung(trial: Mapping[str, Any], kind: TrialKind, rung: Mapping[str, Any]) -> RungRecord:
    return RungRecord(
        trial_id=trial["id"],
        trial_number=trial["number"],
        trial_kind=kind,
        batch=trial["batch"],
        rung=rung["rung"],
        run_id="",
        tokens=rung["tokens"],
        value=rung["value"],
        sequence=0,
        decision=None if rung["decision"] not in ("continue", "stop") else RungDecision(rung["decision"]),
        explanation=rung["explanation"],
        at_ms=rung["at_ms"],
    )


def _time(ms: int) -> datetime:
    """Optuna's times are local and without a zone."""
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone().replace(tzinfo=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and writes; the study's name goes to stdout, why there is none to stderr."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.search.export")
    parser.add_argument("url")
    parser.add_argument("--replace", action="store_true")
    options = parser.parse_args(arguments)
    try:
        name = write_study(json.load(sys.stdin), options.url, replace=options.replace)
    except NotExported as error:
        sys.stderr.write(f"evenload: {error}\n")
        return 1
    sys.stdout.write(f"{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
