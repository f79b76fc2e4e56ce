"""The loop reports what happened in order, records every step, and trains."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.training import DIVERGING, STEP_TOKENS, Finished, read_chunks, run_training, train_config
from trainer.balancing.build import build_balancers
from trainer.config.run import RunReport
from trainer.data.shards import default_cache_dir
from trainer.loop import train
from trainer.metrics.catalog import ROUTER_SCALARS, SCALARS
from trainer.metrics.router_health import max_violation
from trainer.model.build import build_model
from trainer.optimizers.build import build_optimizer
from trainer.precision.build import build_precision
from trainer.schedules.build import build_schedule
from trainer.step import TrainStep
from trainer.telemetry.progress import Progress, read_progress
from trainer.telemetry.step_buffer import StepBuffer
from trainer.training_data import open_data
from trainer.update import Update
from trainer.world import World

DENSE = {"moe": None}


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    return run_training(train_config(num_steps=12), tmp_path)


def moments(finished: Finished) -> list[tuple[str, int]]:
    return [(report.kind, report.step) for report in finished.reports]


def test_plain_run_starts_evaluates_and_finishes(finished: Finished):
    assert moments(finished) == [("started", 0), ("progress", 0), ("finished", 12)]
    assert finished.reports[1].evaluation is not None
    assert finished.last.evaluation is not None
    assert finished.last.checkpoint is not None
    assert finished.last.tokens == 12 * STEP_TOKENS


def test_every_step_is_recorded_once(finished: Finished):
    scalars, router = finished.table("scalars"), finished.table("router")
    assert scalars["step"].to_pylist() == list(range(1, 13))
    assert scalars["tokens"].to_pylist() == [step * STEP_TOKENS for step in range(1, 13)]
    assert router["step"].to_pylist() == [step for step in range(1, 13) for _ in range(2)]
    assert router["layer"].to_pylist() == [0, 1] * 12
    assert scalars.column_names == ["step", "tokens", "time_ms", *SCALARS]
    assert router.column_names == ["step", "tokens", "time_ms", "layer", *ROUTER_SCALARS, "router/load"]


def test_loads_are_those_of_the_whole_step_and_agree_with_the_metrics(finished: Finished):
    router = finished.table("router")
    loads_E = np.array(router["router/load"].to_pylist())
    assert (loads_E.sum(axis=1) == STEP_TOKENS * 2).all()
    np.testing.assert_allclose(router["router/max_violation"].to_numpy(), max_violation(loads_E), rtol=1e-6)


def test_training_lowers_the_loss_of_every_domain(tmp_path: Path):
    finished = run_training(train_config(num_steps=60), tmp_path)
    summary = finished.last.summary
    assert summary is not None
    assert summary.initial_bits_per_byte.keys() == summary.bits_per_byte.keys() == {"legal", "speeches", "all"}
    for domain, before in summary.initial_bits_per_byte.items():
        assert summary.bits_per_byte[domain] < 0.9 * before
    losses = finished.table("scalars")["train/loss"].to_numpy()
    assert summary.final_loss == pytest.approx(losses[-3:].mean())
    assert summary.final_loss < losses[0] - 0.5


def test_all_is_the_mean_over_domains(finished: Finished):
    evaluation = finished.last.evaluation
    assert evaluation is not None
    assert evaluation["all"].bits_per_byte == pytest.approx(
        (evaluation["legal"].bits_per_byte + evaluation["speeches"].bits_per_byte) / 2
    )
    recorded = finished.table("evaluations")
    assert recorded["step"].to_pylist() == [0] * 3 + [12] * 3
    assert recorded["domain"].to_pylist() == ["legal", "speeches", "all"] * 2
    assert recorded["eval/bits_per_byte"].to_pylist()[5] == evaluation["all"].bits_per_byte


def test_summary_names_the_worst_layer_averaged_over_the_last_steps(tmp_path: Path):
    finished = run_training(train_config(num_steps=20), tmp_path)
    summary, router = finished.last.summary, finished.table("router").to_pandas()
    assert summary is not None
    means = router[router["step"] > 18].groupby("layer")["router/max_violation"].mean()
    assert summary.worst_max_violation == pytest.approx(means.max(), rel=1e-6)
    assert summary.worst_max_violation_layer == means.idxmax()
    assert summary.domain_information is not None
    assert summary.domain_information.keys() == {"trained", "untrained", "shuffled"}
    assert all(len(layers) == 2 for layers in summary.domain_information.values())


def test_what_experts_do_not_compute_is_recorded(tmp_path: Path):
    model = train_config().model.model_dump(mode="json")
    model["moe"] |= {"capacity": {"factor": 0.75, "drop": "position"}, "num_null_experts": 2}
    router = run_training(train_config(num_steps=2, model=model), tmp_path).table("router")
    loads_E = np.array(router["router/load"].to_pylist())
    null_share = router["router/null_share"].to_numpy()
    assert loads_E.shape == (2 * 2, 4)
    np.testing.assert_allclose(loads_E.sum(axis=1) / (2 * STEP_TOKENS), 1 - null_share, rtol=1e-6)
    assert (null_share > 0).all()
    drop_rate, uncovered = router["router/drop_rate"].to_numpy(), router["router/uncovered_rate"].to_numpy()
    assert ((drop_rate > 0) & (drop_rate < 1)).all()
    assert (uncovered > 0).all()
    # Two micro-batches of 64 tokens leave 24 slots per expert each; what an expert is asked beyond those is dropped.
    computed = loads_E.sum(axis=1) * (1 - drop_rate)
    assert (computed <= np.minimum(loads_E, 2 * 24).sum(axis=1) + 1e-3).all()
    assert (uncovered * STEP_TOKENS >= STEP_TOKENS - computed - 1e-3).all()


def test_dropless_run_records_that_nothing_is_dropped(finished: Finished):
    router = finished.table("router")
    for name in ("router/drop_rate", "router/uncovered_rate", "router/null_share"):
        assert not router[name].to_numpy().any()


def test_dense_model_trains_without_router_figures(tmp_path: Path):
    finished = run_training(train_config(num_steps=4, model={**train_config().model.model_dump(), **DENSE}), tmp_path)
    assert finished.last.kind == "finished"
    assert finished.last.summary is not None
    assert finished.last.summary.worst_max_violation is None
    assert finished.last.summary.domain_information is None
    assert not list((tmp_path / "telemetry").glob("router-*"))


def test_rungs_come_with_their_evaluation_and_checkpoint_in_one_report(tmp_path: Path):
    finished = run_training(train_config(), tmp_path, rung_tokens=(4 * STEP_TOKENS, 8 * STEP_TOKENS))
    rungs = [report for report in finished.reports if report.rung is not None]
    assert [(report.rung, report.step) for report in rungs] == [(0, 4), (1, 8)]
    for report in rungs:
        assert report.kind == "progress"
        assert report.evaluation is not None
        assert report.checkpoint is not None
        assert report.checkpoint.step == report.step
        assert Path(report.checkpoint.folder).is_dir()


def test_evaluations_and_checkpoints_happen_at_their_own_cadence(tmp_path: Path):
    loop = {"evaluate_every_tokens": 3 * STEP_TOKENS, "checkpoint_every_tokens": 4 * STEP_TOKENS}
    finished = run_training(train_config(num_steps=9, loop=loop), tmp_path)
    assert [report.step for report in finished.reports if report.evaluation] == [0, 3, 6, 9]
    assert [report.step for report in finished.reports if report.checkpoint] == [4, 8, 9]


def test_run_stops_at_its_tokens_with_a_checkpoint(tmp_path: Path):
    finished = run_training(train_config(), tmp_path, stop_at_tokens=5 * STEP_TOKENS, rung_tokens=(5 * STEP_TOKENS,))
    assert moments(finished)[-2:] == [("progress", 5), ("stopped", 5)]
    assert finished.reports[-2].rung == 0
    assert finished.last.checkpoint == finished.reports[-2].checkpoint
    assert finished.last.summary is None


def test_run_ends_at_a_rung_in_seconds_and_goes_on_from_there(tmp_path: Path):
    # Any step takes longer than a nanosecond.
    timed = {"rung_seconds": (1e-9, 1e9), "stop_at_timed_rung": 0}
    paused = run_training(train_config(), tmp_path / "first", **timed)
    assert [(report.kind, report.step, report.rung) for report in paused.reports if report.kind != "started"] == [
        ("progress", 0, None),
        ("progress", 1, 0),
        ("stopped", 1, None),
    ]
    assert paused.last.checkpoint is not None
    going_on = run_training(
        train_config(),
        tmp_path / "second",
        resume_from=paused.last.checkpoint.folder,
        rung_seconds=timed["rung_seconds"],
        first_timed_rung=1,
        stop_at_timed_rung=1,
    )
    assert going_on.last.kind == "finished"
    assert {report.rung for report in going_on.reports} == {None}


def test_stop_file_ends_the_run_after_the_step_with_a_checkpoint(tmp_path: Path):
    class StopsAtFirstRung:
        def __init__(self) -> None:
            self.reports: list[RunReport] = []

        def report(self, report: RunReport) -> None:
            self.reports.append(report)

        def progress(self, progress: Progress) -> None:
            pass

        def should_stop(self) -> bool:
            return any(report.rung is not None for report in self.reports)

    reporter = StopsAtFirstRung()
    result = train(
        train_config(),
        folder=tmp_path,
        reporter=reporter,
        world=World(),
        cache_folder=default_cache_dir(),
        rung_tokens=(3 * STEP_TOKENS,),
    )
    assert (result.kind, result.step, result.checkpoint.step) == ("stopped", 3, 3)
    assert [report.kind for report in reporter.reports] == ["started", "progress", "progress", "stopped"]


def test_micro_batches_do_not_change_the_gradient(tmp_path: Path):
    # Without balancing losses, which are means over micro-batches, only the order of float32 sums differs.
    model = train_config().model.model_dump(mode="json")
    model["moe"]["balancing"] = [{"kind": "loss_free_bias", "update_rate": 0.01}]
    losses = []
    for micro_batch_size in (1, 2, 8):
        folder = tmp_path / str(micro_batch_size)
        config = train_config(num_steps=6, model=model, loop={"micro_batch_size": micro_batch_size})
        losses.append(run_training(config, folder).table("scalars")["train/loss"].to_numpy())
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-4)
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-4)


@pytest.mark.parametrize("log_every_steps", [1, 3, 100])
def test_logging_interval_changes_nothing_but_when_the_host_looks(tmp_path: Path, log_every_steps: int):
    runs = []
    for every in (5, log_every_steps):
        config = train_config(num_steps=7, loop={"log_every_steps": every})
        runs.append(run_training(config, tmp_path / str(every)).table("scalars"))
    assert runs[0]["train/loss"].to_pylist() == runs[1]["train/loss"].to_pylist()
    assert runs[0]["step"].to_pylist() == runs[1]["step"].to_pylist()


def test_learning_rate_recorded_is_that_of_the_schedule(finished: Finished):
    config = train_config(num_steps=12)
    schedule = build_schedule(config.schedule, num_steps=12)
    expected = [config.optimizer.lr * schedule(step) for step in range(12)]
    assert finished.table("scalars")["optimizer/lr"].to_pylist() == expected


def test_clipping_is_of_the_recorded_norm(tmp_path: Path):
    norms = []
    for limit in (None, 1e-3):
        config = train_config(num_steps=2, loop={"max_grad_norm": limit})
        norms.append(run_training(config, tmp_path / str(limit)).table("scalars")["optimizer/grad_norm"].to_pylist())
    assert norms[0][0] == norms[1][0] > 1e-2


def test_divergence_ends_the_run_with_the_step_and_records_up_to_it(tmp_path: Path):
    finished = run_training(train_config(num_steps=40, **DIVERGING), tmp_path)
    losses = finished.table("scalars")["train/loss"].to_numpy()
    grad_norms = finished.table("scalars")["optimizer/grad_norm"].to_numpy()
    assert finished.last.kind == "failed"
    assert finished.last.cause == "diverged"
    assert finished.last.message is not None
    assert f"step {len(losses)}:" in finished.last.message
    finite = np.isfinite(losses) & np.isfinite(grad_norms)
    assert finite[:-1].all()
    assert not finite[-1]


def test_loss_free_bias_moves_against_the_load_of_the_whole_step(tmp_path: Path):
    finished = run_training(train_config(num_steps=1), tmp_path)
    weights, loads_LE = finished.weights(), np.array(finished.table("router")["router/load"].to_pylist())
    for layer in range(2):
        direction_E = np.sign(loads_LE[layer].mean() - loads_LE[layer])
        expected_E = 0.01 * (direction_E - direction_E.mean())
        (name,) = [name for name in weights if name.endswith("selection_bias_E") and f".{layer}." in name]
        np.testing.assert_allclose(weights[name].numpy(), expected_E, atol=1e-7)


def test_progress_file_shows_the_last_step(finished: Finished):
    progress = read_progress(finished.folder)
    assert progress is not None
    assert (progress.step, progress.num_steps, progress.tokens) == (12, 12, 12 * STEP_TOKENS)
    assert finished.last.evaluation is not None
    assert progress.bits_per_byte == finished.last.evaluation["all"].bits_per_byte
    assert progress.loss == finished.table("scalars")["train/loss"].to_pylist()[-1]


def test_slow_reporter_changes_no_throughput(tmp_path: Path):
    """Time spent in reports, evaluations and checkpoints is not training time."""
    waits_s: list[float] = []

    class Slow:
        def report(self, report: RunReport) -> None:
            started_s = time.perf_counter()
            while time.perf_counter() - started_s < 0.2:
                pass
            waits_s.append(time.perf_counter() - started_s)

        def progress(self, progress: Progress) -> None:
            pass

        def should_stop(self) -> bool:
            return False

    started_s = time.perf_counter()
    rungs = tuple(step * STEP_TOKENS for step in range(1, 9))
    result = train(
        train_config(num_steps=8),
        folder=tmp_path,
        reporter=Slow(),
        world=World(),
        cache_folder=default_cache_dir(),
        rung_tokens=rungs,
    )
    elapsed_s = time.perf_counter() - started_s
    assert result.summary is not None
    # An upper bound that holds however slow the machine: what was not waited for.
    assert result.summary.training_duration_s <= elapsed_s - sum(waits_s[:-1])
    durations_s = read_chunks(tmp_path, "scalars")["throughput/step_duration_s"].to_numpy()
    assert durations_s.sum() == pytest.approx(result.summary.training_duration_s, rel=0.5)


class _NoHostRead(TorchDispatchMode):
    """Fails where a value is read on the host, which on a GPU would wait for everything queued before it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert "_local_scalar_dense" not in name, f"{name} waits for the device"
        assert "aten.nonzero" not in name, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def test_step_reads_nothing_on_the_host():
    config, world = train_config(), World()
    data = open_data(config, cache_folder=default_cache_dir())
    model = build_model(config.model, seed=0, device=world.device)
    optimizer = build_optimizer(config.optimizer, model)
    step = TrainStep(
        config,
        model=model,
        optimizer=optimizer,
        update=Update(config.loop, model=model, optimizer=optimizer, device=world.device),
        schedule=build_schedule(config.schedule, num_steps=config.num_steps),
        balancers=build_balancers(config.model.moe),
        precision=build_precision(config.precision, world.device),
        mixture=data.mixture,
        world=world,
    )
    buffer = StepBuffer(log_every_steps=10, num_layers=2, num_experts=4, step_tokens=config.step_tokens, world=world)
    torch.manual_seed(0)
    with _NoHostRead():
        for number in (1, 2, 3):
            step(number, buffer)
    assert buffer.num_rows == 3
