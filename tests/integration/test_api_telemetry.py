"""Telemetry over HTTP, of trials that were really trained: series, router, loads, evaluations, spikes, differences."""

import contextlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from orchestrator.store.session import database_url, open_database
from tests.support.api import BASE_URL
from tests.support.seeded_home import DOMAINS, SeededHome, seed_home
from tests.support.specs import experiment_document
from trainer.metrics.alarm_rules import WatchedMetric
from trainer.telemetry.alarms import AlarmRecorder
from trainer.telemetry.chunks import StepBlock
from trainer.telemetry.spike_events import ObservedStep, Samples, SpikeRecorder

NUM_STEPS = 24
STEP_TOKENS = 8 * 32
NUM_EXPERTS, TOP_K = 8, 2


@dataclass(frozen=True)
class Lab:
    """A client of a home with trained trials."""

    client: TestClient
    home: SeededHome
    trials: list[dict[str, Any]]

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self.client.get(f"/v1/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def series(self, **request: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/series:query", json=request)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def dense(self) -> dict[str, Any]:
        return next(trial for trial in self.trials if trial["label"] == "dense")

    @property
    def moe(self) -> dict[str, Any]:
        return next(trial for trial in self.trials if trial["kind"] == "search" and trial["state"] == "completed")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("seeded")
    home = seed_home(root, num_steps=NUM_STEPS, num_trials=3)
    app = create_app(Settings(home=root, database_url=database_url(root), token=home.token))
    with TestClient(app, base_url=BASE_URL, headers={"Authorization": f"Bearer {home.token}"}) as client:
        trials = client.get(f"/v1/experiments/{home.sweep}/trials").json()["items"]
        yield Lab(client, home, trials)


def test_a_whole_series_is_answered_as_recorded(lab: Lab) -> None:
    series = lab.series(trials=[lab.moe["id"]], keys=["train/loss"])
    assert series["raw"]
    assert series["grid"] == list(range(1, NUM_STEPS + 1))
    (item,) = series["items"]
    assert item["min"] == item["last"] == item["max"]
    assert item["num_rows"] == NUM_STEPS
    assert item["last"][0] == pytest.approx(np.log(1024), rel=0.1)  # an untrained model knows nothing of 1024 tokens
    assert item["last"][-1] < item["last"][0]


def test_buckets_keep_every_extreme(lab: Lab) -> None:
    whole = lab.series(trials=[lab.moe["id"]], keys=["train/loss"])["items"][0]["last"]
    few = lab.series(trials=[lab.moe["id"]], keys=["train/loss"], points=4)
    (item,) = few["items"]
    assert len(few["grid"]) == 4
    assert not few["raw"]
    assert (min(item["min"]), max(item["max"])) == (min(whole), max(whole))
    assert item["last"][-1] == whole[-1]


@pytest.mark.parametrize(
    ("x", "last"), [("step", NUM_STEPS), ("tokens", NUM_STEPS * STEP_TOKENS), ("time", None), ("flops", None)]
)
def test_trials_share_a_grid_of_any_x(lab: Lab, x: str, last: float | None) -> None:
    ids = [lab.dense["id"], lab.moe["id"]]
    series = lab.series(trials=ids, keys=["train/loss", "optimizer/lr"], x=x, points=10)
    assert [(item["trial_id"], item["key"]) for item in series["items"]] == [
        (trial_id, key) for trial_id in ids for key in ("train/loss", "optimizer/lr")
    ]
    assert all(len(item["last"]) == len(series["grid"]) for item in series["items"])
    assert series["grid"] == sorted(series["grid"])
    assert last is None or series["grid"][-1] == last
    if x == "flops":
        flops = lab.get(f"experiments/{lab.home.sweep}/comparison")["rows"]
        spent = [row["training_flops"] for row in flops if row["trial_id"] in ids]
        assert series["grid"][-1] == pytest.approx(max(spent))


def test_a_range_of_x_is_cut_out(lab: Lab) -> None:
    series = lab.series(trials=[lab.moe["id"]], keys=["train/loss"], x_range=[5, 8])
    assert series["grid"] == [5, 6, 7, 8]


def test_the_worst_layer_is_the_default(lab: Lab) -> None:
    key = "router/max_violation"
    each = lab.series(trials=[lab.moe["id"]], keys=[key], layers="each")["items"]
    assert [item["layer"] for item in each] == [1, 2]  # layer 0 is dense
    (worst,) = lab.series(trials=[lab.moe["id"]], keys=[key])["items"]
    (mean,) = lab.series(trials=[lab.moe["id"]], keys=[key], layers="mean")["items"]
    by_layer = np.array([item["last"] for item in each])
    assert worst["last"] == pytest.approx(by_layer.max(axis=0))
    assert mean["last"] == pytest.approx(by_layer.mean(axis=0))


