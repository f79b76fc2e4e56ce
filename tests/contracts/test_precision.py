"""Every precision: trains, keeps loss, weights and gradients in float32, is resumed exactly, leaves nothing on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from kernels.quantize import COUNT_NAMES, OPERAND_NAMES
from tests.support.component_configs import config_classes, example_config
from tests.support.models import CPU, dense_and_moe_configs, random_tokens, tiny_model
from tests.support.training import STEP_TOKENS, exact_columns, run_training, train_config
from trainer.config.precision import PrecisionConfig, QuantizedExpertsSection
from trainer.model.transformer import Transformer
from trainer.precision import PRECISIONS
from trainer.precision.base import Precision
from trainer.precision.build import build_precision

PRECISION_VARIANTS: dict[str, dict[str, Any]] = {
    "fp8-e5m2": {"kind": "fp8", "gradient_format": "e5m2"},
    "fp8-block": {"kind": "fp8", "scaling": "block"},
    "mxfp8-up": {"kind": "mxfp8", "scale_rounding": "up"},
    "mxfp8-bf16": {"kind": "mxfp8", "rest": "bf16_autocast"},
    "nvfp4-plain": {
        "kind": "nvfp4",
        "stochastic_gradients": False,
        "square_weight_blocks": False,
        "hadamard": False,
    },
}
"""Configs beyond the smallest of each kind, for the options that have code of their own."""

ADAPTER: TypeAdapter[Any] = TypeAdapter(PrecisionConfig)
CONFIGS: dict[str, Any] = {kind: example_config(PrecisionConfig, kind) for kind in PRECISIONS} | {
    name: ADAPTER.validate_python(fields) for name, fields in PRECISION_VARIANTS.items()
}

every_precision = pytest.mark.parametrize("name", CONFIGS)


def built(name: str) -> Precision:
    return build_precision(CONFIGS[name], CPU)


def width_of(name: str) -> int:
    """Returns a width that is a multiple of what every precision but this one asks for, and this one too."""
    return getattr(CONFIGS[name], "dim_multiple", 32)


def model_of(name: str, stack: str = "moe_everything") -> Transformer:
    """Returns a tiny model of such widths, in the precision."""
    config = dense_and_moe_configs()[stack]
    width = max(32, width_of(name))
    moe = config.moe and config.moe.model_copy(update={"hidden_dim": width})
    return tiny_model(config.model_copy(update={"dim": width, "moe": moe}))


def losses_of_training(name: str, *, num_steps: int = 12) -> list[float]:
    """Returns the losses of training on one batch."""
    torch.manual_seed(0)
    model, precision = model_of(name), built(name)
    precision.apply_to(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(num_steps):
        with precision.autocast():
            loss = model(random_tokens(4, 16), random_tokens(4, 16, seed=1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(PRECISIONS) == set(config_classes(PrecisionConfig))


@every_precision
@pytest.mark.parametrize("stack", dense_and_moe_configs())
def test_loss_and_gradients_are_finite_float32(name: str, stack: str) -> None:
    model, precision = model_of(name, stack), built(name)
    precision.apply_to(model)
    with precision.autocast():
        loss = model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    for parameter in model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@every_precision
def test_loss_goes_down(name: str) -> None:
    losses = losses_of_training(name)
    assert losses[-1] < 0.8 * losses[0]


@every_precision
def test_training_again_is_bit_equal(name: str) -> None:
    assert losses_of_training(name, num_steps=3) == losses_of_training(name, num_steps=3)


@every_precision
def test_same_forward_twice_is_bit_equal(name: str) -> None:
    model, precision = model_of(name), built(name)
    precision.apply_to(model)
    losses = []
    for _ in range(2):
        with precision.autocast():
            losses.append(model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss)
    assert torch.equal(*losses)


@every_precision
def test_evaluation_draws_nothing_and_counts_nothing(name: str) -> None:
    model, precision = model_of(name), built(name)
    precision.apply_to(model)
    before = torch.get_rng_state()
    with torch.no_grad(), precision.autocast():
        model(random_tokens(2, 8), random_tokens(2, 8, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    counts = precision.take_cast_counts()
    assert counts is None or not counts.any()


@every_precision
def test_casts_are_counted_per_layer_where_there_are_any(name: str) -> None:
    model, precision = model_of(name), built(name)
    precision.apply_to(model)
    with precision.autocast():
        model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss.backward()
    counts = precision.take_cast_counts()
    assert (counts is not None) == isinstance(CONFIGS[name], QuantizedExpertsSection)
    if counts is not None:
        assert counts.shape == (len(model.moe_layers()), len(OPERAND_NAMES), len(COUNT_NAMES))
        assert (counts[..., 0] > 0).all()


@every_precision
def test_description_names_the_kind_and_what_emulates_it(name: str) -> None:
    config, description = CONFIGS[name], built(name).description
    if isinstance(config, QuantizedExpertsSection):
        assert description == f"{config.kind} (emulated), rest {config.rest}"
    else:
        assert description == config.kind


@every_precision
def test_stopped_run_is_resumed_exactly(name: str, tmp_path: Path) -> None:
    width = max(32, width_of(name))
    moe = {"num_experts": 4, "top_k": 2, "hidden_dim": width}
    config = train_config(num_steps=4, model={"dim": width, "moe": moe}, precision=CONFIGS[name].model_dump())
    whole = run_training(config, tmp_path / "whole")
    stopped = run_training(config, tmp_path / "run", stop_at_tokens=2 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert all(torch.equal(tensor, resumed.weights()[key]) for key, tensor in whole.weights().items())
    for kind in ("scalars", "router", "evaluations"):
        assert exact_columns(resumed.table(kind)).equals(exact_columns(whole.table(kind)))


@every_precision
def test_context_ends_and_can_be_entered_again(name: str) -> None:
    precision = built(name)
    for _ in range(2):
        with precision.autocast():
            pass
        assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(RuntimeError, match="inside"), precision.autocast():
        raise RuntimeError("inside")
    assert not torch.is_autocast_enabled("cpu")
