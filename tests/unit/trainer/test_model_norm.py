"""The CPU's own RMSNorm against its definition."""

import torch

from tests.support.models import random_rows
from trainer.model.norm import RMSNorm


def test_value_is_the_definition() -> None:
    norm = RMSNorm(6, eps=1e-5).double()
    norm.gain.data.copy_(torch.arange(1.0, 7.0))
    x_TD = random_rows(5, 6, dtype=torch.float64)
    expected_TD = torch.arange(1.0, 7.0) * x_TD / (x_TD.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x_TD), expected_TD, rtol=0, atol=1e-14)


def test_gradients_are_numerically_right() -> None:
    norm = RMSNorm(4, eps=1e-3).double()
    gain = random_rows(4, seed=1, dtype=torch.float64)
    norm.gain.data.copy_(gain)
    x_BLD = random_rows(2, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x_BLD, norm.gain))


def test_zero_row_stays_zero_and_finite() -> None:
    x_TD = torch.zeros(2, 4, requires_grad=True)
    y_TD = RMSNorm(4, eps=1e-5)(x_TD)
    y_TD.sum().backward()
    assert torch.equal(y_TD, torch.zeros(2, 4))
    assert x_TD.grad.isfinite().all()


def test_bfloat16_input_is_normalised_in_float32() -> None:
    norm = RMSNorm(512, eps=1e-5)
    x_TD = random_rows(3, 512).bfloat16()
    y_TD = norm(x_TD)
    assert y_TD.dtype == torch.bfloat16
    assert torch.equal(y_TD, norm(x_TD.float()).bfloat16())
