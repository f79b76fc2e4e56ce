"""Every architecture we exchange weights with computes what `transformers` computes: logits, gradients, greedy tokens.

Both sides are float32 with the same random weights, gains and biases included. They differ in the order of sums only,
so the bound is 1e-5 of the largest entry of the tensor compared. A gradient that is the small rest of large
contributions, as a router's bias has it, keeps their rounding: for it the bound is 1e-6 of the model's largest entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.support.models import model_config, moe_fields, random_tokens, tiny_model
from trainer.config.model import ModelConfig
from trainer.data.tokenizer import load_tokenizer
from trainer.interop import ARCHITECTURES
from trainer.interop.architecture import computed_by
from trainer.interop.exporting import export_hugging_face
from trainer.interop.importing import import_hugging_face, read_config
from trainer.interop.start import Start, load_start, save_start
from trainer.model.transformer import Transformer

# Their constructor makes the matrices of no shared experts, and torch says that there is nothing to fill.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")

RELATIVE_TOLERANCE = 1e-5
STEERED = ({"kind": "loss_free_bias", "update_rate": 0.01},)
TOKENS = random_tokens(3, 12, seed=1)


def latent_model(
    *, router: dict[str, Any], norm_eps: float = 1e-6, balancing: Any = STEERED, **attention: Any
) -> ModelConfig:
    """Returns a dense layer and two with 8 routed and 2 shared experts, under latent attention."""
    dense = model_config(num_layers=3, norm_eps=norm_eps, tie_embeddings=False).model_dump()
    sizes = {"num_heads": 3, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8}
    moe = moe_fields(
        num_experts=8,
        num_shared_experts=2,
        num_dense_layers=1,
        router={"score": "sigmoid", "scale": 2.5} | router,
        balancing=balancing,
    )
    return ModelConfig.model_validate(dense | {"attention": {"kind": "mla"} | sizes | attention, "moe": moe})


def grouped_model(attention: dict[str, Any], *, router: dict[str, Any], **moe: Any) -> ModelConfig:
    """Returns a dense layer and two of 8 experts chosen by sigmoid scores, under grouped queries."""
    experts = {"num_experts": 8, "num_dense_layers": 1, "balancing": STEERED, "router": {"score": "sigmoid"} | router}
    return model_config(num_layers=3, attention=attention, moe=moe_fields(**(experts | moe)))


GROUPS = {"kind": "group_limited", "num_groups": 4, "groups_per_token": 2, "group_score": "best_two"}
SINKS = {"sinks": True, "bias": "all"}
GPT_OSS_EXPERTS = moe_fields(expert_bias=True, activation="clamped_swiglu", router={"bias": True})
SOFTMAX = {"score": "softmax", "normalize": False}
OLMOE_NORM = {"qk_norm": True, "qk_norm_over": "all_heads"}

CASES = {
    "llama": model_config(attention={"rope_theta": 500.0}),
    "llama/bias-untied": model_config(attention={"bias": "all"}, tie_embeddings=False),
    "mixtral": model_config(moe=moe_fields()),
    "mixtral/window-untied": model_config(moe=moe_fields(), attention={"window": 4}, tie_embeddings=False),
    "olmoe": model_config(moe=moe_fields(router={"normalize": False}), attention=OLMOE_NORM, tie_embeddings=False),
    "olmoe/normalized-bias": model_config(moe=moe_fields(), attention=OLMOE_NORM | {"bias": "all"}),
    "qwen2_moe": model_config(
        moe=moe_fields(num_shared_experts=2, shared_gate=True, router={"normalize": False}), attention={"bias": "qkv"}
    ),
    "qwen2_moe/every-second": model_config(
        moe=moe_fields(num_shared_experts=1, shared_gate=True, every=2), num_layers=4, tie_embeddings=False
    ),
    "qwen3": model_config(attention={"qk_norm": True}),
    "qwen3_moe": model_config(moe=moe_fields(), attention={"qk_norm": True, "head_dim": 16}, norm_eps=1e-6),
    "qwen3_moe/dense-first-window": model_config(
        moe=moe_fields(num_dense_layers=1, router={"normalize": False}),
        attention={"qk_norm": True, "window": 5, "bias": "all"},
        num_layers=3,
        tie_embeddings=False,
    ),
    "gpt_oss": model_config(
        num_layers=4,
        attention=SINKS | {"window": 3},
        global_attention={"every": 2, "attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8} | SINKS},
        moe=GPT_OSS_EXPERTS,
        tie_embeddings=False,
    ),
    "gpt_oss/no-window": model_config(attention=SINKS, moe=GPT_OSS_EXPERTS),
    "glm4_moe": grouped_model({"qk_norm": True}, router=GROUPS, num_shared_experts=1),
    "glm4_moe/bias-none-shared": grouped_model({"bias": "qkv"}, num_dense_layers=0, router={"normalize": False}),
    "deepseek_v2": latent_model(router=SOFTMAX, num_heads=4, balancing=()),
    "deepseek_v2/groups": latent_model(
        router=GROUPS | SOFTMAX | {"group_score": "best"}, num_heads=4, q_lora_rank=12, balancing=()
    ),
    "deepseek_v3": latent_model(router=GROUPS, q_lora_rank=12),
    "deepseek_v3/no-q-lora-no-groups": latent_model(router={"normalize": False}),
    "deepseek_v3/other-epsilon": latent_model(router=GROUPS, norm_eps=1e-3, q_lora_rank=12),
}
"""Our models by the architecture they are written as, and what they vary."""

THEIR_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
THEIR_CONFIGS = {
    "llama": {"num_key_value_heads": 2, "attention_bias": True, "head_dim": 12},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "sliding_window": 5},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_key_value_heads": 2,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32,
        "mlp_only_layers": [0],
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
    },
    "gpt_oss": {
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150_000.0},
    },
    "glm4_moe": {
        "num_key_value_heads": 2,
        "partial_rotary_factor": 1.0,
        "use_qk_norm": True,
        "attention_bias": True,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
    },
    "deepseek_v2": {
        "num_hidden_layers": 3,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "deepseek_v3": {
        "num_hidden_layers": 3,
        "num_key_value_heads": None,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "rms_norm_eps": 1e-5,
        "rope_interleave": False,
    },
}
"""Fields of a small model of each architecture, in the words of transformers."""


@dataclass(frozen=True)
class Pair:
    """One of our models, and what transformers loaded from its export."""

    ours: Transformer
    theirs: nn.Module
    folder: Path
    loading: Mapping[str, Any]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Returns every case, exported and loaded."""
    folder = tmp_path_factory.mktemp("interop")
    model = scattered_model(CASES[request.param])
    save_start(folder / "start", Start(model.config, None, None, "a test"), model.state_dict())
    exported = export_hugging_face(folder / "start", folder / "hf")
    assert exported.model_type == request.param.partition("/")[0]
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", output_loading_info=True)
    return Pair(model, theirs.train(), folder / "hf", loading)


