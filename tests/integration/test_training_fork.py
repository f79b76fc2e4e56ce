"""Forks: without a change the parent's own steps, bit for bit; with one, the same until it counts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import STEP_TOKENS, Finished, exact_columns, run_training, train_config
from trainer.config import TrainConfig
from trainer.config.fork import ForkRefused
from trainer.config_file import read_config
from trainer.errors import CheckpointInvalid
from trainer.fork import local_fork

NUM_STEPS = 16
AT = 8
LOOP = {"checkpoint_every_tokens": 4 * STEP_TOKENS, "evaluate_every_tokens": 4 * STEP_TOKENS, "log_every_steps": 3}


def config(**sections: Any) -> TrainConfig:
    return train_config(num_steps=NUM_STEPS, **{"loop": LOOP} | sections)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_training(config(), tmp_path_factory.mktemp("parent"))


def fork(parent: Finished, folder: Path, changes: dict[str, Any] | None = None, **fields: Any) -> Finished:
    return run_training(local_fork(parent.folder, step=AT, changes=changes or {}), folder, **fields)


def steps_after(run: Finished, step: int) -> Any:
    table = exact_columns(run.table("scalars"))
    return table.filter([value > step for value in table["step"].to_pylist()])


def same_weights(one: Finished, other: Finished) -> bool:
    return all(torch.equal(tensor, other.weights()[name]) for name, tensor in one.weights().items())


def test_fork_without_a_change_is_the_parent_bit_for_bit(parent: Finished, tmp_path: Path):
    forked = fork(parent, tmp_path)
    assert steps_after(forked, 0).equals(steps_after(parent, AT))
    for mine, theirs in ((forked.weights(), parent.weights()), (forked.optimizer(), parent.optimizer())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert forked.last.evaluation == parent.last.evaluation
    assert forked.last.summary is not None
    assert parent.last.summary is not None
    times = {"tokens_per_s", "training_duration_s", "start"}
    assert forked.last.summary.model_dump(exclude=times) == parent.last.summary.model_dump(exclude=times)


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"kind": "muon", "lr": 0.01}},
        {"optimizer": {"kind": "soap", "lr": 0.01, "refresh_every": 3}},
        {"loop": LOOP | {"max_grad_norm": None, "clipping": {"kind": "adagc", "warmup_steps": 3}}},
        {"loop": LOOP | {"skip_spikes": {"window": 8, "min_window": 4, "num_sigmas": 1.0}}},
    ],
    ids=["muon", "counting-groups", "clipping", "skipping"],
)
def test_whatever_has_a_state_of_its_own_is_forked_exactly(sections: dict[str, Any], tmp_path: Path):
    parent = run_training(config(**sections), tmp_path / "parent")
    forked = fork(parent, tmp_path / "fork")
    assert steps_after(forked, 0).equals(steps_after(parent, AT))
    assert same_weights(forked, parent)


def test_changed_rate_counts_from_the_first_step_of_the_fork(parent: Finished, tmp_path: Path):
    forked = fork(parent, tmp_path, {"optimizer.lr": 0.001})
    ours, theirs = steps_after(forked, 0), steps_after(parent, AT)
    assert ours["optimizer/lr"].to_pylist() == pytest.approx([lr / 10 for lr in theirs["optimizer/lr"].to_pylist()])
    # The first batch is seen by the weights of the checkpoint: the update is what differs.
    assert ours["train/loss"][0] == theirs["train/loss"][0]
    assert ours["optimizer/grad_norm"][0] == theirs["optimizer/grad_norm"][0]
    assert ours["train/loss"][1] != theirs["train/loss"][1]


def test_changed_decay_and_coefficient_are_used(parent: Finished, tmp_path: Path):
    """Options of the optimizer's groups are stored in the checkpoint as well: those of the config count."""
    plain = fork(parent, tmp_path / "plain")
    for name, changes in (
        ("decay", {"optimizer.weight_decay": 1.0}),
        ("beta", {"optimizer.beta1": 0.5}),
        ("coefficient", {"model.moe.balancing.0.coefficient": 1.0}),
        ("mixture", {"data.mixture.legal": 5.0}),
    ):
        assert not same_weights(fork(parent, tmp_path / name, changes), plain), name


