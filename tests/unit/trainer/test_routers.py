"""The top-k router: what its weights see, and in which precision."""

import torch
import torch.nn.functional as F

from tests.support.models import random_rows
from trainer.config.routers import TopKRouterConfig
from trainer.routers.top_k import TopKRouter


def router(*, top_k: int = 2, **fields: object) -> TopKRouter:
    layer = TopKRouter(TopKRouterConfig.model_validate(fields), dim=16, num_experts=5, top_k=top_k)
    layer.weight.data.copy_(random_rows(5, 16, seed=3))
    return layer


def test_weights_are_the_probabilities_of_the_largest_logits() -> None:
    layer, x_TD = router(normalize=False), random_rows(12, 16)
    probabilities_TE = F.linear(x_TD, layer.weight).softmax(-1)
    expected_TK, ids_TK = probabilities_TE.topk(2)
    routing = layer(x_TD, None)
    assert torch.equal(routing.expert_ids_TK, ids_TK)
    torch.testing.assert_close(routing.weights_TK, expected_TK)


def test_config_reaches_the_weights() -> None:
    x_TD = random_rows(12, 16)
    for score in ("softmax", "sigmoid"):
        routing = router(score=score, scale=2.446)(x_TD, None)
        torch.testing.assert_close(routing.weights_TK.sum(-1), torch.full((12,), 2.446))
    softmax = router(score="softmax", normalize=False)(x_TD, None).weights_TK
    sigmoid = router(score="sigmoid", normalize=False)(x_TD, None).weights_TK
    assert (softmax - sigmoid).abs().max() > 0.1


def test_router_computes_in_float32_under_autocast() -> None:
    layer, x_TD = router(), random_rows(64, 16)
    expected = layer(x_TD, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = layer(x_TD, None)
    assert torch.equal(routing.weights_TK, expected.weights_TK)
    assert torch.equal(routing.prob_sum_E, expected.prob_sum_E)


def test_router_of_bfloat16_activations_has_float32_logits() -> None:
    layer, x_TD = router(), random_rows(64, 16).bfloat16()
    routing = layer(x_TD, None)
    assert torch.equal(routing.weights_TK, layer(x_TD.float(), None).weights_TK)
    assert routing.weights_TK.dtype == torch.float32
