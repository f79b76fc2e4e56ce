"""Norms by role and layer equal those taken tensor by tensor, and the total is torch's own to the last bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.models import model_config, moe_fields, tiny_model
from tests.support.training import Finished, run_training, train_config
from trainer.gradient_norms import ROLES, GroupedNorms, num_groups
from trainer.model.build import parameter_roles

CPU = torch.device("cpu")


def model_with_gradient():
    model = tiny_model(model_config(moe=moe_fields(), num_layers=3))
    tokens_BL = torch.randint(0, model.config.vocab_size, (4, 17), generator=torch.Generator().manual_seed(0))
    model(tokens_BL[:, :-1], tokens_BL[:, 1:]).loss.backward()
    return model


def test_total_is_that_of_torch_to_the_last_bit():
    model = model_with_gradient()
    expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    assert torch.equal(GroupedNorms(model, device=CPU).of_gradient().total, expected)


def test_groups_are_the_roles_and_the_layers():
    model = model_with_gradient()
    found = GroupedNorms(model, device=CPU).of_gradient().groups_G
    roles = parameter_roles(model)

    def norm(*wanted: torch.nn.Parameter) -> float:
        return float(np.sqrt(sum((parameter.grad.double() ** 2).sum().item() for parameter in wanted)))

    layers = model.moe_layers()
    assert len(found) == num_groups(len(layers))
    expected = [norm(*(each for name, each in model.named_parameters() if roles[name] == role)) for role in ROLES]
    expected += [norm(*layer.router.parameters()) for layer in layers]
    expected += [norm(*layer.experts.parameters()) for layer in layers]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_parameter_without_gradient_counts_as_nothing():
    model = model_with_gradient()
    before = GroupedNorms(model, device=CPU).of_gradient()
    for layer in model.moe_layers():
        for parameter in layer.router.parameters():
            parameter.grad = None
    after = GroupedNorms(model, device=CPU).of_gradient()
    assert after.groups_G[ROLES.index("router")] == 0
    assert torch.equal(after.groups_G[1 : len(ROLES)], before.groups_G[1 : len(ROLES)])


def test_spread_of_the_experts_gradient_is_that_of_all_its_elements():
    model = tiny_model(model_config(moe=moe_fields(), num_layers=2))
    norms = GroupedNorms(model, device=torch.device("cpu"))
    experts = [parameter for name, parameter in model.named_parameters() if ".experts." in name]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    assert experts[0].grad is not None
    experts[0].grad[0] = 0.0  # an expert that no token reached
    experts[1].grad = None
    values = torch.cat([torch.zeros(each.numel()) if each.grad is None else each.grad.flatten() for each in experts])
    expected = torch.stack([(values == 0).double().mean(), values.double().abs().mean(), values.double().abs().max()])
    torch.testing.assert_close(norms.expert_spread(), expected, rtol=1e-6, atol=0)
    for parameter in model.parameters():
        parameter.grad = None
    assert norms.expert_spread().tolist() == [1.0, 0.0, 0.0]
    for parameter in experts:
        parameter.grad = torch.full_like(parameter, -2.0)
    assert norms.expert_spread().tolist() == [0.0, 2.0, 2.0]


def test_spread_of_a_model_without_experts_is_nothing():
    norms = GroupedNorms(tiny_model(model_config()), device=torch.device("cpu"))
    assert norms.expert_spread().tolist() == [0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    config = train_config(num_steps=8, loop={"measure_updates_every_steps": 3, "max_grad_norm": None})
    return run_training(config, tmp_path_factory.mktemp("run"))


def test_parts_of_the_gradient_add_up_to_the_whole(finished: Finished):
    table = finished.table("scalars")
    parts = sum(np.square(table[f"optimizer/{role}_grad_norm"].to_numpy()) for role in ROLES)
    np.testing.assert_allclose(np.sqrt(parts), table["optimizer/grad_norm"].to_numpy(), rtol=1e-5)
    router = finished.table("router")
    for role, name in (("router", "router/grad_norm"), ("expert", "router/expert_grad_norm")):
        by_layer = np.square(router[name].to_numpy()).reshape(8, -1).sum(axis=1)
        np.testing.assert_allclose(np.sqrt(by_layer), table[f"optimizer/{role}_grad_norm"].to_numpy(), rtol=1e-5)


def test_updates_are_measured_at_their_interval(finished: Finished):
    table = finished.table("scalars")
    for role in ROLES:
        for kind in ("update", "grad"):
            ratios = table[f"optimizer/{role}_{kind}_ratio"].to_numpy()
            assert np.isfinite(ratios).tolist() == [False, False, True, False, False, True, False, False]
            assert (ratios[[2, 5]] > 0).all()
    zeros, mean, largest = (
        table[f"optimizer/expert_grad_{name}"].to_numpy()[[2, 5]] for name in ("zero_fraction", "abs_mean", "abs_max")
    )
    assert ((zeros >= 0) & (zeros < 1)).all()
    assert ((mean > 0) & (mean < largest)).all()
    norm = table["optimizer/expert_grad_norm"].to_numpy()[[2, 5]]
    assert (largest <= norm).all()


def test_measuring_changes_nothing_else(finished: Finished, tmp_path: Path):
    config = train_config(num_steps=8, loop={"max_grad_norm": None})
    plain = run_training(config, tmp_path)
    assert "optimizer/dense_update_ratio" not in plain.table("scalars").column_names
    for name, tensor in plain.weights().items():
        assert torch.equal(tensor, finished.weights()[name])


def test_update_ratio_is_the_change_of_the_weights(tmp_path: Path):
    config = train_config(num_steps=2, loop={"measure_updates_every_steps": 1, "checkpoint_every_tokens": 128})
    finished = run_training(config, tmp_path)
    first, last = (
        run_training(config, tmp_path / str(step), stop_at_tokens=step * 128).weights()
        if step == 1
        else finished.weights()
        for step in (1, 2)
    )
    names = [name for name in first if ".router." in name]
    change = np.sqrt(sum(((last[name] - first[name]).double() ** 2).sum().item() for name in names))
    size = np.sqrt(sum((first[name].double() ** 2).sum().item() for name in names))
    found = finished.table("scalars")["optimizer/router_update_ratio"].to_numpy()[1]
    assert found == pytest.approx(change / size, rel=1e-5)
