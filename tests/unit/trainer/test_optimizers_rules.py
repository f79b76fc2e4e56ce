"""Muon, Lion and Adafactor against their published algorithms, and against torch's where torch has them."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import META, dense_and_moe_configs, random_rows, random_tokens, tiny_model
from tests.support.training import STEP_TOKENS, run_training, train_config
from trainer.config.optimizers import (
    AdafactorConfig,
    AdamWConfig,
    ByRoleConfig,
    LionConfig,
    MuonConfig,
    OptimizerConfig,
)
from trainer.model.build import build_model, parameter_roles
from trainer.model.transformer import Transformer
from trainer.optimizers.adafactor import adafactor_update
from trainer.optimizers.adamw import adamw_update
from trainer.optimizers.build import build_optimizer
from trainer.optimizers.grouped import GroupedOptimizer, UpdateRule
from trainer.optimizers.lion import lion_update
from trainer.optimizers.muon import muon_update, orthogonalised

CONFIG = dense_and_moe_configs()["moe_everything"]
ADAFACTOR = {"weight_decay": 0.1, "decay_exponent": 0.8, "clip_threshold": 1.0, "min_weight_rms": 1e-3}
MUON = {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "num_iterations": 5}


def parameter_of(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(random_rows(*shape, seed=seed))


def steps(rule: UpdateRule, start: Tensor, gradients: list[Tensor], *, lr: float, options: Mapping[str, Any]) -> Tensor:
    """Returns the parameter after one step per gradient."""
    parameter = nn.Parameter(start.clone())
    group = {"params": [parameter], "rule": "tested", "lr": lr} | dict(options)
    optimizer = GroupedOptimizer([group], {"tested": rule})
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def gradients_like(start: Tensor, *, num_steps: int = 3, scale: float = 1.0) -> list[Tensor]:
    return [random_rows(*start.shape, seed=100 + step) * scale for step in range(num_steps)]


def group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    (group,) = [group for group in optimizer.param_groups if any(parameter is member for member in group["params"])]
    return group


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8), (3, 8, 20), (3, 20, 8)])
def test_orthogonalised_keeps_singular_vectors_and_evens_out_singular_values(shape: tuple[int, ...]) -> None:
    matrices = random_rows(*shape)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    within = left.mT @ orthogonalised(matrices, num_iterations=5) @ right.mT
    values = within.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.5
    assert values.max() < 1.4
    assert (within - torch.diag_embed(values)).abs().max() < 1e-4


def test_orthogonalised_does_not_see_the_size_of_its_input_and_leaves_zeros() -> None:
    matrix = random_rows(8, 12)
    torch.testing.assert_close(
        orthogonalised(matrix * 1e-4, num_iterations=5), orthogonalised(matrix, num_iterations=5)
    )
    assert torch.equal(orthogonalised(torch.zeros(4, 6), num_iterations=5), torch.zeros(4, 6))


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_up_to_its_bfloat16(shape: tuple[int, int], nesterov: bool) -> None:
    start = random_rows(*shape)
    gradients = gradients_like(start)
    theirs = nn.Parameter(start.clone())
    optimizer = torch.optim.Muon(
        [theirs], lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    ours = steps(muon_update, start, gradients, lr=0.05, options=MUON | {"nesterov": nesterov})
    moved = (theirs.detach() - start).norm()
    assert (ours - theirs.detach()).norm() < 0.02 * moved


def test_muon_moves_weights_by_the_size_of_an_adamw_step() -> None:
    for shape in ((16, 16), (16, 64), (64, 16)):
        start = random_rows(*shape)
        options = MUON | {"weight_decay": 0.0}
        moved = steps(muon_update, start, gradients_like(start, num_steps=1), lr=1.0, options=options)
        assert 0.12 < (moved - start).square().mean().sqrt() < 0.25


def test_muon_takes_each_expert_for_a_matrix_of_its_own() -> None:
    start = random_rows(3, 8, 12)
    gradients = gradients_like(start)
    stacked = steps(muon_update, start, gradients, lr=0.1, options=MUON)
    for expert in range(3):
        alone = steps(muon_update, start[expert], [each[expert] for each in gradients], lr=0.1, options=MUON)
        torch.testing.assert_close(stacked[expert], alone)


def test_muon_leaves_embeddings_routers_and_vectors_to_adamw() -> None:
    model = build_model(CONFIG, seed=0, device=META)
    optimizer = build_optimizer(MuonConfig(lr=1e-2), model)
    roles = parameter_roles(model)
    for name, parameter in model.named_parameters():
        is_hidden_matrix = roles[name] in ("dense", "expert") and parameter.dim() >= 2
        assert group_of(optimizer, parameter)["rule"] == ("muon" if is_hidden_matrix else "adamw"), name


def test_muon_groups_take_the_overrides_of_their_role() -> None:
    config = MuonConfig.model_validate(
        {
            "lr": 1e-2,
            "expert": {"lr_scale": 2.0, "momentum": 0.5, "weight_decay": 0.3},
            "embedding": {"beta2": 0.999, "lr_scale": 0.5},
        }
    )
    model = build_model(CONFIG, seed=0, device=META)
    optimizer = build_optimizer(config, model)
    expert = group_of(optimizer, model.get_parameter("blocks.1.feed_forward.experts.gate_up_weight_E2FD"))
    assert (expert["lr"], expert["momentum"], expert["weight_decay"]) == (2e-2, 0.5, 0.3)
    embedding = group_of(optimizer, model.embedding.weight)
    assert (embedding["lr"], embedding["betas"]) == (5e-3, (0.9, 0.999))
    dense = [group for group in optimizer.param_groups if group["role"] == "dense" and group["rule"] == "muon"]
    assert [group["momentum"] for group in dense] == [0.95]


def test_adamw_as_a_rule_is_torchs_adamw() -> None:
    start = random_rows(6, 5)
    gradients = gradients_like(start)
    theirs = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.02, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, fused=True)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    options = {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3, "fused": True}
    assert torch.equal(steps(adamw_update, start, gradients, lr=0.02, options=options), theirs.detach())


def test_lion_is_the_published_algorithm() -> None:
    start = random_rows(6, 5)
    gradients = gradients_like(start)
    expected, momentum = start.double(), torch.zeros(6, 5, dtype=torch.float64)
    for gradient in gradients:
        update = (0.8 * momentum + 0.2 * gradient).sign()
        expected = expected - 0.02 * (update + 0.3 * expected)
        momentum = 0.95 * momentum + 0.05 * gradient
    options = {"betas": (0.8, 0.95), "weight_decay": 0.3}
    torch.testing.assert_close(steps(lion_update, start, gradients, lr=0.02, options=options), expected.float())


@pytest.mark.parametrize("shape", [(12, 7), (9,)])
def test_adafactor_is_torchs_where_torch_neither_bounds_the_rate_nor_rounds_up_variances(
    shape: tuple[int, ...],
) -> None:
    start = random_rows(*shape)
    gradients = gradients_like(start, num_steps=5)
    theirs = nn.Parameter(start.clone())
    optimizer = torch.optim.Adafactor([theirs], lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    ours = steps(adafactor_update, start, gradients, lr=0.02, options=ADAFACTOR)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_adafactor_takes_each_expert_for_a_matrix_of_its_own() -> None:
    start = random_rows(3, 8, 12) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    gradients = gradients_like(start)
    stacked = steps(adafactor_update, start, gradients, lr=0.1, options=ADAFACTOR)
    for expert in range(3):
        alone = steps(adafactor_update, start[expert], [each[expert] for each in gradients], lr=0.1, options=ADAFACTOR)
        torch.testing.assert_close(stacked[expert], alone)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0])
def test_adafactor_does_not_see_the_size_of_the_gradient(scale: float) -> None:
    start = random_rows(8, 12)
    expected = steps(adafactor_update, start, gradients_like(start), lr=0.1, options=ADAFACTOR)
    torch.testing.assert_close(
        steps(adafactor_update, start, gradients_like(start, scale=scale), lr=0.1, options=ADAFACTOR),
        expected,
        rtol=1e-4,
        atol=1e-6,
    )


def test_adafactor_keeps_a_row_and_a_column_per_matrix() -> None:
    model = tiny_model(CONFIG)
    optimizer = build_optimizer(AdafactorConfig(lr=0.1), model)
    model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss.backward()
    optimizer.step()
    parameter = model.get_parameter("blocks.1.feed_forward.experts.gate_up_weight_E2FD")
    shapes = {name: tuple(value.shape) for name, value in optimizer.state[parameter].items()}
    num_experts, _, hidden_dim, dim = parameter.shape
    assert shapes == {
        "num_updates": (),
        "row_variance": (num_experts, 2, hidden_dim, 1),
        "column_variance": (num_experts, 2, 1, dim),
    }


BY_ROLE = {
    "kind": "by_role",
    "lr": 1e-2,
    "dense": {"kind": "muon", "momentum": 0.9},
    "expert": {"kind": "lion", "lr_scale": 0.2, "beta2": 0.98},
    "router": {"beta2": 0.99},
    "embedding": {"kind": "adafactor", "lr_scale": 5.0, "weight_decay": 0.0},
}


def test_each_role_is_updated_as_by_the_optimizer_of_its_kind() -> None:
    alone = {
        "dense": MuonConfig(lr=1e-2, momentum=0.9),
        "expert": LionConfig(lr=2e-3, beta2=0.98),
        "router": AdamWConfig(lr=1e-2, beta2=0.99),
        "embedding": AdafactorConfig(lr=5e-2),
    }
    model = tiny_model(CONFIG)
    step(model, build_optimizer(ByRoleConfig.model_validate(BY_ROLE), model))
    roles = parameter_roles(model)
    for role, config in alone.items():
        other = tiny_model(CONFIG)
        step(other, build_optimizer(config, other))
        for name, parameter in model.named_parameters():
            if roles[name] == role:
                torch.testing.assert_close(parameter, other.get_parameter(name), msg=name)


def step(model: Transformer, optimizer: torch.optim.Optimizer) -> None:
    model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss.backward()
    optimizer.step()


def test_learning_rate_of_a_role_is_scaled() -> None:
    model = build_model(CONFIG, seed=0, device=META)
    optimizer = build_optimizer(ByRoleConfig.model_validate(BY_ROLE), model)
    rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"dense": 1e-2, "expert": 2e-3, "router": 1e-2, "embedding": 5e-2})


@pytest.mark.parametrize("config", [AdamWConfig(lr=1e-2), MuonConfig(lr=1e-2), LionConfig(lr=1e-3)])
def test_repeated_run_is_bit_equal(config: OptimizerConfig) -> None:
    ends = []
    for _ in range(2):
        model = tiny_model(CONFIG)
        optimizer = build_optimizer(config, model)
        train(model, optimizer)
        ends.append(deepcopy(model.state_dict()))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def train(model: Transformer, optimizer: torch.optim.Optimizer) -> None:
    for seed in range(3):
        model.zero_grad()
        model(random_tokens(2, 8, seed=seed), random_tokens(2, 8, seed=seed + 1)).loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    "optimizer", [{"kind": "muon"}, {"kind": "lion"}, {"kind": "adafactor"}, BY_ROLE], ids=lambda fields: fields["kind"]
)
def test_run_stopped_and_resumed_from_its_checkpoint_is_bit_equal(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    config = train_config(num_steps=6, optimizer={"lr": 0.01} | optimizer)
    whole = run_training(config, tmp_path / "whole")
    stopped = run_training(config, tmp_path / "run", stop_at_tokens=3 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    for mine, theirs in ((resumed.weights(), whole.weights()), (resumed.optimizer(), whole.optimizer())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
