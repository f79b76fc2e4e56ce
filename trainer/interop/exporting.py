"""Writes one of our models as a folder that `AutoModelForCausalLM.from_pretrained` loads."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.data.tokenizer import END_OF_TEXT, load_tokenizer, tokenizer_path
from trainer.durable import temporary_name
from trainer.interop.architecture import Architecture, architecture_of
from trainer.interop.errors import NotExportable
from trainer.interop.fields import HuggingFaceFields
from trainer.interop.layout import Rule
from trainer.interop.start import open_start
from trainer.interop.weights import write_weights

DEFAULT_POSITIONS = 4096
"""Positions to name where the training length is unknown."""

FLOAT32_NAMES = ("e_score_correction_bias",)
"""Tensors that transformers keeps in float32 whatever the model's dtype."""

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Exported:
    """What was written: where, as which architecture, from what, how large."""

    folder: Path
    model_type: str
    class_name: str
    origin: str
    num_bytes: int


def export_hugging_face(
    source: Path,
    out: Path,
    *,
    architecture: str | None = None,
    dtype: DType = "float32",
    max_position_embeddings: int | None = None,
) -> Exported:
    """Write the model at `source` into the new folder `out`: weights, configs, and our tokenizer if it has one.

    Args:
        source: a run's folder, one of its checkpoints, or a start checkpoint.
        out: must not exist, or be empty. It appears whole or not at all.
        architecture: a `model_type`, if it must be a certain one.
        dtype: of the weights in the files; ours are float32.
        max_position_embeddings: positions to name in the config; default: the length the model was trained on.

    Raises:
        NotExportable: no architecture computes what the model computes, or `out` holds something.
        StartInvalid, CheckpointInvalid: `source` is not sound.
        OSError: the disk failed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NotExportable(f"{out} exists and is not an empty folder; choose another")
    start, weights = open_start(source)
    chosen = architecture_of(start.model, architecture)
    fields = chosen.fields_of(
        start.model,
        max_position_embeddings=max_position_embeddings or start.max_position_embeddings or DEFAULT_POSITIONS,
    )
    if start.tokenizer is not None:
        fields = fields.model_copy(update={"eos_token_id": load_tokenizer(start.tokenizer).end_of_text_id})
    tensors = their_tensors(chosen, fields, load_file(weights))

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(out)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        num_bytes = write_weights(temporary, ((name, _cast(name, tensor, dtype)) for name, tensor in tensors))
        _write_json(temporary / "config.json", {**fields.document(), "dtype": dtype})
        _write_json(temporary / "generation_config.json", _generation(fields))
        if start.tokenizer is not None:
            _write_tokenizer(temporary, start.tokenizer, max_length=fields.max_position_embeddings)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that failed
    return Exported(out, chosen.model_type, chosen.class_name, start.origin, num_bytes)


def their_tensors(
    architecture: Architecture[Any], fields: HuggingFaceFields, state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of their checkpoint, made of our state dict; a few are views of it.

    Raises:
        NotExportable: a tensor of ours has no place in the architecture. All are checked before the first comes.
    """
    rules = list(architecture.rules(fields))
    homeless = [
        name
        for name in sorted(state.keys() - {rule.ours for rule in rules})
        # A selection bias that never moved chooses nothing.
        if not name.endswith(".selection_bias_E") or bool(state[name].any())
    ]
    if homeless:
        raise NotExportable(
            f"{architecture.model_type} has no place for {', '.join(homeless)}, which takes part in what the model "
            "computes; exportable with a selection bias is deepseek_v3"
        )
    return architecture.packed(_converted(rules, state))


def _converted(rules: list[Rule], state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for rule in rules:
        tensor = state[rule.ours] if rule.absent is None or rule.ours in state else torch.zeros(rule.absent)
        yield from zip(rule.theirs, rule.layout.to_theirs(tensor), strict=True)


def _cast(name: str, tensor: Tensor, dtype: DType) -> Tensor:
    return tensor if name.endswith(FLOAT32_NAMES) else tensor.to(getattr(torch, dtype))


def _generation(fields: HuggingFaceFields) -> dict[str, Any]:
    known = {name: getattr(fields, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value for name, value in known.items() if value is not None}


def _write_tokenizer(folder: Path, name: str, *, max_length: int) -> None:
    """Write our tokenizer so that `AutoTokenizer` gives it: end-of-text between documents, nothing added to a text."""
    shutil.copyfile(tokenizer_path(name), folder / "tokenizer.json")
    document = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    _write_json(folder / "tokenizer_config.json", document)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
