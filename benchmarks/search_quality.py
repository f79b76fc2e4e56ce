"""How good what a search finds is: `python -m benchmarks.search_quality [PART ...]`.

`direct/SAMPLER`: our samplers against Optuna's run directly, the same budget of trials on functions without noise.
`early/LANDSCAPE`: our search with early stopping against `OptunaSearch` with Tune's ASHA, the same budget of steps, on
learning curves whose early losses tell more or less of the truth (`benchmarks.landscapes`). `tuner`: whether a real
`tune.Tuner` makes the trials that our clock makes with Tune's classes. Parts are kept in
`benchmarks/results/search_quality.json` one by one, since all take about a quarter of an hour on an idle core.
"""

import argparse
import json
import math
import random
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from scipy import stats

from benchmarks.functions import FUNCTIONS, SPACE, Function, excess, suggest, value_of
from benchmarks.landscapes import BUDGET_STEPS, CURVES, Curve, LandscapePoint, regret
from benchmarks.machine import RESULTS, machine
from benchmarks.simulated_sweep import Ours, Side, SimulatedTrial, Tunes, chosen, simulate
from orchestrator.search.caveats import rank_correlation
from orchestrator.search.propose import propose
from orchestrator.search.replicates import interval
from orchestrator.search.told import Memory
from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import TrialRecord

RESULT = RESULTS / "search_quality.json"
NUM_SEEDS = {"direct": 20, "early": 20}
NUM_TRIALS = {"tpe": 60, "cmaes": 60, "gp": 20}
NUM_WORKERS = 4
NUM_STEPS = 30 * BUDGET_STEPS
"""Steps of all trials together: 30 whole trainings."""

ASHA = {"kind": "asha", "resource": "steps", "min_resource": 1, "reduction_factor": 3}
ARMS: dict[str, Callable[[int], Side]] = {
    "TPE, ASHA": lambda seed: Ours(seed, sampler={"kind": "tpe"}, scheduler=ASHA),
    "TPE, ASHA that promotes": lambda seed: Ours(seed, sampler={"kind": "tpe"}, scheduler=ASHA | {"mode": "promote"}),
    "TPE, Hyperband": lambda seed: Ours(seed, sampler={"kind": "tpe"}, scheduler=ASHA | {"kind": "hyperband"}),
    "TPE alone": lambda seed: Ours(seed, sampler={"kind": "tpe"}, scheduler={"kind": "none"}),
    "random, ASHA": lambda seed: Ours(seed, sampler={"kind": "random"}, scheduler=ASHA),
    "OptunaSearch, Tune's ASHA": lambda seed: Tunes(seed),
    "OptunaSearch, Tune's ASHA, 3 brackets": lambda seed: Tunes(seed, brackets=3),
}
OURS, THEIRS = "TPE, ASHA", "OptunaSearch, Tune's ASHA"
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A sample: its mean with a 95 % interval of Student's t, its median, and all of it."""

    mean: float
    low: float
    high: float
    median: float
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DirectResult:
    """The best values of two implementations of a sampler, as log10 of what the best trial is above the minimum.

    Attributes:
        p_value: of the two-sided Mann-Whitney test that both are from one distribution.
    """

    function: str
    num_trials: int
    ours: Spread
    optuna: Spread
    p_value: float


@dataclass(frozen=True, kw_only=True)
class EarlyResult:
    """What a search with early stopping comes to.

    Attributes:
        num_trials, num_whole: means over seeds: trials begun, and trained to the end.
        regret: of the best of the trials that trained to the end.
        best_result_regret: of the trial whose last evaluation is the best, stopped or not, as
            `ResultGrid.get_best_result` takes it; of Tune's arms.
    """

    arm: str
    num_trials: float
    num_whole: float
    num_steps: int
    regret: Spread
    best_result_regret: Spread | None


def spread(values: Sequence[float]) -> Spread:
    """The sample's figures, to four digits after the point."""
    low, high = interval(values)
    assert low is not None
    assert high is not None, "more than one seed"
    mean, low, high, median = (round(x, 4) for x in (statistics.fmean(values), low, high, statistics.median(values)))
    return Spread(mean=mean, low=low, high=high, median=median, values=tuple(round(value, 4) for value in values))


