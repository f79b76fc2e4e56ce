"""The tensors of a checkpoint: which they are, and how they get back to where they came from."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.errors import CheckpointInvalid

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
UPDATE_PREFIX = "update."


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each distinct parameter and persistent buffer once, under its first name."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def optimizer_state(
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


def update_tensors(update: nn.Module | None) -> dict[str, Tensor]:
    """Return what clipping and the skipping of steps have learned, by name in a checkpoint."""
    return {} if update is None else {f"{UPDATE_PREFIX}{name}": buffer for name, buffer in update.named_buffers()}


def put_model(path: Path, model: nn.Module) -> None:
    """Put the weights and persistent buffers of the checkpoint at `path` into `model`.

    Raises:
        CheckpointInvalid: they are not those of the model.
    """
    stored = load_file(path / MODEL)
    expected = dict(model_tensors(model))
    _check_same_tensors(path / MODEL, stored, expected)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(stored[name])


def load_optimizer_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of a checkpoint's optimizer, and those of its update."""
    tensors = load_file(path / OPTIMIZER)
    return tensors, {name: tensors.pop(name) for name in list(tensors) if name.startswith(UPDATE_PREFIX)}


def put_update(path: Path, stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Copy stored tensors into the buffers of the same names; raise CheckpointInvalid unless all are there, and fit."""
    _check_same_tensors(path / OPTIMIZER, stored, expected)
    for name, buffer in expected.items():
        buffer.copy_(stored[name])


def put_optimizer(
    path: Path,
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Mapping[str, Any]],
) -> None:
    """Put states and options into an optimizer over the parameters of `model`.

    Args:
        path: the checkpoint, for messages.
        tensors: as `optimizer_state` named them.
        groups: options of each parameter group.

    Raises:
        CheckpointInvalid: there are other groups, or a state of no parameter.
    """
    path = path / OPTIMIZER
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
