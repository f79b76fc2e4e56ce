"""Exact resume of every component from a random kill point.

A child process is killed with SIGKILL at the call of some module or at a step of the optimizer: in the middle of a
forward pass, between two micro-batches, before or after an update, in an evaluation. What goes on from its newest
checkpoint has the losses, loads, weights and optimizer states of a run left alone.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.support.component_configs import config_classes, example_config
from tests.support.training import STEP_TOKENS, Finished, exact_columns, request, run_training, train_config
from trainer.attention import ATTENTIONS
from trainer.balancing import BALANCERS
from trainer.checkpoint_manifest import newest_valid_checkpoint
from trainer.clipping import CLIPPERS
from trainer.config import TrainConfig
from trainer.config.attention import AttentionConfig
from trainer.config.balancing import BalancerConfig
from trainer.config.clipping import ClippingConfig
from trainer.config.optimizers import OptimizerConfig
from trainer.config.precision import PrecisionConfig
from trainer.config.routers import RouterConfig
from trainer.config.schedules import ScheduleConfig
from trainer.optimizers import OPTIMIZERS
from trainer.precision import PRECISIONS
from trainer.routers import ROUTERS
from trainer.schedules import SCHEDULES
from trainer.worker import run

NUM_STEPS = 6
LOOP: dict[str, Any] = {
    "checkpoint_every_tokens": 2 * STEP_TOKENS,
    "evaluate_every_tokens": 3 * STEP_TOKENS,
    "log_every_steps": 2,
    "probe_tokens": 128,
}


def config(*, moe: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **sections: Any) -> TrainConfig:
    """A run of 2 micro-batches a step over a small model; `moe` and `model` replace fields."""
    document = train_config().model.model_dump(mode="json")
    document["moe"] |= {"hidden_dim": 32} | (moe or {})
    return train_config(num_steps=NUM_STEPS, **{"loop": LOOP, "model": document | (model or {})} | sections)


def example(union: Any, kind: str) -> dict[str, Any]:
    return example_config(union, kind).model_dump(mode="json")


def clipped(kind: str) -> TrainConfig:
    clipping = example(ClippingConfig, kind) | ({"warmup_steps": 3} if kind in ("zclip", "adagc") else {})
    return config(loop=LOOP | {"max_grad_norm": None, "clipping": clipping})


def optimized(kind: str) -> TrainConfig:
    refreshed = {"refresh_every": 2} if kind in ("soap", "shampoo") else {}
    return config(optimizer=example(OptimizerConfig, kind) | {"lr": 0.01} | refreshed)


FAMILIES: dict[str, tuple[Any, Callable[[str], TrainConfig]]] = {
    "attention": (ATTENTIONS, lambda kind: config(model={"attention": example(AttentionConfig, kind)})),
    "router": (ROUTERS, lambda kind: config(moe={"router": example(RouterConfig, kind), "balancing": []})),
    "balancing": (BALANCERS, lambda kind: config(moe={"balancing": [example(BalancerConfig, kind)]})),
    "optimizer": (OPTIMIZERS, optimized),
    "clipping": (CLIPPERS, clipped),
    "schedule": (SCHEDULES, lambda kind: config(schedule=example(ScheduleConfig, kind))),
    "precision": (PRECISIONS, lambda kind: config(precision=example(PrecisionConfig, kind))),
}
OTHERS = {
    "skipping": lambda: config(loop=LOOP | {"skip_spikes": {"window": 4, "min_window": 2, "num_sigmas": 0.5}}),
    "jitter": lambda: config(moe={"router": {"kind": "top_k", "input_jitter": 0.1}}),
    "dropping": lambda: config(moe={"capacity": {"factor": 0.75, "drop": "probability"}}),
}
CASES = [
    *((name, kind) for name, (registry, _) in FAMILIES.items() for kind in sorted(registry)),
    *(("other", name) for name in OTHERS),
]


@contextmanager
def counted_moments(at: Callable[[int], None]) -> Iterator[None]:
    """Calls `at` with the number of each moment at which a run can be killed, from 0."""
    count = 0

    def moment(*_: Any) -> None:
        nonlocal count
        at(count)
        count += 1

    handles = [
        register_module_forward_pre_hook(moment),
        register_optimizer_step_pre_hook(moment),
        register_optimizer_step_post_hook(moment),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def killed(config: TrainConfig, folder: Path, *, moment: int, resume_from: str | None = None) -> None:
    """Runs in a process of its own, which gets SIGKILL at a moment."""

    def at(number: int) -> None:
        if number == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with counted_moments(at):
            run(request(config, folder, resume_from=resume_from), lambda report: None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the run was over before it was to be killed"


def assert_same(found: Finished, expected: Finished) -> None:
    assert found.last.kind == expected.last.kind == "finished", found.last.message
    for mine, theirs in ((found.weights(), expected.weights()), (found.optimizer(), expected.optimizer())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    for kind in ("scalars", "router", "evaluations"):
        assert exact_columns(found.table(kind)).equals(exact_columns(expected.table(kind))), kind
    assert found.last.evaluation == expected.last.evaluation


@pytest.mark.parametrize(("family", "kind"), CASES, ids=lambda part: str(part))
def test_I5_component_is_resumed_exactly_from_random_kill_points(family: str, kind: str, tmp_path: Path):
    chosen = random.Random(f"{family}/{kind}")
    case = OTHERS[kind]() if family == "other" else FAMILIES[family][1](kind)
    moments: list[int] = []
    with counted_moments(moments.append):
        whole = run_training(case, tmp_path / "whole")
    folder = tmp_path / "killed"
    killed(case, folder, moment=chosen.randrange(len(moments) // 2), resume_from=None)
    newest = newest_valid_checkpoint(folder)
    checkpoint = None if newest is None else str(newest)
    assert_same(run_training(case, folder, resume_from=checkpoint), whole)
    assert not list(folder.rglob("*.tmp-*"))


def _moments_left(checkpoint: str | None, total: int) -> int:
    """At least so many moments come after a checkpoint: evaluations at the beginning are not repeated."""
    step = 0 if checkpoint is None else int(Path(checkpoint).name.removeprefix("step-"))
    return total * (NUM_STEPS - step) // (2 * NUM_STEPS)


@pytest.mark.parametrize("seed", range(3))
def test_I5_run_killed_again_and_again_ends_as_if_nothing_had_been(seed: int, tmp_path: Path):
    """As many kills as it takes until one comes too late."""
    chosen = random.Random(seed)
    case = config(optimizer={"kind": "muon", "lr": 0.01}, moe={"router": {"kind": "top_k", "input_jitter": 0.05}})
    moments: list[int] = []
    with counted_moments(moments.append):
        whole = run_training(case, tmp_path / "whole")
    checkpoint: str | None = None
    for _ in range(4):
        moment = chosen.randrange(_moments_left(checkpoint, len(moments)))
        killed(case, tmp_path / "killed", moment=moment, resume_from=checkpoint)
        newest = newest_valid_checkpoint(tmp_path / "killed")
        checkpoint = None if newest is None else str(newest)
        if checkpoint is not None and checkpoint.endswith(f"{NUM_STEPS:08d}"):
            break
    assert_same(run_training(case, tmp_path / "killed", resume_from=checkpoint), whole)


def test_every_kind_of_every_family_is_a_case():
    unions = (AttentionConfig, RouterConfig, BalancerConfig, OptimizerConfig, ClippingConfig, ScheduleConfig)
    kinds = {kind for union in (*unions, PrecisionConfig) for kind in config_classes(union)}
    assert kinds == {kind for family, kind in CASES if family != "other"}
