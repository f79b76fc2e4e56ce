"""Checkpoints: safetensors and JSON under a manifest of checksums, committed by a rename. No pickle.

    step-NNNNNNNN/
        model.safetensors       parameters and persistent buffers; tied weights once
        optimizer.safetensors   `<parameter name>/<key>` for every tensor of the optimizer's state,
                                `update.<buffer>` for what clipping and the skipping of steps have learned
        state.json              what else a run needs to go on exactly (see `trainer.training`), and the config
        manifest.json           sha256 and size of each of the above, fingerprints, its own sha256

A reader sees a whole checkpoint or none; `verify` reads every byte before a tensor of it is used.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from trainer.checkpoint_manifest import (
    CHECKPOINTS_FOLDER,
    MANIFEST_FILE,
    Manifest,
    checkpoint_folder,
    read_manifest,
    verify_checkpoint,
    write_manifest,
)
from trainer.checkpoint_tensors import (
    MODEL,
    OPTIMIZER,
    load_optimizer_file,
    model_tensors,
    optimizer_state,
    put_model,
    put_optimizer,
    put_update,
    update_tensors,
)
from trainer.code_state import code_fingerprint
from trainer.config import TrainConfig
from trainer.config.fork import flat
from trainer.durable import commit, fsync_path, temporary_name
from trainer.errors import CheckpointInvalid, ResumeMismatch

STATE = "state.json"


def save_checkpoint(
    run_folder: Path,
    *,
    step: int,
    config: TrainConfig,
    data_fingerprint: str,
    world_size: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    update: nn.Module | None = None,
    state: Mapping[str, Any],
) -> tuple[Path, Manifest]:
    """Write `run_folder/checkpoints/step-NNNNNNNN`, durably, and return its path and manifest.

    A checkpoint of the same step that is already there is replaced: it is of the run's earlier attempt.

    Args:
        run_folder: the run's folder.
        step: optimizer steps done.
        config: of the run; stored, and compared at a resume.
        data_fingerprint: of everything that determines the batches.
        world_size: number of workers.
        model: the bare model.
        optimizer: its optimizer.
        update: whose buffers are kept with the optimizer's state, or None.
        state: JSON values.

    Raises:
        OSError: the disk failed. The previous checkpoints are untouched.
    """
    parent = run_folder / CHECKPOINTS_FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    path = checkpoint_folder(run_folder, step)
    temporary = temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors, groups = optimizer_state(model, optimizer)
    tensors |= {name: buffer.detach().cpu().contiguous() for name, buffer in update_tensors(update).items()}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model_tensors(model)}
    try:
        save_file(weights, temporary / MODEL)
        save_file(tensors, temporary / OPTIMIZER)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"could not write {temporary}: {error}") from error
    document = {**state, "config": config.model_dump(mode="json"), "optimizer_groups": groups}
    (temporary / STATE).write_text(json.dumps(document, allow_nan=True), encoding="utf-8")

    write_manifest(
        temporary,
        files=(MODEL, OPTIMIZER, STATE),
        facts={
            "step": step,
            "tokens": step * config.step_tokens,
            "config_fingerprint": config.fingerprint(),
            "data_fingerprint": data_fingerprint,
            "code_fingerprint": code_fingerprint(),
            "world_size": world_size,
            "num_threads": torch.get_num_threads(),
            "torch_version": str(torch.__version__),
        },
    )
    for name in (MODEL, OPTIMIZER, STATE, MANIFEST_FILE):
        fsync_path(temporary / name)

    if path.exists():
        replaced = parent / f".{path.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
        commit(temporary, path)
        shutil.rmtree(replaced)
    else:
        commit(temporary, path)
    return path, read_manifest(path)


def load_checkpoint(
    path: Path,
    *,
    config: TrainConfig,
    data_fingerprint: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    update: nn.Module | None = None,
    any_code: bool = False,
) -> tuple[Manifest, dict[str, Any]]:
    """Verify a checkpoint, put its tensors into `model`, `optimizer` and `update`, return its manifest and state.

    With `any_code`, what other code wrote is taken, too.

    Raises:
        CheckpointInvalid: see `verify_checkpoint`; also if its tensors are not those of the model.
        ResumeMismatch: it is of another config, of other data or of other code; the message names each difference.
    """
    manifest = verify_checkpoint(path)
    state = read_state(path)
    _check_same_config(path, manifest, state["config"], config=config)
    check_same_data(path, manifest, data_fingerprint)
    if not any_code:
        _check_same_code(path, manifest)
    put_model(path, model)
    tensors, learned = load_optimizer_file(path)
    put_update(path, learned, update_tensors(update))
    put_optimizer(path, tensors, model, optimizer, state["optimizer_groups"])
    return manifest, state


def read_state(path: Path) -> dict[str, Any]:
    """Return what a checkpoint that was verified holds besides tensors."""
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def written_by(path: Path) -> TrainConfig:
    """Return the config of the run that wrote a verified checkpoint.

    Raises:
        CheckpointInvalid: it is not one that this code knows.
    """
    try:
        return TrainConfig.model_validate(read_state(path)["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointInvalid(f"{path / STATE} has no config that this code knows: {error}") from error


def remove_unfinished(run_folder: Path) -> None:
    """Delete what an interrupted `save_checkpoint` left in a run's folder. Only the run itself may call this."""
    for path in (run_folder / CHECKPOINTS_FOLDER).glob(".step-*"):
        shutil.rmtree(path)


def _check_same_config(path: Path, manifest: Manifest, stored_config: dict[str, Any], *, config: TrainConfig) -> None:
    if manifest.config_fingerprint == config.fingerprint():
        return
    ours, theirs = flat(config.model_dump(mode="json")), flat(stored_config)
    absent = "(absent)"
    differences = [
        f"{name}: checkpoint {theirs.get(name, absent)}, this run {ours.get(name, absent)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name, absent) != theirs.get(name, absent)
    ]
    raise ResumeMismatch(
        f"{path} was written with another config ({'; '.join(differences)}); "
        "resume with the same config, fork from it, or start a new run"
    )


def check_same_data(path: Path, manifest: Manifest, data_fingerprint: str) -> None:
    """Raise ResumeMismatch, with both fingerprints, unless a checkpoint was trained on these data."""
    if manifest.data_fingerprint != data_fingerprint:
        raise ResumeMismatch(
            f"{path} was trained on other data (data fingerprint: checkpoint {manifest.data_fingerprint}, "
            f"this run {data_fingerprint}); restore the corpora and tokenizer it was trained on, or start a new run"
        )


def _check_same_code(path: Path, manifest: Manifest) -> None:
    if manifest.code_fingerprint is not None and manifest.code_fingerprint != code_fingerprint():
        raise ResumeMismatch(
            f"{path} was written by other code (code fingerprint: checkpoint {manifest.code_fingerprint}, this process "
            f"{code_fingerprint()}), so the run would not end as it began; go back to that code (git_commit in "
            "environment.json, and code.patch), fork from it, or let any code go on with it (train --any-code)"
        )
