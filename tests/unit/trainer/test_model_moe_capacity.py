"""MoE layers whose experts have a capacity, and such with null experts."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kernels import Routing
from kernels.quantize import QuantizedMatmul, fp8_tensor
from tests.support.models import CPU, META, model_config, moe_fields, random_rows, random_tokens, tiny_model
from trainer.balancing.build import build_balancers
from trainer.balancing.step_balancing import StepBalancing
from trainer.config.model import CapacityConfig, MoEConfig
from trainer.model.build import build_model
from trainer.model.moe_layer import MoELayer
from trainer.model.size import flops_per_token, model_size
from trainer.world import World

CASES: dict[str, dict[str, Any]] = {
    "probability": {"capacity": {"factor": 0.75, "drop": "probability"}},
    "position": {"capacity": {"factor": 0.75, "drop": "position"}, "router": {"score": "sigmoid"}},
    "zero": {"num_null_experts": 2},
    "identity": {"num_null_experts": 3, "null_expert": "identity", "router": {"normalize": False}},
    "everything": {
        "num_null_experts": 2,
        "null_expert": "identity",
        "capacity": {"factor": 0.6, "drop": "position"},
        "output_scale": {"init": 2.0},
        "num_shared_experts": 1,
        "router": {"kind": "sinkhorn", "score": "sigmoid", "scale": 1.5},
    },
}
every_case = pytest.mark.parametrize("fields", CASES.values(), ids=CASES)


def layer_of(**fields: object) -> MoELayer:
    """Returns the only MoE layer of a one-layer model."""
    (layer,) = tiny_model(model_config(num_layers=1, moe=moe_fields(**fields))).moe_layers()
    return layer


def is_computed(routing: Routing) -> Tensor:
    """Returns bool [T, K]."""
    return (routing.inverse_N < routing.offsets_E[-1]).view(-1, routing.top_k)


def pair_by_pair(layer: MoELayer, x_TD: Tensor, routing: Routing) -> Tensor:
    """Every computed pair by itself, differentiable: only who goes where is the layer's own decision."""
    scoring, output_scale = layer.router.scoring, layer.output_scale if layer.output_scale is not None else 1.0
    logits_TE = F.linear(x_TD, layer.router.weight)
    scores_TE = logits_TE.softmax(-1) if scoring.score == "softmax" else logits_TE.sigmoid()
    experts = layer.experts
    rows = []
    for token, x_D in enumerate(x_TD):
        chosen = routing.expert_ids_TK[token].tolist()
        total = scores_TE[token, chosen].sum() if scoring.normalize else 1.0
        out_D = torch.zeros_like(x_D)
        for expert, computed in zip(chosen, is_computed(routing)[token].tolist(), strict=True):
            weight = output_scale * scoring.scale * scores_TE[token, expert] / total
            if computed:
                gate_F, up_F = experts.gate_up_weight_E2FD[expert] @ x_D
                out_D = out_D + weight * ((F.silu(gate_F) * up_F) @ experts.down_weight_EFD[expert])
            elif expert >= layer.num_experts and layer.null_is_identity:
                out_D = out_D + weight * x_D
        rows.append(out_D if layer.shared is None else out_D + layer.shared(x_D))
    return torch.stack(rows)


@every_case
def test_layer_and_its_gradients_equal_pair_by_pair_in_float64(fields: dict[str, Any]) -> None:
    layer = layer_of(**fields).double()
    x_TD = random_rows(24, 32, dtype=torch.float64).requires_grad_()
    dout_TD = random_rows(24, 32, seed=1, dtype=torch.float64)
    out_BLD, routing = layer(x_TD.view(2, 12, 32))
    assert not is_computed(routing).all()
    leaves = (x_TD, *layer.parameters())
    expected_TD = pair_by_pair(layer, x_TD, routing)
    torch.testing.assert_close(out_BLD.flatten(0, 1), expected_TD, rtol=0, atol=1e-11)
    actual = torch.autograd.grad(out_BLD.flatten(0, 1), leaves, dout_TD)
    for got, want in zip(actual, torch.autograd.grad(expected_TD, leaves, dout_TD), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("special", ["plain", "bf16_autocast", "biases", "fp8_tensor"])
@every_case
def test_no_uninitialised_row_reaches_output_or_gradients(fields: dict[str, Any], special: str) -> None:
    layer = layer_of(**fields, expert_bias=special == "biases")
    if special == "fp8_tensor":  # one scale for a whole tensor: a row that is not owned must not enter into it
        layer.experts.matmul = QuantizedMatmul(fp8_tensor(gradient_format="e4m3"), device=CPU)
    x_BLD = random_rows(2, 12, 32).requires_grad_()

    def results() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=special == "bf16_autocast"):
            out_BLD, routing = layer(x_BLD)
        assert not is_computed(routing).all()
        loss = out_BLD.float().square().sum() + routing.prob_sum_E.square().sum() + routing.z_sum
        return (out_BLD, *torch.autograd.grad(loss, (x_BLD, *layer.parameters())))

    expected = results()
    torch.use_deterministic_algorithms(True)  # torch then fills new memory with NaN
    try:
        actual = results()
    finally:
        torch.use_deterministic_algorithms(False)
    for got, want in zip(actual, expected, strict=True):
        assert bool(got.isfinite().all())
        assert torch.equal(got, want)


