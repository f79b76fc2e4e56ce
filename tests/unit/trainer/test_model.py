"""The whole model: what it may depend on, and what it starts from."""

import math

import pytest
import torch

from tests.support.models import (
    CPU,
    META,
    dense_and_moe_configs,
    model_config,
    moe_fields,
    random_tokens,
    tiny_model,
)
from trainer.config.model import ModelConfig
from trainer.model.build import build_model, parameter_roles
from trainer.model.transformer import Transformer

CONFIGS = dense_and_moe_configs()
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def test_dense_past_logits_are_bit_equal_whatever_the_future() -> None:
    model = tiny_model(CONFIGS["dense"])
    before, after = logits_with_another_future(model)
    assert torch.equal(before[0, :7], after[0, :7])
    assert (before[0, 7:] - after[0, 7:]).abs().amax() > 1e-2


@pytest.mark.parametrize("name", ["moe", "moe_everything"])
def test_moe_past_logits_are_equal_whatever_the_future(name: str) -> None:
    # Another token in an expert's group may change the order in which a matmul adds: equal to float64 rounding.
    model = tiny_model(CONFIGS[name]).double()
    before, after = logits_with_another_future(model)
    torch.testing.assert_close(before[0, :7], after[0, :7], rtol=0, atol=1e-12)
    assert (before[0, 7:] - after[0, 7:]).abs().amax() > 1e-2


def logits_with_another_future(model: Transformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits of the same sequences before and after the first one's token 7 is changed."""
    tokens_BL = random_tokens(2, 12)
    changed_BL = tokens_BL.clone()
    changed_BL[0, 7] = (changed_BL[0, 7] + 1) % model.config.vocab_size
    return model(tokens_BL).logits_BLV, model(changed_BL).logits_BLV


@every_config
def test_prefix_has_the_logits_it_has_in_the_whole(config: ModelConfig) -> None:
    model = tiny_model(config).double()
    tokens_BL = random_tokens(2, 12)
    whole, prefix = model(tokens_BL).logits_BLV, model(tokens_BL[:, :5]).logits_BLV
    torch.testing.assert_close(whole[:, :5], prefix, rtol=0, atol=1e-12)


@every_config
def test_sequence_has_the_logits_it_has_alone(config: ModelConfig) -> None:
    model = tiny_model(config).double()
    tokens_BL = random_tokens(3, 9)
    together, alone = model(tokens_BL).logits_BLV, model(tokens_BL[1:2]).logits_BLV
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)


@every_config
def test_order_of_tokens_matters(config: ModelConfig) -> None:
    model = tiny_model(config)
    tokens_BL = torch.tensor([[1, 2, 3, 4]])
    swapped_BL = torch.tensor([[2, 1, 3, 4]])
    assert (model(tokens_BL).logits_BLV[0, -1] - model(swapped_BL).logits_BLV[0, -1]).abs().amax() > 1e-3


@every_config
def test_loss_is_the_cross_entropy_of_the_logits(config: ModelConfig) -> None:
    model = tiny_model(config)
    tokens_BL, targets_BL = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    logits_BLV = model(tokens_BL).logits_BLV
    output = model(tokens_BL, targets_BL)
    assert output.logits_BLV is None
    expected = torch.nn.functional.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten())
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=0)


@every_config
def test_every_parameter_gets_a_gradient(config: ModelConfig) -> None:
    model = tiny_model(config)
    model(random_tokens(4, 16), random_tokens(4, 16, seed=1)).loss.backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []


@every_config
def test_routings_are_those_of_the_moe_layers(config: ModelConfig) -> None:
    routings = tiny_model(config)(random_tokens(2, 8)).routings
    assert [routing.layer for routing in routings] == [
        layer for layer, kind in enumerate(config.layer_kinds()) if kind == "moe"
    ]
    for routing in routings:
        assert routing.num_tokens == 16
        assert routing.counts_E.sum() == 16 * config.moe.top_k
        assert not routing.expert_ids_N.requires_grad
        assert routing.prob_sum_E.requires_grad
        assert routing.z_sum.requires_grad


def test_same_seed_same_weights_other_seed_others() -> None:
    config = CONFIGS["moe_everything"]
    first, again, other = (build_model(config, seed=seed, device=CPU) for seed in (3, 3, 4))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert parameter.dim() < 2 or not torch.equal(parameter, other.get_parameter(name))


