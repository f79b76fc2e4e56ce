"""Multipliers and initial standard deviations."""

import math

import pytest
import torch

from tests.support.models import CPU, model_config, moe_fields, random_rows, random_tokens, tiny_model
from trainer.config.model import ModelConfig
from trainer.model.build import build_model
from trainer.model.cross_entropy import linear_cross_entropy

SCALES = {"embedding": 10.667, "logits": 0.125, "residual": 0.5}


def scaled(moe: dict | None = None, **scales: float) -> ModelConfig:
    return model_config(moe=moe, scales=scales, tie_embeddings=False)


def test_scales_are_where_they_say() -> None:
    model, plain = (tiny_model(scaled(moe_fields(), **values)).double() for values in (SCALES, {}))
    tokens_BL = random_tokens(2, 7)
    x_BLD = plain.embedding(tokens_BL) * 10.667
    for block in plain.blocks:
        x_BLD = x_BLD + 0.5 * block.attention(block.attention_norm(x_BLD))
        x_BLD = x_BLD + 0.5 * block.feed_forward(block.feed_forward_norm(x_BLD))[0]
    expected = 0.125 * plain.head(plain.final_norm(x_BLD))
    torch.testing.assert_close(model(tokens_BL).logits_BLV, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("moe", [None, moe_fields()])
def test_scales_of_one_are_bit_for_bit_none(moe: dict | None) -> None:
    with_ones, without = (
        build_model(model_config(moe=moe, **fields), seed=0, device=CPU)
        for fields in ({"scales": {"embedding": 1, "logits": 1, "residual": 1}}, {})
    )
    tokens_BL = random_tokens(2, 7)
    losses = [model(tokens_BL, tokens_BL).loss for model in (with_ones, without)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("scale", [0.125, 3.0])
@pytest.mark.parametrize("grad", [True, False])
def test_scaled_loss_is_that_of_scaled_logits(scale: float, grad: bool) -> None:
    hidden_TD, weight_VD = (random_rows(*shape, dtype=torch.float64) for shape in ((150, 8), (20_000, 8)))
    targets_T = random_tokens(1, 150, vocab_size=20_000)[0]
    results = []
    for fused in (True, False):
        leaves = [tensor.clone().requires_grad_(grad) for tensor in (hidden_TD, weight_VD)]
        if fused:
            loss = linear_cross_entropy(*leaves, targets_T, scale=scale)
        else:
            loss = torch.nn.functional.cross_entropy(scale * leaves[0] @ leaves[1].t(), targets_T)
        results.append((loss, *(torch.autograd.grad(loss, leaves) if grad else ())))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


def test_scaled_loss_under_autocast() -> None:
    hidden_TD, weight_VD = (random_rows(*shape).requires_grad_() for shape in ((40, 16), (30, 16)))
    targets_T = random_tokens(1, 40, vocab_size=30)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden_TD, weight_VD, targets_T, scale=0.25)
    expected = torch.nn.functional.cross_entropy(0.25 * hidden_TD @ weight_VD.t(), targets_T)
    # bfloat16 products: 8 bits, averaged over 40 tokens.
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=0)
    for actual, wanted in zip(
        torch.autograd.grad(loss, (hidden_TD, weight_VD)),
        torch.autograd.grad(expected, (hidden_TD, weight_VD)),
        strict=True,
    ):
        assert (actual - wanted).norm() < 0.02 * wanted.norm()


def stds(**fields: object) -> dict[str, float]:
    config = model_config(num_layers=2, dim=64, vocab_size=512, tie_embeddings=False, **fields)
    model = build_model(config, seed=0, device=CPU)
    # A normal cut at 3 sigma has 0.9866 of its deviation.
    return {
        name: parameter.std().item() / 0.9866 for name, parameter in model.named_parameters() if parameter.dim() > 1
    }


def test_factors_move_their_role_alone() -> None:
    moe = moe_fields(hidden_dim=64)
    plain, factored = stds(moe=moe), stds(moe=moe, init={"expert_factor": 2.0, "router_factor": 0.5})
    for name, std in factored.items():
        factor = 2.0 if ".experts." in name else 0.5 if ".router." in name else 1.0
        assert std == pytest.approx(factor * plain[name], rel=1e-5), name


def test_fan_in_scale_counts_inputs() -> None:
    found = stds(moe=moe_fields(hidden_dim=128, num_experts=8), init={"fan_in_scale": 0.1, "scale_residual": False})
    experts = "blocks.0.feed_forward.experts"
    assert found[f"{experts}.gate_up_weight_E2FD"] == pytest.approx(math.sqrt(0.1 / 64), rel=0.02)
    assert found[f"{experts}.down_weight_EFD"] == pytest.approx(math.sqrt(0.1 / 128), rel=0.02)
    assert found["blocks.0.attention.key.weight"] == pytest.approx(math.sqrt(0.1 / 64), rel=0.05)
    for name in ("embedding.weight", "head.weight"):
        assert found[name] == pytest.approx(0.02, rel=0.02)


def test_depth_scaling_can_be_left_out() -> None:
    scaled_down, plain = stds(), stds(init={"scale_residual": False})
    name = "blocks.0.feed_forward.down.weight"
    assert plain[name] == pytest.approx(2 * scaled_down[name], rel=1e-5)
