"""Starts: what of them a config refuses, and how weights get into a model."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.support.component_configs import config_classes
from tests.support.models import model_config, moe_fields, tiny_model
from tests.support.training import train_config
from trainer.config import TrainConfig
from trainer.config.start import StartConfig
from trainer.interop.errors import StartInvalid
from trainer.start import STARTS
from trainer.start.source import files_sha256
from trainer.start.tensors import put_tensors


def config(start: dict[str, Any], *, moe: dict[str, Any] | None = None) -> TrainConfig:
    return train_config(model=model_config(vocab_size=1024, moe=moe).model_dump(), start=start)


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(STARTS) == set(config_classes(StartConfig))


def test_run_starts_from_scratch_unless_it_says_otherwise() -> None:
    assert train_config().start.kind == "scratch"


@pytest.mark.parametrize(
    ("start", "moe", "reason"),
    [
        ({"kind": "checkpoint", "path": "runs/../7"}, None, r"(?s)start\.checkpoint\.path.*'runs/\.\./7' goes up"),
        ({"kind": "checkpoint", "path": "/runs/7", "sha256": "abc"}, None, r"start\.checkpoint\.sha256"),
        ({"kind": "checkpoint"}, None, r"(?s)start\.checkpoint\.path.*required"),
        ({"kind": "upcycle", "path": "/runs/7"}, None, r"start\.kind=upcycle .* model\.moe is null"),
        (
            {"kind": "upcycle", "path": "/runs/7", "method": {"kind": "granular"}},
            moe_fields(router={"normalize": False}),
            r"start\.method\.kind=granular .* model\.moe\.router\.normalize",
        ),
        (
            {"kind": "upcycle", "path": "/runs/7", "method": {"kind": "granular"}},
            moe_fields(router={"kind": "sinkhorn"}),
            r"start\.method\.kind=granular .* model\.moe\.router\.kind",
        ),
        (
            {"kind": "upcycle", "path": "/runs/7"},
            moe_fields(num_shared_experts=1),
            r"start\.method\.kind=copy .* model\.moe\.num_shared_experts=1",
        ),
        ({"kind": "upcycle", "path": "/r", "method": {"kind": "copy", "std": 0.1}}, moe_fields(), r"(?s)std.*Extra"),
    ],
)
def test_start_that_cannot_be_is_refused_by_its_field(
    start: dict[str, Any], moe: dict[str, Any] | None, reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        config(start, moe=moe)


def test_config_survives_a_round_trip() -> None:
    method = {"kind": "noise", "std": 0.1, "share": 0.5}
    start = {"kind": "upcycle", "path": "/runs/7", "sha256": "0" * 64, "method": method, "changed": ["data.tokenizer"]}
    first = config(start, moe=moe_fields())
    assert TrainConfig.model_validate_json(first.model_dump_json()) == first
    assert first.fingerprint() != config({"kind": "scratch"}, moe=moe_fields()).fingerprint()


def test_tensors_replace_parameters_and_the_buffers_that_are_given() -> None:
    balancing = [{"kind": "loss_free_bias", "update_rate": 0.1}]
    source = tiny_model(model_config(moe=moe_fields()), seed=1)
    model = tiny_model(model_config(moe=moe_fields(balancing=balancing)))
    for layer in model.moe_layers():
        assert layer.selection_bias_E is not None
        layer.selection_bias_E.fill_(0.5)
    put_tensors(model, source.state_dict(), origin="a test")
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    biases = [layer.selection_bias_E for layer in model.moe_layers()]
    assert all(bias_E is not None and (bias_E == 0.5).all() for bias_E in biases)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("final_norm.gain", "missing final_norm.gain"),
        ("blocks.0.attention.key.weight", "missing blocks.0.attention.key"),
    ],
)
def test_missing_tensor_is_refused_and_the_model_left_alone(name: str, reason: str) -> None:
    model = tiny_model(model_config())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tensors = tiny_model(model_config(), seed=1).state_dict()
    del tensors[name]
    with pytest.raises(StartInvalid, match=reason):
        put_tensors(model, tensors, origin="a test")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_hash_of_several_files_is_that_of_the_lines_of_sha256sum(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    assert files_sha256([tmp_path / names[0]]) == hashlib.sha256(names[0].encode()).hexdigest()
    lines = subprocess.run(["sha256sum", *names], cwd=tmp_path, capture_output=True, check=True).stdout
    assert files_sha256([tmp_path / name for name in reversed(names)]) == hashlib.sha256(lines).hexdigest()