def test_building_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    build_model(CONFIGS["moe_everything"], seed=0, device=CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_weights_are_those_of_every_other_machine() -> None:
    model = build_model(CONFIGS["moe"], seed=0, device=CPU)
    # Written down once. To float32 rounding: the inverse error function may use other vector instructions.
    first = torch.tensor([-0.02841228, -0.005997212, 0.04731177, -0.00347361])
    torch.testing.assert_close(model.embedding.weight[0, :4].detach(), first, rtol=1e-5, atol=0)
    first = torch.tensor([-0.000634189, 0.001683, 0.01053865, 0.01343518])
    torch.testing.assert_close(
        model.blocks[1].feed_forward.experts.down_weight_EFD[3, 0, :4].detach(), first, rtol=1e-5, atol=0
    )


def test_arms_of_one_seed_share_the_weights_they_have_in_common() -> None:
    dense = build_model(model_config(), seed=0, device=CPU)
    sparse = build_model(model_config(moe=moe_fields(num_dense_layers=1)), seed=0, device=CPU)
    common = set(dict(dense.named_parameters())) & set(dict(sparse.named_parameters()))
    assert {"embedding.weight", "blocks.1.attention.query.weight", "blocks.0.feed_forward.down.weight"} <= common
    for name in common:
        assert torch.equal(dense.get_parameter(name), sparse.get_parameter(name))


def test_initial_distribution() -> None:
    config = model_config(num_layers=8, vocab_size=4096, moe=moe_fields(num_shared_experts=1, num_dense_layers=1))
    model = build_model(config, seed=0, device=CPU)
    residual = {"out.weight", "down.weight", "down_weight_EFD"}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        std = config.init_std / math.sqrt(16) if any(name.endswith(end) for end in residual) else config.init_std
        assert parameter.abs().max() <= 3 * std * (1 + 1e-6), name
        # A normal cut at 3 sigma has 0.9866 of its deviation; 5 standard errors of the estimate.
        assert abs(parameter.std().item() / std - 0.9866) < 5 / math.sqrt(2 * parameter.numel()), name
        assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name


def test_tied_model_has_one_table_and_its_gradient_has_both_parts() -> None:
    config = model_config()
    model = tiny_model(config)
    assert model.head is None
    tokens_BL = torch.full((1, 4), 5)
    model(tokens_BL, torch.full((1, 4), 6)).loss.backward()
    # Token 5 is only an input and token 6 only a target; token 7 is neither, but it has a logit.
    assert all(model.embedding.weight.grad[token].abs().sum() > 0 for token in (5, 6, 7))


def test_meta_model_has_shapes_only() -> None:
    model = build_model(CONFIGS["moe_everything"], seed=0, device=META)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_every_parameter_has_one_role() -> None:
    model = build_model(CONFIGS["moe_everything"], seed=0, device=META)
    roles = parameter_roles(model)
    assert roles.keys() == dict(model.named_parameters()).keys()
    assert {name for name, role in roles.items() if role == "embedding"} == {"embedding.weight", "head.weight"}
    assert {name for name, role in roles.items() if role == "router"} == {
        f"blocks.{layer}.feed_forward.router.weight" for layer in (1, 2)
    }
    assert {name for name, role in roles.items() if role == "expert"} == {
        f"blocks.{layer}.feed_forward.experts.{name}"
        for layer in (1, 2)
        for name in ("gate_up_weight_E2FD", "down_weight_EFD")
    }
    assert roles["blocks.1.feed_forward.shared.gate.weight"] == "dense"


def test_training_works_after_an_evaluation_in_inference_mode() -> None:
    # theta is this test's own: a rotation table cached by another test would hide one made in inference mode.
    model = tiny_model(model_config(attention={"rope_theta": 777.0}))
    with torch.inference_mode():
        model(random_tokens(1, 8))
    model(random_tokens(1, 8), random_tokens(1, 8, seed=1)).loss.backward()


def test_loss_can_be_learned() -> None:
    model = build_model(CONFIGS["moe_everything"], seed=0, device=CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens_BL = random_tokens(2, 9)
    losses = []
    for _ in range(30):
        loss = model(tokens_BL[:, :-1], tokens_BL[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(64)) < 0.1
    assert losses[-1] < 0.1
