"""How much each parameter matters to the objective: PED-ANOVA and fANOVA, as Optuna implements them.

PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) asks what sets the best tenth apart from the others; fANOVA (Hutter
et al. 2014, ICML) how much of the variance over the whole space a parameter alone explains. They answer different
questions and need not agree.
"""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.search.draw import derived_seed
from orchestrator.search.outcome import NO_REFERENCES, directions, objective_values
from orchestrator.search.space import Parameter, parameters
from orchestrator.search.told import Terms
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import TrialRecord

if TYPE_CHECKING:
    import optuna

Method = Literal["ped_anova", "fanova"]

MIN_TRIALS = 10
"""Of fewer nothing is said."""
_MAX_FANOVA_TRIALS = 500
"""fANOVA takes many seconds of more; the newest are taken."""
_NUM_RESAMPLES: Mapping[Method, int] = {"ped_anova": 20, "fanova": 4}
_NUM_TREES = 16


@dataclass(frozen=True, kw_only=True)
class ParameterImportance:
    """A parameter's share of the importance of all in its list.

    Attributes:
        low, high: smallest and largest share over resamples of the trials, with repetition.
    """

    name: str
    importance: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What one method says of one objective.

    Attributes:
        objective: index of the objective; None: reaching the Pareto front.
        condition: of parameters inside of an option, where they exist, e.g. `model.moe.balancing = switch`; None: of
            those that every point has.
        num_trials: completed trials that it rests on.
        basis: which, in words.
        parameters: the most important first; empty where there is a `problem`.
    """

    method: Method
    objective: int | None
    condition: str | None
    num_trials: int
    basis: str
    parameters: tuple[ParameterImportance, ...]
    problem: str | None


def importances(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> tuple[Importance, ...]:
    """Importances by both methods, for each objective, of all parameters and of those inside of each option."""
    num_further = len(spec.further_objectives)
    evaluated = [
        trial
        for trial in trials
        if trial.state is TrialState.COMPLETED and objective_values(trial, num_further) is not None
    ]
    targets: list[int | None] = [*range(1 + num_further), *([None] if num_further else [])]
    found: list[Importance] = []
    for condition, group in _groups(spec):
        names = [parameter.name for parameter in group]
        there = [trial for trial in evaluated if all(name in trial.params for name in names)]
        for objective in targets:
            for method in ("ped_anova", "fanova"):
                if method == "fanova" and objective is None:
                    continue  # it explains the variance of one value
                found.append(_importance(spec, method, objective, condition, names, there, len(trials)))
    return tuple(found)


def _groups(spec: ExperimentSpec) -> list[tuple[str | None, list[Parameter]]]:
    """The parameters that exist together: those of every point, and those inside of each option."""
    groups: dict[str | None, list[Parameter]] = {}
    for parameter in parameters(spec):
        condition = None if parameter.condition is None else " = ".join(parameter.condition)
        groups.setdefault(condition, []).append(parameter)
    return list(groups.items())


def _importance(
    spec: ExperimentSpec,
    method: Method,
    objective: int | None,
    condition: str | None,
    names: Sequence[str],
    trials: Sequence[TrialRecord],
    num_all: int,
) -> Importance:
    used = list(trials[-_MAX_FANOVA_TRIALS:]) if method == "fanova" else list(trials)
    where = "" if condition is None else f" where {condition}"
    basis = f"{len(used)} completed trials{where}, of {num_all} of the search; pruned ones are left out"
    if len(used) < len(trials):
        basis += f"; the newest {len(used)} of {len(trials)}"
    num_further = len(spec.further_objectives)
    outcomes = [objective_values(trial, num_further) or () for trial in used]
    varied = [name for name in names if len({str(trial.params[name]) for trial in used}) > 1]
    problem = None
    if len(used) < MIN_TRIALS:
        problem = f"{len(used)} completed trials{where}; at least {MIN_TRIALS} are needed"
    elif not varied:
        problem = "no parameter took two values"
    elif objective is not None and len({values[objective] for values in outcomes}) == 1:
        problem = "all trials have the same value"
    ranked: list[ParameterImportance] = []
    if problem is None:
        whole = _evaluated(spec, method, objective, varied, used)
        if whole is None:
            problem = "the model found no variance to explain"
        else:
            resampled = _resampled(spec, method, objective, varied, used)
            for name in sorted(varied, key=lambda name: (-whole[name], name)):
                shares = [whole[name], *(one[name] for one in resampled)]
                ranked.append(ParameterImportance(name=name, importance=whole[name], low=min(shares), high=max(shares)))
    return Importance(
        method=method,
        objective=objective,
        condition=condition,
        num_trials=len(used),
        basis=basis,
        parameters=tuple(ranked),
        problem=problem,
    )


def _resampled(
    spec: ExperimentSpec, method: Method, objective: int | None, names: Sequence[str], trials: Sequence[TrialRecord]
) -> list[Mapping[str, float]]:
    """The shares in samples of the trials, drawn with repetition; without those that nothing can be said of."""
    if len(names) == 1:
        return []
    found: list[Mapping[str, float]] = []
    for index in range(_NUM_RESAMPLES[method]):
        source = random.Random(derived_seed(spec.seed, "importance", index))
        sample = sorted(int(source.random() * len(trials)) for _ in trials)
        shares = _evaluated(spec, method, objective, names, [trials[place] for place in sample])
        if shares is not None:
            found.append(shares)
    return found


def _evaluated(
    spec: ExperimentSpec, method: Method, objective: int | None, names: Sequence[str], trials: Sequence[TrialRecord]
) -> dict[str, float] | None:
    """Each parameter's share, all together 1; None if the trials' values do not differ enough to say."""
    if len(names) == 1:
        return {names[0]: 1.0}
    import optuna

    from orchestrator.search.row_storage import RowStorage

    terms = Terms(spec, NO_REFERENCES, None, False)
    told = [terms.told(trial, number=index, generation=None) for index, trial in enumerate(trials)]
    evaluator = (
        optuna.importance.PedAnovaImportanceEvaluator()
        if method == "ped_anova"
        else optuna.importance.FanovaImportanceEvaluator(
            n_trees=_NUM_TREES, seed=derived_seed(spec.seed, "fanova"), max_depth=64
        )
    )
    with warnings.catch_warnings():
        # They say that a low target is taken as good, which its sign sees to, and that few trials say little.
        warnings.simplefilter("ignore", UserWarning)
        study = optuna.create_study(directions=directions(spec), storage=RowStorage(told))
        try:
            return optuna.importance.get_param_importances(
                study, evaluator=evaluator, params=list(names), target=_target(spec, objective)
            )
        except RuntimeError as error:
            if "zero total variance" in str(error):
                return None
            raise


def _target(spec: ExperimentSpec, objective: int | None) -> "Callable[[optuna.trial.FrozenTrial], float] | None":
    if objective is None:
        return None
    sign = 1 if directions(spec)[objective] == "minimize" else -1
    return lambda trial: sign * trial.values[objective]
