"""Twins have what they were matched in, to half a step of the width."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import META
from trainer.config import TrainConfig
from trainer.model.build import build_model
from trainer.model.matched import QUANTITIES, Match, matched_twin
from trainer.model.size import flops_per_token, model_size
from trainer.presets import preset_document, with_preset

MATCHES: tuple[Match, ...] = ("active_params", "total_params", "flops")


def tiny(*, moe: dict[str, Any] | None = None, **model: Any) -> TrainConfig:
    """Returns cpu-tiny with fields of its model replaced."""
    fields = {"moe": moe} if moe is not None else {}
    return TrainConfig.model_validate(with_preset({"preset": "cpu-tiny", "model": model | fields}))


def quantity(config: TrainConfig, match: Match) -> float:
    if match == "flops":
        return flops_per_token(config.model, seq_len=config.data.seq_len)
    size = model_size(config.model)
    return size.active if match == "active_params" else size.total


@st.composite
def mixtures(draw: st.DrawFn) -> TrainConfig:
    """Any mixture wide enough that a dense twin exists."""
    num_dense_layers = draw(st.integers(0, 2))
    num_experts = 2 * draw(st.integers(2, 16))
    num_shared_experts = 2 * draw(st.integers(0, 2))
    return tiny(
        vocab_size=4096,
        dim=8 * draw(st.integers(2, 40)),
        num_layers=draw(st.integers(num_dense_layers + 2, 6)),
        hidden_dim=8 * draw(st.integers(2, 60)),
        tie_embeddings=draw(st.booleans()),
        moe={
            "num_experts": num_experts,
            "top_k": 2 * draw(st.integers(1, min(4, num_experts // 2))),
            "hidden_dim": 8 * draw(st.integers(4, 40)),
            "num_shared_experts": num_shared_experts,
            "num_dense_layers": num_dense_layers,
            "every": draw(st.integers(1, 2)),
            "expert_bias": draw(st.booleans()),
            "shared_gate": draw(st.booleans()) if num_shared_experts else False,
            "activation": draw(st.sampled_from(["swiglu", "geglu", "clamped_swiglu"])),
        },
    )


@given(base=mixtures(), match=st.sampled_from(MATCHES), granularity=st.sampled_from([None, 0.5, 1, 2, 3]))
def test_twin_is_the_nearest_one_there_is(base: TrainConfig, match: Match, granularity: float | None) -> None:
    twin = matched_twin(base, match=match, granularity=granularity)
    found = base.model_copy(update={"model": twin.model})
    assert twin.target == quantity(base, match)
    assert twin.value == quantity(found, match)
    assert twin.residual == pytest.approx(twin.value / twin.target - 1)
    moe = twin.model.moe
    assert (moe is None) == (granularity is None)
    assert twin.hidden_dim == (twin.model.hidden_dim if moe is None else moe.hidden_dim)
    # One step further in either direction is no nearer, so the residual is at most half a step.
    step = abs(at_width(found, twin.hidden_dim + 8, match) - twin.value)
    assert abs(twin.value - twin.target) <= step / 2 + 1e-6 * twin.target
    assert step > 0


def at_width(config: TrainConfig, width: int, match: Match) -> float:
    model = config.model
    if model.moe is None:
        changed = model.model_copy(update={"hidden_dim": width})
    else:
        changed = model.model_copy(update={"moe": model.moe.model_copy(update={"hidden_dim": width})})
    return quantity(config.model_copy(update={"model": changed}), match)


@pytest.mark.parametrize("match", MATCHES)
def test_dense_twin_builds_with_the_count_it_says(match: Match) -> None:
    twin = matched_twin(tiny(), match=match)
    model = build_model(twin.model, seed=0, device=META)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == model_size(twin.model).total
    if match != "flops":
        assert parameters == twin.value


def test_published_twin_of_olmoe() -> None:
    """Top-8 of width 1024 are 8192; the dense twin is one step of 8 wider, for the routers."""
    olmoe = TrainConfig.model_validate(preset_document("olmoe-1b-7b"))
    twin = matched_twin(olmoe, match="active_params")
    assert twin.hidden_dim == 8192 + 24
    assert twin.target == 1_282_017_280
    # The width of 8192 has the published 1,279,920,128.
    assert twin.value - 16 * 3 * 2048 * 24 == 1_279_920_128
    assert abs(twin.residual) < 3e-4


def test_coarser_experts_are_those_of_the_published_granularity_study() -> None:
    olmoe = TrainConfig.model_validate(preset_document("olmoe-1b-7b"))
    for granularity, total in ((1 / 8, 6_917_326_848), (1 / 2, 6_918_113_280)):
        twin = matched_twin(olmoe, match="total_params", granularity=granularity)
        moe = twin.model.moe
        assert moe is not None
        assert (moe.num_experts, moe.top_k, moe.hidden_dim) == (64 * granularity, 8 * granularity, 1024 / granularity)
        assert twin.value == total


def test_other_number_of_experts_keeps_those_per_token() -> None:
    twin = matched_twin(tiny(), match="total_params", num_experts=32)
    assert twin.model.moe is not None
    assert (twin.model.moe.num_experts, twin.model.moe.top_k, twin.hidden_dim) == (32, 2, 64)


def test_twin_takes_what_else_differs_from_start() -> None:
    base = tiny()
    start = tiny(attention={"num_heads": 2})
    twin = matched_twin(base, match="active_params", start=start)
    assert twin.model.attention == start.model.attention
    assert twin.target == model_size(base.model).active
    plain = matched_twin(base, match="active_params")
    assert twin.hidden_dim > plain.hidden_dim
    assert abs(twin.residual) < 0.01


def test_dense_twin_has_the_experts_activation() -> None:
    assert matched_twin(tiny(moe={"activation": "geglu"}), match="flops").model.activation == "geglu"


def test_widths_fit_the_experts_precision() -> None:
    widths = []
    for kind in ("fp32", "mxfp8"):  # the latter scales blocks of 32 features
        fields = {"preset": "cpu-tiny", "precision": {"kind": kind}, "model": {"moe": {"num_experts": 20}}}
        base = TrainConfig.model_validate(with_preset(fields))
        widths.append(matched_twin(base, match="total_params", num_experts=32).hidden_dim)
    assert widths == [80, 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": 0.3}, r"granularity=0.3 makes num_experts=16 into 4.8; choose a factor"),
        ({"granularity": 2, "num_experts": 8}, r"granularity=2 and num_experts=8 are both given"),
        ({"granularity": 1000}, r"match=active_params: the base has .*, and the twin has more at every hidden_dim"),
        ({"num_experts": 2, "start": tiny(num_layers=40)}, "the twin has more at every hidden_dim"),
        ({"granularity": 0.125}, "top_k=2 into 0.25"),
    ],
)
def test_what_has_no_twin_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matched_twin(tiny(), match="active_params", **options)


def test_dense_base_has_no_twin() -> None:
    dense = TrainConfig.model_validate(with_preset({"preset": "cpu-tiny", "model": {"moe": None}}))
    with pytest.raises(ValueError, match=r"model\.moe is null"):
        matched_twin(dense, match="flops")


def test_every_match_has_a_name_for_people() -> None:
    assert tuple(QUANTITIES) == MATCHES


def test_deriving_a_twin_loads_no_torch() -> None:
    code = "import sys, trainer.model.matched; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
