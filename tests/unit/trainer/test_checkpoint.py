"""A checkpoint is whole or absent, gives back every bit, and is refused if a single bit of it is wrong."""

import hashlib
import json
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies

from tests.support.training import by_other_code, train_config
from trainer.checkpoint import load_checkpoint, remove_unfinished, save_checkpoint
from trainer.checkpoint_manifest import newest_valid_checkpoint, verify_checkpoint
from trainer.code_state import code_fingerprint
from trainer.config import TrainConfig
from trainer.errors import CheckpointInvalid, ResumeMismatch
from trainer.model.build import build_model
from trainer.model.transformer import Transformer
from trainer.optimizers.build import build_optimizer

CONFIG = train_config()
FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
STATE = {"number": 0.1 + 0.2, "list": [1, 2.5, None], "text": "x"}


def build(config: TrainConfig, *, seed: int, num_steps: int = 0) -> tuple[Transformer, torch.optim.Optimizer]:
    """Returns a model and its optimizer after some steps on noise."""
    model = build_model(config.model, seed=seed, device=torch.device("cpu"))
    optimizer = build_optimizer(config.optimizer, model)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        tokens_BL = torch.randint(0, 1024, (2, 17), generator=generator)
        loss = model(tokens_BL[:, :-1], tokens_BL[:, 1:]).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, optimizer


def save(folder: Path, *, step: int = 3, config: TrainConfig = CONFIG, seed: int = 0, **fields: Any) -> Path:
    model, optimizer = build(config, seed=seed, num_steps=2)
    arguments: dict[str, Any] = {"data_fingerprint": "data", "world_size": 1, "state": STATE} | fields
    path, _ = save_checkpoint(folder, step=step, config=config, model=model, optimizer=optimizer, **arguments)
    return path