def best_of_ours(kind: str, function: Function, *, num_trials: int, seed: int) -> float:
    """The best excess of a search of ours."""
    fields = {"space": SPACE, "sampler": {"kind": kind}, "num_trials": num_trials, "scheduler": {"kind": "none"}}
    side = Ours(seed, **fields)
    spec: ExperimentSpec = side.spec
    memory, history, values = Memory(), list[TrialRecord](), list[float]()
    for number in range(num_trials):
        proposal = propose(spec, number=number, history=history, memory=memory)
        assert proposal is not None, "the search has so many trials"
        values.append(value_of(function, proposal.params))
        history.append(side.completed(number, proposal, values[-1]))
    return excess(function, min(values))


def best_of_optuna(kind: str, function: Function, *, num_trials: int, seed: int) -> float:
    """The best excess of Optuna's own loop with one sampler, as its users write it."""
    study = optuna.create_study(sampler=SAMPLERS[kind](seed))
    study.optimize(lambda trial: value_of(function, suggest(trial)), n_trials=num_trials)
    return excess(function, study.best_value)


def direct(kind: str, *, num_seeds: int, num_trials: int) -> list[DirectResult]:
    """Our sampler and Optuna's on every function."""
    found: list[DirectResult] = []
    for name, function in FUNCTIONS.items():
        # Other seeds for Optuna: equal ones would make parts of both the same, and neither is to depend on its seeds.
        ours = [math.log10(best_of_ours(kind, function, num_trials=num_trials, seed=seed)) for seed in range(num_seeds)]
        theirs = [
            math.log10(best_of_optuna(kind, function, num_trials=num_trials, seed=1000 + seed))
            for seed in range(num_seeds)
        ]
        p_value = float(stats.mannwhitneyu(ours, theirs).pvalue)
        found.append(
            DirectResult(
                function=name,
                num_trials=num_trials,
                ours=spread(ours),
                optuna=spread(theirs),
                p_value=round(p_value, 3),
            )
        )
    return found


def early(curve: Curve, *, num_seeds: int, num_steps: int = NUM_STEPS) -> list[EarlyResult]:
    """Every arm on one landscape."""
    found: list[EarlyResult] = []
    for arm, side in ARMS.items():
        sweeps = [
            list(simulate(side(seed), curve, seed=seed, num_workers=NUM_WORKERS, num_steps=num_steps).values())
            for seed in range(num_seeds)
        ]
        spent = {sum(trial.num_steps for trial in trials) for trials in sweeps}
        assert spent == {num_steps}, "all spend the same"
        found.append(
            EarlyResult(
                arm=arm,
                num_trials=round(statistics.fmean(len(trials) for trials in sweeps), 1),
                num_whole=round(statistics.fmean(_num_whole(trials) for trials in sweeps), 1),
                num_steps=num_steps,
                regret=spread([_regret(curve, trials, whole_only=True) for trials in sweeps]),
                best_result_regret=spread([_regret(curve, trials, whole_only=False) for trials in sweeps])
                if arm.startswith("OptunaSearch")
                else None,
            )
        )
    return found


def _num_whole(trials: Sequence[SimulatedTrial]) -> int:
    return sum(trial.num_steps == BUDGET_STEPS for trial in trials)


def _regret(curve: Curve, trials: Sequence[SimulatedTrial], *, whole_only: bool) -> float:
    best = chosen(trials, whole_only=whole_only)
    assert best is not None, "the first trial always goes on"
    return regret(curve, best.point)


def rank_correlations(curve: Curve, *, num_points: int = 2000) -> list[float]:
    """Spearman's correlation of the loss at each rung with that at the end, over random points without noise."""
    draw = random.Random(0)
    points = [LandscapePoint(draw.random(), draw.random(), draw.random()) for _ in range(num_points)]
    last = [curve(point, BUDGET_STEPS) for point in points]
    return [
        round(rank_correlation([(curve(point, step), end) for point, end in zip(points, last, strict=True)]), 2)
        for step in (1, 3, 9)
    ]


