"""What an attention config refuses: the error has the path of the attention, and says which field and what to do."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.component_configs import ATTENTION_VARIANTS, attention_examples
from tests.support.models import model_config
from trainer.config.model import ModelConfig

GQA: dict[str, Any] = {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
MLA: dict[str, Any] = ATTENTION_VARIANTS["mla-q-lora"]
KDA: dict[str, Any] = ATTENTION_VARIANTS["kda-heads"]
GDN: dict[str, Any] = ATTENTION_VARIANTS["gdn-heads"]
NSA: dict[str, Any] = ATTENTION_VARIANTS["nsa-blocks"]

# Each: the config, the field that the error is about (None where it is about several), and what it says.
REFUSED = [
    (GQA | {"num_kv_heads": 3}, None, "num_heads=4 is not a multiple of num_kv_heads=3; choose a divisor of 4"),
    (GQA | {"num_kv_heads": 8}, None, "num_heads=4 is not a multiple of num_kv_heads=8; choose a divisor of 4"),
    (GQA | {"head_dim": 7}, "head_dim", "multiple of 2"),
    (GQA | {"num_heads": 0}, "num_heads", "greater than or equal to 1"),
    (GQA | {"window": 0}, "window", "greater than or equal to 1"),
    (GQA | {"bias": "k"}, "bias", "'none', 'qkv' or 'all'"),
    (GQA | {"qk_norm_over": "heads"}, "qk_norm_over", "'head' or 'all_heads'"),
    (GQA | {"rope_theta": 1.0}, "rope_theta", "greater than 1"),
    (GQA | {"windows": 4}, "windows", "Extra inputs are not permitted"),
    (MLA | {"qk_rope_head_dim": 3}, "qk_rope_head_dim", "multiple of 2"),
    (MLA | {"kv_lora_rank": 0}, "kv_lora_rank", "greater than or equal to 1"),
    (MLA | {"q_lora_rank": 0}, "q_lora_rank", "greater than or equal to 1"),
    (KDA | {"conv_size": 0}, "conv_size", "greater than or equal to 1"),
    (KDA | {"conv_size": 65}, "conv_size", "less than or equal to 64"),
    (KDA | {"head_dim": 1}, "head_dim", "greater than or equal to 2"),
    (GDN | {"v_head_dim": 1}, "v_head_dim", "greater than or equal to 2"),
    (NSA | {"num_kv_heads": 3}, None, "num_heads=4 is not a multiple of num_kv_heads=3; choose a divisor of 4"),
    (NSA | {"num_selected_blocks": 2}, "num_selected_blocks", "greater than or equal to 3"),
    (
        NSA | {"compression_block_size": 3},
        None,
        "compression_block_size=3 is not a multiple of compression_stride=2; choose a multiple",
    ),
    (
        NSA | {"selection_block_size": 5},
        None,
        "selection_block_size=5 is not a multiple of compression_stride=2; choose a multiple",
    ),
    (NSA | {"compression_stride": 8}, None, "compression_block_size=4 is not a multiple of compression_stride=8"),
    (NSA | {"compression_block_size": 6}, None, "compression_block_size=6 exceeds selection_block_size=4; lower it"),
    (NSA | {"window": 3}, None, "selection_block_size=4 exceeds window=3; lower it or widen the window"),
]


def refused_ids(case: Any) -> str | None:
    return case[:40] if isinstance(case, str) else None


@pytest.mark.parametrize("place", [("attention",), ("global_attention", "attention")], ids=".".join)
@pytest.mark.parametrize(("document", "field", "says"), REFUSED, ids=refused_ids)
def test_impossible_attention_is_refused_at_its_path(
    place: tuple[str, ...], document: dict[str, Any], field: str | None, says: str
) -> None:
    inner: dict[str, Any] = {"attention": document}
    changed = inner if place == ("attention",) else {"global_attention": {"every": 2, **inner}}
    with pytest.raises(ValidationError) as raised:
        ModelConfig.model_validate(model_config().model_dump(mode="json") | changed)
    (error,) = raised.value.errors()
    assert error["loc"] == (*place, document["kind"], *(() if field is None else (field,)))
    assert says in error["msg"]


def test_examples_are_what_they_were_written_as() -> None:
    for name, config in attention_examples().items():
        assert type(config).model_validate(config.model_dump(mode="json")) == config, name


@pytest.mark.parametrize("window", [16, 2**24])
def test_window_longer_than_any_sequence_is_no_error(window: int) -> None:
    """One config serves several lengths: such a window hides nothing (see test_attention_pattern)."""
    config = model_config(attention=GQA | {"window": window})
    assert [attention.window for attention in config.layer_attentions()] == [window, window]
