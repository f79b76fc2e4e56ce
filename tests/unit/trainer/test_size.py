"""Closed-form sizes against built models and against counts that others published."""

import subprocess
import sys
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch.utils.flop_counter import FlopCounterMode

from tests.support.models import (
    META,
    dense_and_moe_configs,
    model_config,
    moe_fields,
    random_rows,
    random_tokens,
    tiny_model,
)
from trainer.attention import ATTENTIONS
from trainer.attention.delta_rule import chunked_delta_rule
from trainer.config.attention import AttentionConfig, GatedDeltaNetConfig, KimiDeltaAttentionConfig
from trainer.config.model import ModelConfig
from trainer.model.attention_size import attention_parameters, mixing_flops
from trainer.model.build import build_model
from trainer.model.size import flops_per_token, model_size
from trainer.model.transformer import Transformer

ATTENTION: TypeAdapter[AttentionConfig] = TypeAdapter(AttentionConfig)


@st.composite
def any_config(draw: st.DrawFn) -> ModelConfig:
    """Any config this package can build, at widths that keep the shapes distinct."""
    num_kv_heads = draw(st.integers(1, 3))
    num_layers = draw(st.integers(1, 4))
    num_experts = draw(st.integers(2, 9))
    num_dense_layers = draw(st.integers(0, num_layers - 1))
    num_shared_experts = draw(st.integers(0, 3))
    learned = st.fixed_dictionaries({"kind": st.sampled_from(["top_k", "sinkhorn"]), "bias": st.booleans()})
    router = draw(learned | st.just({"kind": "hash"}))
    balancings = [[]] if router["kind"] == "hash" else [[], [{"kind": "loss_free_bias", "update_rate": 0.1}]]
    moe = st.fixed_dictionaries(
        {
            "num_experts": st.just(num_experts),
            "top_k": st.integers(1, num_experts),
            "hidden_dim": st.integers(1, 5).map(lambda width: 8 * width),
            "num_shared_experts": st.just(num_shared_experts),
            "shared_gate": st.booleans() if num_shared_experts else st.just(False),
            "num_dense_layers": st.just(num_dense_layers),
            "every": st.integers(1, num_layers - num_dense_layers),
            "expert_bias": st.booleans(),
            "router": st.just(router),
            "balancing": st.sampled_from(balancings),
            "activation": st.sampled_from(["swiglu", "geglu", "clamped_swiglu"]),
            "output_scale": st.none() | st.fixed_dictionaries({"init": st.just(2.0), "learned": st.booleans()}),
        }
    )
    return model_config(
        vocab_size=draw(st.integers(2, 90)),
        dim=8 * draw(st.integers(1, 6)),
        num_layers=num_layers,
        hidden_dim=8 * draw(st.integers(1, 9)),
        attention={
            "num_heads": num_kv_heads * draw(st.integers(1, 3)),
            "num_kv_heads": num_kv_heads,
            "head_dim": 2 * draw(st.integers(1, 7)),
            "qk_norm": draw(st.booleans()),
            "qk_norm_over": draw(st.sampled_from(["head", "all_heads"])),
            "bias": draw(st.sampled_from(["none", "qkv", "all"])),
            "sinks": draw(st.booleans()),
        },
        global_attention=draw(
            st.none()
            | st.fixed_dictionaries(
                {"every": st.integers(1, 5), "attention": st.just({"num_heads": 3, "num_kv_heads": 1, "head_dim": 10})}
            )
        ),
        moe=draw(st.none() | moe),
        tie_embeddings=draw(st.booleans()),
    )


def count(model: Transformer, config: ModelConfig, *, active: bool, without: tuple[str, ...] = ()) -> float:
    """Counts built parameters; of the stacked experts only the share a token visits, if `active`."""
    total = 0.0
    for name, parameter in model.named_parameters():
        share = config.moe.top_k / config.moe.num_experts if active and ".experts." in name else 1.0
        total += 0 if name in without else parameter.numel() * share
    return total


