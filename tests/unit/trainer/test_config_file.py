"""What is wrong with a config is said by field, with what was given and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.training import train_config
from trainer.config_file import ConfigRejected, read_config


def written(folder: Path, document: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def document(**changes: Any) -> dict[str, Any]:
    """Returns a valid document with values set at paths such as `model__moe__top_k`."""
    fields = train_config().model_dump(mode="json")
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = fields
        for parent in parents:
            place = place[parent]
        place[last] = value
    return fields


def rejected(folder: Path, document: Any) -> str:
    with pytest.raises(ConfigRejected) as caught:
        read_config(written(folder, document))
    return str(caught.value)


def test_bare_config_and_base_of_a_spec_are_the_same(tmp_path: Path):
    assert read_config(written(tmp_path, document())) == train_config()
    assert read_config(written(tmp_path, {"name": "x", "base": document()})) == train_config()


def test_file_may_name_a_preset_and_change_it(tmp_path: Path):
    changed = {"preset": "cpu-tiny", "model": {"moe": {"top_k": 4}}, "loop": {"budget_tokens": 4096}}
    for content in (changed, {"name": "x", "base": changed}):
        config = read_config(written(tmp_path, content))
        assert config.model.moe is not None
        assert (config.model.moe.top_k, config.model.moe.num_experts, config.loop.budget_tokens) == (4, 16, 4096)


def test_unknown_preset_in_a_file_lists_those_there_are(tmp_path: Path):
    message = rejected(tmp_path, {"base": {"preset": "cpu-tinny"}})
    assert "base.preset: there is no preset 'cpu-tinny'; did you mean cpu-tiny?" in message
    assert "switch-base" in message


def test_typo_beside_a_preset_is_named(tmp_path: Path):
    message = rejected(tmp_path, {"preset": "cpu-tiny", "model": {"dimm": 64}})
    assert "model.dimm: there is no such field; did you mean dim?" in message


def test_typo_is_named_with_the_nearest_field(tmp_path: Path):
    message = rejected(tmp_path, document(model__moe__num_expert=4))
    assert "model.moe.num_expert: there is no such field; did you mean num_experts?" in message
    assert "top_k" in message


def test_typo_inside_a_component_is_named_without_its_kind(tmp_path: Path):
    broken = document()
    broken["model"]["moe"]["balancing"] = [{"kind": "load_balancing_loss", "coeficient": 0.1}]
    message = rejected(tmp_path, broken)
    assert "model.moe.balancing.0.coeficient: there is no such field; did you mean coefficient?" in message
    assert "model.moe.balancing.0.coefficient: required, but not given" in message


def test_kind_that_is_none_lists_those_there_are(tmp_path: Path):
    broken = document()
    broken["model"]["moe"]["balancing"] = [{"kind": "luck"}]
    message = rejected(tmp_path, broken)
    assert "luck" in message
    assert "loss_free_bias" in message


def test_relation_between_fields_says_both_values(tmp_path: Path):
    message = rejected(tmp_path, document(model__moe__top_k=9))
    assert "top_k=9 exceeds num_experts=4" in message


def test_value_out_of_range_says_what_was_given_and_what_is_allowed(tmp_path: Path):
    message = rejected(tmp_path, document(optimizer__lr=-1.0))
    assert "optimizer.lr: given -1.0; " in message
    assert "greater than 0" in message


def test_corpus_that_is_none_lists_those_there_are(tmp_path: Path):
    message = rejected(tmp_path, document(data__mixture={"wikipedia": 1.0}))
    assert "wikipedia" in message
    assert "speeches" in message


def test_every_problem_has_its_line_and_the_place_in_the_spec(tmp_path: Path):
    message = rejected(tmp_path, {"base": document(optimizer__lr=0, seed=-1)})
    assert "base.optimizer.lr" in message
    assert "base.seed" in message


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "", "a: [unclosed", "\x00"])
def test_file_that_is_no_document_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigRejected, match=r"config\.yaml"):
        read_config(path)
