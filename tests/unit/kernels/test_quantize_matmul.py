"""The experts' matmuls in narrow formats: three products of cast operands, and what surrounds them."""

from dataclasses import replace

import pytest
import torch

from kernels import grouped_swiglu
from kernels.quantize import QuantizedMatmul, Recipe, fp8_tensor, quantize
from kernels.quantize.hadamard import rotate_rows
from kernels.quantize.row_groups import mask_unowned, spread_groups
from tests.support.quantized import RECIPES, Operands, expected_matmul, operands

CPU = torch.device("cpu")
COUNTS = (40, 0, 3, 150, 128, 0)

every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def deterministic(recipe: Recipe) -> Recipe:
    """Returns the recipe without draws, whose order the padding of the implementation decides."""
    return replace(recipe, gradient=replace(recipe.gradient, stochastic=False))


def forward_and_backward(given: Operands, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y_NF = QuantizedMatmul(recipe, device=CPU)(given.x_ND, given.weight_EDF, given.offsets_E)
    return (y_NF.detach(), *torch.autograd.grad(y_NF, (given.x_ND, given.weight_EDF), given.gradient_NF))


@every_recipe
def test_all_three_products_are_those_of_the_casts(recipe: Recipe) -> None:
    given = operands(COUNTS)
    for actual, expected in zip(
        forward_and_backward(given, deterministic(recipe)), expected_matmul(given, deterministic(recipe)), strict=True
    ):
        # The same numbers added up by other kernels, in another order.
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@every_recipe
def test_rows_that_no_expert_owns_change_nothing(recipe: Recipe) -> None:
    clean = forward_and_backward(operands(COUNTS), deterministic(recipe))
    dirty = forward_and_backward(operands(COUNTS, unowned=7), deterministic(recipe))
    num_rows = sum(COUNTS)
    for actual, expected in zip(dirty, clean, strict=True):
        torch.testing.assert_close(actual[: len(expected)], expected)
    for rows in dirty[:2]:
        assert torch.equal(rows[num_rows:], torch.zeros_like(rows[num_rows:]))


@every_recipe
def test_experts_without_rows_have_gradients_of_zero(recipe: Recipe) -> None:
    _, _, dweight_EDF = forward_and_backward(operands(COUNTS), recipe)
    for expert, count in enumerate(COUNTS):
        assert bool(dweight_EDF[expert].any()) == (count > 0)
    _, dx_ND, dweight_EDF = forward_and_backward(operands((0, 0), unowned=16), recipe)
    assert not dx_ND.any()
    assert not dweight_EDF.any()


@pytest.mark.parametrize(
    ("name", "most"),
    [
        # Root mean square errors of rounding by up to half a step of 2**-3, 2**-2 and 2**-1 of a binade's lower end.
        ("fp8_tensor", 0.04),
        ("fp8_tensor_e5m2", 0.065),
        ("fp8_block", 0.04),
        ("mxfp8", 0.045),
        ("mxfp8_up", 0.04),
        ("nvfp4", 0.19),
        ("nvfp4_plain", 0.14),
    ],
)
def test_products_are_near_those_in_float32(name: str, most: float) -> None:
    torch.manual_seed(0)
    given = operands(COUNTS)
    y_NF = torch.nn.functional.grouped_mm(given.x_ND, given.weight_EDF, offs=given.offsets_E)
    exact = (y_NF, *torch.autograd.grad(y_NF, (given.x_ND, given.weight_EDF), given.gradient_NF))
    for actual, expected in zip(forward_and_backward(given, RECIPES[name]), exact, strict=True):
        assert 0 < (actual - expected).norm() / expected.norm() < most


def test_numbers_of_the_grid_lose_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = (5, 0, 11)
    x_ND, weight_EDF, gradient_NF = (
        torch.randint(-1, 2, shape, generator=generator).float() * 448 for shape in ((16, 32), (3, 32, 16), (16, 16))
    )
    given = Operands(x_ND.requires_grad_(), weight_EDF.requires_grad_(), gradient_NF, counts)
    y_NF = torch.nn.functional.grouped_mm(x_ND, weight_EDF, offs=given.offsets_E)
    exact = (y_NF, *torch.autograd.grad(y_NF, (x_ND, weight_EDF), gradient_NF))
    for actual, expected in zip(forward_and_backward(given, RECIPES["fp8_tensor"]), exact, strict=True):
        assert torch.equal(actual, expected)


def test_only_gradients_draw_random_numbers_and_from_the_global_generator() -> None:
    given = operands(COUNTS)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(forward_and_backward(given, RECIPES["nvfp4"]))
    first, again, other = results
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [torch.equal(a, b) for a, b in zip(first, other, strict=True)] == [True, False, False]
    before = torch.get_rng_state()
    with torch.no_grad():
        QuantizedMatmul(RECIPES["nvfp4"], device=CPU)(given.x_ND, given.weight_EDF, given.offsets_E)
    assert torch.equal(torch.get_rng_state(), before)


def test_stochastic_gradients_are_right_on_average() -> None:
    recipe = replace(RECIPES["nvfp4_plain"], gradient=replace(RECIPES["nvfp4_plain"].gradient, stochastic=True))
    given = operands((32,), dim=16, outputs=16)
    torch.manual_seed(0)
    draws = torch.stack([forward_and_backward(given, recipe)[1] for _ in range(400)])
    # The gradient itself through the cast weight; what is clipped by a rounded-down block scale stays biased.
    unrounded = given.gradient_NF @ expected_weight(given).T
    nearest = forward_and_backward(given, RECIPES["nvfp4_plain"])[1]
    assert (draws.mean(dim=0) - unrounded).norm() < 0.35 * (nearest - unrounded).norm()


def expected_weight(given: Operands) -> torch.Tensor:
    """Returns the weight as the plain NVFP4 recipe casts it for the gradient of the input."""
    eye = Operands(
        torch.zeros(16, 16).requires_grad_(), given.weight_EDF, torch.eye(16), (16,)
    )  # its gradient, the identity, is on the grid
    return forward_and_backward(eye, RECIPES["nvfp4_plain"])[1].T


def test_rotation_is_orthogonal_and_leaves_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    rotation = rotate_rows(torch.eye(16))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(16))
    assert rotation.abs().unique().tolist() == [0.25]
    x_ND, gradient_NF = torch.randn(48, 8, generator=generator), torch.randn(48, 4, generator=generator)
    torch.testing.assert_close(rotate_rows(x_ND).T @ rotate_rows(gradient_NF), x_ND.T @ gradient_NF)