@every_case
def test_evaluation_drops_nothing(fields: dict[str, Any]) -> None:
    layer = layer_of(**fields).eval()
    _, routing = layer(random_rows(2, 12, 32))
    expected_TK = routing.expert_ids_TK < layer.num_experts
    assert torch.equal(is_computed(routing), expected_TK)


@every_case
def test_capacity_bounds_what_an_expert_computes(fields: dict[str, Any]) -> None:
    layer = layer_of(**fields)
    _, routing = layer(random_rows(3, 10, 32))
    assert routing.stats.counts_E.shape == routing.counts_E.shape == (4,)
    if layer.capacity is not None:
        slots = layer.capacity.slots(30, num_experts=4, top_k=2)
        assert torch.equal(routing.counts_E, routing.stats.counts_E.clamp(max=slots))
        assert routing.counts_E.max() == slots < 30


@every_case
def test_size_is_that_of_the_model_and_active_is_top_k_experts(fields: dict[str, Any]) -> None:
    config = model_config(moe=moe_fields(**fields))
    model = build_model(config, seed=0, device=META)
    assert model_size(config).total == sum(parameter.numel() for parameter in model.parameters())
    plain = model_config(moe=moe_fields(**fields | {"num_null_experts": 0, "null_expert": "zero"}))
    outputs = 2 * 32 * fields.get("num_null_experts", 0)  # of the routers of two layers
    assert model_size(config).active == model_size(plain).active + outputs
    assert flops_per_token(config, seq_len=8) == flops_per_token(plain, seq_len=8) + 6 * outputs


@pytest.mark.parametrize(
    "balancer",
    [
        {"kind": "load_balancing_loss", "coefficient": 1.0},
        {"kind": "loss_free_bias", "update_rate": 0.02},
        {"kind": "quantile_balancing", "smoothing": 0.5},
    ],
    ids=lambda balancer: balancer["kind"],
)
def test_balancing_steers_null_experts_to_their_share(balancer: dict[str, Any]) -> None:
    before, after = null_shares(balancer)
    assert before > 0.75
    assert after == pytest.approx(2 / 6, abs=0.05)


def null_shares(balancer: dict[str, Any]) -> tuple[float, float]:
    """Trains a router, which at first prefers its null experts, by one balancing method alone; two of six are null.

    Returns the shares of the choices that go to null experts before and after.
    """
    config = model_config(num_layers=1, moe=moe_fields(num_null_experts=2, router={"bias": True}, balancing=[balancer]))
    model = build_model(config, seed=0, device=CPU)
    (layer,) = model.moe_layers()
    with torch.no_grad():
        layer.router.weight.copy_(random_rows(6, 32) * 0.1)
        layer.router.bias[layer.num_experts :] += 1.0
    balancing = StepBalancing(build_balancers(config.moe), model=model, world=World())
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.02)
    tokens_BL = random_tokens(8, 32)
    shares: list[float] = []
    for _ in range(120):
        balancing.begin([lambda: model.trunk(tokens_BL)[1]])
        _, routings = model.trunk(tokens_BL)
        stats = routings[0].stats
        shares.append(stats.coverage_4[1].item() / (2 * tokens_BL.numel()))
        if (loss := balancing.loss(routings)) is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        balancing.end(stats.counts_E[None].float())
    return shares[0], shares[-1]


@given(
    num_tokens=st.integers(1, 5000),
    num_experts=st.integers(2, 256),
    top_k=st.integers(1, 8),
    factor=st.sampled_from((0.1, 0.25, 1.0, 1.25, 2.0)),
)
def test_slots_are_enough_for_the_even_load_and_fewer_than_one_more(
    num_tokens: int, num_experts: int, top_k: int, factor: float
) -> None:
    slots = CapacityConfig(factor=factor).slots(num_tokens, num_experts=num_experts, top_k=top_k)
    even = factor * num_tokens * top_k / num_experts
    assert slots >= 1
    assert even - 1e-6 <= slots < max(even + 1, 1 + 1e-6)


@pytest.mark.parametrize("kind", ["hash", "random", "expert_choice"])
def test_capacity_is_refused_where_it_has_no_meaning(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"capacity cannot be given with router.kind={kind}"):
        MoEConfig.model_validate(moe_fields(router={"kind": kind}, capacity={"factor": 1.0}))


@pytest.mark.parametrize("kind", ["hash", "random", "expert_choice", "group_limited"])
def test_null_experts_are_refused_where_they_have_no_meaning(kind: str) -> None:
    router = {"kind": kind} | ({"num_groups": 2, "groups_per_token": 1} if kind == "group_limited" else {})
    with pytest.raises(ValidationError, match=f"num_null_experts=2 is not possible with router.kind={kind}"):
        MoEConfig.model_validate(moe_fields(router=router, num_null_experts=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"capacity": {"factor": 0.05}}, r"capacity\.factor"),
        ({"capacity": {"factor": 1.0, "drop": "random"}}, r"capacity\.drop"),
        ({"num_null_experts": -1}, "num_null_experts"),
        ({"null_expert": "identity"}, "null_expert=identity with num_null_experts=0 does nothing"),
        ({"null_expert": "copy", "num_null_experts": 1}, "null_expert"),
        (
            {
                "num_null_experts": 2,
                "balancing": [{"kind": "group_balancing_loss", "coefficient": 0.1, "num_groups": 2}],
            },
            r"balancing\.0\.kind=group_balancing_loss is not possible with num_null_experts=2",
        ),
    ],
)
def test_impossible_settings_name_their_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MoEConfig.model_validate(moe_fields(**fields))