def load(path: Path, *, config: TrainConfig = CONFIG, data_fingerprint: str = "data", any_code: bool = False):
    model, optimizer = build(config, seed=99)
    manifest, state = load_checkpoint(
        path, config=config, data_fingerprint=data_fingerprint, model=model, optimizer=optimizer, any_code=any_code
    )
    return model, optimizer, manifest, state


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that tests only read."""
    return save(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    path = tmp_path / "checkpoints" / saved.name
    path.mkdir(parents=True)
    for name in FILES:
        (path / name).write_bytes((saved / name).read_bytes())
    return path


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file of this process may grow beyond 40 kB: as on a full disk, a write fails half-way."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_everything_comes_back_to_the_last_bit(saved: Path):
    model, optimizer = build(CONFIG, seed=0, num_steps=2)
    loaded_model, loaded_optimizer, manifest, state = load(saved)
    assert (manifest.step, manifest.tokens) == (3, 3 * CONFIG.step_tokens)
    assert {name: state[name] for name in STATE} == STATE
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded_model.state_dict()[name]), name
    expected, found = optimizer.state_dict(), loaded_optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for index, values in expected["state"].items():
        for key, value in values.items():
            assert torch.equal(value, found["state"][index][key])
            assert value.dtype == found["state"][index][key].dtype


def test_tied_embedding_is_stored_once(saved: Path, tmp_path: Path):
    untied = train_config(model={**CONFIG.model.model_dump(mode="json"), "tie_embeddings": False})
    path = save(tmp_path, config=untied)
    difference = (path / "model.safetensors").stat().st_size - (saved / "model.safetensors").stat().st_size
    table_bytes = 4 * CONFIG.model.vocab_size * CONFIG.model.dim
    assert table_bytes <= difference < table_bytes + 1000


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("bit", [0, 5, 7])
def test_I6_flipped_bit_anywhere_is_found_and_the_file_named(copy: Path, name: str, place: float, bit: int):
    content = bytearray((copy / name).read_bytes())
    content[round(place * (len(content) - 1))] ^= 1 << bit
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointInvalid, match=name):
        load(copy)


def test_no_bit_of_the_manifest_can_be_flipped_unnoticed(copy: Path):
    content = (copy / "manifest.json").read_bytes()
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= 1 << position % 8
        (copy / "manifest.json").write_bytes(altered)
        with pytest.raises(CheckpointInvalid, match=r"manifest\.json"):
            verify_checkpoint(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_truncated_file_is_found_and_named(copy: Path, name: str, kept: float):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointInvalid, match=name):
        load(copy)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_found_and_named(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(CheckpointInvalid, match=name):
        load(copy)


def test_file_that_does_not_belong_is_found(copy: Path):
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(CheckpointInvalid, match=r"extra\.bin"):
        load(copy)


def test_I6_damaged_checkpoint_leaves_the_model_untouched(copy: Path):
    content = bytearray((copy / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "optimizer.safetensors").write_bytes(content)
    model, optimizer = build(CONFIG, seed=99)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointInvalid):
        load_checkpoint(copy, config=CONFIG, data_fingerprint="data", model=model, optimizer=optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_config_is_refused_and_every_difference_named_with_both_values(saved: Path):
    other = train_config(seed=7, optimizer={"lr": 0.02})
    with pytest.raises(ResumeMismatch) as caught:
        load(saved, config=other)
    assert "optimizer.lr: checkpoint 0.01, this run 0.02" in str(caught.value)
    assert "seed: checkpoint 0, this run 7" in str(caught.value)
    assert "model.dim" not in str(caught.value)


def test_other_data_are_refused_with_both_fingerprints(saved: Path):
    with pytest.raises(ResumeMismatch, match="checkpoint data, this run other"):
        load(saved, data_fingerprint="other")


def test_other_code_is_refused_with_both_fingerprints_unless_any_will_do(saved: Path, tmp_path: Path):
    other = by_other_code(saved, tmp_path / "step-00000003", code_fingerprint="another")
    with pytest.raises(ResumeMismatch, match=f"checkpoint another, this process {code_fingerprint()}"):
        load(other)
    assert load(other, any_code=True)[2].code_fingerprint == "another"


def test_checkpoint_from_before_code_was_noted_is_taken(saved: Path, tmp_path: Path):
    assert load(by_other_code(saved, tmp_path / "step-00000003", code_fingerprint=None))[2].code_fingerprint is None


def test_I6_newest_sound_checkpoint_is_found_past_damaged_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = [save(tmp_path, step=step) for step in (1, 2, 3)]
    (paths[2] / "state.json").write_bytes(b"{}")
    (paths[1] / "manifest.json").unlink()
    assert newest_valid_checkpoint(tmp_path) == paths[0]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert str(paths[2]) in caplog.text


def test_newest_is_the_one_of_the_highest_step_not_of_the_last_name(tmp_path: Path):
    save(tmp_path, step=99_999_999)
    highest = save(tmp_path, step=100_000_000)
    save(tmp_path, step=7)
    assert newest_valid_checkpoint(tmp_path) == highest


def test_folder_without_checkpoints_has_no_newest(tmp_path: Path):
    assert newest_valid_checkpoint(tmp_path) is None


def test_I6_write_that_fails_half_way_leaves_no_checkpoint_and_the_earlier_ones(tmp_path: Path, request):
    earlier = save(tmp_path, step=1)
    request.getfixturevalue("small_files_only")
    with pytest.raises(OSError, match="File too large"):
        save(tmp_path, step=2)
    assert newest_valid_checkpoint(tmp_path) == earlier
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000001"]
    remove_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_saving_a_step_again_replaces_it(tmp_path: Path):
    save(tmp_path, seed=0)
    path = save(tmp_path, seed=1)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == [path.name]
    model, _ = build(CONFIG, seed=1, num_steps=2)
    loaded, *_ = load(path)
    assert torch.equal(loaded.embedding.weight, model.embedding.weight)


def test_checkpoint_of_another_format_version_says_which(copy: Path):
    content = json.loads((copy / "manifest.json").read_bytes())
    del content["sha256"]
    content["format_version"] = 99

    def canonical(document: dict[str, Any]) -> bytes:
        return json.dumps(document, sort_keys=True, indent=1).encode()

    content["sha256"] = hashlib.sha256(canonical(content)).hexdigest()
    (copy / "manifest.json").write_bytes(canonical(content))
    with pytest.raises(CheckpointInvalid, match="format version 99"):
        load(copy)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=strategies.sampled_from(FILES),
    damage=strategies.sampled_from(["flip", "cut", "grow", "swap"]),
    place=strategies.floats(0, 1, exclude_max=True),
    bit=strategies.integers(0, 7),
)
def test_I6_any_damage_anywhere_is_found_and_the_checkpoint_before_is_taken(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, name: str, damage: str, place: float, bit: int
):
    """One flipped bit, a file cut short, grown, or with two bytes exchanged: `saved` is whole, its copy is not."""
    run_folder = tmp_path_factory.mktemp("damaged")
    before, after = (run_folder / "checkpoints" / f"step-{step:08d}" for step in (3, 4))
    shutil.copytree(saved, before)
    shutil.copytree(saved, after)
    content = bytearray((after / name).read_bytes())
    index = int(place * len(content))
    if damage == "flip":
        content[index] ^= 1 << bit
    elif damage == "cut":
        del content[index:]
    elif damage == "grow":
        content[index:index] = bytes([bit])
    else:
        other = (index + 1 + bit) % len(content)
        assume(content[index] != content[other])
        content[index], content[other] = content[other], content[index]
    (after / name).write_bytes(content)
    with pytest.raises(CheckpointInvalid):
        verify_checkpoint(after)
    assert newest_valid_checkpoint(run_folder) == before
    shutil.rmtree(run_folder)
