"""Options of the mixture-of-experts layer and of the stack, each against its formula."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from kernels import gated_activation
from tests.support.models import CPU, META, model_config, moe_fields, random_rows, random_tokens, tiny_model
from trainer.config.model import ModelConfig
from trainer.model.build import build_model, parameter_roles
from trainer.model.moe_layer import MoELayer
from trainer.optimizers.groups import role_groups

GPT_OSS = moe_fields(expert_bias=True, activation="clamped_swiglu", router={"bias": True})


def layer_of(moe: dict) -> MoELayer:
    """Returns the only MoE layer of a one-layer model; what starts at zero or one is drawn too."""
    (layer,) = tiny_model(model_config(num_layers=1, moe=moe)).moe_layers()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(layer.named_parameters()):
            if "bias" in name:
                parameter.copy_(random_rows(*parameter.shape, seed=seed))
    return layer.double()


def test_biased_clamped_experts_are_those_of_gpt_oss_one_token_at_a_time() -> None:
    layer = layer_of(GPT_OSS)
    x_BLD = random_rows(1, 9, 32, dtype=torch.float64)
    experts, expected = layer.experts, []
    for x_D in x_BLD[0]:
        logits_E = layer.router.weight @ x_D + layer.router.bias
        chosen = logits_E.topk(2)
        out_D = torch.zeros(32, dtype=torch.float64)
        # gpt-oss takes the softmax over the chosen alone.
        for weight, expert in zip(chosen.values.softmax(0), chosen.indices.tolist(), strict=True):
            gate_F = experts.gate_up_weight_E2FD[expert, 0] @ x_D + experts.gate_bias_EF[expert]
            up_F = experts.gate_up_weight_E2FD[expert, 1] @ x_D + experts.up_bias_EF[expert]
            hidden_F = gated_activation(gate_F, up_F, "clamped_swiglu")
            out_D = out_D + weight * (hidden_F @ experts.down_weight_EFD[expert] + experts.down_bias_ED[expert])
        expected.append(out_D)
    torch.testing.assert_close(layer(x_BLD)[0][0], torch.stack(expected), rtol=0, atol=1e-11)


def test_biases_start_at_zero_and_all_of_them_learn() -> None:
    model = build_model(model_config(moe=GPT_OSS), seed=0, device=CPU)
    biases = {name: parameter for name, parameter in model.named_parameters() if "bias" in name}
    assert len(biases) == 2 * 4
    assert all(not parameter.any() for parameter in biases.values())
    model(random_tokens(2, 16), random_tokens(2, 16, seed=1)).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in biases.values())


def test_biases_and_scales_have_roles_and_are_not_decayed() -> None:
    fields = GPT_OSS | {"num_shared_experts": 1, "shared_gate": True, "output_scale": {"init": 2.0}}
    model = build_model(model_config(num_layers=1, moe=fields), seed=0, device=META)
    roles = parameter_roles(model)
    layer = "blocks.0.feed_forward"
    assert roles[f"{layer}.router.bias"] == "router"
    assert roles[f"{layer}.experts.gate_bias_EF"] == "expert"
    assert roles[f"{layer}.shared_gate.weight"] == roles[f"{layer}.output_scale"] == "dense"
    decayed = {id(parameter) for group in role_groups(model) if group.decayed for parameter in group.parameters}
    undecayed = {name for name, parameter in model.named_parameters() if id(parameter) not in decayed}
    assert undecayed == {name for name in roles if name.endswith((".gain", "output_scale")) or "bias" in name}


def test_shared_gate_weighs_the_shared_experts_per_token() -> None:
    gated, plain = (layer_of(moe_fields(num_shared_experts=2, shared_gate=gate)) for gate in (True, False))
    x_BLD = random_rows(2, 5, 32, dtype=torch.float64)
    gate_BL1 = torch.sigmoid(F.linear(x_BLD, gated.shared_gate.weight))
    assert gate_BL1.std() > 0.05
    difference = gated(x_BLD)[0] - plain(x_BLD)[0]
    torch.testing.assert_close(difference, (gate_BL1 - 1.0) * plain.shared(x_BLD), rtol=0, atol=1e-11)


@pytest.mark.parametrize("learned", [True, False])
def test_output_scale_multiplies_the_routed_experts_alone(learned: bool) -> None:
    fields = moe_fields(num_shared_experts=1)
    scaled = layer_of(fields | {"output_scale": {"init": 2.5, "learned": learned}})
    plain = layer_of(fields)
    x_BLD = random_rows(2, 5, 32, dtype=torch.float64)
    routed_BLD = plain(x_BLD)[0] - plain.shared(x_BLD)
    out_BLD, _ = scaled(x_BLD)
    torch.testing.assert_close(out_BLD, 2.5 * routed_BLD + plain.shared(x_BLD), rtol=0, atol=1e-11)
    assert ("output_scale" in dict(scaled.named_parameters())) == learned
    if learned:
        (gradient,) = torch.autograd.grad(out_BLD.sum(), scaled.output_scale)
        torch.testing.assert_close(gradient, routed_BLD.sum().reshape(1), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("num_layers", "num_dense_layers", "every", "expected"),
    [
        (6, 0, 1, "MMMMMM"),
        (6, 2, 1, "ddMMMM"),
        (6, 0, 2, "dMdMdM"),
        (7, 1, 3, "dddMddM"),
        (5, 0, 2, "dMdMd"),
        (4, 0, 4, "dddM"),
    ],
)
def test_every_nth_layer_has_experts(num_layers: int, num_dense_layers: int, every: int, expected: str) -> None:
    fields = moe_fields(num_dense_layers=num_dense_layers, every=every)
    config = model_config(num_layers=num_layers, moe=fields)
    assert "".join("M" if kind == "moe" else "d" for kind in config.layer_kinds()) == expected
    model = build_model(config, seed=0, device=META)
    assert [isinstance(block.feed_forward, MoELayer) for block in model.blocks] == [kind == "M" for kind in expected]


def test_geglu_reaches_dense_routed_and_shared_networks() -> None:
    fields = moe_fields(every=2, num_shared_experts=1, activation="geglu")
    model = tiny_model(model_config(activation="geglu", moe=fields)).double()
    x_BLD = random_rows(1, 6, 32, dtype=torch.float64)
    layer = model.blocks[1].feed_forward
    for mlp in (model.blocks[0].feed_forward, layer.shared):
        hidden = F.gelu(mlp.gate(x_BLD), approximate="tanh") * mlp.up(x_BLD)
        torch.testing.assert_close(mlp(x_BLD), mlp.down(hidden), rtol=0, atol=1e-12)
    assert layer.experts.activation == "geglu"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (moe_fields(every=3), r"moe.every=3 leaves no MoE layer of the 2 after the first dense ones"),
        (moe_fields(every=2, num_dense_layers=1), r"moe.every=2 leaves no MoE layer of the 1 after"),
        (moe_fields(shared_gate=True), r"shared_gate=true with num_shared_experts=0 gates nothing"),
        (moe_fields(output_scale={"init": 0}), r"output_scale.init"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(model_config().model_dump() | {"moe": fields})