@given(config=any_config())
def test_counts_are_those_of_the_built_model(config: ModelConfig) -> None:
    model = build_model(config, seed=0, device=META)
    size = model_size(config)
    tables = ("embedding.weight", "head.weight")
    assert size.total == count(model, config, active=False)
    assert size.active == pytest.approx(count(model, config, active=True), rel=1e-12)
    assert size.non_embedding_total == count(model, config, active=False, without=tables)
    assert size.non_embedding_active == pytest.approx(count(model, config, active=True, without=tables), rel=1e-12)
    looked_up = () if config.tie_embeddings else ("embedding.weight",)
    assert size.active_minus_input_embedding == pytest.approx(
        count(model, config, active=True, without=looked_up), rel=1e-12
    )


@pytest.mark.parametrize("name", ["dense", "moe", "moe_everything", "moe_structure"])
def test_flops_are_those_torch_counts(name: str) -> None:
    # float64: the experts then are plain matrix products, which torch's counter knows.
    config = dense_and_moe_configs()[name]
    num_sequences, seq_len = 2, 16
    model = tiny_model(config).double()
    with FlopCounterMode(display=False) as counter:
        # By way of the logits: the counter does not know the in-place product in which the loss adds up a gradient.
        model(random_tokens(num_sequences, seq_len)).logits_BLV.logsumexp(-1).mean().backward()
    counts = counter.get_flop_counts()["Global"]
    attention = {op: flops for op, flops in counts.items() if "attention" in str(op)}
    # Attention is counted by the formula below instead: torch counts all L keys of a causal mask, and recomputation.
    products = sum(counts.values()) - sum(attention.values())
    width = config.attention.num_heads * config.attention.head_dim
    causal = 3 * config.num_layers * 2 * width * (seq_len + 1)
    assert flops_per_token(config, seq_len=seq_len) - causal == products / (num_sequences * seq_len)


def test_attention_flops_are_those_of_an_average_row_of_the_causal_mask() -> None:
    config = model_config(num_layers=3)
    width = config.attention.num_heads * config.attention.head_dim
    seq_len = 7
    per_key = 2 * 2 * width  # a score and a weighted value
    keys = sum(range(1, seq_len + 1)) / seq_len
    without = flops_per_token(config, seq_len=seq_len) - 3 * config.num_layers * per_key * keys
    matrices = sum(parameter.numel() for parameter in tiny_model(config).parameters() if parameter.dim() >= 2)
    assert without == 6 * matrices


def test_flops_do_not_depend_on_the_number_of_experts_but_for_the_router() -> None:
    few = model_config(moe=moe_fields(num_experts=4))
    many = model_config(moe=moe_fields(num_experts=64))
    difference = flops_per_token(many, seq_len=8) - flops_per_token(few, seq_len=8)
    assert difference == 6 * few.num_layers * few.dim * (64 - 4)


class Published(NamedTuple):
    """Counts others published, or that follow from their released weights."""

    total: int
    active: int | None = None
    active_minus_input_embedding: int | None = None
    non_embedding_total: int | None = None


def heads(num_heads: int, num_kv_heads: int, head_dim: int, *, qk_norm: bool = False) -> dict[str, object]:
    return {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, "qk_norm": qk_norm}


