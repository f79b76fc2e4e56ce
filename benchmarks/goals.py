"""The goals for speed and what the kept results say of them: `python -m benchmarks.goals` prints the tables of docs.

Every goal takes the worst of the shapes it is about.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.paired import CONTROL

MIN_DIM = 192
"""The narrowest model that the goals for a layer are about."""

Results = Mapping[str, Mapping[str, Any]]
"""Name of a benchmark -> the content of its file."""


@dataclass(frozen=True)
class Goal:
    """A bound and what is held against it.

    Attributes:
        name: what is measured, for people.
        bound: the largest value allowed, or the smallest if `at_least`.
        values: of all shapes the goal is about, from the results.
    """

    name: str
    bound: float
    values: Callable[[Results, str], list[float]]
    at_least: bool = False
    percent: bool = False

    def row(self, results: Results) -> str:
        """Returns the goal's line of the table; by medians only where the benchmark keeps them."""
        found = [self._worst(self.values(results, kind)) for kind in ("ratios", "median_ratios")]
        met = [worst is None or (worst >= self.bound if self.at_least else worst <= self.bound) for worst in found]
        verdict = "yes" if all(met) else "by least times only" if met[0] else "no"
        relation = ">=" if self.at_least else "<="
        cells = [f"{relation} {self._text(self.bound)}", *(self._text(worst) for worst in found), verdict]
        return f"| {self.name} | {' | '.join(cells)} |"

    def _worst(self, values: list[float]) -> float | None:
        if not values:
            return None
        return min(values) if self.at_least else max(values)

    def _text(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class EffectGoal:
    """A bound on a ratio of which an interval is known: it is met where the whole interval is within.

    Attributes:
        name: what is measured, for people.
        bound: the largest value allowed.
        clock: of the effects, in the results of the benchmark of outages.
    """

    name: str
    bound: float
    clock: str

    def row(self, results: Results) -> str:
        """Returns the goal's line of the table: the fault whose interval reaches highest, and the control."""
        effects = {each["fault"]: each[self.clock] for each in results["outage"]["report"]["measurements"]}
        control = effects.pop(CONTROL)
        fault, worst = max(effects.items(), key=lambda item: item[1]["high"])
        if not control["low"] <= 1 <= control["high"]:
            verdict = "not shown: the control is off"
        elif worst["high"] <= self.bound:
            verdict = "yes"
        else:
            verdict = "no" if any(each["low"] > self.bound for each in effects.values()) else "not shown"
        found = f"{_with_interval(worst)} of {worst['num_pairs']} pairs, {fault.replace('_', ' ')}"
        cells = [f"<= {self.bound:g}", found, _with_interval(control)]
        return f"| {self.name} | {' | '.join(cells)} | {verdict} |"


def _with_interval(effect: Mapping[str, float]) -> str:
    return f"{effect['ratio']:.3f} ({effect['low']:.3f} to {effect['high']:.3f})"


def _of_layers(experts: Callable[[int], bool]) -> Callable[[Results, str], list[float]]:
    def values(results: Results, kind: str) -> list[float]:
        return [
            each[kind]["layer_to_matmuls"]
            for each in results["kernels"]["report"]["measurements"]
            if kind in each and each["shape"]["dim"] >= MIN_DIM and experts(each["shape"]["num_experts"])
        ]

    return values


def _of_steps(ratio: str, num_experts: int) -> Callable[[Results, str], list[float]]:
    def values(results: Results, kind: str) -> list[float]:
        return [
            each[kind][ratio]
            for each in results["step"]["report"]["measurements"]
            if each["size"]["num_experts"] == num_experts
        ]

    return values


def _of_attentions(results: Results, kind: str) -> list[float]:
    return [
        value
        for each in results["attention"]["report"]["measurements"]
        for name, value in each.get(kind, {}).items()
        if name.startswith("naive_to_")
    ]


def _of_forwarder(rate: str) -> Callable[[Results, str], list[float]]:
    return lambda results, kind: [results["forwarder"]["report"][kind][rate]]


def _of_search(results: Results, kind: str) -> list[float]:
    return [
        each[kind]["ask_to_optuna"] for each in results["search"]["report"]["measurements"] if each["num_past"] == 1000
    ]


def _of_sweeps(sweep: str, ratio: str) -> Callable[[Results, str], list[float]]:
    return lambda results, kind: [results["orchestration"]["report"]["sweeps"][sweep][kind][ratio]]


GOALS = (
    Goal("MoE layer over matmuls of the same FLOPs, E <= 16", 1.5, _of_layers(lambda number: number <= 16)),
    Goal("MoE layer over matmuls of the same FLOPs, E = 64", 2.1, _of_layers(lambda number: number == 64)),
    Goal("step over that of the dense twin, E = 8", 1.15, _of_steps("moe_to_dense", 8)),
    Goal("step over that of the dense twin, E = 64", 1.6, _of_steps("moe_to_dense", 64)),
    Goal("naive form over every kind of attention", 1.0, _of_attentions, at_least=True),
    Goal("tokens/s over transformers', E = 8", 1.1, _of_steps("transformers_as_is_to_moe", 8), at_least=True),
    Goal("tokens/s over transformers', E = 64", 1.25, _of_steps("transformers_as_is_to_moe", 64), at_least=True),
    Goal("telemetry, share of a step, E = 16", 0.02, _of_steps("telemetry_overhead", 16), percent=True),
    Goal("telemetry, share of a step, E = 64", 0.06, _of_steps("telemetry_overhead", 64), percent=True),
    Goal("points to MLflow per second of CPU time", 5000, _of_forwarder("points_per_cpu_s"), at_least=True),
    Goal("points to MLflow per second", 5000, _of_forwarder("points_per_s"), at_least=True),
    Goal("proposal of TPE over Optuna's in memory, 1,000 past trials", 1.2, _of_search),
    Goal("sweep of 40 trials of a second over plain Ray Tune's", 1.1, _of_sweeps("one_second", "time_to_tune")),
    Goal(
        "trials of no time per second over plain Ray Tune's",
        0.7,
        _of_sweeps("nothing", "throughput_to_tune"),
        at_least=True,
    ),
)

EFFECT_GOALS = (
    EffectGoal("step while MLflow fails over step without, CPU", 1.02, "cpu"),
    EffectGoal("step while MLflow fails over step without, wall", 1.02, "wall"),
)


def kept_results() -> dict[str, Any]:
    """Returns the contents of all files in `benchmarks/results`, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def table(results: Results, goals: Iterable[Goal] = GOALS) -> str:
    """Returns the goals as a table in Markdown."""
    rows = [goal.row(results) for goal in goals]
    return "\n".join(["| ratio | goal | by least times | by medians | met |", "|---|---|---|---|---|", *rows])


def effects_table(results: Results, goals: Iterable[EffectGoal] = EFFECT_GOALS) -> str:
    """Returns the goals that intervals are known for as a table in Markdown."""
    rows = [goal.row(results) for goal in goals]
    return "\n".join(
        ["| ratio | goal | worst, with 95 % interval | nothing over nothing | met |", "|---|---|---|---|---|", *rows]
    )


def main() -> None:
    """Prints the tables."""
    print(table(kept_results()), effects_table(kept_results()), sep="\n\n")


if __name__ == "__main__":
    main()
