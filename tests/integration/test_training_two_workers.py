"""Two workers (DistributedDataParallel, gloo) train what one worker trains at the same global batch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.training import STEP_TOKENS, Finished, exact_columns, request, run_training, train_config
from trainer.config import TrainConfig
from trainer.config.run import RunReport, RunRequest
from trainer.data.shards import default_cache_dir
from trainer.replay import ReplayFailed, replay
from trainer.run_folder import write_config

# Not with the scope of a micro-batch, of which two workers have others than one.
BALANCING = [
    {"kind": "loss_free_bias", "update_rate": 0.01},
    {"kind": "load_balancing_loss", "coefficient": 0.1, "scope": "global_batch"},
    {"kind": "group_balancing_loss", "coefficient": 0.1, "num_groups": 2, "scope": "global_batch"},
    {"kind": "sequence_balancing_loss", "coefficient": 0.1},
    {"kind": "router_z_loss", "coefficient": 0.1},
]

_WORKER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from trainer.config.run import RunRequest
from trainer.worker import run
from trainer.world import World

rank, request_file, store_file, reports_file = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{store_file}", rank=rank, world_size=2)
with open(reports_file, "a") as file:
    def report(report):
        file.write(report.model_dump_json() + "\\n")
        file.flush()

    request = RunRequest.model_validate_json(Path(request_file).read_text())
    run(request, report, World.of_process_group(torch.device("cpu")))
dist.destroy_process_group()
"""


def config(**sections: dict[str, Any]) -> TrainConfig:
    model = train_config().model.model_dump(mode="json")
    model["moe"]["balancing"] = BALANCING
    return train_config(**({"num_steps": 10, "model": model} | sections))


def start_two(request: RunRequest, scratch: Path) -> tuple[list[subprocess.Popen[bytes]], list[Path]]:
    """Starts two workers; returns them and the files their reports go to."""
    (scratch / "request.json").write_text(request.model_dump_json())
    (scratch / "store").unlink(missing_ok=True)
    files = [scratch / f"reports-{rank}" for rank in range(2)]
    for file in files:
        file.write_text("")
    arguments = [str(scratch / "request.json"), str(scratch / "store")]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(rank), *arguments, str(files[rank])],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    return workers, files


def reports_in(file: Path) -> list[RunReport]:
    return [RunReport.model_validate_json(line) for line in file.read_text().splitlines()]


def run_two(config: TrainConfig, folder: Path, **fields: Any) -> tuple[Finished, list[int], list[list[RunReport]]]:
    """Runs two workers to their ends; returns the run, exit statuses and the reports of each rank."""
    folder.mkdir(parents=True, exist_ok=True)
    workers, files = start_two(request(config, folder, num_workers=2, **fields), folder.parent)
    for worker in workers:
        worker.communicate(timeout=200)
    reports = [reports_in(file) for file in files]
    return Finished(folder, reports[0]), [worker.returncode for worker in workers], reports


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_training(config(), tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    finished, statuses, reports = run_two(config(), tmp_path_factory.mktemp("two") / "run")
    assert statuses == [0, 0]
    assert reports[1] == [], "rank 0 speaks for a run that goes well"
    return finished


def test_losses_are_those_of_one_worker(one: Finished, two: Finished):
    """Only the order of float32 additions differs: 1e-6 relative in a step, and the updates carry it on."""
    for name in ("train/loss", "train/balancing_loss", "optimizer/grad_norm"):
        expected, found = one.table("scalars")[name].to_numpy(), two.table("scalars")[name].to_numpy()
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=5e-3)


def test_first_steps_loads_are_exactly_those_of_one_worker(one: Finished, two: Finished):
    """Before the first update the weights are the same to the last bit, so are the choices of every token."""
    expected, found = one.table("router"), two.table("router")
    assert found["router/load"].to_pylist()[:2] == expected["router/load"].to_pylist()[:2]
    for name in ("router/token_entropy", "router/z", "router/margin", "router/max_logit"):
        np.testing.assert_allclose(found[name].to_numpy()[:2], expected[name].to_numpy()[:2], rtol=1e-5)


def test_loads_are_summed_over_the_workers(two: Finished):
    loads_E = np.array(two.table("router")["router/load"].to_pylist())
    assert (loads_E.sum(axis=1) == STEP_TOKENS * 2).all()