SPEEDRUN = {
    "vocab_size": 50304,
    "dim": 768,
    "num_layers": 12,
    "hidden_dim": 3072,
    "attention": heads(12, 12, 64),
    "tie_embeddings": False,
}
MLA = {
    "kind": "mla",
    "num_heads": 16,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
# Exact totals: number of elements in the released safetensors files, or exact counts in the authors' own reports.
PUBLISHED = {
    "nmoe-dense-d12": (SPEEDRUN, Published(190_532_352, 190_532_352, 151_898_880, 113_265_408)),
    "nmoe-moe64-d12": (
        SPEEDRUN
        | {
            "moe": {
                "num_experts": 64,
                "top_k": 6,
                "hidden_dim": 384,
                "num_shared_experts": 2,
                "num_dense_layers": 1,
                "router": {"score": "sigmoid"},
            }
        },
        Published(755_534_592, 191_073_024, 152_439_552, 678_267_648),
    ),
    "nmoe-moe256-d12": (
        SPEEDRUN | {"moe": {"num_experts": 256, "top_k": 7, "hidden_dim": 384, "num_shared_experts": 1}},
        Published(2_836_482_816, 192_891_648, 154_258_176, 2_759_215_872),
    ),
    "Mixtral-8x7B": (
        {
            "vocab_size": 32000,
            "dim": 4096,
            "num_layers": 32,
            "hidden_dim": 14336,
            "attention": heads(32, 8, 128),
            "moe": {"num_experts": 8, "top_k": 2, "hidden_dim": 14336},
            "tie_embeddings": False,
        },
        Published(46_702_792_704, 12_879_925_248, 12_748_853_248),
    ),
    "DeepSeekMoE-16B": (
        {
            "vocab_size": 102400,
            "dim": 2048,
            "num_layers": 28,
            "hidden_dim": 10944,
            "attention": heads(16, 16, 128),
            "moe": {
                "num_experts": 64,
                "top_k": 6,
                "hidden_dim": 1408,
                "num_shared_experts": 2,
                "num_dense_layers": 1,
                "router": {"normalize": False},
            },
            "tie_embeddings": False,
        },
        Published(16_375_728_128),
    ),
    "Qwen3-30B-A3B": (
        {
            "vocab_size": 151936,
            "dim": 2048,
            "num_layers": 48,
            "hidden_dim": 6144,
            "attention": heads(32, 4, 128, qk_norm=True),
            "moe": {"num_experts": 128, "top_k": 8, "hidden_dim": 768},
            "tie_embeddings": False,
        },
        Published(30_532_122_624),
    ),
    "Qwen3-0.6B": (
        {
            "vocab_size": 151936,
            "dim": 1024,
            "num_layers": 28,
            "hidden_dim": 3072,
            "attention": heads(16, 8, 128, qk_norm=True),
            "tie_embeddings": True,
        },
        Published(596_049_920),
    ),
    "OLMoE-1B-7B": (
        {
            "vocab_size": 50304,
            "dim": 2048,
            "num_layers": 16,
            "hidden_dim": 1024,
            "attention": heads(16, 16, 128, qk_norm=True) | {"qk_norm_over": "all_heads"},
            "moe": {"num_experts": 64, "top_k": 8, "hidden_dim": 1024},
            "tie_embeddings": False,
        },
        Published(6_919_161_856, 1_282_017_280, 1_178_994_688, 6_713_116_672),
    ),
    "Moonlight-16B-A3B": (
        {
            "vocab_size": 163840,
            "dim": 2048,
            "num_layers": 27,
            "hidden_dim": 11264,
            "attention": MLA,
            "moe": {
                "num_experts": 64,
                "top_k": 6,
                "hidden_dim": 1408,
                "num_shared_experts": 2,
                "num_dense_layers": 1,
                "router": {"score": "sigmoid", "scale": 2.446},
            },
            "tie_embeddings": False,
        },
        Published(15_960_108_544, 2_914_774_528, 2_579_230_208, 15_289_019_904),
    ),
    "DeepSeek-V2-Lite": (
        {
            "vocab_size": 102400,
            "dim": 2048,
            "num_layers": 27,
            "hidden_dim": 10944,
            "attention": MLA,
            "moe": {
                "num_experts": 64,
                "top_k": 6,
                "hidden_dim": 1408,
                "num_shared_experts": 2,
                "num_dense_layers": 1,
                "router": {"normalize": False},
            },
            "tie_embeddings": False,
        },
        Published(15_706_484_224),
    ),
    "nmoe-moonlight": (
        {
            "vocab_size": 201088,
            "dim": 2048,
            "num_layers": 27,
            "hidden_dim": 11264,
            "attention": MLA | {"q_lora_rank": 1536},
            "moe": {
                "num_experts": 64,
                "top_k": 6,
                "hidden_dim": 1408,
                "num_shared_experts": 2,
                "num_dense_layers": 1,
                "router": {"score": "sigmoid"},
            },
            "tie_embeddings": False,
        },
        Published(16_155_185_152, 3_109_851_136, 2_698_022_912, 15_331_528_704),
    ),
    "Llama-3-8B": (
        {
            "vocab_size": 128256,
            "dim": 4096,
            "num_layers": 32,
            "hidden_dim": 14336,
            "attention": heads(32, 8, 128),
            "tie_embeddings": False,
        },
        Published(8_030_261_248),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    document, published = PUBLISHED[name]
    size = model_size(ModelConfig.model_validate(document))
    for field, value in published._asdict().items():
        assert value is None or getattr(size, field) == value, field


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architecture_builds_with_its_count(name: str) -> None:
    document, published = PUBLISHED[name]
    model = build_model(ModelConfig.model_validate(document), seed=0, device=META)
    assert sum(parameter.numel() for parameter in model.parameters()) == published.total


MIXED = {
    "mla": {
        "kind": "mla",
        "num_heads": 3,
        "kv_lora_rank": 10,
        "q_lora_rank": 7,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
}


@pytest.mark.parametrize("kind", MIXED)
def test_flops_of_projections_are_those_torch_counts(kind: str) -> None:
    config = model_config(num_layers=3).model_copy(update={"attention": ATTENTION.validate_python(MIXED[kind])})
    with FlopCounterMode(display=False) as counter:
        tiny_model(config).double()(random_tokens(2, 16)).logits_BLV.logsumexp(-1).mean().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counts.items() if "attention" not in str(op))
    mixing = 3 * config.num_layers * mixing_flops(config.attention, seq_len=16)
    assert flops_per_token(config, seq_len=16) - mixing == products / (2 * 16)


@pytest.mark.parametrize(
    "config",
    [KimiDeltaAttentionConfig(num_heads=2, head_dim=6), GatedDeltaNetConfig(num_heads=2, head_dim=6, v_head_dim=10)],
    ids=lambda config: config.kind,
)
def test_weights_of_linear_attention_cost_two_flops_each(config: AttentionConfig) -> None:
    layer = ATTENTIONS[config.kind](config, dim=16, norm_eps=1e-6)
    delta_rule: list[float] = []

    def counted(*args: Any, **options: Any) -> Any:
        with FlopCounterMode(display=False) as inner:
            result = chunked_delta_rule(*args, **options)
        delta_rule.append(inner.get_total_flops())
        return result

    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
        patch.setattr("trainer.attention.delta_attention.chunked_delta_rule", counted)
        layer(random_rows(2, 20, 16))
    weights = attention_parameters(config, dim=16).matrices
    # The first positions see less than the whole convolution, which is counted whole.
    assert counter.get_total_flops() - delta_rule[0] == 2 * 20 * 2 * weights


def test_flops_of_linear_attention_do_not_grow_with_the_length() -> None:
    linear = KimiDeltaAttentionConfig(num_heads=4, head_dim=8)
    config = model_config().model_copy(update={"attention": linear})
    assert flops_per_token(config, seq_len=4096) == flops_per_token(config, seq_len=64)


def test_window_flops_are_those_of_the_visible_positions() -> None:
    windowed, whole = model_config(attention={"window": 5}), model_config()
    width = windowed.attention.num_heads * windowed.attention.head_dim
    seq_len = 12
    hidden = sum(max(0, position + 1 - 5) for position in range(seq_len)) / seq_len
    difference = flops_per_token(whole, seq_len=seq_len) - flops_per_token(windowed, seq_len=seq_len)
    assert difference == pytest.approx(3 * whole.num_layers * 4 * width * hidden, rel=1e-12)
    assert flops_per_token(whole, seq_len=5) == flops_per_token(windowed, seq_len=5)


def test_sizing_does_not_import_torch() -> None:
    check = "import sys, trainer.model.size, trainer.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
