"""Lists of experiments and trials, on both databases: pages that join while rows arrive, and what a row says."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.propose import propose
from orchestrator.spec import ExperimentSpec
from orchestrator.states import RunState, TrialState
from orchestrator.store.records import Proposal, TrialRecord
from tests.support.api import Installation, installation
from tests.support.specs import experiment_document, experiment_spec
from trainer.attention import ATTENTIONS
from trainer.balancing import BALANCERS
from trainer.routers import ROUTERS
from trainer.start import STARTS

PROGRESS = {
    "step": 3, "num_steps": 10, "tokens": 300, "budget_tokens": 1000, "loss": 2.5, "tokens_per_s": 100.0,
    "max_violation": 0.5, "max_violation_layer": 1, "token_entropy": 1.1, "dead_fraction": 0.0, "bits_per_byte": None,
    "num_spikes": 2, "eta_s": 7.0, "updated_at_ms": 1_700_000_000_000,
}  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    with installation(tmp_path, url=database_url) as ready:
        yield ready


def submit(lab: Installation, **fields: Any) -> str:
    return lab.client().post("/v1/experiments", json=experiment_document(**fields)).json()["id"]


def claim(lab: Installation, experiment_id: str) -> int:
    with lab.database.transaction() as work:
        epoch = work.experiments.claim(experiment_id, owner="test", ttl_s=60)
    assert epoch is not None
    return epoch


def add_trials(
    lab: Installation, experiment_id: str, epoch: int, spec: ExperimentSpec, count: int
) -> list[TrialRecord]:
    """Proposes `count` more trials, as a driver does."""

    def choose(number: int, history: Sequence[TrialRecord]) -> Proposal | None:
        return propose(spec, number=number, history=history)

    added: list[TrialRecord] = []
    for _ in range(count):
        with lab.database.transaction() as work:
            trial = work.trials.propose(experiment_id, epoch=epoch, choose=choose)
        assert trial is not None
        added.append(trial)
    return added


def pages(lab: Installation, path: str, limit: int) -> Iterator[list[dict[str, Any]]]:
    cursor: str | None = None
    while True:
        answer = lab.client().get(path, params={"limit": limit} | ({"cursor": cursor} if cursor else {})).json()
        yield answer["items"]
        cursor = answer["next_cursor"]
        if cursor is None:
            return


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_of_experiments_hold_each_once_newest_first(lab: Installation, limit: int) -> None:
    ids = [submit(lab, name=f"number {number}") for number in range(5)]
    found = list(itertools.chain.from_iterable(pages(lab, "/v1/experiments", limit)))
    assert [one["id"] for one in found] == ids[::-1]


def test_experiments_that_arrive_while_paging_shift_nothing(lab: Installation) -> None:
    ids = [submit(lab) for _ in range(4)]
    reading = pages(lab, "/v1/experiments", 2)
    found = next(reading)
    submit(lab, name="newer than the first page")
    found += itertools.chain.from_iterable(reading)
    assert [one["id"] for one in found] == ids[::-1]


def test_trials_that_arrive_while_paging_come_last(lab: Installation) -> None:
    spec = experiment_spec(num_trials=9)
    experiment_id = submit(lab, num_trials=9)
    epoch = claim(lab, experiment_id)
    add_trials(lab, experiment_id, epoch, spec, 4)
    reading = pages(lab, f"/v1/experiments/{experiment_id}/trials", 3)
    found = next(reading)
    add_trials(lab, experiment_id, epoch, spec, 5)
    found += itertools.chain.from_iterable(reading)
    assert [one["number"] for one in found] == list(range(9))


@pytest.mark.parametrize("cursor", ["x", "../..", "%00", "=", "MTIz", "a" * 300])
def test_a_cursor_of_elsewhere_is_refused(lab: Installation, cursor: str) -> None:
    experiment_id = submit(lab)
    for path in ("/v1/experiments", f"/v1/experiments/{experiment_id}/trials"):
        answer = lab.client().get(path, params={"cursor": cursor})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/query/cursor"


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many"])
def test_a_limit_out_of_bounds_is_refused(lab: Installation, limit: str) -> None:
    answer = lab.client().get("/v1/experiments", params={"limit": limit})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/query/limit"


def test_experiments_are_filtered_by_state(lab: Installation) -> None:
    queued, cancelled = submit(lab), submit(lab)
    lab.client().post(f"/v1/experiments/{cancelled}:cancel")
    for state, expected in (("queued", [queued]), ("cancelled", [cancelled]), ("running", [])):
        items = lab.client().get("/v1/experiments", params={"state": state}).json()["items"]
        assert [one["id"] for one in items] == expected


def test_a_row_tells_how_far_a_trial_is(lab: Installation) -> None:
    spec = experiment_spec()
    experiment_id = submit(lab)
    epoch = claim(lab, experiment_id)
    running, waiting = add_trials(lab, experiment_id, epoch, spec, 2)
    with lab.database.transaction() as work:
        lost = work.runs.start(running.id, epoch=epoch)
        work.trials.lose_runs(experiment_id, epoch=epoch, reason="its node went away")
        live = work.runs.start(running.id, epoch=epoch)
        work.runs.running(live.id, epoch=epoch)
        work.runs.progress(live.id, epoch=epoch, progress=PROGRESS)
    first, second = lab.client().get(f"/v1/experiments/{experiment_id}/trials").json()["items"]
    assert (first["state"], first["num_runs"], first["num_retries"]) == ("running", 2, 1)
    assert first["progress"] == PROGRESS
    assert first["params"].keys() == {"optimizer.lr"}
    assert (second["state"], second["num_runs"], second["progress"]) == ("queued", 0, None)
    runs = lab.client().get(f"/v1/trials/{running.id}/runs").json()["items"]
    assert [(run["id"], run["state"]) for run in runs] == [(lost.id, "lost"), (live.id, "running")]
    assert lab.client().get(f"/v1/runs/{live.id}").json() == runs[1]
    assert lab.client().get(f"/v1/experiments/{experiment_id}/runs").json()["items"] == runs
    experiment = lab.client().get(f"/v1/experiments/{experiment_id}").json()
    assert experiment["num_spikes"] == 2
    assert (experiment["baseline"], experiment["max_dead_fraction"]) == (None, None)
    assert experiment["eta_s"] > PROGRESS["eta_s"]  # there are seven more trials to come
    assert waiting.id == second["id"]


@pytest.mark.parametrize(("direction", "best"), [("minimize", 1), ("maximize", 2)])
def test_the_best_trial_is_the_best_completed_one_of_the_search(lab: Installation, direction: str, best: int) -> None:
    fields: dict[str, Any] = {
        "objective": {"direction": direction},
        "baselines": [{"name": "dense", "set": {"model.moe": None}}],
    }
    spec = experiment_spec(**fields)
    experiment_id = submit(lab, **fields)
    epoch = claim(lab, experiment_id)
    trials = add_trials(lab, experiment_id, epoch, spec, 3)
    baseline = lab.client().get(f"/v1/experiments/{experiment_id}/trials").json()["items"][0]["id"]
    ended = [(baseline, TrialState.COMPLETED, 9.0 if direction == "maximize" else 0.1)]
    ended += [(trials[0].id, TrialState.COMPLETED, 1.0), (trials[1].id, TrialState.COMPLETED, 2.0)]
    ended += [(trials[2].id, TrialState.PRUNED, 99.0 if direction == "maximize" else 0.2)]
    for trial_id, state, objective in ended:
        with lab.database.transaction() as work:
            run = work.runs.start(trial_id, epoch=epoch)
            work.runs.running(run.id, epoch=epoch)
            work.runs.settle(run.id, epoch=epoch, state=RunState(state.value))
            work.trials.settle(
                trial_id,
                epoch=epoch,
                state=state,
                objective=objective,
                objective_tokens=10,
                summary={"max_dead_fraction": 0.25} if state is TrialState.PRUNED else None,
            )
    experiment = lab.client().get(f"/v1/experiments/{experiment_id}").json()
    assert experiment["best"]["number"] == best
    assert experiment["trial_counts"]["completed"] == 3
    (row,) = lab.client().get("/v1/experiments").json()["items"]
    assert row["best"] == experiment["best"]
    assert row["baseline"] == {"trial_id": baseline, "label": "dense", "objective": ended[0][2]}
    assert row["max_dead_fraction"] == 0.25
    comparison = lab.client().get(f"/v1/experiments/{experiment_id}/comparison").json()
    ranked = [row for row in comparison["rows"] if row["rank"] is not None]
    assert [row["rank"] for row in ranked] == [1, 2, 3]
    assert ranked[0]["label"] == "dense"
    assert comparison["baseline_trial_id"] == baseline
    assert ranked[1]["difference_to_baseline"] == pytest.approx(ranked[1]["objective"] - ranked[0]["objective"])
    assert comparison["caveats"]


def test_the_catalogue_names_what_a_spec_can_name(lab: Installation) -> None:
    catalogue = lab.client().get("/v1/catalog").json()
    metrics = {metric["name"]: metric for metric in catalogue["metrics"]}
    assert metrics["router/token_entropy"]["unit"] == "nats"
    assert {corpus["name"] for corpus in catalogue["corpora"]} >= {"books", "code_python"}
    kinds = {family["family"]: [one["kind"] for one in family["components"]] for family in catalogue["families"]}
    assert set(kinds["balancing"]) == set(BALANCERS)
    assert set(kinds["attention"]) == set(ATTENTIONS)
    assert set(kinds["router"]) == set(ROUTERS)
    assert set(kinds["start"]) == set(STARTS)
    assert kinds["sampler"] == ["random", "grid", "tpe", "qmc", "gp", "cmaes", "nsga2", "nsga3", "brute_force"]
    assert kinds["scheduler"] == ["none", "asha", "hyperband", "median", "patience", "pbt"]
    schema = lab.client().get("/v1/schema/experiment-spec.json").json()
    assert schema["properties"].keys() >= {"name", "base", "space"}
