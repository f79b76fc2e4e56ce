"""Several optimizers at once, chosen by the names of parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.support.models import META, dense_and_moe_configs, random_tokens, tiny_model
from tests.support.training import STEP_TOKENS, run_training, train_config
from trainer.config.optimizers import AdamWConfig, ByPatternConfig, LionConfig, MuonConfig, ShampooConfig
from trainer.model.build import build_model
from trainer.model.transformer import Transformer
from trainer.optimizers.build import build_optimizer

CONFIG = dense_and_moe_configs()["moe_everything"]
GROUPS = [
    {"pattern": "blocks.0.*", "rule": {"kind": "shampoo", "lr_scale": 0.5}},
    {"pattern": "*.experts.*", "rule": {"kind": "muon", "weight_decay": 0.3}},
    {"pattern": "*.router.weight", "rule": {"kind": "adamw", "beta2": 0.99, "lr_scale": 0.1}},
    {"pattern": "*.attention.[qk]*", "rule": {"kind": "lion", "beta1": 0.8, "lr_scale": 0.2}},
]


def by_pattern(**fields: Any) -> ByPatternConfig:
    return ByPatternConfig.model_validate({"lr": 1e-2, "groups": GROUPS} | fields)


def groups_by_name(config: ByPatternConfig, model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    optimizer = build_optimizer(config, model)
    group_of = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    return {name: group_of[id(parameter)] for name, parameter in model.named_parameters()}


def test_first_pattern_that_matches_decides_and_else_the_default() -> None:
    groups = groups_by_name(by_pattern(), build_model(CONFIG, seed=0, device=META))
    rules = {name: group["rule"] for name, group in groups.items()}
    assert rules["blocks.0.attention.query.weight"] == "shampoo"
    assert rules["blocks.0.attention_norm.gain"] == "adamw", "rules for matrices leave vectors to AdamW"
    assert rules["blocks.1.attention.query.weight"] == "lion"
    assert rules["blocks.1.attention.key_norm.gain"] == "lion"
    assert rules["blocks.1.attention.value.weight"] == "adamw"
    assert rules["blocks.2.feed_forward.experts.down_weight_EFD"] == "muon"
    assert rules["head.weight"] == "adamw"


def test_each_rule_has_its_rate_decay_and_betas() -> None:
    groups = groups_by_name(by_pattern(), build_model(CONFIG, seed=0, device=META))
    first = groups["blocks.0.attention.query.weight"]
    assert (first["lr"], first["lr_scale"], first["weight_decay"]) == (5e-3, 0.5, 0.1)
    assert groups["blocks.1.feed_forward.experts.gate_up_weight_E2FD"]["weight_decay"] == 0.3
    router = groups["blocks.1.feed_forward.router.weight"]
    assert (router["lr"], router["weight_decay"], router["betas"]) == (1e-3, 0.0, (0.9, 0.99))
    key = groups["blocks.1.attention.key.weight"]
    assert (key["lr"], key["betas"]) == (2e-3, (0.8, 0.99))
    assert groups["blocks.1.attention.key_norm.gain"]["weight_decay"] == 0.0


def step(model: Transformer, optimizer: torch.optim.Optimizer) -> None:
    model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("blocks.0.attention.value.weight", ShampooConfig(lr=5e-3)),
        ("blocks.1.feed_forward.experts.gate_up_weight_E2FD", MuonConfig(lr=1e-2, weight_decay=0.3)),
        ("blocks.1.attention.key.weight", LionConfig(lr=2e-3, beta1=0.8)),
        ("embedding.weight", AdamWConfig(lr=1e-2)),
    ],
)
def test_parameter_is_updated_as_by_the_optimizer_of_its_rule(name: str, alone: Any) -> None:
    model, other = tiny_model(CONFIG), tiny_model(CONFIG)
    step(model, build_optimizer(by_pattern(), model))
    step(other, build_optimizer(alone, other))
    torch.testing.assert_close(model.get_parameter(name), other.get_parameter(name))


def test_names_are_those_of_the_bare_model_also_when_it_is_wrapped() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, module: Transformer) -> None:
            super().__init__()
            self.module = module

    model = build_model(CONFIG, seed=0, device=META)
    bare = {name: group["rule"] for name, group in groups_by_name(by_pattern(), model).items()}
    wrapped = {name: group["rule"] for name, group in groups_by_name(by_pattern(), Wrapped(model)).items()}
    assert wrapped == {f"module.{name}": rule for name, rule in bare.items()}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["*.expert.*"],
            r"optimizer.groups.0.pattern='\*.expert.\*' matches no parameter that is trained; there are .*",
        ),
        (["*", "*.experts.*"], r"groups.1.pattern='\*.experts.\*' matches only what earlier patterns take, .* by '\*'"),
        (["*.router.*", "blocks.7.*"], r"groups.1.pattern='blocks.7.\*' matches no parameter that is trained"),
    ],
)
def test_pattern_that_decides_nothing_is_refused_before_anything_runs(patterns: list[str], message: str) -> None:
    optimizer = {"kind": "by_pattern", "lr": 0.01, "groups": [{"pattern": pattern} for pattern in patterns]}
    with pytest.raises(ValidationError, match=message):
        train_config(optimizer=optimizer)


def test_pattern_of_frozen_parameters_is_refused() -> None:
    optimizer = {"kind": "by_pattern", "lr": 0.01, "groups": [{"pattern": "*.attention.*"}]}
    with pytest.raises(ValidationError, match="matches no parameter that is trained"):
        train_config(optimizer=optimizer, trained="moe")


def test_refusal_lists_the_parameters_once_for_all_layers() -> None:
    optimizer = {"kind": "by_pattern", "lr": 0.01, "groups": [{"pattern": "no_such"}]}
    with pytest.raises(ValidationError) as raised:
        train_config(optimizer=optimizer)
    message = str(raised.value)
    assert message.count("attention.query.weight") == 1
    assert "blocks.*.feed_forward.router.weight" in message


def test_run_stopped_and_resumed_from_its_checkpoint_is_bit_equal(tmp_path: Path) -> None:
    config = train_config(num_steps=6, optimizer={"lr": 0.01, "kind": "by_pattern", "groups": GROUPS[:3]})
    whole = run_training(config, tmp_path / "whole")
    stopped = run_training(config, tmp_path / "run", stop_at_tokens=3 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    for mine, theirs in ((resumed.weights(), whole.weights()), (resumed.optimizer(), whole.optimizer())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
