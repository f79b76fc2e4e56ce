"""The arms of studies/002-seeing-collapse differ in what they say, and the planted one in two numbers."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from trainer.interop.start import load_start
from trainer.model.build import build_model

SCRIPT = Path(__file__).resolve().parents[3] / "studies" / "002-seeing-collapse" / "arms.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeing_collapse_arms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arms_change_what_they_name_and_nothing_else(study: ModuleType, tmp_path: Path):
    balanced = study.arm_config("balanced", 1, folder=tmp_path).model_dump(mode="json")
    for arm, changes in study.ARMS.items():
        if arm == "planted":
            continue
        config = study.arm_config(arm, 1, folder=tmp_path).model_dump(mode="json")
        assert {name for name, value in config["model"]["moe"].items() if value != balanced["model"]["moe"][name]} == (
            changes.keys()
        )
        config["model"]["moe"] = balanced["model"]["moe"]
        assert config == balanced


def test_planted_arm_starts_with_two_biases_that_are_not_those_of_the_balanced_one(study: ModuleType, tmp_path: Path):
    config = study.arm_config("planted", 2, folder=tmp_path)
    _, planted = load_start(tmp_path / "start")
    drawn = build_model(config.model, seed=2, device=torch.device("cpu")).state_dict()
    assert planted.keys() == drawn.keys()
    different = {name: (planted[name] != drawn[name]).nonzero().flatten().tolist() for name in drawn}
    assert {name: places for name, places in different.items() if places} == {
        f"blocks.{study.SICK_LAYER}.feed_forward.router.bias": list(study.SICK_EXPERTS)
    }
