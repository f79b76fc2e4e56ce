"""What casts lost, as fractions of the step."""

from pathlib import Path

import numpy as np
import pytest

from kernels.quantize import COUNT_NAMES, OPERAND_NAMES
from tests.support.training import run_training, train_config
from trainer.metrics.catalog import QUANTIZATION_SCALARS
from trainer.metrics.quantization import quantization_losses

MODEL = {"moe": {"num_experts": 4, "top_k": 2, "hidden_dim": 32}}


def test_metrics_are_those_of_operands_and_counts() -> None:
    assert COUNT_NAMES == ("nonzero", "zeroed", "saturated")
    expected = [
        f"quantization/{operand}_{loss}_fraction" for operand in OPERAND_NAMES for loss in ("zero", "saturated")
    ]
    assert list(QUANTIZATION_SCALARS) == expected


def test_fractions_are_of_what_was_not_zero() -> None:
    counts_OC = np.array([[[10, 1, 2], [4, 4, 0], [0, 0, 0]]], dtype=np.float64)
    losses = {name.split("/")[1]: values.tolist() for name, values in quantization_losses(counts_OC).items()}
    assert losses == {
        "activation_zero_fraction": [0.1],
        "activation_saturated_fraction": [0.2],
        "weight_zero_fraction": [1.0],
        "weight_saturated_fraction": [0.0],
        "gradient_zero_fraction": [0.0],
        "gradient_saturated_fraction": [0.0],
    }


@pytest.mark.parametrize("precision", ["nvfp4", "mxfp8"])
def test_run_records_them_per_layer(precision: str, tmp_path: Path) -> None:
    table = run_training(train_config(num_steps=3, model=MODEL, precision={"kind": precision}), tmp_path).table(
        "router"
    )
    for name in QUANTIZATION_SCALARS:
        values = np.array(table[name].to_pylist())
        assert values.shape == (6,)
        assert ((values >= 0) & (values < 0.3)).all()
    # 16 numbers against 256: far more is lost.
    zeroed = np.array(table["quantization/activation_zero_fraction"].to_pylist())
    assert (zeroed > 0.05).all() if precision == "nvfp4" else (zeroed < 0.01).all()


def test_other_precisions_record_none(tmp_path: Path) -> None:
    finished = run_training(train_config(num_steps=2, model=MODEL), tmp_path)
    assert not set(finished.table("router").column_names) & set(QUANTIZATION_SCALARS)
    assert finished.last.summary is not None
    assert finished.last.summary.precision == "fp32"
