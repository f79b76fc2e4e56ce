"""What a TrainConfig refuses across its sections: the message names the field, what was given and what is allowed."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.training import train_config

NSA: dict[str, Any] = {
    "kind": "nsa",
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "compression_block_size": 8,
    "compression_stride": 4,
    "selection_block_size": 8,
    "num_selected_blocks": 3,
    "window": 8,
}


def test_compressed_block_must_fit_the_sequence() -> None:
    model = train_config().model.model_dump(mode="json")
    assert train_config(model=model | {"attention": NSA}).data.seq_len == 16
    longer = NSA | {"compression_block_size": 32, "selection_block_size": 32, "window": 32}
    with pytest.raises(ValidationError, match=r"model\.attention\.compression_block_size=32 exceeds data\.seq_len=16"):
        train_config(model=model | {"attention": longer})


def test_global_attention_is_checked_too() -> None:
    model = train_config().model.model_dump(mode="json")
    longer = NSA | {"compression_block_size": 32, "selection_block_size": 32, "window": 32}
    with pytest.raises(ValidationError, match=r"model\.global_attention\.attention\.compression_block_size=32 exceeds"):
        train_config(model=model | {"global_attention": {"every": 2, "attention": longer}})


def test_attention_that_no_layer_has_is_not_checked() -> None:
    model = train_config().model.model_dump(mode="json")
    longer = NSA | {"compression_block_size": 32, "selection_block_size": 32, "window": 32}
    config = train_config(
        model=model | {"attention": longer, "global_attention": {"every": 1, "attention": model["attention"]}}
    )
    assert {attention.kind for attention in config.model.layer_attentions()} == {"gqa"}


def test_vocabulary_must_hold_the_tokenizer() -> None:
    with pytest.raises(ValidationError, match="vocab_size=512 is smaller than the 1024 tokens"):
        train_config(model={"vocab_size": 512})


def test_corpus_too_rare_to_be_scheduled_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"give it at least 0\.0001 of them"):
        train_config(data={"mixture": {"legal": 1e-6, "speeches": 1.0}})


def test_unknown_corpus_lists_those_there_are() -> None:
    with pytest.raises(ValidationError, match="no corpus named 'webtext'; there are: books, code_python"):
        train_config(data={"mixture": {"webtext": 1.0}})


def test_micro_batch_must_divide_the_batch() -> None:
    with pytest.raises(ValidationError, match="global_batch_size=8 is not a multiple of micro_batch_size=3"):
        train_config(loop={"micro_batch_size": 3})


@pytest.mark.parametrize(
    ("precision", "widths", "message"),
    [
        ({"kind": "fp8"}, (40, 32), r"model\.dim=40 is not a multiple of 16, which precision\.kind='fp8'"),
        ({"kind": "fp8", "scaling": "block"}, (128, 64), r"model\.moe\.hidden_dim=64 is not a multiple of 128"),
        ({"kind": "mxfp8"}, (32, 48), r"model\.moe\.hidden_dim=48 is not a multiple of 32, which .*'mxfp8'"),
        ({"kind": "nvfp4"}, (32, 24), r"model\.moe\.hidden_dim=24 is not a multiple of 16, which .*'nvfp4'"),
    ],
)
def test_narrow_formats_need_whole_blocks(precision: dict[str, Any], widths: tuple[int, int], message: str) -> None:
    moe = {"num_experts": 4, "top_k": 2, "hidden_dim": widths[1]}
    with pytest.raises(ValidationError, match=message):
        train_config(model={"dim": widths[0], "moe": moe}, precision=precision)
    fitting = train_config(model={"dim": 128, "moe": moe | {"hidden_dim": 128}}, precision=precision)
    assert fitting.precision.kind == precision["kind"]


@pytest.mark.parametrize("kind", ["fp8", "mxfp8", "nvfp4"])
def test_precision_of_experts_needs_experts(kind: str) -> None:
    with pytest.raises(ValidationError, match=rf"precision\.kind='{kind}' .* model\.moe is null; choose 'fp32'"):
        train_config(model={"moe": None}, precision={"kind": kind})
