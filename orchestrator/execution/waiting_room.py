"""The waiting room: trials that wait at rungs with a checkpoint, and the transactions that end their wait."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.execution.recorder import Recorder
from orchestrator.search.population import Copy, Generation, copy_of, generation
from orchestrator.search.promote import never_promoted, promoted
from orchestrator.search.waiting import Verdict, due
from orchestrator.store.records import RungDecision, TrialKind, TrialRecord
from orchestrator.store.work import Work

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WaitingRoom:
    """Decides on the trials of one experiment that wait at rungs. What is decided is a function of the rows.

    All methods work within the caller's transaction; those that write raise Fenced if the epoch is over.

    Attributes:
        recorder: of the experiment's driver; it ends the trials that are stopped.
    """

    recorder: Recorder

    def has_any(self, work: Work) -> bool:
        """Whether `settle` would decide anything."""
        return bool(self._settled(work).verdicts) or bool(self._stopped(work))

    def settle(self, work: Work) -> tuple[TrialRecord, ...]:
        """Decides on all that has arrived at a rung as a whole: batches, points, the population.

        Trials that are stopped end, and under population-based training what goes on in their place is added.

        Returns:
            The trials that ended.
        """
        verdicts, copies = self._settled(work)
        for copy in copies:
            self._add(work, copy)
        self._record(work, verdicts)
        return self._prune(work)

    def promotable(self, work: Work, *, is_last: bool) -> list[Verdict]:
        """What `promote` would decide."""
        live = {run.trial_id for run in work.runs.live(self.recorder.experiment_id)}
        history = work.trials.history(self.recorder.experiment_id)
        return promoted(self.recorder.spec, history, live=live, is_last=is_last)

    def promote(self, work: Work, *, is_last: bool) -> TrialRecord | None:
        """Promotes the trial that a free place goes to, and returns it; None if there is none.

        The other replicas of its point are promoted with it, and wait for places of their own.
        """
        verdicts = self.promotable(work, is_last=is_last)
        self._record(work, verdicts)
        return work.trials.get(verdicts[0].trial_id) if verdicts else None

    def dismiss(self, work: Work) -> tuple[TrialRecord, ...]:
        """Ends the trials that wait for a promotion that will not come, and returns them."""
        self._record(work, never_promoted(self.recorder.spec, work.trials.history(self.recorder.experiment_id)))
        return self._prune(work)

    def _settled(self, work: Work) -> Generation:
        history = work.trials.history(self.recorder.experiment_id)
        verdicts, copies = generation(self.recorder.spec, history)
        live = {run.trial_id for run in work.runs.live(self.recorder.experiment_id)} if verdicts else set()
        if not live.isdisjoint(verdict.trial_id for verdict in verdicts):
            verdicts, copies = [], []  # the last to arrive has not ended its run yet
        return Generation(due(self.recorder.spec, history) + verdicts, copies)

    def _record(self, work: Work, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            work.rungs.decide(verdict.trial_id, verdict.rung, verdict.decision, epoch=self.recorder.epoch)

    def _stopped(self, work: Work) -> list[TrialRecord]:
        """The trials without a run that a decision has stopped and that have not ended yet."""
        return [
            trial
            for trial in work.trials.waiting(self.recorder.experiment_id)
            if trial.rungs and trial.rungs[-1].decision is RungDecision.STOP
        ]

    def _prune(self, work: Work) -> tuple[TrialRecord, ...]:
        stopped = self._stopped(work)
        for trial in stopped:
            self.recorder.prune(work, trial)
        return tuple(work.trials.get(trial.id) for trial in stopped)

    def _add(self, work: Work, copy: Copy) -> None:
        """Adds the trial that goes on from its parent's checkpoint in place of one that ends."""
        experiment_id = self.recorder.experiment_id
        tokens = next(record.tokens for record in copy.parent.rungs if record.rung == copy.rung)
        there = [found for found in work.checkpoints.of_trial(copy.parent.id) if found.tokens == tokens]
        if not there:
            logger.error("trial %d has no checkpoint at rung %d, and is not copied", copy.parent.number, copy.rung)
            return
        work.experiments.hold(experiment_id, self.recorder.epoch)
        number = work.trials.next_number(experiment_id)
        work.trials.insert(
            experiment_id,
            number=number,
            kind=TrialKind.SEARCH,
            label=None,
            batch=None,
            epoch=self.recorder.epoch,
            sequence=work.experiments.next_sequence(experiment_id),
            proposal=copy_of(self.recorder.spec, copy.parent, there[-1], number=number),
        )
