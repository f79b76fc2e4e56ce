"""SOAP and Shampoo against the library's on plain matrices, and what the library does not do: experts one by one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting
from torch import Tensor, nn

from tests.support.models import META, dense_and_moe_configs, random_rows
from tests.support.training import DIVERGING, STEP_TOKENS, run_training, train_config
from trainer.config.optimizers import ShampooConfig, SOAPConfig
from trainer.model.build import build_model, parameter_roles
from trainer.optimizers.build import build_optimizer
from trainer.optimizers.grouped import GroupedOptimizer, UpdateRule
from trainer.optimizers.shampoo import inverse_root, shampoo_update
from trainer.optimizers.soap import soap_update

SOAP = {"betas": (0.9, 0.95), "eps": 1e-8, "refresh_every": 3, "max_dim": 100, "weight_decay": 0.0, "num_steps": 0}
SHAMPOO = SOAP | {"root_eps": 1e-6, "refresh_every": 1}
RULES = {"soap": (soap_update, SOAP), "shampoo": (shampoo_update, SHAMPOO)}


def optimizer_of(parameter: nn.Parameter, rule: UpdateRule, options: Mapping[str, Any]) -> GroupedOptimizer:
    return GroupedOptimizer([{"params": [parameter], "rule": "tested", "lr": 0.02} | dict(options)], {"tested": rule})


def path_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[Tensor]) -> list[Tensor]:
    """Returns the parameter after each step."""
    path = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def gradients_like(start: Tensor, *, num_steps: int = 12) -> list[Tensor]:
    """Returns gradients with a direction in common, as those of one loss have."""
    common = random_rows(*start.shape, seed=99)
    return [0.5 * common + random_rows(*start.shape, seed=100 + step) for step in range(num_steps)]


@pytest.mark.parametrize("shape", [(8, 8), (6, 11), (11, 6)])
@pytest.mark.parametrize("max_dim", [100, 8])
def test_soap_is_the_librarys_on_a_matrix(shape: tuple[int, int], max_dim: int) -> None:
    start = random_rows(*shape)
    gradients = gradients_like(start)
    theirs, ours = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = pytorch_optimizer.SOAP(
        [theirs], lr=0.02, betas=(0.9, 0.95), weight_decay=0.0, precondition_frequency=3, max_precondition_dim=max_dim
    )
    expected = path_of(reference, theirs, gradients)
    found = path_of(optimizer_of(ours, soap_update, SOAP | {"max_dim": max_dim}), ours, gradients)
    assert torch.equal(found[0], start)
    # Twelve steps and four QR decompositions on differently ordered float32 products.
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_soap_of_sides_too_long_is_adam_from_the_second_step_on() -> None:
    start = random_rows(6, 9)
    gradients = gradients_like(start)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    found = path_of(optimizer_of(ours, soap_update, SOAP | {"max_dim": 5}), ours, gradients)
    adam = torch.optim.Adam([theirs], lr=0.02, betas=(0.9, 0.95))
    expected = path_of(adam, theirs, gradients[1:])
    # SOAP adds its eps before the correction of the bias.
    torch.testing.assert_close(torch.stack(found[1:]), torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (6, 11), (11, 6)])
def test_shampoo_steps_along_the_librarys_direction_as_far_as_adam(shape: tuple[int, int]) -> None:
    """Without momentum the library's scalable Shampoo has the same direction, and AdamW the same length."""
    start = random_rows(*shape)
    gradients = gradients_like(start)
    ours, direction, length = (nn.Parameter(start.clone()) for _ in range(3))
    scalable = pytorch_optimizer.ScalableShampoo(
        [direction],
        lr=0.02,
        betas=(0.0, 0.95),
        start_preconditioning_step=1,
        preconditioning_compute_steps=1,
        graft_type=LayerWiseGrafting.NONE,
        nesterov=False,
        shape_interpretation=False,
        matrix_eps=1e-12,
        use_svd=True,
    )
    adam = torch.optim.Adam([length], lr=0.02, betas=(0.0, 0.95))
    options = SHAMPOO | {"betas": (0.0, 0.95), "root_eps": 1e-7}
    paths = [
        torch.diff(torch.stack([start, *path_of(optimizer, parameter, gradients)]), dim=0)
        for optimizer, parameter in (
            (optimizer_of(ours, shampoo_update, options), ours),
            (scalable, direction),
            (adam, length),
        )
    ]
    mine, along, far = (path.flatten(1) for path in paths)
    torch.testing.assert_close(mine.norm(dim=1), far.norm(dim=1), rtol=1e-4, atol=0)
    # The first steps' L and R have less rank than rows: what is added to their zeros then decides.
    cosines = torch.cosine_similarity(mine, along, dim=1)
    assert cosines[3:].min() > 0.9999