@pytest.mark.parametrize("scope", ["global_batch", "micro_batch"])
def test_balancing_loss_in_one_micro_batch_of_the_whole_step_needs_the_other_worker(tmp_path: Path, scope: str):
    """One micro-batch per worker: the demand is summed between the forward and the backward pass."""
    model = config().model.model_dump(mode="json")
    model["moe"]["balancing"] = [{"kind": "load_balancing_loss", "coefficient": 0.1, "scope": scope}]
    shared = config(num_steps=1, model=model, loop={"micro_batch_size": 8})
    alone = run_training(shared, tmp_path / "one").table("scalars")["train/balancing_loss"][0].as_py()
    together, statuses, _ = run_two(shared, tmp_path / "two" / "run")
    assert statuses == [0, 0]
    error = abs(together.table("scalars")["train/balancing_loss"][0].as_py() / alone - 1.0)
    assert error < 1e-5 if scope == "global_batch" else error > 1e-4


def test_quantile_biases_are_those_of_one_worker(tmp_path: Path):
    model = config().model.model_dump(mode="json")
    model["moe"]["balancing"] = [{"kind": "quantile_balancing"}]
    shared = config(num_steps=1, model=model)
    alone = run_training(shared, tmp_path / "one").weights()
    together, statuses, _ = run_two(shared, tmp_path / "two" / "run")
    assert statuses == [0, 0]
    names = [name for name in alone if name.endswith("selection_bias_E")]
    assert len(names) == 2
    for name in names:
        assert alone[name].abs().max() > 1e-3
        # A score that rounds otherwise may fall into the next bin.
        np.testing.assert_allclose(together.weights()[name].numpy(), alone[name].numpy(), atol=1e-5)


def test_null_experts_and_drops_are_counted_over_the_workers(tmp_path: Path):
    model = config().model.model_dump(mode="json")
    model["moe"] |= {
        "balancing": [{"kind": "loss_free_bias", "update_rate": 0.01}],
        "num_null_experts": 2,
        "capacity": {"factor": 0.75},
    }
    shared = config(num_steps=1, model=model)
    alone = run_training(shared, tmp_path / "one")
    together, statuses, _ = run_two(shared, tmp_path / "two" / "run")
    assert statuses == [0, 0]
    expected, found = alone.table("router"), together.table("router")
    # A worker's half of the step is one of the two micro-batches of one worker, so capacity lets in the same pairs.
    for name in ("router/load", "router/null_share", "router/drop_rate", "router/uncovered_rate"):
        assert found[name].to_pylist() == expected[name].to_pylist()
    for name in ("router/null_share", "router/drop_rate", "router/uncovered_rate"):
        assert all(0 < rate < 1 for rate in found[name].to_pylist())
    names = [name for name in alone.weights() if name.endswith("selection_bias_E")]
    assert len(names) == 2
    for name in names:
        assert alone.weights()[name].shape == (4 + 2,)
        np.testing.assert_array_equal(together.weights()[name].numpy(), alone.weights()[name].numpy())


def test_experts_that_choose_within_sequences_choose_alike_in_two_workers(tmp_path: Path):
    """With the predictor's loss, whose gradient both workers have a part in."""
    model = config().model.model_dump(mode="json")
    model["moe"] |= {"router": {"kind": "expert_choice", "scope": "sequence", "predictor": True}, "balancing": []}
    shared = config(num_steps=3, model=model)
    alone = run_training(shared, tmp_path / "one")
    together, statuses, _ = run_two(shared, tmp_path / "two" / "run")
    assert statuses == [0, 0]
    for name in ("train/loss", "train/balancing_loss", "optimizer/grad_norm"):
        expected, found = alone.table("scalars")[name].to_numpy(), together.table("scalars")[name].to_numpy()
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=5e-3)
    names = [name for name in alone.weights() if "predictor" in name]
    assert len(names) == 4  # a matrix and a bias in each of two layers
    for name in names:
        # Adam's first steps are those of signs, and a gradient near 0 may have either.
        differs = (together.weights()[name] - alone.weights()[name]).abs() > 1e-4
        assert differs.float().mean() < 0.05


def test_workers_clip_and_skip_the_same_steps(tmp_path: Path):
    """Each decides for itself from what all have in common. Had one updated where the other had not, the gradients that
    they average from then on would be of two models, and no longer those of one worker."""
    loop = {
        "skip_spikes": {"num_sigmas": 1.0, "window": 6, "min_window": 3},
        "clipping": {"kind": "adagc", "warmup_steps": 2},
    }
    flat = {"kind": "constant", "warmup_fraction": 0.0}
    together, statuses, _ = run_two(config(loop=loop, schedule=flat), tmp_path / "two" / "run")
    assert statuses == [0, 0]
    scalars = together.table("scalars")
    alone = run_training(config(loop=loop, schedule=flat), tmp_path / "one").table("scalars")
    assert 1 <= sum(scalars["train/skipped_step"].to_pylist()) < 8
    assert scalars["train/skipped_step"].to_pylist() == alone["train/skipped_step"].to_pylist()
    np.testing.assert_allclose(scalars["train/loss"].to_numpy(), alone["train/loss"].to_numpy(), rtol=1e-3)


