"""The loss without logits against the loss with them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.models import random_rows, random_tokens
from trainer.model import cross_entropy
from trainer.model.cross_entropy import linear_cross_entropy


@pytest.fixture(params=[1, 7, 64, 1000], ids=lambda tokens: f"chunk{tokens}")
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "head_chunk_tokens", lambda vocab_size, *, device_type: request.param)


def operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    hidden_TD, weight_VD = random_rows(20, 8, dtype=dtype), random_rows(11, 8, seed=1, dtype=dtype)
    return hidden_TD.requires_grad_(), weight_VD.requires_grad_(), random_tokens(1, 20, vocab_size=11)[0]


@pytest.mark.usefixtures("_chunk")
def test_value_and_gradients_are_those_of_the_whole_logits() -> None:
    hidden_TD, weight_VD, targets_T = operands()
    expected = F.cross_entropy(F.linear(hidden_TD, weight_VD), targets_T)
    expected_gradients = torch.autograd.grad(3.0 * expected, (hidden_TD, weight_VD))
    loss = linear_cross_entropy(hidden_TD, weight_VD, targets_T)
    gradients = torch.autograd.grad(3.0 * loss, (hidden_TD, weight_VD))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-14)


@pytest.mark.usefixtures("_chunk")
def test_value_without_gradients_is_the_same() -> None:
    hidden_TD, weight_VD, targets_T = operands()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden_TD, weight_VD, targets_T)
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(hidden_TD, weight_VD), targets_T).detach())


def test_numerical_gradient() -> None:
    hidden_TD, weight_VD, targets_T = operands()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets_T), (hidden_TD, weight_VD))


def test_large_logits_stay_finite() -> None:
    hidden_TD = torch.full((4, 8), 1e4).requires_grad_()
    weight_VD = random_rows(11, 8)
    linear_cross_entropy(hidden_TD, weight_VD, torch.zeros(4, dtype=torch.int64)).backward()
    assert hidden_TD.grad.isfinite().all()


def test_under_autocast_loss_and_gradients_are_float32() -> None:
    hidden_TD, weight_VD, targets_T = operands(torch.float32)
    exact = linear_cross_entropy(hidden_TD, weight_VD, targets_T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden_TD, weight_VD, targets_T)
    gradients = torch.autograd.grad(loss, (hidden_TD, weight_VD))
    assert {tensor.dtype for tensor in (loss, *gradients)} == {torch.float32}
    # bfloat16 keeps 8 bits of each factor of the 8-term dot products.
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)
    assert loss != exact
