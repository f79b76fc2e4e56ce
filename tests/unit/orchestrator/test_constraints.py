"""Constraints between values: what can be said, what holds, and what is refused."""

import pytest

from orchestrator.admission import admit
from orchestrator.errors import SpecRejected
from orchestrator.search.constraints import parse_constraint
from orchestrator.search.grid import num_search_trials
from orchestrator.search.propose import propose
from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import TrialRecord
from tests.support.records import trial_record
from tests.support.specs import experiment_document, experiment_spec

TOP_K = "model.moe.top_k <= model.moe.num_experts"
SPACE = {"model.moe.top_k": {"int": [1, 8]}, "model.moe.num_experts": {"choice": [2, 4, 8]}}
DOCUMENT = {"a": {"b": 3, "kind": "x", "none": None}, "items": [{"c": 0.5}, {"c": 2}]}

REDRAWING = ["random", "qmc", "tpe", "gp", "cmaes", "nsga2"]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a.b <= 3", True),
        ("a.b < 3", False),
        ("1 < a.b < 3", False),
        ("1 < a.b <= 3", True),
        ("2 * a.b - 1 == 5", True),
        ("-a.b // 2 == -2", True),
        ("a.b % 2 != 1", False),
        ("items[1].c / 4 >= items[0].c", True),
        ("items[1].c / 4 > items[0].c", False),
        ("a.kind == 'x'", True),
        ("a.kind != 'x'", False),
        # Nothing there, so nothing is said.
        ("a.none > 7", True),
        ("a.absent > 7", True),
        ("items[5].c > 7", True),
        ("a.b.c > 7", True),
        # What cannot be computed does not hold.
        ("a.kind < 3", False),
        ("a.kind * 3 > 1", False),
        ("a.b / (a.b - 3) < 1", False),
    ],
)
def test_constraint_holds_as_arithmetic_says(text: str, holds: bool) -> None:
    assert (parse_constraint(text).violation(DOCUMENT) is None) is holds


def test_violation_shows_the_constraint_and_the_values() -> None:
    assert parse_constraint("a.b < items[1].c").violation(DOCUMENT) == (
        "the constraint 'a.b < items[1].c' does not hold: a.b=3, items.1.c=2"
    )


