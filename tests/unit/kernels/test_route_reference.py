"""The reference defines what is correct, so it is checked by hand and by finite differences."""

import math

import pytest
import torch

from kernels import STAT_NAMES, route
from tests.support.routing import ROUTING_CASES, RoutingCase, random_bias, random_logits


def test_two_tokens_worked_by_hand() -> None:
    # exp(z) = [[1, 2, 5], [4, 4, 2]]: p = [[.125, .25, .625], [.4, .4, .2]]
    logits_TE = torch.tensor([[1.0, 2.0, 5.0], [4.0, 4.0, 2.0]], dtype=torch.float64).log()
    routing = route(logits_TE, top_k=2, normalize=True, scale=2.0, backend="reference")
    assert routing.expert_ids_TK.tolist() == [[2, 1], [0, 1]]  # the tie of token 1 goes to the lower id
    expected_TK = torch.tensor([[2 * 5 / 7, 2 * 2 / 7], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(routing.weights_TK, expected_TK)
    assert routing.counts_E.tolist() == [1, 2, 1]
    assert routing.offsets_E.tolist() == [1, 3, 4]
    # Pairs: 0 = token 0 to expert 2, 1 = token 0 to 1, 2 = token 1 to 0, 3 = token 1 to 1.
    assert routing.permutation_N.tolist() == [2, 1, 3, 0]
    assert routing.inverse_N.tolist() == [3, 1, 0, 2]
    torch.testing.assert_close(routing.prob_sum_E, torch.tensor([0.525, 0.65, 0.825], dtype=torch.float64))
    assert routing.z_sum.item() == pytest.approx(math.log(8) ** 2 + math.log(10) ** 2)

    entropies = [-sum(p * math.log(p) for p in row) for row in ([0.125, 0.25, 0.625], [0.4, 0.4, 0.2])]
    expected = {
        "num_tokens": 2,
        "token_entropy_sum": sum(entropies),
        "token_entropy_sq_sum": sum(entropy**2 for entropy in entropies),
        "logsumexp_sum": math.log(8) + math.log(10),
        "logsumexp_sq_sum": math.log(8) ** 2 + math.log(10) ** 2,
        "top_k_mass_sum": 0.875 + 0.8,
        "margin_sum": (0.25 - 0.125) + (0.4 - 0.2),
        "logit_sq_sum": sum(math.log(value) ** 2 for value in (1, 2, 5, 4, 4, 2)),
        "logit_max": math.log(5),
        "negated_logit_max": -math.log(1),
    }
    assert dict(zip(STAT_NAMES, routing.stats.stats_S.tolist(), strict=True)) == pytest.approx(expected)
    torch.testing.assert_close(routing.stats.gate_mass_E, torch.tensor([1.0, 1 + 4 / 7, 10 / 7]))


def test_bias_changes_the_choice_and_not_the_weights() -> None:
    logits_TE = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    bias_E = torch.tensor([0.0, 0.0, 1.0])
    routing = route(logits_TE, top_k=1, normalize=False, score="sigmoid", selection_bias_E=bias_E, backend="reference")
    assert routing.expert_ids_TK.tolist() == [[2]]
    assert routing.weights_TK.item() == pytest.approx(0.5)  # sigmoid(0), without the bias


@pytest.mark.parametrize("case", ROUTING_CASES, ids=str)
def test_gradients_pass_finite_differences(case: RoutingCase) -> None:
    logits_TE = random_logits(3, 5).double().requires_grad_()
    bias_E = random_bias(5).double() if case.bias else None

    def outputs(logits_TE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        routing = route(
            logits_TE,
            top_k=case.top_k,
            score=case.score,
            normalize=case.normalize,
            scale=case.scale,
            selection_bias_E=bias_E,
        )
        return routing.weights_TK, routing.prob_sum_E, routing.z_sum

    assert torch.autograd.gradcheck(outputs, (logits_TE,))