def test_longer_budget_trains_on_and_averages_its_own_last_steps(tmp_path: Path):
    parent = run_training(config(schedule={"kind": "constant"}), tmp_path / "parent")
    last = local_fork(parent.folder, step=NUM_STEPS, changes={"loop.budget_tokens": 2 * NUM_STEPS * STEP_TOKENS})
    forked = run_training(last, tmp_path / "fork")
    assert forked.last.kind == "finished"
    assert forked.last.step == 2 * NUM_STEPS
    losses = forked.table("scalars")["train/loss"].to_pylist()
    assert forked.last.summary is not None
    assert forked.last.summary.final_loss == pytest.approx(sum(losses[-2:]) / 2)  # 5 % of 32 steps, rounded up


def test_clipping_of_another_kind_begins_anew(parent: Finished, tmp_path: Path):
    zclip = {"kind": "zclip", "warmup_steps": 2, "threshold": 0.1}
    forked = fork(parent, tmp_path, {"loop.max_grad_norm": None, "loop.clipping": zclip})
    assert forked.optimizer()["update.clipper.num_norms"].item() == NUM_STEPS - AT


def test_fork_is_resumed_exactly_and_without_its_parent(tmp_path: Path):
    parent = run_training(config(), tmp_path / "parent")
    whole = fork(parent, tmp_path / "whole", {"optimizer.lr": 0.002})
    stopped = fork(parent, tmp_path / "run", {"optimizer.lr": 0.002}, stop_at_tokens=11 * STEP_TOKENS)
    forked = local_fork(parent.folder, step=AT, changes={"optimizer.lr": 0.002})
    shutil.rmtree(parent.folder)
    assert stopped.last.checkpoint is not None
    resumed = run_training(forked, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert same_weights(resumed, whole)
    assert steps_after(resumed, 0).equals(steps_after(whole, 0))
    assert resumed.last.summary is not None
    assert resumed.last.summary.start is not None
    assert (resumed.last.summary.start.kind, resumed.last.summary.start.sha256) == ("fork", forked.start.sha256)  # type: ignore[union-attr]


def test_where_a_fork_comes_from_is_on_its_record(parent: Finished, tmp_path: Path):
    fork(parent, tmp_path)
    start = json.loads((tmp_path / "environment.json").read_text())["start"]
    assert start["kind"] == "fork"
    assert start["origin"] == f"run {parent.folder.name}, step {AT}"


@pytest.mark.parametrize("damage", ["gone", "altered", "another"])
def test_checkpoint_that_is_not_the_one_meant_ends_the_run_before_its_first_step(
    parent: Finished, tmp_path: Path, damage: str
):
    copy = shutil.copytree(parent.folder, tmp_path / "parent")
    forked = local_fork(copy, step=AT, changes={})
    path = copy / "checkpoints" / f"step-{AT:08d}"
    if damage == "altered":
        weights = path / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        shutil.rmtree(path)
    if damage == "another":
        shutil.copytree(path.with_name("step-00000004"), path)
    failed = run_training(forked, tmp_path / "fork").last
    assert (failed.kind, failed.step) == ("failed", 0)
    assert failed.message is not None
    expected = {"gone": "StartInvalid", "altered": "model.safetensors", "another": "mean another one"}
    assert expected[damage] in failed.message


def test_step_without_a_checkpoint_and_what_a_fork_cannot_change_are_refused(parent: Finished):
    with pytest.raises(CheckpointInvalid, match="no checkpoint of step 7; it has those of: 4, 8, 12, 16"):
        local_fork(parent.folder, step=7, changes={})
    with pytest.raises(ForkRefused, match=r"model\.dim"):
        local_fork(parent.folder, step=AT, changes={"model.dim": 64})


def test_command_trains_a_fork_of_a_folder(parent: Finished, tmp_path: Path):
    def command(*more: str) -> subprocess.CompletedProcess[str]:
        arguments = [
            sys.executable,
            "-m",
            "trainer",
            "fork",
            str(parent.folder),
            "--at",
            str(AT),
            *more,
            "--threads",
            "1",
        ]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120)

    done = command("--set", "optimizer.lr=1e-3", "--out", str(tmp_path / "fork"))
    assert done.returncode == 0, done.stderr
    config = read_config(tmp_path / "fork" / "fork.yaml")
    assert config == local_fork(parent.folder, step=AT, changes={"optimizer.lr": 0.001})
    assert (tmp_path / "fork" / "checkpoints" / f"step-{NUM_STEPS:08d}").is_dir()
    refused = command("--set", "model.dim=64", "--out", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert "model.dim: 32 in the run, 64 in the fork" in refused.stderr
    assert not (tmp_path / "other").exists()