@pytest.mark.parametrize(
    "text",
    [
        "a.b",
        "1 < 2",
        "a.b <",
        "a.b = 3",
        "f(a) < 1",
        "a.b ** 9 < 1",
        "a.b < 1 and a.c < 2",
        "a.b in [1]",
        "a.b is 1",
        "(lambda: 1) < a",
        "a[b] < 1",
        "a.b < [1]",
        "'{}'.format < 1",
        "a.b < 1j",
        "+".join(["a"] * 120) + " < 1",
        "(" * 300 + "a" + ")" * 300 + " < 1",
        "\0 < a",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_constraint(text)


def sweep(spec: ExperimentSpec, num_trials: int) -> list[TrialRecord]:
    history: list[TrialRecord] = []
    for number in range(num_trials):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        assert proposal.problem is None, proposal.problem
        history.append(trial_record(spec, number, proposal.params, objective=-float(str(proposal.params["seed"]))))
    return history


@pytest.mark.parametrize("kind", REDRAWING)
def test_proposals_satisfy_the_constraints_and_are_the_same_again(kind: str) -> None:
    # The objective pulls towards what is excluded.
    space = {"seed": {"int": [0, 99]}, "data.seq_len": {"int": [16, 112], "step": 16}}
    constraints = ["seed + data.seq_len <= 100"]
    spec = experiment_spec(space=space, constraints=constraints, sampler={"kind": kind}, num_trials=30)
    history = sweep(spec, 24)
    for trial in history:
        assert int(str(trial.params["seed"])) + int(str(trial.params["data.seq_len"])) <= 100
    for number in (0, 11, 23):
        again = propose(spec, number=number, history=history)
        assert again is not None
        assert again.params == history[number].params


def test_constraints_leave_the_proposals_alone_that_satisfy_them() -> None:
    free = experiment_spec(space=SPACE, num_trials=20)
    bound = experiment_spec(space=SPACE, num_trials=20, constraints=[TOP_K])
    changed = 0
    for number in range(20):
        one, other = propose(free, number=number, history=[]), propose(bound, number=number, history=[])
        assert one is not None
        assert other is not None
        assert other.config is not None
        changed += one.config is None
        assert one.config is None or one == other
    assert changed > 0


@pytest.mark.parametrize("kind", ["grid", "brute_force"])
def test_grid_records_what_violates_a_constraint_as_infeasible(kind: str) -> None:
    spec = experiment_spec(space=SPACE, sampler={"kind": kind}, num_trials=None, constraints=[TOP_K])
    proposals = [propose(spec, number=number, history=[]) for number in range(num_search_trials(spec))]
    problems = [proposal.problem for proposal in proposals if proposal is not None and proposal.problem is not None]
    assert len(proposals) == 24
    # Of 8 values of top_k, 2, 4 and 8 go with 2, 4 and 8 experts.
    assert len(problems) == 24 - 14
    assert all(problem.startswith(f"the constraint {TOP_K!r} does not hold") for problem in problems)


def test_point_for_which_nothing_is_found_is_infeasible_with_the_reason() -> None:
    spec = experiment_spec(space=SPACE, constraints=["model.moe.top_k > 8"], num_trials=5)
    proposal = propose(spec, number=0, history=[])
    assert proposal is not None
    assert proposal.config is None
    assert proposal.problem is not None
    assert proposal.problem.startswith("the constraint 'model.moe.top_k > 8' does not hold")


@pytest.mark.parametrize("kind", [*REDRAWING, "grid"])
def test_enqueued_points_come_first_whatever_the_sampler(kind: str) -> None:
    enqueue = [{"model.moe.top_k": 3, "model.moe.num_experts": 4}, {"model.moe.num_experts": 2}]
    fields = {"num_trials": None if kind == "grid" else 12, "sampler": {"kind": kind}, "space": SPACE}
    spec = experiment_spec(enqueue=enqueue, constraints=[TOP_K], **fields)
    first, second = propose(spec, number=0, history=[]), propose(spec, number=1, history=[])
    assert first is not None
    assert first.params == enqueue[0]
    # What is left open is drawn, within the constraints.
    assert second is not None
    assert second.config is not None
    assert second.params["model.moe.num_experts"] == 2
    if kind == "grid":
        assert num_search_trials(spec) == 2 + 24
        third = propose(spec, number=2, history=[])
        assert third is not None
        assert third.params == {"model.moe.num_experts": 2, "model.moe.top_k": 1}


def problems_of(**fields: object) -> list[tuple[str, str]]:
    with pytest.raises(SpecRejected) as refused:
        admit(experiment_document(**fields), capacity=None)
    return [(problem.pointer, problem.code) for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"constraints": ["model.moe.top_k <="]}, ("/constraints/0", "invalid")),
        ({"constraints": [TOP_K, "model.moe.topk <= 2"]}, ("/constraints/1", "unknown_path")),
        ({"constraints": ["model.moe.num_experts < 2"]}, ("/constraints", "no_valid_point")),
        ({"enqueue": [{"model.dim": 64}]}, ("/enqueue/0/model.dim", "unknown_path")),
        ({"enqueue": [{}, {"model.moe.top_k": 9}]}, ("/enqueue/1/model.moe.top_k", "out_of_range")),
        ({"enqueue": [{"model.moe.top_k": "2"}]}, ("/enqueue/0/model.moe.top_k", "out_of_range")),
        (
            {"constraints": [TOP_K], "enqueue": [{"model.moe.top_k": 8, "model.moe.num_experts": 4}]},
            ("/enqueue/0", "violates_constraint"),
        ),
        (
            {"sampler": {"kind": "cmaes"}, "space": {"model.moe.num_experts": {"choice": [2, 4]}}},
            ("/sampler/kind", "no_numeric_parameter"),
        ),
    ],
)
def test_what_can_never_be_is_refused_with_its_place(fields: dict[str, object], expected: tuple[str, str]) -> None:
    assert problems_of(**({"space": SPACE} | fields)) == [expected]


def test_value_inside_an_option_that_is_not_chosen_is_refused() -> None:
    options = {"none": [], "bias": [{"kind": "loss_free_bias", "update_rate": {"choice": [0.001, 0.01]}}]}
    space = {"model.moe.balancing": {"options": options}}
    point = {"model.moe.balancing": "none", "model.moe.balancing.bias.0.update_rate": 0.01}
    found = problems_of(space=space, enqueue=[point])
    assert found == [("/enqueue/0/model.moe.balancing.bias.0.update_rate", "inactive")]


def test_dry_run_counts_what_the_constraints_exclude() -> None:
    admitted = admit(experiment_document(space=SPACE, constraints=[TOP_K]), capacity=None)
    (warning,) = admitted.warnings
    # A point violates it with probability 10/24: 83 of 200, standard deviation 7.
    count = int(warning.removeprefix("the constraints exclude ").split()[0])
    assert 60 < count < 106
    assert f"of 200 random points of the space ({TOP_K!r} {count}); such proposals are drawn again" in warning


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ({"kind": "cmaes"}, "the cmaes sampler draws model.moe.num_experts at random"),
        ({"kind": "gp"}, "sampler.num_startup_trials=10 of num_trials=8 trials are drawn at random"),
        ({"kind": "nsga2"}, "sampler.population_size=50 of num_trials=8 trials are the first generation"),
    ],
)
def test_sampler_that_cannot_use_its_model_is_a_warning(sampler: dict[str, str], expected: str) -> None:
    admitted = admit(experiment_document(space=SPACE, constraints=[TOP_K], sampler=sampler), capacity=None)
    assert any(expected in warning for warning in admitted.warnings), admitted.warnings
