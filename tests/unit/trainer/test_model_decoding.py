"""A model decodes token by token what it computes for whole sequences."""

import pytest
import torch

from tests.support.component_configs import ATTENTION_VARIANTS, attention_examples
from tests.support.models import dense_and_moe_configs, model_config, moe_fields, random_tokens, tiny_model
from trainer.config.model import ModelConfig

CONFIGS: dict[str, ModelConfig] = dense_and_moe_configs() | {
    "kimi_linear": model_config(
        num_layers=4,
        moe=moe_fields(num_shared_experts=1),
        scales={"embedding": 3.0, "logits": 0.5, "residual": 0.7},
        global_attention={"every": 4, "attention": ATTENTION_VARIANTS["mla-q-lora"]},
    ).model_copy(update={"attention": attention_examples()["kda-heads"]}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_gives_the_logits_of_the_whole_sequence(name: str):
    model, tokens_BL = tiny_model(CONFIGS[name], spread=5.0).double().eval(), random_tokens(3, 14)
    whole = model(tokens_BL).logits_BLV
    pasts, decoded = None, []
    for tokens_B in tokens_BL.unbind(1):
        logits_BV, pasts = model.decode(tokens_B, pasts)
        decoded.append(logits_BV)
    torch.testing.assert_close(torch.stack(decoded, dim=1), whole, rtol=1e-9, atol=1e-9)
    assert len(pasts) == model.config.num_layers


def test_greedy_continuation_is_that_of_running_the_whole_text_again():
    model, tokens_BL = tiny_model(CONFIGS["moe_everything"]).double().eval(), random_tokens(2, 4)
    with torch.inference_mode():
        pasts, logits_BV = None, torch.empty(0)
        for tokens_B in tokens_BL.unbind(1):
            logits_BV, pasts = model.decode(tokens_B, pasts)
        text_BL = tokens_BL
        for _ in range(8):
            next_B = logits_BV.argmax(-1)
            assert torch.equal(next_B, model(text_BL).logits_BLV[:, -1].argmax(-1))
            text_BL = torch.cat([text_BL, next_B.unsqueeze(1)], dim=1)
            logits_BV, pasts = model.decode(next_B, pasts)