def test_shampoos_first_step_on_a_square_matrix_is_the_original_algorithms() -> None:
    """Gupta et al.'s form, which adds up G G^T and has no averages, differs in nothing but length at the first step."""
    start, gradient = random_rows(8, 8), random_rows(8, 8, seed=1)
    theirs, ours = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    (expected,) = path_of(pytorch_optimizer.Shampoo([theirs], lr=0.02, matrix_eps=1e-12), theirs, [gradient])
    (found,) = path_of(optimizer_of(ours, shampoo_update, SHAMPOO | {"root_eps": 1e-9}), ours, [gradient])
    along, mine = expected - start, found - start
    torch.testing.assert_close(mine / mine.norm(), along / along.norm(), rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("kind", sorted(RULES))
def test_table_of_which_few_rows_have_a_gradient_is_updated(kind: str) -> None:
    """As that of an embedding, whose tokens are mostly not in a batch: LAPACK fails on rows of zeros."""
    rule, options = RULES[kind]
    parameter = nn.Parameter(random_rows(256, 8))
    gradients = [random_rows(256, 8, seed=step) for step in range(4)]
    for gradient in gradients:
        gradient[13:] = 0.0
    path = path_of(optimizer_of(parameter, rule, options | {"max_dim": 256}), parameter, gradients)
    assert all(table.isfinite().all() for table in path)
    assert (path[-1] - path[0])[:13].abs().min() > 0
    assert torch.equal(path[-1][13:], path[0][13:])


@pytest.mark.parametrize("degree", [2, 4])
def test_inverse_root_inverts_a_power(degree: int) -> None:
    factors = random_rows(3, 6, 9, dtype=torch.float64)
    gram = factors @ factors.mT
    root = inverse_root(gram, degree=degree, relative_eps=0.0)
    identity = torch.linalg.matrix_power(root, degree) @ gram
    torch.testing.assert_close(identity, torch.eye(6, dtype=torch.float64).expand(3, 6, 6), rtol=0, atol=1e-9)


def test_momentum_is_the_mean_gradients() -> None:
    """Closed form in float64 of Shampoo with both averages, its roots by an independent route (svd)."""
    start = random_rows(5, 7)
    gradients = gradients_like(start, num_steps=4)
    ours = nn.Parameter(start.clone())
    found = path_of(optimizer_of(ours, shampoo_update, SHAMPOO | {"root_eps": 1e-3}), ours, gradients)[-1]

    weights = start.double()
    left, right = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(7, 7, dtype=torch.float64)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, gradient in enumerate((each.double() for each in gradients), start=1):
        left, right = 0.95 * left + 0.05 * gradient @ gradient.T, 0.95 * right + 0.05 * gradient.T @ gradient
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        adam = first / (1 - 0.9**step) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        direction = fourth_root(left) @ first @ fourth_root(right)
        weights = weights - 0.02 * direction * adam.norm() / direction.norm()
    torch.testing.assert_close(found.double(), weights, rtol=1e-4, atol=1e-5)


def fourth_root(gram: Tensor) -> Tensor:
    """Returns the inverse fourth root after adding a thousandth of the largest singular value."""
    ridge = 1e-3 * torch.linalg.matrix_norm(gram, ord=2)
    left, values, right = torch.linalg.svd(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    return left @ torch.diag(values**-0.25) @ right


@pytest.mark.parametrize("kind", RULES)
def test_each_expert_is_a_matrix_of_its_own(kind: str) -> None:
    rule, options = RULES[kind]
    start = random_rows(3, 6, 9) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    gradients = gradients_like(start)
    stack = nn.Parameter(start.clone())
    stacked = path_of(optimizer_of(stack, rule, options), stack, gradients)[-1]
    for expert in range(3):
        alone = nn.Parameter(start[expert].clone())
        path = path_of(optimizer_of(alone, rule, options), alone, [each[expert] for each in gradients])
        torch.testing.assert_close(stacked[expert], path[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", RULES)
def test_expert_without_tokens_stays_where_it_is_and_finite_when_they_come(kind: str) -> None:
    rule, options = RULES[kind]
    start = random_rows(2, 5, 4)
    parameter = nn.Parameter(start.clone())
    optimizer = optimizer_of(parameter, rule, options)
    gradients = gradients_like(start)
    for gradient in gradients[:6]:
        gradient[0] = 0.0
    path = path_of(optimizer, parameter, gradients)
    assert torch.equal(path[5][0], start[0])
    assert path[-1].isfinite().all()
    assert not torch.equal(path[-1][0], start[0])


@pytest.mark.parametrize("config", [SOAPConfig(lr=1e-2), ShampooConfig(lr=1e-2)], ids=lambda config: config.kind)
def test_embeddings_routers_and_vectors_are_left_to_adamw(config: SOAPConfig | ShampooConfig) -> None:
    model = build_model(dense_and_moe_configs()["moe_everything"], seed=0, device=META)
    optimizer = build_optimizer(config, model)
    rules = {id(each): group["rule"] for group in optimizer.param_groups for each in group["params"]}
    roles = parameter_roles(model)
    for name, parameter in model.named_parameters():
        is_hidden_matrix = roles[name] in ("dense", "expert") and parameter.dim() >= 2
        assert rules[id(parameter)] == (config.kind if is_hidden_matrix else "adamw"), name


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("stop_step", [1, 4])
def test_run_stopped_and_resumed_from_its_checkpoint_is_bit_equal(tmp_path: Path, kind: str, stop_step: int) -> None:
    """Steps 3, 5 and 7 refresh: the count of steps, which the host keeps, is resumed too."""
    config = train_config(num_steps=8, optimizer={"lr": 0.01, "kind": kind, "refresh_every": 2})
    whole = run_training(config, tmp_path / "whole")
    stopped = run_training(config, tmp_path / "run", stop_at_tokens=stop_step * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    for mine, theirs in ((resumed.weights(), whole.weights()), (resumed.optimizer(), whole.optimizer())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("kind", RULES)
def test_divergence_is_reported_as_one(tmp_path: Path, kind: str) -> None:
    """And not as a decomposition that failed on it."""
    optimizer = DIVERGING["optimizer"] | {"kind": kind, "refresh_every": 1}
    finished = run_training(train_config(num_steps=40, optimizer=optimizer), tmp_path)
    assert finished.last.kind == "failed"
    assert finished.last.cause == "diverged", finished.last.message
