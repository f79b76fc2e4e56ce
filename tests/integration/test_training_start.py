"""Runs that start from weights on disk, whole or in part: what they begin with, record, resume and refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.models import moe_fields
from tests.support.training import STEP_TOKENS, Finished, exact_columns, run_training, train_config
from trainer.config import TrainConfig
from trainer.interop.exporting import export_hugging_face
from trainer.interop.importing import import_hugging_face
from trainer.start.source import files_sha256

PARTS = ("all", "non_moe", "moe", "attention", "ffn")


def config(**fields: Any) -> TrainConfig:
    """Returns a run of 4 steps on a dense layer and a mixture of experts whose selection biases move."""
    model = train_config().model.model_dump(mode="json")
    model["moe"] |= {"num_dense_layers": 1, "balancing": [{"kind": "loss_free_bias", "update_rate": 0.01}]}
    return train_config(**({"num_steps": 4, "model": model} | fields))


def dense_config(**fields: Any) -> TrainConfig:
    model = train_config().model.model_dump(mode="json") | {"moe": None}
    return train_config(**({"num_steps": 4, "model": model} | fields))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_training(config(), tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def pretrained_dense(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_training(dense_config(), tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory, pretrained_dense: Finished) -> Path:
    folder = tmp_path_factory.mktemp("hugging_face") / "llama"
    export_hugging_face(pretrained_dense.folder, folder)
    return folder


def assert_starts_as(finished: Finished, source: Finished, *, relative: float = 0.0) -> None:
    """Asserts that the run ended well and that its first evaluation is the last one of the source."""
    assert finished.last.kind == "finished", finished.last.message
    assert finished.last.summary is not None
    assert source.last.summary is not None
    found, expected = finished.last.summary.initial_bits_per_byte, source.last.summary.bits_per_byte
    assert found == (pytest.approx(expected, rel=relative) if relative else expected)


def recorded(finished: Finished) -> dict[str, Any]:
    return json.loads((finished.folder / "environment.json").read_text())["start"]


def test_checkpoint_is_gone_on_from_with_a_new_optimizer(tmp_path: Path, pretrained: Finished):
    start = {"kind": "checkpoint", "path": str(pretrained.folder)}
    finished = run_training(config(start=start), tmp_path)
    assert_starts_as(finished, pretrained)
    assert finished.last.step == 4
    report = finished.last.summary and finished.last.summary.start
    assert report is not None
    assert report.kind == "checkpoint"
    assert report.path == str(pretrained.folder)
    assert report.origin == f"run {pretrained.folder.name}, step 4"
    assert recorded(finished) == report.model_dump()
    assert pretrained.last.checkpoint is not None
    assert report.sha256 == files_sha256([Path(pretrained.last.checkpoint.folder) / "model.safetensors"])


def test_run_from_scratch_records_no_start(pretrained: Finished):
    assert recorded(pretrained) is None
    assert pretrained.last.summary is not None
    assert pretrained.last.summary.start is None


def test_hugging_face_folder_and_its_import_start_alike(tmp_path: Path, pretrained_dense: Finished, hugging_face: Path):
    import_hugging_face(hugging_face, tmp_path / "imported")
    by_folder = run_training(
        dense_config(start={"kind": "hugging_face", "path": str(hugging_face)}), tmp_path / "folder"
    )
    by_import = run_training(
        dense_config(start={"kind": "checkpoint", "path": str(tmp_path / "imported")}), tmp_path / "import"
    )
    assert_starts_as(by_folder, pretrained_dense)
    assert all(torch.equal(tensor, by_import.weights()[name]) for name, tensor in by_folder.weights().items())
    assert recorded(by_folder)["sha256"] == files_sha256([hugging_face / "model.safetensors"])
    assert recorded(by_folder)["origin"] == "Hugging Face folder llama (llama)"


@pytest.mark.parametrize("source", ["checkpoint", "hugging_face"])
def test_upcycled_model_starts_as_the_dense_one(
    tmp_path: Path, pretrained_dense: Finished, hugging_face: Path, source: str
):
    path = pretrained_dense.folder if source == "checkpoint" else hugging_face
    model = dense_config().model.model_dump(mode="json")
    model["moe"] = moe_fields(hidden_dim=model["hidden_dim"] // 2, num_experts=8)
    start = {"kind": "upcycle", "path": str(path), "source": source, "method": {"kind": "granular"}}
    finished = run_training(train_config(num_steps=2, model=model, start=start), tmp_path)
    assert_starts_as(finished, pretrained_dense, relative=1e-5)


def test_resume_is_exact_and_never_reads_the_start_again(tmp_path: Path, pretrained: Finished):
    source = tmp_path / "source"
    shutil.copytree(pretrained.folder, source)
    fields = config(start={"kind": "checkpoint", "path": str(source)}, trained="attention", optimizer={"kind": "muon"})
    whole = run_training(fields, tmp_path / "whole")
    stopped = run_training(fields, tmp_path / "run", stop_at_tokens=2 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    shutil.rmtree(source)
    resumed = run_training(fields, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert_same_tensors(resumed.weights(), whole.weights())
    assert_same_tensors(resumed.optimizer(), whole.optimizer())
    for kind in ("scalars", "router", "evaluations"):
        assert exact_columns(resumed.table(kind)).equals(exact_columns(whole.table(kind)))
    assert recorded(resumed) == recorded(whole)
    assert resumed.last.summary is not None
    assert whole.last.summary is not None
    assert resumed.last.summary.start == whole.last.summary.start
    assert run_training(fields, tmp_path / "again").last.kind == "failed"  # only the first start needs it


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("part", PARTS)
def test_trained_part_changes_and_the_rest_does_not(tmp_path: Path, pretrained: Finished, part: str, optimizer: str):
    """Selection biases belong to the mixture of experts."""
    start = {"kind": "checkpoint", "path": str(pretrained.folder)}
    finished = run_training(config(num_steps=2, start=start, trained=part, optimizer={"kind": optimizer}), tmp_path)
    assert finished.last.kind == "finished", finished.last.message
    before, after = pretrained.weights(), finished.weights()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if is_of(part, name)}
    held = {name.rpartition("/")[0] for name in finished.optimizer()}
    assert held == {name for name in changed if not name.endswith("selection_bias_E")}


def is_of(part: str, name: str) -> bool:
    """Whether a tensor of `config` is of the part: its layer 0 is dense, its layer 1 a mixture of experts."""
    is_moe = name.startswith("blocks.1.feed_forward.")
    return {
        "all": True,
        "moe": is_moe,
        "non_moe": not is_moe,
        "attention": ".attention." in name,
        "ffn": name.startswith("blocks.0.feed_forward."),
    }[part]


def refusal(finished: Finished) -> str:
    """Returns the message of a run that failed before its first step, without a trace of one."""
    assert (finished.last.kind, finished.last.cause, finished.last.step) == ("failed", "error", 0)
    assert not (finished.folder / "checkpoints").exists()
    return finished.last.message or ""


def test_missing_path_is_a_failure_and_not_a_lost_run(tmp_path: Path):
    start = {"kind": "checkpoint", "path": str(tmp_path / "nowhere")}
    assert "nowhere is no folder on this machine" in refusal(run_training(config(start=start), tmp_path / "run"))


def test_run_of_a_service_starts_from_its_home_alone(tmp_path: Path, pretrained: Finished):
    home = pretrained.folder.parent
    inside = config(num_steps=1, start={"kind": "checkpoint", "path": pretrained.folder.name})
    finished = run_training(inside, tmp_path / "inside", start_root=str(home))
    assert_starts_as(finished, pretrained)
    assert recorded(finished)["path"] == pretrained.folder.name
    absolute = config(start={"kind": "checkpoint", "path": str(pretrained.folder)})
    message = refusal(run_training(absolute, tmp_path / "absolute", start_root=str(home)))
    assert "is absolute" in message
    assert str(home) in message


def test_folder_without_weights_is_refused(tmp_path: Path):
    for kind, message in (("checkpoint", "nothing to start from"), ("hugging_face", "config.json is missing")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        start = {"kind": kind, "path": str(tmp_path / "empty")}
        assert message in refusal(run_training(config(start=start), tmp_path / kind))


def test_weights_are_held_to_their_sha256(tmp_path: Path, pretrained: Finished, hugging_face: Path):
    assert pretrained.last.checkpoint is not None
    checkpoint = Path(pretrained.last.checkpoint.folder)
    start = {"kind": "checkpoint", "path": str(checkpoint), "sha256": files_sha256([checkpoint / "model.safetensors"])}
    assert_starts_as(run_training(config(num_steps=1, start=start), tmp_path / "right"), pretrained)
    message = refusal(run_training(config(start=start | {"sha256": "0" * 64}), tmp_path / "wrong"))
    assert f"their sha256 is {start['sha256']}, start.sha256 is {'0' * 64}" in message
    theirs = {"kind": "hugging_face", "path": str(hugging_face), "sha256": "0" * 64}
    assert "holds other weights" in refusal(run_training(dense_config(start=theirs), tmp_path / "theirs"))


def test_altered_weights_are_refused(tmp_path: Path, pretrained: Finished):
    shutil.copytree(pretrained.folder, tmp_path / "source")
    (weights,) = (tmp_path / "source").glob("checkpoints/*/model.safetensors")
    tensors = load_file(weights)
    tensors["final_norm.gain"] += 1.0
    save_file(tensors, weights)
    start = {"kind": "checkpoint", "path": str(weights.parent)}
    assert "does not have the checksum" in refusal(run_training(config(start=start), tmp_path / "run"))


def test_other_model_is_refused_unless_it_is_meant(tmp_path: Path, pretrained: Finished):
    start = {"kind": "checkpoint", "path": str(pretrained.folder)}
    model = config().model.model_dump(mode="json")
    model["moe"]["top_k"] = 1
    other = config(num_steps=1, model=model, start=start)
    message = refusal(run_training(other, tmp_path / "refused"))
    assert "model.moe.top_k: weights 2, this run 1" in message
    assert "start.changed" in message
    meant = config(num_steps=1, model=model, start=start | {"changed": ["model.moe.top_k"]})
    assert run_training(meant, tmp_path / "meant").last.kind == "finished"
    model["moe"] |= {"top_k": 2, "hidden_dim": 24}
    wider = config(model=model, start=start | {"changed": ["model.moe"]})
    assert "has shape (4, 16, 32), the model (4, 24, 32)" in refusal(run_training(wider, tmp_path / "wider"))


def test_selection_biases_are_not_thrown_away(tmp_path: Path, pretrained: Finished):
    start = {"kind": "checkpoint", "path": str(pretrained.folder)}
    model = config().model.model_dump(mode="json")
    model["moe"]["balancing"] = []
    message = refusal(run_training(config(model=model, start=start), tmp_path))
    assert "unknown blocks.1.feed_forward.selection_bias_E" in message
    assert "needs a balancing method" in message


def test_other_tokens_are_refused_unless_they_are_meant(tmp_path: Path, pretrained: Finished, hugging_face: Path):
    (hugging_face / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    try:
        start = {"kind": "hugging_face", "path": str(hugging_face)}
        message = refusal(run_training(dense_config(start=start), tmp_path / "refused"))
        assert "the tokens of a tokenizer that is none of ours, this run has data.tokenizer='bpe-1024'" in message
        meant = dense_config(num_steps=1, start=start | {"changed": ["data.tokenizer"]})
        assert run_training(meant, tmp_path / "meant").last.kind == "finished"
    finally:
        (tmp_path / "tokenizer.json").rename(hugging_face / "tokenizer.json")
