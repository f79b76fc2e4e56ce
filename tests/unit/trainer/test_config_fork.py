"""What a fork may change, and that everything else is refused by its path."""

import json
from typing import Any

import pytest

from tests.support.training import STEP_TOKENS, train_config
from trainer.config import TrainConfig
from trainer.config.fork import ForkRefused, flat, fork_config, fork_problems, forkable_paths, parsed_change
from trainer.config.start import ForkStartConfig

START = ForkStartConfig(path="/runs/7/checkpoints/step-00000004", sha256="0" * 64, step=4)


def parent(**sections: Any) -> TrainConfig:
    return train_config(num_steps=12, **sections)


def forked(**changes: Any) -> TrainConfig:
    return fork_config(parent(), {path.replace("__", "."): value for path, value in changes.items()}, start=START)


def refusal(changes: dict[str, Any], **sections: Any) -> ForkRefused:
    with pytest.raises(ForkRefused) as caught:
        fork_config(parent(**sections), changes, start=START)
    return caught.value


def test_fork_without_a_change_differs_in_its_start_only():
    config = forked()
    assert config.start == START
    assert config.model_copy(update={"start": parent().start}) == parent()


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.lr": 1e-4},
        {"optimizer.router.lr_scale": 0.5, "optimizer.weight_decay": 0.0},
        {"optimizer.expert.beta2": 0.99},
        {"schedule": {"kind": "constant", "warmup_fraction": 0.0}},
        {"schedule.final_fraction": 0.0},
        {"loop.budget_tokens": 100 * STEP_TOKENS},
        {"loop.max_grad_norm": None, "loop.clipping": {"kind": "zclip"}},
        {"loop.skip_spikes": {"num_sigmas": 4.0}},
        {"loop.on_spike": {"kind": "skip", "num_sigmas": 4.0}, "loop.probe_tokens": 0},
        {"loop.checkpoint_every_tokens": STEP_TOKENS, "loop.log_every_steps": 1},
        {"model.moe.balancing.0.coefficient": 0.1, "model.moe.balancing.2.update_rate": 0.1},
        {"data.mixture.legal": 3.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_rates_lengths_and_weights_may_change(changes: dict[str, Any]):
    assert fork_problems(parent(), fork_config(parent(), changes, start=START), step=4) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.dim", 64),
        ("model.moe.top_k", 1),
        ("model.moe.num_experts", 8),
        ("model.moe.router", {"kind": "top_k", "input_jitter": 0.1}),
        ("data.seq_len", 32),
        ("data.tokenizer", "bpe-4096"),
        ("data.mixture", {"legal": 1, "books": 1}),
        ("data.document_masking", True),
        ("loop.global_batch_size", 16),
        ("loop.micro_batch_size", 8),
        ("optimizer", {"kind": "lion", "lr": 0.01}),
        ("precision", {"kind": "bf16_autocast"}),
        ("trained", "moe"),
        ("seed", 1),
    ],
)
def test_what_the_checkpoint_fixes_is_refused_by_its_path(path: str, value: Any):
    changes = {path: value} | ({"model.vocab_size": 4096} if path == "data.tokenizer" else {})
    problems = refusal(changes).problems
    assert any(problem.path == path or problem.path.startswith(f"{path}.") for problem in problems)
    assert all("optimizer.**.{lr," in problem.message for problem in problems)


def test_balancing_method_can_neither_come_nor_go():
    fewer = parent().model_dump(mode="json")["model"]["moe"]["balancing"][:1]
    assert {problem.path.split(".")[3] for problem in refusal({"model.moe.balancing": fewer}).problems} == {"1", "2"}


@pytest.mark.parametrize("num_steps", [1, 4])
def test_budget_that_is_spent_is_refused(num_steps: int):
    (problem,) = refusal({"loop.budget_tokens": num_steps * STEP_TOKENS}).problems
    assert problem.path == "loop.budget_tokens"
    assert f"more than {4 * STEP_TOKENS}" in problem.message


@pytest.mark.parametrize(
    "path", ["optimizer.lrr", "optimiser.lr", "loop.clipping.max_norm", "model.moe.balancing.7.x", ""]
)
def test_path_that_is_not_there_is_named(path: str):
    (problem,) = refusal({path: 1}).problems
    assert problem.path == path
    assert "there is no" in problem.message


@pytest.mark.parametrize(
    ("path", "value"),
    [("optimizer.lr", -1.0), ("schedule.final_fraction", "x"), ("model.moe.balancing.0.coefficient", 99)],
)
def test_value_that_is_not_allowed_is_named_by_the_path_that_was_set(path: str, value: Any):
    (problem,) = refusal({path: value}).problems
    assert problem.path == path


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("optimizer.lr=1e-4", ("optimizer.lr", 1e-4)),
        ("loop.budget_tokens=2000", ("loop.budget_tokens", 2000)),
        ("loop.max_grad_norm=null", ("loop.max_grad_norm", None)),
        ("schedule={kind: constant}", ("schedule", {"kind": "constant"})),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_change_is_read_from_text(text: str, change: tuple[str, Any]):
    assert parsed_change(text) == change


@pytest.mark.parametrize("text", ["optimizer.lr", "=1", "a={"])
def test_text_that_is_no_change_is_refused(text: str):
    with pytest.raises(ForkRefused):
        parsed_change(text)


def test_fork_of_a_fork_is_compared_without_its_start():
    once = forked(optimizer__lr=1e-4)
    twice = fork_config(once, {"optimizer.lr": 1e-5}, start=START.model_copy(update={"step": 6}))
    assert twice.start == START.model_copy(update={"step": 6})


def test_every_path_that_is_offered_may_change_and_no_other_value_does():
    config = parent()
    values = flat(config.model_dump(mode="json"))
    offered = forkable_paths(config)
    assert {"optimizer.lr", "optimizer.router.lr_scale", "loop.budget_tokens", "data.mixture.legal"} <= set(offered)
    assert not {"seed", "model.dim", "schedule.kind", "loop.global_batch_size"} & set(offered)
    assert fork_config(config, {path: json.loads(values[path]) for path in offered}, start=START).start == START
