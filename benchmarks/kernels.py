"""What an MoE layer costs beyond its arithmetic: `python -m benchmarks.kernels --device cpu --json`.

Every figure is a ratio of two times taken in the same run, in turns, each the least of several rounds, so that a slower
or busier machine changes both. On a CPU the time is that of the process, not of the wall.

    layer_to_matmuls     route, permute, experts, unpermute, forward and backward, over dense matmuls of the same FLOPs
    experts_to_matmuls   the grouped experts alone over the same matmuls
    loop_to_layer        the layer with plain indexing and a loop over experts, over the layer
    route_to_layer       routing with both auxiliary losses, forward and backward, over the layer
    statistics_to_route  the router's statistics over routing, forward and backward
    statistics_to_layer  the same over the layer
    triton_to_torch      (CUDA with triton only) routing by the Triton kernels over the torch path

Letters: T tokens, D model dim, F expert hidden dim, E experts, K experts per token, N = T*K routed pairs.
"""

import argparse
import importlib.util
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.report import Report, ShapeMeasurement
from kernels import Backend, Routing, grouped_swiglu, permute, route, unpermute
from kernels.route.torch_path import gate_mass, statistics
from trainer.host_memory import keep_freed_memory


class Shape(NamedTuple):
    """One MoE layer."""

    tokens: int
    dim: int
    hidden_dim: int
    num_experts: int
    top_k: int

    @property
    def training_flops(self) -> int:
        """Three matmuls forward, twice that backward, two FLOPs per multiply-add."""
        return 18 * self.tokens * self.top_k * self.dim * self.hidden_dim


CPU_SHAPES = (
    Shape(2048, 128, 128, 8, 2),
    Shape(2048, 128, 128, 16, 2),
    Shape(2048, 128, 64, 64, 8),
    Shape(2048, 256, 128, 16, 4),
    Shape(4096, 192, 384, 8, 2),
    Shape(4096, 192, 192, 16, 4),
    Shape(4096, 256, 64, 64, 8),
    Shape(4096, 192, 96, 64, 8),
)
CUDA_SHAPES = (
    Shape(16384, 512, 128, 64, 8),
    Shape(16384, 1024, 256, 64, 8),
    Shape(16384, 2048, 1024, 64, 8),
)


@dataclass(frozen=True)
class Measurement(ShapeMeasurement):
    """Times and ratios (see the module's docstring) of one layer."""

    training_gflop: float