def test_frozen_part_rests_with_two_workers_and_the_trained_one_is_that_of_one(tmp_path: Path):
    shared = config(num_steps=2, trained="moe")
    alone = run_training(shared, tmp_path / "one").weights()
    together, statuses, _ = run_two(shared, tmp_path / "two" / "run")
    assert statuses == [0, 0]
    for name, expected in alone.items():
        found = together.weights()[name]
        if ".feed_forward." in name:
            np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-3)  # Adam's first steps are signs
        else:
            assert torch.equal(found, expected)


def test_every_step_is_written_once_by_rank_0(two: Finished):
    assert two.table("scalars")["step"].to_pylist() == list(range(1, 11))
    assert [report.kind for report in two.reports] == ["started", "progress", "finished"]


def test_evaluation_is_that_of_one_worker(one: Finished, two: Finished):
    expected, found = one.reports[1].evaluation, two.reports[1].evaluation
    assert expected is not None
    assert found is not None
    for domain, figures in expected.items():
        assert found[domain].bits_per_byte == pytest.approx(figures.bits_per_byte, rel=1e-6)


def test_two_workers_resume_exactly(two: Finished, tmp_path: Path):
    stopped, statuses, _ = run_two(config(), tmp_path / "run", stop_at_tokens=4 * STEP_TOKENS)
    assert statuses == [0, 0]
    assert stopped.last.kind == "stopped"
    assert stopped.last.checkpoint is not None
    resumed, statuses, _ = run_two(config(), tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert statuses == [0, 0]
    for kind in ("scalars", "router", "evaluations"):
        assert exact_columns(resumed.table(kind)).equals(exact_columns(two.table(kind)))


def test_run_of_two_workers_is_replayed_by_two(two: Finished, tmp_path: Path):
    """By one if that is asked for, which is then said to be another environment."""
    (tmp_path / "scratch").mkdir()
    verdict = replay(two.folder, tmp_path / "scratch", cache_folder=default_cache_dir())
    assert verdict.identical, verdict.difference
    assert "world_size" not in {each.name for each in verdict.environment}
    assert (verdict.first_step, verdict.last_step) == (1, 10)
    assert verdict.num_checkpoints == len(list((two.folder / "checkpoints").iterdir())) > 0

    (tmp_path / "alone").mkdir()
    verdict = replay(two.folder, tmp_path / "alone", cache_folder=default_cache_dir(), num_workers=1, last_step=1)
    assert ("world_size", 2, 1) in verdict.environment


def test_replay_by_two_that_fails_says_why(two: Finished, tmp_path: Path):
    folder = shutil.copytree(two.folder, tmp_path / "run")
    write_config(folder, config(loop={"global_batch_size": 9, "micro_batch_size": 3}))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ReplayFailed, match=r"loop\.global_batch_size=9"):
        replay(folder, tmp_path / "scratch", cache_folder=default_cache_dir())


def test_stop_file_stops_both_at_the_same_step(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    finished, statuses, _ = run_two(config(), tmp_path / "run")
    assert statuses == [0, 0]
    assert finished.last.kind == "stopped"


def test_failure_ends_every_worker_and_is_spoken_of(tmp_path: Path):
    """A batch that three ways cannot be divided: every rank fails for the same reason, says so and exits."""
    odd = config(loop={"global_batch_size": 9, "micro_batch_size": 3})
    _, statuses, reports = run_two(odd, tmp_path / "run")
    assert all(status != 0 for status in statuses)
    for rank in range(2):
        assert (reports[rank][-1].kind, reports[rank][-1].cause) == ("failed", "error")
        assert "loop.global_batch_size=9" in (reports[rank][-1].message or "")


def test_worker_that_is_killed_is_no_verdict_on_the_run(tmp_path: Path):
    """The survivor ends with an error and without a `failed` report: the run is lost and may be tried again."""
    folder = tmp_path / "run"
    folder.mkdir()
    long = config(num_steps=2000, loop={"log_every_steps": 1})
    workers, files = start_two(request(long, folder, num_workers=2), tmp_path)
    while not (folder / "progress.json").exists():  # both are in the loop; pytest's timeout bounds the wait
        assert workers[0].poll() is None, workers[0].communicate()
    workers[1].kill()
    for worker in workers:
        worker.communicate(timeout=120)
    assert workers[0].returncode != 0
    assert [report.kind for report in reports_in(files[0])] == ["started", "progress"]