def run(part: str, *, num_seeds: int | None = None) -> Any:
    """The result of one part, as plain values."""
    family, _, name = part.partition("/")
    if family == "tuner":
        from benchmarks.real_tuner import differences

        return differences()
    num_seeds = NUM_SEEDS[family] if num_seeds is None else num_seeds
    if family == "direct":
        return [asdict(one) for one in direct(name, num_seeds=num_seeds, num_trials=NUM_TRIALS[name])]
    curve = CURVES[name]
    return {
        "rank_correlations": rank_correlations(curve),
        "arms": [asdict(one) for one in early(curve, num_seeds=num_seeds)],
    }


PARTS = (*(f"direct/{name}" for name in SAMPLERS), *(f"early/{name}" for name in CURVES), "tuner")


def direct_table(parts: dict[str, Any]) -> str:
    """The parts `direct/...` in Markdown."""
    rows = [
        "| sampler, function, trials | ours: median | Optuna: median | difference of the means, 95 % | p |",
        "|---|---|---|---|---|",
    ]
    for part in (part for part in PARTS if part.startswith("direct/")):
        for one in parts[part]["result"]:
            ours, theirs = one["ours"]["values"], one["optuna"]["values"]
            low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
            rows.append(
                f"| {part.partition('/')[2]}, {one['function']}, {one['num_trials']} | {one['ours']['median']:.2f} | "
                f"{one['optuna']['median']:.2f} | {low:+.2f} to {high:+.2f} | {one['p_value']:.2f} |"
            )
    return "\n".join(rows)


def early_table(parts: dict[str, Any]) -> str:
    """The parts `early/...` in Markdown: mean regrets."""
    names = [name for name in CURVES if f"early/{name}" in parts]
    rows = [f"| search | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    results = {name: parts[f"early/{name}"]["result"] for name in names}
    told = [", ".join(f"{value:.2f}" for value in results[name]["rank_correlations"]) for name in names]
    rows.append(f"| *rank correlation of the losses at the rungs with the last* | {' | '.join(told)} |")
    for index, arm in enumerate(ARMS):
        found = [results[name]["arms"][index] for name in names]
        rows.append(f"| {arm} | {' | '.join(_cell(one['regret']) for one in found)} |")
        if found[0]["best_result_regret"] is not None:
            cells = [_cell(one["best_result_regret"]) for one in found]
            rows.append(f"| {arm}, by `get_best_result` | {' | '.join(cells)} |")
    return "\n".join(rows)


def tuner_sentence(parts: dict[str, Any]) -> str:
    """The part `tuner` in words."""
    found = parts["tuner"]["result"]
    return (
        f"a real `tune.Tuner` with one trial at a time made the same {found['num_trials']} trials, "
        f"{found['num_stopped_early']} of them stopped early, with {found['num_different'] or 'no'} differences in "
        "values, steps and last losses"
    )


def _cell(one: dict[str, Any]) -> str:
    return f"{one['mean']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def differences_by_seed(parts: dict[str, Any], landscape: str, *, ours: str = OURS, theirs: str = THEIRS) -> Spread:
    """Our regret minus Tune's, seed by seed: both have the same noise and the same durations."""
    arms = {one["arm"]: one["regret"]["values"] for one in parts[f"early/{landscape}"]["result"]["arms"]}
    return spread([a - b for a, b in zip(arms[ours], arms[theirs], strict=True)])


def keep(part: str, result: Any) -> dict[str, Any]:
    """Puts the part's result among the others, and returns all parts."""
    kept: dict[str, Any] = {"benchmark": "search_quality"}
    if RESULT.exists():
        kept = json.loads(RESULT.read_text(encoding="utf-8"))
    parts = kept.get("parts", {}) | {part: {"machine": asdict(machine()), "result": result}}
    kept["parts"] = {name: parts[name] for name in PARTS if name in parts}
    RESULTS.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return kept["parts"]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, runs what it names or everything, keeps it, and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_quality", description="What a search finds.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    parts: dict[str, Any] = {}
    for part in options.parts or PARTS:
        parts = keep(part, run(part))
    if all(part in parts for part in PARTS if part.startswith("direct/")):
        print(direct_table(parts))
    print(early_table(parts))
    if "tuner" in parts:
        print(tuner_sentence(parts))


if __name__ == "__main__":
    main()
