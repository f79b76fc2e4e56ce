"""What each kind of attention costs beside plainer ones: `python -m benchmarks.attention --device cpu --json`.

Every figure is a ratio of two times taken in the same run, in turns, each the least of several rounds, so that a slower
or busier machine changes both. On a CPU the time is that of the process, not of the wall. All of it is forward and
backward.

    naive_to_X      a plain form over ours: for softmax attention (gqa, window, sinks, mla) a table of all scores; for
                    the delta rule (kda, gdn) the recurrence by positions; both without projections. For nsa a layer
                    with two tables of all scores, one for the selected and one for the last positions
    X_to_gqa        a layer of this kind, with its projections, over one of causal attention of the same heads
    documents_to_X  the layer with the documents of a sequence kept apart over the layer without

Letters: B sequences, L positions, H query heads, G key-value heads, d query and key head dim, e value head dim.
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.kernels import least_seconds
from benchmarks.report import Report, ShapeMeasurement
from trainer.attention import ATTENTIONS
from trainer.attention.base import Attention
from trainer.attention.delta_rule import chunked_delta_rule, recurrent_delta_rule, unit_length
from trainer.attention.documents import Documents
from trainer.attention.nsa import NativeSparseAttention
from trainer.attention.rope import rotate
from trainer.attention.scaled_dot_product import causal_attention
from trainer.config.attention import AttentionConfig
from trainer.model.attention_size import GDN_CHUNK, KDA_CHUNK


class Shape(NamedTuple):
    """One attention layer. Windows are an eighth of the sequence; sparse attention selects four blocks of a 32nd."""

    sequences: int
    seq_len: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def window(self) -> int:
        return self.seq_len // 8

    @property
    def block(self) -> int:
        return self.seq_len // 32


CPU_SHAPES = (Shape(8, 256, 4, 2, 32), Shape(4, 512, 4, 2, 32), Shape(2, 1024, 4, 2, 32))
CUDA_SHAPES = (Shape(8, 1024, 16, 4, 64), Shape(4, 4096, 16, 4, 64))
NUM_DOCUMENTS = 4
"""Documents of each sequence, equally long."""

Work = dict[str, Callable[[], None]]


def naive_attention(
    query_BLHd: Tensor, key_BLGd: Tensor, value_BLGe: Tensor, *, sees: Tensor, sinks_H: Tensor | None = None
) -> Tensor:
    """Returns attention over the positions that `sees` leaves, which broadcasts to (B, H, L, L)."""
    heads_per_group = query_BLHd.shape[2] // key_BLGd.shape[2]
    key, value = (x.transpose(1, 2).repeat_interleave(heads_per_group, dim=1) for x in (key_BLGd, value_BLGe))
    scores = query_BLHd.transpose(1, 2) @ key.transpose(-1, -2) * query_BLHd.shape[-1] ** -0.5
    scores = scores.masked_fill(~sees, -torch.inf)
    if sinks_H is not None:
        sink = sinks_H[:, None, None].expand(*scores.shape[:-1], 1)
        return (torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1] @ value).transpose(1, 2)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def naive_sparse(layer: NativeSparseAttention, x_BLD: Tensor) -> Tensor:
    """Returns what the layer returns, from tables of all scores of the selected and of the last positions."""
    seq_len = x_BLD.shape[1]
    query = layer.query(x_BLD).unflatten(-1, (layer.num_heads, -1))
    keys, values = (
        linear(x_BLD).unflatten(-1, (3, layer.num_kv_heads, -1)).unbind(2) for linear in (layer.key, layer.value)
    )
    turned, *turned_keys = (rotate(heads, theta=layer.rope_theta) for heads in (query, *keys[1:]))
    blocks = layer._blocks(x_BLD, None)
    compressed, weights_BHLM = layer._compressed(query, keys[0], values[0], blocks)
    sees_BGLL = layer._selected_positions(weights_BHLM.detach(), blocks, None)
    sees_BHLL = sees_BGLL.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1)
    distance_LL = torch.arange(seq_len, device=x_BLD.device)[:, None] - torch.arange(seq_len, device=x_BLD.device)
    is_last_LL = (distance_LL >= 0) & (distance_LL < layer.window)
    selected = naive_attention(turned, turned_keys[0], values[1], sees=sees_BHLL)
    last = naive_attention(turned, turned_keys[1], values[2], sees=is_last_LL)
    gates_BLH3 = layer.gate(x_BLD).sigmoid().unflatten(-1, (layer.num_heads, 3)).unsqueeze(-1)
    gates = gates_BLH3.unbind(-2)
    return layer.out((gates[0] * compressed + gates[1] * selected + gates[2] * last).flatten(-2))


def layer_configs(shape: Shape) -> dict[str, Any]:
    """Returns a config of every kind, and of the options of `gqa`, all of the same heads."""
    heads, head_dim = shape.num_heads, shape.head_dim
    grouped = {"num_heads": heads, "num_kv_heads": shape.num_kv_heads, "head_dim": head_dim}
    documents: dict[str, dict[str, Any]] = {
        "gqa": grouped,
        "window": grouped | {"window": shape.window},
        "sinks": grouped | {"sinks": True},
        "mla": {
            "kind": "mla",
            "num_heads": heads,
            "kv_lora_rank": 2 * head_dim,
            "qk_nope_head_dim": head_dim,
            "qk_rope_head_dim": head_dim // 2,
            "v_head_dim": head_dim,
        },
        "kda": {"kind": "kda", "num_heads": heads, "head_dim": head_dim},
        "gdn": {"kind": "gdn", "num_heads": heads, "head_dim": head_dim, "v_head_dim": head_dim},
        "nsa": grouped
        | {
            "kind": "nsa",
            "compression_block_size": shape.block,
            "compression_stride": shape.block // 2,
            "selection_block_size": shape.block,
            "num_selected_blocks": 4,
            "window": shape.window,
        },
    }
    adapter: TypeAdapter[Any] = TypeAdapter(AttentionConfig)
    return {name: adapter.validate_python(document) for name, document in documents.items()}


class Inputs:
    """Tensors and layers of one shape, and the pieces of work that are timed."""

    def __init__(self, shape: Shape, *, device: str, dtype: torch.dtype) -> None:
        self.shape = shape
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device=device).manual_seed(0)
        self.x_BLD = self.random(shape.num_heads * shape.head_dim)
        number_L = torch.arange(shape.seq_len, device=device) * NUM_DOCUMENTS // shape.seq_len
        self.document_BL = number_L.expand(shape.sequences, -1)

    def random(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Returns standard normal values for every position of every sequence, which want a gradient."""
        size = (self.shape.sequences, self.shape.seq_len, *size)
        values = torch.randn(size, generator=self.generator, device=self.device)
        return values.to(dtype or self.dtype).requires_grad_()

    def layers(self) -> Work:
        """Returns the layer of each kind, without and with documents, and the naive sparse one."""
        work: Work = {}
        for name, config in layer_configs(self.shape).items():
            layer = ATTENTIONS[config.kind](config, dim=self.x_BLD.shape[-1], norm_eps=1e-5)
            for parameter_name, parameter in layer.named_parameters():
                start = layer.special_start(parameter_name, torch.Generator().manual_seed(0))
                if start is not None:
                    parameter.data.copy_(start)
            layer = layer.to(device=self.device, dtype=self.dtype)
            work[name] = partial(self._train, layer, partial(layer, self.x_BLD))
            work[f"{name}_documents"] = partial(self._train, layer, partial(self._with_documents, layer))
            if isinstance(layer, NativeSparseAttention):
                work["nsa_naive"] = partial(self._train, layer, partial(naive_sparse, layer, self.x_BLD))
        return work

    def softmax_forms(self) -> Work:
        """Returns our form and the naive one of each softmax attention, without projections."""
        _, seq_len, heads, kv_heads, head_dim = self.shape
        grouped = (self.random(heads, head_dim), self.random(kv_heads, head_dim), self.random(kv_heads, head_dim))
        latent = (
            self.random(heads, head_dim * 3 // 2),
            self.random(heads, head_dim * 3 // 2),
            self.random(heads, head_dim),
        )
        sinks_H = torch.zeros(heads, device=self.device, dtype=self.dtype, requires_grad=True)
        distance_LL = torch.arange(seq_len, device=self.device)[:, None] - torch.arange(seq_len, device=self.device)
        causal_LL = distance_LL >= 0
        last_LL = causal_LL & (distance_LL < self.shape.window)
        cases: dict[str, tuple[tuple[Tensor, ...], dict[str, Any], dict[str, Any]]] = {
            "gqa": (grouped, {}, {"sees": causal_LL}),
            "window": (grouped, {"window": self.shape.window}, {"sees": last_LL}),
            "sinks": ((*grouped, sinks_H), {"sinks_H": sinks_H}, {"sees": causal_LL, "sinks_H": sinks_H}),
            "mla": (latent, {}, {"sees": causal_LL}),
        }
        work: Work = {}
        for name, (leaves, ours, naive) in cases.items():
            work[f"{name}_core"] = partial(_backward, partial(causal_attention, *leaves[:3], **ours), leaves)
            work[f"{name}_naive"] = partial(_backward, partial(naive_attention, *leaves[:3], **naive), leaves)
        return work

    def delta_rule_forms(self) -> Work:
        """Returns the form in chunks and the recurrence, in float32 whatever the weights are."""
        heads, head_dim = self.shape.num_heads, self.shape.head_dim
        wide = partial(self.random, dtype=torch.float32)
        query, key = (unit_length(wide(heads, head_dim).detach()).requires_grad_() for _ in range(2))
        value, strength = wide(heads, head_dim), wide(heads).detach().sigmoid().requires_grad_()
        work: Work = {}
        for name, decay_dim, chunk_size in (("kda", head_dim, KDA_CHUNK), ("gdn", 1, GDN_CHUNK)):
            decay = (-wide(heads, decay_dim).detach().exp()).requires_grad_()
            leaves = (query, key, value, decay, strength)
            for form, run in (
                ("core", partial(chunked_delta_rule, chunk_size=chunk_size)),
                ("naive", recurrent_delta_rule),
            ):
                call = partial(run, query, key, value, log_decay_BLHd=decay, strength_BLH=strength)
                work[f"{name}_{form}"] = partial(_backward, call, leaves)
        return work

    def _with_documents(self, layer: Attention) -> Tensor:
        return layer(self.x_BLD, Documents(self.document_BL))

    def _train(self, layer: Attention, forward: Callable[[], Tensor]) -> None:
        _backward(forward, (self.x_BLD, *layer.parameters()))


def _backward(forward: Callable[[], Tensor | tuple[Tensor, Tensor]], leaves: Sequence[Tensor]) -> None:
    out = forward()
    out = out if isinstance(out, Tensor) else out[0]
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def measure(shape: Shape, *, device: str, dtype: torch.dtype, rounds: int) -> ShapeMeasurement:
    """Returns what one shape costs; the dtype is that of the weights and the input."""
    inputs = Inputs(shape, device=device, dtype=dtype)
    work = inputs.layers() | inputs.softmax_forms() | inputs.delta_rule_forms()
    least = least_seconds(work, rounds=rounds, device=device)
    kinds = list(layer_configs(shape))
    ratios = {f"naive_to_{kind}": least[f"{kind}_naive"] / least.get(f"{kind}_core", least[kind]) for kind in kinds}
    ratios |= {f"{kind}_to_gqa": least[kind] / least["gqa"] for kind in kinds if kind != "gqa"}
    ratios |= {f"documents_to_{kind}": least[f"{kind}_documents"] / least[kind] for kind in kinds}
    return ShapeMeasurement(
        shape=shape,
        milliseconds={name: round(seconds * 1e3, 4) for name, seconds in least.items()},
        ratios={name: round(ratio, 4) for name, ratio in ratios.items()},
    )


def run(*, device: str, dtype: torch.dtype, rounds: int, shapes: Sequence[Shape]) -> Report:
    """Returns the measurements of all shapes on `device`."""
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
        prog="python -m benchmarks.attention", description="Ratios of what each kind of attention costs."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="Torch threads on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch sees none; use --device cpu")

    torch.set_num_threads(options.threads)
    shapes = CPU_SHAPES if options.device == "cpu" else CUDA_SHAPES
    report = run(device=options.device, dtype=getattr(torch, options.dtype), rounds=options.rounds, shapes=shapes)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
