"""Biases and activations of the grouped experts: both paths against formulas and against each other."""

import math

import pytest
import torch

from kernels import ExpertBiases, gated_activation, grouped_swiglu

COUNTS = [(3, 5, 1, 7), (0, 16, 0, 0), (4, 0, 12, 0)]


def operands(dtype: torch.dtype = torch.float32, *, num_rows: int = 16, dim: int = 16, hidden_dim: int = 8) -> list:
    """Returns x_ND, the two weights and the three biases of 4 experts."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_rows, dim), (4, 2, hidden_dim, dim), (4, hidden_dim, dim), *[(4, hidden_dim)] * 2, (4, dim)]
    return [(torch.randn(shape, generator=generator) * 0.5).to(dtype).requires_grad_() for shape in shapes]


def offsets(*counts: int) -> torch.Tensor:
    return torch.tensor(counts).cumsum(0).int()


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "clamped_swiglu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", COUNTS)
def test_torch_path_equals_the_loop_with_gradients(dtype: torch.dtype, counts: tuple, activation: str) -> None:
    inputs = operands(dtype)
    dy_ND = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = {}
    for backend in ("reference", "torch"):
        x_ND, gate_up, down, *biases = inputs
        y_ND = grouped_swiglu(
            x_ND,
            gate_up,
            down,
            offsets(*counts),
            activation=activation,
            biases=ExpertBiases(*biases),
            backend=backend,
        )
        results[backend] = (y_ND, *torch.autograd.grad(y_ND, inputs, dy_ND))
    for actual, expected in zip(results["torch"], results["reference"], strict=True):
        # bfloat16: the two paths round a sum of 16 rows of order one at different places.
        tolerance = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
        torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_rows_that_no_expert_owns_reach_no_gradient_of_a_weight_or_bias(backend: str) -> None:
    inputs = operands()
    x_ND, gate_up, down, *biases = inputs
    options = {"activation": "clamped_swiglu", "biases": ExpertBiases(*biases), "backend": backend}
    with torch.no_grad():
        x_ND[11:] = float("nan")
    owned = torch.autograd.grad(
        grouped_swiglu(x_ND[:11], gate_up, down, offsets(3, 5, 0, 3), **options).square().sum(), inputs[1:]
    )
    y_ND = grouped_swiglu(x_ND, gate_up, down, offsets(3, 5, 0, 3), **options)
    beyond = torch.autograd.grad(y_ND[:11].square().sum(), inputs[1:])
    for actual, expected in zip(beyond, owned, strict=True):
        torch.testing.assert_close(actual, expected)


def test_zero_biases_change_nothing() -> None:
    x_ND, gate_up, down, *_ = operands()
    zeros = ExpertBiases(torch.zeros(4, 8), torch.zeros(4, 8), torch.zeros(4, 16))
    without = grouped_swiglu(x_ND, gate_up, down, offsets(3, 5, 1, 7))
    assert torch.equal(grouped_swiglu(x_ND, gate_up, down, offsets(3, 5, 1, 7), biases=zeros), without)


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "clamped_swiglu"])
def test_float64_passes_finite_differences(activation: str) -> None:
    inputs = [tensor.detach().double().requires_grad_() for tensor in operands(num_rows=5, dim=3, hidden_dim=2)]

    def experts(x, gate_up, down, *biases):
        return grouped_swiglu(
            x, gate_up, down, offsets(2, 0, 2, 1), activation=activation, biases=ExpertBiases(*biases)
        )

    assert torch.autograd.gradcheck(experts, inputs)


def test_expanded_gradients_are_accepted() -> None:
    x_ND, gate_up, down, *biases = operands()
    grouped_swiglu(x_ND, gate_up, down, offsets(4, 4, 4, 4), biases=ExpertBiases(*biases)).sum().backward()
    torch.testing.assert_close(biases[2].grad, torch.full((4, 16), 4.0))


@pytest.mark.parametrize(
    ("activation", "gate", "up", "expected"),
    [
        ("swiglu", 2.0, 3.0, 2.0 / (1 + math.exp(-2.0)) * 3.0),
        ("geglu", 2.0, 3.0, 0.5 * 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (2 + 0.044715 * 8))) * 3.0),
        ("clamped_swiglu", 2.0, 3.0, 2.0 / (1 + math.exp(-1.702 * 2.0)) * 4.0),
        ("clamped_swiglu", 50.0, -50.0, 7.0 / (1 + math.exp(-1.702 * 7.0)) * -6.0),
        ("clamped_swiglu", -9.0, 50.0, -9.0 / (1 + math.exp(1.702 * 9.0)) * 8.0),
    ],
)
def test_activations_by_hand(activation: str, gate: float, up: float, expected: float) -> None:
    hidden = gated_activation(torch.tensor(gate).double(), torch.tensor(up).double(), activation)
    assert hidden.item() == pytest.approx(expected, rel=1e-12)


def test_unknown_activation_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="there is no activation 'relu'; there are: swiglu, geglu, clamped_swiglu"):
        gated_activation(torch.zeros(1), torch.zeros(1), "relu")


def test_biases_that_do_not_fit_are_refused() -> None:
    x_ND, gate_up, down, *biases = operands()
    short = ExpertBiases(biases[0][:3], biases[1], biases[2])
    with pytest.raises(ValueError, match=r"biases.gate_EF has shape \(3, 8\); expected \(4, 8\)"):
        grouped_swiglu(x_ND, gate_up, down, offsets(4, 4, 4, 4), biases=short)
    halves = ExpertBiases(*(bias.half() for bias in biases))
    with pytest.raises(ValueError, match=r"biases.gate_EF has dtype torch.float16; expected torch.float32"):
        grouped_swiglu(x_ND, gate_up, down, offsets(4, 4, 4, 4), biases=halves)


def test_under_autocast_biases_are_cast_like_weights() -> None:
    x_ND, gate_up, down, *biases = operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_ND = grouped_swiglu(x_ND, gate_up, down, offsets(4, 4, 4, 4), biases=ExpertBiases(*biases))
    halves = [tensor.bfloat16() for tensor in (x_ND, gate_up, down, *biases)]
    expected_ND = grouped_swiglu(*halves[:3], offsets(4, 4, 4, 4), biases=ExpertBiases(*halves[3:]))
    assert torch.equal(y_ND, expected_ND)
