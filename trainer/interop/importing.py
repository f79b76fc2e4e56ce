"""Reads a folder of Hugging Face's into one of our start checkpoints."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from trainer.config.data import TOKENIZER_VOCAB_SIZES
from trainer.config.model import ModelConfig
from trainer.data.tokenizer import load_tokenizer
from trainer.interop import ARCHITECTURES
from trainer.interop.architecture import Architecture
from trainer.interop.errors import NotImportable, some_of
from trainer.interop.fields import HuggingFaceFields
from trainer.interop.start import Start, save_start
from trainer.interop.weights import read_weights
from trainer.model.transformer import Transformer

TRAIN_FILE = "train.yaml"


@dataclass(frozen=True)
class Imported:
    """What was read.

    Attributes:
        start: what was written.
        model_type: the architecture it was.
        num_left_out: tensors of the folder that a model of ours has no use for: layers for further tokens.
    """

    start: Start
    model_type: str
    num_left_out: int


def import_hugging_face(folder: Path, out: Path) -> Imported:
    """Write the model in `folder` as the start checkpoint `out`, with a training config for it if it can have one.

    Raises:
        NotImportable: of another architecture, with options that we cannot compute, or with other tensors than its
            config says; also if `out` holds something.
        OSError: the disk failed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NotImportable(f"{out} exists and is not an empty folder; choose another")
    architecture, fields, model = read_config(folder)
    weights = read_weights(folder)
    state, num_left_out = our_state(architecture, fields, model, weights)
    start = Start(
        model=model,
        tokenizer=our_tokenizer(folder),
        max_position_embeddings=fields.max_position_embeddings,
        origin=f"Hugging Face folder {folder.resolve().name} ({architecture.model_type})",
    )
    save_start(out, start, state)
    if model.vocab_size >= min(TOKENIZER_VOCAB_SIZES.values()):
        (out / TRAIN_FILE).write_text(_train_config(start, out), encoding="utf-8")
    return Imported(start, architecture.model_type, num_left_out)


def read_config(folder: Path) -> tuple[Architecture[Any], HuggingFaceFields, ModelConfig]:
    """Return the architecture, its fields and our model that `config.json` describes.

    Raises:
        NotImportable: with every field that stands in the way.
    """
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model_type = document["model_type"]
    except FileNotFoundError as error:
        raise NotImportable(f"{path} is missing; give the folder that save_pretrained wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotImportable(f"{path} is no config with a model_type: {error}") from error
    if model_type not in ARCHITECTURES:
        raise NotImportable(f"{path} has model_type {model_type!r}; importable are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[model_type]()
    try:
        fields = architecture.fields_class.model_validate(document)
        return architecture, fields, architecture.model_of(fields)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in each['loc'])}: given {each['input']!r:.60}; {each['msg']}"
            for each in error.errors()
        ]
        raise NotImportable(f"{path} describes a model that cannot be built here:\n" + "\n".join(lines)) from error


def our_state(
    architecture: Architecture[Any],
    fields: HuggingFaceFields,
    model: ModelConfig,
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], int]:
    """Return our float32 state dict of their tensors, and how many of theirs were left out.

    Raises:
        NotImportable: tensors are missing, unknown, or of other shapes than the config says.
    """
    weights = architecture.unpacked(weights)
    rules = list(architecture.rules(fields))
    wanted = {name for rule in rules for name in rule.theirs}
    left_out = {name for name in weights.keys() - wanted if _is_spare(name, fields)}
    missing, unknown = sorted(wanted - weights.keys()), sorted(weights.keys() - wanted - left_out)
    if missing or unknown:
        raise NotImportable(
            f"the weights are not those of config.json: missing {some_of(missing)}; unknown {some_of(unknown)}"
        )
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in Transformer(model).state_dict().items()}
    state: dict[str, Tensor] = {}
    for rule in rules:
        if rule.ours not in expected:
            assert rule.absent is not None, "an architecture has no rule for a tensor that no model has"
            continue
        theirs = [weights[name].float() for name in rule.theirs]
        try:
            state[rule.ours] = rule.layout.to_ours(theirs).contiguous()
        except RuntimeError as error:  # torch's word for shapes that do not go together
            raise NotImportable(f"{rule.theirs[0]} has shape {tuple(theirs[0].shape)}: {error}") from error
        if state[rule.ours].shape != expected[rule.ours]:
            raise NotImportable(
                f"{rule.theirs[0]} has shape {tuple(theirs[0].shape)}, which makes {tuple(state[rule.ours].shape)} of "
                f"our {rule.ours}; config.json says {tuple(expected[rule.ours])}"
            )
    assert state.keys() == expected.keys(), "an architecture has a rule for every tensor of the model it describes"
    return state, len(left_out)


def _is_spare(name: str, fields: HuggingFaceFields) -> bool:
    """Whether a tensor may be left out: cached angles, a tied output projection, layers behind the last one."""
    if name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and fields.tie_word_embeddings):
        return True
    number = name.removeprefix("model.layers.").partition(".")[0]
    extra = getattr(fields, "num_nextn_predict_layers", 0)
    return number.isdigit() and fields.num_hidden_layers <= int(number) < fields.num_hidden_layers + extra


def our_tokenizer(folder: Path) -> str | None:
    """Return the name of our tokenizer if the folder's is one of ours."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    return next((name for name in TOKENIZER_VOCAB_SIZES if load_tokenizer(name).fingerprint == fingerprint), None)


def _train_config(start: Start, folder: Path) -> str:
    """Return, as YAML, a TrainConfig that goes on from the start checkpoint in `folder`, to be edited before use."""
    fitting = [name for name, size in TOKENIZER_VOCAB_SIZES.items() if size <= start.model.vocab_size]
    source = {"kind": "checkpoint", "path": str(folder.absolute())}
    document = {
        "start": source if start.tokenizer is not None else source | {"changed": ["data.tokenizer"]},
        "model": start.model.model_dump(mode="json"),
        "data": {
            "tokenizer": start.tokenizer or fitting[-1],
            "seq_len": min(start.max_position_embeddings or 512, 512),
        },
        "optimizer": {"kind": "adamw", "lr": 1e-4},
        "loop": {"budget_tokens": 1_000_000, "global_batch_size": 8, "micro_batch_size": 1},
    }
    opening = f"# The model of a start checkpoint: {start.origin}. `data`, `optimizer` and `loop` are suggestions.\n"
    if start.tokenizer is None:
        opening += "# Its tokens are not those of data.tokenizer: the embeddings mean other text until trained anew.\n"
    return opening + yaml.safe_dump(document, sort_keys=False)
