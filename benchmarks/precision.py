"""What precisions cost: `python -m benchmarks.precision --device cpu --json`.

Every figure is a ratio of two times taken in the same run, in turns, each the least of several rounds, so that a slower
or busier machine changes both. On a CPU the time is that of the process, not of the wall. All of it is forward and
backward. Where a format is emulated, the figure is the price of the emulation and says nothing of the format.

    X_experts  the grouped experts in this precision over the experts in fp32
    X_step     a model of 4 layers of the shape, with attention and loss, in this precision over the model in fp32
"""

import argparse
import json
import platform
from collections.abc import Callable
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.kernels import Layer, Shape, least_seconds
from kernels import grouped_swiglu
from trainer.config.model import ModelConfig
from trainer.config.precision import PrecisionConfig
from trainer.model.build import build_model
from trainer.precision.build import build_precision

SHAPES = (Shape(2048, 256, 256, 8, 2), Shape(2048, 256, 128, 64, 8))

PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16_autocast": {"kind": "bf16_autocast"},
    "fp8_tensor": {"kind": "fp8", "scaling": "tensor"},
    "fp8_block": {"kind": "fp8", "scaling": "block"},
    "mxfp8": {"kind": "mxfp8"},
    "nvfp4": {"kind": "nvfp4"},
    "nvfp4_plain": {
        "kind": "nvfp4",
        "stochastic_gradients": False,
        "square_weight_blocks": False,
        "hadamard": False,
    },
}

SEQ_LEN, VOCAB_SIZE, NUM_LAYERS = 256, 1024, 4


def model_config(shape: Shape) -> ModelConfig:
    """Returns a model whose MoE layers are of the shape."""
    return ModelConfig.model_validate(
        {
            "vocab_size": VOCAB_SIZE,
            "dim": shape.dim,
            "num_layers": NUM_LAYERS,
            "hidden_dim": shape.hidden_dim,
            "attention": {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": shape.dim // 4},
            "moe": {"num_experts": shape.num_experts, "top_k": shape.top_k, "hidden_dim": shape.hidden_dim},
        }
    )


def experts_work(shape: Shape, precision: dict[str, Any], device: str) -> Callable[[], None]:
    """Returns forward and backward pass of one layer's experts."""
    layer = Layer(shape, device=device, dtype=torch.float32)
    weights = (layer.gate_up_E2FD, layer.down_EFD)
    model = build_model(model_config(shape), seed=0, device=torch.device(device))
    built = _applied(precision, model, device)
    matmul = model.moe_layers()[0].experts.matmul

    def work() -> None:
        with built.autocast():
            y_ND = grouped_swiglu(layer.x_ND, *weights, layer.offsets_E, matmul=matmul)
        torch.autograd.grad(y_ND, (layer.x_ND, *weights), layer.dy_ND.to(y_ND.dtype))

    return work


def step_work(shape: Shape, precision: dict[str, Any], device: str) -> Callable[[], None]:
    """Returns forward and backward pass of a model."""
    model = build_model(model_config(shape), seed=0, device=torch.device(device))
    built = _applied(precision, model, device)
    generator = torch.Generator(device=device).manual_seed(0)
    tokens_BL = torch.randint(VOCAB_SIZE, (shape.tokens // SEQ_LEN, SEQ_LEN), generator=generator, device=device)

    def work() -> None:
        with built.autocast():
            loss = model(tokens_BL, tokens_BL).loss
        loss.backward()

    return work


def _applied(precision: dict[str, Any], model: Any, device: str) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(PrecisionConfig)
    built = build_precision(adapter.validate_python(precision), torch.device(device))
    built.apply_to(model)
    return built


def measure(shape: Shape, *, device: str, rounds: int) -> dict[str, float]:
    """Returns the ratios of one shape (see the module's docstring)."""
    precisions = {"fp32": {"kind": "fp32"}, **PRECISIONS}
    ratios: dict[str, float] = {}
    for part, make in (("experts", experts_work), ("step", step_work)):
        work = {name: make(shape, precision, device) for name, precision in precisions.items()}
        least = least_seconds(work, rounds=rounds, device=device)
        ratios |= {f"{name}_{part}": round(least[name] / least["fp32"], 3) for name in PRECISIONS}
    return ratios


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description="Ratios of what precisions cost."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="Torch threads on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch sees none; use --device cpu")
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    header = {"device": device, "threads": options.threads, "torch": torch.__version__, "rounds": options.rounds}
    measurements = [
        {"shape": shape._asdict(), "ratios": measure(shape, device=options.device, rounds=options.rounds)}
        for shape in SHAPES
    ]
    if options.json:
        print(json.dumps({**header, "measurements": measurements}, indent=2))
        return
    print(f"{device}, {options.threads} thread(s), torch {torch.__version__}")
    for measurement in measurements:
        print(" ".join(f"{name}={value}" for name, value in measurement["shape"].items()))
        for name, ratio in measurement["ratios"].items():
            print(f"  {name:<24}{ratio:8.2f}")


if __name__ == "__main__":
    main()