def test_evaluations_come_by_domain(lab: Lab) -> None:
    items = lab.series(trials=[lab.moe["id"]], keys=["eval/bits_per_byte"])["items"]
    assert [item["domain"] for item in items] == ["all", *DOMAINS]
    evaluations = lab.get(f"trials/{lab.moe['id']}/evaluations")
    assert evaluations["domains"] == [*DOMAINS, "all"]
    first = [one for one in evaluations["items"] if one["step"] == 0]
    assert len(first) == 7
    by_domain = {one["domain"]: one["bits_per_byte"] for one in first}
    assert by_domain["all"] == pytest.approx(np.mean([by_domain[name] for name in DOMAINS]))
    final = [one["bits_per_byte"] for one in evaluations["items"] if one["domain"] == "all"][-1]
    assert final == pytest.approx(lab.moe["objective"])


def test_a_run_can_be_asked_for_by_itself(lab: Lab) -> None:
    (run,) = lab.get(f"trials/{lab.moe['id']}/runs")["items"]
    (item,) = lab.series(runs=[run["id"]], keys=["train/loss"])["items"]
    assert (item["run_id"], item["trial_id"]) == (run["id"], lab.moe["id"])


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"keys": ["train/los"]}, "/keys/0"),
        ({"keys": ["train/loss", "router/load"]}, "/keys/1"),
        ({"keys": []}, "/keys"),
        ({"points": 1}, "/points"),
        ({"points": 10**6}, "/points"),
        ({"x": "epoch"}, "/x"),
        ({"x_range": [2, 1]}, ""),
        ({"layer": 3}, "/layer"),
        ({"trials": ["t"] * 101}, "/trials"),
        ({"trials": []}, ""),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_its_place(
    lab: Lab, request_: dict[str, Any], pointer: str
) -> None:
    body = {"trials": [lab.moe["id"]], "keys": ["train/loss"]} | request_
    answer = lab.client.post("/v1/series:query", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_router_metrics_are_layer_by_grid(lab: Lab) -> None:
    keys = ["router/max_violation", "router/token_entropy"]
    grid = lab.get(f"trials/{lab.moe['id']}/router", keys=keys, points=6)
    assert (grid["layers"], grid["num_layers"]) == ([1, 2], 3)
    assert (grid["num_experts"], grid["top_k"]) == (NUM_EXPERTS, TOP_K)
    assert [metric["key"] for metric in grid["metrics"]] == keys
    for metric in grid["metrics"]:
        assert np.array(metric["last"]).shape == (2, 6)
    entropy = np.array(grid["metrics"][1]["max"])
    assert (entropy > 0).all()
    assert (entropy <= np.log(NUM_EXPERTS) + 1e-6).all()


def test_metric_that_only_other_precisions_record_is_left_out(lab: Lab) -> None:
    keys = ["router/max_violation", "quantization/weight_zero_fraction"]
    grid = lab.get(f"trials/{lab.moe['id']}/router", keys=keys, points=6)
    assert [metric["key"] for metric in grid["metrics"]] == keys[:1]


def test_a_dense_model_has_no_router(lab: Lab) -> None:
    grid = lab.get(f"trials/{lab.dense['id']}/router")
    assert (grid["layers"], grid["metrics"], grid["num_layers"]) == ([], [], 3)
    assert lab.client.get(f"/v1/trials/{lab.dense['id']}/router/loads").status_code == 404


def test_loads_are_exact_counts_of_one_step(lab: Lab) -> None:
    newest = lab.get(f"trials/{lab.moe['id']}/router/loads")
    assert newest["step"] == NUM_STEPS
    assert newest["step_tokens"] == STEP_TOKENS
    for counts in newest["counts"]:
        assert len(counts) == NUM_EXPERTS
        assert sum(counts) == STEP_TOKENS * TOP_K
    third = lab.get(f"trials/{lab.moe['id']}/router/loads", step=3)
    assert (third["step"], third["tokens"]) == (3, 3 * STEP_TOKENS)
    assert lab.get(f"trials/{lab.moe['id']}/router/loads", step=10**6) == newest


def test_the_history_of_loads_agrees_with_the_exact_counts(lab: Lab) -> None:
    answer = lab.client.get(f"/v1/trials/{lab.moe['id']}/router/load-history", params={"frames": NUM_STEPS})
    (length,) = struct.unpack_from("<I", answer.content)
    meta = json.loads(answer.content[4 : 4 + length])
    codes = np.frombuffer(answer.content[4 + length :], dtype=np.uint8)
    shape = (meta["num_frames"], len(meta["layers"]), meta["num_experts"])
    assert shape == (NUM_STEPS, 2, NUM_EXPERTS)
    codes = codes.reshape(shape)
    counts = np.array(lab.get(f"trials/{lab.moe['id']}/router/loads", step=5)["counts"], dtype=float)
    decoded = (
        np.where(codes[4] == 0, 0, 2.0 ** ((codes[4].astype(float) - 128) / 32)) * STEP_TOKENS * TOP_K / NUM_EXPERTS
    )
    assert meta["steps"][4] == 5
    np.testing.assert_allclose(decoded, counts, rtol=0.012)  # half a code is 1.1 %


def test_a_diverged_trial_says_so(lab: Lab) -> None:
    trials = lab.get(f"experiments/{lab.home.diverging}/trials")["items"]
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert [trial["cause"] for trial in failed] == ["diverged"]
    assert failed[0]["reason"]


def test_spikes_come_with_what_explains_them(lab: Lab) -> None:
    assert lab.get(f"trials/{lab.moe['id']}/spikes")["items"] == []
    (run,) = lab.get(f"trials/{lab.dense['id']}/runs")["items"]
    (folder,) = lab.home.root.glob(f"experiments/*/trials/*/{run['id']}")
    # What a trainer records of a loss that jumps once, written by its own recorder.
    recorder = SpikeRecorder(folder, samples_of_step=lambda step: Samples(step * 8, step * 8 + 7, ["books-1"]))
    for step in range(1, 202):
        loss = 9.0 if step == 200 else 3.0 + 0.01 * (step % 7)
        values = {"train/loss": loss, "optimizer/grad_norm": 1.0 + 0.01 * (step % 5)}
        router = [{"layer": 1, "max_violation": 0.5, "token_entropy": math.nan if step == 200 else 1.0}]
        recorder.observe(ObservedStep(step, step * STEP_TOKENS, 1_700_000_000_000, values, 0.01, router))
    (spike,) = lab.get(f"trials/{lab.dense['id']}/spikes")["items"]
    assert (spike["trial_id"], spike["run_id"], spike["step"]) == (lab.dense["id"], run["id"], 200)
    assert (spike["metric"], spike["value"], spike["recovered_step"]) == ("train/loss", 9.0, 201)
    assert spike["sample_indices"] == [1600, 1607]
    assert spike["router_at"] == [{"layer": 1, "max_violation": 0.5, "token_entropy": None}]
    assert spike["router_before"][0]["token_entropy"] == spike["router_after"][0]["token_entropy"] == 1.0


def test_alarms_name_the_layer_and_come_in_order(lab: Lab) -> None:
    assert lab.get(f"trials/{lab.moe['id']}/alarms")["items"] == []
    (run,) = lab.get(f"trials/{lab.dense['id']}/runs")["items"]
    (folder,) = lab.home.root.glob(f"experiments/*/trials/*/{run['id']}")
    # What a trainer records of a layer whose busiest expert is too busy for a while, written by its own recorder.
    rule = WatchedMetric(
        name="collapse", severity="warn", metric="router/max_load", comparison="at_least", threshold=0.5, rearm=0.4
    )
    recorder = AlarmRecorder(folder, watched=[rule], layers=[1, 2])
    busiest_SL = np.array([[0.3, 0.3], [0.3, 0.6], [0.3, 0.45], [0.3, 0.3]])
    steps = np.arange(1, 5)
    block = StepBlock(steps, steps * STEP_TOKENS, steps, {}, {"router/max_load": busiest_SL}, np.zeros((4, 2, 0), int))
    recorder.observe(block, 4)
    raised, cleared = lab.get(f"trials/{lab.dense['id']}/alarms")["items"]
    assert (raised["change"], raised["step"], raised["layer"], raised["value"]) == ("raised", 2, 2, 0.6)
    assert (cleared["change"], cleared["step"], cleared["layer"]) == ("cleared", 4, 2)
    assert raised["run_id"] == cleared["run_id"] == run["id"]
    assert raised["message"] == "collapse: router/max_load of layer 2 >= 0.5 since step 2, now 0.6"
    # The experiment asks the trials that an alarm was reported of.
    assert lab.get(f"experiments/{lab.home.sweep}/alarms")["items"] == []
    with contextlib.closing(open_database(database_url(lab.home.root))) as database, database.transaction() as work:
        for change in ("raised", "cleared"):
            work.events.add(
                "alarm",
                experiment_id=lab.home.sweep,
                trial_id=lab.dense["id"],
                run_id=run["id"],
                data={"change": change},
            )
    assert lab.get(f"experiments/{lab.home.sweep}/alarms")["items"] == [raised, cleared]


def test_documents_of_several_trials_spikes_are_listed_beside_chance(lab: Lab) -> None:
    path = f"experiments/{lab.home.sweep}/implicated-documents"
    before = lab.get(path)
    assert (before["items"], before["num_spikes"], before["note"]) == ([], 0, None)
    assert before["num_trials"] >= 2
    spike = {
        "step": 70,
        "metric": "train/loss",
        "z": 12.0,
        "size": 2.5,
        "sample_indices": [552, 559],
        "document_ids": ["legal-7", "speeches-3"],
        "document_chances": [0.02, 0.1],
        "all_documents": True,
        "num_documents": 40,
        "previews": [{"sample_index": 552, "document_ids": ["legal-7"], "text": "Section 7."}],
    }
    runs = {}
    with contextlib.closing(open_database(database_url(lab.home.root))) as database, database.transaction() as work:
        for trial in (lab.moe, lab.dense):
            runs[trial["id"]] = work.runs.of_trial(trial["id"])[-1].id
            work.events.add(
                "spike",
                experiment_id=lab.home.sweep,
                trial_id=trial["id"],
                run_id=runs[trial["id"]],
                data=spike,
            )
    found = lab.get(path)
    (item,) = found["items"]
    assert [document["document_id"] for document in item["documents"]] == ["legal-7", "speeches-3"]
    assert (item["num_trials"], item["num_batches"], item["same_batch"]) == (2, 1, True)
    assert {(each["trial_id"], each["run_id"]) for each in item["spikes"]} == set(runs.items())
    assert item["text"] == "Section 7."
    first, second = item["documents"]
    assert first["expected_trials"] == pytest.approx(0.04)
    assert first["probability"] == pytest.approx(0.02), "both trials spiked at the one batch that did"
    assert first["probability_any"] == pytest.approx(0.8)
    assert second["probability_any"] == 1.0
    assert found["note"]
    assert lab.get(path, everywhere=True)["num_trials"] > found["num_trials"]
    assert lab.get(path, min_trials=3)["items"] == []
    assert lab.client.get(f"/v1/{path}", params={"min_trials": 1}).status_code == 422


def test_only_what_differs_between_trials_is_listed(lab: Lab) -> None:
    ids = [trial["id"] for trial in lab.trials if trial["kind"] == "search"]
    answer = lab.client.post("/v1/trials:diff", json={"trials": ids}).json()
    paths = {difference["path"].split(".balancing")[0] for difference in answer["differences"]}
    assert paths <= {"optimizer.lr", "model.moe"}
    assert "optimizer.lr" in paths
    assert all(len(difference["values"]) == len(ids) for difference in answer["differences"])


def test_the_comparison_sets_held_out_text_beside_its_start(lab: Lab) -> None:
    comparison = lab.get(f"experiments/{lab.home.sweep}/comparison")
    assert comparison["domains"] == ["all", *DOMAINS]
    best = comparison["rows"][0]
    assert best["rank"] == 1
    for score in best["domains"]:
        assert score["final"] < score["initial"]
    moe = next(row for row in comparison["rows"] if row["kind"] == "search" and row["rank"])
    assert moe["domain_information"].keys() == {"trained", "untrained", "shuffled"}
    assert len(moe["domain_information"]["trained"]) == 2
    assert moe["worst_max_violation_layer"] in (1, 2)


def test_a_trial_that_has_not_begun_has_no_telemetry_yet(lab: Lab) -> None:
    document = experiment_document(baselines=[{"name": "as it is", "set": {}}])
    experiment_id = lab.client.post("/v1/experiments", json=document).json()["id"]
    (waiting,) = lab.get(f"experiments/{experiment_id}/trials")["items"]
    series = lab.series(trials=[waiting["id"], lab.moe["id"]], keys=["train/loss"])
    assert [item["num_rows"] for item in series["items"]] == [0, NUM_STEPS]
    assert series["items"][0]["last"] == [None] * NUM_STEPS
    assert lab.client.get(f"/v1/trials/{waiting['id']}/router/loads").status_code == 404
    assert lab.get(f"trials/{waiting['id']}/router")["layers"] == []
    assert lab.get(f"trials/{waiting['id']}/evaluations")["items"] == []
    history = lab.client.get(f"/v1/trials/{waiting['id']}/router/load-history").content
    assert json.loads(history[4:])["num_frames"] == 0
