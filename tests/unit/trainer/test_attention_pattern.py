"""Which layer has which attention."""

import pytest
import torch
from pydantic import ValidationError

from tests.support.models import CPU, model_config, random_tokens, tiny_model
from trainer.config.model import ModelConfig
from trainer.model.build import build_model

GLOBAL = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}


def pattern(num_layers: int, every: int) -> str:
    config = local_and_global(num_layers, every)
    return "".join("global" if each.window is None else "l" for each in config.layer_attentions()).replace(
        "global", "G"
    )


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