def scattered_model(config: ModelConfig) -> Transformer:
    """Returns a model in which no two gains, biases or selection biases are equal."""
    model = tiny_model(config)
    scatter({name: tensor for name, tensor in model.state_dict().items() if tensor.dim() == 1})
    return model


def scatter(vectors: Mapping[str, Tensor]) -> None:
    """Fills gains with values around 1, all other vectors with values around 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in vectors.items():
            centre, spread = (1.0, 0.3) if name.endswith(("gain", "norm.weight")) else (0.0, 0.2)
            tensor.copy_(centre + spread * torch.randn(tensor.shape, generator=generator))


def assert_close(actual: Tensor, expected: Tensor, name: str, *, at_least: float = 0.0) -> None:
    """Fails unless every entry is within the tolerance, in units of the largest one expected or of `at_least`."""
    scale = max(expected.abs().max().item(), at_least)
    assert expected.any(), f"{name} is zero everywhere and shows nothing"
    difference = (actual - expected).abs().max().item()
    assert difference <= RELATIVE_TOLERANCE * scale, f"{name}: off by {difference / scale:.1e} of {scale:.1e}"


def test_every_architecture_has_a_case() -> None:
    assert {name.partition("/")[0] for name in CASES} == set(ARCHITECTURES)


def test_export_has_every_tensor_and_no_other(pair: Pair) -> None:
    assert not any(pair.loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_logits_equal_theirs(pair: Pair) -> None:
    with torch.no_grad():
        ours = pair.ours(TOKENS).logits_BLV
    assert ours is not None
    assert_close(ours, pair.theirs(TOKENS).logits.detach(), "logits")


def test_gradients_of_a_step_equal_theirs(pair: Pair) -> None:
    inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]
    pair.ours.zero_grad()
    pair.theirs.zero_grad()
    loss = pair.ours(inputs, targets).loss
    assert loss is not None
    loss.backward()
    F.cross_entropy(pair.theirs(inputs).logits.flatten(0, 1), targets.flatten()).backward()
    architecture, fields, _ = read_config(pair.folder)
    gradients = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    theirs = architecture.unpacked({name: gradient for name, gradient in gradients.items() if gradient is not None})
    ours = dict(pair.ours.named_parameters())
    largest = max(gradient.abs().max().item() for gradient in theirs.values() if gradient.numel())
    rules = {rule.ours: rule for rule in architecture.rules(fields)}
    for name, parameter in ours.items():
        rule = rules[name]
        # The gradient with respect to ours through what the export made of it.
        _, pull_back = torch.func.vjp(rule.layout.to_theirs, parameter.detach())
        (expected,) = pull_back(tuple(theirs[their_name] for their_name in rule.theirs))
        assert parameter.grad is not None
        assert_close(parameter.grad, expected, name, at_least=0.1 * largest)


def test_greedy_tokens_equal_theirs(pair: Pair) -> None:
    prompt = TOKENS[:2, :4]
    generated = pair.theirs.eval().generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ours = prompt
    for _ in range(6):
        with torch.no_grad():
            logits_BLV = pair.ours(ours).logits_BLV
        assert logits_BLV is not None
        ours = torch.cat([ours, logits_BLV[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, ours)


@pytest.mark.parametrize("original_format", [True, False], ids=["one-matrix-per-expert", "stacked-experts"])
@pytest.mark.parametrize("model_type", THEIR_CONFIGS)
def test_import_computes_what_their_model_does(model_type: str, original_format: bool, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(model_type, **(THEIR_SIZES | THEIR_CONFIGS[model_type]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    scatter({name: tensor for name, tensor in theirs.state_dict().items() if tensor.dim() == 1})
    theirs.save_pretrained(tmp_path / "hf", save_original_format=original_format)
    import_hugging_face(tmp_path / "hf", tmp_path / "start")
    model_config, state = load_start(tmp_path / "start")
    ours = Transformer(model_config)
    ours.load_state_dict(state)
    with torch.no_grad():
        logits_BLV = ours(TOKENS).logits_BLV
    assert logits_BLV is not None
    assert_close(logits_BLV, theirs(TOKENS).logits.detach(), "logits")


@pytest.mark.parametrize("case", CASES)
def test_import_of_an_export_is_the_model_to_the_last_bit(case: str, tmp_path: Path) -> None:
    model = scattered_model(CASES[case])
    save_start(tmp_path / "start", Start(model.config, None, None, "a test"), model.state_dict())
    export_hugging_face(tmp_path / "start", tmp_path / "hf")
    import_hugging_face(tmp_path / "hf", tmp_path / "again")
    config, state = load_start(tmp_path / "again")
    assert computed_by(config) == computed_by(model.config)
    for name, tensor in model.state_dict().items():
        if case == "deepseek_v3/other-epsilon" and name.endswith(("kv_down.weight", "query.down.weight")):
            assert_close(state[name], tensor, name)  # scaled there, so rounded twice
        else:
            assert torch.equal(state[name], tensor), name


def test_auto_tokenizer_gives_our_tokens(tmp_path: Path) -> None:
    config = model_config(vocab_size=1024)
    save_start(tmp_path / "start", Start(config, "bpe-1024", 128, "a test"), tiny_model(config).state_dict())
    export_hugging_face(tmp_path / "start", tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = load_tokenizer("bpe-1024")
    for text in ("The court held, in 1999, that\n\tx += 1  ", "caf\u00e9 \u4e2d\u6587 \U0001f600", ""):
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token_id, theirs.model_max_length) == (ours.end_of_text_id, 128)
