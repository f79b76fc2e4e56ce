"""Start checkpoints: whole or refused, and what else can be started from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.models import model_config, moe_fields, tiny_model
from tests.support.training import train_config
from trainer.checkpoint import save_checkpoint
from trainer.errors import CheckpointInvalid
from trainer.interop.errors import StartInvalid
from trainer.interop.start import START_FILE, Start, load_start, open_start, save_start
from trainer.model.build import build_model
from trainer.optimizers.build import build_optimizer

CONFIG = model_config(moe=moe_fields(balancing=[{"kind": "loss_free_bias", "update_rate": 0.1}]))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_start(tmp_path / "start", Start(CONFIG, "bpe-1024", 128, "a test"), tiny_model(CONFIG).state_dict())
    return tmp_path / "start"


def test_what_was_saved_is_loaded(start: Path) -> None:
    config, state = load_start(start)
    facts, weights = open_start(start)
    assert config == CONFIG
    assert facts == Start(CONFIG, "bpe-1024", 128, "a test")
    assert weights.parent == start
    model = tiny_model(CONFIG)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_changed_byte_anywhere_is_refused(start: Path) -> None:
    for name in (START_FILE, "model.safetensors"):
        path = start / name
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(StartInvalid):
                load_start(start)
        path.write_bytes(whole[:-1])
        with pytest.raises(StartInvalid):
            load_start(start)
        path.write_bytes(whole)
    load_start(start)


def test_missing_weights_are_named(start: Path) -> None:
    (start / "model.safetensors").unlink()
    with pytest.raises(StartInvalid, match=r"model\.safetensors is missing"):
        load_start(start)


def test_a_folder_with_nothing_in_it_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(StartInvalid, match="nothing to start from"):
        load_start(tmp_path)


def test_a_runs_checkpoint_and_its_folder_are_starts(tmp_path: Path) -> None:
    config = train_config()
    model = build_model(config.model, seed=0, device=torch.device("cpu"))
    path, _ = save_checkpoint(
        tmp_path / "run",
        step=3,
        config=config,
        data_fingerprint="",
        world_size=1,
        model=model,
        optimizer=build_optimizer(config.optimizer, model),
        state={},
    )
    for source in (path, tmp_path / "run"):
        loaded, state = load_start(source)
        assert loaded == config.model
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        facts, weights = open_start(source)
        assert (facts.tokenizer, facts.max_position_embeddings) == ("bpe-1024", config.data.seq_len)
        assert facts.origin == "run run, step 3"
        assert load_file(weights).keys() == state.keys()
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointInvalid):
        load_start(path)
