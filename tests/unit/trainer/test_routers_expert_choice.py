"""Experts that choose tokens: whom they take, what the predictor makes of it, what of the future gets through."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kernels import assignments
from tests.support.models import model_config, moe_fields, random_rows, random_tokens, tiny_model
from trainer.balancing.sequence_balancing_loss import sequence_balancing_loss
from trainer.config.routers import ExpertChoiceRouterConfig
from trainer.model.routing import LayerRouting
from trainer.model.size import model_size
from trainer.routers.expert_choice import ExpertChoiceRouter, best_tokens
from trainer.routers.looking_ahead import routed_over_chunks

DIM, NUM_EXPERTS, TOP_K, NUM_TOKENS = 16, 8, 2, 48


def router_of(**fields: Any) -> ExpertChoiceRouter:
    config = ExpertChoiceRouterConfig.model_validate(fields)
    router = ExpertChoiceRouter(config, dim=DIM, num_experts=NUM_EXPERTS, top_k=TOP_K)
    for seed, parameter in enumerate(router.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed) * 0.5)
    return router


def taken(router: ExpertChoiceRouter, x_TD: Tensor, **arguments: Any) -> Tensor:
    """Returns bool [T, E]: who takes whom."""
    routing = router(x_TD, None, **arguments)
    return assignments(routing.expert_ids_N, routing.token_ids_N, num_tokens=len(x_TD), num_experts=router.num_experts)


@given(num_groups=st.integers(1, 3), group_size=st.integers(1, 7), num_experts=st.integers(1, 4), data=st.data())
def test_an_expert_takes_its_best_tokens_of_each_group_and_the_earlier_of_equals(
    num_groups: int, group_size: int, num_experts: int, data: st.DataObject
) -> None:
    capacity = data.draw(st.integers(1, group_size))
    few_values = st.integers(-2, 2)  # so that there are ties
    rows = st.lists(few_values, min_size=num_experts, max_size=num_experts)
    values = data.draw(st.lists(rows, min_size=num_groups * group_size, max_size=num_groups * group_size))
    choice = best_tokens(torch.tensor(values, dtype=torch.float32), num_groups=num_groups, capacity=capacity)
    expected = {
        (token, expert)
        for expert in range(num_experts)
        for first in range(0, num_groups * group_size, group_size)
        for token in sorted(range(first, first + group_size), key=lambda token: (-values[token][expert], token))[
            :capacity
        ]
    }
    pairs = list(zip(choice.token_ids_N.tolist(), choice.expert_ids_N.tolist(), strict=True))
    assert len(pairs) == len(expected)
    assert set(pairs) == expected


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scope", ["micro_batch", "sequence"])
def test_training_is_the_choice_of_the_paper(score: str, scope: str) -> None:
    router, x_TD = router_of(score=score, scope=scope, scale=2.0), random_rows(NUM_TOKENS, DIM)
    routing = router(x_TD, None, num_sequences=4)
    # Zhou et al. 2022, eq. 1-2, per group: S = softmax(X W_g); G, I = TopK(S^T, k); here with dense matrices.
    logits_TE = x_TD @ router.weight.detach().t()
    scores_TE = logits_TE.softmax(dim=-1) if score == "softmax" else logits_TE.sigmoid()
    expected_TE = torch.zeros_like(scores_TE)
    for group_SE, into_SE in zip(
        scores_TE.chunk(4 if scope == "sequence" else 1),
        expected_TE.chunk(4 if scope == "sequence" else 1),
        strict=True,
    ):
        best = group_SE.topk(len(group_SE) * TOP_K // NUM_EXPERTS, dim=0)
        into_SE.scatter_(0, best.indices, best.values * 2.0)
    weights_TE = torch.zeros_like(scores_TE)
    weights_TE[routing.token_ids_N, routing.expert_ids_N] = routing.weights_N.detach()
    torch.testing.assert_close(weights_TE, expected_TE)
    assert (routing.counts_E == NUM_TOKENS * TOP_K // NUM_EXPERTS).all()


def test_sigmoid_scores_that_have_saturated_still_tell_tokens_apart() -> None:
    router = router_of(score="sigmoid")
    router.weight.data.zero_()
    router.weight.data[:, 0] = 1.0
    x_TD = torch.zeros(8, DIM)
    x_TD[:, 0] = torch.tensor([90.0, 97.0, 91.0, 92.0, 96.0, 93.0, 95.0, 94.0])  # sigmoid is 1.0f for all
    assert taken(router, x_TD)[:, 0].nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize(
    ("factor", "group_size", "expected"),
    [(1.0, 48, 12), (1.0, 3, 1), (0.1, 4, 1), (1.25, 48, 15), (0.4, 30, 3), (4.0, 5, 5)],
)
def test_capacity_is_rounded_up_but_not_for_rounding_errors(factor: float, group_size: int, expected: int) -> None:
    config = ExpertChoiceRouterConfig(capacity_factor=factor)
    assert config.capacity(group_size, num_experts=8, top_k=2) == expected


def test_evaluation_without_a_predictor_lets_each_sequence_be_a_group() -> None:
    router, x_TD = router_of().eval(), random_rows(NUM_TOKENS, DIM)
    together = taken(router, x_TD, num_sequences=4)
    alone = torch.cat([taken(router, part_LD, num_sequences=1) for part_LD in x_TD.chunk(4)])
    assert torch.equal(together, alone)


def test_chunks_are_probed_in_evaluation_only() -> None:
    router, x_TD = router_of(predictor=True), random_rows(NUM_TOKENS, DIM)
    with routed_over_chunks(router, 12):
        assert torch.equal(taken(router, x_TD), taken(router, x_TD, num_sequences=4))  # trains on the micro-batch
        chunked = taken(router.eval(), x_TD)
        with pytest.raises(ValueError, match="chunk_size=12 does not divide 40"):
            router(x_TD[:40], None)
    assert (chunked.unflatten(0, (4, 12)).sum(dim=1) == 3).all()
    assert router.chunk_size is None


def test_predictor_takes_a_token_by_that_token_alone() -> None:
    router, x_TD = router_of(predictor=True).eval(), random_rows(NUM_TOKENS, DIM)
    expected = (x_TD @ router.predictor_weight.detach().t() + router.predictor_bias.detach()) > 0
    assert torch.equal(taken(router, x_TD), expected)
    assert torch.equal(taken(router, x_TD[7:8]), expected[7:8])


def test_predictor_gives_a_token_at_most_four_times_the_average() -> None:
    router, x_TD = router_of(predictor=True, capacity_factor=0.5).eval(), random_rows(NUM_TOKENS, DIM)
    router.predictor_bias.data.fill_(100.0)  # everybody takes everything
    assert (taken(router, x_TD).sum(dim=1) == 4).all()


def test_predictor_that_takes_nobody_gives_an_empty_routing() -> None:
    model = tiny_model(model_config(moe=moe_fields(router={"kind": "expert_choice", "predictor": True}))).eval()
    for layer in model.moe_layers():
        layer.router.predictor_bias.data.fill_(-1e4)
    output = model(random_tokens(2, 6))
    assert output.logits_BLV.isfinite().all()
    assert all(routing.counts_E.sum() == 0 for routing in output.routings)


def test_predictor_learns_by_cross_entropy_and_nothing_else_learns_from_it() -> None:
    router, x_TD = router_of(predictor=True, predictor_coefficient=0.5), random_rows(NUM_TOKENS, DIM).requires_grad_()
    loss = router(x_TD, None).auxiliary_loss
    logits_TE = x_TD.detach() @ router.predictor_weight.detach().t() + router.predictor_bias.detach()
    truth_TE = taken(router, x_TD)
    probability_TE = torch.where(truth_TE, logits_TE.sigmoid(), 1 - logits_TE.sigmoid())
    torch.testing.assert_close(loss, -0.5 * probability_TE.log().mean())
    loss.backward()
    assert x_TD.grad is None
    assert router.weight.grad is None
    torch.testing.assert_close(
        router.predictor_bias.grad, 0.5 * (logits_TE.sigmoid() - truth_TE.float()).mean(dim=0) / NUM_EXPERTS
    )


def test_predictor_comes_to_foretell_the_choice() -> None:
    router, x_TD = router_of(predictor=True), random_rows(512, DIM)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        router(x_TD, None).auxiliary_loss.backward()
        optimizer.step()
    fresh_TD = random_rows(512, DIM, seed=9)
    truth = taken(router, fresh_TD)
    predicted = taken(router.eval(), fresh_TD)
    assert (truth == predicted).float().mean() > 0.9  # who says no to all is right about 75 %
    assert predicted.sum() / truth.sum() == pytest.approx(1.0, abs=0.1)


def routes_causally(router: dict[str, Any]) -> bool:
    """Whether in evaluation the logits of a prefix stay to the last bit when other tokens come after it."""
    model = tiny_model(model_config(moe=moe_fields(router={"kind": "expert_choice"} | router))).eval()
    tokens_BL = random_tokens(3, 16)
    changed_BL = torch.cat((tokens_BL[:, :9], random_tokens(3, 7, seed=5)), dim=1)
    before, after = (model(each).logits_BLV[:, :9] for each in (tokens_BL, changed_BL))
    return torch.equal(before, after)


def test_evaluation_is_causal_with_the_predictor_and_not_without() -> None:
    assert routes_causally({"predictor": True})
    assert not routes_causally({})


def test_prefix_of_a_sequence_gives_the_prefix_of_the_logits_with_the_predictor() -> None:
    model = tiny_model(model_config(moe=moe_fields(router={"kind": "expert_choice", "predictor": True}))).eval()
    tokens_BL = random_tokens(3, 16)
    whole, prefix = model(tokens_BL).logits_BLV[:, :9], model(tokens_BL[:, :9]).logits_BLV
    torch.testing.assert_close(prefix, whole, rtol=1e-4, atol=1e-5)  # other shapes, other order of sums


@pytest.mark.parametrize("capacity_factor", [0.5, 1.0, 1.5])
def test_active_parameters_are_those_of_the_average_token(capacity_factor: float) -> None:
    def active(router: dict[str, Any], **fields: Any) -> int:
        return model_size(model_config(moe=moe_fields(router=router, **fields))).active

    router = {"kind": "expert_choice", "capacity_factor": capacity_factor}
    assert active(router) == active({"kind": "top_k"}, top_k=int(2 * capacity_factor))
    with_predictor = active(router | {"predictor": True})
    assert with_predictor - active(router) == 2 * (32 * 4 + 4)  # two layers; width 32, 4 experts


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"router": {"capacity_factor": 2.1}}, r"router.capacity_factor=2.1 gives a token 4.2 experts .* at most 2"),
        ({"router": {"normalize": True}}, "normalize=true would weigh every token alike"),
        ({"capacity": {"factor": 1.0}}, "capacity cannot be given with router.kind=expert_choice"),
        ({"num_null_experts": 1}, "num_null_experts=1 is not possible with router.kind=expert_choice"),
        (
            {
                "balancing": [
                    {"kind": "router_z_loss", "coefficient": 0.1},
                    {"kind": "loss_free_bias", "update_rate": 0.1},
                ]
            },
            "balancing.1.kind=loss_free_bias cannot act on router.kind=expert_choice: every expert takes equally many",
        ),
        (
            {"balancing": [{"kind": "load_balancing_loss", "coefficient": 0.1}]},
            "balancing.0.kind=load_balancing_loss cannot act",
        ),
        (
            {
                "router": {"scope": "sequence"},
                "balancing": [{"kind": "sequence_balancing_loss", "coefficient": 0.1}],
            },
            "balancing.0.kind=sequence_balancing_loss cannot act",
        ),
    ],
)
def test_what_makes_no_sense_with_expert_choice_is_refused(fields: dict[str, Any], says: str) -> None:
    router = {"kind": "expert_choice"} | fields.get("router", {})
    with pytest.raises(ValidationError, match=says):
        model_config(moe=moe_fields(**fields | {"router": router}))


def test_loss_of_a_sequence_sees_experts_that_take_all_of_it() -> None:
    router = router_of(scope="micro_batch")
    router.weight.data.copy_(torch.eye(NUM_EXPERTS, DIM) * 20.0)
    # A quarter of the experts each take all tokens of one of four sequences; or tokens of all sequences.
    wanted_T = torch.arange(NUM_TOKENS) // (NUM_TOKENS // 4)
    for order_T, expected in ((wanted_T, 4.0), (torch.arange(NUM_TOKENS) % 4, 1.0)):
        x_TD = torch.eye(4, DIM)[order_T].repeat_interleave(2, dim=1)[:, :DIM] + random_rows(NUM_TOKENS, DIM) * 1e-3
        routing = LayerRouting.of(router(x_TD, None), layer=0, num_sequences=4)
        assert (routing.counts_E == NUM_TOKENS // 4).all()
        assert sequence_balancing_loss(routing).item() == pytest.approx(expected, rel=0.01)
