"""Every precision: trains, keeps loss, weights and gradients in float32, and leaves nothing switched on."""

import pytest
import torch

from tests.support.component_configs import config_classes, example_config
from tests.support.models import CPU, dense_and_moe_configs, random_tokens, tiny_model
from trainer.config.precision import PrecisionConfig
from trainer.precision import PRECISIONS
from trainer.precision.base import Precision
from trainer.precision.build import build_precision

every_kind = pytest.mark.parametrize("kind", PRECISIONS)


def precision_of(kind: str) -> Precision:
    return build_precision(example_config(PrecisionConfig, kind), CPU)


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(PRECISIONS) == set(config_classes(PrecisionConfig))


@every_kind
@pytest.mark.parametrize("name", dense_and_moe_configs())
def test_loss_and_gradients_are_finite_float32(kind: str, name: str) -> None:
    model = tiny_model(dense_and_moe_configs()[name])
    with precision_of(kind).autocast():
        loss = model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@every_kind
def test_same_forward_twice_is_bit_equal(kind: str) -> None:
    model, precision = tiny_model(dense_and_moe_configs()["moe_everything"]), precision_of(kind)
    losses = []
    for _ in range(2):
        with precision.autocast():
            losses.append(model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss)
    assert torch.equal(*losses)


@every_kind
def test_context_ends_and_can_be_entered_again(kind: str) -> None:
    precision = precision_of(kind)
    for _ in range(2):
        with precision.autocast():
            pass
        assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(RuntimeError, match="inside"), precision.autocast():
        raise RuntimeError("inside")
    assert not torch.is_autocast_enabled("cpu")
