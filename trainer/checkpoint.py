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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.checkpoint_manifest import (
    CHECKPOINTS_FOLDER,
    MANIFEST_FILE,
    Manifest,
    checkpoint_folder,
    read_manifest,
    verify_checkpoint,
    write_manifest,
)
from trainer.config import TrainConfig
from trainer.durable import commit, fsync_path, temporary_name
from trainer.errors import CheckpointInvalid, ResumeMismatch

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_UPDATE_PREFIX = "update."


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
    tensors, groups = _optimizer_state(model, optimizer)
    tensors |= {name: buffer.detach().cpu().contiguous() for name, buffer in _update_buffers(update).items()}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _model_tensors(model)}
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
) -> tuple[Manifest, dict[str, Any]]:
    """Verify a checkpoint, put its tensors into `model`, `optimizer` and `update`, return its manifest and state.

    Raises:
        CheckpointInvalid: see `verify_checkpoint`; also if its tensors are not those of the model.
        ResumeMismatch: it is of another config or of other data; the message names each difference.
    """
    manifest = verify_checkpoint(path)
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    _check_same_run(path, manifest, state["config"], config=config, data_fingerprint=data_fingerprint)
    stored = load_file(path / MODEL)
    expected = dict(_model_tensors(model))
    _check_same_tensors(path / MODEL, stored, expected)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(stored[name])
    tensors = load_file(path / OPTIMIZER)
    buffers = _update_buffers(update)
    kept = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_UPDATE_PREFIX)}
    _check_same_tensors(path / OPTIMIZER, kept, buffers)
    for name, buffer in buffers.items():
        buffer.copy_(kept[name])
    _load_optimizer(path / OPTIMIZER, tensors, model, optimizer, state["optimizer_groups"])
    return manifest, state


def remove_unfinished(run_folder: Path) -> None:
    """Delete what an interrupted `save_checkpoint` left in a run's folder. Only the run itself may call this."""
    for path in (run_folder / CHECKPOINTS_FOLDER).glob(".step-*"):
        shutil.rmtree(path)


def _model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each distinct parameter and persistent buffer once, under its first name."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the state tensors by name, and the groups' options (numbers and strings)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"the optimizer keeps {key!r} as {type(value).__name__}; checkpoints hold tensors only, make it one"
                )
            tensors[f"{names[id(parameter)]}/{key}"] = value.detach().cpu().contiguous()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, groups


def _update_buffers(update: nn.Module | None) -> dict[str, Tensor]:
    return {} if update is None else {f"{_UPDATE_PREFIX}{name}": buffer for name, buffer in update.named_buffers()}


def _load_optimizer(
    path: Path,
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: list[dict[str, Any]],
) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    if len(groups) != len(optimizer.param_groups):
        raise CheckpointInvalid(
            f"{path} is of {len(groups)} parameter groups, this run has {len(optimizer.param_groups)}"
        )
    state: dict[int, dict[str, Tensor]] = {}
    index_of = {name: index for index, name in enumerate(order)}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in index_of:
            raise CheckpointInvalid(f"{path} has {full_name!r}, which is no parameter of this run's model")
        state.setdefault(index_of[name], {})[key] = tensor
    numbers = iter(range(len(order)))
    merged = [
        {
            # JSON has no tuples; torch wants its own types back.
            **{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()},
            "params": [next(numbers) for _ in group["params"]],
        }
        for stored, group in zip(groups, optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def _check_same_run(
    path: Path, manifest: Manifest, stored_config: dict[str, Any], *, config: TrainConfig, data_fingerprint: str
) -> None:
    if manifest.config_fingerprint != config.fingerprint():
        ours, theirs = _flat(config.model_dump(mode="json")), _flat(stored_config)
        absent = "(absent)"
        differences = [
            f"{name}: checkpoint {theirs.get(name, absent)}, this run {ours.get(name, absent)}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name, absent) != theirs.get(name, absent)
        ]
        raise ResumeMismatch(
            f"{path} was written with another config ({'; '.join(differences)}); "
            "resume with the same config, or start a new run"
        )
    if manifest.data_fingerprint != data_fingerprint:
        raise ResumeMismatch(
            f"{path} was trained on other data (data fingerprint: checkpoint {manifest.data_fingerprint}, "
            f"this run {data_fingerprint}); restore the corpora and tokenizer it was trained on, or start a new run"
        )


def _check_same_tensors(path: Path, stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if stored.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
        raise CheckpointInvalid(f"{path}: missing tensors {missing}, unknown tensors {unknown}")
    for name, tensor in expected.items():
        if stored[name].shape != tensor.shape or stored[name].dtype != tensor.dtype:
            raise CheckpointInvalid(
                f"{path}: {name} is {tuple(stored[name].shape)} {stored[name].dtype}, "
                f"the model has {tuple(tensor.shape)} {tensor.dtype}"
            )


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    """Return dotted path -> JSON of every leaf."""
    if isinstance(value, dict) and value:
        return {path: leaf for key, item in value.items() for path, leaf in _flat(item, f"{prefix}{key}.").items()}
    if isinstance(value, list) and value:
        return {path: leaf for i, item in enumerate(value) for path, leaf in _flat(item, f"{prefix}{i}.").items()}
    return {prefix.removesuffix("."): json.dumps(value)}
