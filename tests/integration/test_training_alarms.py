"""A router that collapses in real training is found, in the right layer, though the loss does not show it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.training
from tests.support.training import STEP_TOKENS, Finished, run_training, train_config
from trainer.config import TrainConfig
from trainer.model.build import build_model
from trainer.model.transformer import Transformer

NUM_STEPS = 60
FOR_STEPS = 20
SICK_LAYER = 2


def config(**rules: Any) -> TrainConfig:
    """Three layers of 8 experts, 1 per token, balanced by a loss that cannot turn a forced router in so few steps."""
    model = train_config().model.model_dump(mode="json") | {"num_layers": 3}
    model["moe"] |= {"num_experts": 8, "top_k": 1, "router": {"kind": "top_k", "bias": True}}
    model["moe"]["balancing"] = [{"kind": "load_balancing_loss", "coefficient": 0.05}]
    return train_config(num_steps=NUM_STEPS, model=model, optimizer={"lr": 0.003}, **rules)


def with_forced_router(layer: int) -> Callable[..., Transformer]:
    """Builds models in which the router of `layer` sends every token to expert 5, whatever the token."""

    def build(*arguments: Any, **named: Any) -> Transformer:
        model = build_model(*arguments, **named)
        with torch.no_grad():
            model.blocks[layer].feed_forward.router.bias[5] = 40.0
        return model

    return build


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.training, "build_model", with_forced_router(SICK_LAYER))


def alarms(finished: Finished) -> list[dict[str, Any]]:
    path = finished.folder / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


COLLAPSE = [{"kind": "collapse", "for_steps": FOR_STEPS}]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    balanced = train_config(
        num_steps=NUM_STEPS, warn_when=[*COLLAPSE, {"kind": "dead_experts"}, {"kind": "divergence"}]
    )
    return run_training(balanced, tmp_path_factory.mktemp("healthy"))


def test_healthy_run_raises_no_alarm(healthy: Finished):
    assert healthy.last.kind == "finished"
    assert alarms(healthy) == []


@pytest.mark.usefixtures("planted")
def test_planted_collapse_is_found_in_its_layer_and_nowhere_else(tmp_path: Path):
    found = run_training(config(warn_when=COLLAPSE), tmp_path)
    assert found.last.kind == "finished", "a warning ends nothing"
    events = alarms(found)
    told = {(event["layer"], event["change"], event["step"]) for event in events}
    assert told == {(SICK_LAYER, "raised", FOR_STEPS)}
    assert {event["metric"] for event in events} == {"router/max_load", "router/effective_experts"}
    assert all((event["severity"], event["first_step"]) == ("warn", 1) for event in events)


def test_loss_alone_does_not_tell_a_collapsed_router(tmp_path: Path, request: pytest.FixtureRequest):
    expected = run_training(config(warn_when=[]), tmp_path / "as_built")
    request.getfixturevalue("planted")
    collapsed = run_training(config(warn_when=[]), tmp_path / "collapsed")
    assert expected.last.summary is not None
    assert collapsed.last.summary is not None
    assert collapsed.last.summary.final_loss == pytest.approx(expected.last.summary.final_loss, abs=0.1)
    assert collapsed.last.summary.max_dead_fraction == 7 / 8


@pytest.mark.usefixtures("planted")
def test_stopping_rule_ends_the_run_with_its_cause_and_a_checkpoint(tmp_path: Path):
    stopping = config(stop_when=COLLAPSE, warn_when=[])
    stopped = run_training(stopping, tmp_path)
    assert (stopped.last.kind, stopped.last.cause, stopped.last.step) == ("stopped", "stop_rule", FOR_STEPS)
    assert stopped.last.message is not None
    assert f"layer {SICK_LAYER}" in stopped.last.message
    assert stopped.last.checkpoint is not None
    assert stopped.last.evaluation is not None
    again = run_training(stopping, tmp_path, resume_from=stopped.last.checkpoint.folder)
    assert (again.last.kind, again.last.cause, again.last.step) == ("stopped", "stop_rule", FOR_STEPS)
    assert again.last.message == stopped.last.message
    assert len(alarms(stopped)) == len({json.dumps(event) for event in alarms(stopped)})


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("stop_step", [3, 19, 20, 33])
def test_interrupted_run_raises_the_same_alarms(tmp_path: Path, stop_step: int):
    whole = run_training(config(warn_when=COLLAPSE), tmp_path / "whole")
    stopped = run_training(config(warn_when=COLLAPSE), tmp_path / "run", stop_at_tokens=stop_step * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config(warn_when=COLLAPSE), tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert [without_time(event) for event in alarms(resumed)] == [without_time(event) for event in alarms(whole)]


def without_time(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "time_ms"}
