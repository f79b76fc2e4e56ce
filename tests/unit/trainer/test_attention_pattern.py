"""Which layer has which attention."""

import pytest
import torch
from pydantic import ValidationError

from tests.support.component_configs import attention_examples
from tests.support.models import CPU, model_config, random_tokens, tiny_model
from trainer.attention import ATTENTIONS
from trainer.config.model import ModelConfig
from trainer.model.build import build_model
from trainer.model.size import model_size

GLOBAL = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}


def pattern(num_layers: int, every: int) -> str:
    """Returns one letter per layer: l for local, G for global."""
    config = local_and_global(num_layers, every)
    return "".join("G" if attention.window is None else "l" for attention in config.layer_attentions())


def local_and_global(num_layers: int, every: int, window: int = 3) -> ModelConfig:
    return model_config(
        num_layers=num_layers,
        attention={"window": window},
        global_attention={"every": every, "attention": GLOBAL},
    )


@pytest.mark.parametrize(
    ("num_layers", "every", "expected"),
    [(6, 2, "lGlGlG"), (7, 3, "llGllGG"), (4, 1, "GGGG"), (4, 9, "lllG"), (1, 4, "G"), (8, 4, "lllGlllG")],
)
def test_every_nth_and_the_last_layer_are_global(num_layers: int, every: int, expected: str) -> None:
    assert pattern(num_layers, every) == expected


def test_without_a_pattern_all_layers_are_the_same() -> None:
    config = model_config(num_layers=3)
    assert config.layer_attentions() == (config.attention,) * 3


def test_built_layers_follow_the_pattern() -> None:
    model = build_model(local_and_global(5, 2), seed=0, device=CPU)
    assert [block.attention.window for block in model.blocks] == [3, None, 3, None, None]


def test_information_passes_further_than_the_windows_through_a_global_layer_only() -> None:
    tokens_BL = random_tokens(1, 12)
    changed_BL = tokens_BL.clone()
    changed_BL[0, 0] = (changed_BL[0, 0] + 1) % 64
    # Two local layers of 3 positions reach 4 positions back, not 11.
    local = tiny_model(model_config(attention={"window": 3}))
    mixed = tiny_model(local_and_global(2, 2))
    for model, arrives in ((local, False), (mixed, True)):
        moved = (model(tokens_BL).logits_BLV[0, -1] - model(changed_BL).logits_BLV[0, -1]).abs().max()
        assert bool(moved > 1e-6) is arrives


def test_a_window_that_covers_the_sequence_changes_nothing() -> None:
    tokens_BL = random_tokens(2, 9)
    whole, windowed = (tiny_model(model_config(attention={"window": window})) for window in (None, 9))
    assert torch.equal(whole(tokens_BL).logits_BLV, windowed(tokens_BL).logits_BLV)


def test_a_pattern_needs_its_period() -> None:
    with pytest.raises(ValidationError, match=r"global_attention\.every"):
        model_config(global_attention={"attention": GLOBAL})


@pytest.mark.parametrize("local", ATTENTIONS)
def test_any_kind_goes_with_any_other(local: str) -> None:
    """Size, past logits and documents of a model whose layers have different kinds, as in Kimi Linear."""
    examples = attention_examples()
    for name in ("mla-q-lora", "nsa-blocks"):
        document = {
            "num_layers": 3,
            "attention": examples[local].model_dump(),
            "global_attention": {"every": 2, "attention": examples[name].model_dump()},
        }
        config = ModelConfig.model_validate(model_config().model_dump() | document)
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config
        model = tiny_model(config).double()
        assert model_size(config).total == sum(parameter.numel() for parameter in model.parameters())
        tokens_BL = random_tokens(2, 12)
        whole, prefix = model(tokens_BL).logits_BLV, model(tokens_BL[:, :7]).logits_BLV
        torch.testing.assert_close(whole[:, :7], prefix, rtol=0, atol=1e-9)


def test_attention_without_a_kind_is_grouped_query_attention() -> None:
    config = ModelConfig.model_validate(
        model_config().model_dump() | {"attention": GLOBAL, "global_attention": {"every": 2, "attention": GLOBAL}}
    )
    assert {attention.kind for attention in config.layer_attentions()} == {"gqa"}


def test_an_unknown_kind_names_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'gqa', 'mla', 'kda', 'gdn', 'nsa'"):
        ModelConfig.model_validate(model_config().model_dump() | {"attention": GLOBAL | {"kind": "mqa"}})