class Layer:
    """Inputs, weights and upstream gradients of one shape, and the pieces of work that are timed."""

    def __init__(self, shape: Shape, *, device: str, dtype: torch.dtype) -> None:
        tokens, dim, hidden_dim, num_experts, top_k = shape
        generator = torch.Generator(device=device).manual_seed(0)

        def leaf(*size: int, spread: float = 1.0) -> Tensor:
            values = torch.randn(size, generator=generator, device=device) * spread
            return values.to(dtype).requires_grad_()

        self.shape = shape
        self.x_TD = leaf(tokens, dim)
        self.router_DE = leaf(dim, num_experts, spread=dim**-0.5)
        self.gate_up_E2FD = leaf(num_experts, 2, hidden_dim, dim, spread=dim**-0.5)
        self.down_EFD = leaf(num_experts, hidden_dim, dim, spread=hidden_dim**-0.5)
        self.dout_TD = leaf(tokens, dim).detach()
        self.logits_TE = (self.x_TD @ self.router_DE).detach().requires_grad_()
        routing = route(self.logits_TE, top_k=top_k, normalize=True)
        self.offsets_E = routing.offsets_E
        self.x_ND = permute(self.x_TD, routing).detach().requires_grad_()
        self.h_NF = leaf(tokens * top_k, hidden_dim)
        self.dy_ND = torch.randn_like(self.x_ND)
        self.dh_NF = torch.randn_like(self.h_NF)
        # What the statistics are made from, as the routing pass has it at hand.
        logits_TE = self.logits_TE.detach().float()
        log_probs_TE = logits_TE.log_softmax(dim=-1)
        self.statistics_inputs = (
            logits_TE,
            log_probs_TE,
            log_probs_TE.exp(),
            logits_TE.logsumexp(dim=-1),
            routing.z_sum.detach(),
            routing.weights_TK.detach(),
            routing.weights_TK[:, -2:].detach(),
        )
        self.choice = (routing.expert_ids_TK, routing.weights_TK.detach())

    def routed(self, logits_TE: Tensor, backend: Backend) -> Routing:
        return route(logits_TE, top_k=self.shape.top_k, normalize=True, backend=backend)

    def layer(self, backend: Backend = "auto") -> None:
        # The reference of `route` is a definition, not an implementation anyone would use: the loop gets the fast one.
        routing = self.routed(self.x_TD @ self.router_DE, "auto")
        x_ND = permute(self.x_TD, routing, backend=backend)
        weights = (self.gate_up_E2FD, self.down_EFD)
        y_ND = grouped_swiglu(x_ND, *weights, routing.offsets_E, backend=backend)
        out_TD = unpermute(y_ND, routing, routing.weights_TK, backend=backend)
        losses = (out_TD, routing.prob_sum_E, routing.z_sum)
        torch.autograd.grad(losses, (self.x_TD, self.router_DE, *weights), self._upstream(self.dout_TD, routing))

    def experts(self) -> None:
        weights = (self.gate_up_E2FD, self.down_EFD)
        y_ND = grouped_swiglu(self.x_ND, *weights, self.offsets_E)
        torch.autograd.grad(y_ND, (self.x_ND, *weights), self.dy_ND)

    def matmuls(self) -> None:
        gate_DF, up_DF = (weight_FD.detach().t().contiguous() for weight_FD in self.gate_up_E2FD[0])
        down_FD = self.down_EFD[0]
        for rows, weight, upstream in (
            (self.x_ND, gate_DF, self.dh_NF),
            (self.x_ND, up_DF, self.dh_NF),
            (self.h_NF, down_FD, self.dy_ND),
        ):
            weight = weight.detach().requires_grad_()
            torch.autograd.grad(rows @ weight, (rows, weight), upstream)

    def route(self, backend: Backend = "auto") -> None:
        routing = self.routed(self.logits_TE, backend)
        losses = (routing.weights_TK, routing.prob_sum_E, routing.z_sum)
        torch.autograd.grad(losses, self.logits_TE, self._upstream(routing.weights_TK.detach(), routing))

    def statistics(self) -> None:
        statistics(*self.statistics_inputs)
        gate_mass(*self.choice, self.shape.num_experts)

    @staticmethod
    def _upstream(first: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
        return first, routing.prob_sum_E.detach(), torch.ones_like(routing.z_sum)


def least_seconds(work: dict[str, Callable[[], None]], *, rounds: int, device: str) -> dict[str, float]:
    """Returns for each piece of work the least time of `rounds` rounds, in each of which every piece has its turn."""
    least = dict.fromkeys(work, float("inf"))
    for piece in work.values():  # warm-up: allocations, lazy initialisation, compilation
        piece()
    for _ in range(rounds):
        for name, piece in work.items():
            least[name] = min(least[name], _seconds(piece, device))
    return least


def _seconds(piece: Callable[[], None], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        piece()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    piece()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(shape: Shape, *, device: str, dtype: torch.dtype, rounds: int) -> Measurement:
    """Returns what one shape costs; the dtype is that of the weights and the rows."""
    layer = Layer(shape, device=device, dtype=dtype)
    work: dict[str, Callable[[], None]] = {
        "matmuls": layer.matmuls,
        "experts": layer.experts,
        "layer": layer.layer,
        "loop": lambda: layer.layer("reference"),
        "route": layer.route,
        "statistics": layer.statistics,
    }
    with_triton = device == "cuda" and importlib.util.find_spec("triton") is not None
    if with_triton:
        work["route_triton"] = lambda: layer.route("triton")
    least = least_seconds(work, rounds=rounds, device=device)
    ratios = {
        "layer_to_matmuls": least["layer"] / least["matmuls"],
        "experts_to_matmuls": least["experts"] / least["matmuls"],
        "loop_to_layer": least["loop"] / least["layer"],
        "route_to_layer": least["route"] / least["layer"],
        "statistics_to_route": least["statistics"] / least["route"],
        "statistics_to_layer": least["statistics"] / least["layer"],
    }
    if with_triton:
        ratios["triton_to_torch"] = least["route_triton"] / least["route"]
    return Measurement(
        shape=shape,
        training_gflop=shape.training_flops / 1e9,
        milliseconds={name: round(seconds * 1e3, 4) for name, seconds in least.items()},
        ratios={name: round(ratio, 4) for name, ratio in ratios.items()},
    )


def run(*, device: str, dtype: torch.dtype, rounds: int, shapes: Sequence[Shape]) -> Report:
    """Returns the measurements of all shapes on `device`; on a CPU with the allocator as the trainer sets it."""
    if device == "cpu":
        keep_freed_memory()
    return Report(
        device=torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        torch=torch.__version__,
        rounds=rounds,
        measurements=[measure(shape, device=device, dtype=dtype, rounds=rounds) for shape in shapes],
    )


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description="Ratios of what an MoE layer costs."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on cpu, bfloat16 on cuda")
    parser.add_argument("--threads", type=int, default=1, help="Torch threads on the CPU")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch sees none; use --device cpu")

    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype or ("float32" if options.device == "cpu" else "bfloat16"))
    shapes = CPU_SHAPES if options.device == "cpu" else CUDA_SHAPES
    report = run(device=options.device, dtype=dtype, rounds=options.rounds, shapes=shapes)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
