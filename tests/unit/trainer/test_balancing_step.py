"""A step's balancing: what is of the whole step is known before the first backward pass, and costs nothing else."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.models import model_config, moe_fields, random_tokens, tiny_model
from tests.support.training import STEP_TOKENS, exact_columns, run_training, train_config
from trainer.balancing.base import demand
from trainer.balancing.build import build_balancers
from trainer.balancing.step_balancing import StepBalancing
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer
from trainer.world import World

GLOBAL = [
    {"kind": "load_balancing_loss", "coefficient": 0.5, "scope": "global_batch"},
    {"kind": "group_balancing_loss", "coefficient": 0.5, "num_groups": 2, "scope": "global_batch"},
]
MICRO = [balancing | {"scope": "micro_batch"} for balancing in GLOBAL]


def balanced_model(balancing: Sequence[dict[str, Any]], **router: Any) -> tuple[Transformer, StepBalancing]:
    model = tiny_model(model_config(moe=moe_fields(balancing=balancing, router=router)))
    return model, StepBalancing(build_balancers(model.config.moe), model=model, world=World())


def routings_of(model: Transformer, tokens_BL: Tensor) -> Sequence[LayerRouting]:
    return model.trunk(tokens_BL)[1]


def test_noise_is_drawn_alike_in_both_passes_whatever_is_drawn_between() -> None:
    model, balancing = balanced_model(GLOBAL, input_jitter=0.5)
    micro_batches = random_tokens(4, 16).split(1)
    ahead: list[Tensor] = []

    def noted(tokens_BL: Tensor) -> Sequence[LayerRouting]:
        routings = routings_of(model, tokens_BL)
        ahead.append(demand(routings))
        assert not routings[0].prob_sum_E.requires_grad
        return routings

    steps = []
    for _ in range(2):
        balancing.begin([partial(noted, tokens_BL) for tokens_BL in micro_batches])
        for number, tokens_BL in enumerate(micro_batches):
            balancing.begin_micro_batch(number)
            assert torch.equal(demand(routings_of(model, tokens_BL)), ahead.pop(0))
            steps.append(torch.rand(3))  # as a backward pass with stochastic rounding does
    assert len({tuple(drawn.tolist()) for drawn in steps}) == len(steps), "every micro-batch draws other numbers"


def test_micro_batch_that_is_not_routed_ahead_draws_as_ever() -> None:
    _, balancing = balanced_model(MICRO)
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    balancing.begin([list, list])
    balancing.begin_micro_batch(0)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(
    ("balancing", "num_micro_batches", "num_ahead"), [(GLOBAL, 4, 4), (GLOBAL, 1, 0), (MICRO, 4, 0)]
)
def test_micro_batches_are_routed_ahead_only_where_a_loss_must_know_the_others(
    balancing: list[dict[str, Any]], num_micro_batches: int, num_ahead: int
) -> None:
    model, step = balanced_model(balancing)
    asked = []

    def counted(tokens_BL: Tensor) -> Sequence[LayerRouting]:
        asked.append(tokens_BL)
        return routings_of(model, tokens_BL)

    micro_batches = random_tokens(4, 16).chunk(num_micro_batches)
    step.begin([partial(counted, tokens_BL) for tokens_BL in micro_batches])
    assert len(asked) == num_ahead


def test_next_step_forgets_the_demand_of_the_last() -> None:
    model, step = balanced_model(GLOBAL)
    first, second = random_tokens(4, 16), random_tokens(4, 16, seed=1)
    losses = []
    for steps in ([first, second], [second]):
        for tokens_BL in steps:
            step.begin([partial(routings_of, model, part_BL) for part_BL in tokens_BL.split(2)])
            loss = torch.stack([step.loss(routings_of(model, part_BL)) for part_BL in tokens_BL.split(2)]).sum()
        losses.append(loss)
    assert torch.equal(losses[0], losses[1])


def run_with(
    balancing: list[dict[str, Any]], micro_batch_size: int, folder: Path, **router: Any
) -> dict[str, np.ndarray]:
    """Returns each column of the first step's telemetry of a run."""
    model = train_config().model.model_dump(mode="json")
    model["moe"] |= {"balancing": balancing}
    config = train_config(num_steps=1, model=model, loop={"micro_batch_size": micro_batch_size})
    finished = run_training(config, folder)
    columns: dict[str, np.ndarray] = {}
    for kind in ("scalars", "router"):
        table = exact_columns(finished.table(kind))
        columns |= {name: np.array(table[name].to_pylist()) for name in table.column_names}
    return columns


def test_trained_step_is_that_of_one_batch_and_counts_every_token_once(tmp_path: Path) -> None:
    whole, split = (run_with(GLOBAL, size, tmp_path / str(size)) for size in (8, 2))
    assert whole.pop("router/micro_max_violation").max() < split["router/micro_max_violation"].min()
    for name, values in whole.items():
        # Both are float32 sums in another order; a spread is the small difference of two of them.
        atol = 1e-4 if name.endswith("_std") else 1e-6
        np.testing.assert_allclose(split[name], values, rtol=2e-5, atol=atol, err_msg=name)
    assert (split["router/load"].sum(axis=1) == STEP_TOKENS * 2).all()


def test_micro_batch_scope_balances_something_else(tmp_path: Path) -> None:
    whole, split = (run_with(MICRO, size, tmp_path / str(size)) for size in (8, 2))
    assert abs(split["train/balancing_loss"] / whole["train/balancing_loss"] - 1.0).max() > 1e-4
