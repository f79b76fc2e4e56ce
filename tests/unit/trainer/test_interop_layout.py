"""Arrangements of tensors: by hand, there and back, and linear."""

import pytest
import torch
from torch import Tensor

from tests.support.models import random_rows
from trainer.attention.rope import rotate
from trainer.interop.layout import (
    Both,
    GateAndUp,
    GateUpPerExpert,
    Layout,
    PerExpert,
    RotaryHalves,
    Same,
    ScaledRows,
)

LAYOUTS: dict[str, tuple[Layout, tuple[int, ...]]] = {
    "same": (Same(), (3, 2)),
    "rotary weight": (RotaryHalves(2), (12, 5)),
    "rotary bias": (RotaryHalves(3), (12,)),
    "rotary part": (RotaryHalves(2, num_unrotated=3), (14, 5)),
    "scaled": (ScaledRows(0.5), (4, 3)),
    "scaled part": (ScaledRows(4.0, 2), (5, 3)),
    "both": (Both(RotaryHalves(1, num_unrotated=2), ScaledRows(2.0, 2)), (6, 3)),
    "experts": (PerExpert(), (4, 3, 2)),
    "gate and up per expert": (GateUpPerExpert(), (4, 2, 3, 5)),
    "gate and up": (GateAndUp(), (4, 2, 3, 5)),
}
every_layout = pytest.mark.parametrize("name", LAYOUTS)


def test_adjacent_pairs_come_to_lie_half_a_head_apart() -> None:
    ours = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0])
    (theirs,) = RotaryHalves(2).to_theirs(ours)
    assert theirs.tolist() == [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0]


def test_rotating_halves_of_theirs_is_rotating_pairs_of_ours() -> None:
    features = random_rows(1, 7, 1, 8)
    angles_LR = torch.outer(torch.arange(7.0), 100.0 ** -(torch.arange(0, 8, 2) / 8))
    halves = RotaryHalves(1).to_theirs(features[0, :, 0].t())[0].t()
    first, second = halves.chunk(2, dim=-1)
    turned = torch.cat(
        [first * angles_LR.cos() - second * angles_LR.sin(), second * angles_LR.cos() + first * angles_LR.sin()], dim=-1
    )
    back = RotaryHalves(1).to_ours((turned.t(),)).t()
    torch.testing.assert_close(back, rotate(features, theta=100.0)[0, :, 0])


def test_gate_and_up_of_an_expert_come_one_after_the_other() -> None:
    ours_E2FD = random_rows(3, 2, 4, 5)
    theirs = GateUpPerExpert().to_theirs(ours_E2FD)
    assert len(theirs) == 6
    assert all(
        torch.equal(theirs[2 * expert + part], ours_E2FD[expert, part]) for expert in range(3) for part in (0, 1)
    )


def test_gate_and_up_come_apart_input_dimension_first() -> None:
    ours_E2FD = random_rows(3, 2, 4, 5)
    gate_EDF, up_EDF = GateAndUp().to_theirs(ours_E2FD)
    x_D = random_rows(5)
    for expert in range(3):
        torch.testing.assert_close(gate_EDF[expert].t() @ x_D, ours_E2FD[expert, 0] @ x_D)
        torch.testing.assert_close(up_EDF[expert].t() @ x_D, ours_E2FD[expert, 1] @ x_D)


def test_experts_come_apart_output_dimension_first() -> None:
    ours_EFD = random_rows(3, 4, 5)
    theirs = PerExpert().to_theirs(ours_EFD)
    x_D = random_rows(4)
    assert len(theirs) == 3
    assert all(torch.equal(torch.mv(matrix, x_D), ours_EFD[e].t().mv(x_D)) for e, matrix in enumerate(theirs))


@every_layout
def test_there_and_back_is_the_same_tensor(name: str) -> None:
    layout, shape = LAYOUTS[name]
    ours = random_rows(*shape)
    assert torch.equal(layout.to_ours(layout.to_theirs(ours)), ours)


@every_layout
def test_layouts_are_linear(name: str) -> None:
    layout, shape = LAYOUTS[name]
    one, other = random_rows(*shape), random_rows(*shape, seed=1)

    def flat(tensor: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in layout.to_theirs(tensor)])

    assert torch.equal(flat(2 * one), 2 * flat(one))
    torch.testing.assert_close(flat(one + other), flat(one) + flat(other))
