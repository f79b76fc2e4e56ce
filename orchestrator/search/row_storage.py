"""Trials that are there already, as an Optuna storage: nothing is copied or checked again when a study is made of them.

Optuna's own storage in memory copies every trial that it is given deeply and checks each; for a study that is made anew
for every proposal that would be most of the work.
"""

import copy
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

_STUDY_ID = 0


class RowStorage(BaseStorage):
    """One study with the given trials. The trial that is asked is added to it; nothing else is ever changed.

    Args:
        trials: whose number and id are their place in the list.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._trials = list(trials)
        self._num_given = len(trials)
        self._name = ""
        self._directions: list[StudyDirection] = []
        self._system_attrs: dict[str, Any] = {}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        self._name = study_name or "rows"
        self._directions = list(directions)
        return _STUDY_ID

    def delete_study(self, study_id: int) -> None:
        raise NotImplementedError("a study of rows ends with its storage")

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        raise NotImplementedError("a study of rows has no attributes of its own")

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._system_attrs = {**self._system_attrs, key: value}

    def get_study_id_from_name(self, study_name: str) -> int:
        return _STUDY_ID

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._system_attrs

    def get_all_studies(self) -> list[FrozenStudy]:
        raise NotImplementedError("there is one study of rows")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = len(self._trials)
        if template_trial is None:
            trial = FrozenTrial(
                number=number,
                trial_id=number,
                state=TrialState.RUNNING,
                value=None,
                datetime_start=None,
                datetime_complete=None,
                params={},
                distributions={},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
            )
        else:
            trial = copy.copy(template_trial)
            trial.number = trial._trial_id = number
        self._trials.append(trial)
        return number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._asked(trial_id)
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        raise NotImplementedError("what became of a trial is told by its row")

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        raise NotImplementedError("what a trial measured is told by its row")

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        raise NotImplementedError("a trial of rows has no attributes of users")

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._asked(trial_id)
        trial.system_attrs = {**trial.system_attrs, key: value}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states == (TrialState.WAITING,):
            return []  # asked before every proposal; a row has no such state
        trials = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _asked(self, trial_id: int) -> FrozenTrial:
        """A copy of the trial that is asked, which takes its place: who got the one before keeps it as it was."""
        assert trial_id >= self._num_given, "rows are not changed"
        self._trials[trial_id] = copy.copy(self._trials[trial_id])
        return self._trials[trial_id]
