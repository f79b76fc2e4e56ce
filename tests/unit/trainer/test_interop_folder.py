"""Folders of weights: shards, dtypes, both layouts of experts, and the two commands."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from tests.support.models import model_config, moe_fields, random_rows, tiny_model
from tests.support.training import train_config
from trainer.cli import main
from trainer.config_file import read_config
from trainer.data.tokenizer import tokenizer_path
from trainer.interop.decoder import ExpertNames
from trainer.interop.errors import NotImportable
from trainer.interop.exporting import export_hugging_face
from trainer.interop.importing import import_hugging_face
from trainer.interop.start import Start, load_start, save_start
from trainer.interop.weights import per_expert, read_weights, write_weights

NAMES = ExpertNames(layer="block_sparse_moe", gate="w1", up="w3", down="w2")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_weights_over_the_limit_are_cut_into_shards_with_an_index(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": random_rows(5, 10, seed=number) for number in range(5)}
    total = write_weights(tmp_path, tensors.items(), shard_bytes=2 * 5 * 10 * 4)
    assert total == 5 * 5 * 10 * 4
    names = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert [index["weight_map"][f"layer.{number}"] for number in range(5)] == [names[i] for i in (0, 0, 1, 1, 2)]
    read = read_weights(tmp_path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_missing_or_damaged_shard_is_named(tmp_path: Path) -> None:
    write_weights(tmp_path, [("a", torch.ones(4)), ("b", torch.ones(4))], shard_bytes=16)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(NotImportable, match="00002-of-00002"):
        read_weights(tmp_path)
    shard.unlink()
    with pytest.raises(NotImportable, match="00002-of-00002"):
        read_weights(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(NotImportable, match="pickled weights are not read"):
        read_weights(tmp_path)


def test_stacked_experts_come_apart() -> None:
    gate_up, down = random_rows(3, 8, 5), random_rows(3, 5, 4, seed=1)
    stacked = {
        "model.layers.7.mlp.experts.gate_up_proj": gate_up,
        "model.layers.7.mlp.experts.down_proj": down,
        "model.layers.7.mlp.gate.weight": random_rows(3, 5),
        "model.norm.weight": random_rows(5),
    }
    apart = per_expert(stacked, NAMES)
    assert len(apart) == 11
    assert torch.equal(apart["model.layers.7.block_sparse_moe.experts.2.w1.weight"], gate_up[2, :4])
    assert torch.equal(apart["model.layers.7.block_sparse_moe.experts.2.w3.weight"], gate_up[2, 4:])
    assert torch.equal(apart["model.layers.7.block_sparse_moe.experts.2.w2.weight"], down[2])
    assert per_expert(apart, NAMES).keys() == apart.keys()


def test_bfloat16_halves_the_files_and_comes_back_as_float32(tmp_path: Path) -> None:
    model = tiny_model(model_config(moe=moe_fields()))
    save_start(tmp_path / "start", Start(model.config, None, None, "a test"), model.state_dict())
    wide = export_hugging_face(tmp_path / "start", tmp_path / "wide")
    narrow = export_hugging_face(tmp_path / "start", tmp_path / "narrow", dtype="bfloat16")
    assert 2 * narrow.num_bytes == wide.num_bytes
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"
    import_hugging_face(tmp_path / "narrow", tmp_path / "again")
    _, state = load_start(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor.bfloat16().float()), name


def test_tied_heads_and_layers_for_further_tokens_are_left_out(tmp_path: Path) -> None:
    model = tiny_model(model_config())
    save_start(tmp_path / "start", Start(model.config, None, None, "a test"), model.state_dict())
    export_hugging_face(tmp_path / "start", tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    assert import_hugging_face(tmp_path / "hf", tmp_path / "again").num_left_out == 2


def test_a_trained_run_goes_out_and_comes_in_by_the_commands(tmp_path: Path) -> None:
    config = train_config(num_steps=2, model={"moe": {"num_experts": 4, "top_k": 2, "hidden_dim": 16}})
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert invoke("train", tmp_path / "train.yaml", "--out", tmp_path / "run", "--threads", 1).exit_code == 0

    result = invoke("export", "--hf", "--run", tmp_path / "run", "--out", tmp_path / "hf", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["model_type"], told["architecture"], told["origin"]) == (
        "mixtral",
        "MixtralForCausalLM",
        "run run, step 2",
    )
    document = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert document["max_position_embeddings"] == config.data.seq_len
    assert document["eos_token_id"] == 0
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == tokenizer_path("bpe-1024").read_bytes()

    result = invoke("import", "--hf", tmp_path / "hf", "--out", tmp_path / "start")
    assert result.exit_code == 0, result.stderr
    written = read_config(tmp_path / "start" / "train.yaml")
    assert written.data.tokenizer == "bpe-1024"
    assert written.start.model_dump()["path"] == str(tmp_path / "start")
    params = json.loads(invoke("params", tmp_path / "start" / "train.yaml", "--json").stdout)
    assert params["total"] == json.loads(invoke("params", tmp_path / "train.yaml", "--json").stdout)["total"]
    trained = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors")
    _, state = load_start(tmp_path / "start")
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())


def test_training_goes_on_from_an_import(tmp_path: Path) -> None:
    model = tiny_model(model_config(vocab_size=1024, moe=moe_fields()))
    save_start(tmp_path / "start", Start(model.config, None, None, "a test"), model.state_dict())
    export_hugging_face(tmp_path / "start", tmp_path / "hf", max_position_embeddings=16)
    import_hugging_face(tmp_path / "hf", tmp_path / "import")
    document = yaml.safe_load((tmp_path / "import" / "train.yaml").read_text())
    assert document["start"]["changed"] == ["data.tokenizer"]
    document["data"] |= {"mixture": {"legal": 1}, "evaluation_tokens": 64}
    document["loop"] |= {"budget_tokens": 128}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(document))
    result = invoke("train", tmp_path / "train.yaml", "--out", tmp_path / "run", "--threads", 1)
    assert result.exit_code == 0, result.stderr
    _, state = load_start(tmp_path / "run")
    moved = state["embedding.weight"] - model.embedding.weight
    assert 0 < moved.abs().max() < 1e-3  # one step of a rate of 1e-4, from the weights that came in


def test_the_commands_refuse_with_status_2_and_the_reason(tmp_path: Path) -> None:
    config = model_config(attention={"sinks": True})
    save_start(tmp_path / "start", Start(config, None, None, "a test"), tiny_model(config).state_dict())
    result = invoke("export", "--hf", "--run", tmp_path / "start", "--out", tmp_path / "hf")
    assert result.exit_code == 2
    assert "model.attention.sinks is True" in result.stderr
    assert not (tmp_path / "hf").exists()
    result = invoke("import", "--hf", tmp_path / "start", "--out", tmp_path / "again")
    assert result.exit_code == 2
    assert "config.json is missing" in result.stderr
