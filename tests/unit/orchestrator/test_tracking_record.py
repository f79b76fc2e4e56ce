"""Which points MLflow gets of a trial: the same ones whatever was sent before, and with `all` every one recorded."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from orchestrator.spec import Tracking
from orchestrator.states import ExperimentState, TrialState
from orchestrator.store.records import ExperimentRecord
from orchestrator.tracking import record
from orchestrator.tracking.forwarder import _stretches
from orchestrator.tracking.record import Point
from orchestrator.tracking.series import RunFolder, Source
from tests.support.records import trial_record
from tests.support.specs import experiment_spec
from tests.support.training import train_config
from trainer.config.run import DomainEvaluation
from trainer.metrics.catalog import PROBE_SCALARS, ROUTER_SCALARS, SCALARS, UPDATE_SCALARS
from trainer.telemetry.chunks import ChunkWriter, StepBlock
from trainer.telemetry.machine import MACHINE_FILE

NUM_STEPS, NUM_LAYERS, CHUNK = 60, 3, 15
CONFIG = train_config(num_steps=NUM_STEPS)


def written(folder: Path, *, first: int = 1, last: int = NUM_STEPS, time_ms: int = 10**12) -> Path:
    """A run's folder with telemetry of the steps `first` to `last`, probed and evaluated at 0 and every 15th."""
    generator = np.random.default_rng(first)
    writer = ChunkWriter(folder, layers=range(NUM_LAYERS))
    for start in range(first, last + 1, CHUNK):
        steps = np.arange(start, min(start + CHUNK, last + 1))
        shape = (len(steps), NUM_LAYERS)
        updates = {name: np.where(steps % 20 == 0, 0.1, np.nan) for name in UPDATE_SCALARS}
        block = StepBlock(
            steps=steps,
            tokens=steps * 100,
            time_ms=steps + time_ms,
            scalars={name: generator.normal(size=len(steps)) for name in SCALARS} | updates,
            router={name: generator.normal(size=shape) for name in ROUTER_SCALARS},
            loads_E=generator.integers(0, 9, size=(*shape, 4)),
        )
        writer.add_steps(block)
        for step in {0} & {start - 1} | {int(steps[-1])}:
            at = {"step": step, "tokens": step * 100, "time_ms": step + time_ms}
            figures = DomainEvaluation(bits_per_byte=2.0 + generator.random(), loss=3.0)
            writer.add_evaluation(**at, evaluation={"all": figures, "legal": figures})
            probe = {name: generator.random(NUM_LAYERS) for name in PROBE_SCALARS}
            probe |= {"probe/churn": np.full(NUM_LAYERS, np.nan)} if step == 0 else {}
            writer.add_probe(**at, values=probe)
        writer.write()
    lines = [
        {"step": step, "time_ms": step + time_ms, "values": {"gpu_0_utilization_percentage": 97.0}}
        for step in range(first + 4, last + 1, 5)
    ]
    (folder / MACHINE_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = written(tmp_path_factory.mktemp("run"))
    return Source(id="trl_0", runs=(RunFolder("run_0", folder),))


def sent(source: Source, tracking: Tracking, *ends: int) -> list[Point]:
    """The points that go when a trial is forwarded up to each of `ends`, and then to its end."""
    bounds = [-1, *ends]
    return [
        point
        for after, until in zip(bounds, [*ends, None], strict=True)
        for point in record.points(source, CONFIG, tracking, after=after, until=until)
    ]


def steps_of(points: list[Point], key: str) -> list[int]:
    return [point.step for point in points if point.key == key]


def test_every_step_is_there_if_all_are_asked_for(source: Source):
    points = sent(source, Tracking(mlflow_points="all"))
    for key in SCALARS:
        assert steps_of(points, key) == list(range(1, NUM_STEPS + 1))
    for name in ROUTER_SCALARS:
        for word in ("min", "mean", "max"):
            assert steps_of(points, f"{name}/{word}") == list(range(1, NUM_STEPS + 1))
    assert len(points) == len(set(points))
    assert points[0].timestamp_ms == 10**12 + 1


@pytest.mark.parametrize(("wanted", "scalars", "router"), [(500, 60, 60), (60, 60, 12), (20, 20, 4), (1, 1, 1)])
def test_a_sample_is_even_and_has_the_first_and_the_last_step(
    source: Source, wanted: int, scalars: int, router: int
) -> None:
    points = sent(source, Tracking(mlflow_points=wanted))
    for key, number in (("train/loss", scalars), ("router/max_violation/mean", router)):
        stride = NUM_STEPS // number
        assert steps_of(points, key) == sorted({1, *range(stride, NUM_STEPS + 1, stride)})
    assert steps_of(points, UPDATE_SCALARS[0]) == [20, 40, 60], "few, and therefore all"
    assert steps_of(points, "eval/loss/legal") == [0, 15, 30, 45, 60]
    assert steps_of(points, "system/gpu_0_utilization_percentage") == list(range(5, NUM_STEPS + 1, 5))


@pytest.mark.parametrize("ends", [(7,), (15, 16), (1, 20, 59), (60,)])
@pytest.mark.parametrize("wanted", [1, 7, "all"])
def test_what_is_sent_does_not_depend_on_when(source: Source, wanted: int, ends: tuple[int, ...]):
    tracking = Tracking.model_validate({"mlflow_points": wanted})
    assert Counter(sent(source, tracking, *ends)) == Counter(sent(source, tracking))


def test_a_batch_has_few_keys(source: Source):
    keys = [point.key for point in sent(source, Tracking(mlflow_points="all")) if not point.key.startswith("eval/")]
    assert sum(one != other for one, other in itertools.pairwise(keys)) == len(set(keys)) - 1


def test_probe_goes_without_the_churn_that_the_first_cannot_have(source: Source):
    points = sent(source, Tracking())
    assert steps_of(points, "probe/churn/max") == [15, 30, 45, 60]
    assert steps_of(points, "probe/domain_specialization/mean") == [0, 15, 30, 45, 60]
    assert not any(math.isnan(point.value) for point in points)


def test_what_a_lost_run_and_the_one_after_it_both_did_is_sent_once_as_the_later_did_it(tmp_path: Path):
    runs = (
        RunFolder("run_0", written(tmp_path / "0", last=20)),
        RunFolder("run_1", written(tmp_path / "1", first=1, time_ms=2 * 10**12)),
    )
    points = sent(Source(id="trl_0", runs=runs), Tracking())
    assert {point.timestamp_ms // 10**12 for point in points} == {2}
    assert all(count == 1 for count in Counter((point.key, point.step) for point in points).values())


def test_a_long_trial_is_noted_in_stretches(tmp_path: Path):
    source = Source(id="trl_0", runs=(RunFolder("run_0", written(tmp_path, first=2481, last=2510)),))
    assert list(_stretches({}, source, None, ended=True)) == [(-1, 999), (999, 1999), (1999, None)]
    assert list(_stretches({"step": 1999}, source, None, ended=True)) == [(1999, None)]
    assert list(_stretches({"step": 1999, "whole": True}, source, None, ended=True)) == []
    assert list(_stretches({"step": 40}, source, None, ended=False)) == [], "nothing is final without a checkpoint"


def test_the_end_of_a_trial_says_how_much_of_its_routing_was_settled_when():
    spec = experiment_spec()
    summary = {
        "final_loss": 2.5,
        "domain_information": {"trained": [0.25, 0.75]},
        "precision": "float32",
        "router_saturation": [
            {"step": 0, "tokens": 0, "by_layer": [0.25, 0.5]},
            {"step": 60, "tokens": 6000, "by_layer": [1.0, 1.0]},
        ],
    }
    trial = trial_record(spec, 0, objective=1.5, summary=summary)
    points = {(point.key, point.step): point.value for point in record.summary_points(trial)}
    assert points == {
        ("objective", 0): 1.5,
        ("summary/final_loss", 0): 2.5,
        ("summary/domain_information/trained", 0): 0.5,
        ("probe/saturation/min", 0): 0.25,
        ("probe/saturation/mean", 0): 0.375,
        ("probe/saturation/max", 0): 0.5,
        ("probe/saturation/min", 60): 1.0,
        ("probe/saturation/mean", 60): 1.0,
        ("probe/saturation/max", 60): 1.0,
    }


def test_description_says_what_was_searched_and_what_came_of_it():
    spec = experiment_spec()
    path = next(iter(spec.space))
    ended = trial_record(spec, 3, {path: 0.5}, objective=3.38712)
    assert record.description(experiment(), ended) == (
        f"Search trial 3 of *two rates*: completed, objective 3.3871\n\n- `{path}` = 0.5"
    )
    pruned = trial_record(spec, 4, None, state=TrialState.PRUNED, reason="rung 0")
    assert record.description(experiment(), pruned) == "Baseline trial 4 of *two rates*: pruned (rung 0)"


def test_parent_says_how_many_trials_are_in_each_state_in_one_tag_that_cannot_be_out_of_date():
    """A tag for each state would stay when the last trial leaves the state."""
    early = record.parent_tags(experiment({TrialState.RUNNING: 1, TrialState.QUEUED: 1}))
    late = record.parent_tags(experiment({TrialState.COMPLETED: 2}))
    assert early["evenload.trials"] == "1 queued, 1 running"
    assert late["evenload.trials"] == "2 completed"
    assert early.keys() == late.keys()


def experiment(trial_counts: dict[TrialState, int] | None = None) -> ExperimentRecord:
    return ExperimentRecord(
        id="exp_0",
        name="two rates",
        state=ExperimentState.RUNNING,
        reason="",
        since_ms=0,
        document={},
        spec={},
        warnings=(),
        sequence=1,
        epoch=1,
        lease_owner=None,
        lease_until_ms=None,
        lease_boot_id=None,
        mlflow_experiment_id=None,
        created_at_ms=0,
        finished_at_ms=None,
        trial_counts=trial_counts or {},
    )
