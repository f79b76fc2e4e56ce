"""What cannot be exchanged is refused with what stands in the way; nothing is written wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models import model_config, moe_fields, tiny_model
from trainer.config.model import ModelConfig
from trainer.config_file import find_config
from trainer.interop import ARCHITECTURES
from trainer.interop.architecture import architecture_of, computed_by
from trainer.interop.errors import NotExportable, NotImportable
from trainer.interop.exporting import export_hugging_face
from trainer.interop.importing import import_hugging_face, read_config
from trainer.interop.start import Start, save_start

MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
}
NSA = {
    "kind": "nsa",
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "compression_block_size": 4,
    "compression_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 3,
    "window": 4,
}


def with_attention(config: ModelConfig, attention: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate(config.model_dump() | {"attention": attention})


def written_start(folder: Path, config: ModelConfig) -> Path:
    save_start(folder, Start(config, None, None, "a test"), tiny_model(config).state_dict())
    return folder


@pytest.mark.parametrize(
    ("config", "obstacle"),
    [
        (with_attention(model_config(), NSA), "model.attention.kind is nsa"),
        (model_config(attention={"sinks": True}), "model.attention.sinks is True"),
        (model_config(attention={"window": 4}), "model.attention.window is 4"),
        (model_config(attention={"bias": "qkv"}), "model.attention.bias is qkv"),
        (model_config(moe=moe_fields(num_shared_experts=1)), "model.moe.num_shared_experts is 1"),
        (model_config(moe=moe_fields(router={"kind": "hash"})), "model.moe.router.kind is hash"),
        (model_config(moe=moe_fields(router={"scale": 2.0})), "model.moe.router.scale is 2.0"),
        (model_config(moe=moe_fields(router={"score": "sigmoid"}, every=2)), "model.moe.router.score is sigmoid"),
        (model_config(moe=moe_fields(num_dense_layers=1)), "model.moe.num_dense_layers is 1"),
        (
            model_config(
                global_attention={"every": 2, "attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}},
                num_layers=3,
            ),
            "model.global_attention is set",
        ),
    ],
)
def test_refusal_names_what_stands_in_the_way(config: ModelConfig, obstacle: str) -> None:
    with pytest.raises(NotExportable) as refused:
        architecture_of(config)
    assert obstacle in str(refused.value)
    assert all(f"  {name}: " in str(refused.value) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("preset", "model_type"),
    [
        ("cpu-tiny", "glm4_moe"),
        ("deepseek-v2-lite", "deepseek_v2"),
        ("gpt-oss-20b", "gpt_oss"),
        ("gpu-medium", "glm4_moe"),
        ("mixtral-8x7b", "mixtral"),
        ("moonlight-16b-a3b", "deepseek_v3"),
        ("nmoe-speedrun-dense", "llama"),
        ("olmoe-1b-7b", "olmoe"),
        ("qwen3-30b-a3b", "qwen3_moe"),
    ],
)
def test_presets_are_written_as_what_they_are_of(preset: str, model_type: str) -> None:
    assert architecture_of(find_config(preset).model).model_type == model_type


def test_fields_of_a_preset_are_those_published() -> None:
    fields = architecture_of(find_config("olmoe-1b-7b").model).fields_of(
        find_config("olmoe-1b-7b").model, max_position_embeddings=4096
    )
    # config.json of the released OLMoE-1B-7B-0924.
    published = {
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "clip_qkv": None,
        "tie_word_embeddings": False,
        "vocab_size": 50_304,
    }
    assert {name: fields.document()[name] for name in published} == published


def test_refusal_of_a_wanted_architecture_speaks_of_it_alone() -> None:
    with pytest.raises(NotExportable, match=r"olmoe: model\.attention\.qk_norm is False") as refused:
        architecture_of(model_config(moe=moe_fields()), "olmoe")
    assert "mixtral" not in str(refused.value)


def test_what_only_training_knows_is_no_obstacle() -> None:
    noise = {"input_jitter": 0.1, "logit_noise": 1.0}
    trained = moe_fields(router=noise, balancing=[{"kind": "router_z_loss", "coefficient": 0.1}])
    plain = model_config(moe=moe_fields())
    config = model_config(moe=trained, init_std=0.5, hidden_dim=80)
    assert architecture_of(config).model_type == "mixtral"
    assert computed_by(config) == computed_by(plain)


def test_a_bias_that_moved_has_no_place_but_in_deepseek(tmp_path: Path) -> None:
    config = model_config(moe=moe_fields(balancing=[{"kind": "loss_free_bias", "update_rate": 0.1}]))
    model = tiny_model(config)
    start = Start(config, None, None, "a test")
    save_start(tmp_path / "unmoved", start, model.state_dict())
    assert export_hugging_face(tmp_path / "unmoved", tmp_path / "hf").model_type == "mixtral"
    for layer in model.moe_layers():
        assert layer.selection_bias_E is not None
        layer.selection_bias_E[0] = 0.1
    save_start(tmp_path / "moved", start, model.state_dict())
    with pytest.raises(NotExportable, match=r"blocks\.0\.feed_forward\.selection_bias_E"):
        export_hugging_face(tmp_path / "moved", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_existing_folder_is_not_written_into(tmp_path: Path) -> None:
    source = written_start(tmp_path / "start", model_config())
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    with pytest.raises(NotExportable, match="not an empty folder"):
        export_hugging_face(source, tmp_path / "hf")
    assert (tmp_path / "hf" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"hidden_act": "gelu"}, "hidden_act: given 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters.rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters.rope_type: given 'linear'"),
        ({"partial_rotary_factor": 0.5}, "rope_parameters.partial_rotary_factor: given 0.5"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"hidden_size": 33}, "dim: given 33"),
        ({"model_type": "gpt2"}, "importable are llama"),
    ],
)
def test_a_config_we_cannot_compute_is_refused_by_field(fields: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL | fields))
    with pytest.raises(NotImportable) as refused:
        read_config(tmp_path)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("legacy", [{"rope_theta": 500.0}, {"rope_theta": 500.0, "rope_scaling": None}])
def test_positions_are_read_in_both_forms(legacy: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL | legacy))
    _, _, old = read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL | {"rope_parameters": {"rope_theta": 500.0}}))
    _, _, new = read_config(tmp_path)
    assert old == new
    assert old.attention.model_dump()["rope_theta"] == 500.0


def test_tensors_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = written_start(tmp_path / "start", model_config())
    weights = tmp_path / "hf" / "model.safetensors"
    export_hugging_face(source, tmp_path / "hf")
    tensors = load_file(weights)
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    del tensors["model.norm.weight"]
    save_file(tensors, weights)
    with pytest.raises(NotImportable, match=r"missing model\.norm\.weight; unknown model\.layers\.0.*q_norm"):
        import_hugging_face(tmp_path / "hf", tmp_path / "again")


def test_tensors_of_another_shape_than_the_config_says_are_named(tmp_path: Path) -> None:
    source = written_start(tmp_path / "start", model_config())
    export_hugging_face(source, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 64}))
    with pytest.raises(NotImportable, match=r"gate_proj\.weight has shape \(48, 32\)"):
        import_hugging_face(tmp_path / "hf", tmp_path / "again")
