"""Forks: a run that goes on from a checkpoint of another one, under values of its own. See `trainer.config.fork`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from trainer.checkpoint import check_same_data, read_state, written_by
from trainer.checkpoint_manifest import (
    Manifest,
    checkpoint_folder,
    checkpoints_of,
    read_manifest,
    verify_checkpoint,
)
from trainer.checkpoint_tensors import (
    UPDATE_PREFIX,
    load_optimizer_file,
    put_model,
    put_optimizer,
    put_update,
    update_tensors,
)
from trainer.config import TrainConfig
from trainer.config.fork import ForkRefused, fork_config, fork_problems
from trainer.config.spike_policies import SkipSpikesConfig
from trainer.config.start import ForkStartConfig
from trainer.errors import CheckpointInvalid, ResumeMismatch
from trainer.start.place import start_folder

_COUNTERS = ("num_steps",)
"""Options of a parameter group that count, and are not set by the config; see `GroupedOptimizer`."""


class ForkSource(NamedTuple):
    """The checkpoint that a run forks from, verified.

    path: its folder.
    manifest: of it.
    config: of the run that wrote it.
    """

    path: Path
    manifest: Manifest
    config: TrainConfig


def open_fork(config: TrainConfig, *, root: Path | None) -> ForkSource:
    """Return the checkpoint that `config.start`, of kind `fork`, names, after reading and checking every byte of it.

    Args:
        config: of the fork.
        root: what the path is relative and confined to; None takes any.

    Raises:
        StartInvalid: nothing is at the path, or it leads out of `root`.
        CheckpointInvalid: it is missing or damaged.
        ResumeMismatch: it is another one than meant, or `config` changes what a fork cannot change.
    """
    start = config.start
    assert isinstance(start, ForkStartConfig)
    path = start_folder(start, root=root)
    manifest = verify_checkpoint(path)
    if (manifest.sha256, manifest.step) != (start.sha256, start.step):
        raise ResumeMismatch(
            f"start.path={path} is the checkpoint of step {manifest.step} with the manifest {manifest.sha256}; "
            f"start.step={start.step} and start.sha256={start.sha256} mean another one"
        )
    parent = written_by(path)
    problems = fork_problems(parent, config, step=start.step)
    if problems:
        raise ResumeMismatch(f"no fork of {path}: {ForkRefused(problems)}")
    return ForkSource(path, manifest, parent)


def opened_fork(config: TrainConfig, *, root: Path | None) -> ForkSource:
    """Return what `open_fork` did, which this process has already called for this start: nothing is hashed again."""
    start = config.start
    assert isinstance(start, ForkStartConfig)
    path = start_folder(start, root=root)
    return ForkSource(path, read_manifest(path), written_by(path))


def local_fork(run_folder: Path, *, step: int, changes: Mapping[str, Any]) -> TrainConfig:
    """Return the config of a fork of the run in `run_folder`, from its checkpoint of `step`; see `fork_config`.

    Raises:
        CheckpointInvalid: there is no sound checkpoint of that step.
        ForkRefused: `changes` are not ones that a fork can make.
    """
    path = checkpoint_folder(run_folder, step)
    if not path.is_dir():
        steps = [str(int(other.name.removeprefix("step-"))) for other in reversed(checkpoints_of(run_folder))]
        raise CheckpointInvalid(
            f"{run_folder} has no checkpoint of step {step}; it has those of: {', '.join(steps) or 'none'}"
        )
    manifest = verify_checkpoint(path)
    start = ForkStartConfig(path=str(path), sha256=manifest.sha256, step=manifest.step)
    return fork_config(written_by(path), changes, start=start)


def load_fork(
    source: ForkSource,
    *,
    config: TrainConfig,
    parent_data_fingerprint: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    update: nn.Module,
) -> dict[str, Any]:
    """Put the tensors of a checkpoint into a run that goes on from it under `config`, and return its state.

    As a resume does, but that the options of the optimizer's groups are those of `config`, and that clipping and the
    skipping of steps begin anew where `config` has another method or window.

    Args:
        parent_data_fingerprint: of the data here, under the config of the checkpoint's run.

    Raises:
        CheckpointInvalid: its tensors are not those of the model.
        ResumeMismatch: it was trained on other data.
    """
    path, manifest, parent = source
    check_same_data(path, manifest, parent_data_fingerprint)
    state = read_state(path)
    put_model(path, model)
    tensors, learned = load_optimizer_file(path)
    buffers = update_tensors(update)
    for part, goes_on in (
        ("clipper", parent.loop.gradient_clipping.kind == config.loop.gradient_clipping.kind),
        ("skipper", _skipping_window(parent) == _skipping_window(config)),
    ):
        prefix = f"{UPDATE_PREFIX}{part}."
        if goes_on:
            put_update(
                path,
                {name: tensor for name, tensor in learned.items() if name.startswith(prefix)},
                {name: buffer for name, buffer in buffers.items() if name.startswith(prefix)},
            )
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    counted = [{name: group[name] for name in _COUNTERS if name in group} for group in state["optimizer_groups"]]
    if len(options) != len(counted):
        raise CheckpointInvalid(f"{path} is of {len(counted)} parameter groups, this run has {len(options)}")
    put_optimizer(path, tensors, model, optimizer, [a | b for a, b in zip(options, counted, strict=True)])
    return state


def _skipping_window(config: TrainConfig) -> int | None:
    policy = config.loop.spike_policy
    return policy.window if isinstance(policy, SkipSpikesConfig) else None
