"""Control: the verbs of users, each a wish in the database that is carried out at once or by the driver.

Every verb may be repeated: what is so already, or is on its way, is answered as it is and nothing else happens. What
the state does not allow raises IllegalTransition with the state. What nobody drives changes in the same transaction;
else the experiment's state (`pausing`, `cancelling`) or the pending command says what the driver is to do, and the
command is answered in the transaction in which it is done.
"""

from typing import Any

from sqlalchemy import update

from orchestrator.errors import IllegalTransition
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, TrialState, is_terminal
from orchestrator.store.models import ExperimentRow, TrialRow
from orchestrator.store.records import CommandRecord, ExperimentRecord, Proposal, TrialKind, TrialRecord
from orchestrator.store.repository import Repository
from trainer.config import TrainConfig

PAUSE_WITHIN_S = 60.0
"""Time for running trials to write a checkpoint when their experiment is paused."""
STOP_WITHIN_S = 60.0
"""Time for a running trial to write a checkpoint when it alone is stopped."""
BY_USER = "by the user"

_E = ExperimentState


class Control(Repository):
    """What users ask for. Raises NotFound for what is not there."""

    def pause(self, experiment_id: str, *, within_s: float = PAUSE_WITHIN_S) -> ExperimentRecord:
        """Asks for an experiment to stop for now: running trials write a checkpoint and give their places back.

        Args:
            within_s: time for the checkpoints; a trial that does not make it goes on from an older one later.

        Raises:
            IllegalTransition: it is being cancelled or has ended.
        """
        state = self._locked(experiment_id)
        if state in (_E.PAUSING, _E.PAUSED):
            self._work.commands.settle(experiment_id, "resume", applied=False, reason="it was paused again")
            return self._work.experiments.get(experiment_id)
        if state not in (_E.QUEUED, _E.RUNNING):
            raise _not_now(experiment_id, state, "paused", (_E.QUEUED, _E.RUNNING))
        self._work.commands.add(experiment_id, "pause", {"within_s": within_s})
        reason = f"paused {BY_USER}"
        if state is _E.QUEUED:
            self._work.experiments.conclude(experiment_id, state, _E.PAUSED, reason=reason)
        else:
            self._move(
                experiment_id,
                state,
                _E.PAUSING,
                reason=f"{reason}: its runs are writing checkpoints",
                experiment_id=experiment_id,
                values={"stop_within_s": within_s},
            )
        return self._work.experiments.get(experiment_id)

    def resume(self, experiment_id: str) -> ExperimentRecord:
        """Queues a paused experiment again; its trials go on from their checkpoints. While it is pausing: afterwards.

        Raises:
            IllegalTransition: it is being cancelled or has ended.
        """
        state = self._locked(experiment_id)
        if state in (_E.QUEUED, _E.RUNNING):
            return self._work.experiments.get(experiment_id)
        if state not in (_E.PAUSING, _E.PAUSED):
            raise _not_now(experiment_id, state, "resumed", (_E.PAUSING, _E.PAUSED))
        if not self._work.commands.pending(experiment_id, "resume"):
            self._work.commands.add(experiment_id, "resume")
        if state is _E.PAUSED:
            self._requeue(experiment_id)
        return self._work.experiments.get(experiment_id)

    def prioritize(self, experiment_id: str, priority: int) -> ExperimentRecord:
        """Changes an experiment's priority; free places go by it from now on.

        Raises:
            IllegalTransition: it has ended.
        """
        state = self._locked(experiment_id)
        if is_terminal(state):
            raise _not_now(experiment_id, state, "given a priority", ())
        before = self._work.experiments.get(experiment_id).priority
        if before != priority:
            self._work.commands.add(experiment_id, "prioritize", {"from": before, "to": priority})
            self._connection.execute(
                update(ExperimentRow).where(ExperimentRow.id == experiment_id).values(priority=priority)
            )
            self._work.commands.settle(experiment_id, "prioritize", applied=True)
        return self._work.experiments.get(experiment_id)

    def stop_trial(self, trial_id: str, *, within_s: float = STOP_WITHIN_S) -> TrialRecord:
        """Asks for the end of one trial: it ends as pruned, with what it came to, and the search goes on.

        One that has not begun is cancelled at once. What runs is stopped by the driver, after a checkpoint.

        Args:
            within_s: time for that; then its process is killed. Asked again with less, it has less.

        Raises:
            IllegalTransition: it has ended otherwise.
        """
        trial = self._work.trials.get(trial_id)
        self._work.experiments.lock(trial.experiment_id)
        trial = self._work.trials.get(trial_id)
        if is_terminal(trial.state):
            if trial.cause is Cause.USER:
                return trial
            raise IllegalTransition(f"trial {trial_id} is {trial.state.value}; only one that has not ended is stopped")
        asked = self._work.commands.pending(trial.experiment_id, "stop", trial_id=trial_id)
        if not asked:
            self._work.commands.add(trial.experiment_id, "stop", {"within_s": within_s}, trial_id=trial_id)
        elif within_s < stop_within_s(asked[0]):
            self._work.commands.change(asked[0].id, {"within_s": within_s})
        if trial.state is TrialState.QUEUED:
            self._work.trials.end(trial, TrialState.CANCELLED, cause=Cause.USER, reason=f"stopped {BY_USER}")
            self._work.commands.settle(trial.experiment_id, "stop", applied=True, trial_id=trial_id)
        return self._work.trials.get(trial_id)

    def retry_trial(self, trial_id: str) -> TrialRecord:
        """Returns the trial that tries a failed one again: a new one with its configuration, made by the first call.

        The failed one stays as it is, and what the search was told of it stays told. An experiment that has ended is
        queued again.

        Raises:
            IllegalTransition: the trial has not failed.
        """
        trial = self._work.trials.get(trial_id)
        self._work.experiments.lock(trial.experiment_id)
        trial = self._work.trials.get(trial_id)
        there = self._work.trials.retry_of(trial_id)
        if there is not None:
            return there
        if trial.state is not TrialState.FAILED:
            raise IllegalTransition(f"trial {trial_id} is {trial.state.value}; only a failed one is tried again")
        config = None if trial.config is None else TrainConfig.model_validate(trial.config)
        assert config is not None, "a trial that failed has a configuration"
        label = trial.label or f"retry of trial {trial.number}"
        made = self._insert(
            trial.experiment_id, Proposal(params=trial.params, config=config), label=label, kind="retry"
        )
        self._connection.execute(update(TrialRow).where(TrialRow.id == made.id).values(retry_of=trial_id))
        return self._work.trials.get(made.id)

    def add_trial(
        self,
        experiment_id: str,
        proposal: Proposal,
        *,
        label: str | None = None,
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> TrialRecord:
        """Adds a point to an experiment, beside its search: it is run to its end and compared, and told to no sampler.

        An experiment that has ended is queued again.

        Args:
            proposal: the point with its configuration.
            label: its name in tables.
            key, fingerprint: as for `experiments.submit`.

        Raises:
            IdempotencyKeyReused: the key came with another request before.
            IllegalTransition: the experiment is being cancelled.
        """
        self._work.experiments.lock(experiment_id)
        if key is not None and (said := self._work.commands.under_key(key, fingerprint)) is not None:
            assert said.trial_id is not None, "a point that was added has a trial"
            return self._work.trials.get(said.trial_id)
        return self._insert(experiment_id, proposal, label=label, kind="add", key=key, fingerprint=fingerprint)

    def answer(self, experiment_id: str, state: ExperimentState) -> None:
        """Settles the wishes about an experiment that has just come to `state`. The caller holds it."""
        if state is _E.PAUSED:
            self._work.commands.settle(experiment_id, "pause", applied=True)
            if self._work.commands.pending(experiment_id, "resume"):
                self._requeue(experiment_id)
            return
        if state is _E.CANCELLED:
            self._work.commands.settle(experiment_id, ("cancel", "kill"), applied=True)
        if is_terminal(state):
            kinds = {command.kind for command in self._work.commands.pending(experiment_id)}
            reason = f"the experiment had {'been cancelled' if state is _E.CANCELLED else state.value} already"
            self._work.commands.settle(experiment_id, kinds, applied=False, reason=reason)

    def _requeue(self, experiment_id: str) -> None:
        self._move(
            experiment_id,
            _E.PAUSED,
            _E.QUEUED,
            reason="resumed; waiting for the orchestrator",
            experiment_id=experiment_id,
        )
        self._work.commands.settle(experiment_id, "resume", applied=True)

    def _insert(
        self,
        experiment_id: str,
        proposal: Proposal,
        *,
        label: str | None,
        kind: str,
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> TrialRecord:
        """Adds a queued trial to an experiment that the caller has locked."""
        experiment = self._work.experiments.get(experiment_id)
        if experiment.state is _E.CANCELLING:
            raise IllegalTransition(f"experiment {experiment_id} is cancelling; wait for its end, then add to it")
        if is_terminal(experiment.state):
            spec = ExperimentSpec.model_validate(experiment.spec)
            experiment = self._work.experiments.extend(
                experiment_id, spec, version=experiment.spec_version, document=experiment.document
            )
        trial_id = self._work.trials.insert(
            experiment_id,
            number=self._work.trials.next_number(experiment_id),
            kind=TrialKind.ADDED,
            label=label,
            batch=None,
            epoch=experiment.epoch,
            sequence=self._work.experiments.next_sequence(experiment_id),
            proposal=proposal,
        )
        payload: dict[str, Any] = {"params": proposal.params, "label": label}
        self._work.commands.add(experiment_id, kind, payload, trial_id=trial_id, key=key, fingerprint=fingerprint)
        self._work.commands.settle(experiment_id, kind, applied=True, trial_id=trial_id)
        return self._work.trials.get(trial_id)

    def _locked(self, experiment_id: str) -> ExperimentState:
        self._work.experiments.lock(experiment_id)
        return self._work.experiments.get(experiment_id).state


def stop_within_s(wish: CommandRecord) -> float:
    """The time that a trial has to stop, as it was last asked."""
    return wish.payload.get("within_s", STOP_WITHIN_S)


def _not_now(
    experiment_id: str, state: ExperimentState, done: str, allowed: tuple[ExperimentState, ...]
) -> IllegalTransition:
    names = " or ".join(each.value for each in allowed) or "open"
    return IllegalTransition(
        f"experiment {experiment_id} is {state.value} and cannot be {done}; only what is {names} can"
    )