def test_rows_are_spread_to_multiples_with_zeros_between() -> None:
    x_ND = torch.arange(1.0, 8.0).unsqueeze(1)
    x_PD, ends_E = spread_groups(x_ND, torch.tensor([3, 3, 7], dtype=torch.int32), multiple=4)
    assert ends_E.tolist() == [4, 4, 8]
    assert x_PD.flatten().tolist() == [1, 2, 3, 0, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0]


@every_recipe
def test_losses_of_casts_are_counted_in_training_and_taken_once(recipe: Recipe) -> None:
    given = operands((128, 128))
    multiply = QuantizedMatmul(recipe, device=CPU)
    with torch.no_grad():
        multiply(given.x_ND, given.weight_EDF, given.offsets_E)
    assert not multiply.take_counts().any()
    for _ in range(2):
        y_NF = multiply(given.x_ND, given.weight_EDF, given.offsets_E)
        y_NF.backward(given.gradient_NF)
    counts_OC = multiply.take_counts()
    # Each operand is cast twice: for the two products it takes part in.
    expected = [2 * 2 * tensor.count_nonzero().item() for tensor in given[:3]]
    if not recipe.hadamard:  # which makes numbers of zeros, and few zeros of numbers
        assert counts_OC[:, 0].tolist() == expected
    assert (counts_OC[:, 1:].sum(dim=1) < 0.2 * counts_OC[:, 0]).all()
    assert not multiply.take_counts().any()


def test_counts_are_of_what_is_lost() -> None:
    x_ND = torch.tensor([[448.0, 1e-6, 0.0, 3.0] * 4])
    weight_EDF = torch.ones(1, 16, 16)
    multiply = QuantizedMatmul(fp8_tensor(gradient_format="e4m3"), device=CPU)
    multiply(x_ND.requires_grad_(), weight_EDF, torch.tensor([1], dtype=torch.int32))
    assert multiply.take_counts().tolist() == [[12, 4, 0], [256, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("autocast", [False, True])
def test_swiglu_takes_the_matmuls_and_keeps_the_master_weights(autocast: bool) -> None:
    given = operands((24, 8), dim=32, outputs=64)
    gate_up_E2FD = given.weight_EDF.detach().mT.unflatten(1, (2, 32)).contiguous().requires_grad_()
    down_EFD = torch.randn(2, 32, 32).requires_grad_()
    multiply = QuantizedMatmul(RECIPES["nvfp4"], device=CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y_ND = grouped_swiglu(given.x_ND, gate_up_E2FD, down_EFD, given.offsets_E, matmul=multiply)
    assert y_ND.dtype == (torch.bfloat16 if autocast else torch.float32)
    x_ND = given.x_ND.to(y_ND.dtype)
    gate_NF, up_NF = multiply(x_ND, given.weight_EDF, given.offsets_E).chunk(2, dim=1)
    expected_ND = multiply(torch.nn.functional.silu(gate_NF) * up_NF, down_EFD, given.offsets_E)
    assert torch.equal(y_ND, expected_ND)
    y_ND.sum().backward()
    assert gate_up_E2FD.grad is not None
    assert down_EFD.grad is not None
    assert {gate_up_E2FD.grad.dtype, down_EFD.grad.dtype} == {torch.float32}


def test_weights_of_several_dtypes_are_refused() -> None:
    given = operands((24, 8), dim=32, outputs=32)
    multiply = QuantizedMatmul(RECIPES["nvfp4"], device=CPU)
    gate_up_E2FD, half_EFD = torch.zeros(2, 2, 32, 32), given.weight_EDF.detach().bfloat16()
    with pytest.raises(ValueError, match=r"down_weight_EFD has dtype torch\.bfloat16; expected torch\.float32"):
        grouped_swiglu(given.x_ND, gate_up_E2FD, half_EFD, given.offsets_E, matmul=multiply)


@every_recipe
def test_casts_of_tensors_without_data_read_nothing(recipe: Recipe) -> None:
    # Tensors on "meta" cannot be read on the host and refuse to meet tensors on the CPU.
    x_ND = torch.randn(200, 128, device="meta")
    offsets_E = torch.zeros(6, dtype=torch.int32, device="meta")
    counts = torch.zeros(3, dtype=torch.int64, device="meta")
    x_PD, ends_E = spread_groups(mask_unowned(x_ND, offsets_E), offsets_E, multiple=recipe.row_multiple)
    rotated_PD = rotate_rows(x_PD) if recipe.hadamard else x_PD
    for cast, contracts in ((recipe.activation, -1), (recipe.gradient, -2), (recipe.weight, -1)):
        x_RC = x_ND if contracts == -1 else rotated_PD
        x_RC = x_RC.expand(2, *x_RC.shape)[:, :128] if cast == recipe.weight else x_RC
        values = quantize(x_RC, cast, contracts=contracts, counts=counts).values()
        assert (values.shape, values.device.type) == (x_RC.shape, "meta")
    assert ends_E.device.type == counts.device.type == "meta"
