"""Every clipping method: it only scales gradients down, alike after a round trip of its state, and asks no device."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.component_configs import config_classes, example_config
from tests.support.models import CPU, dense_and_moe_configs, random_rows, tiny_model
from trainer.clipping import CLIPPERS
from trainer.clipping.base import Clipper
from trainer.clipping.build import build_clipper
from trainer.config.clipping import ClippingConfig
from trainer.model.transformer import Transformer

every_kind = pytest.mark.parametrize("kind", CLIPPERS)
MODEL = dense_and_moe_configs()["moe_everything"]
SHORT_WARMUP = {"zclip": {"warmup_steps": 3}, "adagc": {"warmup_steps": 3}}
NUM_WARM = 5
"""Steps after which every method is past its warm-up."""


def clipper_of(kind: str) -> tuple[Clipper, Transformer]:
    model = tiny_model(MODEL)
    config = example_config(ClippingConfig, kind, **SHORT_WARMUP.get(kind, {}))
    return build_clipper(config, model, device=CPU), model


def clip(clipper: Clipper, model: Transformer, *, seed: int, scale: float = 1e-3) -> tuple[list[Tensor], list[Tensor]]:
    """Returns random gradients, about as large for every seed, before and after they are clipped."""
    parameters = list(model.parameters())
    before = [random_rows(*each.shape, seed=1000 * seed + i) * scale for i, each in enumerate(parameters)]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient.clone()
    clipper.clip(torch.nn.utils.get_total_norm(before))
    return before, [parameter.grad for parameter in parameters if parameter.grad is not None]


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(CLIPPERS) == set(config_classes(ClippingConfig))


@every_kind
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_gradients_keep_their_direction_and_never_grow(kind: str, scale: float) -> None:
    clipper, model = clipper_of(kind)
    for seed in range(NUM_WARM):
        clip(clipper, model, seed=seed)
    for before, after in zip(*clip(clipper, model, seed=9, scale=scale), strict=True):
        # A stack may have a factor per matrix, everything else has one.
        num_factors = math.prod(before.shape[:-2])
        rows, clipped = (each.reshape(num_factors, -1) for each in (before, after))
        factor = (rows * clipped).sum(dim=1, keepdim=True) / rows.square().sum(dim=1, keepdim=True)
        assert factor.max() <= 1 + 1e-5
        assert factor.min() > 0
        torch.testing.assert_close(clipped, factor * rows, rtol=1e-4, atol=1e-6 * scale)


@every_kind
def test_outlier_is_clipped_by_all_but_none(kind: str) -> None:
    clipper, model = clipper_of(kind)
    for seed in range(NUM_WARM):
        clip(clipper, model, seed=seed)
    before, after = clip(clipper, model, seed=9, scale=100.0)
    shrunk = torch.nn.utils.get_total_norm(after) / torch.nn.utils.get_total_norm(before)
    assert shrunk == 1 if kind == "none" else shrunk < 0.01


@every_kind
def test_small_gradients_pass_unchanged(kind: str) -> None:
    clipper, model = clipper_of(kind)
    for seed in range(NUM_WARM):
        clip(clipper, model, seed=seed)
    before, after = clip(clipper, model, seed=9, scale=1e-6)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, after, strict=True))


@every_kind
def test_next_step_after_a_round_trip_of_the_state_is_bit_equal(kind: str) -> None:
    clipper, model = clipper_of(kind)
    for seed in range(NUM_WARM):
        clip(clipper, model, seed=seed)
    copy, its_model = clipper_of(kind)
    copy.load_state_dict(clipper.state_dict())
    for seed in (20, 21):
        _, expected = clip(clipper, model, seed=seed, scale=2e-3)
        _, found = clip(copy, its_model, seed=seed, scale=2e-3)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@every_kind
def test_parameter_without_a_gradient_is_left_alone(kind: str) -> None:
    clipper, model = clipper_of(kind)
    for seed in range(NUM_WARM):
        clip(clipper, model, seed=seed)
    model.embedding.weight.grad = None
    clipper.clip(torch.tensor(1.0))
    assert model.embedding.weight.grad is None
    assert all(buffer.isfinite().all() for buffer in clipper.buffers())


class _NoHostRead(TorchDispatchMode):
    """Fails where a value is read on the host, which on a GPU would wait for everything queued before it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert "_local_scalar_dense" not in str(func), f"{func} waits for the device"
        assert "aten.nonzero" not in str(func), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@every_kind
def test_nothing_is_read_on_the_host(kind: str) -> None:
    clipper, model = clipper_of(kind)
    with _NoHostRead():
        for seed in range(NUM_WARM):
            clip(clipper, model, seed=seed)
