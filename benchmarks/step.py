"""What a whole training step costs: `python -m benchmarks.step --json`.

Every trainer has a process of its own, and they do one step each in turns, so that a slower or busier machine changes
all of them. What is measured is the time of the process. Every figure is a ratio of two such times in the same run. A
step of ours is the one of a real run with all it does: reading the batch, forward and backward, clipping, AdamW,
telemetry, its copy to the host every ten steps and its files. Everything is float32, on the CPU, on real text.

    moe_to_dense               a mixture of experts over its dense twin with equal active parameters
    transformers_as_is_to_moe  transformers' OlmoeForCausalLM over ours: tokens per second of ours over theirs
    transformers_to_moe        the same when its process has our setting of the allocator
    transformers_plain_to_moe  that, and theirs leaves out the load-balancing loss, as its config does by default
    telemetry_overhead         ours over ours without statistics in the routing pass and without a record, less one

The peer gets our weights, our batches (as tensors, read beforehand), our learning rate and clipping, and what makes it
fastest: sdpa attention, `grouped_mm` for its experts (its default; "eager" and "batched_mm" are slower), torch's fused
AdamW, no cache, targets that are already shifted, no deterministic algorithms. Its first loss must be ours. What the C
library does with freed memory is a matter of the process, not of its code: our trainer sets it, a script around
transformers usually does not, so both are measured.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kernels.route import torch_path
from trainer.config import TrainConfig
from trainer.data.shards import default_cache_dir
from trainer.host_memory import keep_freed_memory
from trainer.interop.exporting import export_hugging_face
from trainer.interop.start import Start, save_start
from trainer.model.build import build_model
from trainer.model.matched import matched_twin
from trainer.model.routing import LayerRouting
from trainer.telemetry.step_buffer import StepBuffer
from trainer.training import Training
from trainer.training_data import open_data
from trainer.world import World


class Size(NamedTuple):
    """A mixture of experts and its batch; `hidden_dim` is the width of an expert."""

    num_experts: int
    top_k: int
    hidden_dim: int
    dim: int = 192
    num_layers: int = 4
    num_heads: int = 6
    sequences: int = 4
    seq_len: int = 256

    @property
    def tokens(self) -> int:
        return self.sequences * self.seq_len


SIZES = (Size(8, 2, 384), Size(16, 4, 192), Size(64, 8, 96))
THREADS = 1
"""Torch threads of every process."""
LOG_EVERY_STEPS = 10
"""Steps of a cycle, the last of which copies the telemetry to the host."""
NUM_BATCHES = 64
"""Batches the peer goes round in."""

Step = Callable[[], None]


class Channel(Protocol):
    """An end of a pipe between two processes."""

    def send(self, obj: Any, /) -> None: ...

    def recv(self) -> Any: ...


Seconds = dict[str, list[list[float]]]
"""Process times of steps, by what was timed, place in the cycle, and round."""


@dataclass(frozen=True)
class Measurement:
    """Times and ratios (see the module's docstring) of one size.

    Attributes:
        size: of the mixture of experts.
        dense_hidden_dim: width of the dense twin's MLPs.
        milliseconds: of a step, for every place of the cycle the least of all rounds, averaged over the cycle.
        tokens_per_s: by these times.
        ratios: by these times.
        median_ratios: the same by the medians of the rounds.
    """

    size: Size
    dense_hidden_dim: int
    milliseconds: dict[str, float]
    tokens_per_s: dict[str, float]
    ratios: dict[str, float]
    median_ratios: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Everything one run measured, and on what."""

    device: str
    threads: int
    dtype: str
    torch: str
    rounds: int
    measurements: list[Measurement]

    def as_json(self) -> str:
        measurements = [{**asdict(each), "size": each.size._asdict()} for each in self.measurements]
        return json.dumps({**asdict(self), "measurements": measurements}, indent=2)

    def as_table(self) -> str:
        lines = [f"{self.device}, {self.threads} thread(s), {self.dtype}, torch {self.torch}"]
        for each in self.measurements:
            lines.append(" ".join(f"{name}={value}" for name, value in each.size._asdict().items()))
            lines += [f"  {name:<26}{speed:8.0f} tokens/s" for name, speed in each.tokens_per_s.items()]
            lines += [
                f"  {name:<26}{ratio:8.4f}   by medians {each.median_ratios[name]:8.4f}"
                for name, ratio in each.ratios.items()
            ]
        return "\n".join(lines)


def train_config(size: Size) -> TrainConfig:
    """Returns a run of an OLMoE of this size, with its load-balancing loss, that is long enough for any benchmark."""
    heads = {"num_heads": size.num_heads, "num_kv_heads": size.num_heads, "head_dim": size.dim // size.num_heads}
    return TrainConfig.model_validate(
        {
            "model": {
                "vocab_size": 4096,
                "dim": size.dim,
                "num_layers": size.num_layers,
                "hidden_dim": size.top_k * size.hidden_dim,
                "tie_embeddings": False,
                "attention": heads | {"qk_norm": True, "qk_norm_over": "all_heads"},
                "moe": {
                    "num_experts": size.num_experts,
                    "top_k": size.top_k,
                    "hidden_dim": size.hidden_dim,
                    "router": {"normalize": False},
                    "balancing": [{"kind": "load_balancing_loss", "coefficient": 0.01}],
                },
            },
            "data": {"seq_len": size.seq_len},
            "optimizer": {"lr": 1e-3},
            "schedule": {"kind": "constant"},
            "loop": {
                "budget_tokens": 100_000 * size.tokens,
                "global_batch_size": size.sequences,
                "micro_batch_size": size.sequences,
                "log_every_steps": LOG_EVERY_STEPS,
            },
        }
    )


class SilentBuffer(StepBuffer):
    """Takes no notice of a step; for balancing methods that are content with a loss."""

    def begin_step(self) -> None: ...

    def add_micro_batch(
        self, *, loss: Tensor, balancing_loss: Tensor | None, routings: Sequence[LayerRouting], share: float
    ) -> None: ...

    def reduce_step(self) -> Tensor:
        return torch.zeros(self._shape_LE)

    def finish_step(
        self,
        *,
        grad_norm: Tensor,
        selection_bias_LE: Tensor | None,
        skipped: Tensor | None = None,
        group_norms_G: Tensor | None = None,
        ratios_R: Tensor | None = None,
    ) -> None: ...


@contextmanager
def without_statistics() -> Iterator[None]:
    """Has routing leave out its statistics, but for the counts, which balancing needs, and the values of the margin."""
    originals = {name: getattr(torch_path, name) for name in ("statistics", "gate_mass")}
    for name in originals:
        setattr(torch_path, name, lambda *_: torch.empty(0))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch_path, name, original)


def our_steps(config: TrainConfig, folder: Path) -> dict[str, Step]:
    """Returns a step of a run of ours that writes into `folder`, and one of the same run without telemetry."""
    training = Training(
        config,
        folder=folder,
        world=World(),
        cache_folder=default_cache_dir(),
        start_root=None,
        resume_from=None,
        on_progress=lambda _: None,
    )
    telemetry = training.telemetry
    buffer = telemetry.buffer
    num_experts = 0 if config.model.moe is None else config.model.moe.num_experts
    silent_buffer = SilentBuffer(
        log_every_steps=LOG_EVERY_STEPS,
        num_layers=config.model.num_layers if num_experts else 0,
        num_experts=num_experts,
        step_tokens=config.step_tokens,
        world=World(),
    )

    def step() -> None:
        training.advance()
        if buffer.num_rows == buffer.capacity:
            telemetry.drain()
            telemetry.write_if_due()

    def silent_step() -> None:
        telemetry.buffer = silent_buffer
        with without_statistics():
            training.advance()
        telemetry.buffer = buffer

    return {"recorded": step, "silent": silent_step}


def their_steps(config: TrainConfig, folder: Path, *, experts: str = "grouped_mm") -> dict[str, Step]:
    """Returns a step of transformers' OLMoE that began at our weights, with and without its load-balancing loss.

    Raises:
        AssertionError: its loss is not ours.
    """
    from transformers import OlmoeForCausalLM  # a development dependency, and slow to import
    from transformers.utils import logging

    logging.disable_progress_bar()
    ours = build_model(config.model, seed=config.seed, device=torch.device("cpu"))
    save_start(folder / "start", Start(config.model, None, None, "a benchmark"), ours.state_dict())
    export_hugging_face(folder / "start", folder / "hf", architecture="olmoe")
    model = OlmoeForCausalLM.from_pretrained(
        folder / "hf", attn_implementation="sdpa", experts_implementation=experts, dtype=torch.float32
    )
    model.train()
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1]},
        {"params": [parameter for parameter in parameters if parameter.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.optimizer.lr, fused=True)
    mixture = open_data(config, cache_folder=default_cache_dir()).mixture
    batches = [mixture.batch(number, config.loop.global_batch_size) for number in range(NUM_BATCHES)]
    tokens = [(torch.from_numpy(batch.inputs_BL), torch.from_numpy(batch.targets_BL)) for batch in batches]
    with torch.no_grad():
        inputs_BL, targets_BL = tokens[0]
        loss = model(inputs_BL, labels=targets_BL, shift_labels=targets_BL, use_cache=False).loss
        torch.testing.assert_close(loss, ours(inputs_BL, targets_BL).loss, rtol=1e-4, atol=0.0)
    endless = cycle(tokens)

    def step(*, balances: bool) -> None:
        inputs_BL, targets_BL = next(endless)
        output = model(
            input_ids=inputs_BL,
            labels=targets_BL,
            shift_labels=targets_BL,
            use_cache=False,
            output_router_logits=balances,
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"balanced": lambda: step(balances=True), "plain": lambda: step(balances=False)}


def dense_twin(config: TrainConfig) -> TrainConfig:
    """Returns the run of the dense model with as many active parameters."""
    return config.model_copy(update={"model": matched_twin(config, match="active_params").model})


def make_steps(trainer: str, size: Size, folder: Path) -> dict[str, Step]:
    """Returns the steps of one of the trainers in `TURNS`, which writes into the new `folder`."""
    folder.mkdir()
    config = train_config(size)
    if trainer.startswith("transformers"):
        return their_steps(config, folder)
    return our_steps(config if trainer == "moe" else dense_twin(config), folder)


TURNS = {
    "moe": ("moe", "recorded"),
    "silent": ("moe", "silent"),
    "dense": ("dense", "recorded"),
    "transformers": ("transformers", "balanced"),
    "transformers_plain": ("transformers", "plain"),
    "transformers_as_is": ("transformers_as_is", "balanced"),
}
"""What is timed -> the trainer and which of its steps."""


def step_seconds(timed: Mapping[str, Callable[[], float]], *, rounds: int) -> Seconds:
    """Returns what every piece took; a round is a cycle of steps of each, and the first round warms up uncounted."""
    seconds: Seconds = {name: [[] for _ in range(LOG_EVERY_STEPS)] for name in timed}
    for number in range(rounds + 1):
        for place in range(LOG_EVERY_STEPS):
            for name, piece in timed.items():
                taken = piece()
                if number:
                    seconds[name][place].append(taken)
    return seconds


def process_seconds(step: Step) -> float:
    """Returns the process time of one step."""
    start = time.process_time()
    step()
    return time.process_time() - start


def measurement(size: Size, seconds: Seconds) -> Measurement:
    """Returns the ratios of what `TURNS` names."""
    least = {name: statistics.mean(min(place) for place in cycle_) for name, cycle_ in seconds.items()}
    median = {name: statistics.mean(statistics.median(place) for place in cycle_) for name, cycle_ in seconds.items()}
    twin = dense_twin(train_config(size)).model
    return Measurement(
        size=size,
        dense_hidden_dim=twin.hidden_dim,
        milliseconds={name: round(taken * 1e3, 3) for name, taken in least.items()},
        tokens_per_s={name: round(size.tokens / taken, 1) for name, taken in least.items()},
        ratios=_ratios(least),
        median_ratios=_ratios(median),
    )


def _ratios(taken: Mapping[str, float]) -> dict[str, float]:
    ratios = {
        "moe_to_dense": taken["moe"] / taken["dense"],
        "transformers_to_moe": taken["transformers"] / taken["moe"],
        "transformers_plain_to_moe": taken["transformers_plain"] / taken["moe"],
        "transformers_as_is_to_moe": taken["transformers_as_is"] / taken["moe"],
        "telemetry_overhead": taken["moe"] / taken["silent"] - 1.0,
    }
    return {name: round(ratio, 4) for name, ratio in ratios.items()}


def _serve(connection: Channel, trainer: str, size: Size, folder: Path) -> None:
    """Does the steps it is told to, in a process of its own, and answers with their times."""
    torch.set_num_threads(THREADS)
    if trainer != "transformers_as_is":
        keep_freed_memory()  # as `trainer.worker` has it
    if not trainer.startswith("transformers"):  # likewise
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    steps = make_steps(trainer, size, folder)
    connection.send("ready")
    while (kind := connection.recv()) is not None:
        connection.send(process_seconds(steps[kind]))


def measure(size: Size, *, rounds: int) -> Measurement:
    """Returns what a step of one size costs, with a process for each trainer."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as root, ExitStack() as open_connections:
        connections: dict[str, Channel] = {}
        for trainer in dict.fromkeys(trainer for trainer, _ in TURNS.values()):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, trainer, size, Path(root) / trainer), daemon=True)
            process.start()
            there.close()  # so that a process that ends shows as the end of its messages
            open_connections.callback(process.join)
            open_connections.callback(here.send, None)
            connections[trainer] = here
        for connection in connections.values():
            connection.recv()

        def timed(trainer: str, kind: str) -> Callable[[], float]:
            def ask() -> float:
                connections[trainer].send(kind)
                return connections[trainer].recv()

            return ask

        return measurement(size, step_seconds({name: timed(*turn) for name, turn in TURNS.items()}, rounds=rounds))


def run(*, rounds: int, sizes: Sequence[Size] = SIZES) -> Report:
    """Returns the measurements of all sizes."""
    return Report(
        device=platform.processor() or platform.machine(),
        threads=THREADS,
        dtype="float32",
        torch=torch.__version__,
        rounds=rounds,
        measurements=[measure(size, rounds=rounds) for size in sizes],
    )


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description="Ratios of what a step costs.")
    parser.add_argument("--rounds", type=int, default=5, help="Cycles of ten steps")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = run(rounds=options.rounds)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
