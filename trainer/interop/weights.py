"""The weights of a Hugging Face folder: safetensors, in one file or in shards, experts stacked or one by one."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.interop.decoder import ExpertNames
from trainer.interop.errors import NotImportable

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Size from which the weights are cut into several files, as on the hub."""


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the tensors into `folder`, in order, and return their bytes.

    They are taken one after the other, so that no more than a shard of them is in memory here at a time.

    Raises:
        OSError: the disk failed.
    """
    files: list[list[str]] = []
    total = 0
    for shard in _shards(tensors, shard_bytes):
        try:
            save_file(shard, folder / _temporary(len(files)), metadata={"format": "pt"})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"could not write the weights into {folder}: {error}") from error
        files.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(files) == 1:
        (folder / _temporary(0)).rename(folder / SINGLE_FILE)
        return total
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / _temporary(number)).rename(folder / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return total


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder, as it is stored.

    Raises:
        NotImportable: there are no safetensors, or a file of theirs is missing or damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors |= load_file(path)
        except FileNotFoundError as error:
            raise NotImportable(f"{path} is missing, {INDEX_FILE} names it; download the folder again") from error
        except SafetensorError as error:
            raise NotImportable(f"{path} is no whole safetensors file: {error}; download it again") from error
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a folder; one of several may be missing.

    Raises:
        NotImportable: it has no safetensors.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except FileNotFoundError as error:
        raise NotImportable(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; pickled weights are not read, save them as "
            "safetensors"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotImportable(f"{folder / INDEX_FILE} is no index of weights: {error}") from error


def per_expert(weights: Mapping[str, Tensor], names: ExpertNames) -> dict[str, Tensor]:
    """Return the weights with a matrix of its own for every expert, by the names of the hub's checkpoints.

    `transformers` from 5 on keeps the experts of a layer stacked in memory, as `mlp.experts.gate_up_proj` (E, 2F, D)
    and `mlp.experts.down_proj` (E, D, F), and can save them so. Other names stay as they are.
    """
    layers = re.compile(r"^(model\.layers\.\d+\.)mlp\.(.*)$")
    unstacked: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        parts = layers.match(name)
        if parts is None:
            unstacked[name] = tensor
            continue
        prefix, rest = f"{parts[1]}{names.layer}.", parts[2]
        if rest == "experts.gate_up_proj":
            for expert, matrix in enumerate(tensor):
                gate, up = matrix.chunk(2)
                unstacked[f"{prefix}experts.{expert}.{names.gate}.weight"] = gate
                unstacked[f"{prefix}experts.{expert}.{names.up}.weight"] = up
        elif rest == "experts.down_proj":
            for expert, matrix in enumerate(tensor):
                unstacked[f"{prefix}experts.{expert}.{names.down}.weight"] = matrix
        else:
            unstacked[prefix + rest] = tensor
    return unstacked


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        # A copy: safetensors wants no two tensors in one storage.
        whole = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if shard and size + whole.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = whole
        size += whole.nbytes
    yield shard


def _temporary(number: int) -> str:
    return f".model-{number:05d}.tmp"
