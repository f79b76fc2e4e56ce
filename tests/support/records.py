"""Builders of the records that the search is a function of, as the store would give them."""

from typing import Any

from orchestrator.search.space import resolve
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.states import TrialState, is_terminal
from orchestrator.store.records import RungDecision, RungRecord, TrialKind, TrialRecord


def rung_record(
    number: int, value: float | None, *, rung: int = 0, kind: TrialKind = TrialKind.SEARCH, **fields: Any
) -> RungRecord:
    """The arrival of trial `number` at a rung; it arrived as number `number + 1` of everything that happened."""
    values: dict[str, Any] = {
        "trial_id": f"trl_{number}",
        "trial_number": number,
        "trial_kind": kind,
        "batch": None,
        "rung": rung,
        "run_id": f"run_{number}",
        "tokens": 1000 * 3**rung,
        "value": value,
        "sequence": number + 1,
        "decision": RungDecision.CONTINUE,
        "explanation": "",
        "at_ms": 0,
    }
    return RungRecord(**values | fields)


def trial_record(
    spec: ExperimentSpec,
    number: int,
    params: dict[str, Scalar] | None = None,
    *,
    state: TrialState = TrialState.COMPLETED,
    objective: float | None = None,
    **fields: Any,
) -> TrialRecord:
    """A trial of `spec` at the point `params` (None: a baseline, with the base's configuration)."""
    is_over = is_terminal(state)
    config = spec.base if params is None else resolve(spec, params)
    values: dict[str, Any] = {
        "id": f"trl_{number}",
        "experiment_id": "exp_0",
        "number": number,
        "kind": TrialKind.BASELINE if params is None else TrialKind.SEARCH,
        "label": "base" if params is None else None,
        "batch": None,
        "state": state,
        "cause": None,
        "reason": "",
        "since_ms": 0,
        "epoch": 1,
        "params": params or {},
        "config": config.model_dump(mode="json"),
        "config_fingerprint": config.fingerprint(),
        "asked_sequence": number,
        "finished_sequence": number + 1 if is_over else None,
        "objective": objective,
        "objective_tokens": None if objective is None else config.loop.budget_tokens,
        "summary": None,
        "num_retries": 0,
        "created_at_ms": 0,
        "started_at_ms": 0,
        "finished_at_ms": 1 if is_over else None,
    }
    return TrialRecord(**values | fields)
