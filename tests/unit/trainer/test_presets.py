"""Every preset is a valid configuration of the size it was published with, and trains."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.models import META
from tests.support.reduced import reduced
from tests.support.training import run_training
from trainer.config import TrainConfig
from trainer.model.build import build_model
from trainer.model.size import flops_per_token, memory_estimate, model_size
from trainer.presets import UnknownPreset, merged, preset_document, preset_names, with_preset

every_preset = pytest.mark.parametrize("name", preset_names())


def preset(name: str) -> TrainConfig:
    return TrainConfig.model_validate(preset_document(name))


class Published(NamedTuple):
    """Exact counts: of the elements in released weights, or in the authors' own reports."""

    total: int
    active: int | None = None
    active_minus_input_embedding: int | None = None
    non_embedding_total: int | None = None
    non_embedding_active: int | None = None


PUBLISHED = {
    "nmoe-speedrun-dense": Published(190_532_352, 190_532_352, 151_898_880, 113_265_408, 113_265_408),
    "nmoe-speedrun-64": Published(755_534_592, 191_073_024, 152_439_552, 678_267_648, 113_806_080),
    "nmoe-speedrun-256": Published(2_836_482_816, 192_891_648, 154_258_176, 2_759_215_872, 115_624_704),
    "olmoe-1b-7b": Published(6_919_161_856, 1_282_017_280, 1_178_994_688, 6_713_116_672, 1_075_972_096),
    "moonlight-16b-a3b": Published(15_960_108_544, 2_914_774_528, 2_579_230_208, 15_289_019_904, 2_243_685_888),
    "gpt-oss-20b": Published(20_914_757_184, 4_187_440_704, 3_608_307_264),
    "mixtral-8x7b": Published(46_702_792_704, 12_879_925_248, 12_748_853_248),
    "deepseekmoe-16b": Published(16_375_728_128),
    "deepseek-v2-lite": Published(15_706_484_224),
    "qwen3-30b-a3b": Published(30_532_122_624),
}


def test_presets_are_those_the_documentation_names() -> None:
    assert preset_names() == (
        "cpu-tiny",
        "deepseek-v2-lite",
        "deepseekmoe-16b",
        "gpt-oss-20b",
        "gpu-medium",
        "gpu-small",
        "mixtral-8x7b",
        "moonlet",
        "moonlight-16b-a3b",
        "nmoe-speedrun-256",
        "nmoe-speedrun-64",
        "nmoe-speedrun-dense",
        "olmoe-1b-7b",
        "qwen3-30b-a3b",
        "switch-base",
    )


@every_preset
def test_built_model_has_the_size_of_the_closed_form(name: str) -> None:
    config = preset(name)
    model = build_model(config.model, seed=0, device=META)
    assert sum(parameter.numel() for parameter in model.parameters()) == model_size(config.model).total
    assert flops_per_token(config.model, seq_len=config.data.seq_len) > 0
    assert memory_estimate(config).total_gib > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    size = model_size(preset(name).model)
    for field, value in PUBLISHED[name]._asdict().items():
        assert value is None or getattr(size, field) == value, field


def test_switch_base_has_the_experts_of_the_original() -> None:
    moe = preset("switch-base").model.moe
    assert moe is not None
    assert preset("switch-base").model.layer_kinds() == ("dense", "moe") * 12
    assert 12 * moe.num_experts * 3 * 768 * moe.hidden_dim == 7_247_757_312


@every_preset
def test_trains_two_steps_at_reduced_width(name: str, tmp_path: Path) -> None:
    config = reduced(preset(name))
    assert config.num_steps == 2
    finished = run_training(config, tmp_path)
    assert finished.last.kind == "finished", finished.last.message
    assert finished.last.step == 2


@pytest.mark.parametrize("name", ["cpu-tiny", "gpu-small", "gpu-medium"])
def test_our_own_fit_where_they_say(name: str) -> None:
    limit = {"cpu-tiny": 1, "gpu-small": 24, "gpu-medium": 80}[name]
    assert memory_estimate(preset(name)).total_gib < limit


def test_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(UnknownPreset, match=r"no preset 'olmoe-1b'; did you mean olmoe-1b-7b\? there are"):
        with_preset({"preset": "olmoe-1b"})
    for name in ("../presets/cpu-tiny", 7, None, ["cpu-tiny"], {}):
        with pytest.raises(UnknownPreset, match="there are: cpu-tiny, deepseek-v2-lite"):
            with_preset({"preset": name})


def test_document_without_a_preset_is_left_alone() -> None:
    assert with_preset({"model": {"dim": 8}}) == {"model": {"dim": 8}}


def test_overrides_merge_field_by_field() -> None:
    document = with_preset({"preset": "olmoe-1b-7b", "model": {"num_layers": 4, "moe": {"top_k": 4}}, "seed": 3})
    config = TrainConfig.model_validate(document)
    expected = preset("olmoe-1b-7b").model_dump()
    expected["model"]["num_layers"], expected["model"]["moe"]["top_k"], expected["seed"] = 4, 4, 3
    assert config == TrainConfig.model_validate(expected)


def test_another_kind_replaces_the_whole_section() -> None:
    document = with_preset({"preset": "olmoe-1b-7b", "optimizer": {"kind": "lion", "lr": 1e-4}})
    assert document["optimizer"] == {"kind": "lion", "lr": 1e-4}
    document = with_preset({"preset": "olmoe-1b-7b", "optimizer": {"kind": "adamw", "lr": 1e-4}})
    assert document["optimizer"] == preset_document("olmoe-1b-7b")["optimizer"] | {"lr": 1e-4}


def test_lists_and_null_replace() -> None:
    assert merged({"a": [1, 2], "b": {"c": 1}}, {"a": [3], "b": None}) == {"a": [3], "b": None}


def test_a_preset_cannot_be_changed_by_who_asked_for_it() -> None:
    preset_document("cpu-tiny")["model"]["dim"] = 8
    assert preset_document("cpu-tiny")["model"]["dim"] == 128
