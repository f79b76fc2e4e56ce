"""The mixture-of-experts layer against one token at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.models import model_config, moe_fields, random_rows, tiny_model
from trainer.model.moe_layer import MoELayer


def layer_of(**fields: object) -> MoELayer:
    """Returns the only MoE layer of a one-layer model."""
    (layer,) = tiny_model(model_config(num_layers=1, moe=moe_fields(**fields))).moe_layers()
    return layer


def naive_moe(layer: MoELayer, x_TD: Tensor, *, top_k: int, score: str, normalize: bool, scale: float) -> Tensor:
    """Each token alone, in float64: score all experts, keep the best, add up what they say."""
    weight = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    bias_E = layer.selection_bias_E.double() if layer.selection_bias_E is not None else torch.zeros(layer.num_experts)
    outputs = []
    for x_D in x_TD.double():
        logits_E = weight["router.weight"] @ x_D
        scores_E = logits_E.softmax(0) if score == "softmax" else logits_E.sigmoid()
        chosen = (scores_E + bias_E).argsort(descending=True)[:top_k].tolist()
        total = sum(scores_E[expert] for expert in chosen) if normalize else 1.0
        out_D = torch.zeros_like(x_D)
        for expert in chosen:
            gate_F, up_F = weight["experts.gate_up_weight_E2FD"][expert] @ x_D
            down_D = (F.silu(gate_F) * up_F) @ weight["experts.down_weight_EFD"][expert]
            out_D += scale * scores_E[expert] / total * down_D
        if layer.shared is not None:
            shared_F = F.silu(weight["shared.gate.weight"] @ x_D) * (weight["shared.up.weight"] @ x_D)
            out_D += weight["shared.down.weight"] @ shared_F
        outputs.append(out_D)
    return torch.stack(outputs)


@pytest.mark.parametrize("num_shared_experts", [0, 2])
@pytest.mark.parametrize("top_k", [1, 3, 4])
@pytest.mark.parametrize(("normalize", "scale"), [(False, 1.0), (True, 2.446)])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_layer_equals_one_token_at_a_time(
    score: str, normalize: bool, scale: float, top_k: int, num_shared_experts: int
) -> None:
    layer = layer_of(
        top_k=top_k,
        num_shared_experts=num_shared_experts,
        router={"score": score, "normalize": normalize, "scale": scale},
        balancing=[{"kind": "loss_free_bias", "update_rate": 0.01}],
    )
    layer.selection_bias_E.copy_(torch.tensor([0.3, -0.2, 0.05, 0.0]))
    x_BLD = random_rows(2, 7, 32)
    expected_TD = naive_moe(layer, x_BLD.flatten(0, 1), top_k=top_k, score=score, normalize=normalize, scale=scale)
    out_BLD, routing = layer(x_BLD)
    assert out_BLD.shape == x_BLD.shape
    assert routing.counts_E.sum() == 14 * top_k
    # float32 against float64 over sums of 32 and 16 terms of order one.
    torch.testing.assert_close(out_BLD.flatten(0, 1).double(), expected_TD, rtol=1e-5, atol=2e-5)
    out_BLD, _ = layer.double()(x_BLD.double())
    torch.testing.assert_close(out_BLD.flatten(0, 1), expected_TD, rtol=0, atol=1e-12)


def test_gradients_equal_those_of_one_token_at_a_time() -> None:
    layer = layer_of(num_shared_experts=1).double()
    x_TD = random_rows(6, 32, dtype=torch.float64).requires_grad_()
    dout_TD = random_rows(6, 32, seed=1, dtype=torch.float64)
    out_BLD, _ = layer(x_TD[None])
    (out_BLD[0] * dout_TD).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}

    layer.zero_grad()
    dx_TD, x_TD.grad = x_TD.grad, None
    for token in range(6):  # one call per token: each expert's group then is that token alone
        out_BLD, _ = layer(x_TD[None, token : token + 1])
        (out_BLD[0, 0] * dout_TD[token]).sum().backward()
    torch.testing.assert_close(dx_TD, x_TD.grad, rtol=0, atol=1e-12)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-12)


def test_shared_experts_are_the_sum_of_separate_ones() -> None:
    layer = layer_of(num_shared_experts=2)
    x_TD = random_rows(5, 32)
    halves = [
        F.linear(
            F.silu(F.linear(x_TD, layer.shared.gate.weight[part])) * F.linear(x_TD, layer.shared.up.weight[part]),
            layer.shared.down.weight[:, part],
        )
        for part in (slice(0, 16), slice(16, 32))
    ]
    torch.testing.assert_close(layer.shared(x_TD), halves[0] + halves[1], rtol=1e-5, atol=1e-5)


def test_selection_bias_exists_only_where_a_method_steers_by_it() -> None:
    with_bias = layer_of(balancing=[{"kind": "loss_free_bias", "update_rate": 0.01}])
    assert with_bias.selection_bias_E.dtype == torch.float32
    assert "selection_bias_E" in with_bias.state_dict()
    without = layer_of(balancing=[{"kind": "load_balancing_loss", "coefficient": 0.01}])
    assert without.selection_bias_E is None
    assert "selection_bias_E" not in without.state_dict()


def test_selection_bias_moves_the_choice_and_not_the_weights() -> None:
    layer = layer_of(top_k=1, router={"normalize": False}, balancing=[{"kind": "loss_free_bias", "update_rate": 0.01}])
    x_BLD = random_rows(1, 20, 32)
    layer.selection_bias_E.copy_(torch.tensor([0.0, 0.0, 10.0, 0.0]))
    _, routing = layer(x_BLD)
    assert set(routing.expert_ids_TK.flatten().tolist()) == {2}
    probabilities_TE = F.linear(x_BLD[0], layer.router.weight).softmax(-1)
    torch.testing.assert_close(routing.weights_TK[:, 0], probabilities_TE[:, 2])
