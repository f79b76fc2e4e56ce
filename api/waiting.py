"""Why what waits waits: worked out at every reading from the rows, so that it is never out of date."""

from orchestrator.states import ExperimentState, TrialState
from orchestrator.store.queue import Standings
from orchestrator.store.records import ExperimentRecord, RungDecision, TrialKind, TrialRecord

_OPEN = (TrialState.QUEUED, TrialState.RUNNING, TrialState.RETRYING)


def experiment_reason(record: ExperimentRecord, standings: Standings) -> str:
    """Why an experiment is where it is: for one that waits for places what it waits for, else its stored reason."""
    if record.state is ExperimentState.QUEUED:
        return _for_places(record.id, standings)
    claimant = standings.claimants.get(record.id)
    holds_nothing = claimant is None or not claimant.num_running
    if record.state is ExperimentState.RUNNING and holds_nothing:
        waits = record.id in standings.verdicts or not standings.is_served
        return _for_places(record.id, standings) if waits else record.reason
    return record.reason


def trial_reason(
    trial: TrialRecord, experiment: ExperimentRecord, standings: Standings, *, is_live: bool, is_being_stopped: bool
) -> str:
    """Why a trial is where it is; for one that has no run now, what it waits for.

    Args:
        experiment: the trial's.
        standings: of all experiments.
        is_live: the trial has a run.
        is_being_stopped: a user has asked for its end, and that has not come yet.
    """
    if trial.state not in _OPEN:
        return trial.reason
    if is_being_stopped:
        return "is being stopped by the user" if is_live else "stops as soon as the experiment runs"
    if is_live:
        return trial.reason
    before = f"{trial.reason}; " if trial.state is TrialState.RETRYING and trial.reason else ""
    if experiment.state in (ExperimentState.PAUSING, ExperimentState.PAUSED):
        return f"its experiment is {experiment.state.value}"
    if experiment.state is ExperimentState.CANCELLING:
        return "its experiment is being cancelled"
    if trial.kind is TrialKind.SEARCH and trial.rungs and trial.rungs[-1].decision is not RungDecision.CONTINUE:
        return before + f"waits at rung {trial.rungs[-1].rung} for what becomes of it"
    return before + _for_places(experiment.id, standings)


def _for_places(experiment_id: str, standings: Standings) -> str:
    verdict = standings.verdicts.get(experiment_id)
    if verdict is not None and not verdict.num_starts:
        return verdict.reason
    if verdict is None and not standings.is_served:
        return "waits for the orchestrator, which does not report; `evenload up` starts it"
    if verdict is None and not standings.nodes:
        return "waits for the cluster, which is not known yet"
    return "starts next"
